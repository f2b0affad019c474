/**
 * What is measured: each relay, egress and chain of both as processes of its own, and the reading
 * of their CPU clock, memory and fds from /proc. Every subject has a port, so that all can run side
 * by side. A relay has a range of addresses that exist nowhere, and the firewall hands connections
 * to those addresses to its port; an egress is asked by SOCKS5 for an address that exists; what
 * goes to the same address with a chain's mark, the firewall hands to the chain's relay.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, openSync, closeSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { availableParallelism, cpus } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { LANES_MAX, lanesOf } from "../src/control/syn-queues.ts";

export const ROOT = fileURLToPath(new URL("../../", import.meta.url));
export const BIN = `${ROOT}bench/bin/`;
/** A tmpfs in the private mount namespace: it goes when the namespace goes. */
export const SCRATCH = "/run/";
export const TARGET_PORT = 1080;
const FIRST_PORT = 1100;
/** Of the chains' egresses, which are nobody else's to speak to. */
const FIRST_INNER_PORT = 1200;
const ADMIN_OFFSET = 200;
const FIRST_QUEUE = 2000;
/** Of this host, and not loopback's own: it is where egresses go, at TARGET_PORT. */
export const DESTINATION = "198.18.0.1";

const RELAYS = [
  "direct", "limit", "limit+queue", "transplice", "transplice+log", "transplice+truthful", "transplice+workers", "transplice+truthful+workers",
  "transplice+admin", "node-pipe", "redsocks",
  "transocks",
] as const;
const EGRESSES = ["transplice-egress", "usocksd", "dante", "microsocks"] as const;
const CHAINS = ["transplice-chain", "transocks+usocksd"] as const;
export const SUBJECTS = [...RELAYS, ...EGRESSES, ...CHAINS] as const;
export type SubjectName = (typeof SUBJECTS)[number];
export type Role = "relay" | "egress" | "chain";

export function roleOf(name: SubjectName): Role {
  const among = (list: readonly SubjectName[]) => list.includes(name);
  return among(RELAYS) ? "relay" : among(EGRESSES) ? "egress" : "chain";
}

export interface Subject {
  readonly name: SubjectName;
  /** Where a client connects who goes through it and knows of no proxy. */
  readonly address: string;
  /** What the load is told to go through it. */
  readonly way: readonly string[];
  readonly process: ChildProcess;
  readonly pid: number;
}

export interface SubjectOptions {
  /** The node that runs transplice and node-pipe, and what it is told first. */
  readonly node: string;
  readonly nodeFlags: readonly string[];
  readonly ipv6: boolean;
}

/** Why a subject cannot run here, or null. */
export function missing(name: SubjectName): string | null {
  if (name.startsWith("transplice") && !existsSync(`${ROOT}dist/src/main.js`)) {
    return "dist/src/main.js is not there: npm run build";
  }
  const fromDebian = DEBIAN.get(name)?.package;
  if (fromDebian !== undefined && programPath(name) === null) return `not installed: apt install ${fromDebian}`;
  const lacking = name.split("+").find((part) => part in GO_PEERS && !existsSync(`${BIN}${part}`));
  if (lacking === undefined) return null;
  return `${lacking} could not be built: Go, and a Go module proxy that has it, are needed`;
}

/** The peers that Debian has. */
export const DEBIAN = new Map<string, { readonly package: string; readonly file: string }>([
  ["redsocks", { package: "redsocks", file: "redsocks" }],
  ["dante", { package: "dante-server", file: "danted" }],
  ["microsocks", { package: "microsocks", file: "microsocks" }],
]);

export function programPath(program: string): string | null {
  const file = DEBIAN.get(program)?.file;
  return ["/usr/sbin/", "/usr/bin/"].map((folder) => `${folder}${file}`).find(existsSync) ?? null;
}

/**
 * The peers that Go builds, by the tags to ask for, the last first: not every proxy has each. The
 * last of usocksd differs from the one before it by its metrics alone.
 */
