/** What threads share: the ledger, the admission, the journal, the table of our own ports. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { EFD_CLOEXEC, EFD_NONBLOCK } from "../../native-bindings/constants.ts";
import { linux } from "../../native-bindings/syscalls.ts";
import { Admission, admissionBytes } from "../../src/engine/admission.ts";
import { ENDED, Journal, journalBytes } from "../../src/engine/journal.ts";
import { Ledger } from "../../src/engine/ledger.ts";
import { LOOPS_BYTES, Loops } from "../../src/engine/loops.ts";

const sys = linux();

test("the ledger knows an owner's fds, and refuses numbers that it could not remember", () => {
  const ledger = new Ledger(new SharedArrayBuffer(100));
  assert.ok(ledger.own(7, 1) && ledger.own(8, 2) && ledger.own(99, 1));
  assert.equal(ledger.own(100, 1), false);
  assert.deepEqual([...ledger.ownedBy(1)], [7, 99]);
  ledger.disown(7);
  assert.deepEqual([...ledger.ownedBy(1)], [99]);
});

test("admission lets in up to the limit, and wakes who waits when one leaves", () => {
  const admission = new Admission(new SharedArrayBuffer(admissionBytes(2)), sys);
  const bell = sys.eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  const rung = sys.memory(8);
  admission.setEventfd(1, bell);
  admission.setLimit(2);
  assert.ok(admission.enter() && admission.enter());
  assert.equal(admission.enter(), false);
  assert.equal(admission.active, 2);
  assert.equal(admission.wait(1), true);
  assert.ok(sys.read(bell, rung, 0, 8) < 0, "nobody has left yet");
  admission.leave();
  assert.equal(sys.read(bell, rung, 0, 8), 8);
  admission.stopWaiting(1);
  admission.leave();
  assert.ok(sys.read(bell, rung, 0, 8) < 0, "who does not wait is not woken");
  // Room has come before the worker could say that it waits: it must not sleep.
  assert.equal(admission.wait(1), false);
  sys.close(bell);
});

test("a journal gives back what was written, in order, and drops when it is full", () => {
  const rows = sys.memory(new SharedArrayBuffer(96));
  for (let i = 0; i < 84; i++) rows.bytes[i] = i;
  fc.assert(
    fc.property(fc.array(fc.oneof(fc.constant(null), fc.nat(0xffff)), { maxLength: 100 }), (steps) => {
      const shared = new SharedArrayBuffer(journalBytes(8));
      const [writer, reader] = [new Journal(shared), new Journal(shared)];
      const expected: number[] = [];
      for (const id of steps) {
        if (id === null) {
          const record = reader.read();
          assert.equal(record?.id, expected.shift());
          if (record !== null) assert.deepEqual([...record.addresses], [...rows.bytes.subarray(0, 84)]);
        } else {
          const written = writer.write(ENDED, 3, 1, -7, 111, id, 2, 1.5, 2.5, 2 ** 40, 5, rows, 0, 5, "why", "name", "user", "");
          assert.equal(written, expected.length < 8);
          if (written) expected.push(id);
        }
      }
    }),
  );
});

test("a journal record keeps every field", () => {
  const shared = new SharedArrayBuffer(journalBytes(2));
  const rows = sys.memory(96);
  const journal = new Journal(shared);
  journal.write(ENDED, 4, 5, -104, 113, 0xffffffff, 9, 1_700_000_000_000.25, 12.5, 2 ** 50, 3, rows, 8, 4, "x".repeat(500), "n".repeat(253), "\u00e4b\u4e2d", "t".repeat(300));
  const { addresses, text, name, user, tried, ...record } = journal.read()!;
  assert.deepEqual(record, {
    kind: ENDED, reason: 4, cause: 5, detail: -104, errno: 113, id: 0xffffffff, incarnation: 9, wallMs: 1_700_000_000_000.25,
    durationMs: 12.5, bytesUp: 2 ** 50, bytesDown: 3, version: 4,
  });
  assert.equal(name, "n".repeat(253));
  assert.equal(user, "\u00e4b?");
  assert.ok(tried.length > 30 && /^t+$/.test(tried), "as much as there is room for");
  assert.ok(text.length > 50 && text.length < 192 && /^x+$/.test(text));
});

test("a sleeping reader is told once, and never sleeps over a record", () => {
  const shared = new SharedArrayBuffer(journalBytes(4));
  const rows = sys.memory(96);
  const [writer, reader] = [new Journal(shared), new Journal(shared)];
  const write = () => writer.write(ENDED, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, rows, 0, 0, "", "", "", "");
  assert.equal(writer.shouldWakeReader(), false);
  assert.equal(reader.sleep(), true);
  assert.equal(writer.shouldWakeReader(), false, "nothing written");
  write();
  assert.equal(writer.shouldWakeReader(), true);
  assert.equal(writer.shouldWakeReader(), false, "told already");
  assert.equal(reader.sleep(), false, "there is a record");
});

test("a journal's count may wrap", () => {
  const shared = new SharedArrayBuffer(journalBytes(8));
  const words = new Int32Array(shared);
  words[0] = 0x7ffffffe;
  words[1] = 0x7ffffffe;
  const rows = sys.memory(96);
  const journal = new Journal(shared);
  for (let id = 1; id <= 20; id++) {
    assert.ok(journal.write(ENDED, 0, 0, 0, 0, id, 0, 0, 0, 0, 0, rows, 0, 0, "", "", "", ""));
    assert.equal(journal.read()!.id, id);
  }
});

test("our own port is recognised by port and destination, and forgotten with its owner", () => {
  const shared = new SharedArrayBuffer(LOOPS_BYTES);
  const [one, two] = [new Loops(shared, sys, 1), new Loops(shared, sys, 2)];
  const address = (host: number, port: number) =>
    Uint8Array.of(2, 0, port >> 8, port & 255, 192, 0, 2, host, 0, 0, 0, 0, 0, 0, 0, 0);
  const destination = address(1, 443);
  const fd = sys.socket(2, 1, 0);
  const any = sys.memory(16);
  any.bytes.set([2, 0, 0, 0, 127, 0, 0, 1]);
  assert.equal(sys.bind(fd, any, 0, 16), 0);
  const port = one.note(fd, destination, 0);
  assert.ok(port > 0);
  const client = address(9, port);
  assert.equal(two.leads(client, 0, destination, 0), true);
  assert.equal(two.leads(client, 0, address(2, 443), 0), false);
  assert.equal(two.leads(client, 0, address(1, 444), 0), false);
  assert.equal(two.leads(address(9, port ^ 1), 0, destination, 0), false);
  two.forgetAll(2);
  assert.equal(two.leads(client, 0, destination, 0), true);
  two.forgetAll(1);
  assert.equal(two.leads(client, 0, destination, 0), false);
  one.note(fd, destination, 0);
  one.forget(port);
  assert.equal(two.leads(client, 0, destination, 0), false);
  sys.close(fd);
});

test("connections to the upstream itself are a loop once many came and none was answered", () => {
  const loops = new Loops(new SharedArrayBuffer(LOOPS_BYTES), sys, 1);
  const [client, upstream] = [new Uint8Array(16).fill(2), new Uint8Array(16).fill(3)];
  const refused = (count: number, nowMs: number) =>
    Array.from({ length: count }, () => loops.comesBack(client, 0, upstream, 0, nowMs)).filter(Boolean).length;
  assert.equal(loops.suspicious, false);
  assert.equal(refused(32, 5000), 0, "a program may use the proxy by itself");
  assert.equal(loops.suspicious, true);
  loops.answered();
  assert.equal(loops.suspicious, false);
  assert.equal(refused(32, 5000), 0);
  assert.equal(refused(100, 5100), 99, "one a second is let through");
  assert.equal(refused(100, 6100), 99);
  loops.answered();
  assert.equal(refused(32, 6200), 0);
});

test("a connection to the upstream from a port of our own is a loop at once", () => {
  const loops = new Loops(new SharedArrayBuffer(LOOPS_BYTES), sys, 1);
  const upstream = Uint8Array.of(2, 0, 4, 56, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0);
  const fd = sys.socket(2, 1, 0);
  const any = sys.memory(16);
  any.bytes.set([2, 0, 0, 0, 127, 0, 0, 1]);
  assert.equal(sys.bind(fd, any, 0, 16), 0);
  const port = loops.note(fd, upstream, 0);
  const client = Uint8Array.of(2, 0, port >> 8, port & 255, 192, 0, 2, 9, 0, 0, 0, 0, 0, 0, 0, 0);
  assert.equal(loops.comesBack(client, 0, upstream, 0, 1000), true);
  sys.close(fd);
});
