/**
 * What the firewall is to do, before any dialect: Config, what names came to, and what this host
 * has -> a FirewallPlan. Pure. The renderers (firewall/nft.ts, firewall/iptables.ts) turn it into
 * rules; firewall.ts puts them into the kernel.
 */
import type { Config, ListenAddress } from "../../config/config.ts";
import { addressText, portOf } from "../../config/endpoint.ts";
import { type Network, Networks } from "../../policy/network.ts";
import type { PortRange } from "../../policy/access.ts";
import { SPECIAL_IPV4, SPECIAL_IPV6 } from "../../policy/special.ts";
import { lanesOf } from "../syn-queues.ts";
import { parseNetwork } from "../../config/network.ts";

/** The destinations of one family, in the order in which they are judged. All as text with prefix. */
export interface FamilyPlan {
  readonly family: 4 | 6;
  readonly port: number;
  /** Where TPROXY hands over to: a listener that stands on one address, or loopback. */
  readonly address: string;
  /** Never: the upstream, and what the operator excludes. */
  readonly exclude: readonly string[];
  /** Included by name although they are special. */
  readonly lifted: readonly string[];
  readonly special: readonly string[];
  /** Then only these. null: the whole internet. */
  readonly include: readonly string[] | null;
}

export interface FirewallPlan {
  readonly mode: "redirect" | "tproxy";
  /**
   * engaged: connections are handed over. refused: they are reset at once instead. draining: they go
   * direct. In the last two, what has been handed over before goes on (with TPROXY, only what came in
   * by `interfaces`).
   */
  readonly stage: "engaged" | "refused" | "draining";
  /** What nobody is there to take, although it is handed over, does not go direct. */
  readonly closed: boolean;
  /** Programs of this host. */
  readonly output: boolean;
  /** Clients that come in by these. */
  readonly interfaces: readonly string[];
  readonly families: readonly FamilyPlan[];
  /** Transplice's own sockets: by mark, or else by user. */
  readonly own: { readonly mark: number } | { readonly uid: number } | null;
  /** Cgroup v2 paths without the leading slash. */
  readonly excludeCgroups: readonly string[];
  readonly users: readonly number[] | null;
  readonly excludeUsers: readonly number[];
  readonly ports: readonly PortRange[] | null;
  readonly excludePorts: readonly PortRange[];
  /** TPROXY's mark, and the routing table that delivers what carries it to this host. */
  readonly mark: number;
  readonly table: number;
  /** Destinations that have failed are rejected while they stand in the maps of learnt ones (learner.ts). */
  readonly learns: boolean;
  /** SYNs go through these queues first (NFQUEUE). null: they do not. */
  readonly queues: {
    readonly first: number;
    readonly lanes: number;
    /** Where the eight bits of the mark begin that are the queues' readers' own. */
    readonly markShift: number;
    /** SYNs come back with a mark that says how they are to be rejected; else none does. */
    readonly reject: boolean;
  } | null;
}

/** What only the host can say. */
export interface HostFacts {
  /** The upstream's addresses, as text. */
  readonly upstream: readonly string[];
  readonly families: readonly (4 | 6)[];
  /** As many workers as there will be without a setting. */
  readonly cpus: number;
  /** What a user name or number comes to; null: there is no such user. */
  readonly uid: (name: string) => number | null;
}

export type Planned = { readonly plan: FirewallPlan } | { readonly wrong: string; readonly run: string | null };

