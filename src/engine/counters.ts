/**
 * What a worker counts: one row of numbers in shared memory, written by the worker alone and read
 * by main at any time. So a scrape never touches a worker.
 */
import { REASONS, reasonNumber, type Reason } from "./ending.ts";

const NAMES = [
  /** Turns of the loop: a worker whose turns stand still hangs. */
  "turns",
  "tunnels",
  /** Connections that have begun: accepted, or asked for by a SYN that is held. */
  "accepted",
  "refusedFull",
  "bytesUp",
  "bytesDown",
  "pipesLent",
  "buffersLent",
  "acceptErrors",
  "journalDropped",
  /** Dials that failed: main resolves the upstream's name again. */
  "dialFailures",
  /** SYNs that came out of a queue; those that went on without a dial; accepted for a dial. */
  "heard",
  "unheld",
  "paired",
  /** Verdicts that the kernel would not take. */
  "unanswered",
  /** Of main's, that have been obeyed. */
  "orders",
  /** When the present turn began, in ms on the worker's clock. */
  "now",
  /** What makes such a time one of the wall clock, in ms since the epoch. */
  "clockOrigin",
  /** Rows of the tunnel table that have ever been used. */
  "rowsUsed",
] as const;
export type Counter = (typeof NAMES)[number];

const AT = new Map<Counter, number>(NAMES.map((name, at) => [name, at]));
const ROW = NAMES.length + REASONS.length;

export const countersBytes = (workers: number): number => workers * ROW * 8;

/** Positions in a row, for the hot path: counters.row[TUNNELS]++. */
export const TURNS = AT.get("turns")!;
export const TUNNELS = AT.get("tunnels")!;
export const ACCEPTED = AT.get("accepted")!;
export const REFUSED_FULL = AT.get("refusedFull")!;
export const BYTES_UP = AT.get("bytesUp")!;
export const BYTES_DOWN = AT.get("bytesDown")!;
export const PIPES_LENT = AT.get("pipesLent")!;
export const BUFFERS_LENT = AT.get("buffersLent")!;
export const ACCEPT_ERRORS = AT.get("acceptErrors")!;
export const JOURNAL_DROPPED = AT.get("journalDropped")!;
export const DIAL_FAILURES = AT.get("dialFailures")!;
export const HEARD = AT.get("heard")!;
export const UNHELD = AT.get("unheld")!;
export const PAIRED = AT.get("paired")!;
export const UNANSWERED = AT.get("unanswered")!;
export const ORDERS = AT.get("orders")!;
export const NOW = AT.get("now")!;
export const CLOCK_ORIGIN = AT.get("clockOrigin")!;
export const ROWS_USED = AT.get("rowsUsed")!;

/** What the worker's thread is called: main finds under it what CPU time the thread has had. */
export const threadName = (worker: number): string => `transplice-${worker}`;

/** The row of one worker. */
export function countersRow(shared: SharedArrayBuffer, worker: number): Float64Array {
  return new Float64Array(shared, worker * ROW * 8, ROW);
}

export const endingAt = (reason: Reason): number => NAMES.length + reasonNumber(reason);

/** Those that were accepted and have not ended: what a worker leaves behind when it dies. */
export function unended(row: Float64Array): number {
  let ended = 0;
  for (let at = NAMES.length; at < ROW; at++) ended += row[at]!;
  return row[ACCEPTED]! - ended;
}
