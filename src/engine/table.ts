/**
 * The tunnel table: what each tunnel of a worker is doing, as rows in shared memory that the worker
 * alone writes and main reads at any time. A row lives as long as its session, and serves one tunnel
 * after the other. Texts (what a SOCKS client named) stand apart: most tunnels have none.
 *
 * A row's stamp holds the phase and a number that each new stamp moves on. Addresses and texts are
 * written while the stamp says OVER or CHANGING; so a reader who finds the same stamp behind his copy
 * as before it has copied one tunnel at one moment. Numbers cannot tear, and move at any time.
 */
import { SOCKADDR_SIZE } from "../../native-bindings/constants.ts";
import type { Memory, Syscalls } from "../../native-bindings/syscalls.ts";

/** By their numbers in the stamp. */
export const PHASES = ["over", "front", "dial", "upstream", "relay", "reset", "refused", "granted"] as const;
export type PhaseName = (typeof PHASES)[number];
export const OVER = 0;
export const FRONT = 1;
export const DIAL = 2;
export const UPSTREAM = 3;
export const RELAY = 4;
export const RESET = 5;
export const REFUSED = 6;
/** A SYN goes on whose connection is still to be accepted. */
export const GRANTED = 7;
const CHANGING = 15;
/** The phase stands in the stamp's low bits. */
const PHASE_MASK = 15;
export const phaseOf = (stamp: number): number => stamp & PHASE_MASK;

// Offsets in a row, in bytes. Sockaddrs first: they are where system calls want them.
export const CLIENT = 0;
export const DESTINATION = SOCKADDR_SIZE;
/** Of the connection to the destination: told to a SOCKS client, and to the log. */
export const SOURCE = 2 * SOCKADDR_SIZE;
/** Two 32-bit numbers: what the client and the user hold in the table of quotas. */
export const ROW_QUOTAS = 3 * SOCKADDR_SIZE;
export const ROW_QUOTAS_END = ROW_QUOTAS + 8;
const ID = 92;
const STAMP = 96;
/** 0: a redirected connection. Of SOCKS: its version, or 1 while that is not known. */
const VERSION = 100;
/** Times in ms, on the worker's clock. What changes with every message stands together. */
export const ACTIVE = 104;
export const UP = 112;
export const DOWN = 120;
export const STARTED = 128;
/** The present phase's begin. */
export const SINCE = 136;
/** How long each took, in µs. -1: it has not happened. */
export const DIALLED_US = 144;
export const SHAKEN_US = 148;
export const FIRST_BYTE_US = 152;
/** 16-bit numbers: which of the upstream's addresses, and which egress address. -1: none. */
export const UPSTREAM_SLOT = 156;
export const EXIT_SLOT = 158;
export const ROW_BYTES = 160;

/** Each behind its length; what has no room is cut. */
const NAME_BYTES = 80;
const USER_BYTES = 32;
const TEXT_BYTES = NAME_BYTES + USER_BYTES;

export const rowsBytes = (tunnels: number): number => tunnels * ROW_BYTES;
export const textsBytes = (tunnels: number): number => tunnels * TEXT_BYTES;

/** The worker's side. `row` is a row's offset in bytes. */
export class Table {
  /** For system calls that write addresses into it. */
  readonly memory: Memory;
  /** row + UP and the like, by 8, by 4 and by 2. */
  readonly numbers: Float64Array;
  readonly words: Int32Array;
  readonly halves: Int16Array;
  readonly #texts: Uint8Array;

  constructor(sys: Syscalls, rows: SharedArrayBuffer, texts: SharedArrayBuffer) {
    this.memory = sys.memory(rows);
    this.numbers = new Float64Array(rows);
    this.words = new Int32Array(rows);
    this.halves = new Int16Array(rows);
    this.#texts = new Uint8Array(texts);
  }

  get bytes(): number {
    return this.memory.bytes.length;
  }

  /** Another tunnel, whose client's address stands in the row. Nobody sees it before enter(). */
  begin(row: number, id: number, version: number, now: number): void {
    const { numbers, words, halves } = this;
    const number = row >> 3;
    numbers[number + (ACTIVE >> 3)] = now;
    numbers[number + (UP >> 3)] = 0;
    numbers[number + (DOWN >> 3)] = 0;
    numbers[number + (STARTED >> 3)] = now;
    const word = row >> 2;
    words[word + (SOURCE >> 2)] = 0;
    words[word + (ID >> 2)] = id;
    words[word + (VERSION >> 2)] = version;
    words[word + (DIALLED_US >> 2)] = -1;
    words[word + (SHAKEN_US >> 2)] = -1;
    words[word + (FIRST_BYTE_US >> 2)] = -1;
    halves[(row + UPSTREAM_SLOT) >> 1] = -1;
    halves[(row + EXIT_SLOT) >> 1] = -1;
    if (version !== 0) this.#texts.fill(0, textAt(row), textAt(row) + TEXT_BYTES);
  }

  /** It is in this phase from now on. */
  enter(row: number, phase: number, now: number): void {
    this.numbers[(row + SINCE) >> 3] = now;
    this.#stamp(row, phase);
  }

  /** Addresses or texts of a tunnel that is seen are about to be written; changed() ends that. */
  changing(row: number): void {
    this.#stamp(row, CHANGING);
  }

  changed(row: number, phase: number): void {
    this.#stamp(row, phase);
  }

