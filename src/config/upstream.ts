/**
 * `proxy_url` -> Upstream. Our own reading rather than WHATWG's: that one repairs what it does not
 * understand, drops default ports, and treats socks5: as opaque.
 *
 * The value holds a password, so messages name the part that is wrong and show only what cannot be
 * one: the scheme, and the host once all of the rest has its shape.
 */
import type { Credentials } from "../protocol/handshake.ts";
import type { Upstream } from "./config.ts";
import { endpointText, parsePort, rangeOf } from "./endpoint.ts";
import { alternatives, quoted } from "./problem.ts";

export const UPSTREAM_ALLOWED =
  "socks5://[USER[:PASSWORD]@]HOST:PORT, http://[USER[:PASSWORD]@]HOST:PORT, socks4://[USER@]HOST:PORT or direct:";

/** RFC 1929 has one byte for each length. */
const SOCKS5_BYTES_MAX = 255;
/** Basic credentials grow by a third and must fit into one request's buffer. */
const HTTP_BYTES_MAX = 1024;
const NAME_CHARACTERS_MAX = 253;

/** Tells `report` all that is wrong, in words that follow the key's name, and answers null. */
export function parseUpstream(text: string, report: (message: string) => void): Upstream | null {
  const scheme = /^([A-Za-z][A-Za-z0-9+.-]*):/.exec(text)?.[1]?.toLowerCase();
  if (scheme === undefined) {
    report(`found ${text === "" ? "nothing" : "no scheme"}; allowed: ${UPSTREAM_ALLOWED}`);
    return null;
  }
  const rest = text.slice(scheme.length + 1);
  if (scheme === "direct") {
    if (rest === "" || rest === "//") return { kind: "direct" };
    report("direct: connects to the destination itself and takes nothing after the colon");
    return null;
  }
  if (scheme !== "socks5" && scheme !== "socks4" && scheme !== "http") {
    const said = rest.startsWith("//")
      ? `${scheme}:// is not supported`
      : "found no scheme that is supported";
    report(`${said}; allowed: ${UPSTREAM_ALLOWED}`);
    return null;
  }
  if (!rest.startsWith("//")) {
    report(`${scheme}: must be followed by //; allowed: ${UPSTREAM_ALLOWED}`);
    return null;
  }
  return parseAuthority(scheme, rest.slice(2), report);
}

