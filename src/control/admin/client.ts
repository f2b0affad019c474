/**
 * The admin endpoint of a running process, asked by the commands that look at it (`top`, ...): where the
 * configuration says that it is, with the token that the configuration has.
 */
import { readFileSync } from "node:fs";
import http from "node:http";
import type { AdminAddress, Config } from "../../config/config.ts";
import { portOf, textOf } from "../../config/endpoint.ts";
import { ALIVE_MS } from "./event-streams.ts";

export type Answer = { readonly status: number; readonly body: unknown } | { readonly wrong: string };

const ANSWER_MS = 10_000;
/** A stream that has nothing to say says so each ALIVE_MS. */
const SILENCE_MS = 2.5 * ALIVE_MS;
const ANSWER_BYTES_MAX = 1 << 26;

/** `wrong`: there is no endpoint, and how to have one. */
export function adminClient({ admin }: Config): AdminClient | { readonly wrong: string } {
  const [address] = admin?.listen ?? [];
  if (admin === null || address === undefined) {
    return { wrong: 'the configuration has no admin endpoint; to have one, set listen = "127.0.0.1:9181" in [admin], and reload' };
  }
  let { token } = admin;
  if (token === null && admin.tokenFile !== null) {
    try {
      token = readFileSync(admin.tokenFile, "utf8").split("\n", 1)[0]!.trim();
    } catch {
      token = null; // From this host, and to look, it may do without.
    }
  }
  return new AdminClient(address, token);
}

export class AdminClient {
  readonly #where: http.RequestOptions;
  readonly #text: string;

  constructor(address: AdminAddress, token: string | null) {
    const headers = token === null ? {} : { authorization: `Bearer ${token}` };
    this.#text = address.text;
    this.#where = "path" in address
      ? { socketPath: address.path, headers: { host: "localhost", ...headers } }
      : { ...placeOf(address.bytes), headers };
  }

  get(path: string): Promise<Answer> {
    return this.#ask("GET", path);
  }

  post(path: string): Promise<Answer> {
    return this.#ask("POST", path);
  }

  /** null: the stream has ended, or was to be left. */
  async stream(
    path: string, onEvent: (event: string, data: unknown) => void, signal?: AbortSignal,
  ): Promise<{ readonly wrong: string } | null> {
    const opened = await this.#request("GET", path, signal);
    if (signal?.aborted) return null;
    if ("wrong" in opened) return opened;
    if (opened.statusCode !== 200) return { wrong: errorIn(await bodyOf(opened), opened.statusCode) };
    let text = "";
    try {
      for await (const chunk of opened.setEncoding("utf8")) {
        const events = (text + (chunk as string)).split("\n\n");
        text = events.pop()!;
        for (const event of events) tell(event, onEvent);
      }
      return null;
    } catch (error) {
      return signal?.aborted ? null : this.#failure(error as NodeJS.ErrnoException);
    }
  }

  async #ask(method: string, path: string): Promise<Answer> {
    const answer = await this.#request(method, path);
    if ("wrong" in answer) return answer;
    try {
      return { status: answer.statusCode ?? 0, body: await bodyOf(answer) };
    } catch (error) {
      return this.#failure(error as NodeJS.ErrnoException);
    }
  }

  #request(method: string, path: string, signal?: AbortSignal): Promise<http.IncomingMessage | { readonly wrong: string }> {
    return new Promise((resolve) => {
      const asked = http.request({ ...this.#where, method, path, agent: false, timeout: Math.max(ANSWER_MS, SILENCE_MS), ...(signal === undefined ? {} : { signal }) });
      asked.on("timeout", () => asked.destroy(Object.assign(new Error("nothing came for a while"), { code: "ETIMEDOUT" })));
      asked.on("error", (error: NodeJS.ErrnoException) => resolve(this.#failure(error)));
      asked.on("response", resolve);
      asked.end();
    });
  }

  #failure(error: NodeJS.ErrnoException): { readonly wrong: string } {
    const words = error.code === "ECONNREFUSED" || error.code === "ENOENT" ? "nobody is there; does transplice run, with this configuration?" : error.code === "EACCES" ? "this user may not; run it as root" : error.message;
    return { wrong: `the admin endpoint ${this.#text}: ${words}` };
  }
}

/** A wildcard is here, too. */
function placeOf(bytes: Uint8Array): { host: string; port: number } {
  const host = textOf(bytes, 0).replace(/:[0-9]+$/, "").replace(/^\[|\]$/g, "");
  return { host: host === "0.0.0.0" ? "127.0.0.1" : host === "::" ? "::1" : host, port: portOf(bytes, 0) };
}

function tell(event: string, onEvent: (event: string, data: unknown) => void): void {
  const fields = event.split("\n");
  const of = (name: string): string => fields.filter((line) => line.startsWith(`${name}: `)).map((line) => line.slice(name.length + 2)).join("\n");
  const data = of("data");
  if (data !== "") onEvent(of("event") || "message", JSON.parse(data));
}

/** Parsed, where it is JSON. Rejects when it does not come whole. */
async function bodyOf(answer: http.IncomingMessage): Promise<unknown> {
  let text = "";
  for await (const chunk of answer.setEncoding("utf8")) {
    text += chunk as string;
    if (text.length > ANSWER_BYTES_MAX) throw new Error("the answer is too long");
  }
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return text;
  }
}

const errorIn = (body: unknown, status = 0): string =>
  (body as { readonly error?: string } | null)?.error ?? `the admin endpoint answers ${status}`;
