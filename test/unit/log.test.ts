/** Log lines to the byte, and a log that neither waits, grows nor dies. */
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { describe, test, type TestContext } from "node:test";
import fc from "fast-check";
import type { LogFormat, LogLevel } from "../../src/config/config.ts";
import { Log, type LogOptions } from "../../src/control/log/log.ts";
import { type Fields, LINE_BYTES_MAX, LineFormat } from "../../src/control/log/line.ts";
import type { Target, Targets } from "../../src/control/log/target.ts";

const AT = Date.UTC(2026, 10, 23, 15, 38, 14, 628) + 0.404;

function line(format: LogFormat, message: string, fields: Fields = {}, options: { level?: LogLevel; topic?: string; defaults?: Fields; at?: number } = {}): string {
  const lines = new LineFormat({ format, topic: options.topic ?? "transplice", hostname: "vm", defaults: options.defaults ?? {} });
  return lines.line(options.level ?? "info", message, fields, options.at ?? AT);
}

test("a plain line is the predecessor's, byte for byte", () => {
  const fields = {
    type: "access",
    client_addr: "198.51.100.10:46998",
    dest_addr: "198.51.100.10:80",
    request_id: "c470358d-5e25-5d5a-f4c8-6ab6d437e6bc",
  };
  assert.equal(
    line("plain", "proxy starts", fields, { topic: "transocks", defaults: { pid: 16086 } }),
    '2026-11-23T15:38:14.628404Z vm transocks info: "proxy starts" client_addr="198.51.100.10:46998" dest_addr="198.51.100.10:80" request_id="c470358d-5e25-5d5a-f4c8-6ab6d437e6bc" type="access" pid=16086\n',
  );
});

test("logfmt and json", () => {
  const fields = { type: "access", elapsed: 1.5, ok: true, none: null, big: 2n ** 60n };
  assert.equal(
    line("logfmt", 'say "x"', fields, { level: "error" }),
    'topic=transplice logged_at=2026-11-23T15:38:14.628404Z severity=error utsname=vm message="say \\"x\\"" type="access" elapsed=1.5 ok=true none=null big=1152921504606846976\n',
  );
  assert.equal(
    line("json", "a\nb", fields, { level: "critical", defaults: { pid: 7, type: "x" } }),
    '{"topic":"transplice","logged_at":"2026-11-23T15:38:14.628404Z","severity":"critical","utsname":"vm","message":"a\\nb","type":"access","elapsed":1.5,"ok":true,"none":null,"big":1152921504606846976,"pid":7}\n',
  );
});

test("the time: UTC, six digits, right at the edges of a second and after going back", () => {
  const lines = new LineFormat({ format: "plain", topic: "t", hostname: "h", defaults: {} });
  const time = (at: number): string => lines.line("info", "", {}, at).split(" ")[0]!;
  assert.equal(time(0), "1970-01-01T00:00:00.000000Z");
  assert.equal(time(999.999), "1970-01-01T00:00:00.999999Z");
  assert.equal(time(999.9996), "1970-01-01T00:00:01.000000Z");
  assert.equal(time(1000.001), "1970-01-01T00:00:01.000001Z");
  assert.equal(time(5), "1970-01-01T00:00:00.005000Z");
  for (const wrong of [Number.NaN, -1, Number.POSITIVE_INFINITY, 1e300]) assert.equal(time(wrong), "1970-01-01T00:00:00.000000Z");
});

test("strings are quoted as Go does", () => {
  // What strconv.Quote answers.
  const quoted: [string, string][] = [
    ["", '""'], ["plain text", '"plain text"'], ['a"b\\c', '"a\\"b\\\\c"'], ["\n\r\t\v\b\f\x07", '"\\n\\r\\t\\v\\b\\f\\a"'],
    ["\0\x1b", '"\\x00\\x1b"'], ["\x7f", '"\\x7f"'], ["\\", '"\\\\"'], ["é日本🎉", '"é日本🎉"'], ["\u0080\u00a0\u200b\ufeff", '"\\u0080\\u00a0\\u200b\\ufeff"'],
    ["\u{e0001}", '"\\U000e0001"'], ["\ud800x", '"\ufffdx"'], ["\u2028", '"\\u2028"'], ["'`", "\"'`\""],
  ];
  for (const [text, expected] of quoted) {
    assert.equal(line("plain", text).split("info: ")[1], `${expected}\n`);
    assert.equal(line("logfmt", "m", { a: text }).split(" a=")[1], `${expected}\n`);
  }
});

