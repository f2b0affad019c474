/**
 * What this process may use of the kernel: file descriptors and pipes. Asked once, at start.
 */
import { readdirSync, statSync } from "node:fs";
import { CAP_SYS_ADMIN, CAP_SYS_RESOURCE, RLIMIT_NOFILE, SCHED_BATCH, SCHED_OTHER, threadCpuClock } from "../../native-bindings/constants.ts";
import type { Syscalls } from "../../native-bindings/syscalls.ts";
import { FDS_MAX } from "../engine/limits.ts";
import { readText } from "./host.ts";

/** Raises the soft limit of open files to the hard one. Answers what holds now. */
export function raiseNofile(sys: Syscalls): number {
  const limit = sys.getrlimit(RLIMIT_NOFILE);
  if (limit === null) return 1024;
  const { soft, hard } = limit;
  // Above FDS_MAX nothing is gained, and some limits ("a billion") stand for none.
  const wanted = Math.min(hard, Math.max(soft, FDS_MAX));
  if (wanted > soft && sys.setrlimit(RLIMIT_NOFILE, wanted, hard) >= 0) return wanted;
  return soft;
}

/**
 * Main makes way for the workers, whose work does not wait: as SCHED_BATCH (sched(7)) it has the same
 * share of the CPUs, but preempts nobody when it wakes up, as it does for each scrape. It takes no
 * privilege. A policy that an operator has given to the process is left alone; but for SCHED_BATCH, which
 * workers take for main's, as it is in a process that an earlier version has started.
 */
export function makeWay(sys: Syscalls): void {
  if (sys.sched_getscheduler() === SCHED_OTHER) sys.sched_setscheduler(SCHED_BATCH);
}

/** Up to where raiseNofile() would go. */
export function nofileHard(sys: Syscalls): number {
  const limit = sys.getrlimit(RLIMIT_NOFILE);
  return limit === null ? 1024 : Math.min(limit.hard, Math.max(limit.soft, FDS_MAX));
}

export function openFds(): number {
  // Since Linux 6.2 the directory's size says it, which is as fast with a million of them.
  const { size } = statSync("/proc/self/fd");
  if (size > 0) return size;
  return readdirSync("/proc/self/fd").length - 1; // Without the one that reads the directory.
}

/** What is in /proc is not read again within so long. */
const FRESH_MS = 1000;

/** What this process has, as /proc says it; up to a second old, for scrapes ask more often. */
export class ProcessUse {
  #atMs = -Infinity;
  #now = { fds: 0, residentBytes: 0 };

  at(nowMs: number): { readonly fds: number; readonly residentBytes: number } {
    if (nowMs - this.#atMs >= FRESH_MS) {
      this.#atMs = nowMs;
      this.#now = { fds: openFds(), residentBytes: process.memoryUsage.rss() };
    }
    return this.#now;
  }
}

/** An ordinary user shares this many pages among all his pipes before they shrink. */
const SOFT_PAGES = "/proc/sys/fs/pipe-user-pages-soft";
const PAGE_BYTES = 4096;
/** Pipes for whom no such limit holds: bulk streams at the same moment, beyond which it is copied. */
const PIPES_PRIVILEGED = 256;

/** How many pipes of such a size the kernel will give a user without shrinking them. */
export function pipesAllowed(pipeBytes: number, privileged = hasPipePrivilege()): number {
  const pages = Number(readText(SOFT_PAGES) ?? "16384");
  if (pages === 0 || privileged) return PIPES_PRIVILEGED;
  // A quarter stays for the user's other programs.
  return Math.min(PIPES_PRIVILEGED, Math.floor((pages * PAGE_BYTES * 0.75) / pipeBytes));
}

/** CAP_SYS_RESOURCE or CAP_SYS_ADMIN, in the first user namespace: those of another do not count. */
export function hasPipePrivilege(held = capabilities("CapEff")): boolean {
  const map = readText("/proc/self/uid_map")?.trim().split(/\s+/) ?? [];
  if (map.join(" ") !== "0 0 4294967295") return false;
  return (held & ((1n << BigInt(CAP_SYS_ADMIN)) | (1n << BigInt(CAP_SYS_RESOURCE)))) !== 0n;
}

/** Of the main thread, by their numbers' bits. */
export const permittedCapabilities = (): bigint => capabilities("CapPrm");

/** What no program that is started from here can have more of. */
export const boundingCapabilities = (): bigint => capabilities("CapBnd");

function capabilities(set: "CapEff" | "CapPrm" | "CapBnd"): bigint {
  const found = new RegExp(`^${set}:\\s*([0-9a-f]+)`, "m").exec(readText("/proc/self/status") ?? "")?.[1];
  return BigInt(`0x${found ?? "0"}`);
}

/** What CPU the threads of this process have had, by their names (prctl(2), PR_SET_NAME). */
export class ThreadTimes {
  readonly #sys: Syscalls;
  readonly #threads = new Map<string, { readonly tid: number; readonly life: number }>();

  constructor(sys: Syscalls) {
    this.#sys = sys;
  }

  /**
   * Seconds, user and system; null: there is no such thread. `life`: another number is another thread of
   * the name, so that nobody is taken for one who has ended and whose tid somebody else has.
   */
  seconds(name: string, life: number): number | null {
    const known = this.#threads.get(name);
    const ns = known?.life === life ? this.#runNs(known.tid) : -1;
    if (ns >= 0) return ns / 1e9;
    this.#threads.delete(name);
    const tid = readdirSync(TASKS).find((id) => readText(`${TASKS}/${id}/comm`)?.trim() === name);
    if (tid === undefined) return null;
    this.#threads.set(name, { tid: Number(tid), life });
    const found = this.#runNs(Number(tid));
    return found < 0 ? null : found / 1e9;
  }

  /** A single system call, where /proc takes ten: it is asked for with each scrape. */
  #runNs(tid: number): number {
    return this.#sys.clock_gettime(threadCpuClock(tid));
  }
}

const TASKS = "/proc/self/task";
