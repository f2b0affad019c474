/**
 * What a tunnel borrows for as long as bytes are in flight and no longer: pipes, through which
 * splice(2) moves bulk traffic, and buffers, which keep what a socket would not take.
 *
 * Each pool has three verbs: take, give, kill. Each is bounded, and answers null at its bound: the
 * relay then works without.
 */
import { F_GETPIPE_SZ, F_SETPIPE_SZ, O_CLOEXEC, O_NONBLOCK } from "../../native-bindings/constants.ts";
import type { Memory, Syscalls } from "../../native-bindings/syscalls.ts";
import type { Ledger } from "./ledger.ts";

export interface Pipe {
  readonly readEnd: number;
  readonly writeEnd: number;
}

/** A pipe below this size moves bytes slower than a copy does; the kernel's own default. */
const PIPE_BYTES_MIN = 65536;
/** A burst needs many; afterwards so many are kept, and the other fds are given back. */
const SPARE_MAX = 32;

export class Pipes {
  readonly #sys: Syscalls;
  readonly #ledger: Ledger;
  readonly #owner: number;
  readonly #spare: Pipe[] = [];
  readonly #ends: Memory;
  readonly #max: number;
  readonly #pipeBytes: number;
  /** Pipes that exist, lent or spare. */
  #made = 0;
  /** The kernel would not give a useful pipe: do not ask again before so many takes. */
  #refusals = 0;

  constructor(sys: Syscalls, ledger: Ledger, owner: number, max: number, pipeBytes: number) {
    this.#sys = sys;
    this.#ledger = ledger;
    this.#owner = owner;
    this.#max = max;
    this.#pipeBytes = pipeBytes;
    this.#ends = sys.memory(8);
  }

  get lent(): number {
    return this.#made - this.#spare.length;
  }

  /** An empty pipe, or null when the bound is reached or the kernel has none of a useful size. */
  take(): Pipe | null {
    const spare = this.#spare.pop();
    if (spare !== undefined) return spare;
    if (this.#made >= this.#max) return null;
    if (this.#refusals > 0) {
      this.#refusals--;
      return null;
    }
    const pipe = this.#make();
    if (pipe === null) this.#refusals = 1000;
    return pipe;
  }

  /** Back into the pool. The caller has emptied it. */
  give(pipe: Pipe): void {
    if (this.#spare.length < SPARE_MAX) this.#spare.push(pipe);
    else this.kill(pipe);
  }

  /** For a pipe with bytes in it, which must not meet another tunnel. */
  kill(pipe: Pipe): void {
    this.#close(pipe.readEnd);
    this.#close(pipe.writeEnd);
    this.#made--;
  }

  dispose(): void {
    for (let pipe = this.#spare.pop(); pipe !== undefined; pipe = this.#spare.pop()) this.kill(pipe);
  }

  #make(): Pipe | null {
    const sys = this.#sys;
    if (sys.pipe2(this.#ends, 0, O_NONBLOCK | O_CLOEXEC) < 0) return null;
    const pipe = { readEnd: this.#ends.view.getInt32(0, true), writeEnd: this.#ends.view.getInt32(4, true) };
    this.#made++;
    const known =
      this.#ledger.own(pipe.readEnd, this.#owner) && this.#ledger.own(pipe.writeEnd, this.#owner);
    if (known && this.#widen(pipe)) return pipe;
    this.kill(pipe);
    return null;
  }

  /**
   * Past fs.pipe-user-pages-soft an ordinary user's new pipes silently hold 8 KiB, and
   * F_SETPIPE_SZ says EPERM; past fs.pipe-max-size it says EPERM and the pipe keeps its 64 KiB.
   * So the size is asked for in falling steps, and what the kernel says is read back.
   */
  #widen(pipe: Pipe): boolean {
    const sys = this.#sys;
    for (let bytes = this.#pipeBytes; bytes > PIPE_BYTES_MIN; bytes >>= 2) {
      if (sys.fcntl(pipe.writeEnd, F_SETPIPE_SZ, bytes) >= 0) return true;
    }
    return sys.fcntl(pipe.writeEnd, F_GETPIPE_SZ, 0) >= PIPE_BYTES_MIN;
  }

  #close(fd: number): void {
    this.#ledger.disown(fd);
    this.#sys.close(fd);
  }
}

export class Buffers {
  readonly #sys: Syscalls;
  readonly #max: number;
  readonly bufferBytes: number;
  readonly #spare: Memory[] = [];
  #made = 0;

  constructor(sys: Syscalls, max: number, bufferBytes: number) {
    this.#sys = sys;
    this.#max = max;
    this.bufferBytes = bufferBytes;
  }

  get lent(): number {
    return this.#made - this.#spare.length;
  }

  /** take() will answer null. */
  get exhausted(): boolean {
    return this.#made >= this.#max && this.#spare.length === 0;
  }

  take(): Memory | null {
    const spare = this.#spare.pop();
    if (spare !== undefined) return spare;
    if (this.#made >= this.#max) return null;
    this.#made++;
    return this.#sys.memory(this.bufferBytes);
  }

  give(buffer: Memory): void {
    this.#spare.push(buffer);
  }
}

