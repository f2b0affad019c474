/**
 * The report: what our own egress tells our own relay of a connection that failed, behind the SOCKS5
 * reply. It is asked for and promised by a method of the private range (RFC 1928 section 3), so
 * nobody else ever sees one. docs/extension.md has the format for other implementations. Pure.
 *
 *     LEN 2 | TYPE 1, SIZE 1, VALUE SIZE | TYPE ...          LEN: of all that follows it
 *             1 errno     ERRNO 2
 *             2 attempt   ERRNO 2, ADDRESS 4 or 16, SOURCE as long; a SOURCE of zeros: none
 */
import { writeIpv4, writeIpv6 } from "./address.ts";

/** Added to a method that this is the method with reports. */
export const WITH_REPORT = 0xe0;

export interface Report {
  /** Of the whole: what connect(2) would have said, in the numbers of asm-generic/errno.h. 0: nothing. */
  readonly errno: number;
  readonly attempts: readonly Attempt[];
}

export interface Attempt {
  readonly errno: number;
  /** 4 or 16 bytes. */
  readonly address: Uint8Array;
  /** Of the same family: what it was to leave from. null: it came to no such. */
  readonly source: Uint8Array | null;
}

export const ATTEMPTS_MAX = 6;
/** Of what follows LEN: as many attempts by IPv6, and the errno. */
export const REPORT_BYTES_MAX = 4 + ATTEMPTS_MAX * (4 + 32);
export const LENGTH_BYTES = 2;

const ERRNO = 1;
const ATTEMPT = 2;

/** Writes it with its LEN to `output` at `to`; answers where it ended. null: there is nothing to tell. */
export function writeReport(report: Report | null, output: Uint8Array, to: number): number {
  const start = to + LENGTH_BYTES;
  let end = start;
  if (report !== null) {
    end = writePair(ERRNO, 2, output, end);
    end = writePair(report.errno >> 8, report.errno & 255, output, end);
    for (let i = 0; i < report.attempts.length && i < ATTEMPTS_MAX; i++) {
      end = writeAttempt(report.attempts[i]!, output, end);
    }
  }
  writePair((end - start) >> 8, (end - start) & 255, output, to);
  return end;
}

function writeAttempt({ errno, address, source }: Attempt, output: Uint8Array, to: number): number {
  const { length } = address;
  to = writePair(ATTEMPT, 2 + 2 * length, output, to);
  to = writePair(errno >> 8, errno & 255, output, to);
  output.set(address, to);
  if (source === null) output.fill(0, to + length, to + 2 * length);
  else output.set(source, to + length);
  return to + 2 * length;
}

function writePair(first: number, second: number, output: Uint8Array, to: number): number {
  output[to] = first;
  output[to + 1] = second;
  return to + 2;
}

/** Reads input[at, end), what follows LEN. null: it is none. What is of an unknown type is skipped. */
export function readReport(input: Uint8Array, at: number, end: number): Report | null {
  let errno = 0;
  const attempts: Attempt[] = [];
  while (at < end) {
    const value = at + 2;
    const next = value + (input[at + 1] ?? 0);
    if (value > end || next > end) return null;
    const size = next - value;
    const first = (input[value]! << 8) | input[value + 1]!;
    if (input[at] === ERRNO) {
      if (size !== 2) return null;
      errno = first;
    } else if (input[at] === ATTEMPT) {
      if (size !== 2 + 8 && size !== 2 + 32) return null;
      const middle = value + 2 + (size - 2) / 2;
      const source = copy(input, middle, next);
      attempts.push({
        errno: first, address: copy(input, value + 2, middle), source: source.some((byte) => byte !== 0) ? source : null,
      });
    }
    at = next;
  }
  return { errno, attempts };
}

/** A real copy, also of a Buffer, whose slice() is a view. */
function copy(input: Uint8Array, from: number, to: number): Uint8Array {
  const bytes = new Uint8Array(to - from);
  for (let i = 0; i < bytes.length; i++) bytes[i] = input[from + i]!;
  return bytes;
}

/** For the log: "198.51.100.10 errno 111 from 203.0.113.1, ..." */
export const attemptsText = ({ attempts }: Report): string =>
  attempts.map(({ errno, address, source }) => {
    const from = source === null ? "" : ` from ${addressText(source)}`;
    return `${addressText(address)} errno ${errno}${from}`;
  }).join(", ");

/** "192.0.2.1", "2001:db8::1". */
function addressText(address: Uint8Array): string {
  const text = new Uint8Array(39);
  const end = address.length === 4 ? writeIpv4(address, 0, text, 0) : writeIpv6(address, 0, text, 0);
  return String.fromCharCode(...text.subarray(0, end));
}
