/**
 * redsocks.conf -> the lines of our own file that mean the same, or all that is wrong with it: the
 * keys of redsocks 0.5, those of 0.4 with a warning, and redsocks2's bind, relay and type.
 *
 * Knows nothing of Config: what comes out is read by parse.ts, as everyone's file. What redsocks did
 * beside proxying and has no key of ours, to be a daemon, stands apart. Names are looked up when they
 * are needed, not here.
 */
import { endpointText, parsePort, rangeOf, splitHostPort } from "./endpoint.ts";
import { isAccount } from "./items.ts";
import { alternatives, nearest, type Problem, quoted } from "./problem.ts";
import { type Assignment, type Section, sectionsOf } from "./redsocks-lexer.ts";
import type { SettingKey } from "./settings.ts";
import { tomlString } from "./toml.ts";

/** One line of our file. */
export interface Line {
  readonly key: SettingKey;
  /** The value, in TOML. */
  readonly toml: string;
  /** Where redsocks.conf says so. */
  readonly from: number;
  /** Where it does not mean quite the same. */
  readonly note: string | null;
}

/** A section that has an upstream of its own: one of our [[relays]]. */
export interface RelayLines {
  /** As `listen`, in TOML. */
  readonly listen: string;
  /** As `proxy_url`. */
  readonly upstream: string;
  readonly from: number;
  readonly notes: readonly string[];
}

export type Redsocks =
  | {
      readonly lines: readonly Line[];
      readonly relays: readonly RelayLines[];
      readonly daemon: boolean;
      readonly warnings: readonly Problem[];
    }
  | { readonly problems: readonly Problem[] };

export interface RedsocksOptions {
  /** What we have nothing for is a warning, not a problem. */
  readonly ignoreUnsupported: boolean;
}

type Kind = "bool" | "u16" | "u32" | "host" | "word";

interface Key {
  readonly kind: Kind;
  /** Of redsocks 0.4 or redsocks2: redsocks 0.5 did not know it. */
  readonly of?: "redsocks 0.4" | "redsocks2";
}

const keys = (rows: Readonly<Record<string, Kind>>, of?: Key["of"]): [string, Key][] =>
  Object.entries(rows).map(([key, kind]) => [key, of === undefined ? { kind } : { kind, of }]);

const BASE: ReadonlyMap<string, Key> = new Map([
  ...keys({
    log_debug: "bool", log_info: "bool", log: "word", daemon: "bool", user: "word", group: "word",
    chroot: "word", redirector: "word", tcp_keepalive_time: "u16", tcp_keepalive_probes: "u16",
    tcp_keepalive_intvl: "u16", rlimit_nofile: "u32", redsocks_conn_max: "u32",
    connpres_idle_timeout: "u32", max_accept_backoff: "u32",
  }),
  ...keys({ reuseport: "bool" }, "redsocks2"),
]);

const REDSOCKS: ReadonlyMap<string, Key> = new Map([
  ...keys({
    local_ip: "host", local_port: "u16", ip: "host", port: "u16", type: "word", login: "word",
    password: "word", listenq: "u16", splice: "bool", disclose_src: "word", on_proxy_fail: "word",
  }),
  ...keys({ min_accept_backoff: "u16", max_accept_backoff: "u16" }, "redsocks 0.4"),
  ...keys({ bind: "word", relay: "word", interface: "word", autoproxy: "u16", timeout: "u16" }, "redsocks2"),
]);

/** Sections for which there is nothing here. Their keys are not looked at. */
const UNSUPPORTED: ReadonlyMap<string, string> = new Map([
  ["redudp", "UDP is not relayed"],
  ["dnstc", "DNS over UDP is not answered; with use-vc in resolv.conf programs ask over TCP, which is relayed"],
  ["dnsu2t", "DNS over UDP is not answered; with use-vc in resolv.conf programs ask over TCP, which is relayed"],
  ["tcpdns", "DNS over UDP is not answered; with use-vc in resolv.conf programs ask over TCP, which is relayed"],
  ["reddns", "there are no made-up addresses for names"],
  ["autoproxy", "there is no direct attempt before the proxy"],
  ["ipcache", "there is no direct attempt before the proxy"],
  ["debug", "there is no debugging server"],
]);

