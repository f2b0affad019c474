/**
 * The rules that are ours in this host's kernel: what is there, how it comes and how it goes. Touches
 * the table `inet transplice`, chains called TRANSPLICE_*, and ip rules and routes of protocol 181;
 * nothing else.
 */
import { readFileSync } from "node:fs";
import { networkInterfaces } from "node:os";
import { iptablesRules, NEW_TABLE, type OwnTables, ownTables, tablesOf, transition } from "./iptables.ts";
import { NFT_REMOVAL, NFT_TABLE, nftRules, withoutLearnt } from "./nft.ts";
import { isRouting, markMask, ROUTE_PROTOCOL, routeOf, ruleOf } from "./marks.ts";
import type { FirewallPlan } from "./plan.ts";
import { FIREWALL_BACKENDS, type FirewallBackend, iptablesTool, missing, must, noneWorks, type Ran, Refusal, requireCapable, run, tool } from "./tools.ts";

export const LEARN_NEEDS_NFT =
  'connect.learn needs nft: set backend = "nft" in [firewall] (apt-get install nftables), or learn = false in [connect]';

export const NONE: OwnTables = new Map();
export const FAMILIES = [4, 6] as const;

/** The rules as the tool would list them: by family, or under 0 for both. */
export type Listing = ReadonlyMap<0 | 4 | 6, readonly string[]>;

export const nftLines = (text: string): string[] => text.split("\n").map((line) => line.trim()).filter((line) => line !== "");

export function tableLines(tables: OwnTables): string[] {
  return [...tables].flatMap(([table, { rules }]) => rules.map((rule) => `${table}: ${rule}`)).sort(byChain);
}

/** Chains are listed in any order, the rules of one in theirs: the sort is stable. */
function byChain(one: string, other: string): number {
  const chain = (line: string): string => line.split(" ").slice(0, 3).join(" ");
  return chain(one) < chain(other) ? -1 : chain(one) > chain(other) ? 1 : 0;
}

/** Legacy tools make tables by looking at them: they are asked only where there are some. */
export async function saved(backend: FirewallBackend, family: 4 | 6): Promise<string> {
  const save = iptablesTool(backend, family, "-save");
  if (tool(save) === null) return "";
  if (backend === "iptables-legacy" && !hasLegacyTables(family)) return "";
  return (await run(save, [])).out;
}

function hasLegacyTables(family: 4 | 6): boolean {
  const names = `/proc/net/ip${family === 4 ? "" : "6"}_tables_names`;
  try {
    return readFileSync(names, "utf8").trim() !== "";
  } catch {
    // There are none; or only root may know, and then the tool itself may do nothing either.
    return false;
  }
}

export async function present(backend: FirewallBackend): Promise<Listing> {
  const listing = new Map<0 | 4 | 6, readonly string[]>();
  if (backend === "nft") {
    const ran = await run("nft", ["list", "table", ...NFT_TABLE.split(" ")]);
    if (ran.ok) listing.set(0, nftLines(withoutLearnt(ran.out)));
  } else {
    for (const family of FAMILIES) {
      const lines = tableLines(ownTables(await saved(backend, family)));
      if (lines.length > 0) listing.set(family, lines);
    }
  }
  return listing;
}

/** What is missing, what is too much, by family. [] = the same. */
export function compared(wanted: Listing, found: Listing): string[] {
  return [...new Set([...wanted.keys(), ...found.keys()])].flatMap((key) => {
    const name = key === 0 ? "" : `IPv${key} `;
    return differences(wanted.get(key) ?? [], found.get(key) ?? []).map((line) => line.replace(/^(.) /, `$1 ${name}`));
  });
}

/** "- " what is missing, "+ " what is too much, "~" where only the order is another. */
export function differences(wanted: readonly string[], found: readonly string[]): string[] {
  const rest = [...found];
  const lacking: string[] = [];
  for (const line of wanted) {
    const at = rest.indexOf(line);
    if (at === -1) lacking.push(`- ${line}`);
    else rest.splice(at, 1);
  }
  const lines = [...lacking, ...rest.map((line) => `+ ${line}`)];
  const moved = lines.length === 0 && wanted.some((line, i) => line !== found[i]);
  return moved ? ["~ the same rules in another order"] : lines;
}

// ---------------------------------------------------------------------------------------------
// Changes.

