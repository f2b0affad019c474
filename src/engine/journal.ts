/**
 * What happened to tunnels, as fixed records in a ring of shared memory: one writer (a worker),
 * one reader (main, which makes log lines of them). The writer never waits: when the ring is full
 * the record is dropped and counted. Text is made by the reader, off the data plane.
 */
import type { Memory } from "../../native-bindings/syscalls.ts";

/** Sockaddrs of client, destination and source: what a row of the tunnel table starts with. */
export const ADDRESSES_BYTES = 84;

export const STARTED = 1;
export const ENDED = 2;

export interface JournalRecord {
  kind: number;
  reason: number;
  cause: number;
  detail: number;
  /** Of the destination, as our own egress tells it; 0: it does not. */
  errno: number;
  /** Unique in the process for the life of a worker's incarnation. */
  id: number;
  incarnation: number;
  /** ms since the epoch, with fractions. */
  wallMs: number;
  durationMs: number;
  bytesUp: number;
  bytesDown: number;
  /** Client's sockaddr at 0, destination's at 28, source's at 56. Valid until the next read. */
  addresses: Uint8Array;
  /** Of SOCKS, as the client spoke it; 0: a transparent tunnel. */
  version: number;
  text: string;
  /** What a SOCKS client named: the destination, and itself; "" where it named none. */
  name: string;
  user: string;
  /** The addresses that our own egress has tried, and what came of each. */
  tried: string;
}

const HEAD = 0; // Records written, in all; wraps at 2^32.
const TAIL = 1; // Records read.
const READER_SLEEPS = 2;
const HEADER_BYTES = 16;

const RECORD_BYTES = 512;
const DETAIL = 4;
const ERRNO = 6;
const WALL = 8;
const DURATION = 16;
const UP = 24;
const DOWN = 32;
const ID = 40;
const INCARNATION = 44;
const ADDRESSES = 48;
const TEXT = ADDRESSES + ADDRESSES_BYTES;
/** Four texts, one behind the other, each behind its length; what has no room is cut. */
const TEXT_END = RECORD_BYTES;
const TEXT_MAX = 80;

export const journalBytes = (records: number): number => HEADER_BYTES + records * RECORD_BYTES;

export class Journal {
  readonly #words: Int32Array;
  readonly #view: DataView;
  readonly #bytes: Uint8Array;
  readonly #records: number;
  /** Reused by read(): a log line is made of it at once. */
  readonly #record: JournalRecord;

