/** The manual pages: no reader of them complains, and what they show as an example is a valid file. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { parseConfig } from "../../src/config/parse.ts";

const FOLDER = new URL("../../../man/", import.meta.url);
const PAGES = readdirSync(FOLDER).map((name) => new URL(name, FOLDER).pathname);

for (const [program, debian, ...flags] of [
  ["mandoc", "mandoc", "-Tlint", "-Wwarning"],
  ["groff", "groff-base", "-mdoc", "-Tutf8", "-ww", "-z"],
] as const) {
  const missing = spawnSync(program, ["--version"]).error === undefined ? false : `${program} is not installed: apt install ${debian}`;
  test(`${program} has nothing to say against the manual`, { skip: missing }, () => {
    for (const page of PAGES) {
      const { status, stdout, stderr } = spawnSync(program, [...flags, page], { encoding: "utf8" });
      assert.equal(`${status} ${stdout}${stderr}`, "0 ", page);
    }
  });
}

test("the manual's examples of a file are valid, and raise no warning", () => {
  const page = readFileSync(new URL("transplice.toml.5", FOLDER), "utf8");
  const blocks = [...page.matchAll(/^\.Bd -literal.*\n([\s\S]*?)^\.Ed/gm)].map(([, block]) => block!);
  assert.ok(blocks.length > 1);
  for (const block of blocks) {
    const parsed = parseConfig(block, "the example", []);
    assert.deepEqual("problems" in parsed ? parsed.problems : parsed.warnings, [], block);
  }
});
