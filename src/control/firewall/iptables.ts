/**
 * FirewallPlan -> chains of our own for iptables-restore --noflush and ip6tables-restore: one
 * transaction a family, in which what was ours before goes and what is ours now comes. Pure.
 */
import type { PortRange } from "../../policy/access.ts";
import { merged } from "./nft.ts";
import { markMask, REJECTIONS, rejectMark, rejectMask } from "./marks.ts";
import type { FamilyPlan, FirewallPlan } from "./plan.ts";

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

const DRAIN = `${PREFIX}DRAIN`;

/** xt_multiport has room for 15, and a range takes two. */
const MULTIPORT_MAX = 15;

type Tables = Map<string, { chains: string[]; rules: string[]; jumps: string[] }>;

export function iptablesRules(plan: FirewallPlan, family: FamilyPlan): OwnTables {
  const tables: Tables = new Map();
  const masked = `${hex(plan.mark)}/${hex(markMask(plan))}`;
  const tproxy = `-j TPROXY --on-port ${family.port} --on-ip ${family.address} --tproxy-mark ${masked}`;
  const isRefused = plan.stage === "refused";
  const hook = (table: string, name: "OUTPUT" | "PREROUTING" | "FORWARD", targets: readonly string[]): void => {
    const { chains, rules, jumps } = tables.get(table) ?? { chains: [], rules: [], jumps: [] };
    tables.set(table, { chains, rules, jumps });
    const [gate, nets, allow, ports] = ["", "_NET", "_ALLOW", "_PORT"].map((end) => `${PREFIX}${name}${end}`) as [string, string, string, string];
    chains.push(gate, nets, allow, ports);
    // What others accept before us would not be refused. What stands goes on.
    if (isRefused) jumps.push(`-I ${name} -p tcp ${SYN} -j ${gate}`);
    else jumps.push(`-A ${name} -p tcp ${table === "raw" ? `${SYN} ` : ""}-j ${gate}`);
    const add = (chain: string, rule: string): void => void rules.push(`-A ${chain} ${rule}`);
    const routes = table === "mangle";
    if (name === "PREROUTING" && routes && plan.output) {
      add(gate, `-i lo -p tcp -m mark --mark ${markMask(plan) === ALL_BITS ? hex(plan.mark) : masked} ${tproxy}`);
    }
    if (routes) add(gate, "-m conntrack --ctdir REPLY -j RETURN");
    if (routes && plan.queues?.reject) add(gate, `-m mark ! --mark 0x0/${hex(rejectMask(plan.queues))} -j RETURN`);
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
    for (const target of targets) add(ports, `-p tcp ${target}`);
  };
  const answer = (): OwnTables => new Map([...tables].map(([table, { chains, rules, jumps }]) => [table, { chains, rules: [...rules, ...jumps] }]));
  if (plan.stage !== "engaged") drain(plan, tables);
  if (plan.stage === "draining") return answer();
  if (isRefused) {
    if (plan.output) hook("filter", "OUTPUT", ["-j REJECT --reject-with tcp-reset"]);
    if (plan.interfaces.length > 0) hook("filter", "FORWARD", ["-j REJECT --reject-with tcp-reset"]);
    return answer();
  }
  const redirect = `-j REDIRECT --to-ports ${family.port}`;
  const table = plan.mode === "redirect" ? "nat" : "mangle";
  if (plan.output) hook(table, "OUTPUT", [plan.mode === "redirect" ? redirect : `-j MARK --set-xmark ${masked}`]);
  if (plan.interfaces.length > 0 || plan.mode === "tproxy") hook(table, "PREROUTING", [plan.mode === "redirect" ? redirect : tproxy]);
  if (plan.queues === null) return answer();
  // Before conntrack has seen them. A queue ends its table: what is let go meets the next one.
  const queues = queueTargets(plan.queues, family.family);
  if (plan.output) hook("raw", "OUTPUT", queues);
  if (plan.interfaces.length > 0) hook("raw", "PREROUTING", queues);
  if (plan.queues.reject) tables.set("filter", rejections(plan, plan.queues, family.family));
  return answer();
}

/** See firewall/nft.ts. With REDIRECT nothing leads there: that it asks for translation is enough. */
function drain(plan: FirewallPlan, tables: Tables): void {
  if (plan.mode === "redirect") {
    tables.set("nat", { chains: [DRAIN], rules: [`-A ${DRAIN} -m conntrack --ctstate ESTABLISHED -j RETURN`], jumps: [] });
    return;
  }
  if (plan.interfaces.length === 0) return;
  const mark = `-j MARK --set-xmark ${hex(plan.mark)}/${hex(markMask(plan))}`;
  const rules = plan.interfaces.map((iface) => `-A ${DRAIN} -i ${iface} -p tcp -m socket --transparent ${mark}`);
  tables.set("mangle", { chains: [DRAIN], rules, jumps: [`-A PREROUTING -p tcp -j ${DRAIN}`] });
}

/**
 * A SYN that is handed over is rejected where it would come in. TPROXY's does not get there with an
 * ICMP error; so it is not handed over, and rejected where it would be forwarded.
 */
function rejections(
  plan: FirewallPlan, queues: NonNullable<FirewallPlan["queues"]>, family: 4 | 6,
): { chains: string[]; rules: string[]; jumps: string[] } {
  const chain = `${PREFIX}REJECT`;
  const rules = REJECTIONS.map((kinds, kind) =>
    `-A ${chain} -p tcp -m mark --mark ${hex(rejectMark(queues, kind))}/${hex(rejectMask(queues))} -j REJECT --reject-with ${kinds[family]}`);
  const hooks = [...(plan.output ? ["OUTPUT"] : []), ...(plan.interfaces.length === 0 ? [] : [plan.mode === "tproxy" ? "FORWARD" : "INPUT"])];
  // With net.ipv4.fwmark_reflect the reset has the same mark.
  const jumps = hooks.map((name) => `-I ${name} -p tcp ${SYN} -m mark ! --mark 0x0/${hex(rejectMask(queues))} -j ${chain}`);
  return { chains: [chain], rules, jumps };
}

/**
 * The kernel's own balance looks at the addresses only: one client would have one queue. So it goes by
 * the source port; not by its lowest bit, which is the same in all ports that the kernel chooses.
 */
export function queueTargets(
  { first, lanes }: Pick<NonNullable<FirewallPlan["queues"]>, "first" | "lanes">, family: 4 | 6,
): string[] {
  const to = (lane: number): string => `-j NFQUEUE --queue-num ${first + lane} --queue-bypass`;
  const header = family === 4 ? "0x0>>0x16&0x3c@0x0" : "0x28";
  const parts = [2, 4, 8].includes(lanes) ? lanes : 16;
  const targets: string[] = [];
  for (let part = 0; lanes > 1 && part < parts; part++) {
    targets.push(`-m u32 --u32 "${header}>>0x11&${hex(parts - 1)}=${hex(part)}" ${to(part % lanes)}`);
  }
  return [...targets, to(0)];
}

const ALL_BITS = 0xffff_ffff;
const hex = (number: number): string => `0x${number.toString(16)}`;

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