test("numbers never have an exponent", () => {
  const numbers: [number, string][] = [
    [0, "0"], [-1, "-1"], [0.000001, "0.000001"], [1e-7, "0.0000001"], [-1.25e-9, "-0.00000000125"], [1e21, "1000000000000000000000"],
    [-1.5e22, "-15000000000000000000000"], [123456.789, "123456.789"], [2 ** 53, "9007199254740992"], [Number.NaN, "NaN"], [Number.POSITIVE_INFINITY, "+Inf"], [Number.NEGATIVE_INFINITY, "-Inf"],
  ];
  for (const [value, text] of numbers) {
    assert.equal(line("plain", "m", { a: value }).split(" a=")[1], `${text}\n`);
    assert.equal(line("json", "m", { a: value }).split('"a":')[1], Number.isFinite(value) ? `${text}}\n` : `"${text}"}\n`);
  }
});

test("topics are what cybozu-go/log makes of a program's name", () => {
  assert.equal(line("plain", "", {}, { topic: "My_Proxy 9.Z" }).split(" ")[2], "my-proxy-9.z");
});

test("whatever is logged, it is one line, and json can be read back", () => {
  const value = fc.oneof(fc.string({ unit: "binary" }), fc.double(), fc.boolean(), fc.constant(null), fc.bigInt());
  const fields = fc.dictionary(fc.stringMatching(/^[a-z_][a-z0-9_]{0,8}$/), value, { maxKeys: 6 });
  fc.assert(
    fc.property(fc.string({ unit: "binary" }), fields, (message, given) => {
      for (const format of ["plain", "logfmt"] as const) assert.match(line(format, message, given), /^[^\p{Cc}]*\n$/u);
      const text = line("json", message, given);
      assert.equal(text.indexOf("\n"), text.length - 1);
      const read = JSON.parse(text) as Record<string, unknown>;
      assert.equal(read["message"], message);
      for (const [key, wanted] of Object.entries(given)) if (typeof wanted === "string" && key !== "message") assert.equal(read[key], wanted);
    }),
    { numRuns: 200 },
  );
});

test("a line longer than 1 MiB is cut, and is still a line of its format", () => {
  const long = { a: "é".repeat(200_000), b: 'x"'.repeat(100_000), n: 5 };
  for (const format of ["plain", "logfmt", "json"] as const) {
    const text = line(format, "\u0001".repeat(300_000), long);
    assert.ok(Buffer.byteLength(text) <= LINE_BYTES_MAX && text.length > 100_000, `${format} ${text.length}`);
    assert.ok(text.endsWith("\n") && text.includes("n"));
    if (format === "json") assert.equal((JSON.parse(text) as { n: number }).n, 5);
  }
  assert.ok(Buffer.byteLength(line("plain", "é".repeat(600_000))) <= LINE_BYTES_MAX);
  const worst = Object.fromEntries(Array.from({ length: 10 }, (_, i) => [`key${i}`, "\0".repeat(120_000)]));
  assert.equal(Object.keys(JSON.parse(line("json", "m", worst)) as object).length, 15);
  const many = Object.fromEntries(Array.from({ length: 100_000 }, (_, i) => [`key${i}`, i]));
  assert.ok(line("json", "many fields", many).includes('"message":"many fields"}'));
});

/** A target that does what the test says, one write at a time. */
class Script implements Target {
  readonly lines: string[] = [];
  closed = false;
  /** The next writes: how many bytes pass at most, or an error. */
  readonly plan: (number | string)[] = [];
  /** null: answers by itself. Otherwise keeps the answers back until they are asked for. */
  held: (() => void)[] | null = null;
  #text = "";

  write(bytes: Uint8Array, at: number, done: (error: string | null, written: number) => void): void {
    assert.ok(!this.closed, "written to after it was closed");
    const step = this.plan.shift() ?? Number.POSITIVE_INFINITY;
    const answer = (): void => {
      if (typeof step === "string") return done(step, 0);
      const length = Math.min(step, bytes.length - at);
      this.#text += Buffer.from(bytes.subarray(at, at + length)).toString();
      const whole = this.#text.split("\n");
      this.#text = whole.pop()!;
      this.lines.push(...whole.map((text) => text.replace(/^\S+ h t /, "")));
      done(null, length);
    };
    if (this.held !== null) this.held.push(answer);
    else setImmediate(answer);
  }

