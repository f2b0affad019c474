/**
 * A survey of the connections that are open: how many are in which state, where they lead, and who has
 * waited longest. Made while somebody looks, out of the workers' tables; so it knows nothing of a
 * connection that came and went between two looks.
 *
 * Most connections are as they were at the look before. So it is kept what each row was, and of those
 * whose stamp has not moved on a few numbers are read where they stand: 9,000 rows take half a
 * millisecond of main's CPU, where copying each took 1.4, and 6.5 where they have names.
 */
import { textOf } from "../../config/endpoint.ts";
import { CLOCK_ORIGIN } from "../../engine/counters.ts";
import {
  CLIENT, DESTINATION, DIALLED_US, DOWN, FIRST_BYTE_US, OVER, phaseOf, PHASES, RELAY, SHAKEN_US, STARTED, type TableReader, UP,
} from "../../engine/table.ts";
import type { WorkerView } from "../fleet.ts";
import type { RequestIds } from "../log/request-ids.ts";
import { endpointAt, type Tunnels } from "./tunnels.ts";

export interface SurveySources {
  readonly tunnels: Tunnels;
  readonly ids: RequestIds;
  /** The upstream's addresses by slot. */
  readonly upstreamNames: () => ReadonlyMap<number, string>;
  /** In ms since the epoch; never back. */
  readonly now: () => number;
}

export interface Slow {
  readonly id: string;
  readonly client: string;
  readonly destination: string | null;
  readonly name: string | null;
  readonly upstream: string | null;
  readonly state: string;
  readonly at: number;
  readonly dial_seconds: number | null;
  readonly handshake_seconds: number | null;
  readonly first_byte_seconds: number | null;
  readonly waited_seconds: number;
}

export interface Destination {
  readonly destination: string;
  readonly name: string | null;
  readonly tunnels: number;
  readonly bytes_up: number;
  readonly bytes_down: number;
  readonly bytes_per_second: number;
}

const DESTINATIONS_MAX = 10;
const SLOWEST_MAX = 10;
/** Kept beside those that are shown: the slowest may end, or become old. */
const SLOWEST_KEPT = 40;
const SLOWEST_MS = 60_000;
/** Destinations that one survey counts; with more, the rest is left out. */
const GROUPS_MAX = 50_000;

export class Survey {
  readonly #sources: SurveySources;
  readonly #seen = new WeakMap<TableReader, Seen>();
  readonly #groups: Groups = new Map();
  #lastMs = Infinity;
  #running = false;
  #slow: readonly Slow[] = [];
  /** By name of the state. {}: nobody has looked yet. */
  states: Readonly<Record<string, number>> = {};
  /** Those with most traffic first. */
  destinations: readonly Destination[] = [];

  constructor(sources: SurveySources) {
    this.#sources = sources;
  }

  /** The last minute's, the slowest first. */
  get slowest(): readonly Slow[] {
    return this.#slow.slice(0, SLOWEST_MAX);
  }

