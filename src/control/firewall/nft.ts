/**
 * FirewallPlan -> one nft table of our own, replaced or removed in one transaction. Pure.
 */
import type { Cause } from "../../policy/cause.ts";
import type { PortRange } from "../../policy/access.ts";
import { markMask, REJECTIONS, rejectMark, rejectMask } from "./marks.ts";
import type { FamilyPlan, FirewallPlan } from "./plan.ts";

const ALL_BITS = 0xffff_ffff;

export const NFT_TABLE = "inet transplice";

/** For `nft -f -`: the table is added first, so that deleting it never fails. */
export const NFT_REMOVAL = `add table ${NFT_TABLE}\ndelete table ${NFT_TABLE}\n`;

export function nftRules(plan: FirewallPlan): string {
  const { stage, output, queues } = plan;
  const routed = plan.interfaces.length > 0;
  const lines = stage === "draining" ? [] : plan.families.flatMap(setsOf);
  const add = (...chains: readonly (readonly string[])[]): void => void lines.push(...chains.flat());
  if (stage === "engaged") {
    if (output) add(chainOf(plan, "output", plan.mode));
    if (routed || plan.mode === "tproxy") add(chainOf(plan, "prerouting", plan.mode));
    // Where no socket takes it, TPROXY passes it on, and it would be forwarded.
    if (plan.closed && routed && plan.mode === "tproxy") add(chainOf(plan, "forward", "refuse"));
    if (queues !== null && output) add(chainOf(plan, "output", "queue"));
    if (queues !== null && routed) add(chainOf(plan, "prerouting", "queue"));
    if (queues?.reject) add(rejections(plan, queues));
    if (plan.learns) {
      add(learnt(plan));
      if (output) add(chainOf(plan, "output", "learn"));
      if (routed) add(chainOf(plan, "prerouting", "learn"));
    }
  } else {
    if (stage === "refused" && output) add(chainOf(plan, "output", "refuse"));
    if (stage === "refused" && routed) add(chainOf(plan, "forward", "refuse"));
    add(drain(plan));
  }
  return `${NFT_REMOVAL}table ${NFT_TABLE} {\n${lines.map((line) => `  ${line}\n`).join("")}}\n`;
}

/**
 * With REDIRECT: the kernel stops to translate, and to track, as soon as no rule asks for it any more,
 * and what has been handed over would be torn off. With TPROXY: it goes on being delivered here.
 */
function drain(plan: FirewallPlan): string[] {
  if (plan.mode === "redirect") {
    return chain("drain", ["type nat hook output priority -100; policy accept;", "ct state established accept"]);
  }
  if (plan.interfaces.length === 0) return [];
  return chain("drain", [
    "type filter hook prerouting priority -150; policy accept;",
    `iifname != ${interfacesText(plan)} return`,
    `meta l4proto tcp socket transparent 1 ${setMark(plan)} accept`,
  ]);
}

const chain = (name: string, lines: readonly string[]): string[] => [`chain ${name} {`, ...lines.map((line) => `  ${line}`), "}"];
const interfacesText = ({ interfaces }: FirewallPlan): string => `{ ${interfaces.map((name) => `"${name}"`).join(", ")} }`;
const hex = (value: number): string => `0x${value.toString(16)}`;

/** What goes before the value of TPROXY's mark where it is compared; and the statement that sets it. */
const markIs = (plan: FirewallPlan): string => (markMask(plan) === ALL_BITS ? "meta mark" : `meta mark & ${hex(markMask(plan))} ==`);
const setMark = (plan: FirewallPlan): string =>
  markMask(plan) === ALL_BITS ? `meta mark set ${hex(plan.mark)}` : `meta mark set meta mark & ${hex(markMask(plan))} | ${hex(plan.mark)}`;

const SETS = ["exclude", "lifted", "special", "include"] as const;

function setsOf(family: FamilyPlan): string[] {
  return SETS.flatMap((name) => {
    const networks = family[name] ?? [];
    if (networks.length === 0) return [];
    return [
      `set ${name}${family.family} {`,
      `  type ipv${family.family}_addr; flags interval; auto-merge`,
      `  elements = { ${networks.join(", ")} }`,
      "}",
    ];
  });
}

type Does = "redirect" | "tproxy" | "refuse" | "queue" | "learn";

