/** How it goes: rates, last minutes and health out of numbers that only grow, at times that the test says. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { WorkerView } from "../../src/control/fleet.ts";
import type { ProxyNumbers, UpstreamState } from "../../src/control/admin/proxy-metrics.ts";
import { Status } from "../../src/control/admin/status.ts";
import type { AddressCounts } from "../../src/engine/egress-counters.ts";
import { ACCEPTED, BYTES_DOWN, BYTES_UP, countersBytes, countersRow, endingAt, REFUSED_FULL, TUNNELS, TURNS } from "../../src/engine/counters.ts";
import { leastOf, bucketOf, observe } from "../../src/engine/histogram.ts";
import { meterAt, metersBytes, metersRow } from "../../src/engine/meters.ts";

interface Shown {
  readonly [key: string]: unknown;
  readonly uptime_seconds: number;
  readonly ready: boolean;
  readonly problems: readonly string[];
  readonly state: string;
  readonly tunnels: { readonly active: number; readonly max: number; readonly states: object };
  readonly totals: Record<string, number>;
  readonly rates: Record<string, number>;
  readonly endings: readonly { readonly reason: string; readonly result: string; readonly total: number; readonly last_minute: number; readonly last_5_minutes: number }[];
  readonly latency: Record<string, Record<string, number | null>>;
  readonly upstreams: readonly { readonly address: string; readonly health: string; readonly name: string; readonly dials_per_second: number; readonly failures_last_minute: number }[];
  readonly egress: readonly { readonly address: string; readonly health: string; readonly usable: boolean; readonly opened_per_second: number }[];
  readonly egress_addresses: number;
  readonly workers: readonly Record<string, unknown>[];
  readonly history: Record<string, readonly number[]> & { readonly step_seconds: number; readonly until: number };
}

/** A process whose numbers and clock the test moves. */
class World {
  ms = 0;
  readonly counters = countersRow(new SharedArrayBuffer(countersBytes(1)), 0);
  readonly meters = metersRow(new SharedArrayBuffer(metersBytes(1)), 0);
  upstreams: UpstreamState[] = [];
  addresses: AddressCounts[] = [];
  workers: WorkerView[] = [];
  cpuSeconds: (number | null)[] = [];
  health: Record<string, "ok" | "absent" | "listed" | "failing"> = {};
  problems: string[] = [];
  draining = false;
  surveys = 0;
  survey = (): Promise<void> => Promise.resolve();
  readonly status = new Status({
    numbers: (): ProxyNumbers => ({
      counters: this.counters.slice(), meters: this.meters.slice(), workers: this.workers, cpuSeconds: this.cpuSeconds, replacements: 0, logDropped: 0,
      tunnelsMax: 100, upstreams: this.upstreams.map((each) => ({ ...each })), backlogs: [{ address: "127.0.0.1:1081", role: "transparent", waiting: 3, max: 128 }],
      fds: { open: 20, limit: 1024 }, residentBytes: 0, ready: true, version: "1.2.3",
    }),
    makeWay: () => {}, survey: {
      take: () => {
        this.surveys++;
        return this.survey();
      },
      states: { relay: 7 }, destinations: [], slowest: [],
    } as never,
    addresses: () => this.addresses.map((each) => ({ ...each })),
    health: (address) => (this.health[address] === undefined ? null : { state: this.health[address], usable: this.health[address] === "ok", listed: false }),
    denied: () => [{ rule: "deny_sites", denied: 4 }],
    names: () => ({ fromCache: 1, asked: 2, asking: 3 }) as never,
    upstreamKinds: () => new Map([["192.0.2.1:1080", { name: "proxy.example:1080", kind: "socks5" }]]),
    program: "transplice", mode: () => "redirect", draining: () => this.draining, writable: () => false, problems: () => this.problems,
    now: () => this.ms,
  });

  /** So many seconds pass, each with a tick behind it. */
  pass(seconds: number, each: (second: number) => void = () => {}): void {
    for (let second = 0; second < seconds; second++) {
      this.ms += 1000;
      each(second);
      this.status.tick();
    }
  }

  get shown(): Shown {
    return JSON.parse(this.status.textWithHistory) as Shown;
  }

  worker(number: number): WorkerView {
    return {
      number, incarnation: 0, state: "running", full: false, table: null as never, limits: { pipes: 8, buffers: 9 } as never,
      counters: countersRow(new SharedArrayBuffer(countersBytes(1)), 0), meters: metersRow(new SharedArrayBuffer(metersBytes(1)), 0),
    };
  }
}

