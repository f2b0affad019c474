/**
 * The text of a configuration file -> a frozen Config, or everything that is wrong with it. Pure:
 * reads no file, no environment, no clock; whatever text comes, the answer is one of the two.
 *
 * Keys match as they did for transocks (BurntSushi/toml): as written, or else without regard to
 * case.
 */
import { type AST, ParseError, parseTOML } from "toml-eslint-parser";
import type { Config, ListenAddress, Upstream } from "./config.ts";
import { rangeOf, socketAddress } from "./endpoint.ts";
import { parseListen } from "./listen.ts";
import { nearest, type Problem, quoted } from "./problem.ts";
import { parseDuration, parseSize } from "./quantity.ts";
import {
  allowedText,
  isSettingKey,
  keysOf,
  SETTING_KEYS,
  SETTINGS,
  type Setting,
  type SettingKey,
  TABLES,
  type Values,
} from "./settings.ts";
import { parseUpstream } from "./upstream.ts";

export type Parsed =
  | { readonly config: Config; readonly warnings: readonly Problem[] }
  | { readonly problems: readonly Problem[] };

/** A value from elsewhere than the file, which wins over it. An empty text changes nothing. */
export interface Override {
  readonly key: SettingKey;
  readonly text: string;
  /** As its user wrote it: "-loglevel". */
  readonly from: string;
}

/** `name` is what problems call the file. */
export function parseConfig(
  text: string,
  name: string,
  overrides: readonly Override[] = [],
): Parsed {
  const problems: Problem[] = [];
  const syntax = parseSyntax(text, name);
  if ("message" in syntax) {
    readOverrides(overrides, problems);
    return frozen({ problems: [syntax, ...problems] });
  }
  const file = new File(name, problems);
  for (const item of syntax.body[0].body) {
    if (item.type === "TOMLTable") file.table(item);
    else file.pair([], item);
  }
  const values: Partial<Record<SettingKey, unknown>> = {
    ...DEFAULTS,
    ...file.values(),
    ...readOverrides(overrides, problems),
  };
  file.requireAll();
  crossCheck(values, file, problems);
  problems.sort(
    (a, b) => (a.line ?? Number.POSITIVE_INFINITY) - (b.line ?? Number.POSITIVE_INFINITY),
  );
  if (problems.length > 0) return frozen({ problems });
  const config = assembled(values as Values);
  return frozen({ config, warnings: warningsOf(config, file) });
}

function parseSyntax(text: string, name: string): AST.TOMLProgram | Problem {
  const problem = (line: number | null, column: number | null, message: string): Problem => ({
    place: name,
    line,
    column,
    key: null,
    message,
  });
  try {
    return parseTOML(text.startsWith("\ufeff") ? text.slice(1) : text);
  } catch (error) {
    // The parser's messages quote nothing of the file, which may hold a password.
    if (error instanceof ParseError)
      return problem(error.lineNumber, error.column + 1, `not TOML: ${error.message}`);
    if (error instanceof RangeError)
      return problem(null, null, "not readable: brackets are nested too deeply");
    throw error;
  }
}

/** What the keys of one file say. Collects; judges each value with `read`. */
class File {
  readonly #name: string;
  readonly #problems: Problem[];
  readonly #entries = new Map<
    SettingKey,
    { path: readonly string[]; line: number; node: AST.TOMLContentNode | null }
  >();
  readonly #unknownTables = new Set<string>();

  constructor(name: string, problems: Problem[]) {
    this.#name = name;
    this.#problems = problems;
  }

  /** [timeouts] and what stands under it. */
  table(table: AST.TOMLTable): void {
    const path = namesOf(table.key);
    const line = table.loc.start.line;
    const known = folded(path);
    if (!TABLES.has(known)) {
      if (!this.#underKey(path, line)) this.#unknownTable(path, line);
      return;
    }
    if (table.kind === "array") {
      this.#problem(
        line,
        known,
        `found an array of tables, [[${keyText(path)}]]; allowed: one table, [${known}]`,
      );
      return;
    }
    for (const pair of table.body) this.pair(path, pair);
  }

