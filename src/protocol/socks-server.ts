/**
 * The server's half of SOCKS, CONNECT only: SOCKS5 with no authentication or RFC 1929, SOCKS4, SOCKS4a;
 * and to a SOCKS5 client that asks for it, a report behind each reply (report.ts).
 *
 *     5: greeting -> METHOD --no auth-----------------------> REQUEST -> request
 *                      |                                        ^
 *                      `--password--> LOGIN -> verify, verdict -'
 *     4: REQUEST --users are configured--> verify, verdict -> request
 *                `--none--------------------------------------^
 *
 * Pure, and pooled: begin() starts a new life, in which nothing of the former one can be seen. A silent
 * client costs no more than the object. The caller does what the Step says, drops what was consumed and
 * calls again, also without new bytes, until "read"; after "request" comes reply(), and input past
 * `consumed` is the tunnel's. A request is judged when it is whole: a close in front of bytes that are
 * still on their way would be a reset, and the client might never read why.
 */

import { type Report, WITH_REPORT, writeReport } from "./report.ts";

export type ServerStep =
  /** Call again when more has come. */
  | { readonly do: "read" }
  /** Send output[0, length), drop `consumed` of the input, and call again with what is left. */
  | { readonly do: "write"; readonly length: number; readonly consumed: number }
  /** Do `user` and `password` belong together? Answer by verdict(); do not call advance() before. */
  | { readonly do: "verify"; readonly consumed: number }
  /** Where to is in `addressType`, `address`, `name`, `port`. Answer by reply(). */
  | { readonly do: "request"; readonly consumed: number }
  /** Send output[0, length), which may be nothing, and close. */
  | { readonly do: "refuse"; readonly length: number; readonly failure: ServerFailure };

export type ServerFailure =
  | "not-socks" | "malformed" | "no-method" | "auth-refused" | "command" | "address-type" | "too-long";

const VERSION_4 = 4;
const VERSION_5 = 5;
const LOGIN_VERSION = 1;
const CONNECT = 1;
const NO_AUTHENTICATION = 0x00;
const USER_AND_PASSWORD = 0x02;
const NO_ACCEPTABLE_METHOD = 0xff;
const LOGIN_RIGHT = 0;
const LOGIN_WRONG = 1;
const IPV4 = 1;
const NAME = 3;
const IPV6 = 4;

// Reply codes: RFC 1928 section 6, and what SOCKS4 has for them.
const SUCCEEDED = 0;
const GENERAL_FAILURE = 1;
const COMMAND_NOT_SUPPORTED = 7;
const ADDRESS_TYPE_NOT_SUPPORTED = 8;
const GRANTED_4 = 0x5a;
const REJECTED_4 = 0x5b;

/** Of a user id and of a host in SOCKS4, which knows no bound but a NUL. As SOCKS5 has it. */
const TEXT_BYTES_MAX = 255;
const HEAD_4_BYTES = 1 + 1 + 2 + 4;
/** The longest message is of SOCKS4a. SOCKS5's are of 257 (greeting), 513 (login) and 262 bytes (request). */
const INPUT_BYTES_MAX = HEAD_4_BYTES + 2 * (TEXT_BYTES_MAX + 1);

// A sockaddr_in or sockaddr_in6, in which the kernel tells a bound address.
const AF_INET = 2;
const AF_INET6 = 10;
const SOCKADDR_PORT = 2;
const SOCKADDR_4 = 4;
const SOCKADDR_6 = 8;

const EMPTY = new Uint8Array(0);

// What we wait for.
const START = 0;
const METHOD = 1;
const LOGIN = 2;
const REQUEST = 3;
const VERDICT = 4;
const OVER = 5;

/** What textEnd() answers in place of an end. */
const UNFINISHED = -1;
const TOO_LONG = -2;

export class SocksServer {
  readonly inputBytesMax = INPUT_BYTES_MAX;
  /** 0 until the first byte has come. */
  version: 0 | 4 | 5 = 0;
  method: "none" | "noauth" | "password" | "userid" = "none";
  /** As the client says: verified only if begin() was told that there are users. */
  user: Uint8Array = EMPTY;
  /** Only from "verify" to verdict(), which wipes it. Not kept when nobody is going to verify it. */
  password: Uint8Array = EMPTY;
  addressType: "ipv4" | "ipv6" | "name" | null = null;
  /** address[0, addressLength), unless it is a name. */
  readonly address = new Uint8Array(16);
  addressLength: 0 | 4 | 16 = 0;
  /** As it came: any bytes, 1 to 255. */
  name: Uint8Array = EMPTY;
  port = 0;
  /** It is told more of a failure than a reply can say. */
  reports = false;
  #login = false;
  #state = START;

