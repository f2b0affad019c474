/**
 * How many connections one client or one user may have at a time, and how many new ones in a
 * second, over all workers: a table in shared memory, a hash of whom it is about to an entry.
 *
 * The table is bounded and never asks for memory. Two who share a hash of 32 bits share an entry;
 * among ten thousand clients that happens once in a hundred tables. Where all entries near a hash
 * are taken by others, nobody is counted and nobody refused: a limit is not worth an outage.
 */
const ENTRIES = 65_536;
/** Entries that are looked at for one hash. */
const PROBES = 16;
// Of an entry.
const KEY = 0; // 0: never used.
const ACTIVE = 1;
const UNTIL = 2; // The second, of the epoch, in which the window ends that STARTED counts.
const STARTED = 3;
const WORDS = 4;

const MINUTE = 60;
const HOUR = 3600;

export const QUOTA_BYTES = ENTRIES * WORDS * 4;

/** What may be had, of one kind of asker. null: as much as there is. */
export interface Quota {
  readonly most: number | null;
  /** New connections in a second; counted by the minute or hour if only that is a whole number. */
  readonly perSecond: number | null;
}

/** Not counted: there is no limit, or no entry for it. Nothing to give back. */
export const UNCOUNTED = 0;
export const TOO_MANY = -1;
export const TOO_FAST = -2;

export class Quotas {
  readonly #words: Int32Array;

  constructor(shared: SharedArrayBuffer) {
    this.#words = new Int32Array(shared);
  }

  /** A number > 0 to be given back by leave(); or UNCOUNTED, TOO_MANY, TOO_FAST. */
  enter(hash: number, quota: Quota, wallMs: number): number {
    const { most, perSecond } = quota;
    if (most === null && perSecond === null) return UNCOUNTED;
    const words = this.#words;
    const seconds = windowOf(perSecond ?? 1);
    const now = Math.floor(wallMs / 1000);
    const until = ((Math.floor(now / seconds) + 1) * seconds) | 0;
    const at = this.#find(hash | 1, now);
    if (at < 0) return UNCOUNTED;
    if (Atomics.load(words, at + UNTIL) !== until) {
      Atomics.store(words, at + UNTIL, until);
      Atomics.store(words, at + STARTED, 0);
    }
    const startsMax = perSecond === null ? Infinity : Math.max(1, Math.round(perSecond * seconds));
    if (Atomics.add(words, at + ACTIVE, 1) >= (most ?? Infinity)) {
      Atomics.sub(words, at + ACTIVE, 1);
      return TOO_MANY;
    }
    if (Atomics.add(words, at + STARTED, 1) >= startsMax) {
      Atomics.sub(words, at + ACTIVE, 1);
      return TOO_FAST;
    }
    return at / WORDS + 1;
  }

  leave(entry: number): void {
    if (entry > 0) Atomics.sub(this.#words, (entry - 1) * WORDS + ACTIVE, 1);
  }

  /** Where the entry of this key begins: its own, or a new one, or one that nobody needs; or -1. */
  #find(key: number, now: number): number {
    const words = this.#words;
    let free = -1;
    for (let probe = 0; probe < PROBES; probe++) {
      const at = (((key >>> 1) + probe) % ENTRIES) * WORDS;
      const found = Atomics.load(words, at + KEY);
      if (found === key) return at;
      if (free >= 0) continue;
      // Behind it, or so far in front that the clock has been set back meanwhile.
      const left = words[at + UNTIL]! - now;
      const idle = Atomics.load(words, at + ACTIVE) === 0 && (left <= 0 || left > HOUR);
      if (found === 0 || idle) free = at;
      if (found === 0) break; // Nobody stands behind an entry that was never used.
    }
    if (free < 0) return -1;
    const was = Atomics.load(words, free + KEY);
    if (Atomics.compareExchange(words, free + KEY, was, key) !== was) return this.#again(free, key);
    return free; // Its window is an old one: enter() begins to count anew.
  }

  /** Another worker was faster: perhaps for the same key. */
  #again(at: number, key: number): number {
    return Atomics.load(this.#words, at + KEY) === key ? at : -1;
  }
}

/** The shortest window in which the rate is a whole number of connections: none is rounded up. */
function windowOf(perSecond: number): number {
  for (const seconds of [1, MINUTE]) {
    const starts = perSecond * seconds;
    if (starts >= 1 && Math.abs(starts - Math.round(starts)) < 1e-6) return seconds;
  }
  return HOUR;
}

/** What all are counted under, whoever they are. */
export const ALL = 1;

/** FNV-1a of some bytes and what kind of asker they name: a client and a user never meet. */
export function hashOf(kind: number, bytes: Uint8Array, at: number, length: number): number {
  let hash = Math.imul(0x811c9dc5 ^ kind, 0x01000193);
  for (let i = 0; i < length; i++) hash = Math.imul(hash ^ bytes[at + i]!, 0x01000193);
  return hash ^ (hash >>> 15);
}
