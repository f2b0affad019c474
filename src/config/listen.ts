/**
 * One `listen` value -> the addresses to listen on. Go's forms mean what they mean to Go: without a
 * host, or with a wildcard of either family, one dual-stack socket takes all addresses. No name is
 * resolved but `localhost`, which is both loopback addresses.
 */
import type { ListenAddress } from "./config.ts";
import { parsePort, rangeOf, socketAddress, splitHostPort } from "./endpoint.ts";
import { quoted } from "./problem.ts";

export const LISTEN_ALLOWED =
  '"IP:PORT", "[IPv6]:PORT", "localhost:PORT", or ":PORT" for all addresses; ports from 1 to 65535';

/** Tells `report` what is wrong, in words that follow the key's name, and answers null. */
export function parseListen(
  text: string,
  report: (message: string) => void,
): ListenAddress[] | null {
  const fail = (what: string): null => {
    report(`found ${quoted(text)}${what}; allowed: ${LISTEN_ALLOWED}`);
    return null;
  };
  const parts = splitHostPort(text);
  if (parts === null) {
    if (parsePort(text) !== null) return fail(`, a port alone (did you mean ":${text}"?)`);
    if (socketAddress(text, 1) === null)
      return fail(
        text.includes(":") ? ", which is not one address and one port" : " without a port",
      );
    return fail(text.includes(":") ? " without brackets and port" : " without a port");
  }
  const port = parsePort(parts.port);
  if (port === null)
    return fail(
      parts.port === "" ? " without a port" : `, where ${quoted(parts.port)} is not a port`,
    );
  if (parts.host.toLowerCase() === "localhost" && !parts.bracketed) {
    return [listenOn("127.0.0.1", port, true), listenOn("::1", port, true)];
  }
  const range = parts.host === "" && !parts.bracketed ? "wildcard" : rangeOf(parts.host);
  if (range === null)
    return fail(`, where ${quoted(parts.host)} is not an address (names are not resolved)`);
  if (range === "wildcard" || range.range === "wildcard") return [listenOn("::", port, false)];
  if (range.range === "multicast") return fail(", which no TCP socket can listen on");
  if (range.range === "link-local" && parts.bracketed && !range.scoped) {
    return fail(
      ` without its interface's number (as in "[fe80::1%2]:${port}"; \`ip link\` shows it)`,
    );
  }
  return [listenOn(parts.host, port, false)];
}

function listenOn(host: string, port: number, optional: boolean): ListenAddress {
  const address = socketAddress(host, port);
  if (address === null) throw new Error(`not an address: ${host}`);
  return { ...address, dualStack: host === "::", optional };
}
