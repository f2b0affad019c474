/**
 * The life of one tunnel, and the one file where I/O, protocol and policy meet.
 *
 *   front ──► dial ──► upstream ──► relay ──► over
 *     │         │          │          └─► reset ──► over
 *     └─────────┴──────────┴──► over
 *     └─────────┴──► refused ──► over
 *
 * A connection whose SYN is held (syns.ts) begins without a client, and waits for it before it
 * relays ("granted").
 *
 * A redirected connection is its own front: the kernel knows where it wanted to go. A SOCKS client
 * says so itself (front.ts), is dialled without an upstream, and told the outcome.
 *
 * A session owns its two sockets and whatever its flows and its handshake have borrowed, and gives
 * everything back when it is over: once, for one reason. Sessions are pooled: the object, its
 * sockets and its row in the tunnel table live on and serve the next tunnel.
 */
import {
  AF_INET6, EADDRNOTAVAIL, EAGAIN, ECONNREFUSED, EHOSTUNREACH, EINTR, EMFILE, ENETUNREACH, ENFILE,
  ENOBUFS, ENOMEM, ENOSPC, ETIMEDOUT, IP6T_SO_ORIGINAL_DST, MSG_NOSIGNAL, MSG_PEEK, SHUT_WR,
  SIOCOUTQ, SOCKADDR_SIZE, SOL_IP, SOL_IPV6, SOL_SOCKET, SOL_TCP, SO_ERROR, SO_KEEPALIVE,
  SO_OOBINLINE, SO_ORIGINAL_DST, TCPI_NOTSENT_BYTES, TCPI_UNACKED, TCP_INFO, TCP_KEEPCNT,
  TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_QUICKACK, TCP_USER_TIMEOUT,
} from "../../native-bindings/constants.ts";
import type { Memory, Result } from "../../native-bindings/syscalls.ts";
import { type Cause, causeOfErrno, causeOfReply, causeOfStatus, type Trust } from "../policy/cause.ts";
import { isMapped, portOf } from "../policy/own.ts";
import type { Destination, Failure, Handshake } from "../protocol/handshake.ts";
import type { Report } from "../protocol/report.ts";
import type { Refusal, Syn } from "../protocol/syn.ts";
import { assert } from "./assert.ts";
import { BYTES_DOWN, BYTES_UP, DIAL_FAILURES, NOW } from "./counters.ts";
import { type Ending, ending, FINISHED, KINDS } from "./ending.ts";
import type { Engine } from "./engine.ts";
import { type FrontHost, type Outcome, SocksFront, writeSockaddr } from "./front.ts";
import { observe } from "./histogram.ts";
import { ENDED, STARTED } from "./journal.ts";
import type { Task } from "./loop.ts";
import { DIAL_TIME, FIRST_BYTE_TIME, HANDSHAKE_TIME } from "./meters.ts";
import type { NameAnswer } from "./names.ts";
import type { Outgoing } from "./outgoing.ts";
import type { Racer } from "./racers.ts";
import { Flow } from "./relay.ts";
import type { Settings, Upstream } from "./route.ts";
import { NO_SLOT } from "./slots.ts";
import { Socket } from "./socket.ts";
import {
  ACTIVE, CLIENT, DESTINATION, DIAL, DIALLED_US, DOWN, EXIT_SLOT, FIRST_BYTE_US, FRONT, GRANTED, OVER, REFUSED,
  RELAY, RESET, ROW_QUOTAS_END, SHAKEN_US, SINCE, SOURCE, STARTED as BEGAN, UP, UPSTREAM, UPSTREAM_SLOT,
} from "./table.ts";
import type { Waiter } from "./timeouts.ts";
import type { StepName } from "./trace.ts";

/** Which phases may follow which. */
const NEXT: readonly (readonly number[])[] = [
  /* OVER */ [FRONT],
  /* FRONT */ [DIAL, REFUSED, OVER],
  /* DIAL */ [UPSTREAM, GRANTED, RELAY, REFUSED, OVER],
  /* UPSTREAM */ [GRANTED, RELAY, OVER],
  /* RELAY */ [RESET, OVER],
  /* RESET */ [OVER],
  /* REFUSED */ [OVER],
  /* GRANTED */ [RELAY, OVER],
];

/**
 * Keepalive and TCP_USER_TIMEOUT are set on a tunnel that has lived so long. They work in minutes;
 * for the many that are over in a moment they would be eight system calls for nothing.
 */
const TUNE_AFTER_MS = 10_000;
/** A reset waits for bytes in front of it while the receiver takes some in so long a time. */
const RESET_STALL_MS = 10_000;
const RESET_LOOK_MS = 16;
/** A refused client has so long to read why. */
const REFUSED_MS = 2000;
/** Who will be refused whatever it asks for has so long to ask: it takes a place from others. */
const OUTSIDE_MS = 2000;
/** RFC 8305 section 5: the next address is tried beside one that has not answered in this time. */
const RACE_MS = 250;
/** Tried beside the first, at once. */
const RACERS_MOST = 3;
/** What SOCKS5 would reply: RFC 1928 section 6. */
const ADDRESS_TYPE_NOT_SUPPORTED = 8;
/** A client that has said FIN may be gone: asked at once, then as long after as it has been here, ... */
const LEFT_LOOK_MS = 10;
/** ... and so often at least. */
const LEFT_LOOK_MOST_MS = 1000;
/** Main has its own deadline for a name; this is for the way there and back. */
const ANSWER_MS = 1000;
const NO_RACERS: Racer[] = [];
/** Between a SYN that goes on and its connection being accepted: one retransmission, and some. */
const PAIR_MS = 5000;
const NO_SYN = -1;

/** How connections come to a listener: by the firewall, or to be asked. */
export type Role = "transparent" | "socks";

export class Session implements Task, Waiter, FrontHost {
  readonly #engine: Engine;
  /** Offset of this session's row in engine.rows. */
  readonly row: number;
  readonly client: Socket;
  readonly server: Socket;
  /** Made when there is something to move: a client that says nothing costs none. */
  #upFlow: Flow | null = null;
  #downFlow: Flow | null = null;
  #phase = OVER;

  // Of this tunnel's life.
  #id = 0;
  #startedMs = 0;
  #grantedMs = 0;
  /** When the first direction's end was passed on. */
  #halfClosedMs = 0;
  #settings!: Settings;
  #upstream!: Upstream;
  #outgoing!: Outgoing;
  /** Of a session that has served a SOCKS client; `#fronted`: it serves one now. */
  #front: SocksFront | null = null;
  #fronted = false;
  /** Its deadline is that for a name: it is set once. */
  #resolving = false;
  #attempt = 0;
  /** Which of the front's candidates the server's socket leads to. */
  #candidate = 0;
  /** The address that the first attempt goes to: another tunnel may change the preferred one. */
  #firstAddress = 0;
  #handshake: Handshake | null = null;
  /** A partial reply of the upstream: #input[0, #inputEnd). */
  #input: Memory | null = null;
  #inputEnd = 0;
  /** What of a handshake's write #outputTo did not take: #output[#outputAt, #outputEnd). */
  #output: Memory | null = null;
  #outputTo!: Socket;
  #outputAt = 0;
  #outputEnd = 0;
  #notedPort = 0;
  /** Of a connection that is only asked for: the slot of its SYN. */
  #syn = NO_SYN;
  /** Which of the egress addresses the server's socket has. */
  #slot = NO_SLOT;
  #racers = NO_RACERS;
  /** The worst that a dial has met, which is the most telling. */
  #dialErrno = 0;
  #dialUntilMs = 0;
  #waveUntilMs = 0;
  #why: Ending = FINISHED;
  /** What is told where both ends finish: the upstream's refusal that the client was given to read. */
  #instead: Ending = FINISHED;
  #refusalSaid = false;
  #upFinPassed = false;
  #downFinPassed = false;
  #tuned = false;
  #unacked = 0;
  /** Who follows this tunnel, as bits: nearly always nobody. */
  #traced = 0;
  /** When it is next to be asked whether a client that has said FIN is gone. */
  #leftLookMs = 0;

