/**
 * The firewall's rules and this host: finds what can set them, sets, removes and compares them. All
 * through the tools of the host (nft, iptables-restore, ip). Touches the table `inet transplice`,
 * chains called TRANSPLICE_*, and ip rules and routes of protocol 181; nothing else.
 *
 * Rules are first loaded into a network namespace made for that, which is gone at once: so it shows
 * whether this kernel can have them before anything is changed, and in what words the tool will
 * list them, which is what status compares.
 */
import { spawnSync } from "node:child_process";
import { lookup } from "node:dns/promises";
import { existsSync, readFileSync } from "node:fs";
import { networkInterfaces } from "node:os";
import type { Config } from "../config/config.ts";
import { socketAddress } from "../config/endpoint.ts";
import { iptablesRules, NEW_TABLE, type OwnTables, ownTables, tablesOf, transition } from "./firewall-iptables.ts";
import { NFT_REMOVAL, NFT_TABLE, nftRules } from "./firewall-nft.ts";
import { type FirewallPlan, firewallPlan } from "./firewall-plan.ts";

export type FirewallBackend = "nft" | "iptables" | "iptables-legacy";
export type FirewallAction = "print" | "apply" | "remove" | "status" | "check";
export const FIREWALL_ACTIONS: readonly FirewallAction[] = ["print", "apply", "remove", "status", "check"];
export const FIREWALL_BACKENDS: readonly FirewallBackend[] = ["nft", "iptables", "iptables-legacy"];

/** What is to be said, and the exit code. */
export interface Outcome {
  readonly out: string;
  readonly wrong: string;
  readonly code: number;
}

/** By which ip rules and routes of ours are known (rtm_protocol): no routing daemon's number. */
const PROTOCOL = 181;
const PATHS = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/local/bin"];
const INSTALL = { nft: "nftables", iptables: "iptables", "iptables-legacy": "iptables" } as const;
const CAP_NET_ADMIN = 12;
const NONE: OwnTables = new Map();

/** With words for the operator. */
class Refusal extends Error {}

interface Ran {
  readonly ok: boolean;
  readonly out: string;
  readonly said: string;
}

export async function firewall(
  action: FirewallAction, config: Config, asked: FirewallBackend | null,
): Promise<Outcome> {
  try {
    const backends = asked === null
      ? config.firewall.backend === "auto" ? FIREWALL_BACKENDS : [config.firewall.backend]
      : [asked];
    switch (action) {
      case "remove":
        // Whatever the configuration says now, nothing of ours stays.
        removeAll(null);
        return said("removed\n");
      case "print": {
        const plan = await planned(config);
        return said(rendered(backends.length > 1 ? "nft" : backends[0]!, plan));
      }
      case "apply": {
        const plan = await planned(config);
        const backend = chosen(backends, plan).backend;
        apply(backend, plan);
        removeAll(backend);
        return said(`engaged (${backend})\n`);
      }
      case "status":
        return status(backends, await planned(config));
      case "check":
        return await check(backends, config);
    }
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    return { out: "", wrong: `transplice: firewall: ${error.message}\n`, code: action === "status" ? 4 : 1 };
  }
}

const said = (out: string, code = 0): Outcome => ({ out, wrong: "", code });

async function planned(config: Config): Promise<FirewallPlan> {
  const families = existsSync("/proc/net/if_inet6") ? ([4, 6] as const) : ([4] as const);
  const result = firewallPlan(config, { upstream: await upstreamAddresses(config), families, uid: uidOf });
  if ("wrong" in result) throw new Refusal(result.wrong);
  return result.plan;
}

async function upstreamAddresses({ upstream }: Config): Promise<string[]> {
  if (upstream === null || upstream.kind === "direct") return [];
  if (socketAddress(upstream.host, upstream.port) !== null) return [upstream.host.replace(/%.*/, "")];
  try {
    return (await lookup(upstream.host, { all: true })).map(({ address }) => address);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    throw new Refusal(`the upstream ${upstream.host} has no address now (${code}); try: getent hosts ${upstream.host}`);
  }
}

function uidOf(name: string): number | null {
  if (/^[0-9]+$/.test(name)) return Number(name);
  const found = readFileSync("/etc/passwd", "utf8").split("\n").find((line) => line.startsWith(`${name}:`));
  // Users that are not in the file: LDAP and the like.
  const line = found ?? run("getent", ["passwd", name]).out;
  const uid = line.split(":")[2];
  return uid === undefined ? null : Number(uid);
}

