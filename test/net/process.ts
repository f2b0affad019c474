/**
 * A program that a test has started: its output, its end, and what the kernel knows of it.
 *
 * Owns the process: whoever made it calls stop() or kill(). Output is kept, up to a bound, and
 * shown when a test fails.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { PATIENCE_MS } from "./actors.ts";

export interface SpawnOptions {
  /** What to call it in messages; the command's name if left out. */
  title?: string;
  env?: NodeJS.ProcessEnv;
  cwd?: string;
  /** Passed on: they are its descriptors from 3 on. */
  fds?: readonly number[];
  /** Keep standard output apart, as bytes: for programs whose output is data. */
  binary?: boolean;
}

export interface Exit {
  code: number | null;
  signal: NodeJS.Signals | null;
}

const OUTPUT_BYTES_KEPT = 4 << 20;

export class Process {
  readonly title: string;
  readonly exited: Promise<Exit>;
  exit: Exit | null = null;
  /** Standard output and standard error, together. */
  output = "";
  /** Standard output, if asked for as bytes. */
  readonly data: Buffer[] = [];
  readonly #child: ChildProcess;
  readonly #onOutput = new Set<() => void>();

  constructor(host: string, command: string, args: readonly string[], options: SpawnOptions) {
    this.title = `${options.title ?? command.replace(/.*\//, "")} on ${host}`;
    // A group of its own: a terminal's Ctrl-C is the sandbox's business, and stop() reaches all.
    this.#child = spawn(command, args, {
      stdio: ["ignore", "pipe", "pipe", ...(options.fds ?? [])],
      detached: true,
      env: options.env ?? process.env,
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    });
    const keep = (text: string): void => {
      this.output += text;
      if (this.output.length > OUTPUT_BYTES_KEPT)
        this.output = this.output.slice(-OUTPUT_BYTES_KEPT / 2);
      for (const listener of [...this.#onOutput]) listener();
    };
    const { stdout, stderr } = this.#child;
    if (options.binary === true) stdout!.on("data", (chunk: Buffer) => void this.data.push(chunk));
    // Decoded as a stream: a character may come in two pieces.
    else stdout!.setEncoding("utf8").on("data", keep);
    stderr!.setEncoding("utf8").on("data", keep);
    this.exited = new Promise((resolve) => {
      this.#child.once("error", (error) => {
        this.output += `${error.message}\n`;
        this.exit ??= { code: 127, signal: null };
        resolve(this.exit);
      });
      this.#child.once("exit", (code, signal) => {
        this.exit ??= { code, signal };
      });
      this.#child.once("close", () => resolve(this.exit!));
    });
    void this.exited.then(() => {
      for (const listener of [...this.#onOutput]) listener();
    });
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  /** Waits until the output has what is looked for. Fails when the program ends without it. */
  async says(what: RegExp | ((output: string) => boolean), withinMs = PATIENCE_MS): Promise<void> {
    const found = typeof what === "function" ? what : (output: string) => what.test(output);
    await new Promise<void>((resolve, reject) => {
      const look = (): void => {
        if (found(this.output)) done(resolve);
        else if (this.exit !== null && this.#child.stdout!.destroyed) {
          done(() =>
            reject(
              new Error(`${this.title} ended (${describe(this.exit!)}) before it said ${what}`),
            ),
          );
        }
      };
      const done = (settle: () => void): void => {
        clearTimeout(timer);
        this.#onOutput.delete(look);
        settle();
      };
      const timer = setTimeout(
        () => done(() => reject(new Error(`${this.title} did not say ${what} in ${withinMs} ms`))),
        withinMs,
      );
      this.#onOutput.add(look);
      look();
    });
  }

  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  /** Reads its output no longer: from now on it writes to a broken pipe. */
  closeOutput(): void {
    this.#child.stdout!.destroy();
    this.#child.stderr!.destroy();
  }

  /** Asks it to end, and after a while makes it. */
  async stop(withinMs = PATIENCE_MS): Promise<Exit> {
    if (this.exit === null) this.signal("SIGTERM");
    const timer = setTimeout(() => this.kill(), withinMs);
    const exit = await this.exited;
    clearTimeout(timer);
    this.kill();
    return exit;
  }

  /** Ends it and all that it has started. */
  kill(): void {
    if (this.pid === 0) return;
    try {
      process.kill(-this.pid, "SIGKILL");
    } catch {
      // Nobody is left.
    }
  }

  /** How many file descriptors it has open. */
  fds(): number {
    return readdirSync(`/proc/${this.pid}/fd`).length;
  }

  /** Resident memory in KiB. */
  residentKiB(): number {
    return Number(
      /VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${this.pid}/status`, "utf8"))?.[1] ?? 0,
    );
  }

  /** User and system time since it started, in seconds. */
  cpuSeconds(): number {
    return (statField(`${this.pid}`, 14) + statField(`${this.pid}`, 15)) / 100; // USER_HZ is 100 wherever node runs.
  }
}

/** A field of proc_pid_stat(5), by its number there (from 4 on: numbers), of a process ("7") or a thread ("7/task/8"). */
export function statField(of: string, field: number): number {
  const stat = readFileSync(`/proc/${of}/stat`, "utf8");
  // Counted behind the name, which is the second and may have anything in it.
  return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[field - 3]);
}

export function describe(exit: Exit): string {
  return exit.signal === null ? `status ${exit.code}` : `signal ${exit.signal}`;
}
