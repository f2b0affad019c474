/**
 * The engine on the simulated kernel: each seed makes two worlds of its own (see sim/world.ts), one
 * of redirected connections and one of SOCKS clients. The engine runs in each until everyone is
 * done, and then the world judges what its peers have seen.
 *
 * SEEDS=n plays more of them, SEED=n one alone. A failure names its seed.
 */
import assert from "node:assert/strict";
import { it } from "node:test";
import {
  EPOLLIN, IP_TRANSPARENT, O_NONBLOCK, SOCK_NONBLOCK, SOCK_STREAM, SOL_IP,
} from "../../native-bindings/constants.ts";
import type { Memory } from "../../native-bindings/syscalls.ts";
import { Admission, admissionBytes } from "../../src/engine/admission.ts";
import {
  ACCEPTED, BYTES_DOWN, BYTES_UP, countersBytes, countersRow, endingAt, TUNNELS, unended,
} from "../../src/engine/counters.ts";
import { type Reason, REASONS } from "../../src/engine/ending.ts";
import { type Answer, Engine, type Shared, synsBytes } from "../../src/engine/engine.ts";
import { egressCountersBytes } from "../../src/engine/egress-counters.ts";
import { QUOTA_BYTES } from "../../src/engine/quota.ts";
import { socksCountersBytes } from "../../src/engine/socks-counters.ts";
import { ENDED, Journal, journalBytes } from "../../src/engine/journal.ts";
import { Ledger } from "../../src/engine/ledger.ts";
import type { Source, Task } from "../../src/engine/loop.ts";
import { LOOPS_BYTES } from "../../src/engine/loops.ts";
import { BUCKETS } from "../../src/engine/histogram.ts";
import { type Meter, meterAt, metersBytes, metersRow } from "../../src/engine/meters.ts";
import { DOWN, RELAY, RESET, rowsBytes, TableReader, textsBytes, UP } from "../../src/engine/table.ts";
import type { TraceStep } from "../../src/engine/trace.ts";
import { UpstreamReader, upstreamCountersBytes } from "../../src/engine/upstream-counters.ts";
import { readSockaddr, type SimulatedKernel } from "../sim/kernel.ts";
import { WrongByte } from "../sim/peers.ts";
import { RedirectedWorld } from "../sim/redirected-world.ts";
import { SocksWorld } from "../sim/socks-world.ts";
import { sockaddr, type World } from "../sim/world.ts";

/** In virtual time: by then every deadline has passed many times over. */
const LIVENESS_MS = 3 * 3600e3;
const JOURNAL_RECORDS = 4096;

class Bell implements Source, Task {
  queued = false;
  rung = false;

  mark(): Task {
    this.rung = true;
    return this;
  }

  turn(): boolean {
    return false;
  }
}

/** Large; each world begins with all of it zero. */
const COUNTED = {
  quotas: new SharedArrayBuffer(QUOTA_BYTES),
  socks: new SharedArrayBuffer(socksCountersBytes(1)),
  exits: new SharedArrayBuffer(egressCountersBytes(1)),
  meters: new SharedArrayBuffer(metersBytes(1)),
  upstreams: new SharedArrayBuffer(upstreamCountersBytes(1)),
};

