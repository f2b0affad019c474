/**
 * How many tunnels may exist in the process, over all workers: nothing is accepted that cannot be
 * served. A worker enters before it accepts and leaves when the tunnel is over.
 *
 * At the limit a worker stops accepting and says so; whoever leaves next wakes it through its
 * eventfd. So the loop neither spins while it is full nor waits for a timer once it is not.
 */
import type { Memory, Syscalls } from "../../native-bindings/syscalls.ts";

const ACTIVE = 0;
const LIMIT = 1;
const WAITING = 2; // How many workers wait for a place.
const WORKERS = 3; // From here on two words for each: does it wait, and its eventfd.

export const admissionBytes = (workers: number): number => (WORKERS + workers * 2) * 4;

export class Admission {
  readonly #words: Int32Array;
  readonly #sys: Syscalls;
  readonly #one: Memory;

  constructor(shared: SharedArrayBuffer, sys: Syscalls) {
    this.#words = new Int32Array(shared);
    this.#sys = sys;
    this.#one = sys.memory(8);
    this.#one.bytes[0] = 1;
  }

  get active(): number {
    return Atomics.load(this.#words, ACTIVE);
  }

  get limit(): number {
    return Atomics.load(this.#words, LIMIT);
  }

  /** The last quarter of the places is being taken. */
  get crowded(): boolean {
    return 4 * this.active > 3 * this.limit;
  }

  /** Lets those in who wait, if there is room now. */
  setLimit(tunnels: number): void {
    Atomics.store(this.#words, LIMIT, tunnels);
    this.#wakeWaiting();
  }

  setEventfd(worker: number, fd: number): void {
    Atomics.store(this.#words, WORKERS + worker * 2 + 1, fd);
  }

  /** False at the limit; then nothing has changed. */
  enter(): boolean {
    if (Atomics.add(this.#words, ACTIVE, 1) < Atomics.load(this.#words, LIMIT)) return true;
    Atomics.sub(this.#words, ACTIVE, 1);
    return false;
  }

  leave(tunnels = 1): void {
    Atomics.sub(this.#words, ACTIVE, tunnels);
    if (Atomics.load(this.#words, WAITING) !== 0) this.#wakeWaiting();
  }

  /**
   * The worker wants to be woken when there is room. False if there is room already: a tunnel may
   * have ended between enter() and here, and then nobody would have woken it.
   */
  wait(worker: number): boolean {
    if (Atomics.exchange(this.#words, WORKERS + worker * 2, 1) === 0) {
      Atomics.add(this.#words, WAITING, 1);
    }
    if (Atomics.load(this.#words, ACTIVE) >= Atomics.load(this.#words, LIMIT)) return true;
    this.stopWaiting(worker);
    return false;
  }

  /** The worker wants to be woken. */
  waits(worker: number): boolean {
    return Atomics.load(this.#words, WORKERS + worker * 2) === 1;
  }

  stopWaiting(worker: number): void {
    if (Atomics.exchange(this.#words, WORKERS + worker * 2, 0) === 1) {
      Atomics.sub(this.#words, WAITING, 1);
    }
  }

  /** Ends the worker's epoll_wait: it has a message, or may accept again. */
  wake(worker: number): void {
    this.#sys.write(Atomics.load(this.#words, WORKERS + worker * 2 + 1), this.#one, 0, 8);
  }

  #wakeWaiting(): void {
    const workers = (this.#words.length - WORKERS) / 2;
    for (let worker = 0; worker < workers; worker++) {
      if (Atomics.load(this.#words, WORKERS + worker * 2) === 1) this.wake(worker);
    }
  }
}
