/**
 * The life of one tunnel, and the one file where I/O, protocol and policy meet.
 *
 *   front ──► dial ──► upstream ──► relay ──► over
 *     │         │          │          └─► reset ──► over
 *     └─────────┴──────────┴──► over
 *
 * A session owns its two sockets and whatever its flows and its handshake have borrowed, and gives
 * everything back when it is over: once, for one reason. Sessions are pooled: the object, its
 * sockets and its row in the tunnel table live on and serve the next tunnel.
 */
import {
  AF_INET6, EAGAIN, EINPROGRESS, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC, EADDRNOTAVAIL,
  ETIMEDOUT,
  IP6T_SO_ORIGINAL_DST, MSG_NOSIGNAL, MSG_PEEK, SHUT_WR, SIOCOUTQ, SOCKADDR_SIZE, SOCK_CLOEXEC,
  SOCK_NONBLOCK, SOCK_STREAM, SOL_IP, SOL_IPV6, SOL_SOCKET, SOL_TCP, SO_KEEPALIVE, SO_MARK,
  SO_ERROR, SO_OOBINLINE, SO_ORIGINAL_DST, TCP_KEEPCNT, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_NODELAY,
  TCP_USER_TIMEOUT,
} from "../../native-bindings/constants.ts";
import type { Memory, Result } from "../../native-bindings/syscalls.ts";
import { isMapped, portOf } from "../policy/own.ts";
import type { Failure, Handshake } from "../protocol/handshake.ts";
import { assert } from "./assert.ts";
import { BYTES_DOWN, BYTES_UP, DIAL_FAILURES } from "./counters.ts";
import { type Ending, ending, FINISHED } from "./ending.ts";
import type { Engine } from "./engine.ts";
import { ENDED, STARTED } from "./journal.ts";
import type { Task } from "./loop.ts";
import { Flow } from "./relay.ts";
import type { Settings, Upstream } from "./route.ts";
import { Socket } from "./socket.ts";
import type { Waiter } from "./timeouts.ts";

const OVER = 0;
const FRONT = 1;
const DIAL = 2;
const UPSTREAM = 3;
const RELAY = 4;
const RESET = 5;
/** Which phases may follow which. */
const NEXT: readonly (readonly number[])[] = [
  /* OVER */ [FRONT],
  /* FRONT */ [DIAL, OVER],
  /* DIAL */ [UPSTREAM, RELAY, OVER],
  /* UPSTREAM */ [RELAY, OVER],
  /* RELAY */ [RESET, OVER],
  /* RESET */ [OVER],
];

/** The row of a tunnel in the tunnel table. */
export const ROW_BYTES = 64;
const CLIENT = 0;
const DESTINATION = SOCKADDR_SIZE;

/**
 * Keepalive and TCP_USER_TIMEOUT are set on a tunnel that has lived so long. They work in minutes;
 * for the many that are over in a moment they would be eight system calls for nothing.
 */
const TUNE_AFTER_MS = 10_000;
/** A reset waits for bytes in front of it while the receiver takes some in so long a time. */
const RESET_STALL_MS = 10_000;
const RESET_LOOK_MS = 16;

export class Session implements Task, Waiter {
  readonly #engine: Engine;
  /** Offset of this session's row in engine.rows. */
  readonly row: number;
  readonly client: Socket;
  readonly server: Socket;
  readonly #up: Flow;
  readonly #down: Flow;
  #phase = OVER;

