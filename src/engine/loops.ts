/**
 * Notices that a connection of our own was redirected back to us, before it eats every fd.
 *
 * A redirect tells the original destination and keeps the source port, unless another connection
 * through the same redirect had that port in the last two minutes. So an accepted connection is
 * our own, for certain, if a socket of ours has its port and leads where it wanted to go. To learn
 * a socket's port costs a call for each dial; it is spent where any destination may be our own
 * dial (direct), and while somebody of this host connects to the upstream's own address.
 *
 * Where ports were changed, silence tells: in a loop every dial comes back, so no handshake with
 * the upstream is ever completed. When many connections from here to the upstream came and none
 * was completed since, they are refused; but one a second is let through, to find the loop's end.
 *
 * What is noted stands in memory that all workers share.
 */
import { SOCKADDR_SIZE } from "../../native-bindings/constants.ts";
import type { Memory, Syscalls } from "../../native-bindings/syscalls.ts";
import { addressOf, portOf } from "../policy/own.ts";

const PORTS = 65536;
/** Behind the ports: connections from here to the upstream since it has last answered any. */
const UNANSWERED = PORTS;
/** And the second (monotonic) in which one was let through. */
const TRIED_SECOND = PORTS + 1;
/** As many as a program that uses the upstream by itself may well open at once. */
const UNANSWERED_MAX = 32;

export const LOOPS_BYTES = (PORTS + 2) * 4;

export class Loops {
  readonly #table: Int32Array;
  readonly #sys: Syscalls;
  readonly #owner: number;
  readonly #name: Memory;

  constructor(shared: SharedArrayBuffer, sys: Syscalls, owner: number) {
    this.#table = new Int32Array(shared);
    this.#sys = sys;
    this.#owner = owner;
    this.#name = sys.memory(SOCKADDR_SIZE);
  }

  /** Somebody of this host connects to the upstream, and it has not answered since. */
  get suspicious(): boolean {
    return this.#table[UNANSWERED] !== 0;
  }

  /** A connection from this host to the upstream's own address: is it our own dial, come back? */
  comesBack(
    client: Uint8Array, clientAt: number, destination: Uint8Array, at: number, nowMs: number,
  ): boolean {
    const certain = this.leads(client, clientAt, destination, at);
    const unanswered = Atomics.add(this.#table, UNANSWERED, 1) + 1;
    if (!certain && unanswered <= UNANSWERED_MAX) return false;
    Atomics.store(this.#table, UNANSWERED, UNANSWERED_MAX); // Until it answers.
    if (certain) return true;
    const second = Math.floor(nowMs / 1000) | 0;
    return Atomics.exchange(this.#table, TRIED_SECOND, second) === second;
  }

  /** A handshake with the upstream is complete: dials do reach it. */
  answered(): void {
    if (this.#table[UNANSWERED] !== 0) Atomics.store(this.#table, UNANSWERED, 0);
  }

  /** Notes where our socket leads. Answers its port, for forget(), or 0. */
  note(fd: number, destination: Uint8Array, at: number): number {
    if (this.#sys.getsockname(fd, this.#name, 0) < 0) return 0;
    const port = portOf(this.#name.bytes, 0);
    Atomics.store(this.#table, port, this.#mark(destination, at));
    return port;
  }

  forget(port: number): void {
    if (port !== 0) Atomics.store(this.#table, port, 0);
  }

  /** One of our sockets has the client's port and leads to the destination. */
  leads(client: Uint8Array, clientAt: number, destination: Uint8Array, at: number): boolean {
    const noted = Atomics.load(this.#table, portOf(client, clientAt));
    return noted !== 0 && ((noted ^ this.#mark(destination, at)) & HASH) === 0;
  }

  /** What a dead worker noted would accuse the next user of its ports. */
  forgetAll(owner: number): void {
    for (let port = 0; port < PORTS; port++) {
      if (this.#table[port]! >>> 24 === owner) Atomics.store(this.#table, port, 0);
    }
  }

  /** The owner's number above 24 bits of FNV-1a over address and port. */
  #mark(destination: Uint8Array, at: number): number {
    let hash = 0x811c9dc5;
    for (const byte of addressOf(destination, at)) hash = Math.imul(hash ^ byte, 0x01000193);
    hash = Math.imul(hash ^ portOf(destination, at), 0x01000193);
    return (this.#owner << 24) | (hash & HASH) | 1;
  }
}

const HASH = 0xfffffe;
