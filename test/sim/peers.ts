/**
 * The programs at the two ends of a tunnel, and the upstream proxy between: actors that live in
 * the simulated network and follow a script that a seed has written. They own their ends of TCP.
 *
 * An Application sends a stream and checks what it gets against the other's, byte for byte. What
 * it has seen at the end (bytes, FIN, RST) is there to be judged; it judges nothing but bytes.
 */
import { EAGAIN } from "../../native-bindings/constants.ts";
import { fillStream, firstWrong, type Random } from "./random.ts";
import type { Address, Network, Tcp } from "./tcp.ts";

export interface Script {
  /** How much it has to say. */
  readonly bytes: number;
  /** How much the other has to say. */
  readonly expected: number;
  /**
   * When it may speak, or say FIN. freely: at any time. last: when it has heard the other out.
   * lead: a piece, then not before it has had its share of the answer. follow: as far as its
   * share of the question has come. In lead and follow each piece is waited for, so that one
   * byte that is stuck anywhere stops everything.
   */
  readonly manners: "freely" | "last" | "lead" | "follow";
  readonly chunkMax: number;
  /** Between two sends, at most. */
  readonly pauseUs: number;
  readonly readMax: number;
  /** Between two reads, at most. */
  readonly readPauseUs: number;
  /** It stops reading for a while, once. */
  readonly stall: { readonly afterBytes: number; readonly us: number } | null;
  /** MSG_OOB for the last byte of a send, now and then. */
  readonly urgent: boolean;
  /**
   * finish: FIN behind the last byte, then reads to the other's end.
   * answer: reads to the other's end, says the rest, and closes.
   * hold: says what it has to say and then nothing, for ever.
   * reset, close: goes away in the midst of it, by linger {1, 0} or by a plain close().
   */
  readonly ending: "finish" | "answer" | "hold" | "reset" | "close";
  /** For reset and close: when, in bytes sent and received, or in time since it began. */
  readonly leaves: { readonly afterBytes: number; readonly afterUs: number };
  /** For reset and close: FIN goes out behind the last byte, if it comes to that. */
  readonly finFirst: boolean;
}

/** How much there is to say, one way. */
function drawBytes(random: Random, bulk: boolean): number {
  if (bulk) return random.between(0, random.pick([0, 100_000, 1_000_000]));
  const most = random.pick([0, 1, 200, 4000, 20_000, 100_000, 400_000]);
  return most <= 1 ? most : random.size(1, most);
}

/** `expected`: what the other has to say. Nobody is so slow that a deadline passes meanwhile. */
function drawScript(random: Random, bytes: number, expected: number): Script {
  const slow = random.chance(0.2);
  const readPauseUs = slow ? random.size(100, 100_000) : random.pick([0, 100, 2000]);
  const readsMax = 10e6 / Math.max(1, readPauseUs);
  const ending = random.pick([
    "finish", "finish", "finish", "finish", "finish", "answer", "answer", "answer", "answer",
    "answer", "reset", "reset", "reset", "close", "close", "hold",
  ] as const);
  return {
    bytes,
    expected,
    manners: "freely",
    chunkMax: random.size(1 + (bytes >> 8), 70_000),
    pauseUs: random.pick([0, 0, 300, 5000, slow ? 200_000 : 1000]),
    readMax: random.size(Math.ceil(1 + expected / readsMax), 100_000),
    readPauseUs,
    stall: random.chance(0.1)
      ? {
          afterBytes: random.size(1, Math.max(1, expected)),
          us: random.chance(0.5) ? 5e6 : Infinity,
        }
      : null,
    urgent: random.chance(0.2),
    ending,
    leaves: {
      afterBytes: random.chance(0.5) ? random.size(1, 200_000) : Infinity,
      afterUs: random.size(1, random.pick([1000, 100_000, 5e6])),
    },
    finFirst: random.chance(0.5),
  };
}

/** Who speaks when. */
const CONVERSATIONS = [
  ["freely", "freely"], ["last", "freely"], ["freely", "last"], ["lead", "follow"],
  ["follow", "lead"],
] as const;

