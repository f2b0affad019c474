/**
 * The programs that speak to the kernel about rules: nft, iptables and its kin, ip. Finds them, runs
 * them without blocking the event loop, and says what went wrong in words for the operator.
 */
import { execFile, spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";

export type FirewallBackend = "nft" | "iptables" | "iptables-legacy";
export const FIREWALL_BACKENDS: readonly FirewallBackend[] = ["nft", "iptables", "iptables-legacy"];

const PATHS = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/local/bin"];
/** All that they are told of our environment: what they say must be what we expect to read. */
export const TOOL_ENV = { LC_ALL: "C", PATH: PATHS.join(":") } as const;
const TOOL_MS = 30_000;
const OUTPUT_BYTES_MAX = 1 << 26;
const INSTALL = { nft: "nftables", iptables: "iptables", "iptables-legacy": "iptables" } as const;
const CAP_NET_ADMIN = 12n;

/** With words for the operator, and where there is one, a command. */
export class Refusal extends Error {
  readonly run: string | null;

  constructor(message: string, run: string | null = null) {
    super(message);
    this.run = run;
  }
}

export const refusalText = ({ message, run }: Refusal): string => (run === null ? message : `${message}; run: ${run}`);

export interface Ran {
  readonly ok: boolean;
  readonly out: string;
  readonly said: string;
}

export function tool(name: string): string | null {
  return PATHS.map((path) => `${path}/${name}`).find((path) => existsSync(path)) ?? null;
}

export async function run(name: string, args: readonly string[], input = ""): Promise<Ran> {
  const path = tool(name);
  if (path === null) return { ok: false, out: "", said: `there is no ${name} here` };
  const options = { env: TOOL_ENV, timeout: TOOL_MS, killSignal: "SIGKILL", maxBuffer: OUTPUT_BYTES_MAX } as const;
  return new Promise((resolve) => {
    const child = execFile(path, args, options, (error, out, said) => {
      const words = said.trim() === "" && error !== null ? error.message : said;
      resolve({ ok: error === null, out, said: words.trim().replaceAll(/\s*\n\s*/g, "; ") });
    });
    // Who fails at once reads nothing.
    child.stdin?.on("error", () => {});
    child.stdin?.end(input);
  });
}

/** The output; or a Refusal that begins with `what`. */
export function must(ran: Ran, what: string): string {
  if (ran.ok) return ran.out;
  requireCapable();
  throw new Refusal(`${what}: ${ran.said}`);
}

/** Programs that we start have the capability if we are root, or if it is an ambient one. */
export function requireCapable(): void {
  const refusal = capable();
  if (refusal !== null) throw refusal;
}

/** Why we may not touch rules, or even see them; or null. */
export function capable(): Refusal | null {
  if (held("CapEff") && (process.geteuid?.() === 0 || held("CapAmb"))) return null;
  return held("CapEff")
    ? new Refusal(
        "the tools of the firewall would not inherit CAP_NET_ADMIN, which must be an ambient capability (AmbientCapabilities=CAP_NET_ADMIN in a unit)",
        "setpriv --ambient-caps +net_admin transplice ...",
      )
    : new Refusal("this needs CAP_NET_ADMIN, as an ambient capability, or root", "sudo transplice ...");
}

/** A line of /proc/self/status has CAP_NET_ADMIN. */
export function held(set: "CapEff" | "CapAmb"): boolean {
  const found = new RegExp(`^${set}:\\s*([0-9a-f]+)`, "m").exec(readFileSync("/proc/self/status", "utf8"))?.[1] ?? "0";
  return ((BigInt(`0x${found}`) >> CAP_NET_ADMIN) & 1n) === 1n;
}

/** iptables-nft, ip6tables-legacy-save...: the variant by its name, or what the plain name is. */
export function iptablesTool(backend: FirewallBackend, family: 4 | 6, end: "" | "-save" | "-restore"): string {
  const base = family === 4 ? "iptables" : "ip6tables";
  const named = `${base}${backend === "iptables" ? "-nft" : "-legacy"}${end}`;
  if (tool(named) !== null) return named;
  const path = tool(base);
  if (path === null) return named;
  const isNft = spawnSync(path, ["--version"], { encoding: "utf8", env: TOOL_ENV, timeout: TOOL_MS }).stdout?.includes("nf_tables") ?? false;
  return isNft === (backend === "iptables") ? `${base}${end}` : named;
}

/** `wrong`: why not, of each. */
export function noneWorks(backends: readonly FirewallBackend[], wrong: readonly string[]): Refusal {
  const areMissing = backends.length > 1 && backends.every((backend, i) => wrong[i] === missing(backend));
  return areMissing
    ? new Refusal("there is no nft and no iptables here", "apt-get install nftables (or dnf, apk, pacman)")
    : new Refusal(`no backend works here: ${wrong.join(" | ")}`);
}

export const missing = (backend: FirewallBackend): string =>
  `${backend} is not installed; to install it: apt-get install ${INSTALL[backend]} (or dnf, apk, pacman)`;
