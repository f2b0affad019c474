/**
 * The proxy's end of its guardian (guardian.ts): starts it, tells it what is to stand, hears what has
 * become of it, and starts another when it dies, with the last order. Without an order there is none.
 */
import { type ChildProcess, spawn } from "node:child_process";
import type { Socket } from "node:net";
import { fileURLToPath } from "node:url";
import { TOOL_ENV } from "./tools.ts";
import type { Order, Report } from "./guardian.ts";
import type { Log } from "../log/log.ts";

/** As guardian.ts has it, which runs when it is imported. */
const LEAVE = "leave";
const PROXY_FD = 3;
/** Tools may have to wait for a lock; nobody waits longer for them. */
const DONE_MS = 10_000;
/** One that has lived so long is replaced at once; else it is waited so long. */
const LIVED_MS = 1000;
const LEAVE_MS = 1000;

export interface GuardOptions {
  readonly log: Pick<Log, "error" | "warning">;
  /** What it says of the last order, also late. */
  readonly onReport: (report: Report) => void;
}

export class Guard {
  readonly #options: GuardOptions;
  #child: ChildProcess | null = null;
  #order: Order | null = null;
  #number = 0;
  #startedMs = 0;
  #again: NodeJS.Timeout | null = null;
  readonly #waiting = new Map<number, (failure: string | null) => void>();

  constructor(options: GuardOptions) {
    this.#options = options;
  }

  /** Of the guardian; null: there is none at this moment. */
  get pid(): number | null {
    return this.#child?.pid ?? null;
  }

  /**
   * In place of the order before. Resolves with null when it is done, or with why it was not; then the
   * guardian goes on trying.
   */
  order(order: Omit<Order, "number">): Promise<string | null> {
    const number = ++this.#number;
    this.#order = { ...order, number };
    if (this.#child === null) this.#start();
    else this.#send(JSON.stringify(this.#order));
    return new Promise((resolve) => {
      const timer = setTimeout(() => this.#settle(number, `the guardian has not done it within ${DONE_MS / 1000} s`), DONE_MS);
      this.#waiting.set(number, (failure) => {
        clearTimeout(timer);
        resolve(failure);
      });
    });
  }

  /** Ends it; whatever stands stays. */
  async leave(): Promise<void> {
    this.#order = null;
    if (this.#again !== null) clearTimeout(this.#again);
    this.#again = null;
    const child = this.#child;
    if (child === null) return;
    const gone = new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, LEAVE_MS);
      child.once("exit", () => {
        clearTimeout(timer);
        resolve();
      });
    });
    this.#send(LEAVE);
    await gone;
  }

  #start(): void {
    if (this.#again !== null) return;
    this.#startedMs = performance.now();
    const child = spawn(process.execPath, [fileURLToPath(new URL("./guardian.js", import.meta.url))], {
      // Of a session of its own: what ends our process group leaves it alone.
      detached: true,
      stdio: ["ignore", "ignore", "inherit", "pipe"],
      env: TOOL_ENV,
    });
    this.#child = child;
    let isOver = false;
    const over = (how: string): void => {
      if (isOver) return;
      isOver = true;
      this.#child = null;
      if (this.#order === null) return;
      const early = performance.now() - this.#startedMs < LIVED_MS;
      this.#options.log.warning("the guardian of the firewall's rules has died; another takes its place", { error: how });
      this.#again = setTimeout(() => {
        this.#again = null;
        this.#start();
      }, early ? LIVED_MS : 0);
    };
    child.once("error", (error) => over(error.message));
    child.once("exit", (code, signal) => over(signal ?? `exit code ${code}`));
    const socket = child.stdio[PROXY_FD] as Socket | null | undefined;
    if (!socket) return; // It could not be started, and "error" tells.
    let text = "";
    socket.setEncoding("utf8");
    socket.on("error", () => {});
    socket.on("data", (chunk) => {
      const lines = `${text}${chunk}`.split("\n");
      text = lines.pop()!;
      for (const line of lines) this.#hear(JSON.parse(line) as Report);
    });
    this.#send(JSON.stringify(this.#order));
  }

  #send(line: string): void {
    (this.#child?.stdio[PROXY_FD] as Socket | null | undefined)?.write(`${line}\n`);
  }

  #hear(report: Report): void {
    if (report.kind === "done") this.#settle(report.number, null);
    else if (report.kind === "failed") this.#settle(report.number, report.why);
    if (report.number === this.#number) this.#options.onReport(report);
  }

  /** With an order, all before it are settled: it took their place. */
  #settle(number: number, failure: string | null): void {
    for (const [each, settle] of this.#waiting) {
      if (each > number) continue;
      this.#waiting.delete(each);
      settle(failure);
    }
  }
}