  get rest(): string {
    return this.#text;
  }

  close(): void {
    this.closed = true;
  }
}

interface Rig {
  log: Log;
  /** In the order in which they were opened. */
  readonly opened: Script[];
  readonly clock: { now: number };
  next: Script | NodeJS.ErrnoException;
}

function rig(options: Partial<LogOptions> = {}): Rig {
  const opened: Script[] = [];
  const clock = { now: 0 };
  const targets: Targets = {
    open: () => {
      if (!(self.next instanceof Script)) throw self.next;
      opened.push(self.next);
      return self.next;
    },
  };
  const self = { opened, clock, next: new Script() } as Rig;
  const log = new Log(
    { topic: "t", hostname: "h", level: "info", format: "plain", filename: "f", ...options },
    { targets, monotonic: () => clock.now },
  );
  return Object.assign(self, { log });
}

const numbers = (count: number, from = 0): string[] => Array.from({ length: count }, (_, i) => `info: "m" n=${i + from}`);
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(() => setImmediate(resolve)));

test("levels", async () => {
  const { log, opened } = rig({ level: "warning" });
  assert.deepEqual(["critical", "error", "warning", "info", "debug"].map((level) => log.enabled(level as LogLevel)), [true, true, true, false, false]);
  log.critical("a");
  log.error("b", { x: 1 });
  log.warning("c");
  log.info("d");
  log.debug("e");
  await log.close();
  log.critical("after the end");
  const all = rig();
  await all.log.close();
  all.log.info("after the end");
  await turn();
  assert.deepEqual(all.opened[0]!.lines, []);
  assert.deepEqual(opened[0]!.lines, ['critical: "a"', 'error: "b" x=1', 'warning: "c"']);
  assert.ok(opened[0]!.closed);
});

test("the lines of a turn are one write, and `at` is the time of the event", async () => {
  const { log, opened } = rig();
  opened[0]!.held = [];
  for (let n = 0; n < 100; n++) log.info("m", { n }, AT);
  await turn();
  assert.equal(opened[0]!.held.length, 1);
  opened[0]!.held.splice(0).forEach((answer) => answer());
  assert.deepEqual(opened[0]!.lines, numbers(100));
  await log.close();
});

test("lines arrive whole and in order, however little a write takes", async () => {
  const step = fc.oneof({ weight: 8, arbitrary: fc.integer({ min: 1, max: 200 }) }, { weight: 1, arbitrary: fc.constant("EINTR") });
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 60 }), fc.array(fc.integer({ min: 0, max: 5 }), { maxLength: 20 }), async (plan, bursts) => {
      const { log, opened } = rig();
      opened[0]!.plan.push(...plan);
      let n = 0;
      for (const burst of bursts) {
        for (let i = 0; i < burst; i++) log.info("m", { n: n++ });
        await turn();
      }
      await log.close();
      assert.deepEqual(opened[0]!.lines, numbers(n));
    }),
    { numRuns: 200 },
  );
});

test("EAGAIN is tried again later, without loss", async () => {
  const { log, opened } = rig();
  opened[0]!.plan.push(5, "EAGAIN", "EAGAIN", 7, "EAGAIN");
  log.info("m", { n: 0 });
  log.info("m", { n: 1 });
  await log.close();
  assert.deepEqual(opened[0]!.lines, numbers(2));
});

test("EAGAIN: the time to the next attempt grows from 10 ms to 100 ms, and starts anew", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const { log, opened } = rig();
  const { plan } = opened[0]!;
  for (let round = 0; round < 2; round++) {
    plan.push("EAGAIN", "EAGAIN", "EAGAIN", "EAGAIN", "EAGAIN", "EAGAIN");
    log.info("m");
    await turn();
    for (const ms of [10, 20, 40, 80, 100, 100]) {
      const left = plan.length;
      t.mock.timers.tick(ms - 1);
      await turn();
      assert.equal(plan.length, left);
      t.mock.timers.tick(1);
      await turn();
      assert.equal(plan.length, Math.max(0, left - 1));
    }
    assert.equal(opened[0]!.lines.length, round + 1);
  }
});

