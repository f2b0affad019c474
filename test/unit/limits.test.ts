/** What so many file descriptors carry. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { budget, checked, DEFAULTS, FDS_MAX } from "../../src/engine/limits.ts";

test("64 files carry something, a billion no more than the tables do", () => {
  const small = budget(64, 35, 48)!;
  assert.ok(small.tunnels >= 5, JSON.stringify(small));
  const large = budget(1_000_000_000, 35, 48)!;
  assert.ok(large.tunnels <= FDS_MAX / 2);
  assert.equal(large.pipes, 48);
  assert.equal(budget(30, 30, 48), null);
});

test("property: tunnels, pipes and what is open never exceed the limit", () => {
  fc.assert(
    fc.property(fc.nat(2_000_000), fc.nat(200), fc.nat(1000), (nofile, used, wanted) => {
      const plan = budget(nofile, used, wanted);
      if (plan === null) return;
      assert.ok(plan.tunnels >= 1);
      assert.ok(used + plan.tunnels * 2 + plan.pipes * 2 <= Math.min(nofile, FDS_MAX));
    }),
  );
});

test("limits that contradict each other are an assertion", () => {
  assert.equal(checked(DEFAULTS), DEFAULTS);
  assert.throws(() => checked({ ...DEFAULTS, chunkBytes: DEFAULTS.bufferBytes + 1 }), /one buffer/);
  assert.throws(() => checked({ ...DEFAULTS, tunnels: 0 }), /at least one/);
});
