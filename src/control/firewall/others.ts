/**
 * Rules of whoever that send connections elsewhere (redirect, dnat, tproxy), as the host's tools list
 * them: by hand, of another program, or our own. Reads only.
 */
import type { SocketAddress } from "../../config/config.ts";
import { addressText, portOf } from "../../config/endpoint.ts";
import { parseNetwork } from "../../config/network.ts";
import { Networks } from "../../policy/network.ts";
import { addressOf } from "../../policy/own.ts";
import { saved } from "./kernel.ts";
import { run, tool } from "./tools.ts";

export interface Redirection {
  readonly families: readonly (4 | 6)[];
  /** Which packets come by: those of this host's programs, those that come in. */
  readonly hooks: readonly Hook[];
  readonly target: "redirect" | "dnat" | "tproxy";
  /** null: this host's own. */
  readonly address: string | null;
  /** null: the one that was dialled. */
  readonly port: number | null;
  /** "nft inet filter, chain x: ...", for the operator. */
  readonly text: string;
  /** Set by `transplice firewall`. */
  readonly ours: boolean;
}

type Hook = "output" | "prerouting";

interface Chain {
  hook: Hook | null;
  readonly rules: string[];
}

type Tables = Map<string, Map<string, Chain>>;

export async function redirections(): Promise<Redirection[]> {
  const found: Redirection[] = [];
  const byIptables = new Set<string>();
  for (const backend of ["iptables", "iptables-legacy"] as const) {
    for (const family of [4, 6] as const) {
      const tables = iptablesTables(await saved(backend, family));
      for (const [name, chains] of tables) {
        if (backend === "iptables") byIptables.add(`${family === 4 ? "ip" : "ip6"} ${name}`);
        found.push(...redirectionsIn(chains, [family], `${family === 4 ? "iptables" : "ip6tables"}${backend === "iptables" ? "" : "-legacy"} -t ${name}`));
      }
    }
  }
  const ruleset = tool("nft") === null ? "" : (await run("nft", ["list", "ruleset"])).out;
  for (const [name, chains] of nftTables(ruleset)) {
    // iptables over nf_tables has said it in its own words.
    if (byIptables.has(name)) continue;
    const [family = ""] = name.split(" ");
    if (!["ip", "ip6", "inet"].includes(family)) continue;
    found.push(...redirectionsIn(chains, family === "inet" ? [4, 6] : family === "ip" ? [4] : [6], `nft ${name}`));
  }
  return found;
}

/**
 * Whether the rule may take a connection there, by its own words: "no" where it names another network or
 * port, "named" where it names this address or its network. What else it wants (sets, marks, users, chains
 * before it) is not looked at.
 */
export function fits({ text }: Redirection, { bytes }: SocketAddress): "no" | "maybe" | "named" {
  const port = /(?<!! )(?:--dport|\bdport) (\d+)(?![\d:-])/.exec(text)?.[1];
  if (port !== undefined && Number(port) !== portOf(bytes, 0)) return "no";
  const destination = /(?<!! )(?:-d|\bip6? daddr) ([0-9a-f.:/]+)(?!\S)/.exec(text)?.[1];
  if (destination === undefined) return "maybe";
  const network = parseNetwork(destination);
  if (typeof network === "string") return "maybe";
  const address = addressOf(bytes, 0);
  return new Networks([network]).has(address, 0, address.length as 4 | 16) ? "named" : "no";
}

/** Those that may take what a program of this host sends there. */
export const takers = (found: readonly Redirection[], to: SocketAddress): Redirection[] =>
  found.filter((each) => each.hooks.includes("output") && each.families.includes(familyOf(to)) && fits(each, to) !== "no");

const familyOf = ({ bytes }: SocketAddress): 4 | 6 => (addressOf(bytes, 0).length === 4 ? 4 : 6);

/** The command that lets what goes there pass by the rule: by its mark, or else whoever sends it. */
export function exemption({ text }: Redirection, to: SocketAddress, mark: number | null): string {
  const [, where = "", chain = ""] = /^(.+?), chain (\S+): /.exec(text) ?? [];
  const host = addressText(addressOf(to.bytes, 0));
  if (where.startsWith("nft ")) {
    const daddr = familyOf(to) === 4 ? "ip daddr" : "ip6 daddr";
    return `nft insert rule ${where.slice("nft ".length)} ${chain} ${mark === null ? `${daddr} ${host}` : `meta mark ${mark}`} return`;
  }
  return `${where} -I ${chain} ${mark === null ? `-d ${host}` : `-m mark --mark ${mark}`} -j RETURN`;
}

