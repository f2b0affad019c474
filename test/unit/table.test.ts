/** The tunnel table: what a worker writes is what main reads, whole, at any moment. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Worker } from "node:worker_threads";
import { linux } from "../../native-bindings/syscalls.ts";
import {
  ACTIVE, CLIENT, clearTable, DESTINATION, DIAL, DIALLED_US, DOWN, FIRST_BYTE_US, OVER, RELAY, ROW_BYTES, rowsBytes,
  SHAKEN_US, SOURCE, STARTED, Table, TableReader, textsBytes, UP,
} from "../../src/engine/table.ts";
import type { Memories } from "./table-writer.ts";

const ENOUGH = 5_000;

const memories = (count: number): Memories => ({
  rows: new SharedArrayBuffer(rowsBytes(count)),
  texts: new SharedArrayBuffer(textsBytes(count)),
  done: new SharedArrayBuffer(4),
});

test("a reader never sees half of one tunnel and half of another", async () => {
  // One row: the sooner it is written again, the more often a copy is torn.
  const shared = memories(1);
  const reader = new TableReader(shared.rows, shared.texts);
  const worker = new Worker(new URL("table-writer.js", import.meta.url), { workerData: shared });
  const exited = new Promise((resolve, reject) => worker.once("exit", resolve).once("error", reject));
  let [seen, named] = [0, 0];
  try {
    while (seen < ENOUGH || named < ENOUGH) {
      for (let i = 0; i < 10_000; i++) {
        if (!reader.read(0)) continue;
        seen++;
        if (reader.name !== "") named++;
        assertWhole(reader);
      }
      await Promise.race([exited, new Promise(setImmediate)]); // The worker's failure is told so.
    }
  } finally {
    Atomics.store(new Int32Array(shared.done), 0, 1);
  }
  await exited;
});

/** All parts are of the same life. */
function assertWhole(reader: TableReader): void {
  const { id, bytes, name, user } = reader;
  const isOf = (at: number): boolean => bytes.subarray(at, at + 28).every((byte) => byte === (id & 255));
  assert.equal(reader.number(STARTED), id);
  assert(isOf(CLIENT), "another's client");
  if (name === "") return;
  assert.equal(name, String(id));
  assert.equal(user, `u${id}`);
  assert(isOf(DESTINATION), "another's destination");
}

test("a row says everything, and nothing of who had it before", () => {
  const { rows, texts } = memories(2);
  const table = new Table(linux(), rows, texts);
  const reader = new TableReader(rows, texts);
  const row = ROW_BYTES;
  assert.equal(reader.read(1), false);
  table.begin(row, 0xffff_fff0, 5, 17.25);
  assert.equal(reader.read(1), false, "not before it has a phase");
  table.enter(row, DIAL, 18.5);
  table.changing(row);
  assert.equal(reader.read(1), false, "not while it is being written");
  table.setTexts(row, 4, "n".repeat(200), "\u00e4\u4e2d");
  table.changed(row, DIAL);
  table.numbers[(row + UP) >> 3] = 2 ** 40;
  assert.equal(reader.read(1), true);
  assert.deepEqual(
    {
      id: reader.id, phase: reader.phase, version: reader.version, name: reader.name, user: reader.user,
      started: reader.number(STARTED), active: reader.number(ACTIVE), up: reader.number(UP), down: reader.number(DOWN),
      dialled: reader.micros(DIALLED_US), shaken: reader.micros(SHAKEN_US), first: reader.micros(FIRST_BYTE_US),
      upstream: reader.upstream, exit: reader.exit, row: reader.row, source: reader.bytes[SOURCE],
    },
    {
      id: 0xffff_fff0, phase: DIAL, version: 4, name: "n".repeat(79), user: "\u00e4?", started: 17.25, active: 17.25,
      up: 2 ** 40, down: 0, dialled: -1, shaken: -1, first: -1, upstream: -1, exit: -1, row, source: 0,
    },
  );
  table.enter(row, OVER, 20);
  table.begin(row, 2, 0, 21);
  table.enter(row, RELAY, 21);
  assert.equal(reader.read(1), true);
  assert.deepEqual([reader.name, reader.user, reader.number(UP)], ["", "", 0]);
  clearTable(rows);
  assert.equal(reader.read(1), false, "a dead worker's tunnels are over");
});
