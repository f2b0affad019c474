/**
 * The running program: from a Config to workers that accept, through reloads, to the end.
 */
import { availableParallelism, networkInterfaces } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import {
  EPERM,
  SO_MARK,
  SOCK_CLOEXEC,
  SOCK_STREAM,
  SOL_SOCKET,
  AF_INET,
} from "../../native-bindings/constants.ts";
import type { Syscalls } from "../../native-bindings/syscalls.ts";
import type { Config } from "../config/config.ts";
import { socketAddress } from "../config/endpoint.ts";
import { ACCEPTED, BYTES_DOWN, BYTES_UP, endingAt } from "../engine/counters.ts";
import { KINDS, REASONS } from "../engine/ending.ts";
import { STATUS, STATUS_NAMES } from "../engine/socks-counters.ts";
import { budget, DEFAULTS, FDS_MAX, type Limits } from "../engine/limits.ts";
import type { Settings } from "../engine/route.ts";
import { exactly, type Network } from "../policy/network.ts";
import { addressOf } from "../policy/own.ts";
import { AccessLog } from "./log/access-log.ts";
import type { Activation } from "./activation.ts";
import { EgressControl, exitText } from "./egress.ts";
import { Fleet, WORKERS_MAX } from "./fleet.ts";
import { Learner } from "./firewall/learner.ts";
import { errnoText, type ListeningAddress, Listeners } from "./listeners.ts";
import { AddressNews, localRoutes } from "./local-routes.ts";
import type { Log } from "./log/log.ts";
import { Observatory } from "./admin/observatory.ts";
import { pageFiles } from "./admin/page.ts";
import { RequestIds } from "./log/request-ids.ts";

import { Reign } from "./firewall/reign.ts";
import { lanesOf, type SynQueue, SynQueues } from "./syn-queues.ts";
import type { Outcome } from "./pid-file.ts";
import type { ServiceManager } from "./systemd.ts";
import type { Traffic } from "./traffic.ts";
import { type Inherited, startSuccessor } from "./upgrade.ts";
import { Upstreams } from "./upstreams.ts";
import { makeWay, openFds, pipesAllowed, raiseNofile } from "./resources.ts";

const TICK_MS = 1000;
const OBSERVED_AGAIN_MS = 50;
const OBSERVED_ATTEMPTS = 100;
/** What a thread of Node opens for itself, and our epoll and eventfd. */
const FDS_PER_WORKER = 6;
/** What it opens besides, the first time that it needs it, where SYNs are held. */
const FDS_PER_HOLDER = 3;
/** The kernel tells of addresses that change; of a network that is routed to lo it does not. */
const ROUTES_TICKS = 10;
/** After the workers were told to cut, they have no reason to stay. */
const CUT_MS = 2000;

/** Not the client's doing, and not a far end's that had accepted. */
const FAILURES = REASONS.filter((reason) => {
  const { blame } = KINDS[reason];
  return blame === "upstream" || blame === "us" || (blame === "server" && reason !== "server-reset");
});

export class Service {
  readonly #sys: Syscalls;
  readonly #log: Log;
  readonly #manager: ServiceManager;
  readonly #activation: Activation;
  readonly #listeners: Listeners;
  readonly #fleet: Fleet;
  readonly #queues: SynQueues;
  readonly #upstreams: Upstreams;
  readonly #egress: EgressControl;
  readonly #reign: Reign;
  readonly #observatory: Observatory;
  readonly #learner: Learner;
  readonly #nofile: number;
  #config: Config;
  readonly #addressNews: AddressNews;
  #local: readonly Network[] = [];
  #limits: Limits = DEFAULTS;
  #tunnelsMax = 0;
  /** Open before there are workers and connections. */
  #baseFds = 0;
  #ticks = 0;
  #dialFailures = 0;
  #timer: NodeJS.Timeout | null = null;
  #stopping = false;
  #deadline: NodeJS.Timeout | undefined;