// ---------------------------------------------------------------------------------------------
// The tools.

function tool(name: string): string | null {
  return PATHS.map((path) => `${path}/${name}`).find((path) => existsSync(path)) ?? null;
}

function run(name: string, args: readonly string[], input = ""): Ran {
  const path = tool(name);
  if (path === null) return { ok: false, out: "", said: `there is no ${name} here` };
  const env = { LC_ALL: "C", PATH: PATHS.join(":") };
  const result = spawnSync(path, args, { encoding: "utf8", input, env, timeout: 30_000, maxBuffer: 1 << 26 });
  const words = (result.error?.message ?? result.stderr).trim().replaceAll(/\s*\n\s*/g, "; ");
  return { ok: result.status === 0, out: result.stdout ?? "", said: words };
}

function must(ran: Ran, what: string): string {
  if (ran.ok) return ran.out;
  if (!isCapable()) throw new Refusal("this needs CAP_NET_ADMIN; run it as root: sudo transplice firewall ...");
  throw new Refusal(`${what}: ${ran.said}`);
}

const isCapable = (): boolean => {
  const held = /^CapEff:\s*([0-9a-f]+)/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1] ?? "0";
  return ((BigInt(`0x${held}`) >> BigInt(CAP_NET_ADMIN)) & 1n) === 1n;
};

/** iptables-nft, ip6tables-legacy-save...: the variant by its name, or what the plain name is. */
function iptablesTool(backend: FirewallBackend, family: 4 | 6, end: "" | "-save" | "-restore"): string {
  const base = family === 4 ? "iptables" : "ip6tables";
  const named = `${base}${backend === "iptables" ? "-nft" : "-legacy"}${end}`;
  if (tool(named) !== null) return named;
  const isNft = run(base, ["--version"]).out.includes("nf_tables");
  return isNft === (backend === "iptables") ? `${base}${end}` : named;
}

// ---------------------------------------------------------------------------------------------
// What is there, what shall be, what is chosen.

function rendered(backend: FirewallBackend, plan: FirewallPlan): string {
  const routes = plan.mode === "tproxy"
    ? plan.families.map(({ family }) => `# ip -${family} rule add ${ruleOf(plan)}\n# ip -${family} route add ${routeOf(plan)}\n`).join("")
    : "";
  if (backend === "nft") return `${nftRules(plan)}${routes}`;
  const parts = plan.families.map((family) =>
    `# ${iptablesTool(backend, family.family, "-restore")} --noflush\n${transition(NONE, iptablesRules(plan, family))}`);
  return `${parts.join("")}${routes}`;
}

/** The rules as the tool would list them: by family, or under 0 for both. */
type Listing = ReadonlyMap<0 | 4 | 6, readonly string[]>;

function trial(backend: FirewallBackend, plan: FirewallPlan): { listing: Listing } | { wrong: string } {
  const listing = new Map<0 | 4 | 6, readonly string[]>();
  if (backend === "nft") {
    if (tool("nft") === null) return { wrong: missing(backend) };
    const ran = run("unshare", ["--net", "sh", "-c", `nft -f - && nft list table ${NFT_TABLE}`], nftRules(plan));
    if (!ran.ok) return { wrong: `nft: ${ran.said}` };
    listing.set(0, nftLines(ran.out));
    return { listing };
  }
  for (const family of plan.families) {
    const [restore, save] = (["-restore", "-save"] as const).map((end) => iptablesTool(backend, family.family, end));
    if (tool(restore!) === null) return { wrong: missing(backend) };
    const rules = transition(NONE, iptablesRules(plan, family));
    const ran = run("unshare", ["--net", "sh", "-c", `${restore} --noflush && ${save}`], rules);
    if (!ran.ok) return { wrong: `${restore}: ${ran.said}` };
    listing.set(family.family, tableLines(ownTables(ran.out)));
  }
  return { listing };
}

const missing = (backend: FirewallBackend): string =>
  `${backend} is not installed; to install it: apt-get install ${INSTALL[backend]} (or dnf, apk, pacman)`;

const nftLines = (text: string): string[] => text.split("\n").map((line) => line.trim()).filter((line) => line !== "");

