/** Passwords: hashed, compared, asked for, and who may pass. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { scryptSync } from "node:crypto";
import { EventEmitter } from "node:events";
import { test } from "node:test";
import fc from "fast-check";
import { parseConfig } from "../../src/config/parse.ts";
import { readPassword } from "../../src/control/prompt.ts";
import { hashPassword, parseSecret, type Secret, Users } from "../../src/control/users.ts";

const MAIN = new URL("../../src/main.js", import.meta.url).pathname;
const utf8 = (text: string): Uint8Array => new TextEncoder().encode(text);

/** A hash that takes no time. */
function cheap(password: string, N = 16): string {
  const salt = Buffer.from("0123456789abcdef");
  return `scrypt:${N}:1:1:${salt.toString("base64")}:${scryptSync(password, salt, 32, { N, r: 1, p: 1 }).toString("base64")}`;
}

function secretsOf(users: Readonly<Record<string, string>>): Map<string, Secret> {
  return new Map(
    Object.entries(users).map(([name, text]) => {
      const secret = parseSecret(text);
      assert.ok(secret !== null, text);
      return [name, secret];
    }),
  );
}

const verify = (users: Users, user: string, password: string, client = 0): Promise<boolean> =>
  users.verify(utf8(user), utf8(password), client);

test("a hash is made with a salt of its own, and its password alone fits", async () => {
  const [first, second] = await Promise.all([hashPassword("pässword"), hashPassword("pässword")]);
  assert.match(first, /^scrypt:16384:8:1:[A-Za-z0-9+/]{22}==:[A-Za-z0-9+/]{43}=$/);
  assert.notEqual(first, second);
  const users = new Users(secretsOf({ alice: first }));
  assert.equal(await verify(users, "alice", "pässword"), true);
  assert.equal(await verify(users, "alice", "passwort"), false);
});

test("scrypt is that of RFC 7914", async () => {
  // Its test vectors have 64 bytes, and the second is of N = 1024, r = 8, p = 16.
  const hash =
    "fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b3731622eaf30d92e22a3886ff109279d9830dac727afb94a83ee6d8360cbdfa2cc0640";
  const text = `scrypt:1024:8:16:${Buffer.from("NaCl").toString("base64")}:${Buffer.from(hash, "hex").toString("base64")}`;
  // Too little salt to be taken from a file.
  assert.equal(parseSecret(text), null);
  const secret: Secret = { kind: "scrypt", N: 1024, r: 8, p: 16, salt: utf8("NaCl"), hash: new Uint8Array(Buffer.from(hash, "hex")) };
  assert.equal(await verify(new Users(new Map([["u", secret]])), "u", "password"), true);
});

test("what is a secret, and what only looks like a hash", () => {
  const good = cheap("x");
  const parsed = parseSecret(good);
  assert.ok(parsed?.kind === "scrypt");
  assert.deepEqual([parsed.N, parsed.r, parsed.p, parsed.salt.length, parsed.hash.length], [16, 1, 1, 16, 32]);
  for (const text of ["", "password", "Scrypt:x", "scrypt", "$2y$10$abc", " scrypt:1"]) {
    assert.deepEqual(parseSecret(text), { kind: "clear", password: utf8(text) }, text);
  }
  const parts = good.split(":");
  const changed = (at: number, to: string): string => parts.map((part, i) => (i === at ? to : part)).join(":");
  for (const text of [
    "scrypt:", `${good}:`, `${good} `, `${good}\n`, changed(1, "0"), changed(1, "1"), changed(1, "24"), changed(1, "-16"), changed(1, "1e3"),
    changed(1, "99999999"), changed(2, "0"), changed(3, "0"), changed(4, ""), changed(4, "AAAA"), changed(5, ""), changed(5, "A".repeat(20)), changed(4, "%%%%%%%%%%%%"),
    // 64 MiB of memory, and eight times the time of our own, are the most.
    changed(1, "1048576"), changed(1, "16384").replace(":1:1:", ":64:1:"), changed(1, "16384").replace(":1:1:", ":8:9:"),
  ]) {
    assert.equal(parseSecret(text), null, text);
  }
  assert.notEqual(parseSecret(changed(1, "65536").replace(":1:1:", ":8:1:")), null);
});

