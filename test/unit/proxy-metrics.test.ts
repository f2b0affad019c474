/** Metrics of the data plane: what falls into which bucket, and who is to blame for which end. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { ProxyMetrics, type ProxyNumbers, resultOf, RESULTS } from "../../src/control/admin/proxy-metrics.ts";
import { countersBytes, countersRow, endingAt } from "../../src/engine/counters.ts";
import { REASONS } from "../../src/engine/ending.ts";
import { observe } from "../../src/engine/histogram.ts";
import { meterAt, metersBytes, metersRow } from "../../src/engine/meters.ts";

interface Sample {
  readonly labels: Readonly<Record<string, string>>;
  readonly metricName?: string;
  readonly value: number;
}

function samples(numbers: Partial<ProxyNumbers>, name: string): Sample[] {
  const all: ProxyNumbers = {
    counters: countersRow(new SharedArrayBuffer(countersBytes(1)), 0), meters: metersRow(new SharedArrayBuffer(metersBytes(1)), 0),
    workers: [], cpuSeconds: [], replacements: 0, logDropped: 0, tunnelsMax: 0, upstreams: [], backlogs: [], fds: { open: 0, limit: 0 }, residentBytes: 0,
    ready: true, version: "0", ...numbers,
  };
  const metrics = new ProxyMetrics(() => all);
  metrics.read();
  const family = metrics.families(String).find((each) => each.name === name);
  assert.ok(family, name);
  const values: number[] = [];
  family.put(values);
  const lines = family.lines();
  assert.equal(values.length, lines.length);
  return lines.map((line, i) => ({ ...line, value: values[i]! }));
}

test("a splice lies in the bucket whose bound it does not exceed, a full pipe of 1 MiB too", () => {
  const meters = metersRow(new SharedArrayBuffer(metersBytes(1)), 0);
  for (const bytes of [1, 4095, 4096, 65_535, 2 ** 20 - 1, 2 ** 20, 2 ** 26]) observe(meters, meterAt("splice"), bytes);
  const found = samples({ meters }, "transplice_splice_bytes");
  const below = Object.fromEntries(found.filter(({ labels }) => labels["le"] !== undefined).map(({ labels, value }) => [labels["le"], value]));
  assert.deepEqual(below, { 4095: 2, 16383: 3, 65535: 4, 262143: 4, 1048575: 5, 4194303: 6, 16777215: 6, "+Inf": 7 });
  const named = (name: string): number | undefined => found.find(({ metricName }) => metricName === `transplice_splice_bytes_${name}`)?.value;
  assert.equal(named("count"), 7);
  assert.equal(named("sum"), 1 + 4095 + 4096 + 65_535 + 2 ** 20 - 1 + 2 ** 20 + 2 ** 26);
});

test("times are seconds, whatever they were measured in", () => {
  const meters = metersRow(new SharedArrayBuffer(metersBytes(1)), 0);
  observe(meters, meterAt("dial"), 1500); // µs
  observe(meters, meterAt("duration"), 1500); // ms
  for (const [name, bound, before] of [["transplice_dial_seconds", "0.002048", "0.001024"], ["transplice_connection_duration_seconds", "4.096", "1.024"]] as const) {
    const found = samples({ meters }, name);
    const at = (le: string): number | undefined => found.find(({ labels }) => labels["le"] === le)?.value;
    assert.deepEqual([at(before), at(bound)], [0, 1], name);
  }
  const sum = samples({ meters }, "transplice_dial_seconds").find(({ metricName }) => metricName?.endsWith("_sum"));
  assert.equal(sum?.value, 0.0015);
});

test("each reason has one result, and results add up to reasons", () => {
  const counters = countersRow(new SharedArrayBuffer(countersBytes(1)), 0);
  for (const [i, reason] of REASONS.entries()) counters[endingAt(reason)] = i + 1;
  const ended = samples({ counters }, "transplice_connections_ended_total");
  const total = (values: Sample[]): number => values.reduce((sum, { value }) => sum + value, 0);
  assert.deepEqual(ended.map(({ labels }) => labels["reason"]), [...REASONS]);
  assert.equal(total(ended), (REASONS.length * (REASONS.length + 1)) / 2);
  assert.equal(total(samples({ counters }, "transplice_connections_total")), total(ended));
  assert.deepEqual(new Set(REASONS.map(resultOf)), new Set(RESULTS));
});
