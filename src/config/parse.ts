/**
 * The text of a configuration file -> a frozen Config, or everything that is wrong with it. Pure:
 * reads no file, no environment, no clock; whatever text comes, the answer is one of the two.
 *
 * Keys match as they did for transocks (BurntSushi/toml): as written, or else without regard to
 * case.
 */
import { type AST, ParseError, parseTOML } from "toml-eslint-parser";
import type { AdminAddress, Config, EgressConfig, ListenAddress, Relay, Upstream } from "./config.ts";
import { assembledEgress, clash, egressListeners, egressWarnings, isLoopback } from "./egress.ts";
import { rangeOf, socketAddress } from "./endpoint.ts";
import { alternatives, nearest, type Problem } from "./problem.ts";
import { relaysOf } from "./relays.ts";
import { rulesOf } from "./rules.ts";
import {
  allowedText,
  isSettingKey,
  keysOf,
  OTHER_TABLES,
  type OtherTable,
  RELAY_SETTINGS,
  RULE_SETTINGS,
  SETTING_KEYS,
  SETTINGS,
  type Setting,
  type SettingKey,
  TABLES,
  type Values,
} from "./settings.ts";
import { TableList } from "./table-list.ts";
import { folded, foundText, keyText, namesOf, tomlPair, tomlValue } from "./toml.ts";
import { UserTable } from "./users.ts";
import { read } from "./value.ts";
import { writtenValue } from "./variables.ts";

export type Parsed =
  | { readonly config: Config; readonly warnings: readonly Problem[] }
  | { readonly problems: readonly Problem[] };

/**
 * A value from elsewhere than the file, which wins over it, and over those before it. An empty text
 * changes nothing.
 */
export interface Override {
  readonly key: SettingKey | OtherTable;
  /** See writtenValue(); of users and rules, as in TOML. */
  readonly text: string;
  /** As its user wrote it: "-loglevel", "TRANSPLICE_LOG_LEVEL". */
  readonly from: string;
}

/** `name` is what problems call the file. `assumed`: usocksd's file need not say that it is one. */
export function parseConfig(
  text: string,
  name: string,
  overrides: readonly Override[] = [],
  assumed: "egress" | null = null,
): Parsed {
  const problems: Problem[] = [];
  const syntax = parseSyntax(text, name);
  const file = new File(name, problems);
  if ("message" in syntax) {
    file.override(overrides);
    return frozen({ problems: [syntax, ...problems] });
  }
  if (assumed === "egress") file.assumeEgress();
  for (const item of syntax.body[0].body) {
    if (item.type === "TOMLTable") file.table(item);
    else file.pair([], item);
  }
  const values: Partial<Record<SettingKey, unknown>> = {
    ...DEFAULTS,
    ...file.values(),
    ...file.override(overrides),
  };
  const users = file.users.users();
  const rules = rulesOf(file.rules, file.users.names, (line, key, message) => {
    problems.push({ ...file.about("rules", message, line), key });
  });
  const relays = relaysOf(file.relays);
  file.requireRole();
  crossCheck(values, relays, file, problems);
  problems.sort(
    (a, b) => (a.line ?? Number.POSITIVE_INFINITY) - (b.line ?? Number.POSITIVE_INFINITY),
  );
  if (problems.length > 0) return frozen({ problems });
  const sound = values as Values;
  const egress = file.hasEgress ? assembledEgress(sound, users, rules, file.has("proxy_url")) : null;
  const config = assembled(sound, relays, egress);
  return frozen({ config, warnings: warningsOf(config, sound, file) });
}