const upstream = (address: string, more: Partial<UpstreamState> = {}): UpstreamState =>
  ({ address, active: 0, dials: 0, dialFailures: 0, handshakeFailures: 0, drained: false, healthy: true, ...more });

test("rates are what has moved since the tick before, by the time that has passed", () => {
  const world = new World();
  const { counters } = world;
  counters[ACCEPTED] = 50;
  world.pass(1);
  assert.deepEqual(Object.values(world.shown.rates), [0, 0, 0, 0, 0, 0], "nothing is known of before");
  counters[ACCEPTED]! += 30;
  counters[REFUSED_FULL] = 3;
  counters[BYTES_UP] = 1000;
  counters[BYTES_DOWN] = 7;
  counters[TUNNELS] = 9;
  counters[endingAt("finished")] = 4;
  counters[endingAt("worker-died")] = 2;
  counters[endingAt("client-reset")] = 1;
  counters[endingAt("upstream-refused")] = 5; // Is not called a failure.
  world.ms += 1000;
  world.pass(1); // Two seconds: a tick was late.
  const { rates, totals, tunnels, uptime_seconds } = world.shown;
  assert.deepEqual(rates, {
    accepted_per_second: 15, refused_per_second: 1.5, ended_per_second: 6, failed_per_second: 1, bytes_up_per_second: 500, bytes_down_per_second: 3.5,
  });
  assert.deepEqual(totals, { accepted: 80, refused: 3, ended: 12, failed: 2, bytes_up: 1000, bytes_down: 7, accept_errors: 0, log_dropped: 0 });
  assert.deepEqual(tunnels, { active: 9, max: 100, states: { relay: 7 } });
  assert.equal(uptime_seconds, 3);
});

test("the last minutes are minutes: what came before is in the total alone", () => {
  const world = new World();
  const at = endingAt("finished");
  const other = endingAt("client-reset");
  world.pass(600, (second) => {
    if (second < 400) world.counters[at]!++;
    if (second === 550) world.counters[other] = 20;
  });
  const [first, second] = world.shown.endings;
  assert.deepEqual(world.shown.endings.length, 2);
  // Of samples each ten seconds: a minute is up to ten seconds more.
  assert.deepEqual([first!.reason, first!.total, first!.last_minute], ["finished", 400, 0]);
  assert.ok(first!.last_5_minutes >= 100 && first!.last_5_minutes <= 110, `${first!.last_5_minutes}`);
  assert.deepEqual([second!.reason, second!.result, second!.total, second!.last_minute, second!.last_5_minutes], ["client-reset", "client", 20, 20, 20]);
});

test("latencies are those of the last minute, as the end of the bucket that they lie in", () => {
  const world = new World();
  const dial = meterAt("dial");
  for (let i = 0; i < 100; i++) observe(world.meters, dial, 1_000_000);
  world.pass(1);
  assert.equal(world.shown.latency["dial"]!["count"], 100, "a process's first second is of its first minute");
  world.pass(100);
  assert.deepEqual(world.shown.latency["dial"], { count: 0, p50_seconds: null, p90_seconds: null, p99_seconds: null, max_seconds: null });
  for (let i = 1; i <= 100; i++) observe(world.meters, dial, i === 100 ? 50_000 : i > 90 ? 2000 : 500);
  world.pass(1);
  const end = (us: number): number => Number((leastOf(bucketOf(us) + 1) / 1e6).toPrecision(4));
  assert.deepEqual(world.shown.latency["dial"], { count: 100, p50_seconds: end(500), p90_seconds: end(500), p99_seconds: end(2000), max_seconds: end(50_000) });
  world.pass(80);
  assert.equal(world.shown.latency["dial"]!["count"], 0, "a minute later they are gone");
  assert.equal(world.shown.latency["handshake"]!["count"], 0);
});

test("what a process has done before its first tick is of the last minutes, until they are over", () => {
  const world = new World();
  const at = "192.0.2.1:1080";
  world.counters[endingAt("dial-failed")] = 3;
  world.upstreams = [upstream(at, { dials: 3, dialFailures: 3 })];
  const said = (): unknown[] => {
    const [{ last_minute, last_5_minutes }] = world.shown.endings as [Shown["endings"][0]];
    return [last_minute, last_5_minutes, world.status.isFailing(at)];
  };
  world.pass(1);
  assert.deepEqual(said(), [3, 3, true]);
  world.pass(59);
  assert.deepEqual(said(), [3, 3, true]);
  world.pass(30);
  assert.deepEqual(said(), [0, 3, false]);
  world.pass(240);
  assert.deepEqual(said(), [0, 0, false]);
});