const TRUE = ["ok", "on", "yes", "true"];
const FALSE = ["off", "no", "false"];
const SYSLOG = ["daemon", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7"];

/** The kernel's end at 32767 s, ours at 9 h; and MAX_TCP_KEEPCNT of its net/tcp.h. */
const KEEPALIVE_SECONDS_MAX = 32_400;
const KEEPALIVE_PROBES_MAX = 127;
/** RFC 1929. */
const LOGIN_BYTES_MAX = 255;
const TIMEOUT_SECONDS_MAX = 3600;

/** The lines as a file: those of the top first, then each table's. `from`: each line's origin. */
export function writtenOut(
  { lines, relays }: { readonly lines: readonly Line[]; readonly relays: readonly RelayLines[] },
): { text: string; from: readonly (number | null)[] } {
  const text: string[] = [];
  const from: (number | null)[] = [];
  const put = (line: string, origin: number | null): void => {
    text.push(line);
    from.push(origin);
  };
  const tableOf = ({ key }: Line): string => key.slice(0, Math.max(0, key.lastIndexOf(".")));
  for (const table of new Set(["", ...lines.map(tableOf)])) {
    if (table !== "") {
      put("", null);
      put(`[${table}]`, null);
    }
    for (const line of lines.filter((each) => tableOf(each) === table)) {
      if (line.note !== null) put(`# ${line.note}`, line.from);
      put(`${line.key.slice(table === "" ? 0 : table.length + 1)} = ${line.toml}`, line.from);
    }
  }
  for (const { listen, upstream, from: origin, notes } of relays) {
    put("", null);
    put("[[relays]]", origin);
    for (const note of notes) put(`# ${note}`, origin);
    put(`listen = ${listen}`, origin);
    put(`proxy_url = ${tomlString(upstream)}`, origin);
  }
  return { text: `${text.join("\n")}\n`, from };
}

type Value = string | number | boolean;

/** What a section's keys say; the last of two counts, as it did. */
class Keys {
  readonly line: number;
  readonly #values = new Map<string, { line: number; value: Value | undefined }>();

  constructor(line: number) {
    this.line = line;
  }

  set(key: string, line: number, value: Value | undefined): void {
    this.#values.set(key, { line, value });
  }

  has(key: string): boolean {
    return this.#values.has(key);
  }

  lineOf(key: string): number {
    return this.#values.get(key)?.line ?? this.line;
  }

  word(key: string): string | undefined {
    return this.#values.get(key)?.value as string | undefined;
  }

  number(key: string): number | undefined {
    return this.#values.get(key)?.value as number | undefined;
  }

  flag(key: string): boolean | undefined {
    return this.#values.get(key)?.value as boolean | undefined;
  }
}

/** Where one redsocks{} listens, and by whom it goes. */
interface Instance {
  readonly line: number;
  readonly listen: string | null;
  readonly upstream: string | null;
  readonly keys: Keys;
}

/** `name` is what problems call the file. */
export function parseRedsocks(text: string, name: string, options: RedsocksOptions): Redsocks {
  return new Reader(name, options).read(text.startsWith("\ufeff") ? text.slice(1) : text);
}

class Reader {
  readonly #name: string;
  readonly #ignore: boolean;
  readonly #problems: Problem[] = [];
  readonly #warnings: Problem[] = [];
  readonly #lines: Line[] = [];
  readonly #relays: RelayLines[] = [];

  constructor(name: string, { ignoreUnsupported }: RedsocksOptions) {
    this.#name = name;
    this.#ignore = ignoreUnsupported;
  }

  read(text: string): Redsocks {
    const sections = sectionsOf(text, (line, message) => this.#problem(line, null, message));
    const bases: Keys[] = [];
    const instances: Instance[] = [];
    for (const section of sections) {
      if (section.name === "base") bases.push(this.#keys(section, BASE));
      else if (section.name === "redsocks") instances.push(this.#instance(this.#keys(section, REDSOCKS)));
      else this.#other(section);
    }
    const [base, second] = bases;
    if (base === undefined) this.#problem(null, "base", "is missing; a file has one, with at least redirector = iptables;");
    if (second !== undefined) this.#problem(second.line, "base", `stands twice, first in line ${base!.line}; a file has one`);
    if (instances.length === 0) {
      this.#problem(null, "redsocks", "is missing; without a redsocks { } nothing is relayed");
    }
    this.#twice(instances);
    this.#upstreams(instances);
    const daemon = base !== undefined && this.#base(base);
    for (const list of [this.#problems, this.#warnings]) list.sort((a, b) => (a.line ?? Infinity) - (b.line ?? Infinity));
    return this.#problems.length > 0
      ? { problems: this.#problems }
      : { lines: this.#lines, relays: this.#relays, daemon, warnings: this.#warnings };
  }

  #problem(line: number | null, key: string | null, message: string): void {
    this.#problems.push({ place: this.#name, line, column: null, key, message });
  }

  #warn(line: number | null, key: string, message: string): void {
    this.#warnings.push({ place: this.#name, line, column: null, key, message });
  }

  /** There is nothing like it here: for the operator to say whether that is a problem. */
  #unsupported(line: number, key: string, why: string): void {
    if (this.#ignore) this.#warn(line, key, `is ignored: ${why}`);
    else this.#problem(line, key, `is not supported: ${why}; with --ignore-unsupported it is left out`);
  }

  #say(key: SettingKey, toml: string, from: number, note: string | null = null): void {
    this.#lines.push({ key, toml, from, note });
  }

  #other({ name, line }: Section): void {
    const why = UNSUPPORTED.get(name);
    if (why !== undefined) {
      this.#unsupported(line, name, why);
      return;
    }
    const known = ["base", "redsocks", ...UNSUPPORTED.keys()];
    const near = nearest(name, known);
    this.#problem(
      line, quotedKey(name),
      `is not a section of redsocks.conf; ${near === null ? `there are ${alternatives(known).replace(" or ", " and ")}` : `did you mean ${near}?`}`,
    );
  }

  #keys({ name, line, assignments }: Section, known: ReadonlyMap<string, Key>): Keys {
    const found = new Keys(line);
    for (const assignment of assignments) {
      const { key } = assignment;
      const row = known.get(key);
      if (row === undefined) {
        const near = nearest(key, known.keys());
        this.#problem(
          assignment.line, quotedKey(key),
          `is not a key of ${name}; ${near === null ? `there are ${[...known.keys()].join(", ")}` : `did you mean ${near}?`}`,
        );
        continue;
      }
      if (row.of === "redsocks 0.4") this.#warn(assignment.line, key, "is a key of redsocks 0.4, which 0.5 refuses");
      if (found.has(key)) {
        this.#warn(assignment.line, key, `is given twice, first in line ${found.lineOf(key)}; the last counts`);
      }
      found.set(key, assignment.line, this.#value(assignment, row.kind));
    }
    return found;
  }

  #value({ key, value, line }: Assignment, kind: Kind): Value | undefined {
    const fail = (allowed: string): undefined => {
      this.#problem(line, key, `found ${quoted(value)}; allowed: ${allowed}`);
      return undefined;
    };
    switch (kind) {
      case "bool":
        if (TRUE.includes(value)) return true;
        return FALSE.includes(value) ? false : fail(alternatives([...TRUE, ...FALSE]));
      case "u16":
      case "u32": {
        const max = kind === "u16" ? 0xffff : 0xffff_ffff;
        const number = strtoul(value);
        return number === null || number > max ? fail(`an integer from 0 to ${max}`) : number;
      }
      case "host":
        return isHost(value) ? value : fail("an IP address, or a name");
      case "word":
        return value;
    }
  }

  /** One redsocks{}: what is wrong with it alone. */
  #instance(keys: Keys): Instance {
    const rules: [string, (value: string) => boolean, string][] = [
      ["on_proxy_fail", (value) => ["close", "forward_http_err"].includes(value), "close or forward_http_err"],
      [
        "disclose_src", (value) => [...FALSE, "X-Forwarded-For", "Forwarded_ip", "Forwarded_ipport"].includes(value),
        "off, no, false, X-Forwarded-For, Forwarded_ip or Forwarded_ipport",
      ],
    ];
    for (const [key, fits, allowed] of rules) {
      const value = keys.word(key);
      if (value !== undefined && !fits(value)) {
        this.#problem(keys.lineOf(key), key, `found ${quoted(value)}; allowed: ${allowed}`);
      }
    }
    for (const key of ["disclose_src", "on_proxy_fail"]) {
      const value = keys.word(key);
      if (value === undefined || FALSE.includes(value) || value === "close" || keys.word("type") === "http-connect") continue;
      this.#problem(keys.lineOf(key), key, "is for http-connect only");
    }
    for (const key of ["listenq", "min_accept_backoff", "max_accept_backoff"]) {
      if (keys.has(key)) this.#warn(keys.lineOf(key), key, "is not needed and has no effect");
    }
    if (keys.has("interface")) {
      this.#unsupported(keys.lineOf("interface"), "interface", "the way to the upstream is the routing table's to choose");
    }
    if ((keys.number("autoproxy") ?? 0) !== 0) {
      this.#unsupported(keys.lineOf("autoproxy"), "autoproxy", "there is no direct attempt before the proxy");
    }
    return { line: keys.line, listen: this.#listenOf(keys), upstream: this.#upstreamOf(keys), keys };
  }

  #listenOf(keys: Keys): string | null {
    let host: string | undefined;
    let port: number | undefined;
    let key = "local_ip";
    if (keys.has("bind")) {
      for (const other of ["local_ip", "local_port"]) {
        if (keys.has(other)) this.#problem(keys.lineOf(other), other, "stands beside bind, which says the same; one of them must go");
      }
      key = "bind";
      const text = keys.word("bind")!;
      const place = placeOf(text);
      if (place === null) {
        this.#problem(keys.lineOf("bind"), "bind", `found ${quoted(text)}; allowed: "IP:PORT", "[IPv6]:PORT" or ":PORT"`);
        return null;
      }
      host = place.host === "" ? "0.0.0.0" : place.host;
      port = place.port;
    } else {
      // A wrong value was told, and is not also missing.
      host = keys.has("local_ip") ? keys.word("local_ip") : "127.0.0.1";
      port = keys.number("local_port");
      if (!keys.has("local_port") || port === 0) {
        this.#problem(keys.lineOf("local_port"), "local_port", "is missing; allowed: 1 to 65535, the port that the firewall redirects to");
      }
    }
    if (host === undefined || port === undefined || port === 0) return null;
    // redsocks looked names up, and had one IPv4 address of it.
    const literal = host.toLowerCase() === "localhost" ? "127.0.0.1" : host;
    const found = rangeOf(literal);
    if (found === null || found.range === "multicast" || (found.range === "link-local" && literal.includes(":") && !found.scoped)) {
      this.#problem(keys.lineOf(key), key, `found ${quoted(host)}; allowed: an IP address of this host (names are not resolved), 0.0.0.0 or :: for all`);
      return null;
    }
    return endpointText(literal, port);
  }

  /** As a proxy_url. */
  #upstreamOf(keys: Keys): string | null {
    const type = keys.word("type");
    const line = keys.lineOf("type");
    switch (type) {
      case "socks5":
      case "http-connect": {
        const place = this.#relayOf(keys);
        const login = this.#loginOf(keys, type);
        if (place === null || login === null) return null;
        return `${type === "socks5" ? "socks5" : "http"}://${login}${endpointText(place.host, place.port)}`;
      }
      case "direct":
        return "direct:";
      case "socks4": {
        const place = this.#relayOf(keys);
        const login = keys.word("login") ?? "";
        if (keys.has("password")) this.#warn(keys.lineOf("password"), "password", "is not sent: SOCKS4 has a user and no password");
        if (place === null) return null;
        return `socks4://${login === "" ? "" : `${percentEncoded(login)}@`}${endpointText(place.host, place.port)}`;
      }
      case "http-relay":
        this.#problem(line, "type", "http-relay is not supported: it sends requests by what they say of their host, not to where they go (CVE-2009-0801); allowed: socks4, socks5 or http-connect");
        return null;
      case "https-connect":
      case "shadowsocks":
        this.#problem(line, "type", `${type} is not spoken to an upstream; allowed: socks4, socks5, http-connect or direct`);
        return null;
      case undefined:
        this.#problem(line, "type", "is missing; allowed: socks4, socks5 or http-connect (or redsocks2's direct)");
        return null;
      default:
        this.#problem(line, "type", `found ${quoted(type)}; allowed: socks4, socks5, http-connect or direct`);
        return null;
    }
  }

  #relayOf(keys: Keys): { host: string; port: number } | null {
    if (keys.has("relay")) {
      for (const other of ["ip", "port"]) {
        if (keys.has(other)) this.#problem(keys.lineOf(other), other, "stands beside relay, which says the same; one of them must go");
      }
      const text = keys.word("relay")!;
      const place = placeOf(text);
      if (place !== null && isHost(place.host)) return this.#dialable("relay", keys, place);
      this.#problem(keys.lineOf("relay"), "relay", `found ${quoted(text)}; allowed: "HOST:PORT" or "[IPv6]:PORT"`);
      return null;
    }
    if (!keys.has("ip")) this.#problem(keys.line, "ip", "is missing; allowed: the proxy's address or name");
    if (!keys.has("port") || keys.number("port") === 0) {
      this.#problem(keys.lineOf("port"), "port", "is missing; allowed: 1 to 65535, the proxy's port");
    }
    const host = keys.word("ip");
    const port = keys.number("port");
    if (host === undefined || port === undefined || port === 0) return null;
    return this.#dialable("ip", keys, { host, port });
  }

  #dialable(key: string, keys: Keys, place: { host: string; port: number }): { host: string; port: number } | null {
    const range = rangeOf(place.host);
    const unscoped = range?.range === "link-local" && place.host.includes(":") && !range.scoped;
    if (range?.range !== "wildcard" && range?.range !== "multicast" && !unscoped) return place;
    this.#problem(keys.lineOf(key), key, `found ${quoted(place.host)}, which TCP cannot connect to; allowed: the proxy's address or name`);
    return null;
  }

  /** "", or "user:password@" percent-encoded. No message shows either. */
  #loginOf(keys: Keys, type: "socks5" | "http-connect"): string | null {
    const login = keys.word("login");
    const password = keys.word("password");
    if (login === undefined && password === undefined) return "";
    if (login === undefined || password === undefined) {
      const [given, missing] = login === undefined ? ["password", "login"] : ["login", "password"];
      if (type === "http-connect" && login !== undefined) return `${percentEncoded(login)}@`;
      this.#problem(keys.lineOf(given), given, `stands without ${missing}; both are needed, or none`);
      return null;
    }
    const bytes = (text: string): number => new TextEncoder().encode(text).length;
    for (const [key, text] of [["login", login], ["password", password]] as const) {
      if (type === "socks5" && (bytes(text) > LOGIN_BYTES_MAX || (key === "login" && text === ""))) {
        this.#problem(keys.lineOf(key), key, `has ${bytes(text)} bytes; allowed: ${key === "login" ? 1 : 0} to ${LOGIN_BYTES_MAX} (RFC 1929)`);
        return null;
      }
      if (type === "http-connect" && (/\p{Cc}/u.test(text) || (key === "login" && text.includes(":")))) {
        this.#problem(keys.lineOf(key), key, "holds what HTTP's Basic scheme cannot carry: a control character, or a colon in the login (RFC 7617)");
        return null;
      }
    }
    return `${percentEncoded(login)}:${percentEncoded(password)}@`;
  }

  #twice(instances: readonly Instance[]): void {
    const seen = new Map<string, number>();
    for (const { listen, line } of instances) {
      if (listen === null) continue;
      const other = seen.get(listen);
      if (other !== undefined) this.#problem(line, "local_port", `${listen} is listened on twice, by the section in line ${other} and by this one`);
      seen.set(listen, line);
    }
  }

  /** Those of one upstream are one proxy; the first is that of the top of our file. */
  #upstreams(instances: readonly Instance[]): void {
    const groups = new Map<string, Instance[]>();
    for (const instance of instances) {
      if (instance.upstream === null) continue;
      groups.set(instance.upstream, [...(groups.get(instance.upstream) ?? []), instance]);
    }
    let isFirst = true;
    for (const [upstream, group] of groups) {
      const texts = group.flatMap(({ listen }) => (listen === null ? [] : [listen]));
      const listen = texts.length === 1 ? tomlString(texts[0]!) : `[${texts.map(tomlString).join(", ")}]`;
      const wild = texts.some((text) => text.startsWith("0.0.0.0:"))
        ? "0.0.0.0 is all addresses of both families; for redsocks it was IPv4 alone" : null;
      const notes = upstreamNotes(upstream, group[0]!.keys);
      if (!isFirst) {
        if (texts.length > 0) this.#relays.push({ listen, upstream, from: group[0]!.line, notes: [...(wild === null ? [] : [wild]), ...notes] });
        continue;
      }
      isFirst = false;
      if (texts.length > 0) this.#say("listen", listen, group[0]!.line, wild);
      this.#say("proxy_url", tomlString(upstream), group[0]!.keys.lineOf("type"), notes.length > 0 ? notes.join("; ") : null);
      this.#ofAll(instances, group[0]!);
    }
  }

  /** A key of http-connect, which is one for all here: of two sections that differ, the first counts. */
  #sayOfHttp(instances: readonly Instance[], key: string, ours: SettingKey, written: (value: string) => string | null): void {
    const of = instances.filter(({ keys }) => keys.word("type") === "http-connect");
    const said = of.map(({ keys }) => written(keys.word(key) ?? ""));
    const first = said.findIndex((value) => value !== null);
    if (first === -1) return;
    const line = of[first]!.keys.lineOf(key);
    this.#say(ours, tomlString(said[first]!), line);
    if (said.some((value) => value !== said[first])) this.#warn(line, key, "is not the same in all sections; this one counts for all");
  }

  /** What redsocks had for each section and we have for all. */
  #ofAll(instances: readonly Instance[], first: Instance): void {
    const timeouts = instances.map(({ keys }) => keys.number("timeout")).filter((seconds) => seconds !== undefined);
    const seconds = Math.max(0, ...timeouts);
    if (seconds > TIMEOUT_SECONDS_MAX) {
      this.#problem(first.keys.lineOf("timeout"), "timeout", `allowed: 1 to ${TIMEOUT_SECONDS_MAX} seconds`);
    } else if (seconds > 0) {
      this.#say("timeouts.dial", `"${seconds}s"`, first.keys.lineOf("timeout"), timeouts.some((other) => other !== seconds) ? "the longest of several" : null);
    }
    this.#sayOfHttp(instances, "disclose_src", "upstream.disclose_client", (value) => DISCLOSED.get(value) ?? null);
    this.#sayOfHttp(instances, "on_proxy_fail", "upstream.on_refusal", (value) => (value === "forward_http_err" ? "forward" : null));
    const spliced = instances.map(({ keys }) => keys.flag("splice"));
    const off = instances.find(({ keys }) => keys.flag("splice") === false);
    if (off !== undefined && spliced.every((flag) => flag === false)) {
      this.#say("limits.pipes", "0", off.keys.lineOf("splice"));
    } else if (off !== undefined) {
      this.#warn(off.keys.lineOf("splice"), "splice", "is off here and not everywhere: it is for all sections or for none, and stays on");
    }
  }

  /** Is it to be a daemon? */
  #base(base: Keys): boolean {
    const redirector = base.word("redirector");
    const at = base.lineOf("redirector");
    if (redirector === undefined) {
      if (!base.has("redirector")) this.#problem(base.line, "redirector", "is missing; allowed: iptables or generic");
    } else if (redirector === "generic") {
      this.#say("mode", '"tproxy"', at, "generic took the listener's own address for the destination, which is TPROXY's way");
    } else if (redirector === "ipf" || redirector === "pf") {
      this.#problem(at, "redirector", `${redirector} is not of Linux; allowed: iptables or generic`);
    } else if (redirector !== "iptables") {
      this.#problem(at, "redirector", `found ${quoted(redirector)}; allowed: iptables or generic`);
    }
    const max = base.number("redsocks_conn_max") ?? 0;
    if (max > 10_000_000) this.#problem(base.lineOf("redsocks_conn_max"), "redsocks_conn_max", "allowed: 0 to 10000000, where 0 is what the limit of open files carries");
    else if (max > 0) this.#say("max_connections", `${max}`, base.lineOf("redsocks_conn_max"));
    this.#keepalive(base);
    this.#log(base);
    if (base.has("connpres_idle_timeout") && base.number("connpres_idle_timeout") !== 7440) {
      this.#warn(base.lineOf("connpres_idle_timeout"), "connpres_idle_timeout", "has no effect: connections end after 2 h 4 min without traffic, under pressure or not; timeouts.idle of our own file says otherwise");
    }
    if (base.has("max_accept_backoff")) {
      if (base.number("max_accept_backoff") === 0) this.#problem(base.lineOf("max_accept_backoff"), "max_accept_backoff", "found 0; allowed: 1 to 4294967295");
      else this.#warn(base.lineOf("max_accept_backoff"), "max_accept_backoff", "is not needed and has no effect: at the limit new connections wait in the kernel's queue");
    }
    if ((base.number("rlimit_nofile") ?? 0) > 0) {
      this.#warn(base.lineOf("rlimit_nofile"), "rlimit_nofile", "has no effect: the soft limit is raised to the hard one, which LimitNOFILE= of the unit sets");
    }
    if (base.flag("reuseport") === false) this.#warn(base.lineOf("reuseport"), "reuseport", "has no effect: each worker has a socket of its own on the port");
    this.#identity(base);
    return base.flag("daemon") ?? false;
  }

  #keepalive(base: Keys): void {
    const rows = [
      ["tcp_keepalive_time", "tcp.keepalive_idle", KEEPALIVE_SECONDS_MAX, (n: number) => `"${n}s"`],
      ["tcp_keepalive_intvl", "tcp.keepalive_interval", KEEPALIVE_SECONDS_MAX, (n: number) => `"${n}s"`],
      ["tcp_keepalive_probes", "tcp.keepalive_probes", KEEPALIVE_PROBES_MAX, (n: number) => `${n}`],
    ] as const;
    for (const [key, ours, max, written] of rows) {
      const value = base.number(key) ?? 0;
      if (value > max) this.#problem(base.lineOf(key), key, `found ${value}; allowed: 0, the kernel's, to ${max}`);
      else if (value > 0) this.#say(ours, written(value), base.lineOf(key));
    }
  }

  #log(base: Keys): void {
    const debug = base.flag("log_debug") ?? false;
    const info = base.flag("log_info") ?? false;
    const key = debug ? "log_debug" : "log_info";
    this.#say(
      "log.level", debug ? '"debug"' : info ? '"info"' : '"warning"', base.lineOf(key),
      debug || info ? null : "redsocks told of connections only with log_info = on",
    );
    const log = base.word("log");
    const line = base.lineOf("log");
    if (log === undefined) {
      if (!base.has("log") && base.flag("daemon")) this.#warn(base.line, "log", "the log goes to standard error, not to syslog; under systemd both are in the journal");
    } else if (log.startsWith("file:") && log.length > "file:".length && !log.includes("\0")) {
      this.#say("log.filename", tomlString(log.slice("file:".length)), line);
    } else if (log.startsWith("syslog:") && SYSLOG.includes(log.slice("syslog:".length))) {
      this.#warn(line, "log", "the log goes to standard error, not to syslog; under systemd both are in the journal");
    } else if (log !== "stderr") {
      this.#problem(line, "log", `found ${quoted(log)}; allowed: stderr, "file:/PATH", or "syslog:FACILITY" with ${alternatives(SYSLOG)}`);
    }
  }

  #identity(base: Keys): void {
    if (base.has("chroot")) {
      this.#unsupported(base.lineOf("chroot"), "chroot", "RootDirectory= or ProtectSystem=strict of a systemd unit does more");
    }
    for (const key of ["user", "group"] as const) {
      const value = base.word(key);
      if (value === undefined) continue;
      if (isAccount(value)) this.#say(key, tomlString(value), base.lineOf(key));
      else this.#problem(base.lineOf(key), key, `found ${quoted(value)}; allowed: the name or number of a ${key}`);
    }
  }
}

