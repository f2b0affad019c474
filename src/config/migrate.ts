/**
 * A predecessor's file -> ours, as text, with a comment at each line whose meaning has changed, and
 * on top what the old file had wrong.
 *
 * transocks' and usocksd's files are ours already: they keep their own lines and comments, and get
 * ours in between. redsocks.conf is written anew, from what redsocks.ts makes of it.
 */
import { type AST, parseTOML } from "toml-eslint-parser";
import type { Config } from "./config.ts";
import { isLoopback } from "./egress.ts";
import { addressBytes, addressText, rangeOf, specialOf } from "./endpoint.ts";
import { type Problem, problemText, quoted } from "./problem.ts";
import { parseAs, type ProgramName } from "./program.ts";
import { parseRedsocks, type RedsocksOptions, writtenOut } from "./redsocks.ts";
import { folded, namesOf, stringOf } from "./toml.ts";

export type Migrated = { readonly text: string } | { readonly problems: readonly Problem[] };

/** `from` null: to be guessed. `name` is what problems and the page's first line call the file. */
export function migrate(
  text: string, name: string, from: ProgramName | null, options: RedsocksOptions,
): Migrated {
  const as = from ?? guessed(text);
  if (as === null) {
    return problemOf(name, "could be anybody's; say whose it is with --from transocks, usocksd, redsocks or transplice");
  }
  const loaded = parseAs(as, text, name, [], options);
  if ("problems" in loaded) return loaded;
  const old = text.replace(/^\ufeff/, "");
  const body = as === "redsocks" ? rewritten(old, name, options) : annotated(old, as, loaded.config);
  const wrong = [...loaded.warnings.map(problemText), ...faults(loaded.config, as)];
  const daemon = loaded.daemon
    ? ["daemon: there is none; a systemd unit of Type=simple (or the command under the name redsocks) does it"]
    : [];
  const page = [
    `transplice.toml, from ${quoted(name)} of ${as}`,
    ...listed("What is wrong with it, or was:", wrong),
    ...listed("What is different without a line of its own:", [...DIFFERENT[as], ...daemon]),
  ];
  return { text: `${page.map(comment).join("\n")}\n\n${body}` };
}

/** By what only one of them would say. */
function guessed(text: string): ProgramName | null {
  const keys = new Set<string>();
  try {
    for (const { path } of pairsOf(text.replace(/^\ufeff/, ""))) keys.add(folded(path));
  } catch {
    const bare = text.replace(/\/\*[\s\S]*?\*\/|\/\/.*/g, "");
    if (/(?:^|[\s}])(?:base|redsocks|redudp|dnstc|dnsu2t)\s*\{/.test(bare)) return "redsocks";
    // What is no TOML is told as such by whoever reads it.
    return /^\s*proxy_url\b/m.test(text) ? "transocks" : /^\s*\[(?:incoming|outgoing)\]/m.test(text) ? "usocksd" : "transplice";
  }
  const all = [...keys];
  const within = (known: readonly string[]): boolean =>
    all.every((key) => known.includes(key) || /^log(?:\.|$)/.test(key));
  if (keys.has("proxy_url")) return within(["proxy_url", "listen"]) ? "transocks" : "transplice";
  if (/^\s*\[\s*(?:incoming|outgoing)\s*\]/im.test(text) || all.some((key) => /^(?:incoming|outgoing)\b/.test(key))) {
    return within(USOCKSD_KEYS) ? "usocksd" : "transplice";
  }
  return null;
}

const USOCKSD_KEYS = [
  "incoming", "outgoing", "incoming.port", "incoming.metrics_port", "incoming.addresses", "incoming.allow_from",
  "outgoing.allow_sites", "outgoing.deny_sites", "outgoing.deny_ports", "outgoing.iface", "outgoing.addresses",
  "outgoing.dnsbl_domain",
];

const EVERY_RELAY = [
  "a failure of the upstream, and a reset by either side, reach the other side as a reset, not as an orderly end",
  "HUP reads the file again and applies all of it, listen, too; a broken file changes nothing",
];