test("an upstream's address is as well as most dials of the last minute went", () => {
  const world = new World();
  const [a, b, c, d] = ["192.0.2.1:1080", "192.0.2.2:1080", "192.0.2.3:1080", "192.0.2.4:1080"] as const;
  world.upstreams = [upstream(a), upstream(b), upstream(c), upstream(d, { drained: true, dials: 10, dialFailures: 10 })];
  world.pass(1);
  const health = (): string => world.shown.upstreams.map((each) => each.health).join();
  assert.equal(health(), "unknown,unknown,unknown,drained");
  world.upstreams = [upstream(a, { dials: 10, dialFailures: 2, handshakeFailures: 3 }), upstream(b, { dials: 10, dialFailures: 3, handshakeFailures: 3 }), upstream(c), upstream(d, { drained: true })];
  world.pass(1);
  assert.equal(health(), "ok,failing,unknown,drained", "half of them may fail");
  assert.deepEqual([a, b, c].map((each) => world.status.isFailing(each)), [false, true, false]);
  assert.deepEqual(world.shown.upstreams.map(({ name, dials_per_second, failures_last_minute }) => [name, dials_per_second, failures_last_minute])[1], [b, 10, 6]);
  assert.equal(world.shown.upstreams[0]!.name, "proxy.example:1080");
  world.pass(80);
  assert.equal(health(), "unknown,unknown,unknown,drained", "nobody has dialled for a minute");
  world.upstreams = [upstream(a, { dials: 14, dialFailures: 2, handshakeFailures: 3 }), ...world.upstreams.slice(1)];
  world.pass(1);
  assert.equal(health(), "ok,unknown,unknown,drained", "and failures of before are none of now");
  assert.equal(world.shown.upstreams[0]!.failures_last_minute, 0);
  assert.equal(world.status.isFailing("192.0.2.99:1080"), false, "nobody knows it");
});

test("an upstream answers as long as nobody of the latest that were dialled failed", () => {
  const world = new World();
  const at = "192.0.2.1:1080";
  const after = (seconds: number, more: Partial<UpstreamState>): boolean => {
    world.upstreams = [upstream(at, more)];
    world.pass(seconds);
    return world.status.isAnswering(at);
  };
  assert.equal(after(1, {}), false, "nobody has dialled");
  assert.equal(after(1, { dials: 100 }), true);
  assert.equal(after(40, { dials: 200 }), true);
  assert.equal(after(1, { dials: 201, dialFailures: 1 }), false, "the last one failed, whatever went before");
  assert.equal(after(15, { dials: 201, dialFailures: 1 }), false, "and nobody has tried since");
  assert.equal(after(1, { dials: 202, dialFailures: 1 }), true, "it is back");
  assert.equal(after(15, { dials: 203, dialFailures: 1, handshakeFailures: 1 }), false);
  assert.equal(after(15, { dials: 205, dialFailures: 1, handshakeFailures: 1 }), true);
  assert.equal(after(80, { dials: 205, dialFailures: 1, handshakeFailures: 1 }), false, "that is long ago");
});

test("the history is five minutes at most, oldest first, each of its rates of one second", () => {
  const world = new World();
  world.pass(3, (second) => (world.counters[ACCEPTED] = second * 5));
  assert.deepEqual(world.shown.history["accepted_per_second"], [5, 5]);
  world.pass(400, (second) => {
    world.counters[ACCEPTED]! += second;
    world.counters[TUNNELS] = second;
  });
  const { history } = world.shown;
  assert.deepEqual(history["accepted_per_second"], Array.from({ length: 300 }, (_, i) => 100 + i));
  assert.deepEqual(history["active"], Array.from({ length: 300 }, (_, i) => 100 + i));
  for (const key of ["bytes_up_per_second", "bytes_down_per_second", "ended_per_second", "failed_per_second"]) assert.equal(history[key]!.length, 300, key);
  assert.equal(history.until, Math.round((performance.timeOrigin + world.ms) / 1000));
});

