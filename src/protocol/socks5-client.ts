/**
 * The client's half of SOCKS5: RFC 1928 with no authentication or with RFC 1929, CONNECT only.
 *
 *     greeting -> METHOD --no auth--------------------> request -> REPLY -> finish
 *                   |                                    ^          |  ^
 *                   `---user and password-> login -> AUTH'      report-'
 *
 * Pipelined, all that we have to say leaves in one write, and the answers are read in order; with
 * credentials the server is then offered no choice of method.
 *
 * Each method may also be offered as one that puts a report behind the reply (report.ts): a server
 * that picks another has never heard of reports, and what follows is RFC 1928.
 */
import type { Credentials, Destination, Failure, Handshake, Step } from "./handshake.ts";
import { LENGTH_BYTES, readReport, REPORT_BYTES_MAX, WITH_REPORT } from "./report.ts";

const VERSION = 5;
const NO_AUTHENTICATION = 0x00;
const USER_AND_PASSWORD = 0x02;
const NO_ACCEPTABLE_METHOD = 0xff;
const LOGIN_VERSION = 1;
const CONNECT = 1;
const SUCCEEDED = 0;
const IPV4 = 1;
const NAME = 3;
const IPV6 = 4;

// A sockaddr_in or sockaddr_in6, as the kernel has it.
const SOCKADDR_BYTES = 28;
const AF_INET = 2;
const AF_INET6 = 10;

/** A method and a login reply, two bytes each. */
const SHORT_REPLY_BYTES = 2;
/** The longest reply to a request: its bound address is a name of 255 bytes. */
const REPLY_BYTES_MAX = 4 + 1 + 255 + 2;

const NO_METHODS: readonly number[] = [];
const ANONYMOUS: readonly number[] = [NO_AUTHENTICATION];
const LOGIN_ONLY: readonly number[] = [USER_AND_PASSWORD];
const EITHER: readonly number[] = [NO_AUTHENTICATION, USER_AND_PASSWORD];

const READ: Step = Object.freeze({ do: "read" });

// What we wait for.
const START = 0;
const METHOD = 1;
const LOGIN = 2;
const REPLY = 3;

export class Socks5Client implements Handshake {
  readonly inputBytesMax: number;
  refusal: Failure | null = null;
  source: Uint8Array | null = null;
  readonly #destination: Destination;
  readonly #credentials: Credentials | null;
  readonly #pipelined: boolean;
  readonly #wantsReport: boolean;
  #getsReport = false;
  #state = START;
  /** Pipelined only: bytes of the input that are judged but that no Step has consumed yet. */
  #judged = 0;

  /** Of the credentials, neither half may be longer than 255 bytes. */
  constructor(
    destination: Destination, credentials: Credentials | null, pipelined: boolean, wantsReport = false,
  ) {
    this.#destination = destination;
    this.#credentials = credentials;
    this.#pipelined = pipelined;
    this.#wantsReport = wantsReport;
    this.inputBytesMax = REPLY_BYTES_MAX + (pipelined ? 2 * SHORT_REPLY_BYTES : 0)
      + (wantsReport ? LENGTH_BYTES + REPORT_BYTES_MAX : 0);
  }

  get asked(): boolean {
    return this.#state === REPLY;
  }