/** Up to where the parser gave up: a value, or an item of an array, that began without a quote. */
const UNQUOTED = /[=,[]\s*[^\s"'=,[\]]*$/;
const AT_UNQUOTED = ["Unexpected character", "Must be a newline", "Expected comma (,) token"];

/** Of all that may be wrong with a file's syntax, what is wrong most often. */
function hint(text: string, { message, lineNumber, column }: ParseError): string {
  const before = text.split("\n")[lineNumber - 1]?.slice(0, column) ?? "";
  return AT_UNQUOTED.includes(message) && /=/.test(before) && UNQUOTED.test(before) ? '; a text stands in quotes, as in "text"' : "";
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
      return problem(error.lineNumber, error.column + 1, `not TOML: ${error.message}${hint(text, error)}`);
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
  /** Those that are there, as keys or as headers. */
  readonly #tables = new Set<string>();
  /** Keys that have their values from elsewhere: from where. */
  readonly #overridden = new Map<string, string>();
  users: UserTable;
  rules: TableList;
  relays: TableList;
  readonly report = (line: number | null, key: string, message: string): void => this.#problem(line, key, message);

  constructor(name: string, problems: Problem[]) {
    this.#name = name;
    this.#problems = problems;
    this.users = new UserTable(this.report);
    this.rules = new TableList("rules", RULE_SETTINGS, this.report);
    this.relays = new TableList("relays", RELAY_SETTINGS, this.report);
  }

  /** [timeouts] and what stands under it. */
  table(table: AST.TOMLTable): void {
    const path = namesOf(table.key);
    const line = table.loc.start.line;
    const known = folded(path);
    const other = this.#otherTable(path);
    if (other !== null) {
      other.table([folded(path.slice(0, 1)), ...path.slice(1)], table);
      return;
    }
    this.#tables.add(known);
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
    const other = this.#otherTable(path);
    if (other !== null) {
      other.pair([folded(path.slice(0, 1)), ...path.slice(1)], pair);
      return;
    }
    this.#tables.add(TABLES.has(known) ? known : folded(path.slice(0, -1)));
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
          : read(SETTINGS[key], entry.node, (message, line) =>
              this.#problem(line ?? entry.line, key, message),
            );
      values[key] = value;
    }
    return values;
  }

  /** Values from elsewhere, in place of what the file says. After all pairs have been given. */
  override(overrides: readonly Override[]): Partial<Record<SettingKey, unknown>> {
    const values: Partial<Record<SettingKey, unknown>> = {};
    for (const { key, text, from } of overrides) {
      if (text === "") continue;
      const report = (message: string, about: string | null = null): void => {
        this.#problems.push({ place: from, line: null, column: null, key: about, message });
      };
      this.#overridden.set(key, from);
      if (!isSettingKey(key)) this.#overrideTable(key, text, report);
      else {
        this.#tables.add(tableOf(key));
        values[key] = read(SETTINGS[key], writtenValue(SETTINGS[key], text), (message) => report(message));
      }
    }
    return values;
  }

  #overrideTable(
    key: OtherTable, text: string, report: (message: string, about: string | null) => void,
  ): void {
    const problem = (_line: number, about: string, message: string): void => report(message, about === key ? null : about);
    const pair = tomlPair(key, text);
    if (pair === null) {
      return report(`is not a value of TOML; for example: ${TABLE_EXAMPLES[key]}`, null);
    }
    if (key === "users") this.users = new UserTable(problem);
    else if (key === "rules") this.rules = new TableList(key, RULE_SETTINGS, problem);
    else this.relays = new TableList(key, RELAY_SETTINGS, problem);
    this[key].pair([key], pair);
  }

  assumeEgress(): void {
    this.#tables.add("incoming");
  }

  get hasEgress(): boolean {
    return this.#tables.has("incoming") || this.#tables.has("outgoing");
  }

  has(key: SettingKey): boolean {
    return this.#entries.has(key) || this.#overridden.has(key);
  }

  /** A file asks for a transparent proxy, for an egress, or for both. */
  requireRole(): void {
    if (this.relays.line !== null && this.hasEgress && !this.has("proxy_url")) {
      this.#problem(this.relays.line, "relays", "[[relays]] stands beside proxy_url, the first upstream, and there is none");
    }
    if (this.hasEgress) return;
    if (!this.has("proxy_url")) {
      this.#problem(
        null,
        "proxy_url",
        `is missing; for example: proxy_url = ${SETTINGS.proxy_url.example}; or, for a SOCKS server instead of a transparent proxy: [incoming]`,
      );
    }
    for (const { key, line } of [
      { key: "users" as const, line: this.users.line },
      { key: "rules" as const, line: this.rules.line },
    ]) {
      if (line === null) continue;
      const message = `${OTHER_TABLES.get(key)} is about the egress, and there is none: neither [incoming] nor [outgoing]`;
      this.#problems.push(this.about(key, message));
    }
  }

  lineOf(key: SettingKey): number | null {
    return this.#entries.get(key)?.line ?? null;
  }

  /** A problem, or a warning, with a key that need not stand in the file. */
  about(key: Override["key"], message: string, at: number | null = null): Problem {
    const elsewhere = this.#overridden.get(key);
    if (elsewhere !== undefined) return { place: elsewhere, line: null, column: null, key: null, message };
    const line = at ?? (key === "users" || key === "rules" || key === "relays" ? this[key].line : this.lineOf(key));
    return { place: this.#name, line, column: null, key, message };
  }

  /** Who reads what is no table of settings, or null. */
  #otherTable(path: readonly string[]): UserTable | TableList | null {
    switch (folded(path.slice(0, 1))) {
      case "users":
        return this.users;
      case "rules":
        return this.rules;
      case "relays":
        return this.relays;
      default:
        return null;
    }
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
      const near = nearest(known, OTHER_TABLES.keys());
      const hint = near === null ? "" : `; or did you mean ${tableText(near)}?`;
      this.#problem(line, known, `found a table; allowed: ${allowedText(SETTINGS[known])}${hint}`);
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
    const tables = [...TABLES, ...OTHER_TABLES.keys()];
    const near = nearest(known, tables);
    const hint =
      near === null
        ? `tables are ${tables.map(tableText).join(", ")}`
        : `did you mean ${tableText(near)}?`;
    this.#problem(line, `[${keyText(path)}]`, `is not a table of this file; ${hint}`);
  }

  #unknownKey(path: readonly string[], line: number): void {
    const known = folded(path);
    const last = path.at(-1)!.toLowerCase();
    const [same, ...others] = SETTING_KEYS.filter((key) => lastName(key) === last);
    let hint: string;
    if (others.length > 0) {
      hint = `did you mean ${alternatives([same!, ...others])}?`;
    } else if (same !== undefined) {
      const table = tableOf(same);
      hint =
        table === ""
          ? `${same} exists; it stands at the top, before the first [table]`
          : `${same} exists; did you mean [${table}] ${last}?`;
    } else {
      const tables = path.length === 1 ? [...TABLES, ...OTHER_TABLES.keys()] : [];
      // In a table of ours, the names that it shares with its keys say nothing of the key.
      const table = folded(path.slice(0, -1));
      const near =
        (table !== "" && TABLES.has(table)
          ? nearestIn(table, last)
          : nearest(known, [...SETTING_KEYS, ...tables])) ?? nearestLast(last);
      if (near !== null) {
        hint = tables.includes(near)
          ? `did you mean the table ${tableText(near)}?`
          : `did you mean ${near}?`;
      } else {
        hint = TABLES.has(table)
          ? `[${table}] has ${lastNames(table)}`
          : `at the top there are ${lastNames("")}`;
      }
    }
    this.#problem(line, keyText(path), `is not a setting; ${hint}`);
  }
}

