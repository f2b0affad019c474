/**
 * HTTP on a set of addresses that may change while it runs: for metrics, and for the admin endpoint.
 * Who answers a request is told whether it comes from this host.
 *
 * Each address has a server of its own. Whoever connects has a few seconds to ask and to take the
 * answer, unless the answer is a stream, whose end is its owner's business.
 */
import { chmodSync, existsSync, lstatSync, renameSync, unlinkSync } from "node:fs";
import http from "node:http";
import net, { type Socket } from "node:net";
import { dirname } from "node:path";
import type { AdminAddress, ListenAddress } from "../../config/config.ts";
import { endpointText, splitHostPort } from "../../config/endpoint.ts";
import { bindRemedy } from "../listeners.ts";
import type { Log } from "../log/log.ts";

/** Where a server listens: what it needs to know of an address. */
export type HttpAddress = Pick<ListenAddress, "text" | "dualStack"> | Exclude<AdminAddress, ListenAddress>;

export interface HttpOptions {
  /** What an error calls it: "listen tcp 127.0.0.1:1081 for metrics: ...". */
  readonly purpose: string;
  readonly log: Pick<Log, "error" | "warning">;
  readonly answer: (request: http.IncomingMessage, response: http.ServerResponse, from: Asker) => Answered;
  /** What may be asked. */
  readonly methods: readonly string[];
  /** A socket that listens there already, for a server of ours to have; or null. */
  readonly passed?: (address: Pick<ListenAddress, "text">) => number | null;
  readonly requestMs?: number;
}

/** A promise where it takes a while. */
export type Answered = void | Promise<void>;

export interface Asker {
  /** By loopback, or by a socket of the file system. */
  readonly local: boolean;
  /** By a socket of the file system. */
  readonly unix: boolean;
  /** The answer is a stream, and takes as long as it takes. */
  streams(): void;
}

/** For a request to come, and again for its answer to go. */
const REQUEST_MS = 5000;
/** For an answer under way when its address is let go. */
const LEAVE_MS = 1000;
/** Longer than the usual scrape intervals, so that a scraper keeps its connection. */
const KEEP_ALIVE_MS = 75_000;
/** Per address; what comes beyond is closed at once. */
const CONNECTIONS_MAX = 64;
const HEADER_BYTES_MAX = 8192;

export class HttpServers {
  readonly #options: HttpOptions;
  readonly #requestMs: number;
  readonly #servers = new Map<string, { readonly address: HttpAddress; readonly server: http.Server }>();

  constructor(options: HttpOptions) {
    this.#options = options;
    this.#requestMs = options.requestMs ?? REQUEST_MS;
  }