  // Its deadline: when it is due, and when the wheel will ask, which may be sooner.
  #dueMs = 0;
  #askedMs = 0;
  nextWaiter: Waiter | null = null;
  previousWaiter: Waiter | null = null;
  bucket = -1;
  queued = false;

  constructor(engine: Engine, row: number) {
    this.#engine = engine;
    this.row = row;
    this.client = new Socket(engine.loop, this);
    this.server = new Socket(engine.loop, this);
  }

  // Methods: V8 asks its runtime for a private accessor, each time.

  #upward(): Flow {
    this.#upFlow ??= new Flow(this.#engine, this.client, this.server);
    return this.#upFlow;
  }

  #downward(): Flow {
    this.#downFlow ??= new Flow(this.#engine, this.server, this.client);
    return this.#downFlow;
  }

  /** A connection was accepted; its peer's sockaddr stands in the row. */
  begin(fd: number, role: Role, upstream: Upstream): void {
    const engine = this.#engine;
    this.#reset(fd, role, upstream);
    const owned = engine.ledger.own(fd, engine.owner);
    if (this.#fronted) return this.#beginFront(owned);
    if (!owned) return this.#end(ending("resources", EMFILE));
    const unknown = this.#learnDestination();
    if (engine.tracer !== null) this.#follow("");
    const wrong = unknown ?? this.#judgeDestination();
    if (wrong !== null) return this.#end(wrong);
    const result = this.client.watch(false);
    if (result < 0) return this.#end(ending("resources", -result));
    this.#beginDial();
  }

  /** A connection is asked for: its SYN is held until it is known what to answer. */
  hold(slot: number, syn: Syn): void {
    const { rows: { bytes }, upstream } = this.#engine;
    this.#reset(-1, "transparent", upstream);
    this.#syn = slot;
    const length = syn.family === 4 ? 4 : 16;
    writeSockaddr(syn.source, syn.sourcePort, bytes, this.row + CLIENT, length);
    writeSockaddr(syn.destination, syn.destinationPort, bytes, this.row + DESTINATION, length);
    if (this.#engine.tracer !== null) this.#follow("");
    const wrong = this.#judgeDestination();
    if (wrong !== null) return this.#end(wrong);
    this.#beginDial();
  }

  #reset(fd: number, role: Role, upstream: Upstream): void {
    const engine = this.#engine;
    this.#enter(FRONT);
    this.#id = engine.nextId();
    this.#startedMs = engine.nowMs;
    this.#settings = engine.settings;
    this.#fronted = role === "socks";
    this.#syn = NO_SYN;
    engine.table.begin(this.row, this.#id, this.#fronted ? 1 : 0, engine.counters[NOW]!);
    this.#instead = FINISHED;
    this.#upstream = upstream;
    this.#attempt = 0;
    this.#dialErrno = 0;
    this.#firstAddress = this.#upstream.preferred;
    this.#upFinPassed = false;
    this.#downFinPassed = false;
    this.#tuned = false;
    this.#leftLookMs = 0;
    this.#traced = 0;
    this.client.reset(fd);
    this.#upFlow?.reset();
    this.#downFlow?.reset();
    if (!this.#fronted) this.#outgoing = engine.outgoing;
  }

  #beginDial(): void {
    const engine = this.#engine;
    this.#enter(DIAL);
    this.#dueMs = this.#askedMs = engine.nowMs + this.#attemptMs();
    engine.timeouts.start(this, this.#askedMs);
    this.#dial();
  }

  turn(): boolean {
    switch (this.#phase) {
      case FRONT:
        this.#ask();
        return this.#relays() && this.#relay();
      case DIAL:
        if (this.#clientLeft()) return false;
        // Of an answer to a login that the client had not taken.
        if (this.#output !== null && !this.#flushOutput() && this.#phase !== DIAL) return false;
        if (this.server.fd >= 0 && (this.server.writable || this.server.broken)) this.#greet();
        if (this.#phase === DIAL && this.#racers.length > 0) this.#lookAtRacers();
        return this.#relays() && this.#relay();
      case UPSTREAM:
        if (this.#clientLeft()) return false;
        this.#advance();
        return this.#relays() && this.#relay();
      case RELAY:
        return this.#relay();
      case RESET:
        this.#awaitAcks();
        return false;
      case REFUSED:
        return this.#linger();
      default:
        return false; // Ended while it stood in the queue.
    }
  }

  due(nowMs: number): number {
    if (this.#phase === RELAY) {
      const { halfClosedMs, idleMs } = this.#settings;
      const dead = this.client.errno !== 0 || this.server.errno !== 0;
      const halfClosed = dead || this.#upFinPassed || this.#downFinPassed;
      this.#dueMs = this.#activeMs + (halfClosed ? halfClosedMs : idleMs);
      if (nowMs >= this.#dueMs) {
        this.#end(ending(halfClosed ? "half-closed-timeout" : "idle-timeout"));
        return -1;
      }
      if (this.#tuned) this.#limitSilence();
      else if (nowMs >= this.#startedMs + TUNE_AFTER_MS) this.#tune();
      const again = this.#tuned ? nowMs + Math.ceil(this.#settings.userTimeoutMs / 3) : this.#startedMs + TUNE_AFTER_MS;
      this.#askedMs = Math.min(this.#dueMs, again);
      return this.#askedMs;
    }
    if ((this.#phase === DIAL || this.#phase === UPSTREAM) && this.#clientLeft()) return -1;
    if (nowMs >= this.#dueMs) {
      if (this.#phase === DIAL) {
        this.#dialDue();
        // The next address stood at once: what is held or was read before has no event of its own.
        if (this.#relays()) this.#engine.loop.enqueue(this);
      } else if (this.#phase === FRONT) this.#afterFront(this.#front!.late());
      else if (this.#phase === REFUSED) this.#end(this.#why);
      else if (this.#phase === GRANTED) this.#end(ending("client-left"));
      else if (this.#phase === UPSTREAM) this.#handshakeLate();
      else if (this.#phase === RESET) this.#awaitAcks();
    }
    if (this.#phase === OVER || this.bucket >= 0) return -1;
    this.#askedMs = this.#dueMs;
    return this.#askedMs;
  }

  /** An operator says so, of the tunnel with this id. */
  close(id: number): void {
    if (this.#phase !== OVER && this.#id === id) this.#end(ending("closed"));
  }

  /** The worker drains no longer. */
  cut(): void {
    if (this.#phase !== OVER) this.#end(ending("drain"));
  }

  // ---- front: where does a SOCKS client want to go?

  #beginFront(owned: boolean): void {
    const engine = this.#engine;
    this.#front ??= new SocksFront(engine, this);
    const front = this.#front;
    engine.rows.bytes.fill(0, this.row + DESTINATION, this.row + ROW_QUOTAS_END);
    this.#resolving = false;
    this.#outgoing = engine.egress!.outgoing;
    this.#dueMs = this.#askedMs = engine.nowMs + engine.egress!.settings.negotiationMs;
    const outcome = front.begin(engine.egress!);
    if (outcome !== "waits") return this.#end(front.why!);
    engine.table.enter(this.row, FRONT, engine.counters[NOW]!);
    if (front.outside) this.#dueMs = this.#askedMs = Math.min(this.#dueMs, engine.nowMs + OUTSIDE_MS);
    const result = owned ? this.client.watch(false) : -EMFILE;
    if (result < 0) return this.#end(ending("resources", -result));
    engine.timeouts.start(this, this.#askedMs);
  }

  #ask(): void {
    if (this.#output !== null && !this.#flushOutput()) return;
    this.#afterFront(this.#front!.turn());
  }

  #afterFront(outcome: Outcome): void {
    const front = this.#front!;
    switch (outcome) {
      case "waits":
        if (front.asks && this.#clientLeft()) return;
        if (front.resolves && !this.#resolving) {
          this.#resolving = true;
          this.#wait(this.#engine.nowMs + front.egress.settings.dnsMs + ANSWER_MS);
        }
        return;
      case "ready":
        if (this.#engine.tracer !== null) this.#followCandidates();
        // Its FIN may have come together with the request: no event will tell of it again.
        if (this.#clientLeft()) return;
        this.#enter(DIAL);
        this.#dialUntilMs = this.#engine.nowMs + this.#settings.dialMs;
        return this.#dialWave();
      case "refused":
        if (this.#engine.tracer !== null) this.#follow(front.name);
        return this.#refuse(front.why!);
      case "over":
        if (this.#engine.tracer !== null) this.#follow(front.name);
        return this.#end(front.why!);
    }
  }

  named(answer: NameAnswer): void {
    this.#front!.named(answer);
    this.#engine.loop.enqueue(this);
  }

  /** Main says whether the password was right. */
  verdict(id: number, right: boolean): void {
    if (id !== this.#id || this.#phase !== FRONT) return;
    this.#front!.verdict(right);
    this.#engine.loop.enqueue(this);
  }

  get id(): number {
    return this.#id;
  }

  say(length: number): boolean {
    const { sys, output } = this.#engine;
    if (this.#output !== null) return this.#addOutput(length);
    const sent = sys.send(this.client.fd, output, 0, length, MSG_NOSIGNAL);
    if (sent === length) return true;
    if (sent < 0 && sent !== -EAGAIN) return false;
    return this.#keepOutput(this.client, Math.max(0, sent), length) >= 0;
  }

  keepForTunnel(from: Memory, start: number, end: number): boolean {
    const buffer = this.#engine.buffers.take();
    if (buffer === null) return false;
    buffer.bytes.set(from.bytes.subarray(start, end), 0);
    this.#upward().preload(buffer, 0, end - start);
    return true;
  }

  /** The reply is on its way: the client shall be able to read it. */
  #refuse(why: Ending): void {
    this.#why = why;
    this.#refusalSaid = false;
    this.#closeServer(true);
    this.#enter(REFUSED);
    this.#wait(this.#engine.nowMs + REFUSED_MS);
    if (this.#linger()) this.#engine.loop.enqueue(this);
  }

  /**
   * FIN behind the reply, and then whatever the client still says is thrown away: if it stood
   * unread, close(2) would say RST, which overtakes the reply.
   */
  #linger(): boolean {
    const { sys, scratch, limits } = this.#engine;
    const { client } = this;
    if (this.#output !== null && !this.#flushOutput()) return false;
    if (!this.#refusalSaid) {
      this.#refusalSaid = true;
      sys.shutdown(client.fd, SHUT_WR);
    }
    for (let reads = limits.readsPerTurn; reads > 0; reads--) {
      if (!client.readable) return false;
      const got = sys.recv(client.fd, scratch, 0, limits.chunkBytes, 0);
      if (got === -EAGAIN) client.readable = false;
      else if (got <= 0 && got !== -EINTR) {
        this.#end(this.#why);
        return false;
      }
    }
    return true;
  }

  // ---- front: where did a redirected client want to go?

  #learnDestination(): Ending | null {
    const { sys, rows } = this.#engine;
    const client = this.row + CLIENT;
    const destination = this.row + DESTINATION;
    const result =
      this.#settings.mode === "tproxy"
        ? sys.getsockname(this.client.fd, rows, destination)
        : this.#originalDestination(client, destination);
    const { bytes } = rows;
    if (result < 0) {
      // The row has served others: what was not learnt must not be told as learnt.
      bytes.fill(0, destination, destination + SOCKADDR_SIZE);
      return ending("not-redirected", -result);
    }
    if (bytes[destination] === AF_INET6 && isMapped(bytes, destination)) unmap(bytes, destination);
    return null;
  }

  /** Nobody is led to ourselves. */
  #judgeDestination(): Ending | null {
    const { rows: { bytes }, own, loops, nowMs } = this.#engine;
    const client = this.row + CLIENT;
    const destination = this.row + DESTINATION;
    if (own.isListener(bytes, destination)) return ending("own-address");
    const ours = this.#upstream.isItself(bytes, destination)
      ? own.isLocal(bytes, client) && loops.comesBack(bytes, client, bytes, destination, nowMs)
      : loops.leads(bytes, client, bytes, destination) && own.isLocal(bytes, client);
    if (ours) return ending("loop");
    return this.#upstream.carries(bytes[destination]!) ? null : ending("upstream-refused", ADDRESS_TYPE_NOT_SUPPORTED, "", "net-unreachable");
  }

  /** SO_ORIGINAL_DST by the family of the connection, not of the listener: it may be dual-stack. */
  #originalDestination(client: number, destination: number): Result {
    const { sys, rows } = this.#engine;
    return rows.bytes[client] === AF_INET6 && !isMapped(rows.bytes, client)
      ? sys.getsockopt(this.client.fd, SOL_IPV6, IP6T_SO_ORIGINAL_DST, rows, destination, 28)
      : sys.getsockopt(this.client.fd, SOL_IP, SO_ORIGINAL_DST, rows, destination, 16);
  }

  // ---- trace: for whoever follows a connection

  /** Its destination is known, as far as it ever is: does anybody follow it? */
  #follow(name: string): void {
    const bits = this.#engine.tracer!.bits(this.#engine.rows.bytes, this.row + CLIENT, this.row + DESTINATION, name);
    if (bits === 0 || this.#traced !== 0) return;
    this.#traced = bits;
    this.#step("accepted", this.row + CLIENT);
    this.#step("destination", this.row + DESTINATION, 0, name);
  }

  /** By any of the addresses that a name has come to. */
  #followCandidates(): void {
    const { candidates, name } = this.#front!;
    for (let i = 0; i < candidates.length && this.#traced === 0; i++) {
      this.#writeCandidate(i);
      this.#follow(name);
    }
  }

  /** Tells a step. `at`: where in the row a sockaddr belongs to it; -1: none does. */
  #step(step: StepName, at = -1, errno = 0, text = "", from: Uint8Array = this.#engine.rows.bytes): void {
    const { tracer, exactMs, table } = this.#engine;
    const startedMs = table.numbers[(this.row + BEGAN) >> 3]!;
    tracer?.tell({
      // It was accepted before it was known where to.
      bits: this.#traced, step, errno, text, id: this.#id, atMs: step === "accepted" ? startedMs : exactMs(), startedMs,
      address: at < 0 || from[at] === 0 ? null : from.slice(at, at + SOCKADDR_SIZE),
      bytesUp: this.#upFlow?.bytes ?? 0, bytesDown: this.#downFlow?.bytes ?? 0,
    });
  }

  // ---- dial: one address after the other; those of a SOCKS client's destination race

  #dial(): void {
    const { rows, loops } = this.#engine;
    const upstream = this.#upstream;
    const direct = upstream.kind === "direct";
    if (!direct && upstream.addresses.length === 0) return this.#end(ending("no-address"));
    const destination = this.row + DESTINATION;
    this.#candidate = this.#attempt;
    if (this.#fronted) this.#writeCandidate(this.#candidate);
    const address = direct
      ? null
      : upstream.addresses[(this.#firstAddress + this.#attempt) % upstream.addresses.length]!;
    const memory = address?.memory ?? rows;
    const at = direct ? destination : 0;
    if (address !== null) this.#useUpstream(address.slot);
    if (this.#traced !== 0) this.#step("dial", at, 0, "", memory.bytes);
    const fd = this.#outgoing.open(memory, at, rows.bytes, this.row + CLIENT);
    if (this.#fronted && this.#front!.reports) this.#noteAttempt(this.#candidate, fd);
    if (fd < 0) return this.#attemptFailed(-fd);
    this.server.reset(fd);
    this.server.nagles = true;
    this.#takeExit(this.#outgoing.slot);
    const noted = this.#fronted ? this.#engine.transparent : direct || loops.suspicious;
    if (noted) this.#notedPort = loops.note(fd, memory.bytes, at);
    // A connection over loopback stands already, although connect() says EINPROGRESS.
    this.#greet();
  }

  #writeCandidate(index: number): void {
    const front = this.#front!;
    const { table, rows } = this.#engine;
    table.changing(this.row);
    writeSockaddr(front.candidates[index]!, front.port, rows.bytes, this.row + DESTINATION);
    table.changed(this.row, this.#phase);
  }

  #takeExit(slot: number): void {
    this.#slot = slot;
    this.#engine.table.halves[(this.row + EXIT_SLOT) >> 1] = slot;
  }

  /** It is dialled there; leaveUpstream() when that is over. */
  #useUpstream(slot: number): void {
    const { upstreams, table } = this.#engine;
    upstreams.opened(slot);
    table.halves[(this.row + UPSTREAM_SLOT) >> 1] = slot;
  }

  get #upstreamSlot(): number {
    return this.#engine.table.halves[(this.row + UPSTREAM_SLOT) >> 1]!;
  }

  #leaveUpstream(): void {
    const slot = this.#upstreamSlot;
    if (slot === NO_SLOT) return;
    this.#engine.upstreams.closed(slot);
    this.#engine.table.halves[(this.row + UPSTREAM_SLOT) >> 1] = NO_SLOT;
  }

  /** What open() has answered, for the front's report: it goes on, or is over. */
  #noteAttempt(candidate: number, fd: Result): void {
    const { sys, scratch } = this.#engine;
    if (fd < 0) return this.#front!.attempted(candidate, -fd, this.#outgoing.bound);
    // A timeout, until something else is known of it.
    const known = sys.getsockname(fd, scratch, 0) >= 0;
    this.#front!.attempted(candidate, ETIMEDOUT, known ? scratch.bytes : null);
  }

  /** As many addresses as may race have this share of the time; then it is the next ones' turn. */
  #dialWave(): void {
    const { nowMs } = this.#engine;
    const left = Math.max(0, this.#dialUntilMs - nowMs);
    const addresses = this.#front!.candidates.length - this.#attempt;
    this.#waveUntilMs = nowMs + left / Math.ceil(addresses / (1 + RACERS_MOST));
    this.#waitForRace();
    this.#dial();
  }

  get #mayRace(): boolean {
    const more = this.#attempt + 1 < this.#front!.candidates.length;
    return more && this.#racers.length < RACERS_MOST;
  }

  #waitForRace(): void {
    const raceMs = this.#mayRace ? this.#engine.nowMs + RACE_MS : Infinity;
    this.#wait(Math.min(raceMs, this.#waveUntilMs));
  }

  #dialDue(): void {
    if (!this.#fronted) return this.#attemptFailed(ETIMEDOUT);
    if (this.#engine.nowMs >= this.#waveUntilMs) {
      this.#closeRacers();
      return this.#attemptFailed(ETIMEDOUT);
    }
    // One that failed may have made room for the last address since the deadline was set.
    if (this.#mayRace) this.#race();
    this.#waitForRace();
  }

  /** One more address, beside those that have not answered. */
  #race(): void {
    const { rows, racers } = this.#engine;
    const racer = racers.take(this);
    if (racer === null) return;
    this.#attempt++;
    this.#writeCandidate(this.#attempt);
    const at = this.row + DESTINATION;
    if (this.#traced !== 0) this.#step("dial", at);
    const fd = this.#outgoing.open(rows, at, rows.bytes, this.row + CLIENT);
    if (this.#front!.reports) this.#noteAttempt(this.#attempt, fd);
    if (fd < 0) {
      this.#dialErrno = moreTelling(this.#dialErrno, -fd);
      return racers.give(racer);
    }
    racer.reset(fd);
    racer.nagles = true;
    racer.slot = this.#outgoing.slot;
    racer.candidate = this.#attempt;
    racer.notedPort = this.#engine.transparent ? this.#engine.loops.note(fd, rows.bytes, at) : 0;
    if (this.#racers === NO_RACERS) this.#racers = [];
    this.#racers.push(racer);
    if (racer.watch(true) < 0) this.#dropRacer(racer, ENOMEM);
    else racer.writable = false;
  }

  #lookAtRacers(): void {
    const { sys, output } = this.#engine;
    for (const racer of [...this.#racers]) {
      if (this.#phase !== DIAL) return;
      if (!racer.writable && !racer.broken) continue;
      const result = sys.send(racer.fd, output, 0, 0, MSG_NOSIGNAL);
      if (result === -EAGAIN) racer.writable = false;
      else if (result < 0) {
        this.#dropRacer(racer, -result);
        if (this.#mayRace) this.#race(); // One more takes its place, as for the first.
      } else return this.#won(racer);
    }
    if (this.#racers.length === 0 && this.server.fd < 0) this.#attemptFailed(this.#dialErrno);
  }

  #won(racer: Racer): void {
    this.#closeServer(true);
    this.#candidate = racer.candidate;
    this.#takeExit(racer.slot);
    this.#notedPort = racer.notedPort;
    const result = this.server.adopt(racer);
    this.#racers.splice(this.#racers.indexOf(racer), 1);
    this.#engine.racers.give(racer);
    this.#closeRacers();
    if (result < 0) return this.#attemptFailed(-result);
    this.#connected(0, 0);
  }

  #dropRacer(racer: Racer, errno: number): void {
    const { sys, ledger, loops, racers, exits } = this.#engine;
    if (errno !== 0) {
      this.#dialErrno = moreTelling(this.#dialErrno, errno);
      this.#countFailure(racer.slot, errno);
      this.#front!.attemptFailed(racer.candidate, errno);
    }
    if (racer.slot !== NO_SLOT) exits.ended(racer.slot);
    sys.setLinger(racer.fd, true, 0);
    ledger.disown(racer.fd);
    sys.close(racer.fd);
    loops.forget(racer.notedPort);
    racer.fd = -1;
    this.#racers.splice(this.#racers.indexOf(racer), 1);
    racers.give(racer);
  }

  #closeRacers(): void {
    while (this.#racers.length > 0) this.#dropRacer(this.#racers[0]!, 0);
  }

  /** Sends the first of the handshake. EAGAIN means that the connection does not stand yet. */
  #greet(): void {
    const { sys, output } = this.#engine;
    let length = 0;
    if (this.#upstream.kind !== "direct") {
      this.#handshake = this.#upstream.handshake(this.#endpoint(DESTINATION), this.#upstream.discloses ? this.#endpoint(CLIENT) : null);
      const step = this.#handshake.advance(output.bytes, 0, 0, output.bytes);
      assert(step.do === "write", "a client speaks first");
      length = step.length;
    }
    // With nothing to send this only asks whether the connection stands, and if not, why.
    const sent = sys.send(this.server.fd, output, 0, length, MSG_NOSIGNAL);
    if (sent === -EAGAIN) {
      const result = this.#watchServer(true);
      if (result < 0) this.#attemptFailed(-result);
      return;
    }
    if (sent < 0) return this.#attemptFailed(-sent);
    const result = this.#watchServer(false);
    if (result < 0) return this.#attemptFailed(-result);
    this.#connected(sent, length);
  }

  #connected(sent: number, length: number): void {
    const upstream = this.#upstream;
    this.#measure(DIAL_TIME, DIALLED_US, SINCE);
    if (this.#traced !== 0) this.#step("connected");
    if (this.#fronted) return this.#grant();
    if (upstream.kind === "direct") return this.#startRelay();
    upstream.preferred = (this.#firstAddress + this.#attempt) % upstream.addresses.length;
    this.#enter(UPSTREAM);
    this.#wait(this.#engine.nowMs + this.#settings.handshakeMs);
    if (sent < length) this.#keepOrEnd(sent, length);
  }

  /** What it took from the time at row + `from` until now. */
  #measure(meter: number, at: number, from: number): void {
    const { table, meters, counters } = this.#engine;
    const us = (counters[NOW]! - table.numbers[(this.row + from) >> 3]!) * 1000;
    observe(meters, meter, us);
    table.words[(this.row + at) >> 2] = us;
  }

  /** Only now may a SOCKS client be told so, and by which address. */
  #grant(): void {
    const { sys, rows, table } = this.#engine;
    this.#closeRacers();
    this.#writeCandidate(this.#candidate); // Racers have written theirs.
    table.changing(this.row);
    sys.getsockname(this.server.fd, rows, this.row + SOURCE);
    table.changed(this.row, this.#phase);
    if (this.#slot !== NO_SLOT) this.#engine.exits.answered(this.#slot);
    if (!this.#front!.reply(0, rows, this.row + SOURCE)) return this.#end(ending("client-left"));
    if (this.#traced !== 0) this.#step("granted", this.row + SOURCE);
    this.#startRelay();
  }

  /** Registers the upstream's socket, once. */
  #watchServer(writing: boolean): Result {
    const server = this.server;
    if (server.watched) {
      if (writing) server.writable = false;
      return 0;
    }
    if (writing) server.writable = false;
    return server.watch(writing);
  }

  /** The next address, if there is one; else the tunnel is over. */
  #attemptFailed(errno: number): void {
    const engine = this.#engine;
    if (this.server.fd >= 0) {
      this.#countFailure(this.#slot, errno);
      if (this.#fronted) this.#front!.attemptFailed(this.#candidate, errno);
    }
    if (this.#upstreamSlot !== NO_SLOT && !isShortage(errno)) engine.upstreams.dialFailed(this.#upstreamSlot);
    if (this.#traced !== 0) this.#step("dial-failed", -1, errno);
    this.#closeServer(true);
    this.#handshake = null;
    this.#dialErrno = moreTelling(this.#dialErrno, errno);
    if (this.#fronted) return this.#candidateFailed(errno);
    if (isShortage(errno)) return this.#end(ending("resources", errno));
    engine.counters[DIAL_FAILURES]!++;
    if (++this.#attempt < this.#upstream.addresses.length && this.#upstream.kind !== "direct") {
      this.#wait(engine.nowMs + this.#attemptMs());
      return this.#dial();
    }
    const reason = errno === ETIMEDOUT ? "dial-timeout" : "dial-failed";
    // Of an upstream that cannot be reached nobody knows what it would have said.
    const cause = this.#upstream.kind === "direct" ? causeOfErrno(errno) : "unknown";
    this.#end(ending(reason, errno, "", cause));
  }

  /** Silence may be the egress address's fault; a refusal is an answer to it, a shortage our own. */
  #countFailure(slot: number, errno: number): void {
    const { exits } = this.#engine;
    if (slot === NO_SLOT || isShortage(errno)) return;
    if (errno === ECONNREFUSED) exits.answered(slot);
    else exits.failed(slot, this.#front!.clientHash);
  }

  #candidateFailed(errno: number): void {
    const front = this.#front!;
    const shortage = isShortage(errno) && errno !== EADDRNOTAVAIL;
    if (this.#racers.length > 0 && !shortage) {
      // Others are on their way; one more takes the place of this one.
      if (this.#attempt + 1 < front.candidates.length) this.#race();
      return;
    }
    if (!shortage && this.#attempt + 1 < front.candidates.length && this.#engine.nowMs < this.#dialUntilMs) {
      this.#attempt++;
      return this.#dialWave();
    }
    this.#closeRacers();
    const worst = shortage ? errno : this.#dialErrno;
    const why = isShortage(worst) ? ending("resources", worst)
      : worst === ETIMEDOUT ? ending("dest-timeout", 0, "", "timeout")
        : ending("dest-failed", worst, "", causeOfErrno(worst));
    if (!front.reply(worst, null, 0)) return this.#end(why);
    this.#refuse(why);
  }

  /** This attempt's share of the time that is left for dialling. */
  #attemptMs(): number {
    const { nowMs } = this.#engine;
    const left = Math.max(0, this.#startedMs + this.#settings.dialMs - nowMs);
    const attempts = this.#upstream.kind === "direct" ? 1 : this.#upstream.addresses.length;
    return left / Math.max(1, attempts - this.#attempt);
  }

  // ---- upstream: its handshake

  #advance(): void {
    const { sys, buffers, scratch } = this.#engine;
    const server = this.server;
    if (this.#output !== null) {
      if (!this.#flushOutput()) return;
      // What had come before the write was cut short has waited in #input.
      const end = this.#inputEnd;
      this.#inputEnd = 0;
      this.#feed(this.#input ?? scratch, end);
    }
    while (server.readable && this.#phase === UPSTREAM && this.#output === null) {
      const into = this.#input ?? scratch;
      const start = this.#inputEnd;
      const room = buffers.bufferBytes - start;
      const got = sys.recv(server.fd, into, start, room, 0);
      if (got === -EAGAIN) {
        server.readable = false;
        return;
      }
      if (got === -EINTR) continue;
      if (got <= 0) return this.#end(this.#refused() ?? ending("upstream-closed", -got));
      if (got < room && !server.finished && !server.urgent) server.readable = false;
      this.#feed(into, start + got);
    }
  }

  /** For the log: the egress says by which address it has gone on. */
  #noteSource(source: Uint8Array | null): void {
    if (source === null) return;
    const { table, rows } = this.#engine;
    table.changing(this.row);
    rows.bytes.set(source, this.row + SOURCE);
    table.changed(this.row, this.#phase);
  }

  /** The upstream has said no, and will say no more of why; null: it has not. */
  #refused(): Ending | null {
    const refusal = this.#handshake!.refusal;
    return refusal === null ? null : failed(refusal, this.#upstream.trust);
  }

  #handshakeLate(): void {
    const cause = this.#handshake!.asked ? "timeout" : "unknown";
    this.#end(this.#refused() ?? ending("handshake-timeout", 0, "", cause));
  }

  /** Plays the machine over into[0, end) as far as it goes. */
  #feed(into: Memory, end: number): void {
    const { sys, output } = this.#engine;
    let start = 0;
    for (;;) {
      const step = this.#handshake!.advance(into.bytes, start, end, output.bytes);
      switch (step.do) {
        case "read":
          return this.#keepInput(into, start, end);
        case "write": {
          start += step.consumed;
          const sent = sys.send(this.server.fd, output, 0, step.length, MSG_NOSIGNAL);
          if (sent < 0 && sent !== -EAGAIN) return this.#end(ending("upstream-closed", -sent));
          if (sent < step.length) {
            this.#keepInput(into, start, end);
            if (this.#phase === UPSTREAM) this.#keepOrEnd(Math.max(0, sent), step.length);
            return;
          }
          break;
        }
        case "finish":
          start += step.consumed;
          this.#noteSource(this.#handshake!.source);
          if (start < end && !this.#preload(into, start, end)) return;
          return this.#startRelay();
        case "fail":
          return this.#failed(step.failure, into, start, end);
      }
    }
  }

  /** It is over; or what the upstream says of it, input[start, end) and more, is the client's to read. */
  #failed(failure: Failure, into: Memory, start: number, end: number): void {
    const why = failed(failure, this.#upstream.trust);
    const isAnswer = failure.code === "status" || failure.code === "auth-refused";
    if (!isAnswer || !this.#upstream.forwards || this.#syn !== NO_SYN) return this.#end(why);
    if (!this.#preload(into, start, end)) return;
    this.#instead = why;
    this.#startRelay();
  }

  #keepInput(into: Memory, start: number, end: number): void {
    const { buffers } = this.#engine;
    if (start === end) {
      this.#inputEnd = 0;
      return;
    }
    if (end - start >= buffers.bufferBytes) {
      return this.#end(ending("upstream-malformed", 0, "reply too long"));
    }
    if (this.#input === null) {
      this.#input = buffers.take();
      if (this.#input === null) return this.#end(ending("resources", ENOBUFS));
    }
    if (this.#input === into) into.bytes.copyWithin(0, start, end);
    else this.#input.bytes.set(into.bytes.subarray(start, end), 0);
    this.#inputEnd = end - start;
  }

  /** Bytes behind the handshake's last reply are the tunnel's first. */
  #preload(into: Memory, start: number, end: number): boolean {
    let buffer = this.#input;
    this.#input = null;
    if (buffer === null) {
      buffer = this.#engine.buffers.take();
      if (buffer === null) {
        this.#end(ending("resources", ENOBUFS));
        return false;
      }
      buffer.bytes.set(into.bytes.subarray(start, end), 0);
      end -= start;
      start = 0;
    }
    this.#downward().preload(buffer, start, end);
    return true;
  }

  /** Keeps output[sent, length) for a socket that would take no more. 0, or -errno. */
  #keepOutput(to: Socket, sent: number, length: number): Result {
    const { buffers, output } = this.#engine;
    const result = to.awaitWritable();
    if (result < 0) return result;
    this.#output = buffers.take();
    if (this.#output === null) return -ENOBUFS;
    this.#output.bytes.set(output.bytes.subarray(sent, length), 0);
    this.#outputTo = to;
    this.#outputAt = 0;
    this.#outputEnd = length - sent;
    return 0;
  }

  #keepOrEnd(sent: number, length: number): void {
    const result = this.#keepOutput(this.server, sent, length);
    if (result < 0) this.#end(ending("resources", -result));
  }

  /** Behind what is kept already. */
  #addOutput(length: number): boolean {
    const { buffers, output } = this.#engine;
    if (this.#outputEnd + length > buffers.bufferBytes) return false;
    this.#output!.bytes.set(output.bytes.subarray(0, length), this.#outputEnd);
    this.#outputEnd += length;
    return true;
  }

  /** False while some is left, or when that ended the tunnel. */
  #flushOutput(): boolean {
    const { sys, buffers } = this.#engine;
    const buffer = this.#output!;
    const to = this.#outputTo;
    while (this.#outputAt < this.#outputEnd) {
      if (!to.writable) return false;
      const length = this.#outputEnd - this.#outputAt;
      const sent = sys.send(to.fd, buffer, this.#outputAt, length, MSG_NOSIGNAL);
      if (sent === -EAGAIN) to.writable = false;
      else if (sent === -EINTR) continue;
      else if (sent < 0) {
        this.#end(to === this.client ? ending("client-reset", -sent) : ending("upstream-closed", -sent));
        return false;
      } else this.#outputAt += sent;
    }
    buffers.give(buffer);
    this.#output = null;
    return true;
  }

  /**
   * While the upstream is not ready, a client that has gone ends the attempt. A reset says so. FIN
   * does not: it may have said all that it has to say, and await the answer.
   */
  #clientLeft(): boolean {
    const { client } = this;
    if (!client.broken) {
      if (!client.finished) return false;
      if (this.#fronted ? !this.#saysNoMore() : !this.#isOrphan()) return false;
    }
    this.#end(ending("client-left", client.errno));
    return true;
  }

  /** A SOCKS client says FIN in front of "granted", and has said nothing for its destination. */
  #saysNoMore(): boolean {
    if (this.#upFlow !== null && this.#upFlow.held > 0) return false;
    // What stands behind a login that is being verified is still to be read.
    if (this.#front!.holds) return false;
    const { sys, scratch } = this.#engine;
    const result = sys.recv(this.client.fd, scratch, 0, 1, MSG_PEEK);
    if (result > 0 || result === -EAGAIN || result === -EINTR) return false;
    this.client.errno = -result;
    return true;
  }

  /**
   * Nobody waits for an answer any more: known of programs of this host alone. A program that goes
   * on waiting, and then goes, sends nothing more; so the question is repeated.
   */
  #isOrphan(): boolean {
    const { rows, own, orphans, nowMs } = this.#engine;
    const client = this.row + CLIENT;
    if (!own.isLocal(rows.bytes, client)) return false;
    if (nowMs >= this.#leftLookMs) {
      if (orphans.has(rows.bytes, client, rows.bytes, this.row + DESTINATION)) return true;
      const hereMs = nowMs - this.#startedMs;
      this.#leftLookMs = nowMs + Math.min(Math.max(hereMs, LEFT_LOOK_MS), LEFT_LOOK_MOST_MS);
    }
    this.#askBy(Math.min(this.#leftLookMs, this.#dueMs));
    return false;
  }

  // ---- granted: a connection that is only asked for may be made

  #awaitClient(): void {
    const { syns, nowMs } = this.#engine;
    if (!syns!.comesHere(this.#syn)) {
      // Another process accepts by now, and will dial for it.
      syns!.letGo(this.#syn);
      this.#syn = NO_SYN;
      return this.#end(ending("drain"));
    }
    this.#enter(GRANTED);
    syns!.grant(this.#syn);
    if (this.#traced !== 0) this.#step("granted");
    this.#wait(nowMs + PAIR_MS);
  }

  /** SYNs of this lane are not held any more. */
  letGo(lane: number): void {
    const dialling = this.#phase === DIAL || this.#phase === UPSTREAM;
    if (this.#syn !== NO_SYN && dialling && this.#engine.syns!.lane(this.#syn) === lane) this.#end(ending("drain"));
  }

  /** The connection that was asked for is made, and this is it; before its time, if a copy went by. */
  accepted(fd: number): void {
    const { ledger, owner, loop, syns } = this.#engine;
    const granted = this.#phase === GRANTED;
    if (granted) syns!.forget(this.#syn);
    else syns!.ignore(this.#syn);
    this.#syn = NO_SYN;
    this.client.reset(fd);
    const result = ledger.own(fd, owner) ? this.client.watch(false) : -EMFILE;
    if (result < 0) return this.#end(ending("resources", -result));
    if (granted) this.#beginRelay();
    // What the server has said meanwhile has no event of its own any more.
    loop.enqueue(this);
  }

  /** Whoever asked does not want it any more; the SYN is not answered. */
  abandoned(): void {
    this.#why = ending("client-left");
    if (this.#phase === DIAL || this.#phase === UPSTREAM) {
      this.#engine.syns!.ignore(this.#syn);
      this.#syn = NO_SYN;
    }
    this.#end(this.#why);
  }

  #endSyn(why: Ending): void {
    const syns = this.#engine.syns!;
    const slot = this.#syn;
    this.#syn = NO_SYN;
    if (this.#phase === GRANTED) return syns.forget(slot);
    if (why.reason === "drain") return syns.letGo(slot);
    // What is our own fault says nothing of the destination, and a refusal is over soonest.
    const { blame } = KINDS[why.reason];
    const unknown = blame === "us" || blame === "client" ? "refused" : this.#settings.unknownAs;
    syns.refuse(slot, refusalOf(why.cause === "unknown" ? unknown : why.cause));
  }

  // ---- relay

  #startRelay(): void {
    const { loops } = this.#engine;
    this.#handshake = null;
    if (this.#input !== null) {
      this.#engine.buffers.give(this.#input);
      this.#input = null;
    }
    this.#inputEnd = 0;
    if (this.#phase === UPSTREAM) {
      this.#measure(HANDSHAKE_TIME, SHAKEN_US, SINCE);
      if (this.#traced !== 0) this.#step("handshake-done");
    }
    if (this.#upstream.kind !== "direct") {
      loops.answered();
      if (!this.client.readable) this.#acknowledge();
    }
    if (this.#syn === NO_SYN) this.#beginRelay();
    else this.#awaitClient();
  }

  /**
   * Where the server is to speak first, nothing of ours carries the acknowledgement of the upstream's
   * answer, and the kernel keeps it for 40 ms: an upstream with Nagle's algorithm (RFC 9293, 3.7.4)
   * holds the server's first words so long. This sends it at once (tcp(7), TCP_QUICKACK).
   */
  #acknowledge(): void {
    this.#engine.sys.setsockopt(this.server.fd, SOL_TCP, TCP_QUICKACK, 1);
  }

  #beginRelay(): void {
    const { nowMs, settings } = this.#engine;
    this.#enter(RELAY);
    this.#grantedMs = nowMs;
    if (this.#fronted) this.#engine.socks.begins();
    this.#activeMs = nowMs;
    this.#wait(Math.min(nowMs + this.#settings.idleMs, this.#startedMs + TUNE_AFTER_MS));
    if (settings.journalAll || this.#isLearnt()) this.#journal(STARTED, FINISHED);
  }

  /** The destination was remembered as one that fails: it does not, and main is to know. */
  #isLearnt(): boolean {
    const { learnt, rows } = this.#engine;
    return learnt !== null && !this.#fronted && learnt.mayHave(rows.bytes, this.row + DESTINATION);
  }

  #relays(): boolean {
    return this.#phase === RELAY;
  }

  #relay(): boolean {
    const { client, server } = this;
    const up = this.#upward();
    const down = this.#downward();
    if (client.urgent || server.urgent) this.#keepUrgentInline();
    // The end of "granted" that the client has not taken: nothing may stand in front of it.
    if (this.#output !== null && !this.#flushOutput()) return false;
    let again = false;
    // Most events are of one end, and for one direction.
    if (!up.rests && server.errno === 0) again = up.pump();
    if (!down.rests && client.errno === 0 && down.pump()) again = true;
    this.#count();
    if (client.broken && up.over && client.errno === 0) this.#askError(client);
    if (server.broken && down.over && server.errno === 0) this.#askError(server);
    if (client.errno !== 0 || server.errno !== 0) return this.#broken() || again;
    if (up.over && down.over) {
      // close(2) says FIN to whoever has not heard it yet.
      this.#end(FINISHED);
      return false;
    }
    if (up.over && !this.#upFinPassed) {
      this.#upFinPassed = true;
      this.#halfClosedMs = this.#engine.nowMs;
      this.#passFin(server);
    }
    if (down.over && !this.#downFinPassed) {
      this.#downFinPassed = true;
      this.#halfClosedMs = this.#engine.nowMs;
      this.#passFin(client);
    }
    return again;
  }

  /**
   * It was reset after it had said FIN: recv goes on to say that it has ended, so ask SO_ERROR.
   */
  #askError(end: Socket): void {
    const { sys, scratch } = this.#engine;
    end.broken = false; // Once is enough.
    if (sys.getsockopt(end.fd, SOL_SOCKET, SO_ERROR, scratch, 0, 4) < 0) return;
    end.errno = scratch.view.getInt32(0, true);
    if (end.errno !== 0) end.broken = true;
  }

  #passFin(to: Socket): void {
    if (this.#traced !== 0) this.#step(to === this.server ? "fin-up" : "fin-down");
    this.#engine.sys.shutdown(to.fd, SHUT_WR);
    this.#wait(this.#engine.nowMs + this.#settings.halfClosedMs);
  }

  /**
   * One end is dead. The other gets what the dead one had still said, and then a reset. True if
   * the rest wants another turn.
   */
  #broken(): boolean {
    const { client, server } = this;
    if (client.errno !== 0 && server.errno !== 0) {
      this.#end(this.#deathOf(client));
      return false;
    }
    const dead = client.errno !== 0 ? client : server;
    const rest = dead === client ? this.#upward() : this.#downward();
    (dead === client ? this.#downward() : this.#upward()).release();
    this.#wait(this.#engine.nowMs + this.#settings.halfClosedMs);
    if (!rest.over) {
      const again = rest.pump();
      this.#count();
      if (client.errno !== 0 && server.errno !== 0) {
        this.#end(this.#deathOf(dead));
        return false;
      }
      if (!rest.over) return again;
    }
    if (this.#traced !== 0) this.#step("reset", -1, dead.errno, dead === client ? "client" : "destination");
    this.#enter(RESET);
    this.#activeMs = this.#engine.nowMs;
    this.#unacked = Infinity;
    this.#awaitAcks();
    return false;
  }

  /**
   * A reset throws away what the kernel has not delivered yet (SO_LINGER {1,0}; socket(7)). So it
   * waits until the receiver has acknowledged every byte, as long as that gets on.
   */
  #awaitAcks(): void {
    const { sys, nowMs } = this.#engine;
    const dead = this.client.errno !== 0 ? this.client : this.server;
    const alive = dead === this.client ? this.server : this.client;
    const unacked = alive.broken ? 0 : sys.ioctlInt(alive.fd, SIOCOUTQ);
    if (unacked <= 0) return this.#end(this.#deathOf(dead));
    if (unacked < this.#unacked) {
      this.#unacked = unacked;
      this.#activeMs = nowMs;
    } else if (nowMs >= this.#activeMs + RESET_STALL_MS) return this.#end(this.#deathOf(dead));
    this.#wait(nowMs + RESET_LOOK_MS);
  }

  #deathOf(dead: Socket): Ending {
    if (isShortage(dead.errno)) return ending("resources", dead.errno);
    return ending(dead === this.client ? "client-reset" : "server-reset", dead.errno);
  }

  /** Urgent data cannot be passed on as such; in line, at least its byte is not lost. */
  #keepUrgentInline(): void {
    const { sys } = this.#engine;
    if (this.client.urgent) sys.setsockopt(this.client.fd, SOL_SOCKET, SO_OOBINLINE, 1);
    if (this.server.urgent) sys.setsockopt(this.server.fd, SOL_SOCKET, SO_OOBINLINE, 1);
  }

  #tune(): void {
    this.#tuned = true;
    const { sys } = this.#engine;
    const settings = this.#settings;
    for (const { fd } of [this.client, this.server]) {
      // What the kernel will not set here (a range) it keeps at its own value; no reason to end.
      sys.setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
      sys.setsockopt(fd, SOL_TCP, TCP_KEEPIDLE, Math.ceil(settings.keepaliveIdleMs / 1000));
      sys.setsockopt(fd, SOL_TCP, TCP_KEEPINTVL, Math.ceil(settings.keepaliveIntervalMs / 1000));
      sys.setsockopt(fd, SOL_TCP, TCP_KEEPCNT, settings.keepaliveProbes);
    }
    this.#limitSilence();
  }

  /**
   * TCP_USER_TIMEOUT counts the time that a peer keeps its window closed as well, though it answers
   * each probe (tcp_probe_timer()); but a reader may pause (RFC 9293, 3.8.6.1). So it is taken off
   * meanwhile, which leaves tcp_retries2 for a peer that goes then. To be called several times in
   * that time.
   */
  #limitSilence(): void {
    for (const end of [this.client, this.server]) {
      const ms = this.#isPaused(end) ? 0 : this.#settings.userTimeoutMs;
      this.#engine.sys.setsockopt(end.fd, SOL_TCP, TCP_USER_TIMEOUT, ms);
    }
  }

  /** There are bytes for it, and none is on its way: its window is closed. */
  #isPaused(end: Socket): boolean {
    const { sys, scratch } = this.#engine;
    if (sys.getsockopt(end.fd, SOL_TCP, TCP_INFO, scratch, 0, TCPI_NOTSENT_BYTES + 4) < 0) return false;
    const { view } = scratch;
    return view.getUint32(TCPI_UNACKED, true) === 0 && view.getUint32(TCPI_NOTSENT_BYTES, true) > 0;
  }

  /** Counts what moved since last time; that is also what keeps a tunnel from being idle. */
  #count(): void {
    const { counters, table, nowMs } = this.#engine;
    const { numbers } = table;
    const row = this.row >> 3;
    const up = this.#upward().bytes;
    const down = this.#downward().bytes;
    const countedUp = numbers[row + (UP >> 3)]!;
    const countedDown = numbers[row + (DOWN >> 3)]!;
    if (up !== countedUp) {
      if (countedUp === 0 && this.#traced !== 0) this.#step("first-byte-up");
      counters[BYTES_UP]! += up - countedUp;
      numbers[row + (UP >> 3)] = up;
      numbers[row + (ACTIVE >> 3)] = nowMs;
    }
    if (down !== countedDown) {
      counters[BYTES_DOWN]! += down - countedDown;
      numbers[row + (DOWN >> 3)] = down;
      numbers[row + (ACTIVE >> 3)] = nowMs;
      if (countedDown === 0) {
        this.#measure(FIRST_BYTE_TIME, FIRST_BYTE_US, BEGAN);
        if (this.#traced !== 0) this.#step("first-byte-down");
      }
    }
  }

  /** When something moved last. */
  get #activeMs(): number {
    return this.#engine.table.numbers[(this.row + ACTIVE) >> 3]!;
  }

  set #activeMs(nowMs: number) {
    this.#engine.table.numbers[(this.row + ACTIVE) >> 3] = nowMs;
  }

  // ---- over

  #end(why: Ending): void {
    const engine = this.#engine;
    const reset = why !== FINISHED && this.#phase !== REFUSED;
    if (this.#phase === UPSTREAM && KINDS[why.reason].blame === "upstream") {
      engine.upstreams.handshakeFailed(this.#upstreamSlot);
    }
    engine.timeouts.stop(this);
    if (this.#fronted) this.#endFront(why);
    this.#upFlow?.release();
    this.#downFlow?.release();
    if (this.#input !== null) engine.buffers.give(this.#input);
    if (this.#output !== null) engine.buffers.give(this.#output);
    this.#input = null;
    this.#inputEnd = 0;
    this.#output = null;
    this.#handshake = null;
    this.#closeRacers();
    this.#closeServer(reset);
    if (this.#syn !== NO_SYN) this.#endSyn(why);
    else if (this.client.fd >= 0) this.#closeClient(reset);
    const told = why === FINISHED ? this.#instead : why;
    this.#journal(ENDED, told);
    if (this.#traced !== 0) this.#step("ended", -1, KINDS[told.reason].detail === "errno" ? told.detail : 0, told.reason);
    this.#enter(OVER);
    engine.ended(this, told, engine.nowMs - this.#startedMs);
  }

  #endFront(why: Ending): void {
    const { socks, nowMs } = this.#engine;
    this.#front!.end();
    if (this.#phase !== RELAY && this.#phase !== RESET) return;
    const ms = nowMs - this.#grantedMs;
    const up = this.#upFlow?.bytes ?? 0;
    const down = this.#downFlow?.bytes ?? 0;
    const failed = why.reason === "client-reset" || why.reason === "server-reset";
    const firstMs = this.#halfClosedMs - this.#grantedMs;
    const upMs = this.#upFinPassed ? firstMs : ms;
    const downMs = this.#downFinPassed ? firstMs : ms;
    socks.ends(why === FINISHED, ms, up, down, upMs, downMs, failed && this.client.errno !== 0, failed && this.server.errno !== 0);
  }

  #closeClient(reset: boolean): void {
    const { sys, ledger } = this.#engine;
    if (reset) sys.setLinger(this.client.fd, true, 0);
    ledger.disown(this.client.fd);
    sys.close(this.client.fd);
    this.client.fd = -1;
  }

  #closeServer(reset: boolean): void {
    const { sys, ledger, loops, exits } = this.#engine;
    const { fd } = this.server;
    this.#leaveUpstream();
    if (fd < 0) return;
    this.server.fd = -1;
    if (this.#slot !== NO_SLOT) exits.ended(this.#slot);
    this.#slot = NO_SLOT;
    // Without SO_LINGER {1,0} close(2) says FIN, and a truncated transfer looks complete.
    if (reset) sys.setLinger(fd, true, 0);
    ledger.disown(fd);
    sys.close(fd);
    loops.forget(this.#notedPort);
    this.#notedPort = 0;
  }

  #journal(kind: number, why: Ending): void {
    const front = this.#fronted ? this.#front! : null;
    this.#engine.journal(
      kind, why, this.#id, this.#startedMs, this.#upFlow?.bytes ?? 0, this.#downFlow?.bytes ?? 0, this.row,
      front?.version ?? 0, front?.name ?? "", front?.user ?? "",
    );
  }

  /** The sockaddr of the row at `which`. */
  #endpoint(which: number): Destination {
    const { bytes } = this.#engine.rows;
    const at = this.row + which;
    const port = portOf(bytes, at);
    if (bytes[at] !== AF_INET6) return { bytes, at: at + 4, length: 4, port };
    return isMapped(bytes, at) ? { bytes, at: at + 20, length: 4, port } : { bytes, at: at + 8, length: 16, port };
  }

  /** The deadline is now `atMs`. */
  #wait(atMs: number): void {
    this.#dueMs = atMs;
    this.#askBy(atMs);
  }

  /** The wheel is told only if it would ask too late. */
  #askBy(atMs: number): void {
    if (atMs >= this.#askedMs && this.bucket >= 0) return;
    this.#askedMs = atMs;
    this.#engine.timeouts.start(this, atMs);
  }

  #enter(phase: number): void {
    assert(NEXT[this.#phase]!.includes(phase), `phase ${phase} cannot follow ${this.#phase}`);
    this.#phase = phase;
    // In its first moments it is not to be seen: there is nothing but the client's address.
    if (phase !== FRONT) this.#engine.table.enter(this.row, phase, this.#engine.counters[NOW]!);
  }
}

/** The kernel lacks something; no one's address is to blame. */
const isShortage = (errno: number): boolean =>
  errno === EMFILE || errno === ENFILE || errno === ENOBUFS || errno === ENOMEM ||
  errno === ENOSPC || errno === EADDRNOTAVAIL;

/** Of what several addresses have said: who answers, even with a refusal, knows most. */
function moreTelling(a: number, b: number): number {
  return TELLING.indexOf(b) > TELLING.indexOf(a) || a === 0 ? b : a;
}

const TELLING: readonly number[] = [ENETUNREACH, ETIMEDOUT, EHOSTUNREACH, ECONNREFUSED];

/** A sockaddr_in6 with a v4-mapped address becomes the sockaddr_in that it means. */
function unmap(bytes: Uint8Array, at: number): void {
  bytes[at] = 2; // AF_INET; the port stays where it is.
  bytes.copyWithin(at + 4, at + 20, at + 24);
}

/** What a client hears whose SYN is held. */
function refusalOf(cause: Cause): Refusal | "silence" {
  switch (cause) {
    case "host-unreachable":
    case "net-unreachable":
      return cause;
    case "not-allowed":
      return "prohibited";
    case "timeout":
      return "silence";
    case "refused":
    case "unknown":
      return "reset";
  }
}

function failed(failure: Failure, trust: Trust): Ending {
  switch (failure.code) {
    case "malformed":
      return ending("upstream-malformed", 0, failure.detail);
    case "too-long":
      return ending("upstream-malformed", 0, `reply longer than ${failure.bytesMax} bytes`);
    case "no-method":
      return ending("upstream-no-method");
    case "auth-refused":
      return ending("upstream-auth");
    case "refused":
      return refusedBy(failure.reply, failure.report, trust);
    case "status":
      return ending("upstream-status", failure.status, "", causeOfStatus(trust, failure.status, failure.errno));
  }
}

/** Our own egress knows the errno, unless it was a name that failed, or a shortage of its own. */
function refusedBy(reply: number, report: Report | null, trust: Trust): Ending {
  const exact = report === null ? "unknown" : causeOfErrno(report.errno);
  const cause = exact === "unknown" ? causeOfReply(trust, reply) : exact;
  return ending("upstream-refused", reply, "", cause, report);
}