function parseAuthority(
  kind: "socks5" | "socks4" | "http",
  text: string,
  report: (message: string) => void,
): Upstream | null {
  let sound = true;
  const fail = (message: string): null => {
    sound = false;
    report(message);
    return null;
  };
  const end = text.search(/[/?#]/);
  const authority = end === -1 ? text : text.slice(0, end);
  const tail = end === -1 ? "" : text.slice(end);
  if (tail.includes("@")) {
    return fail("in a user name or password, / ? # @ must be written %2F %3F %23 %40");
  }
  if (tail !== "" && tail !== "/") {
    const part = { "/": "a path", "?": "a query", "#": "a fragment" }[tail[0] as "/" | "?" | "#"];
    fail(`found ${part} after the port; nothing may follow it`);
  }
  const at = authority.lastIndexOf("@");
  const credentials = at === -1 ? null : parseCredentials(kind, authority.slice(0, at), fail);
  const place = parsePlace(authority.slice(at + 1), fail);
  if (!sound || place === null) return null;
  return { kind, ...place, credentials, text: `${kind}://${endpointText(place.host, place.port)}` };
}

function parseCredentials(
  kind: "socks5" | "socks4" | "http",
  text: string,
  fail: (message: string) => null,
): Credentials | null {
  const colon = text.indexOf(":");
  const user = percentDecoded(colon === -1 ? text : text.slice(0, colon));
  const password = percentDecoded(colon === -1 ? "" : text.slice(colon + 1));
  if (user === null)
    fail(
      "in the user name a % is not followed by two hexadecimal digits; a % itself is written %25",
    );
  if (password === null)
    fail(
      "in the password a % is not followed by two hexadecimal digits; a % itself is written %25",
    );
  if (user === null || password === null) return null;
  const bytesMax = kind === "http" ? HTTP_BYTES_MAX : SOCKS5_BYTES_MAX;
  const bytesMin = kind === "http" ? 0 : 1;
  if (kind === "socks4" && colon !== -1) return fail("socks4 has a user and no password; allowed: socks4://[USER@]HOST:PORT");
  if (kind === "socks4" && user.includes(0)) return fail("the user name holds a NUL, which ends it in SOCKS4");
  if (user.length < bytesMin || user.length > bytesMax) {
    fail(`the user name has ${user.length} bytes; allowed: ${bytesMin} to ${bytesMax}`);
  }
  if (password.length > bytesMax) fail(`the password has more than ${bytesMax} bytes`);
  if (kind === "http") {
    if (user.includes(0x3a))
      fail("the user name holds a colon, which HTTP's Basic scheme cannot carry (RFC 7617)");
    if (hasControl(user) || hasControl(password)) {
      fail(
        "the user name or password holds a control character, which HTTP's Basic scheme cannot carry (RFC 7617)",
      );
    }
  }
  return { user, password };
}

function parsePlace(
  text: string,
  fail: (message: string) => null,
): { host: string; port: number } | null {
  const bracketed = text.startsWith("[");
  const hostEnd = bracketed ? text.indexOf("]") + 1 : text.search(/:|$/);
  if (bracketed && hostEnd === 0)
    return fail("found [ without ]; an IPv6 address stands in brackets, as in [2001:db8::1]:1080");
  const colons = text.split(":").length - 1;
  if (!bracketed && colons > 1)
    return fail(
      "found more than one colon in the host; an IPv6 address stands in brackets, as in [2001:db8::1]:1080",
    );
  const portText = text.slice(hostEnd);
  // What stands in the port's place may be a password (socks5://user:password): it is not shown.
  const port = portText.startsWith(":") ? parsePort(portText.slice(1)) : null;
  if (portText === "" || portText === ":") fail("the port is missing; allowed: 1 to 65535");
  else if (port === null) fail("what follows the host is not a port; allowed: 1 to 65535");
  const host = bracketed
    ? parseBracketed(text.slice(1, hostEnd - 1), fail)
    : parseHost(text.slice(0, hostEnd), fail);
  return host === null || port === null ? null : { host, port };
}

function parseBracketed(inside: string, fail: (message: string) => null): string | null {
  // RFC 6874 writes the scope's % as %25; people write it as it is.
  const host = inside.replace(/%25(?=[0-9])/, "%");
  const range = host.includes(":") ? rangeOf(host) : null;
  if (range === null) {
    return fail(
      "what stands in brackets is not an IPv6 address (an interface is given by number, as in [fe80::1%2]:1080)",
    );
  }
  if (range.range === "link-local" && !range.scoped) {
    return fail(
      "a link-local address needs its interface's number, as in [fe80::1%2]:1080; `ip link` shows it",
    );
  }
  return dialable(host.toLowerCase(), range.range, fail);
}

function parseHost(host: string, fail: (message: string) => null): string | null {
  if (host === "") return fail("the host is missing");
  const range = rangeOf(host);
  if (range !== null) return dialable(host, range.range, fail);
  // As in URLs (WHATWG: "ends in a number"): such a host can only be meant as an IPv4 address.
  if (/(?:^|\.)(?:[0-9]+|0[xX][0-9A-Fa-f]*)\.?$/.test(host)) {
    return fail(
      `the host ${quoted(host)} is not an IPv4 address; allowed: four numbers from 0 to 255`,
    );
  }
  const labels = host.replace(/\.$/, "").split(".");
  const sound = labels.every((label) =>
    /^[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?$/.test(label),
  );
  if (!sound || host.length > NAME_CHARACTERS_MAX) {
    return fail(
      `the host is neither an address nor a name of ${alternatives(["letters", "digits", "-", "_"])} (other scripts: its xn-- form)`,
    );
  }
  return host.toLowerCase();
}

function dialable(host: string, range: string, fail: (message: string) => null): string | null {
  if (range === "wildcard")
    return fail(`${host} stands for all addresses of this host; the upstream needs one address`);
  if (range === "multicast")
    return fail(`${host} is a multicast or broadcast address; TCP cannot connect to it`);
  return host;
}

/** Bytes, because that is what both protocols carry; a literal character counts as its UTF-8. */
function percentDecoded(text: string): Uint8Array | null {
  if (/%(?![0-9A-Fa-f]{2})/.test(text)) return null;
  const bytes = new TextEncoder().encode(text);
  const decoded = new Uint8Array(bytes.length);
  let length = 0;
  for (let i = 0; i < bytes.length; i++) {
    if (bytes[i] === 0x25) {
      decoded[length++] = Number.parseInt(String.fromCharCode(bytes[i + 1]!, bytes[i + 2]!), 16);
      i += 2;
    } else {
      decoded[length++] = bytes[i]!;
    }
  }
  return decoded.slice(0, length);
}

function hasControl(bytes: Uint8Array): boolean {
  return bytes.some((byte) => byte < 0x20 || byte === 0x7f);
}