  constructor(shared: SharedArrayBuffer) {
    this.#words = new Int32Array(shared, 0, HEADER_BYTES / 4);
    this.#view = new DataView(shared);
    this.#bytes = new Uint8Array(shared);
    this.#records = (shared.byteLength - HEADER_BYTES) / RECORD_BYTES;
    this.#record = {
      kind: 0, reason: 0, cause: 0, detail: 0, errno: 0, id: 0, incarnation: 0, wallMs: 0, durationMs: 0,
      bytesUp: 0, bytesDown: 0, addresses: new Uint8Array(ADDRESSES_BYTES), version: 0, text: "",
      name: "", user: "", tried: "",
    };
  }

  /** Writer. False if the ring is full: the record is lost, and the caller counts it. */
  write(
    kind: number, reason: number, cause: number, detail: number, errno: number, id: number, incarnation: number,
    wallMs: number, durationMs: number, bytesUp: number, bytesDown: number,
    addresses: Memory, at: number, version: number, text: string, name: string, user: string,
    tried: string,
  ): boolean {
    const head = this.#words[HEAD]!;
    if (((head - Atomics.load(this.#words, TAIL)) | 0) >= this.#records) return false;
    const start = HEADER_BYTES + ((head >>> 0) % this.#records) * RECORD_BYTES;
    const view = this.#view;
    view.setUint8(start, kind);
    view.setUint8(start + 1, reason);
    view.setInt16(start + DETAIL, detail, true);
    view.setInt16(start + ERRNO, errno, true);
    view.setFloat64(start + WALL, wallMs, true);
    view.setFloat64(start + DURATION, durationMs, true);
    view.setFloat64(start + UP, bytesUp, true);
    view.setFloat64(start + DOWN, bytesDown, true);
    view.setUint32(start + ID, id, true);
    view.setUint32(start + INCARNATION, incarnation, true);
    for (let i = 0; i < ADDRESSES_BYTES; i += 4) {
      view.setUint32(start + ADDRESSES + i, addresses.view.getUint32(at + i, true), true);
    }
    view.setUint8(start + 2, version);
    view.setUint8(start + 3, cause);
    let to = start + TEXT;
    to = this.#writeText(text, to, to + TEXT_MAX);
    to = this.#writeText(name, to, start + TEXT_END - 2);
    to = this.#writeText(user, to, start + TEXT_END - 1);
    this.#writeText(tried, to, start + TEXT_END);
    Atomics.store(this.#words, HEAD, (head + 1) | 0); // Only now may the reader see it.
    return true;
  }

  /** Writer, once a turn: true if the reader sleeps over unread records and must be told. */
  shouldWakeReader(): boolean {
    if (this.#words[READER_SLEEPS] === 0) return false;
    if (this.#words[HEAD] === Atomics.load(this.#words, TAIL)) return false;
    return Atomics.exchange(this.#words, READER_SLEEPS, 0) === 1;
  }

  /** Reader: from now on it wants to be told. False if records have come meanwhile: read on. */
  sleep(): boolean {
    Atomics.store(this.#words, READER_SLEEPS, 1);
    if (Atomics.load(this.#words, HEAD) === this.#words[TAIL]) return true;
    Atomics.store(this.#words, READER_SLEEPS, 0);
    return false;
  }

  /** Reader: the oldest record, in an object that the next read overwrites; null if none. */
  read(): JournalRecord | null {
    const tail = this.#words[TAIL]!;
    if (Atomics.load(this.#words, HEAD) === tail) return null;
    const start = HEADER_BYTES + ((tail >>> 0) % this.#records) * RECORD_BYTES;
    const view = this.#view;
    const record = this.#record;
    record.kind = view.getUint8(start);
    record.reason = view.getUint8(start + 1);
    record.detail = view.getInt16(start + DETAIL, true);
    record.errno = view.getInt16(start + ERRNO, true);
    record.wallMs = view.getFloat64(start + WALL, true);
    record.durationMs = view.getFloat64(start + DURATION, true);
    record.bytesUp = view.getFloat64(start + UP, true);
    record.bytesDown = view.getFloat64(start + DOWN, true);
    record.id = view.getUint32(start + ID, true);
    record.incarnation = view.getUint32(start + INCARNATION, true);
    record.addresses.set(
      this.#bytes.subarray(start + ADDRESSES, start + ADDRESSES + ADDRESSES_BYTES),
    );
    record.version = view.getUint8(start + 2);
    record.cause = view.getUint8(start + 3);
    let from = start + TEXT;
    record.text = this.#readText(from);
    from += 1 + this.#bytes[from]!;
    record.name = this.#readText(from);
    from += 1 + this.#bytes[from]!;
    record.user = this.#readText(from);
    from += 1 + this.#bytes[from]!;
    record.tried = this.#readText(from);
    Atomics.store(this.#words, TAIL, (tail + 1) | 0);
    return record;
  }

  /** Answers where it ended. Characters above U+00FF have been made ASCII, or become "?". */
  #writeText(text: string, to: number, end: number): number {
    const length = Math.max(0, Math.min(text.length, end - to - 1, 255));
    this.#bytes[to++] = length;
    for (let i = 0; i < length; i++) {
      const code = text.charCodeAt(i);
      this.#bytes[to++] = code > 255 ? 63 : code;
    }
    return to;
  }

  #readText(from: number): string {
    const length = this.#bytes[from]!;
    if (length === 0) return "";
    return String.fromCharCode(...this.#bytes.slice(from + 1, from + 1 + length));
  }
}
