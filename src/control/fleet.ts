/**
 * The workers: starts them, replaces one that dies, notices one that hangs, and speaks to them.
 *
 * What must outlive a worker belongs to main: shared memory, listening sockets, the eventfds by
 * which workers are woken (were a worker to close its own, another thread could write to whoever
 * has the number next).
 */
import { setTimeout as sleep } from "node:timers/promises";
import { MessageChannel, type MessagePort, Worker } from "node:worker_threads";
import { EFD_CLOEXEC, EFD_NONBLOCK } from "../../native-bindings/constants.ts";
import type { Syscalls } from "../../native-bindings/syscalls.ts";
import { Admission, admissionBytes } from "../engine/admission.ts";
import { assert } from "../engine/assert.ts";
import {
  countersBytes,
  countersRow,
  DIAL_FAILURES,
  endingAt,
  JOURNAL_DROPPED,
  ORDERS,
  TUNNELS,
  TURNS,
  unended,
} from "../engine/counters.ts";
import { EgressReader, egressCountersBytes } from "../engine/egress-counters.ts";
import { type Answer, type OwnMemory, type Question, type Shared, synsBytes } from "../engine/engine.ts";
import { Journal, type JournalRecord, journalBytes } from "../engine/journal.ts";
import { Ledger, OWNERS_MAX } from "../engine/ledger.ts";
import type { Limits } from "../engine/limits.ts";
import { LOOPS_BYTES, Loops } from "../engine/loops.ts";
import { metersBytes, metersRow } from "../engine/meters.ts";
import { QUOTA_BYTES, Quotas } from "../engine/quota.ts";
import type { Settings } from "../engine/route.ts";
import type { Role } from "../engine/session.ts";
import { forgetInflight, socksCountersBytes, SocksTotals } from "../engine/socks-counters.ts";
import {
  clearTable, ROW_BYTES, ROW_QUOTAS, ROW_QUOTAS_END, rowsBytes, TableReader, textsBytes,
} from "../engine/table.ts";
import type { TraceQuestion, TraceStep } from "../engine/trace.ts";
import { upstreamCountersBytes, UpstreamReader } from "../engine/upstream-counters.ts";
import type { Order, Report, WorkerStart } from "../worker.ts";
import type { Log } from "./log/log.ts";
import type { SynQueue } from "./syn-queues.ts";

export const WORKERS_MAX = OWNERS_MAX - 1;

const JOURNAL_RECORDS = 4096;
/** A worker whose turns have stood still for so many ticks of a second is said to hang... */
const HANGS_TICKS = 5;
/** ...and after so many it is replaced. */
const REPLACED_TICKS = 30;
/** A worker that dies again within a second is started again only after one. */
const RESTART_MS = 1000;
/** How long a worker may take to do what it is told before one goes on without its answer. */
const ANSWER_MS = 1000;
const OBEYED_MS = 2;
/** Below this, workers are started one after the other. */
const FEW_FDS = 256;
/**
 * Of the memory in which V8 makes new objects. By default it may grow to 48 MiB as soon as some survive, as
 * sessions do, and a worker makes hardly any: 1,221 bytes for each of 9,000 idle tunnels came to 999 by this.
 */
const YOUNG_MIB = 6;
/** Under load the journals are read so often; else only when a worker says that it has written. */
const JOURNAL_MS = 50;

export interface FleetOptions {
  readonly sys: Syscalls;
  readonly log: Log;
  readonly ledgerFds: number;
  readonly onRecord: (record: JournalRecord, worker: number) => void;
  /** Asked by a worker; it is told the answer. Never rejects. */
  readonly onQuestion: (question: Question) => Promise<Answer>;
  /** A connection that somebody follows has made a step. */
  readonly onStep: (step: TraceStep, worker: WorkerView) => void;
  /** A worker has died that held these SYNs. */
  readonly onHeld: (held: SharedArrayBuffer) => void;
}

/** A worker as one may look at it. */
export interface WorkerView {
  readonly number: number;
  /** Lives that its number had before. */
  readonly incarnation: number;
  readonly state: "running" | "hangs" | "down";
  /** It accepts nothing, since the process is at its limit. */
  readonly full: boolean;
  readonly counters: Float64Array;
  readonly meters: Float64Array;
  readonly table: TableReader;
  readonly limits: Limits;
}

