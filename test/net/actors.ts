/**
 * TCP peers that do what a script says: listen, speak, fall silent, read slowly, half-close,
 * reset at a chosen byte; and that notice what the other side did, a reset being told from an end.
 *
 * They live in the test's own process, but on any host of the sandbox.
 */
import { strict as assert } from "node:assert";
import { createServer, isIPv6, type OnReadOpts, type Server, Socket } from "node:net";
import {
  AF_INET,
  AF_INET6,
  ECONNRESET,
  IPV6_V6ONLY,
  SO_ERROR,
  SO_REUSEADDR,
  SOCK_CLOEXEC,
  SOCK_NONBLOCK,
  SOCK_STREAM,
  SOCKADDR_SIZE,
  SOL_IPV6,
  SOL_SOCKET,
} from "../../native-bindings/constants.ts";
import { linux } from "../../native-bindings/syscalls.ts";
import type { Place } from "./sandbox.ts";

/** How a direction ended: by FIN, by RST, or with another error's name. */
export type End = "fin" | "reset" | (string & {});

/**
 * So long is waited for what is to come, and then it is taken for what never comes. A machine may be slow
 * and busy: nothing is asked of its speed. A deadline that must not be waited for is longer than this.
 */
export const PATIENCE_MS = 45_000;

/** One end of a connection. */
export class Peer {
  readonly socket: Socket;
  /** All that came, if it was not read with read(). */
  #received: Buffer[] = [];
  #length = 0;
  /** How many bytes came in all. */
  total = 0;
  /** How the other side's direction ended. */
  end: End | null = null;
  readonly #waiting = new Set<() => void>();

