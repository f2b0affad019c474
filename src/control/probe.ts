/**
 * One attempt at an upstream, as the service would make it: dial, and as much of the handshake as shows
 * whether it speaks the protocol and accepts the credentials. No destination is asked for by SOCKS5;
 * HTTP has nothing to ask but a CONNECT, which is for a name that exists nowhere (RFC 6761: .invalid);
 * SOCKS4 is dialled, and no more.
 *
 * Owns its one socket. Always over within the deadlines that it is given.
 */
import { request } from "node:http";
import { Socket } from "node:net";
import { getSystemErrorName } from "node:util";
import { EINPROGRESS, ENETUNREACH, EPERM, MSG_DONTWAIT, SO_MARK, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_STREAM, SOCKADDR_SIZE, SOL_SOCKET } from "../../native-bindings/constants.ts";
import { CONNTRACK_REQUEST_BYTES, originalPort, writeConntrackGet } from "../../native-bindings/nfnetlink-conntrack.ts";
import { AF_NETLINK, NETLINK_NETFILTER, SOCK_RAW } from "../../native-bindings/nfnetlink-queue.ts";
import type { Syscalls } from "../../native-bindings/syscalls.ts";
import type { SocketAddress } from "../config/config.ts";
import { endpointText, portOf } from "../config/endpoint.ts";
import { addressOf } from "../policy/own.ts";
import { type Credentials, OUTPUT_BYTES_MAX } from "../protocol/handshake.ts";
import { Socks5Client } from "../protocol/socks5-client.ts";
import { sameAddress, type SocketRow, sockets } from "./host.ts";

/** Whose connection it is, for the firewall's rules. Another user's takes root. */
export interface Identity {
  readonly mark: number | null;
  /** null: whoever we are. */
  readonly uid: number | null;
}

export type Probed =
  | { readonly ok: true }
  /** "unlike": we may not make a connection as that user, or with that mark. */
  | { readonly ok: false; readonly at: "dial" | "silent" | "closed" | "malformed" | "credentials" | "unlike"; readonly detail: string };

/** A socket of which connect() has begun. */
export interface Dialled {
  readonly fd: number;
  readonly socket: Socket;
}

/** connect() without waiting; or -errno. */
export function dial(sys: Syscalls, to: SocketAddress, { mark, uid }: Identity): Dialled | number {
  const before = process.geteuid!();
  let fd: number;
  try {
    // By the socket's creator the rules know whose it is.
    if (uid !== null && uid !== before) process.seteuid!(uid);
    fd = sys.socket(to.bytes[0]!, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  } catch {
    return -EPERM;
  } finally {
    if (process.geteuid!() !== before) process.seteuid!(before);
  }
  if (fd < 0) return fd;
  const memory = sys.memory(SOCKADDR_SIZE);
  memory.bytes.set(to.bytes);
  let result = mark === null ? 0 : sys.setsockopt(fd, SOL_SOCKET, SO_MARK, mark);
  if (result >= 0) result = sys.connect(fd, memory, 0, to.bytes.length);
  if (result < 0 && result !== -EINPROGRESS) {
    sys.close(fd);
    return result;
  }
  const socket = new Socket({ fd, readable: true, writable: true });
  socket.on("error", () => {});
  return { fd, socket };
}

/** Whether the kernel has a way there: connect() of a socket for datagrams looks for one, and sends nothing (udp(7)). */
export function hasRoute(sys: Syscalls, to: Pick<SocketAddress, "bytes">): boolean {
  const fd = sys.socket(to.bytes[0]!, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return true; // Nothing is known.
  const memory = sys.memory(SOCKADDR_SIZE);
  memory.bytes.set(to.bytes);
  const result = sys.connect(fd, memory, 0, to.bytes.length);
  sys.close(fd);
  return result !== -ENETUNREACH;
}

export interface ProbeOptions {
  readonly sys: Syscalls;
  readonly kind: "socks5" | "socks4" | "http";
  readonly to: SocketAddress;
  readonly credentials: Credentials | null;
  readonly identity: Identity;
  /** For all of it; */
  readonly patienceMs: number;
  /** until the connection stands, where that may not take all of it. */
  readonly dialMs?: number;
  /** Our own: whether the connection has come to one of them is looked for most closely. */
  readonly ports?: readonly number[];
  /** Told at once where on this host the connection has arrived, if it has. */
  readonly onLanding?: (landing: Landing) => void;
}

export type Landing = Pick<SocketRow, "local" | "localPort">;

/**
 * The other end of a connection, if it is on this host: what a rule has redirected is here, whatever
 * address was dialled. Loopback's handshake is over when connect() returns. A program of that end that
 * is quick may have closed it already: of the ports that are named, connection tracking still knows.
 */
export function landing(sys: Syscalls, fd: number, ports: readonly number[] = []): Landing | null {
  const name = sys.memory(SOCKADDR_SIZE);
  if (sys.getsockname(fd, name, 0) < 0) return null;
  const address = addressOf(name.bytes, 0);
  const port = portOf(name.bytes, 0);
  const row = sockets().find(({ remote, remotePort }) => remotePort === port && sameAddress(remote, address));
  if (row !== undefined) return row;
  const local = address.length === 4 ? LOOPBACK[4] : LOOPBACK[6];
  const localPort = ports.find((each) => isAnsweredFrom(sys, local, each, address, port));
  return localPort === undefined ? null : { local, localPort };
}

/** REDIRECT leads this host's own connections there. */
const LOOPBACK = { 4: Uint8Array.of(127, 0, 0, 1), 6: Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1) } as const;
const CONNTRACK_ANSWER_BYTES = 2048;

/** Without CAP_NET_ADMIN the kernel does not say, and it is no. */
function isAnsweredFrom(sys: Syscalls, from: Uint8Array, fromPort: number, to: Uint8Array, toPort: number): boolean {
  const fd = sys.socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, NETLINK_NETFILTER);
  if (fd < 0) return false;
  const request = sys.memory(CONNTRACK_REQUEST_BYTES);
  const answer = sys.memory(CONNTRACK_ANSWER_BYTES);
  const length = writeConntrackGet(request, from.length === 4 ? 4 : 6, from, fromPort, to, toPort);
  const sent = sys.send(fd, request, 0, length, MSG_DONTWAIT);
  const found = sent < 0 ? 0 : originalPort(answer, sys.recv(fd, answer, 0, CONNTRACK_ANSWER_BYTES, MSG_DONTWAIT));
  sys.close(fd);
  return found === toPort;
}

