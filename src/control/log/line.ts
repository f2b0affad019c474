/**
 * The text of a log line, in the three forms of cybozu-go/log, which operators' tools already read
 * (plain, logfmt, json):
 *
 *     2026-11-23T15:38:14.628404Z vm transplice info: "proxy ends" elapsed=0.5 type="access"
 *     topic=transplice logged_at=… severity=info utsname=vm message="proxy ends" elapsed=0.5
 *     {"topic":"transplice","logged_at":"…","severity":"info","utsname":"vm","message":…}
 *
 * Pure. It runs for every connection on the main thread, hence no regular expression and no Date
 * where a line is ordinary.
 */
import type { LogFormat, LogLevel } from "../../config/config.ts";

export type Field = string | number | bigint | boolean | null;

/** Keys as cybozu-go/log wants them: [_a-z][a-z0-9_]*, and none of the five that every line has. */
export type Fields = Readonly<Record<string, Field>>;

/** A line's end included. A longer one has its strings cut. */
export const LINE_BYTES_MAX = 1024 * 1024;
const TOPIC_CHARACTERS_MAX = 128;
/** From here Date cannot write a year in four digits. */
const YEAR_10000_MS = 253_402_300_800_000;

export interface LineOptions {
  readonly format: LogFormat;
  readonly topic: string;
  readonly hostname: string;
  /** Follow each line's own fields, unless one of those has the same name. */
  readonly defaults: Fields;
}

export class LineFormat {
  readonly #format: LogFormat;
  readonly #defaults: Fields;
  readonly #defaultKeys: readonly string[];
  /** What stands before and behind the time in a line of each level. */
  readonly #heads: Readonly<Record<LogLevel, readonly [string, string]>>;
  #second = -1;
  #secondText = "";

  constructor(options: LineOptions) {
    this.#format = options.format;
    this.#defaults = options.defaults;
    this.#defaultKeys = Object.keys(options.defaults);
    const topic = normalTopic(options.topic);
    const head = (level: LogLevel): readonly [string, string] => {
      switch (options.format) {
        case "plain":
          return ["", ` ${options.hostname} ${topic} ${level}: `];
        case "logfmt":
          return [
            `topic=${topic} logged_at=`,
            ` severity=${level} utsname=${options.hostname} message=`,
          ];
        case "json":
          return [
            `{"topic":"${topic}","logged_at":"`,
            `","severity":"${level}","utsname":${JSON.stringify(options.hostname)},"message":`,
          ];
      }
    };
    this.#heads = {
      critical: head("critical"),
      error: head("error"),
      warning: head("warning"),
      info: head("info"),
      debug: head("debug"),
    };
  }

  /** With its newline, no longer than LINE_BYTES_MAX. `at` is in milliseconds since 1970. */
  line(level: LogLevel, message: string, fields: Fields, at: number): string {
    const text = this.#line(level, message, fields, at);
    if (text.length * 3 <= LINE_BYTES_MAX || Buffer.byteLength(text) <= LINE_BYTES_MAX) return text;
    return this.#cutLine(level, message, fields, at);
  }

  #line(level: LogLevel, message: string, fields: Fields, at: number): string {
    const head = this.#heads[level];
    const json = this.#format === "json";
    let text = head[0] + this.#time(at) + head[1] + (json ? jsonText(message) : goQuoted(message));
    for (const key of this.#format === "plain" ? sortedKeys(fields) : Object.keys(fields)) {
      const value = fields[key]!;
      text += json ? `,"${key}":${jsonValue(value)}` : ` ${key}=${plainValue(value)}`;
    }
    for (const key of this.#defaultKeys) {
      if (key in fields) continue;
      const value = this.#defaults[key]!;
      text += json ? `,"${key}":${jsonValue(value)}` : ` ${key}=${plainValue(value)}`;
    }
    return json ? `${text}}\n` : `${text}\n`;
  }

  /** All strings cut to the same length, so that what is left is still one line of the format. */
  #cutLine(level: LogLevel, message: string, fields: Fields, at: number): string {
    const entries = Object.entries(fields);
    // The worst that quoting makes of one UTF-16 unit is 6 bytes (\u0000 in JSON).
    const charactersMax = Math.floor(LINE_BYTES_MAX / 8 / (entries.length + 2));
    const cut = (value: Field): Field =>
      typeof value === "string" ? value.slice(0, charactersMax) : value;
    const kept = Object.fromEntries(entries.map(([key, value]) => [key, cut(value)]));
    const text = this.#line(level, message.slice(0, charactersMax), kept, at);
    if (Buffer.byteLength(text) <= LINE_BYTES_MAX) return text;
    // Too many fields, not too long ones: then they go, and the message stays.
    return this.#line(level, message.slice(0, LINE_BYTES_MAX / 16), {}, at);
  }

  /** RFC 3339 in UTC with microseconds. The part down to the second is kept from line to line. */
  #time(at: number): string {
    const micros = at >= 0 && at < YEAR_10000_MS ? Math.round(at * 1000) : 0;
    const second = Math.floor(micros / 1_000_000);
    if (second !== this.#second) {
      this.#secondText = new Date(second * 1000).toISOString().slice(0, 20);
      this.#second = second;
    }
    // One more digit in front keeps the leading zeros.
    return `${this.#secondText}${String(1_000_000 + micros - second * 1_000_000).slice(1)}Z`;
  }
}

