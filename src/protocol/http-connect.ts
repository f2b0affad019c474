/**
 * The client's half of an HTTP CONNECT tunnel: RFC 9110 section 9.3.6, HTTP/1.1, Basic.
 *
 *     request -> STATUS --2xx--> HEADER -> finish
 *                  ^ |`-others-> HEADER, for the errno of X-Squid-Error -> fail
 *                  | `-1xx-----> HEADER (skipped)
 *                  `---------------'
 *
 * A 2xx answer has no body whatever its header says: what comes after the empty line is the
 * tunnel's. Lines may end in a bare LF. Each byte of the header is looked at once.
 */
import { writeHostPort, writeIpv4, writeIpv6 } from "./address.ts";
import type { Credentials, Destination, Disclosed, Failure, Handshake, Step } from "./handshake.ts";

/** The longest answer that we keep, interim answers included. Browsers and curl allow as much. */
const INPUT_BYTES_MAX = 16 * 1024;

const LF = 0x0a;
const CR = 0x0d;
const SPACE = 0x20;
/** An errno ends at 4095 (MAX_ERRNO in <linux/err.h>). */
const ERRNO_DIGITS_MAX = 4;
/** How a status line must start. v: 0 or 1; n: a digit; the last is a space or the line's end. */
const STATUS_LINE = "HTTP/1.v nnn ";
const STATUS_AT = 9;

const SWITCHING_PROTOCOLS = 101;
const PROXY_AUTHENTICATION_REQUIRED = 407;
/** What tinyproxy says to a wrong password; to CONNECT it can mean nothing else. */
const UNAUTHORIZED = 401;

const READ: Step = Object.freeze({ do: "read" });

const ascii = (text: string) => Uint8Array.from(text, (character) => character.charCodeAt(0));
const CONNECT = ascii("CONNECT ");
const VERSION_AND_HOST = ascii(" HTTP/1.1\r\nHost: ");
const USER_AGENT = ascii("\r\nUser-Agent: transplice\r\n");
const X_FORWARDED_FOR = ascii("X-Forwarded-For: ");
const FORWARDED_FOR = ascii("Forwarded: for=");
const AUTHORIZATION = ascii("Proxy-Authorization: Basic ");
const END_OF_LINE = ascii("\r\n");
const QUOTE = 0x22;
const QUOTE_BRACKET = ascii('"[');
const BRACKET_QUOTE = ascii(']"');
const SQUID_ERROR = ascii("x-squid-error:");
const BASE64 = ascii("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/");

/** Of user and password together; with them, the request still fits OUTPUT_BYTES_MAX. */
export const CREDENTIALS_BYTES_MAX = 2048;

export interface Disclosure {
  readonly as: Disclosed;
  readonly client: Destination;
}

// What we are at.
const START = 0;
const STATUS = 1;
const HEADER = 2;

export class HttpConnect implements Handshake {
  readonly inputBytesMax = INPUT_BYTES_MAX;
  readonly #destination: Destination;
  readonly #credentials: Credentials | null;
  readonly #disclosure: Disclosure | null;
  #state = START;
  #status = 0;
  /** Where the present answer starts, counted as `#scanned`. */
  #answer = 0;
  /** How much of the input is judged, from its start; it is never looked at again. */
  #scanned = 0;
  /** Where the present line of the header starts, counted in the same way. */
  #line = 0;
  refusal: Failure | null = null;
  readonly asked = true;
  readonly source = null;

  /** User and password together may not be longer than CREDENTIALS_BYTES_MAX. */
  constructor(destination: Destination, credentials: Credentials | null, disclosure: Disclosure | null = null) {
    this.#destination = destination;
    this.#credentials = credentials;
    this.#disclosure = disclosure;
  }

