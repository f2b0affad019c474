/**
 * What a SOCKS client has to say, as bytes, and how it says it: drawn by chance, right or wrong, with
 * what should be answered to it if it is wrong.
 */
import type { Script } from "./peers.ts";
import type { Random } from "./random.ts";
import type { Address } from "./tcp.ts";

export interface Talk {
  readonly version: 4 | 5;
  /** PROXY protocol, in front of everything; no answer comes to it. */
  readonly header: Uint8Array;
  /** Greeting, login, request, as far as there are such. Each is answered. */
  readonly messages: readonly Uint8Array[];
  readonly answers: readonly AnswerKind[];
  /** Does not wait for answers. */
  readonly pipelined: boolean;
  /** Of the stream, so many bytes come behind the request, glued to it if it is pipelined. */
  readonly early: number;
  /** FIN behind those, before anything was granted. */
  readonly finEarly: boolean;
  readonly pieceMax: number;
  /** Between two sends, at most; and between two of what is early. */
  readonly pauseUs: number;
  readonly earlyPauseUs: number;
  /** It looks for answers only so long after the request. */
  readonly deafUs: number;
  /** Refused, it stays so long. */
  readonly clingsUs: number;
  readonly fault: Fault | null;
}

export type AnswerKind = "method" | "login" | "reply";

/**
 * silent: says so many bytes and then nothing. half: FIN then. close, reset: it leaves then, or at
 * that time. dribble: takes longer for each byte than anyone waits for all of them.
 */
export interface Fault {
  readonly kind: "silent" | "half" | "close" | "reset" | "dribble";
  readonly afterBytes: number;
  readonly afterUs: number;
}

/** What a client is told, as far as it goes, and what the record says of it. */
export interface Outcome {
  /** "granted", "method 255", "login 1", "reply 5" (as SOCKS5 has it), or "nothing". */
  readonly said: string;
  readonly reason: string;
}

/** What it asks, and of whom. */
export interface Wish {
  readonly version: 4 | 5;
  /** 4 or 16 bytes, or a name as it is written. */
  readonly target: Uint8Array | string;
  readonly port: number;
  /** The server has users. */
  readonly login: boolean;
  /** The server will listen to this client. */
  readonly admitted: boolean;
  readonly users: ReadonlyMap<string, { readonly password: string; readonly delayUs: number }>;
}

export interface Said {
  readonly messages: readonly Uint8Array[];
  readonly answers: readonly AnswerKind[];
  readonly user: string;
  /** What is to come of it, if it is not what is wished for. */
  readonly mistake: Outcome | null;
}

/** Whoever is slower than this is not waited for. */
const VERIFY_US_MAX = 9e6;

export function drawSaid(random: Random, wish: Wish): Said {
  if (random.chance(0.03)) return nonsense(random);
  return wish.version === 5 ? drawSocks5(random, wish) : drawSocks4(random, wish);
}

/** The manner of it. `script` is that of the stream behind. */
export function drawTalk(
  random: Random, version: 4 | 5, header: Uint8Array, said: Said, script: Script,
): Talk {
  const { messages, answers } = said;
  const bytes = messages.reduce((sum, { length }) => sum + length, header.length);
  const pieceMax = random.pick([1, 3, 10_000]);
  // Slow, but in time.
  const pauseUs = random.pick([0, 500, Math.floor((3e6 * pieceMax) / Math.max(bytes, pieceMax))]);
  const speaksFirst = script.manners === "freely" || script.manners === "lead";
  // Says all it has at once, and looks for an answer only much later.
  const deafUs = random.chance(0.15) ? 4e6 : 0;
  const most = deafUs === 0 ? random.size(1, 8000) : 8000;
  const early = speaksFirst && random.chance(0.5) ? Math.min(script.bytes, most) : 0;
  const faulty = deafUs === 0 && random.chance(0.15);
  return {
    version, header, messages, answers, early, deafUs,
    pieceMax: deafUs === 0 ? pieceMax : 10_000,
    pauseUs: deafUs === 0 ? pauseUs : 0,
    clingsUs: random.chance(0.2) ? 20e6 : 0,
    pipelined: deafUs > 0 || random.chance(0.5),
    finEarly: early > 0 && early === script.bytes && script.ending === "finish" && random.chance(0.5),
    // Each byte is an event for who waits for something else.
    earlyPauseUs: deafUs === 0 && early < 60 ? random.pick([0, 1000, 500_000]) : random.pick([0, 100]),
    fault: faulty
      ? {
          kind: random.pick(["silent", "half", "close", "reset", "dribble"]),
          // In the midst of it, or behind the request.
          afterBytes: random.chance(0.3) ? bytes : random.between(0, random.pick([3, bytes, bytes + early])),
          afterUs: random.size(1, random.pick([1000, 100_000, 5e6])),
        }
      : null,
  };
}

