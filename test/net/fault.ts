/**
 * Faults from outside: loaded into the program under test by NODE_OPTIONS=--import, in each of its
 * threads. A thread looks, whenever it waits for events or listens, whether a file asks it for something:
 *
 *     throw    one worker throws, where the kernel's answer was to be
 *     hang     one worker turns in circles until the file "hanging" is removed
 *     heap     each worker writes the bytes of its heap, garbage collected, to "heap-THREAD"
 *     listen   main stands still for a moment as soon as it listens, and "listens" says so
 *
 * Who answers a request for one worker removes it, so that no other does.
 */
import { existsSync, readdirSync, renameSync, writeFileSync } from "node:fs";
import { isMainThread, threadId } from "node:worker_threads";
import koffi from "koffi";

const STILL_MS = 500;
const requests = process.env["FAULT_REQUESTS"]!;

function claim(request: string, as: string): boolean {
  try {
    renameSync(`${requests}/${request}`, `${requests}/${as}`);
    return true;
  } catch {
    return false; // Another worker was sooner.
  }
}

function look(): void {
  const files = readdirSync(requests);
  if (files.includes("heap") && !files.includes(`heap-${threadId}`)) {
    globalThis.gc?.();
    // Whoever sees the file finds the number in it.
    writeFileSync(`${requests}/.heap-${threadId}`, `${process.memoryUsage().heapUsed}`);
    renameSync(`${requests}/.heap-${threadId}`, `${requests}/heap-${threadId}`);
  }
  if (files.includes("throw") && claim("throw", `threw-${threadId}`)) {
    throw new Error("a fault was asked for");
  }
  if (files.includes("hang") && claim("hang", "hanging")) {
    while (existsSync(`${requests}/hanging`)) {
      // In circles.
    }
  }
}

function standStill(): void {
  if (claim("listen", "listens")) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, STILL_MS);
}

const load = koffi.load;
koffi.load = (...args: Parameters<typeof load>) => {
  const library = load(...args);
  const func = (prototype: string) => {
    const call = library.func(prototype) as (...args: number[]) => number;
    if (prototype.includes(" epoll_wait(") && !isMainThread) {
      return (...values: number[]): number => {
        look();
        return call(...values);
      };
    }
    if (!prototype.includes(" listen(") || !isMainThread) return call;
    return (...values: number[]): number => {
      const result = call(...values);
      standStill();
      return result;
    };
  };
  return { func } as unknown as typeof library;
};
