/**
 * How it goes, for whoever looks: once a second the numbers are read and kept, so that rates, the last
 * minutes and what is slow can be told. Made once for everybody: who looks costs no more than bytes.
 *
 * Single tunnels are looked at only while somebody looks at them.
 */
import { hostname } from "node:os";
import {
  ACCEPT_ERRORS, ACCEPTED, BUFFERS_LENT, BYTES_DOWN, BYTES_UP, endingAt, PIPES_LENT, REFUSED_FULL, TUNNELS, TURNS,
} from "../../engine/counters.ts";
import { KINDS, REASONS } from "../../engine/ending.ts";
import { BUCKETS, leastOf } from "../../engine/histogram.ts";
import { type Meter, meterAt } from "../../engine/meters.ts";
import type { AddressCounts, RuleCount } from "../../engine/egress-counters.ts";
import type { WorkerView } from "../fleet.ts";
import type { NamesStats } from "../names/names.ts";
import { endedWith, type ProxyNumbers, resultOf } from "./proxy-metrics.ts";
import type { EgressHealth } from "./socks-metrics.ts";
import type { Survey } from "./survey.ts";

export interface StatusSources {
  readonly numbers: () => ProxyNumbers;
  readonly survey: Survey;
  readonly addresses: () => readonly AddressCounts[];
  readonly health: (address: string) => EgressHealth | null;
  readonly denied: () => readonly RuleCount[];
  readonly names: () => NamesStats;
  /** By address: as it is written in the configuration, and its protocol. */
  readonly upstreamKinds: () => ReadonlyMap<string, { readonly name: string; readonly kind: string }>;
  readonly program: string;
  readonly mode: () => "redirect" | "tproxy" | null;
  readonly draining: () => boolean;
  readonly writable: () => boolean;
  readonly problems: () => readonly string[];
  /** In ms since this process began. */
  readonly now: () => number;
  /** Whoever waits for this CPU goes first. */
  readonly makeWay: () => void;
}

const HISTORY_SECONDS = 300;
/** What "the last minute" and "the last 5 minutes" are made of: a sample so often. */
const SAMPLE_SECONDS = 10;
const MINUTE_SAMPLES = 6;
const LOOKED_MS = 5000;
/** With more of them, those that are not well are shown, and those that are used most. */
const EGRESS_MAX = 256;

/** All numbers of one moment; what workers go on writing is copied. */
interface Moment {
  readonly atMs: number;
  readonly numbers: ProxyNumbers;
  readonly addresses: readonly AddressCounts[];
  readonly turns: readonly number[];
  readonly splices: readonly number[];
}

/** What is kept of each second. */
interface Second {
  readonly atMs: number;
  readonly accepted: number;
  readonly refused: number;
  readonly ended: number;
  /** By the upstream's fault or our own: what destinations refuse is every day's business. */
  readonly failed: number;
  readonly bytesUp: number;
  readonly bytesDown: number;
  readonly active: number;
}

/** What is kept of each ten. */
interface Sample {
  readonly counters: Float64Array;
  readonly upstreams: ReadonlyMap<string, { readonly dials: number; readonly failures: number }>;
  /** Those of the last minute alone. */
  meters: Float64Array | null;
  turns: ReadonlyMap<number, Float64Array> | null;
}

export class Status {
  readonly #sources: StatusSources;
  readonly #seconds: Second[] = [];
  readonly #samples: Sample[] = [];
  #ticks = 0;
  #now: Moment | null = null;
  #before: Moment | null = null;
  #lookedMs = -Infinity;
  #text: string | null = null;

  constructor(sources: StatusSources) {
    this.#sources = sources;
  }