  /** Resolves when it has been made; at once, where one is being made already. */
  async take(): Promise<void> {
    if (this.#running) return;
    this.#running = true;
    try {
      const look = new Look(this.#seen, this.#groups, this.#sources, this.#lastMs);
      this.#lastMs = look.atMs;
      await this.#sources.tunnels.scan((index, worker) => look.see(index, worker));
      this.states = look.states;
      this.destinations = look.destinations;
      this.#slow = slowest([...look.slow, ...this.#slow], look.atMs);
    } finally {
      this.#running = false;
    }
  }
}

/** Connections to one place, as a look counts them. */
interface Group {
  readonly destination: string;
  readonly name: string | null;
  tunnels: number;
  up: number;
  down: number;
  /** Moved since the look before. */
  delta: number;
}

type Groups = Map<number | string, Group>;

/** What a worker's rows were when they were last looked at, by index. */
interface Seen {
  /** Another life has the same table, and numbers its tunnels anew. */
  readonly incarnation: number;
  /** 0: none was seen. */
  readonly stamps: Int32Array;
  readonly ids: Float64Array;
  readonly bytes: Float64Array;
  /** null: it is not known yet where it leads, or there are too many places. */
  readonly groups: (Group | null)[];
}

class Look {
  readonly slow: Slow[] = [];
  readonly atMs: number;
  readonly #states: number[] = PHASES.map(() => 0);
  readonly #seen: WeakMap<TableReader, Seen>;
  readonly #groups: Groups;
  readonly #ids: RequestIds;
  readonly #upstreams: ReadonlyMap<number, string>;
  /** Who is younger has moved all its bytes since then. */
  readonly #lastMs: number;
  /** Of the worker whose rows are being looked at. */
  #table: TableReader | null = null;
  #rows: Seen | null = null;
  #originMs = 0;
  #leastSlow = 0;

  constructor(seen: WeakMap<TableReader, Seen>, groups: Groups, { ids, upstreamNames, now }: SurveySources, lastMs: number) {
    this.#seen = seen;
    this.#groups = groups;
    this.#ids = ids;
    this.#upstreams = upstreamNames();
    this.#lastMs = lastMs;
    this.atMs = now();
    for (const group of groups.values()) group.tunnels = group.up = group.down = group.delta = 0;
  }

  see(index: number, worker: WorkerView): void {
    const { table } = worker;
    if (table !== this.#table) this.#turnTo(worker);
    const rows = this.#rows!;
    const stamp = table.stampAt(index);
    if (phaseOf(stamp) === OVER) return;
    const up = table.numberAt(index, UP);
    const down = table.numberAt(index, DOWN);
    const startedMs = this.#originMs + table.numberAt(index, STARTED);
    const firstUs = table.microsAt(index, FIRST_BYTE_US);
    // Only so are the numbers of the tunnel that was seen.
    const same = stamp === rows.stamps[index] && table.stampAt(index) === stamp;
    if (same) {
      this.#count(index, phaseOf(stamp), up, down, up + down - rows.bytes[index]!);
      if (this.#isSlow(phaseOf(stamp), up, firstUs, startedMs) && table.read(index)) this.#tell(table, worker);
    } else if (table.read(index)) {
      this.#meet(index, table);
      if (this.#isSlow(table.phase, table.number(UP), table.micros(FIRST_BYTE_US), this.#originMs + table.number(STARTED))) this.#tell(table, worker);
    }
  }

  get states(): Record<string, number> {
    return Object.fromEntries(PHASES.slice(1).map((phase, i) => [phase, this.#states[i + 1]!]));
  }

  /** And forgets places where nobody is any more. */
  get destinations(): Destination[] {
    const seconds = this.#lastMs === Infinity ? 0 : (this.atMs - this.#lastMs) / 1000;
    const isBefore = (a: Group, b: Group): boolean => a.delta > b.delta || (a.delta === b.delta && a.tunnels > b.tunnels);
    const most: Group[] = [];
    for (const [key, group] of this.#groups) {
      if (group.tunnels === 0) {
        this.#groups.delete(key);
        continue;
      }
      if (most.length === DESTINATIONS_MAX && !isBefore(group, most.at(-1)!)) continue;
      const at = most.findIndex((other) => isBefore(group, other));
      most.splice(at < 0 ? most.length : at, 0, group);
      if (most.length > DESTINATIONS_MAX) most.pop();
    }
    return most.map(({ destination, name, tunnels, up, down, delta }) => ({
      destination, name, tunnels, bytes_up: up, bytes_down: down,
      bytes_per_second: seconds <= 0 ? 0 : Math.round(delta / seconds),
    }));
  }

  #turnTo({ table, counters, incarnation }: WorkerView): void {
    this.#table = table;
    this.#originMs = counters[CLOCK_ORIGIN]!;
    let rows = this.#seen.get(table);
    if (rows?.incarnation !== incarnation) {
      const count = table.rows;
      rows = {
        incarnation, stamps: new Int32Array(count), ids: new Float64Array(count), bytes: new Float64Array(count),
        groups: new Array<Group | null>(count).fill(null),
      };
      this.#seen.set(table, rows);
    }
    this.#rows = rows;
  }

  /** A tunnel that is new, or has gone on to another phase since. It has been read. */
  #meet(index: number, row: TableReader): void {
    const rows = this.#rows!;
    const [up, down] = [row.number(UP), row.number(DOWN)];
    const known = rows.stamps[index] !== 0 && rows.ids[index] === row.id;
    const isYoung = this.#originMs + row.number(STARTED) >= this.#lastMs;
    const before = known ? rows.bytes[index]! : isYoung ? 0 : up + down;
    rows.stamps[index] = row.stamp;
    rows.ids[index] = row.id;
    rows.groups[index] = this.#groupOf(row);
    this.#count(index, row.phase, up, down, up + down - before);
  }

  #groupOf(row: TableReader): Group | null {
    if (row.bytes[DESTINATION] === 0 && row.version === 0) return null;
    const { name } = row;
    const key = name === "" ? keyOf(row.bytes) : name;
    const known = this.#groups.get(key);
    if (known !== undefined) return known;
    if (this.#groups.size >= GROUPS_MAX) return null;
    const group = {
      destination: endpointAt(row, DESTINATION) ?? "-", name: name === "" ? null : name, tunnels: 0, up: 0, down: 0, delta: 0,
    };
    this.#groups.set(key, group);
    return group;
  }

  #count(index: number, phase: number, up: number, down: number, delta: number): void {
    this.#states[phase]!++;
    this.#rows!.bytes[index] = up + down;
    const group = this.#rows!.groups[index]!;
    if (group === null) return;
    group.tunnels++;
    group.up += up;
    group.down += down;
    group.delta += delta;
  }

  /** Its client waits for the first byte, or waited, so long that it should be told. */
  #isSlow(phase: number, up: number, firstUs: number, startedMs: number): boolean {
    const ageMs = this.atMs - startedMs;
    const waitedMs = firstUs < 0 ? ageMs : firstUs / 1000;
    if (waitedMs <= this.#leastSlow || ageMs - waitedMs > SLOWEST_MS) return false;
    // Who says nothing waits for nothing.
    return firstUs >= 0 || phase < RELAY || up > 0;
  }

  #tell(row: TableReader, { number, incarnation }: WorkerView): void {
    const first = row.micros(FIRST_BYTE_US);
    const waitedMs = first < 0 ? this.atMs - this.#originMs - row.number(STARTED) : first / 1000;
    const seconds = (us: number): number | null => (us < 0 ? null : us / 1e6);
    this.slow.push({
      id: this.#ids.text(incarnation, number, row.id),
      client: textOf(row.bytes, CLIENT),
      destination: endpointAt(row, DESTINATION),
      name: row.name === "" ? null : row.name,
      upstream: this.#upstreams.get(row.upstream) ?? null,
      state: PHASES[row.phase]!,
      at: this.atMs / 1000,
      dial_seconds: seconds(row.micros(DIALLED_US)),
      handshake_seconds: seconds(row.micros(SHAKEN_US)),
      first_byte_seconds: seconds(first),
      waited_seconds: Math.round(waitedMs * 1000) / 1e6,
    });
    if (this.slow.length < 4 * SLOWEST_KEPT) return;
    this.slow.sort((a, b) => b.waited_seconds - a.waited_seconds);
    this.slow.length = SLOWEST_KEPT;
    this.#leastSlow = this.slow.at(-1)!.waited_seconds * 1000;
  }
}

/** Each tunnel once, as it was seen last; those of the last minute; the slowest first. */
function slowest(candidates: readonly Slow[], nowMs: number): Slow[] {
  const since = (nowMs - SLOWEST_MS) / 1000;
  const once = new Map<string, Slow>();
  for (const slow of candidates) if (slow.at >= since && !once.has(slow.id)) once.set(slow.id, slow);
  return [...once.values()].sort((a, b) => b.waited_seconds - a.waited_seconds).slice(0, SLOWEST_KEPT);
}

/** Two of 2^53 destinations may be taken for one. */
function keyOf(bytes: Uint8Array): number {
  let [a, b] = [0x811c9dc5, 0x9747b28c];
  for (let i = DESTINATION; i < DESTINATION + 24; i++) {
    a = Math.imul(a ^ bytes[i]!, 0x01000193);
    b = Math.imul(b ^ bytes[i]!, 0x5bd1e995);
  }
  return (a >>> 0) * 2 ** 21 + ((b >>> 0) & 0x1fffff);
}
