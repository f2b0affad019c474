import assert from "node:assert/strict";
import { test } from "node:test";
import type { MeasureName, Numbers } from "../../bench/measures.ts";
import { type Results, resultsFile } from "../../bench/report.ts";
import type { SubjectName } from "../../bench/subjects.ts";

/** The line of the page that begins with the target, in its cells. */
function lineOf(target: string, measured: Partial<Record<MeasureName, Partial<Record<SubjectName, number[]>>>>): string[] {
  const results: Results = new Map(Object.entries(measured).map(([measure, rows]) => [
    measure as MeasureName,
    new Map(Object.entries(rows).map(([subject, reps]) => [
      subject as SubjectName, reps.map((cpuPerGb): Numbers => ({ cpuPerGb })),
    ])),
  ]));
  const { markdown } = resultsFile({
    results, reps: 1, seconds: 1, leftOut: [], others: [0], node: process.execPath, command: "a test",
  });
  const line = markdown.split("\n").find((each) => each.startsWith(`| ${target}`));
  assert(line !== undefined, `no line of the page begins with: ${target}`);
  return line.split("|").slice(2, -1).map((cell) => cell.trim());
}

const DOWN = "bulk down: CPU per GB against";

test("a target that the limit misses, too, is told from one that is missed by us alone", () => {
  const limit = [1, 2];
  assert.deepEqual(
    lineOf(`${DOWN} transocks`, { "down-4": { limit, transplice: [0.9, 2], transocks: [1, 2] } }),
    ["0.95 (0.90-1.00)", "1.00 (1.00-1.00)", "MISSED, by the limit too"],
  );
  assert.deepEqual(
    lineOf(`${DOWN} redsocks`, { "down-4": { limit, transplice: [1.4, 2.8], redsocks: [2, 4] } }),
    ["0.70 (0.70-0.70)", "0.50 (0.50-0.50)", "MISSED"],
  );
  assert.deepEqual(
    lineOf(`${DOWN} redsocks`, { "down-4": { limit, transplice: [0.8, 1.6], redsocks: [2, 4] } }),
    ["0.40 (0.40-0.40)", "0.50 (0.50-0.50)", "met"],
  );
});

test("a target that nobody could measure, or no limit, says so", () => {
  assert.deepEqual(
    lineOf(`${DOWN} transocks`, { "down-4": { transplice: [1], transocks: [1] } }),
    ["1.00 (1.00-1.00)", "-", "MISSED"],
  );
  assert.deepEqual(lineOf(`${DOWN} transocks`, { "down-4": { transplice: [1] } }), ["not measured", "-", "-"]);
  assert.deepEqual(
    lineOf(`${DOWN} limit`, { "down-4": { limit: [1], transplice: [1.2] } }), ["1.20 (1.20-1.20)", "-", "MISSED"],
  );
});

test("a chain is held against two limits, one behind the other", () => {
  const chain = { "transplice-chain": [0.9], "transocks+usocksd": [1] };
  assert.deepEqual(
    lineOf(`chain, ${DOWN}`, { "down-4": { limit: [0.45] }, "chain-down-4": chain }),
    ["0.90 (0.90-0.90)", "0.90 (0.90-0.90)", "MISSED, by the limit too"],
  );
  assert.deepEqual(
    lineOf(`chain, ${DOWN}`, { "down-4": { limit: [0.2] }, "chain-down-4": chain }),
    ["0.90 (0.90-0.90)", "0.40 (0.40-0.40)", "MISSED"],
  );
});