function iptablesTables(save: string): Tables {
  const tables: Tables = new Map();
  let chains = new Map<string, Chain>();
  for (const line of save.split("\n")) {
    const table = /^\*(\w+)/.exec(line)?.[1];
    if (table !== undefined) {
      chains = new Map();
      tables.set(table, chains);
    }
    const chain = /^:(\S+)/.exec(line)?.[1];
    if (chain !== undefined) chains.set(chain, { hook: HOOKS.get(chain) ?? null, rules: [] });
    const rule = /^-A (\S+) (.*)/.exec(line);
    if (rule !== null) chains.get(rule[1]!)?.rules.push(rule[2]!);
  }
  return tables;
}

const HOOKS: ReadonlyMap<string, Hook> = new Map([["OUTPUT", "output"], ["PREROUTING", "prerouting"]]);

function nftTables(ruleset: string): Tables {
  const tables: Tables = new Map();
  let chains = new Map<string, Chain>();
  let chain: Chain | null = null;
  for (const raw of ruleset.split("\n")) {
    const line = raw.trim();
    const table = /^table (\S+ \S+) \{/.exec(line)?.[1];
    if (table !== undefined) {
      chains = new Map();
      tables.set(table, chains);
    }
    const name = /^chain (\S+) \{/.exec(line)?.[1];
    if (name !== undefined) {
      chain = { hook: null, rules: [] };
      chains.set(name, chain);
    } else if (line === "}") chain = null;
    else if (chain !== null) {
      const hook = /^type \S+ hook (\w+)/.exec(line)?.[1];
      if (hook === undefined) chain.rules.push(line);
      else if (hook === "output" || hook === "prerouting") chain.hook = hook;
    }
  }
  return tables;
}

function redirectionsIn(chains: ReadonlyMap<string, Chain>, families: readonly (4 | 6)[], where: string): Redirection[] {
  const hooks = new Map<string, Set<Hook>>();
  const visit = (name: string, hook: Hook): void => {
    const known = hooks.get(name) ?? new Set();
    if (known.has(hook)) return;
    hooks.set(name, known.add(hook));
    for (const rule of chains.get(name)?.rules ?? []) {
      for (const [, to] of rule.matchAll(/(?:^|\s)(?:-[jg]|jump|goto) (\S+)/g)) if (chains.has(to!)) visit(to!, hook);
    }
  };
  for (const [name, { hook }] of chains) if (hook !== null) visit(name, hook);
  return [...chains].flatMap(([name, { rules }]) => rules.flatMap((rule): Redirection[] => {
    const to = targetOf(rule);
    if (to === null) return [];
    const only = /\b(?:ip6 |nfproto ipv6)/.test(rule) ? 6 : /\b(?:ip |nfproto ipv4)/.test(rule) ? 4 : null;
    return [{
      ...to,
      families: families.filter((family) => only === null || family === only || families.length === 1),
      hooks: [...(hooks.get(name) ?? [])],
      text: `${where}, chain ${name}: ${rule}`,
      ours: name.startsWith("TRANSPLICE_") || where === "nft inet transplice",
    }];
  }));
}

function targetOf(rule: string): Pick<Redirection, "target" | "address" | "port"> | null {
  const option = (name: string): string | null => new RegExp(`${name} (\\S+)`).exec(rule)?.[1] ?? null;
  const port = (text: string | null): number | null => (text === null ? null : Number(/^[0-9]+/.exec(text)?.[0] ?? "0") || null);
  if (/-j REDIRECT\b/.test(rule)) return { target: "redirect", address: null, port: port(option("--to-ports")) };
  if (/-j TPROXY\b/.test(rule)) return { target: "tproxy", address: option("--on-ip"), port: port(option("--on-port")) };
  if (/-j DNAT\b/.test(rule)) return { target: "dnat", ...placeOf(option("--to-destination") ?? "") };
  const nft = /\b(redirect|dnat|tproxy)\b(?: ip6?)?(?: to (\S+))?/.exec(rule);
  if (nft === null) return null;
  return { target: nft[1] as Redirection["target"], ...placeOf(nft[2] ?? "") };
}

/** "127.0.0.1:1081", "[::1]:1081", ":1081", "192.0.2.1". */
function placeOf(text: string): { address: string | null; port: number | null } {
  const bracketed = /^\[([^\]]*)\](?::([0-9]+))?/.exec(text);
  const plain = /^([0-9.]*)(?::([0-9]+))?/.exec(text);
  const [, address, port] = bracketed ?? (text.split(":").length > 2 ? [text, text] : plain) ?? [];
  return { address: address === undefined || address === "" ? null : address, port: port === undefined ? null : Number(port) };
}