  /** A new life. `login`: users are configured, and a client must be one of them. */
  begin(login: boolean): void {
    this.wipe();
    this.version = 0;
    this.method = "none";
    this.user = EMPTY;
    this.addressType = null;
    this.address.fill(0);
    this.addressLength = 0;
    this.name = EMPTY;
    this.port = 0;
    this.reports = false;
    this.#login = login;
    this.#state = START;
  }

  /** The Step is good until any machine's next call: the objects are used again. */
  advance(input: Uint8Array, start: number, end: number, output: Uint8Array): ServerStep {
    if (start >= end) return READ;
    switch (this.#state) {
      case START:
        if (input[start] === VERSION_5) this.#state = METHOD;
        else if (input[start] !== VERSION_4) return this.#refuse("not-socks", 0);
        else this.#state = REQUEST;
        this.version = this.#state === METHOD ? VERSION_5 : VERSION_4;
        return this.advance(input, start, end, output);
      case METHOD:
        return this.#onGreeting(input, start, end, output);
      case LOGIN:
        return this.#onLogin(input, start, end, output);
      case REQUEST:
        return this.version === VERSION_5
          ? this.#onRequest(input, start, end, output)
          : this.#onRequest4(input, start, end, output);
      default:
        return READ; // It is for the caller to speak, not for the client.
    }
  }

  /** After "verify". Without one (it came too late, for a former life) it is never a grant. */
  verdict(right: boolean, output: Uint8Array): ServerStep {
    this.wipe();
    if (this.#state !== VERDICT) return this.#refuse("auth-refused", 0);
    if (this.version === VERSION_4) {
      if (!right) return this.#refuse("auth-refused", this.reply(GENERAL_FAILURE, null, 0, output));
      this.#state = OVER;
      return request(0);
    }
    if (!right) return this.#refuse("auth-refused", writePair(LOGIN_VERSION, LOGIN_WRONG, output));
    this.#state = REQUEST;
    return write(writePair(LOGIN_VERSION, LOGIN_RIGHT, output), 0);
  }

  /**
   * Writes the reply to a request to `output`; answers its length, 0 while the version is not known.
   * `code` is one of RFC 1928; `bound` the sockaddr_in or sockaddr_in6 that we speak from, if there is one;
   * `report` is for a client of whom `reports` is true.
   */
  reply(
    code: number, bound: Uint8Array | null, boundAt: number, output: Uint8Array, report: Report | null = null,
  ): number {
    switch (this.version) {
      case VERSION_5: {
        const length = writeReply(code, bound, boundAt, output);
        return this.reports ? writeReport(report, output, length) : length;
      }
      case VERSION_4: return writeReply4(code, bound, boundAt, output);
      default: return 0;
    }
  }

  /** Overwrites the password: a secret should not lie about in memory. */
  wipe(): void {
    this.password.fill(0);
    this.password = EMPTY;
  }

  // ---- SOCKS5

  #onGreeting(input: Uint8Array, start: number, end: number, output: Uint8Array): ServerStep {
    if (end - start < 2) return READ;
    const methodsEnd = start + 2 + input[start + 1]!;
    if (end < methodsEnd) return READ;
    const chosen = this.#choose(input, start + 2, methodsEnd);
    const length = writePair(VERSION_5, chosen, output);
    if (chosen === NO_ACCEPTABLE_METHOD) return this.#refuse("no-method", length);
    this.reports = chosen >= WITH_REPORT;
    const login = (chosen & ~WITH_REPORT) === USER_AND_PASSWORD;
    this.method = login ? "password" : "noauth";
    this.#state = login ? LOGIN : REQUEST;
    return write(length, methodsEnd - start);
  }

