/**
 * One direction of a tunnel: moves bytes from one socket to the other, and nothing else.
 *
 * Small traffic is copied through a scratch buffer (recv, send: two calls for a message); once a
 * read fills the scratch, traffic is bulk and goes through a borrowed pipe by splice(2), without
 * entering our memory. A flow owns the pipe or buffer it has borrowed while bytes are in it. It
 * does not own the sockets: it says that a direction is over, and the session decides what then.
 */
import {
  EAGAIN, EINTR, EINVAL, ENOBUFS, ENOMEM, EPIPE, MSG_NOSIGNAL, MSG_PEEK, MSG_TRUNC, SOL_TCP, SPLICE_F_MOVE,
  SPLICE_F_NONBLOCK, TCP_NODELAY,
} from "../../native-bindings/constants.ts";
import type { Memory, Result, Syscalls } from "../../native-bindings/syscalls.ts";
import { assert } from "./assert.ts";
import { observe } from "./histogram.ts";
import type { Limits } from "./limits.ts";
import { SPLICE_SIZE } from "./meters.ts";
import type { Buffers, Pipe, Pipes } from "./pools.ts";
import type { Socket } from "./socket.ts";

/** What the flows of one worker share. */
export interface RelayTools {
  readonly sys: Syscalls;
  readonly limits: Limits;
  readonly pipes: Pipes;
  readonly buffers: Buffers;
  readonly meters: Float64Array;
  /** Holds bytes only between one recv and the send behind it. limits.chunkBytes or more. */
  readonly scratch: Memory;
}

/** A splice that brings less than this is not bulk: the next read is a copy again. */
const BULK_BYTES_MIN = 4096;
/** So much leaves as one segment on any usual path: 536 bytes (RFC 9293, 3.7.1), less 40 for options (RFC 6691). */
const SEGMENT_BYTES_MIN = 496;

export class Flow {
  readonly #tools: RelayTools;
  readonly #from: Socket;
  readonly #to: Socket;
  #pipe: Pipe | null = null;
  #buffer: Memory | null = null;
  /** Bytes that were taken from `from` and not yet by `to`: in the pipe, or in the buffer. */
  #held = 0;
  #heldAt = 0;
  #bulk = false;
  #ended = false;
  /** Bytes that `to` has taken in this life. */
  bytes = 0;

  constructor(tools: RelayTools, from: Socket, to: Socket) {
    this.#tools = tools;
    this.#from = from;
    this.#to = to;
  }

  /** Begins a new life. Everything borrowed has been given back by release(). */
  reset(): void {
    this.#bulk = false;
    this.#ended = false;
    this.bytes = 0;
  }

  /** `from` has ended, by FIN or by an error, and every byte before that has been passed on. */
  get over(): boolean {
    return this.#ended && this.#held === 0;
  }

  /** Bytes in flight. */
  get held(): number {
    return this.#held;
  }

  /** pump() would do nothing, whatever `to` is ready for. */
  get rests(): boolean {
    return this.#held === 0 && !this.#from.readable;
  }

