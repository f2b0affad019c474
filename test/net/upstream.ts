/**
 * A scriptable upstream: a SOCKS5 server or an HTTP proxy that grants, refuses, asks for a password,
 * speaks byte by byte, glues the tunnel's first bytes to its reply, or falls silent at any stage,
 * and that remembers what it was asked.
 */
import { connect, Listener, type Peer, PATIENCE_MS, sleep, text } from "./actors.ts";
import type { Place } from "./sandbox.ts";

/** What a client has asked for. */
export interface Request {
  host: string;
  port: number;
  credentials: { username: string; password: string } | null;
  /** The header as it came (HTTP). */
  header: string;
}

export interface Tunnel {
  request: Request;
  peer: Peer;
}

export interface Script {
  protocol: "socks5" | "http";
  credentials?: { username: string; password: string };
  /** Reads on, but says nothing more: from the start, or after having got the named message. */
  silentAt?: "accept" | "greeting" | "authentication" | "request";
  /** Instead of being silent there, it ends or resets the connection. */
  leaves?: "fin" | "reset";
  /** The SOCKS5 reply code or HTTP status instead of success; 0: this one succeeds. */
  refuse?: number | ((request: Request) => number);
  /** The reply comes so much later. */
  delayMs?: number | ((request: Request) => number);
  /** The status of success (HTTP). */
  status?: string;
  /** Sent in one segment with the reply that grants. */
  banner?: string;
  /** Speaks one byte at a time. */
  trickle?: boolean;
  /** It answers no sooner than that. */
  waits?: Promise<void> | ((request: Request) => Promise<void>);
  /** Connects to what was asked for, and relays. */
  dials?: boolean;
  /** Told of each request. */
  heard?: (request: Request) => void;
  /** Sends back what comes, and ends with it. With neither, tunnels are for accept(). */
  echoes?: boolean;
}

const POUR_BYTES = 1 << 20;
const SUCCEEDED = 0;
const REFUSED = 5;

export class Upstream {
  readonly listener: Listener;
  readonly requests: Request[] = [];
  readonly #host: Place;
  readonly #script: Script;
  readonly #fresh: Tunnel[] = [];
  readonly #waiting: ((tunnel: Tunnel) => void)[] = [];

  constructor(host: Place, address: string, port: number, script: Script) {
    this.#host = host;
    this.#script = script;
    this.listener = new Listener(host, address, port, (peer) => {
      // A client that leaves in mid-sentence is its own business.
      this.#serve(peer).catch(() => peer.destroy());
    });
  }

  /** Connections that came, granted or not. */
  get peers(): readonly Peer[] {
    return this.listener.peers;
  }

  url(userinfo = ""): string {
    return `${this.#script.protocol}://${userinfo}${text(this.listener.address, this.listener.port)}`;
  }

