/**
 * TCP as a program sees Linux's: two ends, a wire that keeps the order but not the cuts, buffers
 * with bounds, and every rule about what FIN, RST and close() do to bytes and errors.
 *
 * There are no fds and no epoll here. An end tells its owner that something may have changed by
 * `onWake`, with the same keys that Linux wakes its wait queues with (0: anything). Function names
 * in comments are the kernel's, net/ipv4/tcp*.c. test/unit/kernel.test.ts plays the same scripts
 * against this and against the real thing.
 */
import {
  EAGAIN, ECONNREFUSED, ECONNRESET, EHOSTUNREACH, ENOTCONN, EPIPE, EPOLLERR, EPOLLHUP, EPOLLIN,
  EPOLLOUT, EPOLLPRI, EPOLLRDHUP, ETIMEDOUT,
} from "../../native-bindings/constants.ts";
import type { Random } from "./random.ts";

export interface Address {
  /** 4 or 16, in network order. */
  readonly bytes: Uint8Array;
  readonly port: number;
}

export interface NetworkOptions {
  /** One way, in microseconds; each segment has its own within these. */
  readonly latencyUs: readonly [number, number];
  /** Bytes; each end draws its own within these. */
  readonly sendBuffer: readonly [number, number];
  readonly receiveBuffer: readonly [number, number];
  /** The longest segment; each draws its own length up to it. */
  readonly segmentBytesMax: number;
}

/** What becomes of a SYN to an address; afterUs: so much later than the wire needs. */
export type Route =
  | { readonly to: "listener"; readonly listener: Tcp }
  | { readonly to: "refusal"; readonly afterUs?: number }
  | { readonly to: "delay"; readonly afterUs: number }
  | { readonly to: "nowhere" }
  | { readonly to: "unreachable" };

interface Event {
  readonly atUs: number;
  readonly order: number;
  readonly run: () => void;
}

const SYN_RETRIES = 5;
const ORPHAN_US = 60e6;

/** Virtual time, and everything that is on its way. */
export class Network {
  readonly random: Random;
  readonly options: NetworkOptions;
  nowUs = 0;
  /** Where a connect() to an address leads. Listeners that were bound go first. */
  route: (address: Address) => Route = () => ({ to: "refusal" });
  /** Where the SYNs of redirected connections go first; `go` lets one go on. */
  gate: ((client: Tcp, to: Address, go: () => void) => void) | null = null;
  readonly #listeners = new Map<string, Tcp[]>();
  readonly #heap: Event[] = [];
  #order = 0;
  #port = 32768;

  constructor(random: Random, options: NetworkOptions) {
    this.random = random;
    this.options = options;
  }

  /** When the next event is due. Infinity if nothing is on its way. */
  get nextUs(): number {
    return this.#heap[0]?.atUs ?? Infinity;
  }

  after(delayUs: number, run: () => void): void {
    const heap = this.#heap;
    const event = { atUs: this.nowUs + delayUs, order: this.#order++, run };
    let at = heap.push(event) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!isBefore(event, heap[parent]!)) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = event;
  }

  /** Runs what is due until then, in order; the clock then says so. */
  advance(toUs: number): void {
    while (this.nextUs <= toUs) {
      const event = this.#pop();
      this.nowUs = Math.max(this.nowUs, event.atUs);
      event.run();
    }
    this.nowUs = Math.max(this.nowUs, toUs);
  }

  latencyUs(): number {
    const [least, most] = this.options.latencyUs;
    return this.random.size(least, most);
  }

  ephemeralPort(): number {
    this.#port = this.#port >= 60999 ? 32768 : this.#port + 1;
    return this.#port;
  }

  register(listener: Tcp): void {
    const key = nameOf(listener.local!);
    this.#listeners.set(key, [...(this.#listeners.get(key) ?? []), listener]);
  }

