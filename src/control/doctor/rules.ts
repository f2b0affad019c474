/**
 * What stands against the firewall's rules on this host, what is wrong with those that are in the
 * kernel, and whether a connection really arrives. `transplice firewall check` asks the first of
 * these, `transplice doctor` all.
 */
import { existsSync, readFileSync } from "node:fs";
import { networkInterfaces } from "node:os";
import { ENETUNREACH, EPERM } from "../../../native-bindings/constants.ts";
import type { Syscalls } from "../../../native-bindings/syscalls.ts";
import type { Config } from "../../config/config.ts";
import { portOf, socketAddress } from "../../config/endpoint.ts";
import { parseNetwork } from "../../config/network.ts";
import { type Network, Networks } from "../../policy/network.ts";
import { addressOf } from "../../policy/own.ts";
import { type Finding, finding } from "./finding.ts";
import { backendsOf, chosen, planned, standing, upstreamAddresses } from "../firewall/firewall.ts";
import { redirections, type Redirection, takers } from "../firewall/others.ts";
import type { FirewallPlan } from "../firewall/plan.ts";
import { capable, type FirewallBackend, Refusal, tool } from "../firewall/tools.ts";
import { sysctl } from "../host.ts";
import { dial, hasRoute, landing } from "../probe.ts";

/** What the findings are about. */
export interface Setup {
  readonly config: Config;
  readonly file: string;
}