test("users with hashes, in clear text, without a password, and unknown ones", async () => {
  const users = new Users(secretsOf({ alice: cheap("a"), bob: "b", carol: "", "é@x": cheap("e") }));
  const answers: [string, string, boolean][] = [
    ["alice", "a", true], ["alice", "", false], ["alice", "A", false], ["alice", "a ", false], ["Alice", "a", false],
    ["bob", "b", true], ["bob", "", false], ["bob", "bb", false], ["carol", "", true], ["carol", "x", false],
    ["é@x", "e", true], ["é@x", "a", false], ["dave", "", false], ["", "", false], ["constructor", "", false], ["alice", cheap("a"), false],
  ];
  // Twice, because the second answers come from memory.
  for (let round = 0; round < 2; round++) {
    for (const [user, password, right] of answers) {
      assert.equal(await verify(users, user, password), right, `${user}:${password} ${round}`);
    }
  }
  const clear = new Users(secretsOf({ bob: "b" }));
  assert.deepEqual(await Promise.all([verify(clear, "bob", "b"), verify(clear, "bob", "x"), verify(clear, "eve", "b")]), [true, false, false]);
  assert.equal(await verify(new Users(new Map()), "", ""), false);
});

test("names and passwords are bytes, and do not run into each other", async () => {
  const users = new Users(secretsOf({ ab: "c", "1": "1:1" }));
  assert.equal(await verify(users, "ab", "c"), true);
  for (const [user, password] of [["a", "bc"], ["abc", ""], ["", "abc"], ["1:1", "1"]] as const) assert.equal(await verify(users, user, password), false);
  // Not UTF-8: nobody's name in a file, and no reason to fall over.
  assert.equal(await users.verify(Uint8Array.of(0xff, 0xfe), Uint8Array.of(0xff), 0), false);
  await fc.assert(
    fc.asyncProperty(fc.string({ unit: "binary", maxLength: 20 }), fc.string({ unit: "binary", maxLength: 20 }), fc.string({ unit: "binary", maxLength: 20 }), async (name, password, other) => {
      const one = new Users(new Map([[name, { kind: "clear", password: utf8(password) }]]));
      assert.equal(await verify(one, name, password), true);
      assert.equal(await verify(one, name, other), Buffer.compare(utf8(other), utf8(password)) === 0);
    }),
  );
});

/** A scrypt that is done when the test says so. */
function held(right: (password: Uint8Array) => boolean = () => false) {
  const calls: { password: Uint8Array; end: () => void; fail: () => void; N: number }[] = [];
  let now = 0;
  return {
    calls,
    pass: (ms: number): void => {
      now += ms;
    },
    seams: {
      now: () => now,
      derive: (password: Uint8Array, hash: Secret & { kind: "scrypt" }): Promise<Uint8Array> =>
        new Promise((resolve, reject) => {
          calls.push({
            password, N: hash.N,
            end: () => resolve(right(password) ? hash.hash : new Uint8Array(hash.hash.length)),
            fail: () => reject(new Error("memory")),
          });
        }),
    },
  };
}

const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

test("two are judged at a time, 256 wait, and who comes then is refused but not remembered", async () => {
  const { calls, seams } = held(() => true);
  const users = new Users(secretsOf({ alice: cheap("a") }), seams);
  const answers = Array.from({ length: 259 }, (_, i) => verify(users, "alice", `${i}`, i));
  await settled();
  assert.equal(calls.length, 2);
  assert.equal(await answers[258], false);
  for (let i = 0; i < 258; i++) {
    assert.ok(calls.length <= i + 2);
    calls[i]!.end();
    await settled();
  }
  assert.equal(calls.length, 258);
  assert.deepEqual(new Set(await Promise.all(answers.slice(0, 258))), new Set([true]));
  const again = verify(users, "alice", "258");
  await settled();
  assert.equal(calls.length, 259);
  calls[258]!.end();
  assert.equal(await again, true);
});