export const GO_PEERS: Readonly<Record<string, readonly string[]>> = {
  transocks: ["v1.1.1"],
  usocksd: ["v1.3.0", "v1.2.0"],
};

export const portOf = (name: SubjectName): number => FIRST_PORT + SUBJECTS.indexOf(name);

const innerPortOf = (name: SubjectName): number => FIRST_INNER_PORT + SUBJECTS.indexOf(name);

/** Where the subject that is watched shows itself. */
export const adminPortOf = (name: SubjectName): number => portOf(name) + ADMIN_OFFSET;

export const isTruthful = (name: SubjectName): boolean => name === "transplice+truthful";
/** As many as there are without a setting; else one. */
const hasWorkers = (name: SubjectName): boolean => name.endsWith("+workers");

/** The NFQUEUEs that SYNs to it go through. */
export function queuesOf(name: SubjectName): { first: number; lanes: number } | null {
  if (name !== "limit+queue" && !name.includes("+truthful")) return null;
  return { first: FIRST_QUEUE + LANES_MAX * SUBJECTS.indexOf(name), lanes: hasWorkers(name) ? lanesOf(availableParallelism()) : 1 };
}

/** What is redirected to the subject's port, as its rule says it to each tool of the firewall. */
export function redirected(name: SubjectName): [tool: string, match: string[]][] {
  const index = SUBJECTS.indexOf(name);
  switch (roleOf(name)) {
    case "relay":
      return [
        ["iptables", ["-d", `198.51.100.${16 * index}/28`]],
        ["ip6tables", ["-d", `2001:db8::${index}:0/112`]],
      ];
    case "egress":
      return [];
    case "chain":
      return [["iptables", ["-d", DESTINATION, "-m", "mark", "--mark", `${portOf(name)}`]]];
  }
}

function wayThrough(name: SubjectName, ipv6: boolean): Pick<Subject, "address" | "way"> {
  const index = SUBJECTS.indexOf(name);
  const relayed = ipv6 ? `2001:db8::${index}:1` : `198.51.100.${16 * index + 1}`;
  const real = ["-a", DESTINATION, "-P", `${TARGET_PORT}`];
  switch (roleOf(name)) {
    case "relay": return { address: relayed, way: ["-a", relayed, "-P", "80"] };
    case "egress": return { address: DESTINATION, way: [...real, "-x", `${portOf(name)}`] };
    case "chain": return { address: DESTINATION, way: [...real, "-m", `${portOf(name)}`] };
  }
}

/** Starts a subject and waits until it listens. */
export async function startSubject(name: SubjectName, options: SubjectOptions): Promise<Subject> {
  const [command, ...args] = commandOf(name, options);
  const log = openSync(logOf(name), "w");
  const child = spawn(command!, args, { stdio: ["ignore", log, log] });
  closeSync(log);
  await listening(portOf(name), child, name);
  if (roleOf(name) === "chain") await listening(innerPortOf(name), child, name);
  return { name, ...wayThrough(name, options.ipv6), process: child, pid: child.pid! };
}

/** CPU of the one worker's thread, in ns: it has a name of its own. */
export function readWorkerCpu(pid: number): number {
  for (const tid of readdirSync(`/proc/${pid}/task`)) {
    const at = `/proc/${pid}/task/${tid}`;
    if (readFileSync(`${at}/comm`, "utf8").trim() === "transplice-0") return Number(readFileSync(`${at}/schedstat`, "utf8").split(" ")[0]);
  }
  throw new Error("there is no worker's thread");
}

export const logOf = (name: SubjectName): string => `${SCRATCH}${name}.log`;

/** Ends a process by its pid: TERM, and KILL when its patience has ended. */
export async function stop(child: ChildProcess, patienceMs = 500): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = new Promise((resolve) => child.once("exit", resolve));
  const tree = child.pid === undefined ? [] : processTree(child.pid);
  child.kill("SIGTERM");
  await Promise.race([gone, sleep(patienceMs)]);
  for (const pid of tree) {
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // It has ended by itself.
    }
  }
  await gone;
}