function play(world: World, endings: Map<string, number>): void {
  const { kernel, limits, settings } = world;
  for (const memory of Object.values(COUNTED)) new Uint8Array(memory).fill(0);
  const shared = {
    ledger: new SharedArrayBuffer(4096),
    admission: new SharedArrayBuffer(admissionBytes(1)),
    counters: new SharedArrayBuffer(countersBytes(1)),
    loops: new SharedArrayBuffer(LOOPS_BYTES),
    ...COUNTED,
  };
  const journalMemory = new SharedArrayBuffer(journalBytes(JOURNAL_RECORDS));
  const rows = new SharedArrayBuffer(rowsBytes(limits.tunnels));
  const texts = new SharedArrayBuffer(textsBytes(limits.tunnels));
  const counters = countersRow(shared.counters, 0);
  const table = new TableReader(rows, texts);
  const listener = makeListener(kernel, world);
  const bell = new Bell();
  const bellFd = kernel.eventfd(0, O_NONBLOCK);
  const count = kernel.memory(8);
  const steps: TraceStep[] = [];
  const answers: Answer[] = [];
  const receive = (answer: Answer): void => {
    answers.push(answer);
    kernel.ring(bellFd);
  };
  const engine = new Engine({
    sys: kernel, clock: () => kernel.now(), wallClock: () => kernel.now(),
    limits, settings, shared, worker: 0, incarnation: 0,
    own: { rows, texts, journal: journalMemory, syns: new SharedArrayBuffer(synsBytes(limits)) },
    ask: (question) => world.ask(question, receive), toAscii: (name) => name, onStep: (step) => steps.push(step),
  });
  const admission = new Admission(shared.admission, kernel);
  admission.setEventfd(0, bellFd);
  admission.setLimit(world.tunnelsMax);
  assert.equal(engine.loop.add(bellFd, EPOLLIN, engine.loop.number(bell)), 0);
  // In every other world each connection is followed: that must not make a difference to it.
  if (world.seed % 2 === 0) engine.trace([{ bit: 4, client: null, destination: null, name: null }]);
  engine.listen(listener, world.role);
  const queue = world.gate === null ? -1 : kernel.openQueue(world.gate);
  if (queue >= 0) engine.holdSyns(queue, 7, 0);
  kernel.unleash();

  const told = { endings: new Map<Reason, number>(), bytesUp: 0, bytesDown: 0 };
  let [listening, cut, configured] = [true, false, false];
  while (!world.over || engine.tunnels + engine.parked > 0 || answers.length > 0) {
    const { sleeps, pipesWithBytes } = kernel;
    const { lent } = engine.pipes;
    engine.turn();
    if (kernel.sleeps > sleeps) assert(lent <= pipesWithBytes, "an idle tunnel held a pipe");
    assert(engine.tunnels <= world.tunnelsMax, "more tunnels than the limit");
    assert.equal(unended(counters), engine.tunnels, "what was accepted is either open or has ended for a reason");
    assert.equal(seen(table), engine.tunnels, "rows that are seen");
    if (bell.rung) {
      bell.rung = false;
      kernel.read(bellFd, count, 0, 8);
      for (const answer of answers.splice(0)) engine.answer(answer);
      engine.resumeAccepting();
    }
    const now = kernel.now();
    if (listening && now >= world.drainMs) {
      listening = false;
      world.gate?.open();
      engine.stopSyns(queue, true);
      engine.unlisten(listener);
      kernel.close(listener);
    }
    if (!cut && now >= world.cutMs) {
      cut = true;
      engine.cut();
    }
    if (!configured && now >= world.configureMs) {
      configured = true;
      engine.configure(world.reconfigured());
    }
    if (now > LIVENESS_MS) assert.fail(`not over in time:\n${world.unfinished()}`);
  }

  // What the engine said last is still on its way.
  kernel.pass(10e6);
  const journal = new Journal(journalMemory);
  for (let record = journal.read(); record !== null; record = journal.read()) {
    if (record.kind !== ENDED) continue;
    const { addresses: bytes, wallMs: endedMs, detail, text, version, name, user } = record;
    const { bytesUp, bytesDown, durationMs } = record;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const reason = REASONS[record.reason]!;
    endings.set(reason, (endings.get(reason) ?? 0) + 1);
    told.endings.set(reason, (told.endings.get(reason) ?? 0) + 1);
    told.bytesUp += bytesUp;
    told.bytesDown += bytesDown;
    const [client, destination, source] = [0, 28, 56].map((at) => readSockaddr({ bytes, view }, at));
    world.ended({
      reason, detail, text, version, name, user, bytesUp, bytesDown, endedMs,
      beganMs: endedMs - durationMs,
      client: client!, destination: destination!, source: source!,
    });
  }
  world.judge();

  assert.equal(engine.names.asked, 0, "names are waited for");
  assert.equal(engine.racers.lent, 0, "racers are lent");
  engine.dispose();
  assert.deepEqual([engine.syns?.size ?? 0, engine.syns?.granted ?? 0], [0, 0], "SYNs are held");
  if (listening) kernel.close(listener);
  if (queue >= 0) kernel.close(queue);
  kernel.close(bellFd);
  assert.deepEqual(kernel.openFds(), [], "fds are left open");
  assert.deepEqual([...new Ledger(shared.ledger).ownedBy(1)], [], "fds are left in the ledger");
  assert.equal(admission.active, 0);
  assert.equal(counters[TUNNELS], 0);
  for (const reason of REASONS) {
    assert.equal(counters[endingAt(reason)], told.endings.get(reason) ?? 0, `the counter of ${reason}`);
  }
  assert.deepEqual([counters[BYTES_UP], counters[BYTES_DOWN]], [told.bytesUp, told.bytesDown]);
  judgeMeters(shared, counters);
  judgeSteps(steps, told.endings);
  const ports = new Int32Array(shared.loops).subarray(0, 65536);
  assert(ports.every((port) => port === 0), "ports are left");
  world.judgeCounted(shared);
}

