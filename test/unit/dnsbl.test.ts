/** What the block lists say, with a clock and a DNS that the test owns. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Dnsbl, type DnsblOptions, type DnsblState, questionName } from "../../src/control/names/dnsbl.ts";

const ONE = Uint8Array.of(192, 0, 2, 1);
const TWO = Uint8Array.of(192, 0, 2, 2);
const SIX = Uint8Array.of(0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0xab, 0xcd);
const SIX_NAME = "d.c.b.a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.bl.example";

/** An address, several, an error code, or silence (null). */
type Answer = string | readonly string[] | null;

class World {
  now = 1000;
  /** By name; everything else does not exist. */
  readonly answers = new Map<string, Answer>();
  /** What a name is answered with that is not in `answers`. */
  otherwise: Answer = "ENOTFOUND";
  asked: string[] = [];
  onAsk = (): void => {};
  cancelled = 0;
  underWay = 0;
  underWayMax = 0;
  readonly told: string[] = [];
  readonly dnsbl: Dnsbl;
  readonly #timers = new Set<{ at: number; task: () => void }>();

  constructor(options: Partial<DnsblOptions> = {}) {
    const line = (level: string) => (message: string, fields?: object, _at?: number, limitKey?: string) => {
      this.told.push(`${level}: ${message} ${JSON.stringify(fields)}${limitKey === undefined ? "" : ` by ${limitKey}`}`);
    };
    this.dnsbl = new Dnsbl(
      {
        domains: ["bl.example"],
        intervalMs: 60_000,
        addresses: [ONE, TWO, SIX],
        log: { warning: line("warning"), info: line("info") },
        onChange: (listed) => this.told.push(`listed: ${[...listed].join(" ")}`),
        ...options,
      },
      {
        ask: (name, family) => {
          assert.equal(family, 4);
          this.asked.push(name);
          this.onAsk();
          this.underWayMax = Math.max(this.underWayMax, ++this.underWay);
          return { records: this.#answer(name), cancel: () => {
            this.cancelled++;
            this.underWay--;
          } };
        },
        now: () => this.now,
        after: (ms, task) => {
          const timer = { at: this.now + ms, task };
          this.#timers.add(timer);
          return () => this.#timers.delete(timer);
        },
      },
    );
  }

  #answer(name: string): Promise<{ address: string; ttl: number }[]> {
    const answer = this.answers.get(name) ?? (this.answers.has(name) ? null : this.otherwise);
    if (answer === null) return new Promise(() => {});
    if (typeof answer === "string" && answer.startsWith("E")) {
      return Promise.reject(Object.assign(new Error(answer), { code: answer }));
    }
    return Promise.resolve([answer].flat().map((address) => ({ address, ttl: 60 })));
  }

  get timers(): number {
    return this.#timers.size;
  }

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

  /** What was said since the last time. */
  said(): string[] {
    return this.told.splice(0);
  }

  listing(): string {
    return this.dnsbl.states.map(({ lists }) => (lists.length > 0 ? "x" : "-")).join("");
  }
}

/** More than once: a round is a chain of promises. */
const settled = async (): Promise<void> => {
  for (let i = 0; i < 3; i++) await new Promise((resolve) => setImmediate(resolve));
};

const LISTED = 'warning: egress address is listed {"address":"192.0.2.1","answer":"127.0.0.2","dnsbl":"bl.example"} by 192.0.2.1 bl.example';
const CLEAN = 'info: egress address is no longer listed {"address":"192.0.2.1","dnsbl":"bl.example"}';
const ONE_NAME = "1.2.0.192.bl.example";

test("the names that are asked for", async () => {
  assert.equal(questionName(Uint8Array.of(12, 34, 56, 78), "zen.spamhaus.org"), "78.56.34.12.zen.spamhaus.org");
  assert.equal(questionName(ONE, ".bl.example."), ONE_NAME);
  assert.equal(questionName(SIX, "bl.example"), SIX_NAME);
  const world = new World({ domains: ["bl.example", "other.example", "bl.example"] });
  world.dnsbl.start();
  await settled();
  assert.deepEqual(world.asked, [ONE_NAME, "1.2.0.192.other.example", "2.2.0.192.bl.example", "2.2.0.192.other.example", SIX_NAME, SIX_NAME.replace("bl.", "other.")]);
});

