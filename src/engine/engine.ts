/**
 * The data plane of one worker: its loop, pools and listeners, and the sessions that use them.
 * Everything that comes from outside is an argument: the kernel, the clock, the shared memory.
 */
import {
  EAGAIN, EBADF, EINVAL, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPOLLET, EPOLLIN,
  SOCK_CLOEXEC, SOCK_NONBLOCK, ENOTSOCK, SOCKADDR_SIZE, SOL_SOCKET, SO_OOBINLINE,
} from "../../native-bindings/constants.ts";
import type { Memory, Syscalls } from "../../native-bindings/syscalls.ts";
import { OwnAddresses } from "../policy/own.ts";
import { OUTPUT_BYTES_MAX } from "../protocol/handshake.ts";
import { attemptsText } from "../protocol/report.ts";
import type { SocksServer } from "../protocol/socks-server.ts";
import type { Syn } from "../protocol/syn.ts";
import { Admission } from "./admission.ts";
import { assert } from "./assert.ts";
import {
  ACCEPTED, ACCEPT_ERRORS, BUFFERS_LENT, CLOCK_ORIGIN, countersRow, endingAt, JOURNAL_DROPPED, NOW, PIPES_LENT,
  REFUSED_FULL, ROWS_USED, TUNNELS, TURNS,
} from "./counters.ts";
import { Egress } from "./egress.ts";
import { EgressCounters } from "./egress-counters.ts";
import { causeNumber, type Ending, KINDS, reasonNumber } from "./ending.ts";
import { observe } from "./histogram.ts";
import { ENDED, Journal } from "./journal.ts";
import { Learnt } from "./learnt.ts";
import { Ledger } from "./ledger.ts";
import { checked, type Limits } from "./limits.ts";
import { Loop, type Source, type Task } from "./loop.ts";
import { Loops } from "./loops.ts";
import { LIFETIME, metersRow, TURN_TIME } from "./meters.ts";
import { type NameAnswer, NameCache } from "./names.ts";
import { Orphans } from "./orphans.ts";
import { Outgoing } from "./outgoing.ts";
import { Buffers, Pipes } from "./pools.ts";
import { ALL, type Quota, Quotas, TOO_FAST } from "./quota.ts";
import { Racers } from "./racers.ts";
import { DIRECT, type Settings, Upstream, type UpstreamSettings } from "./route.ts";
import { type Role, Session } from "./session.ts";
import { SocksCounters } from "./socks-counters.ts";
import { synTableBytes } from "./syn-table.ts";
import { Syns } from "./syns.ts";
import { ROW_BYTES, ROW_QUOTAS, ROW_QUOTAS_END, Table } from "./table.ts";
import { Timeouts, type Waiter } from "./timeouts.ts";
import { Tracer, type TraceQuestion, type TraceStep } from "./trace.ts";
import { UpstreamCounters } from "./upstream-counters.ts";

/** Memory that all threads see. Made by main, outlives any worker. */
export interface Shared {
  readonly ledger: SharedArrayBuffer;
  readonly admission: SharedArrayBuffer;
  readonly counters: SharedArrayBuffer;
  readonly loops: SharedArrayBuffer;
  readonly quotas: SharedArrayBuffer;
  readonly socks: SharedArrayBuffer;
  readonly exits: SharedArrayBuffer;
  readonly meters: SharedArrayBuffer;
  readonly upstreams: SharedArrayBuffer;
}

/** This worker's own: nobody else writes to it. */
export interface OwnMemory {
  /** The tunnel table, and its texts. */
  readonly rows: SharedArrayBuffer;
  readonly texts: SharedArrayBuffer;
  readonly journal: SharedArrayBuffer;
  /** The SYNs that it holds. */
  readonly syns: SharedArrayBuffer;
}

/** What only main can find out. */
export type Question =
  | { readonly kind: "name"; readonly name: string; readonly client: number }
  | {
      readonly kind: "login";
      readonly row: number;
      readonly id: number;
      /** A hash, as in the names' questions: of those who wait for main, each has a share. */
      readonly client: number;
      readonly user: Uint8Array;
      readonly password: Uint8Array;
    };

export type Answer =
  | { readonly kind: "name"; readonly name: string; readonly answer: NameAnswer }
  | { readonly kind: "login"; readonly row: number; readonly id: number; readonly right: boolean };

