/** The survey of open connections: out of tables as workers write them, at times that the test says. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { linux } from "../../native-bindings/syscalls.ts";
import type { WorkerView } from "../../src/control/fleet.ts";
import { type Destination, Survey } from "../../src/control/admin/survey.ts";
import { Tunnels } from "../../src/control/admin/tunnels.ts";
import { CLOCK_ORIGIN, countersBytes, countersRow, ROWS_USED } from "../../src/engine/counters.ts";
import {
  clearTable, CLIENT, DESTINATION, DIAL, DIALLED_US, DOWN, FIRST_BYTE_US, FRONT, OVER, RELAY, ROW_BYTES, rowsBytes, SHAKEN_US, Table,
  TableReader, textsBytes, UP, UPSTREAM, UPSTREAM_SLOT,
} from "../../src/engine/table.ts";

const ROWS = 64;
/** When the workers' clocks stood at 0, in ms since the epoch. */
const ORIGIN = 1_700_000_000_000;

/** One worker's table, and what it writes there. Times are on its clock. */
class Rows {
  view: WorkerView;
  readonly #shared: SharedArrayBuffer;
  readonly #table: Table;
  #ids = 0;

  constructor(number: number, rows = ROWS) {
    const [shared, texts] = [new SharedArrayBuffer(rowsBytes(rows)), new SharedArrayBuffer(textsBytes(rows))];
    this.#shared = shared;
    this.#table = new Table(linux(), shared, texts);
    const counters = countersRow(new SharedArrayBuffer(countersBytes(1)), 0);
    counters[ROWS_USED] = rows;
    counters[CLOCK_ORIGIN] = ORIGIN;
    this.view = {
      number, incarnation: 1, state: "running", full: false, counters, meters: new Float64Array(0),
      table: new TableReader(shared, texts), limits: { tunnels: rows } as never,
    };
  }

  /** As main does with it. */
  diesAndIsReplaced(): void {
    clearTable(this.#shared);
    this.#ids = 0;
    this.view = { ...this.view, incarnation: this.view.incarnation + 1 };
  }

  /** Another connection from 192.0.2.ROW to 198.18.0.`to`, in the relay's phase; with a name by SOCKS. */
  opens(index: number, to: number, ms: number, name = ""): void {
    const row = index * ROW_BYTES;
    this.#table.memory.bytes.set([2, 0, 0, 80, 192, 0, 2, index & 255], row + CLIENT);
    this.#table.memory.bytes.set(to === 0 ? [0, 0] : [2, 0, 1, 187, 198, 18, to >> 8, to & 255], row + DESTINATION);
    this.#table.begin(row, ++this.#ids, name === "" ? 0 : 5, ms);
    if (name !== "") this.#table.setTexts(row, 5, name, "");
    this.enters(index, RELAY, ms);
  }

  enters(index: number, phase: number, ms: number): void {
    this.#table.enter(index * ROW_BYTES, phase, ms);
  }

  moves(index: number, up: number, down: number): void {
    this.#table.numbers[(index * ROW_BYTES + UP) >> 3]! += up;
    this.#table.numbers[(index * ROW_BYTES + DOWN) >> 3]! += down;
  }

  took(index: number, offset: number, us: number): void {
    this.#table.words[(index * ROW_BYTES + offset) >> 2] = us;
  }

  dials(index: number, slot: number): void {
    this.#table.halves[(index * ROW_BYTES + UPSTREAM_SLOT) >> 1] = slot;
  }

  changing(index: number): void {
    this.#table.changing(index * ROW_BYTES);
  }
}

/** Looks at these workers' tables when it is told to, on their clock. */
class World {
  workers: readonly Rows[];
  readonly #survey: Survey;
  #ms = 0;
  /** How often others could have had the CPU. */
  ways = 0;

  constructor(...workers: Rows[]) {
    this.workers = workers;
    const ids = { text: (incarnation: number, worker: number, id: number) => `${incarnation}.${worker}.${id}` } as never;
    const tunnels = new Tunnels({
      ids, workers: () => this.workers.map(({ view }) => view), upstreams: () => new Map(), exits: () => new Map(), mode: () => "redirect", makeWay: () => this.ways++,
    });
    this.#survey = new Survey({ tunnels, ids, upstreamNames: () => new Map([[3, "203.0.113.1:1080"]]), now: () => ORIGIN + this.#ms });
  }

  async at(ms: number): Promise<Survey> {
    this.#ms = ms;
    await this.#survey.take();
    return this.#survey;
  }