test("listed after two rounds in a row, clean after two", async () => {
  const world = new World();
  world.dnsbl.start();
  await world.pass(0);
  world.answers.set(ONE_NAME, "127.0.0.2");
  await world.pass(60_000);
  assert.deepEqual([world.listing(), world.said()], ["---", []]);
  await world.pass(60_000);
  assert.deepEqual([world.listing(), world.said()], ["x--", [LISTED, "listed: 0"]]);
  await world.pass(300_000);
  assert.deepEqual(world.said(), []);
  world.answers.delete(ONE_NAME);
  await world.pass(60_000);
  assert.deepEqual([world.listing(), world.said()], ["x--", []]);
  await world.pass(60_000);
  assert.deepEqual([world.listing(), world.said()], ["---", [CLEAN, "listed: "]]);
});

test("of an address that nothing is known of, the first answer counts", async () => {
  const world = new World();
  world.answers.set(ONE_NAME, "127.0.0.2");
  world.dnsbl.start();
  await world.pass(0);
  assert.deepEqual([world.listing(), world.said()], ["x--", [LISTED, "listed: 0"]]);
  // What is known is no news after a reload, and changes as ever.
  const later = new World({ previous: world.dnsbl.states });
  later.answers.set("2.2.0.192.bl.example", "127.0.0.2");
  later.dnsbl.start();
  await later.pass(0);
  assert.equal(later.listing(), "x--");
  await later.pass(60_000);
  assert.equal(later.listing(), "-x-");
});

test("an answer that is contradicted in the next round changes nothing", async () => {
  const world = new World();
  world.dnsbl.start();
  await world.pass(0);
  for (let round = 0; round < 10; round++) {
    if (round % 2 === 0) world.answers.set(ONE_NAME, "127.0.0.2");
    else world.answers.delete(ONE_NAME);
    await world.pass(60_000);
  }
  assert.deepEqual(world.said(), []);
});

test("SERVFAIL, silence, refusals and nonsense change nothing, in either direction", async () => {
  for (const answer of ["ESERVFAIL", "ETIMEOUT", null, "127.255.255.254", ["127.0.0.2", "127.255.255.252"], "127.0.0.1", "127.0.1.2", "203.0.113.80"]) {
    const world = new World({ addresses: [ONE, TWO] });
    world.answers.set(ONE_NAME, "127.0.0.2");
    world.dnsbl.start();
    await world.pass(60_000);
    assert.equal(world.listing(), "x-", String(answer));
    world.answers.set(ONE_NAME, answer);
    world.answers.set("2.2.0.192.bl.example", answer);
    await world.pass(600_000);
    assert.equal(world.listing(), "x-", String(answer));
    assert.deepEqual(world.said().filter((line) => line.startsWith("listed")), ["listed: 0"]);
  }
});

test("a failure between two answers does not interrupt them", async () => {
  const world = new World();
  world.dnsbl.start();
  await world.pass(0);
  world.answers.set(ONE_NAME, "127.0.0.2");
  await world.pass(60_000);
  world.answers.set(ONE_NAME, "ESERVFAIL");
  await world.pass(60_000);
  world.answers.set(ONE_NAME, "127.0.0.2");
  await world.pass(60_000);
  assert.equal(world.listing(), "x--");
});

test("a list that refuses us, talks nonsense or is silent is complained about once, and praised once", async () => {
  const cases: [Answer, string][] = [
    ["127.255.255.254", 'warning: DNSBL refuses our questions; it changes nothing until it answers {"answer":"127.255.255.254","dnsbl":"bl.example"} by bl.example'],
    ["203.0.113.80", 'warning: DNSBL gives answers that no block list gives; they change nothing {"answer":"203.0.113.80","dnsbl":"bl.example"} by bl.example'],
    ["ESERVFAIL", 'warning: DNSBL does not answer; it changes nothing until it does {"answer":"ESERVFAIL","dnsbl":"bl.example"} by bl.example'],
    [null, 'warning: DNSBL does not answer; it changes nothing until it does {"answer":"ETIMEOUT","dnsbl":"bl.example"} by bl.example'],
  ];
  for (const [answer, complaint] of cases) {
    const world = new World();
    world.otherwise = answer;
    world.dnsbl.start();
    await world.pass(600_000);
    assert.deepEqual(world.said(), [complaint]);
    world.otherwise = "ENOTFOUND";
    await world.pass(180_000);
    assert.deepEqual(world.said(), ['info: DNSBL answers again {"dnsbl":"bl.example"}']);
  }
});

