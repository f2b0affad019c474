/**
 * All keys of transplice.toml, in the order in which they are documented. The one source for
 * reading a file, for the guess at what a misspelt key was meant to be, and for the documentation.
 *
 * A new key is one row here and one line in parse.ts where Config is put together.
 */
import type { ListenAddress, Upstream } from "./config.ts";
import { LISTEN_ALLOWED } from "./listen.ts";
import { alternatives } from "./problem.ts";
import { durationText, sizeText } from "./quantity.ts";
import { UPSTREAM_ALLOWED } from "./upstream.ts";

interface Described {
  /** In TOML, as an operator would write it. null: not set. */
  readonly default: string | null;
  /** Where the default is null: what holds then. */
  readonly otherwise?: string;
  /** One sentence. */
  readonly description: string;
  /** In TOML. */
  readonly example: string;
}

interface Duration extends Described {
  readonly kind: "duration";
  readonly minMs: number;
  readonly maxMs: number;
  /** The kernel counts this one in seconds. */
  readonly wholeSeconds?: true;
}

interface Size extends Described {
  readonly kind: "size";
  readonly min: number;
  readonly max: number;
}

interface Integer extends Described {
  readonly kind: "integer";
  readonly min: number;
  readonly max: number;
}

interface Enumeration extends Described {
  readonly kind: "enum";
  readonly values: readonly string[];
  /** Other spellings of the values. */
  readonly aliases?: Readonly<Record<string, string>>;
}

interface Plain extends Described {
  readonly kind: "string" | "boolean" | "listen";
}

interface Url extends Described {
  readonly kind: "url";
  readonly required: true;
}

export type Setting = Duration | Size | Integer | Enumeration | Plain | Url;

const SECOND = 1000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
/** TCP_KEEPIDLE and TCP_KEEPINTVL end at 32767 s (MAX_TCP_KEEPIDLE in the kernel's net/tcp.h). */
const KEEPALIVE_MAX = 9 * HOUR;

export const SETTINGS = {
  listen: {
    kind: "listen",
    default: '"localhost:1081"',
    description:
      "Where redirected connections arrive; a string or an array of strings. `localhost` is 127.0.0.1 and ::1; without a host, all addresses of both families.",
    example: '["127.0.0.1:1081", "[::1]:1081"]',
  },
  proxy_url: {
    kind: "url",
    required: true,
    default: null,
    otherwise: "required",
    description:
      "The upstream proxy. User name and password are percent-encoded; `direct:` connects to the destinations without a proxy.",
    example: '"socks5://user:password@10.20.30.40:1080"',
  },
  mode: {
    kind: "enum",
    values: ["redirect", "tproxy"],
    default: '"redirect"',
    description: "Which firewall target hands the connections over: REDIRECT or TPROXY.",
    example: '"tproxy"',
  },
  workers: {
    kind: "integer",
    min: 1,
    max: 254,
    default: null,
    otherwise: "one for each CPU",
    description: "How many threads relay.",
    example: "4",
  },
  mark: {
    kind: "integer",
    min: 1,
    max: 0xffff_ffff,
    default: null,
    otherwise: "none",
    description:
      "The firewall mark (SO_MARK) of transplice's own connections, by which the rules let them pass.",
    example: "0x1081",
  },
  max_connections: {
    kind: "integer",
    min: 1,
    max: 10_000_000,
    default: null,
    otherwise: "what the limit of open files carries",
    description: "How many connections are served at once.",
    example: "20000",
  },
  "timeouts.dial": {
    kind: "duration",
    minMs: 10,
    maxMs: HOUR,
    default: '"10s"',
    description: "For connecting to the upstream, over all of its addresses.",
    example: '"5s"',
  },
  "timeouts.handshake": {
    kind: "duration",
    minMs: 10,
    maxMs: HOUR,
    default: '"10s"',
    description: "For the upstream's answer to authentication and request.",
    example: '"30s"',
  },
  "timeouts.half_closed": {
    kind: "duration",
    minMs: 10,
    maxMs: 168 * HOUR,
    default: '"5m"',
    description:
      "For a connection that one side has finished, without traffic in the other direction.",
    example: '"1m"',
  },
  "timeouts.idle": {
    kind: "duration",
    minMs: 10,
    maxMs: 168 * HOUR,
    default: '"2h4m"',
    description: "For a connection without traffic; RFC 5382 asks for no less than the default.",
    example: '"24h"',
  },
  "timeouts.drain": {
    kind: "duration",
    minMs: 0,
    maxMs: 24 * HOUR,
    default: '"60s"',
    description: "How long connections may go on after TERM or INT.",
    example: '"5m"',
  },
  "timeouts.negotiation": {
    kind: "duration",
    minMs: 10,
    maxMs: HOUR,
    default: '"10s"',
    description: "For what a client of the egress says until its destination is known.",
    example: '"5s"',
  },
  "timeouts.dns": {
    kind: "duration",
    minMs: 10,
    maxMs: MINUTE,
    default: '"5s"',
    description: "For the addresses of a name that a client of the egress asks for.",
    example: '"2s"',
  },
  "tcp.keepalive_idle": {
    kind: "duration",
    minMs: SECOND,
    maxMs: KEEPALIVE_MAX,
    wholeSeconds: true,
    default: '"3m"',
    description: "Silence after which TCP asks whether the peer is still there (TCP_KEEPIDLE).",
    example: '"1m"',
  },
  "tcp.keepalive_interval": {
    kind: "duration",
    minMs: SECOND,
    maxMs: KEEPALIVE_MAX,
    wholeSeconds: true,
    default: '"30s"',
    description: "Time between such questions (TCP_KEEPINTVL).",
    example: '"10s"',
  },
  "tcp.keepalive_probes": {
    kind: "integer",
    min: 1,
    max: 127,
    default: "4",
    description: "Unanswered questions after which the connection is given up (TCP_KEEPCNT).",
    example: "3",
  },
  "tcp.user_timeout": {
    kind: "duration",
    minMs: SECOND,
    maxMs: 24 * HOUR,
    default: '"5m"',
    description: "How long sent bytes may stay unacknowledged (TCP_USER_TIMEOUT).",
    example: '"1m"',
  },
  "limits.when_full": {
    kind: "enum",
    values: ["wait", "reset"],
    default: '"wait"',
    description: "At max_connections, new connections wait in the kernel's queue or are reset.",
    example: '"reset"',
  },
  "limits.pipes": {
    kind: "integer",
    min: 0,
    max: 1_000_000,
    default: null,
    otherwise: "what the kernel allows this user",
    description:
      "Pipes for bulk transfer in use at once, by all workers together; 0 copies all bytes instead.",
    example: "64",
  },
  "limits.pipe_size": {
    kind: "size",
    min: 64 * 2 ** 10,
    max: 64 * 2 ** 20,
    default: '"1MiB"',
    description: "The size of such a pipe; the kernel rounds it up to a power of two.",
    example: '"256KiB"',
  },
  "upstream.pipelined": {
    kind: "boolean",
    default: "false",
    description:
      "Send greeting, authentication and request at once, where the upstream is known to allow it.",
    example: "true",
  },
  "log.filename": {
    kind: "string",
    default: null,
    otherwise: "standard error",
    description: "The log file; USR1 opens it anew.",
    example: '"/var/log/transplice.log"',
  },
  "log.level": {
    kind: "enum",
    values: ["critical", "error", "warning", "info", "debug"],
    aliases: { crit: "critical", warn: "warning", information: "info" },
    default: '"info"',
    description: "The least severe level that is logged.",
    example: '"warning"',
  },
  "log.format": {
    kind: "enum",
    values: ["plain", "logfmt", "json"],
    default: '"plain"',
    description: "The form of a log line.",
    example: '"json"',
  },
} as const satisfies Readonly<Record<string, Setting>>;

