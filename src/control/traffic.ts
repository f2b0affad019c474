/**
 * The lines of `transplice up`: once a second how many connections there have been and are, what
 * they carry, and how many failed; or why there are none. Written so that a reader who does not read
 * holds up nothing: the line is dropped.
 */
import { constants, fstatSync, openSync, writeSync } from "node:fs";

/** Since the start, but for what is active now. In and out are seen from this host's programs. */
export interface Traffic {
  readonly connections: number;
  readonly active: number;
  readonly bytesIn: number;
  readonly bytesOut: number;
  readonly failed: number;
}

const LINE_MS = 1000;
const STDOUT = 1;

/** Starts writing lines. `waiting`: why nothing is redirected; null: everything is. The answer ends it. */
export function writeTraffic(now: () => Traffic, waiting: () => string | null): () => void {
  const fd = nonBlockingStdout();
  let before = now();
  let beforeMs = performance.now();
  const timer = setInterval(() => {
    const after = now();
    const afterMs = performance.now();
    const why = waiting();
    const line = trafficLine(before, after, (afterMs - beforeMs) / 1000);
    try {
      writeSync(fd, `${line}${why === null ? "" : `  (${why})`}\n`);
    } catch {
      // Nobody reads, or not fast enough.
    }
    before = after;
    beforeMs = afterMs;
  }, LINE_MS);
  return () => clearInterval(timer);
}

export function trafficLine(before: Traffic, now: Traffic, seconds: number): string {
  const rate = (is: number, was: number): string => bytesText(Math.max(0, is - was) / seconds).padStart(8);
  const { connections, active, failed } = now;
  return `connections ${connections}  active ${active}  in ${rate(now.bytesIn, before.bytesIn)}/s  out ${rate(now.bytesOut, before.bytesOut)}/s  failed ${failed}`;
}

function bytesText(bytes: number): string {
  const units = ["B", "kB", "MB", "GB"];
  let value = bytes;
  let unit = 0;
  while (value >= 999.95 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/**
 * A description of our own of what standard output is: O_NONBLOCK on theirs would be everybody's. Not of a
 * file, which never blocks, and where who writes by the other description would write over our lines.
 */
function nonBlockingStdout(): number {
  try {
    if (fstatSync(STDOUT).isFile()) return STDOUT;
    return openSync(`/proc/self/fd/${STDOUT}`, constants.O_WRONLY | constants.O_APPEND | constants.O_NONBLOCK);
  } catch {
    return STDOUT; // A socket cannot be opened again.
  }
}
