/**
 * The metrics of the data plane and of the process: tunnels, why they ended, how long things took, the
 * upstream's addresses, the workers. All of it is read from what workers have written anyway.
 */
import { ACCEPT_ERRORS, ACCEPTED, BUFFERS_LENT, BYTES_DOWN, BYTES_UP, endingAt, PIPES_LENT, REFUSED_FULL, TUNNELS, TURNS } from "../../engine/counters.ts";
import { KINDS, type Reason, REASONS } from "../../engine/ending.ts";
import { BUCKETS, bucketOf } from "../../engine/histogram.ts";
import { type Meter, meterAt } from "../../engine/meters.ts";
import type { HistogramTotals } from "../../engine/socks-counters.ts";
import type { UpstreamCounts } from "../../engine/upstream-counters.ts";
import type { WorkerView } from "../fleet.ts";
import { Each, type Family, Histogram, type MetricsPart, One, oneHistogram } from "./metrics.ts";

/** Connections that wait in the kernel to be accepted, at one address. */
export interface Backlog {
  readonly address: string;
  readonly role: "transparent" | "socks";
  readonly waiting: number;
  readonly max: number;
}

export interface UpstreamState extends UpstreamCounts {
  readonly drained: boolean;
  readonly healthy: boolean;
}

/** All that is asked for once in each scrape. */
export interface ProxyNumbers {
  /** Summed over all workers. */
  readonly counters: Float64Array;
  readonly meters: Float64Array;
  readonly workers: readonly WorkerView[];
  /** CPU seconds of a worker's thread, in the order of `workers`. null: the kernel does not say. */
  readonly cpuSeconds: readonly (number | null)[];
  readonly replacements: number;
  /** Lines that did not get into the log. */
  readonly logDropped: number;
  readonly tunnelsMax: number;
  readonly upstreams: readonly UpstreamState[];
  readonly backlogs: readonly Backlog[];
  readonly fds: { readonly open: number; readonly limit: number };
  readonly residentBytes: number;
  readonly ready: boolean;
  readonly version: string;
}

export class ProxyMetrics implements MetricsPart {
  readonly #numbers: () => ProxyNumbers;
  #now: ProxyNumbers | null = null;

  constructor(numbers: () => ProxyNumbers) {
    this.#numbers = numbers;
  }

  read(): string {
    const now = this.#numbers();
    this.#now = now;
    let shape = "";
    now.workers.forEach(({ number }, index) => {
      shape += now.cpuSeconds[index] === null ? ` ${number}-` : ` ${number}`;
    });
    for (const { address } of now.upstreams) shape += ` ${address}`;
    shape += " and";
    for (const { address } of now.backlogs) shape += ` ${address}`;
    return shape;
  }

  families(boundText: (bound: number) => string): Family[] {
    const now = (): ProxyNumbers => this.#now!;
    return [...tunnelFamilies(now, boundText), ...workerFamilies(now, boundText), ...processFamilies(now)];
  }
}

/** Whose doing an end was, as a label. */
export type Result = "ok" | "client" | "destination" | "upstream" | "internal";

export function resultOf(reason: Reason): Result {
  switch (KINDS[reason].blame) {
    case "nobody": return "ok";
    case "client": return "client";
    case "server": return "destination";
    case "upstream": return "upstream";
    case "us": return "internal";
  }
}

export const RESULTS: readonly Result[] = ["ok", "client", "destination", "upstream", "internal"];

const RESULTS_AND_REFUSED = [...RESULTS, "refused"] as const;
const REASONS_AT = REASONS.map((reason) => [reason, endingAt(reason)] as const);

/** Where the counters of its reasons are. */
const ENDINGS = new Map(RESULTS.map((result) => [result, REASONS.filter((reason) => resultOf(reason) === result).map(endingAt)]));

/** Of all that have ended. */
export function endedWith(counters: Float64Array, result: Result): number {
  let sum = 0;
  for (const at of ENDINGS.get(result)!) sum += counters[at]!;
  return sum;
}

type Numbers = () => ProxyNumbers;