  /** To be called once a second. */
  tick(): void {
    const now = momentOf(this.#sources);
    this.#sources.makeWay();
    this.#before = this.#now;
    this.#now = now;
    this.#seconds.push(secondOf(now));
    // One more than is shown: a rate is a difference.
    if (this.#seconds.length > HISTORY_SECONDS + 1) this.#seconds.shift();
    if (this.#ticks++ % SAMPLE_SECONDS === 0) this.#sample(now.numbers);
    this.#text = null;
    if (now.atMs - this.#lookedMs < LOOKED_MS) void this.#survey();
  }

  /** Somebody looks, and will be shown single tunnels. Resolves when there are some to be shown. */
  async looked(): Promise<void> {
    const nowMs = this.#sources.now();
    const first = nowMs - this.#lookedMs >= LOOKED_MS;
    this.#lookedMs = nowMs;
    if (first) await this.#survey();
  }

  async #survey(): Promise<void> {
    await this.#sources.survey.take();
    this.#text = null;
    this.#sources.makeWay();
  }

  /** The same for everybody, until the next tick. */
  get text(): string {
    if (this.#now === null) this.tick();
    if (this.#text === null) {
      const snapshot = this.#snapshot();
      this.#sources.makeWay();
      this.#text = JSON.stringify(snapshot);
      this.#sources.makeWay();
    }
    return this.#text;
  }

  /** With the last minutes, oldest first. */
  get textWithHistory(): string {
    return `${this.text.slice(0, -1)},"history":${JSON.stringify(this.#history())}}`;
  }

  /** Most of its dials of the last minute failed. */
  isFailing(address: string): boolean {
    const { dials, failures } = this.#lastMinute(address);
    return dials > 0 && failures > dials / 2;
  }

  /** Of those who were dialled there last, ten seconds or a minute ago at most, nobody was turned away. */
  isAnswering(address: string): boolean {
    for (const before of this.#samples.slice(-MINUTE_SAMPLES - 1).reverse()) {
      const { dials, failures } = this.#since(before, address);
      if (dials > 0) return failures === 0;
    }
    return false;
  }

  // ---- what is kept

  #sample(numbers: ProxyNumbers): void {
    const { counters, meters, upstreams, workers } = numbers;
    const turn = meterAt("turn");
    this.#samples.push({
      counters,
      meters,
      upstreams: new Map(
        upstreams.map(({ address, dials, dialFailures, handshakeFailures }) => [
          address, { dials, failures: dialFailures + handshakeFailures },
        ]),
      ),
      turns: new Map(workers.map((worker) => [worker.number, worker.meters.slice(turn, turn + BUCKETS)])),
    });
    if (this.#samples.length > HISTORY_SECONDS / SAMPLE_SECONDS + 1) this.#samples.shift();
    const old = this.#samples.at(-MINUTE_SAMPLES - 2);
    if (old !== undefined) {
      old.meters = null;
      old.turns = null;
    }
  }

  /** What stood a minute ago; undefined: the process is younger, and all that it has counted is of the last minute. */
  get #minuteAgo(): Sample | undefined {
    return this.#samples.at(-MINUTE_SAMPLES - 1);
  }

  #lastMinute(address: string): { dials: number; failures: number } {
    return this.#since(this.#minuteAgo, address);
  }

