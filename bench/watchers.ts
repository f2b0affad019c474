/**
 * Those who look at the running program while it works: so many scrapes a second of its metrics, and
 * pages that are open. They say how much they saw, so that nobody measures watchers who see nothing.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { BIN } from "./subjects.ts";

const SCRAPES_PER_SECOND = 10;
const PAGES = 3;

/** What they have seen up to now. */
export interface Seen {
  readonly scrapes: number;
  readonly events: number;
}

export class Watchers {
  readonly #process: ChildProcess;
  readonly #lines: AsyncIterator<string>;

  private constructor(port: number) {
    this.#process = spawn(`${BIN}watch`, [`${port}`, `${SCRAPES_PER_SECOND}`, `${PAGES}`], { stdio: ["pipe", "pipe", "inherit"] });
    this.#lines = createInterface({ input: this.#process.stdout! })[Symbol.asyncIterator]();
  }

  /** Resolves when each of them has seen something. */
  static async begin(port: number): Promise<Watchers> {
    const watchers = new Watchers(port);
    await watchers.#told();
    return watchers;
  }

  async seen(): Promise<Seen> {
    this.#process.stdin!.write("\n");
    return this.#told();
  }

  async end(): Promise<void> {
    const gone = new Promise((resolve) => this.#process.once("exit", resolve));
    this.#process.stdin!.end();
    await gone;
  }

  async #told(): Promise<Seen> {
    const line = await this.#lines.next();
    if (line.done === true) throw new Error("the watchers ended early");
    return JSON.parse(line.value) as Seen;
  }
}
