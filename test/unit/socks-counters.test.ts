/** What workers count of SOCKS and of egress addresses, and what main makes of it. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  ADDRESS_SLOTS, EgressCounters, EgressReader, egressCountersBytes, RULE_SLOTS,
} from "../../src/engine/egress-counters.ts";
import { OTHERS } from "../../src/engine/slots.ts";
import {
  type AddressType, type AuthMethod, BYTES, forgetInflight, type HistogramTotals, SECONDS, SocksCounters,
  socksCountersBytes, SocksTotals, type SocksVersion, STATUS, STATUS_NAMES, statusOfReply,
} from "../../src/engine/socks-counters.ts";

const VERSIONS: SocksVersion[] = [0, 4, 5];
const METHODS: AuthMethod[] = ["noauth", "password", "userid"];
const TYPES: AddressType[] = ["ipv4", "ipv6", "name", null];

test("every number has a place of its own, and workers add up", () => {
  const shared = new SharedArrayBuffer(socksCountersBytes(3));
  const workers = [0, 2].map((worker) => new SocksCounters(shared, worker));
  const expected: [() => number, number][] = [];
  let times = 0;
  const counted = (count: (worker: SocksCounters) => void, read: (totals: SocksTotals) => number): void => {
    times++;
    for (const worker of workers) for (let i = 0; i < times; i++) count(worker);
    expected.push([() => read(new SocksTotals(shared)), 2 * times]);
  };
  for (const version of VERSIONS) {
    for (const status of Object.values(STATUS)) {
      counted((worker) => worker.request(version, status), (totals) => totals.requests(version, status));
    }
  }
  for (const ok of [true, false]) {
    for (const method of METHODS) {
      counted((worker) => worker.auth(method, ok), (totals) => totals.auth(method, ok));
    }
    for (const type of TYPES) {
      counted((worker) => worker.address(type, ok), (totals) => totals.address(type, ok));
    }
  }
  counted((worker) => worker.begins(), (totals) => totals.inflight);
  for (const [read, times] of expected) assert.equal(read(), times);
  const totals = new SocksTotals(shared);
  for (const { counts, sum } of [totals.elapsed(true), totals.elapsed(false), totals.txBytes, totals.rxSeconds]) {
    assert.deepEqual([Math.max(...counts), sum], [0, 0]);
  }
  assert.deepEqual([totals.txErrors, totals.rxErrors], [0, 0]);
});

test("statuses are named as usocksd's, and follow from the reply", () => {
  assert.deepEqual(STATUS_NAMES.slice(0, 12), [
    "granted", "rejected", "failure", "not_allowed", "network_unreachable", "host_unreachable",
    "connection_refused", "command_not_supported", "authentication_failure", "address_read_failure",
    "invalid_request", "unknown_version",
  ]);
  const named = (version: 4 | 5, code: number) => STATUS_NAMES[statusOfReply(version, code)];
  assert.deepEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 255].map((code) => named(5, code)), [
    "granted", "failure", "not_allowed", "network_unreachable", "host_unreachable", "connection_refused",
    "TTL_expired", "command_not_supported", "address_type_not_supported", "failure", "failure",
  ]);
  assert.deepEqual([0, 1, 2, 5].map((code) => named(4, code)), ["granted", "rejected", "rejected", "rejected"]);
});

test("buckets are Prometheus' and long ones, and powers of 4 from 256 B to 16 GiB", () => {
  assert.deepEqual(SECONDS, [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600, 3600]);
  assert.deepEqual([BYTES[0], BYTES[1], BYTES.at(-1), BYTES.length], [256, 1024, 16 * 2 ** 30, 14]);
});

test("a tunnel's end lies in the right histograms", () => {
  const shared = new SharedArrayBuffer(socksCountersBytes(1));
  const worker = new SocksCounters(shared, 0);
  worker.begins();
  worker.begins();
  worker.ends(true, 5, 256, 2 ** 40, 1000, 1001, false, true);
  worker.ends(false, 7_200_000, 257, 0, 3_600_000, 10, true, false);
  const totals = new SocksTotals(shared);
  const at = ({ bounds, counts, sum }: HistogramTotals) => [
    [...counts].flatMap((count, i) => (count === 0 ? [] : [`${bounds[i] ?? "more"}: ${count}`])).join(", "), sum,
  ];
  assert.deepEqual(at(totals.elapsed(true)), ["0.005: 1", 0.005]);
  assert.deepEqual(at(totals.elapsed(false)), ["more: 1", 7200]);
  assert.deepEqual(at(totals.txBytes), ["256: 1, 1024: 1", 513]);
  assert.deepEqual(at(totals.rxBytes), ["256: 1, more: 1", 2 ** 40]);
  assert.deepEqual(at(totals.txSeconds), ["1: 1, 3600: 1", 3601]);
  assert.deepEqual(at(totals.rxSeconds), ["0.01: 1, 2.5: 1", 1.011]);
  assert.deepEqual([totals.inflight, totals.txErrors, totals.rxErrors], [0, 1, 1]);
});

test("a histogram holds as many as were seen, each below its bound", () => {
  fc.assert(
    fc.property(fc.array(fc.maxSafeNat()), (sizes) => {
      const shared = new SharedArrayBuffer(socksCountersBytes(1));
      const worker = new SocksCounters(shared, 0);
      for (const size of sizes) worker.ends(true, 0, size, 0, 0, 0, false, false);
      const { bounds, counts } = new SocksTotals(shared).txBytes;
      let below = 0;
      for (const [i, bound] of [...bounds, Infinity].entries()) {
        below += counts[i]!;
        assert.equal(below, sizes.filter((size) => size <= bound).length);
      }
    }),
  );
});

test("tunnels of a dead worker are not in flight, those of others are", () => {
  const shared = new SharedArrayBuffer(socksCountersBytes(2));
  const [dead, alive] = [new SocksCounters(shared, 0), new SocksCounters(shared, 1)];
  for (const worker of [dead, dead, alive]) worker.begins();
  dead.request(5, STATUS.granted);
  forgetInflight(shared, 0);
  assert.equal(new SocksTotals(shared).inflight, 1);
  const reborn = new SocksCounters(shared, 0);
  reborn.begins();
  assert.equal(new SocksTotals(shared).inflight, 2);
  assert.equal(new SocksTotals(shared).requests(5, STATUS.granted), 1);
});

function egress(workers: number): { shared: SharedArrayBuffer; reader: EgressReader; workers: EgressCounters[] } {
  const shared = new SharedArrayBuffer(egressCountersBytes(workers));
  const reader = new EgressReader(shared);
  return { shared, reader, workers: Array.from({ length: workers }, (_, i) => new EgressCounters(shared, i)) };
}

test("addresses and rules are counted over all workers, under their names", () => {
  const { reader, workers } = egress(3);
  const [a, b] = reader.addressSlots(["192.0.2.1", "192.0.2.2"]) as [number, number];
  const [deny, limit] = reader.ruleSlots(["deny_sites", "mail-only"]) as [number, number];
  for (const worker of workers) {
    worker.opened(a);
    worker.opened(a);
    worker.ended(a);
    worker.answered(a);
    worker.failed(b);
    worker.denied(deny);
  }
  workers[1]!.spilled(a);
  workers[2]!.denied(limit);
  for (let again = 0; again < 2; again++) {
    assert.deepEqual(reader.addresses(), [
      { address: "192.0.2.1", active: 3, opened: 6, answered: 3, failed: 0, spilled: 1 },
      { address: "192.0.2.2", active: 0, opened: 0, answered: 0, failed: 3, spilled: 0 },
    ]);
    assert.deepEqual(reader.denied(), [{ rule: "deny_sites", denied: 3 }, { rule: "mail-only", denied: 1 }]);
  }
  reader.forget(0);
  assert.equal(reader.addresses()[0]!.active, 2);
  assert.equal(reader.addresses()[0]!.opened, 6);
});

test("numbers that wrap grow on", () => {
  const { shared, reader, workers } = egress(2);
  const [slot] = reader.addressSlots(["192.0.2.1"]) as [number];
  const failed = () => reader.addresses()[0]!.failed;
  const words = new Int32Array(shared);
  const row = words.length / 2;
  workers[0]!.failed(slot);
  workers[1]!.failed(slot);
  const at = words.indexOf(1, 1);
  assert.equal(failed(), 2);
  // Nearly 2^31, then nearly 2^32, and over; in one worker, and in both together.
  words[at] = 0x7fffffff;
  assert.equal(failed(), 2 + 0x7ffffffe);
  workers[0]!.failed(slot);
  assert.equal(failed(), 2 + 0x7fffffff);
  words[at] = -1;
  words[at + row] = 4;
  assert.equal(failed(), 0xffffffff + 4);
  for (const worker of workers) worker.failed(slot);
  assert.equal(words[at], 0);
  assert.equal(failed(), 0xffffffff + 6);
});

test("a name keeps its slot and its numbers over reloads, and stays listed while it is in use", () => {
  const { reader, workers } = egress(1);
  const [a, b] = reader.addressSlots(["a", "b"]) as [number, number];
  workers[0]!.opened(a);
  workers[0]!.opened(b);
  workers[0]!.ended(b);
  assert.deepEqual(reader.addressSlots(["c", "b"]), [2, b]);
  assert.deepEqual(reader.addresses().map(({ address }) => address), ["a", "b", "c"]);
  workers[0]!.ended(a);
  assert.deepEqual(reader.addresses().map(({ address }) => address), ["b", "c"]);
  assert.deepEqual(reader.addressSlots(["b", "a", "b"]), [b, a, b]);
  assert.deepEqual(reader.addresses().map(({ address, opened }) => [address, opened]), [["b", 1], ["a", 1]]);
});

test("when every slot was someone's, who has been away for longest gives up his, unless it is in use", () => {
  const { reader, workers } = egress(1);
  const names = Array.from({ length: ADDRESS_SLOTS }, (_, i) => `n${i}`);
  const slots = reader.addressSlots(names);
  assert.equal(new Set(slots).size, ADDRESS_SLOTS);
  workers[0]!.opened(slots[0]!);
  workers[0]!.opened(slots[1]!);
  workers[0]!.ended(slots[1]!);
  reader.addresses();
  workers[0]!.failed(slots[1]!);
  workers[0]!.answered(slots[1]!); // And these were never looked at.
  const kept = names.slice(3);
  assert.deepEqual(reader.addressSlots([...kept, "new"]).at(-1), slots[1]);
  const found = new Map(reader.addresses().map(({ address, opened, answered, failed }) => [address, opened + answered + failed]));
  assert.deepEqual([found.get("n0"), found.get("n1"), found.get("n2"), found.get("new")], [1, undefined, undefined, 0]);
  // One is left for two, as the other is in use: it shares the slot behind the last.
  assert.deepEqual(reader.addressSlots([...kept, "new", "newer", "newest"]).slice(-2), [slots[2], ADDRESS_SLOTS]);
  workers[0]!.failed(ADDRESS_SLOTS);
  assert.deepEqual(reader.addresses().at(-1), { address: OTHERS, active: 0, opened: 0, answered: 0, failed: 1, spilled: 0 });
});

test("rules beyond the slots share one", () => {
  const { reader, workers } = egress(1);
  const slots = reader.ruleSlots(Array.from({ length: RULE_SLOTS + 2 }, (_, i) => `r${i}`));
  assert.deepEqual(slots.slice(-3), [RULE_SLOTS - 1, RULE_SLOTS, RULE_SLOTS]);
  workers[0]!.denied(slots.at(-1)!);
  workers[0]!.denied(slots.at(-3)!);
  assert.deepEqual(reader.denied().slice(-2), [{ rule: `r${RULE_SLOTS - 1}`, denied: 1 }, { rule: OTHERS, denied: 1 }]);
});
