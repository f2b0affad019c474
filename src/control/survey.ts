/**
 * A survey of the connections that are open: how many are in which state, where they lead, and who has
 * waited longest. Made while somebody looks, out of the workers' tables; so it knows nothing of a
 * connection that came and went between two looks.
 */
import { textOf } from "../config/endpoint.ts";
import { CLOCK_ORIGIN } from "../engine/counters.ts";
import {
  CLIENT, DESTINATION, DIALLED_US, DOWN, FIRST_BYTE_US, PHASES, RELAY, SHAKEN_US, STARTED, type TableReader, UP,
} from "../engine/table.ts";
import type { WorkerView } from "./fleet.ts";
import type { RequestIds } from "./request-ids.ts";
import { endpointAt, type Tunnels } from "./tunnels.ts";

export interface SurveySources {
  readonly tunnels: Tunnels;
  readonly ids: RequestIds;
  /** The upstream's addresses by slot. */
  readonly upstreamNames: () => ReadonlyMap<number, string>;
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
  tunnels: number;
  bytes_up: number;
  bytes_down: number;
  bytes_per_second: number;
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
  readonly #seen = new Map<number, Seen>();
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
      const look = new Look(this.#seen, this.#sources, this.#lastMs);
      this.#lastMs = look.atMs;
      await this.#sources.tunnels.scan((row, worker) => look.see(row, worker));
      this.states = look.states;
      this.destinations = look.destinations;
      this.#slow = slowest([...look.slow, ...this.#slow], look.atMs);
    } finally {
      this.#running = false;
    }
  }
}

/** What was seen of a worker's rows when they were last looked at. */
interface Seen {
  ids: Float64Array;
  bytes: Float64Array;
}

class Look {
  readonly slow: Slow[] = [];
  readonly atMs = performance.timeOrigin + performance.now();
  readonly #states: number[] = PHASES.map(() => 0);
  readonly #groups = new Map<number | string, Destination & { delta: number }>();
  readonly #seen: Map<number, Seen>;
  readonly #ids: RequestIds;
  readonly #upstreams: ReadonlyMap<number, string>;
  /** Who is younger has moved all its bytes since then. */
  readonly #lastMs: number;
  #leastSlow = 0;

  constructor(seen: Map<number, Seen>, { ids, upstreamNames }: SurveySources, lastMs: number) {
    this.#seen = seen;
    this.#ids = ids;
    this.#upstreams = upstreamNames();
    this.#lastMs = lastMs;
  }

  see(row: TableReader, worker: WorkerView): void {
    this.#states[row.phase]!++;
    const startedMs = worker.counters[CLOCK_ORIGIN]! + row.number(STARTED);
    this.#count(row, this.#movedSince(row, worker, startedMs));
    this.#judge(row, worker, startedMs);
  }

  get states(): Record<string, number> {
    return Object.fromEntries(PHASES.slice(1).map((phase, i) => [phase, this.#states[i + 1]!]));
  }

  get destinations(): Destination[] {
    const seconds = this.#lastMs === Infinity ? 0 : (this.atMs - this.#lastMs) / 1000;
    const destinations = [...this.#groups.values()].map(({ delta, ...group }) => ({
      ...group, bytes_per_second: seconds <= 0 ? 0 : Math.round(delta / seconds),
    }));
    destinations.sort((a, b) => b.bytes_per_second - a.bytes_per_second || b.tunnels - a.tunnels);
    return destinations.slice(0, DESTINATIONS_MAX);
  }

  #movedSince(row: TableReader, { number, limits }: WorkerView, startedMs: number): number {
    let seen = this.#seen.get(number);
    const index = row.row / row.bytes.length;
    if (seen === undefined || seen.ids.length < limits.tunnels) {
      seen = { ids: new Float64Array(limits.tunnels), bytes: new Float64Array(limits.tunnels) };
      this.#seen.set(number, seen);
    }
    const bytes = row.number(UP) + row.number(DOWN);
    const known = seen.ids[index] === row.id;
    const before = known ? seen.bytes[index]! : startedMs >= this.#lastMs ? 0 : bytes;
    seen.ids[index] = row.id;
    seen.bytes[index] = bytes;
    return bytes - before;
  }

  #count(row: TableReader, delta: number): void {
    if (row.bytes[DESTINATION] === 0 && row.version === 0) return;
    const { name } = row;
    const key = name === "" ? keyOf(row.bytes) : name;
    let group = this.#groups.get(key);
    if (group === undefined) {
      if (this.#groups.size >= GROUPS_MAX) return;
      const destination = endpointAt(row, DESTINATION) ?? "-";
      group = { destination, name: name === "" ? null : name, tunnels: 0, bytes_up: 0, bytes_down: 0, bytes_per_second: 0, delta: 0 };
      this.#groups.set(key, group);
    }
    group.tunnels++;
    group.bytes_up += row.number(UP);
    group.bytes_down += row.number(DOWN);
    group.delta += delta;
  }

  /** How long has its client waited for the first byte, or how long did it? */
  #judge(row: TableReader, { number, incarnation }: WorkerView, startedMs: number): void {
    const first = row.micros(FIRST_BYTE_US);
    const ageMs = this.atMs - startedMs;
    // Who says nothing waits for nothing.
    const waits = first < 0 && (row.phase < RELAY || row.number(UP) > 0);
    if (first < 0 && !waits) return;
    const waitedMs = waits ? ageMs : first / 1000;
    if (waitedMs <= this.#leastSlow || ageMs - waitedMs > SLOWEST_MS) return;
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
