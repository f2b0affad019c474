/**
 * The client's half of SOCKS5: RFC 1928 with no authentication or with RFC 1929, CONNECT only.
 *
 *     greeting -> METHOD --no auth--------------------> request -> REPLY -> finish
 *                   |                                    ^
 *                   `---user and password-> login -> AUTH'
 *
 * Pipelined, all that we have to say leaves in one write, and the answers are read in order; with
 * credentials the server is then offered no choice of method.
 */
import type { Credentials, Destination, Handshake, Step } from "./handshake.ts";

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

/** A method and a login reply, two bytes each. */
const SHORT_REPLY_BYTES = 2;
/** The longest reply to a request: its bound address is a name of 255 bytes. */
const REPLY_BYTES_MAX = 4 + 1 + 255 + 2;

const READ: Step = Object.freeze({ do: "read" });

// What we wait for.
const START = 0;
const METHOD = 1;
const LOGIN = 2;
const REPLY = 3;

export class Socks5Client implements Handshake {
  readonly inputBytesMax: number;
  readonly refusal = null;
  readonly #destination: Destination;
  readonly #credentials: Credentials | null;
  readonly #pipelined: boolean;
  #state = START;
  /** Pipelined only: bytes of the input that are judged but that no Step has consumed yet. */
  #judged = 0;

  /** Of the credentials, neither half may be longer than 255 bytes. */
  constructor(destination: Destination, credentials: Credentials | null, pipelined: boolean) {
    this.#destination = destination;
    this.#credentials = credentials;
    this.#pipelined = pipelined;
    this.inputBytesMax = pipelined ? 2 * SHORT_REPLY_BYTES + REPLY_BYTES_MAX : REPLY_BYTES_MAX;
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
          if (second === USER_AND_PASSWORD && this.#credentials !== null) this.#state = LOGIN;
          else if (second === NO_AUTHENTICATION && !this.#forced()) this.#state = REPLY;
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
    if (reply !== SUCCEEDED) return { do: "fail", failure: { code: "refused", reply } };
    if (end - at < 5) return READ;
    let length: number;
    switch (input[at + 3]) {
      case IPV4: length = 4 + 4 + 2; break;
      case IPV6: length = 4 + 16 + 2; break;
      case NAME: length = 4 + 1 + input[at + 4]! + 2; break;
      default: return malformed("the reply's address is of an unknown type");
    }
    if (end - at < length) return READ;
    return { do: "finish", consumed: this.#judged + length };
  }

  /** Pipelined with credentials: the login has been sent, so the server must have asked for it. */
  #forced(): boolean {
    return this.#pipelined && this.#credentials !== null;
  }

  #writeGreeting(output: Uint8Array): number {
    let to = 0;
    output[to++] = VERSION;
    if (this.#credentials === null) {
      output[to++] = 1;
      output[to++] = NO_AUTHENTICATION;
    } else if (this.#pipelined) {
      output[to++] = 1;
      output[to++] = USER_AND_PASSWORD;
      to = this.#writeLogin(output, to);
    } else {
      output[to++] = 2;
      output[to++] = NO_AUTHENTICATION;
      output[to++] = USER_AND_PASSWORD;
    }
    return this.#pipelined ? this.#writeRequest(output, to) : to;
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