  /** Where it listens really. */
  get listening(): string[] {
    return [...this.#servers.values()].map(({ address, server }) => {
      const bound = server.address();
      if (bound === null) return "-";
      return typeof bound === "string" ? address.text : endpointText(bound.address, bound.port);
    });
  }

  /**
   * Listens on these from now on: the sockets of addresses that stay are not touched, and others
   * are let go when the new ones stand. When anything goes wrong, it is answered, and nothing has
   * changed. Not to be called again before it has answered.
   */
  async move(addresses: readonly HttpAddress[]): Promise<string[]> {
    const wanted = new Map(addresses.map((address) => [keyOf(address), address]));
    const leaving = [...this.#servers].filter(([key]) => !wanted.has(key));
    const opened = new Map<string, { address: HttpAddress; server: http.Server }>();
    const wrong: string[] = [];
    const inTheWay: HttpAddress[] = [];
    for (const [key, address] of wanted) {
      if (this.#servers.has(key)) continue;
      const server = await this.#open(address);
      if (server instanceof http.Server) opened.set(key, { address, server });
      else if (server.code === "EADDRINUSE" && leaving.some(([, old]) => sharePort(old.server, address)))
        inTheWay.push(address);
      else wrong.push(this.#textOf(address, server));
    }
    if (wrong.length === 0 && inTheWay.length > 0)
      wrong.push(...(await this.#replace(leaving.map(([key]) => key), inTheWay, opened)));
    if (wrong.length > 0) {
      for (const { address, server } of opened.values()) void this.#leave(address, server);
      return wrong;
    }
    for (const [key, { address, server }] of leaving) {
      void this.#leave(address, server);
      this.#servers.delete(key);
    }
    for (const [key, open] of opened) this.#servers.set(key, open);
    return [];
  }

  /** Resolves when the answers under way have gone out, or have had their time. */
  async close(): Promise<void> {
    const servers = [...this.#servers.values()];
    this.#servers.clear();
    await Promise.all(servers.map(({ address, server }) => this.#leave(address, server)));
  }

  /**
   * One of our own sockets holds a port that a new one wants: 127.0.0.1:1081 becomes [::]:1081, or
   * the other way round. Then the old one is closed a moment before; and opened again, if that has
   * not helped.
   */
  async #replace(
    keys: readonly string[], addresses: readonly HttpAddress[],
    opened: Map<string, { address: HttpAddress; server: http.Server }>,
  ): Promise<string[]> {
    const closed: [string, HttpAddress][] = [];
    for (const key of keys) {
      const { address, server } = this.#servers.get(key)!;
      if (!addresses.some((wanted) => sharePort(server, wanted))) continue;
      void this.#leave(address, server);
      closed.push([key, address]);
    }
    const wrong: string[] = [];
    for (const address of addresses) {
      const server = await this.#open(address);
      if (server instanceof http.Server) opened.set(keyOf(address), { address, server });
      else wrong.push(this.#textOf(address, server));
    }
    if (wrong.length === 0) return [];
    for (const { address, server } of opened.values()) void this.#leave(address, server);
    for (const [key, address] of closed) {
      const again = await this.#open(address);
      if (again instanceof http.Server) this.#servers.set(key, { address, server: again });
      else if (this.#servers.delete(key)) wrong.push(this.#textOf(address, again));
    }
    return wrong;
  }

  async #open(address: HttpAddress): Promise<http.Server | NodeJS.ErrnoException> {
    const server = this.#serverFor("path" in address);
    if ("path" in address) return listenAt(server, address.path, this.#accepts);
    const { host, port } = splitHostPort(address.text)!;
    const fd = this.#options.passed?.(address) ?? null;
    const where = fd === null ? { host, port: Number(port), ipv6Only: !address.dualStack } : { fd };
    const result = await listen(server, where, this.#accepts);
    // A kernel without IPv6: all of its addresses are those of IPv4.
    const noIpv6 = !(result instanceof http.Server) && result.code === "EAFNOSUPPORT" && address.dualStack;
    return noIpv6 ? this.#open({ text: `0.0.0.0:${port}`, dualStack: false }) : result;
  }

  #serverFor(unix: boolean): http.Server {
    const server = http.createServer(
      {
        requestTimeout: this.#requestMs,
        connectionsCheckingInterval: this.#requestMs / 5,
        keepAliveTimeout: KEEP_ALIVE_MS,
        maxHeaderSize: HEADER_BYTES_MAX,
      },
      (request, response) => this.#answer(server, unix, request, response),
    );
    server.maxConnections = CONNECTIONS_MAX;
    server.on("connect", (_request, socket: Socket) => {
      socket.end(`HTTP/1.1 405 Method Not Allowed\r\nallow: ${this.#options.methods.join(", ")}\r\n\r\n`);
    });
    return server;
  }

  /** accept has failed, of fds or memory; it is tried again with the next connection. */
  readonly #accepts = ({ message }: Error): void => {
    this.#options.log.warning(`a connection for ${this.#options.purpose} was not accepted`, { error: message });
  };

  /** Nobody is accepted from now on; who is being answered has a moment. */
  #leave(address: HttpAddress, server: http.Server): Promise<void> {
    const deadline = setTimeout(() => server.closeAllConnections(), Math.min(LEAVE_MS, this.#requestMs));
    if ("path" in address) unlinkOwn(address.path, server);
    return new Promise((resolve) => {
      server.close(() => {
        clearTimeout(deadline);
        resolve();
      });
    });
  }

  #answer(server: http.Server, unix: boolean, request: http.IncomingMessage, response: http.ServerResponse): void {
    const { socket } = request;
    let deadline: NodeJS.Timeout | null = null;
    let isStream = false;
    const from: Asker = {
      unix,
      get local() {
        return unix || (isLoopback(socket.remoteAddress) && isLoopback(socket.localAddress));
      },
      streams: () => {
        isStream = true;
        if (deadline !== null) clearTimeout(deadline);
      },
    };
    const answered = this.#begin(request, response, from);
    // What has gone to the kernel already, as most answers to scrapes, has no need of a deadline.
    if (answered === undefined && server.listening && response.writableEnded && response.writableLength === 0) return;
    if (!isStream) deadline = setTimeout(() => socket.destroy(), this.#requestMs);
    response.on("close", () => {
      if (deadline !== null) clearTimeout(deadline);
      if (!server.listening) socket.end(); // Its address has gone meanwhile.
    });
  }

  /** Never rejects. */
  #begin(request: http.IncomingMessage, response: http.ServerResponse, from: Asker): Answered {
    const { purpose, log, methods, answer } = this.#options;
    if (!methods.includes(request.method ?? "-")) {
      // Closed, for its body is not read.
      response.writeHead(405, { allow: methods.join(", "), "content-length": 0, connection: "close" }).end();
      return;
    }
    const failed = (error: unknown): void => {
      log.error(`a request for ${purpose} could not be answered`, { error: String(error) });
      if (response.headersSent) request.socket.destroy();
      else response.writeHead(500, { "content-length": 0 }).end();
    };
    try {
      return answer(request, response, from)?.catch(failed);
    } catch (error) {
      failed(error);
    }
  }

  #textOf(address: HttpAddress, error: NodeJS.ErrnoException): string {
    const [where, why] = "path" in address
      ? [address.text, pathTrouble(address.path, error)]
      : [`tcp ${address.text}`, `${error.message}${bindRemedy(-(error.errno ?? 0))}`];
    return `listen ${where} for ${this.#options.purpose}: ${why}`;
  }
}

function pathTrouble(path: string, { code, message }: NodeJS.ErrnoException): string {
  if (code !== "EACCES") return message;
  const folder = dirname(path);
  // libuv says so of a folder that is not there, too.
  return existsSync(folder) ? `who runs transplice may not make a socket there, see: ls -ld ${folder}` : `there is no folder ${folder}`;
}

/** The same text may be wanted dual-stack or not: another socket. */
const keyOf = (address: HttpAddress): string =>
  "path" in address ? address.text : `${address.dualStack ? "*" : ""}${address.text}`;

function sharePort(server: http.Server, { text }: HttpAddress): boolean {
  const bound = server.address();
  return bound !== null && typeof bound !== "string" && text.endsWith(`:${bound.port}`);
}

const isLoopback = (address: string | undefined): boolean =>
  address !== undefined && /^(?:::ffff:)?127\.|^::1$/.test(address);

function listen(
  server: http.Server, where: net.ListenOptions | { fd: number }, onError: (error: Error) => void,
): Promise<http.Server | NodeJS.ErrnoException> {
  return new Promise((resolve) => {
    server.once("error", resolve);
    server.listen(where, () => {
      server.removeAllListeners("error");
      server.on("error", onError);
      resolve(server);
    });
  });
}

/**
 * At a path: bound under another name, closed to other users, and then moved to where it is looked
 * for. So nobody can connect before its mode is right; and Node, which removes the name that it has
 * bound, removes nobody else's socket.
 */
async function listenAt(
  server: http.Server, path: string, onError: (error: Error) => void,
): Promise<http.Server | NodeJS.ErrnoException> {
  const fault = await pathFault(path);
  if (fault !== null) return fault;
  const bound = boundName(path);
  const result = await listen(server, { path: bound }, onError);
  if (!(result instanceof http.Server)) return result;
  try {
    chmodSync(bound, 0o600);
    renameSync(bound, path);
    inodes.set(server, lstatSync(path).ino);
    return server;
  } catch (error) {
    server.close();
    return error as NodeJS.ErrnoException;
  }
}

const boundName = (path: string): string => `${path}.${process.pid}`;
const inodes = new WeakMap<http.Server, number>();

/** Null: there is nothing there, or the socket of one who is gone. */
function pathFault(path: string): Promise<NodeJS.ErrnoException | null> {
  const inUse = (text: string): NodeJS.ErrnoException => Object.assign(new Error(text), { code: "EADDRINUSE" });
  try {
    if (!lstatSync(path).isSocket()) return Promise.resolve(inUse("there is a file of that name, and it is no socket"));
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    return Promise.resolve(code === "ENOENT" ? null : (error as NodeJS.ErrnoException));
  }
  return new Promise((resolve) => {
    const socket = net.connect(path);
    socket.on("connect", () => {
      socket.destroy();
      resolve(inUse("another program listens there"));
    });
    socket.on("error", ({ code }: NodeJS.ErrnoException) => {
      resolve(code === "ECONNREFUSED" || code === "ENOENT" ? null : inUse("another program listens there"));
    });
  });
}

/** A successor may have put its own there. */
function unlinkOwn(path: string, server: http.Server): void {
  try {
    if (lstatSync(path).ino === inodes.get(server)) unlinkSync(path);
  } catch {
    // Somebody has removed it.
  }
}
