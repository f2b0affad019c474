/**
 * The program under test: its configuration file, its process, its log.
 */
import { strict as assert } from "node:assert";
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename } from "node:path";
import { fileURLToPath } from "node:url";
import { eventually, PATIENCE_MS } from "./actors.ts";
import { describe, type Exit, type Process } from "./process.ts";
import { type Host, PRIVATE } from "./sandbox.ts";

export const MAIN = fileURLToPath(new URL("../../src/main.js", import.meta.url));

type Value = string | number | boolean | readonly Value[] | Table;
type Table = { readonly [key: string]: Value };
/** Keys of the file; a key's object is a table, and its list of objects one of `[[tables]]`. */
export type Settings = Table;

/** One line of the log. */
export interface Entry {
  severity: string;
  message: string;
  [field: string]: unknown;
}

/** "proxy ends", with what is known of the connection. */
export interface Ended extends Entry {
  client_addr: string;
  dest_addr: string;
  elapsed: number;
  tx_bytes: number;
  rx_bytes: number;
  reason: string;
}

export interface StartOptions {
  /** Soft and hard limit of open files: "64", "64:4096". */
  nofile?: string;
  env?: NodeJS.ProcessEnv;
  nodeFlags?: readonly string[];
  /** What starts it: "setpriv", with its arguments. */
  command?: readonly string[];
  /** The program itself: a link to it, say, that another version will take the place of. */
  main?: string;
  /** Passed on: they are its descriptors from 3 on. */
  fds?: readonly number[];
}

let files = 0;

export class Relay {
  readonly process: Process;
  readonly file: string;
  #settings: Settings;

  private constructor(process: Process, file: string, settings: Settings) {
    this.process = process;
    this.file = file;
    this.#settings = settings;
  }

  /**
   * Starts it; it may be still on its way when this answers. See ready(). A file of somebody
   * else's is given as its text, and logs JSON on standard error.
   */
  static spawn(host: Host, settings: Settings | string, options: StartOptions = {}): Relay {
    const file = `${PRIVATE}/transplice-${files++}.toml`;
    const complete = typeof settings === "string" ? {} : withLog(settings);
    writeFileSync(file, typeof settings === "string" ? settings : toml(complete));
    const command = [process.execPath, ...(options.nodeFlags ?? []), options.main ?? MAIN, "-f", file];
    if (options.nofile !== undefined) command.unshift("prlimit", `--nofile=${options.nofile}`);
    command.unshift(...(options.command ?? []));
    const child = host.spawn(command[0]!, command.slice(1), {
      title: "transplice",
      env: { ...process.env, NODE_OPTIONS: "", ...options.env },
      ...(options.fds === undefined ? {} : { fds: options.fds }),
    });
    return new Relay(child, file, complete);
  }

  /** By what `transplice upgrade` finds it. */
  get pidFile(): string {
    return `/run/transplice/${basename(this.file, ".toml")}.pid`;
  }

  async ready(): Promise<this> {
    await this.logged("readiness", (entry) => entry.message.includes("is ready"));
    return this;
  }

