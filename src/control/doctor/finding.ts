/**
 * What is wrong with this host or with how it is set up, said to an operator: in a sentence, and with
 * a command to run.
 */
export type Level =
  /** Something does not work now. */
  | "broken"
  /** It works, and will not under load, or does what nobody wanted. */
  | "risk"
  /** This user may not look. */
  | "unknown"
  /** Nothing is wrong, and it could be better. */
  | "advice";

export interface Finding {
  /** Of a closed list, for scripts; docs/seeing.md. */
  readonly id: FindingId;
  readonly level: Level;
  /** Without a full stop. */
  readonly text: string;
  /** For a shell: it mends, or it shows what only a person can decide. */
  readonly run: string;
}

/** Every id, and what is looked at. */
export const FINDINGS = {
  "configuration": "the file is valid",
  "not-running": "the program runs and listens where the file says",
  "listener-taken": "no other program has a listener's port",
  "capabilities": "the process has the capabilities that the file needs",
  "rules": "rules can be made of the file",
  "backend": "nft or iptables is here, and the kernel takes the rules",
  "conntrack-module": "connection tracking is loaded, where REDIRECT needs it",
  "rules-absent": "the rules are in the kernel",
  "rules-differ": "they are the file's",
  "not-redirected": "a connection of an ordinary program arrives",
  "redirected-elsewhere": "no other rule takes it first",
  "listener-address": "what is redirected finds a listener",
  "interface-absent": "the interfaces are there",
  "ip-forward": "a gateway forwards",
  "rp-filter": "the reverse path filter lets TPROXY be",
  "icmp-ratelimit": "REJECT's errors are not held back, where connect() tells the truth by them",
  "route-localnet": "rules that lead clients to 127.0.0.1 may",
  "ipv6-hole": "IPv6 does not go past",
  "upstream-local": "an upstream on this host is exempt",
  "upstream-redirected": "the way to the upstream is not redirected itself",
  "upstream-name": "the upstream's name has an address",
  "upstream-unreachable": "the upstream accepts connections",
  "upstream-credentials": "it accepts the user and the password",
  "upstream-protocol": "it speaks the protocol of proxy_url",
  "dns": "a name server answers",
  "egress-address": "the addresses to leave by are on this host",
  "nofile": "the limit of open files carries max_connections",
  "somaxconn": "the accept queue may be long",
  "timestamps": "REDIRECT leads no connections into each other's way",
  "port-range": "there are enough local ports",
  "conntrack-table": "connection tracking has room",
  "pipe-user-pages": "the kernel gives pipes of the wanted size",
  "log": "the log can be written",
  "clock": "the clock is right, and is kept so",
  "clocksource": "reading the clock is cheap",
} as const;

export type FindingId = keyof typeof FINDINGS;

export const finding = (level: Level, id: FindingId, text: string, run: string): Finding => ({ id, level, text, run });

/** 0: nothing, or advice alone; 1: something is broken; 3: there are risks; 4: some things could not be looked at. */
export function exitCode(findings: readonly Finding[]): number {
  const has = (level: Level): boolean => findings.some((each) => each.level === level);
  return has("broken") ? 1 : has("risk") ? 3 : has("unknown") ? 4 : 0;
}

const ORDER: readonly Level[] = ["broken", "risk", "unknown", "advice"];

/** The worst first, each once. */
export const sorted = (findings: readonly Finding[]): Finding[] =>
  ORDER.flatMap((level) => findings.filter((each) => each.level === level))
    .filter((each, i, all) => all.findIndex(({ id, text }) => id === each.id && text === each.text) === i);

/** "text; run: command" */
export const lineOf = ({ text, run }: Finding): string => `${text}; run: ${run}\n`;

/** For a person: a paragraph each. */
export function report(findings: readonly Finding[], looked: number): string {
  const blocks = findings.map(({ id, level, text, run }) => `${level.padEnd(8)} ${id}\n  ${text}\n  run: ${run}\n`);
  const counts = ORDER.map((level) => [level, findings.filter((each) => each.level === level).length] as const)
    .filter(([, count]) => count > 0).map(([level, count]) => `${count} ${level}`);
  const sum = counts.length === 0 ? "nothing is wrong" : counts.join(", ");
  return `${blocks.map((block) => `${block}\n`).join("")}${sum} (${looked} things looked at)\n`;
}