  // Of this tunnel's life.
  #id = 0;
  #startedMs = 0;
  #activeMs = 0;
  #settings!: Settings;
  #upstream!: Upstream;
  #attempt = 0;
  /** The address that the first attempt goes to: another tunnel may change the preferred one. */
  #firstAddress = 0;
  #handshake: Handshake | null = null;
  /** A partial reply of the upstream: #input[0, #inputEnd). */
  #input: Memory | null = null;
  #inputEnd = 0;
  /** What of a handshake's write the socket did not take: #output[#outputAt, #outputEnd). */
  #output: Memory | null = null;
  #outputAt = 0;
  #outputEnd = 0;
  #notedPort = 0;
  #upFinPassed = false;
  #downFinPassed = false;
  #tuned = false;
  #countedUp = 0;
  #countedDown = 0;
  #unacked = 0;

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
    this.#up = new Flow(engine, this.client, this.server);
    this.#down = new Flow(engine, this.server, this.client);
  }

  /** A connection was accepted; its peer's sockaddr stands in the row. */
  begin(fd: number): void {
    const engine = this.#engine;
    this.#enter(FRONT);
    this.#id = engine.nextId();
    this.#startedMs = engine.nowMs;
    this.#settings = engine.settings;
    this.#upstream = engine.upstream;
    this.#attempt = 0;
    this.#firstAddress = engine.upstream.preferred;
    this.#upFinPassed = false;
    this.#downFinPassed = false;
    this.#tuned = false;
    this.#countedUp = 0;
    this.#countedDown = 0;
    this.client.reset(fd);
    this.#up.reset();
    this.#down.reset();
    if (!engine.ledger.own(fd, engine.owner)) return this.#end(ending("resources", EMFILE));
    const wrong = this.#learnDestination();
    if (wrong !== null) return this.#end(wrong);
    const result = this.client.watch(false);
    if (result < 0) return this.#end(ending("resources", -result));
    this.#enter(DIAL);
    this.#dueMs = this.#askedMs = engine.nowMs + this.#attemptMs();
    engine.timeouts.start(this, this.#askedMs);
    this.#dial();
  }

  turn(): boolean {
    switch (this.#phase) {
      case DIAL:
        if (this.#clientLeft()) return false;
        if (this.server.writable || this.server.broken) this.#greet();
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
      if (!this.#tuned && nowMs >= this.#startedMs + TUNE_AFTER_MS) this.#tune();
      this.#askedMs = this.#tuned
        ? this.#dueMs
        : Math.min(this.#dueMs, this.#startedMs + TUNE_AFTER_MS);
      return this.#askedMs;
    }
    if (nowMs >= this.#dueMs) {
      if (this.#phase === DIAL) this.#attemptFailed(ETIMEDOUT);
      else if (this.#phase === UPSTREAM) this.#end(ending("handshake-timeout"));
      else if (this.#phase === RESET) this.#awaitAcks();
    }
    if (this.#phase === OVER || this.bucket >= 0) return -1;
    this.#askedMs = this.#dueMs;
    return this.#askedMs;
  }

  /** The worker drains no longer. */
  cut(): void {
    if (this.#phase !== OVER) this.#end(ending("drain"));
  }

  // ---- front: where did the client want to go?

  #learnDestination(): Ending | null {
    const { sys, rows, own, loops, nowMs } = this.#engine;
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
    if (own.isListener(bytes, destination)) return ending("own-address");
    const ours = this.#upstream.isItself(bytes, destination)
      ? own.isLocal(bytes, client) && loops.comesBack(bytes, client, bytes, destination, nowMs)
      : loops.leads(bytes, client, bytes, destination) && own.isLocal(bytes, client);
    return ours ? ending("loop") : null;
  }

  /** SO_ORIGINAL_DST by the family of the connection, not of the listener: it may be dual-stack. */
  #originalDestination(client: number, destination: number): Result {
    const { sys, rows } = this.#engine;
    return rows.bytes[client] === AF_INET6 && !isMapped(rows.bytes, client)
      ? sys.getsockopt(this.client.fd, SOL_IPV6, IP6T_SO_ORIGINAL_DST, rows, destination, 28)
      : sys.getsockopt(this.client.fd, SOL_IP, SO_ORIGINAL_DST, rows, destination, 16);
  }

  // ---- dial: one address of the upstream after the other, or the destination itself

  #dial(): void {
    const { sys, rows, ledger, owner, loops } = this.#engine;
    const upstream = this.#upstream;
    const direct = upstream.kind === "direct";
    if (!direct && upstream.addresses.length === 0) return this.#end(ending("no-address"));
    const at = direct ? this.row + DESTINATION : 0;
    const chosen = direct
      ? null
      : upstream.addresses[(this.#firstAddress + this.#attempt) % upstream.addresses.length]!;
    const memory = chosen === null ? rows : chosen.memory;
    const family = memory.bytes[at]!;
    const length = family === AF_INET6 ? 28 : 16;

    const fd = sys.socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return this.#attemptFailed(-fd);
    this.server.reset(fd);
    if (!ledger.own(fd, owner)) return this.#attemptFailed(EMFILE);
    let result = sys.setsockopt(fd, SOL_TCP, TCP_NODELAY, 1);
    if (result >= 0 && this.#settings.mark !== null) {
      result = sys.setsockopt(fd, SOL_SOCKET, SO_MARK, this.#settings.mark);
    }
    if (result < 0) return this.#attemptFailed(-result);
    result = sys.connect(fd, memory, at, length);
    if (result < 0 && result !== -EINPROGRESS) return this.#attemptFailed(-result);

    if (direct || loops.suspicious) this.#notedPort = loops.note(fd, memory.bytes, at);
    // A connection over loopback stands already, although connect() says EINPROGRESS.
    this.#greet();
  }

  /** Sends the first of the handshake. EAGAIN means that the connection does not stand yet. */
  #greet(): void {
    const { sys, output } = this.#engine;
    let length = 0;
    if (this.#upstream.kind !== "direct") {
      this.#handshake = this.#upstream.handshake(this.#destination());
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
    if (upstream.kind === "direct") return this.#startRelay();
    upstream.preferred = (this.#firstAddress + this.#attempt) % upstream.addresses.length;
    this.#enter(UPSTREAM);
    this.#wait(this.#engine.nowMs + this.#settings.handshakeMs);
    if (sent < length) this.#keepOutput(sent, length);
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
    this.#closeServer(true);
    this.#handshake = null;
    if (isShortage(errno)) return this.#end(ending("resources", errno));
    engine.counters[DIAL_FAILURES]!++;
    if (++this.#attempt < this.#upstream.addresses.length && this.#upstream.kind !== "direct") {
      this.#wait(engine.nowMs + this.#attemptMs());
      return this.#dial();
    }
    this.#end(errno === ETIMEDOUT ? ending("dial-timeout", errno) : ending("dial-failed", errno));
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
    if (this.#output !== null && !this.#flushOutput()) return;
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
      if (got <= 0) return this.#end(ending("upstream-closed", -got));
      if (got < room && !server.finished && !server.urgent) server.readable = false;
      this.#feed(into, start + got);
    }
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
            if (this.#phase === UPSTREAM) this.#keepOutput(Math.max(0, sent), step.length);
            return;
          }
          break;
        }
        case "finish":
          start += step.consumed;
          if (start < end && !this.#preload(into, start, end)) return;
          return this.#startRelay();
        case "fail":
          return this.#end(failed(step.failure));
      }
    }
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
    this.#down.preload(buffer, start, end);
    return true;
  }

  #keepOutput(sent: number, length: number): void {
    const { buffers, output } = this.#engine;
    const result = this.server.awaitWritable();
    if (result < 0) return this.#end(ending("resources", -result));
    this.#output = buffers.take();
    if (this.#output === null) return this.#end(ending("resources", ENOBUFS));
    this.#output.bytes.set(output.bytes.subarray(sent, length), 0);
    this.#outputAt = 0;
    this.#outputEnd = length - sent;
  }

  /** False while some is left, or when that ended the tunnel. */
  #flushOutput(): boolean {
    const { sys, buffers } = this.#engine;
    const buffer = this.#output!;
    while (this.#outputAt < this.#outputEnd) {
      if (!this.server.writable) return false;
      const length = this.#outputEnd - this.#outputAt;
      const sent = sys.send(this.server.fd, buffer, this.#outputAt, length, MSG_NOSIGNAL);
      if (sent === -EAGAIN) this.server.writable = false;
      else if (sent < 0) {
        this.#end(ending("upstream-closed", -sent));
        return false;
      } else this.#outputAt += sent;
    }
    buffers.give(buffer);
    this.#output = null;
    // What had come before the write was cut short has waited in #input.
    const end = this.#inputEnd;
    this.#inputEnd = 0;
    this.#feed(this.#input ?? this.#engine.scratch, end);
    return this.#phase === UPSTREAM;
  }

  /**
   * While the upstream is not ready, a client that goes away ends the attempt: by a reset, or by a
   * FIN before it has sent a byte. One that has sent something and then FIN awaits its answer.
   */
  #clientLeft(): boolean {
    const { client } = this;
    if (!client.finished && !client.broken) return false;
    if (!client.broken) {
      const { sys, scratch } = this.#engine;
      const result = sys.recv(client.fd, scratch, 0, 1, MSG_PEEK);
      if (result > 0 || result === -EAGAIN || result === -EINTR) return false;
      client.errno = -result;
    }
    this.#end(ending("client-left", client.errno));
    return true;
  }

  // ---- relay

  #startRelay(): void {
    const { nowMs, settings, loops } = this.#engine;
    this.#handshake = null;
    if (this.#input !== null) {
      this.#engine.buffers.give(this.#input);
      this.#input = null;
    }
    this.#inputEnd = 0;
    this.#enter(RELAY);
    if (this.#upstream.kind !== "direct") loops.answered();
    this.#activeMs = nowMs;
    this.#wait(Math.min(nowMs + this.#settings.idleMs, this.#startedMs + TUNE_AFTER_MS));
    if (settings.journalAll) this.#journal(STARTED, FINISHED);
  }

  #relays(): boolean {
    return this.#phase === RELAY;
  }

  #relay(): boolean {
    const { client, server } = this;
    const up = this.#up;
    const down = this.#down;
    if (client.urgent || server.urgent) this.#keepUrgentInline();
    let again = false;
    if (server.errno === 0) again = up.pump();
    if (client.errno === 0 && down.pump()) again = true;
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
      this.#passFin(server);
    }
    if (down.over && !this.#downFinPassed) {
      this.#downFinPassed = true;
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
    const rest = dead === client ? this.#up : this.#down;
    (dead === client ? this.#down : this.#up).release();
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
      sys.setsockopt(fd, SOL_TCP, TCP_USER_TIMEOUT, settings.userTimeoutMs);
    }
  }

  /** Counts what moved since last time; that is also what keeps a tunnel from being idle. */
  #count(): void {
    const { counters, nowMs } = this.#engine;
    const up = this.#up.bytes;
    const down = this.#down.bytes;
    if (up !== this.#countedUp) {
      counters[BYTES_UP]! += up - this.#countedUp;
      this.#countedUp = up;
      this.#activeMs = nowMs;
    }
    if (down !== this.#countedDown) {
      counters[BYTES_DOWN]! += down - this.#countedDown;
      this.#countedDown = down;
      this.#activeMs = nowMs;
    }
  }

  // ---- over

  #end(why: Ending): void {
    const engine = this.#engine;
    const reset = why !== FINISHED;
    engine.timeouts.stop(this);
    this.#up.release();
    this.#down.release();
    if (this.#input !== null) engine.buffers.give(this.#input);
    if (this.#output !== null) engine.buffers.give(this.#output);
    this.#input = null;
    this.#inputEnd = 0;
    this.#output = null;
    this.#handshake = null;
    this.#closeServer(reset);
    if (reset) engine.sys.setLinger(this.client.fd, true, 0);
    engine.ledger.disown(this.client.fd);
    engine.sys.close(this.client.fd);
    this.client.fd = -1;
    this.#journal(ENDED, why);
    this.#enter(OVER);
    engine.ended(this, why);
  }

  #closeServer(reset: boolean): void {
    const { sys, ledger, loops } = this.#engine;
    const { fd } = this.server;
    if (fd < 0) return;
    this.server.fd = -1;
    // Without SO_LINGER {1,0} close(2) says FIN, and a truncated transfer looks complete.
    if (reset) sys.setLinger(fd, true, 0);
    ledger.disown(fd);
    sys.close(fd);
    loops.forget(this.#notedPort);
    this.#notedPort = 0;
  }

  #journal(kind: number, why: Ending): void {
    this.#engine.journal(kind, why, this.#id, this.#startedMs, this.#up.bytes, this.#down.bytes, this.row);
  }

  #destination() {
    const { bytes } = this.#engine.rows;
    const at = this.row + DESTINATION;
    const v6 = bytes[at] === AF_INET6;
    return {
      bytes, at: at + (v6 ? 8 : 4), length: v6 ? (16 as const) : (4 as const), port: portOf(bytes, at),
    };
  }

  /** The deadline is now `atMs`. The wheel is told only if it would ask too late. */
  #wait(atMs: number): void {
    this.#dueMs = atMs;
    if (atMs >= this.#askedMs && this.bucket >= 0) return;
    this.#askedMs = atMs;
    this.#engine.timeouts.start(this, atMs);
  }

  #enter(phase: number): void {
    assert(NEXT[this.#phase]!.includes(phase), `phase ${phase} cannot follow ${this.#phase}`);
    this.#phase = phase;
  }
}

/** The kernel lacks something; no one's address is to blame. */
const isShortage = (errno: number): boolean =>
  errno === EMFILE || errno === ENFILE || errno === ENOBUFS || errno === ENOMEM ||
  errno === ENOSPC || errno === EADDRNOTAVAIL;

/** A sockaddr_in6 with a v4-mapped address becomes the sockaddr_in that it means. */
function unmap(bytes: Uint8Array, at: number): void {
  bytes[at] = 2; // AF_INET; the port stays where it is.
  bytes.copyWithin(at + 4, at + 20, at + 24);
}

function failed(failure: Failure): Ending {
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
      return ending("upstream-refused", failure.reply);
    case "status":
      return ending("upstream-status", failure.status);
  }
}