test("the same pair is judged once: while it is judged, when it was right, and for five seconds when it was wrong", async () => {
  const { calls, pass, seams } = held((password) => password[0] === 0x61);
  const users = new Users(secretsOf({ alice: cheap("a") }), seams);
  const right = [verify(users, "alice", "a"), verify(users, "alice", "a")];
  const wrong = [verify(users, "alice", "b"), verify(users, "alice", "b")];
  await settled();
  assert.equal(calls.length, 2);
  for (const { end } of calls) end();
  assert.deepEqual(await Promise.all([...right, ...wrong]), [true, true, false, false]);
  pass(4999);
  assert.deepEqual([await verify(users, "alice", "a"), await verify(users, "alice", "b")], [true, false]);
  assert.equal(calls.length, 2);
  pass(1);
  assert.equal(await verify(users, "alice", "a"), true);
  const late = verify(users, "alice", "b");
  await settled();
  assert.equal(calls.length, 3);
  calls[2]!.end();
  assert.equal(await late, false);
});

test("scrypt that fails lets nobody in, and is tried again", async () => {
  const { calls, seams } = held(() => true);
  const users = new Users(secretsOf({ alice: cheap("a") }), seams);
  const first = verify(users, "alice", "a");
  await settled();
  calls[0]!.fail();
  assert.equal(await first, false);
  const second = verify(users, "alice", "a");
  await settled();
  calls[1]!.end();
  assert.equal(await second, true);
});

test("the unknown, and those in clear text, cost as much as the dearest; where nobody has a hash, nothing", async () => {
  const { calls, seams } = held(() => true);
  const users = new Users(secretsOf({ zoe: cheap("z", 16), bob: cheap("b", 64), alice: cheap("a", 16), carol: "c" }), seams);
  const answers = [verify(users, "eve", "x"), verify(users, "carol", "c")];
  await settled();
  assert.deepEqual(calls.map(({ N }) => N), [64, 64]);
  for (const { end } of calls) end();
  // Even a password that fits the hash that stands in for him lets no unknown user in.
  assert.deepEqual(await Promise.all(answers), [false, true]);
  const none = held();
  const clear = new Users(secretsOf({ carol: "c" }), none.seams);
  assert.deepEqual([await verify(clear, "eve", "x"), await verify(clear, "carol", "c")], [false, true]);
  assert.equal(none.calls.length, 0);
});

test("the caller's password is his again at once, and ours is wiped", async () => {
  const { calls, seams } = held((password) => Buffer.from(password).toString() === "secret");
  const users = new Users(secretsOf({ alice: cheap("a") }), seams);
  const password = utf8("secret");
  const answer = users.verify(utf8("alice"), password, 0);
  password.fill(0);
  await settled();
  calls[0]!.end();
  assert.equal(await answer, true);
  assert.deepEqual(calls[0]!.password, new Uint8Array(6));
});

test("a client that guesses and guesses leaves room for the others", async () => {
  const { calls, seams } = held((password) => Buffer.from(password).toString() === "right");
  const users = new Users(secretsOf({ alice: cheap("a"), bob: cheap("b") }), seams);
  const guesses = Array.from({ length: 1000 }, (_, i) => verify(users, "alice", `${i}`, i % 3));
  const right = verify(users, "bob", "right", 7);
  let open = 1001;
  const over = Promise.all([...guesses, right].map((each) => each.finally(() => open--)));
  for (let ended = 0; open > 0; ended++) {
    await settled();
    calls[ended]?.end();
  }
  await over;
  assert.equal(await right, true);
});

test("what is remembered is bounded", async () => {
  const { calls, pass, seams } = held(() => true);
  const users = new Users(secretsOf({ alice: cheap("a") }), seams);
  for (let i = 0; i < 4097; i++) {
    const answer = verify(users, "alice", `${i}`);
    await settled();
    calls.at(-1)!.end();
    assert.equal(await answer, true);
    // In use, and so not the oldest.
    assert.equal(await verify(users, "alice", "0"), true);
  }
  pass(1);
  assert.equal(calls.length, 4097);
  void verify(users, "alice", "1");
  await settled();
  assert.equal(calls.length, 4098);
});

// The prompt.

class Stdin extends EventEmitter {
  readonly isTTY: boolean;
  readonly modes: boolean[] = [];
  constructor(isTTY: boolean) {
    super();
    this.isTTY = isTTY;
  }
  setRawMode(raw: boolean): void {
    this.modes.push(raw);
  }
  resume(): void {}
  pause(): void {}
}

