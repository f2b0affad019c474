/**
 * The rules of the house, as a table: who may import whom, and what the data plane may not do.
 */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, normalize, relative } from "node:path";
import { test } from "node:test";
import { documents } from "./documents.ts";

const ROOT = new URL("../..", import.meta.url).pathname;

/** The first row that fits a file says what it may import: folders or files, and packages. */
const DIRECTIONS: readonly { of: RegExp; may: readonly RegExp[] }[] = [
  { of: /^native-bindings\/syscalls\.ts$/, may: [/^koffi$/, /^native-bindings\//] },
  { of: /^native-bindings\//, may: [/^native-bindings\//] },
  { of: /^src\/protocol\//, may: [/^src\/protocol\//] },
  { of: /^src\/policy\//, may: [/^src\/policy\//] },
  // What a tunnel is begun with: the one place besides the session that names protocols.
  { of: /^src\/engine\/(session|front|route|egress|outgoing|syns|refuser)\.ts$/, may: [/^src\/(engine|protocol|policy)\//, /^native-bindings\//] },
  { of: /^src\/engine\/(engine|loops|trace|orphans)\.ts$/, may: [/^src\/engine\//, /^src\/policy\//, /^src\/protocol\/(handshake|report|socks-server|syn)\.ts$/, /^native-bindings\//] },
  { of: /^src\/engine\/ending\.ts$/, may: [/^src\/policy\/cause\.ts$/, /^src\/protocol\/report\.ts$/] },
  { of: /^src\/engine\//, may: [/^src\/engine\/(?!session|front|route|engine|egress\.|outgoing)/, /^native-bindings\//] },
  { of: /^src\/worker\.ts$/, may: [/^src\/engine\//, /^native-bindings\//, /^node:(worker_threads|url)$/] },
  { of: /^src\/config\//, may: [/^src\/config\//, /^src\/policy\//, /^src\/protocol\/handshake\.ts$/, /^native-bindings\/constants\.ts$/, /^node:/, /^(toml-eslint-parser|fastest-levenshtein|ipaddr\.js)$/] },
  { of: /^src\/(control\/|main\.ts$|cli\.ts$|predecessor\.ts$)/, may: [/^src\//, /^native-bindings\//, /^node:/, /^(commander|prom-client)$/] },
  { of: /^test\//, may: [/./] },
  { of: /^bench\//, may: [/^bench\//, /^src\//, /^native-bindings\//, /^test\/net\//, /^node:/, /^(tinybench|autocannon|koffi)$/] },
];

/** What a worker thread runs. */
const DATA_PLANE = /^(native-bindings|src\/(engine|protocol|policy)\/|src\/worker\.ts)/;

function sources(folder: string): string[] {
  return readdirSync(join(ROOT, folder), { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith(".ts"))
    .map((entry) => relative(ROOT, join(entry.parentPath, entry.name)));
}

const files = ["native-bindings", "src", "bench", "test"].flatMap(sources);
const read = (file: string): string => readFileSync(join(ROOT, file), "utf8");

/** The code without comments and strings: what is said is not what is done. */
function code(file: string): string {
  return read(file)
    .replace(/\/\*[\s\S]*?\*\//g, "")
    .replace(/^\s*\/\/.*$/gm, "")
    .replace(/"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\]|\\.)*`/g, '""');
}

test("imports go in the directions that the architecture allows", () => {
  for (const file of files) {
    const row = DIRECTIONS.find(({ of }) => of.test(file));
    assert.ok(row, `${file} stands in no row of the table`);
    for (const [, name] of read(file).matchAll(/^(?:import|export)\b[^;]*?from "([^"]+)"/gm)) {
      const target = name!.startsWith(".") ? normalize(join(dirname(file), name!)) : name!;
      assert.ok(row.may.some((allowed) => allowed.test(target)), `${file} may not import ${target}`);
    }
  }
});

test("the data plane runs to completion: no promise, no timer of Node's, no console", () => {
  for (const file of files.filter((name) => DATA_PLANE.test(name))) {
    const found = /\b(async|await|Promise|setTimeout|setInterval|setImmediate|console|process\.env)\b/.exec(code(file));
    assert.equal(found, null, `${file} says ${found?.[0]}`);
  }
});

test("only config and the command line may read the environment", () => {
  for (const file of files.filter((name) => name.startsWith("src/") && !/^src\/(config|cli)/.test(name))) {
    assert.doesNotMatch(code(file), /process\.env/, file);
  }
});

test("the guardian loads nothing of the data plane, and no package", () => {
  const loaded = new Set<string>();
  const load = (file: string): void => {
    if (loaded.has(file)) return;
    loaded.add(file);
    for (const [, name] of read(file).matchAll(/^import (?!type\b)[^;]*?from "([^"]+)"/gm)) {
      assert.match(name!, /^(\.|node:)/, file);
      if (name!.startsWith(".")) load(normalize(join(dirname(file), name!)));
    }
  };
  load("src/control/firewall/guardian.ts");
  assert.ok(loaded.has("src/control/firewall/kernel.ts"), "the walk has gone wrong");
  for (const file of loaded) assert.doesNotMatch(file, DATA_PLANE);
});

test("protocol and policy have no clock", () => {
  for (const file of files.filter((name) => /^src\/(protocol|policy)\//.test(name))) {
    assert.doesNotMatch(code(file), /\b(Date|performance|hrtime)\b/, file);
  }
});

test("every file says on top what it is", () => {
  for (const file of files) {
    if (!file.endsWith(".test.ts")) assert.match(read(file), /^(#!.*\n)?\/\*\*/, `${file} does not begin with a comment`);
  }
});

test("a file has a noun of its own", () => {
  for (const file of files) assert.doesNotMatch(file, /\/(index|utils?|types|helpers?|manager|misc|common)\.ts$/, file);
});

test("README.md, docs/ and man/ are up to date: otherwise, make documents", () => {
  for (const { file, text, filled } of documents()) assert.equal(text, filled, file);
});
