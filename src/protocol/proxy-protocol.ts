/**
 * The PROXY protocol's header, versions 1 (a line of text) and 2 (binary): the client's true address, as a
 * load balancer tells it in front of the client's own bytes.
 *
 * https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt. Pure. Whoever says this is believed, so the
 * caller asks only peers that are listed, and asks them always: a client must not choose whether it is sent.
 */

export type ProxyHeader =
  /** Call again with this and more; less than PROXY_HEADER_BYTES_MAX bytes are kept for it. */
  | { readonly do: "read" }
  /** Input past `consumed` is the client's. */
  | { readonly do: "finish"; readonly consumed: number }
  | { readonly do: "fail"; readonly detail: string };

/** What fits the smallest segment that every host must take (576 - 40): senders are held to it, too. */
export const PROXY_HEADER_BYTES_MAX = 536;

// Version 1: "PROXY TCP4 192.0.2.1 198.51.100.1 56324 1080\r\n".
const LINE_BYTES_MAX = 107;
const LF = 0x0a;
const CR = 0x0d;
const SPACE = 0x20;
const DOT = 0x2e;
const DIGIT_0 = 0x30;
const DIGIT_9 = 0x39;
const COLON = 0x3a;

// Version 2: the signature, version and command, family and transport, two bytes of length.
const COMMAND = 12;
const FAMILY = 13;
const LENGTH = 14;
const HEAD_BYTES = 16;
const LOCAL = 0;
const PROXY = 1;
const FAMILY_MAX = 3;
const TRANSPORT_MAX = 2;
const TCP_OVER_IPV4 = 0x11;
const TCP_OVER_IPV6 = 0x21;

const SOCKADDR_BYTES = 28;
const AF_INET = 2;
const AF_INET6 = 10;

const ascii = (text: string) => Uint8Array.from(text, (character) => character.charCodeAt(0));
const SIGNATURE = ascii("\r\n\r\n\0\r\nQUIT\n");
const LINE = ascii("PROXY ");
const TCP4 = ascii("TCP4");
const TCP6 = ascii("TCP6");
const UNKNOWN = ascii("UNKNOWN");

const READ: ProxyHeader = Object.freeze({ do: "read" });

/** The addresses of a line while it may still turn out to be wrong. */
const source = new Uint8Array(16);
const destination = new Uint8Array(16);

/**
 * Writes the announced source to into[at, at + 28) as a sockaddr_in or sockaddr_in6; leaves that as it is
 * when none is announced (LOCAL, UNKNOWN, not TCP) and unless it finishes. A v4-mapped one stays IPv6.
 */
export function readProxyHeader(
  input: Uint8Array, start: number, end: number, into: Uint8Array, at: number,
): ProxyHeader {
  if (agrees(input, start, end, LINE)) return readLine(input, start, end, into, at);
  if (agrees(input, start, end, SIGNATURE)) return readBinary(input, start, end, into, at);
  return fail("it does not start with a PROXY protocol header");
}

// ---- version 1

function readLine(
  input: Uint8Array, start: number, end: number, into: Uint8Array, at: number,
): ProxyHeader {
  const last = Math.min(end, start + LINE_BYTES_MAX);
  let lineEnd = start + LINE.length;
  while (lineEnd < last && input[lineEnd] !== LF) lineEnd++;
  if (lineEnd >= last) {
    return last - start < LINE_BYTES_MAX ? READ : fail("the PROXY line is longer than 107 bytes");
  }
  if (input[lineEnd - 1] !== CR) return fail("the PROXY line does not end in CR LF");
  const wrong = readFields(input, start + LINE.length, lineEnd - 1, into, at);
  return wrong === null ? { do: "finish", consumed: lineEnd + 1 - start } : fail(wrong);
}

/** Null, or what is wrong with the line. */
function readFields(
  input: Uint8Array, start: number, end: number, into: Uint8Array, at: number,
): string | null {
  const family = fieldEnd(input, start, end);
  // Whatever stands behind UNKNOWN is to be ignored.
  if (is(input, start, family, UNKNOWN)) return null;
  const v6 = is(input, start, family, TCP6);
  if (!v6 && !is(input, start, family, TCP4)) return "the PROXY line is not of TCP4, TCP6 or UNKNOWN";
  const from = fieldEnd(input, family + 1, end);
  const to = fieldEnd(input, from + 1, end);
  const readAddress = v6 ? readIpv6 : readIpv4;
  if (!readAddress(input, family + 1, from, source, 0)) return "the PROXY line's source is no address";
  if (!readAddress(input, from + 1, to, destination, 0)) return "the PROXY line's destination is no address";
  const fromPort = fieldEnd(input, to + 1, end);
  const port = readDecimal(input, to + 1, fromPort, 65535);
  if (port < 0 || readDecimal(input, fromPort + 1, end, 65535) < 0) return "the PROXY line's ports are none";
  writeSockaddr(v6, source, 0, port, into, at);
  return null;
}

/** The next space, or the line's end. Past that, there is an empty field. */
function fieldEnd(input: Uint8Array, from: number, end: number): number {
  while (from < end && input[from] !== SPACE) from++;
  return from;
}

/** No sign, no leading zero. -1: it is none, or more than `max`. */
function readDecimal(input: Uint8Array, from: number, to: number, max: number): number {
  if (to <= from || to - from > 5 || (to - from > 1 && input[from] === DIGIT_0)) return -1;
  let value = 0;
  for (let at = from; at < to; at++) {
    const digit = input[at]! - DIGIT_0;
    if (digit < 0 || digit > 9) return -1;
    value = value * 10 + digit;
  }
  return value <= max ? value : -1;
}