/** A PROXY header; `announced` is whom it makes known, null: it is none, and must be refused. */
export function drawHeader(
  random: Random, announced: Address, own: Address,
): { readonly bytes: Uint8Array; readonly announced: Address | null } {
  const narrow = announced.bytes.length === 4;
  const to = narrow ? [10, 0, 0, 2] : [...new Uint8Array(15), 2];
  const ports = [announced.port >> 8, announced.port & 255, 4, 56];
  const signature = [...text("\r\n\r\n\0\r\nQUIT\n")];
  const tlvs = new Array<number>(random.pick([0, 0, 7, 300])).fill(9);
  const addresses = [...announced.bytes, ...to, ...ports, ...tlvs];
  switch (random.pick(["v1", "v1", "v2", "v2", "v2", "local", "unknown", "wrong", "none"] as const)) {
    case "v1": {
      const line = narrow
        ? `PROXY TCP4 ${announced.bytes.join(".")} 10.0.0.2 ${announced.port} 1080\r\n`
        : `PROXY TCP6 ${groups(announced.bytes)} ::2 ${announced.port} 1080\r\n`;
      return { bytes: text(line), announced };
    }
    case "v2": {
      const { length } = addresses;
      const head = [...signature, 0x21, narrow ? 0x11 : 0x21, length >> 8, length & 255];
      return { bytes: Uint8Array.from([...head, ...addresses]), announced };
    }
    case "local":
      return { bytes: Uint8Array.from([...signature, 0x20, 0, 0, 0]), announced: own };
    case "unknown":
      return { bytes: text("PROXY UNKNOWN\r\n"), announced: own };
    case "wrong":
      return { bytes: text("PROXY TCP4 10.1.0.1 10.1.0.256 1 2\r\n"), announced: null };
    case "none":
      return { bytes: new Uint8Array(0), announced: null };
  }
}

function nonsense(random: Random): Said {
  const what = random.pick(["GET / HTTP/1.1\r\n\r\n", "\x06\x01\x00", "\x00", "\x16\x03\x01\x02"]);
  const mistake = { said: "nothing", reason: "client-malformed" };
  return { messages: [text(what)], answers: ["method"], user: "", mistake };
}