  /**
   * Takes over a buffer with bytes that a handshake left: they come first. Before the first pump.
   */
  preload(buffer: Memory, start: number, end: number): void {
    assert(this.#held === 0 && this.#buffer === null, "bytes are preloaded into a flow at rest");
    this.#buffer = buffer;
    this.#heldAt = start;
    this.#held = end - start;
  }

  /** Nothing more is to be moved: gives back what was borrowed, and forgets what was held. */
  release(): void {
    if (this.#pipe !== null) {
      if (this.#held === 0) this.#tools.pipes.give(this.#pipe);
      else this.#tools.pipes.kill(this.#pipe);
      this.#pipe = null;
    }
    if (this.#buffer !== null) {
      this.#tools.buffers.give(this.#buffer);
      this.#buffer = null;
    }
    this.#held = 0;
    this.#ended = true;
  }

  /**
   * Moves what can be moved. True if it stopped for fairness and wants another turn. Otherwise it
   * waits for the kernel, or the flow is over, or `to` has an errno.
   */
  pump(): boolean {
    const { limits } = this.#tools;
    let reads = limits.readsPerTurn;
    let splices = limits.splicesPerTurn;
    for (;;) {
      if (this.#held > 0 && !this.#flush()) return false;
      // An empty pipe goes back before the flow rests: an idle tunnel holds none.
      if (this.#ended || !this.#from.readable || !this.#to.writable) return this.#rest();
      if (this.#bulk && !this.#from.urgent && this.#borrowPipe()) {
        if (splices-- === 0) return true;
        this.#fill();
      } else {
        if (reads-- === 0) return true;
        if (this.#pipe !== null) this.#rest();
        this.#copy();
      }
      if (this.#to.errno !== 0) return false;
    }
  }

  /** recv and send; what `to` does not take is kept in a buffer. */
  #copy(): void {
    const { sys, scratch, buffers, limits } = this.#tools;
    const from = this.#from;
    // With no buffer to keep a rest in, nothing may be taken that is not passed on at once: look
    // first, send, and take as much as was sent. One more call, but no memory and no stall.
    const keepNothing = buffers.exhausted;
    const size = limits.chunkBytes;
    const got = sys.recv(from.fd, scratch, 0, size, keepNothing ? MSG_PEEK : 0);
    if (got <= 0) return this.#sourceSaid(got);
    // A short read has emptied the socket (epoll(7)), unless an error or urgent data stand behind
    // it: those are not told again. If FIN was there before it, that is all that is left.
    if (got < size) {
      if (!from.urgent && !keepNothing && from.errno === 0) {
        if (from.finished) this.#ended = true;
        else from.readable = false;
      }
    } else this.#bulk = true;
    if (this.#to.nagles) this.#hurry(got);
    const sent = sys.send(this.#to.fd, scratch, 0, got, MSG_NOSIGNAL);
    if (sent === got) this.bytes += sent;
    else if (sent >= 0) this.#blocked(sent);
    else if (!this.#refused(sent)) return;
    const passed = Math.max(0, sent);
    if (keepNothing) {
      if (passed > 0) sys.recv(from.fd, scratch, 0, passed, MSG_TRUNC);
    } else if (passed < got) this.#keep(scratch.bytes, passed, got);
  }

  #keep(bytes: Uint8Array, start: number, end: number): void {
    const buffer = this.#buffer ?? this.#tools.buffers.take();
    assert(buffer !== null, "a buffer was there before the read");
    buffer.bytes.set(bytes.subarray(start, end), 0);
    this.#buffer = buffer;
    this.#heldAt = 0;
    this.#held = end - start;
  }

  /**
   * A pipe is filled only when it is empty. So EAGAIN can mean only that the socket has nothing,
   * never that the pipe is full: splice(2) has one errno for both.
   */
  #fill(): void {
    const { sys, limits, meters } = this.#tools;
    const got = sys.splice(
      this.#from.fd, this.#pipe!.writeEnd, limits.pipeBytes, SPLICE_F_MOVE | SPLICE_F_NONBLOCK,
    );
    // 0: the end; but in front of an urgent byte with FIN behind it splice says so too, and recv
    // knows better. No memory for a splice, or a socket that cannot be spliced from: copy.
    if (got === 0 || got === -ENOMEM || got === -ENOBUFS || got === -EINVAL) {
      this.#bulk = false;
      return;
    }
    if (got < 0) return this.#sourceSaid(got);
    this.#held = got;
    observe(meters, SPLICE_SIZE, got);
    if (got < BULK_BYTES_MIN) this.#bulk = false;
  }

  /** Passes on what is held. False if some of it is still held. */
  #flush(): boolean {
    const { sys } = this.#tools;
    const to = this.#to;
    while (this.#held > 0) {
      if (!to.writable) return false;
      if (to.nagles) this.#hurry(this.#held);
      const sent =
        this.#buffer !== null
          ? sys.send(to.fd, this.#buffer, this.#heldAt, this.#held, MSG_NOSIGNAL)
          : sys.splice(
              this.#pipe!.readEnd, to.fd, this.#held, SPLICE_F_MOVE | SPLICE_F_NONBLOCK,
            );
      if (sent > 0) {
        this.bytes += sent;
        this.#held -= sent;
        this.#heldAt += sent;
      } else if (!this.#refused(sent)) return false;
    }
    if (this.#buffer !== null) {
      this.#tools.buffers.give(this.#buffer);
      this.#buffer = null;
    }
    return true;
  }

  /**
   * Nagle's algorithm holds up what does not fill a segment while something in front of it is not
   * acknowledged (RFC 9293, 3.7.4). One small message, with all before it answered, leaves at once as it is;
   * only who says more is worth the call.
   */
  #hurry(length: number): void {
    if (this.bytes === 0 && length <= SEGMENT_BYTES_MIN) return;
    this.#to.nagles = false;
    this.#tools.sys.setsockopt(this.#to.fd, SOL_TCP, TCP_NODELAY, 1);
  }

  /** `to` took only some: it is full. */
  #blocked(sent: number): void {
    this.bytes += sent;
    const result = this.#to.awaitWritable();
    if (result < 0) this.#to.errno = -result;
  }

  /** A write answered an error. True if that only means that `to` is full. */
  #refused(sent: Result): boolean {
    if (sent === -EAGAIN) {
      const result = this.#to.awaitWritable();
      if (result >= 0) return true;
      sent = result;
    }
    if (sent === -EINTR) return true;
    this.#to.errno = sent === 0 ? EPIPE : -sent;
    // It may have said something before it died, and the kernel tells an error only once.
    this.#to.readable = true;
    return false;
  }

  /** A read answered 0 or an error. */
  #sourceSaid(result: Result): void {
    if (result === -EAGAIN) this.#from.readable = false;
    else if (result === 0) this.#ended = true;
    else if (result !== -EINTR) {
      this.#from.errno = -result;
      this.#ended = true;
    }
  }

  #borrowPipe(): boolean {
    if (this.#pipe !== null) return true;
    this.#pipe = this.#tools.pipes.take();
    return this.#pipe !== null;
  }

  #rest(): boolean {
    if (this.#pipe !== null) {
      this.#tools.pipes.give(this.#pipe);
      this.#pipe = null;
    }
    return false;
  }
}
