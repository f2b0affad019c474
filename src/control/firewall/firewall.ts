/**
 * The firewall's rules and this host: finds what can set them, sets, removes and compares them. All
 * through the tools of the host (nft, iptables-restore, ip). Touches the table `inet transplice`,
 * chains called TRANSPLICE_*, and ip rules and routes of protocol 181; nothing else.
 *
 * Rules are first loaded into a network namespace made for that, which is gone at once: so it shows
 * whether this kernel can have them before anything is changed, and in what words the tool will
 * list them, which is what status compares. Who may not make one has the tool check them instead.
 */
import { lookup } from "node:dns/promises";
import { existsSync, readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import type { Config, Upstream } from "../../config/config.ts";
import { socketAddress } from "../../config/endpoint.ts";
import { iptablesRules, ownTables, transition } from "./iptables.ts";
import { apply, compared, forgetRedirected, isAnyPresent, isAnyRouted, isRouted, LEARN_NEEDS_NFT, type Listing, nftLines, nftSaid, NONE, present, removeAll, tableLines, usable } from "./kernel.ts";
import { NFT_TABLE, nftRules } from "./nft.ts";
import { isRouting, routeOf, ruleOf } from "./marks.ts";
import { type FirewallPlan, firewallPlan } from "./plan.ts";
import { FIREWALL_BACKENDS, type FirewallBackend, iptablesTool, missing, noneWorks, Refusal, refusalText, requireCapable, run, tool } from "./tools.ts";

export const FIREWALL_ACTIONS = ["print", "apply", "remove", "release", "status", "check"] as const;
export type FirewallAction = (typeof FIREWALL_ACTIONS)[number];

/** What is to be said, and the exit code. */
export interface Outcome {
  readonly out: string;
  readonly wrong: string;
  readonly code: number;
}

/** Whatever a configuration says, nothing of ours stays. */
export const removed = (): Promise<Outcome> =>
  answered(async () => {
    await removeAll(null);
    return said("removed\n");
  });

export async function firewall(
  action: Exclude<FirewallAction, "remove" | "check">, config: Config, asked: FirewallBackend | null,
): Promise<Outcome> {
  const backends = asked === null ? backendsOf(config) : [asked];
  return answered(async () => {
    switch (action) {
      case "print": {
        const plan = await planned(config);
        return said(rendered(backends.length > 1 ? "nft" : backends[0]!, plan));
      }
      case "apply": {
        const plan = await planned(config);
        const backend = await chosen(backends, plan);
        await apply(backend, plan);
        await removeAll(backend);
        return said(`engaged (${backend})\n`);
      }
      case "release":
        return release(backends, config);
      case "status":
        return statusOutcome(await standing(backends, await planned(config)));
    }
  }, action === "status" ? 4 : 1);
}

async function answered(act: () => Promise<Outcome>, codeOfRefusal = 1): Promise<Outcome> {
  try {
    return await act();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    return { out: "", wrong: `transplice: firewall: ${refusalText(error)}\n`, code: codeOfRefusal };
  }
}

/** What a guardian does at the end, where there may be none left: in place of rules that stand. */
async function release(backends: readonly FirewallBackend[], config: Config): Promise<Outcome> {
  const { manage, onFailure } = config.firewall;
  if (!manage || config.upstream === null) return said("not managed; rules are left as they are\n");
  if (!(await isAnyPresent())) return said("absent\n");
  if (onFailure === "open") {
    const outcome = await removed();
    if (outcome.code === 0) await planned(config, []).then(forgetRedirected, () => {}); // Of a user who is gone, none can be made.
    return outcome;
  }
  // An upstream's name that nobody resolves is no reason to let connections go direct.
  const plan = await planned(config).catch(() => planned(config, []));
  const refused: FirewallPlan = { ...plan, stage: "refused" };
  const backend = await usable(backends, refused);
  await apply(backend, refused);
  await removeAll(backend);
  return said(`refused (${backend})\n`);
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
  if ("wrong" in result) throw new Refusal(result.wrong, result.run);
  return result.plan;
}

export async function upstreamAddresses({ upstream, relays }: Config): Promise<string[]> {
  const upstreams = [...(upstream === null ? [] : [upstream]), ...relays.map((relay) => relay.upstream)];
  return [...new Set((await Promise.all(upstreams.map(addressesOf))).flat())];
}

export async function addressesOf(upstream: Upstream): Promise<string[]> {
  if (upstream.kind === "direct") return [];
  if (socketAddress(upstream.host, upstream.port) !== null) return [upstream.host.replace(/%.*/, "")];
  try {
    return (await lookup(upstream.host, { all: true })).map(({ address }) => address);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    throw new Refusal(`the upstream ${upstream.host} has no address now (${code})`, `getent ahosts ${upstream.host}`);
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
  if (plan.learns) throw new Refusal(LEARN_NEEDS_NFT);
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
    if (!ran.ok) return { wrong: nftSaid(ran, plan) };
    listing.set(0, nftLines(ran.out));
    return { listing };
  }
  if (plan.learns) return { wrong: LEARN_NEEDS_NFT };
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

/** A network namespace takes CAP_SYS_ADMIN, which a service or an init container that sets rules has not. */
const mayTry = async (): Promise<boolean> => (await run("unshare", ["--net", "true"])).ok;

/** The first backend that takes the rules here. Throws a Refusal. */
export async function chosen(backends: readonly FirewallBackend[], plan: FirewallPlan): Promise<FirewallBackend> {
  requireCapable();
  if (!(await mayTry())) return usable(backends, plan);
  const wrong: string[] = [];
  for (const backend of backends) {
    const tried = await trial(backend, plan);
    if ("listing" in tried) return backend;
    wrong.push(tried.wrong);
  }
  throw noneWorks(backends, wrong);
}

// ---------------------------------------------------------------------------------------------
// Questions.

export type Standing =
  | { readonly state: "absent" }
  | { readonly state: FirewallPlan["stage"]; readonly backend: FirewallBackend }
  | { readonly state: "differs"; readonly backend: FirewallBackend; readonly lines: readonly string[] };

/** The rules in the kernel beside those of the plan. Throws a Refusal. */
export async function standing(backends: readonly FirewallBackend[], plan: FirewallPlan): Promise<Standing> {
  requireCapable();
  const found = new Map<FirewallBackend, Listing>();
  for (const backend of FIREWALL_BACKENDS) {
    const listing = await present(backend);
    if (listing.size > 0) found.set(backend, listing);
  }
  if (found.size === 0 && !(await isAnyRouted())) return { state: "absent" };
  if (!(await mayTry())) {
    throw new Refusal("rules are here; whether they are the configuration's is seen in a network namespace, which takes CAP_SYS_ADMIN", "sudo transplice firewall status");
  }
  const backend = [...found.keys()].find((each) => backends.includes(each)) ?? backends[0]!;
  const differing = async (wanted: FirewallPlan): Promise<string[]> => {
    const tried = await trial(backend, wanted);
    if ("wrong" in tried) throw new Refusal(`cannot compare: ${tried.wrong}`);
    const lines = [...found.keys()].filter((each) => each !== backend).map((each) => `+ rules of ${each}`);
    lines.push(...compared(tried.listing, found.get(backend) ?? new Map()));
    for (const { family } of wanted.families) {
      if (isRouting(wanted) && !(await isRouted(family, wanted))) lines.push(`- ip -${family} rule ${ruleOf(wanted)}`);
    }
    return lines;
  };
  const lines = await differing(plan);
  if (lines.length === 0) return { state: "engaged", backend };
  for (const stage of ["refused", "draining"] as const) {
    if ((await differing({ ...plan, stage })).length === 0) return { state: stage, backend };
  }
  return { state: "differs", backend, lines };
}

function statusOutcome(standing: Standing): Outcome {
  switch (standing.state) {
    case "absent":
      return said("absent\n", 3);
    case "engaged":
      return said(`engaged (${standing.backend})\n`);
    case "refused":
    case "draining":
      return said(`${standing.state} (${standing.backend})\n`, 5);
    case "differs":
      return said(`differs (${standing.backend}); to mend it: transplice firewall apply\n${standing.lines.join("\n")}\n`, 1);
  }
}
