/**
 * The metrics of the data plane and of the process: tunnels, why they ended, how long things took, the
 * upstream's addresses, the workers. All of it is read from what workers have written anyway.
 */
import { ACCEPT_ERRORS, ACCEPTED, BUFFERS_LENT, BYTES_DOWN, BYTES_UP, endingAt, JOURNAL_DROPPED, PIPES_LENT, REFUSED_FULL, TUNNELS, TURNS } from "../engine/counters.ts";
import { KINDS, type Reason, REASONS } from "../engine/ending.ts";
import { BUCKETS, bucketOf } from "../engine/histogram.ts";
import { type Meter, meterAt } from "../engine/meters.ts";
import type { HistogramTotals } from "../engine/socks-counters.ts";
import type { UpstreamCounts } from "../engine/upstream-counters.ts";
import type { WorkerView } from "./fleet.ts";
import { Family, histogramSamples, type MetricsPart, one, type Sample } from "./metrics.ts";

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
  readonly tunnelsMax: number;
  readonly upstreams: readonly UpstreamState[];
  readonly backlogs: readonly Backlog[];
  readonly fds: { readonly open: number; readonly limit: number };
  readonly ready: boolean;
  readonly version: string;
}

export class ProxyMetrics implements MetricsPart {
  readonly #numbers: () => ProxyNumbers;
  #now: ProxyNumbers | null = null;

  constructor(numbers: () => ProxyNumbers) {
    this.#numbers = numbers;
  }