  /** What a SOCKS client has named. In changing(), as addresses are. */
  setTexts(row: number, version: number, name: string, user: string): void {
    const at = textAt(row);
    this.words[(row + VERSION) >> 2] = version;
    writeText(this.#texts, at, NAME_BYTES, name);
    writeText(this.#texts, at + NAME_BYTES, USER_BYTES, user);
  }

  #stamp(row: number, phase: number): void {
    const at = (row + STAMP) >> 2;
    const next = ((this.words[at]! | PHASE_MASK) + 1) | phase;
    Atomics.store(this.words, at, next);
  }
}

const textAt = (row: number): number => (row / ROW_BYTES) * TEXT_BYTES;

/** Characters above U+00FF have been made ASCII, or become "?". */
function writeText(to: Uint8Array, at: number, room: number, text: string): void {
  const length = Math.min(text.length, room - 1);
  to[at] = length;
  for (let i = 0; i < length; i++) {
    const code = text.charCodeAt(i);
    to[at + 1 + i] = code > 255 ? 63 : code;
  }
}

/** How often a row that is being written is tried again; it is written in a moment. */
const ATTEMPTS = 16;

/**
 * Main's side: one worker's table, a row at a time, copied. Whoever goes through all rows again and again
 * copies only those whose stamp has moved on, and looks at the numbers of the others where they stand.
 */
export class TableReader {
  readonly #words: Int32Array;
  readonly #moving: Float64Array;
  readonly #texts: Uint8Array;
  readonly #copy = new Int32Array(ROW_BYTES / 4);
  readonly #numbers = new Float64Array(this.#copy.buffer);
  readonly #halves = new Int16Array(this.#copy.buffer);
  readonly #text = new Uint8Array(TEXT_BYTES);
  /** The copied row: sockaddrs at CLIENT, DESTINATION and SOURCE. Until the next read. */
  readonly bytes = new Uint8Array(this.#copy.buffer);
  #index = 0;

  constructor(rows: SharedArrayBuffer, texts: SharedArrayBuffer) {
    this.#words = new Int32Array(rows);
    this.#moving = new Float64Array(rows);
    this.#texts = new Uint8Array(texts);
  }

  get rows(): number {
    return this.#words.length / (ROW_BYTES / 4);
  }

  /** While it is the same, the row is of the same tunnel, in the same phase, with the same addresses and texts. */
  stampAt(index: number): number {
    return Atomics.load(this.#words, index * (ROW_BYTES / 4) + (STAMP >> 2));
  }

  /** STARTED, SINCE, ACTIVE, UP or DOWN of a row that need not have been read. */
  numberAt(index: number, offset: number): number {
    return this.#moving[index * (ROW_BYTES / 8) + (offset >> 3)]!;
  }

  /** DIALLED_US, SHAKEN_US or FIRST_BYTE_US of such a row. */
  microsAt(index: number, offset: number): number {
    return this.#words[index * (ROW_BYTES / 4) + (offset >> 2)]!;
  }

  /** Copies a row. False: no tunnel is there, or it changed all the time. */
  read(index: number): boolean {
    const words = this.#words;
    const start = index * (ROW_BYTES / 4);
    this.#index = index;
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const stamp = Atomics.load(words, start + (STAMP >> 2));
      const phase = phaseOf(stamp);
      if (phase === OVER) return false;
      if (phase === CHANGING) continue;
      for (let i = 0; i < ROW_BYTES / 4; i++) this.#copy[i] = words[start + i]!;
      if (this.version !== 0) {
        for (let i = 0; i < TEXT_BYTES; i++) this.#text[i] = this.#texts[index * TEXT_BYTES + i]!;
      }
      if (Atomics.load(words, start + (STAMP >> 2)) === stamp) return true;
    }
    return false;
  }

  /** Where it stands: for closing it. */
  get row(): number {
    return this.#index * ROW_BYTES;
  }

  /** Unsigned: counted in 32 bits for each life of a worker. */
  get id(): number {
    return this.#copy[ID >> 2]! >>> 0;
  }

  get stamp(): number {
    return this.#copy[STAMP >> 2]!;
  }

  get phase(): number {
    return phaseOf(this.stamp);
  }

  get version(): number {
    return this.#copy[VERSION >> 2]!;
  }

  get upstream(): number {
    return this.#halves[UPSTREAM_SLOT >> 1]!;
  }

  get exit(): number {
    return this.#halves[EXIT_SLOT >> 1]!;
  }

  /** STARTED, SINCE, ACTIVE, UP or DOWN. */
  number(offset: number): number {
    return this.#numbers[offset >> 3]!;
  }

  /** DIALLED_US, SHAKEN_US or FIRST_BYTE_US. */
  micros(offset: number): number {
    return this.#copy[offset >> 2]!;
  }

  /** What a SOCKS client named; "" where it named none. */
  get name(): string {
    return this.#textFrom(0);
  }

  get user(): string {
    return this.#textFrom(NAME_BYTES);
  }

  #textFrom(at: number): string {
    const length = this.version === 0 ? 0 : this.#text[at]!;
    return length === 0 ? "" : String.fromCharCode(...this.#text.subarray(at + 1, at + 1 + length));
  }
}

/** The worker is gone, and its tunnels are. For main, when nobody writes any more. */
export function clearTable(rows: SharedArrayBuffer): void {
  const words = new Int32Array(rows);
  for (let at = STAMP >> 2; at < words.length; at += ROW_BYTES / 4) {
    if ((words[at]! & PHASE_MASK) !== OVER) Atomics.store(words, at, (words[at]! | PHASE_MASK) + 1);
  }
}
