/**
 * The admin endpoint: who may ask for what, and where it is answered. What it shows is read from shared
 * memory or was made a second ago, so whoever looks disturbs no connection; what it changes goes to
 * the workers as any order of main's does.
 *
 *   open    /healthz /readyz /metrics and the page's files: no data about connections
 *   read    /status /events /tunnels /config /trace: from this host, or with the token
 *   write   POST /tunnels/ID/close, /upstreams/ADDRESS/drain and undrain: with the token, always
 */
import { createHash, timingSafeEqual } from "node:crypto";
import { readFileSync } from "node:fs";
import type http from "node:http";
import { hostname } from "node:os";
import type { AdminConfig } from "../../config/config.ts";
import { rangeOf } from "../../config/endpoint.ts";
import { tokenOf } from "../../config/settings.ts";
import { EventStreams } from "./event-streams.ts";
import { type Answered, type Asker, type HttpOptions, HttpServers } from "./http-server.ts";
import type { Log } from "../log/log.ts";
import { openFailure } from "../log/target.ts";
import type { MetricsPage } from "./metrics.ts";
import type { StaticFile } from "./page.ts";
import type { Readiness } from "./readiness.ts";
import type { Status } from "./status.ts";
import { questionOf, type Traces, TRACES_MAX } from "./traces.ts";
import { filterOf, type Tunnels } from "./tunnels.ts";

export interface AdminOptions {
  readonly log: Log;
  readonly passed: NonNullable<HttpOptions["passed"]>;
  readonly metrics: MetricsPage;
  readonly status: Status;
  readonly tunnels: Tunnels;
  readonly traces: Traces;
  readonly readiness: Readiness;
  /** By path. */
  readonly files: ReadonlyMap<string, StaticFile>;
  /** The configuration in force, without secrets. */
  readonly config: () => unknown;
  readonly upstreamNames: () => ReadonlyMap<number, string>;
  /** True when it is closed; false: it is not there. */
  readonly closeTunnel: (name: string) => Promise<boolean>;
  /** Resolves when no dial goes there any more. */
  readonly drain: (address: string, drained: boolean) => Promise<"done" | "unknown" | "last">;
}

const STREAMS_MAX = 16;
const LIMIT_MAX = 1000;
const LIMIT = 100;
/** RFC 9110: a retry is welcome after so many seconds. */
const RETRY_SECONDS = "5";

const SAFE: Readonly<Record<string, string>> = {
  "cache-control": "no-store",
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "content-security-policy":
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
};

/** The same, one after the other. */
const SAFE_LINES = Object.entries(SAFE).flat();

type Right = "open" | "read" | "write";

interface Refusal {
  readonly status: number;
  readonly error: string;
  readonly headers?: Readonly<Record<string, string>>;
}

interface Call {
  readonly request: http.IncomingMessage;
  readonly response: http.ServerResponse;
  readonly asker: Asker;
  readonly url: URL;
}

export class Admin {
  readonly #options: AdminOptions;
  readonly #servers: HttpServers;
  readonly #events = new EventStreams(STREAMS_MAX);
  #hosts: ReadonlySet<string> = new Set();
  /** The Host header that was found to be ours last. */
  #ourName: string | null = null;
  /** As a digest, so that any two can be compared in the same time. null: there is none. */
  #token: Buffer | null = null;