  read(): void {
    this.#now = this.#numbers();
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

/** Of all that have ended. */
export function endedWith(counters: Float64Array, result: Result): number {
  return REASONS.reduce((sum, reason) => (resultOf(reason) === result ? sum + counters[endingAt(reason)]! : sum), 0);
}

type Numbers = () => ProxyNumbers;

function tunnelFamilies(now: Numbers, boundText: (bound: number) => string): Family[] {
  const counter = (name: string, help: string, at: number): Family =>
    new Family("counter", name, help, () => one(now().counters[at]!));
  const upstream = (type: "counter" | "gauge", name: string, help: string, value: (state: UpstreamState) => number): Family =>
    new Family(type, name, help, () =>
      now().upstreams.map((state) => ({ labels: { upstream: state.address }, value: value(state) })),
    );
  const histogram = (name: string, help: string, meter: Meter): Family =>
    new Family("histogram", name, help, () => histogramSamples(name, {}, totalsOf(now().meters, meter), boundText));
  return [
    new Family("gauge", "transplice_tunnels_active", "Connections that are open now.", () => one(now().counters[TUNNELS]!)),
    new Family("gauge", "transplice_tunnels_max", "Connections that may be open at once.", () => one(now().tunnelsMax)),
    counter("transplice_connections_accepted_total", "Connections that were taken in.", ACCEPTED),
    new Family("counter", "transplice_connections_total", "Connections that are over, by whose doing it was; refused: reset at the limit.", () => [
      ...RESULTS.map((result) => ({ labels: { result }, value: endedWith(now().counters, result) })),
      { labels: { result: "refused" }, value: now().counters[REFUSED_FULL]! },
    ]),
    new Family("counter", "transplice_connections_ended_total", "Connections that are over, by the reason in the log.", () =>
      REASONS.map((reason) => ({ labels: { reason }, value: now().counters[endingAt(reason)]! })),
    ),
    new Family("counter", "transplice_bytes_total", "Bytes relayed; up: to the destination, down: to the client.", () => [
      { labels: { direction: "up" }, value: now().counters[BYTES_UP]! },
      { labels: { direction: "down" }, value: now().counters[BYTES_DOWN]! },
    ]),
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
    counter("transplice_log_dropped_total", "Ends that are not in the log, since there were too many.", JOURNAL_DROPPED),
    new Family("gauge", "transplice_backlog_connections", "Connections that wait in the kernel to be accepted.", () =>
      now().backlogs.map(({ address, waiting }) => ({ labels: { address }, value: waiting })),
    ),
    new Family("gauge", "transplice_backlog_max", "Connections that may wait so.", () =>
      now().backlogs.map(({ address, max }) => ({ labels: { address }, value: max })),
    ),
  ];
}

function workerFamilies(now: Numbers, boundText: (bound: number) => string): Family[] {
  const worker = (
    type: "counter" | "gauge", name: string, help: string, value: (view: WorkerView, index: number) => number | null,
  ): Family =>
    new Family(type, name, help, () =>
      now().workers.flatMap((view, index): Sample[] => {
        const number = value(view, index);
        return number === null ? [] : [{ labels: { worker: `${view.number}` }, value: number }];
      }),
    );
  const turns = "transplice_worker_turn_seconds";
  return [
    worker("gauge", "transplice_worker_tunnels", "Connections that a worker has open.", ({ counters }) => counters[TUNNELS]!),
    worker("counter", "transplice_worker_turns_total", "Turns of a worker's loop.", ({ counters }) => counters[TURNS]!),
    worker("counter", "transplice_worker_cpu_seconds_total", "CPU time of a worker's thread.", (_, index) => now().cpuSeconds[index]!),
    new Family("histogram", turns, "How long a turn of a worker's loop took: so long an event may have waited.", () =>
      now().workers.flatMap(({ number, meters }) =>
        histogramSamples(turns, { worker: `${number}` }, totalsOf(meters, "turn"), boundText),
      ),
    ),
    worker("gauge", "transplice_worker_pipes_lent", "Pipes with bytes in them.", ({ counters }) => counters[PIPES_LENT]!),
    worker("gauge", "transplice_worker_pipes_max", "Pipes that there may be.", ({ limits }) => limits.pipes),
    worker("gauge", "transplice_worker_buffers_lent", "Buffers with bytes in them.", ({ counters }) => counters[BUFFERS_LENT]!),
    worker("gauge", "transplice_worker_buffers_max", "Buffers that there may be.", ({ limits }) => limits.buffers),
    worker("gauge", "transplice_worker_full", "1: it accepts nothing, for the process is at its limit.", ({ full }) => Number(full)),
    worker("gauge", "transplice_worker_hanging", "1: its loop stands still.", ({ state }) => Number(state === "hangs")),
    new Family("counter", "transplice_worker_replacements_total", "Workers that died and were replaced.", () => one(now().replacements)),
  ];
}

function processFamilies(now: Numbers): Family[] {
  const startSeconds = performance.timeOrigin / 1000;
  return [
    new Family("gauge", "transplice_build_info", "1, and what is running.", () => [
      { labels: { version: now().version, node: process.version }, value: 1 },
    ]),
    new Family("gauge", "transplice_ready", "1: it serves, and the upstream is not known to be away.", () => one(Number(now().ready))),
    new Family("counter", "process_cpu_seconds_total", "User and system CPU time of the process.", () => {
      const { user, system } = process.cpuUsage();
      return one((user + system) / 1e6);
    }),
    new Family("gauge", "process_resident_memory_bytes", "Resident memory of the process.", () => one(process.memoryUsage.rss())),
    new Family("gauge", "process_start_time_seconds", "When the process began, since the epoch.", () => one(startSeconds)),
    new Family("gauge", "process_open_fds", "File descriptors that are open.", () => one(now().fds.open)),
    new Family("gauge", "process_max_fds", "File descriptors that may be.", () => one(now().fds.limit)),
  ];
}

interface Scale {
  /** As powers of two of the meter's unit: each begins a bucket. */
  readonly powers: readonly number[];
  readonly unit: number;
}

const range = (first: number, last: number, step: number): number[] =>
  Array.from({ length: Math.floor((last - first) / step) + 1 }, (_, i) => first + i * step);

/** 64 µs to 33 s. */
const LATENCY: Scale = { powers: range(6, 25, 1), unit: 1e-6 };
const SCALES: Readonly<Record<Meter, Scale>> = {
  dial: LATENCY,
  handshake: LATENCY,
  firstByte: LATENCY,
  /** 16 ms to 4.6 h. */
  duration: { powers: range(4, 24, 2), unit: 1e-3 },
  /** 16 µs to 1 s. */
  turn: { powers: range(4, 20, 2), unit: 1e-6 },
  splice: { powers: range(12, 24, 2), unit: 1 },
};

/** In few buckets: each of a scrape's is a time series. */
function totalsOf(meters: Float64Array, meter: Meter): HistogramTotals {
  const { powers, unit } = SCALES[meter];
  const at = meterAt(meter);
  const counts = new Float64Array(powers.length + 1);
  let bucket = 0;
  for (const [i, power] of powers.entries()) {
    for (const end = bucketOf(2 ** power); bucket < end; bucket++) counts[i]! += meters[at + bucket]!;
  }
  for (; bucket < BUCKETS; bucket++) counts[powers.length]! += meters[at + bucket]!;
  // What is counted are whole numbers: below 2^n is up to 2^n - 1, of which only bytes take notice.
  const bounds = powers.map((power) => (unit === 1 ? 2 ** power - 1 : (2 ** power * unit)));
  return { bounds: bounds.map((bound) => Number(bound.toPrecision(12))), counts, sum: meters[at + BUCKETS]! * unit };
}