  /** Every line of the log so far. */
  log(): Entry[] {
    return entriesOf(this.#logFile() === null ? this.process.output : this.#read());
  }

  /** Lines that ended connections. */
  ends(): Ended[] {
    return this.log().filter((entry) => entry.message.startsWith("proxy ends")) as Ended[];
  }

  /** Waits for a line of the log. */
  async logged(what: string, wanted: (entry: Entry) => boolean, withinMs = PATIENCE_MS): Promise<Entry> {
    let found: Entry | undefined;
    await eventually(
      `the log has ${what}`,
      () => {
        found = this.log().find(wanted);
        if (found === undefined && this.process.exit !== null) {
          assert.fail(`${describe(this.process.exit)} before the log had ${what}`);
        }
        return found !== undefined;
      },
      withinMs,
    );
    return found!;
  }

  /** Waits for the end of the connection to this destination, and answers the line that says so. */
  async ended(destination: string, withinMs = PATIENCE_MS): Promise<Ended> {
    const entry = await this.logged(
      `the end of a connection to ${destination}`,
      (each) => each.message.startsWith("proxy ends") && each["dest_addr"] === destination,
      withinMs,
    );
    return entry as Ended;
  }

  /** Writes a new file; nothing happens until a reload. */
  configure(settings: Settings): void {
    this.#settings = withLog(settings);
    writeFileSync(this.file, toml(this.#settings));
  }

  /** SIGHUP, and waits until the log has an answer to it that was not there before. */
  async reload(answer: (entry: Entry) => boolean = isReloaded): Promise<Entry> {
    const before = this.log().filter(answer).length;
    this.process.signal("SIGHUP");
    await eventually("the reload is answered", () => this.log().filter(answer).length > before);
    return this.log().filter(answer).at(-1)!;
  }

  /** TERM; answers how it ended. */
  async stop(): Promise<Exit> {
    return this.process.stop();
  }

  #logFile(): string | null {
    const log = this.#settings["log"] as { readonly filename?: string } | undefined;
    return log?.filename ?? null;
  }

  #read(): string {
    try {
      return readFileSync(this.#logFile()!, "utf8");
    } catch {
      return "";
    }
  }
}

export const isReloaded = (entry: Entry): boolean =>
  entry.message === "the configuration is taken on";

/** Asks workers for what they would not do by themselves: see fault.ts. */
export class Faults {
  readonly #requests = `${PRIVATE}/faults`;
  /** How a program is to be started that will be asked. */
  readonly start: StartOptions;

  constructor(nodeFlags: readonly string[] = []) {
    rmSync(this.#requests, { recursive: true, force: true });
    mkdirSync(this.#requests);
    const module = fileURLToPath(new URL("./fault.js", import.meta.url));
    const env = { NODE_OPTIONS: `--import=${module}`, FAULT_REQUESTS: this.#requests };
    this.start = { env, nodeFlags };
  }

  /** A worker sees it when it is woken, by a connection for example. */
  request(fault: "throw" | "hang" | "heap" | "listen"): void {
    writeFileSync(`${this.#requests}/${fault}`, "");
  }

  /** Requests that nobody has taken yet, and answers. */
  files(): string[] {
    return readdirSync(this.#requests);
  }

  /** Reads an answer away. */
  take(file: string): string {
    const content = readFileSync(`${this.#requests}/${file}`, "utf8");
    rmSync(`${this.#requests}/${file}`);
    return content;
  }
}

export function entriesOf(text: string): Entry[] {
  return text.split("\n").flatMap((line) => {
    if (!line.startsWith("{")) return [];
    try {
      return [JSON.parse(line) as Entry];
    } catch {
      return []; // The last line may be half there.
    }
  });
}

/** Tests read the log as JSON unless they say otherwise. */
function withLog(settings: Settings): Settings {
  const log = settings["log"] as { readonly [key: string]: Value } | undefined;
  return { ...settings, log: { format: "json", level: "debug", ...log } };
}

const isTable = (it: Value): it is Table => typeof it === "object" && !Array.isArray(it);
const isTables = (it: Value): it is readonly Table[] =>
  Array.isArray(it) && it.length > 0 && it.every(isTable);

export function toml(settings: Settings): string {
  const key = (name: string): string => (/^[\w-]+$/.test(name) ? name : JSON.stringify(name));
  const value = (it: Value): string => {
    if (Array.isArray(it)) return `[${it.map(value).join(", ")}]`;
    if (!isTable(it)) return JSON.stringify(it);
    return `{ ${Object.entries(it).map(pair).join(", ")} }`;
  };
  const pair = ([name, it]: [string, Value]): string => `${key(name)} = ${value(it)}`;
  const entries = Object.entries(settings);
  const lines = entries.filter(([, it]) => !isTable(it) && !isTables(it)).map(pair);
  for (const [name, it] of entries) {
    const tables = isTable(it) ? [it] : isTables(it) ? it : [];
    for (const table of tables) {
      lines.push(isTable(it) ? `[${name}]` : `[[${name}]]`, ...Object.entries(table).map(pair));
    }
  }
  return `${lines.join("\n")}\n`;
}