test("a full disk ends nothing: lines wait, and the log says that they had to", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const { log, opened } = rig();
  opened[0]!.plan.push(40, "ENOSPC", "EIO");
  log.info("m", { n: 0 });
  for (let i = 0; i < 3; i++) {
    await turn();
    t.mock.timers.tick(1000);
  }
  await turn();
  log.info("m", { n: 1 });
  await log.close();
  assert.deepEqual(opened[0]!.lines, [numbers(1)[0], 'warning: "the log could not be written" attempts=2 error="EIO"', numbers(1, 1)[0]]);
});

test("a reader that has gone costs the lines that he was sent, no more", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const { log, opened } = rig();
  opened[0]!.plan.push("EPIPE");
  for (const message of ["a", "b"]) log.info(message);
  await turn();
  log.info("c");
  t.mock.timers.tick(1000);
  await turn();
  await log.close();
  assert.deepEqual(opened[0]!.lines, [
    'info: "c"', 'warning: "the log could not be written" attempts=1 error="EPIPE"', 'warning: "2 log lines were dropped" dropped=2',
  ]);
  assert.equal(log.dropped, 2);
});

test("each drop is told of once, and counted with all before it", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const { log, opened } = rig();
  for (const lost of [2, 3]) {
    opened[0]!.plan.push("EPIPE");
    for (let n = 0; n < lost; n++) log.info("lost");
    await turn();
    log.info("taken");
    t.mock.timers.tick(1000);
    await turn();
  }
  await log.close();
  assert.deepEqual(opened[0]!.lines.filter((line) => line.includes("dropped")), [
    'warning: "2 log lines were dropped" dropped=2', 'warning: "3 log lines were dropped" dropped=3',
  ]);
  assert.equal(log.dropped, 5);
});

test("a write of nothing is no reason to spin", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const { log, opened } = rig();
  opened[0]!.plan.push(0);
  log.info("m", { n: 0 });
  await turn();
  await turn();
  assert.deepEqual(opened[0]!.lines, []);
  t.mock.timers.tick(1000);
  await turn();
  assert.equal(opened[0]!.lines[0], numbers(1)[0]);
});

test("at most 4 MiB wait; what is beyond is dropped, counted, and told once", async () => {
  const { log, opened } = rig();
  const script = opened[0]!;
  script.held = [];
  const text = "x".repeat(1000);
  const count = 10_000;
  for (let n = 0; n < count; n++) log.info(text, { n });
  await turn();
  for (let n = 0; n < count; n++) log.info(text, { n });
  const held = script.held;
  script.held = null;
  held.forEach((answer) => answer());
  await turn();
  log.info("after");
  await log.close();
  const taken = script.lines.filter((line) => line.includes("xxx")).length;
  const told = script.lines.filter((line) => line.includes("dropped"));
  assert.ok(taken * 1000 < 4 * 1024 * 1024 && taken * 1100 > 4 * 1024 * 1024 * 0.95, `${taken} lines taken`);
  assert.deepEqual(told, [`warning: "${2 * count - taken} log lines were dropped" dropped=${2 * count - taken}`]);
  assert.equal(script.lines.at(-1), 'info: "after"');
  // Those that were taken are the first ones, without a gap.
  assert.ok(script.lines[taken - 1]!.endsWith(`n=${taken - 1}`));
});

test("after a drop lines are taken again only when there is room for many", async () => {
  const { log, opened } = rig();
  const script = opened[0]!;
  script.held = [];
  const text = "x".repeat(1000);
  for (let n = 0; n < 5000; n++) log.info(text, { n });
  // The queue drains 10 kB at a time; each time one more line comes.
  script.plan.push(...Array.from({ length: 300 }, () => 10_000));
  for (let i = 0; i < 300; i++) {
    await turn();
    script.held.splice(0).forEach((answer) => answer());
    log.info("late", { i });
  }
  const held = script.held;
  script.held = null;
  held.forEach((answer) => answer());
  await log.close();
  assert.equal(script.lines.filter((line) => line.includes("dropped")).length, 1);
  const told = script.lines.findIndex((line) => line.includes("dropped"));
  const [, first] = /"late" i=(\d+)/.exec(script.lines[told + 1]!)!;
  // Half of 4 MiB went out in the meantime.
  assert.ok(Number(first) >= 200 && Number(first) <= 220, first);
  assert.equal(script.lines.findIndex((line) => line.includes("late")), told + 1);
  assert.equal(script.lines.at(-1), 'info: "late" i=299');
});

