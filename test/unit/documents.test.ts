/** What the pages show works: each file of TOML on them is a configuration, and the names of metrics are real. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { parseConfig } from "../../src/config/parse.ts";

const ROOT = new URL("../../../", import.meta.url);
const pages = ["README.md", ...readdirSync(new URL("docs/", ROOT)).filter((name) => name.endsWith(".md")).map((name) => `docs/${name}`)];
const read = (file: string): string => readFileSync(new URL(file, ROOT), "utf8");

for (const page of pages) {
  for (const [i, [, toml]] of [...read(page).matchAll(/^```toml\n([\s\S]*?)^```$/gm)].entries()) {
    test(`${page}: file ${i + 1} is a configuration, and nothing is to be said against it`, () => {
      const parsed = parseConfig(toml!, page);
      assert.ok("config" in parsed, JSON.stringify(parsed));
      assert.deepEqual(parsed.warnings, []);
    });
  }
}

test("docs/egress.md names every metric of the egress, and no other", () => {
  const metric = /\b(?:usocksd|transplice_(?:egress|denied|names))_\w+/g;
  const folder = "src/control/";
  const files = readdirSync(new URL(folder, ROOT), { recursive: true, encoding: "utf8" }).filter((file) => file.endsWith(".ts"));
  const source = files.map((file) => read(folder + file)).join("\n");
  const real = [...source.matchAll(/"(\w+)"/g)].flatMap(([, name]) => name!.match(metric) ?? []);
  const said = read("docs/egress.md").match(metric) ?? [];
  assert.deepEqual([...new Set(said)].sort(), [...new Set(real)].sort());
});