const CONNECTED_MS = 10;

export async function probe(options: ProbeOptions): Promise<Probed> {
  const { sys, to, identity, patienceMs, kind } = options;
  const dialled = dial(sys, to, identity);
  if (dialled === -EPERM) return { ok: false, at: "unlike", detail: "EPERM" };
  if (typeof dialled === "number") return { ok: false, at: "dial", detail: getSystemErrorName(dialled) };
  const { fd, socket } = dialled;
  const peer = sys.memory(SOCKADDR_SIZE);
  const isConnected = (): boolean => sys.getpeername(fd, peer, 0) >= 0;
  const { onLanding, ports } = options;
  const landed = onLanding === undefined ? null : landing(sys, fd, ports);
  if (landed !== null) onLanding?.(landed);
  let timer: NodeJS.Timeout | undefined;
  let dialTimer: NodeJS.Timeout | undefined;
  let watch: NodeJS.Timeout | undefined;
  const probed = await new Promise<Probed>((resolve) => {
    timer = setTimeout(() => {
      resolve(isConnected() ? { ok: false, at: "silent", detail: `${patienceMs / 1000} s` } : { ok: false, at: "dial", detail: "ETIMEDOUT" });
    }, patienceMs);
    dialTimer = setTimeout(() => {
      if (!isConnected()) resolve({ ok: false, at: "dial", detail: "ETIMEDOUT" });
    }, options.dialMs ?? patienceMs);
    socket.on("error", (error: NodeJS.ErrnoException) => {
      // A reset once the connection stood is a word of the other side's program.
      const refused = error.code === "ECONNRESET" || error.code === "EPIPE";
      resolve({ ok: false, at: refused ? "closed" : "dial", detail: error.code ?? error.message });
    });
    socket.on("close", () => resolve({ ok: false, at: "closed", detail: "end" }));
    if (kind === "socks5") askSocks5(options, socket, resolve);
    else if (kind === "http") askHttp(options, socket, resolve);
    // SOCKS4 has nothing to say before a destination.
    else watch = setInterval(() => (isConnected() ? resolve({ ok: true }) : undefined), CONNECTED_MS);
  });
  clearTimeout(timer);
  clearTimeout(dialTimer);
  clearInterval(watch);
  socket.destroy();
  return probed;
}

function askSocks5({ credentials }: ProbeOptions, socket: Socket, resolve: (probed: Probed) => void): void {
  const nowhere = { bytes: new Uint8Array(4), at: 0, length: 4, port: 443 } as const;
  const machine = new Socks5Client(nowhere, credentials, false);
  const output = new Uint8Array(OUTPUT_BYTES_MAX);
  let input = new Uint8Array(0);
  let writes = 0;
  // Greeting, the login if there is one, and then it would name a destination.
  const advance = (): void => {
    const step = machine.advance(input, 0, input.length, output);
    if (step.do === "read") return;
    if (step.do === "fail") return resolve(failed(step.failure));
    if (step.do === "finish" || (writes > 0 && output[0] === 5)) return resolve({ ok: true });
    writes++;
    input = input.slice(step.consumed);
    socket.write(output.slice(0, step.length));
  };
  socket.on("data", (chunk: Buffer) => {
    input = new Uint8Array(Buffer.concat([input, chunk]));
    advance();
  });
  advance();
}

const failed = (failure: { readonly code: string; readonly detail?: string }): Probed => {
  switch (failure.code) {
    case "auth-refused": return { ok: false, at: "credentials", detail: "it refused them" };
    case "no-method": return { ok: false, at: "credentials", detail: "it wants another way to log in" };
    default: return { ok: false, at: "malformed", detail: failure.detail ?? failure.code };
  }
};

const NOWHERE = endpointText("transplice-doctor.invalid", 443);
const PROXY_AUTHENTICATION_REQUIRED = 407;

function askHttp({ credentials }: ProbeOptions, socket: Socket, resolve: (probed: Probed) => void): void {
  const login = credentials === null
    ? {}
    : { "proxy-authorization": `Basic ${Buffer.concat([credentials.user, Buffer.from(":"), credentials.password]).toString("base64")}` };
  const asked = request({
    method: "CONNECT", path: NOWHERE, headers: { host: NOWHERE, ...login }, createConnection: () => socket,
  });
  asked.on("connect", ({ statusCode }) => {
    resolve(statusCode === PROXY_AUTHENTICATION_REQUIRED
      ? { ok: false, at: "credentials", detail: credentials === null ? "it wants a user and a password" : "it refused them" }
      : { ok: true });
  });
  asked.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code?.startsWith("HPE_")) resolve({ ok: false, at: "malformed", detail: "its answer is not HTTP" });
  });
  asked.end();
}
