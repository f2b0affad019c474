/**
 * One `listen` value -> the addresses to listen on. Go's forms mean what they mean to Go: without a
 * host, or with a wildcard of either family, one dual-stack socket takes all addresses. No name is
 * resolved but `localhost`, which is both loopback addresses.
 */
import type { AdminAddress, ListenAddress } from "./config.ts";
import { parsePort, rangeOf, socketAddress, splitHostPort } from "./endpoint.ts";
import { quoted } from "./problem.ts";

export const LISTEN_ALLOWED =
  '"IP:PORT", "[IPv6]:PORT", "localhost:PORT", or ":PORT" for all addresses; ports from 1 to 65535';

export const ADMIN_ALLOWED = `${LISTEN_ALLOWED}; or "unix:/PATH"`;

/** sizeof(sun_path) in <linux/un.h>, less the NUL and what a name for a moment takes (control/http-server.ts). */
const PATH_BYTES_MAX = 90;

/** As parseListen; and a socket of the file system. */
export function parseAdmin(text: string, report: (message: string) => void): AdminAddress[] | null {
  if (!text.startsWith("unix:")) return parseListen(text, report);
  const path = text.slice("unix:".length);
  const sound = /^\/(?:[^/\0]+\/)*[^/\0]+$/.test(path) && new TextEncoder().encode(path).length <= PATH_BYTES_MAX;
  if (sound) return [{ text, path }];
  report(`found ${quoted(text)}; allowed: unix: and an absolute path of at most ${PATH_BYTES_MAX} bytes, such as "unix:/run/transplice/admin.sock"`);
  return null;
}

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
  if (parts.host === "" && !parts.bracketed) return [listenOn("::", port)];
  const wrong = hostFault(parts.host, `, where ${quoted(parts.host)}`, (ip) => `"[${ip}]:${port}"`);
  return wrong === null ? [listenOn(parts.host, port)] : fail(wrong);
}

/**
 * What is wrong with an address to listen on, as what follows "found ...", or null. `which` begins
 * a clause about it; `written` shows how one with its interface would be written.
 */
export function hostFault(
  host: string, which: string, written: (ip: string) => string,
): string | null {
  const found = rangeOf(host);
  if (found === null) return `${which} is not an address (names are not resolved)`;
  if (found.range === "multicast") return ", which no TCP socket can listen on";
  if (found.range === "link-local" && host.includes(":") && !found.scoped) {
    return ` without its interface's number (as in ${written("fe80::1%2")}; \`ip link\` shows it)`;
  }
  return null;
}

/** `host` is without fault. A wildcard of either family is one dual-stack socket. */
export function listenOn(host: string, port: number, optional = false): ListenAddress {
  const dualStack = rangeOf(host)?.range === "wildcard";
  const address = socketAddress(dualStack ? "::" : host, port);
  if (address === null) throw new Error(`not an address: ${host}`);
  return { ...address, dualStack, optional };
}