test("one name that fails is no complaint about the list", async () => {
  const world = new World();
  world.answers.set(ONE_NAME, "ESERVFAIL");
  world.dnsbl.start();
  await world.pass(600_000);
  assert.deepEqual(world.said(), []);
});

test("several lists: one is enough, and all must let go", async () => {
  const world = new World({ domains: ["bl.example", "other.example"], addresses: [ONE] });
  world.answers.set(ONE_NAME, "127.0.0.2");
  world.answers.set("1.2.0.192.other.example", "127.0.0.4");
  world.dnsbl.start();
  await world.pass(60_000);
  assert.deepEqual(world.dnsbl.states, [{ address: "192.0.2.1", lists: ["bl.example", "other.example"] }]);
  world.answers.delete(ONE_NAME);
  await world.pass(120_000);
  assert.deepEqual(world.dnsbl.states, [{ address: "192.0.2.1", lists: ["other.example"] }]);
  assert.deepEqual(world.said().filter((line) => line.startsWith("listed")), ["listed: 0"]);
  world.answers.delete("1.2.0.192.other.example");
  await world.pass(120_000);
  assert.deepEqual(world.said().filter((line) => line.startsWith("listed")), ["listed: "]);
});

test("changes of one round are told together, IPv6 and most of them too", async () => {
  const world = new World();
  world.otherwise = "127.0.0.2";
  world.dnsbl.start();
  await world.pass(60_000);
  const said = world.said();
  assert.deepEqual(said.filter((line) => line.startsWith("listed")), ["listed: 0 1 2"]);
  assert.match(said[2]!, /"address":"2001:db8:1::abcd"/);
});

test("questions are asked a few at a time, and a dead list is left alone for the rest of a round", async () => {
  const addresses = Array.from({ length: 4096 }, (_, i) => Uint8Array.of(10, 0, i >> 8, i & 255));
  const world = new World({ addresses });
  world.dnsbl.start();
  await world.pass(1000);
  assert.deepEqual([world.asked.length, world.underWayMax, world.underWay], [4096, 16, 0]);
  world.otherwise = null;
  world.asked = [];
  await world.pass(60_000 + 15_000);
  assert.ok(world.asked.length < 64, `${world.asked.length}`);
  assert.equal(world.said().length, 1);
  world.otherwise = "127.255.255.254";
  world.asked = [];
  await world.pass(60_000);
  assert.ok(world.asked.length < 64, `${world.asked.length}`);
});

test("rounds do not overlap: a slow one delays the next", async () => {
  const world = new World({ addresses: [ONE], intervalMs: 1000 });
  world.otherwise = null;
  world.dnsbl.start();
  await world.pass(4999);
  assert.equal(world.asked.length, 1);
  await world.pass(1);
  assert.equal(world.asked.length, 2);
});

test("what an earlier configuration knew is told at the start, by address and list", async () => {
  const previous: DnsblState[] = [
    { address: "192.0.2.2", lists: ["bl.example"] },
    { address: "192.0.2.1", lists: ["gone.example"] },
    { address: "203.0.113.1", lists: ["bl.example"] },
  ];
  const world = new World({ previous });
  world.dnsbl.start();
  assert.deepEqual(world.said(), ["listed: 1"]);
  await world.pass(60_000);
  assert.equal(world.said().at(-1), "listed: ");
});

test("close() ends questions and timers, and nothing is told after it", async () => {
  const world = new World({ addresses: [ONE] });
  world.otherwise = "127.0.0.2";
  world.dnsbl.start();
  await world.pass(0);
  world.otherwise = null;
  await world.pass(60_000);
  world.dnsbl.close();
  assert.deepEqual([world.timers, world.cancelled], [0, 2]);
  const second = new World({ addresses: [ONE] });
  second.otherwise = "127.0.0.2";
  second.dnsbl.start();
  await second.pass(0);
  second.said();
  second.onAsk = () => second.dnsbl.close();
  await second.pass(600_000);
  assert.deepEqual([second.said(), second.asked.length], [[], 2]);
});

test("without a list, or an address, nothing is asked", async () => {
  for (const options of [{ domains: [] }, { addresses: [] }]) {
    const world = new World(options);
    world.dnsbl.start();
    await world.pass(600_000);
    assert.deepEqual([world.asked, world.timers], [[], 0]);
  }
});