/** What disclose_src may be, in our words. */
const DISCLOSED: ReadonlyMap<string, string> = new Map([
  ["X-Forwarded-For", "x-forwarded-for"], ["Forwarded_ip", "forwarded"], ["Forwarded_ipport", "forwarded-with-port"],
]);

/** What is not quite the same of an upstream. */
function upstreamNotes(upstream: string, keys: Keys): string[] {
  const notes: string[] = [];
  if (upstream.startsWith("http:")) {
    notes.push("CONNECT in HTTP/1.1, with Host");
    if (keys.has("login")) notes.push("the login is sent at once and as Basic, not after a 407, and never as Digest");
  }
  const host = keys.has("relay") ? placeOf(keys.word("relay")!)?.host : keys.word("ip");
  if (upstream !== "direct:" && host !== undefined && rangeOf(host) === null) {
    notes.push("the name is looked up as time goes by, all of its addresses; redsocks took one, once");
  }
  return notes;
}

function percentEncoded(text: string): string {
  return [...new TextEncoder().encode(text)]
    .map((byte) => (/[A-Za-z0-9_.~-]/.test(String.fromCharCode(byte)) ? String.fromCharCode(byte) : `%${byte.toString(16).toUpperCase().padStart(2, "0")}`))
    .join("");
}

/** As a word, if it is one. */
const quotedKey = (key: string): string => (/^[A-Za-z0-9_.-]{1,64}$/.test(key) ? key : quoted(key));

/** strtoul with base 0: 0x10 stands only in "quotes", 010 is 8. */
function strtoul(text: string): number | null {
  if (/^0[xX][0-9A-Fa-f]{1,16}$/.test(text)) return Number.parseInt(text.slice(2), 16);
  if (/^0[0-7]{0,32}$/.test(text)) return Number.parseInt(text, 8);
  return /^[1-9][0-9]{0,15}$/.test(text) ? Number(text) : null;
}

/** An address, or a name that could be one. */
function isHost(text: string): boolean {
  if (rangeOf(text) !== null) return true;
  if (text.length > 253 || /(?:^|\.)[0-9]+\.?$/.test(text)) return false;
  return text.replace(/\.$/, "").split(".")
    .every((label) => /^[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?$/.test(label));
}

function placeOf(text: string): { host: string; port: number } | null {
  const parts = splitHostPort(text);
  const port = parts === null ? null : parsePort(parts.port);
  return parts === null || port === null ? null : { host: parts.host, port };
}
