/**
 * What workers count for each egress address and for each rule that denies: one row of small
 * numbers per worker in shared memory, written by that worker alone and read by main.
 *
 * A number is 32 bits and wraps. Main adds up how far it has moved since the last time it looked,
 * which must be before it has moved by 2^32.
 */
import { Slots } from "./slots.ts";

export const ADDRESS_SLOTS = 8192;
export const RULE_SLOTS = 1024;

const ACTIVE = 0;
const OPENED = 1;
const FAILED = 2;
const SPILLED = 3;
const ANSWERED = 4;
/** A bit for each client, by a hash, whose dials failed since main has looked: who they were is not known. */
const FAILED_CLIENTS = 5;
const ADDRESS_WORDS = 6;

const ADDRESSES = 0;
const RULES = ADDRESSES + (ADDRESS_SLOTS + 1) * ADDRESS_WORDS;
const ROW = RULES + RULE_SLOTS + 1;

export const egressCountersBytes = (workers: number): number => workers * ROW * 4;

const rowOf = (shared: SharedArrayBuffer, worker: number): Int32Array =>
  new Int32Array(shared, worker * ROW * 4, ROW);

/** One worker's, and its alone. */
export class EgressCounters {
  readonly #row: Int32Array;

  constructor(shared: SharedArrayBuffer, worker: number) {
    this.#row = rowOf(shared, worker);
  }

  /** A connection from this address stands; ended() when it is over. */
  opened(slot: number): void {
    const at = ADDRESSES + slot * ADDRESS_WORDS;
    this.#row[at + ACTIVE]!++;
    this.#row[at + OPENED]!++;
  }

  ended(slot: number): void {
    this.#row[ADDRESSES + slot * ADDRESS_WORDS + ACTIVE]!--;
  }

  /** A dial from this address was answered: the connection stood, or it was refused. */
  answered(slot: number): void {
    this.#row[ADDRESSES + slot * ADDRESS_WORDS + ANSWERED]!++;
  }

  /** A dial from this address has failed; `client` is a hash of who wanted it. */
  failed(slot: number, client = 0): void {
    const at = ADDRESSES + slot * ADDRESS_WORDS;
    this.#row[at + FAILED]!++;
    this.#row[at + FAILED_CLIENTS]! |= 1 << (client & 31);
  }

  /** This address had no port left (EADDRNOTAVAIL), so the connection went to the next. */
  spilled(slot: number): void {
    this.#row[ADDRESSES + slot * ADDRESS_WORDS + SPILLED]!++;
  }

  denied(rule: number): void {
    this.#row[RULES + rule]!++;
  }
}

export interface AddressCounts {
  readonly address: string;
  readonly active: number;
  readonly opened: number;
  readonly answered: number;
  readonly failed: number;
  readonly spilled: number;
}

export interface RuleCount {
  readonly rule: string;
  readonly denied: number;
}

/** Main's: whose the slots are, and what stands in them over all workers. */
export class EgressReader {
  readonly #rows: readonly Int32Array[];
  readonly #used: () => number;
  readonly #addresses: Slots;
  readonly #rules: Slots;
  /** What a word was when it was last read, and how far it has moved in all. */
  readonly #seen = new Int32Array(ROW);
  readonly #totals = new Float64Array(ROW);

  /** `used`: workers that there have ever been. The rows of others say nothing, and are not read. */
  constructor(shared: SharedArrayBuffer, used?: () => number) {
    const workers = Math.floor(shared.byteLength / (ROW * 4));
    this.#used = used ?? (() => workers);
    this.#rows = Array.from({ length: workers }, (_, worker) => rowOf(shared, worker));
    this.#addresses = new Slots(
      ADDRESS_SLOTS,
      (slot) => this.#active(slot) === 0,
      (slot) => {
        const at = ADDRESSES + slot * ADDRESS_WORDS;
        for (let word = at + OPENED; word <= at + ANSWERED; word++) this.#restart(word);
      },
    );
    this.#rules = new Slots(RULE_SLOTS, () => true, (slot) => this.#restart(RULES + slot));
  }

  /** The slots of the configuration's addresses, in its order. */
  addressSlots(addresses: readonly string[]): number[] {
    return this.#addresses.assign(addresses);
  }

  /** The slots of everything that may deny, in its order. */
  ruleSlots(rules: readonly string[]): number[] {
    return this.#rules.assign(rules);
  }

  /** The addresses by slot. */
  names(): ReadonlyMap<number, string> {
    return this.#addresses.names();
  }

  /** The configuration's addresses, and former ones which connections still leave from. */
  addresses(): AddressCounts[] {
    const counts: AddressCounts[] = [];
    for (const { name, slot, current } of this.#addresses.all()) {
      const active = this.#active(slot);
      if (!current && active === 0) continue;
      const at = ADDRESSES + slot * ADDRESS_WORDS;
      counts.push({
        address: name,
        active,
        opened: this.#total(at + OPENED),
        answered: this.#total(at + ANSWERED),
        failed: this.#total(at + FAILED),
        spilled: this.#total(at + SPILLED),
      });
    }
    return counts;
  }

  /**
   * How many clients (up to 32; two may count as one) have had a dial from each address fail since
   * this was last asked. It does not wait for workers: who fails at this very moment may be missed.
   */
  failedClients(): Map<string, number> {
    const clients = new Map<string, number>();
    for (const { name, slot } of this.#addresses.all()) {
      const word = ADDRESSES + slot * ADDRESS_WORDS + FAILED_CLIENTS;
      let bits = 0;
      for (const row of this.#rows.slice(0, this.#used())) {
        bits |= row[word]!;
        row[word] = 0;
      }
      let count = 0;
      for (; bits !== 0; bits &= bits - 1) count++;
      clients.set(name, count);
    }
    return clients;
  }

  /** The configuration's rules. */
  denied(): RuleCount[] {
    const counts: RuleCount[] = [];
    for (const { name, slot, current } of this.#rules.all()) {
      if (current) counts.push({ rule: name, denied: this.#total(RULES + slot) });
    }
    return counts;
  }

  /** To be called when a worker is gone, for its connections are, too. */
  forget(worker: number): void {
    const row = this.#rows[worker]!;
    for (let slot = 0; slot <= ADDRESS_SLOTS; slot++) row[ADDRESSES + slot * ADDRESS_WORDS + ACTIVE] = 0;
  }

  #active(slot: number): number {
    return this.#sum(ADDRESSES + slot * ADDRESS_WORDS + ACTIVE);
  }

  /** Right modulo 2^32, as are the numbers that it adds up. */
  #sum(word: number): number {
    let sum = 0;
    const used = this.#used();
    for (let worker = 0; worker < used; worker++) sum += this.#rows[worker]![word]!;
    return sum;
  }

  #total(word: number): number {
    const now = this.#sum(word);
    this.#totals[word]! += (now - this.#seen[word]!) >>> 0;
    this.#seen[word] = now;
    return this.#totals[word]!;
  }

  /** Another's from now on. */
  #restart(word: number): void {
    this.#seen[word] = this.#sum(word);
    this.#totals[word] = 0;
  }
}
