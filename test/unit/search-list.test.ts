/** What a name without a dot may stand for. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { SearchList } from "../../src/control/names/search-list.ts";

test("the search list of resolv.conf, as it is today", () => {
  const folder = mkdtempSync(join(tmpdir(), "transplice-"));
  const file = join(folder, "resolv.conf");
  const list = new SearchList(file);
  assert.deepEqual(list.names("db"), ["db"], "no file");
  writeFileSync(file, "nameserver 127.0.0.1\ndomain old.example\nsearch Corp.example. lab.corp.example\t..bad a/b\n");
  assert.deepEqual(list.names("db"), ["db.corp.example", "db.lab.corp.example", "db"]);
  assert.deepEqual(list.names("db.example"), ["db.example"], "a dot: as it is");
  writeFileSync(file, "search a b c d e f g h\n# search z\n");
  assert.deepEqual(list.names("x"), ["x.a", "x.b", "x.c", "x.d", "x.e", "x.f", "x"]);
  rmSync(file);
  assert.deepEqual(list.names("x"), ["x"]);
  rmSync(folder, { recursive: true });
});