/** What comes of input that arrives in these pieces, cut anywhere. */
async function typed(isTTY: boolean, ...chunks: (string | Uint8Array)[]) {
  const stdin = new Stdin(isTTY);
  let said = "";
  const answer = readPassword(stdin, (text) => {
    said += text;
  });
  for (const chunk of chunks) {
    await settled();
    stdin.emit("data", typeof chunk === "string" ? utf8(chunk) : chunk);
  }
  await settled();
  stdin.emit("end");
  return { answer: await answer, said, modes: stdin.modes };
}

test("from a pipe, one line", async () => {
  const lines: [chunks: string[], password: string][] = [
    [["secret\n"], "secret"], [["secret"], "secret"], [["secret\r\n"], "secret"], [["se", "cret\nmore\n"], "secret"], [[" a b\t\n"], " a b\t"],
    [["pä\u0003\u007fx\n"], "pä\u0003\u007fx"], [["p".repeat(255)], "p".repeat(255)],
  ];
  for (const [chunks, password] of lines) assert.deepEqual(await typed(false, ...chunks), { answer: { password }, said: "", modes: [] });
  assert.deepEqual((await typed(false, Uint8Array.of(0xc3), Uint8Array.of(0xa9, 0x0a))).answer, { password: "é" });
  const wrong: [string | Uint8Array, string][] = [
    ["", "the password is empty"], ["\n", "the password is empty"], ["\r\n", "the password is empty"],
    ["p".repeat(256), "the password has more than 255 bytes, which SOCKS5 cannot carry"],
    ["p".repeat(100_000), "the line is too long for a password"], [Uint8Array.of(0xff, 0x0a), "the password is not UTF-8"],
  ];
  for (const [chunk, why] of wrong) assert.deepEqual((await typed(false, chunk)).answer, { wrong: why });
});

test("on a terminal it is asked for twice, without echo, and the terminal is left as it was", async () => {
  assert.deepEqual(await typed(true, "s3", "cret\r", "s3cret\r"), { answer: { password: "s3cret" }, said: "Password: \nAgain: \n", modes: [true, false] });
  const keys: [string, string][] = [
    ["ab\u007fc\rac\r", "ac"], ["aé\u007fb\rab\r", "ab"], ["a€\bb\rab\r", "ab"], ["wrong\u0015right\rright\r", "right"], ["\u007f\u007fa\ra\r", "a"], ["a\na\n", "a"],
  ];
  for (const [chunk, password] of keys) assert.deepEqual((await typed(true, chunk)).answer, { password }, JSON.stringify(chunk));
  const wrong: [string, string][] = [
    ["a\rb\r", "the two are not the same"], ["a\r", "the two are not the same"], ["a\u0003", "interrupted"], ["a\ra\u0003", "interrupted"],
    ["\r", "the password is empty"], ["\u0004", "the password is empty"], ["", "the password is empty"],
  ];
  for (const [chunk, why] of wrong) {
    const { answer, modes } = await typed(true, chunk);
    assert.deepEqual([answer, modes], [{ wrong: why }, [true, false]], JSON.stringify(chunk));
  }
});

test("transplice passwd prints the line that [users] takes", async () => {
  for (const [args, input, key] of [[["alice"], "S3cret\n", "alice"], [["bob@example.com"], "p\"w'#", "bob@example.com"], [["ü \"\\"], "x", "ü \"\\"]] as const) {
    const { status, stdout, stderr } = spawnSync(process.execPath, [MAIN, "passwd", ...args], { input, encoding: "utf8", timeout: 20_000 });
    assert.deepEqual([status, stderr], [0, ""]);
    const parsed = parseConfig(`[incoming]\n[users]\n${stdout}`, "t");
    assert.ok("config" in parsed, stdout);
    assert.equal(parsed.warnings.some((warning) => warning.key === "users"), false);
    const [user] = parsed.config.egress!.users;
    assert.equal(user?.name, key);
    const users = new Users(new Map([[key, parseSecret(user.secret)!]]));
    assert.equal(await verify(users, key, input.replace(/\n$/, "")), true);
  }
  const bare = spawnSync(process.execPath, [MAIN, "passwd"], { input: "x\n", encoding: "utf8", timeout: 20_000 });
  assert.match(bare.stdout, /^scrypt:[^ ]+\n$/);
  const empty = spawnSync(process.execPath, [MAIN, "passwd", "alice"], { input: "", encoding: "utf8", timeout: 20_000 });
  assert.deepEqual([empty.status, empty.stdout, empty.stderr], [1, "", "transplice: the password is empty\n"]);
});
