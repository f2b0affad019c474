/** Names to addresses, with a clock, a hosts file and a DNS that the test owns. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { type NameAnswer, Names, type NamesSeams } from "../../src/control/names/names.ts";

type Records = { address: string; ttl: number }[];

interface Asked {
  readonly name: string;
  readonly family: 4 | 6;
  readonly patienceMs: number;
  cancelled: boolean;
  readonly resolve: (records: Records) => void;
  readonly reject: (code: string) => void;
}

/** The world of one Names: its questions wait until the test answers them. */
class World {
  now = 1000;
  readonly asked: Asked[] = [];
  hosts: string | null = null;
  hostsRead = 0;
  readonly told: string[] = [];
  readonly names: Names;
  readonly #timers = new Set<{ at: number; task: () => void }>();

  constructor(deadlineMs = 5000) {
    const seams: NamesSeams = {
      ask: (name, family, patienceMs) => {
        let asked: Asked | undefined;
        const records = new Promise<Records>((resolve, reject) => {
          const fail = (code: string): void => reject(Object.assign(new Error(code), { code }));
          asked = { name, family, patienceMs, cancelled: false, resolve, reject: fail };
          this.asked.push(asked);
        });
        return { records, cancel: () => (asked!.cancelled = true) };
      },
      hosts: {
        version: () => this.hosts ?? missing(),
        read: () => {
          this.hostsRead++;
          return this.hosts ?? missing();
        },
      },
      now: () => this.now,
      after: (ms, task) => {
        const timer = { at: this.now + ms, task };
        this.#timers.add(timer);
        return () => this.#timers.delete(timer);
      },
    };
    const log = { warning: (message: string) => void this.told.push(message) };
    this.names = new Names({ deadlineMs, log }, seams);
  }

  get timers(): number {
    return this.#timers.size;
  }