export function firewallPlan(config: Config, facts: HostFacts): Planned {
  const { firewall, mark, mode, listen, upstream, connect, workers } = config;
  if (upstream === null) {
    return { wrong: "there is nothing to redirect to: the configuration has no proxy_url", run: null };
  }
  if (!firewall.output && firewall.interfaces.length === 0) {
    return { wrong: "nothing would be redirected: set output = true or interfaces in [firewall]", run: null };
  }
  const missing: string[] = [];
  const uidOf = (name: string): number => {
    const uid = facts.uid(name);
    if (uid === null) missing.push(name);
    return uid ?? -1;
  };
  const users = firewall.users.map(uidOf);
  const excludeUsers = firewall.excludeUsers.map(uidOf);
  if (missing.length > 0) {
    return { wrong: `there is no user ${missing.join(", ")} on this host (users in [firewall])`, run: `getent passwd ${missing.join(" ")}` };
  }
  let own: FirewallPlan["own"] = null;
  if (mark !== null) own = { mark };
  else {
    const uid = facts.uid(firewall.serviceUser);
    if (uid !== null) own = { uid };
    else if (firewall.output && firewall.excludeCgroups.length === 0) {
      return {
        wrong: `transplice's own connections would be redirected to itself: there is no user "${firewall.serviceUser}", and no mark in the configuration`,
        run: `useradd --system --shell /usr/sbin/nologin ${firewall.serviceUser}`,
      };
    }
  }
  const families = ([4, 6] as const).flatMap((family): FamilyPlan[] => {
    const target = facts.families.includes(family) ? listenerOf(listen, family) : null;
    return target === null ? [] : [familyPlan(family, target, config, facts)];
  });
  if (families.length === 0) return { wrong: "no listener has an address of a family that this host has", run: "ip address" };
  return {
    plan: {
      mode, stage: "engaged", families, own, excludeUsers,
      closed: firewall.manage && firewall.onFailure === "closed",
      output: firewall.output,
      interfaces: firewall.interfaces,
      excludeCgroups: firewall.excludeCgroups.map((path) => path.replace(/^\/+|\/+$/g, "")),
      users: users.length === 0 ? null : users,
      ports: firewall.ports.length === 0 ? null : firewall.ports,
      excludePorts: firewall.excludePorts,
      mark: firewall.tproxyMark,
      table: firewall.tproxyTable,
      learns: connect.learnMs !== null,
      queues: connect.truthful === null ? null : {
        first: connect.truthful.queue,
        lanes: lanesOf(workers ?? facts.cpus),
        markShift: connect.truthful.markShift,
        reject: connect.truthful.answer === "reject",
      },
    },
  };
}

function familyPlan(
  family: 4 | 6, target: { port: number; address: string }, config: Config, facts: HostFacts,
): FamilyPlan {
  const { include, exclude } = config.firewall;
  const length = family === 4 ? 4 : 16;
  const mine = (networks: readonly Network[]): Network[] =>
    networks.filter(({ bytes }) => bytes.length === length);
  const special = (family === 4 ? SPECIAL_IPV4 : SPECIAL_IPV6).map(({ network }) => network);
  const ranges = special.map((text) => parseNetwork(text) as Network);
  const inSpecial = ({ bytes, prefix }: Network): boolean =>
    ranges.some((range) => range.prefix <= prefix && new Networks([range]).has(bytes, 0, length));
  const upstream = facts.upstream.filter((text) => text.includes(":") === (family === 6));
  const wanted = mine(include);
  const others = wanted.filter((network) => !inSpecial(network));
  return {
    family, ...target, special,
    exclude: [...new Set([...upstream.map((text) => `${text}/${length * 8}`), ...mine(exclude).map(networkText)])],
    lifted: wanted.filter(inSpecial).map(networkText),
    include: include.length === 0 ? null : others.map(networkText),
  };
}

export const networkText = ({ bytes, prefix }: Network): string => `${addressText(bytes)}/${prefix}`;

/** The first listener that takes this family's connections. A REDIRECT knows but a port. */
function listenerOf(
  listen: readonly ListenAddress[], family: 4 | 6,
): { port: number; address: string } | null {
  const found = listen.find(({ text, dualStack }) => dualStack || text.startsWith("[") === (family === 6));
  if (found === undefined) return null;
  const host = found.text.slice(0, found.text.lastIndexOf(":")).replace(/^\[|\]$/g, "").replace(/%.*/, "");
  const address = found.dualStack ? (family === 4 ? "127.0.0.1" : "::1") : host;
  return { port: portOf(found.bytes, 0), address };
}