/** What no line of the file says. */
const DIFFERENT: Readonly<Record<ProgramName, readonly string[]>> = {
  transplice: [],
  transocks: [
    "connections end after 10 s without an upstream, 10 s of its silence, 5 min half-closed, 2 h 4 min without traffic; transocks had no such limits ([timeouts])",
    ...EVERY_RELAY,
  ],
  usocksd: [
    "loopback, link-local, private, multicast and this host's own addresses are no destinations; usocksd let clients reach them ([outgoing] allow_networks, allow_private)",
    "a name with a dot at its end, in capitals, or that is an address, is judged as what it is",
    "dialling ends after 10 s, a connection after 5 min half-closed or 2 h 4 min without traffic ([timeouts])",
    "BND.ADDR in the answer is the address by which the connection leaves, not the one that was asked for",
    "HUP reads the file again and applies all of it; a broken file changes nothing",
  ],
  redsocks: [
    "connections end after 10 s without an upstream, 10 s of its silence, 5 min half-closed, 2 h 4 min without traffic; redsocks had no such limits ([timeouts])",
    "IPv6 is relayed, too, where a listener has it",
    ...EVERY_RELAY,
    "USR1 opens the log file again; the clients are listed by transplice tunnels ([admin]), and by USR1 under the name redsocks alone",
  ],
};

/** At a key: what it says that it did not say before. */
type Notes = (value: AST.TOMLContentNode, config: Config) => string | null;

const NOTES: Readonly<Record<"transocks" | "usocksd", ReadonlyMap<string, Notes>>> = {
  transocks: new Map<string, Notes>([
    ["listen", (value) => (/^localhost:/i.test(stringOf(value) ?? "") ? "127.0.0.1 and ::1; for transocks it was 127.0.0.1 alone" : null)],
    ["proxy_url", (_, { upstream }) => upstream?.kind === "http" ? "any 2xx answer to CONNECT is success; for transocks it was 200 alone" : null],
  ]),
  usocksd: new Map<string, Notes>([
    ["incoming.metrics_port", (_, { egress }) => (egress?.metrics.length === 0 ? "no metrics; for usocksd 0 was a port by chance" : null)],
    ["incoming.allow_from", (value) => (bareIpv6(value) ? "an IPv6 address without a prefix is itself; usocksd let its whole /32 in" : null)],
    ["incoming.addresses", (_, { egress }) => (egress?.listen.some(({ dualStack }) => dualStack) ? "a wildcard is all addresses of both families" : null)],
    ["outgoing.deny_sites", (value) => (holds(value, "") ? '"" is every request by address, also where the address is sent as a name' : null)],
    ["outgoing.addresses", () => "a client keeps its address whatever it connects to, and is moved only when its address goes; for usocksd both changed with the destination (affinity)"],
    ["outgoing.dnsbl_domain", () => "asked every 60 s, not 15 s, for IPv6, too; an answer outside of 127.0.0.0/24 lists nothing, and two in a row are needed"],
    ["outgoing.iface", () => "also for destinations that are not public, if those are allowed"],
  ]),
};

function bareIpv6(value: AST.TOMLContentNode): boolean {
  return value.type === "TOMLArray" && value.elements.some((element) => /^[^/]*:[^/]*$/.test(stringOf(element) ?? ""));
}

function holds(value: AST.TOMLContentNode, text: string): boolean {
  return value.type === "TOMLArray" && value.elements.some((element) => stringOf(element) === text);
}

/** The file's own lines, with ours before those that need one. */
function annotated(text: string, as: ProgramName, config: Config): string {
  const above = new Map<number, string[]>();
  const rows = as === "transocks" || as === "usocksd" ? NOTES[as] : new Map<string, Notes>();
  let roles = 0;
  for (const { path, line, value } of pairsOf(text)) {
    const note = rows.get(folded(path))?.(value, config) ?? null;
    if (note !== null) above.set(line, [...(above.get(line) ?? []), note]);
  }
  for (const { type, ...item } of parseTOML(text).body[0].body) {
    const path = "key" in item ? namesOf(item.key as AST.TOMLKey) : [];
    if (/^(?:incoming|outgoing)$/.test(folded(path.slice(0, 1)))) roles++;
  }
  const lines = text.split("\n");
  const written = lines.flatMap((line, i) => {
    const indent = /^[ \t]*/.exec(line)![0];
    return [...(above.get(i + 1) ?? []).map((note) => `${indent}${comment(note)}`), line];
  });
  const body = written.join("\n").replace(/\n*$/, "\n");
  if (as !== "usocksd" || roles > 0) return body;
  return `${body === "\n" ? "" : `${body}\n`}${comment("so that it is a SOCKS server: usocksd's file need not say so")}\n[incoming]\n`;
}