/** What the client and the server of one tunnel do. */
export function drawConversation(random: Random, bulk: boolean): [Script, Script] {
  const [up, down] = [drawBytes(random, bulk), drawBytes(random, bulk)];
  const [clientManners, serverManners] = random.pick(
    up > 0 && down > 0 ? CONVERSATIONS : [["freely", "freely"]] as const,
  );
  const client = { ...drawScript(random, up, down), manners: clientManners };
  // A server's urgent byte may be lost: see Session's #keepUrgentInline().
  const server = { ...drawScript(random, down, up), manners: serverManners, urgent: false };
  // One talks to a wall, and resets at last: what it said can never be delivered.
  return random.chance(0.03) ? makeWall(client, server, random) : [client, server];
}

function makeWall(client: Script, server: Script, random: Random): [Script, Script] {
  const talks = (script: Script): Script => ({
    ...script, bytes: 1_000_000, chunkMax: 20_000, manners: "freely", ending: "reset", stall: null,
    leaves: { afterBytes: Infinity, afterUs: random.size(1e5, 5e6) },
  });
  const hears = (script: Script): Script => ({
    ...script, manners: "freely", ending: "hold",
    stall: { afterBytes: random.size(1, 1000), us: Infinity },
  });
  return random.chance(0.5) ? [talks(client), hears(server)] : [hears(client), talks(server)];
}

/** Between two calls of one actor; nobody keeps anything in it. */
const BUFFER = new Uint8Array(100_000);

export class WrongByte extends Error {
  readonly finder: Application;

  constructor(finder: Application, position: number) {
    super(`a wrong byte at position ${position}`);
    this.finder = finder;
  }
}

export class Application {
  readonly tcp: Tcp;
  readonly script: Script;
  readonly #network: Network;
  readonly #random: Random;
  readonly #sends: number;
  readonly #expects: number;
  /** Said before the stream: the last words of a proxy. */
  #preface: Uint8Array;
  #readSoon = false;
  #writeSoon = false;
  #writeFailed = false;
  #stalled = false;

  sent = 0;
  received = 0;
  /** It has read to the other's FIN. */
  sawEnd = false;
  /** It left of its own will, in the midst of things. */
  left = false;
  /** Nothing more will come from it or reach it. */
  over = false;
  readonly beganUs: number;

  /** `preface` goes in front of the stream, glued to it or not; `sent` of the stream is said already. */
  constructor(
    network: Network, tcp: Tcp, script: Script, sends: number, expects: number,
    preface: Uint8Array = new Uint8Array(0), sent = 0,
  ) {
    this.#network = network;
    this.#random = network.random;
    this.tcp = tcp;
    this.script = script;
    this.#sends = sends;
    this.#expects = expects;
    this.#preface = preface;
    this.sent = sent;
    this.beganUs = network.nowUs;
    tcp.onWake = () => this.#wake();
    const { ending, leaves } = script;
    if (ending === "reset" || ending === "close") {
      network.after(leaves.afterUs, () => this.#leave());
    }
    this.#wake();
  }

  #wake(): void {
    if (this.over) return;
    // Whoever reads no more hears all the same when there is nothing left to wait for.
    if ((this.sawEnd || this.deaf) && this.tcp.state === "closed") return this.#close(false);
    if (!this.#readSoon) {
      this.#readSoon = true;
      this.#network.after(this.#random.size(1, 50), () => this.#read());
    }
    if (!this.#writeSoon) {
      this.#writeSoon = true;
      this.#network.after(this.#random.size(1, 50), () => this.#write());
    }
  }

  #read(): void {
    this.#readSoon = false;
    if (this.over || this.sawEnd) return;
    const { stall, readMax, readPauseUs } = this.script;
    if (stall !== null && !this.#stalled && this.received >= stall.afterBytes) {
      this.#stalled = true;
      this.#readSoon = true;
      if (stall.us !== Infinity) this.#network.after(stall.us, () => this.#read());
      else this.#wake();
      return;
    }
    const length = this.#random.between(1, Math.min(readMax, BUFFER.length));
    const got = this.tcp.receive(BUFFER, 0, length, false);
    if (got > 0) {
      const wrong = firstWrong(this.#expects, this.received, BUFFER, 0, got);
      if (wrong >= 0) throw new WrongByte(this, this.received + wrong);
      this.received += got;
      this.#maybeLeave();
      if (this.over) return;
      this.#readSoon = true;
      this.#network.after(1 + this.#random.between(0, readPauseUs), () => this.#read());
      this.#wake(); // What it has waited for may be there.
    } else if (got === 0 && !this.#writeFailed && this.tcp.hasEnd) {
      this.sawEnd = true;
      this.#maybeEnd();
      this.#wake();
    } else if (got !== -EAGAIN) {
      this.#close(false);
    }
  }