  advance(input: Uint8Array, start: number, end: number, output: Uint8Array): Step {
    if (this.#state === START) {
      this.#state = METHOD;
      return { do: "write", length: this.#writeGreeting(output), consumed: 0 };
    }
    for (;;) {
      const at = start + this.#judged;
      if (end - at < SHORT_REPLY_BYTES) return READ;
      const [first, second] = [input[at]!, input[at + 1]!];
      switch (this.#state) {
        case METHOD: {
          if (first !== VERSION) return malformed("the method reply is not of SOCKS version 5");
          if (second === NO_ACCEPTABLE_METHOD) {
            return { do: "fail", failure: { code: "no-method" } };
          }
          this.#getsReport = this.#wantsReport && second >= WITH_REPORT;
          const method = this.#getsReport ? second - WITH_REPORT : second;
          if (method === USER_AND_PASSWORD && this.#credentials !== null) this.#state = LOGIN;
          else if (method === NO_AUTHENTICATION && !this.#forced()) this.#state = REPLY;
          else return malformed("the server chose a method that was not offered");
          break;
        }
        case LOGIN:
          // The version is not looked at: some servers repeat that of SOCKS.
          if (second !== SUCCEEDED) return { do: "fail", failure: { code: "auth-refused" } };
          this.#state = REPLY;
          break;
        default:
          return this.#onReply(input, at, end);
      }
      if (!this.#pipelined) {
        const length =
          this.#state === LOGIN ? this.#writeLogin(output, 0) : this.#writeRequest(output, 0);
        return { do: "write", length, consumed: SHORT_REPLY_BYTES };
      }
      this.#judged += SHORT_REPLY_BYTES;
    }
  }

  #onReply(input: Uint8Array, at: number, end: number): Step {
    if (input[at] !== VERSION) return malformed("the reply is not of SOCKS version 5");
    // The code comes before the address: with a refusal, some servers send a short or wrong one.
    const reply = input[at + 1]!;
    if (reply !== SUCCEEDED) {
      this.refusal = { code: "refused", reply, report: null };
      if (!this.#getsReport) return { do: "fail", failure: this.refusal };
    }
    if (end - at < 5) return READ;
    let length: number;
    switch (input[at + 3]) {
      case IPV4: length = 4 + 4 + 2; break;
      case IPV6: length = 4 + 16 + 2; break;
      case NAME: length = 4 + 1 + input[at + 4]! + 2; break;
      default: return this.#malformed("the reply's address is of an unknown type");
    }
    if (end - at < length) return READ;
    if (this.#getsReport) return this.#onReport(input, at, at + length, end);
    return { do: "finish", consumed: this.#judged + length };
  }

  /** The reply is input[reply, at). */
  #onReport(input: Uint8Array, reply: number, at: number, end: number): Step {
    const start = at + LENGTH_BYTES;
    if (end < start) return READ;
    const length = (input[at]! << 8) | input[at + 1]!;
    if (length > REPORT_BYTES_MAX) return this.#malformed("the report is longer than any");
    if (end < start + length) return READ;
    if (this.refusal?.code === "refused") {
      const report = readReport(input, start, start + length);
      return { do: "fail", failure: { ...this.refusal, report } };
    }
    if (input[reply + 3] !== NAME) this.source = sockaddr(input, reply + 4, at);
    return { do: "finish", consumed: this.#judged + start + length - reply };
  }

  /** A refusal is one, whatever stands behind it. */
  #malformed(detail: string): Step {
    return this.refusal === null ? malformed(detail) : { do: "fail", failure: this.refusal };
  }

  /** Pipelined with credentials: the login has been sent, so the server must have asked for it. */
  #forced(): boolean {
    return this.#pipelined && this.#credentials !== null;
  }

  #writeGreeting(output: Uint8Array): number {
    const methods = this.#methods();
    let to = 2;
    for (const method of this.#wantsReport ? methods : NO_METHODS) output[to++] = WITH_REPORT + method;
    for (const method of methods) output[to++] = method;
    output[0] = VERSION;
    output[1] = to - 2;
    if (!this.#pipelined) return to;
    if (this.#credentials !== null) to = this.#writeLogin(output, to);
    return this.#writeRequest(output, to);
  }

  /** Those that are offered; with WITH_REPORT they are offered again. */
  #methods(): readonly number[] {
    if (this.#credentials === null) return ANONYMOUS;
    return this.#pipelined ? LOGIN_ONLY : EITHER;
  }

  /** Writes to `output` at `to`; answers where it ended. */
  #writeLogin(output: Uint8Array, to: number): number {
    const { user, password } = this.#credentials!;
    output[to++] = LOGIN_VERSION;
    output[to++] = user.length;
    output.set(user, to);
    to += user.length;
    output[to++] = password.length;
    output.set(password, to);
    return to + password.length;
  }

  /** Writes to `output` at `to`; answers where it ended. */
  #writeRequest(output: Uint8Array, to: number): number {
    const { bytes, at, length, port } = this.#destination;
    output[to++] = VERSION;
    output[to++] = CONNECT;
    output[to++] = 0;
    output[to++] = length === 4 ? IPV4 : IPV6;
    for (let i = 0; i < length; i++) output[to++] = bytes[at + i]!;
    output[to++] = port >> 8;
    output[to++] = port & 255;
    return to;
  }
}

function malformed(detail: string): Step {
  return { do: "fail", failure: { code: "malformed", detail } };
}

/** Of input[at, end): an address of 4 or 16 bytes, and a port. */
function sockaddr(input: Uint8Array, at: number, end: number): Uint8Array {
  const length = end - at - 2;
  const bytes = new Uint8Array(SOCKADDR_BYTES);
  bytes[0] = length === 4 ? AF_INET : AF_INET6;
  bytes[2] = input[end - 2]!;
  bytes[3] = input[end - 1]!;
  for (let i = 0; i < length; i++) bytes[(length === 4 ? 4 : 8) + i] = input[at + i]!;
  return bytes;
}
