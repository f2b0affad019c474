/**
 * An address with a port, in its two forms: the text that people write and read, and the bytes of
 * struct sockaddr_in or sockaddr_in6 (ip(7), ipv6(7)) that the kernel takes.
 *
 * Literal addresses only: nothing here resolves a name. An IPv4 address in IPv6 clothes
 * (::ffff:192.0.2.1) is an IPv4 address in both directions.
 */
import ipaddr from "ipaddr.js";
import { AF_INET, AF_INET6 } from "../../native-bindings/constants.ts";
import type { SocketAddress } from "./config.ts";

const SOCKADDR_IN_SIZE = 16;
const SOCKADDR_IN6_SIZE = 28;
const PORT_MAX = 65_535;
/** Longest text of an IPv6 address with its scope, far above it: longer is not looked at. */
const HOST_CHARACTERS_MAX = 64;

/**
 * `host` is an IPv4 address in four decimal parts, or an IPv6 address without brackets, a numeric
 * scope allowed (fe80::1%2). null: it is none of these, or `port` is not one.
 */
export function socketAddress(host: string, port: number): SocketAddress | null {
  if (!Number.isInteger(port) || port < 0 || port > PORT_MAX) return null;
  const address = parseAddress(host);
  if (address === null) return null;
  const bytes = new Uint8Array(address.bytes.length === 4 ? SOCKADDR_IN_SIZE : SOCKADDR_IN6_SIZE);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, address.bytes.length === 4 ? AF_INET : AF_INET6, true);
  view.setUint16(2, port);
  if (address.bytes.length === 4) {
    bytes.set(address.bytes, 4);
  } else {
    bytes.set(address.bytes, 8);
    view.setUint32(24, address.scope, true);
  }
  return { text: textOf(bytes, 0), bytes };
}

/**
 * The text of the sockaddr at bytes[at]: "127.0.0.1:1081", "[2001:db8::1]:443" (RFC 5952), and "-"
 * where there is none. Written by hand, not with ipaddr.js, because it runs for every line of the
 * access log.
 */
export function textOf(bytes: Uint8Array, at: number): string {
  const port = (bytes[at + 2]! << 8) | bytes[at + 3]!;
  const family = bytes[at]! | (bytes[at + 1]! << 8);
  if (family === AF_INET) return `${dotted(bytes, at + 4)}:${port}`;
  if (family !== AF_INET6) return "-";
  if (isMapped(bytes, at + 8)) return `${dotted(bytes, at + 20)}:${port}`;
  const scope =
    (bytes[at + 24]! |
      (bytes[at + 25]! << 8) |
      (bytes[at + 26]! << 16) |
      (bytes[at + 27]! << 24)) >>>
    0;
  return `[${colons(bytes, at + 8)}${scope === 0 ? "" : `%${scope}`}]:${port}`;
}

/** The text of an address of 4 or 16 bytes. */
export function addressText(bytes: Uint8Array): string {
  return bytes.length === 4 ? dotted(bytes, 0) : colons(bytes, 0);
}

/** The 4 or 16 bytes of a literal as `socketAddress` takes it, but without a scope; or null. */
export function addressBytes(host: string): Uint8Array | null {
  const address = parseAddress(host);
  return address === null || address.scope !== 0 ? null : address.bytes;
}

/** The port of the sockaddr at bytes[at]. */
export function portOf(bytes: Uint8Array, at: number): number {
  return (bytes[at + 2]! << 8) | bytes[at + 3]!;
}

/** A host, which may be a name, and a port as one text; an IPv6 address gets its brackets. */
export function endpointText(host: string, port: number): string {
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}

export type AddressRange = "wildcard" | "loopback" | "link-local" | "multicast" | "other";

/** What sort of address a literal is, or null when it is none. */
export function rangeOf(host: string): { range: AddressRange; scoped: boolean } | null {
  const address = parseAddress(host);
  if (address === null) return null;
  const range = ipaddr.fromByteArray([...address.bytes]).range();
  return { range: RANGES[range] ?? "other", scoped: address.scope !== 0 };
}

const RANGES: Readonly<Record<string, AddressRange>> = {
  unspecified: "wildcard",
  loopback: "loopback",
  linkLocal: "link-local",
  multicast: "multicast",
  broadcast: "multicast",
};