  #write(): void {
    this.#writeSoon = false;
    if (this.over || this.tcp.hasFinished || this.tcp.state === "connecting") return;
    if (this.#preface.length > 0) return this.#writePreface();
    const { bytes, chunkMax, pauseUs, urgent } = this.script;
    const allowed = this.#allowance();
    if (allowed <= 0 && (this.sent < bytes || this.script.manners === "last")) return;
    if (this.sent < bytes) {
      const length = Math.min(this.#random.between(1, chunkMax), allowed, BUFFER.length);
      fillStream(this.#sends, this.sent, BUFFER, 0, length);
      const last = this.sent + length === bytes;
      const marked = urgent && this.#random.chance(last ? 0.7 : 0.3);
      const sent = this.tcp.send(BUFFER, 0, length, marked);
      if (sent === -EAGAIN) return;
      if (sent < 0) return this.#failWriting();
      this.sent += sent;
      this.#maybeLeave();
      if (this.over) return;
    }
    if (this.sent < bytes) {
      this.#writeSoon = true;
      this.#network.after(1 + this.#random.between(0, pauseUs), () => this.#write());
      return;
    }
    const { ending, finFirst } = this.script;
    const leaves = ending === "reset" || ending === "close";
    if (ending === "finish" || (leaves && finFirst)) this.tcp.shutdownWrite();
    this.#maybeEnd();
  }

  /** How much it may say now. */
  #allowance(): number {
    const { bytes, expected, manners } = this.script;
    const left = bytes - this.sent;
    if (this.sawEnd) return Math.max(1, left);
    switch (manners) {
      case "freely":
        return left;
      case "last":
        return this.received < expected ? 0 : Math.max(1, left);
      case "lead":
        return this.received < Math.floor((expected * this.sent) / bytes) ? 0 : left;
      case "follow":
        return Math.ceil((bytes * this.received) / expected) - this.sent;
    }
  }

  #writePreface(): void {
    // Sometimes the stream's first bytes come in the same segment as the proxy's last.
    const glued = Math.min(this.script.bytes, this.#random.pick([0, 0, 1, 1000]));
    const bytes = new Uint8Array(this.#preface.length + glued);
    bytes.set(this.#preface);
    fillStream(this.#sends, 0, bytes, this.#preface.length, glued);
    const whole = this.#random.chance(0.5);
    const length = whole ? bytes.length : this.#random.between(1, this.#preface.length);
    const sent = this.tcp.send(bytes, 0, length);
    if (sent === -EAGAIN) return;
    if (sent < 0) return this.#failWriting();
    this.sent += Math.max(0, sent - this.#preface.length);
    this.#preface = this.#preface.subarray(Math.min(sent, this.#preface.length));
    this.#writeSoon = true;
    this.#network.after(this.#random.size(1, 20_000), () => this.#write());
  }

  /** It has stopped reading for good. */
  get deaf(): boolean {
    return this.#stalled && this.script.stall?.us === Infinity;
  }

  /** Everything in front of the stream has been said. */
  get granted(): boolean {
    return this.#preface.length === 0;
  }

  /** The connection is broken. What has come before can still be read. */
  #failWriting(): void {
    this.#writeFailed = true;
    if (this.sawEnd) return this.#close(false);
    this.#wake();
    // Nobody waits for room any more; only reading is left.
    this.#writeSoon = true;
  }

  #maybeEnd(): void {
    const { bytes, ending } = this.script;
    if (ending === "hold" || this.sent < bytes || this.#preface.length > 0) return;
    if (this.sawEnd) this.#close(false);
  }

  #maybeLeave(): void {
    const { ending, leaves } = this.script;
    if (ending !== "reset" && ending !== "close") return;
    if (this.sent + this.received >= leaves.afterBytes) this.#leave();
  }

  #leave(): void {
    if (this.over) return;
    this.left = true;
    this.#close(this.script.ending === "reset");
  }

  #close(abort: boolean): void {
    this.over = true;
    this.tcp.close(abort);
  }
}

export interface Login {
  readonly user: Uint8Array;
  readonly password: Uint8Array;
}

export interface ProxyOptions {
  readonly protocol: "socks5" | "http";
  readonly login: Login | null;
  /** The client says everything at once. */
  readonly pipelined: boolean;
  /** The client would hear a report behind the reply; not every proxy has one. */
  readonly wantsReport: boolean;
  /** Of a message of the proxy's: something goes wrong instead. */
  readonly failureChance: number;
}

/** Who the proxy connects a client to; null: it refuses. */
export type Connect = (to: Address, tcp: Tcp, preface: Uint8Array) => boolean;

/**
 * A SOCKS5 or HTTP proxy's half of the dialogue with one client. It knows the request byte for
 * byte, and takes not one byte more: what comes behind belongs to the tunnel.
 */
export class ProxyFront {
  readonly #network: Network;
  readonly #random: Random;
  readonly tcp: Tcp;
  readonly #options: ProxyOptions;
  readonly #connect: Connect;
  readonly #kept: number[] = [];
  readonly #byte = new Uint8Array(1);
  #stage: "greeting" | "login" | "request" | "over" = "greeting";
  #busy = false;
  #reports = false;
  /** When it broke off in the midst of the dialogue. */
  brokeOffUs = Infinity;