  #since(sample: Sample | undefined, address: string): { dials: number; failures: number } {
    const state = this.#now?.numbers.upstreams.find((each) => each.address === address);
    const before = sample?.upstreams.get(address);
    return {
      dials: (state?.dials ?? 0) - (before?.dials ?? 0),
      failures: (state === undefined ? 0 : state.dialFailures + state.handshakeFailures) - (before?.failures ?? 0),
    };
  }

  // ---- what is shown

  #snapshot(): object {
    const { program, mode, draining, writable, problems, survey, now } = this.#sources;
    const { numbers } = this.#now!;
    const { counters } = numbers;
    const [last, previous] = [this.#seconds.at(-1)!, this.#seconds.at(-2)];
    const rate = (key: Exclude<keyof Second, "atMs">): number => perSecond(last[key], previous?.[key], last.atMs, previous?.atMs);
    const wrong = problems();
    const nowMs = now();
    return {
      version: numbers.version, node: process.version, pid: process.pid, hostname: hostname(), program,
      now: (performance.timeOrigin + nowMs) / 1000, started: performance.timeOrigin / 1000, uptime_seconds: Math.round(nowMs) / 1000,
      state: draining() ? "draining" : "serving",
      ready: wrong.length === 0, problems: wrong, writable: writable(), mode: mode(),
      listen: numbers.backlogs.map(({ address, role, waiting, max }) => ({ address, role, waiting, waiting_max: max })),
      tunnels: { active: counters[TUNNELS]!, max: numbers.tunnelsMax, states: survey.states },
      totals: {
        accepted: counters[ACCEPTED]!, refused: counters[REFUSED_FULL]!, ended: last.ended, failed: last.failed,
        bytes_up: counters[BYTES_UP]!, bytes_down: counters[BYTES_DOWN]!,
        accept_errors: counters[ACCEPT_ERRORS]!, log_dropped: numbers.logDropped,
      },
      rates: {
        accepted_per_second: rate("accepted"), refused_per_second: rate("refused"), ended_per_second: rate("ended"),
        failed_per_second: rate("failed"), bytes_up_per_second: rate("bytesUp"), bytes_down_per_second: rate("bytesDown"),
      },
      endings: this.#endings(counters),
      latency: this.#latency(numbers.meters),
      upstreams: this.#upstreams(),
      egress: this.#egress(),
      egress_addresses: this.#now!.addresses.length,
      rules: this.#sources.denied(),
      names: namesOf(this.#sources.names()),
      destinations: survey.destinations,
      slowest: survey.slowest,
      workers: numbers.workers.map((worker, index) => this.#worker(worker, index)),
      fds: numbers.fds,
    };
  }

  #endings(counters: Float64Array): object[] {
    const minute = this.#minuteAgo?.counters;
    const minutes = this.#samples.at(-HISTORY_SECONDS / SAMPLE_SECONDS - 1)?.counters;
    return REASONS.map((reason) => {
      const at = endingAt(reason);
      const total = counters[at]!;
      return {
        reason, result: resultOf(reason), meaning: KINDS[reason].meaning, total,
        last_minute: total - (minute?.[at] ?? 0), last_5_minutes: total - (minutes?.[at] ?? 0),
      };
    })
      .filter(({ total }) => total > 0)
      .sort((a, b) => b.last_5_minutes - a.last_5_minutes || b.total - a.total);
  }

  #latency(meters: Float64Array): object {
    const before = this.#minuteAgo?.meters ?? null;
    const of = (meter: Meter, unit: number): object => quantiles(meters, before, meterAt(meter), unit);
    return { dial: of("dial", 1e-6), handshake: of("handshake", 1e-6), first_byte: of("firstByte", 1e-6), duration: of("duration", 1e-3) };
  }

  #upstreams(): object[] {
    const kinds = this.#sources.upstreamKinds();
    return this.#now!.numbers.upstreams.map((state) => {
      const { address, active, dials, dialFailures, handshakeFailures, drained } = state;
      const before = this.#before?.numbers.upstreams.find((each) => each.address === address);
      const lately = this.#lastMinute(address);
      const health = drained ? "drained" : this.isFailing(address) ? "failing" : lately.dials > 0 ? "ok" : "unknown";
      return {
        address, name: kinds.get(address)?.name ?? address, kind: kinds.get(address)?.kind ?? null, health, drained, active, dials,
        dial_failures: dialFailures, handshake_failures: handshakeFailures,
        dials_per_second: this.#perSecond(dials, before?.dials),
        failures_last_minute: lately.failures,
      };
    });
  }

  #egress(): object[] {
    const before = new Map(this.#before?.addresses.map(({ address, opened }) => [address, opened]));
    const all = this.#now!.addresses.map(({ address, active, opened, failed, spilled }) => {
      const health = this.#sources.health(address);
      return {
        address, health: health?.state ?? "gone", usable: health?.usable ?? false, active, opened, failed, spilled,
        opened_per_second: this.#perSecond(opened, before.get(address)),
      };
    });
    if (all.length <= EGRESS_MAX) return all;
    const isWell = ({ health }: { readonly health: string }): number => Number(health === "ok");
    return all.sort((a, b) => isWell(a) - isWell(b) || b.active - a.active).slice(0, EGRESS_MAX);
  }

  #worker({ number, counters, limits, state, full, meters, incarnation }: WorkerView, index: number): object {
    const { numbers, turns, splices } = this.#now!;
    const past = this.#before?.numbers.workers.findIndex((each) => each.number === number) ?? -1;
    const cpu = numbers.cpuSeconds[index]!;
    const cpuBefore = this.#before?.numbers.cpuSeconds[past] ?? null;
    const splice = meterAt("splice");
    const spliced = countOf(meters, splice);
    return {
      worker: number, state, tunnels: counters[TUNNELS]!,
      cpu_ratio: cpu === null || cpuBefore === null ? null : this.#perSecond(cpu, cpuBefore),
      turns_per_second: this.#perSecond(turns[index]!, this.#before?.turns[past]),
      lag: lagOf(meters, this.#minuteAgo?.turns?.get(number) ?? null),
      pipes_lent: counters[PIPES_LENT]!, pipes_max: limits.pipes,
      buffers_lent: counters[BUFFERS_LENT]!, buffers_max: limits.buffers,
      splices_per_second: this.#perSecond(splices[index]!, this.#before?.splices[past]),
      bytes_per_splice: spliced === 0 ? null : Math.round(meters[splice + BUCKETS]! / spliced),
      full, lives: incarnation + 1,
    };
  }

  #perSecond(now: number, before: number | undefined): number {
    return perSecond(now, before, this.#now!.atMs, this.#before?.atMs);
  }

  #history(): object {
    const rates = (key: Exclude<keyof Second, "atMs">): number[] =>
      this.#seconds.slice(1).map((second, i) => perSecond(second[key], this.#seconds[i]![key], second.atMs, this.#seconds[i]!.atMs));
    return {
      step_seconds: 1, until: Math.round((performance.timeOrigin + this.#now!.atMs) / 1000),
      bytes_up_per_second: rates("bytesUp"), bytes_down_per_second: rates("bytesDown"),
      accepted_per_second: rates("accepted"), ended_per_second: rates("ended"), failed_per_second: rates("failed"),
      active: this.#seconds.slice(1).map(({ active }) => active),
    };
  }
}