function chainOf(
  plan: FirewallPlan, hook: "output" | "prerouting" | "forward", mode: Does,
): string[] {
  const type = mode === "redirect" ? "nat" : mode === "tproxy" && hook === "output" ? "route" : "filter";
  const priority = { queue: -300, learn: -160, tproxy: -150, redirect: -100, refuse: 0 }[mode];
  const name = mode === "queue" ? `${hook}_syn` : mode === "learn" ? `${hook}_learnt` : hook;
  const ports = `${name}_ports`;
  const rules = [`type ${type} hook ${hook} priority ${priority}; policy accept;`, "meta l4proto != tcp return"];
  // What stands goes on.
  if (mode === "refuse" || mode === "queue" || mode === "learn") rules.push("tcp flags & (fin | syn | rst | ack) != syn return");
  if (mode === "tproxy" && hook === "prerouting") {
    // What the output chain has marked comes by again, through the loopback interface.
    for (const family of plan.output ? plan.families : []) {
      rules.push(`iifname "lo" ${markIs(plan)} ${hex(plan.mark)} meta nfproto ipv${family.family} meta l4proto tcp ${tproxy(family)} accept`);
    }
    if (plan.interfaces.length === 0) rules.push("return");
  }
  if (hook !== "output" && plan.interfaces.length > 0) {
    rules.push(`iifname != ${interfacesText(plan)} return`);
  }
  // The answers of this host's servers, and of servers behind it, go their own way.
  if (mode === "tproxy") rules.push("ct direction reply return");
  if (hook === "output") rules.push(...programs(plan));
  rules.push("fib daddr type local return");
  for (const name of ["exclude", "lifted", "special"] as const) {
    for (const family of plan.families) {
      if (family[name].length === 0) continue;
      const verdict = name === "lifted" ? `goto ${ports}` : "return";
      rules.push(`${ip(family)} daddr @${name}${family.family} ${verdict}`);
    }
  }
  for (const family of plan.families) {
    if (family.include === null) continue;
    rules.push(
      family.include.length === 0
        ? `meta nfproto ipv${family.family} return`
        : `${ip(family)} daddr != @include${family.family} return`,
    );
  }
  rules.push(`goto ${ports}`);
  const last: string[] = [];
  if (plan.excludePorts.length > 0) last.push(`tcp dport { ${portsText(plan.excludePorts)} } return`);
  if (plan.ports !== null) last.push(`tcp dport != { ${portsText(plan.ports)} } return`);
  for (const family of plan.families) {
    const tcp = `meta nfproto ipv${family.family} meta l4proto tcp`;
    if (mode === "refuse") last.push(`${tcp} reject with tcp reset`);
    else if (mode === "redirect") last.push(`${tcp} redirect to :${family.port}`);
    else if (mode === "learn") last.push(`${tcp} ${ip(family)} daddr . tcp dport vmap @${learntMap(family.family)}`);
    else if (mode === "queue") last.push(`${tcp} ${queueOf(plan.queues!, family)}`);
    else if (hook === "output") last.push(`${tcp} ${setMark(plan)}`);
    else last.push(`${tcp} ${tproxy(family)} ${setMark(plan)} accept`);
  }
  return [...chain(ports, last), ...chain(name, rules)];
}

/** How each cause is rejected: the chain that an element of a map of learnt destinations leads to. */
export const LEARNT_CHAINS = {
  refused: "learnt_refused",
  "host-unreachable": "learnt_host_unreachable",
  "net-unreachable": "learnt_net_unreachable",
  "not-allowed": "learnt_not_allowed",
} as const satisfies Partial<Record<Cause, string>>;

const LEARNT_REJECTS: Readonly<Record<keyof typeof LEARNT_CHAINS, string>> = {
  refused: "meta l4proto tcp reject with tcp reset",
  "host-unreachable": "reject with icmpx type host-unreachable",
  "net-unreachable": "reject with icmpx type no-route",
  "not-allowed": "reject with icmpx type admin-prohibited",
};

/** Elements of one map that the kernel keeps; those whose time is over go with a delay. */
const LEARNT_SIZE = 8192;

export const learntMap = (family: 4 | 6): string => `learnt${family}`;