function commandOf(name: SubjectName, options: SubjectOptions): string[] {
  const port = portOf(name);
  const inner = innerPortOf(name);
  switch (name) {
    case "direct":
      return [`${BIN}load`, "serve", `${port}`];
    case "limit":
      return [`${BIN}limit`, `${port}`, "127.0.0.1", `${TARGET_PORT}`];
    case "limit+queue":
      return [`${BIN}limit`, `${port}`, "127.0.0.1", `${TARGET_PORT}`, "-q", `${queuesOf(name)!.first}`];
    case "transplice":
    case "transplice+workers":
      return transplice(name, options, relayKeys(port, TARGET_PORT), "warning");
    case "transplice+log":
      return transplice(name, options, relayKeys(port, TARGET_PORT), "info");
    case "transplice+truthful":
    case "transplice+truthful+workers":
      return transplice(name, options, [
        ...relayKeys(port, TARGET_PORT), "[connect]", "truthful = true", 'without = "refuse"',
        `queue = ${queuesOf(name)!.first}`,
      ], "warning");
    case "transplice+admin":
      return transplice(name, options, [
        ...relayKeys(port, TARGET_PORT), "[admin]", `listen = "127.0.0.1:${adminPortOf(name)}"`,
      ], "warning");
    case "transplice-egress":
      return transplice(name, options, egressKeys(port), "warning");
    case "transplice-chain":
      return together(
        transplice(`${name}.relay`, options, relayKeys(port, inner), "warning"),
        transplice(`${name}.egress`, options, egressKeys(inner), "warning"),
      );
    case "node-pipe":
      return [
        options.node, ...options.nodeFlags, `${ROOT}dist/bench/pipe-relay.js`, `${port}`,
        `${TARGET_PORT}`,
      ];
    case "redsocks":
      return [programPath(name)!, "-c", configured(name, [
        "base { log_debug = off; log_info = off; log = \"stderr\"; daemon = off;",
        "  redirector = iptables; redsocks_conn_max = 12000; }",
        `redsocks { local_ip = 127.0.0.1; local_port = ${port}; ip = 127.0.0.1;`,
        `  port = ${TARGET_PORT}; type = socks5; splice = on; listenq = 4096; }`,
      ])];
    case "transocks":
      return transocks(name, port, TARGET_PORT);
    case "usocksd":
      return usocksd(name, port);
    case "transocks+usocksd":
      return together(transocks(`${name}.relay`, port, inner), usocksd(`${name}.egress`, inner));
    case "dante":
      return [programPath(name)!, "-p", `${SCRATCH}${name}.pid`, "-f", configured(name, [
        "errorlog: stderr",
        `internal: 127.0.0.1 port = ${port}`,
        `external: ${DESTINATION}`,
        "clientmethod: none",
        "socksmethod: none",
        "user.privileged: root",
        "user.unprivileged: root",
        "client pass { from: 0/0 to: 0/0 }",
        "socks pass { from: 0/0 to: 0/0 }",
      ])];
    case "microsocks":
      // It cannot be told to be quiet: its lines go where they cost it least.
      return ["sh", "-c", `exec ${programPath(name)} -i 127.0.0.1 -p ${port} 2>/dev/null`];
  }
}

/** Two processes in one tree, which is read and ended as one. */
const together = (relay: string[], egress: string[]): string[] =>
  ["sh", "-c", `${egress.join(" ")} & exec ${relay.join(" ")}`];

/** Writes a configuration file and says where it is. */
function configured(name: string, lines: readonly string[]): string {
  const file = `${SCRATCH}${name}.conf`;
  writeFileSync(file, `${lines.join("\n")}\n`);
  return file;
}

const relayKeys = (port: number, upstreamPort: number): string[] => [
  `listen = ["127.0.0.1:${port}", "[::1]:${port}"]`,
  `proxy_url = "socks5://127.0.0.1:${upstreamPort}"`,
];

const ALLOW_FROM = "allow_from = [\"127.0.0.0/8\", \"198.18.0.0/15\"]";

