/** What this process has and uses: the CPU time of a thread, by its name; and what /proc says. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { closeSync, openSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { Worker } from "node:worker_threads";
import { PR_SET_NAME } from "../../native-bindings/constants.ts";
import { linux } from "../../native-bindings/syscalls.ts";
import { openFds, ProcessUse, ThreadTimes } from "../../src/control/resources.ts";

const sys = linux();

function rename(name: string): void {
  const memory = sys.memory(16);
  new TextEncoder().encodeInto(name, memory.bytes);
  assert.equal(sys.prctl(PR_SET_NAME, memory.address), 0);
}

/** What the scheduler says of this thread: Documentation/scheduler/sched-stats.rst, time on the CPU comes first. */
const bySchedstat = (): number => Number(readFileSync(`/proc/self/task/${process.pid}/schedstat`, "utf8").split(" ")[0]) / 1e9;

/** Another thread has so much CPU time, and this one waits for it. */
async function work(seconds: number): Promise<void> {
  const code = `const began = performance.now(); while (performance.now() - began < ${1000 * seconds});`;
  await once(new Worker(code, { eval: true }), "exit");
}

test("a thread's CPU time is what the scheduler counts, and no other thread's", async () => {
  const times = new ThreadTimes(sys);
  rename("here-0");
  for (let round = 0; round < 3; round++) {
    const before = bySchedstat();
    const seconds = times.seconds("here-0", 0)!;
    for (let i = 0; i < 3e6; i++) Math.sqrt(i); // The scheduler's account is brought up to date at its ticks.
    // Both count the same clock; what is between two readings lies between them.
    const after = times.seconds("here-0", 0)!;
    assert.ok(before <= seconds && seconds < after, `${before} ${seconds} ${after}`);
  }
  await work(0.4);
  // This thread has slept, so its account is up to date.
  const [counted, seconds] = [bySchedstat(), times.seconds("here-0", 0)!];
  assert.ok(seconds < counted + 0.1, `${counted} ${seconds}`);
});

test("null where there is no such thread, and another life is looked for anew", () => {
  const times = new ThreadTimes(sys);
  rename("here-0");
  assert.equal(times.seconds("here-1", 0), null);
  assert.notEqual(times.seconds("here-0", 0), null);
  rename("here-1");
  assert.notEqual(times.seconds("here-0", 0), null, "the same life: the same thread, whatever it is called now");
  assert.equal(times.seconds("here-0", 1), null, "another, and nobody has the name");
  assert.notEqual(times.seconds("here-1", 7), null);
});

test("what /proc says is read once a second, and never older", (context) => {
  const use = new ProcessUse();
  const before = use.at(5000);
  assert.equal(before.fds, openFds());
  assert.ok(before.residentBytes > 1e7 && before.residentBytes <= process.memoryUsage.rss() + 1e7, `${before.residentBytes}`);
  const fds = Array.from({ length: 7 }, () => openSync("/dev/null", "r"));
  context.after(() => fds.forEach(closeSync));
  assert.deepEqual(use.at(5999), before);
  assert.equal(use.at(6000).fds, before.fds + 7);
});
