/** Histograms: every value in a bucket of its own size, and what main makes of them. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  bucketOf, BUCKETS, HISTOGRAM_NUMBERS, leastOf, observe, VALUE_MAX,
} from "../../src/engine/histogram.ts";

test("each value falls into the one bucket that has it, none wider than an eighth of its least", () => {
  fc.assert(
    fc.property(fc.oneof(fc.nat(VALUE_MAX), fc.nat(4096)), (value) => {
      const bucket = bucketOf(value);
      assert(bucket >= 0 && bucket < BUCKETS);
      assert(leastOf(bucket) <= value && value < leastOf(bucket + 1), `${value} in bucket ${bucket}`);
      const width = leastOf(bucket + 1) - leastOf(bucket);
      assert(width === 1 || width <= leastOf(bucket) / 8, `bucket ${bucket} is ${width} wide`);
    }),
    { numRuns: 2000 },
  );
  assert.equal(bucketOf(0), 0);
  assert.equal(bucketOf(VALUE_MAX), BUCKETS - 1);
  assert.equal(leastOf(BUCKETS), 2 ** 31);
  for (let bucket = 0; bucket < BUCKETS; bucket++) assert.equal(bucketOf(leastOf(bucket)), bucket);
});

test("every power of two begins a bucket: bounds that a scrape shows cut none in two", () => {
  for (let power = 0; power < 31; power++) assert.equal(leastOf(bucketOf(2 ** power)), 2 ** power);
});

test("what is no value of it counts as its first or last", () => {
  const numbers = new Float64Array(2 + HISTOGRAM_NUMBERS);
  for (const value of [-1, -1e300, Number.NaN, 0.9]) observe(numbers, 2, value);
  for (const value of [2 ** 31, 1e300, Infinity]) observe(numbers, 2, value);
  assert.equal(numbers[2], 4);
  assert.equal(numbers[2 + BUCKETS - 1], 3);
  assert.equal(numbers[2 + BUCKETS], 3 * VALUE_MAX);
  assert.deepEqual([numbers[0], numbers[1]], [0, 0]);
});
