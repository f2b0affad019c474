/**
 * The log of the main thread, for itself and on behalf of the workers.
 *
 * No call throws, blocks or waits: a line is formatted at once and queued; one write is in flight.
 * When the reader or the disk is too slow, at most QUEUE_MAX of text waits, and what is beyond is
 * dropped and counted. Nothing that happens to the log ends the process.
 */
import os from "node:os";
import type { LogFormat, LogLevel } from "../../config/config.ts";
import { type Fields, LineFormat, type LineOptions } from "./line.ts";
import { openFailure, type Target, type Targets, targets } from "./target.ts";

export type { Field, Fields } from "./line.ts";

/** Characters queued and bytes in flight; nearly all lines are ASCII. */
const QUEUE_MAX = 4 * 1024 * 1024;
/** After lines were dropped none is taken until so much has gone out: one gap, not a thousand. */
const QUEUE_RESUME = QUEUE_MAX / 2;
const CLOSE_MS = 2000;
/** A slow reader is asked again after 10 ms, then less and less often. */
const AGAIN_MS_MIN = 10;
const AGAIN_MS_MAX = 100;
/** After an error of the disk, or a reader that has gone. */
const FAILED_MS = 1000;

/** The severities of syslog(3). */
const SEVERITY: Readonly<Record<LogLevel, number>> = {
  critical: 2,
  error: 3,
  warning: 4,
  info: 6,
  debug: 7,
};

export interface LogOptions {
  /** The program's name. */
  readonly topic: string;
  readonly level: LogLevel;
  readonly format: LogFormat;
  /** null: standard error. */
  readonly filename: string | null;
  /** Fields of every line. */
  readonly defaults?: Fields;
  readonly hostname?: string;
}

/** What a test replaces. */
export interface LogSeams {
  readonly targets: Targets;
  /** Milliseconds since 1970, with fractions. */
  readonly now: () => number;
  /** Milliseconds of a clock that nobody sets. */
  readonly monotonic: () => number;
}

interface Flight {
  readonly bytes: Uint8Array;
  at: number;
  target: Target;
  /** The kernel has it now. Otherwise it waits for another attempt. */
  writing: boolean;
}

const NO_FIELDS: Fields = Object.freeze({});

export class Log {
  readonly #seams: LogSeams;
  /** What all lines have, whatever their format. */
  readonly #origin: Omit<LineOptions, "format">;
  readonly #limit: RateLimit;
  #format: LogFormat;
  #lines: LineFormat;
  #threshold: number;
  #filename: string | null;
  #target: Target;
  #fault: string | null = null;

  #queue = "";
  #flight: Flight | null = null;
  #scheduled = false;
  #retry: NodeJS.Timeout | null = null;
  #againMs = AGAIN_MS_MIN;
  #dropping = false;
  #dropped = 0;
  /** Of these, as many are spoken of in the log. */
  #confessed = 0;
  /** Attempts that failed since the last success, and the last error. */
  #failures = 0;
  #failure = "";
  #closed: Promise<void> | null = null;
  #drained: (() => void) | null = null;

