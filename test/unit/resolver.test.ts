/** The upstream's addresses over time, with a clock and a DNS that the test owns. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Resolver, type ResolverOptions, type ResolverSeams } from "../../src/control/names/resolver.ts";

interface Lookup {
  readonly resolve: (addresses: readonly string[]) => void;
  readonly reject: (code: string) => void;
}

/** The world of one resolver: its questions wait until the test answers them. */
class World {
  now = 1000;
  readonly lookups: Lookup[] = [];
  /** What DNS says; null: nothing, for ever. */
  records: { address: string; ttl: number }[] | null | "error" = [];
  readonly told: string[] = [];
  readonly resolver: Resolver;
  asked = 0;
  askedDns = 0;
  readonly #timers = new Set<{ at: number; task: () => void }>();

  constructor(host = "proxy.example") {
    const log = (level: string) => (message: string, fields?: object) => {
      this.told.push(`${level}: ${message} ${JSON.stringify(fields)}`);
    };
    const options: ResolverOptions = {
      host,
      port: 1080,
      log: { warning: log("warning"), info: log("info") },
      onChange: (addresses) => this.told.push(addresses.map(({ text }) => text).join(" ")),
    };
    const seams: ResolverSeams = {
      lookup: () => {
        this.asked++;
        return new Promise((resolve, reject) => {
          this.lookups.push({ resolve, reject: (code) => reject(Object.assign(new Error(code), { code })) });
        });
      },
      records: (_, family) => {
        this.askedDns++;
        if (this.records === null) return new Promise(() => {});
        if (this.records === "error") return Promise.reject(new Error("no DNS"));
        return Promise.resolve(this.records.filter(({ address }) => address.includes(":") === (family === 6)));
      },
      now: () => this.now,
      after: (ms, task) => {
        const timer = { at: this.now + ms, task };
        this.#timers.add(timer);
        return () => this.#timers.delete(timer);
      },
    };
    this.resolver = new Resolver(options, seams);
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

  async answer(...addresses: string[]): Promise<void> {
    this.lookups.shift()!.resolve(addresses);
    await settled();
  }

  async fail(code: string): Promise<void> {
    this.lookups.shift()!.reject(code);
    await settled();
  }

  /** What was said since the last time. */
  said(): string[] {
    return this.told.splice(0);
  }
}

const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

const GONE = (error: string): string => `warning: upstream name no longer resolves; its last addresses stay in use {"error":"${error}","upstream":"proxy.example:1080"}`;
const NEVER = (error: string): string => `warning: upstream name does not resolve {"error":"${error}","upstream":"proxy.example:1080"}`;
const BACK = (addresses: string): string => `info: upstream name resolves again {"addresses":"${addresses}","upstream":"proxy.example:1080"}`;

/** A world in which the name has resolved to 192.0.2.1 once. */
async function settledWorld(ttl = 300): Promise<World> {
  const world = new World();
  world.records = [{ address: "192.0.2.1", ttl }];
  const started = world.resolver.start();
  await world.answer("192.0.2.1");
  assert.deepEqual((await started).map(({ text }) => text), ["192.0.2.1:1080"]);
  assert.deepEqual(world.said(), ["192.0.2.1:1080"]);
  return world;
}

test("a literal stands for itself, for ever", async () => {
  for (const [host, text] of [["192.0.2.1", "192.0.2.1:1080"], ["2001:db8::1", "[2001:db8::1]:1080"], ["::ffff:192.0.2.1", "192.0.2.1:1080"]]) {
    const world = new World(host);
    assert.deepEqual((await world.resolver.start()).map((address) => address.text), [text]);
    await world.resolver.refresh();
    await world.pass(1e9);
    assert.deepEqual([world.asked, world.timers, world.said()], [0, 0, []]);
  }
});

test("the addresses are those of getaddrinfo, in its order, without repetitions, 16 at most", async () => {
  const world = new World();
  const started = world.resolver.start();
  await world.answer("2001:db8::1", "192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "nonsense", ...Array.from({ length: 20 }, (_, i) => `198.51.100.${i}`));
  const addresses = await started;
  assert.deepEqual(addresses.slice(0, 3).map(({ text }) => text), ["[2001:db8::1]:1080", "192.0.2.1:1080", "198.51.100.0:1080"]);
  assert.equal(addresses.length, 16);
  assert.deepEqual(world.resolver.addresses, addresses);
  assert.ok(Object.isFrozen(addresses));
});

test("the name is asked for again when the TTL has passed, within bounds", async () => {
  const cases: [World["records"], number][] = [
    [[{ address: "192.0.2.1", ttl: 300 }], 300_000],
    [[{ address: "192.0.2.1", ttl: 300 }, { address: "192.0.2.1", ttl: 20 }], 20_000],
    [[{ address: "192.0.2.1", ttl: 0 }], 5000],
    [[{ address: "192.0.2.1", ttl: 86_400 }], 3_600_000],
    // DNS has another answer than getaddrinfo: /etc/hosts speaks.
    [[{ address: "192.0.2.9", ttl: 300 }], 60_000],
    ["error", 60_000],
  ];
  for (const [records, ms] of cases) {
    const world = new World();
    world.records = records;
    void world.resolver.start();
    await world.answer("192.0.2.1");
    await world.pass(ms - 1);
    assert.equal(world.asked, 1, `${ms}`);
    await world.pass(1);
    assert.equal(world.asked, 2, `${ms}`);
  }
});

test("the addresses do not wait for their TTL", async () => {
  const world = new World();
  world.records = null;
  const started = world.resolver.start();
  await world.answer("192.0.2.1");
  assert.equal((await started).length, 1);
  await world.pass(5000 + 59_999);
  assert.equal(world.asked, 1);
  await world.pass(1);
  assert.equal(world.asked, 2);
});

test("onChange is called when the addresses or their order change, and only then", async () => {
  const world = await settledWorld(60);
  const answers: [string[], string[]][] = [
    [["192.0.2.1"], []],
    [["192.0.2.1", "192.0.2.2"], ["192.0.2.1:1080 192.0.2.2:1080"]],
    [["192.0.2.2", "192.0.2.1"], ["192.0.2.2:1080 192.0.2.1:1080"]],
    [["192.0.2.2", "192.0.2.1"], []],
    [["192.0.2.2"], ["192.0.2.2:1080"]],
  ];
  for (const [addresses, expected] of answers) {
    await world.pass(60_000);
    await world.answer(...addresses);
    assert.deepEqual(world.said(), expected);
  }
});

test("a failure changes nothing, is told once, and is tried again less and less often", async () => {
  const world = await settledWorld();
  await world.pass(300_000);
  await world.fail("ENOTFOUND");
  assert.deepEqual(world.said(), [GONE("ENOTFOUND")]);
  for (const seconds of [1, 2, 4, 8, 16, 32, 60, 60]) {
    const asked = world.asked;
    await world.pass(seconds * 1000 - 1);
    assert.equal(world.asked, asked, `${seconds} s`);
    await world.pass(1);
    assert.equal(world.asked, asked + 1, `${seconds} s`);
    await world.fail("EAI_AGAIN");
  }
  assert.deepEqual(world.said(), []);
  assert.equal(world.resolver.addresses[0]?.text, "192.0.2.1:1080");
  await world.pass(60_000);
  await world.answer("192.0.2.1");
  assert.deepEqual(world.said(), [BACK("192.0.2.1:1080")]);
  await world.pass(300_000);
  await world.answer("nonsense");
  assert.deepEqual(world.said(), [GONE("ENODATA")]);
});

test("a name that does not resolve at the start may do so later", async () => {
  const world = new World();
  const started = world.resolver.start();
  await world.fail("ENOTFOUND");
  assert.deepEqual(await started, []);
  assert.deepEqual(world.said(), [NEVER("ENOTFOUND")]);
  await world.pass(1000);
  await world.answer("192.0.2.1");
  assert.deepEqual(world.said(), [BACK("192.0.2.1:1080"), "192.0.2.1:1080"]);
});

test("an answer has 5 s, and a getaddrinfo that hangs is not joined by a second one", async () => {
  const world = new World();
  const started = world.resolver.start();
  await world.pass(4999);
  assert.deepEqual(world.said(), []);
  await world.pass(1);
  assert.deepEqual(await started, []);
  assert.deepEqual(world.said(), [NEVER("ETIMEOUT")]);
  await world.pass(60_000);
  assert.equal(world.asked, 1);
  // The old question is answered at last, between two attempts or during one.
  await world.answer("192.0.2.1");
  assert.deepEqual(world.said(), [BACK("192.0.2.1:1080"), "192.0.2.1:1080"]);
  assert.equal(world.timers, 1);
  await world.pass(59_999);
  assert.equal(world.asked, 1);
  await world.pass(1);
  assert.equal(world.asked, 2);
  await world.pass(6001);
  assert.equal(world.asked, 2);
  await world.answer("192.0.2.1");
  assert.deepEqual(world.said(), [GONE("ETIMEOUT"), BACK("192.0.2.1:1080")]);
});

test("refresh() asks at once, once a second, and shares what is under way", async () => {
  const world = await settledWorld();
  await world.pass(999);
  await world.resolver.refresh();
  assert.equal(world.asked, 1);
  await world.pass(1);
  const ended: number[] = [];
  const both = [0, 1].map((i) => world.resolver.refresh().then(() => ended.push(i)));
  await settled();
  // Neither has an answer, and there is one question to each.
  assert.deepEqual([ended, world.asked, world.askedDns], [[], 2, 4]);
  await world.answer("192.0.2.7");
  await Promise.all(both);
  assert.deepEqual(world.said(), ["192.0.2.7:1080"]);
  // The TTL counts from now: no second timer is left from before.
  await world.pass(60_000 - 1);
  assert.equal(world.asked, 2);
  assert.equal(world.timers, 1);
});

test("after close() nothing is asked, told or awaited", async () => {
  const world = await settledWorld();
  world.resolver.close();
  assert.equal(world.timers, 0);
  await world.resolver.refresh();
  await world.pass(1e7);
  assert.deepEqual([world.asked, world.timers, world.said()], [1, 0, []]);
  for (const end of ["answer", "fail"] as const) {
    const closing = new World();
    const started = closing.resolver.start();
    closing.resolver.close();
    await closing[end]("192.0.2.1");
    await started;
    assert.deepEqual([closing.said(), closing.resolver.addresses.length], [[], 0]);
    await closing.pass(1e6);
    assert.equal(closing.timers, 0);
  }
});

test("after close() a TTL that comes late starts nothing", async () => {
  const world = new World();
  world.records = null;
  void world.resolver.start();
  await world.answer("192.0.2.1");
  world.resolver.close();
  await world.pass(10_000);
  assert.equal(world.timers, 0);
});

test("a TTL that comes late does not replace a newer one", async () => {
  const world = new World();
  world.records = null;
  void world.resolver.start();
  await world.answer("192.0.2.1");
  await world.pass(1500);
  world.records = [{ address: "192.0.2.1", ttl: 300 }];
  void world.resolver.refresh();
  await world.answer("192.0.2.1");
  await world.pass(299_999);
  assert.equal(world.asked, 2);
  await world.pass(1);
  assert.equal(world.asked, 3);
});

test("with the system's own resolver: localhost, and a name that cannot exist", async () => {
  const told: string[] = [];
  const log = { warning: (message: string) => void told.push(message), info: () => {} };
  const make = (host: string): Resolver => new Resolver({ host, port: 1, log, onChange: () => {} });
  const good = make("localhost");
  assert.match((await good.start())[0]?.text ?? "", /^(127\.0\.0\.1|\[::1\]):1$/);
  good.close();
  const bad = make("no-such-name.invalid");
  assert.deepEqual(await bad.start(), []);
  bad.close();
  assert.deepEqual(told, ["upstream name does not resolve"]);
});