/** In a variable. */
const TABLE_EXAMPLES: Readonly<Record<OtherTable, string>> = {
  users: '{ alice = "scrypt:..." }',
  rules: '[{ name = "mail", action = "deny", ports = [25] }]',
  relays: '[{ listen = "localhost:1082", proxy_url = "http://10.20.30.41:3128" }]',
};

function tableText(name: string): string {
  return OTHER_TABLES.get(name) ?? `[${name}]`;
}

function nearestLast(name: string): SettingKey | null {
  const near = nearest(name, SETTING_KEYS.map(lastName));
  return SETTING_KEYS.find((key) => lastName(key) === near) ?? null;
}

function nearestIn(table: string, name: string): SettingKey | null {
  const near = nearest(name, keysOf(table).map(lastName));
  return keysOf(table).find((key) => lastName(key) === near) ?? null;
}

function lastName(key: string): string {
  return key.slice(key.lastIndexOf(".") + 1);
}

function tableOf(key: string): string {
  return key.slice(0, Math.max(0, key.lastIndexOf(".")));
}

function lastNames(table: string): string {
  return keysOf(table).map(lastName).join(", ");
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

/** What is wrong only in company. A value that is itself wrong is undefined and was reported. */
function crossCheck(
  values: Partial<Record<SettingKey, unknown>>,
  relays: readonly Relay[],
  file: File,
  problems: Problem[],
): void {
  const first = file.has("proxy_url") ? (values.listen as readonly ListenAddress[] | undefined) : [];
  const listen = [...(first ?? []), ...relays.flatMap((relay) => relay.listen)];
  const upstreams = [
    { upstream: values.proxy_url as Upstream | undefined | null, key: "proxy_url" as const, line: null },
    ...relays.map(({ upstream }, i) => ({ upstream, key: "relays" as const, line: file.relays.entries[i]!.line })),
  ];
  for (const { upstream, key, line } of upstreams) {
    if (!upstream || upstream.kind === "direct") continue;
    const own = listen.find((address) => leadsTo(upstream, address));
    if (own === undefined) continue;
    problems.push(
      file.about(
        key,
        `${upstream.text} is transplice's own address (listen has ${own.text}); the upstream must be another program`,
        line,
      ),
    );
  }
  relays.forEach((relay, i) => {
    const found = clash(relay.listen, [...(first ?? []), ...relays.slice(0, i).flatMap((other) => other.listen)]);
    if (found === null) return;
    problems.push(
      file.about("relays", `${found.one} cannot be listened on beside ${found.other}; another port is needed`, file.relays.entries[i]!.line),
    );
  });
  if (values.mark != null && values.mark === values["firewall.tproxy_mark"]) {
    problems.push(
      file.about(
        "firewall.tproxy_mark",
        `is ${String(values.mark)}, as is mark; packets that are ours and packets that are to come to us need different marks`,
      ),
    );
  }
  const ours = 0xff * 2 ** Number(values["connect.mark_shift"] ?? 0);
  for (const key of values["connect.truthful"] === true ? (["mark", "firewall.tproxy_mark"] as const) : []) {
    const mark = (values[key] as number | null | undefined) ?? 0;
    if (((mark & ours) >>> 0) !== 0) {
      problems.push(file.about(key, `has some of the eight bits of the mark that connect.mark_shift gives to SYNs (0x${ours.toString(16)}); set another mark, or move them`));
    }
  }
  // The kernel's own tables: compat, default, main, local.
  if ([252, 253, 254, 255].includes(values["firewall.tproxy_table"] as number)) {
    problems.push(file.about("firewall.tproxy_table", "is one of the kernel's own routing tables (252 to 255)"));
  }
  const admin = tcpOf(values["admin.listen"] as readonly AdminAddress[] | undefined | null);
  if (values["admin.token"] != null && values["admin.token_file"] != null) {
    problems.push(file.about("admin.token_file", "stands beside admin.token; one of them says what the token is"));
  }
  const egress = file.hasEgress
    ? egressListeners(values as Partial<Values>, file.has("proxy_url"))
    : { listen: [], metrics: [] };
  const pairs = [
    ["incoming.port", egress.listen, "listen", listen],
    ["incoming.metrics_port", egress.metrics, "listen", listen],
    ["incoming.metrics_port", egress.metrics, "incoming.port", egress.listen],
    ["admin.listen", admin, "listen", listen],
    ["admin.listen", admin, "incoming.port", egress.listen],
    ["admin.listen", admin, "incoming.metrics_port", egress.metrics],
  ] as const;
  for (const [key, some, other, others] of pairs) {
    const found = clash(some, others);
    if (found === null) continue;
    problems.push(
      file.about(key, `${found.one} cannot be listened on beside ${found.other} (${other}); another port is needed`),
    );
  }
}

/** Those that are no sockets of the file system. */
const tcpOf = (addresses: readonly AdminAddress[] | undefined | null): ListenAddress[] =>
  (addresses ?? []).filter((address): address is ListenAddress => "bytes" in address);

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

/** With TCP_USER_TIMEOUT keepalive gives up by it, whatever TCP_KEEPCNT is (tcp(7)). */
function lookedAfter(values: Values): Config["tcp"] {
  const keepaliveIdleMs = values["tcp.keepalive_idle"];
  const keepaliveIntervalMs = values["tcp.keepalive_interval"];
  const keepaliveProbes = values["tcp.keepalive_probes"];
  const keepaliveMs = keepaliveIdleMs + keepaliveProbes * keepaliveIntervalMs;
  const userTimeoutMs = values["tcp.user_timeout"] ?? Math.min(keepaliveMs, SETTINGS["tcp.user_timeout"].maxMs);
  return { keepaliveIdleMs, keepaliveIntervalMs, keepaliveProbes, userTimeoutMs };
}

function assembled(values: Values, relays: readonly Relay[], egress: EgressConfig | null): Config {
  return {
    listen: values.proxy_url === null ? [] : values.listen,
    upstream: values.proxy_url,
    relays,
    egress,
    mode: values.mode,
    workers: values.workers,
    user: values.user,
    group: values.group,
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
    tcp: lookedAfter(values),
    limits: {
      whenFull: values["limits.when_full"],
      pipes: values["limits.pipes"],
      pipeBytes: values["limits.pipe_size"],
    },
    pipelined: values["upstream.pipelined"],
    disclosed: values["upstream.disclose_client"],
    forwardsRefusals: values["upstream.on_refusal"] === "forward",
    connect: {
      trust: values["connect.trust"],
      unknownAs: values["connect.unknown_as"],
      learnMs: !values["connect.learn"] || values["connect.truthful"] || values.proxy_url === null ? null : values["connect.learn_for"],
      truthful: !values["connect.truthful"] || values.proxy_url === null ? null : {
        required: values["connect.without"] === "refuse",
        timeoutAs: values["connect.timeout_as"],
        answer: values["connect.answer"],
        queue: values["connect.queue"],
        markShift: values["connect.mark_shift"],
      },
    },
    firewall: {
      backend: values["firewall.backend"],
      manage: values["firewall.manage"],
      onFailure: values["firewall.on_failure"],
      output: values["firewall.output"],
      interfaces: values["firewall.interfaces"],
      include: values["firewall.include"],
      exclude: values["firewall.exclude"],
      ports: values["firewall.ports"],
      excludePorts: values["firewall.exclude_ports"],
      users: values["firewall.users"],
      excludeUsers: values["firewall.exclude_users"],
      excludeCgroups: values["firewall.exclude_cgroups"],
      serviceUser: values["firewall.service_user"] ?? values.user ?? "transplice",
      tproxyMark: values["firewall.tproxy_mark"],
      tproxyTable: values["firewall.tproxy_table"],
    },
    admin: values["admin.listen"] === null ? null : {
      listen: values["admin.listen"],
      token: values["admin.token"],
      tokenFile: values["admin.token_file"],
      hosts: values["admin.hosts"],
    },
    log: {
      // transocks takes an empty file name for none.
      filename: values["log.filename"] === "" ? null : values["log.filename"],
      level: values["log.level"],
      format: values["log.format"],
    },
  };
}

/** What works, and probably not as meant. */
function warningsOf(config: Config, values: Values, file: File): Problem[] {
  const warnings: Problem[] = [];
  const { upstream, egress } = config;
  if (
    upstream !== null &&
    config.mode === "tproxy" &&
    config.listen.every(({ text }) => isLoopback(text))
  ) {
    warnings.push(
      file.about(
        "listen",
        `with mode = "tproxy" a router's clients do not reach a listener on ${config.listen[0]!.text} unless the TPROXY rule names that address (--on-ip); ":PORT" takes all addresses`,
      ),
    );
  }
  if (upstream?.kind === "direct" && config.mark === null) {
    warnings.push(
      file.about(
        "proxy_url",
        "direct: without mark: transplice's own connections come back to it unless the firewall rules exempt its user; set mark and exempt the mark",
      ),
    );
  }
  if (values["connect.learn"] && values["connect.truthful"]) {
    warnings.push(file.about("connect.learn", "is not used: with truthful = true the first connect() already says what became of it"));
  }
  if (upstream !== null && config.connect.trust.reports && upstream.kind !== "socks5") {
    warnings.push(file.about("connect.trust", 'transplice tells more than a reply by SOCKS5 only; the upstream would be "socks5://..."'));
  }
  if (upstream === null) {
    for (const key of ["listen", "mode", "timeouts.handshake", "upstream.pipelined", "upstream.disclose_client", "upstream.on_refusal", "connect.trust", "connect.unknown_as", "connect.truthful", "connect.learn", "firewall.manage"] as const) {
      if (file.has(key)) {
        warnings.push(file.about(key, "is not used: without proxy_url there is no transparent proxy"));
      }
    }
  }
  if (config.admin === null) {
    for (const key of ["admin.token", "admin.token_file", "admin.hosts"] as const) {
      if (file.has(key)) warnings.push(file.about(key, "is not used: without admin.listen there is no admin endpoint"));
    }
  } else if (config.admin.token === null && config.admin.tokenFile === null) {
    const open = tcpOf(config.admin.listen).filter(({ text }) => !isLoopback(text));
    if (open.length > 0) {
      warnings.push(
        file.about(
          "admin.listen",
          `at ${open[0]!.text} only metrics and health are answered: all else takes a token there; set admin.token, or listen on 127.0.0.1`,
        ),
      );
    }
  }
  if (egress !== null) {
    for (const { key, message } of egressWarnings(egress, values, (name) => file.has(name))) {
      warnings.push(file.about(key, message));
    }
  }
  return warnings;
}

/** To the bottom, but for typed arrays, which cannot be frozen. */
function frozen<T>(value: T): T {
  if (typeof value !== "object" || value === null || ArrayBuffer.isView(value)) return value;
  for (const inner of Object.values(value)) frozen(inner);
  return Object.freeze(value);
}
