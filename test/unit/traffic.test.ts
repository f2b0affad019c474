/** The lines of `transplice up`. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
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

test("in a file, lines stand beside what others write there by the same description, as the log does with 2>&1", () => {
  const folder = mkdtempSync(`${tmpdir()}/traffic-`);
  try {
    const fd = openSync(`${folder}/out`, "w");
    const program = `
      import { writeSync } from "node:fs";
      const { writeTraffic } = await import(${JSON.stringify(new URL("../../src/control/traffic.js", import.meta.url).href)});
      const nothing = ${JSON.stringify(NOTHING)};
      const end = writeTraffic(() => nothing, () => {
        setImmediate(() => { end(); writeSync(2, "the log's\\n"); });
        return null;
      });`;
    const { status } = spawnSync(process.execPath, ["--input-type=module", "-e", program], { stdio: ["ignore", fd, fd] });
    closeSync(fd);
    assert.equal(status, 0);
    assert.match(readFileSync(`${folder}/out`, "utf8"), /^connections 0 .* failed 0\nthe log's\n$/);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
