/**
 * What is measured: each relay as a process of its own, and the reading of its CPU clock, memory
 * and fds from /proc. Every subject has a port and a range of addresses that exist nowhere; the
 * firewall hands connections to those addresses to that port, so that all can run side by side.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, openSync, closeSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

export const ROOT = fileURLToPath(new URL("../../", import.meta.url));
export const BIN = `${ROOT}bench/bin/`;
/** A tmpfs in the private mount namespace: it goes when the namespace goes. */
export const SCRATCH = "/run/";
export const TARGET_PORT = 1080;
const FIRST_PORT = 1100;

export const SUBJECTS = [
  "direct", "limit", "transplice", "transplice+log", "node-pipe", "redsocks", "transocks",
] as const;
export type SubjectName = (typeof SUBJECTS)[number];

export interface Subject {
  readonly name: SubjectName;
  /** The first of its addresses that exist nowhere. */
  readonly address: string;
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
  if (name === "redsocks" && redsocksPath() === null) return "not installed: apt install redsocks";
  if (name === "transocks" && !existsSync(`${BIN}transocks`)) {
    return "could not be built: Go and the Go module proxy are needed";
  }
  return null;
}

export const redsocksPath = (): string | null =>
  ["/usr/sbin/redsocks", "/usr/bin/redsocks"].find((path) => existsSync(path)) ?? null;

export const portOf = (name: SubjectName): number => FIRST_PORT + SUBJECTS.indexOf(name);

/** The networks whose connections are redirected to the subject's port. */
export function networksOf(name: SubjectName): { v4: string; v6: string } {
  const index = SUBJECTS.indexOf(name);
  return { v4: `198.51.100.${16 * index}/28`, v6: `2001:db8::${index}:0/112` };
}

function addressOf(name: SubjectName, ipv6: boolean): string {
  const index = SUBJECTS.indexOf(name);
  return ipv6 ? `2001:db8::${index}:1` : `198.51.100.${16 * index + 1}`;
}

/** Starts a subject and waits until it listens. */
export async function startSubject(name: SubjectName, options: SubjectOptions): Promise<Subject> {
  const [command, ...args] = commandOf(name, options);
  const log = openSync(logOf(name), "w");
  const child = spawn(command!, args, { stdio: ["ignore", log, log] });
  closeSync(log);
  await listening(portOf(name), child, name);
  return { name, address: addressOf(name, options.ipv6), process: child, pid: child.pid! };
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
  const file = `${SCRATCH}${name}.conf`;
  const node = [options.node, ...options.nodeFlags];
  switch (name) {
    case "direct":
      return [`${BIN}load`, "serve", `${port}`];
    case "limit":
      return [`${BIN}limit`, `${port}`, "127.0.0.1", `${TARGET_PORT}`];
    case "transplice":
    case "transplice+log":
      writeFileSync(file, [
        `listen = ["127.0.0.1:${port}", "[::1]:${port}"]`,
        `proxy_url = "socks5://127.0.0.1:${TARGET_PORT}"`,
        "workers = 1",
        "[log]",
        `filename = "${SCRATCH}${name}.lines"`,
        `level = "${name === "transplice" ? "warning" : "info"}"`,
        "",
      ].join("\n"));
      return [...node, `${ROOT}dist/src/main.js`, "-f", file];
    case "node-pipe":
      return [...node, `${ROOT}dist/bench/pipe-relay.js`, `${port}`, `${TARGET_PORT}`];
    case "redsocks":
      writeFileSync(file, [
        "base { log_debug = off; log_info = off; log = \"stderr\"; daemon = off;",
        "  redirector = iptables; redsocks_conn_max = 12000; }",
        `redsocks { local_ip = 127.0.0.1; local_port = ${port}; ip = 127.0.0.1;`,
        `  port = ${TARGET_PORT}; type = socks5; splice = on; listenq = 4096; }`,
        "",
      ].join("\n"));
      return [redsocksPath()!, "-c", file];
    case "transocks":
      writeFileSync(file, [
        `listen = "127.0.0.1:${port}"`,
        `proxy_url = "socks5://127.0.0.1:${TARGET_PORT}"`,
        "[log]",
        "level = \"warning\"",
        "",
      ].join("\n"));
      return [`${BIN}transocks`, "-f", file];
  }
}

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

/** A reading of a process tree's CPU clock. */
export interface CpuReading {
  /** Nanoseconds on a CPU of each thread that lives. */
  readonly threads: ReadonlyMap<string, number>;
  /** The same of whole processes with the threads that have ended, to a tick. */
  readonly processes: ReadonlyMap<number, number>;
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
  const threads = new Map<string, number>();
  const processes = new Map<number, number>();
  for (const pid of processTree(root)) {
    try {
      for (const tid of readdirSync(`/proc/${pid}/task`)) {
        const schedstat = readFileSync(`/proc/${pid}/task/${tid}/schedstat`, "utf8");
        threads.set(`${pid}/${tid}`, Number(schedstat.split(" ")[0]));
      }
      const fields = statFields(pid);
      processes.set(pid, (Number(fields[11]) + Number(fields[12])) * TICK_NS);
    } catch {
      // A thread or a process ended while it was being read: `processes` of its parent knows.
    }
  }
  return { threads, processes };
}

/**
 * Nanoseconds between two readings. By schedstat, which is exact; where threads have come and gone
 * in between, it falls behind the coarse clock of the process, and then that one counts.
 */
export function cpuBetween(before: CpuReading, after: CpuReading): number {
  let exact = 0;
  for (const [thread, ns] of after.threads) exact += ns - (before.threads.get(thread) ?? 0);
  let coarse = 0;
  for (const [pid, ns] of after.processes) coarse += ns - (before.processes.get(pid) ?? 0);
  return coarse - exact > 4 * TICK_NS ? coarse : exact;
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
    const rollup = readFileSync(`/proc/${pid}/smaps_rollup`, "utf8");
    const kib = (key: string) => Number(new RegExp(`^${key}:\\s+(\\d+)`, "m").exec(rollup)?.[1]);
    privateBytes += kib("Private_Dirty") * 1024;
    residentBytes += kib("Rss") * 1024;
    fds += readdirSync(`/proc/${pid}/fd`).length;
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