test("it is written once for everybody, and anew with each tick", () => {
  const world = new World();
  world.pass(1);
  const { text } = world.status;
  world.counters[ACCEPTED] = 1000;
  world.problems = ["something"];
  world.ms += 500;
  assert.equal(world.status.text, text);
  world.pass(1);
  assert.notEqual(world.status.text, text);
  assert.deepEqual([world.shown.ready, world.shown.problems, world.shown.state], [false, ["something"], "serving"]);
  world.draining = true;
  world.pass(1);
  assert.equal(world.shown.state, "draining");
});

test("single connections are looked at while somebody looks, and at once for who looks first", async () => {
  const world = new World();
  world.pass(3);
  assert.equal(world.surveys, 0, "nobody looks");
  let made = (): void => {};
  world.survey = () => new Promise((resolve) => (made = resolve));
  let seen = false;
  const looked = world.status.looked().then(() => (seen = true));
  await new Promise(setImmediate);
  assert.deepEqual([world.surveys, seen], [1, false], "who looks first waits for it");
  made();
  await looked;
  world.survey = () => Promise.resolve();
  await world.status.looked();
  assert.equal(world.surveys, 1, "whoever looks besides is shown the same");
  world.pass(4);
  assert.equal(world.surveys, 5, "one a second");
  world.pass(10);
  assert.equal(world.surveys, 5, "nobody has looked for five seconds");
  await world.status.looked();
  assert.equal(world.surveys, 6);
});

test("of many egress addresses those are shown that are not well, and those that are used most", () => {
  const world = new World();
  const address = (i: number): string => `192.0.2.${i}`;
  const counts = (i: number, opened: number): AddressCounts => ({ address: address(i), active: i, opened, answered: 0, failed: 0, spilled: 0 });
  world.addresses = [counts(1, 10), counts(2, 0)];
  world.health = { [address(1)]: "ok" };
  world.pass(1);
  world.addresses = [counts(1, 30), counts(2, 0)];
  world.pass(1);
  assert.deepEqual(world.shown.egress.map(({ address: text, health, usable, opened_per_second }) => [text, health, usable, opened_per_second]), [
    [address(1), "ok", true, 20], [address(2), "gone", false, 0],
  ]);
  world.addresses = Array.from({ length: 1000 }, (_, i) => counts(i, 0));
  world.health = Object.fromEntries(world.addresses.map(({ address: text }, i) => [text, i === 3 ? "listed" : i === 5 ? "failing" : "ok"]));
  world.pass(1);
  const { egress, egress_addresses } = world.shown;
  assert.deepEqual([egress.length, egress_addresses], [256, 1000]);
  assert.deepEqual(egress.slice(0, 4).map(({ address: text }) => text), [address(5), address(3), address(999), address(998)]);
});

test("a worker's rates are its own, also where another has gone or takes its place", () => {
  const world = new World();
  const [one, two] = [world.worker(0), world.worker(1)];
  world.workers = [one, two];
  world.cpuSeconds = [10, 20];
  two.counters[TURNS] = 1000;
  world.pass(1);
  assert.deepEqual(world.shown.workers.map((worker) => [worker["worker"], worker["cpu_ratio"], worker["turns_per_second"]]), [[0, null, 0], [1, null, 0]]);
  world.workers = [two];
  world.cpuSeconds = [20.25];
  two.counters[TURNS] = 1400;
  observe(two.meters, meterAt("splice"), 1000);
  observe(two.meters, meterAt("splice"), 3000);
  observe(two.meters, meterAt("turn"), 100);
  world.pass(1);
  const [shown] = world.shown.workers;
  assert.deepEqual(shown, {
    worker: 1, state: "running", tunnels: 0, cpu_ratio: 0.25, turns_per_second: 400,
    lag: { count: 1, p50_seconds: 0.000104, p99_seconds: 0.000104, max_seconds: 0.000104 },
    pipes_lent: 0, pipes_max: 8, buffers_lent: 0, buffers_max: 9, splices_per_second: 2, bytes_per_splice: 2000, full: false, lives: 1,
  });
  world.cpuSeconds = [0.5];
  two.counters[TURNS] = 0;
  world.pass(1);
  assert.deepEqual([world.shown.workers[0]!["cpu_ratio"], world.shown.workers[0]!["turns_per_second"]], [0, 0], "another's clock began anew");
  world.cpuSeconds = [null];
  world.pass(1);
  assert.equal(world.shown.workers[0]!["cpu_ratio"], null, "the kernel does not say");
});
