/**
 * What the names mean that clients of this worker ask for. Main resolves; a worker keeps the
 * answers for as long as they hold, so that a known name crosses no thread, and sessions that wait
 * for the same name wait for one answer. Bounded: the oldest name goes when there are too many.
 */
import type { Task } from "./loop.ts";

const NAMES_MAX = 4096;

/** Plain data: main sends it. */
export interface NameAnswer {
  /** 4 or 16 bytes each, in the order in which they are to be tried. */
  readonly addresses: readonly Uint8Array[];
  readonly ttlMs: number;
  /** "busy": it was not asked for, as its client has too many names under way. */
  readonly failure: null | "not-found" | "failed" | "timeout" | "busy";
}

/** Someone who waits for a name. */
export interface Asker extends Task {
  named(answer: NameAnswer): void;
}

interface Known {
  readonly answer: NameAnswer;
  readonly untilMs: number;
}

/** A name that is being asked for on behalf of one client. */
interface Question {
  /** And who they are clients of. */
  readonly askers: Map<Asker, number>;
  readonly client: number;
}

export class NameCache {
  readonly #ask: (name: string, client: number) => void;
  readonly #known = new Map<string, Known>();
  readonly #waiting = new Map<string, Question>();

  /** `ask` sends a question to main, which answers each exactly once, by answer(). */
  constructor(ask: (name: string, client: number) => void) {
    this.#ask = ask;
  }

  /** Names that are being asked for. */
  get asked(): number {
    return this.#waiting.size;
  }

  /**
   * The answer if it is known; null: the asker will be told, unless it forgets the name before.
   * `client` stands for whoever wants to know.
   */
  lookup(name: string, asker: Asker, nowMs: number, client: number): NameAnswer | null {
    const known = this.#known.get(name);
    if (known !== undefined && nowMs < known.untilMs) return known.answer;
    const waiting = this.#waiting.get(name);
    if (waiting !== undefined) {
      waiting.askers.set(asker, client);
      return null;
    }
    this.#waiting.set(name, { askers: new Map([[asker, client]]), client });
    this.#ask(name, client);
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
    if (answer.failure === "busy") this.#askForOthers(name, askers, client);
    for (const [asker, whose] of askers) {
      if (answer.failure !== "busy" || whose === client) asker.named(answer);
    }
  }

  /** That one client has too many names under way is no answer to the others who wait for this one. */
  #askForOthers(name: string, askers: ReadonlyMap<Asker, number>, client: number): void {
    const others = new Map([...askers].filter(([, whose]) => whose !== client));
    const [next] = others.values();
    if (next === undefined) return;
    this.#waiting.set(name, { askers: others, client: next });
    this.#ask(name, next);
  }
}