  /** key = value, in the table at `prefix`. */
  pair(prefix: readonly string[], pair: AST.TOMLKeyValue): void {
    const path = [...prefix, ...namesOf(pair.key)];
    const line = pair.loc.start.line;
    const known = folded(path);
    if (TABLES.has(known)) {
      if (pair.value.type === "TOMLInlineTable") {
        for (const inner of pair.value.body) this.pair(path, inner);
      } else {
        this.#problem(
          line,
          known,
          `found ${foundText(pair.value)}; allowed: a table, [${known}], with the keys ${lastNames(known)}`,
        );
      }
    } else if (isSettingKey(known)) {
      this.#entry(known, path, line, pair.value);
    } else if (!this.#underKey(path, line)) {
      this.#unknownKey(path, line);
    }
  }

  /** Once all pairs have been given. */
  values(): Partial<Record<SettingKey, unknown>> {
    const values: Partial<Record<SettingKey, unknown>> = {};
    for (const [key, entry] of this.#entries) {
      const value =
        entry.node === null
          ? undefined
          : read(SETTINGS[key], entry.node, (message) => this.#problem(entry.line, key, message));
      values[key] = value;
    }
    return values;
  }

  requireAll(): void {
    for (const key of SETTING_KEYS) {
      const setting: Setting = SETTINGS[key];
      if (setting.kind === "url" && !this.#entries.has(key)) {
        this.#problem(null, key, `is missing; for example: ${key} = ${setting.example}`);
      }
    }
  }

  lineOf(key: SettingKey): number | null {
    return this.#entries.get(key)?.line ?? null;
  }

  /** A problem, or a warning, with a key that need not stand in the file. */
  about(key: SettingKey, message: string): Problem {
    return { place: this.#name, line: this.lineOf(key), column: null, key, message };
  }

  #problem(line: number | null, key: string | null, message: string): void {
    this.#problems.push({ place: this.#name, line, column: null, key, message });
  }

  #entry(key: SettingKey, path: readonly string[], line: number, node: AST.TOMLContentNode): void {
    const first = this.#entries.get(key);
    if (first === undefined) {
      this.#entries.set(key, { path, line, node });
      return;
    }
    this.#problem(
      line,
      key,
      `is given twice: as ${keyText(first.path)} in line ${first.line} and as ${keyText(path)} here`,
    );
  }

  /** listen.port = 1, [listen]: a table where a value must stand. */
  #underKey(path: readonly string[], line: number): boolean {
    for (let length = path.length; length > 0; length--) {
      const known = folded(path.slice(0, length));
      if (!isSettingKey(known)) continue;
      this.#problem(line, known, `found a table; allowed: ${allowedText(SETTINGS[known])}`);
      // So that a required key is not also called missing.
      if (!this.#entries.has(known)) this.#entries.set(known, { path, line, node: null });
      return true;
    }
    return false;
  }

  #unknownTable(path: readonly string[], line: number): void {
    const known = folded(path);
    if (this.#unknownTables.has(known)) return;
    this.#unknownTables.add(known);
    const near = nearest(known, TABLES);
    const hint =
      near === null
        ? `tables are ${[...TABLES].map((table) => `[${table}]`).join(", ")}`
        : `did you mean [${near}]?`;
    this.#problem(line, `[${keyText(path)}]`, `is not a table of this file; ${hint}`);
  }

  #unknownKey(path: readonly string[], line: number): void {
    const known = folded(path);
    const last = path.at(-1)!.toLowerCase();
    const same = SETTING_KEYS.find((key) => lastName(key) === last);
    let hint: string;
    if (same !== undefined) {
      const table = same.slice(0, Math.max(0, same.lastIndexOf(".")));
      hint =
        table === ""
          ? `${same} exists; it stands at the top, before the first [table]`
          : `${same} exists; did you mean [${table}] ${last}?`;
    } else {
      const candidates = path.length === 1 ? [...SETTING_KEYS, ...TABLES] : SETTING_KEYS;
      const near = nearest(known, candidates) ?? nearestLast(last);
      if (near !== null) {
        hint = TABLES.has(near) ? `did you mean the table [${near}]?` : `did you mean ${near}?`;
      } else {
        const table = folded(path.slice(0, -1));
        hint = TABLES.has(table)
          ? `[${table}] has ${lastNames(table)}`
          : `at the top there are ${lastNames("")}`;
      }
    }
    this.#problem(line, keyText(path), `is not a setting; ${hint}`);
  }
}

function nearestLast(name: string): SettingKey | null {
  const near = nearest(name, SETTING_KEYS.map(lastName));
  return SETTING_KEYS.find((key) => lastName(key) === near) ?? null;
}

function lastName(key: string): string {
  return key.slice(key.lastIndexOf(".") + 1);
}

function lastNames(table: string): string {
  return keysOf(table).map(lastName).join(", ");
}

function namesOf(key: AST.TOMLKey): string[] {
  return key.keys.map((part) => (part.type === "TOMLBare" ? part.name : part.value));
}

/** The dotted key as settings.ts writes it. A quoted name with a dot in it must not become two. */
function folded(path: readonly string[]): string {
  return path.map((name) => name.toLowerCase().replaceAll(".", "\\.")).join(".");
}

