/**
 * The kernel's limits beside what the configuration wants: open files, queues, ports, connection
 * tracking, pipes; and the clock.
 */
import { statSync } from "node:fs";
import { availableParallelism } from "node:os";
import { fileURLToPath } from "node:url";
import { TIME_ERROR } from "../../../native-bindings/constants.ts";
import type { Syscalls } from "../../../native-bindings/syscalls.ts";
import type { SocketAddress } from "../../config/config.ts";
import { portOf } from "../../config/endpoint.ts";
import { budget, FDS_MAX } from "../../engine/limits.ts";
import { addressOf } from "../../policy/own.ts";
import type { Setup } from "./rules.ts";
import { reloadOf, restartWith } from "./service.ts";
import { run } from "../firewall/tools.ts";
import { type Finding, finding } from "./finding.ts";
import { wantedBy } from "../listeners.ts";
import { type Program, readText, sameAddress, sockets, sysctl, sysctlNumber } from "../host.ts";
import { hasPipePrivilege, nofileHard, pipesAllowed } from "../resources.ts";

/** Below these, and with nothing in the configuration that asks for more, it is said. */
const CONNECTIONS_MIN = 1000;
const BACKLOG_MIN = 1024;
const PORTS_MIN = 10_000;
const TRACKED_MIN = 16_384;
const PIPES_MIN = 16;
/** Of a table that is filling. */
const FULL_SOON = 0.8;
const FULL = 0.98;
/** What a process has open besides its connections: libraries, threads, listeners. */
const FDS_BASE = 64;

export async function examineLimits(sys: Syscalls, setup: Setup, program: Program | null, upstream: readonly SocketAddress[]): Promise<Finding[]> {
  return [
    ...openFiles(sys, setup, program),
    ...(await backlog(setup, program)),
    ...timestamps(setup),
    ...ports(setup, upstream),
    ...tracking(setup),
    ...pipes(setup, program),
    ...clock(sys, setup),
  ];
}

function openFiles(sys: Syscalls, setup: Setup, program: Program | null): Finding[] {
  const { maxConnections } = setup.config;
  const limit = program?.nofile ?? nofileHard(sys);
  const carried = budget(limit, FDS_BASE, 0)?.tunnels ?? 0;
  const wanted = maxConnections ?? CONNECTIONS_MIN;
  if (carried < wanted) {
    const enough = Math.min(FDS_MAX, 2 ** Math.ceil(Math.log2(wanted * 2.5 + 512)));
    const asked = maxConnections === null ? "" : `, and max_connections is ${maxConnections}`;
    return [finding("risk", "nofile", `the limit of open files is ${limit}, which carries ${carried} connections${asked}`,
      restartWith(setup, program, `LimitNOFILE=${enough}`, `ulimit -n ${enough} && `))];
  }
  const used = program?.fds ?? null;
  if (used === null || used < limit * 0.95) return [];
  return [finding("risk", "nofile", `${used} of ${limit} open files are in use: new connections wait`,
    restartWith(setup, program, `LimitNOFILE=${FDS_MAX}`, `ulimit -n ${FDS_MAX} && `))];
}

/** A queue is as long as the setting was when its socket began to listen, or the program last read its file. */
async function backlog({ config }: Setup, program: Program | null): Promise<Finding[]> {
  const most = sysctlNumber("net.core.somaxconn");
  const again = program === null ? "" : ` && ${reloadOf(program)}`;
  if (most !== -1 && most < BACKLOG_MIN) {
    return [finding("risk", "somaxconn", `at most ${most} connections may wait to be accepted; more at once are refused or delayed`, `sysctl -w net.core.somaxconn=4096${again}`)];
  }
  if (program === null) return [];
  const ports = new Set(wantedBy(config).map(({ address }) => `${portOf(address.bytes, 0)}`));
  const short = (await run("ss", ["-Htln"])).out.split("\n").map((row) => row.trim().split(/\s+/))
    .filter(([, , queue, local]) => ports.has(/:(\d+)$/.exec(local ?? "")?.[1] ?? "") && Number(queue) < BACKLOG_MIN);
  if (short.length === 0) return [];
  return [finding("risk", "somaxconn", `at most ${short[0]![2]} connections may wait to be accepted on ${short[0]![3]}, as net.core.somaxconn was when it began to listen`, reloadOf(program))];
}

/**
 * The destination is no part of what a redirected connection is to the listener. So one with the source
 * port of another, which is in TIME_WAIT there, is the same; connection tracking gives it another port, but
 * may have forgotten the first by then. Where timestamps begin at random for each destination
 * (tcp_timestamps=1), it is then taken for an old duplicate, or not (PAWS; RFC 7323, 5).
 */
function timestamps({ config: { upstream, mode } }: Setup): Finding[] {
  if (upstream === null || mode !== "redirect" || sysctlNumber("net.ipv4.tcp_timestamps") !== 1) return [];
  const [names = [], values = []] = (readText("/proc/net/netstat") ?? "").split("\n")
    .filter((line) => line.startsWith("TcpExt:")).map((line) => line.split(" "));
  // Older kernels do not count these apart (PAWSEstab).
  const count = Number(values[names.indexOf("PAWSTimewait")] ?? 0);
  if (count === 0) return [];
  return [finding("advice", "timestamps",
    `SYNs that were refused as old duplicates, and had to be sent again: ${count}; behind REDIRECT two connections from one port to two destinations look so`,
    "sysctl -w net.ipv4.tcp_timestamps=2")];
}

