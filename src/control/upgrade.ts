/**
 * Another version takes over: it is started beside this one, inherits the listening sockets, and
 * says when it serves; then this one accepts no more and drains. A backlog belongs to the socket and
 * not to a process, so no connection is refused or waits in vain. If the other fails, nothing has
 * changed.
 *
 * What is inherited stands in TRANSPLICE_HANDOVER: the fd to say "ready" on, and the sockets and queues of SYNs.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { writeSync, closeSync } from "node:fs";
import { HANDOVER } from "../config/environment.ts";
import type { ListeningAddress } from "./listeners.ts";
import type { SynQueue } from "./syn-queues.ts";

/** It has to read its configuration, start its workers, perhaps resolve a name. */
const READY_MS = 30_000;
const READY_FD = 3;
const FIRST_FD = 4;

/** What one process tells the other. */
interface Handover {
  readonly readyFd: number;
  readonly listening: readonly {
    readonly role: string;
    readonly text: string;
    readonly bytes: readonly number[];
    readonly dualStack: boolean;
    readonly fds: readonly number[];
  }[];
  readonly queues: readonly SynQueue[];
}

export interface Inherited {
  readonly listening: readonly ListeningAddress[];
  readonly queues: readonly SynQueue[];
  /** To be called once, when connections are served. */
  ready(): void;
}

/** What this process was started with; null: by itself. Throws if it is not what was promised. */
export function inherited(text: string | null): Inherited | null {
  if (text === null) return null;
  // A version that held no SYNs says nothing of queues.
  const { readyFd, listening, queues = [] } = JSON.parse(text) as Handover;
  return {
    queues,
    listening: listening.map(({ role, text: address, bytes, dualStack, fds }) => ({
      role: role === "socks" ? "socks" : "transparent",
      address: { text: address, bytes: Uint8Array.from(bytes), dualStack, optional: false },
      fds,
    })),
    ready: () => {
      writeSync(readyFd, "ready\n");
      closeSync(readyFd);
    },
  };
}

/**
 * Starts the program anew with the same arguments. Resolves with its pid when it serves, or with
 * what went wrong; then it has been ended.
 */
export async function startSuccessor(
  listening: readonly ListeningAddress[], queues: readonly SynQueue[], env: NodeJS.ProcessEnv,
): Promise<{ pid: number } | { wrong: string }> {
  const sockets = [...listening.flatMap(({ fds }) => fds), ...queues.map(({ fd }) => fd)];
  let next = FIRST_FD;
  const handover: Handover = {
    readyFd: READY_FD,
    listening: listening.map(({ role, address, fds }) => ({
      role,
      text: address.text,
      bytes: [...address.bytes],
      dualStack: address.dualStack,
      fds: fds.map(() => next++),
    })),
    queues: queues.map((queue) => ({ ...queue, fd: next++ })),
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
    const done = (outcome: string | null): void => {
      clearTimeout(timer);
      resolve(outcome);
    };
    pipe.on("data", (bytes: Buffer) => {
      if (bytes.includes("ready")) done(null);
    });
    pipe.on("error", () => {});
    child.once("error", (error) => done(error.message));
    child.once("exit", (code, signal) => done(`it ended with ${signal ?? `exit code ${code}`}`));
  });
}
