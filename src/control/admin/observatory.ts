/**
 * Everything by which the running program is looked at, put together: the pages of metrics, the admin
 * endpoint, and what they are made of. It reads what workers and the control plane have written, and
 * has its own sockets, which move with the configuration.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { TCPI_UNACKED, TCP_INFO, SOL_TCP } from "../../../native-bindings/constants.ts";
import type { Memory, Syscalls } from "../../../native-bindings/syscalls.ts";
import type { Config } from "../../config/config.ts";
import { shownConfig } from "../../config/shown.ts";
import { JOURNAL_DROPPED, threadName } from "../../engine/counters.ts";
import type { TraceStep } from "../../engine/trace.ts";
import { Admin, type AdminOptions } from "./admin.ts";
import type { EgressControl } from "../egress.ts";
import type { Fleet, WorkerView } from "../fleet.ts";
import { type HttpAddress, type HttpOptions, HttpServers } from "./http-server.ts";
import type { Listeners } from "../listeners.ts";
import type { Log } from "../log/log.ts";
import type { Fields } from "../log/line.ts";
import { MetricsPage } from "./metrics.ts";
import { type Backlog, ProxyMetrics, type ProxyNumbers } from "./proxy-metrics.ts";
import { probe } from "../probe.ts";
import { Readiness, type UpstreamView } from "./readiness.ts";
import type { RequestIds } from "../log/request-ids.ts";
import { ProcessUse, ThreadTimes } from "../resources.ts";
import { SocksMetrics } from "./socks-metrics.ts";
import { Status } from "./status.ts";
import { Survey } from "./survey.ts";
import { Traces } from "./traces.ts";
import { type Tunnel, type TunnelPage, Tunnels } from "./tunnels.ts";
import type { Upstreams } from "../upstreams.ts";

export interface Observed {
  readonly sys: Syscalls;
  readonly log: Log;
  readonly fleet: Fleet;
  readonly egress: EgressControl;
  readonly upstreams: Upstreams;
  readonly listeners: Listeners;
  readonly ids: RequestIds;
  readonly passed: NonNullable<HttpOptions["passed"]>;
  /** What it is called, and of which version. */
  readonly program: string;
  readonly version: string;
  readonly files: AdminOptions["files"];
  readonly config: () => Config;
  readonly tunnelsMax: () => number;
  readonly nofile: number;
  readonly stopping: () => boolean;
  /** Another upstream's address is to be dialled, or none any more. */
  readonly onDrain: () => void;
}

/** Where a struct tcp_info of a listening socket has its queue (net/ipv4/tcp.c, tcp_get_info). */
const TCPI_SACKED = 28;
const TCP_INFO_BYTES = 32;
/** A request for /readyz has not much more time. */
const PROBE_MS = 2000;
/** Lines of a list of connections, and the time between so many and the next. */
const LOGGED_AT_ONCE = 500;
const LOGGED_MS = 50;
/** For a worker to close a tunnel that it was told to. */
const CLOSED_MS = 1000;
const LOOK_AGAIN_MS = 5;

export class Observatory {
  readonly #observed: Observed;
  readonly #status: Status;
  readonly #tunnels: Tunnels;
  readonly #readiness: Readiness;
  readonly #metrics: HttpServers;
  readonly #admin: Admin;
  readonly #traces: Traces;
  readonly #threads: ThreadTimes;
  readonly #use = new ProcessUse();
  readonly #info: Memory;
  /** Where metrics are served, as was asked for last. */
  #metricsAt: readonly HttpAddress[] = [];
  #adminAt: Config["admin"] = null;