function keyText(path: readonly string[]): string {
  return path.map((name) => (/^[A-Za-z0-9_-]{1,64}$/.test(name) ? name : quoted(name))).join(".");
}

/** A value of the file in a message. The contents of arrays and tables are not shown. */
function foundText(node: AST.TOMLContentNode): string {
  if (node.type === "TOMLArray") return "an array";
  if (node.type === "TOMLInlineTable") return "a table";
  switch (node.kind) {
    case "string":
      return quoted(node.value);
    case "integer":
    case "float":
      // toml-eslint-parser drops leading zeros, and so all of "0".
      return (node.number === "" ? "0" : node.number).slice(0, 64);
    case "boolean":
      return `${node.value}`;
    default:
      return "a date or time";
  }
}

/** A row's value, or undefined after it has told `report` what is wrong with it. */
function read(
  setting: Setting,
  node: AST.TOMLContentNode,
  report: (message: string) => void,
): unknown {
  const fail = (hint = ""): undefined => {
    report(`found ${foundText(node)}${hint}; allowed: ${allowedText(setting)}`);
    return undefined;
  };
  const text = node.type === "TOMLValue" && node.kind === "string" ? node.value : null;
  switch (setting.kind) {
    case "duration": {
      if (text === null)
        return fail(node.type === "TOMLValue" && node.kind === "integer" ? " without a unit" : "");
      const ms = parseDuration(text);
      if (ms === null) return fail(/^[0-9]+$/.test(text) ? " without a unit" : "");
      if (ms < setting.minMs || ms > setting.maxMs) return fail();
      return setting.wholeSeconds && ms % 1000 !== 0 ? fail(", which is not whole seconds") : ms;
    }
    case "size": {
      const bytes = text === null ? integerOf(node) : parseSize(text);
      return bytes === null || bytes < setting.min || bytes > setting.max ? fail() : bytes;
    }
    case "integer": {
      const value = integerOf(node);
      if (value === null)
        return fail(
          text !== null && /^[0-9]+$/.test(text)
            ? ", a string; an integer stands without quotes"
            : "",
        );
      return value < setting.min || value > setting.max ? fail() : value;
    }
    case "enum": {
      if (text === null) return fail();
      if (setting.values.includes(text)) return text;
      const alias = Object.entries(setting.aliases ?? {}).find(([word]) => word === text);
      if (alias !== undefined) return alias[1];
      const near = nearest(text, setting.values);
      return fail(near === null ? "" : ` (did you mean "${near}"?)`);
    }
    case "boolean":
      if (node.type === "TOMLValue" && node.kind === "boolean") return node.value;
      return fail(
        text === "true" || text === "false"
          ? ", a string; true and false stand without quotes"
          : "",
      );
    case "string":
      if (text === null) return fail();
      return text.includes("\0") ? fail(", which holds a NUL character") : text;
    case "url":
      return text === null ? fail() : (parseUpstream(text, report) ?? undefined);
    case "listen":
      return readListen(setting, node, report);
  }
}

/** Beyond 2^53 it is inexact, and still out of every row's range. */
function integerOf(node: AST.TOMLContentNode): number | null {
  return node.type === "TOMLValue" && node.kind === "integer" ? Number(node.bigint) : null;
}

/** More listeners than this on one host are a mistake, and each worker opens all of them. */
const LISTEN_MAX = 64;

function readListen(
  setting: Setting,
  node: AST.TOMLContentNode,
  report: (message: string) => void,
): ListenAddress[] | undefined {
  const nodes = node.type === "TOMLArray" ? node.elements : [node];
  if (nodes.length === 0 || nodes.length > LISTEN_MAX) {
    report(`found ${nodes.length} addresses; allowed: 1 to ${LISTEN_MAX}`);
    return undefined;
  }
  let sound = true;
  const addresses: ListenAddress[] = [];
  const writtenAs = new Map<string, string>();
  const fail = (message: string): void => {
    sound = false;
    report(message);
  };
  for (const element of nodes) {
    if (element.type !== "TOMLValue" || element.kind !== "string") {
      fail(
        `found ${foundText(element)}${node.type === "TOMLArray" ? " in the array" : ""}; allowed: ${allowedText(setting)}`,
      );
      continue;
    }
    for (const address of parseListen(element.value, fail) ?? []) {
      const other = writtenAs.get(address.text);
      if (other === undefined) addresses.push(address);
      else
        fail(`${address.text} is given twice, by ${quoted(other)} and by ${quoted(element.value)}`);
      writtenAs.set(address.text, element.value);
    }
  }
  return sound ? addresses : undefined;
}