function drawSocks5(random: Random, wish: Wish): Said {
  const { login, users, admitted } = wish;
  const greet = (methods: readonly number[]) => Uint8Array.from([5, methods.length, ...methods]);
  if (random.chance(0.05)) {
    const methods = random.pick(login ? [[0], [], [1, 3, 0]] : [[1], [], [3, 9, 254]]);
    const mistake = { said: "method 255", reason: "client-auth" };
    return { messages: [greet(methods)], answers: ["method"], user: "", mistake };
  }
  // 0xe0 and 0xe2 are these with a report.
  const offers = random.pick(
    login ? [[2], [0, 2], [2, 0, 1], [0xe2], [0xe0, 0xe2, 0, 2]] : [[0], [2], [0, 2], [2, 0], [0xe0, 0], [0xe2, 2]],
  );
  const asked = login || !offers.some((method) => method === 0 || method === 0xe0);
  const request = drawRequest(random, wish);
  if (!asked) {
    const { bytes, mistake } = request;
    return { messages: [greet(offers), bytes], answers: ["method", "reply"], user: "", mistake };
  }
  const user = random.pick([...users.keys()]);
  const { password, delayUs } = users.get(user)!;
  const right = random.chance(0.8);
  const others = [`${password.slice(0, 254)}x`, password.slice(1), "secret", ""];
  const tried = right ? password : random.pick(others);
  const wrong = tried !== password;
  const [name, word] = [text(user), text(tried)];
  const message = Uint8Array.from([1, name.length, ...name, word.length, ...word]);
  const mistake = !login ? request.mistake
    : !admitted || (wrong && delayUs < VERIFY_US_MAX) ? { said: "login 1", reason: "client-auth" }
    : delayUs >= VERIFY_US_MAX ? { said: "nothing", reason: "client-timeout" } : request.mistake;
  return {
    messages: [greet(offers), message, request.bytes], answers: ["method", "login", "reply"], user, mistake,
  };
}

function drawRequest(random: Random, { target, port }: Wish): { bytes: Uint8Array; mistake: Outcome | null } {
  let [command, mistake]: [number, Outcome | null] = [1, null];
  let address = typeof target === "string"
    ? [3, target.length, ...text(target)] : [target.length === 4 ? 1 : 4, ...target];
  if (random.chance(0.06)) {
    switch (random.pick(["command", "type", "empty", "bad"])) {
      case "command":
        command = random.pick([2, 3, 0, 255]);
        mistake = { said: "reply 7", reason: "unsupported" };
        break;
      case "type":
        address = [5, 1, 2, 3, 4];
        mistake = { said: "reply 8", reason: "unsupported" };
        break;
      case "empty":
        address = [3, 0];
        mistake = { said: "reply 1", reason: "client-malformed" };
        break;
      default:
        address = random.pick([
          [3, 7, ...text("a..bcde")], [3, 8, ...text("bad name")], [3, 9, ...text("1.2.3.4.5")],
        ]);
        mistake = { said: "reply 4", reason: "name-not-found" };
    }
  }
  return { bytes: Uint8Array.from([5, command, 0, ...address, port >> 8, port & 255]), mistake };
}

function drawSocks4(random: Random, { target, port, login, admitted, users }: Wish): Said {
  const answers: readonly AnswerKind[] = ["reply"];
  // A user id is a user without a password.
  const user = login && random.chance(0.8) ? "four" : random.pick(["", ...users.keys()]);
  const long = random.chance(0.03);
  const command = random.chance(0.05) ? 2 : 1;
  const named = typeof target === "string";
  const name = named ? [...text(random.chance(0.03) ? "" : target), 0] : [];
  const address = named ? [0, 0, 0, random.between(1, 255)] : [...target];
  const id = long ? text("u".repeat(random.between(256, 600))) : text(user);
  const messages = [Uint8Array.from([4, command, port >> 8, port & 255, ...address, ...id, 0, ...name])];
  const { password, delayUs } = users.get(user) ?? { password: null, delayUs: 0 };
  const right = !login || password === "";
  const mistake: Outcome | null = long ? { said: "reply 1", reason: "client-malformed" }
    : command !== 1 ? { said: "reply 7", reason: "unsupported" }
    : named && name.length === 1 ? { said: "reply 1", reason: "client-malformed" }
    : login && admitted && delayUs >= VERIFY_US_MAX ? { said: "nothing", reason: "client-timeout" }
    : login && !(admitted && right) ? { said: "reply 1", reason: "client-auth" } : null;
  return { messages, answers, user, mistake };
}

const text = (value: string): Uint8Array => new TextEncoder().encode(value);

function groups(bytes: Uint8Array): string {
  const group = (i: number) => ((bytes[2 * i]! << 8) | bytes[2 * i + 1]!).toString(16);
  return Array.from({ length: 8 }, (_, i) => group(i)).join(":");
}
