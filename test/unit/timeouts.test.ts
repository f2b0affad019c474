/** The wheel of deadlines: nobody is asked too early, nobody is forgotten. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { TICK_MS, Timeouts, type Waiter } from "../../src/engine/timeouts.ts";

class Alarm implements Waiter {
  nextWaiter: Waiter | null = null;
  previousWaiter: Waiter | null = null;
  bucket = -1;
  rung: number[] = [];
  again: (nowMs: number) => number = () => -1;

  due(nowMs: number): number {
    this.rung.push(nowMs);
    return this.again(nowMs);
  }
}

test("a waiter is asked once its time has come, not before, and once", () => {
  const wheel = new Timeouts(0);
  const alarm = new Alarm();
  wheel.start(alarm, 100);
  for (let now = 0; now < 100; now++) wheel.expire(now);
  assert.deepEqual(alarm.rung, []);
  wheel.expire(100 + TICK_MS);
  assert.deepEqual(alarm.rung, [100 + TICK_MS]);
  wheel.expire(10_000);
  assert.equal(alarm.rung.length, 1);
  assert.equal(wheel.waiting, 0);
});

test("a waiter that asks to be asked again is, at the new time", () => {
  const wheel = new Timeouts(0);
  const alarm = new Alarm();
  alarm.again = (now) => (now < 500 ? now + 200 : -1);
  wheel.start(alarm, 100);
  for (let now = 0; now <= 1000; now += 10) wheel.expire(now);
  assert.deepEqual(alarm.rung.map((ms) => ms / 100 | 0), [1, 3, 5]);
  assert.equal(wheel.waiting, 0);
});

test("a deadline of hours is kept by asking once in each round", () => {
  const wheel = new Timeouts(0);
  const alarm = new Alarm();
  const due = 7_440_000;
  alarm.again = (now) => (now < due ? due : -1);
  wheel.start(alarm, due);
  let now = 0;
  while (wheel.waiting > 0) {
    now += wheel.nextMs(now, 1_000_000);
    wheel.expire(now);
  }
  assert.ok(now >= due && now <= due + 2 * TICK_MS, `${now}`);
  assert.ok(alarm.rung.length < 150, `asked ${alarm.rung.length} times`);
});

test("one that is stopped, or stops another while it is asked, is not asked", () => {
  const wheel = new Timeouts(0);
  const [one, other] = [new Alarm(), new Alarm()];
  const stopOther = (mine: Alarm) => () => {
    wheel.stop(mine === one ? other : one);
    return -1;
  };
  one.again = stopOther(one);
  other.again = stopOther(other);
  wheel.start(one, 50);
  wheel.start(other, 50);
  wheel.expire(1000);
  assert.equal(one.rung.length + other.rung.length, 1);
  assert.equal(wheel.waiting, 0);
});

test("the loop may sleep until the next deadline, and no longer than it is told", () => {
  const wheel = new Timeouts(0);
  assert.equal(wheel.nextMs(0, 1000), 1000);
  wheel.start(new Alarm(), 300);
  const next = wheel.nextMs(0, 1000);
  assert.ok(next >= 300 && next <= 300 + TICK_MS, `${next}`);
  assert.equal(wheel.nextMs(10_000, 1000), 0);
});

test("property: whoever starts, stops and moves when, all are asked in time and none twice", () => {
  const step = fc.record({
    who: fc.nat(19), what: fc.constantFrom("start", "stop", "pass"), ms: fc.nat(200_000),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
      let now = 0;
      const wheel = new Timeouts(now);
      const alarms = Array.from({ length: 20 }, () => new Alarm());
      const due = new Map<Alarm, number>();
      for (const alarm of alarms) {
        alarm.again = (at) => {
          assert.ok(due.has(alarm), "asked although it does not wait");
          if (at < due.get(alarm)!) return due.get(alarm)!;
          due.delete(alarm);
          return -1;
        };
      }
      for (const { who, what, ms } of steps) {
        const alarm = alarms[who]!;
        if (what === "start") {
          wheel.start(alarm, now + ms);
          due.set(alarm, now + ms);
        } else if (what === "stop") {
          wheel.stop(alarm);
          due.delete(alarm);
        } else {
          now += ms % 5000;
          wheel.expire(now);
          for (const at of due.values()) assert.ok(at > now - TICK_MS, "forgotten");
        }
        assert.equal(wheel.waiting, due.size);
      }
    }),
  );
});
