/** Quotas: nobody has more than he may, whoever shares the table, and nothing stays behind. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  hashOf, QUOTA_BYTES, type Quota, Quotas, TOO_FAST, TOO_MANY, UNCOUNTED,
} from "../../src/engine/quota.ts";

const ENTRIES = QUOTA_BYTES / 16;
const FREE: Quota = { most: null, perSecond: null };
const MANY: Quota = { most: 1_000_000, perSecond: null };
/** Any time: the table knows nothing of 1970. */
const NOW = 1_790_000_000_250;

/** As two workers have it. */
function makeTwo(): { words: Int32Array; one: Quotas; other: Quotas } {
  const shared = new SharedArrayBuffer(QUOTA_BYTES);
  return { words: new Int32Array(shared), one: new Quotas(shared), other: new Quotas(shared) };
}

/** How many places are taken, of all. */
function active(words: Int32Array): number {
  let sum = 0;
  for (let at = 1; at < words.length; at += 4) sum += words[at]!;
  return sum;
}

test("without a limit nobody is counted, and there is nothing to give back", () => {
  const { words, one } = makeTwo();
  assert.equal(one.enter(1, FREE, NOW), UNCOUNTED);
  one.leave(UNCOUNTED);
  assert.ok(words.every((word) => word === 0));
});

test("so many at a time, over all workers, and one more for each that leaves", () => {
  const { words, one, other } = makeTwo();
  const quota: Quota = { most: 2, perSecond: null };
  const first = one.enter(7, quota, NOW);
  assert.ok(first > 0 && other.enter(7, quota, NOW) > 0);
  assert.equal(one.enter(7, quota, NOW), TOO_MANY);
  assert.equal(other.enter(7, quota, NOW), TOO_MANY);
  assert.ok(one.enter(9, quota, NOW) > 0, "somebody else has his own");
  other.leave(first);
  assert.ok(one.enter(7, quota, NOW) > 0);
  assert.equal(one.enter(7, quota, NOW), TOO_MANY, "a refusal takes no place");
  assert.equal(active(words), 3);
});

test("so many begin in a second, also of those that are over, and none is taken by a refusal", () => {
  const { words, one, other } = makeTwo();
  const quota: Quota = { most: null, perSecond: 3 };
  for (const quotas of [one, other, one]) quotas.leave(quotas.enter(7, quota, NOW));
  assert.equal(one.enter(7, quota, NOW + 700), TOO_FAST);
  assert.equal(other.enter(7, quota, NOW + 700), TOO_FAST);
  assert.equal(active(words), 0);
  for (const quotas of [one, other, one]) assert.ok(quotas.enter(7, quota, NOW + 1000) > 0);
  assert.equal(other.enter(7, quota, NOW + 1000), TOO_FAST);
});

test("a rate below one is counted by the minute or the hour", () => {
  const { one } = makeTwo();
  const minute = Math.ceil(NOW / 60_000) * 60_000;
  const quota: Quota = { most: null, perSecond: 0.05 };
  for (let i = 0; i < 3; i++) assert.ok(one.enter(7, quota, minute + i * 15_000) > 0);
  assert.equal(one.enter(7, quota, minute + 59_999), TOO_FAST);
  assert.ok(one.enter(7, quota, minute + 60_000) > 0);
  const seldom: Quota = { most: null, perSecond: 1 / 3600 };
  assert.ok(one.enter(9, seldom, minute) > 0);
  assert.equal(one.enter(9, seldom, minute), TOO_FAST);
  assert.equal(one.enter(9, seldom, minute + 60_000), TOO_FAST);
});

test("who stays over many seconds is counted still, and stays where he is found", () => {
  const { words, one, other } = makeTwo();
  const quota: Quota = { most: 1, perSecond: 10 };
  const entry = one.enter(7, quota, NOW);
  // Its neighbours come and go, and take what nobody needs.
  for (let i = 0; i < 100; i++) other.leave(other.enter(7 + 2 * (i % 16), MANY, NOW + i * 5000));
  assert.equal(other.enter(7, quota, NOW + 600_000), TOO_MANY);
  one.leave(entry);
  assert.ok(other.enter(7, quota, NOW + 600_000) > 0);
  assert.equal(active(words), 1);
});

test("where all entries near a hash are taken, nobody is counted and nobody refused", () => {
  const { words, one } = makeTwo();
  const quota: Quota = { most: 1, perSecond: 1 };
  const near = (i: number) => (2 * (100 + ENTRIES * i)) | 1;
  const entries = Array.from({ length: 16 }, (_, i) => one.enter(near(i), quota, NOW));
  assert.ok(entries.every((entry) => entry > 0) && new Set(entries).size === 16);
  assert.equal(one.enter(near(16), quota, NOW), UNCOUNTED);
  assert.equal(one.enter(near(16), quota, NOW), UNCOUNTED);
  assert.equal(one.enter(near(3), quota, NOW), TOO_MANY, "those that are there are found");
  // One leaves; his entry is another's when its time is over.
  one.leave(entries[5]!);
  assert.equal(one.enter(near(16), quota, NOW + 100), UNCOUNTED, "what began in this second counts");
  assert.equal(one.enter(near(16), quota, NOW + 5000), entries[5]);
  assert.equal(one.enter(near(16), quota, NOW + 5000), TOO_MANY);
  assert.equal(active(words), 16);
});