  constructor(observed: Observed) {
    const { sys, log, fleet, egress, upstreams, ids, passed } = observed;
    this.#observed = observed;
    this.#info = sys.memory(TCP_INFO_BYTES);
    this.#threads = new ThreadTimes(sys);
    const counted = {
      addresses: () => fleet.exits.addresses(),
      denied: () => fleet.exits.denied(),
      health: (address: string) => egress.health(address),
      names: () => egress.names.stats,
    };
    // Main is not preempted within its slice, and a scrape's millisecond is less: whose CPU it has, would wait for all of it.
    const makeWay = (): void => void sys.sched_yield();
    this.#tunnels = new Tunnels({
      ids,
      workers: () => fleet.workers,
      upstreams: () => fleet.upstreams.names(),
      exits: () => fleet.exits.names(),
      mode: () => observed.config().mode,
      makeWay,
    });
    const upstreamNames = (): ReadonlyMap<number, string> => fleet.upstreams.names();
    this.#status = new Status({
      ...counted,
      makeWay,
      numbers: () => this.#numbers(),
      survey: new Survey({
        tunnels: this.#tunnels, ids, upstreamNames,
        now: () => performance.timeOrigin + performance.now(),
      }),
      upstreamKinds: () => upstreams.kinds(observed.config()),
      program: observed.program,
      mode: () => (observed.config().upstream === null ? null : observed.config().mode),
      draining: observed.stopping,
      writable: () => this.#admin.writable,
      problems: () => this.#readiness.problems,
      now: () => performance.now(),
    });
    this.#readiness = new Readiness({
      stopping: observed.stopping,
      workers: () => fleet.workers,
      upstreams: () => upstreams.dialled(observed.config()),
      isFailing: (address) => this.#status.isFailing(address),
      isAnswering: (address) => this.#status.isAnswering(address),
      probe: (upstream) => this.#probe(upstream),
      noExit: () => egress.noExit,
    });
    const page = new MetricsPage([
      new SocksMetrics({ serves: () => observed.config().egress !== null, socks: () => fleet.socks, ...counted }),
      new ProxyMetrics(() => this.#numbers()),
    ], makeWay);
    this.#metrics = new HttpServers({
      purpose: "metrics", log, passed, methods: ["GET", "HEAD"],
      answer: (request, response) => page.answer(request, response),
    });
    this.#traces = new Traces({
      ids,
      ask: (questions) => {
        fleet.trace(questions);
        return fleet.obeyed();
      },
    });
    this.#admin = new Admin({
      traces: this.#traces,
      log, passed, upstreamNames,
      metrics: page,
      status: this.#status,
      tunnels: this.#tunnels,
      readiness: this.#readiness,
      files: observed.files,
      config: () => shownConfig(observed.config()),
      closeTunnel: (name) => this.#closeTunnel(name),
      drain: (address, drained) => this.#drain(address, drained),
    });
  }

  /** Serves what the configuration says, where it says so; or answers what stands against it. */
  async move({ egress, admin }: Config): Promise<string[]> {
    const metrics = egress?.metrics ?? [];
    const wrong = await this.#metrics.move(metrics);
    if (wrong.length > 0) return wrong;
    const refused = await this.#admin.move(admin);
    if (refused.length > 0) {
      await this.#metrics.move(this.#metricsAt);
      return refused;
    }
    this.#metricsAt = metrics;
    this.#adminAt = admin;
    return [];
  }

  /** To be called once a second. */
  tick(): void {
    this.#status.tick();
    if (this.#adminAt !== null) this.#admin.tick();
  }

  /** The connections that are open, in the log: as redsocks does at USR1. */
  async logTunnels(): Promise<void> {
    const { log } = this.#observed;
    const say = (message: string, fields: Fields, key: string): void =>
      log.enabled("info") ? log.info(message, fields) : log.warning(message, fields, undefined, key);
    let count = 0;
    for (let after: string | null = ""; after !== null;) {
      const page: TunnelPage | null = await this.#tunnels.page(() => true, LOGGED_AT_ONCE, after);
      for (const tunnel of page?.tunnels ?? []) say("client", fieldsOf(tunnel), tunnel.id);
      count += page?.tunnels.length ?? 0;
      after = page?.next ?? null;
      // The log is bounded: what is said faster than it is written would be lost.
      if (after !== null) await sleep(LOGGED_MS);
    }
    say("clients", { count }, `${count}`);
  }

  /** A worker tells a step of a connection that somebody follows. */
  step(step: TraceStep, worker: WorkerView): void {
    this.#traces.step(step, worker);
  }

  /** Somebody else has the addresses from now on. */
  async close(reason: string): Promise<void> {
    await Promise.all([this.#metrics.close(), this.#admin.close(reason)]);
  }

  /** A connection, and not a word: to an upstream's log it is nobody. */
  async #probe({ addresses }: UpstreamView): Promise<string | null> {
    const { sys, config } = this.#observed;
    const identity = { mark: config().mark, uid: null };
    const outcomes = await Promise.all(addresses.map(async (to) => {
      const outcome = await probe({ sys, to, identity, kind: "socks4", credentials: null, patienceMs: PROBE_MS });
      return outcome.ok ? null : `${to.text}: ${outcome.detail}`;
    }));
    return outcomes.includes(null) ? null : outcomes.join(", ");
  }

  #numbers(): ProxyNumbers {
    const { fleet, log, upstreams, nofile, tunnelsMax, version } = this.#observed;
    const { workers, counters } = fleet;
    const drained = upstreams.drained;
    const use = this.#use.at(performance.now());
    return {
      counters,
      meters: fleet.meters,
      workers,
      cpuSeconds: workers.map(({ number, incarnation }) => this.#threads.seconds(threadName(number), incarnation)),
      replacements: fleet.replacements,
      // Of the ends, the workers' journals may have had no room for some.
      logDropped: log.dropped + counters[JOURNAL_DROPPED]!,
      tunnelsMax: tunnelsMax(),
      upstreams: fleet.upstreams.counts().map((counts) => ({
        ...counts, drained: drained.has(counts.address), healthy: !this.#status.isFailing(counts.address),
      })),
      backlogs: this.#backlogs(),
      fds: { open: use.fds, limit: nofile },
      residentBytes: use.residentBytes,
      ready: this.#readiness.problems.length === 0,
      version,
    };
  }

  #backlogs(): Backlog[] {
    const { sys, listeners } = this.#observed;
    const { view } = this.#info;
    return listeners.open.map(({ address, role, fds }) => {
      let [waiting, max] = [0, 0];
      for (const fd of fds) {
        if (sys.getsockopt(fd, SOL_TCP, TCP_INFO, this.#info, 0, TCP_INFO_BYTES) < 0) continue;
        waiting += view.getUint32(TCPI_UNACKED, true);
        max += view.getUint32(TCPI_SACKED, true);
      }
      return { address: address.text, role, waiting, max };
    });
  }

  async #closeTunnel(name: string): Promise<boolean> {
    const found = this.#tunnels.find(name);
    if (found === null) return false;
    this.#observed.fleet.closeTunnel(found.worker, found.row, found.id);
    const untilMs = performance.now() + CLOSED_MS;
    while (performance.now() < untilMs && this.#tunnels.find(name) !== null) await sleep(LOOK_AGAIN_MS);
    return true;
  }

  async #drain(address: string, drained: boolean): Promise<"done" | "unknown" | "last"> {
    const { upstreams, config, fleet, onDrain } = this.#observed;
    const outcome = upstreams.setDrained(config(), address, drained);
    if (outcome !== "done") return outcome;
    onDrain();
    await fleet.obeyed();
    return "done";
  }
}

/** In the words of the access log. */
const fieldsOf = (tunnel: Tunnel): Fields => ({
  client_addr: tunnel.client,
  dest_addr: tunnel.destination ?? "",
  elapsed: tunnel.age_seconds,
  idle: tunnel.idle_seconds,
  request_id: tunnel.id,
  rx_bytes: tunnel.bytes_down,
  state: tunnel.state,
  tx_bytes: tunnel.bytes_up,
  type: "client",
});
