/** What the page and `transplice top` say is wrong, and how they write figures. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { pageFiles } from "../../src/control/admin/page.ts";
import { bytesText, countText, type Judged, perSecondText, plainText, secondsText, verdicts } from "../../src/control/admin/verdict.ts";

const WELL: Judged = {
  state: "serving",
  problems: [],
  listen: [{ address: "127.0.0.1:1081", waiting: 3, waiting_max: 4096 }],
  tunnels: { active: 100, max: 9000 },
  totals: { log_dropped: 0 },
  rates: { refused_per_second: 0 },
  endings: [
    { reason: "finished", result: "ok", meaning: "all well", last_minute: 1000 },
    { reason: "client-reset", result: "client", meaning: "the client", last_minute: 300 },
    { reason: "upstream-refused", result: "destination", meaning: "nobody is there", last_minute: 900 },
    { reason: "dial-failed", result: "upstream", meaning: "no address could be connected", last_minute: 9 },
  ],
  upstreams: [{ address: "203.0.113.5:1080", health: "ok", failures_last_minute: 0 }, { address: "203.0.113.6:1080", health: "unknown", failures_last_minute: 0 }],
  egress: [{ address: "192.0.2.21", health: "ok", usable: true }, { address: "192.0.2.22", health: "gone", usable: false }],
  workers: [{ worker: 0, state: "running", lag: { count: 1000, p50_seconds: 0.0001, p99_seconds: 0.002 }, pipes_lent: 3, pipes_max: 24 }],
  fds: { open: 100, limit: 20_000 },
};

const said = (change: Partial<Judged>): string[] => verdicts({ ...WELL, ...change }).map(({ level, text }) => `${level}: ${text}`);

test("when all is well, nothing is said: what clients and destinations do is an ordinary day", () => {
  assert.deepEqual(said({}), []);
  // One slow turn of a worker that has hardly anything to do.
  assert.deepEqual(said({ workers: [{ ...WELL.workers[0]!, lag: { count: 99, p50_seconds: 0.0001, p99_seconds: 0.3 } }] }), []);
});

test("each thing that is wrong is said, by its weight", () => {
  const [upstream, other] = WELL.upstreams as [Judged["upstreams"][0], Judged["upstreams"][0]];
  const [worker] = WELL.workers as [Judged["workers"][0]];
  const failing = { ...upstream, health: "failing", failures_last_minute: 1203 };
  const cases: [Partial<Judged>, string][] = [
    [{ problems: ["no upstream answers"] }, "broken: no upstream answers"],
    [{ problems: ["socks5://203.0.113.5:1080: most dials failed"], upstreams: [failing] }, "broken: socks5://203.0.113.5:1080: most dials failed"],
    [{ upstreams: [failing] }, "broken: upstream 203.0.113.5:1080 is failing: 1,203 failures in the last minute"],
    [{ upstreams: [failing, other] }, "risk: upstream 203.0.113.5:1080 is failing: 1,203 failures in the last minute"],
    [{ egress: [{ address: "192.0.2.21", health: "listed", usable: false }] }, "broken: egress address 192.0.2.21 is on a blocklist"],
    [{ egress: [{ address: "192.0.2.21", health: "failing", usable: false }, { address: "192.0.2.22", health: "ok", usable: true }] }, "risk: egress address 192.0.2.21 gets no answers"],
    [{ tunnels: { active: 8100, max: 9000 } }, "risk: 8,100 of at most 9,000 connections are in use"],
    [{ tunnels: { active: 9000, max: 9000 } }, "broken: all 9,000 connections are in use; new ones wait or are refused"],
    [{ listen: [{ address: ":1", waiting: 4000, waiting_max: 4096 }] }, "risk: 4,000 connections wait to be accepted on :1, of at most 4,096"],
    [{ fds: { open: 19_000, limit: 20_000 } }, "risk: 19,000 of 20,000 file descriptors are open"],
    [{ workers: [{ ...worker, state: "hangs" }] }, "broken: worker 0 hangs"],
    [{ workers: [{ ...worker, state: "down" }] }, "broken: worker 0 is down"],
    [{ workers: [{ ...worker, lag: { count: 100, p50_seconds: 0.0001, p99_seconds: 0.3 } }] }, "risk: worker 0 is slow: one turn in a hundred takes 300 ms or more"],
    [{ workers: [{ ...worker, lag: { count: 99, p50_seconds: 0.2, p99_seconds: 0.3 } }] }, "risk: worker 0 is slow: half of its turns take 200 ms or more"],
    [{ workers: [{ ...worker, pipes_lent: 24 }] }, "note: worker 0 has lent all 24 pipes: more bulk traffic is copied, at a higher price"],
    [{ totals: { log_dropped: 12_345 } }, "note: 12,345 lines of the log were dropped since the start"],
    [{ state: "draining" }, "note: this process is draining: it accepts nothing more"],
    [
      { endings: [...WELL.endings.slice(0, 3), { reason: "dial-failed", result: "upstream", meaning: "no address", last_minute: 200 }, { reason: "resources", result: "internal", meaning: "no memory", last_minute: 50 }] },
      "risk: 10 % of the connections of the last minute failed, most of them as dial-failed: no address",
    ],
  ];
  for (const [change, text] of cases) assert.deepEqual(said(change), [text]);
  const levels = verdicts({ ...WELL, state: "draining", problems: ["x"], upstreams: [failing, other] }).map(({ level }) => level);
  assert.deepEqual(levels, ["broken", "risk", "note"]);
});

test("figures are short, and lose no unit", () => {
  assert.deepEqual([0, 999, 1000, 1234, 9960, 45_600_000, 999_600, 1.2e18].map(bytesText), ["0 B", "999 B", "1.0 kB", "1.2 kB", "10 kB", "46 MB", "1.0 MB", "1200 PB"]);
  assert.deepEqual([0, 999, 1000, 1_234_567].map(countText), ["0", "999", "1,000", "1,234,567"]);
  assert.deepEqual([0, 0.04, 3.21, 9.96, 1234.5].map(perSecondText), ["0", "0.0", "3.2", "10", "1,235"]);
  assert.deepEqual([null, 0.000_08, 0.012, 0.9999, 1.5, 12, 180, 7440, 7200, 270_000].map(secondsText), ["–", "80 µs", "12 ms", "1.0 s", "1.5 s", "12 s", "3 min", "2 h 4 min", "2 h", "3 d 3 h"]);
});

test("what a client has said cannot turn a line round or move a cursor", () => {
  assert.equal(plainText("a\u202eb\u001b[2J\u0007\u2066"), "a\\u202eb\\u001b[2J\\u0007\\u2066");
  assert.equal(plainText("www.example.com:443 [2001:db8::1] müller"), "www.example.com:443 [2001:db8::1] müller");
});

test("the page has all that it asks for, and asks nobody else", () => {
  const files = pageFiles();
  const page = String(files.get("/")?.bytes);
  const asked = [...page.matchAll(/(?:src|href)="([^"]+)"/g)].map((match) => match[1]!).filter((url) => url !== "data:," && url !== "/metrics");
  asked.push(...[...String(files.get("/page.js")?.bytes).matchAll(/from "([^"]+)"/g)].map((match) => match[1]!));
  for (const url of asked) assert.ok(files.has(url), url);
  for (const { bytes } of files.values()) assert.doesNotMatch(String(bytes).replace("http://www.w3.org/2000/svg", "").replaceAll("http://www.w3.org/2000/svg", ""), /https?:\/\/|innerHTML|insertAdjacentHTML|document\.write|eval\(/);
  // A browser runs it as it is.
  assert.doesNotMatch(readFileSync(new URL("../../src/control/admin/verdict.js", import.meta.url), "utf8"), /^import /m);
  const ids = [...String(files.get("/page.js")?.bytes).matchAll(/\$\("([\w-]+)"\)/g)].map((match) => match[1]!);
  for (const id of ids) assert.ok(page.includes(`id="${id}"`), id);
});