export type SettingKey = keyof typeof SETTINGS;

/** What a row's value is once read. */
type Read<S extends Setting> = S extends { kind: "enum"; values: readonly (infer V)[] }
  ? V
  : {
      duration: number;
      size: number;
      integer: number;
      enum: string;
      string: string;
      boolean: boolean;
      listen: readonly ListenAddress[];
      url: Upstream;
    }[S["kind"]];

/** null: not set, and the row has no default. */
export type Values = {
  readonly [K in SettingKey]:
    | Read<(typeof SETTINGS)[K]>
    | ((typeof SETTINGS)[K] extends { default: null; kind: Exclude<Setting["kind"], "url"> }
        ? null
        : never);
};

const ROWS: ReadonlyMap<string, Setting> = new Map(Object.entries(SETTINGS));

export const SETTING_KEYS = Object.keys(SETTINGS) as readonly SettingKey[];

/** A Map's answer, not an object's: a file may well say `constructor = 1`. */
export function isSettingKey(key: string): key is SettingKey {
  return ROWS.has(key);
}

/** The tables that hold keys: "timeouts", "tcp"... */
export const TABLES: ReadonlySet<string> = new Set(
  SETTING_KEYS.flatMap((key) => (key.includes(".") ? [key.slice(0, key.lastIndexOf("."))] : [])),
);

/** The keys that stand directly in a table; "" is the top level. */
export function keysOf(table: string): SettingKey[] {
  return SETTING_KEYS.filter((key) => key.slice(0, Math.max(0, key.lastIndexOf("."))) === table);
}

/** What may stand there, as the end of a sentence. */
export function allowedText(setting: Setting): string {
  switch (setting.kind) {
    case "duration":
      return `a duration such as ${setting.wholeSeconds ? '"90s" or "5m" (h, m, s)' : '"10s" or "1m30s" (h, m, s, ms)'}, from ${durationText(setting.minMs)} to ${durationText(setting.maxMs)}`;
    case "size":
      return `a size such as "256KiB" or "1MiB" (KiB, MiB, GiB, or an integer of bytes), from ${sizeText(setting.min)} to ${sizeText(setting.max)}`;
    case "integer":
      return `an integer from ${setting.min} to ${setting.max}`;
    case "enum":
      return alternatives(setting.values.map((value) => `"${value}"`));
    case "string":
      return "a string";
    case "boolean":
      return "true or false";
    case "listen":
      return `${LISTEN_ALLOWED}; or an array of these`;
    case "url":
      return UPSTREAM_ALLOWED;
  }
}

/** The README's table of keys, in Markdown. */
export function settingsMarkdown(): string {
  const rows = SETTING_KEYS.map((key) => {
    const setting: Setting = SETTINGS[key];
    const standard =
      setting.default === null ? (setting.otherwise ?? "") : `\`${setting.default}\``;
    return [
      `\`${key}\``,
      standard,
      setting.description,
      allowedText(setting),
      `\`${setting.example}\``,
    ];
  });
  const lines = [
    ["key", "default", "what it says", "allowed", "example"],
    ["---", "---", "---", "---", "---"],
    ...rows,
  ];
  return lines
    .map((cells) => `| ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`)
    .join("\n");
}
