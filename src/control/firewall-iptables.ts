/**
 * FirewallPlan -> chains of our own for iptables-restore --noflush and ip6tables-restore: one
 * transaction a family, in which what was ours before goes and what is ours now comes. Pure.
 */
import type { PortRange } from "../policy/access.ts";
import { merged } from "./firewall-nft.ts";
import { type FamilyPlan, type FirewallPlan, isRouting } from "./firewall-plan.ts";

const PREFIX = "TRANSPLICE_";
/** Stands in a table that was not there before us, so that we can tell when we go. */
export const NEW_TABLE = `${PREFIX}NEW_TABLE`;

/** What is ours in one table, as iptables-save says it. */
export interface OwnTable {
  readonly chains: readonly string[];
  /** "-A CHAIN ...", those in chains of others (the jumps to us) last. */
  readonly rules: readonly string[];
}
export type OwnTables = ReadonlyMap<string, OwnTable>;

/** As iptables-save says --syn. */
const SYN = "-m tcp --tcp-flags FIN,SYN,RST,ACK SYN";

/** What keeps the kernel translating: see firewall-nft.ts. Nothing leads there. */
const DRAIN = `${PREFIX}DRAIN`;

/** xt_multiport has room for 15, and a range takes two. */
const MULTIPORT_MAX = 15;

export function iptablesRules(plan: FirewallPlan, family: FamilyPlan): OwnTables {
  const chains: string[] = [];
  const rules: string[] = [];
  const jumps: string[] = [];
  const mark = `0x${plan.mark.toString(16)}`;
  const tproxy = `-j TPROXY --on-port ${family.port} --on-ip ${family.address} --tproxy-mark ${mark}/0xffffffff`;
  const isRefused = plan.stage === "refused";
  const hook = (name: "OUTPUT" | "PREROUTING" | "FORWARD", target: string): void => {
    const [gate, nets, allow, ports] = ["", "_NET", "_ALLOW", "_PORT"].map((end) => `${PREFIX}${name}${end}`) as [string, string, string, string];
    chains.push(gate, nets, allow, ports);
    // What others accept before us would not be refused. What stands goes on.
    jumps.push(isRefused ? `-I ${name} -p tcp ${SYN} -j ${gate}` : `-A ${name} -p tcp -j ${gate}`);
    const add = (chain: string, rule: string): void => void rules.push(`-A ${chain} ${rule}`);
    const tcp = isRouting(plan);
    if (name === "PREROUTING" && tcp && plan.output) add(gate, `-i lo -p tcp -m mark --mark ${mark} ${tproxy}`);
    if (tcp) add(gate, "-m conntrack --ctdir REPLY -j RETURN");
    if (name !== "OUTPUT") {
      for (const iface of plan.interfaces) add(gate, `-i ${iface} -g ${nets}`);
    } else {
      for (const match of exemptions(plan)) add(gate, `${match} -j RETURN`);
      for (const uid of plan.users ?? []) add(gate, `-m owner --uid-owner ${uid} -g ${nets}`);
      if (plan.users === null) add(gate, `-g ${nets}`);
    }
    add(nets, "-m addrtype --dst-type LOCAL -j RETURN");
    for (const to of family.exclude) add(nets, `-d ${to} -j RETURN`);
    for (const to of family.lifted) add(nets, `-d ${to} -g ${allow}`);
    for (const to of family.special) add(nets, `-d ${to} -j RETURN`);
    if (family.include === null) add(nets, `-g ${allow}`);
    for (const to of family.include ?? []) add(nets, `-d ${to} -g ${allow}`);
    for (const some of chunks(plan.excludePorts)) add(allow, `-p tcp -m multiport --dports ${some} -j RETURN`);
    for (const some of chunks(plan.ports ?? [])) add(allow, `-p tcp -m multiport --dports ${some} -g ${ports}`);
    if (plan.ports === null) add(allow, `-g ${ports}`);
    add(ports, `-p tcp ${target}`);
  };
  const draining: [string, OwnTable][] = plan.mode === "tproxy" ? [] : [["nat", {
    chains: [DRAIN], rules: [`-A ${DRAIN} -m conntrack --ctstate ESTABLISHED -j RETURN`],
  }]];
  if (plan.stage === "draining") return new Map(draining);
  if (isRefused) {
    if (plan.output) hook("OUTPUT", "-j REJECT --reject-with tcp-reset");
    if (plan.interfaces.length > 0) hook("FORWARD", "-j REJECT --reject-with tcp-reset");
    return new Map([["filter", { chains, rules: [...rules, ...jumps] }], ...draining]);
  }
  const redirect = `-j REDIRECT --to-ports ${family.port}`;
  if (plan.output) hook("OUTPUT", plan.mode === "redirect" ? redirect : `-j MARK --set-xmark ${mark}/0xffffffff`);
  if (plan.interfaces.length > 0 || plan.mode === "tproxy") hook("PREROUTING", plan.mode === "redirect" ? redirect : tproxy);
  return new Map([[plan.mode === "redirect" ? "nat" : "mangle", { chains, rules: [...rules, ...jumps] }]]);
}