/** Tunnels that main would see. */
function seen(table: TableReader): number {
  let count = 0;
  for (let row = 0; row < table.rows; row++) {
    if (!table.read(row)) continue;
    count++;
    const moved = table.number(UP) + table.number(DOWN) > 0;
    assert(!moved || table.phase === RELAY || table.phase === RESET, `bytes in phase ${table.phase}`);
  }
  return count;
}

/** Each connection was measured as often as it should have been. */
function judgeMeters({ meters, upstreams }: Shared, counters: Float64Array): void {
  const numbers = metersRow(meters, 0);
  const count = (meter: Meter): number =>
    numbers.subarray(meterAt(meter), meterAt(meter) + BUCKETS).reduce((sum, bucket) => sum + bucket, 0);
  assert.equal(count("duration"), counters[ACCEPTED], "lives that were measured");
  assert(count("dial") >= count("handshake") && count("firstByte") <= count("dial"), "dials that were measured");
  const reader = new UpstreamReader(upstreams);
  reader.slots(["a", "b", "c"]);
  for (const { active, dials, dialFailures, handshakeFailures } of reader.counts()) {
    assert.equal(active, 0, "connections of an upstream that are open");
    assert(dials >= dialFailures + handshakeFailures, "failures of an upstream");
  }
}

/** Who is followed is followed from the first step to the last, in order, each once. */
function judgeSteps(steps: readonly TraceStep[], endings: ReadonlyMap<Reason, number>): void {
  const lives = new Map<number, TraceStep[]>();
  for (const step of steps) lives.set(step.id, [...(lives.get(step.id) ?? []), step]);
  const ended = new Map<string, number>();
  for (const life of lives.values()) {
    const names = life.map(({ step }) => step);
    assert.deepEqual(names.slice(0, 2), ["accepted", "destination"], `a life begins with ${names}`);
    for (const once of ["accepted", "connected", "handshake-done", "first-byte-down", "ended"] as const) {
      assert(names.filter((name) => name === once).length <= 1, `${once} twice: ${names}`);
    }
    const last = life.at(-1)!;
    assert.equal(last.step, "ended", `a life ends with ${names}`);
    assert(life.every(({ bits, dropped }) => bits === 4 && dropped === 0), "steps that nobody asked for");
    assert(life.every(({ atMs }, i) => i === 0 || atMs >= life[i - 1]!.atMs), "steps go back in time");
    ended.set(last.text, (ended.get(last.text) ?? 0) + 1);
  }
  for (const [reason, count] of ended) assert(count <= (endings.get(reason as Reason) ?? 0), `too many of ${reason}`);
}

function makeListener(kernel: SimulatedKernel, world: World): number {
  const fd = kernel.socket(world.listenerFamily, SOCK_STREAM | SOCK_NONBLOCK, 0);
  const address: Memory = kernel.memory(28);
  address.bytes.set(sockaddr(world.listener));
  assert.equal(kernel.bind(fd, address, 0, 28), 0);
  if (world.settings.mode === "tproxy") {
    assert.equal(kernel.setsockopt(fd, SOL_IP, IP_TRANSPARENT, 1), 0);
  }
  assert.equal(kernel.listen(fd, 100), 0);
  return fd;
}

const one = process.env["SEED"];
const first = one === undefined ? 1 : Number(one);
const seeds = one === undefined ? Number(process.env["SEEDS"] ?? 3000) : 1;

const WORLDS = { redirected: RedirectedWorld, socks: SocksWorld };

for (const [kind, Kind] of Object.entries(WORLDS)) {
  it(`holds in ${seeds} simulated worlds of kind ${kind} from SEED=${first} on`, (t) => {
    const endings = new Map<string, number>();
    for (let seed = first; seed < first + seeds; seed++) {
      const world = new Kind(seed);
      try {
        play(world, endings);
      } catch (error) {
        const finder = error instanceof WrongByte ? `${world.describe(error.finder)}\n` : "";
        const message = `${(error as Error).message}\n${finder}${world.describeSettings()}`;
        throw new Error(`SEED=${seed} (${kind}): ${message}`, { cause: error });
      }
    }
    t.diagnostic([...endings].sort().map(([reason, times]) => `${reason} ${times}`).join(", "));
  });
}