  constructor(network: Network, tcp: Tcp, options: ProxyOptions, connect: Connect) {
    this.#network = network;
    this.#random = network.random;
    this.tcp = tcp;
    this.#options = options;
    this.#connect = connect;
    if (options.protocol === "http") this.#stage = "request";
    tcp.onWake = () => this.#read();
    this.#read();
  }

  #read(): void {
    while (!this.#busy && this.#stage !== "over") {
      const got = this.tcp.receive(this.#byte, 0, 1, false);
      if (got === -EAGAIN) return;
      if (got <= 0) return this.#close(false);
      this.#kept.push(this.#byte[0]!);
      this.#onByte();
    }
  }

  #onByte(): void {
    switch (this.#stage) {
      case "greeting":
        return this.#onGreeting();
      case "login":
        return this.#onLogin();
      case "request":
        return this.#options.protocol === "http" ? this.#onHttp() : this.#onSocks();
      case "over":
    }
  }

  #onGreeting(): void {
    const { login, pipelined, wantsReport } = this.#options;
    const methods = login === null ? [0] : pipelined ? [2] : [0, 2];
    const offers = [...(wantsReport ? methods.map((method) => 0xe0 + method) : []), ...methods];
    if (!this.#has([5, offers.length, ...offers])) return;
    this.#reports = wantsReport && this.#random.chance(0.7);
    const skips = login !== null && !pipelined && this.#random.chance(0.3);
    const method = login === null || skips ? 0 : 2;
    this.#answer([5, method + (this.#reports ? 0xe0 : 0)], [5, 0xff], method === 0 ? "request" : "login");
  }

  #onLogin(): void {
    const { user, password } = this.#options.login!;
    if (!this.#has([1, user.length, ...user, password.length, ...password])) return;
    this.#answer([1, 0], [1, 1], "request");
  }