test("the last entries go on at the first", () => {
  const { one } = makeTwo();
  const last = ((2 * (ENTRIES - 1)) | 1);
  const entries = [last, last + 2 * ENTRIES, last + 4 * ENTRIES].map((hash) => one.enter(hash, MANY, NOW));
  assert.deepEqual(entries, [ENTRIES, 1, 2]);
});

test("a taken-over entry begins at zero", () => {
  const { one } = makeTwo();
  const quota: Quota = { most: null, perSecond: 1 };
  const [mine, theirs] = [201, 201 + 2 * ENTRIES];
  one.leave(one.enter(mine, quota, NOW));
  assert.equal(one.enter(mine, quota, NOW), TOO_FAST);
  // Two seconds later its window is old; in the same second the new owner has what is his.
  assert.ok(one.enter(theirs, quota, NOW + 3000) > 0);
  assert.equal(one.enter(theirs, quota, NOW + 3000), TOO_FAST);
});

test("hashes of negative sign are as good as others", () => {
  const { words, one } = makeTwo();
  for (const hash of [-1, -0x80000000, -12_345, 0x7fffffff]) one.leave(one.enter(hash, MANY, NOW));
  assert.equal(active(words), 0);
});

test("the bytes, their order and the kind make the hash, and nothing beside them does", () => {
  const bytes = Uint8Array.of(9, 10, 1, 0, 2, 9);
  assert.equal(hashOf(1, bytes, 1, 4), hashOf(1, Uint8Array.of(10, 1, 0, 2), 0, 4));
  assert.notEqual(hashOf(1, bytes, 1, 4), hashOf(2, bytes, 1, 4));
  assert.notEqual(hashOf(1, Uint8Array.of(1, 2), 0, 2), hashOf(1, Uint8Array.of(2, 1), 0, 2));
  const all = new Set<number>();
  for (let i = 0; i < 10_000; i++) all.add(hashOf(1, Uint8Array.of(10, 0, i >> 8, i & 255), 0, 4) | 1);
  assert.ok(all.size > 9990, `${all.size} of 10000 neighbours`);
});

test("property: whoever comes and goes, through whichever worker, the table agrees with a list", () => {
  const step = fc.record({
    who: fc.nat(7), worker: fc.nat(1), leaves: fc.boolean(), ms: fc.constantFrom(0, 0, 0, 1, 300, 1000, 5000),
  });
  const quota = fc.record({
    most: fc.option(fc.integer({ min: 1, max: 3 })), perSecond: fc.option(fc.constantFrom(3 / 3600, 0.05, 1, 1.5, 2, 4)),
  });
  // The table is large: one for all runs, each far behind the one before.
  const { words, one, other } = makeTwo();
  let wallMs = NOW;
  fc.assert(
    fc.property(quota, fc.array(step, { maxLength: 60 }), (limits, steps) => {
      wallMs += 10_000_000;
      const { perSecond } = limits;
      const most = limits.most ?? Infinity;
      const seconds = perSecond === 0.05 || perSecond === 1.5 ? 60 : (perSecond ?? 1) < 1 ? 3600 : 1;
      const windowMs = 1000 * seconds;
      const rate = perSecond === null ? Infinity : Math.round(perSecond * seconds);
      const held = new Map<number, number[]>();
      const began = new Map<string, number>();
      for (const { who, worker, leaves, ms } of steps) {
        wallMs += ms;
        const quotas = worker === 0 ? one : other;
        const mine = held.get(who) ?? [];
        if (leaves) {
          quotas.leave(mine.pop() ?? UNCOUNTED);
          continue;
        }
        const window = `${who} ${Math.floor(wallMs / windowMs)}`;
        const entry = quotas.enter(2 * 1000 * who + 1, limits, wallMs);
        const starts = began.get(window) ?? 0;
        if (most === Infinity && rate === Infinity) assert.equal(entry, UNCOUNTED);
        else if (mine.length >= most) assert.equal(entry, TOO_MANY);
        else if (starts >= rate) assert.equal(entry, TOO_FAST);
        else {
          assert.ok(entry > 0, `${entry}`);
          held.set(who, [...mine, entry]);
          began.set(window, starts + 1);
        }
      }
      assert.equal(active(words), [...held.values()].flat().length);
      for (const entry of [...held.values()].flat()) one.leave(entry);
      assert.equal(active(words), 0);
    }),
  );
});
