/**
 * Every bound of the data plane, in one place, with the kernel limit that stands behind it.
 */
import { assert } from "./assert.ts";

export interface Limits {
  /** Tunnels of all workers together; each holds two fds. */
  readonly tunnels: number;
  /** Pipes of one worker; each holds two fds while it exists. 0: everything is copied. */
  readonly pipes: number;
  /** F_SETPIPE_SZ. More bytes a splice is what makes bulk cheap; see bench/RESULTS.md. */
  readonly pipeBytes: number;
  /** Buffers of one worker, for bytes that a socket would not take. */
  readonly buffers: number;
  /** One buffer. It must hold the longest reply of an upstream: 16 KiB of HTTP header. */
  readonly bufferBytes: number;
  /** One recv while traffic is small. A full one means bulk. */
  readonly chunkBytes: number;
  /** Events read in one turn; the rest waits in the kernel for the next. */
  readonly eventsPerTurn: number;
  /** Connections accepted in one turn from one listener. */
  readonly acceptsPerTurn: number;
  /** Reads of one direction of one tunnel in one turn while traffic is small. */
  readonly readsPerTurn: number;
  /** Pipefuls of one direction of one tunnel in one turn. 8 of 1 MiB was the best measured. */
  readonly splicesPerTurn: number;
  /** SYNs of one worker that are held at once; more go on, and are dialled for once accepted. */
  readonly syns: number;
  /** Deadlines kept; the loop wakes at least so often, which is also its sign of life. */
  readonly sleepMs: number;
}

export const DEFAULTS: Limits = {
  tunnels: 4096,
  pipes: 48,
  pipeBytes: 1 << 20,
  buffers: 4096,
  bufferBytes: 16384,
  chunkBytes: 16384,
  eventsPerTurn: 512,
  acceptsPerTurn: 64,
  readsPerTurn: 16,
  splicesPerTurn: 8,
  syns: 8192,
  sleepMs: 1000,
};

/** The limits themselves, frozen, once their relations hold. */
export function checked(limits: Limits): Limits {
  assert(limits.tunnels >= 1, "at least one tunnel");
  assert(limits.bufferBytes >= 512, "a buffer must hold a SOCKS5 reply");
  assert(limits.chunkBytes <= limits.bufferBytes, "what one read brings must fit one buffer");
  assert(limits.eventsPerTurn >= 1 && limits.acceptsPerTurn >= 1, "each turn must get on");
  assert(limits.readsPerTurn >= 1 && limits.splicesPerTurn >= 1, "each turn must get on");
  return Object.freeze(limits);
}

/** fds that are kept back for what the control plane opens later: logs, DNS, scrapes, a reload. */
const RESERVED_FDS = 128;
/** Neither tables nor the ledger are made for more: 512 Ki tunnels in one process. */
export const FDS_MAX = 1 << 20;

export interface Budget {
  readonly tunnels: number;
  /** Of all workers together. */
  readonly pipes: number;
}

/**
 * What so many fds carry. `used` of them are open already. Null when they carry nothing.
 *
 * Pipes take at most an eighth: bulk traffic can be copied, a connection cannot be refused.
 */
export function budget(nofile: number, used: number, pipesWanted: number): Budget | null {
  const all = Math.min(nofile, FDS_MAX);
  const reserved = Math.min(RESERVED_FDS, Math.floor(all / 8));
  const free = all - used - reserved;
  if (free < 2) return null;
  const pipes = Math.min(pipesWanted, Math.floor(free / 16));
  return { tunnels: Math.floor((free - pipes * 2) / 2), pipes };
}
