/**
 * The firewall rules that hand connections to a transparent proxy, in the three dialects that are
 * in use: iptables over nf_tables, the old iptables, and nft.
 */
import { haveIPv6, Host } from "./sandbox.ts";

export const BACKENDS = ["iptables-nft", "iptables-legacy", "nft"] as const;
export type Backend = (typeof BACKENDS)[number];

export interface Interception {
  mode: "redirect" | "tproxy";
  /** Connections of programs on the host (OUTPUT), or those it forwards (PREROUTING). */
  from: "local" | "routed";
  port: number;
  /** Networks, of either family. Left out: the addresses that servers have in our network. */
  destinations?: readonly string[];
  /** Connections with this SO_MARK are let through. */
  exceptMark?: number;
}

export interface Rules {
  /** How many packets have met the rules: with nat, one for each connection. */
  packets(): number;
  remove(): void;
}

/** The documentation networks that play the internet. */
export const INTERNET = ["198.51.100.0/24", "2001:db8:100::/48"] as const;

const TPROXY_MARK = 0x1;
const TPROXY_TABLE = 100;

let tables = 0;

/** Puts the rules into the host's firewall. They are removed by the answer's remove(). */
export function intercept(host: Host, backend: Backend, what: Interception): Rules {
  const rules = backend === "nft" ? withNft(host, what) : withIptables(host, backend, what);
  if (what.mode !== "tproxy") return rules;
  // TPROXY needs that packets to foreign addresses, once marked, are delivered here.
  for (const family of familiesOf(what)) {
    const all = family === "-4" ? "0.0.0.0/0" : "::/0";
    host.run("ip", [
      family,
      "rule",
      "add",
      "fwmark",
      `${TPROXY_MARK}`,
      "lookup",
      `${TPROXY_TABLE}`,
    ]);
    host.run("ip", [
      family,
      "route",
      "replace",
      "local",
      all,
      "dev",
      "lo",
      "table",
      `${TPROXY_TABLE}`,
    ]);
  }
  return {
    packets: rules.packets,
    remove() {
      rules.remove();
      for (const family of familiesOf(what)) {
        host.run("ip", [family, "rule", "delete", "fwmark", `${TPROXY_MARK}`]);
      }
    },
  };
}

const refusals = new Map<string, string | null>();

/** Why this machine cannot have such rules, in the tool's own words; null if it can. */
export function refusal(backend: Backend, what: Interception): string | null {
  const key = `${backend} ${what.mode} ${what.from} ${destinationsOf(what).join()}`;
  if (!refusals.has(key)) {
    const scratch = new Host("scratch");
    try {
      intercept(scratch, backend, what);
      refusals.set(key, null);
    } catch (error) {
      refusals.set(key, `no such rules here: ${(error as Error).message.replaceAll(/\s+/g, " ")}`);
    } finally {
      scratch.remove();
    }
  }
  return refusals.get(key)!;
}

const isIPv6 = (network: string): boolean => network.includes(":");
const destinationsOf = (what: Interception): readonly string[] =>
  (what.destinations ?? INTERNET).filter((network) => haveIPv6() || !isIPv6(network));
const familiesOf = (what: Interception): ("-4" | "-6")[] => [
  ...new Set(destinationsOf(what).map((to) => (isIPv6(to) ? "-6" : "-4"))),
];

function withNft(host: Host, what: Interception): Rules {
  const table = `intercept_${tables++}`;
  const spare = what.exceptMark === undefined ? "" : `meta mark ${what.exceptMark} return`;
  const each = (rule: (to: string, ip: "ip" | "ip6") => string): string =>
    destinationsOf(what)
      .map((to) => rule(to, isIPv6(to) ? "ip6" : "ip"))
      .join("\n");
  const capture = (to: string, ip: string): string => `${ip} daddr ${to} meta l4proto tcp`;
  const hand = (to: string, ip: string): string => {
    const here = ip === "ip6" ? "[::1]" : "127.0.0.1";
    return (
      `${capture(to, ip)} counter tproxy ${ip} to ${here}:${what.port} ` +
      `meta mark set ${TPROXY_MARK} accept`
    );
  };
  const chains = [];
  if (what.mode === "redirect") {
    const hook = what.from === "local" ? "output" : "prerouting";
    chains.push(`chain capture {
      type nat hook ${hook} priority -100
      ${spare}
      ${each((to, ip) => `${capture(to, ip)} counter redirect to :${what.port}`)}
    }`);
  } else {
    chains.push(`chain capture {
      type filter hook prerouting priority -150
      ${each(hand)}
    }`);
    if (what.from === "local") {
      chains.push(`chain turn {
        type route hook output priority -150
        ${spare}
        ${each((to, ip) => `${capture(to, ip)} meta mark set ${TPROXY_MARK}`)}
      }`);
    }
  }
  host.run("nft", ["-f", "-"], `table inet ${table} {\n${chains.join("\n")}\n}\n`);
  return {
    packets: () => {
      const listing = host.run("nft", ["list", "table", "inet", table]);
      return sum([...listing.matchAll(/counter packets (\d+)/g)].map((match) => match[1]!));
    },
    remove: () => void host.run("nft", ["delete", "table", "inet", table]),
  };
}

function withIptables(host: Host, backend: Backend, what: Interception): Rules {
  const rules: { command: string; table: string; chain: string; rule: string[] }[] = [];
  const spare =
    what.exceptMark === undefined ? [] : ["-m", "mark", "!", "--mark", `${what.exceptMark}`];
  for (const to of destinationsOf(what)) {
    const command = isIPv6(to) ? backend.replace("iptables", "ip6tables") : backend;
    const match = ["-p", "tcp", "-d", to];
    if (what.mode === "redirect") {
      const chain = what.from === "local" ? "OUTPUT" : "PREROUTING";
      const rule = [...match, ...spare, "-j", "REDIRECT", "--to-ports", `${what.port}`];
      rules.push({ command, table: "nat", chain, rule });
      continue;
    }
    const here = isIPv6(to) ? "::1" : "127.0.0.1";
    rules.push({
      command,
      table: "mangle",
      chain: "PREROUTING",
      rule: [
        ...match,
        "-j",
        "TPROXY",
        "--on-ip",
        here,
        "--on-port",
        `${what.port}`,
        "--tproxy-mark",
        `${TPROXY_MARK}`,
      ],
    });
    if (what.from === "local") {
      const rule = [...match, ...spare, "-j", "MARK", "--set-mark", `${TPROXY_MARK}`];
      rules.push({ command, table: "mangle", chain: "OUTPUT", rule });
    }
  }
  for (const { command, table, chain, rule } of rules) {
    host.run(command, ["-w", "-t", table, "-A", chain, ...rule]);
  }
  return {
    packets: () =>
      sum(
        rules
          .filter(({ rule }) => !rule.includes("MARK"))
          .flatMap(({ command, table, chain, rule }) => {
            const listing = host.run(command, ["-w", "-t", table, "-nvxL", chain]);
            const to = rule[rule.indexOf("-d") + 1]!;
            const lines = listing.split("\n").filter((line) => line.includes(to));
            return lines.slice(0, 1).map((line) => line.trim().split(/\s+/)[0]!);
          }),
      ),
    remove: () => {
      for (const { command, table, chain, rule } of rules) {
        host.run(command, ["-w", "-t", table, "-D", chain, ...rule]);
      }
    },
  };
}

const sum = (counts: readonly string[]): number =>
  counts.reduce((total, count) => total + Number(count), 0);
