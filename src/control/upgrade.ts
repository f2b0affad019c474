/**
 * Another version takes over: it is started beside this one, inherits the listening sockets, and
 * says when it serves; then this one accepts no more and drains. A backlog belongs to the socket and
 * not to a process, so no connection is refused or waits in vain. If the other fails, nothing has
 * changed.
 *
 * What is inherited stands in TRANSPLICE_HANDOVER: the fd to say on how it went, the sockets, and the
 * queues of SYNs.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { writeSync, closeSync, readFileSync } from "node:fs";
import { basename } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { HANDOVER, type PassedSocket } from "../config/environment.ts";
import { predecessorOf } from "../predecessor.ts";
import type { ListeningAddress } from "./listeners.ts";
import { type Outcome, PidFile } from "./pid-file.ts";
import type { SynQueue } from "./syn-queues.ts";

/** It has to read its configuration, start its workers, perhaps resolve a name. */
const READY_MS = 30_000;
const READY_FD = 3;
const FIRST_FD = 4;
const READY = "ready";
const WORD_CHARACTERS_MAX = 4096;

/** What one process tells the other. */
interface Handover {
  readonly readyFd: number;
  /** The firewall's rules stand, and are to be kept. */
  readonly engaged: boolean;
  readonly listening: readonly {
    readonly role: string;
    readonly text: string;
    readonly bytes: readonly number[];
    readonly dualStack: boolean;
    readonly fds: readonly number[];
  }[];
  readonly queues: readonly SynQueue[];
  /** The service manager's: they may be among those that listen. */
  readonly passed: readonly PassedSocket[];
  /** Addresses of upstreams that an operator lets nobody be dialled at. */
  readonly drained: readonly string[];
}

export interface Inherited {
  /** Without those that are passed. */
  readonly listening: readonly ListeningAddress[];
  readonly queues: readonly SynQueue[];
  readonly passed: readonly PassedSocket[];
  readonly engaged: boolean;
  readonly drained: readonly string[];
  /** One of these is to be called once: connections are served... */
  ready(): void;
  /** ...or will not be, and this is why. */
  failed(why: readonly string[]): void;
}

/** What this process was started with; null: by itself. Throws if it is not what was promised. */
export function inherited(text: string | null): Inherited | null {
  if (text === null) return null;
  // An earlier version may say nothing of some of it.
  const { readyFd, listening, queues = [], passed = [], engaged = false, drained = [] } = JSON.parse(text) as Handover;
  const theirs = new Set(passed.map(({ fd }) => fd));
  const say = (word: string): void => {
    try {
      writeSync(readyFd, `${word}\n`);
    } catch {
      // Whoever asked has ended meanwhile; all the more reason to serve.
    }
    closeSync(readyFd);
  };
  return {
    queues,
    engaged,
    listening: listening.map(({ role, text: address, bytes, dualStack, fds }) => ({
      role: role === "socks" ? "socks" : "transparent",
      address: { text: address, bytes: Uint8Array.from(bytes), dualStack, optional: false },
      fds: fds.filter((fd) => !theirs.has(fd)),
    })),
    passed,
    drained,
    ready: () => say(READY),
    failed: (why) => say(why.join("; ").replaceAll("\n", " ")),
  };
}

/**
 * Starts the program anew with the same arguments. Resolves with its pid when it serves, or with
 * what went wrong; then it has been ended.
 */