/** To change what only the operator can decide. */
export const edit = ({ file }: Pick<Setup, "file">): string => `\${EDITOR:-vi} ${shellWord(file)}`;
/** For what this user may not look at. */
export const asRoot = ({ file }: Setup): string => `sudo transplice doctor -f ${shellWord(file)}`;
export const shellWord = (text: string): string => (/^[\w./:@%+=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

export interface RulesExamined {
  /** null: none can be made. */
  readonly plan: FirewallPlan | null;
  readonly findings: readonly Finding[];
}

/** What this host lacks for the rules, whether they are set or not. */
export async function examineForRules(setup: Setup, asked: FirewallBackend | null): Promise<RulesExamined> {
  const { config } = setup;
  const findings: Finding[] = [];
  let plan: FirewallPlan;
  try {
    plan = await planned(config);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    return { plan: null, findings: [finding("broken", "rules", error.message, error.run ?? edit(setup))] };
  }
  const print = `transplice firewall print -f ${shellWord(setup.file)}`;
  const backends = asked === null ? backendsOf(config) : [asked];
  const incapable = capable();
  if (incapable !== null) findings.push(finding("unknown", "backend", incapable.message, asRoot(setup)));
  else {
    try {
      await chosen(backends, plan);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      const bare = tool("nft") === null && tool("iptables") === null;
      findings.push(finding("broken", "backend", error.message, error.run ?? (bare ? "apt-get install nftables" : `${print} | nft --check -f -`)));
    }
  }
  if (tool("ip") === null && plan.mode === "tproxy") {
    findings.push(finding("broken", "backend", "there is no ip here, which TPROXY's routes are set with", "apt-get install iproute2"));
  }
  // The trial above has had the kernel load what it has.
  if (plan.mode === "redirect" && !existsSync("/proc/sys/net/netfilter/nf_conntrack_max")) {
    findings.push(finding("broken", "conntrack-module", "REDIRECT needs connection tracking, which the kernel does not have loaded", "modprobe nf_conntrack"));
  }
  findings.push(...hostFindings(setup, plan, await upstreamAddresses(config)));
  return { plan, findings };
}

function hostFindings(setup: Setup, plan: FirewallPlan, upstream: readonly string[]): Finding[] {
  const { config } = setup;
  const found: Finding[] = [];
  const has = (family: 4 | 6): boolean => plan.families.some((each) => each.family === family);
  const { port } = plan.families[0]!;
  if (plan.interfaces.length > 0) {
    if (has(4) && sysctl("net.ipv4.ip_forward") === "0") {
      found.push(finding("broken", "ip-forward", "this host forwards no IPv4, as a gateway must", "sysctl -w net.ipv4.ip_forward=1"));
    }
    if (has(6) && sysctl("net.ipv6.conf.all.forwarding") === "0") {
      found.push(finding("broken", "ip-forward", "this host forwards no IPv6, as a gateway must", "sysctl -w net.ipv6.conf.all.forwarding=1"));
    }
    for (const [family, all] of [[4, "net.ipv4.ip_forward"], [6, "net.ipv6.conf.all.forwarding"]] as const) {
      const closed = plan.interfaces.map((name) => `net.ipv${family}.conf.${name.replaceAll(".", "/")}.forwarding`).filter((name) => sysctl(name) === "0");
      if (!has(family) || sysctl(all) === "0" || closed.length === 0) continue;
      found.push(finding("broken", "ip-forward", `this host forwards no IPv${family} that comes in by all of its interfaces (${closed.join(", ")})`, `sysctl -w ${closed.map((name) => `${name}=1`).join(" ")}`));
    }
    for (const name of plan.interfaces) {
      if (!existsSync(`/sys/class/net/${name}`) && networkInterfaces()[name] === undefined) {
        found.push(finding("broken", "interface-absent", `there is no interface ${name} (interfaces in [firewall])`, "ip link"));
      }
    }
    const isWild = config.listen.some(({ dualStack }) => dualStack);
    for (const { family, address } of plan.families) {
      if (plan.mode !== "redirect" || !isLoopback(address) || isWild) continue;
      found.push(finding("broken", "listener-address",
        `clients of ${plan.interfaces.join(", ")} are redirected to that interface's IPv${family} address, where nothing listens; set listen = ":${port}"`, edit(setup)));
    }
  }
  if (plan.mode === "redirect" && plan.output) {
    for (const { family, address } of plan.families) {
      if (isLoopback(address)) continue;
      found.push(finding("broken", "listener-address",
        `this host's own programs are redirected to IPv${family} loopback, where nothing listens; add "localhost:${port}" to listen`, edit(setup)));
    }
  }
  if (plan.queues?.reject || plan.learns) {
    const limits = ["net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit"].filter((name) => !["0", null].includes(sysctl(name)));
    if (limits.length > 0) {
      found.push(finding("risk", "icmp-ratelimit",
        `the kernel limits the ICMP errors of REJECT, and whoever gets none waits a second${plan.learns ? "" : '; or set answer = "raw" in [connect]'}`,
        `sysctl -w ${limits.map((name) => `${name}=0`).join(" ")} net.ipv4.icmp_msgs_per_sec=1000000 net.ipv4.icmp_msgs_burst=10000`));
    }
  }
  if (plan.mode === "tproxy" && has(4)) {
    for (const name of [...(plan.output ? ["lo"] : []), ...plan.interfaces]) {
      const filter = Math.max(Number(sysctl("net.ipv4.conf.all.rp_filter")), Number(sysctl(`net.ipv4.conf.${name.replaceAll(".", "/")}.rp_filter`)));
      if (filter !== 1) continue;
      found.push(finding("risk", "rp-filter", `rp_filter on ${name} may drop what TPROXY delivers`,
        `sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.${name.replaceAll(".", "/")}.rp_filter=2`));
    }
  }
  const own = Object.values(networkInterfaces()).flatMap((list) => (list ?? []).map(({ address }) => address));
  const local = upstream.find((address) => own.includes(address));
  if (local !== undefined && plan.output && plan.excludeUsers.length + plan.excludeCgroups.length === 0) {
    found.push(finding("broken", "upstream-local",
      `the upstream ${local} is on this host, and its own connections would be redirected back to it; set exclude_users = ["ITS-USER"] in [firewall]`, "ss -tlnp"));
  }
  if (has(4) && !has(6) && hasGlobalIPv6()) {
    found.push(finding("broken", "ipv6-hole", `IPv4 is redirected, and IPv6 goes past transplice; add "[::1]:${port}" to listen`, edit(setup)));
  }
  const [ipv4, ipv6] = ([4, 6] as const).map((family) => plan.families.find((each) => each.family === family));
  if (ipv4?.include?.includes("0.0.0.0/0") && ipv6?.include?.length === 0 && ipv6.lifted.length === 0 && hasGlobalIPv6()) {
    found.push(finding("risk", "ipv6-hole", 'include in [firewall] names all of IPv4 and nothing of IPv6, which goes past transplice; add "::/0" to it', edit(setup)));
  }
  return found;
}

const isLoopback = (address: string): boolean => address.startsWith("127.") || address === "::1";

const hasGlobalIPv6 = (): boolean =>
  existsSync("/proc/net/if_inet6") && /^(?!fe80|0{31}1)/m.test(readFileSync("/proc/net/if_inet6", "utf8").trim());

/** `transplice firewall check`. */
export async function checkRules(setup: Setup, asked: FirewallBackend | null): Promise<readonly Finding[]> {
  return (await examineForRules(setup, asked)).findings;
}

// ---------------------------------------------------------------------------------------------
// What is in the kernel.

/** The rules that are there: ours, or by hand. `serving`: the program runs. */
export async function examineRulesInForce(sys: Syscalls, setup: Setup, plan: FirewallPlan, serving: boolean): Promise<Finding[]> {
  const { config } = setup;
  if (capable() !== null) return [];
  const apply = `transplice firewall apply -f ${shellWord(setup.file)}`;
  const all = await redirections();
  const ports = config.listen.map(({ bytes }) => portOf(bytes, 0));
  const lead = all.filter(({ port }) => port !== null && ports.includes(port));
  const byHand = lead.filter(({ ours }) => !ours);
  const found: Finding[] = [];
  const { manage } = config.firewall;
  try {
    const is = await standing(backendsOf(config), plan);
    if (is.state === "refused" && !serving) {
      found.push(finding("broken", "rules-absent", "transplice has ended, and connections are refused until it runs again, as on_failure says", `transplice -f ${shellWord(setup.file)}`));
    }
    if (is.state === "differs") {
      found.push(finding("broken", "rules-differ", `the rules in the kernel are not those of the configuration: ${is.lines.slice(0, 3).join("; ")}`, apply));
    }
    // They come and go with the process, and come when its upstream has answered.
    if (is.state === "absent" && manage && !serving) return found;
    if (["absent", "refused"].includes(is.state) && manage && serving) {
      return [...found, finding("broken", "rules-absent", "transplice hands nothing over yet: it sets its rules when the upstream has answered, and its log says why not", "systemctl status transplice")];
    }
    if (is.state === "absent" && byHand.length === 0) {
      return [...found, finding("broken", "rules-absent", "no rule hands connections to transplice", apply)];
    }
    if (is.state === "absent") found.push(...holes(byHand, apply));
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    found.push(finding("unknown", "rules-differ", error.message, error.run ?? `transplice firewall status -f ${shellWord(setup.file)}`));
  }
  found.push(...localnets(byHand, plan));
  if (serving && found.length === 0) found.push(...(await arrivals(sys, plan, config, all.filter(({ port }) => port === null || !ports.includes(port)))));
  return found;
}

/** Rules by hand are made a family at a time. */
function holes(byHand: readonly Redirection[], apply: string): Finding[] {
  const families = new Set(byHand.flatMap((each) => each.families));
  if (families.has(6) || !hasGlobalIPv6()) return [];
  return [finding("broken", "ipv6-hole", "the rules set by hand redirect IPv4, and IPv6 goes past transplice; transplice firewall sets both", apply)];
}

/** What comes in by an interface and is for 127/8 is dropped, unless that is allowed. */
function localnets(byHand: readonly Redirection[], { interfaces }: FirewallPlan): Finding[] {
  const rule = byHand.find(({ target, address, hooks }) => target === "dnat" && address?.startsWith("127.") && hooks.includes("prerouting"));
  if (rule === undefined || sysctl("net.ipv4.conf.all.route_localnet") === "1") return [];
  const names = interfaces.length === 0 ? ["all"] : interfaces.map((name) => name.replaceAll(".", "/"));
  const closed = names.filter((name) => sysctl(`net.ipv4.conf.${name}.route_localnet`) !== "1");
  if (closed.length === 0) return [];
  return [finding("broken", "route-localnet", `the kernel drops what a rule leads to ${rule.address} (${rule.text})`,
    `sysctl -w ${closed.map((name) => `net.ipv4.conf.${name}.route_localnet=1`).join(" ")}`)];
}

// ---------------------------------------------------------------------------------------------
// An ordinary program's connection.

/** For documentation, RFC 5737 and RFC 3849: nobody is there, and rules know nothing of it. */
const NOBODY_THERE = { 4: "203.0.113.1", 6: "2001:db8:ffff::1" } as const;
/** Whom rules exempt: nobody. */
const ORDINARY_UID = 65_534;
const PORTS = [443, 80, 8443];
const ARRIVAL_MS = 1000;
/** A proxy that is quick may have closed before we have looked. */
const ATTEMPTS = 3;

async function arrivals(sys: Syscalls, plan: FirewallPlan, config: Config, elsewhere: readonly Redirection[]): Promise<Finding[]> {
  const uid = plan.users?.[0] ?? ORDINARY_UID;
  // With queues, connect() succeeds only when the upstream has granted, which it will not.
  if (!plan.output || plan.queues !== null || plan.excludeUsers.includes(uid)) return [];
  const excluded = (port: number): boolean => plan.excludePorts.some(({ first, last }) => port >= first && port <= last);
  const port = plan.ports?.[0]?.first ?? PORTS.find((each) => !excluded(each));
  if (port === undefined || excluded(port)) return [];
  const lost: string[] = [];
  const led: string[] = [];
  let unrouted = false;
  // TPROXY leaves the destination as it is.
  const listeners = [...config.listen.map(({ bytes }) => portOf(bytes, 0)), ...(plan.mode === "tproxy" ? [port] : [])];
  const suspects: Redirection[] = [];
  for (const family of plan.families) {
    const to = socketAddress(NOBODY_THERE[family.family], port)!;
    const left = new Networks(family.exclude.map((text) => parseNetwork(text) as Network));
    if (family.include !== null || left.has(addressOf(to.bytes, 0), 0, family.family === 4 ? 4 : 16)) continue;
    let outcome: Awaited<ReturnType<typeof arrive>> = "nobody";
    for (let attempt = 0; attempt < ATTEMPTS && outcome === "nobody"; attempt++) {
      outcome = await arrive(sys, to, uid, listeners);
    }
    if (outcome === "silence") lost.push(to.text);
    // A host without a way to IPv6 is as it should be.
    if (outcome === "unrouted" && family.family === 4 && hasIPv4()) unrouted = true;
    const able = takers(elsewhere, to);
    if (outcome !== "elsewhere" && (outcome !== "nobody" || able.length === 0)) continue;
    led.push(to.text);
    suspects.push(...able);
  }
  const name = "a connection of an ordinary program to";
  const found: Finding[] = [];
  if (unrouted) {
    const upstream = (await upstreamAddresses(config)).find((address) => !address.includes(":"));
    found.push(finding("broken", "not-redirected",
      `${name} ${NOBODY_THERE[4]} has no route, and the kernel asks for one before any rule; a default route will do, wherever it leads`,
      upstream === undefined ? "ip route add default via YOUR-GATEWAY" : `ip route add default dev $(ip -o route get ${upstream} | sed 's/.* dev \\([^ ]*\\).*/\\1/;q')`));
  }
  if (led.length > 0) {
    const [suspect] = suspects;
    const by = suspect === undefined ? "" : `: another rule takes it (${suspect.text})`;
    found.push(finding("broken", "redirected-elsewhere", `${name} ${led.join(" or ")} arrives somewhere else${by}`, listOf(suspect)));
  }
  if (lost.length > 0) {
    found.push(finding("broken", "not-redirected", `${name} ${lost.join(" or ")} does not arrive; a rule may drop it, or let it pass before ours`, "nft list ruleset; iptables-save; ip6tables-save"));
  }
  return found;
}

const hasIPv4 = (): boolean =>
  Object.values(networkInterfaces()).some((list) => list?.some(({ family, internal }) => family === "IPv4" && !internal));

export const listOf = (suspect: Redirection | undefined): string =>
  suspect === undefined || suspect.text.startsWith("nft") ? "nft list ruleset" : `${suspect.text.split(" ", 1)[0]}-save`;

/** "nobody": it was taken, and by whom was not to be seen. "unlike": we cannot be that program. */
async function arrive(
  sys: Syscalls, to: { text: string; bytes: Uint8Array }, uid: number, ports: readonly number[],
): Promise<"here" | "elsewhere" | "silence" | "nobody" | "unlike" | "unrouted"> {
  const dialled = dial(sys, to, { mark: null, uid });
  if (typeof dialled === "number") {
    // A way is nobody's in particular.
    if (dialled === -EPERM) return hasRoute(sys, to) ? "unlike" : "unrouted";
    return dialled === -ENETUNREACH ? "unrouted" : "silence";
  }
  const { fd, socket } = dialled;
  try {
    // Not by connection tracking: it also knows what a rule behind the redirect has dropped.
    const row = landing(sys, fd);
    if (row !== null) return ports.includes(row.localPort) ? "here" : "elsewhere";
    return await new Promise((resolve) => {
      const timer = setTimeout(() => {
        const late = landing(sys, fd);
        const connected = sys.getpeername(fd, sys.memory(28), 0) >= 0;
        if (late !== null) resolve(ports.includes(late.localPort) ? "here" : "elsewhere");
        else resolve(connected ? "nobody" : "silence");
      }, ARRIVAL_MS);
      socket.once("error", (error: NodeJS.ErrnoException) => {
        clearTimeout(timer);
        resolve(error.code === "ECONNRESET" ? "nobody" : "silence");
      });
      socket.once("end", () => {
        clearTimeout(timer);
        resolve("nobody");
      });
      socket.resume();
    });
  } finally {
    socket.destroy();
  }
}