  /** By destination: connections, and bytes per second. */
  async rates(ms: number): Promise<Record<string, [tunnels: number, perSecond: number]>> {
    const { destinations } = await this.at(ms);
    return Object.fromEntries(destinations.map(({ destination, name, tunnels, bytes_per_second }) => [name ?? destination, [tunnels, bytes_per_second]]));
  }
}

test("each open connection is in one state", async () => {
  const [one, two] = [new Rows(0), new Rows(1)];
  const world = new World(one, two);
  for (let i = 0; i < 6; i++) one.opens(i, 1, 0);
  two.opens(63, 1, 0);
  one.enters(0, FRONT, 1);
  one.enters(1, DIAL, 1);
  one.enters(2, UPSTREAM, 1);
  one.enters(3, OVER, 1);
  one.changing(4);
  const none = { front: 0, dial: 0, upstream: 0, relay: 0, reset: 0, refused: 0, granted: 0 };
  assert.deepEqual((await world.at(1000)).states, { ...none, front: 1, dial: 1, upstream: 1, relay: 2 }, "one is being written");
  one.enters(4, RELAY, 1001);
  one.enters(1, RELAY, 1001);
  two.enters(63, OVER, 1001);
  assert.deepEqual((await world.at(2000)).states, { ...none, front: 1, upstream: 1, relay: 3 });
  world.workers = [two];
  assert.deepEqual((await world.at(3000)).states, none, "a worker has gone, and the other's connection is over");
});

test("destinations have what their connections have, and what they moved since the look before", async () => {
  const rows = new Rows(0);
  const world = new World(rows);
  rows.opens(0, 1, 0);
  rows.opens(1, 1, 0);
  rows.opens(2, 2, 0);
  rows.opens(3, 0, 0);
  rows.moves(0, 100, 1000);
  rows.moves(2, 1, 2);
  const first: Destination[] = [
    { destination: "198.18.0.1:443", name: null, tunnels: 2, bytes_up: 100, bytes_down: 1000, bytes_per_second: 0 },
    { destination: "198.18.0.2:443", name: null, tunnels: 1, bytes_up: 1, bytes_down: 2, bytes_per_second: 0 },
  ];
  assert.deepEqual((await world.at(1000)).destinations, first, "nothing is known of before; whose destination is unknown leads nowhere");
  rows.moves(1, 50, 0);
  rows.moves(2, 0, 1000);
  assert.deepEqual((await world.at(3000)).destinations, [
    { ...first[1]!, bytes_down: 1002, bytes_per_second: 500 }, { ...first[0]!, bytes_up: 150, bytes_per_second: 25 },
  ], "most traffic first");
  for (const index of [4, 5]) rows.opens(index, 2, 3500);
  const rates = Object.entries(await world.rates(4000));
  assert.deepEqual(rates, [["198.18.0.2:443", [3, 0]], ["198.18.0.1:443", [2, 0]]], "then most connections");
});

test("a row that another connection has taken counts for it alone, and one that goes on stays itself", async () => {
  const rows = new Rows(0);
  const world = new World(rows);
  rows.opens(0, 1, 0);
  rows.moves(0, 0, 1_000_000);
  rows.opens(1, 1, 0);
  rows.moves(1, 0, 500);
  await world.at(1000);
  rows.enters(0, OVER, 1500);
  rows.opens(0, 2, 1500);
  rows.moves(0, 0, 3000);
  rows.enters(1, DIAL, 1500);
  rows.moves(1, 0, 1000);
  assert.deepEqual(await world.rates(2000), { "198.18.0.2:443": [1, 3000], "198.18.0.1:443": [1, 1000] });
  rows.enters(0, OVER, 2500);
  rows.enters(1, OVER, 2500);
  assert.deepEqual(await world.rates(3000), {}, "nobody is there any more");
  rows.opens(1, 2, 3500);
  assert.deepEqual(await world.rates(4000), { "198.18.0.2:443": [1, 0] }, "and then somebody is again");
});

test("a table that takes another's place is not taken for it", async () => {
  const world = new World(new Rows(0));
  world.workers[0]!.opens(0, 1, 0);
  await world.at(1000);
  world.workers = [new Rows(0)];
  world.workers[0]!.opens(0, 2, 1500);
  assert.deepEqual(await world.rates(2000), { "198.18.0.2:443": [1, 0] });
});

test("a worker that takes a dead one's place counts anew, in the same table", async () => {
  const rows = new Rows(0);
  const world = new World(rows);
  rows.opens(0, 1, 0);
  rows.moves(0, 0, 1_000_000);
  await world.at(1000);
  rows.diesAndIsReplaced();
  rows.opens(0, 2, 1500);
  rows.moves(0, 0, 3000);
  assert.deepEqual(await world.rates(2000), { "198.18.0.2:443": [1, 3000] }, "whose first connection has the same number");
});

test("by name where a SOCKS client gave one, whatever the address", async () => {
  const rows = new Rows(0);
  const world = new World(rows);
  rows.opens(0, 1, 0, "www.example.com");
  rows.opens(1, 2, 0, "www.example.com");
  rows.opens(2, 2, 0);
  rows.opens(3, 0, 0, "unresolved.example");
  rows.moves(1, 10, 10);
  await world.at(1000);
  rows.moves(0, 7, 0);
  const { destinations } = await world.at(2000);
  assert.deepEqual(destinations[0], {
    destination: "198.18.0.1:443", name: "www.example.com", tunnels: 2, bytes_up: 17, bytes_down: 10, bytes_per_second: 7,
  });
  assert.deepEqual(destinations.slice(1).map(({ destination, name }) => [destination, name]), [["198.18.0.2:443", null], ["-", "unresolved.example"]]);
});

test("ten destinations are told, those with most, and 50,000 are told apart", async () => {
  const rows = new Rows(0, 60_000);
  const world = new World(rows);
  for (let i = 0; i < 60_000; i++) rows.opens(i, 1 + (i % 40_000), 0);
  await world.at(1000);
  for (const [i, index] of [5, 39_999, 7, 20_000, 1, 2, 3, 4, 30_000, 11, 12].entries()) rows.moves(index, 0, 1000 * (20 - i));
  const { destinations } = await world.at(2000);
  assert.deepEqual(destinations.map(({ bytes_per_second }) => bytes_per_second), Array.from({ length: 10 }, (_, i) => 1000 * (20 - i)));
  assert.deepEqual(destinations.map(({ tunnels }) => tunnels), [2, 1, 2, 1, 2, 2, 2, 2, 1, 2]);
  for (let i = 0; i < 60_000; i++) rows.opens(i, 1 + i, 2500);
  rows.moves(49_999, 0, 1);
  rows.moves(50_000, 0, 1_000_000);
  assert.deepEqual(Object.entries(await world.rates(3000))[0], ["198.18.195.80:443", [1, 1]], "the next is not told apart");
  for (let i = 0; i < 60_000; i++) rows.enters(i, OVER, 3500);
  await world.at(4000);
  rows.opens(0, 65_000, 4500);
  assert.deepEqual(await world.rates(5000), { "198.18.253.232:443": [1, 0] }, "until the others have gone");
});

test("who has waited longest for a first byte is told, for a minute", async () => {
  const rows = new Rows(0);
  const world = new World(rows);
  const waits = async (ms: number): Promise<Record<string, number>> =>
    Object.fromEntries((await world.at(ms)).slowest.map(({ client, waited_seconds }) => [client, waited_seconds]));
  rows.opens(1, 1, 0);
  rows.took(1, FIRST_BYTE_US, 1_500_000);
  rows.opens(2, 1, 500);
  rows.enters(2, DIAL, 500);
  rows.opens(3, 1, 100);
  rows.moves(3, 1, 0);
  rows.opens(4, 1, 0);
  assert.deepEqual(await waits(2000), { "192.0.2.3:80": 1.9, "192.0.2.1:80": 1.5, "192.0.2.2:80": 1.5 }, "the fourth has asked for nothing");
  rows.took(3, FIRST_BYTE_US, 1_950_000);
  rows.enters(2, OVER, 2500);
  assert.deepEqual(await waits(3000), { "192.0.2.3:80": 1.95, "192.0.2.1:80": 1.5, "192.0.2.2:80": 1.5 }, "one is over, and is told as it was seen last");
  assert.deepEqual(Object.keys(await waits(61_000)), ["192.0.2.3:80", "192.0.2.1:80", "192.0.2.2:80"]);
  assert.deepEqual(await waits(62_001), { "192.0.2.3:80": 1.95, "192.0.2.1:80": 1.5 }, "not seen for a minute");
  assert.deepEqual(await waits(125_000), {}, "it was long ago");
});

test("of the slow it is told who, whither and in what", async () => {
  const rows = new Rows(2);
  const world = new World(rows);
  rows.opens(9, 7, 0, "slow.example");
  rows.dials(9, 3);
  rows.took(9, DIALLED_US, 1_000);
  rows.took(9, SHAKEN_US, 2_000_000);
  rows.moves(9, 1, 0);
  assert.deepEqual((await world.at(4000)).slowest, [{
    id: "1.2.1", client: "192.0.2.9:80", destination: "198.18.0.7:443", name: "slow.example", upstream: "203.0.113.1:1080", state: "relay",
    at: (ORIGIN + 4000) / 1000, dial_seconds: 0.001, handshake_seconds: 2, first_byte_seconds: null, waited_seconds: 4,
  }]);
});

test("among thousands the ten slowest are found, and a look of others meanwhile waits for nobody", async () => {
  const rows = new Rows(0, 20_000);
  const world = new World(rows);
  for (let i = 0; i < 20_000; i++) {
    rows.opens(i, 1, 0);
    rows.took(i, FIRST_BYTE_US, 1000 + ((i * 7919) % 20_000));
  }
  const [{ slowest, destinations }] = await Promise.all([world.at(10_000), world.at(10_000)]);
  assert.deepEqual(slowest.map(({ waited_seconds }) => waited_seconds), Array.from({ length: 10 }, (_, i) => (20_999 - i) / 1e6));
  assert.deepEqual(destinations.map(({ tunnels }) => tunnels), [20_000]);
  assert.ok(world.ways >= 8, `${world.ways}`);
});
