/**
 * The client's half of SOCKS4: a request with a user id, and a reply of eight bytes. It carries IPv4
 * addresses and nothing else. The protocol was never a standard; what is here is the memo that all
 * implementations follow ("SOCKS: A protocol for TCP proxy across firewalls", Y. Lee).
 *
 *     request -> REPLY -> finish
 */
import type { Credentials, Destination, Handshake, Step } from "./handshake.ts";

const VERSION = 4;
const CONNECT = 1;
const REPLY_VERSION = 0;
const GRANTED = 90;
/** The server asked the client's identd, and had no answer, or another one. */
const NO_IDENTD = 92;
const OTHER_USER = 93;
/** What 91, "rejected or failed", is in SOCKS5's words: it says no more (RFC 1928 section 6). */
const GENERAL_FAILURE = 1;
const REPLY_BYTES = 8;

const READ: Step = Object.freeze({ do: "read" });

export class Socks4Client implements Handshake {
  readonly inputBytesMax = REPLY_BYTES;
  readonly refusal = null;
  readonly asked = true;
  readonly source = null;
  readonly #destination: Destination;
  readonly #credentials: Credentials | null;
  #started = false;

  /** The destination is IPv4. Of the credentials the user is sent, which may hold no NUL. */
  constructor(destination: Destination, credentials: Credentials | null) {
    this.#destination = destination;
    this.#credentials = credentials;
  }

  advance(input: Uint8Array, start: number, end: number, output: Uint8Array): Step {
    if (!this.#started) {
      this.#started = true;
      return { do: "write", length: this.#writeRequest(output), consumed: 0 };
    }
    if (end - start < 2) return READ;
    if (input[start] !== REPLY_VERSION) return malformed("the reply is not one of SOCKS version 4");
    // The code comes before the address, which some servers leave out with a refusal.
    const code = input[start + 1]!;
    if (code === NO_IDENTD || code === OTHER_USER) return { do: "fail", failure: { code: "auth-refused" } };
    if (code !== GRANTED) return { do: "fail", failure: { code: "refused", reply: GENERAL_FAILURE, report: null } };
    return end - start < REPLY_BYTES ? READ : { do: "finish", consumed: REPLY_BYTES };
  }

  #writeRequest(output: Uint8Array): number {
    const { bytes, at, port } = this.#destination;
    output[0] = VERSION;
    output[1] = CONNECT;
    output[2] = port >> 8;
    output[3] = port & 255;
    for (let i = 0; i < 4; i++) output[4 + i] = bytes[at + i]!;
    const user = this.#credentials?.user;
    let to = 8;
    if (user !== undefined) {
      output.set(user, to);
      to += user.length;
    }
    output[to] = 0;
    return to + 1;
  }
}

function malformed(detail: string): Step {
  return { do: "fail", failure: { code: "malformed", detail } };
}