function momentOf({ numbers, addresses, now }: StatusSources): Moment {
  const read = numbers();
  return {
    atMs: now(), numbers: read, addresses: addresses(),
    turns: read.workers.map(({ counters }) => counters[TURNS]!),
    splices: read.workers.map(({ meters }) => countOf(meters, meterAt("splice"))),
  };
}

function secondOf({ numbers: { counters }, atMs }: Moment): Second {
  const ended = REASONS.reduce((sum, reason) => sum + counters[endingAt(reason)]!, 0);
  return {
    atMs, ended,
    accepted: counters[ACCEPTED]!, refused: counters[REFUSED_FULL]!,
    failed: endedWith(counters, "upstream") + endedWith(counters, "internal"),
    bytesUp: counters[BYTES_UP]!, bytesDown: counters[BYTES_DOWN]!, active: counters[TUNNELS]!,
  };
}

/** 0 where nothing is known of before. */
function perSecond(now: number, before: number | undefined, nowMs: number, beforeMs: number | undefined): number {
  if (before === undefined || beforeMs === undefined || nowMs <= beforeMs) return 0;
  return Math.max(0, Math.round(((now - before) / (nowMs - beforeMs)) * 1e6) / 1000);
}

const namesOf = ({ fromCache, asked, asking }: NamesStats): object => ({
  cache_hits: fromCache, cache_misses: asked, in_flight: asking,
});

const countOf = (numbers: Float64Array, at: number): number => {
  let count = 0;
  for (let bucket = 0; bucket < BUCKETS; bucket++) count += numbers[at + bucket]!;
  return count;
};

/** Of what was counted since `before`, in seconds; as the upper end of the bucket that it lies in. */
function quantiles(numbers: Float64Array, before: Float64Array | null, at: number, unit: number): object {
  const counts = new Float64Array(BUCKETS);
  for (let bucket = 0; bucket < BUCKETS; bucket++) counts[bucket] = numbers[at + bucket]! - (before?.[at + bucket] ?? 0);
  return { count: countOf(counts, 0), ...quantilesOf(counts, unit) };
}

function lagOf(meters: Float64Array, before: Float64Array | null): object {
  const at = meterAt("turn");
  const counts = meters.slice(at, at + BUCKETS);
  if (before !== null) for (let bucket = 0; bucket < BUCKETS; bucket++) counts[bucket]! -= before[bucket]!;
  const { p90_seconds: _, ...lag } = quantilesOf(counts, 1e-6);
  return { count: countOf(counts, 0), ...lag };
}

function quantilesOf(counts: Float64Array, unit: number) {
  const count = countOf(counts, 0);
  const quantile = (share: number): number | null => {
    if (count === 0) return null;
    let left = Math.max(1, Math.ceil(count * share));
    for (let bucket = 0; bucket < BUCKETS; bucket++) {
      left -= counts[bucket]!;
      if (left <= 0) return Number((leastOf(bucket + 1) * unit).toPrecision(4));
    }
    return null;
  };
  return { p50_seconds: quantile(0.5), p90_seconds: quantile(0.9), p99_seconds: quantile(0.99), max_seconds: quantile(1) };
}