/** What an address is besides a public one, in a word of the IANA registries; null: it is public. */
export function specialOf(bytes: Uint8Array): string | null {
  const range = ipaddr.fromByteArray([...bytes]).range();
  return range === "unicast" ? null : range.replace(/[A-Z]/g, (c) => ` ${c.toLowerCase()}`);
}

/** "host:port", "[v6]:port", ":port"; null where the colons or brackets are not as they must be. */
export function splitHostPort(
  text: string,
): { host: string; port: string; bracketed: boolean } | null {
  if (text.startsWith("[")) {
    const end = text.indexOf("]");
    if (end === -1 || text[end + 1] !== ":") return null;
    return { host: text.slice(1, end), port: text.slice(end + 2), bracketed: true };
  }
  const colon = text.lastIndexOf(":");
  if (colon === -1 || text.indexOf(":") !== colon) return null;
  return { host: text.slice(0, colon), port: text.slice(colon + 1), bracketed: false };
}

/** A port from 1 to 65535 in decimal digits, or null. */
export function parsePort(text: string): number | null {
  if (!/^[0-9]{1,5}$/.test(text)) return null;
  const port = Number(text);
  return port >= 1 && port <= PORT_MAX ? port : null;
}

interface Address {
  readonly bytes: Uint8Array;
  readonly scope: number;
}

function parseAddress(host: string): Address | null {
  if (host.length > HOST_CHARACTERS_MAX) return null;
  // ipaddr.js also reads 127.1, 0x7f000001 and 017.0.0.1, as inet_aton(3) does. An operator who
  // writes those has made a mistake.
  if (ipaddr.IPv4.isValidFourPartDecimal(host)) {
    return { bytes: Uint8Array.from(ipaddr.IPv4.parse(host).octets), scope: 0 };
  }
  const percent = host.indexOf("%");
  const literal = percent === -1 ? host : host.slice(0, percent);
  if (!literal.includes(":") || !ipaddr.IPv6.isValid(literal)) return null;
  const scope = percent === -1 ? 0 : parseScope(host.slice(percent + 1));
  if (scope === null) return null;
  // ipaddr.js reads ::1.2.3.4 as ::ffff:1.2.3.4; with a zero before it, as everyone does.
  const plain = literal.replace(/^::(?=[0-9]+\.)/, "0::");
  const bytes = Uint8Array.from(ipaddr.IPv6.parse(plain).toByteArray());
  return isMapped(bytes, 0) ? { bytes: bytes.slice(12), scope: 0 } : { bytes, scope };
}

function parseScope(text: string): number | null {
  if (!/^[0-9]{1,10}$/.test(text)) return null;
  const scope = Number(text);
  return scope >= 1 && scope <= 0xffff_ffff ? scope : null;
}

function isMapped(bytes: Uint8Array, at: number): boolean {
  for (let i = 0; i < 10; i++) if (bytes[at + i] !== 0) return false;
  return bytes[at + 10] === 0xff && bytes[at + 11] === 0xff;
}

function dotted(bytes: Uint8Array, at: number): string {
  return `${bytes[at]}.${bytes[at + 1]}.${bytes[at + 2]}.${bytes[at + 3]}`;
}

/** RFC 5952: no leading zeros, and the first of the longest runs of two or more zeros as "::". */
function colons(bytes: Uint8Array, at: number): string {
  let runStart = -1;
  let runLength = 1;
  for (let i = 0, zeros = 0; i < 8; i++) {
    zeros = bytes[at + 2 * i] === 0 && bytes[at + 2 * i + 1] === 0 ? zeros + 1 : 0;
    if (zeros > runLength) {
      runLength = zeros;
      runStart = i - zeros + 1;
    }
  }
  let text = "";
  for (let i = 0; i < 8; i++) {
    if (i === runStart) {
      text += "::";
      i += runLength - 1;
      continue;
    }
    if (text !== "" && i !== runStart + runLength) text += ":";
    text += ((bytes[at + 2 * i]! << 8) | bytes[at + 2 * i + 1]!).toString(16);
  }
  return text;
}
