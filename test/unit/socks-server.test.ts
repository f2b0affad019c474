import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { OUTPUT_BYTES_MAX } from "../../src/protocol/handshake.ts";
import { Socks5Client } from "../../src/protocol/socks5-client.ts";
import { type ServerFailure, type ServerStep, SocksServer } from "../../src/protocol/socks-server.ts";
import { type Bytes, bytesOf, cut } from "./dialogue.ts";

/** `users`: whether there are any, and what the verdict is on those who come. */
type Users = "none" | "right" | "wrong";

type Outcome =
  | { readonly do: "read" }
  | { readonly do: "request"; readonly consumed: number }
  | { readonly do: "refuse"; readonly failure: ServerFailure };

/** One machine lives all the lives of this file, and none may see the former one. */
const POOLED = new SocksServer();
const INPUT_BYTES_MAX = POOLED.inputBytesMax;

/** A caller that keeps what was not consumed, moves it between calls, and puts poison on both sides. */
class Player {
  readonly sent: number[] = [];
  /** User and password of each "verify". */
  readonly verified: string[][] = [];
  outcome: Outcome = { do: "read" };
  keptMax = 0;
  readonly #server: SocksServer;
  readonly #users: Users;
  readonly #output = new Uint8Array(OUTPUT_BYTES_MAX);
  #kept = new Uint8Array(0);
  #consumed = 0;
  #moves = 0;

  constructor(users: Users, server = POOLED) {
    this.#server = server;
    this.#users = users;
    server.begin(users !== "none");
    this.#run();
  }