  constructor(options: AdminOptions) {
    this.#options = options;
    this.#servers = new HttpServers({
      purpose: "the admin endpoint",
      log: options.log,
      methods: ["GET", "HEAD", "POST"],
      passed: options.passed,
      answer: (request, response, asker) => this.#answer(request, response, asker),
    });
  }

  get listening(): string[] {
    return this.#servers.listening;
  }

  get writable(): boolean {
    return this.#token !== null;
  }

  /**
   * Listens where this configuration says, and asks for its token. When anything goes wrong it is
   * answered, and nothing has changed.
   */
  async move(config: AdminConfig | null): Promise<string[]> {
    const token = config === null ? null : readToken(config);
    if (token !== null && typeof token === "object") return [token.wrong];
    const wrong = await this.#servers.move(config?.listen ?? []);
    if (wrong.length > 0) return wrong;
    this.#token = token === null ? null : digest(token);
    this.#hosts = new Set(["localhost", hostname().toLowerCase(), ...(config?.hosts ?? [])]);
    this.#ourName = null;
    if (config === null) this.#farewell("the endpoint is gone from the configuration");
    return [];
  }

  /** To be called once a second. */
  tick(): void {
    this.#options.traces.keepAlive();
    if (this.#events.size === 0) return;
    void this.#options.status.looked();
    this.#events.sendAll("status", this.#options.status.text);
    this.#events.keepAlive();
  }

  async close(reason: string): Promise<void> {
    this.#farewell(reason);
    await this.#servers.close();
  }

  #farewell(reason: string): void {
    this.#events.close(reason);
    this.#options.traces.close(reason);
  }

  #answer(request: http.IncomingMessage, response: http.ServerResponse, asker: Asker): Answered {
    // A body is asked for nowhere, and so is not read.
    const hasBody = request.headers["content-length"] !== undefined || request.headers["transfer-encoding"] !== undefined;
    // A scrape comes often, and takes the short way: as much is asked of it as on the long one.
    if (request.url === "/metrics" && request.method === "GET" && !hasBody && this.#refusal("open", request, asker) === null) {
      return this.#options.metrics.answer(request, response, SAFE_LINES);
    }
    for (const [name, value] of Object.entries(SAFE)) response.setHeader(name, value);
    if (hasBody) response.setHeader("connection", "close");
    const url = urlOf(request.url);
    if (url === null) return refuse(response, { status: 400, error: "the request's target is no path" });
    const call: Call = { request, response, asker, url };
    const { method } = request;
    const route = this.#route(url.pathname);
    if (route === null) return refuse(response, { status: 404, error: `there is nothing at ${url.pathname}` });
    if ((method === "POST") !== (route.right === "write")) {
      const allow = route.right === "write" ? "POST" : "GET, HEAD";
      return refuse(response, { status: 405, error: `${url.pathname} takes ${allow}`, headers: { allow } });
    }
    const refusal = this.#refusal(route.right, request, asker);
    if (refusal !== null) return refuse(response, refusal);
    return route.answer(call);
  }

  #route(path: string): { readonly right: Right; readonly answer: (call: Call) => Answered } | null {
    const { readiness, metrics, status, config, files } = this.#options;
    switch (path) {
      case "/healthz": {
        return { right: "open", answer: ({ response }) => {
          const problems = readiness.ills;
          const failing = problems.length > 0;
          json(response, failing ? 503 : 200, failing ? { status: "failing", problems } : { status: "ok" });
        } };
      }
      case "/readyz":
        return { right: "open", answer: async ({ response }) => {
          const problems = await readiness.check();
          json(response, problems.length === 0 ? 200 : 503, { ready: problems.length === 0, problems });
        } };
      case "/metrics":
        return { right: "open", answer: ({ request, response }) => metrics.answer(request, response) };
      case "/status":
        return { right: "read", answer: async ({ response }) => {
          await status.looked();
          text(response, 200, "application/json", status.textWithHistory);
        } };
      case "/events":
        return { right: "read", answer: (call) => this.#stream(call) };
      case "/tunnels":
        return { right: "read", answer: (call) => this.#list(call) };
      case "/trace":
        return { right: "read", answer: (call) => this.#trace(call) };
      case "/config":
        return { right: "read", answer: ({ response }) => json(response, 200, config()) };
    }
    const file = files.get(path);
    if (file !== undefined) return { right: "open", answer: ({ response }) => sendFile(response, file) };
    const closed = /^\/tunnels\/([^/]+)\/close$/.exec(path);
    if (closed !== null) return { right: "write", answer: (call) => this.#close(call, closed[1]!) };
    const drained = /^\/upstreams\/([^/]+)\/(drain|undrain)$/.exec(path);
    if (drained === null) return null;
    return { right: "write", answer: (call) => this.#drain(call, drained[1]!, drained[2] === "drain") };
  }

  // ---- who may

  #refusal(right: Right, request: http.IncomingMessage, asker: Asker): Refusal | null {
    const { host, origin, authorization } = request.headers;
    const known = this.#isToken(authorization);
    if (!asker.unix && !known && !this.#isOurName(host)) {
      return {
        status: 421,
        error: `this endpoint is not ${host === undefined ? "to be asked without a Host header" : "known by that name"}; use its address, or list the name in [admin] hosts`,
      };
    }
    if (right === "open") return null;
    const site = request.headers["sec-fetch-site"] ?? "none";
    const isOwn = origin === undefined || origin === `http://${host}` || origin === `https://${host}`;
    if (!isOwn || (site !== "none" && site !== "same-origin")) {
      return { status: 403, error: "pages of other sites may not ask this endpoint" };
    }
    if (known || (right === "read" && asker.local && (authorization === undefined || this.#token === null))) return null;
    if (this.#token === null) {
      const what = right === "write" ? "changing anything" : "asking for this from another host";
      return { status: 403, error: `${what} takes a token, and the configuration has none: set [admin] token or token_file` };
    }
    return {
      status: 401,
      error: `this takes the token of the configuration, as "authorization: Bearer TOKEN"${authorization === undefined ? "" : "; the one that was sent is another"}`,
      headers: { "www-authenticate": "Bearer" },
    };
  }

  #isToken(authorization: string | undefined): boolean {
    if (authorization === undefined) return false;
    const given = /^bearer +(\S+)$/i.exec(authorization)?.[1];
    return given !== undefined && this.#token !== null && timingSafeEqual(digest(given), this.#token);
  }

  /** Against DNS rebinding: a name that somebody else gives to our address is not ours. */
  #isOurName(host: string | undefined): boolean {
    if (host === undefined) return false;
    if (host === this.#ourName) return true;
    const name = /^(?:\[([^\]]+)\]|([^:]+))(?::\d+)?$/.exec(host);
    if (name === null) return false;
    const [, bracketed, plain] = name;
    const isOurs = rangeOf(bracketed ?? plain!) !== null || (plain !== undefined && this.#hosts.has(plain.toLowerCase()));
    if (isOurs) this.#ourName = host;
    return isOurs;
  }

  // ---- what is answered

  async #stream({ request, response, asker }: Call): Promise<void> {
    const { status } = this.#options;
    if (request.method === "HEAD") return refuse(response, { status: 405, error: "a stream is only to be got", headers: { allow: "GET" } });
    if (this.#events.full) {
      return refuse(response, { status: 503, error: `${STREAMS_MAX} look already`, headers: { "retry-after": RETRY_SECONDS } });
    }
    asker.streams();
    this.#events.open(response);
    await status.looked();
    this.#events.send(response, "status", status.text);
  }

  async #trace({ request, response, asker, url }: Call): Promise<void> {
    const { traces } = this.#options;
    if (request.method === "HEAD") return refuse(response, { status: 405, error: "a stream is only to be got", headers: { allow: "GET" } });
    const query = questionOf(Object.fromEntries(url.searchParams));
    if ("wrong" in query) return refuse(response, { status: 400, error: query.wrong });
    if (traces.full) {
      return refuse(response, { status: 503, error: `${TRACES_MAX} follow connections already`, headers: { "retry-after": RETRY_SECONDS } });
    }
    asker.streams();
    await traces.open(response, query);
  }

  async #list({ response, url }: Call): Promise<void> {
    const known = new Set(["client", "destination", "state", "user", "upstream", "limit", "after"]);
    const given = Object.fromEntries(url.searchParams);
    const stranger = Object.keys(given).find((name) => !known.has(name));
    if (stranger !== undefined) return refuse(response, { status: 400, error: `${stranger} is not asked for here; there are ${[...known].join(", ")}` });
    const { limit = `${LIMIT}`, after = "", ...query } = given;
    if (!/^\d{1,4}$/.test(limit) || Number(limit) < 1 || Number(limit) > LIMIT_MAX) {
      return refuse(response, { status: 400, error: `limit: found "${limit}"; allowed: 1 to ${LIMIT_MAX}` });
    }
    const filter = filterOf(query, this.#options.upstreamNames());
    if ("wrong" in filter) return refuse(response, { status: 400, error: filter.wrong });
    const page = await this.#options.tunnels.page(filter, Number(limit), after);
    if (page === null) return refuse(response, { status: 400, error: `after: found "${after}"; allowed: what stood in "next" of a page before` });
    json(response, 200, page);
  }

  async #close({ response }: Call, name: string): Promise<void> {
    if (!(await this.#options.closeTunnel(name))) {
      return refuse(response, { status: 404, error: `there is no connection ${name}; it may have ended` });
    }
    this.#options.log.warning("an operator has closed a connection", { request_id: name });
    json(response, 200, { closed: name });
  }

  async #drain({ response }: Call, encoded: string, drained: boolean): Promise<void> {
    const address = decoded(encoded);
    switch (await this.#options.drain(address, drained)) {
      case "done":
        this.#options.log.warning(drained ? "an operator drains an upstream" : "an operator lets an upstream be dialled again", { address });
        return json(response, 200, { upstream: address, drained });
      case "unknown":
        return refuse(response, { status: 404, error: `no upstream has the address ${address}` });
      case "last":
        return refuse(response, { status: 409, error: `${address} is the last address of its upstream that is not drained; nothing could be dialled` });
    }
  }
}

/** The token, null where there is none, or what is wrong with its file. */
function readToken({ token, tokenFile }: AdminConfig): string | null | { wrong: string } {
  if (tokenFile === null) return token;
  try {
    const [line] = readFileSync(tokenFile, "utf8").split("\n", 1);
    return tokenOf(line!.trim()) ?? { wrong: `admin.token_file: ${tokenFile}: its first line is no token of 16 to 256 letters, digits and - . _ ~ + / =` };
  } catch (error) {
    return { wrong: `admin.token_file: ${openFailure(tokenFile, error)}; its first line is to be the token, and the user that transplice runs as must be able to read it` };
  }
}

const digest = (token: string): Buffer => createHash("sha256").update(token).digest();

function urlOf(target: string | undefined): URL | null {
  try {
    return target?.startsWith("/") ? new URL(`http://admin${target.startsWith("//") ? "/" : ""}${target}`) : null;
  } catch {
    return null;
  }
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function text(response: http.ServerResponse, status: number, type: string, body: string): void {
  response.writeHead(status, { "content-type": `${type}; charset=utf-8`, "content-length": Buffer.byteLength(body) }).end(body);
}

function json(response: http.ServerResponse, status: number, value: unknown): void {
  text(response, status, "application/json", `${JSON.stringify(value)}\n`);
}

function refuse(response: http.ServerResponse, { status, error, headers }: Refusal): void {
  for (const [name, value] of Object.entries(headers ?? {})) response.setHeader(name, value);
  json(response, status, { error });
}

function sendFile(response: http.ServerResponse, { type, bytes, headers }: StaticFile): void {
  for (const [name, value] of Object.entries(headers ?? {})) response.setHeader(name, value);
  response.writeHead(200, { "content-type": type, "content-length": bytes.length }).end(bytes);
}