  constructor(socket: Socket, { reading = true } = {}) {
    this.socket = socket;
    socket.on("error", (error: NodeJS.ErrnoException) => {
      const code = error.code ?? error.message;
      this.end = code === "ECONNRESET" ? "reset" : code;
      this.#wake();
    });
    socket.on("end", () => {
      // When bytes and a reset come together, libuv reports the bytes and then an end.
      this.end ??= errorOf(socket) === ECONNRESET ? "reset" : "fin";
      this.#wake();
    });
    socket.on("close", () => this.#wake());
    if (reading) this.resume();
  }

  /** Begins to read, where that was put off. */
  resume(): void {
    this.socket.on("data", (chunk: Buffer) => {
      this.#received.push(chunk);
      this.#length += chunk.length;
      this.total += chunk.length;
      this.#wake();
    });
    this.socket.resume();
  }

  /** The other side, as "192.0.2.1:43210". */
  get remote(): string {
    return text(this.socket.remoteAddress ?? "", this.socket.remotePort ?? 0);
  }

  get local(): string {
    return text(this.socket.localAddress ?? "", this.socket.localPort ?? 0);
  }

  write(data: string | Uint8Array): this {
    this.socket.write(data);
    return this;
  }

  /** FIN, after all that was written. */
  finish(data?: string | Uint8Array): this {
    if (data !== undefined) this.socket.write(data);
    this.socket.end();
    return this;
  }

  reset(): void {
    this.socket.resetAndDestroy();
  }

  destroy(): void {
    this.socket.destroy();
  }

  /** The next so many bytes. Fails if the stream ends before. */
  async read(count: number, withinMs = PATIENCE_MS): Promise<Buffer> {
    await this.until(`${count} bytes`, () => this.#length >= count || this.end !== null, withinMs);
    assert.ok(
      this.#length >= count,
      `wanted ${count} bytes, but ${this.#length} came before the end (${this.end})`,
    );
    const all = Buffer.concat(this.#received);
    this.#received = [all.subarray(count)];
    this.#length -= count;
    return all.subarray(0, count);
  }

  /** The bytes up to and with the delimiter. */
  async readUntil(delimiter: string, withinMs = PATIENCE_MS): Promise<string> {
    const at = (): number => Buffer.concat(this.#received).indexOf(delimiter);
    await this.until(JSON.stringify(delimiter), () => at() !== -1 || this.end !== null, withinMs);
    assert.notEqual(at(), -1, `the stream ended (${this.end}) before ${JSON.stringify(delimiter)}`);
    return (await this.read(at() + delimiter.length)).toString("latin1");
  }

  /** From now on, `total` counts what comes and what has not been read yet. */
  count(): void {
    this.total = this.#length;
  }

  /** All that is left, and how it ended. */
  async rest(withinMs = PATIENCE_MS): Promise<{ data: Buffer; end: End }> {
    await this.until("the end", () => this.end !== null, withinMs);
    const data = Buffer.concat(this.#received);
    this.#received = [];
    this.#length = 0;
    return { data, end: this.end! };
  }

  /** How the other side ended its direction. */
  async ending(withinMs = PATIENCE_MS): Promise<End> {
    await this.until("the end", () => this.end !== null, withinMs);
    return this.end!;
  }

  async until(what: string, condition: () => boolean, withinMs = PATIENCE_MS): Promise<void> {
    if (condition()) return;
    await new Promise<void>((resolve, reject) => {
      const look = (): void => {
        if (!condition()) return;
        clearTimeout(timer);
        this.#waiting.delete(look);
        resolve();
      };
      const timer = setTimeout(() => {
        this.#waiting.delete(look);
        reject(
          new Error(
            `${this.local} waited ${withinMs} ms in vain for ${what} from ` +
              `${this.remote}; ${this.total} bytes came`,
          ),
        );
      }, withinMs);
      this.#waiting.add(look);
    });
  }

  #wake(): void {
    for (const look of [...this.#waiting]) look();
  }
}

const clients = new Set<Socket>();

/** Ends what connect() has begun and nobody has ended: it would keep this process for ever. */
export function abandonClients(): void {
  for (const socket of clients) socket.destroy();
}

/**
 * Connects from a host to an address, and answers when connect() has. A connection that is reset in
 * the same moment has been one: its peer has ended by a reset. A refused one is an error. `from`
 * is an address of the host's, where it has several.
 */
export async function connect(
  host: Place,
  address: string,
  port: number,
  options: { reading?: boolean; onread?: OnReadOpts; from?: string } = {},
): Promise<Peer> {
  const { onread, from } = options;
  const socket = new Socket({ allowHalfOpen: true, ...(onread === undefined ? {} : { onread }) });
  clients.add(socket);
  socket.once("close", () => clients.delete(socket));
  const peer = new Peer(socket, options);
  await new Promise<void>((resolve, reject) => {
    socket.once("connect", resolve);
    socket.once("error", (error: NodeJS.ErrnoException) => {
      if (error.code === "ECONNRESET") resolve();
      else reject(error);
    });
    const where = { host: address, port, ...(from === undefined ? {} : { localAddress: from }) };
    host.withinNextTick(() => socket.connect(where));
  });
  return peer;
}

/** A listening socket on a host, and the connections that came to it. */
export class Listener {
  readonly address: string;
  readonly port: number;
  readonly peers: Peer[] = [];
  readonly #server: Server;
  readonly #fresh: Peer[] = [];
  readonly #waiting: ((peer: Peer) => void)[] = [];

  /** `serve` is called with each connection; without it, they are for accept(). */
  constructor(
    host: Place,
    address: string,
    port: number,
    serve?: (peer: Peer) => void,
    options: { reading?: boolean } = {},
  ) {
    this.#server = createServer({ allowHalfOpen: true }, (socket) => {
      const peer = new Peer(socket, options);
      this.peers.push(peer);
      if (serve !== undefined) serve(peer);
      else if (this.#waiting.length > 0) this.#waiting.shift()!(peer);
      else this.#fresh.push(peer);
    });
    this.#server.on("error", () => {});
    this.#server.listen({ fd: boundSocket(host, address, port), backlog: 4096 });
    this.address = address;
    this.port = port;
  }

  /** The next connection that nobody has taken yet. */
  async accept(withinMs = PATIENCE_MS): Promise<Peer> {
    const fresh = this.#fresh.shift();
    if (fresh !== undefined) return fresh;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiting.splice(this.#waiting.indexOf(take), 1);
        reject(
          new Error(`no connection came to ${text(this.address, this.port)} in ${withinMs} ms`),
        );
      }, withinMs);
      const take = (peer: Peer): void => {
        clearTimeout(timer);
        resolve(peer);
      };
      this.#waiting.push(take);
    });
  }

  close(): void {
    this.#server.close();
    for (const peer of this.peers) peer.destroy();
  }
}

const sys = linux();
const option = sys.memory(4);

/** The socket's pending error, as the kernel knows it: an errno, or 0. */
function errorOf(socket: Socket): number {
  const { _handle: handle } = socket as unknown as { _handle: { fd: number } | null };
  if (handle === null) return 0;
  sys.getsockopt(handle.fd, SOL_SOCKET, SO_ERROR, option, 0, 4);
  return option.view.getInt32(0, true);
}

/** A stream socket of the host, bound and not yet listening: for anything that takes an fd. */
export function boundSocket(host: Place, address: string, port: number): number {
  const ipv6 = isIPv6(address);
  const sockaddr = sys.memory(SOCKADDR_SIZE);
  sockaddr.view.setUint16(0, ipv6 ? AF_INET6 : AF_INET, true);
  sockaddr.view.setUint16(2, port);
  if (ipv6) sockaddr.bytes.set(ipv6Bytes(address), 8);
  else sockaddr.bytes.set(address.split(".").map(Number), 4);
  return host.within(() => {
    const kind = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
    const fd = sys.socket(ipv6 ? AF_INET6 : AF_INET, kind, 0);
    sys.setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (ipv6) sys.setsockopt(fd, SOL_IPV6, IPV6_V6ONLY, 1);
    const result = sys.bind(fd, sockaddr, 0, ipv6 ? 28 : 16);
    assert.ok(result === 0, `bind ${text(address, port)} on ${host.name}: errno ${-result}`);
    return fd;
  });
}

export function ipv6Bytes(address: string): number[] {
  const [head, tail] = address.split("::").map((half) => (half === "" ? [] : half.split(":")));
  const missing = 8 - head!.length - (tail?.length ?? 0);
  const groups = [
    ...head!,
    ...Array<string>(tail === undefined ? 0 : missing).fill("0"),
    ...(tail ?? []),
  ];
  return groups.flatMap((group) => {
    const value = Number.parseInt(group, 16);
    return [value >> 8, value & 0xff];
  });
}

/** "192.0.2.1:80", "[2001:db8::1]:80". */
export const text = (address: string, port: number): string =>
  isIPv6(address) ? `[${address}]:${port}` : `${address}:${port}`;

export const sleep = (ms: number): Promise<void> =>
  new Promise((resolve) => setTimeout(resolve, ms));

/** Waits until a number has stood for a second and a half, as it does when nothing moves any more. */
export async function settled(what: string, number: () => number): Promise<number> {
  let last = number();
  let since = performance.now();
  await eventually(`${what} stands`, () => {
    const now = number();
    if (now !== last) [last, since] = [now, performance.now()];
    return performance.now() - since > 1500;
  });
  return last;
}

/** Waits until a condition holds; fails, naming it, if it does not. */
export async function eventually(
  what: string,
  condition: () => boolean | Promise<boolean>,
  withinMs = PATIENCE_MS,
): Promise<void> {
  const deadline = Date.now() + withinMs;
  while (!(await condition())) {
    assert.ok(Date.now() < deadline, `not so in ${withinMs} ms: ${what}`);
    await sleep(10);
  }
}