/** Whether the tool would take the rules, as far as can be told without setting them: null, or why not. */
export async function tryOut(backend: FirewallBackend, plan: FirewallPlan): Promise<string | null> {
  if (backend === "nft") {
    if (tool("nft") === null) return missing(backend);
    const ran = await run("nft", ["--check", "-f", "-"], nftRules(plan));
    return ran.ok ? null : nftSaid(ran, plan);
  }
  if (plan.learns) return LEARN_NEEDS_NFT;
  if (backend === "iptables-legacy" && process.geteuid?.() !== 0) {
    return "iptables-legacy tells its tables to root only; set another backend in [firewall], or run as root";
  }
  for (const family of plan.families) {
    const name = iptablesTool(backend, family.family, "-restore");
    if (tool(name) === null) return missing(backend);
    const ran = await run(name, ["--test", "--noflush"], transition(NONE, iptablesRules(plan, family)));
    if (!ran.ok) return `${name}: ${ran.said}`;
  }
  return null;
}

/** The first that takes the rules, as far as can be told without setting them. Throws a Refusal. */
export async function usable(backends: readonly FirewallBackend[], plan: FirewallPlan): Promise<FirewallBackend> {
  requireCapable();
  const wrong: string[] = [];
  for (const backend of backends) {
    const why = await tryOut(backend, plan);
    if (why === null) return backend;
    wrong.push(why);
  }
  throw noneWorks(backends, wrong);
}

/** Something of ours is there, whoever set it. */
export async function isAnyPresent(): Promise<boolean> {
  for (const backend of FIREWALL_BACKENDS) if ((await present(backend)).size > 0) return true;
  return isAnyRouted();
}

/** Of rules that nft did not take. Of a queue, and of a cgroup, it says but "No such file or directory". */
export const nftSaid = ({ said }: Ran, { queues, excludeCgroups }: FirewallPlan): string =>
  queues !== null && / queue /.test(said)
    ? `nft cannot queue in this kernel (NFT_QUEUE), as connect.truthful needs; set backend = "iptables" in [firewall]: ${said}`
    : excludeCgroups.length > 0 && /cgroupv2 path fails/.test(said)
      ? `a cgroup of exclude_cgroups in [firewall] does not exist now, see: systemd-cgls; nft: ${said}`
      : `nft: ${said}`;

export async function apply(backend: FirewallBackend, plan: FirewallPlan): Promise<void> {
  // What delivers comes before what is delivered, and goes after it.
  if (isRouting(plan)) {
    await requireFreeTable(plan);
    await route(plan);
  }
  if (backend === "nft") must(await run("nft", ["-f", "-"], nftRules(plan)), "nft");
  else await applyTables(backend, plan);
  if (!isRouting(plan)) await route(null);
}

async function applyTables(backend: FirewallBackend, plan: FirewallPlan): Promise<void> {
  const done: { family: 4 | 6; before: OwnTables }[] = [];
  for (const family of FAMILIES) {
    const text = await saved(backend, family);
    const before = ownTables(text);
    const familyPlan = plan.families.find((each) => each.family === family);
    const wanted = familyPlan === undefined ? NONE : withNewTables(iptablesRules(plan, familyPlan), before, text, backend);
    const ran = await restore(backend, family, before, wanted);
    if (!ran.ok) {
      for (const { family: other, before: old } of done) {
        const now = ownTables(await saved(backend, other));
        await restore(backend, other, now, old);
        await dropEmpty(backend, other, now);
      }
      if (done.every(({ before: old }) => old.size === 0) && before.size === 0) await route(null);
      must(ran, iptablesTool(backend, family, "-restore"));
    }
    done.push({ family, before });
  }
}

async function restore(backend: FirewallBackend, family: 4 | 6, from: OwnTables, to: OwnTables): Promise<Ran> {
  const text = transition(from, to);
  if (text === "") return { ok: true, out: "", said: "" };
  const wait = backend === "iptables-legacy" ? ["-w"] : [];
  return run(iptablesTool(backend, family, "-restore"), ["--noflush", ...wait], text);
}

function withNewTables(wanted: OwnTables, before: OwnTables, text: string, backend: FirewallBackend): OwnTables {
  if (backend !== "iptables") return wanted;
  const there = tablesOf(text);
  return new Map([...wanted].map(([table, { chains, rules }]) => {
    const isNew = !there.includes(table) || before.get(table)?.chains.includes(NEW_TABLE);
    return [table, { chains: isNew ? [...chains, NEW_TABLE] : chains, rules }];
  }));
}

/** Everything of ours, but for what `kept` has set. */
export async function removeAll(kept: FirewallBackend | null): Promise<void> {
  if (kept !== "nft" && tool("nft") !== null) {
    const there = await run("nft", ["list", "tables"]);
    // A kernel without nf_tables has no table of ours.
    if (there.ok && there.out.includes(`table ${NFT_TABLE}\n`)) must(await run("nft", ["-f", "-"], NFT_REMOVAL), "nft");
    else if (!there.ok) requireCapable();
  }
  for (const backend of ["iptables", "iptables-legacy"] as const) {
    if (kept === backend) continue;
    for (const family of FAMILIES) {
      const before = ownTables(await saved(backend, family));
      must(await restore(backend, family, before, NONE), iptablesTool(backend, family, "-restore"));
      await dropEmpty(backend, family, before);
    }
  }
  if (kept === null) await route(null);
}