const egressKeys = (port: number): string[] => [
  "[incoming]",
  `port = ${port}`,
  "addresses = [\"127.0.0.1\"]",
  "metrics_port = 0",
  ALLOW_FROM,
  "[outgoing]",
  "allow_networks = [\"127.0.0.0/8\", \"198.18.0.0/15\"]",
];

function transplice(
  name: string, options: SubjectOptions, keys: readonly string[], level: string,
): string[] {
  const file = configured(name, [
    ...(name.endsWith("+workers") ? [] : ["workers = 1"]), ...keys, "[log]", `filename = "${SCRATCH}${name}.lines"`, `level = "${level}"`,
  ]);
  return [options.node, ...options.nodeFlags, `${ROOT}dist/src/main.js`, "-f", file];
}

const transocks = (name: string, port: number, upstreamPort: number): string[] =>
  [`${BIN}transocks`, "-f", configured(name, [
    `listen = "127.0.0.1:${port}"`,
    `proxy_url = "socks5://127.0.0.1:${upstreamPort}"`,
    "[log]",
    "level = \"warning\"",
  ])];

/** Its metrics cannot be turned off; 0 is a port of the kernel's choice. Before, it had none. */
const usocksd = (name: string, port: number): string[] =>
  [`${BIN}usocksd`, "-f", configured(name, [
    "[incoming]",
    `port = ${port}`,
    ...(hasMetrics() ? ["metrics_port = 0"] : []),
    "addresses = [\"127.0.0.1\"]",
    ALLOW_FROM,
    "[log]",
    "level = \"warning\"",
  ])];

const hasMetrics = (): boolean => readFileSync(`${BIN}usocksd`).includes("metrics_port");

/** Waits until someone listens on the port. Asks the kernel's table: a probe would be a client. */
export async function listening(port: number, child: ChildProcess, what: string): Promise<void> {
  const hex = `:${port.toString(16).toUpperCase().padStart(4, "0")} `;
  const isListening = (line: string) => line.slice(0, 50).includes(hex) && / 0A /.test(line);
  for (let waitedMs = 0; waitedMs < 15_000; waitedMs += 20) {
    if (child.exitCode !== null || child.signalCode !== null) break;
    const tables = readFileSync("/proc/net/tcp", "utf8") + readFileSync("/proc/net/tcp6", "utf8");
    if (tables.split("\n").some(isListening)) return;
    await sleep(20);
  }
  const log = `${SCRATCH}${what}.log`;
  const said = existsSync(log) ? readFileSync(log, "utf8").slice(-2000) : "";
  throw new Error(`${what} does not listen on port ${port}; it said:\n${said}`);
}

// ---- what /proc says ---------------------------------------------------------------------------

/** A reading of a process tree's CPU clock, by process. */
export type CpuReading = ReadonlyMap<number, ProcessReading>;

interface ProcessReading {
  /** Nanoseconds on a CPU of each thread that lives. */
  readonly threads: ReadonlyMap<number, number>;
  /** The same of the process with the threads that have ended, to a tick. */
  readonly ownNs: number;
  /** And of its children that have ended, and theirs. */
  readonly childrenNs: number;
}

/** A reading of the whole machine's clock beside ours. */
export interface MachineReading {
  readonly atNs: bigint;
  /** CPU time that anyone has had, and that a hypervisor has taken. */
  readonly busyNs: number;
  /** What this process and all its descendants have had of it, those that ended included. */
  readonly oursNs: number;
}

export function readMachine(): MachineReading {
  const line = readFileSync("/proc/stat", "utf8").split("\n", 1)[0]!;
  const ticks = line.split(/\s+/).slice(1).map(Number);
  const [user, nice, system, , , irq, softirq, steal] = ticks as [number, ...number[]];
  let ours = 0;
  for (const pid of processTree(process.pid)) {
    try {
      const fields = statFields(pid).slice(11, 15).map(Number); // utime stime cutime cstime
      ours += fields.reduce((sum, one) => sum + one, 0);
    } catch {
      // It ended meanwhile, and is in its parent's account now.
    }
  }
  return {
    atNs: process.hrtime.bigint(),
    busyNs: (user + nice! + system! + irq! + softirq! + steal!) * TICK_NS,
    oursNs: ours * TICK_NS,
  };
}