  constructor(options: LogOptions, seams: Partial<LogSeams> = {}) {
    this.#seams = { targets, now: wallClock, monotonic: () => performance.now(), ...seams };
    this.#origin = {
      topic: options.topic,
      hostname: options.hostname ?? os.hostname(),
      defaults: options.defaults ?? NO_FIELDS,
    };
    this.#format = options.format;
    this.#lines = new LineFormat({ ...this.#origin, format: options.format });
    this.#threshold = SEVERITY[options.level];
    this.#filename = options.filename;
    try {
      this.#target = this.#seams.targets.open(options.filename);
    } catch (error) {
      this.#fault = openFailure(options.filename ?? "standard error", error);
      this.#filename = null;
      this.#target = this.#seams.targets.open(null);
    }
    this.#limit = new RateLimit(this.#seams.monotonic, (level, message, fields) => {
      if (this.enabled(level)) this.#write(level, message, fields);
    });
  }

  get topic(): string {
    return this.#origin.topic;
  }

  /** Why the file could not be opened at the start: lines go to standard error instead. */
  get fault(): string | null {
    return this.#fault;
  }

  /** Lines that were lost since the start: too many waited, or nobody took them. */
  get dropped(): number {
    return this.#dropped;
  }

  enabled(level: LogLevel): boolean {
    return SEVERITY[level] <= this.#threshold;
  }

  /**
   * `at`: when it happened, in milliseconds since 1970 with fractions; now, if it is left out.
   *
   * At warning and above, repetitions of the same message are held back and counted (RateLimit);
   * `limitKey` says what else must be equal for that, an upstream's name for example.
   */
  critical(message: string, fields: Fields = NO_FIELDS, at?: number, limitKey?: string): void {
    this.#limited("critical", message, fields, at, limitKey);
  }

  error(message: string, fields: Fields = NO_FIELDS, at?: number, limitKey?: string): void {
    this.#limited("error", message, fields, at, limitKey);
  }

  warning(message: string, fields: Fields = NO_FIELDS, at?: number, limitKey?: string): void {
    this.#limited("warning", message, fields, at, limitKey);
  }

  /** Never held back: the access log is made of these. */
  info(message: string, fields: Fields = NO_FIELDS, at?: number): void {
    if (this.enabled("info")) this.#write("info", message, fields, at);
  }

  debug(message: string, fields: Fields = NO_FIELDS, at?: number): void {
    if (this.enabled("debug")) this.#write("debug", message, fields, at);
  }

  /**
   * Opens the file again, after it was renamed. Lines in flight still go to the old one; none is
   * lost. Answers what went wrong, or null; then the old file stays in use.
   */
  reopen(): string | null {
    return this.#filename === null ? null : this.#open(this.#filename);
  }

  /** Answers what went wrong, or null. When it went wrong nothing has changed. */
  reconfigure(options: Pick<LogOptions, "level" | "format" | "filename">): string | null {
    if (options.filename !== this.#filename) {
      const failure = this.#open(options.filename);
      if (failure !== null) return failure;
    }
    this.#filename = options.filename;
    this.#threshold = SEVERITY[options.level];
    if (options.format !== this.#format) {
      this.#format = options.format;
      this.#lines = new LineFormat({ ...this.#origin, format: options.format });
    }
    return null;
  }

  /** Writes out what waits, within CLOSE_MS. Later lines are ignored. */
  close(): Promise<void> {
    if (this.#closed !== null) return this.#closed;
    this.#limit.close();
    this.#closed = new Promise((resolve) => {
      const finish = (): void => {
        clearTimeout(deadline);
        if (this.#retry !== null) clearTimeout(this.#retry);
        this.#drained = null;
        if (!this.#flight?.writing) this.#target.close();
        resolve();
      };
      const deadline = setTimeout(finish, CLOSE_MS);
      this.#drained = finish;
      this.#flush();
    });
    return this.#closed;
  }

  #limited(level: LogLevel, message: string, fields: Fields, at?: number, limitKey?: string): void {
    if (!this.enabled(level) || this.#closed !== null) return;
    if (this.#limit.admits(level, message, fields, limitKey))
      this.#write(level, message, fields, at);
  }

  #write(level: LogLevel, message: string, fields: Fields, at: number = this.#seams.now()): void {
    if (this.#closed !== null) return;
    const room = (this.#dropping ? QUEUE_RESUME : QUEUE_MAX) - this.#waiting();
    const line = room > 0 ? this.#lines.line(level, message, fields, at) : "";
    this.#dropping = room <= 0 || line.length > room;
    if (this.#dropping) {
      this.#dropped++;
      return;
    }
    this.#queue += line;
    if (this.#scheduled || this.#flight !== null || this.#retry !== null) return;
    this.#scheduled = true;
    // Not at once, so that the lines of one turn are one write.
    setImmediate(() => {
      this.#scheduled = false;
      this.#flush();
    });
  }

  #waiting(): number {
    return (
      this.#queue.length + (this.#flight === null ? 0 : this.#flight.bytes.length - this.#flight.at)
    );
  }

  /** Starts the next write unless one is in flight or awaits its time. */
  #flush(): void {
    if (this.#retry !== null || this.#flight?.writing) return;
    if (this.#flight === null) {
      if (this.#queue === "") {
        this.#drained?.();
        return;
      }
      this.#flight = {
        bytes: Buffer.from(this.#queue),
        at: 0,
        target: this.#target,
        writing: false,
      };
      this.#queue = "";
    }
    const flight = this.#flight;
    if (flight.target !== this.#target) {
      // The target was changed while this waited for the old one. What the new one gets begins
      // with a whole line, so the old one may keep the first part of it, too.
      if (flight.at > 0) flight.at = flight.bytes.lastIndexOf(0x0a, flight.at - 1) + 1;
      flight.target = this.#target;
    }
    this.#send(flight);
  }

  #send(flight: Flight): void {
    flight.writing = true;
    flight.target.write(flight.bytes, flight.at, (error, written) =>
      this.#sent(flight, error, written),
    );
  }

  #sent(flight: Flight, errno: string | null, written: number): void {
    flight.writing = false;
    // Nothing written and no error: no file system should, and it must not become a busy loop.
    const error = errno ?? (written === 0 ? "EIO" : null);
    const replaced = flight.target !== this.#target;
    if (error === null) {
      this.#againMs = AGAIN_MS_MIN;
      flight.at += written;
      if (flight.at === flight.bytes.length) this.#flight = null;
      // What a replaced file was given it gets to the end, or until it fails.
      else if (replaced) return this.#send(flight);
      this.#confess();
    } else if (!replaced) {
      this.#failed(flight, error);
    }
    if (replaced) flight.target.close();
    this.#flush();
  }

  #failed(flight: Flight, error: string): void {
    if (error === "EINTR") return;
    if (error === "EAGAIN") {
      this.#retryAfter(this.#againMs);
      this.#againMs = Math.min(2 * this.#againMs, AGAIN_MS_MAX);
      return;
    }
    this.#failures++;
    this.#failure = error;
    if (error !== "ENOSPC" && error !== "EDQUOT" && error !== "EIO") {
      // The reader has gone (EPIPE), or the like: nobody will ever take these lines.
      for (let i = flight.at; i < flight.bytes.length; i++)
        if (flight.bytes[i] === 0x0a) this.#dropped++;
      this.#flight = null;
    }
    this.#retryAfter(FAILED_MS);
  }

  #retryAfter(ms: number): void {
    this.#retry = setTimeout(() => {
      this.#retry = null;
      this.#flush();
    }, ms);
    // Lines alone do not keep the process alive; close() does, as long as it may.
    this.#retry.unref();
  }

  /** Once lines go out again: how many did not. At any level, as these are about all lines. */
  #confess(): void {
    if (this.#failures > 0) {
      this.#queue += this.#lines.line(
        "warning",
        "the log could not be written",
        { attempts: this.#failures, error: this.#failure },
        this.#seams.now(),
      );
      this.#failures = 0;
    }
    const dropped = this.#dropped - this.#confessed;
    if (dropped > 0 && this.#waiting() < QUEUE_RESUME) {
      this.#queue += this.#lines.line(
        "warning",
        `${dropped} log lines were dropped`,
        { dropped },
        this.#seams.now(),
      );
      this.#confessed = this.#dropped;
      this.#dropping = false;
    }
  }

  #open(filename: string | null): string | null {
    let target: Target;
    try {
      target = this.#seams.targets.open(filename);
    } catch (error) {
      const failure = openFailure(filename ?? "standard error", error);
      this.error("failed to open the log file", { error: failure });
      return failure;
    }
    const old = this.#target;
    this.#target = target;
    // With a write in flight the old target is closed when that comes back.
    if (this.#flight?.writing !== true || this.#flight.target !== old) old.close();
    if (this.#retry !== null) {
      clearTimeout(this.#retry);
      this.#retry = null;
      this.#flush();
    }
    return null;
  }
}