function tableLines(tables: OwnTables): string[] {
  return [...tables].flatMap(([table, { rules }]) => rules.map((rule) => `${table}: ${rule}`)).sort(byChain);
}

/** Chains are listed in any order, the rules of one in theirs: the sort is stable. */
function byChain(one: string, other: string): number {
  const chain = (line: string): string => line.split(" ").slice(0, 3).join(" ");
  return chain(one) < chain(other) ? -1 : chain(one) > chain(other) ? 1 : 0;
}

function chosen(
  backends: readonly FirewallBackend[], plan: FirewallPlan,
): { backend: FirewallBackend; listing: Listing } {
  if (!isCapable()) throw new Refusal("this needs CAP_NET_ADMIN; run it as root: sudo transplice firewall ...");
  const wrong: string[] = [];
  for (const backend of backends) {
    const tried = trial(backend, plan);
    if ("listing" in tried) return { backend, listing: tried.listing };
    wrong.push(tried.wrong);
  }
  throw new Refusal(`no backend works here: ${wrong.join(" | ")}`);
}

/** Legacy tools make tables by looking at them: they are asked only where there are some. */
function saved(backend: FirewallBackend, family: 4 | 6): string {
  const save = iptablesTool(backend, family, "-save");
  if (tool(save) === null) return "";
  if (backend === "iptables-legacy") {
    const names = `/proc/net/ip${family === 4 ? "" : "6"}_tables_names`;
    if (!existsSync(names) || readFileSync(names, "utf8").trim() === "") return "";
  }
  return run(save, []).out;
}

const FAMILIES = [4, 6] as const;

function present(backend: FirewallBackend): Listing {
  const listing = new Map<0 | 4 | 6, readonly string[]>();
  if (backend === "nft") {
    const ran = run("nft", ["list", "table", ...NFT_TABLE.split(" ")]);
    if (ran.ok) listing.set(0, nftLines(ran.out));
  } else {
    for (const family of FAMILIES) {
      const lines = tableLines(ownTables(saved(backend, family)));
      if (lines.length > 0) listing.set(family, lines);
    }
  }
  return listing;
}

// ---------------------------------------------------------------------------------------------
// Changes.

function apply(backend: FirewallBackend, plan: FirewallPlan): void {
  // What delivers comes before what is delivered.
  if (plan.mode === "tproxy") requireFreeTable(plan);
  route(plan);
  if (backend === "nft") {
    must(run("nft", ["-f", "-"], nftRules(plan)), "nft");
    return;
  }
  const done: { family: 4 | 6; before: OwnTables }[] = [];
  for (const family of FAMILIES) {
    const text = saved(backend, family);
    const before = ownTables(text);
    const familyPlan = plan.families.find((each) => each.family === family);
    const wanted = familyPlan === undefined ? NONE : withNewTables(iptablesRules(plan, familyPlan), before, text, backend);
    const ran = restore(backend, family, before, wanted);
    if (!ran.ok) {
      for (const { family: other, before: old } of done) {
        const now = ownTables(saved(backend, other));
        restore(backend, other, now, old);
        dropEmpty(backend, other, now);
      }
      if (done.every(({ before: old }) => old.size === 0) && before.size === 0) route(null);
      must(ran, iptablesTool(backend, family, "-restore"));
    }
    done.push({ family, before });
  }
}