  /** Lets `ms` pass, timer by timer. */
  async pass(ms: number): Promise<void> {
    await settled();
    const end = this.now + ms;
    for (;;) {
      const [next] = [...this.#timers].sort((a, b) => a.at - b.at);
      if (next === undefined || next.at > end) break;
      this.now = next.at;
      this.#timers.delete(next);
      next.task();
      await settled();
    }
    this.now = end;
  }

  /** To the oldest question of a family that has not been answered: addresses, or an error code. */
  async answer(family: 4 | 6, what: string | readonly string[], ttl = 300): Promise<void> {
    const index = this.asked.findIndex((asked) => asked.family === family);
    const [asked] = this.asked.splice(index, 1);
    if (typeof what === "string") asked!.reject(what);
    else asked!.resolve(what.map((address) => ({ address, ttl })));
    await settled();
  }

  /** Asks, and has both families answered at once. */
  async found(name: string, four: string | string[], six: string | string[], ttl = 300, client = 0): Promise<Said> {
    const asking = this.names.resolve(name, client);
    await this.answer(6, six, ttl);
    await this.answer(4, four, ttl);
    return said(await asking);
  }
}

interface Said {
  readonly addresses: string[];
  readonly ttlMs: number;
  readonly failure: string | null;
}

const said = ({ addresses, ttlMs, failure }: NameAnswer): Said => {
  const text = (bytes: Uint8Array): string =>
    bytes.length === 4 ? bytes.join(".") : `v6:${bytes[0]!.toString(16)}:${bytes[15]}`;
  return { addresses: addresses.map(text), ttlMs, failure };
};

function missing(): never {
  throw Object.assign(new Error("no file"), { code: "ENOENT" });
}

const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Whether it has been answered by now. */
async function pending(promise: Promise<unknown>): Promise<boolean> {
  let done = false;
  void promise.then(() => {
    done = true;
  });
  await settled();
  return !done;
}

const NONE = { addresses: [], failure: null };

test("both families are asked at once, and take turns in the answer, IPv6 first", async () => {
  const world = new World();
  const answer = await world.found("a.example", ["192.0.2.1", "192.0.2.2", "192.0.2.3"], ["2001:db8::1"]);
  assert.deepEqual(answer, { addresses: ["v6:20:1", "192.0.2.1", "192.0.2.2", "192.0.2.3"], ttlMs: 300_000, failure: null });
  assert.equal(world.timers, 0);
});

test("16 addresses at most, and none twice", async () => {
  const many = Array.from({ length: 30 }, (_, i) => `192.0.2.${i}`);
  const world = new World();
  const both = await world.found("a.example", [...many, ...many], Array.from({ length: 30 }, (_, i) => `2001:db8::${i}`));
  assert.equal(both.addresses.length, 16);
  assert.deepEqual(both.addresses.map((address) => address.startsWith("v6")), Array.from({ length: 16 }, (_, i) => i % 2 === 0));
  const one = await world.found("b.example", ["192.0.2.1", "192.0.2.1", ...many], "ENODATA");
  assert.deepEqual(one.addresses.slice(0, 3), ["192.0.2.1", "192.0.2.0", "192.0.2.2"]);
  assert.equal(one.addresses.length, 16);
  // An IPv4 address in IPv6 clothes is one of IPv4.
  const mapped = await world.found("c.example", ["192.0.2.1"], ["::ffff:192.0.2.1"]);
  assert.deepEqual(mapped.addresses, ["192.0.2.1"]);
});

test("an answer holds as long as its shortest TTL, and tells what is left of it", async () => {
  const world = new World();
  const asking = world.names.resolve("a.example");
  await world.answer(4, ["192.0.2.1"], 20);
  await world.answer(6, ["2001:db8::1"], 300);
  assert.equal((await asking).ttlMs, 20_000);
  await world.pass(19_999);
  assert.equal((await world.names.resolve("a.example")).ttlMs, 1);
  await world.pass(1);
  assert.equal((await world.found("a.example", ["192.0.2.9"], "ENODATA", 7)).addresses[0], "192.0.2.9");
  assert.deepEqual([world.names.stats.asked, world.names.stats.fromCache], [2, 1]);
});

test("a TTL of 0 is not kept, and one of a year is an hour", async () => {
  const world = new World();
  assert.equal((await world.found("a.example", ["192.0.2.1"], "ENODATA", 0)).ttlMs, 0);
  assert.equal(world.names.stats.cached, 0);
  assert.equal((await world.found("b.example", ["192.0.2.1"], "ENODATA", 31_536_000)).ttlMs, 3_600_000);
});

test("what does not exist is remembered for 10 s, what fails for 2 s", async () => {
  const cases: [string, string, string, number][] = [
    ["ENOTFOUND", "ENOTFOUND", "not-found", 10_000],
    ["ENODATA", "ENODATA", "not-found", 10_000],
    ["ENODATA", "ENOTFOUND", "not-found", 10_000],
    ["ENOTFOUND", "ESERVFAIL", "not-found", 10_000],
    ["ENODATA", "ESERVFAIL", "failed", 2000],
    ["ESERVFAIL", "ENODATA", "failed", 2000],
    ["ESERVFAIL", "ENOTFOUND", "failed", 2000],
    ["ECONNREFUSED", "ECONNREFUSED", "failed", 2000],
    ["ETIMEOUT", "ETIMEOUT", "timeout", 2000],
    ["ETIMEOUT", "ENODATA", "timeout", 2000],
  ];
  for (const [four, six, failure, ms] of cases) {
    const world = new World();
    assert.deepEqual(await world.found("a.example", four, six), { ...NONE, failure, ttlMs: ms }, `${four} ${six}`);
    await world.pass(ms - 1);
    assert.equal((await world.names.resolve("a.example")).failure, failure);
    await world.pass(1);
    assert.equal((await world.found("a.example", ["192.0.2.1"], "ENODATA")).failure, null);
  }
});

test("one family's failure does not spoil the other's addresses, but they are asked for again soon", async () => {
  const world = new World();
  assert.deepEqual(await world.found("a.example", ["192.0.2.1"], "ESERVFAIL"), { addresses: ["192.0.2.1"], ttlMs: 10_000, failure: null });
  assert.deepEqual(await world.found("b.example", "ETIMEOUT", ["2001:db8::1"]), { addresses: ["v6:20:1"], ttlMs: 10_000, failure: null });
  assert.equal((await world.found("c.example", ["192.0.2.1"], "ESERVFAIL", 5)).ttlMs, 5000);
});

test("a thousand callers ask once", async () => {
  const world = new World();
  const callers = Array.from({ length: 1000 }, () => world.names.resolve("slow.example"));
  await world.pass(3000);
  assert.equal(world.asked.length, 2);
  await world.answer(4, ["192.0.2.1"]);
  await world.answer(6, "ENODATA");
  for (const answer of await Promise.all(callers)) assert.deepEqual(said(answer), { addresses: ["192.0.2.1"], ttlMs: 300_000, failure: null });
  assert.deepEqual([world.names.stats.asked, world.names.stats.joined], [1, 999]);
});

test("addresses of IPv4 wait 50 ms for IPv6; what comes later counts for the next caller", async () => {
  const world = new World();
  const asking = world.names.resolve("a.example");
  await world.answer(4, ["192.0.2.1"]);
  await world.pass(49);
  assert.ok(await pending(asking));
  await world.pass(1);
  assert.deepEqual(said(await asking), { addresses: ["192.0.2.1"], ttlMs: 1000, failure: null });
  // Meanwhile the part is what there is; nobody asks again, nor keeps it for long.
  await world.pass(1500);
  assert.deepEqual(said(await world.names.resolve("a.example")), { addresses: ["192.0.2.1"], ttlMs: 1000, failure: null });
  assert.equal(world.names.stats.asking, 1);
  await world.answer(6, ["2001:db8::1"], 60);
  assert.deepEqual(said(await world.names.resolve("a.example")), { addresses: ["v6:20:1", "192.0.2.1"], ttlMs: 60_000, failure: null });
  assert.deepEqual([world.names.stats.asked, world.names.stats.asking, world.timers], [1, 0, 0]);
});

test("a part is not used beyond its TTL while the rest is awaited", async () => {
  const world = new World();
  const asking = world.names.resolve("a.example");
  await world.answer(4, ["192.0.2.1"], 1);
  await world.pass(1000);
  assert.equal((await asking).ttlMs, 950);
  const again = world.names.resolve("a.example");
  await settled();
  assert.deepEqual(world.asked.map(({ family }) => family), [6, 6, 4]);
  await world.answer(4, ["192.0.2.2"], 10);
  await world.pass(50);
  assert.deepEqual(said(await again).addresses, ["192.0.2.2"]);
});

test("AAAA that never comes: the deadline ends it, and the addresses of IPv4 stay for a while", async () => {
  const world = new World();
  const asking = world.names.resolve("a.example");
  await world.answer(4, ["192.0.2.1"]);
  await world.pass(50);
  await asking;
  const [six] = world.asked;
  await world.pass(5000);
  assert.ok(six!.cancelled);
  assert.deepEqual([world.names.stats.asking, world.timers, world.names.stats.timeouts], [0, 0, 0]);
  assert.deepEqual(said(await world.names.resolve("a.example")), { addresses: ["192.0.2.1"], ttlMs: 9950, failure: null });
});

test("addresses of IPv6 wait longer for IPv4: this host may have no IPv6", async () => {
  const world = new World();
  const asking = world.names.resolve("a.example");
  await world.answer(6, ["2001:db8::1"]);
  await world.pass(499);
  assert.ok(await pending(asking));
  await world.pass(1);
  assert.deepEqual(said(await asking), { addresses: ["v6:20:1"], ttlMs: 1000, failure: null });
});

test("no addresses of one family: the other one is awaited to the deadline", async () => {
  for (const family of [4, 6] as const) {
    const world = new World();
    const asking = world.names.resolve("a.example");
    await world.answer(family, "ENODATA");
    await world.pass(4999);
    assert.ok(await pending(asking));
    await world.answer(family === 4 ? 6 : 4, [family === 4 ? "2001:db8::1" : "192.0.2.1"]);
    assert.equal((await asking).failure, null);
  }
});

test("that there is no such name counts without waiting long, if it was said of A", async () => {
  const world = new World();
  const asking = world.names.resolve("a.example");
  await world.answer(4, "ENOTFOUND");
  await world.pass(50);
  assert.deepEqual(said(await asking), { ...NONE, failure: "not-found", ttlMs: 1000 });
  const other = world.names.resolve("b.example");
  await world.answer(6, "ENOTFOUND");
  // Of a.example.
  await world.pass(1000);
  assert.ok(await pending(other));
});

test("the deadline: whoever waits hears of it, and others are not held up", async () => {
  const world = new World(2000);
  const dead = world.names.resolve("dead.example");
  await settled();
  const questions = [...world.asked];
  assert.deepEqual(questions.map(({ patienceMs }) => patienceMs), [2000, 2000]);
  world.asked.length = 0;
  assert.equal((await world.found("a.example", ["192.0.2.1"], "ENODATA")).failure, null);
  await world.pass(1999);
  assert.ok(await pending(dead));
  await world.pass(1);
  assert.deepEqual(said(await dead), { ...NONE, failure: "timeout", ttlMs: 2000 });
  assert.deepEqual(questions.map(({ cancelled }) => cancelled), [true, true]);
  // Too late.
  questions[1]!.resolve([{ address: "192.0.2.66", ttl: 300 }]);
  await settled();
  assert.equal((await world.names.resolve("dead.example")).failure, "timeout");
  world.names.deadlineMs = 100;
  await world.pass(2000);
  const sooner = world.names.resolve("dead.example");
  await world.pass(100);
  assert.equal((await sooner).failure, "timeout");
});

test("a thousand names at a time are asked for, the next one is refused", async () => {
  const world = new World();
  const first = Array.from({ length: 1000 }, (_, i) => world.names.resolve(`n${i}.example`, i));
  assert.deepEqual(said(await world.names.resolve("one-more.example", 1000)), { ...NONE, failure: "busy", ttlMs: 0 });
  const joined = world.names.resolve("n7.example");
  assert.deepEqual(world.told, ["too many names are being resolved; more are refused"]);
  await world.pass(5000);
  assert.equal((await joined).failure, "timeout");
  await Promise.all(first);
  assert.deepEqual([world.names.stats.asking, world.names.stats.refused, world.names.stats.timeouts], [0, 1, 1000]);
  world.asked.length = 0;
  assert.equal((await world.found("one-more.example", ["192.0.2.1"], "ENODATA")).failure, null);
});

test("clients with names that nobody answers leave room for those of others", async () => {
  const world = new World();
  const names = Array.from({ length: 1000 }, (_, i) => world.names.resolve(`n${i}.example`, 1));
  assert.equal(world.names.stats.asking, 334, "one alone has a third");
  names.push(...Array.from({ length: 1000 }, (_, i) => world.names.resolve(`m${i}.example`, 2 + (i % 9))));
  world.asked.length = 0; // They are never answered.
  const found = world.found("other.example", ["192.0.2.1"], "ENODATA", 300, 99);
  assert.equal((await found).failure, null);
  await world.pass(5000);
  assert.deepEqual(new Set((await Promise.all(names)).map(({ failure }) => failure)), new Set(["timeout", "busy"]));
  // And all have their places back.
  const again = Array.from({ length: 1000 }, (_, i) => world.names.resolve(`o${i}.example`, i));
  assert.equal(world.names.stats.asking, 1000);
  await world.pass(5000);
  await Promise.all(again);
});

test("where AAAA never comes, what nobody waits for gives way", async () => {
  const world = new World();
  for (let i = 0; i < 1000; i++) {
    void world.names.resolve(`n${i}.example`, i);
    await world.answer(4, ["192.0.2.1"]);
  }
  await world.pass(50);
  const [oldest] = world.asked;
  assert.equal(world.names.stats.asking, 1000);
  const more = world.names.resolve("one-more.example");
  await world.answer(4, ["192.0.2.1"]);
  await world.pass(50);
  assert.equal((await more).failure, null);
  assert.deepEqual([oldest!.cancelled, world.names.stats.refused], [true, 0]);
  assert.deepEqual(said(await world.names.resolve("n0.example")), { addresses: ["192.0.2.1"], ttlMs: 9950, failure: null });
});

test("4096 names are kept, and those used last", async () => {
  const world = new World();
  for (let i = 0; i < 4096; i++) await world.found(`n${i}.example`, ["192.0.2.1"], "ENODATA");
  await world.names.resolve("n0.example");
  await world.found("one-more.example", ["192.0.2.1"], "ENODATA");
  assert.equal(world.names.stats.cached, 4096);
  await world.names.resolve("n0.example");
  assert.deepEqual([world.names.stats.asked, world.asked.length], [4097, 0]);
  void world.names.resolve("n1.example");
  await settled();
  assert.equal(world.asked.length, 2);
});

test("/etc/hosts comes first, with the families that it has, and is read again when it changes", async () => {
  const world = new World();
  world.hosts = "# a comment\n127.0.0.1 localhost\n\n 192.0.2.1\tA.example. b.example # c.example\n2001:db8::1 a.example\nfe80::1%2 b.example\nnonsense b.example";
  assert.deepEqual(said(await world.names.resolve("a.example")), { addresses: ["v6:20:1", "192.0.2.1"], ttlMs: 1000, failure: null });
  assert.deepEqual(said(await world.names.resolve("b.example")).addresses, ["192.0.2.1"]);
  assert.equal((await world.found("c.example", ["192.0.2.3"], "ENODATA")).addresses[0], "192.0.2.3");
  await world.pass(1000);
  await world.names.resolve("a.example");
  assert.equal(world.hostsRead, 1);
  world.hosts = "192.0.2.9 a.example c.example";
  await world.pass(1000);
  assert.deepEqual(said(await world.names.resolve("a.example")).addresses, ["192.0.2.9"]);
  assert.deepEqual(said(await world.names.resolve("c.example")).addresses, ["192.0.2.9"]);
  world.hosts = null;
  await world.pass(1000);
  // From the cache, which has not run out.
  assert.deepEqual(said(await world.names.resolve("c.example")).addresses, ["192.0.2.3"]);
  await world.pass(1000);
  assert.deepEqual([world.hostsRead, world.told], [2, []]);
});

test("localhost is never asked for", async () => {
  const world = new World();
  for (const name of ["localhost", "x.localhost"]) {
    assert.deepEqual(said(await world.names.resolve(name)).addresses, ["v6:0:1", "127.0.0.1"]);
  }
  void world.names.resolve("notlocalhost");
  assert.deepEqual(world.asked.map(({ name }) => name), ["notlocalhost", "notlocalhost"]);
});

test("close() lets nobody wait", async () => {
  const world = new World();
  const asking = world.names.resolve("a.example");
  await settled();
  world.names.close();
  assert.equal((await asking).failure, "failed");
  assert.equal((await world.names.resolve("b.example")).failure, "failed");
  assert.deepEqual([world.timers, world.asked.every(({ cancelled }) => cancelled)], [0, true]);
});
