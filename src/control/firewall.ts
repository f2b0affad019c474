/**
 * The firewall's rules and this host: finds what can set them, sets, removes and compares them. All
 * through the tools of the host (nft, iptables-restore, ip). Touches the table `inet transplice`,
 * chains called TRANSPLICE_*, and ip rules and routes of protocol 181; nothing else.
 *
 * Rules are first loaded into a network namespace made for that, which is gone at once: so it shows
 * whether this kernel can have them before anything is changed, and in what words the tool will
 * list them, which is what status compares.
 */
import { lookup } from "node:dns/promises";
import { existsSync, readFileSync } from "node:fs";
import { availableParallelism, networkInterfaces } from "node:os";
import type { Config, Upstream } from "../config/config.ts";
import { socketAddress } from "../config/endpoint.ts";
import { iptablesRules, ownTables, transition } from "./firewall-iptables.ts";
import { apply, compared, isAnyRouted, isRouted, type Listing, nftLines, NONE, present, removeAll, tableLines } from "./firewall-kernel.ts";
import { NFT_TABLE, nftRules } from "./firewall-nft.ts";
import { type FirewallPlan, firewallPlan, isRouting, routeOf, ruleOf } from "./firewall-plan.ts";
import { FIREWALL_BACKENDS, type FirewallBackend, iptablesTool, missing, Refusal, requireCapable, run, tool } from "./firewall-tools.ts";

export type FirewallAction = "print" | "apply" | "remove" | "status" | "check";
export const FIREWALL_ACTIONS: readonly FirewallAction[] = ["print", "apply", "remove", "status", "check"];

/** What is to be said, and the exit code. */
export interface Outcome {
  readonly out: string;
  readonly wrong: string;
  readonly code: number;
}

export async function firewall(
  action: FirewallAction, config: Config, asked: FirewallBackend | null,
): Promise<Outcome> {
  try {
    const backends = asked === null ? backendsOf(config) : [asked];
    switch (action) {
      case "remove":
        // Whatever the configuration says now, nothing of ours stays.
        await removeAll(null);
        return said("removed\n");
      case "print": {
        const plan = await planned(config);
        return said(rendered(backends.length > 1 ? "nft" : backends[0]!, plan));
      }
      case "apply": {
        const plan = await planned(config);
        const { backend } = await chosen(backends, plan);
        await apply(backend, plan);
        await removeAll(backend);
        return said(`engaged (${backend})\n`);
      }
      case "status":
        return await status(backends, await planned(config));
      case "check":
        return await check(backends, config);
    }
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    return { out: "", wrong: `transplice: firewall: ${error.message}\n`, code: action === "status" ? 4 : 1 };
  }
}

const said = (out: string, code = 0): Outcome => ({ out, wrong: "", code });

export const backendsOf = ({ firewall: { backend } }: Config): readonly FirewallBackend[] =>
  backend === "auto" ? FIREWALL_BACKENDS : [backend];

/** `known`: the upstream's addresses, where somebody has looked already. Throws a Refusal. */
export async function planned(config: Config, known: readonly string[] | null = null): Promise<FirewallPlan> {
  const { users, excludeUsers, serviceUser } = config.firewall;
  const uids = new Map<string, number | null>();
  for (const name of [...users, ...excludeUsers, serviceUser]) uids.set(name, await uidOf(name));
  const families = existsSync("/proc/net/if_inet6") ? ([4, 6] as const) : ([4] as const);
  const upstream = known ?? (await upstreamAddresses(config));
  const result = firewallPlan(config, { upstream, families, cpus: availableParallelism(), uid: (name) => uids.get(name) ?? null });
  if ("wrong" in result) throw new Refusal(result.wrong);
  return result.plan;
}

async function upstreamAddresses({ upstream, relays }: Config): Promise<string[]> {
  const upstreams = [...(upstream === null ? [] : [upstream]), ...relays.map((relay) => relay.upstream)];
  return [...new Set((await Promise.all(upstreams.map(addressesOf))).flat())];
}

async function addressesOf(upstream: Upstream): Promise<string[]> {
  if (upstream.kind === "direct") return [];
  if (socketAddress(upstream.host, upstream.port) !== null) return [upstream.host.replace(/%.*/, "")];
  try {
    return (await lookup(upstream.host, { all: true })).map(({ address }) => address);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    throw new Refusal(`the upstream ${upstream.host} has no address now (${code}); try: getent hosts ${upstream.host}`);
  }
}

