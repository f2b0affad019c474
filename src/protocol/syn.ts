/**
 * The packet by which a TCP connection is asked for, and the packets that refuse it: RST, and ICMP's
 * and ICMPv6's "destination unreachable" (RFC 9293, 792, 4443). Pure: bytes in, bytes out.
 */

const PROTOCOL_ICMP = 1;
const PROTOCOL_TCP = 6;
const PROTOCOL_ICMPV6 = 58;
const FLAGS_FIN = 0x01;
const FLAGS_SYN = 0x02;
const FLAGS_RST = 0x04;
const FLAGS_ACK = 0x10;
const IP4_HEADER = 20;
const IP6_HEADER = 40;
const TCP_HEADER = 20;
const ICMP_HEADER = 8;
/** RFC 8200 section 4: what may stand between the IPv6 header and TCP, each with its length. */
const HOP_BY_HOP = 0;
const ROUTING = 43;
const DESTINATION_OPTIONS = 60;
const EXTENSIONS_MAX = 8;
const TTL = 64;

/** Who asks whom. One object serves many packets. */
export class Syn {
  family: 4 | 6 = 4;
  /** 4 or 16 bytes of each. */
  readonly source = new Uint8Array(16);
  readonly destination = new Uint8Array(16);
  sourcePort = 0;
  destinationPort = 0;
  /** The client's initial sequence number; with the source it is this one attempt, and no other. */
  sequence = 0;
}

/** Reads the packet in bytes[at, end), which begins with its IP header. False if it is no SYN. */
export function readSyn(bytes: Uint8Array, at: number, end: number, into: Syn): boolean {
  const version = at < end ? bytes[at]! >> 4 : 0;
  let tcp: number;
  if (version === 4) {
    tcp = at + (bytes[at]! & 15) * 4;
    if (tcp < at + IP4_HEADER || tcp + TCP_HEADER > end || bytes[at + 9] !== PROTOCOL_TCP) return false;
    for (let i = 0; i < 4; i++) {
      into.source[i] = bytes[at + 12 + i]!;
      into.destination[i] = bytes[at + 16 + i]!;
    }
  } else {
    if (version !== 6 || at + IP6_HEADER > end) return false;
    tcp = behindExtensions(bytes, at, end);
    if (tcp < 0 || tcp + TCP_HEADER > end) return false;
    for (let i = 0; i < 16; i++) {
      into.source[i] = bytes[at + 8 + i]!;
      into.destination[i] = bytes[at + 24 + i]!;
    }
  }
  const flags = bytes[tcp + 13]! & (FLAGS_FIN | FLAGS_SYN | FLAGS_RST | FLAGS_ACK);
  if (flags !== FLAGS_SYN) return false;
  into.family = version;
  into.sourcePort = (bytes[tcp]! << 8) | bytes[tcp + 1]!;
  into.destinationPort = (bytes[tcp + 2]! << 8) | bytes[tcp + 3]!;
  into.sequence = (bytes[tcp + 4]! << 24) | (bytes[tcp + 5]! << 16) | (bytes[tcp + 6]! << 8) | bytes[tcp + 7]!;
  return true;
}

function behindExtensions(bytes: Uint8Array, at: number, end: number): number {
  let next = bytes[at + 6]!;
  let place = at + IP6_HEADER;
  for (let i = 0; i < EXTENSIONS_MAX && next !== PROTOCOL_TCP; i++) {
    if (next !== HOP_BY_HOP && next !== ROUTING && next !== DESTINATION_OPTIONS) return -1;
    if (place + 2 > end) return -1;
    next = bytes[place]!;
    place += (bytes[place + 1]! + 1) * 8;
  }
  return next === PROTOCOL_TCP ? place : -1;
}

/** How a connection is refused: what the kernel of the client makes of it stands in connect(2). */
export type Refusal =
  /** ECONNREFUSED. */
  | "reset"
  /** EHOSTUNREACH. */
  | "host-unreachable"
  /** ENETUNREACH. */
  | "net-unreachable"
  /** EHOSTUNREACH by IPv4, EACCES by IPv6. */
  | "prohibited";

/** ICMP type 3 and ICMPv6 type 1. */
const CODES = {
  "host-unreachable": { 4: 1, 6: 3 },
  "net-unreachable": { 4: 0, 6: 0 },
  prohibited: { 4: 13, 6: 1 },
} as const;