interface Member {
  readonly number: number;
  readonly eventfd: number;
  readonly own: OwnMemory;
  readonly reader: Journal;
  readonly counters: Float64Array;
  readonly meters: Float64Array;
  readonly table: TableReader;
  readonly limits: Limits;
  /** The listening sockets that it accepts from. */
  readonly fds: Map<number, Role>;
  /** The queues of SYNs that it reads. */
  readonly queues: Set<SynQueue>;
  thread: Worker | null;
  port: MessagePort | null;
  incarnation: number;
  startedMs: number;
  /** It has been told to drain, so its exit is no accident. */
  leaving: boolean;
  turnsSeen: number;
  /** Sent to it, and to its former lives. */
  orders: number;
  stillTicks: number;
  readonly unlistening: Map<number, () => void>;
  /** The thread runs, or (false) has died before it did. */
  onReady: (runs: boolean) => void;
  onExit: () => void;
  exited: Promise<void>;
}

export class Fleet {
  readonly #options: FleetOptions;
  readonly #shared: Shared;
  readonly #admission: Admission;
  readonly #ledger: Ledger;
  readonly #loops: Loops;
  readonly #quotas: Quotas;
  readonly #members: Member[] = [];
  readonly #eventfds: number[] = [];
  /** What the workers count for egress addresses and rules. */
  readonly exits: EgressReader;
  /** And for the upstream's addresses. */
  readonly upstreams: UpstreamReader;
  #settings: Settings | null = null;
  #journalTimer: NodeJS.Timeout | null = null;
  #dropped = 0;
  /** Numbers that workers have ever had: 0 to this less one. */
  #numbers = 0;
  #replacements = 0;
  #questions: readonly TraceQuestion[] = [];

