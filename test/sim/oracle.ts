/**
 * Main, as a worker's engine knows it: answers each question about a name or a login exactly once,
 * in its own time: late, out of order, or so late that nobody waits any more.
 */
import assert from "node:assert/strict";
import type { Answer, Question } from "../../src/engine/engine.ts";
import type { NameAnswer } from "../../src/engine/names.ts";
import type { Network } from "./tcp.ts";

export interface KnownName {
  readonly answer: NameAnswer;
  /** How long it takes to find out, at most. */
  readonly delayUs: number;
  /** By a rule: then nobody may ask for it. */
  readonly denied: boolean;
}

export interface KnownUser {
  readonly password: string;
  readonly delayUs: number;
}

export class Oracle {
  readonly #network: Network;
  readonly #names: ReadonlyMap<string, KnownName>;
  readonly #users: ReadonlyMap<string, KnownUser>;
  readonly #asked = new Set<string>();
  /** When an answer for a name was given: it may not be asked for again before it has run out. */
  readonly #answeredUs = new Map<string, number>();
  #pending = 0;

  constructor(
    network: Network, names: ReadonlyMap<string, KnownName>, users: ReadonlyMap<string, KnownUser>,
  ) {
    this.#network = network;
    this.#names = names;
    this.#users = users;
  }

  /** Questions that are not answered yet. */
  get pending(): number {
    return this.#pending;
  }

  ask(question: Question, answer: (answer: Answer) => void): void {
    if (question.kind === "name") this.#askName(question.name, answer);
    else this.#askLogin(question, answer);
  }

  #askName(name: string, answer: (answer: Answer) => void): void {
    const known = this.#names.get(name);
    assert(known !== undefined, `nobody asked for ${name}`);
    assert(!known.denied, `a question for ${name}, which a rule denies`);
    assert(!this.#asked.has(name), `a second question for ${name}, while the first one stands`);
    const sinceUs = this.#network.nowUs - (this.#answeredUs.get(name) ?? -Infinity);
    // The engine looks at the clock once a turn.
    assert(sinceUs / 1000 > known.answer.ttlMs - 100, `${name} was asked for although it is known`);
    this.#asked.add(name);
    this.#later(known.delayUs, () => {
      this.#asked.delete(name);
      this.#answeredUs.set(name, this.#network.nowUs);
      answer({ kind: "name", name, answer: known.answer });
    });
  }

  #askLogin(question: Question & { kind: "login" }, answer: (answer: Answer) => void): void {
    const { row, id, user, password } = question;
    const known = this.#users.get(new TextDecoder().decode(user));
    const right = known !== undefined && known.password === new TextDecoder().decode(password);
    this.#later(known?.delayUs ?? 1000, () => answer({ kind: "login", row, id, right }));
  }

  #later(delayUs: number, run: () => void): void {
    this.#pending++;
    const { random } = this.#network;
    const us = delayUs > 1e6 ? delayUs : random.size(1, delayUs);
    this.#network.after(us, () => {
      this.#pending--;
      run();
    });
  }
}