export const REFUSAL_BYTES_MAX = IP6_HEADER + ICMP_HEADER + IP6_HEADER + TCP_HEADER;

/** Writes the packet that refuses it, as from its destination. Answers the packet's length. */
export function writeRefusal(into: Uint8Array, syn: Syn, refusal: Refusal): number {
  const v6 = syn.family === 6;
  const header = v6 ? IP6_HEADER : IP4_HEADER;
  into.fill(0, 0, REFUSAL_BYTES_MAX);
  if (refusal === "reset") {
    writeIp(into, 0, syn, PROTOCOL_TCP, TCP_HEADER, true);
    writeTcp(into, header, syn.destinationPort, syn.sourcePort, 0, syn.sequence + 1, FLAGS_RST | FLAGS_ACK);
    const sum = pseudoSum(syn, PROTOCOL_TCP, TCP_HEADER);
    put16(into, header + 16, checksum(into, header, TCP_HEADER, sum));
    return header + TCP_HEADER;
  }
  // RFC 792 wants the header and 8 bytes of what is refused; its TCP header is no longer than this.
  const length = ICMP_HEADER + header + TCP_HEADER;
  writeIp(into, 0, syn, v6 ? PROTOCOL_ICMPV6 : PROTOCOL_ICMP, length, true);
  into[header] = v6 ? 1 : 3;
  into[header + 1] = CODES[refusal][syn.family];
  const inner = header + ICMP_HEADER;
  writeIp(into, inner, syn, PROTOCOL_TCP, TCP_HEADER, false);
  writeTcp(into, inner + header, syn.sourcePort, syn.destinationPort, syn.sequence, 0, FLAGS_SYN);
  const sum = v6 ? pseudoSum(syn, PROTOCOL_ICMPV6, length) : 0;
  put16(into, header + 2, checksum(into, header, length, sum));
  return header + length;
}

/** `back`: from the destination to the source. */
function writeIp(
  into: Uint8Array, at: number, syn: Syn, protocol: number, length: number, back: boolean,
): void {
  const from = back ? syn.destination : syn.source;
  const to = back ? syn.source : syn.destination;
  if (syn.family === 6) {
    into[at] = 0x60;
    put16(into, at + 4, length);
    into[at + 6] = protocol;
    into[at + 7] = TTL;
    into.set(from, at + 8);
    into.set(to, at + 24);
    return;
  }
  into[at] = 0x45;
  put16(into, at + 2, IP4_HEADER + length);
  into[at + 6] = 0x40; // Not to be fragmented.
  into[at + 8] = TTL;
  into[at + 9] = protocol;
  for (let i = 0; i < 4; i++) {
    into[at + 12 + i] = from[i]!;
    into[at + 16 + i] = to[i]!;
  }
  put16(into, at + 10, checksum(into, at, IP4_HEADER, 0));
}

function writeTcp(
  into: Uint8Array, at: number, from: number, to: number, sequence: number, acknowledged: number,
  flags: number,
): void {
  put16(into, at, from);
  put16(into, at + 2, to);
  put16(into, at + 4, sequence >>> 16);
  put16(into, at + 6, sequence);
  put16(into, at + 8, acknowledged >>> 16);
  put16(into, at + 10, acknowledged);
  into[at + 12] = (TCP_HEADER / 4) << 4;
  into[at + 13] = flags;
}

/** RFC 9293 section 3.1, RFC 8200 section 8.1. */
function pseudoSum({ family, source, destination }: Syn, protocol: number, length: number): number {
  let sum = protocol + length;
  const bytes = family === 4 ? 4 : 16;
  for (let i = 0; i < bytes; i += 2) {
    sum += ((source[i]! << 8) | source[i + 1]!) + ((destination[i]! << 8) | destination[i + 1]!);
  }
  return sum;
}

/** RFC 1071, over an even number of bytes. */
function checksum(bytes: Uint8Array, at: number, length: number, sum: number): number {
  for (let i = at; i < at + length; i += 2) sum += (bytes[i]! << 8) | bytes[i + 1]!;
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}

function put16(into: Uint8Array, at: number, value: number): void {
  into[at] = value >>> 8;
  into[at + 1] = value;
}
