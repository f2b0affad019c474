/**
 * Who asks the admin endpoint: over TCP from any host, or by the socket of the file system; and what
 * a page of metrics comes to.
 */
import { spawnSync } from "node:child_process";
import http from "node:http";
import { connect as connectTo } from "node:net";
import { connect, eventually, PATIENCE_MS } from "./actors.ts";
import type { Host } from "./sandbox.ts";

export const TOKEN = "correct-horse-battery";
export const ADMIN_PORT = 9181;

export interface Answer {
  readonly status: number;
  readonly headers: http.IncomingHttpHeaders;
  readonly text: string;
}

/** An event of a stream. */
export interface ServerEvent {
  readonly event: string;
  readonly data: Record<string, never>;
}

type Headers = Readonly<Record<string, string>>;

export class Asker {
  readonly #from: Host | string;
  readonly #address: string;

  /** `from`: the host that asks at `address`, or the path of a socket. */
  constructor(from: Host | string, address = "127.0.0.1") {
    this.#from = from;
    this.#address = address;
  }

  get(path: string, headers: Headers = {}): Promise<Answer> {
    return this.ask("GET", path, headers);
  }

  /** With the token, unless it is to be another. */
  post(path: string, headers: Headers = { authorization: `Bearer ${TOKEN}` }): Promise<Answer> {
    return this.ask("POST", path, headers);
  }

  async json<T = Record<string, never>>(path: string, headers: Headers = {}): Promise<T> {
    const { status, text } = await this.get(path, headers);
    if (status !== 200) throw new Error(`${path}: ${status} ${text}`);
    return JSON.parse(text) as T;
  }

  async ask(method: string, path: string, headers: Headers): Promise<Answer> {
    const response = await this.#request(method, path, headers);
    let text = "";
    response.setEncoding("utf8");
    for await (const chunk of response) text += String(chunk);
    return { status: response.statusCode!, headers: response.headers, text };
  }

  /** The page of metrics: its samples by what stands before the value. */
  async metrics(): Promise<ReadonlyMap<string, number>> {
    const { text } = await this.get("/metrics");
    return new Map(text.split("\n").filter((line) => line !== "" && !line.startsWith("#")).map((line) => {
      const at = line.lastIndexOf(" ");
      return [line.slice(0, at), Number(line.slice(at + 1))];
    }));
  }

  async stream(path: string, headers: Headers = {}): Promise<Stream> {
    return new Stream(await this.#request("GET", path, headers));
  }

  async #request(method: string, path: string, headers: Headers): Promise<http.IncomingMessage> {
    const from = this.#from;
    const socket = typeof from === "string"
      ? connectTo(from)
      : (await connect(from, this.#address, ADMIN_PORT, { reading: false })).socket;
    const host = this.#address.includes(":") ? `[${this.#address}]` : this.#address;
    return new Promise((resolve, reject) => {
      const asked = http.request(
        { method, path, createConnection: () => socket, headers: { host: `${host}:${ADMIN_PORT}`, connection: "close", ...headers } },
        resolve,
      );
      asked.on("error", reject).end();
    });
  }
}

/** Server-sent events as they come. */
export class Stream {
  readonly response: http.IncomingMessage;
  readonly events: ServerEvent[] = [];
  ended = false;

  constructor(response: http.IncomingMessage) {
    this.response = response;
    let text = "";
    response.setEncoding("utf8").on("data", (chunk: string) => {
      text += chunk;
      for (let end = text.indexOf("\n\n"); end !== -1; end = text.indexOf("\n\n")) {
        const found = /^event: (\S+)\ndata: (.*)$/.exec(text.slice(0, end));
        if (found !== null) this.events.push({ event: found[1]!, data: JSON.parse(found[2]!) as Record<string, never> });
        text = text.slice(end + 2);
      }
    });
    response.on("close", () => (this.ended = true)).on("error", () => {});
  }

  /** The first event that is wanted. */
  async until(what: string, wanted: (event: ServerEvent) => boolean, withinMs = PATIENCE_MS): Promise<ServerEvent> {
    await eventually(`the stream has ${what}`, () => this.events.some(wanted), withinMs);
    return this.events.find(wanted)!;
  }

  close(): void {
    this.response.destroy();
  }
}

/** What promtool says of a page; "": nothing. null: there is no promtool here. */
export function lint(page: string): string | null {
  const { error, status, stdout, stderr } = spawnSync("promtool", ["check", "metrics"], { input: page, encoding: "utf8" });
  if (error !== undefined) return null;
  return status === 0 ? "" : `${stdout}${stderr}`;
}

/** All that a page says of why connections ended. */
export function endings(metrics: ReadonlyMap<string, number>): ReadonlyMap<string, number> {
  return new Map([...metrics].flatMap(([name, value]) => {
    const reason = /^transplice_connections_ended_total\{reason="([^"]+)"\}$/.exec(name)?.[1];
    return reason === undefined || value === 0 ? [] : [[reason, value]];
  }));
}

export const sum = (numbers: Iterable<number>): number => [...numbers].reduce((all, each) => all + each, 0);