/** The share of the machine that others had between two readings: 0 to 1. */
export function othersBetween(before: MachineReading, after: MachineReading): number {
  const others = after.busyNs - before.busyNs - (after.oursNs - before.oursNs);
  return Math.max(0, others / (Number(after.atNs - before.atNs) * cpus().length));
}

const TICK_NS = 1e7; // USER_HZ is 100 on every architecture of Linux that Node runs on.

export function readCpu(root: number): CpuReading {
  const reading = new Map<number, ProcessReading>();
  for (const pid of processTree(root)) {
    try {
      const threads = new Map<number, number>();
      for (const tid of readdirSync(`/proc/${pid}/task`)) {
        const schedstat = readFileSync(`/proc/${pid}/task/${tid}/schedstat`, "utf8");
        threads.set(Number(tid), Number(schedstat.split(" ")[0]));
      }
      const [user, system, childrenUser, childrenSystem] =
        statFields(pid).slice(11, 15).map((ticks) => Number(ticks) * TICK_NS);
      const [ownNs, childrenNs] = [user! + system!, childrenUser! + childrenSystem!];
      reading.set(pid, { threads, ownNs, childrenNs });
    } catch {
      // A thread or a process ended while it was being read: its parent knows.
    }
  }
  return reading;
}

/**
 * Nanoseconds between two readings. By schedstat, which is exact; where threads of a process have
 * come and gone in between, it falls behind the coarse clock of the process, and then that one
 * counts. What processes had that have ended is in their parent's account, from their beginning.
 */
export function cpuBetween(before: CpuReading, after: CpuReading): number {
  let [living, ended] = [0, 0];
  for (const [pid, now] of after) {
    const then = before.get(pid);
    let exact = 0;
    for (const [thread, ns] of now.threads) exact += ns - (then?.threads.get(thread) ?? 0);
    const coarse = now.ownNs - (then?.ownNs ?? 0);
    living += coarse - exact > 4 * TICK_NS ? coarse : exact;
    ended += now.childrenNs - (then?.childrenNs ?? 0);
  }
  for (const [pid, then] of before) if (!after.has(pid)) ended -= then.ownNs + then.childrenNs;
  return living + Math.max(0, ended);
}

export interface Usage {
  /** Pages that only this process tree has and has written: what it costs. */
  readonly privateBytes: number;
  readonly residentBytes: number;
  readonly fds: number;
}

export function readUsage(root: number): Usage {
  let [privateBytes, residentBytes, fds] = [0, 0, 0];
  for (const pid of processTree(root)) {
    try {
      const rollup = readFileSync(`/proc/${pid}/smaps_rollup`, "utf8");
      const kib = (key: string) => Number(new RegExp(`^${key}:\\s+(\\d+)`, "m").exec(rollup)?.[1]);
      fds += readdirSync(`/proc/${pid}/fd`).length;
      privateBytes += kib("Private_Dirty") * 1024;
      residentBytes += kib("Rss") * 1024;
    } catch (error) {
      if (pid === root) throw error;
      // It ended meanwhile, and has no memory.
    }
  }
  return { privateBytes, residentBytes, fds };
}

/** The process and all its descendants. */
function processTree(root: number): number[] {
  const children = new Map<number, number[]>();
  for (const entry of readdirSync("/proc")) {
    const pid = Number(entry);
    if (!Number.isInteger(pid)) continue;
    try {
      const parent = Number(statFields(pid)[1]);
      children.set(parent, [...(children.get(parent) ?? []), pid]);
    } catch {
      // It ended meanwhile.
    }
  }
  const tree = [root];
  for (const pid of tree) tree.push(...(children.get(pid) ?? []));
  return tree;
}

/** The fields of /proc/PID/stat from the state on: the name before it may hold anything. */
function statFields(pid: number): string[] {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  return stat.slice(stat.lastIndexOf(")") + 2).split(" ");
}