  constructor(options: FleetOptions) {
    this.#options = options;
    this.#shared = {
      ledger: new SharedArrayBuffer(options.ledgerFds),
      admission: new SharedArrayBuffer(admissionBytes(WORKERS_MAX)),
      counters: new SharedArrayBuffer(countersBytes(WORKERS_MAX)),
      loops: new SharedArrayBuffer(LOOPS_BYTES),
      quotas: new SharedArrayBuffer(QUOTA_BYTES),
      socks: new SharedArrayBuffer(socksCountersBytes(WORKERS_MAX)),
      exits: new SharedArrayBuffer(egressCountersBytes(WORKERS_MAX)),
      meters: new SharedArrayBuffer(metersBytes(WORKERS_MAX)),
      upstreams: new SharedArrayBuffer(upstreamCountersBytes(WORKERS_MAX)),
    };
    this.exits = new EgressReader(this.#shared.exits, () => this.#numbers);
    this.upstreams = new UpstreamReader(this.#shared.upstreams, () => this.#numbers);
    this.#quotas = new Quotas(this.#shared.quotas);
    this.#admission = new Admission(this.#shared.admission, options.sys);
    this.#ledger = new Ledger(this.#shared.ledger);
    this.#loops = new Loops(this.#shared.loops, options.sys, OWNERS_MAX);
  }

  get size(): number {
    return this.#members.filter((member) => !member.leaving).length;
  }

  /** Tunnels that exist, over all workers. */
  get tunnels(): number {
    return this.#admission.active;
  }

  /** Some worker's turns stand still. */
  get hangs(): boolean {
    return this.#members.some(({ stillTicks }) => stillTicks >= HANGS_TICKS);
  }

  setTunnelsMax(tunnels: number): void {
    this.#admission.setLimit(tunnels);
  }

  /** Starts workers until there are `count`. Resolves when all are ready; false if one died. */
  async grow(count: number, limits: Limits, settings: Settings): Promise<boolean> {
    assert(count <= WORKERS_MAX, "workers are numbered in a byte");
    this.#settings = settings;
    const ready: Promise<boolean>[] = [];
    while (this.size < count) {
      const member = this.#enlist(limits);
      this.#members.push(member);
      ready.push(new Promise((resolve) => (member.onReady = resolve)));
      this.#start(member);
      // Node opens a worker's modules all at once; where files are few, those of one at a time.
      if (this.#options.ledgerFds < FEW_FDS) await ready.at(-1);
    }
    return (await Promise.all(ready)).every(Boolean);
  }

  /** Lets workers go until `count` are left: their listeners move to the others, then they drain. */
  async shrink(count: number): Promise<void> {
    while (this.size > count) {
      const leaver = this.#members.findLast((member) => !member.leaving)!;
      const fds = [...leaver.fds];
      const queues = [...leaver.queues];
      leaver.leaving = true;
      leaver.fds.clear();
      leaver.queues.clear();
      // First the one lets go, then the other takes over: in between, connections wait in the
      // backlog, which belongs to the socket and not to a worker.
      for (const queue of queues) await this.#unholdOne(leaver, queue, false);
      await this.#unlistenOne(leaver, fds.map(([fd]) => fd));
      // All of them to one, as they were: a SYN's connection comes to whoever holds the SYN.
      const heir = this.#leastBusy();
      for (const [fd, role] of fds) if (this.#holders(fd).length === 0) this.#listenOne(heir, fd, role);
      for (const queue of queues) this.#holdOne(heir, queue);
      this.#order(leaver, { kind: "drain" });
    }
  }

  /**
   * Spreads the listening sockets of one address over the workers: each that nobody has goes to one
   * that has fewest, or to whoever reads the queue of the same number. Where there are fewer sockets
   * than workers, they are shared; but not those of connections whose SYNs are held, which must come to
   * whoever holds them. May be called again, when there are more of either.
   */
  listen(fds: readonly number[], role: Role): void {
    for (const [i, fd] of fds.entries()) {
      if (this.#holders(fd).length > 0) continue;
      const reader = role === "transparent" ? this.#readerOf(i) : undefined;
      this.#listenOne(reader ?? this.#leastBusy(), fd, role);
    }
    if (fds.length >= this.size || (role === "transparent" && this.#readerOf(0) !== undefined)) return;
    for (const member of this.#members) {
      if (member.leaving || fds.some((fd) => member.fds.has(fd))) continue;
      const fewest = fds.reduce((a, b) => (this.#holders(b).length < this.#holders(a).length ? b : a));
      this.#listenOne(member, fewest, role);
    }
  }

  /**
   * Each queue of SYNs is read by one worker; to be called before listen(). `sockets`: as many as each
   * address has at least; queues without one of their own are read where another's is accepted.
   */
  hold(queues: readonly SynQueue[], sockets: number): void {
    for (const queue of queues) {
      const members = this.#members.filter((member) => !member.leaving);
      const twin = queue.lane < sockets ? undefined : this.#readerOf(queue.lane % sockets);
      this.#holdOne(twin ?? members.reduce((a, b) => (b.queues.size < a.queues.size ? b : a)), queue);
    }
  }

  /**
   * Resolves when no worker reads these any more. What is held is still decided; or is let go, and
   * then nobody needs them.
   */
  async unhold(queues: readonly SynQueue[], letGo: boolean): Promise<void> {
    for (const member of this.#members) {
      for (const queue of queues) if (member.queues.delete(queue)) await this.#unholdOne(member, queue, letGo);
    }
  }

  #readerOf(lane: number): Member | undefined {
    return this.#members.find(({ queues }) => [...queues].some((queue) => queue.lane === lane));
  }

  #holders(fd: number): Member[] {
    return this.#members.filter((member) => member.fds.has(fd));
  }

  #leastBusy(): Member {
    return this.#members.filter((member) => !member.leaving).reduce((a, b) => (b.fds.size < a.fds.size ? b : a));
  }

  #listenOne(member: Member, fd: number, role: Role): void {
    member.fds.set(fd, role);
    this.#order(member, { kind: "listen", fds: [fd], role });
  }

  #holdOne(member: Member, queue: SynQueue): void {
    member.queues.add(queue);
    this.#order(member, { kind: "hold", ...queue });
  }

  /** Resolves when no worker accepts from these any more, or will not answer. */
  async unlisten(fds: readonly number[]): Promise<void> {
    await Promise.all(
      this.#members.map((member) => {
        const its = fds.filter((fd) => member.fds.delete(fd));
        return its.length === 0 ? undefined : this.#unlistenOne(member, its);
      }),
    );
  }

  configure(settings: Settings): void {
    this.#settings = settings;
    for (const member of this.#members) this.#order(member, { kind: "configure", settings });
  }

  /** Resolves when every worker has done what it was told up to now; or soon, where one hangs. */
  async obeyed(): Promise<void> {
    const told = this.#members.map((member) => ({ member, orders: member.orders, incarnation: member.incarnation }));
    const untilMs = performance.now() + ANSWER_MS;
    for (;;) {
      const waiting = told.filter(({ member, orders, incarnation }) =>
        member.incarnation === incarnation && member.thread !== null && member.counters[ORDERS]! < orders);
      if (waiting.length === 0) return;
      if (performance.now() > untilMs) return waiting.forEach(({ member }) => this.#unanswered(member));
      await sleep(OBEYED_MS);
    }
  }

  /** Each worker exits when its last tunnel is over. */
  drain(): void {
    for (const member of this.#members) {
      member.leaving = true;
      this.#order(member, { kind: "drain" });
    }
  }

  /** Each worker resets what is left, and exits. */
  cut(): void {
    for (const member of this.#members) {
      member.leaving = true;
      this.#order(member, { kind: "cut" });
    }
  }

  /** Resolves when every worker has exited. */
  async exited(): Promise<void> {
    await Promise.all(this.#members.map((member) => member.exited));
  }

  get workers(): WorkerView[] {
    return this.#members.map((member) => viewOf(member, this.#admission.waits(member.number)));
  }

  /** What all workers have counted, those that have gone included. */
  get counters(): Float64Array {
    return this.#sum((worker) => countersRow(this.#shared.counters, worker));
  }

  get meters(): Float64Array {
    return this.#sum((worker) => metersRow(this.#shared.meters, worker));
  }

  #sum(rowOf: (worker: number) => Float64Array): Float64Array {
    const sum = rowOf(0).slice();
    for (let worker = 1; worker < this.#numbers; worker++) {
      const row = rowOf(worker);
      for (let at = 0; at < sum.length; at++) sum[at]! += row[at]!;
    }
    return sum;
  }

  /** A counter, summed over all workers. */
  total(at: number): number {
    let sum = 0;
    for (let worker = 0; worker < this.#numbers; worker++) sum += countersRow(this.#shared.counters, worker)[at]!;
    return sum;
  }

  /** How often a worker had to be replaced. */
  get replacements(): number {
    return this.#replacements;
  }

  /** Follows connections for these from now on. */
  trace(questions: readonly TraceQuestion[]): void {
    this.#questions = questions;
    for (const member of this.#members) this.#order(member, { kind: "trace", questions });
  }

  /** An operator wants this tunnel to end. Who has it will have done so in a moment. */
  closeTunnel(worker: number, row: number, id: number): void {
    const member = this.#members.find(({ number }) => number === worker);
    if (member !== undefined) this.#order(member, { kind: "close", row, id });
  }

  /** What SOCKS clients have been up to, over all workers, up to now. */
  get socks(): SocksTotals {
    return new SocksTotals(this.#shared.socks, this.#numbers);
  }

  get dialFailures(): number {
    return this.total(DIAL_FAILURES);
  }

  /** To be called once a second: looks for workers whose turns stand still. */
  tick(): void {
    for (const member of this.#members) this.#lookAt(member);
    const dropped = this.total(JOURNAL_DROPPED);
    if (dropped > this.#dropped) {
      this.#options.log.warning(
        "connections are not in the log: more ended than could be written",
        {
          count: dropped - this.#dropped,
        },
      );
      this.#dropped = dropped;
    }
  }

  // ---- one worker

  #enlist(limits: Limits): Member {
    const { sys } = this.#options;
    const taken = new Set(this.#members.map(({ number }) => number));
    let number = 0;
    while (taken.has(number)) number++;
    this.#numbers = Math.max(this.#numbers, number + 1);
    if (this.#eventfds[number] === undefined) {
      const fd = sys.eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
      assert(fd >= 0, `eventfd answered ${fd}`);
      this.#eventfds[number] = fd;
      this.#admission.setEventfd(number, fd);
    }
    const own: OwnMemory = {
      rows: new SharedArrayBuffer(rowsBytes(limits.tunnels)),
      texts: new SharedArrayBuffer(textsBytes(limits.tunnels)),
      journal: new SharedArrayBuffer(journalBytes(JOURNAL_RECORDS)),
      syns: new SharedArrayBuffer(synsBytes(limits)),
    };
    const reader = new Journal(own.journal);
    reader.sleep();
    return {
      number,
      limits,
      own,
      reader,
      eventfd: this.#eventfds[number]!,
      counters: countersRow(this.#shared.counters, number),
      meters: metersRow(this.#shared.meters, number),
      table: new TableReader(own.rows, own.texts),
      fds: new Map(),
      queues: new Set(),
      thread: null,
      port: null,
      incarnation: -1,
      startedMs: 0,
      leaving: false,
      turnsSeen: -1,
      orders: 0,
      stillTicks: 0,
      unlistening: new Map(),
      onReady: () => {},
      onExit: () => {},
      exited: Promise.resolve(),
    };
  }

  #start(member: Member): void {
    const { port1, port2 } = new MessageChannel();
    member.incarnation++;
    member.startedMs = performance.now();
    member.stillTicks = 0;
    member.port = port1;
    // What a former life was told, and did not do, nobody does.
    member.orders = member.counters[ORDERS]!;
    const start: WorkerStart = {
      port: port2,
      worker: member.number,
      incarnation: member.incarnation,
      eventfd: member.eventfd,
      limits: member.limits,
      settings: this.#settings!,
      shared: this.#shared,
      own: member.own,
    };
    member.exited = new Promise((resolve) => (member.onExit = resolve));
    port1.on("message", (report: Report) => this.#hear(member, report));
    port1.unref();
    const thread = new Worker(new URL("./thread.js", import.meta.url), {
      workerData: start,
      transferList: [port2],
      name: `transplice-${member.number}`,
      resourceLimits: { maxYoungGenerationSizeMb: YOUNG_MIB },
    });
    member.thread = thread;
    thread.on("error", (error: Error) => {
      this.#options.log.critical("a worker died", {
        worker: member.number,
        error: error.stack ?? String(error),
      });
    });
    thread.on("exit", () => this.#gone(member));
    for (const [fd, role] of member.fds) this.#order(member, { kind: "listen", fds: [fd], role });
    if (this.#questions.length > 0) this.#order(member, { kind: "trace", questions: this.#questions });
    for (const queue of member.queues) this.#order(member, { kind: "hold", ...queue });
  }

  #hear(member: Member, report: Report): void {
    switch (report.kind) {
      case "ready":
        member.onReady(true);
        break;
      case "unlistened":
        for (const fd of report.fds) {
          member.unlistening.get(fd)?.();
          member.unlistening.delete(fd);
        }
        break;
      case "journal":
        this.#readJournals();
        break;
      case "step":
        this.#options.onStep(report.step, viewOf(member, false));
        break;
      case "question":
        void this.#answer(member, report.question);
        break;
    }
  }

  async #answer(member: Member, question: Question): Promise<void> {
    const { port } = member;
    const answer = await this.#options.onQuestion(question);
    // Who asked may be dead by now, and another in his place knows nothing of the question.
    if (member.port === port) this.#order(member, { kind: "answer", answer });
  }

  /** What its tunnels held in common with those of other workers. */
  #giveBack({ own, number }: Member): void {
    const rows = new DataView(own.rows);
    for (let row = 0; row < rows.byteLength; row += ROW_BYTES) {
      for (let at = row + ROW_QUOTAS; at < row + ROW_QUOTAS_END; at += 4) {
        const entry = rows.getInt32(at, true);
        if (entry > 0) this.#quotas.leave(entry);
        rows.setInt32(at, 0, true);
      }
    }
    forgetInflight(this.#shared.socks, number);
    this.exits.forget(number);
    this.upstreams.forget(number);
    clearTable(own.rows);
  }

  /** The thread has stopped: in order, or because it threw. */
  #gone(member: Member): void {
    const { sys, log } = this.#options;
    const owner = member.number + 1;
    this.#readJournals(); // Its last words, too.
    member.thread = null;
    member.port?.close();
    member.port = null;
    this.#admission.stopWaiting(member.number);
    let closed = 0;
    for (const fd of this.#ledger.ownedBy(owner)) {
      this.#ledger.disown(fd);
      // What was lost must not look complete: a reset, not FIN. Pipes do not mind.
      sys.setLinger(fd, true, 0);
      sys.close(fd);
      closed++;
    }
    this.#loops.forgetAll(owner);
    this.#options.onHeld(member.own.syns);
    this.#giveBack(member);
    const tunnels = member.counters[TUNNELS]!;
    member.counters[TUNNELS] = 0;
    // Each connection that was accepted ends for a reason, also those that nobody is left to end.
    member.counters[endingAt("worker-died")]! += unended(member.counters);
    for (const answer of member.unlistening.values()) answer();
    member.unlistening.clear();
    member.onReady(false);
    member.onExit();
    if (tunnels > 0) this.#admission.leave(tunnels);
    if (member.leaving) {
      this.#members.splice(this.#members.indexOf(member), 1);
      return;
    }
    log.error("a worker is replaced; its connections are lost, the others go on", {
      worker: member.number,
      tunnels,
      fds: closed,
    });
    this.#replacements++;
    const lived = performance.now() - member.startedMs;
    setTimeout(
      () => {
        if (!member.leaving) this.#start(member);
      },
      lived < RESTART_MS ? RESTART_MS : 0,
    );
  }

  #lookAt(member: Member): void {
    const { log } = this.#options;
    const turns = member.counters[TURNS]!;
    if (member.thread === null || turns !== member.turnsSeen) {
      if (member.stillTicks >= HANGS_TICKS)
        log.warning("a worker goes on", { worker: member.number });
      member.turnsSeen = turns;
      member.stillTicks = 0;
      return;
    }
    member.stillTicks++;
    if (member.stillTicks === HANGS_TICKS) {
      log.critical("a worker hangs", { worker: member.number, seconds: HANGS_TICKS });
    } else if (member.stillTicks === REPLACED_TICKS) {
      log.critical("a worker hangs and is ended", {
        worker: member.number,
        seconds: REPLACED_TICKS,
      });
      void member.thread.terminate();
    }
  }

  #order(member: Member, order: Order): void {
    if (member.port === null) return; // It is being replaced, and will start with what holds then.
    member.orders++;
    member.port.postMessage(order);
    this.#admission.wake(member.number);
  }

  #unlistenOne(member: Member, fds: readonly number[]): Promise<void> {
    return this.#askToLeave(member, fds, { kind: "unlisten", fds });
  }

  #unholdOne(member: Member, { fd }: SynQueue, letGo: boolean): Promise<void> {
    return this.#askToLeave(member, [fd], { kind: "unhold", fd, letGo });
  }

  #askToLeave(member: Member, fds: readonly number[], order: Order): Promise<void> {
    if (member.port === null || fds.length === 0) return Promise.resolve();
    return new Promise((resolve) => {
      const timer = setTimeout(() => {
        this.#unanswered(member);
        resolve();
      }, ANSWER_MS);
      let left = fds.length;
      for (const fd of fds) {
        member.unlistening.set(fd, () => {
          if (--left > 0) return;
          clearTimeout(timer);
          resolve();
        });
      }
      this.#order(member, order);
    });
  }

  #unanswered(member: Member): void {
    this.#options.log.warning("a worker does not answer", { worker: member.number });
  }

  // ---- journals

  #readJournals(): void {
    if (this.#journalTimer !== null) {
      clearTimeout(this.#journalTimer);
      this.#journalTimer = null;
    }
    let read = 0;
    for (const { reader, number } of this.#members) {
      for (let record = reader.read(); record !== null; record = reader.read()) {
        this.#options.onRecord(record, number);
        read++;
      }
    }
    const asleep = read === 0 && this.#members.map(({ reader }) => reader.sleep()).every(Boolean);
    if (!asleep) this.#journalTimer = setTimeout(() => this.#readJournals(), JOURNAL_MS);
  }
}

const viewOf = (member: Member, full: boolean): WorkerView => ({
  number: member.number,
  incarnation: member.incarnation,
  state: member.thread === null ? "down" : member.stillTicks >= HANGS_TICKS ? "hangs" : "running",
  full,
  counters: member.counters,
  meters: member.meters,
  table: member.table,
  limits: member.limits,
});