/** Where REDIRECT leads what this host itself connects to. */
const LOOPBACK = { 4: "127.0.0.1", 6: "::1" } as const;

/**
 * After the plan's rules have gone. With the last rule that needs it the kernel stops to track
 * connections: it does not see the end of those that stood, keeps them for days, and would lead a new
 * one, from the same port to the same destination, to where they went. conntrack(8) is not on every
 * host; where it is not, they stay.
 */
export async function forgetRedirected({ mode, output, interfaces, families }: FirewallPlan): Promise<void> {
  if (mode !== "redirect" || tool("conntrack") === null) return;
  const all = networkInterfaces();
  for (const { family, port } of families) {
    const theirs = interfaces.flatMap((name) => (all[name] ?? []).filter((each) => each.family === `IPv${family}`).map(({ address }) => address));
    for (const address of new Set(output ? [LOOPBACK[family], ...theirs] : theirs)) {
      // It fails where there is none.
      await run("conntrack", ["-D", "-f", `ipv${family}`, "-p", "tcp", "-r", address, "--reply-port-src", `${port}`]);
    }
  }
}

/** iptables-nft makes a table for the first rule and leaves it: a table that we brought goes too. */
async function dropEmpty(backend: FirewallBackend, family: 4 | 6, before: OwnTables): Promise<void> {
  if (backend !== "iptables") return;
  for (const [table, { chains }] of before) {
    if (!chains.includes(NEW_TABLE)) continue;
    const text = (await run(iptablesTool(backend, family, "-save"), ["-t", table])).out;
    const isEmpty = !/^-A|^:\S+ (?!ACCEPT)/m.test(text);
    if (isEmpty) await run("nft", ["delete", "table", family === 4 ? "ip" : "ip6", table]);
  }
}

interface IpRule { readonly priority: number; readonly fwmark?: string; readonly fwmask?: string; readonly table: string; readonly protocol?: string }

async function rulesOf(family: 4 | 6): Promise<IpRule[]> {
  const ran = await run("ip", ["-json", `-${family}`, "rule"]);
  const all = ran.ok && ran.out.trim() !== "" ? (JSON.parse(ran.out) as IpRule[]) : [];
  return all.filter(({ protocol }) => protocol === `${ROUTE_PROTOCOL}`);
}

export const isAnyRouted = async (): Promise<boolean> => (await Promise.all(FAMILIES.map(rulesOf))).flat().length > 0;

export async function isRouted(family: 4 | 6, plan: FirewallPlan): Promise<boolean> {
  const rules = await rulesOf(family);
  if (!rules.some(({ fwmark, fwmask = "0xffffffff", table }) => Number(fwmark) === plan.mark && Number(fwmask) === markMask(plan) && table === `${plan.table}`)) return false;
  return (await routesIn(family, plan)).includes(`proto ${ROUTE_PROTOCOL}`);
}

const routesIn = async (family: 4 | 6, { table }: FirewallPlan): Promise<string> =>
  (await run("ip", [`-${family}`, "route", "show", "table", `${table}`])).out.trim();

async function requireFreeTable(plan: FirewallPlan): Promise<void> {
  for (const { family } of plan.families) {
    const routes = (await routesIn(family, plan)).split("\n");
    const foreign = routes.find((line) => line !== "" && !line.includes(`proto ${ROUTE_PROTOCOL}`));
    if (foreign !== undefined) {
      throw new Refusal(`routing table ${plan.table} is somebody else's (${foreign.trim()}); set another tproxy_table in [firewall]`);
    }
  }
}

/** Rules and routes of ours are those of the plan, and no others. null: none. */
async function route(plan: FirewallPlan | null): Promise<void> {
  for (const family of FAMILIES) {
    const wanted = plan !== null && isRouting(plan) && plan.families.some((each) => each.family === family);
    const right = wanted && await isRouted(family, plan!);
    const rules = await rulesOf(family);
    if (right && rules.length === 1) continue;
    for (const { priority, table } of rules) {
      await run("ip", [`-${family}`, "route", "flush", "table", table, "protocol", `${ROUTE_PROTOCOL}`]);
      await run("ip", [`-${family}`, "rule", "delete", "priority", `${priority}`, "protocol", `${ROUTE_PROTOCOL}`]);
    }
    if (!wanted) continue;
    must(await run("ip", [`-${family}`, "route", "replace", ...routeOf(plan!).split(" ")]), "ip route");
    must(await run("ip", [`-${family}`, "rule", "add", ...ruleOf(plan!).split(" ")]), "ip rule");
  }
}