/** All key = value of a file, those of inline tables with the line of the outermost. Throws what is no TOML. */
function* pairsOf(text: string): Generator<{ path: string[]; line: number; value: AST.TOMLContentNode }> {
  for (const item of parseTOML(text).body[0].body) {
    if (item.type === "TOMLKeyValue") yield* flat([], item, item.loc.start.line);
    else for (const pair of item.body) yield* flat(namesOf(item.key), pair, pair.loc.start.line);
  }
}

function* flat(
  prefix: readonly string[], pair: AST.TOMLKeyValue, line: number,
): Generator<{ path: string[]; line: number; value: AST.TOMLContentNode }> {
  const path = [...prefix, ...namesOf(pair.key)];
  yield { path, line, value: pair.value };
  if (pair.value.type === "TOMLInlineTable") for (const inner of pair.value.body) yield* flat(path, inner, line);
}

function rewritten(text: string, name: string, options: RedsocksOptions): string {
  const read = parseRedsocks(text, name, options);
  if ("problems" in read) throw new Error("read once, and not again");
  return writtenOut(read).text;
}

/** What a valid file has wrong, besides its warnings. */
function faults(config: Config, as: ProgramName): string[] {
  const found: string[] = [];
  const { relays, egress } = config;
  const listen = [...config.listen, ...relays.flatMap((relay) => relay.listen)];
  const upstreams = [config.upstream, ...relays.map((relay) => relay.upstream)];
  const proxies = upstreams.flatMap((upstream) => (upstream === null || upstream.kind === "direct" ? [] : [upstream]));
  if (proxies.some(({ credentials }) => credentials !== null)) {
    found.push("proxy_url: the upstream's password stands here in clear text; let nobody else read this file (chmod 600)");
  }
  found.push(...new Set(proxies.flatMap(({ host }) => upstreamFaults(host, config.mark))));
  if (listen.length > 0 && listen.every(({ text, dualStack }) => !text.startsWith("[") && !dualStack)) {
    found.push(`listen: there is no IPv6 listener: what ip6tables redirects is refused, or goes around the proxy where nothing redirects it; add one, such as "${ipv6Beside(listen[0]!.text)}"`);
  }
  if (as !== "transplice" && listen.some(({ text }) => !isLoopback(text) && !/^\[fe80:/.test(text))) {
    found.push("listen: whoever reaches it from elsewhere without being redirected is refused; transocks and redsocks sent him through the proxy, or into a loop");
  }
  for (const { bytes } of egress?.addresses ?? []) {
    const special = specialOf(bytes);
    if (special !== null) found.push(`outgoing.addresses: ${addressText(bytes)} is special (${special}): the world sees another address, or none`);
  }
  return found;
}

function upstreamFaults(host: string, mark: number | null): string[] {
  if (mark !== null) return [];
  const cure = "set mark = 0x1081 and let the firewall rules pass what has that mark";
  const bytes = addressBytes(host);
  if (bytes === null) {
    return [`proxy_url: a loop in waiting, should ${quoted(host)} have an address that the rules redirect: ${cure}`];
  }
  const special = specialOf(bytes);
  if (special === null) {
    return [`proxy_url: a loop in waiting: ${host} is a public address, which rules that spare only private networks send back here: ${cure}`];
  }
  if (rangeOf(host)?.range === "loopback") {
    return [`proxy_url: a loop in waiting: the upstream is on this host, and its own connections are redirected, too, unless the rules spare its user`];
  }
  return special === "private" || special === "unique local"
    ? []
    : [`proxy_url: ${host} is special (${special}), which not every list of networks to spare has: ${cure}`];
}

function ipv6Beside(text: string): string {
  const port = /[0-9]+$/.exec(text)![0];
  return isLoopback(text) ? `[::1]:${port}` : `[IPv6]:${port}`;
}

const listed = (title: string, items: readonly string[]): string[] =>
  items.length === 0 ? [] : ["", title, ...items.map((item) => `  - ${item}`)];

/** One line of it, whatever the text. */
const comment = (text: string): string => `# ${text.replace(/\p{Cc}/gu, "\ufffd")}`.trimEnd();

const problemOf = (name: string, message: string): Migrated => ({
  problems: [{ place: name, line: null, column: null, key: null, message }],
});