  unregister(listener: Tcp): void {
    const key = nameOf(listener.local!);
    this.#listeners.set(key, (this.#listeners.get(key) ?? []).filter((each) => each !== listener));
  }

  /** Every listener of an address: with SO_REUSEPORT there may be several. */
  listening(address: Address): readonly Tcp[] {
    return this.#listeners.get(nameOf(address)) ?? [];
  }

  resolve(address: Address): Route {
    const listeners = this.listening(address);
    if (listeners.length === 0) return this.route(address);
    return { to: "listener", listener: this.random.pick(listeners) };
  }

  #pop(): Event {
    const heap = this.#heap;
    const first = heap[0]!;
    const last = heap.pop()!;
    if (heap.length === 0) return first;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && isBefore(heap[child + 1]!, heap[child]!)) child++;
      if (!isBefore(heap[child]!, last)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
    return first;
  }
}

const isBefore = (a: Event, b: Event): boolean =>
  a.atUs < b.atUs || (a.atUs === b.atUs && a.order < b.order);

export const nameOf = (address: Address): string => `${address.bytes.join(".")}:${address.port}`;

export class Tcp {
  readonly #network: Network;
  onWake: (key: number) => void = () => {};
  local: Address | null = null;
  remote: Address | null = null;
  /** Where the client wanted to go, if a firewall rule sent it here. */
  originalDestination: Address | null = null;
  /** Its SYN; and of an accepted connection that of its client (TCP_SAVED_SYN), until it is read. */
  syn: Uint8Array | null = null;
  state: "closed" | "listening" | "connecting" | "open" = "closed";
  /** sk_err: told once, to whoever asks first. */
  error = 0;
  /** An RST came while this end was not closed: the truth about how the connection ended. */
  wasReset = false;
  resetAtUs = 0;
  /** When the other end's FIN came; Infinity: not yet. */
  endAtUs = Infinity;
  /** When its owner closed it; Infinity: not yet. */
  closedAtUs = Infinity;
  /** An RST has left from here. */
  hasReset = false;
  /** A FIN has left, or will leave once everything in front of it has. */
  get hasFinished(): boolean {
    return this.#finQueued;
  }
  /** The other end's FIN has come. */
  get hasEnd(): boolean {
    return this.#finReceived;
  }
  /** SO_OOBINLINE: an urgent byte stays in the stream. */
  urgentInline = false;
  /** Bytes that send() has ever taken here. */
  takenBytes = 0;
  /** Bytes that have ever come in here, read or not. */
  arrivedBytes = 0;

  readonly #sendBuffer: number;
  readonly #receiveBuffer: number;
  #peer: Tcp | null = null;
  #lastArrivalUs = 0;

  readonly #received: Uint8Array[] = [];
  #receivedBytes = 0;
  #readPosition = 0;
  /** The position of an urgent byte that has come and was not read over. */
  #urgentAt = -1;

  readonly #unsent: Uint8Array[] = [];
  #unsentBytes = 0;
  #unackedBytes = 0;
  #inTransitBytes = 0;
  #sentPosition = 0;
  #urgentToSend = -1;
  /** SOCK_NOSPACE: someone waits for room, and is to be woken. */
  #wantsSpace = false;

  #finQueued = false;
  #finSent = false;
  #finAcked = false;
  #finReceived = false;
  #receiveShut = false;
  #sendShut = false;
  #orphan = false;

  #backlog = 0;
  readonly #acceptable: Tcp[] = [];
  /** Asked for by a SYN, not yet acknowledged by the client. */
  #halfOpen = 0;

  constructor(network: Network) {
    this.#network = network;
    const { sendBuffer, receiveBuffer } = network.options;
    this.#sendBuffer = network.random.size(sendBuffer[0], sendBuffer[1]);
    this.#receiveBuffer = network.random.size(receiveBuffer[0], receiveBuffer[1]);
  }

