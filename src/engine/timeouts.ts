/**
 * Deadlines, as a wheel of buckets. It has no clock: the caller says what time it is.
 *
 * A waiter stands in one bucket at most. When its bucket comes round the wheel asks it when it is
 * really due; a waiter whose deadline has moved on meanwhile (every byte moves it) is put back.
 * So a deadline that moves later costs nothing, and starting and stopping cost a few stores.
 */
export interface Waiter {
  nextWaiter: Waiter | null;
  previousWaiter: Waiter | null;
  /** The bucket it stands in, or -1. The wheel's to write. */
  bucket: number;
  /**
   * Its time may have come. Answers when to ask again (ms, on the caller's clock), or -1 when it
   * has dealt with its deadline and waits no more. It may stop or start any waiter, itself too.
   */
  due(nowMs: number): number;
}

export const TICK_MS = 16;
const BUCKETS = 4096; // 65 s: who waits longer is asked once in each round.

export class Timeouts {
  readonly #heads: (Waiter | null)[] = new Array<Waiter | null>(BUCKETS).fill(null);
  #waiting = 0;
  /** Every tick before this one has been dealt with. */
  #tick: number;
  /** No bucket between #tick and this one holds a waiter. */
  #nextTick = Infinity;

  constructor(nowMs: number) {
    this.#tick = Math.floor(nowMs / TICK_MS);
  }

  get waiting(): number {
    return this.#waiting;
  }

  /** Waits until `atMs`, and never fires before it. A waiter that already waits is moved. */
  start(waiter: Waiter, atMs: number): void {
    if (waiter.bucket >= 0) this.stop(waiter);
    let tick = Math.ceil(atMs / TICK_MS);
    if (tick < this.#tick) tick = this.#tick;
    // One short of a round: while a bucket is emptied, #tick is already the one behind it, and who
    // is put back must not come to stand in it again.
    if (tick > this.#tick + BUCKETS - 2) tick = this.#tick + BUCKETS - 2;
    const bucket = tick % BUCKETS;
    const head = this.#heads[bucket]!;
    waiter.nextWaiter = head;
    waiter.previousWaiter = null;
    if (head !== null) head.previousWaiter = waiter;
    this.#heads[bucket] = waiter;
    waiter.bucket = bucket;
    this.#waiting++;
    if (tick < this.#nextTick) this.#nextTick = tick;
  }

  /** Does nothing to a waiter that does not wait. */
  stop(waiter: Waiter): void {
    if (waiter.bucket < 0) return;
    const { nextWaiter, previousWaiter } = waiter;
    if (previousWaiter === null) this.#heads[waiter.bucket] = nextWaiter;
    else previousWaiter.nextWaiter = nextWaiter;
    if (nextWaiter !== null) nextWaiter.previousWaiter = previousWaiter;
    waiter.nextWaiter = null;
    waiter.previousWaiter = null;
    waiter.bucket = -1;
    this.#waiting--;
  }

  /** How long the loop may sleep: ms until someone may be due, at most `mostMs`. */
  nextMs(nowMs: number, mostMs: number): number {
    const ms = this.#nextTick * TICK_MS - nowMs;
    return ms >= mostMs ? mostMs : ms <= 0 ? 0 : Math.ceil(ms);
  }

  /** Asks everyone whose bucket has come. */
  expire(nowMs: number): void {
    const nowTick = Math.floor(nowMs / TICK_MS);
    if (nowTick < this.#nextTick) return;
    // After a long sleep each bucket still needs to be looked at only once.
    const last = Math.min(nowTick, this.#tick + BUCKETS - 1);
    for (let tick = Math.max(this.#tick, this.#nextTick); tick <= last; tick++) {
      const bucket = tick % BUCKETS;
      // Whoever is put back must land behind this tick, or this loop would meet it again.
      this.#tick = tick + 1;
      for (let waiter = this.#heads[bucket]!; waiter !== null; waiter = this.#heads[bucket]!) {
        this.stop(waiter);
        const again = waiter.due(nowMs);
        if (again >= 0) this.start(waiter, again);
      }
    }
    this.#tick = nowTick + 1;
    this.#nextTick = this.#findNext();
  }

  #findNext(): number {
    if (this.#waiting === 0) return Infinity;
    for (let tick = this.#tick; tick < this.#tick + BUCKETS; tick++) {
      if (this.#heads[tick % BUCKETS] !== null) return tick;
    }
    throw new Error("waiters are counted but stand in no bucket");
  }
}
