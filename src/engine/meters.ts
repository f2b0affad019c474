/**
 * What a worker measures: how long things take, and how much a splice moves. One row of histograms
 * per worker in shared memory, written by the worker alone. Times come from the clock that a turn
 * reads anyway, so what happens within one turn takes no time here.
 */
import { HISTOGRAM_NUMBERS } from "./histogram.ts";

const NAMES = [
  /** From the first attempt to a connection that stands, in µs. */
  "dial",
  /** The upstream's handshake, in µs. */
  "handshake",
  /** From accept to the first byte that the destination's side has sent and the client's taken, in µs. */
  "firstByte",
  /** A connection's life, in ms. */
  "duration",
  /** A turn of the loop, without the wait for events, in µs: so long an event may have waited. */
  "turn",
  /** What one splice took from a socket, in bytes. */
  "splice",
] as const;
export type Meter = (typeof NAMES)[number];

const ROW = NAMES.length * HISTOGRAM_NUMBERS;

export const metersBytes = (workers: number): number => workers * ROW * 8;

export const meterAt = (meter: Meter): number => NAMES.indexOf(meter) * HISTOGRAM_NUMBERS;

/** For the hot path: observe(meters, DIAL_TIME, µs). */
export const DIAL_TIME = meterAt("dial");
export const HANDSHAKE_TIME = meterAt("handshake");
export const FIRST_BYTE_TIME = meterAt("firstByte");
export const LIFETIME = meterAt("duration");
export const TURN_TIME = meterAt("turn");
export const SPLICE_SIZE = meterAt("splice");

/** The row of one worker. */
export function metersRow(shared: SharedArrayBuffer, worker: number): Float64Array {
  return new Float64Array(shared, worker * ROW * 8, ROW);
}
