/** A frame of `transplice top`: as wide and high as the terminal, whatever is in it. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { stripVTControlCharacters } from "node:util";
import { frame, lineOf, type Status } from "../../src/control/admin/top.ts";

const ended = (reason: string, result: string, count: number) => ({ reason, result, meaning: "so it was", last_minute: count, last_5_minutes: count, total: count });
const STATUS: Status = {
  version: "0.1.0", hostname: "dmz1", pid: 1, now: 1_760_000_000.5, uptime_seconds: 90_000, state: "serving", problems: [],
  listen: [], tunnels: { active: 7000, max: 9000 }, totals: { log_dropped: 0 },
  rates: { accepted_per_second: 140, refused_per_second: 0, failed_per_second: 0, bytes_up_per_second: 2.4e6, bytes_down_per_second: 34e6 },
  latency: { first_byte: { p50_seconds: 0.048, p99_seconds: 0.8 } },
  endings: Array.from({ length: 20 }, (_, i) => ended(`reason-${i}`, "ok", 20 - i)),
  upstreams: [{ address: "203.0.113.5:1080", health: "failing", failures_last_minute: 7, active: 3, dials_per_second: 2 }, { address: "203.0.113.6:1080", health: "ok", failures_last_minute: 0, active: 3, dials_per_second: 2 }],
  egress: [],
  destinations: Array.from({ length: 10 }, (_, i) => ({ destination: `198.51.100.${i}:443`, name: i === 0 ? "evil\u001b[2J\u202e\u4f60\u597d.example" : null, tunnels: 1, bytes_per_second: 1e6, bytes_down: 1e9, bytes_up: 1e3 })),
  slowest: [{ destination: "198.51.100.200:443", name: "a".repeat(300), client: "10.1.2.3:4", state: "dial", waited_seconds: 3 }],
  workers: [{ worker: 0, state: "running", lag: { count: 1000, p50_seconds: 0.0001, p99_seconds: 0.001 }, pipes_lent: 1, pipes_max: 24, tunnels: 7000, cpu_ratio: 0.2 }],
  fds: { open: 1, limit: 1000 },
};

const plain = stripVTControlCharacters;
const drawn = (columns: number, rows: number, more = {}): string[] =>
  frame({ status: STATUS, traffic: [1, 2, 3, 8], ageSeconds: 0, trouble: null, columns, rows, ...more });

test("no line is wider than the terminal, and there are no more than it has", () => {
  for (let columns = 1; columns <= 220; columns += 3) {
    for (const rows of [1, 2, 5, 10, 24, 60]) {
      const lines = drawn(columns, rows);
      assert.ok(lines.length <= rows, `${columns}x${rows}: ${lines.length} lines`);
      for (const line of lines) assert.ok([...plain(line)].length <= columns, `${columns}x${rows}: ${plain(line)}`);
    }
  }
});

test("what is wrong stands on top, and each part has its turn", () => {
  const lines = drawn(100, 50).map(plain);
  assert.match(lines[0]!, /^ transplice dmz1 {2}up 1 d 1 h +live 08:53:20Z $/);
  assert.match(lines[1]!, /^▲ upstream 203\.0\.113\.5:1080 is failing: 7 failures/);
  const text = lines.join("\n");
  assert.match(text, /down 34 MB\/s {2}up 2\.4 MB\/s {2}open 7,000 of 9,000 {2}new 140\/s/);
  for (const head of ["UPSTREAM", "ENDED AS", "DESTINATION", "SLOWEST", "WORKER"]) assert.ok(text.includes(head), head);
  assert.doesNotMatch(text, /LEAVES BY/, "what there is none of is left out");
  assert.match(text, /▁▂▃█|▂▃▄█/);
  assert.match(drawn(100, 50, { status: { ...STATUS, upstreams: [] } }).map(plain)[1]!, /^✓ All is well$/);
});

test("what clients say moves no cursor, and takes as much room as it seems", () => {
  const text = drawn(140, 50).join("\n");
  assert.match(plain(text), /evil\\u001b\[2J\\u202e\\u4f60\\u597d\.example/);
  // What is left without our own colours.
  assert.doesNotMatch(text.replaceAll("\n", "").replaceAll(/\p{Cc}\[[0-9;]*m/gu, ""), /[\p{Cc}\p{Cf}\p{Lo}]/u);
});

test("old figures are said to be old", () => {
  const well = { ...STATUS, upstreams: [], totals: { log_dropped: 1 } };
  const old = drawn(100, 20, { ageSeconds: 7.4, trouble: "nobody answers", status: well }).map(plain);
  assert.match(old[0]!, / not live: 7\.0 s old $/);
  assert.equal(old[1], "▲ not live: nobody answers");
  assert.doesNotMatch(old.join("\n"), /All is well/);
  const [, first, second] = drawn(100, 20, { ageSeconds: 7.4 }).map(plain);
  assert.equal(first, "▲ not live: nothing has come");
  assert.match(second!, /^▲ upstream 203\.0\.113\.5:1080 is failing/, "what was wrong then");
});

test("a narrow terminal loses no figure, and not whether it is live", () => {
  const narrow = drawn(60, 30).map(plain);
  const at = narrow.findIndex((line) => line.startsWith("down"));
  assert.deepEqual(narrow.slice(at, at + 2), [
    "down 34 MB/s  up 2.4 MB/s  open 7,000 of 9,000  new 140/s", "failed 0/s  first byte 48 ms 99 % 800 ms",
  ]);
  assert.match(plain(drawn(25, 9, { ageSeconds: 7.4 })[0]!), /^ tr.* not live: 7\.0 s old $/);
});

test("a line for a file is one line, and says the worst", () => {
  assert.equal(lineOf(STATUS), "2025-10-09T08:53:20.500Z down=34MB/s up=2.4MB/s open=7000/9000 new=140/s failed=0/s risk: upstream 203.0.113.5:1080 is failing: 7 failures in the last minute");
  assert.match(lineOf({ ...STATUS, upstreams: [] }), / well$/);
});