function ports({ config }: Setup, upstream: readonly SocketAddress[]): Finding[] {
  const [first = 0, last = 0] = (sysctl("net.ipv4.ip_local_port_range") ?? "").split(/\s+/).map(Number);
  if (last <= first) return [];
  const reserved = (sysctl("net.ipv4.ip_local_reserved_ports") ?? "").split(",").map((each) => each.split("-").map(Number))
    .reduce((sum, [from = 0, to = from]) => sum + Math.max(0, Math.min(to, last) - Math.max(from, first) + 1), 0);
  const count = last - first + 1 - reserved;
  const mend = 'sysctl -w net.ipv4.ip_local_port_range="1024 65535"';
  const room = `there are ${count} local ports (${first} to ${last}${reserved === 0 ? "" : `, less ${reserved} of net.ipv4.ip_local_reserved_ports`}), and so as many connections to one address of the upstream`;
  const { maxConnections } = config;
  if (upstream.length > 0 && maxConnections !== null && maxConnections > count * upstream.length) {
    return [finding("risk", "port-range", `${room}; max_connections is ${maxConnections}`, mend)];
  }
  if (count < PORTS_MIN) return [finding("risk", "port-range", room, mend)];
  if (upstream.length === 0) return [];
  const rows = sockets();
  for (const { bytes, text } of upstream) {
    const address = addressOf(bytes, 0);
    const port = portOf(bytes, 0);
    const used = rows.filter(({ remote, remotePort }) => remotePort === port && sameAddress(remote, address)).length;
    if (used >= count * FULL_SOON) {
      return [finding("risk", "port-range", `${used} of ${count} local ports are taken by connections to ${text}, with those that have just ended`, mend)];
    }
  }
  return [];
}

function tracking({ config }: Setup): Finding[] {
  const most = sysctlNumber("net.netfilter.nf_conntrack_max");
  const count = sysctlNumber("net.netfilter.nf_conntrack_count");
  // 0: no limit.
  if (most <= 0) return [];
  // A connection is tracked on its way to us, and ours on its way out.
  const wanted = config.maxConnections === null ? TRACKED_MIN : config.maxConnections * 2;
  const more = 2 ** Math.ceil(Math.log2(Math.max(wanted, most * 2)));
  const mend = `sysctl -w net.netfilter.nf_conntrack_max=${more}`;
  if (count >= most * FULL_SOON) {
    const level = count >= most * FULL ? "broken" : "risk";
    return [finding(level, "conntrack-table", `connection tracking has ${count} of at most ${most} entries; beyond, the kernel drops packets of new connections`, mend)];
  }
  if (most >= wanted) return [];
  const asked = config.maxConnections === null ? "" : `, and max_connections of ${config.maxConnections} takes ${wanted}`;
  return [finding("risk", "conntrack-table", `connection tracking has room for ${most} entries${asked}`, mend)];
}

function pipes({ config }: Setup, program: Program | null): Finding[] {
  const { pipes: asked, pipeBytes } = config.limits;
  const privileged = program === null ? config.user === null && hasPipePrivilege() : hasPipePrivilege(program.capabilities);
  const largest = sysctlNumber("fs.pipe-max-size");
  if (!privileged && largest !== -1 && largest < pipeBytes) {
    return [finding("risk", "pipe-user-pages", `a pipe may have ${largest} bytes, and limits.pipe_size is ${pipeBytes}`, `sysctl -w fs.pipe-max-size=${pipeBytes}`)];
  }
  const allowed = pipesAllowed(pipeBytes, privileged);
  const workers = config.workers ?? availableParallelism();
  const wanted = asked ?? Math.min(PIPES_MIN, Math.max(4, workers * 4));
  if (allowed >= wanted) return [];
  const pages = Math.ceil((wanted * pipeBytes) / 0.75 / 4096);
  return [finding("risk", "pipe-user-pages",
    `the kernel gives one user ${allowed} pipes of ${pipeBytes} bytes before it shrinks them; bulk traffic of more than so many connections at once costs more`,
    `sysctl -w fs.pipe-user-pages-soft=${2 ** Math.ceil(Math.log2(pages))}`)];
}

// ---------------------------------------------------------------------------------------------
// The clock. Deadlines are counted on another one; what suffers are logs and metrics.

const CLOCK_SLACK_MS = 120_000;
const CLOCKSOURCE = "/sys/devices/system/clocksource/clocksource0";
/** Read by a system call, not in user space (vdso(7)): a microsecond instead of some nanoseconds. */
const SLOW_CLOCKS = ["hpet", "acpi_pm", "jiffies", "refined-jiffies", "pit"];

function clock(sys: Syscalls, { file }: Setup): Finding[] {
  const found: Finding[] = [];
  const latest = Math.max(...[fileURLToPath(import.meta.url), file].map((path) => mtime(path)));
  const mend = "timedatectl set-ntp true";
  if (Date.now() + CLOCK_SLACK_MS < latest) {
    found.push(finding("risk", "clock", `the clock says ${new Date().toISOString()}, before a file was written (${new Date(latest).toISOString()}): one of them is wrong`, mend));
  } else if (sys.adjtimex() === TIME_ERROR) {
    found.push(finding("risk", "clock", "nothing keeps this host's clock right: log and metrics will not fit those of other hosts", mend));
  }
  const source = readText(`${CLOCKSOURCE}/current_clocksource`)?.trim() ?? "";
  if (SLOW_CLOCKS.includes(source)) {
    const others = (readText(`${CLOCKSOURCE}/available_clocksource`) ?? "").trim().split(/\s+/);
    const better = others.find((name) => !SLOW_CLOCKS.includes(name)) ?? "tsc";
    found.push(finding("risk", "clocksource", `the kernel's clock source is ${source}, which is slow to read, and every turn of a worker reads it`, `echo ${better} > ${CLOCKSOURCE}/current_clocksource`));
  }
  return found;
}

function mtime(path: string): number {
  try {
    return statSync(path).mtimeMs;
  } catch {
    return 0;
  }
}
