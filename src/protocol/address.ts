/**
 * The text forms of an address: IPv4 dotted, IPv6 by RFC 5952, as ASCII bytes into a buffer or as
 * a string. The buffer form allocates nothing.
 */
import type { Destination } from "./handshake.ts";

/** "[", the longest IPv6 text, "]", ":" and a port. */
export const HOST_PORT_BYTES_MAX = 47;

const COLON = 0x3a;
const DOT = 0x2e;
const DIGITS = new Uint8Array([..."0123456789abcdef"].map((digit) => digit.charCodeAt(0)));

/** Writes "192.0.2.1:443" or "[2001:db8::1]:443" to `into` at `to`; answers where it ended. */
export function writeHostPort(destination: Destination, into: Uint8Array, to: number): number {
  const { bytes, at, length, port } = destination;
  if (length === 4) {
    to = writeIpv4(bytes, at, into, to);
  } else {
    into[to++] = 0x5b;
    to = writeIpv6(bytes, at, into, to);
    into[to++] = 0x5d;
  }
  into[to++] = COLON;
  return writeDecimal(port, into, to);
}

export function hostPort(destination: Destination): string {
  const text = new Uint8Array(HOST_PORT_BYTES_MAX);
  return String.fromCharCode(...text.subarray(0, writeHostPort(destination, text, 0)));
}

/** Writes bytes[at, at + 4) as "192.0.2.1" to `into` at `to`; answers where it ended. */
export function writeIpv4(bytes: Uint8Array, at: number, into: Uint8Array, to: number): number {
  for (let i = 0; i < 4; i++) {
    if (i > 0) into[to++] = DOT;
    to = writeDecimal(bytes[at + i]!, into, to);
  }
  return to;
}

/** Writes bytes[at, at + 16) as "2001:db8::1" to `into` at `to`; answers where it ended. */
export function writeIpv6(bytes: Uint8Array, at: number, into: Uint8Array, to: number): number {
  const group = (i: number) => (bytes[at + 2 * i]! << 8) | bytes[at + 2 * i + 1]!;
  // The longest run of two or more zero groups becomes "::"; of equal ones, the first.
  let gap = -1;
  let gapLength = 1;
  for (let i = 0; i < 8; i++) {
    let run = 0;
    while (i + run < 8 && group(i + run) === 0) run++;
    if (run > gapLength) [gap, gapLength] = [i, run];
    i += run;
  }
  // ::ffff:192.0.2.1, as RFC 5952 section 5 wants it for this prefix.
  const mapped = gap === 0 && gapLength === 5 && group(5) === 0xffff;
  const groups = mapped ? 6 : 8;
  for (let i = 0; i < groups; i++) {
    if (i === gap) {
      into[to++] = COLON;
      into[to++] = COLON;
      i += gapLength - 1;
      continue;
    }
    if (i > 0 && i !== gap + gapLength) into[to++] = COLON;
    to = writeHex(group(i), into, to);
  }
  if (!mapped) return to;
  into[to++] = COLON;
  return writeIpv4(bytes, at + 12, into, to);
}

function writeDecimal(value: number, into: Uint8Array, to: number): number {
  let unit = 1;
  while (value >= unit * 10) unit *= 10;
  for (; unit >= 1; unit /= 10) into[to++] = DIGITS[Math.trunc(value / unit) % 10]!;
  return to;
}

function writeHex(value: number, into: Uint8Array, to: number): number {
  let shift = 12;
  while (shift > 0 && value >> shift === 0) shift -= 4;
  for (; shift >= 0; shift -= 4) into[to++] = DIGITS[(value >> shift) & 15]!;
  return to;
}
