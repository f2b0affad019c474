/**
 * A SOCKS client that says exactly what it is told to, whole or byte by byte, and reads the exact
 * reply: for what curl and its like do not say, and do not show.
 */
import { strict as assert } from "node:assert";
import { isIP, isIPv4 } from "node:net";
import { connect, ipv6Bytes, PATIENCE_MS, type Peer, sleep, text } from "./actors.ts";
import type { Place } from "./sandbox.ts";

export interface Target {
  /** An address, or a name. */
  to: string;
  port: number;
  /** The client's own address, where its host has several. */
  from?: string;
  version?: 4 | 5;
  /** With SOCKS4, the user id. */
  user?: string;
  password?: string;
  /** A literal goes as a name. */
  asName?: boolean;
  /** Goes before everything: a PROXY header. */
  preamble?: string | Uint8Array;
  withinMs?: number;
}

export interface Reply {
  /** RFC 1928's REP; of SOCKS4, CD: 0x5a and 0x5b. -1: there was none. */
  code: number;
  /** BND.ADDR and BND.PORT, as "192.0.2.1:80". */
  bound: string;
  peer: Peer;
}

/** How a greeting was answered, where that was the end. */
export const NO_METHOD = 0xff;
export const WRONG_PASSWORD = 0x101;
export const GRANTED = 0;
export const GRANTED4 = 0x5a;
export const REFUSED4 = 0x5b;
/** It has ended the connection instead of answering. */
export const NO_REPLY = -1;

const CONNECT = 1;

/** VER NMETHODS METHODS. */
export const greeting = (...methods: number[]): Buffer =>
  Buffer.from([5, methods.length, ...methods]);

export const login = (user: string, password: string): Buffer =>
  Buffer.concat([
    Buffer.from([1, Buffer.byteLength(user)]),
    Buffer.from(user),
    Buffer.from([Buffer.byteLength(password)]),
    Buffer.from(password),
  ]);

/** VER CMD RSV ATYP DST.ADDR DST.PORT. */
export function request(to: string | Uint8Array, port: number, command = CONNECT): Buffer {
  let address: Uint8Array;
  if (typeof to !== "string" || isIP(to) === 0) {
    const name = typeof to === "string" ? Buffer.from(to) : to;
    address = Buffer.concat([Buffer.from([3, name.length]), name]);
  } else if (isIPv4(to)) address = Buffer.from([1, ...to.split(".").map(Number)]);
  else address = Buffer.from([4, ...ipv6Bytes(to)]);
  return Buffer.concat([Buffer.from([5, command, 0]), address, portBytes(port)]);
}

/** SOCKS4, and 4a where it is a name. */
export function request4(to: string, port: number, user = "", command = CONNECT): Buffer {
  const literal = isIPv4(to);
  const address = literal ? to.split(".").map(Number) : [0, 0, 0, 1];
  const head = [Buffer.from([4, command]), portBytes(port), Buffer.from(address)];
  const name = literal ? [] : [Buffer.from(`${to}\0`)];
  return Buffer.concat([...head, Buffer.from(`${user}\0`), ...name]);
}

const portBytes = (port: number): Buffer => Buffer.from([port >> 8, port & 0xff]);

/** A connection to the server, given as "192.0.2.2:1080". */
export function dial(host: Place, server: string, from?: string): Promise<Peer> {
  const colon = server.lastIndexOf(":");
  const address = server.slice(0, colon).replaceAll(/[[\]]/g, "");
  const port = Number(server.slice(colon + 1));
  return connect(host, address, port, from === undefined ? {} : { from });
}

/** Asks for a tunnel. Answers whatever the server does about it. */
export async function ask(host: Place, server: string, target: Target): Promise<Reply> {
  const peer = await dial(host, server, target.from);
  const { to, port, version = 5, user, password, withinMs = PATIENCE_MS } = target;
  if (target.preamble !== undefined) peer.write(target.preamble);
  try {
    if (version === 4) {
      peer.write(request4(to, port, user));
      return await reply4(peer, withinMs);
    }
    peer.write(greeting(...(user === undefined ? [0] : [0, 2])));
    const [, method] = await peer.read(2, withinMs);
    if (method === NO_METHOD) return { code: NO_METHOD, bound: "", peer };
    if (method === 2) {
      peer.write(login(user ?? "", password ?? ""));
      if ((await peer.read(2, withinMs))[1] !== 0) return { code: WRONG_PASSWORD, bound: "", peer };
    }
    peer.write(request(target.asName === true ? Buffer.from(to) : to, port));
    return await reply5(peer, withinMs);
  } catch (error) {
    if (peer.end !== null) return { code: NO_REPLY, bound: "", peer };
    peer.destroy();
    throw error;
  }
}

/** A tunnel that stands; fails with the code if it is not granted. */
export async function tunnel(host: Place, server: string, target: Target): Promise<Peer> {
  const { code, peer } = await ask(host, server, target);
  const granted = target.version === 4 ? GRANTED4 : GRANTED;
  if (code !== granted) {
    peer.destroy();
    throw new Error(`${server} answers ${code}, asked for ${text(target.to, target.port)}`);
  }
  return peer;
}

/** The code alone. */
export async function codeOf(host: Place, server: string, target: Target): Promise<number> {
  const { code, peer } = await ask(host, server, target);
  peer.destroy();
  return code;
}

export async function reply5(peer: Peer, withinMs = PATIENCE_MS): Promise<Reply> {
  const [version, code, reserved, type] = await peer.read(4, withinMs);
  assert.deepEqual([version, reserved], [5, 0], "VER and RSV");
  assert.ok(type === 1 || type === 4, `a bound address of type ${type}`);
  const address = await peer.read(type === 1 ? 4 : 16, withinMs);
  const port = (await peer.read(2, withinMs)).readUInt16BE();
  return { code: code!, bound: text(addressText(address), port), peer };
}

export async function reply4(peer: Peer, withinMs = PATIENCE_MS): Promise<Reply> {
  const bytes = await peer.read(8, withinMs);
  assert.equal(bytes[0], 0, "VN");
  const bound = text(addressText(bytes.subarray(4, 8)), bytes.readUInt16BE(2));
  return { code: bytes[1]!, bound, peer };
}

/** The bytes one at a time, in segments of their own. */
export async function trickle(peer: Peer, bytes: Uint8Array): Promise<void> {
  peer.socket.setNoDelay(true);
  for (const byte of bytes) {
    peer.write(Uint8Array.of(byte));
    await sleep(2);
  }
}

/** As everybody writes it. */
export function addressText(bytes: Buffer): string {
  if (bytes.length === 4) return bytes.join(".");
  const groups = Array.from({ length: 8 }, (_, i) => bytes.readUInt16BE(i * 2).toString(16));
  return new URL(`http://[${groups.join(":")}]/`).hostname.slice(1, -1);
}