test("more than 10 of a kind in 10 s are held back and counted, info never", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const { log, opened, clock } = rig();
  const pass = async (ms: number): Promise<string[]> => {
    clock.now += ms;
    t.mock.timers.tick(ms);
    await turn();
    return opened[0]!.lines.splice(0);
  };
  for (let n = 0; n < 25; n++) {
    log.error("dial failed", { n });
    log.warning("dial failed", { n }, undefined, "other");
    log.info("proxy ends", { n });
  }
  const first = await pass(9999);
  assert.equal(first.filter((line) => line.startsWith("info")).length, 25);
  assert.deepEqual(first.filter((line) => line.startsWith("error")), Array.from({ length: 10 }, (_, n) => `error: "dial failed" n=${n}`));
  assert.equal(first.filter((line) => line.startsWith("warning")).length, 10);
  assert.deepEqual(await pass(1), ['error: "dial failed" n=24 suppressed=15', 'warning: "dial failed" n=24 suppressed=15']);
  for (let n = 0; n < 10; n++) log.error("dial failed", { n });
  assert.equal((await pass(10_000)).length, 10);
  assert.deepEqual(await pass(60_000), []);
  // What is still held back at the end is told then.
  for (let n = 0; n < 12; n++) log.critical("x");
  await log.close();
  assert.equal(opened[0]!.lines.at(-1), 'critical: "x" suppressed=2');
});

test("a thousand limit keys are watched, more push out the oldest", async () => {
  const { log, opened } = rig();
  for (let n = 0; n < 11; n++) log.error("m", {}, undefined, "first");
  for (let key = 0; key < 1024; key++) log.error("m", {}, undefined, `key ${key}`);
  await turn();
  assert.equal(opened[0]!.lines.filter((line) => line === 'error: "m" suppressed=1').length, 1);
  await log.close();
});

test("reopen: lines in flight go to the old file, later ones to the new, none is lost", async () => {
  const r = rig();
  const old = r.opened[0]!;
  old.held = [];
  // The old file takes the batch in two parts, both after the new one was opened.
  old.plan.push(20);
  for (let n = 0; n < 3; n++) r.log.info("m", { n });
  await turn();
  r.log.info("m", { n: 3 });
  r.next = new Script();
  assert.equal(r.log.reopen(), null);
  for (let i = 0; i < 2; i++) old.held.splice(0).forEach((answer) => answer());
  await r.log.close();
  assert.deepEqual(old.lines, numbers(3));
  assert.deepEqual(r.next.lines, numbers(1, 3));
  assert.ok(old.closed && r.next.closed);
});

test("reopen twice while a write is in flight: what was never used is closed", async () => {
  const r = rig();
  r.opened[0]!.held = [];
  r.log.info("m", { n: 0 });
  await turn();
  for (let i = 0; i < 2; i++) {
    r.next = new Script();
    assert.equal(r.log.reopen(), null);
  }
  assert.deepEqual(r.opened.map(({ closed }) => closed), [false, true, false]);
  r.opened[0]!.held.splice(0).forEach((answer) => answer());
  r.log.info("m", { n: 1 });
  await r.log.close();
  assert.deepEqual(r.opened.map(({ lines }) => lines), [numbers(1), [], numbers(1, 1)]);
});

test("reopen while the old file takes nothing: its lines go to the new one, whole", async (t) => {
  const cases: [string, boolean, number][] = [
    ["ENOSPC", false, 1], ["EAGAIN", false, 1], ["ENOSPC", true, 1], ["EAGAIN", true, 1], ["EPIPE", true, 1], ["EAGAIN", false, 0],
  ];
  for (const [error, inFlight, whole] of cases) {
    t.mock.timers.enable({ apis: ["setTimeout"] });
    const r = rig();
    const old = r.opened[0]!;
    const lineBytes = "1970-01-01T00:00:00.000000Z h t \n".length + numbers(1)[0]!.length;
    // So many lines go out, and most of the next one; or nothing at all.
    if (whole > 0) old.plan.push(lineBytes * (whole + 1) - 3);
    old.plan.push(error);
    if (inFlight) old.held = [];
    for (let n = 0; n < 3; n++) r.log.info("m", { n });
    for (let i = 0; i < 4; i++) {
      await turn();
      // The first answer only.
      if (i === 0) old.held?.splice(0).forEach((answer) => answer());
    }
    r.next = new Script();
    assert.equal(r.log.reopen(), null);
    old.held?.splice(0).forEach((answer) => answer());
    await turn();
    await r.log.close();
    t.mock.timers.reset();
    assert.deepEqual(old.lines, numbers(whole), error);
    const moved = 3 - whole;
    assert.deepEqual(r.next.lines.slice(0, moved), numbers(moved, whole), error);
    const told = error === "ENOSPC" && !inFlight ? ['warning: "the log could not be written" attempts=1 error="ENOSPC"'] : [];
    assert.deepEqual(r.next.lines.slice(moved), told);
    assert.ok(old.closed && r.next.closed);
  }
});