export async function startSuccessor(
  { listening, queues, passed, engaged, drained }: Omit<Handover, "readyFd" | "listening"> & { readonly listening: readonly ListeningAddress[] },
  env: NodeJS.ProcessEnv,
): Promise<Outcome> {
  const all = [...listening.flatMap(({ fds }) => fds), ...queues.map(({ fd }) => fd), ...passed.map(({ fd }) => fd)];
  const sockets = [...new Set(all)];
  const itsNumber = (fd: number): number => FIRST_FD + sockets.indexOf(fd);
  const handover: Handover = {
    readyFd: READY_FD,
    engaged,
    listening: listening.map(({ role, address, fds }) => ({
      role,
      text: address.text,
      bytes: [...address.bytes],
      dualStack: address.dualStack,
      fds: fds.map(itsNumber),
    })),
    queues: queues.map((queue) => ({ ...queue, fd: itsNumber(queue.fd) })),
    passed: passed.map(({ fd, name }) => ({ fd: itsNumber(fd), name })),
    drained,
  };
  const child = spawn(process.execPath, [...process.execArgv, ...process.argv.slice(1)], {
    stdio: ["inherit", "inherit", "inherit", "pipe", ...sockets],
    env: { ...env, [HANDOVER]: JSON.stringify(handover) },
    // It outlives us: no signal for our group shall reach it by way of us.
    detached: true,
  });
  const outcome = await said(child);
  if (outcome !== null) {
    child.kill("SIGKILL");
    return { wrong: outcome };
  }
  child.unref();
  return { pid: child.pid! };
}

/** Null when it has said that it is ready. */
function said(child: ChildProcess): Promise<string | null> {
  return new Promise((resolve) => {
    const pipe = child.stdio[READY_FD] as NodeJS.ReadableStream;
    const timer = setTimeout(
      () => resolve(`it was not ready within ${READY_MS / 1000} seconds`), READY_MS,
    );
    let word = "";
    const done = (outcome: string | null): void => {
      clearTimeout(timer);
      resolve(outcome);
    };
    pipe.on("data", (bytes: Buffer) => {
      word = (word + bytes.toString()).slice(0, WORD_CHARACTERS_MAX);
      if (word.startsWith(`${READY}\n`)) done(null);
      else if (word.includes("\n")) done(word.trimEnd());
    });
    pipe.on("error", () => {});
    child.once("error", (error) => done(error.message));
    // Not "exit": what it has said may still be on its way.
    child.once("close", (code, signal) => done(`it ended with ${signal ?? `exit code ${code}`}`));
  });
}

/** Beyond READY_MS, the old process has to end the new one and to say so. */
const ANSWER_MS = 5_000;
const LOOK_MS = 50;

/**
 * The command: asks the process that serves with this configuration file for its own upgrade, and
 * waits until the new one serves, or is known not to.
 */
export async function upgrade(config: string): Promise<{ out: string; wrong: string; code: number }> {
  const failed = (wrong: string) => ({ out: "", wrong: `transplice: ${wrong}\n`, code: 1 });
  const file = new PidFile(config);
  const pid = file.read();
  if (pid === null) {
    return failed(`no process is known to run with ${config}: there is no ${file.path}. One that runs and could not write it is upgraded by: kill -USR2 PID`);
  }
  if (!isOurs(pid)) return failed(`process ${pid}, of ${file.path}, does not run transplice any more`);
  try {
    file.forget();
    process.kill(pid, "SIGUSR2");
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    return failed(code === "EPERM" || code === "EACCES" ? `process ${pid} is another user's; this takes root, or that user` : message);
  }
  for (let waited = 0; waited < READY_MS + ANSWER_MS; waited += LOOK_MS) {
    const outcome = file.told();
    if (outcome !== null && "pid" in outcome) {
      const out = `process ${outcome.pid} has taken over from process ${pid}, which ends with its last connection\n`;
      return { out, wrong: "", code: 0 };
    }
    if (outcome !== null) return failed(`the new process does not serve: ${outcome.wrong}; process ${pid} goes on as before`);
    if (!isOurs(pid)) return failed(`process ${pid} has ended meanwhile`);
    await sleep(LOOK_MS);
  }
  return failed(`process ${pid} has not answered within ${(READY_MS + ANSWER_MS) / 1000} seconds; its log may say why`);
}

/** A process that runs transplice, by whatever name: USR2 would end another. */
function isOurs(pid: number): boolean {
  try {
    const words = readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
    return words.some((word) => {
      const name = basename(word);
      return name === "transplice" || predecessorOf(name) !== null || word.endsWith("/dist/src/main.js");
    });
  } catch {
    return false;
  }
}
