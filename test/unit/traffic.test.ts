/** The lines of `transplice up`. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { type Traffic, trafficLine } from "../../src/control/traffic.ts";

const NOTHING: Traffic = { connections: 0, active: 0, bytesIn: 0, bytesOut: 0, failed: 0 };

test("rates are per second, in the largest unit that keeps a digit before the point", () => {
  const line = (bytesIn: number, bytesOut: number, seconds = 1): string =>
    trafficLine(NOTHING, { connections: 12, active: 3, bytesIn, bytesOut, failed: 1 }, seconds);
  assert.equal(line(0, 999), "connections 12  active 3  in      0 B/s  out    999 B/s  failed 1");
  assert.equal(line(1000, 1_250_000), "connections 12  active 3  in   1.0 kB/s  out   1.3 MB/s  failed 1");
  assert.equal(line(999_949, 999_950), "connections 12  active 3  in 999.9 kB/s  out   1.0 MB/s  failed 1");
  assert.equal(line(4e12, 2000, 2), "connections 12  active 3  in 2000.0 GB/s  out   1.0 kB/s  failed 1");
});

test("a counter that goes back, as a dead worker's may, is no traffic", () => {
  const before = { ...NOTHING, bytesIn: 5000 };
  assert.match(trafficLine(before, NOTHING, 1), /in +0 B\/s/);
});
