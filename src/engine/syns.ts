/**
 * Truthful connect(): the SYNs that the rules have put into queues of the kernel's. Each begins a
 * session, which dials; by what comes of that the SYN goes on, is refused, or stays unanswered.
 *
 *   heard ──► HELD ──► granted ──► GRANTED ──► accepted, and the session has its client
 *               └────► refused, or left in silence
 *
 * Owns the table of SYNs and the sockets that refuse; the queues are their maker's. Whatever goes
 * wrong here, the SYN goes on as if it had not been held, and is dialled for when it is accepted.
 */
import {
  EAGAIN, EPOLLET, EPOLLIN, IP6T_SO_ORIGINAL_DST, MSG_DONTWAIT, SOL_IP, SOL_IPV6, SOL_TCP,
  SO_ORIGINAL_DST, TCP_SAVED_SYN, AF_INET6, EBADF, ENOTSOCK,
} from "../../native-bindings/constants.ts";
import {
  NF_ACCEPT, NF_DROP, type QueuedPacket, readPacket, VERDICT_BYTES, writeVerdict,
} from "../../native-bindings/nfnetlink-queue.ts";
import type { Memory } from "../../native-bindings/syscalls.ts";
import { isMapped, portOf } from "../policy/own.ts";
import { readSyn, type Refusal, Syn } from "../protocol/syn.ts";
import { assert } from "./assert.ts";
import { Conntrack } from "./conntrack.ts";
import { HEARD, PAIRED, UNANSWERED, UNHELD } from "./counters.ts";
import type { Engine } from "./engine.ts";
import type { Source, Task } from "./loop.ts";
import { Refuser } from "./refuser.ts";
import { GRANTED, SynTable } from "./syn-table.ts";

/** Crosses threads: data only. */
export interface TruthfulSettings {
  /** By our own packet, or by a REJECT rule for marked ones. */
  readonly answer: "raw" | "reject";
  /** What a client hears whose destination said nothing. */
  readonly timeoutAs: "silence" | "host-unreachable";
  /** Queues, and listening sockets of each address that one worker accepts from. */
  readonly lanes: number;
  /** Eight bits of the mark are ours from here: the lane in the lower four, a refusal above. */
  readonly markShift: number;
}

/** What the rules are told by the mark of a SYN that they are to REJECT. */
const REFUSALS: readonly Refusal[] = ["reset", "host-unreachable", "net-unreachable", "prohibited"];
/** One message: its headers, and as much of the packet as main has asked for. */
const MESSAGE_BYTES = 1024;
const SAVED_SYN_BYTES = 256;
/** More than a socket's buffer has room for. */
const LEFT_MAX = 65_536;
/** Verdicts that leave by one call. */
const VERDICTS_MAX = 64;
const NO_ROW = -1;
/**
 * connect(2) still holds the lock of its socket as the SYN is queued, and an ICMP error that comes
 * then is put off to the next SYN, a second later (tcp_v4_err). No answer comes before this, in ms.
 */
const EARLIEST_MS = 0.2;

export class Syns implements Task {
  readonly #engine: Engine;
  /** Those that hold now, or held before the mode was switched off. */
  #settings: TruthfulSettings;
  readonly #table: SynTable;
  readonly #refuser: Refuser;
  readonly #conntrack: Conntrack;
  readonly #queues = new Map<number, SynQueue>();
  readonly #lanes: (SynQueue | undefined)[] = [];
  readonly #verdict: Memory;
  readonly #saved: Memory;
  readonly #accepted = new Syn();
  readonly #answered = new Syn();
  /** By slot: when it came, to the microsecond. */
  readonly #heardMs: Float64Array;
  /** Refusals that would come too early. */
  readonly #early: { readonly slot: number; readonly refusal: Refusal }[] = [];
  /** Verdicts that wait for the end of the turn. */
  #gathered = 0;
  /** How many are let go on and not accepted yet. */
  granted = 0;
  queued = false;

