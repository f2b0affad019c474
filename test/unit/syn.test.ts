/** SYNs as the kernel sends them, and what refuses them. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { readSyn, type Refusal, REFUSAL_BYTES_MAX, Syn, writeRefusal } from "../../src/protocol/syn.ts";

const hex = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text.replaceAll(/\s/g, ""), "hex"));

/** As seen on the wire: 192.0.2.1:43210 asks 198.51.100.10:443. */
const SYN4 = hex(`
  4500 003c 1c46 4000 4006 0000 c000 0201 c633 640a
  a8ca 01bb 89abcdef 00000000 a002 faf0 0000 0000 0204 05b4 0402 080a 0000 0001 0000 0000 0103 0307`);
/** [2001:db8:2::1]:43210 asks [2001:db8:100::10]:443; behind a hop-by-hop header. */
const SYN6 = hex(`
  6000 0000 0030 00 40 20010db8000200000000000000000001 20010db8010000000000000000000010
  06 00 0104 0000 0000
  a8ca 01bb 89abcdef 00000000 a002 faf0 0000 0000 0204 05a0 0402 080a 0000 0001 0000 0000 0103 0307`);

test("a SYN tells who asks whom", () => {
  for (const [bytes, family] of [[SYN4, 4], [SYN6, 6]] as const) {
    const syn = new Syn();
    const shifted = Uint8Array.from([9, 9, 9, ...bytes]);
    assert.ok(readSyn(shifted, 3, shifted.length, syn));
    assert.equal(syn.family, family);
    assert.deepEqual([syn.sourcePort, syn.destinationPort, syn.sequence >>> 0], [43210, 443, 0x89abcdef]);
    const [source, destination] = family === 4 ? ["c0000201", "c633640a"] : ["20010db8000200000000000000000001", "20010db8010000000000000000000010"];
    const length = family === 4 ? 4 : 16;
    assert.equal(Buffer.from(syn.source.subarray(0, length)).toString("hex"), source);
    assert.equal(Buffer.from(syn.destination.subarray(0, length)).toString("hex"), destination);
  }
});

test("what is cut short, or is no SYN, is none", () => {
  for (const bytes of [SYN4, SYN6]) {
    const headers = bytes === SYN4 ? 40 : 68;
    for (let end = 0; end < headers; end++) assert.equal(readSyn(bytes, 0, end, new Syn()), false, `${end} bytes`);
    const flags = headers - 20 + 13;
    for (const other of [0x10, 0x12, 0x04, 0x01]) {
      const changed = bytes.slice();
      changed[flags] = other;
      assert.equal(readSyn(changed, 0, changed.length, new Syn()), false);
    }
  }
  fc.assert(fc.property(fc.uint8Array({ maxLength: 120 }), (bytes) => void readSyn(bytes, 0, bytes.length, new Syn())));
});

/** RFC 1071: over a right checksum the sum is 0xffff. */
function sum(bytes: Uint8Array, start = 0): number {
  let total = start;
  for (let i = 0; i < bytes.length; i += 2) total += (bytes[i]! << 8) | bytes[i + 1]!;
  while (total > 0xffff) total = (total & 0xffff) + (total >>> 16);
  return total;
}

const REFUSALS: readonly (readonly [Refusal, number, number])[] = [
  ["host-unreachable", 1, 3], ["net-unreachable", 0, 0], ["prohibited", 13, 1],
];

for (const [bytes, family] of [[SYN4, 4], [SYN6, 6]] as const) {
  const header = family === 4 ? 20 : 40;
  const refused = (refusal: Refusal): Uint8Array => {
    const syn = new Syn();
    readSyn(bytes, 0, bytes.length, syn);
    const into = new Uint8Array(REFUSAL_BYTES_MAX).fill(0xaa);
    return into.subarray(0, writeRefusal(into, syn, refusal));
  };
  const pseudo = (packet: Uint8Array, protocol: number): number =>
    sum(family === 4 ? packet.subarray(12, 20) : packet.subarray(8, 40), protocol + packet.length - header);

  test(`IPv${family}: a reset acknowledges the SYN, comes from its destination, and its sums are right`, () => {
    const packet = refused("reset");
    assert.equal(packet.length, header + 20);
    if (family === 4) assert.equal(sum(packet.subarray(0, 20)), 0xffff);
    assert.equal(sum(packet.subarray(header), pseudo(packet, 6)), 0xffff);
    const view = new DataView(packet.buffer, header);
    assert.deepEqual([view.getUint16(0), view.getUint16(2)], [443, 43210]);
    assert.deepEqual([view.getUint32(4), view.getUint32(8)], [0, 0x89abcdf0]);
    assert.equal(packet[header + 13], 0x14, "RST and ACK");
  });

  test(`IPv${family}: an ICMP error quotes the SYN, and its sums are right`, () => {
    for (const [refusal, code4, code6] of REFUSALS) {
      const packet = refused(refusal);
      assert.deepEqual([packet[header], packet[header + 1]], family === 4 ? [3, code4] : [1, code6]);
      if (family === 4) assert.equal(sum(packet.subarray(0, 20)), 0xffff);
      assert.equal(sum(packet.subarray(header), family === 4 ? 0 : pseudo(packet, 58)), 0xffff);
      const quoted = new Syn();
      const original = new Syn();
      readSyn(bytes, 0, bytes.length, original);
      assert.ok(readSyn(packet, header + 8, packet.length, quoted));
      assert.deepEqual({ ...quoted }, { ...original });
    }
  });
}