  #onSocks(): void {
    const kept = this.#kept;
    const length = kept[3] === 4 ? 22 : 10;
    if (kept.length < length) return;
    if (kept[0] !== 5 || kept[1] !== 1 || kept[2] !== 0 || (kept[3] !== 1 && kept[3] !== 4)) {
      throw new Error(`not a SOCKS request: ${kept.join(" ")}`);
    }
    const to = {
      bytes: Uint8Array.from(kept.slice(4, length - 2)),
      port: (kept[length - 2]! << 8) | kept[length - 1]!,
    };
    const address = this.#random.pick([
      [1, 10, 0, 0, 9, 0, 80], [4, ...new Array<number>(16).fill(0), 0, 80], [3, 2, 97, 98, 0, 80],
    ]);
    const refused = [5, this.#random.between(1, 8), 0, 1, 0, 0];
    const report = this.#random.pick([[0, 0], [0, 4, 1, 2, 0, 111], [0, 3, 9, 1, 9]]);
    if (this.#reports) this.#grant(to, [5, 0, 0, ...address, ...report], [...refused, 0, 0, 0, 0, ...report]);
    else this.#grant(to, [5, 0, 0, ...address], refused);
  }

  #onHttp(): void {
    const text = String.fromCharCode(...this.#kept);
    if (!text.endsWith("\r\n\r\n")) return;
    const host = /^CONNECT (\S+):(\d+) HTTP/.exec(text);
    if (host === null) throw new Error(`not a CONNECT request: ${text}`);
    const { login } = this.#options;
    const basic = login && Buffer.concat([login.user, Buffer.from(":"), login.password]);
    const name = `${host[1]}:${host[2]}`;
    const expected =
      `CONNECT ${name} HTTP/1.1\r\nHost: ${name}\r\nUser-Agent: transplice\r\n` +
      `${basic ? `Proxy-Authorization: Basic ${basic.toString("base64")}\r\n` : ""}\r\n`;
    if (text !== expected) throw new Error(`not the CONNECT request that was due: ${text}`);
    const to = { bytes: parseHost(host[1]!), port: Number(host[2]) };
    const end = this.#random.pick(["\r\n", "\n"]);
    const interim = this.#random.chance(0.2) ? `HTTP/1.1 100 Continue${end}${end}` : "";
    const fields = this.#random.chance(0.5) ? `Via: ${"x".repeat(60)}${end}` : "";
    const status = this.#random.pick([403, 407, 502, 503]);
    this.#grant(
      to,
      [...Buffer.from(`${interim}HTTP/1.1 200 OK${end}${fields}${end}`)],
      [...Buffer.from(`HTTP/1.1 ${status} No${end}${end}sorry`)],
    );
  }

  #grant(to: Address, granted: readonly number[], refused: readonly number[]): void {
    this.#kept.length = 0;
    if (this.#fails(refused)) return;
    if (this.tcp.readableBytes > 0) throw new Error("bytes came before the tunnel was granted");
    this.#stage = "over";
    // The other end is connected to first, which takes its time.
    this.tcp.onWake = () => {};
    this.#network.after(this.#random.size(1, 200_000), () => {
      if (!this.#connect(to, this.tcp, Uint8Array.from(granted))) this.tcp.close(true);
    });
  }

  /** Whether all of `expected` is there; it is then used up. Anything else is an error of ours. */
  #has(expected: readonly number[]): boolean {
    const at = this.#kept.length - 1;
    if (this.#kept[at] !== expected[at]) {
      throw new Error(`${this.#stage}: found ${this.#kept.join(" ")}, not ${expected.join(" ")}`);
    }
    if (this.#kept.length < expected.length) return false;
    this.#kept.length = 0;
    return true;
  }

  #answer(good: readonly number[], bad: readonly number[], next: "login" | "request"): void {
    if (this.#fails(bad)) return;
    if (!this.#options.pipelined && this.tcp.readableBytes > 0) {
      throw new Error("the client did not wait for the answer");
    }
    this.#stage = next;
    this.#say(good);
  }

  /** Chance may have it that the proxy breaks off here; true if so. */
  #fails(bad: readonly number[]): boolean {
    if (!this.#random.chance(this.#options.failureChance)) return false;
    this.#stage = "over";
    switch (this.#random.pick(["silent", "close", "reset", "refuse", "garbage"])) {
      case "silent":
        this.tcp.onWake = () => {};
        break;
      case "close":
        this.#close(false);
        break;
      case "reset":
        this.#close(true);
        break;
      case "refuse":
        this.#say(bad);
        break;
      default:
        this.#say([0, 1, 2, 3]);
    }
    return true;
  }

  #close(abort: boolean): void {
    this.#stage = "over";
    this.brokeOffUs = this.#network.nowUs;
    this.tcp.close(abort);
  }

  /** In fragments, sometimes, and not at once. Does not listen meanwhile. */
  #say(bytes: readonly number[]): void {
    this.#busy = true;
    this.#network.after(this.#random.size(1, 50_000), () => {
      const whole = this.#random.chance(0.5);
      const length = whole ? bytes.length : this.#random.between(1, bytes.length);
      const sent = this.tcp.send(Uint8Array.from(bytes), 0, length);
      if (sent < 0 && sent !== -EAGAIN) return this.#close(false);
      const rest = bytes.slice(Math.max(0, sent));
      if (rest.length > 0) return this.#say(rest);
      this.#busy = false;
      this.#read();
    });
  }
}

/** "192.0.2.1" or "[2001:db8::1]", as a URL's host has it. */
function parseHost(text: string): Uint8Array {
  if (!text.startsWith("[")) return Uint8Array.from(text.split("."), Number);
  const [head, tail] = text.slice(1, -1).split("::");
  const groups = (part: string | undefined) => (part ? part.split(":") : []);
  const left = groups(head);
  const right = groups(tail);
  const middle = new Array<string>(8 - left.length - right.length).fill("0");
  const all = [...left, ...middle, ...right].map((group) => Number.parseInt(group, 16));
  return Uint8Array.from(all.flatMap((group) => [group >> 8, group & 255]));
}