  /** What comes after the end is the tunnel's, and ignored here. */
  feed(bytes: ArrayLike<number>): void {
    if (this.outcome.do !== "read") return;
    const kept = new Uint8Array(this.#kept.length + bytes.length);
    kept.set(this.#kept);
    kept.set(bytes, this.#kept.length);
    this.#kept = kept;
    this.#run();
  }

  /** All that a caller can see of this life. */
  seen(): unknown {
    const { version, method, addressType, addressLength, port } = this.#server;
    const [user, password, name, address] = [
      this.#server.user, this.#server.password, this.#server.name, this.#server.address,
    ].map((bytes) => [...bytes]);
    return {
      outcome: this.outcome, sent: this.sent, verified: this.verified,
      version, method, addressType, addressLength, port, user, password, name, address,
    };
  }

  #run(): void {
    for (let calls = 0; calls < 8; calls++) if (this.#follow(this.#advance())) return;
    assert.fail("the machine does not come to an end");
  }

  /** Whether it was the last step for now. */
  #follow(step: ServerStep): boolean {
    if ("consumed" in step) {
      const there = step.consumed >= 0 && step.consumed <= this.#kept.length;
      assert(there, "consumed what is not there");
      this.#consumed += step.consumed;
      this.#kept = this.#kept.slice(step.consumed);
    }
    switch (step.do) {
      case "read":
        assert(this.#kept.length < INPUT_BYTES_MAX, "asks for more than its bound");
        this.keptMax = Math.max(this.keptMax, this.#kept.length);
        return true;
      case "write":
        this.#send(step.length);
        return false;
      case "verify":
        assert.notEqual(this.#users, "none", "there are no users to verify");
        this.verified.push([latin1(this.#server.user), latin1(this.#server.password)]);
        return this.#follow(this.#server.verdict(this.#users === "right", this.#output));
      case "request":
        this.outcome = { do: "request", consumed: this.#consumed };
        return true;
      case "refuse":
        if (step.length > 0) this.#send(step.length);
        this.outcome = { do: "refuse", failure: step.failure };
        return true;
    }
  }

  #send(length: number): void {
    assert(length > 0 && length <= OUTPUT_BYTES_MAX, "a write of no or too many bytes");
    this.sent.push(...this.#output.subarray(0, length));
  }

  #advance(): ServerStep {
    const start = (this.#moves++ * 7) % 11;
    const end = start + this.#kept.length;
    // Poison that would end a text of SOCKS4, or pass for a version; or the buffer's end.
    const input = new Uint8Array(end + (this.#moves % 2) * 3).fill([0, 5, 1][this.#moves % 3]!);
    input.set(this.#kept, start);
    this.#output.fill(0xee);
    const step = this.#server.advance(input, start, end, this.#output);
    // No view into the caller's buffer may have been kept.
    input.fill(0xee);
    return step;
  }
}

const latin1 = (bytes: Uint8Array): string => String.fromCharCode(...bytes);
const TUNNEL = bytesOf("\x05\x01\0\x04SSH-2.0-glued\r\n\0");

interface Heard {
  readonly version?: 0 | 4 | 5;
  readonly method?: "none" | "noauth" | "password" | "userid";
  readonly user?: string;
  readonly verified?: readonly (readonly string[])[];
  readonly address?: readonly number[];
  readonly name?: string;
  readonly port?: number;
  /** Absent: it comes to a request. */
  readonly refused?: ServerFailure;
  readonly unfinished?: true;
}

/** One turn of a dialogue: what the client sends, and what it is answered. */
type Turn = readonly [sends: Bytes, gets: readonly number[]];

/** Plays the turns in all the ways that we know; each must come to the same. */
function heard(users: Users, turns: readonly Turn[], what: Heard): void {
  const all = turns.flatMap(([sends]) => [...bytesOf(sends)]);
  for (const way of ["whole", "byte by byte", "glued", "pipelined", "pipelined and glued"] as const) {
    if (what.unfinished && way.endsWith("glued")) continue;
    const player = new Player(users);
    if (way === "pipelined") player.feed(all);
    else if (way === "pipelined and glued") player.feed([...all, ...TUNNEL]);
    else {
      const answers: number[] = [];
      turns.forEach(([sends, gets], index) => {
        assert.deepEqual(player.sent, answers, `${way}: more was sent before turn ${index}`);
        const bytes = bytesOf(sends);
        if (way === "byte by byte") for (const byte of bytes) player.feed([byte]);
        else if (way === "whole" || index < turns.length - 1) player.feed(bytes);
        else player.feed([...bytes, ...TUNNEL]);
        answers.push(...gets);
        assert.deepEqual(player.sent, answers, `${way}: the answer to turn ${index}`);
      });
    }
    assert.deepEqual(player.sent, turns.flatMap(([, gets]) => gets), way);
    const outcome: Outcome = what.unfinished ? { do: "read" }
      : what.refused !== undefined ? { do: "refuse", failure: what.refused }
      : { do: "request", consumed: all.length };
    assert.deepEqual(player.outcome, outcome, way);
    assert.equal(POOLED.password.length, 0, `${way}: a password outlives its verdict`);
    if (what.version !== undefined) assert.equal(POOLED.version, what.version, way);
    if (what.method !== undefined) assert.equal(POOLED.method, what.method, way);
    if (what.user !== undefined) assert.equal(latin1(POOLED.user), what.user, way);
    assert.deepEqual(player.verified, what.verified ?? [], way);
    if (what.address !== undefined) {
      assert.equal(POOLED.addressType, what.address.length === 4 ? "ipv4" : "ipv6", way);
      assert.equal(POOLED.addressLength, what.address.length, way);
      assert.deepEqual([...POOLED.address.subarray(0, POOLED.addressLength)], what.address, way);
      assert.equal(POOLED.name.length, 0, way);
    }
    if (what.name !== undefined) {
      assert.equal(POOLED.addressType, "name", way);
      assert.equal(POOLED.addressLength, 0, way);
      assert.equal(latin1(POOLED.name), what.name, way);
    }
    if (what.port !== undefined) assert.equal(POOLED.port, what.port, way);
  }
}

const V6 = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
const CONNECT = [5, 1, 0, 1, 192, 0, 2, 1, 0x01, 0xbb];
const LOGIN = [1, 5, ...bytesOf("us@er"), 3, ...bytesOf("p:w")];
const named = (name: Bytes): number[] => [5, 1, 0, 3, bytesOf(name).length, ...bytesOf(name), 0x1f, 0x90];
const refusal = (code: number): number[] => [5, code, 0, 1, 0, 0, 0, 0, 0, 0];
const v4 = (user: Bytes, host?: Bytes, command = 1): number[] => [
  4, command, 0x01, 0xbb, ...(host === undefined ? [192, 0, 2, 1] : [0, 0, 0, 255]), ...bytesOf(user), 0,
  ...(host === undefined ? [] : [...bytesOf(host), 0]),
];
const REJECTED = [0, 0x5b, 0, 0, 0, 0, 0, 0];
const LONG = new Uint8Array(255).fill(0xfe);

describe("SocksServer: SOCKS5", () => {
  it("without authentication, to an address", () => {
    heard("none", [[[5, 1, 0], [5, 0]], [CONNECT, []]], {
      version: 5, method: "noauth", user: "", address: [192, 0, 2, 1], port: 443,
    });
    heard("none", [[[5, 1, 0], [5, 0]], [[5, 1, 0xff, 4, ...V6, 0xff, 0], []]], {
      version: 5, method: "noauth", address: V6, port: 65280,
    });
  });
  it("to a name, whatever its bytes and up to 255 of them", () => {
    for (const name of ["h", "example.com", "xn--\u0001 \n", latin1(LONG.map((_, i) => i))]) {
      const bytes = Uint8Array.from(name, (character) => character.charCodeAt(0));
      heard("none", [[[5, 1, 0], [5, 0]], [named(bytes), []]], { name, port: 8080 });
    }
  });
  it("chooses among the methods that are offered", () => {
    for (const methods of [[0], [2, 0], [0, 2], [1, 0x80, 0], [3, 0, 255]]) {
      heard("none", [[[5, methods.length, ...methods], [5, 0]], [CONNECT, []]], { method: "noauth" });
    }
    for (const methods of [[2], [2, 0], [0, 2], [1, 0x80, 2]]) {
      heard("right", [[[5, methods.length, ...methods], [5, 2]], [LOGIN, [1, 0]], [CONNECT, []]], {
        method: "password", user: "us@er", verified: [["us@er", "p:w"]], address: [192, 0, 2, 1],
      });
    }
    heard("none", [[[5, 255, ...LONG.subarray(1), 0], [5, 0]], [CONNECT, []]], { method: "noauth" });
  });
  it("promises reports to whoever offers to hear them, and behind each reply there is one", () => {
    const NOTHING = [0, 0];
    for (const methods of [[0xe0], [0xe0, 0], [0, 0xe0], [0xe0, 0xe2, 0, 2], [2, 0xe2, 0xe0]]) {
      heard("none", [[[5, methods.length, ...methods], [5, 0xe0]], [CONNECT, []]], { method: "noauth" });
    }
    for (const methods of [[0xe2], [0xe2, 2], [2, 0xe2], [0xe0, 0xe2, 0, 2]]) {
      heard("right", [[[5, methods.length, ...methods], [5, 0xe2]], [LOGIN, [1, 0]], [CONNECT, []]], {
        method: "password", user: "us@er", verified: [["us@er", "p:w"]],
      });
      heard("wrong", [[[5, methods.length, ...methods], [5, 0xe2]], [LOGIN, [1, 1]]], { refused: "auth-refused", verified: [["us@er", "p:w"]] });
    }
    heard("right", [[[5, 2, 0xe0, 2], [5, 2]], [LOGIN, [1, 0]], [CONNECT, []]], { method: "password", verified: [["us@er", "p:w"]] });
    heard("right", [[[5, 2, 0xe0, 0], [5, 255]]], { refused: "no-method" });
    heard("none", [[[5, 1, 0xe0], [5, 0xe0]], [[5, 2, ...CONNECT.slice(2)], [...refusal(7), ...NOTHING]]], { refused: "command" });
    heard("none", [[[5, 1, 0xe0], [5, 0xe0]], [[4], [...refusal(1), ...NOTHING]]], { refused: "malformed" });
    // And to nobody else.
    heard("none", [[[5, 1, 0], [5, 0]], [CONNECT, []]], { method: "noauth" });
    assert.equal(POOLED.reports, false);
  });
  it("refuses when none of them will do", () => {
    for (const methods of [[], [1], [3, 0x80, 0xfe, 0xff]]) {
      heard("none", [[[5, methods.length, ...methods], [5, 255]]], {
        version: 5, method: "none", refused: "no-method",
      });
    }
    for (const methods of [[], [0], [0, 1, 3]]) {
      heard("right", [[[5, methods.length, ...methods], [5, 255]]], { refused: "no-method" });
    }
  });
  it("takes any password of a client that offers nothing else, while there are no users", () => {
    heard("none", [[[5, 1, 2], [5, 2]], [LOGIN, [1, 0]], [CONNECT, []]], {
      method: "password", user: "us@er", verified: [],
    });
    heard("none", [[[5, 1, 2], [5, 2]], [[1, 0, 0], [1, 0]], [CONNECT, []]], { user: "" });
  });
  it("has user and password of 0 to 255 bytes verified", () => {
    const long = latin1(LONG);
    for (const [user, password] of [["", ""], ["u", ""], ["", "p"], [long, long], ["a\0b", "\0"]] as const) {
      const [u, p] = [user, password].map((text) => Array.from(text, (character) => character.charCodeAt(0)));
      const login = [1, u!.length, ...u!, p!.length, ...p!];
      heard("right", [[[5, 1, 2], [5, 2]], [login, [1, 0]], [CONNECT, []]], {
        user, verified: [[user, password]],
      });
    }
  });
  it("refuses a wrong password", () => {
    heard("wrong", [[[5, 2, 0, 2], [5, 2]], [LOGIN, [1, 1]]], {
      refused: "auth-refused", method: "password", user: "us@er", verified: [["us@er", "p:w"]],
    });
  });
  it("refuses BIND, UDP ASSOCIATE and what there is not, after the whole request", () => {
    for (const command of [0, 2, 3, 4, 0xf0, 255]) {
      const target = { refused: "command" as const, port: 443 };
      heard("none", [[[5, 1, 0], [5, 0]], [[5, command, ...CONNECT.slice(2)], refusal(7)]], {
        ...target, address: [192, 0, 2, 1],
      });
      heard("none", [[[5, 1, 0], [5, 0]], [[5, command, 0, 4, ...V6, 1, 187], refusal(7)]], {
        ...target, address: V6,
      });
      heard("none", [[[5, 1, 0], [5, 0]], [[5, command, 0, 3, 1, 104, 1, 187], refusal(7)]], {
        ...target, name: "h",
      });
      heard("none", [[[5, 1, 0], [5, 0]], [[5, command, 0, 9], refusal(7)]], { refused: "command" });
    }
  });
  it("refuses an address of unknown type", () => {
    for (const type of [0, 2, 5, 255]) {
      heard("none", [[[5, 1, 0], [5, 0]], [[5, 1, 0, type], refusal(8)]], { refused: "address-type" });
    }
    assert.equal(POOLED.addressType, null);
  });
  it("refuses an empty name", () => {
    heard("none", [[[5, 1, 0], [5, 0]], [[5, 1, 0, 3, 0, 0, 80], refusal(1)]], { refused: "malformed" });
  });
  it("refuses a login or a request of another version", () => {
    for (const version of [0, 2, 4, 5, 255]) {
      heard("right", [[[5, 1, 2], [5, 2]], [[version], [1, 1]]], { refused: "malformed" });
    }
    for (const version of [0, 1, 4, 0x47]) {
      heard("none", [[[5, 1, 0], [5, 0]], [[version], refusal(1)]], { refused: "malformed" });
    }
  });
});

describe("SocksServer: SOCKS4 and 4a", () => {
  it("to an address, with and without a user id", () => {
    for (const user of ["", "root", latin1(LONG)]) {
      const bytes = Uint8Array.from(user, (character) => character.charCodeAt(0));
      heard("none", [[v4(bytes), []]], {
        version: 4, method: "userid", user, address: [192, 0, 2, 1], port: 443,
      });
    }
    heard("none", [[[4, 1, 0, 80, 0, 0, 0, 0, 0], []]], { address: [0, 0, 0, 0], port: 80 });
    heard("none", [[[4, 1, 0, 80, 0, 0, 1, 1, 0], []]], { address: [0, 0, 1, 1] });
    heard("none", [[[4, 1, 0, 80, 0, 1, 0, 1, 0], []]], { address: [0, 1, 0, 1] });
    heard("none", [[[4, 1, 0, 80, 1, 0, 0, 1, 0], []]], { address: [1, 0, 0, 1] });
  });
  it("to a name of up to 255 bytes", () => {
    heard("none", [[v4("", "h"), []]], { name: "h", user: "", port: 443 });
    heard("none", [[v4("root", "example.com"), []]], { name: "example.com", user: "root" });
    heard("none", [[v4(LONG, LONG), []]], { name: latin1(LONG), user: latin1(LONG) });
    heard("none", [[[4, 1, 0, 80, 0, 0, 0, 1, 0, 104, 0], []]], { name: "h", port: 80 });
  });
  it("takes the user id for a user with an empty password", () => {
    heard("right", [[v4("root"), []]], { user: "root", verified: [["root", ""]], address: [192, 0, 2, 1] });
    heard("right", [[v4("root", "h"), []]], { user: "root", verified: [["root", ""]], name: "h" });
    heard("wrong", [[v4("root"), REJECTED]], { verified: [["root", ""]], refused: "auth-refused" });
    heard("wrong", [[v4(""), REJECTED]], { verified: [["", ""]], refused: "auth-refused" });
  });
  it("refuses BIND and what there is not", () => {
    for (const command of [0, 2, 3, 255]) {
      heard("none", [[v4("root", undefined, command), REJECTED]], {
        refused: "command", address: [192, 0, 2, 1],
      });
      heard("right", [[v4("root", "h", command), REJECTED]], { refused: "command", name: "h" });
    }
  });
  it("refuses an empty name", () => {
    heard("none", [[v4("root", ""), REJECTED]], { refused: "malformed" });
  });
  it("refuses a user id or a host of more than 255 bytes at its 256th", () => {
    const longer = new Uint8Array(256).fill(0x61);
    heard("none", [[v4(longer).slice(0, 8 + 256), REJECTED]], { refused: "too-long" });
    heard("none", [[v4(LONG, longer).slice(0, -1), REJECTED]], { refused: "too-long" });
    heard("none", [[v4(longer).slice(0, 8 + 255), []]], { unfinished: true });
    heard("none", [[v4(LONG, longer).slice(0, -2), []]], { unfinished: true });
  });
  it("reaches its bound of kept bytes, and no more", () => {
    const player = new Player("none");
    for (const byte of v4(LONG, LONG)) player.feed([byte]);
    assert.equal(player.keptMax, INPUT_BYTES_MAX - 1);
    assert.equal(player.outcome.do, "request");
  });
});

describe("SocksServer: neither", () => {
  it("refuses without a word", () => {
    for (const first of [0, 1, 2, 3, 6, 0x16, 0x47, 255]) {
      heard("none", [[[first], []]], { version: 0, method: "none", refused: "not-socks" });
      assert.equal(POOLED.reply(1, null, 0, new Uint8Array(32)), 0);
    }
  });
  it("waits for a message to be whole", () => {
    const greeted: Turn = [[5, 1, 0], [5, 0]];
    for (const request of [CONNECT, named("host"), [5, 1, 0, 4, ...V6, 0, 80], [5, 2, 0, 3, 0, 0, 80]]) {
      for (let length = 0; length < request.length; length++) {
        heard("none", [greeted, [request.slice(0, length), []]], { unfinished: true });
      }
    }
    for (let length = 0; length < 4; length++) {
      heard("none", [[[5, 2, 1, 0].slice(0, length), []]], { unfinished: true });
    }
    for (let length = 0; length < LOGIN.length; length++) {
      heard("right", [[[5, 1, 2], [5, 2]], [LOGIN.slice(0, length), []]], { unfinished: true });
    }
    for (const request of [v4("root"), v4("root", "host")]) {
      for (let length = 0; length < request.length; length++) {
        heard("right", [[request.slice(0, length), []]], { unfinished: true });
      }
    }
  });
});

describe("SocksServer: the reply", () => {
  const output = new Uint8Array(64);
  // Sockaddrs in the middle of other bytes.
  const in4 = Uint8Array.of(9, 9, 9, 2, 0, 0x1f, 0x90, 198, 51, 100, 7, 0, 0, 0, 0, 0, 0, 0, 0, 9);
  const in6 = Uint8Array.of(9, 10, 0, 0xff, 0x01, 8, 8, 8, 8, ...V6, 7, 7, 7, 7, 9);
  const written = (server: SocksServer, code: number, bound: Uint8Array | null, at: number): number[] => {
    output.fill(0xee);
    const length = server.reply(code, bound, at, output);
    assert.ok(output.subarray(length).every((byte) => byte === 0xee), "wrote past its length");
    return [...output.subarray(0, length)];
  };
  const of = (version: 4 | 5): SocksServer => {
    const player = new Player("none");
    if (version === 4) player.feed(v4("root"));
    else for (const bytes of [[5, 1, 0], CONNECT]) player.feed(bytes);
    assert.equal(player.outcome.do, "request");
    return POOLED;
  };

  it("has every code of SOCKS5, and the bound address", () => {
    for (let code = 0; code < 256; code++) {
      assert.deepEqual(written(of(5), code, null, 0), refusal(code));
      assert.deepEqual(written(POOLED, code, in4, 3), [5, code, 0, 1, 198, 51, 100, 7, 0x1f, 0x90]);
      assert.deepEqual(written(POOLED, code, in6, 1), [5, code, 0, 4, ...V6, 0xff, 0x01]);
    }
  });
  it("has the two codes of SOCKS4, and what of the bound address there is room for", () => {
    for (let code = 0; code < 256; code++) {
      const status = code === 0 ? 0x5a : 0x5b;
      assert.deepEqual(written(of(4), code, null, 0), [0, status, 0, 0, 0, 0, 0, 0]);
      assert.deepEqual(written(POOLED, code, in4, 3), [0, status, 0x1f, 0x90, 198, 51, 100, 7]);
      assert.deepEqual(written(POOLED, code, in6, 1), [0, status, 0xff, 0x01, 0, 0, 0, 0]);
    }
  });
});

describe("SocksServer: its lives", () => {
  const output = new Uint8Array(OUTPUT_BYTES_MAX);
  const verifying = (): SocksServer => {
    const server = new SocksServer();
    server.begin(true);
    const input = Uint8Array.from([5, 1, 2, ...LOGIN]);
    const { length } = input;
    assert.deepEqual(server.advance(input, 0, length, output), { do: "write", length: 2, consumed: 3 });
    assert.deepEqual(server.advance(input, 3, length, output), { do: "verify", consumed: LOGIN.length });
    return server;
  };

  it("overwrite the password, at the verdict, by wipe() and by begin()", () => {
    for (const end of [
      (server: SocksServer) => server.verdict(true, output),
      (server: SocksServer) => server.verdict(false, output),
      (server: SocksServer) => server.wipe(),
      (server: SocksServer) => server.begin(true),
    ]) {
      const server = verifying();
      const { password } = server;
      assert.equal(latin1(password), "p:w");
      end(server);
      assert.deepEqual([...password], [0, 0, 0]);
      assert.equal(server.password.length, 0);
    }
  });
  it("do not take the verdict on a former one", () => {
    for (const users of [false, true]) {
      const server = verifying();
      server.begin(users);
      assert.deepEqual(server.verdict(true, output), { do: "refuse", length: 0, failure: "auth-refused" });
    }
    const server = verifying();
    assert.equal(server.verdict(true, output).do, "write");
    assert.equal(server.verdict(true, output).do, "refuse");
    const player = new Player("right");
    player.feed(v4("root"));
    assert.equal(player.outcome.do, "request");
    assert.equal(POOLED.verdict(true, output).do, "refuse");
  });
  it("do not go on after their end", () => {
    const input = Uint8Array.from([...CONNECT, ...v4("root")]);
    for (const [users, turns] of [
      ["none", [[9]]], ["none", [[5, 0]]], ["right", [v4("root")]], ["wrong", [v4("root")]],
      ["wrong", [[5, 1, 2], LOGIN]], ["none", [[5, 1, 0], [5, 2, 0, 9]]],
    ] as const) {
      const player = new Player(users);
      for (const bytes of turns) player.feed(bytes);
      assert.notEqual(player.outcome.do, "read");
      for (const start of [0, CONNECT.length]) {
        assert.equal(POOLED.advance(input, start, input.length, output).do, "read");
      }
    }
  });
  it("do not go on while the caller owes a verdict, nor after the request", () => {
    const server = verifying();
    const input = Uint8Array.from(CONNECT);
    assert.equal(server.advance(input, 0, input.length, output).do, "read");
    server.verdict(true, output);
    assert.equal(server.advance(input, 0, input.length, output).do, "request");
    assert.equal(server.advance(input, 0, input.length, output).do, "read");
  });
  it("keep no view of the caller's buffer, not even of a Buffer", () => {
    const server = new SocksServer();
    server.begin(false);
    const input = Buffer.from(v4("root", "host"));
    assert.equal(server.advance(input, 0, input.length, output).do, "request");
    input.fill(0x7a);
    assert.equal(latin1(server.user) + latin1(server.name), "roothost");
  });
});

describe("SocksServer: whatever comes", () => {
  // Pieces of good dialogues, so that the far states are reached, among bytes of no meaning.
  const piece = fc.oneof(
    fc.constantFrom<number[]>(
      [5, 1, 0], [5, 1, 2], [5, 2, 0, 2], LOGIN, CONNECT, named("h"), [5, 1, 0, 4], [5, 2, 0, 3], v4("u"),
      v4("u", "h"), [4, 1, 0, 80, 0, 0, 0, 1], [4, 2, 0, 80], [...LONG], new Array(256).fill(0x61),
    ),
    fc.array(fc.oneof(fc.nat(5), fc.nat(255)), { maxLength: 20 }),
  );
  const input = fc.array(piece, { maxLength: 12 }).map((pieces) => Uint8Array.from(pieces.flat()));
  const users = fc.constantFrom<Users>("none", "right", "wrong");
  const played = (who: Users, chunks: readonly ArrayLike<number>[], server: SocksServer): unknown => {
    const player = new Player(who, server);
    for (const chunk of chunks) player.feed(chunk);
    return player.seen();
  };

  it("it grants, refuses or asks; neither the cuts nor its former lives make a difference", () => {
    fc.assert(
      fc.property(users, input, fc.array(fc.nat(), { maxLength: 12 }), (who, bytes, places) => {
        const whole = played(who, [bytes], new SocksServer());
        assert.deepEqual(played(who, [bytes], POOLED), whole);
        assert.deepEqual(played(who, cut(bytes, places), POOLED), whole);
        assert.deepEqual(played(who, [...bytes].map((byte) => [byte]), POOLED), whole);
      }),
      { numRuns: 2000 },
    );
  });

  it("it hears what our own client says, and the client its answers", () => {
    const text = fc.uint8Array({ minLength: 1, maxLength: 255 });
    const credentials = fc.option(fc.record({ user: text, password: fc.uint8Array({ maxLength: 255 }) }));
    const address = fc.constantFrom<4 | 16>(4, 16).chain((length) =>
      fc.record({
        bytes: fc.uint8Array({ minLength: length, maxLength: length }),
        at: fc.constant(0), length: fc.constant(length), port: fc.nat(65535),
      }));
    fc.assert(
      fc.property(address, credentials, fc.boolean(), fc.boolean(), fc.nat(30), (to, login, pipelined, reports, size) => {
        const client = new Socks5Client(to, login, pipelined, reports);
        const server = new Player(login === null ? "none" : "right");
        const output = new Uint8Array(OUTPUT_BYTES_MAX);
        let answered = 0;
        for (let turns = 0; server.outcome.do === "read"; turns++) {
          assert.ok(turns < 5, "they do not come to an end");
          const got = Uint8Array.from(server.sent.slice(answered));
          const step = client.advance(got, 0, got.length, output);
          assert.equal(step.do, "write");
          if (step.do !== "write") return;
          answered += step.consumed;
          for (let at = 0; at < step.length; at += size + 1) {
            server.feed(output.slice(at, Math.min(step.length, at + size + 1)));
          }
        }
        const bound = Uint8Array.of(10, 0, 1, 2, 0, 0, 0, 0, ...V6, 0, 0, 0, 0);
        const length = POOLED.reply(0, bound, 0, output);
        const rest = Uint8Array.from([...server.sent.slice(answered), ...output.subarray(0, length)]);
        const step = client.advance(rest, 0, rest.length, output);
        assert.deepEqual(step, { do: "finish", consumed: rest.length });
        assert.equal(POOLED.reports, reports);
        assert.deepEqual(client.source === null ? null : [...client.source.subarray(8, 24)], reports ? V6 : null);
        assert.deepEqual([...POOLED.address.subarray(0, POOLED.addressLength)], [...to.bytes]);
        assert.equal(POOLED.port, to.port);
        const said = login === null ? [] : [[latin1(login.user), latin1(login.password)]];
        assert.deepEqual(server.verified, said);
      }),
      { numRuns: 500 },
    );
  });
});