/** Exactly four numbers and three dots; into[at, at + 4). */
function readIpv4(input: Uint8Array, from: number, to: number, into: Uint8Array, at: number): boolean {
  for (let i = 0; i < 4; i++) {
    let dot = from;
    while (dot < to && input[dot] !== DOT) dot++;
    const value = readDecimal(input, from, dot, 255);
    if (value < 0 || (dot < to) !== (i < 3)) return false;
    into[at + i] = value;
    from = dot + 1;
  }
  return true;
}

/** Groups of up to four hexadecimal digits, one "::" at most, IPv4 at the end if so; into[0, 16). */
function readIpv6(input: Uint8Array, from: number, to: number, into: Uint8Array): boolean {
  let at = 0;
  let gap = -1;
  if (to - from >= 2 && input[from] === COLON && input[from + 1] === COLON) {
    gap = 0;
    from += 2;
  }
  while (from < to) {
    let groupEnd = from;
    while (groupEnd < to && input[groupEnd] !== COLON && input[groupEnd] !== DOT) groupEnd++;
    if (groupEnd < to && input[groupEnd] === DOT) {
      if (at > 12 || !readIpv4(input, from, to, into, at)) return false;
      at += 4;
      break;
    }
    const value = readHex(input, from, groupEnd);
    if (value < 0 || at > 14) return false;
    into[at++] = value >> 8;
    into[at++] = value & 255;
    if (groupEnd === to) break;
    from = groupEnd + 1;
    if (from === to) return false;
    if (input[from] !== COLON) continue;
    if (gap >= 0) return false;
    gap = at;
    from++;
  }
  if (gap < 0) return at === 16;
  into.copyWithin(16 - (at - gap), gap, at);
  into.fill(0, gap, 16 - (at - gap));
  return at < 16;
}

/** -1: not one to four hexadecimal digits. */
function readHex(input: Uint8Array, from: number, to: number): number {
  if (to === from || to - from > 4) return -1;
  let value = 0;
  for (let at = from; at < to; at++) {
    const byte = input[at]!;
    const letter = (byte | 0x20) - 0x61;
    if (byte >= DIGIT_0 && byte <= DIGIT_9) value = (value << 4) | (byte - DIGIT_0);
    else if (letter >= 0 && letter < 6) value = (value << 4) | (letter + 10);
    else return -1;
  }
  return value;
}

// ---- version 2

function readBinary(
  input: Uint8Array, start: number, end: number, into: Uint8Array, at: number,
): ProxyHeader {
  if (end - start <= COMMAND) return READ;
  const command = input[start + COMMAND]! & 15;
  if (input[start + COMMAND]! >> 4 !== 2) return fail("the PROXY protocol's version is neither 1 nor 2");
  if (command !== LOCAL && command !== PROXY) return fail("the PROXY header's command is unknown");
  if (end - start < HEAD_BYTES) return READ;
  const length = (input[start + LENGTH]! << 8) | input[start + LENGTH + 1]!;
  const consumed = HEAD_BYTES + length;
  if (consumed > PROXY_HEADER_BYTES_MAX) return fail("the PROXY header is longer than 536 bytes");
  if (end - start < consumed) return READ;
  // The family is to be ignored, too, when the balancer speaks for itself, as in its health checks.
  const family = command === LOCAL ? 0 : input[start + FAMILY]!;
  const known = family >> 4 <= FAMILY_MAX && (family & 15) <= TRANSPORT_MAX;
  if (!known) return fail("the PROXY header's family is unknown");
  const addressBytes = family === TCP_OVER_IPV4 ? 4 : family === TCP_OVER_IPV6 ? 16 : 0;
  if (addressBytes !== 0) {
    if (length < 2 * addressBytes + 4) return fail("the PROXY header is shorter than its addresses");
    // Source, destination, their ports; what follows are TLVs.
    const addresses = start + HEAD_BYTES;
    const ports = addresses + 2 * addressBytes;
    const port = (input[ports]! << 8) | input[ports + 1]!;
    writeSockaddr(addressBytes === 16, input, addresses, port, into, at);
  }
  return { do: "finish", consumed };
}

// ---- both

/** As far as either goes, input[start, end) and `bytes` are the same. */
function agrees(input: Uint8Array, start: number, end: number, bytes: Uint8Array): boolean {
  const length = Math.min(end - start, bytes.length);
  for (let i = 0; i < length; i++) if (input[start + i] !== bytes[i]) return false;
  return true;
}

function is(input: Uint8Array, from: number, to: number, bytes: Uint8Array): boolean {
  return to - from === bytes.length && agrees(input, from, to, bytes);
}

function writeSockaddr(
  v6: boolean, address: Uint8Array, from: number, port: number, into: Uint8Array, at: number,
): void {
  into.fill(0, at, at + SOCKADDR_BYTES);
  into[at] = v6 ? AF_INET6 : AF_INET;
  into[at + 2] = port >> 8;
  into[at + 3] = port & 255;
  const to = at + (v6 ? 8 : 4);
  for (let i = 0; i < (v6 ? 16 : 4); i++) into[to + i] = address[from + i]!;
}

function fail(detail: string): ProxyHeader {
  return { do: "fail", detail };
}
