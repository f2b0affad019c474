/**
 * By what `transplice upgrade` finds the process that serves: a file with its pid, in a directory of
 * our own, and beside it one with what became of the last upgrade. Both are named after the
 * configuration's file. Where they cannot be written the process runs all the same.
 */
import { mkdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { basename } from "node:path";

/** systemd makes it for its units, with RuntimeDirectory=; root does for itself. */
export const RUN_DIRECTORY = "/run/transplice";

export class PidFile {
  readonly path: string;
  readonly #outcome: string;

  /** `config`: the configuration's file. */
  constructor(config: string) {
    const name = basename(config).replace(/\.(?:toml|conf)$/, "");
    this.path = `${RUN_DIRECTORY}/${name}.pid`;
    this.#outcome = `${RUN_DIRECTORY}/${name}.upgrade`;
  }

  /** Makes the directory, as root; answers whether it is root's and may become another user's. */
  prepare(): boolean {
    try {
      mkdirSync(RUN_DIRECTORY, { mode: 0o755 });
    } catch {
      // It is there; or this user may not make it, and will hear of that from write().
    }
    try {
      return process.getuid!() === 0 && statSync(RUN_DIRECTORY).uid === 0;
    } catch {
      return false;
    }
  }

  /** This process serves from now on. Answers what stands against it, or null. */
  write(): string | null {
    return put(this.path, `${process.pid}\n`);
  }

  /** The pid that stands there; null: there is none. */
  read(): number | null {
    const pid = Number(textOf(this.path) ?? "");
    return Number.isInteger(pid) && pid > 1 ? pid : null;
  }

  /** This process serves no more; but another may have written its own there meanwhile. */
  remove(): void {
    if (this.read() === process.pid) discard(this.path);
  }

  /** What became of an upgrade: the pid of the process that has taken over, or why there is none. */
  tell(outcome: Outcome): void {
    put(this.#outcome, `${JSON.stringify(outcome)}\n`);
  }

  /** What was told since forget(), or null. */
  told(): Outcome | null {
    const text = textOf(this.#outcome);
    if (text === null || !text.endsWith("\n")) return null;
    try {
      return JSON.parse(text) as Outcome;
    } catch {
      return null;
    }
  }

  /** Throws where it may not. */
  forget(): void {
    rmSync(this.#outcome, { force: true });
  }
}

export type Outcome = { readonly pid: number } | { readonly wrong: string };

/** Whoever reads it finds the one or the other, and no half of it. */
function put(path: string, text: string): string | null {
  const fresh = `${path}.${process.pid}`;
  try {
    writeFileSync(fresh, text, { flag: "wx", mode: 0o644 });
    renameSync(fresh, path);
    return null;
  } catch (error) {
    discard(fresh);
    return (error as Error).message;
  }
}

function discard(path: string): void {
  try {
    rmSync(path, { force: true });
  } catch {
    // The directory is another user's by now: who reads it sees that the process is gone.
  }
}

function textOf(path: string): string | null {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return null;
  }
}