function tunnelFamilies(now: Numbers, boundText: (bound: number) => string): Family[] {
  const counter = (name: string, help: string, at: number): Family => new One("counter", name, help, () => now().counters[at]!);
  const upstream = (type: "counter" | "gauge", name: string, help: string, value: (state: UpstreamState) => number): Family =>
    new Each(type, name, help, () => now().upstreams, ({ address }) => ({ upstream: address }), value);
  const backlog = (name: string, help: string, value: (state: Backlog) => number): Family =>
    new Each("gauge", name, help, () => now().backlogs, ({ address }) => ({ address }), value);
  const histogram = (name: string, help: string, meter: Meter): Family =>
    oneHistogram(name, help, boundText, () => totalsOf(now().meters, meter));
  return [
    new One("gauge", "transplice_tunnels_active", "Connections that are open now.", () => now().counters[TUNNELS]!),
    new One("gauge", "transplice_tunnels_max", "Connections that may be open at once.", () => now().tunnelsMax),
    counter("transplice_connections_accepted_total", "Connections that were taken in.", ACCEPTED),
    new Each(
      "counter", "transplice_connections_total",
      "Connections that are over, by whose doing it was; refused: reset at the limit.",
      () => RESULTS_AND_REFUSED, (result) => ({ result }),
      (result) => (result === "refused" ? now().counters[REFUSED_FULL]! : endedWith(now().counters, result)),
    ),
    new Each(
      "counter", "transplice_connections_ended_total", "Connections that are over, by the reason in the log.",
      () => REASONS_AT, ([reason]) => ({ reason }), ([, at]) => now().counters[at]!,
    ),
    new Each(
      "counter", "transplice_bytes_total", "Bytes relayed; up: to the destination, down: to the client.",
      () => ["up", "down"] as const, (direction) => ({ direction }),
      (direction) => now().counters[direction === "up" ? BYTES_UP : BYTES_DOWN]!,
    ),
    histogram("transplice_dial_seconds", "From the first attempt to a connection that stands.", "dial"),
    histogram("transplice_handshake_seconds", "The upstream's handshake.", "handshake"),
    histogram("transplice_first_byte_seconds", "From accept to the first byte from the destination.", "firstByte"),
    histogram("transplice_connection_duration_seconds", "How long a connection was open.", "duration"),
    histogram("transplice_splice_bytes", "What one splice took from a socket.", "splice"),
    upstream("gauge", "transplice_upstream_active_connections", "Connections to an address of the upstream.", ({ active }) => active),
    upstream("counter", "transplice_upstream_dials_total", "Dials of an address of the upstream.", ({ dials }) => dials),
    upstream("counter", "transplice_upstream_dial_failures_total", "Dials that came to nothing.", ({ dialFailures }) => dialFailures),
    upstream("counter", "transplice_upstream_handshake_failures_total", "Handshakes that the upstream spoilt.", ({ handshakeFailures }) => handshakeFailures),
    upstream("gauge", "transplice_upstream_drained", "1: an operator lets nobody be dialled there.", ({ drained }) => Number(drained)),
    upstream("gauge", "transplice_upstream_healthy", "0: most dials of the last minute failed.", ({ healthy }) => Number(healthy)),
    counter("transplice_accept_errors_total", "Connections that the kernel could not hand over.", ACCEPT_ERRORS),
    new One("counter", "transplice_log_dropped_total", "Lines that are not in the log: there were too many, or nothing took them.", () => now().logDropped),
    backlog("transplice_backlog_connections", "Connections that wait in the kernel to be accepted.", ({ waiting }) => waiting),
    backlog("transplice_backlog_max", "Connections that may wait so.", ({ max }) => max),
  ];
}