  /**
   * While there are no users, a client that offers nothing but a password is let in with any. Of two
   * that are the same but for the report it is the one with.
   */
  #choose(input: Uint8Array, at: number, end: number): number {
    let best = 0;
    let chosen = NO_ACCEPTABLE_METHOD;
    for (; at < end; at++) {
      const method = input[at]!;
      const worth = this.#worth(method);
      if (worth > best) [best, chosen] = [worth, method];
    }
    return chosen;
  }

  #worth(method: number): number {
    switch (method) {
      case WITH_REPORT + NO_AUTHENTICATION: return this.#login ? 0 : 4;
      case NO_AUTHENTICATION: return this.#login ? 0 : 3;
      case WITH_REPORT + USER_AND_PASSWORD: return 2;
      case USER_AND_PASSWORD: return 1;
      default: return 0;
    }
  }

  #onLogin(input: Uint8Array, start: number, end: number, output: Uint8Array): ServerStep {
    if (input[start] !== LOGIN_VERSION) {
      return this.#refuse("malformed", writePair(LOGIN_VERSION, LOGIN_WRONG, output));
    }
    if (end - start < 2) return READ;
    const userEnd = start + 2 + input[start + 1]!;
    if (end <= userEnd) return READ;
    const passwordEnd = userEnd + 1 + input[userEnd]!;
    if (end < passwordEnd) return READ;
    this.user = copy(input, start + 2, userEnd);
    if (this.#login) {
      this.password = copy(input, userEnd + 1, passwordEnd);
      this.#state = VERDICT;
      return verify(passwordEnd - start);
    }
    this.#state = REQUEST;
    return write(writePair(LOGIN_VERSION, LOGIN_RIGHT, output), passwordEnd - start);
  }

  #onRequest(input: Uint8Array, start: number, end: number, output: Uint8Array): ServerStep {
    if (input[start] !== VERSION_5) return this.#refuseRequest("malformed", GENERAL_FAILURE, output);
    if (end - start < 4) return READ;
    const at = start + 4;
    let addressEnd: number;
    switch (input[start + 3]) {
      case IPV4: addressEnd = at + 4; break;
      case IPV6: addressEnd = at + 16; break;
      case NAME:
        if (end === at) return READ;
        addressEnd = at + 1 + input[at]!;
        break;
      default: // No one knows where it ends, so there is nothing to wait for.
        return input[start + 1] === CONNECT
          ? this.#refuseRequest("address-type", ADDRESS_TYPE_NOT_SUPPORTED, output)
          : this.#refuseRequest("command", COMMAND_NOT_SUPPORTED, output);
    }
    if (end < addressEnd + 2) return READ;
    if (input[start + 3] === NAME) this.#setName(input, at + 1, addressEnd);
    else this.#setAddress(input, at, input[start + 3] === IPV4 ? 4 : 16);
    this.port = (input[addressEnd]! << 8) | input[addressEnd + 1]!;
    return this.#judge(input[start + 1]!, addressEnd + 2 - start, output);
  }

  // ---- SOCKS4 and 4a

  #onRequest4(input: Uint8Array, start: number, end: number, output: Uint8Array): ServerStep {
    const userAt = start + HEAD_4_BYTES;
    const userEnd = textEnd(input, userAt, end);
    if (userEnd === UNFINISHED) return READ;
    if (userEnd === TOO_LONG) return this.#refuseRequest("too-long", GENERAL_FAILURE, output);
    let consumed = userEnd + 1 - start;
    // 0.0.0.x with x not 0: a name follows, as SOCKS4a has it.
    const at = start + 4;
    if (input[at] === 0 && input[at + 1] === 0 && input[at + 2] === 0 && input[at + 3] !== 0) {
      const nameEnd = textEnd(input, userEnd + 1, end);
      if (nameEnd === UNFINISHED) return READ;
      if (nameEnd === TOO_LONG) return this.#refuseRequest("too-long", GENERAL_FAILURE, output);
      this.#setName(input, userEnd + 1, nameEnd);
      consumed = nameEnd + 1 - start;
    } else this.#setAddress(input, at, 4);
    this.method = "userid";
    this.user = copy(input, userAt, userEnd);
    this.port = (input[start + 2]! << 8) | input[start + 3]!;
    return this.#judge(input[start + 1]!, consumed, output);
  }

  // ---- both

  /** A whole request, whose target has been set. */
  #judge(command: number, consumed: number, output: Uint8Array): ServerStep {
    if (command !== CONNECT) return this.#refuseRequest("command", COMMAND_NOT_SUPPORTED, output);
    if (this.addressType === "name" && this.name.length === 0) {
      return this.#refuseRequest("malformed", GENERAL_FAILURE, output);
    }
    if (this.version === VERSION_4 && this.#login) {
      this.#state = VERDICT;
      return verify(consumed);
    }
    this.#state = OVER;
    return request(consumed);
  }

  #setName(input: Uint8Array, from: number, to: number): void {
    this.addressType = "name";
    this.name = copy(input, from, to);
  }

  #setAddress(input: Uint8Array, at: number, length: 4 | 16): void {
    this.addressType = length === 4 ? "ipv4" : "ipv6";
    this.addressLength = length;
    for (let i = 0; i < length; i++) this.address[i] = input[at + i]!;
  }

  #refuseRequest(failure: ServerFailure, code: number, output: Uint8Array): ServerStep {
    return this.#refuse(failure, this.reply(code, null, 0, output));
  }

  #refuse(failure: ServerFailure, length: number): ServerStep {
    this.#state = OVER;
    return refuse(length, failure);
  }
}

