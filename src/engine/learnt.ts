/**
 * Which destinations main remembers as failing, as far as a worker has to know: so many of each hash.
 * One writer (main), read by every worker when a connection succeeds. It may say yes for a stranger,
 * never no for one that is there.
 */
import { AF_INET6 } from "../../native-bindings/constants.ts";
import { hashOf } from "./quota.ts";

const SLOTS = 4096;
const DESTINATION_KIND = 3;
const SOCKADDR_4_END = 8;
const SOCKADDR_6_END = 24;

export const LEARNT_BYTES = 4 * SLOTS;

export class Learnt {
  readonly #counts: Int32Array;

  constructor(shared: SharedArrayBuffer) {
    this.#counts = new Int32Array(shared);
  }

  /** The sockaddr at bytes[at]. */
  mayHave(bytes: Uint8Array, at: number): boolean {
    return Atomics.load(this.#counts, slotOf(bytes, at)) > 0;
  }

  /** Main: one more (1), or one less (-1). */
  count(bytes: Uint8Array, at: number, change: 1 | -1): void {
    Atomics.add(this.#counts, slotOf(bytes, at), change);
  }
}

/** Of family, port and address. Behind an IPv4 address there may be anything. */
const slotOf = (bytes: Uint8Array, at: number): number =>
  hashOf(DESTINATION_KIND, bytes, at, bytes[at] === AF_INET6 ? SOCKADDR_6_END : SOCKADDR_4_END) & (SLOTS - 1);