function workerFamilies(now: Numbers, boundText: (bound: number) => string): Family[] {
  const label = ({ number }: WorkerView) => ({ worker: `${number}` });
  const worker = (type: "counter" | "gauge", name: string, help: string, value: (view: WorkerView) => number): Family =>
    new Each(type, name, help, () => now().workers, label, value);
  return [
    worker("gauge", "transplice_worker_tunnels", "Connections that a worker has open.", ({ counters }) => counters[TUNNELS]!),
    worker("counter", "transplice_worker_turns_total", "Turns of a worker's loop.", ({ counters }) => counters[TURNS]!),
    new Each(
      "counter", "transplice_worker_cpu_seconds_total", "CPU time of a worker's thread.",
      () => now().workers.map((view, index) => ({ view, seconds: now().cpuSeconds[index]! })).filter(({ seconds }) => seconds !== null),
      ({ view }) => label(view), ({ seconds }) => seconds,
    ),
    new Histogram(
      "transplice_worker_turn_seconds", "How long a turn of a worker's loop took: so long an event may have waited.",
      boundText, () => now().workers, label, ({ meters }) => totalsOf(meters, "turn"),
    ),
    worker("gauge", "transplice_worker_pipes_lent", "Pipes with bytes in them.", ({ counters }) => counters[PIPES_LENT]!),
    worker("gauge", "transplice_worker_pipes_max", "Pipes that there may be.", ({ limits }) => limits.pipes),
    worker("gauge", "transplice_worker_buffers_lent", "Buffers with bytes in them.", ({ counters }) => counters[BUFFERS_LENT]!),
    worker("gauge", "transplice_worker_buffers_max", "Buffers that there may be.", ({ limits }) => limits.buffers),
    worker("gauge", "transplice_worker_full", "1: it accepts nothing, for the process is at its limit.", ({ full }) => Number(full)),
    worker("gauge", "transplice_worker_hanging", "1: its loop stands still.", ({ state }) => Number(state === "hangs")),
    new One("counter", "transplice_worker_replacements_total", "Workers that died and were replaced.", () => now().replacements),
  ];
}

function processFamilies(now: Numbers): Family[] {
  const startSeconds = performance.timeOrigin / 1000;
  return [
    new Each(
      "gauge", "transplice_build_info", "1, and what is running.",
      () => [now().version], (version) => ({ version, node: process.version }), () => 1,
    ),
    new One("gauge", "transplice_ready", "1: it serves, and neither the upstream nor every address to leave by is known to be away.", () => Number(now().ready)),
    new One("counter", "process_cpu_seconds_total", "User and system CPU time of the process.", () => {
      const { user, system } = process.cpuUsage();
      return (user + system) / 1e6;
    }),
    new One("gauge", "process_resident_memory_bytes", "Resident memory of the process.", () => now().residentBytes),
    new One("gauge", "process_start_time_seconds", "When the process began, since the epoch.", () => startSeconds),
    new One("gauge", "process_open_fds", "File descriptors that are open.", () => now().fds.open),
    new One("gauge", "process_max_fds", "File descriptors that may be.", () => now().fds.limit),
  ];
}

interface Scale {
  /** Where the meter's buckets begin. */
  readonly at: number;
  readonly bounds: readonly number[];
  /** Where each of a scrape's buckets ends among the meter's. */
  readonly ends: readonly number[];
  readonly unit: number;
}

const range = (first: number, last: number, step: number): number[] =>
  Array.from({ length: Math.floor((last - first) / step) + 1 }, (_, i) => first + i * step);

/** In few buckets, for each is a time series: their ends as powers of two of the meter's unit. */
function scale(meter: Meter, powers: readonly number[], unit: number): Scale {
  // What is counted are whole numbers: below 2^n is up to 2^n - 1, of which only bytes take notice.
  const bounds = powers.map((power) => (unit === 1 ? 2 ** power - 1 : 2 ** power * unit));
  return {
    at: meterAt(meter),
    bounds: bounds.map((bound) => Number(bound.toPrecision(12))),
    ends: [...powers.map((power) => bucketOf(2 ** power)), BUCKETS],
    unit,
  };
}

/** 64 µs to 33 s. */
const latency = (meter: Meter): Scale => scale(meter, range(6, 25, 1), 1e-6);
const SCALES: Readonly<Record<Meter, Scale>> = {
  dial: latency("dial"),
  handshake: latency("handshake"),
  firstByte: latency("firstByte"),
  /** 16 ms to 4.6 h. */
  duration: scale("duration", range(4, 24, 2), 1e-3),
  /** 16 µs to 1 s. */
  turn: scale("turn", range(4, 20, 2), 1e-6),
  splice: scale("splice", range(12, 24, 2), 1),
};

function totalsOf(meters: Float64Array, meter: Meter): HistogramTotals {
  const { at, bounds, ends, unit } = SCALES[meter];
  const counts = new Float64Array(ends.length);
  let bucket = 0;
  for (let i = 0; i < ends.length; i++) {
    let count = 0;
    for (const end = ends[i]!; bucket < end; bucket++) count += meters[at + bucket]!;
    counts[i] = count;
  }
  return { bounds, counts, sum: meters[at + BUCKETS]! * unit };
}
