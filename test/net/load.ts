/**
 * The benchmark's load (bench/load.c) as an actor: thousands of connections from one small program,
 * where those of the test's own process would be the bottleneck.
 */
import { strict as assert } from "node:assert";
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { createInterface, type Interface } from "node:readline";
import { fileURLToPath } from "node:url";
import { listening } from "./proxies.ts";
import { type Host, PRIVATE } from "./sandbox.ts";
import type { Stage } from "./scenario.ts";

const SOURCE = fileURLToPath(new URL("../../../bench/load.c", import.meta.url));
const BINARY = `${PRIVATE}/load`;

/** What a client has to say at its end. */
export interface Report {
  readonly done: number;
  readonly failed: number;
  /** Of those that failed. */
  readonly refused: number;
  readonly reset: number;
  /** Neither done nor failed after forty seconds. */
  readonly hung: number;
}

function built(stage: Stage): string {
  if (existsSync(BINARY)) return BINARY;
  const gcc = spawnSync("gcc", ["-O2", "-o", BINARY, SOURCE], { encoding: "utf8" });
  if (gcc.error !== undefined) stage.skip("gcc is not installed");
  assert.equal(gcc.status, 0, gcc.stderr);
  return BINARY;
}

/** A SOCKS5 server that grants everything and is the destination; or (serve) the destination alone. It listens. */
export async function target(stage: Stage, host: Host, port: number, role: "target" | "serve" = "target"): Promise<void> {
  await listening(stage.spawn(host, built(stage), role, `${port}`), host, "127.0.0.1", port);
}

/** A client of the load: see usage() there. Everything is ready when it has been made. */
export class LoadClient {
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  /** Connections that stand from the beginning. */
  standing = 0;

  private constructor(child: ChildProcess, lines: Interface) {
    this.#child = child;
    this.#lines = lines[Symbol.asyncIterator]();
  }

  static async on(stage: Stage, host: Host, ...args: string[]): Promise<LoadClient> {
    const binary = built(stage);
    const child = host.within(() => spawn(binary, args, { stdio: ["pipe", "pipe", "inherit"] }));
    stage.finally(() => void child.kill("SIGKILL"));
    child.stdin!.on("error", () => {});
    const client = new LoadClient(child, createInterface({ input: child.stdout! }));
    client.standing = (await client.#line<{ standing: number }>()).standing;
    return client;
  }

  /** Does what it was made for; its connections stand until end(). */
  async work(): Promise<Report> {
    this.#child.stdin!.write("\n");
    return this.#line<Report>();
  }

  async end(): Promise<void> {
    this.#child.stdin!.end();
    if (this.#child.exitCode === null) await once(this.#child, "exit");
  }

  async #line<T>(): Promise<T> {
    const { value, done } = await this.#lines.next();
    assert.ok(done !== true, "the load has ended early");
    return JSON.parse(value) as T;
  }
}
