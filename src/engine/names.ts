/**
 * What the names mean that clients of this worker ask for. Main resolves; a worker keeps the
 * answers for as long as they hold, so that a known name crosses no thread, and sessions that wait
 * for the same name wait for one answer. Bounded: the oldest name goes when there are too many.
 */
import type { Task } from "./loop.ts";

const NAMES_MAX = 4096;
/**
 * Names that are being asked for on behalf of one client: main asks for a thousand in all, and a
 * host may have many programs that wait for a server which does not answer.
 */
const ASKED_MAX = 256;
const BUSY: NameAnswer = Object.freeze({ addresses: [], ttlMs: 0, failure: "failed" });

/** Plain data: main sends it. */
export interface NameAnswer {
  /** 4 or 16 bytes each, in the order in which they are to be tried. */
  readonly addresses: readonly Uint8Array[];
  readonly ttlMs: number;
  readonly failure: null | "not-found" | "failed" | "timeout";
}

/** Someone who waits for a name. */
export interface Asker extends Task {
  named(answer: NameAnswer): void;
}

interface Known {
  readonly answer: NameAnswer;
  readonly untilMs: number;
}

export class NameCache {
  readonly #ask: (name: string) => void;
  readonly #known = new Map<string, Known>();
  readonly #waiting = new Map<string, { readonly askers: Set<Asker>; readonly client: number }>();
  /** How many of the names that are being asked for each client has brought up. */
  readonly #askedBy = new Map<number, number>();

  /** `ask` sends a question to main, which answers each exactly once, by answer(). */
  constructor(ask: (name: string) => void) {
    this.#ask = ask;
  }

  /** Names that are being asked for. */
  get asked(): number {
    return this.#waiting.size;
  }

  /**
   * The answer if it is known; null: the asker will be told, unless it forgets the name before.
   * `client` stands for whoever wants to know: one with too many names under way is told "failed".
   */
  lookup(name: string, asker: Asker, nowMs: number, client: number): NameAnswer | null {
    const known = this.#known.get(name);
    if (known !== undefined && nowMs < known.untilMs) return known.answer;
    const waiting = this.#waiting.get(name);
    if (waiting !== undefined) {
      waiting.askers.add(asker);
      return null;
    }
    const asked = this.#askedBy.get(client) ?? 0;
    if (asked >= ASKED_MAX) return BUSY;
    this.#askedBy.set(client, asked + 1);
    this.#waiting.set(name, { askers: new Set([asker]), client });
    this.#ask(name);
    return null;
  }

  /** Who does not wait any more. The question stands: its answer will serve the next. */
  forget(name: string, asker: Asker): void {
    this.#waiting.get(name)?.askers.delete(asker);
  }

  answer(name: string, answer: NameAnswer, nowMs: number): void {
    this.#known.delete(name); // So that it is the youngest.
    if (answer.ttlMs > 0) {
      if (this.#known.size >= NAMES_MAX) this.#known.delete(this.#known.keys().next().value!);
      this.#known.set(name, { answer, untilMs: nowMs + answer.ttlMs });
    }
    const waiting = this.#waiting.get(name);
    this.#waiting.delete(name);
    if (waiting === undefined) return;
    const { askers, client } = waiting;
    const asked = this.#askedBy.get(client)! - 1;
    if (asked === 0) this.#askedBy.delete(client);
    else this.#askedBy.set(client, asked);
    for (const asker of askers) asker.named(answer);
  }
}