function readOverrides(
  overrides: readonly Override[],
  problems: Problem[],
): Partial<Record<SettingKey, unknown>> {
  const values: Partial<Record<SettingKey, unknown>> = {};
  for (const { key, text, from } of overrides) {
    if (text === "") continue;
    values[key] = read(SETTINGS[key], tomlValue(JSON.stringify(text)), (message) => {
      problems.push({ place: from, line: null, column: null, key: null, message });
    });
  }
  return values;
}

/** The rows' own defaults, through the same door as everyone's values. */
const DEFAULTS: Readonly<Partial<Record<SettingKey, unknown>>> = Object.fromEntries(
  SETTING_KEYS.map((key) => {
    const setting: Setting = SETTINGS[key];
    if (setting.default === null) return [key, null];
    const value = read(setting, tomlValue(setting.default), (message) => {
      throw new Error(`the default of ${key}: ${message}`);
    });
    return [key, value];
  }),
);

function tomlValue(toml: string): AST.TOMLContentNode {
  const pair = parseTOML(`x = ${toml}`).body[0].body[0];
  if (pair?.type !== "TOMLKeyValue") throw new Error(`not a value in TOML: ${toml}`);
  return pair.value;
}

/** What is wrong only in company. A value that is itself wrong is undefined and was reported. */
function crossCheck(
  values: Partial<Record<SettingKey, unknown>>,
  file: File,
  problems: Problem[],
): void {
  const listen = values.listen as readonly ListenAddress[] | undefined;
  const upstream = values.proxy_url as Upstream | undefined | null;
  if (listen === undefined || !upstream || upstream.kind === "direct") return;
  const own = listen.find((address) => leadsTo(upstream, address));
  if (own === undefined) return;
  problems.push(
    file.about(
      "proxy_url",
      `${upstream.text} is transplice's own address (listen has ${own.text}); the upstream must be another program`,
    ),
  );
}

function leadsTo(upstream: Exclude<Upstream, { kind: "direct" }>, listen: ListenAddress): boolean {
  const hosts = upstream.host === "localhost" ? ["127.0.0.1", "::1"] : [upstream.host];
  return hosts.some((host) => {
    const text = socketAddress(host, upstream.port)?.text;
    if (text === listen.text) return true;
    return (
      listen.dualStack &&
      rangeOf(host)?.range === "loopback" &&
      listen.text === `[::]:${upstream.port}`
    );
  });
}

function assembled(values: Values): Config {
  return {
    listen: values.listen,
    upstream: values.proxy_url,
    egress: null,
    mode: values.mode,
    workers: values.workers,
    mark: values.mark,
    maxConnections: values.max_connections,
    timeouts: {
      dialMs: values["timeouts.dial"],
      handshakeMs: values["timeouts.handshake"],
      halfClosedMs: values["timeouts.half_closed"],
      idleMs: values["timeouts.idle"],
      drainMs: values["timeouts.drain"],
      negotiationMs: values["timeouts.negotiation"],
      dnsMs: values["timeouts.dns"],
    },
    tcp: {
      keepaliveIdleMs: values["tcp.keepalive_idle"],
      keepaliveIntervalMs: values["tcp.keepalive_interval"],
      keepaliveProbes: values["tcp.keepalive_probes"],
      userTimeoutMs: values["tcp.user_timeout"],
    },
    limits: {
      whenFull: values["limits.when_full"],
      pipes: values["limits.pipes"],
      pipeBytes: values["limits.pipe_size"],
    },
    pipelined: values["upstream.pipelined"],
    log: {
      // transocks takes an empty file name for none.
      filename: values["log.filename"] === "" ? null : values["log.filename"],
      level: values["log.level"],
      format: values["log.format"],
    },
  };
}

/** What works, and probably not as meant. */
function warningsOf(config: Config, file: File): Problem[] {
  const warnings: Problem[] = [];
  const isLoopback = (address: ListenAddress): boolean => /^(?:127\.|\[::1\])/.test(address.text);
  if (config.mode === "tproxy" && config.listen.every(isLoopback)) {
    warnings.push(
      file.about(
        "listen",
        `with mode = "tproxy" a router's clients do not reach a listener on ${config.listen[0]!.text} unless the TPROXY rule names that address (--on-ip); ":PORT" takes all addresses`,
      ),
    );
  }
  if (config.upstream?.kind === "direct" && config.mark === null) {
    warnings.push(
      file.about(
        "proxy_url",
        "direct: without mark: transplice's own connections come back to it unless the firewall rules exempt its user; set mark and exempt the mark",
      ),
    );
  }
  return warnings;
}

/** To the bottom, but for typed arrays, which cannot be frozen. */
function frozen<T>(value: T): T {
  if (typeof value !== "object" || value === null || ArrayBuffer.isView(value)) return value;
  for (const inner of Object.values(value)) frozen(inner);
  return Object.freeze(value);
}