export interface EngineOptions {
  readonly sys: Syscalls;
  /** Monotonic, in ms and fractions. */
  readonly clock: () => number;
  /** Wall clock, in ms since the epoch. */
  readonly wallClock: () => number;
  readonly limits: Limits;
  readonly settings: Settings;
  readonly shared: Shared;
  readonly own: OwnMemory;
  /** Main answers each question exactly once, by answer(). */
  readonly ask: (question: Question) => void;
  /** A step of a connection that somebody follows. */
  readonly onStep: (step: TraceStep) => void;
  /** IDNA: "xn--..." for a name in any script; "" if it is none. */
  readonly toAscii: (name: string) => string;
  /** From 0; the owner's number in the ledger is one more. */
  readonly worker: number;
  /** How many lives this worker's number had before. */
  readonly incarnation: number;
}

/** Beside tunnels whose SYNs are held others must find room. */
const synsOf = ({ syns, tunnels }: Limits): number => Math.min(syns, Math.ceil(tunnels / 2));
export const synsBytes = (limits: Limits): number => synTableBytes(synsOf(limits));

/** After a shortage in accept4, when no tunnel's end tells us that it is over. */
const ACCEPT_AGAIN_MS = 100;

export class Engine {
  readonly sys: Syscalls;
  readonly limits: Limits;
  readonly loop: Loop;
  readonly timeouts: Timeouts;
  readonly pipes: Pipes;
  readonly buffers: Buffers;
  readonly ledger: Ledger;
  readonly loops: Loops;
  readonly orphans: Orphans;
  readonly admission: Admission;
  readonly names: NameCache;
  readonly racers: Racers;
  readonly socks: SocksCounters;
  readonly exits: EgressCounters;
  readonly upstreams: UpstreamCounters;
  readonly toAscii: (name: string) => string;
  /** For fronts to take from and give back to. */
  readonly machines: SocksServer[] = [];
  readonly counters: Float64Array;
  readonly meters: Float64Array;
  readonly owner: number;
  readonly table: Table;
  /** The tunnel table's memory. */
  readonly rows: Memory;
  /** For bytes between two calls of one task; nobody keeps anything in them. */
  readonly scratch: Memory;
  readonly output: Memory;
  readonly worker: number;
  settings: Settings;
  upstream: Upstream;
  /** By listening socket, where it leads elsewhere. */
  readonly #relays = new Map<number, Upstream>();
  /** Of sessions that have none. */
  readonly direct: Upstream;
  /** By which redirected connections are dialled: with the mark, and no address of its own. */
  outgoing!: Outgoing;
  egress: Egress | null = null;
  /** Since the first queue of SYNs. */
  syns: Syns | null = null;
  /** Now, in ms and fractions. */
  readonly exactMs: () => number;
  learnt: Learnt | null = null;
  /** null: nobody follows a connection. */
  tracer: Tracer | null = null;
  own: OwnAddresses;
  /** Read once a turn, in whole ms; with fractions it stands in counters[NOW]. */
  nowMs: number;
  readonly #clock: () => number;
  readonly #wallClock: () => number;
  readonly #journal: Journal;
  readonly #quotas: Quotas;
  readonly #ask: (question: Question) => void;
  readonly #onStep: (step: TraceStep) => void;
  readonly #incarnation: number;
  readonly #synMemory: SharedArrayBuffer;
  readonly #listeners = new Map<number, Listener>();
  readonly #sessions: Session[] = [];
  readonly #idle: Session[] = [];
  #lastId = 0;

