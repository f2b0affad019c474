/** What is told to nft of destinations that fail: bounded, in batches, and for a time. */
import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import { socketAddress } from "../../src/config/endpoint.ts";
import { Learner, LEARNT_MAX } from "../../src/control/firewall/learner.ts";
import type { Log } from "../../src/control/log/log.ts";
import { ENDED, type JournalRecord, STARTED } from "../../src/engine/journal.ts";
import { Learnt } from "../../src/engine/learnt.ts";
import { type Cause, CAUSES } from "../../src/policy/cause.ts";

interface Stage {
  readonly learner: Learner;
  readonly learnt: Learnt;
  readonly batches: string[];
  readonly warnings: string[];
  /** Whether nft takes what it is told. */
  works: boolean;
  now: number;
  /** All timers that are due, one after the other. */
  pass(ms: number): Promise<void>;
}

function stage(t: TestContext): Stage {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const [batches, warnings]: [string[], string[]] = [[], []];
  const log = { warning: (message: string) => void warnings.push(message) } as unknown as Log;
  const it: Stage = {
    batches, warnings, works: true, now: 0,
    learner: new Learner({
      log, now: () => it.now,
      nft: async (commands) => {
        batches.push(commands);
        return { ok: it.works, out: "", said: "no such table" };
      },
    }),
    get learnt() {
      return new Learnt(it.learner.shared);
    },
    async pass(ms) {
      for (let step = 0; step < ms; step += 100) {
        it.now += 100;
        t.mock.timers.tick(100);
        for (let i = 0; i < 5; i++) await Promise.resolve();
      }
    },
  };
  it.learner.configure(5000);
  return it;
}

const sockaddr = (to: string, port = 80): Uint8Array => {
  const bytes = new Uint8Array(28);
  bytes.set(socketAddress(to, port)!.bytes);
  return bytes;
};

function record(kind: number, to: string, cause: Cause, version = 0): JournalRecord {
  const addresses = new Uint8Array(84);
  addresses.set(sockaddr(to), 28);
  return { kind, cause: CAUSES.indexOf(cause), addresses, version } as JournalRecord;
}

test("what has failed is told in one batch, with the chain of its cause, once", async (t) => {
  const it = stage(t);
  for (const [to, cause] of [
    ["192.0.2.1", "refused"], ["2001:db8::1", "net-unreachable"], ["192.0.2.2", "host-unreachable"],
    ["192.0.2.3", "not-allowed"], ["192.0.2.1", "refused"], ["192.0.2.4", "timeout"], ["192.0.2.5", "unknown"],
  ] as const) it.learner.hear(record(ENDED, to, cause));
  it.learner.hear(record(ENDED, "192.0.2.6", "refused", 5));
  assert.deepEqual(it.batches, [], "nobody waits for it");
  await it.pass(100);
  assert.deepEqual(it.batches, [
    "add element inet transplice learnt4 { 192.0.2.1 . 80 timeout 5000ms : goto learnt_refused }\n" +
      "add element inet transplice learnt6 { 2001:db8::1 . 80 timeout 5000ms : goto learnt_net_unreachable }\n" +
      "add element inet transplice learnt4 { 192.0.2.2 . 80 timeout 5000ms : goto learnt_host_unreachable }\n" +
      "add element inet transplice learnt4 { 192.0.2.3 . 80 timeout 5000ms : goto learnt_not_allowed }\n",
  ]);
  assert.ok(it.learnt.mayHave(sockaddr("192.0.2.1"), 0));
  assert.ok(!it.learnt.mayHave(sockaddr("192.0.2.4"), 0));
});

test("it is forgotten as its time is over, when it succeeds, and when the mode ends", async (t) => {
  const it = stage(t);
  const has = (to: string) => it.learnt.mayHave(sockaddr(to), 0);
  it.learner.hear(record(ENDED, "192.0.2.1", "refused"));
  it.learner.hear(record(ENDED, "192.0.2.2", "refused"));
  await it.pass(1000);
  it.learner.hear(record(STARTED, "192.0.2.1", "unknown"));
  it.learner.hear(record(STARTED, "192.0.2.9", "unknown"));
  assert.deepEqual([has("192.0.2.1"), has("192.0.2.2"), it.learner.size], [false, true, 1]);
  await it.pass(100);
  assert.equal(it.batches[1],
    "add element inet transplice learnt4 { 192.0.2.1 . 80 timeout 1s : goto learnt_refused }\n" +
    "delete element inet transplice learnt4 { 192.0.2.1 . 80 }\n");
  await it.pass(4000);
  it.learner.hear(record(ENDED, "192.0.2.3", "refused"));
  assert.deepEqual([has("192.0.2.2"), has("192.0.2.3"), it.learner.size], [false, true, 1]);
  it.learner.configure(null);
  assert.deepEqual([has("192.0.2.3"), it.learner.size], [false, 0]);
  it.learner.hear(record(ENDED, "192.0.2.4", "refused"));
  assert.equal(it.learner.size, 0);
});

test("what fails again, though the kernel was told, is told again for the time that is left", async (t) => {
  const it = stage(t);
  const fail = (cause: Cause) => it.learner.hear(record(ENDED, "192.0.2.1", cause));
  fail("refused");
  await it.pass(500);
  fail("refused");
  await it.pass(600);
  assert.equal(it.batches.length, 1, "those who were on their way");
  for (let i = 0; i < 10; i++) fail("host-unreachable");
  await it.pass(500);
  assert.deepEqual(it.batches.slice(1), ["add element inet transplice learnt4 { 192.0.2.1 . 80 timeout 3900ms : goto learnt_refused }\n"]);
  assert.equal(it.learner.size, 1);
});

test("it is bounded, and nft is never told more than a batch at a time, nor all the time", async (t) => {
  const it = stage(t);
  for (let i = 0; i < LEARNT_MAX + 1000; i++) it.learner.hear(record(ENDED, `10.1.${i >> 8}.${i & 255}`, "refused"));
  assert.equal(it.learner.size, LEARNT_MAX);
  await it.pass(1000);
  assert.equal(it.batches.length, 10);
  await it.pass(1000);
  assert.equal(it.batches.length, LEARNT_MAX / 256);
  for (const batch of it.batches) assert.ok(batch.split("\n").length <= 257);
});

test("where nft would not, that is said, and it is left in peace for a while", async (t) => {
  const it = stage(t);
  it.works = false;
  for (let i = 0; i < 1000; i++) it.learner.hear(record(ENDED, `10.1.${i >> 8}.${i & 255}`, "refused"));
  await it.pass(200);
  assert.deepEqual([it.batches.length, it.warnings.length], [1, 1]);
  for (let i = 0; i < 1000; i++) it.learner.hear(record(ENDED, `10.2.${i >> 8}.${i & 255}`, "refused"));
  await it.pass(4000);
  assert.equal(it.batches.length, 1);
  it.works = true;
  await it.pass(2000);
  assert.ok(it.batches.length > 1);
  assert.equal(it.warnings.length, 1);
});