  advance(input: Uint8Array, start: number, end: number, output: Uint8Array): Step {
    if (this.#state === START) {
      this.#state = STATUS;
      return { do: "write", length: this.#writeRequest(output), consumed: 0 };
    }
    const inputEnd = Math.min(end, start + INPUT_BYTES_MAX);
    for (;;) {
      if (this.#state === STATUS) {
        const failed = this.#readStatus(input, start, inputEnd);
        if (failed !== null) return failed;
      }
      if (this.#state === STATUS || !this.#findEnd(input, start, inputEnd)) break;
      if (this.refusal !== null) return { do: "fail", failure: this.refusal };
      if (this.#status >= 200) return { do: "finish", consumed: this.#scanned };
      this.#state = STATUS;
      this.#answer = this.#scanned;
    }
    if (inputEnd - start < INPUT_BYTES_MAX) return READ;
    return { do: "fail", failure: this.refusal ?? { code: "too-long", bytesMax: INPUT_BYTES_MAX } };
  }

  /** Goes on to HEADER once the status is there and good; else answers why not, or null. */
  #readStatus(input: Uint8Array, start: number, end: number): Step | null {
    const line = start + this.#answer;
    for (let at = start + this.#scanned; at < end; at++) {
      const place = at - line;
      const byte = input[at]!;
      if (!fits(byte, place)) {
        const detail = "the answer does not start with an HTTP/1 status line";
        return { do: "fail", failure: { code: "malformed", detail } };
      }
      if (place < STATUS_LINE.length - 1) continue;
      // The last byte is left to be read again: it may be the first line's end.
      this.#scanned = at - start;
      this.#line = this.#answer;
      this.#state = HEADER;
      this.#status = 0;
      for (let i = STATUS_AT; i < STATUS_AT + 3; i++) {
        this.#status = this.#status * 10 + (input[line + i]! & 15);
      }
      return this.#judge();
    }
    this.#scanned = end - start;
    return null;
  }

  /** Null: the header is still to be read. */
  #judge(): Step | null {
    const status = this.#status;
    if (status >= 100 && status < 300 && status !== SWITCHING_PROTOCOLS) return null;
    if (status === PROXY_AUTHENTICATION_REQUIRED || status === UNAUTHORIZED) {
      return { do: "fail", failure: { code: "auth-refused" } };
    }
    this.refusal = { code: "status", status, errno: 0 };
    return null;
  }

  /** Whether all is there that is wanted of the header; `#scanned` is then past it. */
  #findEnd(input: Uint8Array, start: number, end: number): boolean {
    for (let at = start + this.#scanned; at < end; at++) {
      if (input[at] !== LF) continue;
      const line = start + this.#line;
      const lineEnd = at > line && input[at - 1] === CR ? at - 1 : at;
      this.#line = at + 1 - start;
      if (lineEnd > line && !this.#namesErrno(input, line, lineEnd)) continue;
      this.#scanned = this.#line;
      return true;
    }
    this.#scanned = end - start;
    return false;
  }

  /** Of a refusal: the line says why, as Squid does ("X-Squid-Error: ERR_CONNECT_FAIL 111"). */
  #namesErrno(input: Uint8Array, from: number, to: number): boolean {
    const refusal = this.refusal;
    if (refusal?.code !== "status" || !startsWith(SQUID_ERROR, input, from, to)) return false;
    let at = to;
    while (at > from && isDigit(input[at - 1]!)) at--;
    if (at === to || to - at > ERRNO_DIGITS_MAX || input[at - 1] !== SPACE) return false;
    let errno = 0;
    for (; at < to; at++) errno = errno * 10 + (input[at]! & 15);
    this.refusal = { ...refusal, errno };
    return true;
  }

  #writeRequest(output: Uint8Array): number {
    let to = write(CONNECT, output, 0);
    const host = to;
    to = writeHostPort(this.#destination, output, to);
    const hostEnd = to;
    to = write(VERSION_AND_HOST, output, to);
    output.copyWithin(to, host, hostEnd);
    to = write(USER_AGENT, output, to + hostEnd - host);
    if (this.#credentials !== null) {
      to = write(AUTHORIZATION, output, to);
      to = writeBasic(this.#credentials, output, to);
      to = write(END_OF_LINE, output, to);
    }
    if (this.#disclosure !== null) to = writeDisclosure(this.#disclosure, output, to);
    return write(END_OF_LINE, output, to);
  }
}

/** RFC 7239 section 6: what holds a colon stands in quotes, an IPv6 address in brackets. */
function writeDisclosure({ as, client }: Disclosure, output: Uint8Array, to: number): number {
  if (as === "off") return to;
  to = write(as === "x-forwarded-for" ? X_FORWARDED_FOR : FORWARDED_FOR, output, to);
  if (as === "forwarded-with-port") {
    output[to++] = QUOTE;
    to = writeHostPort(client, output, to);
    output[to++] = QUOTE;
  } else if (client.length === 4) {
    to = writeIpv4(client.bytes, client.at, output, to);
  } else {
    if (as === "forwarded") to = write(QUOTE_BRACKET, output, to);
    to = writeIpv6(client.bytes, client.at, output, to);
    if (as === "forwarded") to = write(BRACKET_QUOTE, output, to);
  }
  return write(END_OF_LINE, output, to);
}

/** Whether a status line may have this byte at this place. */
function fits(byte: number, place: number): boolean {
  switch (STATUS_LINE[place]) {
    case "v": return byte === 0x30 || byte === 0x31;
    case "n": return isDigit(byte);
    default: break;
  }
  if (byte === STATUS_LINE.charCodeAt(place)) return true;
  return place === STATUS_LINE.length - 1 && (byte === CR || byte === LF);
}

/** Whether input[from, to) starts with `lower`, in whatever case. */
function startsWith(lower: Uint8Array, input: Uint8Array, from: number, to: number): boolean {
  if (to - from < lower.length) return false;
  for (const [i, byte] of lower.entries()) {
    const found = input[from + i]!;
    if ((found >= 0x41 && found <= 0x5a ? found | 0x20 : found) !== byte) return false;
  }
  return true;
}

const isDigit = (byte: number): boolean => byte >= 0x30 && byte <= 0x39;

function write(bytes: Uint8Array, output: Uint8Array, to: number): number {
  output.set(bytes, to);
  return to + bytes.length;
}

/** Writes the base64 of "user:password" (RFC 7617) to `output` at `to`; answers where it ended. */
function writeBasic({ user, password }: Credentials, output: Uint8Array, to: number): number {
  const length = user.length + 1 + password.length;
  const byteAt = (i: number): number => {
    if (i < user.length) return user[i]!;
    return i === user.length ? 0x3a : (password[i - user.length - 1] ?? 0);
  };
  for (let i = 0; i < length; i += 3) {
    const three = (byteAt(i) << 16) | (byteAt(i + 1) << 8) | byteAt(i + 2);
    output[to++] = BASE64[three >> 18]!;
    output[to++] = BASE64[(three >> 12) & 63]!;
    output[to++] = i + 1 < length ? BASE64[(three >> 6) & 63]! : 0x3d;
    output[to++] = i + 2 < length ? BASE64[three & 63]! : 0x3d;
  }
  return to;
}