  constructor(engine: Engine, settings: TruthfulSettings, shared: SharedArrayBuffer, slots: number) {
    this.#engine = engine;
    this.#settings = settings;
    this.#table = new SynTable(shared, Math.random() * 2 ** 32);
    this.#heardMs = new Float64Array(slots);
    this.#refuser = new Refuser(engine);
    this.#conntrack = new Conntrack(engine);
    this.#verdict = engine.sys.memory(VERDICT_BYTES);
    this.#saved = engine.sys.memory(SAVED_SYN_BYTES);
  }


  /** SYNs whose sessions wait, for their upstream or for their client. */
  get size(): number {
    return this.#table.size;
  }

  configure(settings: TruthfulSettings | null): void {
    if (settings !== null) this.#settings = settings;
  }

  /** Reads a queue from now on, which stays its maker's. */
  read(fd: number, queue: number, lane: number): void {
    const { loop } = this.#engine;
    const source = new SynQueue(this.#engine, this, fd, queue, lane);
    const result = loop.add(fd, EPOLLIN | EPOLLET, loop.number(source));
    assert(result >= 0, `epoll_ctl for a queue answered ${result}`);
    this.#queues.set(fd, source);
    this.#lanes[lane] = source;
  }

  /**
   * Reads it no longer. What is held is still decided; `letPass`: what is not read yet goes on.
   * Answers its lane, or -1.
   */
  stop(fd: number, letPass: boolean): number {
    const source = this.#queues.get(fd);
    if (source === undefined) return -1;
    this.#answerEarly();
    if (letPass) source.letPass();
    this.#engine.loop.remove(fd);
    source.stopped = true;
    this.#queues.delete(fd);
    return source.lane;
  }

  lane(slot: number): number {
    return this.#table.lane(slot);
  }

  /** There may be room again. */
  resume(): void {
    for (const source of this.#queues.values()) if (source.waiting) this.#engine.loop.enqueue(source);
  }

  /**
   * Sends what grant() has gathered; to be called at the end of a turn. A verdict that lets a SYN go on
   * is the whole handshake within send(): one after the other they cost a third less than among other work.
   */
  decideGathered(): void {
    if (this.#gathered === 0) return;
    this.#gathered = 0;
    for (const source of this.#lanes) source?.decideGathered();
  }

  dispose(): void {
    this.#answerEarly();
    this.#refuser.dispose();
    this.#conntrack.dispose();
  }

  // ---- what a queue calls

  /** True if a session is taken for it. Without a place for one it is refused. */
  heard(source: SynQueue, packet: QueuedPacket, syn: Syn, hasPlace: boolean): boolean {
    const engine = this.#engine;
    const table = this.#table;
    engine.counters[HEARD]!++;
    if (this.#early.length > 0) this.#answerEarly();
    const known = table.find(syn);
    if (known >= 0) {
      const again = table.isSequence(known, syn.sequence);
      if (again && table.state(known) === GRANTED) {
        this.#decide(source, packet.id, NF_ACCEPT, this.#laneMark(packet.mark, source.lane));
        return false;
      }
      if (again) {
        // The old one may be gone without a word: the kernel forgets what it held as a chain is deleted.
        this.#decideSlot(known, NF_DROP);
        table.replace(known, packet.id);
        return false;
      }
      // The client gave up, and has taken the same port again.
      engine.sessionOf(table.row(known)).abandoned();
    }
    if (this.#hasNoRoom) {
      engine.counters[UNHELD]!++;
      this.#decide(source, packet.id, NF_ACCEPT, packet.mark);
      return false;
    }
    // Who was abandoned is the next to be taken.
    const taken = hasPlace ? engine.spareSession() : null;
    const slot = table.add(syn, source.lane, packet.id, packet.mark, taken?.row ?? NO_ROW);
    this.#heardMs[slot] = engine.exactMs();
    if (taken === null) this.#refuseAt(slot, "reset");
    else engine.hold(taken, slot, syn);
    return taken !== null;
  }

  /**
   * Half of the places is for those who are accepted: who forges SYNs holds no more than the other,
   * and a connection that finds none is dialled for after accept, when it has shown that it is real.
   */
  get #hasNoRoom(): boolean {
    const { admission } = this.#engine;
    const { lanes } = this.#settings;
    return this.#table.full || this.#table.size * lanes * 2 >= admission.limit;
  }

  /** It is none of our business. */
  letPass(source: SynQueue, packet: QueuedPacket): void {
    this.#decide(source, packet.id, NF_ACCEPT, packet.mark);
  }

  // ---- what a session calls; each but grant() is the end of the slot

  /** The connection stands: the SYN goes on as the turn ends, and what is accepted for it is this session's. */
  grant(slot: number): void {
    const table = this.#table;
    const lane = table.lane(slot);
    this.#lanes[lane]!.gather(table.id(slot), NF_ACCEPT, this.#laneMark(table.mark(slot), lane));
    this.#gathered++;
    table.grant(slot);
    this.granted++;
  }

  /** What is accepted for it would come here. */
  comesHere(slot: number): boolean {
    return !this.#lanes[this.#table.lane(slot)]!.stopped;
  }

  /** The SYN goes on, and whoever accepts it dials. */
  letGo(slot: number): void {
    this.#engine.counters[UNHELD]!++;
    this.#decideSlot(slot, NF_ACCEPT);
    this.#table.remove(slot);
  }

  /** "silence": the destination has said nothing. */
  refuse(slot: number, answer: Refusal | "silence"): void {
    const silent = answer === "silence";
    if (silent && this.#settings.timeoutAs === "silence") return this.ignore(slot);
    const refusal = silent ? "host-unreachable" : answer;
    const early = this.#engine.exactMs() - this.#heardMs[slot]! < EARLIEST_MS;
    if (!early || refusal === "reset") return this.#refuseAt(slot, refusal);
    this.#early.push({ slot, refusal });
    this.#engine.loop.enqueue(this);
  }

  /** No answer at all, as from a filter; the client asks again until it is tired of it. */
  ignore(slot: number): void {
    this.#decideSlot(slot, NF_DROP);
    this.#table.remove(slot);
  }

  /** It was granted, and has been accepted, or never will be. */
  forget(slot: number): void {
    this.granted--;
    this.#table.remove(slot);
  }

  // ---- what a listener calls

  /** A connection was accepted: true if it is a session's that waits for it. */
  pair(fd: number): boolean {
    if (this.#early.length > 0) this.#answerEarly();
    if (this.#table.size === 0) return false;
    const slot = this.#slotOf(fd);
    if (slot < 0) return false;
    this.#engine.counters[PAIRED]!++;
    this.#engine.sessionOf(this.#table.row(slot)).accepted(fd);
    return true;
  }

  /** By its SYN, which the kernel has kept; where it has not, as with SYN cookies, by its first port. */
  #slotOf(fd: number): number {
    const { sys } = this.#engine;
    const { bytes } = this.#saved;
    const syn = this.#accepted;
    bytes[0] = 0;
    if (sys.getsockopt(fd, SOL_TCP, TCP_SAVED_SYN, this.#saved, 0, SAVED_SYN_BYTES) < 0) return -1;
    if (readSyn(bytes, 0, SAVED_SYN_BYTES, syn)) {
      return this.#readDestination(fd, syn) ? this.#table.findAccepted(syn) : -1;
    }
    return this.#readEnds(fd, syn) && this.#readDestination(fd, syn) ? this.#table.find(syn) : -1;
  }

  /** Who has connected, and from which port before it was translated. */
  #readEnds(fd: number, syn: Syn): boolean {
    const { sys, settings } = this.#engine;
    const { bytes } = this.#saved;
    if (sys.getsockname(fd, this.#saved, 0) < 0) return false;
    const localPort = readAddress(bytes, syn, syn.destination);
    if (sys.getpeername(fd, this.#saved, 0) < 0) return false;
    const peerPort = readAddress(bytes, syn, syn.source);
    syn.sourcePort = settings.mode === "tproxy" ? peerPort
      : this.#conntrack.originalPort(syn.family, syn.destination, localPort, syn.source, peerPort);
    return syn.sourcePort !== 0;
  }

  /** The SYN that was saved had its destination translated. */
  #readDestination(fd: number, syn: Syn): boolean {
    const { sys, settings } = this.#engine;
    let result: number;
    if (settings.mode === "tproxy") result = sys.getsockname(fd, this.#saved, 0);
    else if (syn.family === 6) result = sys.getsockopt(fd, SOL_IPV6, IP6T_SO_ORIGINAL_DST, this.#saved, 0, 28);
    else result = sys.getsockopt(fd, SOL_IP, SO_ORIGINAL_DST, this.#saved, 0, 16);
    if (result < 0) return false;
    syn.destinationPort = readAddress(this.#saved.bytes, syn, syn.destination);
    return true;
  }

  // ---- verdicts

  /** Of the refusals that would have come too early, those whose time has come. */
  turn(): boolean {
    const { exactMs } = this.#engine;
    while (this.#early.length > 0) {
      const { slot, refusal } = this.#early[0]!;
      if (exactMs() - this.#heardMs[slot]! < EARLIEST_MS) return true;
      this.#early.shift();
      this.#refuseAt(slot, refusal);
    }
    return false;
  }

  #answerEarly(): void {
    for (const { slot, refusal } of this.#early.splice(0)) this.#refuseAt(slot, refusal);
  }

  #refuseAt(slot: number, refusal: Refusal): void {
    const table = this.#table;
    const { answer, markShift } = this.#settings;
    if (answer === "reject") {
      const mark = withBits(table.mark(slot), (REFUSALS.indexOf(refusal) + 1) << 4, markShift);
      this.#decideSlot(slot, NF_ACCEPT, mark);
    } else {
      table.read(slot, this.#answered);
      if (!this.#refuser.refuse(this.#answered, refusal)) return this.letGo(slot);
      this.#decideSlot(slot, NF_DROP);
    }
    table.remove(slot);
  }

  /** So that it is accepted by whoever holds its session; one worker alone needs no mark. */
  #laneMark(mark: number, lane: number): number {
    const { lanes, markShift } = this.#settings;
    return lanes === 1 ? mark : withBits(mark, lane + 1, markShift);
  }

  #decideSlot(slot: number, verdict: number, mark = this.#table.mark(slot)): void {
    this.#decide(this.#lanes[this.#table.lane(slot)]!, this.#table.id(slot), verdict, mark);
  }

  /** An error has no consequence: the kernel may have forgotten the packet, and the client asks again. */
  #decide({ fd, queue }: SynQueue, id: number, verdict: number, mark: number): void {
    writeVerdict(this.#verdict, 0, queue, id, verdict, mark);
    const result = this.#engine.sys.send(fd, this.#verdict, 0, VERDICT_BYTES, MSG_DONTWAIT);
    if (result < 0) this.#engine.counters[UNANSWERED]!++;
  }
}

/** Copies the address of the sockaddr at bytes[0] and notes its family. Answers its port. */
function readAddress(bytes: Uint8Array, syn: Syn, into: Uint8Array): number {
  const at = bytes[0] !== AF_INET6 ? 4 : isMapped(bytes, 0) ? 20 : 8;
  syn.family = at === 8 ? 6 : 4;
  for (let i = 0; i < (at === 8 ? 16 : 4); i++) into[i] = bytes[at + i]!;
  return portOf(bytes, 0);
}

/** The mark with our eight bits set to these. */
const withBits = (mark: number, bits: number, shift: number): number =>
  ((mark & ~(0xff << shift)) | (bits << shift)) >>> 0;

/** One queue of the kernel's. */
class SynQueue implements Source, Task {
  readonly fd: number;
  readonly queue: number;
  readonly lane: number;
  readonly #engine: Engine;
  readonly #syns: Syns;
  readonly #message: Memory;
  readonly #verdicts: Memory;
  #gathered = 0;
  readonly #packet: QueuedPacket = { id: 0, mark: 0, payloadAt: 0, payloadEnd: 0 };
  readonly #syn = new Syn();
  #readable = false;
  stopped = false;
  queued = false;

  constructor(engine: Engine, syns: Syns, fd: number, queue: number, lane: number) {
    this.#engine = engine;
    this.#syns = syns;
    this.fd = fd;
    this.queue = queue;
    this.lane = lane;
    this.#message = engine.sys.memory(MESSAGE_BYTES);
    this.#verdicts = engine.sys.memory(VERDICTS_MAX * VERDICT_BYTES);
  }

  /** To be sent with others. */
  gather(id: number, verdict: number, mark: number): void {
    if (this.#gathered === VERDICTS_MAX) this.decideGathered();
    writeVerdict(this.#verdicts, this.#gathered * VERDICT_BYTES, this.queue, id, verdict, mark);
    this.#gathered++;
  }

  /** The kernel takes one after the other, and goes on behind one that comes too late. */
  decideGathered(): void {
    const { sys, counters } = this.#engine;
    const end = this.#gathered * VERDICT_BYTES;
    this.#gathered = 0;
    if (end === 0 || sys.send(this.fd, this.#verdicts, 0, end, MSG_DONTWAIT) >= 0) return;
    // There may be memory for one.
    for (let at = 0; at < end; at += VERDICT_BYTES) {
      if (sys.send(this.fd, this.#verdicts, at, VERDICT_BYTES, MSG_DONTWAIT) < 0) counters[UNANSWERED]!++;
    }
  }

  get waiting(): boolean {
    return this.#readable;
  }

  mark(): Task {
    this.#readable = true;
    return this;
  }

  /** Reads until the queue is empty, there is no room for a tunnel, or its budget is spent (true). */
  turn(): boolean {
    const engine = this.#engine;
    for (let left = engine.limits.acceptsPerTurn; left > 0; left--) {
      if (!this.#readable || this.stopped) return false;
      const session = engine.spareSession();
      if (session === null || !engine.enter()) {
        if (engine.settings.whenFull === "reset") this.#read(false);
        else if (session === null || engine.admission.wait(engine.worker)) return false;
        continue;
      }
      if (!this.#read(true)) engine.leave();
    }
    return true;
  }

  /** All that stands in it. */
  letPass(): void {
    const { sys } = this.#engine;
    for (let left = LEFT_MAX; left > 0; left--) {
      const got = sys.recv(this.fd, this.#message, 0, MESSAGE_BYTES, MSG_DONTWAIT);
      if (got < 0) return;
      if (readPacket(this.#message, got, this.#packet)) this.#syns.letPass(this, this.#packet);
    }
  }

  /** One message. True if a session is taken for it. */
  #read(hasPlace: boolean): boolean {
    const { sys } = this.#engine;
    const packet = this.#packet;
    const got = sys.recv(this.fd, this.#message, 0, MESSAGE_BYTES, MSG_DONTWAIT);
    if (got < 0) {
      if (got === -EAGAIN || got === -EBADF || got === -ENOTSOCK) this.#readable = false;
      return false;
    }
    // What else comes tells of a verdict that came too late.
    if (!readPacket(this.#message, got, packet)) return false;
    if (readSyn(this.#message.bytes, packet.payloadAt, packet.payloadEnd, this.#syn)) {
      return this.#syns.heard(this, packet, this.#syn, hasPlace);
    }
    this.#syns.letPass(this, packet);
    return false;
  }
}