function normalTopic(topic: string): string {
  return (
    topic
      .toLowerCase()
      .replace(/[^.a-z0-9-]/g, "-")
      .slice(0, TOPIC_CHARACTERS_MAX) || "-"
  );
}

/** Callers that write their fields in order save the sorting. */
function sortedKeys(fields: Fields): string[] {
  const keys = Object.keys(fields);
  for (let i = 1; i < keys.length; i++) if (keys[i - 1]! > keys[i]!) return keys.sort();
  return keys;
}

function plainValue(value: Field): string {
  if (typeof value === "string") return goQuoted(value);
  return typeof value === "number" ? decimal(value) : String(value);
}

function jsonValue(value: Field): string {
  if (typeof value === "string") return jsonText(value);
  if (typeof value !== "number") return String(value);
  return Number.isFinite(value) ? decimal(value) : `"${decimal(value)}"`;
}

/** As Go's strconv writes a float with 'f' and -1: never an exponent. */
function decimal(value: number): string {
  const text = String(value);
  if (Number.isInteger(value) && Number.isSafeInteger(value)) return text;
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "NaN" : value > 0 ? "+Inf" : "-Inf";
  const e = text.indexOf("e");
  if (e === -1) return text;
  const sign = value < 0 ? "-" : "";
  const digits = text.slice(sign.length, e).replace(".", "");
  const point = 1 + Number(text.slice(e + 1));
  return point <= 0
    ? `${sign}0.${"0".repeat(-point)}${digits}`
    : `${sign}${digits.padEnd(point, "0")}`;
}

/** Nothing in it that any of the formats would have to escape. */
function isOrdinary(text: string): boolean {
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    if (c < 0x20 || c > 0x7e || c === 0x22 || c === 0x5c) return false;
  }
  return true;
}

function jsonText(text: string): string {
  return isOrdinary(text) ? `"${text}"` : JSON.stringify(text);
}

const GO_ESCAPES: Readonly<Record<string, string>> = {
  "\x07": "\\a",
  "\b": "\\b",
  "\f": "\\f",
  "\n": "\\n",
  "\r": "\\r",
  "\t": "\\t",
  "\v": "\\v",
  '"': '\\"',
  "\\": "\\\\",
};

/** What Go calls printable: letters, marks, numbers, punctuation, symbols, and the ASCII space. */
const PRINTABLE = /^[\p{L}\p{M}\p{N}\p{P}\p{S} ]$/u;

/** As Go's strconv.Quote. A lone surrogate, which is not text, becomes U+FFFD. */
function goQuoted(text: string): string {
  if (isOrdinary(text)) return `"${text}"`;
  let quoted = '"';
  for (const character of text) {
    const point = character.codePointAt(0)!;
    const short = GO_ESCAPES[character];
    if (short !== undefined) quoted += short;
    else if (point >= 0xd800 && point <= 0xdfff) quoted += "\ufffd";
    else if (PRINTABLE.test(character)) quoted += character;
    else if (point < 0x20 || point === 0x7f) quoted += `\\x${point.toString(16).padStart(2, "0")}`;
    else if (point < 0x10000) quoted += `\\u${point.toString(16).padStart(4, "0")}`;
    else quoted += `\\U${point.toString(16).padStart(8, "0")}`;
  }
  return `${quoted}"`;
}