const WINDOW_MS = 10_000;
const WINDOW_LINES = 10;
/** Different messages watched at once. They are constants of ours; limit keys may be many. */
const WINDOWS_MAX = 1024;

interface Window {
  readonly level: LogLevel;
  readonly message: string;
  readonly until: number;
  lines: number;
  /** Of the last line, as an example of those that were held back. */
  fields: Fields;
}

/**
 * Of the same message with the same key, WINDOW_LINES pass within WINDOW_MS. The others are counted,
 * and at the end of the window one line says how many, with the fields of the last. All windows are
 * equally long, so a Map's order of insertion is the order in which they end.
 */
class RateLimit {
  readonly #now: () => number;
  readonly #tell: (level: LogLevel, message: string, fields: Fields) => void;
  readonly #windows = new Map<string, Window>();
  #timer: NodeJS.Timeout | null = null;

  constructor(now: () => number, tell: (level: LogLevel, message: string, fields: Fields) => void) {
    this.#now = now;
    this.#tell = tell;
  }

  admits(level: LogLevel, message: string, fields: Fields, limitKey: string | undefined): boolean {
    const now = this.#now();
    this.#end(now);
    const key = limitKey === undefined ? message : `${message}\n${limitKey}`;
    const window = this.#windows.get(key);
    if (window !== undefined) {
      window.lines++;
      window.fields = fields;
      return window.lines <= WINDOW_LINES;
    }
    if (this.#windows.size >= WINDOWS_MAX) this.#end(now, 1);
    this.#windows.set(key, { level, message, until: now + WINDOW_MS, lines: 1, fields });
    this.#timer ??= this.#wake(WINDOW_MS);
    return true;
  }

  close(): void {
    this.#end(Number.POSITIVE_INFINITY);
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
  }

  /** Ends the windows that are over, and the `early` oldest of those that are not. */
  #end(now: number, early = 0): void {
    let left = early;
    for (const [key, window] of this.#windows) {
      if (window.until > now && left-- <= 0) return;
      this.#windows.delete(key);
      const suppressed = window.lines - WINDOW_LINES;
      if (suppressed > 0)
        this.#tell(window.level, window.message, { ...window.fields, suppressed });
    }
  }

  #wake(ms: number): NodeJS.Timeout {
    const timer = setTimeout(() => {
      this.#timer = null;
      const now = this.#now();
      this.#end(now);
      const [next] = this.#windows.values();
      if (next !== undefined) this.#timer = this.#wake(Math.max(1, next.until - now));
    }, ms);
    timer.unref();
    return timer;
  }
}

let wallOffset = performance.timeOrigin;

/** The wall clock with microseconds: Date.now() counts in whole milliseconds only. */
function wallClock(): number {
  const precise = wallOffset + performance.now();
  const coarse = Date.now();
  if (precise >= coarse && precise < coarse + 1) return precise;
  // Someone has set the clock, or the two have drifted apart.
  wallOffset += coarse - precise;
  return coarse;
}