  constructor(
    sys: Syscalls, log: Log, config: Config, manager: ServiceManager, activation: Activation,
    called: { readonly program: string; readonly version: string },
  ) {
    this.#sys = sys;
    this.#manager = manager;
    this.#activation = activation;
    this.#log = log;
    this.#config = config;
    this.#nofile = raiseNofile(sys);
    makeWay(sys);
    this.#listeners = new Listeners(sys);
    this.#addressNews = new AddressNews(sys);
    const ids = new RequestIds();
    const accessLog = new AccessLog(log, ids);
    this.#fleet = new Fleet({
      sys,
      log,
      ledgerFds: Math.min(this.#nofile, FDS_MAX),
      onRecord: (record, worker) => {
        accessLog.write(record, worker);
        this.#learner.hear(record);
      },
      onQuestion: (question) => this.#egress.answer(question),
      onStep: (step, worker) => this.#observatory.step(step, worker),
      onHeld: (held) => this.#queues.letGo(held),
    });
    this.#queues = new SynQueues(sys);
    const onChange = (): void => {
      if (this.#fleet.size > 0) this.#fleet.configure(this.#settings());
    };
    this.#upstreams = new Upstreams({
      log,
      counters: this.#fleet.upstreams,
      onChange: () => {
        onChange();
        void this.#reign.follow();
      },
    });
    this.#learner = new Learner({ log });
    this.#reign = new Reign({ sys, log, upstreams: this.#upstreams });
    this.#egress = new EgressControl({ sys, log, counters: this.#fleet.exits, onChange });
    this.#observatory = new Observatory({
      sys, log, ids, ...called,
      fleet: this.#fleet,
      egress: this.#egress,
      upstreams: this.#upstreams,
      listeners: this.#listeners,
      passed: (address) => activation.take(address),
      files: pageFiles(),
      config: () => this.#config,
      tunnelsMax: () => this.#tunnelsMax,
      nofile: this.#nofile,
      stopping: () => this.#stopping,
      onDrain: onChange,
    });
  }

  /**
   * Resolves when connections are accepted; or with what stands against it. `passed`: the service
   * manager's listening sockets. `serves` is called before anybody hears of it.
   */
  async start(
    inherited: Inherited | null, passed: readonly ListeningAddress[], serves: () => void,
  ): Promise<string[]> {
    const config = this.#config;
    const unfit = this.#listeners.adoptPassed(passed, config.mode)
      ?? (inherited === null ? null : this.#listeners.adopt(inherited.listening));
    if (unfit !== null) return [unfit];
    const workers = this.#workersOf(config);
    const refused = this.#refusal(config);
    if (refused !== null) return [refused];
    const listening = this.#listeners.openNew(config, workers);
    if ("wrong" in listening) return listening.wrong;
    for (const text of listening.missing) {
      this.#log.warning("an address is not listened on: this host does not have it", {
        address: text,
      });
    }
    this.#queues.adopt(inherited?.queues ?? []);
    const untruthful = this.#openQueues(config);
    if ("wrong" in untruthful) return [untruthful.wrong];
    for (const gone of this.#queues.obsolete(config)) this.#queues.close(gone);
    this.#upstreams.adoptDrained(inherited?.drained ?? []);
    // The process before still has its ports: see below.
    const wrong = inherited === null ? await this.#observatory.move(config) : [];
    if (wrong.length > 0) return wrong;
    await this.#upstreams.follow(config);
    const plan = budget(this.#nofile, openFds() + fdsOf(workers, config), this.#pipesOf(config));
    if (plan === null) return [this.#tooFewFds(workers)];
    this.#limits = {
      ...DEFAULTS,
      tunnels: plan.tunnels,
      pipes: Math.floor(plan.pipes / workers),
      pipeBytes: config.limits.pipeBytes,
    };
    this.#local = ownNetworks(this.#sys);
    this.#egress.configure(config);
    this.#learner.configure(config.connect.learnMs);
    if (!(await this.#fleet.grow(workers, this.#limits, this.#settings()))) {
      return [`a worker died at its start; ${this.#tooFewFds(workers)}`];
    }
    // Now that every thread has opened what it needs, it is known what is left.
    this.#baseFds = openFds() - fdsOf(workers, config);
    if (!this.#setTunnelsMax(config)) return [this.#tooFewFds(workers)];
    // Inherited, and not in the configuration any more: the process before takes what stands there.
    for (const gone of this.#listeners.obsolete(config)) this.#listeners.close(gone);
    this.#fleet.hold(this.#queues.open, this.#listeners.fewest);
    for (const { fds, role } of this.#listeners.open) this.#fleet.listen(fds, role);
    const unruled = await this.#reign.begin(config, inherited?.engaged);
    if (unruled.length > 0) return unruled;
    this.#timer = setInterval(() => this.#tick(), TICK_MS);
    this.#log.info("transplice is ready", {
      listen: this.#listeners.open.map(({ address }) => address.text).join(" "),
      ...describe(config),
      workers,
      max_connections: this.#tunnelsMax,
      nofile: this.#nofile,
    });
    // Whoever hears that we are ready finds us by our pid file.
    serves();
    this.#manager.ready(this.status);
    if (inherited === null) return [];
    await this.#reign.confirm();
    inherited.ready();
    void this.#observe();
    return [];
  }

  /**
   * The queues of SYNs that the configuration wants. Where they cannot be had it says so, and goes on
   * without, unless that was ruled out.
   */
  #openQueues(config: Config): { opened: readonly SynQueue[] } | { wrong: string } {
    const { truthful } = config.connect;
    if (truthful === null) {
      this.#listeners.setTruthful(null);
      return { opened: [] };
    }
    const done = this.#queues.openNew(truthful.queue, lanesOf(this.#workersOf(config)), truthful.answer === "raw");
    if ("wrong" in done && truthful.required) return done;
    if ("wrong" in done) {
      this.#log.error("connections are as they were without connect.truthful", { error: done.wrong });
      return { opened: [] };
    }
    const result = this.#listeners.setTruthful(truthful.markShift);
    if (result < 0) this.#log.warning("connections are not led to the worker that dials for them", { error: errnoText(-result) });
    return done;
  }

  /** The process before lets go of them as soon as it has heard that this one serves. */
  async #observe(): Promise<void> {
    let wrong: string[] = [];
    for (let attempt = 0; attempt < OBSERVED_ATTEMPTS && !this.#stopping; attempt++) {
      wrong = await this.#observatory.move(this.#config);
      if (wrong.length === 0) return;
      await sleep(OBSERVED_AGAIN_MS);
    }
    for (const text of wrong) this.#log.error("no metrics, no admin endpoint", { error: text });
  }

  /**
   * Starts this program anew beside this process, which then only drains. Answers what stands
   * against it; then nothing has changed.
   */
  async handOver(env: NodeJS.ProcessEnv): Promise<Outcome> {
    const passed = this.#activation.sockets;
    await this.#reign.pause();
    const outcome = await startSuccessor(
      {
        listening: this.#listeners.open, queues: this.#queues.open, passed, engaged: this.#reign.isEngaged,
        drained: [...this.#upstreams.drained],
      },
      env,
    );
    if ("wrong" in outcome) {
      await this.#reign.resume();
      return outcome;
    }
    this.#manager.handedOver(outcome.pid);
    this.#log.warning("another process has taken over", { successor: outcome.pid });
    return outcome;
  }

  /** `isChain`: what the relay hands over comes back to the egress of this same process. */
  traffic(isChain: boolean): Traffic {
    const fleet = this.#fleet;
    const { socks } = fleet;
    const asked = isChain
      ? ([0, 4, 5] as const).flatMap((version) => STATUS_NAMES.map((name) => socks.requests(version, STATUS[name])))
      : [];
    const sum = (numbers: readonly number[]): number => numbers.reduce((all, each) => all + each, 0);
    const hops = isChain ? 2 : 1;
    return {
      connections: fleet.total(ACCEPTED) - sum(asked),
      active: Math.round(fleet.tunnels / hops),
      bytesIn: fleet.total(BYTES_DOWN) / hops,
      bytesOut: fleet.total(BYTES_UP) / hops,
      // In a chain each failure of the egress is one of the relay, too.
      failed: sum(FAILURES.filter((reason) => !isChain || !/^(dest|name)-/.test(reason)).map((reason) => fleet.total(endingAt(reason)))),
    };
  }

  /** Why rules of ours do not stand yet, or null. */
  get waiting(): string | null {
    return this.#reign.isEngaged ? null : this.#reign.status;
  }

  /** The connections that are open, in the log. */
  logTunnels(): Promise<void> {
    return this.#observatory.logTunnels();
  }

  /** For the service manager: how it is, in a few words. */
  get status(): string {
    const rules = this.#reign.status;
    return `${this.#fleet.tunnels} of at most ${this.#tunnelsMax} connections, ${this.#fleet.size} workers${rules === "" ? "" : `, ${rules}`}`;
  }

  /**
   * Takes on another configuration, or none of it: answers what stands against it. Connections
   * that exist keep what they were begun with; the listening sockets of addresses that stay are
   * never closed.
   */
  async reload(config: Config): Promise<string[]> {
    const refused = this.#refusal(config);
    if (refused !== null) return [refused];
    const old = this.#config;
    const listening = this.#listeners.openNew(config, this.#workersOf(config));
    if ("wrong" in listening) return listening.wrong;
    const queues = this.#openQueues(config);
    const undo = (): void => {
      for (const added of listening.opened) this.#listeners.close(added);
      if ("opened" in queues) for (const added of queues.opened) this.#queues.close(added);
    };
    if ("wrong" in queues) {
      undo();
      return [queues.wrong];
    }
    const unobserved = await this.#observatory.move(config);
    if (unobserved.length > 0) {
      undo();
      return unobserved;
    }
    if (config.mode !== old.mode) {
      const result = this.#listeners.setMode(config.mode);
      if (result < 0) {
        this.#listeners.setMode(old.mode);
        await this.#observatory.move(old);
        undo();
        return [`mode: setsockopt IP_TRANSPARENT: ${errnoText(-result)}; it needs CAP_NET_ADMIN`];
      }
    }
    await this.#upstreams.follow(config);
    if (this.#stopping) return [];
    // The new listeners stand, and those of before do: what comes waits for a moment in either's backlog.
    const unruled = await this.#reign.change(config);
    if (unruled.length > 0) {
      await this.#upstreams.follow(old);
      if (config.mode !== old.mode) this.#listeners.setMode(old.mode);
      await this.#observatory.move(old);
      undo();
      return unruled;
    }
    // While the old settings hold: what stands in the backlog of an egress that goes would find none,
    // and what was redirected to a proxy that goes would be led past its upstream.
    for (const gone of this.#listeners.obsolete(config)) {
      await this.#fleet.unlisten(gone.fds);
      this.#listeners.close(gone);
    }
    const gone = this.#queues.obsolete(config);
    await this.#fleet.unhold(gone, true);
    for (const queue of gone) this.#queues.close(queue);
    this.#config = config;
    this.#egress.configure(config);
    this.#learner.configure(config.connect.learnMs);
    const settings = this.#settings();
    this.#fleet.configure(settings);
    if (!this.#setTunnelsMax(config)) this.#log.error(this.#tooFewFds(this.#workersOf(config)));
    await this.#fleet.grow(this.#workersOf(config), this.#limits, settings);
    this.#fleet.hold(queues.opened, this.#listeners.fewest);
    for (const { fds, role } of this.#listeners.open) this.#fleet.listen(fds, role);
    await this.#fleet.shrink(this.#workersOf(config));
    // What is said to be taken on holds for whoever comes next.
    await this.#fleet.obeyed();
    if (
      config.limits.pipes !== old.limits.pipes ||
      config.limits.pipeBytes !== old.limits.pipeBytes
    ) {
      this.#log.warning(
        "limits.pipes and limits.pipe_size are taken on by workers at their next start",
      );
    }
    return [];
  }

  /**
   * Refuses new connections at once (but for a successor, who has the listening sockets), lets the
   * others end, and resets what is left at the end. With a successor there is no end: nobody waits.
   */
  async stop(successor = false): Promise<void> {
    this.#stopping = true;
    if (!successor) this.#manager.stopping(`waiting for ${this.#fleet.tunnels} connections to end`);
    // Before the listeners go: nobody is to be handed over to where nobody listens.
    await (successor ? this.#reign.leave() : this.#reign.drain());
    this.#upstreams.close();
    this.#learner.close();
    // Who stops is still to be looked at; but a successor wants the ports.
    if (successor) void this.#observatory.close("another process has taken over");
    // A successor reads on; else who is held goes on, and is accepted like any other by the line below.
    await this.#fleet.unhold(this.#queues.open, !successor);
    if (!successor) for (const queue of [...this.#queues.open]) this.#queues.close(queue);
    await this.#fleet.unlisten(this.#listeners.open.flatMap(({ fds }) => fds));
    for (const listening of this.#listeners.open) this.#listeners.close(listening);
    const { drainMs } = this.#config.timeouts;
    const left = this.#fleet.tunnels;
    if (left > 0)
      this.#log.info("waiting for connections to end", {
        connections: left,
        ...(successor ? {} : { seconds: drainMs / 1000 }),
      });
    this.#fleet.drain();
    if (!successor) this.limitDrain();
    await this.#fleet.exited();
    clearTimeout(this.#deadline);
    if (!successor) await this.#reign.end();
    if (!successor) await this.#observatory.close("the process stops");
    this.#egress.close(); // Clients that were still asking had their names resolved.
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#addressNews.close();
  }

  /** While it stops: what is left when `timeouts.drain` has passed is cut. */
  limitDrain(): void {
    this.#deadline = setTimeout(() => {
      this.#log.warning("connections are cut: the drain deadline has passed", {
        connections: this.#fleet.tunnels,
      });
      this.cut();
    }, this.#config.timeouts.drainMs);
  }

  /** The end, now. */
  cut(): void {
    this.#fleet.cut();
    // A worker that does not even obey this goes down with the process.
    setTimeout(() => process.exit(0), CUT_MS).unref();
  }

  #tick(): void {
    this.#ticks++;
    this.#fleet.tick();
    // A worker that hangs is replaced; should even that not help, the manager may end us.
    if (!this.#fleet.hangs) this.#manager.alive(performance.now(), this.status);
    if (!this.#stopping) this.#lookAtAddresses();
    this.#observatory.tick();
    const failures = this.#fleet.dialFailures;
    if (failures !== this.#dialFailures) {
      this.#dialFailures = failures;
      this.#upstreams.refresh();
    }
  }

  #lookAtAddresses(): void {
    const look = this.#addressNews.take() || this.#ticks % ROUTES_TICKS === 0;
    this.#egress.tick(look);
    if (!look) return;
    const local = ownNetworks(this.#sys);
    if (sameNetworks(local, this.#local)) return;
    this.#local = local;
    this.#fleet.configure(this.#settings());
  }

  #settings(): Settings {
    const { timeouts, tcp, limits, mode, mark, connect } = this.#config;
    const { truthful } = connect;
    const lanes = this.#queues.open.length;
    return {
      transparent: this.#config.upstream !== null,
      egress: this.#egress.settings(),
      mode,
      ...this.#upstreams.settings(this.#config, this.#listeners.open),
      unknownAs: connect.unknownAs,
      truthful: truthful === null || lanes === 0 ? null : { ...truthful, lanes },
      mark,
      whenFull: limits.whenFull,
      dialMs: timeouts.dialMs,
      handshakeMs: timeouts.handshakeMs,
      halfClosedMs: timeouts.halfClosedMs,
      idleMs: timeouts.idleMs,
      ...tcp,
      own: {
        // Whoever is redirected to the SOCKS server by the rules is served by it, as any other is.
        listening: this.#listeners.open
          .filter(({ role }) => role === "transparent")
          .map(({ address }) => address.bytes)
          .concat((this.#config.admin?.listen ?? []).flatMap((address) => ("bytes" in address ? [address.bytes] : []))),
        local: this.#local,
      },
      learnt: connect.learnMs === null ? null : this.#learner.shared,
      journalAll: this.#log.enabled("info"),
    };
  }

  /** What max_connections says, as far as the fds carry it. False if they carry nothing. */
  #setTunnelsMax(config: Config): boolean {
    const { maxConnections } = config;
    const workers = this.#workersOf(config);
    const used = this.#baseFds + fdsOf(workers, config);
    const plan = budget(this.#nofile, used, this.#limits.pipes * workers);
    const carried = Math.min(plan?.tunnels ?? 0, this.#limits.tunnels);
    if (carried === 0) return false;
    if (maxConnections !== null && maxConnections > carried) {
      this.#log.warning("max_connections is more than the limit of open files carries", {
        max_connections: maxConnections, carried, nofile: this.#nofile,
      });
    }
    this.#tunnelsMax = Math.min(maxConnections ?? Infinity, carried);
    this.#fleet.setTunnelsMax(this.#tunnelsMax);
    return true;
  }

  #workersOf(config: Config): number {
    return Math.min(config.workers ?? availableParallelism(), WORKERS_MAX);
  }

  #pipesOf(config: Config): number {
    return config.limits.pipes ?? pipesAllowed(config.limits.pipeBytes);
  }

  /** What the kernel would refuse for every single connection is better said now. */
  #refusal(config: Config): string | null {
    if (config.mark === null) return null;
    const fd = this.#sys.socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return null;
    const result = this.#sys.setsockopt(fd, SOL_SOCKET, SO_MARK, config.mark);
    this.#sys.close(fd);
    return result === -EPERM
      ? "mark: this process may not set SO_MARK; give it CAP_NET_ADMIN, or leave `mark` out"
      : null;
  }

  #tooFewFds(workers: number): string {
    return `the limit of open files is ${this.#nofile}, too few for ${workers} workers; raise it (ulimit -n, LimitNOFILE=), or set fewer workers`;
  }
}

const fdsOf = (workers: number, { connect }: Config): number =>
  workers * (FDS_PER_WORKER + (connect.truthful === null ? 0 : FDS_PER_HOLDER));

/** For the log: what it does. */
function describe({ upstream, relays, mode, egress }: Config): Record<string, string> {
  return {
    ...(upstream === null
      ? {}
      : { mode, upstream: [upstream, ...relays.map((relay) => relay.upstream)].map((each) => each.kind === "direct" ? "direct" : each.text).join(" ") }),
    ...(egress === null ? {} : { egress: egress.addresses.map(exitText).join(" ") || (egress.iface ?? "any") }),
  };
}

/** The addresses of this host's interfaces, 4 or 16 bytes each. */
function ownNetworks(sys: Syscalls): Network[] {
  const routes = localRoutes(sys);
  if (routes !== null) return routes;
  const found: Network[] = [];
  for (const interfaces of Object.values(networkInterfaces())) {
    for (const { address } of interfaces ?? []) {
      const known = socketAddress(address.replace(/%.*/, ""), 1);
      if (known !== null) found.push(exactly(addressOf(known.bytes, 0)));
    }
  }
  return found;
}

const sameNetworks = (some: readonly Network[], others: readonly Network[]): boolean =>
  textOf(some) === textOf(others);

const textOf = (networks: readonly Network[]): string =>
  networks.map(({ bytes, prefix }) => `${bytes.join(".")}/${prefix}`).join(" ");