/** The maps, empty, and what their elements lead to. */
function learnt(plan: FirewallPlan): string[] {
  const causes = Object.keys(LEARNT_CHAINS) as (keyof typeof LEARNT_CHAINS)[];
  return [
    ...causes.flatMap((cause) => chain(LEARNT_CHAINS[cause], [LEARNT_REJECTS[cause]])),
    ...plan.families.flatMap(({ family }) => [
      `map ${learntMap(family)} {`,
      `  type ipv${family}_addr . inet_service : verdict`,
      `  size ${LEARNT_SIZE}`,
      "  flags timeout",
      "}",
    ]),
  ];
}

/** The table as it was listed, without what has been learnt: that is nobody's rule. */
export const withoutLearnt = (listed: string): string =>
  listed.replace(/(map learnt[46] \{[^{}]*?)\n\s*elements = \{[^{}]*\}/g, "$1");

/** What was let go with such a mark is rejected, before it is handed over. */
function rejections(plan: FirewallPlan, queues: NonNullable<FirewallPlan["queues"]>): string[] {
  const marked = (value: number): string => `meta mark & 0x${rejectMask(queues).toString(16)} == 0x${value.toString(16)}`;
  const rules = [
    "tcp flags & (fin | syn | rst | ack) != syn return",
    `${marked(0)} return`,
    ...REJECTIONS.flatMap((kinds, kind) => {
      if (kind === 0) return [`${marked(rejectMark(queues, kind))} reject with tcp reset`];
      return plan.families.map(({ family }) => {
        const [icmp, type] = family === 4 ? ["icmp", kinds[4].replace("icmp-", "")] : ["icmpv6", ICMPV6_TYPES[kinds[6]]];
        return `meta nfproto ipv${family} ${marked(rejectMark(queues, kind))} reject with ${icmp} type ${type}`;
      });
    }),
  ];
  const hooks = [...(plan.output ? ["output"] : []), ...(plan.interfaces.length > 0 ? ["prerouting"] : [])];
  return hooks.flatMap((hook) => [
    `chain ${hook}_reject {`,
    `  type filter hook ${hook} priority -160; policy accept;`,
    ...rules.map((rule) => `  ${rule}`),
    "}",
  ]);
}

/** What nft calls them. */
const ICMPV6_TYPES: Readonly<Record<string, string>> = {
  "icmp6-addr-unreachable": "addr-unreachable",
  "icmp6-no-route": "no-route",
  "icmp6-adm-prohibited": "admin-prohibited",
};

/** See firewall/iptables.ts: one client's connections are to be spread, and a SYN's copies are not. */
const queueOf = ({ first, lanes }: NonNullable<FirewallPlan["queues"]>, family: FamilyPlan): string =>
  lanes === 1
    ? `queue flags bypass to ${first}`
    : `queue flags bypass to jhash ${ip(family)} saddr . tcp sport mod ${lanes} offset ${first}`;

function programs(plan: FirewallPlan): string[] {
  const rules: string[] = [];
  if (plan.own !== null) {
    rules.push("mark" in plan.own ? `meta mark 0x${plan.own.mark.toString(16)} return` : `meta skuid ${plan.own.uid} return`);
  }
  for (const path of plan.excludeCgroups) {
    rules.push(`socket cgroupv2 level ${path.split("/").length} ${JSON.stringify(path)} return`);
  }
  if (plan.excludeUsers.length > 0) rules.push(`meta skuid { ${plan.excludeUsers.join(", ")} } return`);
  if (plan.users !== null) rules.push(`meta skuid != { ${plan.users.join(", ")} } return`);
  return rules;
}

const ip = ({ family }: FamilyPlan): string => (family === 4 ? "ip" : "ip6");

const tproxy = (plan: FamilyPlan): string =>
  `tproxy ${ip(plan)} to ${plan.family === 4 ? plan.address : `[${plan.address}]`}:${plan.port}`;

const portsText = (ports: readonly PortRange[]): string =>
  merged(ports).map(({ first, last }) => (first === last ? `${first}` : `${first}-${last}`)).join(", ");

/** nft 1.0.6 refuses overlapping ranges in one anonymous set. */
export function merged(ports: readonly PortRange[]): PortRange[] {
  const out: { first: number; last: number }[] = [];
  for (const { first, last } of [...ports].sort((a, b) => a.first - b.first)) {
    const before = out.at(-1);
    if (before !== undefined && first <= before.last + 1) before.last = Math.max(before.last, last);
    else out.push({ first, last });
  }
  return out;
}
