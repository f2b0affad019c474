/** A worker's names: asked once, told to everyone who waits, and forgotten in time. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { type Asker, type NameAnswer, NameCache } from "../../src/engine/names.ts";

const CLIENT = 7;

class Waiter implements Asker {
  queued = false;
  readonly heard: NameAnswer[] = [];

  turn(): boolean {
    return false;
  }

  named(answer: NameAnswer): void {
    this.heard.push(answer);
  }
}

const answerOf = (host: number, ttlMs: number): NameAnswer => ({
  addresses: [Uint8Array.of(192, 0, 2, host)], ttlMs, failure: null,
});

function makeCache(): { cache: NameCache; asked: string[] } {
  const asked: string[] = [];
  return { cache: new NameCache((name) => void asked.push(name)), asked };
}

test("all who wait for a name wait for one question, and hear its answer once", () => {
  const { cache, asked } = makeCache();
  const waiters = Array.from({ length: 5 }, () => new Waiter());
  for (const waiter of waiters) assert.equal(cache.lookup("a.example", waiter, 0, CLIENT), null);
  const other = new Waiter();
  assert.equal(cache.lookup("b.example", other, 0, CLIENT), null);
  assert.deepEqual(asked, ["a.example", "b.example"]);
  assert.equal(cache.asked, 2);
  const answer = answerOf(1, 1000);
  cache.answer("a.example", answer, 5);
  for (const { heard } of waiters) assert.deepEqual(heard, [answer]);
  assert.deepEqual(other.heard, []);
  assert.equal(cache.asked, 1);
});

test("a known name costs no question until its time has run out", () => {
  const { cache, asked } = makeCache();
  const waiter = new Waiter();
  cache.lookup("a.example", waiter, 0, CLIENT);
  const answer = answerOf(1, 1000);
  cache.answer("a.example", answer, 100);
  assert.equal(cache.lookup("a.example", waiter, 1099, CLIENT), answer);
  assert.equal(asked.length, 1);
  assert.equal(waiter.heard.length, 1, "who is answered at once is not told again");
  assert.equal(cache.lookup("a.example", waiter, 1100, CLIENT), null);
  assert.equal(asked.length, 2);
});

test("failures are known for their time, too; what holds for no time is asked each time", () => {
  const { cache, asked } = makeCache();
  const failure: NameAnswer = { addresses: [], ttlMs: 2000, failure: "failed" };
  cache.lookup("a.example", new Waiter(), 0, CLIENT);
  cache.answer("a.example", failure, 0);
  assert.equal(cache.lookup("a.example", new Waiter(), 1999, CLIENT), failure);
  cache.lookup("b.example", new Waiter(), 0, CLIENT);
  cache.answer("b.example", answerOf(2, 0), 0);
  assert.equal(cache.lookup("b.example", new Waiter(), 0, CLIENT), null);
  assert.deepEqual(asked, ["a.example", "b.example", "b.example"]);
});

test("who has left is told nothing; his question serves the next", () => {
  const { cache, asked } = makeCache();
  const [gone, next, after] = [new Waiter(), new Waiter(), new Waiter()];
  cache.lookup("a.example", gone, 0, CLIENT);
  cache.forget("a.example", gone);
  cache.forget("a.example", gone);
  cache.forget("never.example", gone);
  assert.equal(cache.asked, 1, "main will answer it all the same");
  cache.lookup("a.example", next, 10, CLIENT);
  assert.equal(asked.length, 1);
  cache.answer("a.example", answerOf(1, 1000), 20);
  assert.equal(gone.heard.length, 0);
  assert.equal(next.heard.length, 1);
  assert.notEqual(cache.lookup("a.example", after, 30, CLIENT), null);
  assert.equal(cache.asked, 0);
});

test("a worse answer takes the place of a better one, and one that does not last of one that did", () => {
  const { cache } = makeCache();
  cache.answer("a.example", answerOf(1, 100_000), 0);
  const later = answerOf(2, 100);
  cache.answer("a.example", later, 10);
  assert.equal(cache.lookup("a.example", new Waiter(), 20, CLIENT), later);
  cache.answer("a.example", answerOf(3, 0), 30);
  assert.equal(cache.lookup("a.example", new Waiter(), 31, CLIENT), null);
});

test("one who asks for another name while he is told is not told twice", () => {
  const { cache } = makeCache();
  const waiter = new Waiter();
  const again: Asker = {
    queued: false, turn: () => false,
    named: () => assert.equal(cache.lookup("a.example", waiter, 1, CLIENT), null),
  };
  cache.lookup("a.example", again, 0, CLIENT);
  cache.answer("a.example", answerOf(1, 0), 0);
  assert.equal(waiter.heard.length, 0, "that was the answer to an older question");
  cache.answer("a.example", answerOf(2, 0), 2);
  assert.equal(waiter.heard.length, 1);
});

test("of too many names the oldest is forgotten, and the rest is kept", () => {
  const { cache, asked } = makeCache();
  for (let i = 0; i < 4096; i++) cache.answer(`h${i}.example`, answerOf(1, 1e9), i);
  cache.answer("h0.example", answerOf(1, 1e9), 5000); // Now it is the youngest.
  cache.answer("new.example", answerOf(1, 1e9), 5001);
  const isKnown = (name: string) => cache.lookup(name, new Waiter(), 5002, CLIENT) !== null;
  for (const name of ["h0", "new", "h2", "h4095"]) assert.ok(isKnown(`${name}.example`), name);
  assert.equal(isKnown("h1.example"), false);
  assert.deepEqual(asked, ["h1.example"]);
});

test("property: each who waits hears one answer, unless he left; no name is asked twice at a time", () => {
  const step = fc.record({
    what: fc.constantFrom("lookup", "lookup", "lookup", "forget", "answer", "answer"),
    name: fc.constantFrom("a", "b", "c"), who: fc.nat(5), ttlMs: fc.constantFrom(0, 50, 1000),
    ms: fc.nat(100),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 100 }), (steps) => {
      const open = new Set<string>();
      const cache = new NameCache((name) => {
        assert.ok(!open.has(name), "asked twice");
        open.add(name);
      });
      const waiters = Array.from({ length: 6 }, () => new Waiter());
      const waiting = new Map<string, Set<Waiter>>();
      const known = new Map<string, { answer: NameAnswer; untilMs: number }>();
      const due = new Map(waiters.map((waiter) => [waiter, 0]));
      let now = 0;
      let host = 0;
      for (const { what, name, who, ttlMs, ms } of steps) {
        now += ms;
        const waiter = waiters[who]!;
        const here = waiting.get(name) ?? new Set();
        waiting.set(name, here);
        if (what === "lookup") {
          const holds = known.get(name);
          const expected = holds !== undefined && now < holds.untilMs ? holds.answer : null;
          assert.equal(cache.lookup(name, waiter, now, CLIENT), expected);
          if (expected === null) here.add(waiter);
        } else if (what === "forget") {
          cache.forget(name, waiter);
          here.delete(waiter);
        } else if (open.delete(name)) {
          const answer = answerOf(host++ & 255, ttlMs);
          cache.answer(name, answer, now);
          known.set(name, { answer, untilMs: now + ttlMs });
          for (const each of here) due.set(each, due.get(each)! + 1);
          for (const each of here) assert.equal(each.heard.at(-1), answer);
          here.clear();
        }
        for (const each of waiters) assert.equal(each.heard.length, due.get(each));
        assert.equal(cache.asked, open.size);
      }
    }),
  );
});

test("that a client has too many names under way is told to it alone: the name is asked for on behalf of others", () => {
  const asked: [string, number][] = [];
  const cache = new NameCache((...question) => asked.push(question));
  const [greedy, also, other, third] = [1, 2, 3, 4].map(() => new Waiter()) as [Waiter, Waiter, Waiter, Waiter];
  for (const [waiter, client] of [[greedy, 1], [also, 1], [other, 2], [third, 3]] as const) {
    assert.equal(cache.lookup("a.example", waiter, 0, client), null);
  }
  const busy: NameAnswer = { addresses: [], ttlMs: 0, failure: "busy" };
  cache.answer("a.example", busy, 1);
  assert.deepEqual([greedy, also, other, third].map(({ heard }) => heard.length), [1, 1, 0, 0]);
  assert.equal(greedy.heard[0], busy);
  cache.answer("a.example", busy, 2);
  assert.deepEqual([other, third].map(({ heard }) => heard.length), [1, 0]);
  assert.equal(cache.lookup("a.example", greedy, 2, 1), null, "who joins a question asks none");
  const answer = answerOf(1, 1000);
  cache.answer("a.example", answer, 3);
  assert.deepEqual([third.heard, greedy.heard], [[answer], [busy, answer]]);
  assert.deepEqual(asked, [["a.example", 1], ["a.example", 2], ["a.example", 3]]);
  assert.equal(cache.asked, 0);
});
