/**
 * What every protocol machine of ours looks like: pure, bytes in, one Step out.
 *
 * A machine owns no socket, clock or buffer. The caller accumulates what the peer sent, hands over
 * input[start, end), does what the Step says, and drops what was consumed. What is left after
 * "finish" belongs to the tunnel. The first call may bring no input: a client's machine then says
 * what to send first.
 */

import type { Report } from "./report.ts";

/** Room that a machine may need in `output` for one write. */
export const OUTPUT_BYTES_MAX = 4096;

export type Step =
  /** Call again when more has come. */
  | { readonly do: "read" }
  /** Send output[0, length), drop `consumed` of the input, and call again with what is left. */
  | { readonly do: "write"; readonly length: number; readonly consumed: number }
  /** Done. Input past `consumed` is the tunnel's. */
  | { readonly do: "finish"; readonly consumed: number }
  | { readonly do: "fail"; readonly failure: Failure };

/** Why a peer's half of a dialogue ended it. Never thrown: a peer's fault is a value. */
export type Failure =
  /** Not this protocol; `detail` says where, in our words, never the peer's bytes. */
  | { readonly code: "malformed"; readonly detail: string }
  /** The peer's message is longer than we are willing to keep. */
  | { readonly code: "too-long"; readonly bytesMax: number }
  /** None of the authentication methods that we can offer is acceptable. */
  | { readonly code: "no-method" }
  | { readonly code: "auth-refused" }
  /** SOCKS: the reply code, RFC 1928 section 6, and what our own egress reports. */
  | { readonly code: "refused"; readonly reply: number; readonly report: Report | null }
  /** HTTP CONNECT: a status that is not 2xx, and the errno that the proxy has named; 0: none. */
  | { readonly code: "status"; readonly status: number; readonly errno: number };

export interface Handshake {
  /** The most input that the machine can make the caller keep while it says "read". */
  readonly inputBytesMax: number;
  /** The peer has refused, and how exactly is still on its way: this, should that not come. */
  readonly refusal: Failure | null;
  /** The peer has heard the request: should it say nothing, it is the destination that is silent. */
  readonly asked: boolean;
  /** Once it is granted: the sockaddr that the tunnel leaves from, told by who is known to know it. */
  readonly source: Uint8Array | null;
  advance(input: Uint8Array, start: number, end: number, output: Uint8Array): Step;
}

/** Where a tunnel leads: an address as 4 or 16 bytes in network order, and a port. */
export interface Destination {
  readonly bytes: Uint8Array;
  /** The address is bytes[at, at + length). */
  readonly at: number;
  readonly length: 4 | 16;
  readonly port: number;
}

/** How an HTTP upstream is told who asks: X-Forwarded-For, or the field of RFC 7239. */
export type Disclosed = "off" | "x-forwarded-for" | "forwarded" | "forwarded-with-port";

export interface Credentials {
  /** UTF-8, percent-decoded. RFC 1929 allows 1 to 255 bytes; an empty password is allowed. */
  readonly user: Uint8Array;
  readonly password: Uint8Array;
}