function exemptions(plan: FirewallPlan): string[] {
  const own = plan.own === null ? [] : ["mark" in plan.own ? `-m mark --mark 0x${plan.own.mark.toString(16)}` : `-m owner --uid-owner ${plan.own.uid}`];
  return [
    ...own,
    ...plan.excludeCgroups.map((path) => `-m cgroup --path ${JSON.stringify(path)}`),
    ...plan.excludeUsers.map((uid) => `-m owner --uid-owner ${uid}`),
  ];
}

function chunks(ports: readonly PortRange[]): string[] {
  const out: string[][] = [];
  let room = 0;
  for (const { first, last } of merged(ports)) {
    const takes = first === last ? 1 : 2;
    if (takes > room) {
      out.push([]);
      room = MULTIPORT_MAX;
    }
    room -= takes;
    out.at(-1)!.push(first === last ? `${first}` : `${first}:${last}`);
  }
  return out.map((some) => some.join(","));
}

/** What iptables-save says of us. Tables that are there without us are not in the answer. */
export function ownTables(saved: string): OwnTables {
  const tables = new Map<string, { chains: string[]; rules: string[] }>();
  let table = { chains: [] as string[], rules: [] as string[] };
  for (const line of saved.split("\n")) {
    const name = /^\*(\w+)/.exec(line)?.[1];
    if (name !== undefined) {
      table = { chains: [], rules: [] };
      tables.set(name, table);
    }
    const chain = /^:(TRANSPLICE_\S+)/.exec(line)?.[1];
    if (chain !== undefined) table.chains.push(chain);
    if (/^-A TRANSPLICE_| -[jg] TRANSPLICE_/.test(line)) table.rules.push(line.trimEnd());
  }
  for (const [name, { chains, rules }] of tables) if (chains.length + rules.length === 0) tables.delete(name);
  return tables;
}

/** The tables that iptables-save knows. */
export const tablesOf = (saved: string): string[] => [...saved.matchAll(/^\*(\w+)/gm)].map((match) => match[1]!);

/** The transaction that leads from what is ours to what shall be. "" = nothing to do. */
export function transition(from: OwnTables, to: OwnTables): string {
  let text = "";
  // A table a transaction: what comes stands before what goes has gone.
  for (const table of [...new Set([...to.keys(), ...from.keys()])]) {
    const old = from.get(table) ?? { chains: [], rules: [] };
    const next = to.get(table) ?? { chains: [], rules: [] };
    const isJump = (rule: string): boolean => !rule.startsWith(`-A ${PREFIX}`);
    const kept = new Set(next.rules.filter((rule) => isJump(rule) && old.rules.filter((other) => other === rule).length === 1));
    text += `*${table}\n`;
    // Naming a chain makes it, or empties it.
    for (const chain of new Set([...old.chains, ...next.chains])) text += `:${chain} - [0:0]\n`;
    for (const rule of old.rules) if (isJump(rule) && !kept.has(rule)) text += `${rule.replace(/^-A/, "-D")}\n`;
    for (const rule of next.rules) if (!kept.has(rule)) text += `${rule}\n`;
    for (const chain of old.chains) if (!next.chains.includes(chain)) text += `-X ${chain}\n`;
    text += "COMMIT\n";
  }
  return text;
}
