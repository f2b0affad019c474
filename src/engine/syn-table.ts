/**
 * The connections that are asked for and not yet made: of each, its SYN, which lies in a queue of the
 * kernel's (HELD) or has been let go on and will be accepted (GRANTED).
 *
 * Found by its addresses and ports, as another SYN comes; and by source and sequence number, as the
 * connection is accepted: a redirect may have changed its port by then. It is a table of numbers in
 * memory that main sees, too: were this worker to die, main lets go what it held.
 */
import { assert } from "./assert.ts";

const FREE = 0;
export const HELD = 1;
export const GRANTED = 2;

// The words of a slot.
const STATE = 0;
/** The kernel's number of the packet, in its queue. */
const ID = 1;
const LANE = 2;
const SEQUENCE = 3;
const PORTS = 4;
const FAMILY = 5;
const SOURCE = 6;
const DESTINATION = 10;
/** The mark that the packet had. */
const MARK = 14;
/** Whose row of the tunnel table it is. */
const ROW = 15;
const BY_TUPLE = 16;
const BY_SEQUENCE = 17;
const WORDS = 18;
const NONE = -1;

export const synTableBytes = (slots: number): number => slots * WORDS * 4;

/** What identifies it: as protocol/syn.ts reads it. */
export interface Attempt {
  family: 4 | 6;
  readonly source: Uint8Array;
  readonly destination: Uint8Array;
  sourcePort: number;
  destinationPort: number;
  sequence: number;
}

export class SynTable {
  readonly #words: Int32Array;
  readonly #mask: number;
  readonly #byTuple: Int32Array;
  readonly #bySequence: Int32Array;
  readonly #free: number[] = [];
  readonly #wanted = new Int32Array(WORDS);
  readonly #seed: number;

  /** `seed`: any number that nobody outside can know, so that nobody can fill one list of the table. */
  constructor(shared: SharedArrayBuffer, seed: number) {
    this.#seed = seed | 0;
    this.#words = new Int32Array(shared);
    const slots = this.#words.length / WORDS;
    let heads = 1;
    while (heads < slots * 2) heads *= 2;
    this.#mask = heads - 1;
    this.#byTuple = new Int32Array(heads).fill(NONE);
    this.#bySequence = new Int32Array(heads).fill(NONE);
    for (let slot = slots - 1; slot >= 0; slot--) this.#free.push(slot);
  }

  get full(): boolean {
    return this.#free.length === 0;
  }

  get size(): number {
    return this.#words.length / WORDS - this.#free.length;
  }

