/**
 * What one direction of a tunnel asks of the kernel, on connections over loopback. That no byte is lost is
 * the simulation's to see; here it is the calls that a short connection can do without.
 */
import assert from "node:assert/strict";
import { after, test } from "node:test";
import {
  AF_INET, EPOLLIN, EPOLLRDHUP, MSG_NOSIGNAL, O_NONBLOCK, SHUT_WR, SOCK_STREAM, SOL_TCP, TCP_NODELAY,
} from "../../native-bindings/constants.ts";
import { linux, type Syscalls } from "../../native-bindings/syscalls.ts";
import { Ledger } from "../../src/engine/ledger.ts";
import { DEFAULTS } from "../../src/engine/limits.ts";
import { Loop, type Task } from "../../src/engine/loop.ts";
import { metersBytes, metersRow } from "../../src/engine/meters.ts";
import { Buffers, Pipes } from "../../src/engine/pools.ts";
import { Flow } from "../../src/engine/relay.ts";
import { Socket } from "../../src/engine/socket.ts";

const real = linux();
const calls = { recv: 0, setsockopt: 0 };

function counted<T extends unknown[]>(name: keyof typeof calls, call: (...args: T) => number): (...args: T) => number {
  return (...args) => {
    calls[name]++;
    return call(...args);
  };
}

const sys: Syscalls = { ...real, recv: counted("recv", real.recv), setsockopt: counted("setsockopt", real.setsockopt) };
const memory = real.memory(65536);
const opened = new Set<number>();
const own = (fd: number): number => {
  assert.ok(fd >= 0, `${fd}`);
  opened.add(fd);
  return fd;
};

/** tcp(7): the greatest segment that one side takes, its options included. */
const TCP_MAXSEG = 2;

/** Both ends of a connection over loopback; both non-blocking. `segment`: the first may send no more at once. */
function pair(segment = 0): [number, number] {
  const listener = own(real.socket(AF_INET, SOCK_STREAM, 0));
  memory.bytes.fill(0, 0, 16);
  memory.view.setUint16(0, AF_INET, true);
  memory.bytes.set([127, 0, 0, 1], 4);
  if (segment > 0) assert.equal(real.setsockopt(listener, SOL_TCP, TCP_MAXSEG, segment), 0);
  assert.equal(real.bind(listener, memory, 0, 16), 0);
  assert.equal(real.listen(listener, 1), 0);
  real.getsockname(listener, memory, 0);
  const one = own(real.socket(AF_INET, SOCK_STREAM, 0));
  assert.equal(real.connect(one, memory, 0, 16), 0);
  const other = own(real.accept4(listener, memory, 0, O_NONBLOCK));
  return [one, other];
}

/** A flow between two connections: what its owner knows, and the far end of each. */
function tunnel(segment = 0) {
  const ledger = new Ledger(new SharedArrayBuffer(1024));
  const loop = new Loop(sys, 8);
  own(loop.fd);
  const task: Task = { queued: false, turn: () => false };
  const [client, from] = [new Socket(loop, task), new Socket(loop, task)];
  const [say, accepted] = pair();
  const [dialled, hear] = pair(segment);
  from.reset(accepted);
  client.reset(dialled);
  client.nagles = true;
  const flow = new Flow({
    sys, limits: DEFAULTS, scratch: real.memory(DEFAULTS.bufferBytes), meters: metersRow(new SharedArrayBuffer(metersBytes(1)), 0),
    pipes: new Pipes(sys, ledger, 1, 1, DEFAULTS.pipeBytes), buffers: new Buffers(sys, 1, DEFAULTS.bufferBytes),
  }, from, client);
  flow.reset();
  const pass = (bytes: number, finish = false): void => {
    if (bytes > 0) assert.equal(real.send(say, memory, 0, bytes, MSG_NOSIGNAL), bytes);
    if (finish) real.shutdown(say, SHUT_WR);
    from.mark(finish ? EPOLLIN | EPOLLRDHUP : EPOLLIN);
    assert.equal(flow.pump(), false);
    if (bytes > 0) assert.equal(real.recv(hear, memory, 0, 65536, 0), bytes);
  };
  const isHurried = (): boolean => {
    assert.ok(real.getsockopt(dialled, SOL_TCP, TCP_NODELAY, memory, 0, 4) >= 0);
    return memory.view.getInt32(0, true) !== 0;
  };
  return { flow, pass, isHurried };
}

after(() => {
  for (const fd of opened) real.close(fd);
});

test("one small message needs no TCP_NODELAY, and the second has it", () => {
  const { pass, isHurried } = tunnel();
  calls.setsockopt = 0;
  pass(496);
  assert.deepEqual([isHurried(), calls.setsockopt], [false, 0]);
  pass(1);
  assert.equal(isHurried(), true);
  pass(1);
  assert.equal(calls.setsockopt, 1, "once");
});

test("a message that may be two segments has TCP_NODELAY from the first on", () => {
  const { pass, isHurried } = tunnel();
  pass(497);
  assert.equal(isHurried(), true);
});

test("the smallest segment has room for its options, too", () => {
  // On the way to whoever takes 536 bytes, timestamps leave 524 of them.
  const { pass, isHurried } = tunnel(536);
  pass(525);
  assert.equal(isHurried(), true);
});

test("what stands in front of FIN, and FIN, are one read", () => {
  const { flow, pass } = tunnel();
  calls.recv = 0;
  pass(64);
  assert.deepEqual([calls.recv, flow.over], [1, false]);
  pass(64, true);
  assert.deepEqual([calls.recv, flow.over], [2, true]);
});

test("FIN alone is one read", () => {
  const { flow, pass } = tunnel();
  pass(64);
  calls.recv = 0;
  pass(0, true);
  assert.deepEqual([calls.recv, flow.over], [1, true]);
});
