/** A thread that writes tunnels into a table as fast as it can: each part says which life it is of. */
import { workerData } from "node:worker_threads";
import { linux } from "../../native-bindings/syscalls.ts";
import { CLIENT, DESTINATION, FRONT, OVER, RELAY, ROW_BYTES, Table } from "../../src/engine/table.ts";

export interface Memories {
  readonly rows: SharedArrayBuffer;
  readonly texts: SharedArrayBuffer;
  /** The reader has seen enough. */
  readonly done: SharedArrayBuffer;
}

const { rows, texts, done } = workerData as Memories;
const count = rows.byteLength / ROW_BYTES;
const table = new Table(linux(), rows, texts);
const { bytes } = table.memory;
const enough = new Int32Array(done);
for (let life = 1; Atomics.load(enough, 0) === 0; life++) {
  const row = (life % count) * ROW_BYTES;
  bytes.fill(life & 255, row + CLIENT, row + CLIENT + 28);
  table.begin(row, life, 5, life);
  table.enter(row, FRONT, life);
  table.changing(row);
  bytes.fill(life & 255, row + DESTINATION, row + DESTINATION + 28);
  table.setTexts(row, 5, String(life), `u${life}`);
  table.changed(row, FRONT);
  table.enter(row, RELAY, life);
  table.enter(row, OVER, life);
}