async function uidOf(name: string): Promise<number | null> {
  if (/^[0-9]+$/.test(name)) return Number(name);
  const found = readFileSync("/etc/passwd", "utf8").split("\n").find((line) => line.startsWith(`${name}:`));
  // Users that are not in the file: LDAP and the like.
  const line = found ?? (await run("getent", ["passwd", name])).out;
  const uid = line.split(":")[2];
  return uid === undefined ? null : Number(uid);
}

// ---------------------------------------------------------------------------------------------
// What is there, what shall be, what is chosen.

function rendered(backend: FirewallBackend, plan: FirewallPlan): string {
  const routes = isRouting(plan)
    ? plan.families.map(({ family }) => `# ip -${family} rule add ${ruleOf(plan)}\n# ip -${family} route add ${routeOf(plan)}\n`).join("")
    : "";
  if (backend === "nft") return `${nftRules(plan)}${routes}`;
  const parts = plan.families.map((family) =>
    `# ${iptablesTool(backend, family.family, "-restore")} --noflush\n${transition(NONE, iptablesRules(plan, family))}`);
  return `${parts.join("")}${routes}`;
}

async function trial(
  backend: FirewallBackend, plan: FirewallPlan,
): Promise<{ listing: Listing } | { wrong: string }> {
  const listing = new Map<0 | 4 | 6, readonly string[]>();
  if (backend === "nft") {
    if (tool("nft") === null) return { wrong: missing(backend) };
    const ran = await run("unshare", ["--net", "sh", "-c", `nft -f - && nft list table ${NFT_TABLE}`], nftRules(plan));
    if (!ran.ok) return { wrong: `nft: ${ran.said}` };
    listing.set(0, nftLines(ran.out));
    return { listing };
  }
  for (const family of plan.families) {
    const [restore, save] = (["-restore", "-save"] as const).map((end) => iptablesTool(backend, family.family, end));
    if (tool(restore!) === null) return { wrong: missing(backend) };
    const rules = transition(NONE, iptablesRules(plan, family));
    const ran = await run("unshare", ["--net", "sh", "-c", `${restore} --noflush && ${save}`], rules);
    if (!ran.ok) return { wrong: `${restore}: ${ran.said}` };
    listing.set(family.family, tableLines(ownTables(ran.out)));
  }
  return { listing };
}

async function chosen(
  backends: readonly FirewallBackend[], plan: FirewallPlan,
): Promise<{ backend: FirewallBackend; listing: Listing }> {
  requireCapable();
  const wrong: string[] = [];
  for (const backend of backends) {
    const tried = await trial(backend, plan);
    if ("listing" in tried) return { backend, listing: tried.listing };
    wrong.push(tried.wrong);
  }
  throw new Refusal(`no backend works here: ${wrong.join(" | ")}`);
}

// ---------------------------------------------------------------------------------------------
// Questions.

async function status(backends: readonly FirewallBackend[], plan: FirewallPlan): Promise<Outcome> {
  requireCapable();
  const found = new Map<FirewallBackend, Listing>();
  for (const backend of FIREWALL_BACKENDS) {
    const listing = await present(backend);
    if (listing.size > 0) found.set(backend, listing);
  }
  if (found.size === 0 && !(await isAnyRouted())) return said("absent\n", 3);
  const backend = [...found.keys()].find((each) => backends.includes(each)) ?? backends[0]!;
  const tried = await trial(backend, plan);
  if ("wrong" in tried) throw new Refusal(`cannot compare: ${tried.wrong}`);
  const lines = [...found.keys()].filter((each) => each !== backend).map((each) => `+ rules of ${each}`);
  lines.push(...compared(tried.listing, found.get(backend) ?? new Map()));
  for (const { family } of plan.families) {
    if (isRouting(plan) && !(await isRouted(family, plan))) lines.push(`- ip -${family} rule ${ruleOf(plan)}`);
  }
  if (lines.length === 0) return said(`engaged (${backend})\n`);
  return said(`differs (${backend}); to mend it: transplice firewall apply\n${lines.join("\n")}\n`, 1);
}

async function check(backends: readonly FirewallBackend[], config: Config): Promise<Outcome> {
  const wrong: string[] = [];
  let plan: FirewallPlan | null = null;
  try {
    plan = await planned(config);
    const { backend } = await chosen(backends, plan);
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
  if (plan.queues?.reject) {
    const limits = ["net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit"].filter((name) => !["", "0"].includes(sysctl(name.replaceAll(".", "/"))));
    if (limits.length > 0) {
      lines.push(`the kernel limits the ICMP errors of REJECT, and whoever gets none waits a second; run: sysctl -w ${limits.map((name) => `${name}=0`).join(" ")} net.ipv4.icmp_msgs_per_sec=1000000 net.ipv4.icmp_msgs_burst=10000; or set answer = "raw" in [connect]`);
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
