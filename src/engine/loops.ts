/**
 * Notices that a connection of our own was redirected back to us, before it eats every fd.
 *
 * A redirect keeps the source port (nearly always) and tells the original destination. So an
 * accepted connection is our own if one of our sockets has its port and leads where it wanted to
 * go. Our sockets' ports stand in a table that all workers share. To learn a port costs a system
 * call for each dial; so while nothing is suspicious the table is kept only when every
 * destination may be our own dial (direct). A client that wants to go to the upstream's own
 * address is suspicious: then the table is kept for a while, and the loop's next round is caught.
 */
import { SOCKADDR_SIZE } from "../../native-bindings/constants.ts";
import type { Memory, Syscalls } from "../../native-bindings/syscalls.ts";
import { addressOf, portOf } from "../policy/own.ts";

const PORTS = 65536;
/** Behind the ports one word: the second (monotonic) until which dials are noted. */
const WATCH_UNTIL = PORTS;
const WATCH_SECONDS = 60;

export const LOOPS_BYTES = (PORTS + 1) * 4;

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

  watching(nowMs: number): boolean {
    return Atomics.load(this.#table, WATCH_UNTIL) * 1000 > nowMs;
  }

  /** From now on, and for a minute, every dial of every worker is noted. */
  watch(nowMs: number): void {
    Atomics.store(this.#table, WATCH_UNTIL, Math.ceil(nowMs / 1000) + WATCH_SECONDS);
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