/** The end of a text that a NUL ends. It is 256 bytes at most, so each call may look at them again. */
function textEnd(input: Uint8Array, from: number, end: number): number {
  const last = from + TEXT_BYTES_MAX;
  for (let at = from; at < end; at++) {
    if (input[at] === 0) return at;
    if (at === last) return TOO_LONG;
  }
  return UNFINISHED;
}

/** A real copy, also of a Buffer, whose slice() is a view. */
function copy(input: Uint8Array, from: number, to: number): Uint8Array {
  if (from === to) return EMPTY;
  const bytes = new Uint8Array(to - from);
  for (let i = 0; i < bytes.length; i++) bytes[i] = input[from + i]!;
  return bytes;
}

function writePair(first: number, second: number, output: Uint8Array): number {
  output[0] = first;
  output[1] = second;
  return 2;
}

function writeReply(code: number, bound: Uint8Array | null, at: number, output: Uint8Array): number {
  const v6 = bound !== null && bound[at] === AF_INET6;
  output[0] = VERSION_5;
  output[1] = code;
  output[2] = 0;
  output[3] = v6 ? IPV6 : IPV4;
  const length = v6 ? 16 : 4;
  const portAt = 4 + length;
  if (bound === null) {
    output.fill(0, 4, portAt + 2);
    return portAt + 2;
  }
  const from = at + (v6 ? SOCKADDR_6 : SOCKADDR_4);
  for (let i = 0; i < length; i++) output[4 + i] = bound[from + i]!;
  output[portAt] = bound[at + SOCKADDR_PORT]!;
  output[portAt + 1] = bound[at + SOCKADDR_PORT + 1]!;
  return portAt + 2;
}

/** It has no room for an IPv6 address: that is 0.0.0.0 with the true port. */
function writeReply4(code: number, bound: Uint8Array | null, at: number, output: Uint8Array): number {
  output[0] = 0;
  output[1] = code === SUCCEEDED ? GRANTED_4 : REJECTED_4;
  output.fill(0, 2, HEAD_4_BYTES);
  if (bound === null) return HEAD_4_BYTES;
  output[2] = bound[at + SOCKADDR_PORT]!;
  output[3] = bound[at + SOCKADDR_PORT + 1]!;
  if (bound[at] === AF_INET) for (let i = 0; i < 4; i++) output[4 + i] = bound[at + SOCKADDR_4 + i]!;
  return HEAD_4_BYTES;
}

// The Steps, one object of each kind for all machines of the thread: a connection allocates none.
type Mutable<T> = { -readonly [key in keyof T]: T[key] };
type StepOf<Do extends ServerStep["do"]> = Mutable<Extract<ServerStep, { do: Do }>>;
const READ: ServerStep = Object.freeze({ do: "read" });
const WRITE: StepOf<"write"> = { do: "write", length: 0, consumed: 0 };
const VERIFY: StepOf<"verify"> = { do: "verify", consumed: 0 };
const REQUESTED: StepOf<"request"> = { do: "request", consumed: 0 };
const REFUSE: StepOf<"refuse"> = { do: "refuse", length: 0, failure: "malformed" };

function write(length: number, consumed: number): ServerStep {
  WRITE.length = length;
  WRITE.consumed = consumed;
  return WRITE;
}

function verify(consumed: number): ServerStep {
  VERIFY.consumed = consumed;
  return VERIFY;
}

function request(consumed: number): ServerStep {
  REQUESTED.consumed = consumed;
  return REQUESTED;
}

function refuse(length: number, failure: ServerFailure): ServerStep {
  REFUSE.length = length;
  REFUSE.failure = failure;
  return REFUSE;
}