  constructor(options: EngineOptions) {
    const { sys, shared, worker } = options;
    this.sys = sys;
    this.limits = checked(options.limits);
    this.worker = worker;
    this.owner = worker + 1;
    this.#incarnation = options.incarnation;
    this.#clock = options.clock;
    this.#wallClock = options.wallClock;
    this.exactMs = options.clock;
    this.#synMemory = options.own.syns;
    const now = options.clock();
    this.nowMs = Math.floor(now);
    this.ledger = new Ledger(shared.ledger);
    this.admission = new Admission(shared.admission, sys);
    this.counters = countersRow(shared.counters, worker);
    this.counters[NOW] = now;
    this.counters[CLOCK_ORIGIN] = options.wallClock() - now;
    this.counters[ROWS_USED] = 0;
    this.meters = metersRow(shared.meters, worker);
    this.loops = new Loops(shared.loops, sys, this.owner);
    this.orphans = new Orphans(sys, this.ledger, this.owner);
    this.table = new Table(sys, options.own.rows, options.own.texts);
    this.rows = this.table.memory;
    this.#journal = new Journal(options.own.journal);
    this.socks = new SocksCounters(shared.socks, worker);
    this.exits = new EgressCounters(shared.exits, worker);
    this.upstreams = new UpstreamCounters(shared.upstreams, worker);
    this.#quotas = new Quotas(shared.quotas);
    this.#ask = options.ask;
    this.#onStep = options.onStep;
    this.toAscii = options.toAscii;
    this.names = new NameCache((name, client) => this.#ask({ kind: "name", name, client }));
    this.scratch = sys.memory(this.limits.bufferBytes);
    this.output = sys.memory(OUTPUT_BYTES_MAX);
    this.loop = new Loop(sys, this.limits.eventsPerTurn);
    this.ledger.own(this.loop.fd, this.owner);
    this.timeouts = new Timeouts(this.nowMs);
    this.pipes = new Pipes(sys, this.ledger, this.owner, this.limits.pipes, this.limits.pipeBytes);
    this.buffers = new Buffers(sys, this.limits.buffers, this.limits.bufferBytes);
    this.racers = new Racers(this.loop);
    this.direct = new Upstream(DIRECT, sys);
    this.settings = options.settings;
    this.upstream = new Upstream(options.settings.upstream, sys);
    this.own = new OwnAddresses(options.settings.own);
    this.#configureRelays();
    this.#configureRest();
  }

  get tunnels(): number {
    return this.#sessions.length - this.#idle.length;
  }

  /** Waits for events or a deadline, and does what they ask for. */
  turn(): void {
    const { limits, timeouts, counters, loop } = this;
    loop.wait(timeouts.nextMs(this.nowMs, limits.sleepMs));
    const now = this.#clock();
    counters[NOW] = now;
    this.nowMs = Math.floor(now);
    const tasks = loop.run();
    timeouts.expire(this.nowMs);
    if (this.syns !== null) this.syns.decideGathered();
    const turns = counters[TURNS]! + 1;
    counters[TURNS] = turns;
    // Of turns with one task an eighth is measured: they are the many, and a clock costs 40 ns.
    if (tasks > 1 || (turns & 7) === 0) observe(this.meters, TURN_TIME, (this.#clock() - now) * 1000);
    counters[PIPES_LENT] = this.pipes.lent;
    counters[BUFFERS_LENT] = this.buffers.lent;
  }

  /** For new tunnels; those that exist keep what they were begun with. */
  configure(settings: Settings): void {
    this.settings = settings;
    this.upstream = this.#upstreamLike(this.upstream, settings.upstream);
    this.#configureRelays();
    this.own = new OwnAddresses(settings.own);
    this.syns?.configure(settings.truthful);
    this.#configureRest();
    this.resumeAccepting();
  }

  /** Whoever comes in by this listening socket goes on by that one. */
  upstreamOf(fd: number, role: Role): Upstream {
    if (role === "socks") return this.direct;
    return this.#relays.size === 0 ? this.upstream : (this.#relays.get(fd) ?? this.upstream);
  }

  #configureRelays(): void {
    const before = new Map(this.#relays);
    this.#relays.clear();
    for (const { fds, upstream } of this.settings.relays) {
      const made = this.#upstreamLike(before.get(fds[0]!), upstream);
      for (const fd of fds) this.#relays.set(fd, made);
    }
  }

  /** The next dial begins where the last one got through. */
  #upstreamLike(before: Upstream | undefined, settings: UpstreamSettings): Upstream {
    const made = new Upstream(settings, this.sys);
    const slot = before?.addresses[before.preferred]?.slot;
    made.preferred = Math.max(0, made.addresses.findIndex((address) => address.slot === slot));
    return made;
  }

  get transparent(): boolean {
    return this.settings.transparent;
  }

  #configureRest(): void {
    const { learnt } = this.settings;
    this.learnt = learnt === null ? null : new Learnt(learnt);
    const { mark, egress, own } = this.settings;
    this.outgoing = new Outgoing({ mark, iface: null, addresses: [], affinity: "none" }, this);
    this.egress = egress === null ? null : new Egress(egress, own.local, this);
  }

  /** Main has found out. */
  answer(answer: Answer): void {
    if (answer.kind === "name") return this.names.answer(answer.name, answer.answer, this.nowMs);
    this.sessionOf(answer.row).verdict(answer.id, answer.right);
  }

  /** Accepts from a listening socket, which stays its maker's. */
  listen(fd: number, role: Role): void {
    const listener = new Listener(this, fd, role);
    // Inherited by what is accepted. An urgent byte cannot be passed on as such, and one that
    // came between an event and the recv behind it would be lost; in line it is a byte like any.
    this.sys.setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, 1);
    const result = this.loop.add(fd, EPOLLIN | EPOLLET, this.loop.number(listener));
    assert(result >= 0, `epoll_ctl for a listener answered ${result}`);
    this.#listeners.set(fd, listener);
  }