  /** The slot of this client's attempt from this port, whatever its sequence number; or -1. */
  find(attempt: Attempt): number {
    const wanted = this.#want(attempt);
    for (let slot = this.#byTuple[this.#tupleHash(wanted, 0)]!; slot !== NONE; slot = this.#words[slot * WORDS + BY_TUPLE]!) {
      if (this.#same(slot, wanted, PORTS, MARK)) return slot;
    }
    return NONE;
  }

  /** The slot of a connection that is accepted: its source port may be another by now. Or -1. */
  findAccepted(attempt: Attempt): number {
    const wanted = this.#want(attempt);
    for (let slot = this.#bySequence[this.#sequenceHash(wanted, 0)]!; slot !== NONE; slot = this.#words[slot * WORDS + BY_SEQUENCE]!) {
      const port = (this.#words[slot * WORDS + PORTS]! ^ wanted[PORTS]!) & 0xffff;
      if (port === 0 && this.#words[slot * WORDS + SEQUENCE] === wanted[SEQUENCE] && this.#same(slot, wanted, FAMILY, MARK)) return slot;
    }
    return NONE;
  }

  /** There must be room. */
  add(attempt: Attempt, lane: number, id: number, mark: number, row: number): number {
    const slot = this.#free.pop();
    assert(slot !== undefined, "a SYN is held where there is room");
    const words = this.#words;
    const at = slot * WORDS;
    const wanted = this.#want(attempt);
    for (let i = SEQUENCE; i < MARK; i++) words[at + i] = wanted[i]!;
    words[at + LANE] = lane;
    words[at + ID] = id;
    words[at + MARK] = mark;
    words[at + ROW] = row;
    const tuple = this.#tupleHash(words, at);
    words[at + BY_TUPLE] = this.#byTuple[tuple]!;
    this.#byTuple[tuple] = slot;
    const sequence = this.#sequenceHash(words, at);
    words[at + BY_SEQUENCE] = this.#bySequence[sequence]!;
    this.#bySequence[sequence] = slot;
    words[at + STATE] = HELD;
    return slot;
  }

  remove(slot: number): void {
    const at = slot * WORDS;
    assert(this.#words[at + STATE] !== FREE, "a slot is freed once");
    this.#unlink(this.#byTuple, this.#tupleHash(this.#words, at), slot, BY_TUPLE);
    this.#unlink(this.#bySequence, this.#sequenceHash(this.#words, at), slot, BY_SEQUENCE);
    this.#words[at + STATE] = FREE;
    this.#free.push(slot);
  }

  state(slot: number): number {
    return this.#words[slot * WORDS + STATE]!;
  }

  grant(slot: number): void {
    this.#words[slot * WORDS + STATE] = GRANTED;
  }

  id(slot: number): number {
    return this.#words[slot * WORDS + ID]! >>> 0;
  }

  /** Another copy of the same SYN is held from now on. */
  replace(slot: number, id: number): void {
    this.#words[slot * WORDS + ID] = id;
  }

  lane(slot: number): number {
    return this.#words[slot * WORDS + LANE]!;
  }

  mark(slot: number): number {
    return this.#words[slot * WORDS + MARK]! >>> 0;
  }

  row(slot: number): number {
    return this.#words[slot * WORDS + ROW]!;
  }

  read(slot: number, into: Attempt): void {
    const words = this.#words;
    const at = slot * WORDS;
    into.family = words[at + FAMILY] as 4 | 6;
    into.sequence = words[at + SEQUENCE]!;
    into.sourcePort = words[at + PORTS]! >>> 16;
    into.destinationPort = words[at + PORTS]! & 0xffff;
    for (let i = 0; i < 16; i++) {
      const shift = 24 - (i & 3) * 8;
      into.source[i] = words[at + SOURCE + (i >> 2)]! >>> shift;
      into.destination[i] = words[at + DESTINATION + (i >> 2)]! >>> shift;
    }
  }

  isSequence(slot: number, sequence: number): boolean {
    return this.#words[slot * WORDS + SEQUENCE] === (sequence | 0);
  }

  #want({ family, source, destination, sourcePort, destinationPort, sequence }: Attempt): Int32Array {
    const wanted = this.#wanted;
    wanted[FAMILY] = family;
    wanted[SEQUENCE] = sequence;
    wanted[PORTS] = (sourcePort << 16) | destinationPort;
    const words = family === 4 ? 1 : 4;
    for (let i = 0; i < 4; i++) {
      wanted[SOURCE + i] = i < words ? wordOf(source, i * 4) : 0;
      wanted[DESTINATION + i] = i < words ? wordOf(destination, i * 4) : 0;
    }
    return wanted;
  }

  #same(slot: number, wanted: Int32Array, from: number, to: number): boolean {
    const at = slot * WORDS;
    for (let i = from; i < to; i++) if (this.#words[at + i] !== wanted[i]) return false;
    return true;
  }

  #tupleHash(words: Int32Array, at: number): number {
    return this.#hash(words, at, words[at + PORTS]!);
  }

  #sequenceHash(words: Int32Array, at: number): number {
    return this.#hash(words, at, words[at + SEQUENCE]!);
  }

  /** As MurmurHash3 mixes words. */
  #hash(words: Int32Array, at: number, first: number): number {
    let hash = this.#seed ^ first;
    // IPv4 has one word of each, and zeros.
    const step = words[at + FAMILY] === 4 ? DESTINATION - SOURCE : 1;
    for (let i = at + SOURCE; i < at + MARK; i += step) {
      hash = Math.imul(hash ^ words[i]!, 0xcc9e2d51);
      hash = Math.imul((hash << 13) | (hash >>> 19), 5) + 0xe6546b64;
    }
    hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
    return (hash ^ (hash >>> 13)) & this.#mask;
  }

  #unlink(heads: Int32Array, head: number, slot: number, next: number): void {
    const words = this.#words;
    const after = words[slot * WORDS + next]!;
    if (heads[head] === slot) {
      heads[head] = after;
      return;
    }
    for (let before = heads[head]!; ; before = words[before * WORDS + next]!) {
      assert(before !== NONE, "every slot stands in both lists");
      if (words[before * WORDS + next] !== slot) continue;
      words[before * WORDS + next] = after;
      return;
    }
  }
}

/**
 * What a dead worker held, or was about to let go: each is to be let go by somebody else, which is of
 * no consequence where it has gone. Empties the table.
 */
export function* heldIn(shared: SharedArrayBuffer): Generator<{ lane: number; id: number; mark: number }> {
  const words = new Int32Array(shared);
  for (let at = 0; at < words.length; at += WORDS) {
    const held = words[at + STATE] !== FREE;
    words[at + STATE] = FREE;
    if (held) yield { lane: words[at + LANE]!, id: words[at + ID]! >>> 0, mark: words[at + MARK]! >>> 0 };
  }
}

const wordOf = (bytes: Uint8Array, at: number): number =>
  (bytes[at]! << 24) | (bytes[at + 1]! << 16) | (bytes[at + 2]! << 8) | bytes[at + 3]!;