const ENOENT = Object.assign(new Error("x"), { errno: -2, code: "ENOENT" });

test("a file that cannot be opened again leaves the old one in use", async () => {
  const r = rig();
  r.next = ENOENT;
  assert.equal(r.log.reopen(), "open f: no such file or directory");
  assert.equal(r.log.reconfigure({ level: "debug", format: "json", filename: "g" }), "open g: no such file or directory");
  assert.equal(r.log.enabled("debug"), false);
  r.log.info("still here");
  await r.log.close();
  assert.deepEqual(r.opened[0]!.lines, [
    'error: "failed to open the log file" error="open f: no such file or directory"',
    'error: "failed to open the log file" error="open g: no such file or directory"',
    'info: "still here"',
  ]);
});

test("reconfigure: level and format at once, another file only when it is another", async () => {
  const r = rig();
  r.log.info("one");
  assert.equal(r.log.reconfigure({ level: "debug", format: "logfmt", filename: "f" }), null);
  assert.equal(r.opened.length, 1);
  r.log.debug("two");
  await turn();
  r.next = new Script();
  assert.equal(r.log.reconfigure({ level: "debug", format: "logfmt", filename: "g" }), null);
  assert.ok(r.opened[0]!.closed);
  r.log.debug("three");
  await r.log.close();
  assert.equal(r.opened[0]!.lines[0], 'info: "one"');
  assert.match(r.opened[0]!.lines[1]!, /^topic=t .* message="two"$/);
  assert.match(r.opened[1]!.lines[0]!, /^topic=t .* message="three"$/);
});

test("standard error is not opened again for USR1", async () => {
  const r = rig({ filename: null });
  assert.equal(r.log.reopen(), null);
  assert.equal(r.opened.length, 1);
  await r.log.close();
});

test("close() waits 2 s for a reader, no longer", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const { log, opened } = rig();
  opened[0]!.held = [];
  log.info("m", { n: 0 });
  await turn();
  let done = false;
  const closing = log.close().then(() => {
    done = true;
  });
  assert.equal(log.close(), log.close());
  t.mock.timers.tick(1999);
  await turn();
  assert.equal(done, false);
  t.mock.timers.tick(1);
  await closing;
});

function directory(t: TestContext): string {
  const made = fs.mkdtempSync(path.join(os.tmpdir(), "transplice-log-"));
  t.after(() => fs.rmSync(made, { recursive: true }));
  return made;
}

test("a real file: appended to, its last line ended, rotated under load without loss", async (t) => {
  const name = path.join(directory(t), "a.log");
  fs.writeFileSync(name, "half a line");
  const umask = process.umask(0);
  t.after(() => process.umask(umask));
  const log = new Log({ topic: "t", level: "info", format: "plain", filename: name });
  const count = 19_500;
  const names = [name];
  for (let n = 0; n < count; n++) {
    log.info("m", { n });
    if (n % 2000 === 1999) {
      // With lines written, or with none; then with a write in flight, or without.
      if (n % 4000 === 1999) await new Promise((resolve) => setTimeout(resolve, 5));
      log.info("m", { n: ++n });
      if (n % 8000 === 2000) await new Promise((resolve) => setImmediate(resolve));
      names.push(`${name}.${n}`);
      fs.renameSync(name, names.at(-1)!);
      assert.equal(log.reopen(), null);
    }
  }
  await log.close();
  const files = [...names.slice(1), name].map((file) => fs.readFileSync(file, "utf8"));
  assert.match(files[0]!, /^half a line\n2.* n=0\n/);
  const found = files.join("").split("\n").flatMap((text) => /"m" n=(\d+)$/.exec(text)?.[1] ?? []);
  assert.deepEqual(found, Array.from({ length: count }, (_, n) => `${n}`));
  assert.equal(fs.statSync(name).mode & 0o777, 0o644);
});