  /** The next tunnel that was granted: our end of it is the destination's. */
  async accept(withinMs = PATIENCE_MS): Promise<Tunnel> {
    const fresh = this.#fresh.shift();
    if (fresh !== undefined) return fresh;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`no tunnel in ${withinMs} ms`)), withinMs);
      this.#waiting.push((tunnel) => {
        clearTimeout(timer);
        resolve(tunnel);
      });
    });
  }

  close(): void {
    this.listener.close();
  }

  async #serve(peer: Peer): Promise<void> {
    const script = this.#script;
    if (script.silentAt === "accept") return this.#fallSilent(peer);
    const request = await (script.protocol === "socks5" ? this.#socks5(peer) : this.#http(peer));
    if (request === null) return;
    this.requests.push(request);
    script.heard?.(request);
    if (script.silentAt === "request") return this.#fallSilent(peer);
    const { refuse = 0, delayMs = 0, waits } = script;
    const lateMs = typeof delayMs === "number" ? delayMs : delayMs(request);
    if (lateMs > 0) await sleep(lateMs);
    await (typeof waits === "function" ? waits(request) : waits);
    const refusal = typeof refuse === "number" ? refuse : refuse(request);
    if (refusal !== 0) {
      peer.finish(this.#reply(refusal));
      return;
    }
    if (script.dials === true) {
      await this.#dial(peer, request);
      return;
    }
    await this.#say(peer, this.#reply(SUCCEEDED));
    if (script.echoes === true) {
      peer.socket.removeAllListeners("data");
      peer.socket.pipe(peer.socket);
      return;
    }
    peer.count();
    const tunnel = { request, peer };
    const taker = this.#waiting.shift();
    if (taker !== undefined) taker(tunnel);
    else this.#fresh.push(tunnel);
  }

  #fallSilent(peer: Peer): void {
    if (this.#script.leaves === "fin") peer.finish();
    if (this.#script.leaves === "reset") peer.reset();
  }

  async #socks5(peer: Peer): Promise<Request | null> {
    const { silentAt, credentials: wanted } = this.#script;
    const greeting = await peer.read(2);
    const methods = await peer.read(greeting[1]!);
    if (silentAt === "greeting") {
      this.#fallSilent(peer);
      return null;
    }
    const method = wanted === undefined ? 0 : 2;
    if (!methods.includes(method)) {
      peer.finish(Buffer.from([5, 0xff]));
      return null;
    }
    await this.#say(peer, Buffer.from([5, method]));
    let credentials: Request["credentials"] = null;
    if (wanted !== undefined) {
      const username = String(await peer.read((await peer.read(2))[1]!));
      const password = String(await peer.read((await peer.read(1))[0]!));
      credentials = { username, password };
      if (silentAt === "authentication") {
        this.#fallSilent(peer);
        return null;
      }
      const right = username === wanted.username && password === wanted.password;
      await this.#say(peer, Buffer.from([1, right ? 0 : 1]));
      if (!right) {
        peer.finish();
        return null;
      }
    }
    const head = await peer.read(4);
    const address = await peer.read(head[3] === 4 ? 16 : 4);
    const port = (await peer.read(2)).readUInt16BE();
    return { host: addressText(address), port, credentials, header: "" };
  }

  async #http(peer: Peer): Promise<Request | null> {
    const { credentials: wanted } = this.#script;
    const header = await peer.readUntil("\r\n\r\n");
    const target = /^CONNECT (\S+):(\d+) /.exec(header);
    const basic = /^proxy-authorization: basic (\S+)/im.exec(header)?.[1];
    const pair = basic === undefined ? null : String(Buffer.from(basic, "base64"));
    const colon = pair?.indexOf(":") ?? 0;
    const credentials =
      pair === null ? null : { username: pair.slice(0, colon), password: pair.slice(colon + 1) };
    const request = {
      host: (target?.[1] ?? "").replaceAll(/[[\]]/g, ""),
      port: Number(target?.[2]),
      credentials,
      header,
    };
    const right =
      credentials?.username === wanted?.username && credentials?.password === wanted?.password;
    if (wanted !== undefined && !right) {
      this.requests.push(request);
      peer.finish(this.#reply(407));
      return null;
    }
    return request;
  }

  /** Connects to what was asked for, then relays: ends as ends, resets as resets. */
  async #dial(peer: Peer, request: Request): Promise<void> {
    const http = this.#script.protocol === "http";
    // Downloads are read into one large buffer, the next part when the last has been written:
    // twice as fast as pipe(), where each read is of 64 KiB. The first comes after the reply, which
    // is written before the loop turns again; not so with `trickle`, which does not go with this.
    const buffer = Buffer.alloc(POUR_BYTES);
    const onread = {
      buffer,
      callback: (bytes: number): boolean => {
        peer.socket.write(buffer.subarray(0, bytes), () => far?.socket.resume());
        return false;
      },
    };
    let far: Peer | null = null;
    far = await connect(this.#host, request.host, request.port, { onread, reading: false }).catch(
      () => null,
    );
    if (far === null) {
      peer.finish(this.#reply(http ? 502 : REFUSED));
      return;
    }
    await this.#say(peer, this.#reply(SUCCEEDED));
    far.socket.resume();
    peer.socket.removeAllListeners("data");
    peer.socket.pipe(far.socket, { end: false });
    for (const [from, to] of [
      [peer, far],
      [far, peer],
    ] as const) {
      from.socket.once("end", () => (from.end === "reset" ? to.reset() : to.finish()));
      from.socket.once("error", () => to.reset());
    }
  }

  #reply(code: number): Buffer {
    const { protocol, status = "200 Connection established", banner = "" } = this.#script;
    const granted = code === SUCCEEDED;
    const reply =
      protocol === "socks5"
        ? Buffer.from([5, code, 0, 1, 192, 0, 2, 2, 0x12, 0x34])
        : Buffer.from(granted ? `HTTP/1.1 ${status}\r\n\r\n` : `HTTP/1.1 ${code} No\r\n\r\n`);
    return granted ? Buffer.concat([reply, Buffer.from(banner)]) : reply;
  }

  async #say(peer: Peer, bytes: Buffer): Promise<void> {
    if (this.#script.trickle !== true) {
      peer.write(bytes);
      return;
    }
    peer.socket.setNoDelay(true);
    for (const byte of bytes) {
      peer.write(Uint8Array.of(byte));
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
  }
}

function addressText(bytes: Buffer): string {
  if (bytes.length === 4) return bytes.join(".");
  const groups = Array.from({ length: 8 }, (_, i) => bytes.readUInt16BE(i * 2).toString(16));
  // The longest run of zeros becomes "::", as everybody writes it.
  return new URL(`http://[${groups.join(":")}]/`).hostname.slice(1, -1);
}