  /** tcp_poll(). Like it, asks to be woken for room when there is none. */
  poll(): number {
    if (this.state === "listening") return this.#acceptable.length > 0 ? EPOLLIN : 0;
    let mask = 0;
    if ((this.#receiveShut && this.#sendShut) || this.state === "closed") mask |= EPOLLHUP;
    if (this.#receiveShut) mask |= EPOLLIN | EPOLLRDHUP;
    if (this.state !== "connecting") {
      if (this.#receivedBytes > 0) mask |= EPOLLIN;
      if (this.#sendShut || this.#isWritable()) mask |= EPOLLOUT;
      else this.#wantsSpace = true;
      if (this.#urgentAt >= 0) mask |= EPOLLPRI;
    }
    if (this.error !== 0) mask |= EPOLLERR;
    return mask;
  }

  takeError(): number {
    const error = this.error;
    this.error = 0;
    return error;
  }

  /** The other end, once the two have met. */
  get peer(): Tcp | null {
    return this.#peer;
  }

  // Opening.

  listen(backlog: number): void {
    this.state = "listening";
    this.#backlog = backlog;
    this.#network.register(this);
  }

  /** The oldest connection that is complete, or null. It may have been reset meanwhile. */
  accept(): Tcp | null {
    return this.#acceptable.shift() ?? null;
  }

  /**
   * Sends a SYN. `at` is what the firewall rule makes of `to`: the listener it redirects to.
   * `atOnce`: like a loopback, where all is over before connect() returns.
   */
  connect(to: Address, at: Address | null = null, atOnce = false): void {
    this.state = "connecting";
    this.remote = to;
    this.local ??= {
      bytes: to.bytes.length === 4 ? Uint8Array.of(10, 0, 0, 1) : new Uint8Array(16).fill(1),
      port: this.#network.ephemeralPort(),
    };
    const arrive = () => this.#arrive(at ?? to, at === null ? null : to, atOnce, 0);
    const syn = () => {
      const { gate } = this.#network;
      if (gate === null || at === null) arrive();
      else gate(this, to, arrive);
    };
    if (atOnce) syn();
    else this.#network.after(this.#network.latencyUs(), syn);
  }

  #arrive(at: Address, original: Address | null, atOnce: boolean, retries: number): void {
    if (this.state !== "connecting") return;
    const network = this.#network;
    const route = network.resolve(at);
    if (route.to === "refusal") {
      const { afterUs = 0 } = route;
      if (atOnce && afterUs === 0) this.#onReset();
      else network.after(afterUs + network.latencyUs(), () => this.#onReset());
      return;
    }
    if (route.to === "delay") {
      return network.after(route.afterUs, () => this.#arrive(at, original, false, retries));
    }
    if (route.to === "unreachable") {
      return network.after(3e6, () => this.#fail(EHOSTUNREACH));
    }
    if (route.to === "listener" && route.listener.#hasRoom()) {
      return route.listener.#onSyn(this, original, atOnce);
    }
    if (retries === SYN_RETRIES) return network.after(64e6, () => this.#fail(ETIMEDOUT));
    network.after(1e6 * 2 ** retries, () => this.#arrive(at, original, atOnce, retries + 1));
  }

  #hasRoom(): boolean {
    return this.#acceptable.length + this.#halfOpen < this.#backlog;
  }

  #onSyn(client: Tcp, original: Address | null, atOnce: boolean): void {
    const child = new Tcp(this.#network);
    child.state = "open";
    child.urgentInline = this.urgentInline;
    child.#peer = client;
    child.remote = client.local;
    child.originalDestination = original;
    child.syn = client.syn;
    child.local = original === null ? client.remote : this.local;
    this.#halfOpen++;
    const answer = () => {
      if (client.state !== "connecting") {
        this.#halfOpen--;
        child.#die();
        return;
      }
      client.state = "open";
      client.#peer = child;
      const acknowledge = () => {
        this.#halfOpen--;
        if (this.state !== "listening") {
          child.#sendReset();
          child.#die();
          return;
        }
        this.#acceptable.push(child);
        this.onWake(EPOLLIN);
      };
      if (atOnce) acknowledge();
      else client.#deliver(acknowledge);
      client.onWake(0);
    };
    if (atOnce) answer();
    else this.#network.after(this.#network.latencyUs(), answer);
  }

  /** Something between here and there has said RST. */
  refuse(): void {
    this.#onReset();
  }

  /** The connection attempt has come to nothing. */
  #fail(error: number): void {
    if (this.state !== "connecting") return;
    this.error = error;
    this.#die();
    this.onWake(0);
  }

  // Receiving.

  get readableBytes(): number {
    return this.#receivedBytes;
  }

  /** How far one recv, or one splice, may go: it stops in front of an urgent byte. */
  #reach(length: number): number {
    const toUrgent = this.#urgentAt - this.#readPosition;
    const most = Math.min(length, this.#receivedBytes);
    return this.#urgentAt >= 0 && toUrgent > 0 ? Math.min(most, toUrgent) : most;
  }

  /** tcp_recvmsg(). With `into` null the bytes are thrown away (MSG_TRUNC). */
  receive(into: Uint8Array | null, at: number, length: number, peek: boolean): number {
    // An urgent byte that does not stay in line is not there for recv() without MSG_OOB.
    const hole = this.#urgentAt === this.#readPosition && !this.urgentInline ? 1 : 0;
    const reach = this.#reach(length + hole) - hole;
    if (reach <= 0) {
      if (hole > 0 && !peek) this.#take(hole);
      return this.#nothingToRead();
    }
    let skip = hole;
    let copied = 0;
    for (let i = 0; copied < reach; i++) {
      const chunk = this.#received[i]!;
      const part = chunk.subarray(skip, skip + reach - copied);
      skip -= Math.min(skip, chunk.length);
      if (into !== null) into.set(part, at + copied);
      copied += part.length;
    }
    if (!peek) this.#take(hole + copied);
    return copied;
  }

  /** tcp_splice_read() into a pipe with so many free slots; `push` gets one slot's bytes. */
  spliceTo(push: (bytes: Uint8Array) => void, length: number, slots: number): number {
    // tcp_read_sock() cannot pass an urgent byte, inline or not.
    const stop = this.#urgentAt >= 0 ? this.#urgentAt - this.#readPosition : Infinity;
    let left = Math.min(length, this.#receivedBytes, stop);
    let moved = 0;
    for (; left > 0 && slots > 0; slots--) {
      const bytes = this.#received[0]!.slice(0, Math.min(left, 4096));
      this.#take(bytes.length);
      push(bytes);
      moved += bytes.length;
      left -= bytes.length;
    }
    return moved > 0 ? moved : this.#nothingToRead();
  }

  #nothingToRead(): number {
    if (this.#finReceived) return 0;
    if (this.error !== 0) return -this.takeError();
    if (this.#receiveShut) return 0;
    return this.state === "closed" || this.state === "listening" ? -ENOTCONN : -EAGAIN;
  }

  #take(count: number): void {
    this.#receivedBytes -= count;
    this.#readPosition += count;
    if (this.#urgentAt < this.#readPosition) this.#urgentAt = -1;
    for (let left = count; left > 0; ) {
      const chunk = this.#received[0]!;
      if (chunk.length <= left) this.#received.shift();
      else this.#received[0] = chunk.subarray(left);
      left -= Math.min(left, chunk.length);
    }
    const peer = this.#peer;
    if (peer !== null && peer.#unsentBytes > 0) this.#deliver(() => peer.#transmit());
  }

  // Sending.

  /** SIOCOUTQ: what is not acknowledged, a FIN counted as one. */
  get unacknowledged(): number {
    if (this.state === "connecting") return 0;
    return this.#unsentBytes + this.#unackedBytes + (this.#finQueued && !this.#finAcked ? 1 : 0);
  }

  #isWritable(): boolean {
    const used = this.#unsentBytes + this.#unackedBytes;
    return this.#sendBuffer - used >= used >> 1;
  }

  /** What send() answers before it looks for room; 0 if it may go on. */
  sendError(): number {
    if (this.state === "connecting") return this.error !== 0 ? -this.takeError() : -EAGAIN;
    if (this.state !== "open" || this.#sendShut || this.error !== 0) {
      return this.error !== 0 ? -this.takeError() : -EPIPE;
    }
    return 0;
  }

  /** How much send() would take now. */
  get room(): number {
    return this.#sendBuffer - this.#unsentBytes - this.#unackedBytes;
  }

  /** tcp_sendmsg(), not blocking. Takes what there is room for. MSG_OOB marks the last byte. */
  send(from: Uint8Array, at: number, length: number, urgent = false): number {
    const error = this.sendError();
    if (error !== 0) return error;
    const count = Math.min(length, this.room);
    if (count < length) this.#wantsSpace = true;
    if (count === 0) return -EAGAIN;
    this.#unsent.push(from.slice(at, at + count));
    this.#unsentBytes += count;
    this.takenBytes += count;
    if (urgent) this.#urgentToSend = this.#sentPosition + this.#unsentBytes - 1;
    this.#transmit();
    return count;
  }

  /** No memory for a segment: the caller was told EAGAIN though there is room, and is woken. */
  starve(): void {
    this.#wantsSpace = true;
    this.#network.after(this.#network.latencyUs(), () => this.#wakeForSpace());
  }

  #wakeForSpace(): void {
    if (!this.#wantsSpace || !this.#isWritable()) return;
    this.#wantsSpace = false;
    this.onWake(EPOLLOUT);
  }

  #transmit(): void {
    const peer = this.#peer;
    if (this.state !== "open" || peer === null) return;
    while (this.#unsentBytes > 0) {
      const window = peer.#receiveBuffer - peer.#receivedBytes - this.#inTransitBytes;
      if (window <= 0) return;
      const chunk = this.#unsent[0]!;
      const most = Math.min(window, chunk.length, this.#network.options.segmentBytesMax);
      const count = this.#network.random.chance(0.5) ? most : this.#network.random.size(1, most);
      if (count === chunk.length) this.#unsent.shift();
      else this.#unsent[0] = chunk.subarray(count);
      const position = this.#sentPosition;
      this.#sentPosition += count;
      this.#unsentBytes -= count;
      this.#unackedBytes += count;
      this.#inTransitBytes += count;
      const urgent =
        this.#urgentToSend >= position && this.#urgentToSend < position + count
          ? this.#urgentToSend - position
          : -1;
      const bytes = chunk.subarray(0, count);
      this.#deliver(() => peer.#onData(bytes, urgent));
    }
    if (this.#finQueued && !this.#finSent) {
      this.#finSent = true;
      this.#deliver(() => peer.#onFin());
    }
  }

  /** Whatever leaves here arrives there in the order it left. */
  #deliver(run: () => void): void {
    const network = this.#network;
    const atUs = Math.max(this.#lastArrivalUs, network.nowUs + network.latencyUs());
    this.#lastArrivalUs = atUs;
    network.after(atUs - network.nowUs, run);
  }

  #onData(bytes: Uint8Array, urgent: number): void {
    const peer = this.#peer!;
    peer.#inTransitBytes -= bytes.length;
    // Nobody will ever read it. What was still to be sent from here is lost with it.
    if (this.state === "closed" || this.#orphan) {
      this.#sendReset();
      this.#die();
      return;
    }
    const start = this.#readPosition + this.#receivedBytes;
    this.#received.push(bytes);
    this.#receivedBytes += bytes.length;
    this.arrivedBytes += bytes.length;
    if (urgent >= 0) this.#urgentAt = start + urgent;
    this.#deliver(() => peer.#onAck(bytes.length));
    this.onWake(urgent >= 0 ? EPOLLIN | EPOLLPRI : EPOLLIN);
  }

  #onAck(count: number): void {
    if (this.state === "closed") return;
    this.#unackedBytes -= count;
    this.#wakeForSpace();
  }

  // Ending.

  /** shutdown(SHUT_WR): FIN behind everything that was sent. */
  shutdownWrite(): number {
    if (this.state === "closed") return -ENOTCONN;
    if (this.state === "connecting") {
      this.#die();
    } else if (!this.#finQueued) {
      this.#sendShut = true;
      this.#finQueued = true;
      this.#transmit();
    }
    this.onWake(0);
    return 0;
  }

  /** shutdown(SHUT_RD): nothing goes over the wire. */
  shutdownRead(): number {
    if (this.state === "closed") return -ENOTCONN;
    this.#receiveShut = true;
    this.onWake(0);
    return 0;
  }

  /** tcp_close(). `abort`: SO_LINGER is {1, 0}. */
  close(abort: boolean): void {
    const unread = this.#receivedBytes > 0;
    this.closedAtUs = this.#network.nowUs;
    this.onWake = () => {};
    this.#receiveShut = true;
    this.#sendShut = true;
    this.#orphan = true;
    if (this.state === "listening") {
      this.#network.unregister(this);
      for (const child of this.#acceptable.splice(0)) child.close(true);
      this.state = "closed";
      return;
    }
    if (this.state === "closed") return;
    if (this.state === "connecting") return this.#die();
    if (unread || (abort && this.#needsReset())) {
      this.#sendReset();
      this.#die();
    } else if (abort) {
      this.#die();
    } else if (!this.#finQueued) {
      this.#finQueued = true;
      this.#transmit();
    } else if (this.#finAcked) {
      this.#forgetLater();
    }
  }

  /** tcp_need_reset(), and the exception in tcp_disconnect(). */
  #needsReset(): boolean {
    return !(this.#finQueued && this.#finReceived) || !this.#finSent;
  }

  #sendReset(): void {
    const peer = this.#peer;
    if (peer === null) return;
    this.hasReset = true;
    this.#deliver(() => peer.#onReset());
  }

  #onFin(): void {
    if (this.state === "closed") return this.#sendReset();
    const peer = this.#peer!;
    this.#finReceived = true;
    this.endAtUs = this.#network.nowUs;
    this.#receiveShut = true;
    this.#deliver(() => peer.#onFinAck());
    if (this.#finAcked) this.#die();
    this.onWake(0);
  }

  #onFinAck(): void {
    if (this.state === "closed") return;
    this.#finAcked = true;
    if (this.#finReceived) this.#die();
    else if (this.#orphan) this.#forgetLater();
    this.onWake(0);
  }

  /** tcp_fin_timeout: nobody will come for an orphan in FIN_WAIT2. */
  #forgetLater(): void {
    this.#network.after(ORPHAN_US, () => {
      if (this.state === "open") this.#die();
    });
  }

  /** tcp_reset() */
  #onReset(): void {
    if (this.state === "closed") return;
    if (this.state === "connecting") this.error = ECONNREFUSED;
    else if (this.#finReceived && !this.#finQueued) this.error = EPIPE;
    else this.error = ECONNRESET;
    this.wasReset = true;
    this.resetAtUs = this.#network.nowUs;
    this.#die();
    this.onWake(0);
  }

  /** tcp_done(): what was to be sent is forgotten, what has come can still be read. */
  #die(): void {
    this.state = "closed";
    this.#receiveShut = true;
    this.#sendShut = true;
    this.#unsent.length = 0;
    this.#unsentBytes = 0;
    if (this.#orphan) {
      this.#received.length = 0;
      this.#receivedBytes = 0;
    }
  }
}