test("a file that cannot be opened at the start: said, and standard error takes its place", async (t) => {
  const name = path.join(directory(t), "none", "a.log");
  const log = new Log({ topic: "t", level: "critical", format: "plain", filename: name });
  assert.equal(log.fault, `open ${name}: no such file or directory`);
  await log.close();
});

const CHILD = path.join(import.meta.dirname, "log-child.js");

interface Ran {
  readonly code: number | null;
  readonly heldUpMs: number;
  readonly closeMs: number;
}

/** Runs the child with so many lines to write to `stderr`. Node's "pipe" is a socket pair. */
function run(lines: number, stderr: number | "pipe", onStderr?: (text: string) => void): Promise<Ran> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [CHILD, `${lines}`], { stdio: ["ignore", "ignore", stderr, "pipe"], timeout: 4 * TOO_LATE_MS });
    let told = "";
    child.stdio[3]!.on("data", (data: Buffer) => {
      told += data.toString();
    });
    if (onStderr !== undefined) child.stderr!.on("data", (data: Buffer) => onStderr(data.toString()));
    child.on("error", reject);
    // Not "close": that waits for the stderr that is not read.
    child.on("exit", (code, signal) => {
      setImmediate(() => {
        if (told === "" || code === null) reject(new Error(`ended by ${signal ?? code} having said ${JSON.stringify(told)}`));
        else resolve({ code, ...(JSON.parse(told) as { heldUpMs: number; closeMs: number }) });
      });
    });
  });
}

/** A named pipe: the end to read from, and the end that a child gets. */
function fifo(t: TestContext): [number, number] {
  const name = path.join(directory(t), "fifo");
  execFileSync("mkfifo", [name]);
  return [fs.openSync(name, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK), fs.openSync(name, "w")];
}

const LINES = 60_000;
/** Who waits for the reader waits for ever. The deadline's very milliseconds are the business of a test above. */
const TOO_LATE_MS = 30_000;

// Each of these waits for a deadline of 2 s.
describe("the real thing", { concurrency: true }, () => {
  test("/dev/full: nothing ends, close() keeps its deadline", async () => {
    const log = new Log({ topic: "t", level: "info", format: "plain", filename: "/dev/full" });
    for (let n = 0; n < 1000; n++) log.info("m", { n });
    const before = performance.now();
    await log.close();
    const ms = performance.now() - before;
    assert.ok(ms > 1900 && ms < TOO_LATE_MS, `${ms} ms`);
  });

  test("a reader that does not read holds up neither the loop nor the exit: a pipe", async (t) => {
    const [reader, writer] = fifo(t);
    const { code, heldUpMs, closeMs } = await run(LINES, writer);
    fs.closeSync(writer);
    fs.closeSync(reader);
    assert.equal(code, 0);
    assert.ok(heldUpMs < TOO_LATE_MS, `held up for ${heldUpMs} ms`);
    assert.ok(closeMs > 1900 && closeMs < TOO_LATE_MS, `closed in ${closeMs} ms`);
  });

  test("a reader that does not read holds up neither the loop nor the exit: a socket", async () => {
    const { code, heldUpMs, closeMs } = await run(LINES, "pipe");
    assert.equal(code, 0);
    assert.ok(heldUpMs < TOO_LATE_MS, `held up for ${heldUpMs} ms`);
    assert.ok(closeMs > 1900 && closeMs < TOO_LATE_MS, `closed in ${closeMs} ms`);
  });

  test("a reader that has gone does not end the process", async (t) => {
    const [reader, writer] = fifo(t);
    const running = run(1000, writer);
    fs.closeSync(writer);
    fs.closeSync(reader);
    assert.equal((await running).code, 0);
  });

  test("a reader that reads gets every line: a socket, and a file as standard error", async (t) => {
    let text = "";
    assert.equal((await run(20_000, "pipe", (more) => { text += more; })).code, 0);
    while (!text.endsWith("i=19999\n")) await turn();
    const name = path.join(directory(t), "err");
    const file = fs.openSync(name, "w");
    assert.equal((await run(20_000, file)).code, 0);
    fs.closeSync(file);
    for (const found of [text, fs.readFileSync(name, "utf8")]) {
      assert.deepEqual(found.split("\n").flatMap((line) => / i=(\d+)$/.exec(line)?.[1] ?? []), Array.from({ length: 20_000 }, (_, i) => `${i}`));
    }
  });
});
