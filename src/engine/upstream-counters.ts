/**
 * What workers count for each address of the upstream: one row of numbers per worker in shared memory,
 * written by that worker alone and read by main.
 */
import { Slots } from "./slots.ts";

export const UPSTREAM_SLOTS = 256;

const ACTIVE = 0;
const DIALS = 1;
const DIAL_FAILURES = 2;
const HANDSHAKE_FAILURES = 3;
const ADDRESS_NUMBERS = 4;
const ROW = (UPSTREAM_SLOTS + 1) * ADDRESS_NUMBERS;

export const upstreamCountersBytes = (workers: number): number => workers * ROW * 8;

const rowOf = (shared: SharedArrayBuffer, worker: number): Float64Array =>
  new Float64Array(shared, worker * ROW * 8, ROW);

/** One worker's, and its alone. */
export class UpstreamCounters {
  readonly #row: Float64Array;

  constructor(shared: SharedArrayBuffer, worker: number) {
    this.#row = rowOf(shared, worker);
  }

  /** A connection to it is being made; closed() when that has failed, or is over. */
  opened(slot: number): void {
    this.#row[slot * ADDRESS_NUMBERS + ACTIVE]!++;
    this.#row[slot * ADDRESS_NUMBERS + DIALS]!++;
  }

  closed(slot: number): void {
    this.#row[slot * ADDRESS_NUMBERS + ACTIVE]!--;
  }

  dialFailed(slot: number): void {
    this.#row[slot * ADDRESS_NUMBERS + DIAL_FAILURES]!++;
  }

  /** It was connected, and then did not do what an upstream does. */
  handshakeFailed(slot: number): void {
    this.#row[slot * ADDRESS_NUMBERS + HANDSHAKE_FAILURES]!++;
  }
}

export interface UpstreamCounts {
  readonly address: string;
  readonly active: number;
  readonly dials: number;
  readonly dialFailures: number;
  readonly handshakeFailures: number;
}

/** Main's: whose the slots are, and what stands in them over all workers. */
export class UpstreamReader {
  readonly #rows: readonly Float64Array[];
  readonly #used: () => number;
  readonly #slots: Slots;
  /** What stood there when the slot went to another. */
  readonly #base = new Float64Array(ROW);

  /** `used`: workers that there have ever been. The rows of others say nothing, and are not read. */
  constructor(shared: SharedArrayBuffer, used?: () => number) {
    const workers = Math.floor(shared.byteLength / (ROW * 8));
    this.#used = used ?? (() => workers);
    this.#rows = Array.from({ length: workers }, (_, worker) => rowOf(shared, worker));
    this.#slots = new Slots(
      UPSTREAM_SLOTS,
      (slot) => this.#number(slot, ACTIVE) === 0,
      (slot) => {
        for (let number = DIALS; number < ADDRESS_NUMBERS; number++) {
          this.#base[slot * ADDRESS_NUMBERS + number]! += this.#number(slot, number);
        }
      },
    );
  }

  /** The slots of the upstream's addresses, in its order. */
  slots(addresses: readonly string[]): number[] {
    return this.#slots.assign(addresses);
  }

  /** By slot. */
  names(): ReadonlyMap<number, string> {
    return this.#slots.names();
  }

  /** The upstream's addresses, and former ones to which connections still stand. */
  counts(): UpstreamCounts[] {
    const counts: UpstreamCounts[] = [];
    for (const { name, slot, current } of this.#slots.all()) {
      const active = this.#number(slot, ACTIVE);
      if (!current && active === 0) continue;
      counts.push({
        address: name,
        active,
        dials: this.#number(slot, DIALS),
        dialFailures: this.#number(slot, DIAL_FAILURES),
        handshakeFailures: this.#number(slot, HANDSHAKE_FAILURES),
      });
    }
    return counts;
  }

  /** To be called when a worker is gone, for its connections are, too. */
  forget(worker: number): void {
    const row = this.#rows[worker]!;
    for (let at = ACTIVE; at < ROW; at += ADDRESS_NUMBERS) row[at] = 0;
  }

  #number(slot: number, number: number): number {
    const at = slot * ADDRESS_NUMBERS + number;
    const used = this.#used();
    let sum = -this.#base[at]!;
    for (let worker = 0; worker < used; worker++) sum += this.#rows[worker]![at]!;
    return sum;
  }
}