function restore(backend: FirewallBackend, family: 4 | 6, from: OwnTables, to: OwnTables): Ran {
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
function removeAll(kept: FirewallBackend | null): void {
  if (kept !== "nft" && tool("nft") !== null) {
    const there = run("nft", ["list", "tables"]);
    // A kernel without nf_tables has no table of ours.
    if (there.ok && there.out.includes(`table ${NFT_TABLE}\n`)) must(run("nft", ["-f", "-"], NFT_REMOVAL), "nft");
    else if (!isCapable()) must(there, "nft");
  }
  for (const backend of ["iptables", "iptables-legacy"] as const) {
    if (kept === backend) continue;
    for (const family of FAMILIES) {
      const before = ownTables(saved(backend, family));
      must(restore(backend, family, before, NONE), iptablesTool(backend, family, "-restore"));
      dropEmpty(backend, family, before);
    }
  }
  if (kept === null) route(null);
}

/** iptables-nft makes a table for the first rule and leaves it: a table that we brought goes too. */
function dropEmpty(backend: FirewallBackend, family: 4 | 6, before: OwnTables): void {
  if (backend !== "iptables") return;
  for (const [table, { chains }] of before) {
    if (!chains.includes(NEW_TABLE)) continue;
    const text = run(iptablesTool(backend, family, "-save"), ["-t", table]).out;
    const isEmpty = !/^-A|^:\S+ (?!ACCEPT)/m.test(text);
    if (isEmpty) run("nft", ["delete", "table", family === 4 ? "ip" : "ip6", table]);
  }
}

const ruleOf = ({ mark, table }: FirewallPlan): string => `fwmark 0x${mark.toString(16)} lookup ${table} protocol ${PROTOCOL}`;
const routeOf = ({ table }: FirewallPlan): string => `local default dev lo table ${table} protocol ${PROTOCOL}`;

interface IpRule { readonly priority: number; readonly fwmark?: string; readonly table: string; readonly protocol?: string }

const rulesOf = (family: 4 | 6): IpRule[] => {
  const ran = run("ip", ["-json", `-${family}`, "rule"]);
  const all = ran.ok && ran.out.trim() !== "" ? (JSON.parse(ran.out) as IpRule[]) : [];
  return all.filter(({ protocol }) => protocol === `${PROTOCOL}`);
};

const isRouted = (family: 4 | 6, plan: FirewallPlan): boolean =>
  rulesOf(family).some(({ fwmark, table }) => Number(fwmark) === plan.mark && table === `${plan.table}`) &&
  run("ip", [`-${family}`, "route", "show", "table", `${plan.table}`]).out.includes(`proto ${PROTOCOL}`);

function requireFreeTable(plan: FirewallPlan): void {
  for (const { family } of plan.families) {
    const routes = run("ip", [`-${family}`, "route", "show", "table", `${plan.table}`]).out.trim().split("\n");
    const foreign = routes.find((line) => line !== "" && !line.includes(`proto ${PROTOCOL}`));
    if (foreign !== undefined) {
      throw new Refusal(`routing table ${plan.table} is somebody else's (${foreign.trim()}); set another tproxy_table in [firewall]`);
    }
  }
}

/** Rules and routes of ours are those of the plan, and no others. null: none. */
function route(plan: FirewallPlan | null): void {
  for (const family of FAMILIES) {
    const wanted = plan?.mode === "tproxy" && plan.families.some((each) => each.family === family);
    const right = wanted && isRouted(family, plan!);
    const rules = rulesOf(family);
    if (right && rules.length === 1) continue;
    for (const { priority, table } of rules) {
      run("ip", [`-${family}`, "route", "flush", "table", table, "protocol", `${PROTOCOL}`]);
      run("ip", [`-${family}`, "rule", "delete", "priority", `${priority}`, "protocol", `${PROTOCOL}`]);
    }
    if (!wanted) continue;
    must(run("ip", [`-${family}`, "route", "replace", ...routeOf(plan!).split(" ")]), "ip route");
    must(run("ip", [`-${family}`, "rule", "add", ...ruleOf(plan!).split(" ")]), "ip rule");
  }
}

// ---------------------------------------------------------------------------------------------
// Questions.

function status(backends: readonly FirewallBackend[], plan: FirewallPlan): Outcome {
  if (!isCapable()) throw new Refusal("this needs CAP_NET_ADMIN; run it as root: sudo transplice firewall ...");
  const engaged = FIREWALL_BACKENDS.filter((backend) => present(backend).size > 0);
  const routed = FAMILIES.flatMap(rulesOf).length > 0;
  if (engaged.length === 0 && !routed) return said("absent\n", 3);
  const backend = engaged.find((each) => backends.includes(each)) ?? backends[0]!;
  const tried = trial(backend, plan);
  if ("wrong" in tried) throw new Refusal(`cannot compare: ${tried.wrong}`);
  const there = present(backend);
  const lines = engaged.filter((each) => each !== backend).map((each) => `+ rules of ${each}`);
  for (const key of new Set([...tried.listing.keys(), ...there.keys()])) {
    const name = key === 0 ? "" : `IPv${key} `;
    lines.push(...differences(tried.listing.get(key) ?? [], there.get(key) ?? []).map((line) => line.replace(/^(.) /, `$1 ${name}`)));
  }
  for (const { family } of plan.families) {
    if (plan.mode === "tproxy" && !isRouted(family, plan)) lines.push(`- ip -${family} rule ${ruleOf(plan)}`);
  }
  if (lines.length === 0) return said(`engaged (${backend})\n`);
  return said(`differs (${backend}); to mend it: transplice firewall apply\n${lines.join("\n")}\n`, 1);
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

async function check(backends: readonly FirewallBackend[], config: Config): Promise<Outcome> {
  const wrong: string[] = [];
  let plan: FirewallPlan | null = null;
  try {
    plan = await planned(config);
    const { backend } = chosen(backends, plan);
    if (tool("ip") === null && plan.mode === "tproxy") wrong.push("there is no ip here; run: apt-get install iproute2");
    wrong.push(...findings(config, plan, await upstreamAddresses(config)));
    if (wrong.length === 0) return said(`${backend}: nothing is missing\n`);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    wrong.push(error.message);
    if (plan?.mode === "redirect" && !existsSync("/proc/sys/net/netfilter/nf_conntrack_max")) {
      wrong.push("REDIRECT needs conntrack, which the kernel does not have loaded; run: modprobe nf_conntrack");
    }
  }
  return said(wrong.map((line) => `${line}\n`).join(""), 1);
}

function findings(config: Config, plan: FirewallPlan, upstream: readonly string[]): string[] {
  const lines: string[] = [];
  const has = (family: 4 | 6): boolean => plan.families.some((each) => each.family === family);
  const sysctl = (name: string): string => {
    const path = `/proc/sys/${name}`;
    return existsSync(path) ? readFileSync(path, "utf8").trim() : "";
  };
  if (plan.interfaces.length > 0) {
    if (has(4) && sysctl("net/ipv4/ip_forward") === "0") {
      lines.push("this host forwards no IPv4, as a gateway must; run: sysctl -w net.ipv4.ip_forward=1");
    }
    if (has(6) && sysctl("net/ipv6/conf/all/forwarding") === "0") {
      lines.push("this host forwards no IPv6, as a gateway must; run: sysctl -w net.ipv6.conf.all.forwarding=1");
    }
    for (const name of plan.interfaces) {
      if (!existsSync(`/sys/class/net/${name}`) && networkInterfaces()[name] === undefined) {
        lines.push(`there is no interface ${name} (interfaces in [firewall]); run: ip link`);
      }
    }
    for (const { family, address } of plan.families) {
      const loopback = address.startsWith("127.") || address === "::1";
      const isWild = config.listen.some(({ dualStack }) => dualStack);
      if (plan.mode === "redirect" && loopback && !isWild) {
        lines.push(`clients of ${plan.interfaces.join(", ")} are redirected to that interface's IPv${family} address, where nothing listens; set listen = ":${plan.families[0]!.port}"`);
      }
    }
  }
  if (plan.mode === "redirect" && plan.output) {
    for (const { family, address } of plan.families) {
      if (address.startsWith("127.") || address === "::1") continue;
      lines.push(`this host's own programs are redirected to IPv${family} loopback, where nothing listens; add "localhost:${plan.families[0]!.port}" to listen`);
    }
  }
  if (plan.mode === "tproxy" && has(4)) {
    for (const name of [...(plan.output ? ["lo"] : []), ...plan.interfaces]) {
      const filter = Math.max(Number(sysctl("net/ipv4/conf/all/rp_filter")), Number(sysctl(`net/ipv4/conf/${name}/rp_filter`)));
      if (filter === 1) {
        lines.push(`rp_filter on ${name} may drop what TPROXY delivers; run: sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.${name}.rp_filter=2`);
      }
    }
  }
  const own = Object.values(networkInterfaces()).flatMap((list) => (list ?? []).map(({ address }) => address));
  const local = upstream.find((address) => own.includes(address));
  if (local !== undefined && plan.output && plan.excludeUsers.length + plan.excludeCgroups.length === 0) {
    lines.push(`the upstream ${local} is on this host, and its own connections would be redirected back to it; set exclude_users = ["ITS-USER"] in [firewall]; to find it: ss -tlnp`);
  }
  const sixes = existsSync("/proc/net/if_inet6") && /^(?!fe80|0{31}1)/m.test(readFileSync("/proc/net/if_inet6", "utf8").trim());
  if (has(4) && !has(6) && sixes) {
    lines.push(`IPv4 is redirected, and IPv6 goes past transplice; add "[::1]:${plan.families[0]!.port}" to listen`);
  }
  return lines;
}