  /** Takes what stands in the backlog, as far as there is room, and then accepts no more. */
  unlisten(fd: number): void {
    const listener = this.#listeners.get(fd);
    if (listener === undefined) return;
    listener.mark(); // Of what has come since the last turn no event was read.
    while (listener.turn());
    this.timeouts.stop(listener);
    this.loop.remove(fd);
    listener.close();
    this.#listeners.delete(fd);
  }

  /** Holds the SYNs of a queue, which stays its maker's. */
  holdSyns(fd: number, queue: number, lane: number): void {
    this.syns ??= new Syns(this, this.settings.truthful!, this.#synMemory, synsOf(this.limits));
    this.syns.read(fd, queue, lane);
  }

  /** Reads a queue no longer. What is held is still decided by its fd, or let go now. */
  stopSyns(fd: number, letGo: boolean): void {
    const lane = this.syns?.stop(fd, letGo) ?? -1;
    if (letGo && lane >= 0) for (const session of this.#sessions) session.letGo(lane);
  }

  /** Connections that are accepted, and have no place yet. */
  get parked(): number {
    return [...this.#listeners.values()].reduce((sum, listener) => sum + listener.parked, 0);
  }

  get listening(): readonly number[] {
    return [...this.#listeners.keys()];
  }

  /** There may be room again, or the rules have changed: look at every backlog that waits. */
  resumeAccepting(): void {
    this.admission.stopWaiting(this.worker);
    for (const listener of this.#listeners.values()) {
      if (listener.waiting) this.loop.enqueue(listener);
    }
    this.syns?.resume();
  }

  /** Follows connections for these from now on, those that begin. []: none. */
  trace(questions: readonly TraceQuestion[]): void {
    this.tracer = questions.length === 0 ? null : new Tracer(questions, this.#onStep);
  }

  /** An operator wants this tunnel to end. The row may serve another by now. */
  close(row: number, id: number): void {
    this.#sessions[row / ROW_BYTES]?.close(id);
  }

  /** Ends every tunnel with a reset. */
  cut(): void {
    for (const session of this.#sessions) session.cut();
  }

  dispose(): void {
    assert(this.tunnels + this.parked === 0, "an engine is disposed of when its tunnels are over");
    assert(this.pipes.lent === 0 && this.buffers.lent === 0, "everything borrowed came home");
    this.syns?.dispose();
    this.#listeners.clear(); // Their fds are their maker's, and epoll forgets them as it closes.
    this.pipes.dispose();
    this.ledger.disown(this.loop.fd);
    this.loop.dispose();
  }

  /** True if main sleeps over journal records and must be woken. */
  shouldWakeReader(): boolean {
    return this.#journal.shouldWakeReader();
  }

  // ---- what sessions call

  nextId(): number {
    return ++this.#lastId;
  }

  journal(
    kind: number, why: Ending, id: number, startedMs: number, bytesUp: number, bytesDown: number,
    row: number, version: number, name: string, user: string,
  ): void {
    if (!this.settings.journalAll && kind === ENDED && !isNews(why) && !this.#isLesson(why, version)) return;
    const written = this.#journal.write(
      kind, reasonNumber(why.reason), causeNumber(why.cause), why.detail, why.report?.errno ?? 0, id,
      this.#incarnation, this.#wallClock(), this.nowMs - startedMs, bytesUp, bytesDown, this.rows, row, version,
      why.text, name, user, why.report === null ? "" : attemptsText(why.report),
    );
    if (!written) this.counters[JOURNAL_DROPPED]!++;
  }

  /** Main remembers for a while what became of the destination. */
  #isLesson({ cause }: Ending, version: number): boolean {
    return this.learnt !== null && version === 0 && cause !== "unknown";
  }

  /** Does the password belong to the user? The session is told by verdict(). */
  askVerdict(row: number, id: number, client: number, user: Uint8Array, password: Uint8Array): void {
    this.#ask({ kind: "login", row, id, client, user: user.slice(), password: password.slice() });
  }

  /**
   * Counts a tunnel among those of its client (which: 0) or its user (1), until leaveQuotas().
   * Answers as Quotas.enter().
   */
  enterQuota(row: number, which: 0 | 1, hash: number, quota: Quota): number {
    const entry = this.#quotas.enter(hash, quota, this.#wallClock());
    // In the table, where main finds it if this worker dies.
    if (entry > 0) this.rows.view.setInt32(row + ROW_QUOTAS + 4 * which, entry, true);
    return entry;
  }

  /** Counts one of all, if they do not come too fast. */
  paces(quota: Quota): boolean {
    if (quota.perSecond === null) return true;
    const entry = this.#quotas.enter(ALL, quota, this.#wallClock());
    this.#quotas.leave(entry);
    return entry !== TOO_FAST;
  }

  leaveQuotas(row: number): void {
    const { view } = this.rows;
    for (let at = row + ROW_QUOTAS; at < row + ROW_QUOTAS_END; at += 4) {
      const entry = view.getInt32(at, true);
      if (entry === 0) continue;
      view.setInt32(at, 0, true);
      this.#quotas.leave(entry);
    }
  }

  /** The session has closed its sockets and may serve another tunnel. */
  ended(session: Session, why: Ending, durationMs: number): void {
    this.counters[endingAt(why.reason)]!++;
    observe(this.meters, LIFETIME, durationMs);
    this.#idle.push(session);
    this.leave();
    for (const listener of this.#listeners.values()) {
      if (listener.shortOfFds) this.loop.enqueue(listener);
    }
  }

  // ---- what listeners call

  /** A place among all tunnels of the process; false at the limit. */
  enter(): boolean {
    if (!this.admission.enter()) return false;
    this.counters[TUNNELS]!++; // Exact at any time: were we to die, main gives back so many.
    return true;
  }

  leave(): void {
    this.counters[TUNNELS]!--;
    this.admission.leave();
  }

  sessionOf(row: number): Session {
    return this.#sessions[row / ROW_BYTES]!;
  }

  /** A session to accept into; null if every row of the table is taken. Not yet taken itself. */
  spareSession(): Session | null {
    const spare = this.#idle[this.#idle.length - 1];
    if (spare !== undefined) return spare;
    const row = this.#sessions.length * ROW_BYTES;
    if (row + ROW_BYTES > this.rows.bytes.length) return null;
    const session = new Session(this, row);
    this.counters[ROWS_USED] = this.#sessions.push(session);
    this.#idle.push(session);
    return session;
  }

  /** `listener`: by which listening socket it came. */
  begin(session: Session, fd: number, listener: number, role: Role): void {
    this.#take(session);
    session.begin(fd, role, this.upstreamOf(listener, role));
  }

  /** As begin(), but the connection is only asked for. */
  hold(session: Session, slot: number, syn: Syn): void {
    this.#take(session);
    session.hold(slot, syn);
  }

  #take(session: Session): void {
    const taken = this.#idle.pop();
    assert(taken === session, "the spare session is the one that was offered");
    this.counters[ACCEPTED]!++;
  }
}

/** A tunnel's end that an operator hears of although he does not ask for every one. */
const isNews = (why: Ending): boolean => KINDS[why.reason].level !== "info";

class Listener implements Source, Task, Waiter {
  readonly #engine: Engine;
  readonly #fd: number;
  readonly #role: Role;
  #readable = false;
  #closed = false;
  /** Accepted at the limit, while others behind them had to be; they are the next to be served. */
  readonly #parked: { readonly fd: number; readonly peer: Uint8Array }[] = [];
  /** accept4 found no fd or memory, or the table is full: a tunnel's end may change that. */
  shortOfFds = false;
  queued = false;
  nextWaiter: Waiter | null = null;
  previousWaiter: Waiter | null = null;
  bucket = -1;

  constructor(engine: Engine, fd: number, role: Role) {
    this.#engine = engine;
    this.#fd = fd;
    this.#role = role;
  }

  get parked(): number {
    return this.#parked.length;
  }

  get waiting(): boolean {
    return this.#readable || this.#parked.length > 0;
  }

  close(): void {
    this.#closed = true;
    for (const { fd } of this.#parked.splice(0)) {
      this.#engine.ledger.disown(fd);
      this.#reset(fd);
    }
  }

  mark(): Task {
    this.#readable = true;
    return this;
  }

  due(): number {
    this.#engine.loop.enqueue(this);
    return -1;
  }

  /** Accepts until the backlog is empty, there is no room, or its budget is spent (true). */
  turn(): boolean {
    const engine = this.#engine;
    const { sys, admission, rows } = engine;
    this.shortOfFds = false;
    for (let left = engine.limits.acceptsPerTurn; left > 0; left--) {
      if (!this.waiting || this.#closed) return false;
      const session = engine.spareSession();
      if (session === null || !engine.enter()) {
        const reset = engine.settings.whenFull === "reset";
        if (this.#readable && (reset || this.#mayPark)) {
          if (this.#acceptAtLimit(reset)) continue;
          return false;
        }
        if (session === null) this.shortOfFds = true;
        else if (!admission.wait(engine.worker)) continue;
        return false;
      }
      const parked = this.#parked.shift();
      if (parked !== undefined) {
        rows.bytes.set(parked.peer, session.row);
        engine.begin(session, parked.fd, this.#fd, this.#role);
        continue;
      }
      const fd = sys.accept4(this.#fd, rows, session.row, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd >= 0 && !this.#pairs(fd)) engine.begin(session, fd, this.#fd, this.#role);
      else {
        engine.leave();
        if (fd >= 0) continue;
        if (fd === -EAGAIN) this.#readable = false;
        else if (this.#failed(-fd)) return false;
      }
    }
    return true;
  }

  /**
   * Sessions that have their place, and one of their two fds, wait for connections that may stand
   * behind the next one of the backlog. With as many parked as there are such, the next may still be one.
   */
  get #mayPark(): boolean {
    const { syns } = this.#engine;
    if (syns === null || syns.granted === 0 || this.#role !== "transparent") return false;
    return this.#parked.length <= syns.granted;
  }

  /** It is a session's that waits for it. */
  #pairs(fd: number): boolean {
    const { syns } = this.#engine;
    return syns !== null && this.#role === "transparent" && syns.pair(fd);
  }

  /** One connection of the backlog, which is a session's that waits; or is parked, or reset. False: stop for now. */
  #acceptAtLimit(reset: boolean): boolean {
    const { sys, scratch, counters, ledger, owner } = this.#engine;
    const fd = sys.accept4(this.#fd, scratch, 0, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd === -EAGAIN) this.#readable = false;
    else if (fd < 0) return !this.#failed(-fd);
    else {
      const peer = scratch.bytes.slice(0, SOCKADDR_SIZE);
      if (this.#pairs(fd)) return true;
      if (!reset && ledger.own(fd, owner)) this.#parked.push({ fd, peer });
      else {
        this.#reset(fd);
        counters[REFUSED_FULL]!++;
      }
    }
    return true;
  }

  #reset(fd: number): void {
    const { sys } = this.#engine;
    sys.setLinger(fd, true, 0);
    sys.close(fd);
  }

  /** accept(2): most errors are those of the one connection. True if it is no use to go on. */
  #failed(errno: number): boolean {
    const engine = this.#engine;
    engine.counters[ACCEPT_ERRORS]!++;
    switch (errno) {
      case EMFILE:
      case ENFILE:
      case ENOBUFS:
      case ENOMEM:
        this.shortOfFds = true;
        engine.timeouts.start(this, engine.nowMs + ACCEPT_AGAIN_MS);
        return true;
      case EBADF:
      case EINVAL:
      case ENOTSOCK:
        this.#readable = false; // Its maker has shut it down.
        return true;
      default:
        return false;
    }
  }
}
