/**
 * Following single connections, step by step, for whoever asks. While nobody does there is no Tracer,
 * and a session's whole part in it is to see that it is not followed.
 *
 * Up to 31 questions at once, each a bit. What is told is bounded: beyond so many steps in a second
 * they are counted and not told.
 */
import type { Network } from "../policy/network.ts";
import { addressOf, portOf } from "../policy/own.ts";

/** Data only: crosses threads. All that is given must fit. */
export interface TraceQuestion {
  /** 1, 2, 4...: its bit. */
  readonly bit: number;
  readonly client: TracePlace | null;
  readonly destination: TracePlace | null;
  /** As a SOCKS client names it; ".example.com" is all below it. */
  readonly name: string | null;
}

export interface TracePlace {
  /** null: anywhere. */
  readonly network: Network | null;
  readonly port: number | null;
}

export type StepName =
  | "accepted" | "destination" | "dial" | "dial-failed" | "connected" | "handshake-done" | "granted"
  | "first-byte-up" | "first-byte-down" | "fin-up" | "fin-down" | "reset" | "ended";

/** A worker's word of one step. */
export interface TraceStep {
  /** Whose question it answers. */
  readonly bits: number;
  readonly step: StepName;
  readonly id: number;
  /** On the worker's clock, in ms and fractions. */
  readonly atMs: number;
  readonly startedMs: number;
  /** A sockaddr: where to, or whose. */
  readonly address: Uint8Array | null;
  readonly text: string;
  readonly errno: number;
  readonly bytesUp: number;
  readonly bytesDown: number;
  /** Steps before this one that were not told. */
  readonly dropped: number;
}

const STEPS_PER_SECOND = 2000;

export class Tracer {
  readonly #questions: readonly TraceQuestion[];
  readonly #tell: (step: TraceStep) => void;
  #secondMs = -Infinity;
  #told = 0;
  #dropped = 0;

  constructor(questions: readonly TraceQuestion[], tell: (step: TraceStep) => void) {
    this.#questions = questions;
    this.#tell = tell;
  }

  /** Which questions ask for the connection with these sockaddrs, or to this name. 0: none. */
  bits(bytes: Uint8Array, client: number, destination: number, name: string): number {
    let bits = 0;
    for (const question of this.#questions) {
      if (question.client !== null && !isAt(question.client, bytes, client)) continue;
      if (question.destination !== null && !isAt(question.destination, bytes, destination)) continue;
      if (question.name !== null && !isNamed(question.name, name)) continue;
      bits |= question.bit;
    }
    return bits;
  }

  /** `step` without what is counted here. */
  tell(step: Omit<TraceStep, "dropped">): void {
    if (step.atMs >= this.#secondMs + 1000) {
      this.#secondMs = step.atMs;
      this.#told = 0;
    }
    if (this.#told++ >= STEPS_PER_SECOND) {
      this.#dropped++;
      return;
    }
    this.#tell({ ...step, dropped: this.#dropped });
    this.#dropped = 0;
  }
}

/** The sockaddr at bytes[at] is there. */
export function isAt({ network, port }: TracePlace, bytes: Uint8Array, at: number): boolean {
  if (bytes[at] === 0) return false;
  if (port !== null && portOf(bytes, at) !== port) return false;
  return network === null || isIn(network, addressOf(bytes, at));
}

function isIn({ bytes, prefix }: Network, address: Uint8Array): boolean {
  if (bytes.length !== address.length) return false;
  for (let i = 0; i < bytes.length; i++) {
    const kept = Math.min(8, Math.max(0, prefix - 8 * i));
    if (((bytes[i]! ^ address[i]!) & (0xff << (8 - kept)) & 0xff) !== 0) return false;
  }
  return true;
}

/** The name is the wanted one, or below it. */
export const isNamed = (wanted: string, name: string): boolean =>
  wanted.startsWith(".") ? name.endsWith(wanted) : name === wanted;
