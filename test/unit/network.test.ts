/** Is an address in one of these networks: against a reference that compares bit by bit. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import ipaddr from "ipaddr.js";
import { holdsIpv4, type Network, Networks } from "../../src/policy/network.ts";

const bytesOf = (text: string) => Uint8Array.from(ipaddr.parse(text).toByteArray());
const network = (text: string): Network => {
  const [address, prefix] = text.split("/");
  const bytes = bytesOf(address!);
  return { bytes, prefix: prefix === undefined ? 8 * bytes.length : Number(prefix) };
};
const has = (networks: Networks, bytes: Uint8Array) => {
  const row = new Uint8Array(40).fill(0xa5);
  row.set(bytes, 7);
  return networks.has(row, 7, bytes.length as 4 | 16);
};

/** Networks, an address, is it in one of them? */
const TABLE: [string[], string, boolean][] = [
  [[], "192.0.2.1", false],
  [["10.0.0.0/8"], "10.255.255.255", true],
  [["10.0.0.0/8"], "11.0.0.0", false],
  [["10.0.0.0/8"], "9.255.255.255", false],
  [["10.0.0.0/8", "10.1.0.0/16"], "10.2.0.0", true],
  [["10.1.0.0/16", "10.0.0.0/8", "10.1.2.0/24"], "10.200.0.0", true],
  [["192.0.2.1"], "192.0.2.1", true],
  [["192.0.2.1"], "192.0.2.2", false],
  [["0.0.0.0/0"], "255.255.255.255", true],
  [["0.0.0.0/0"], "::1", false],
  [["::/0"], "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", true],
  [["::/0"], "192.0.2.1", false],
  [["::/0"], "::ffff:192.0.2.1", false],
  [["0.0.0.0/0"], "::ffff:192.0.2.1", true],
  [["::ffff:10.0.0.0/104"], "10.1.2.3", true],
  [["::ffff:10.0.0.0/104"], "::ffff:10.1.2.3", true],
  [["::ffff:10.0.0.0/104"], "11.1.2.3", false],
  [["10.0.0.0/8"], "::a00:1", false],
  // Bits behind the prefix do not matter, should anyone leave them.
  [["10.1.2.3/8"], "10.9.9.9", true],
  [["::ffff:10.1.2.3/64"], "10.1.2.3", false],
  [["::ffff:10.1.2.3/64"], "::1", true],
  [["2001:db8::7"], "2001:db8::7", true],
  [["2001:db8::7"], "2001:db8::8", false],
  [["2001:db8::/33"], "2001:db8:7fff::", true],
  [["2001:db8::/33"], "2001:db8:8000::", false],
  [["2001:db8::/32", "10.0.0.0/8"], "10.9.9.9", true],
];

describe("networks", () => {
  for (const [networks, address, expected] of TABLE) {
    it(`${address} is ${expected ? "" : "not "}in [${networks.join(", ")}]`, () => {
      assert.equal(has(new Networks(networks.map(network)), bytesOf(address)), expected);
    });
  }

  it("know when they are empty, and when they are everything", () => {
    const of = (...texts: string[]) => new Networks(texts.map(network));
    assert.deepEqual([of().empty, of("::/0").empty, of("10.0.0.0/8").empty], [true, false, false]);
    assert.equal(of("0.0.0.0/0", "::/0", "10.0.0.0/8").everything, true);
    for (const part of [of(), of("0.0.0.0/0"), of("::/0"), of("0.0.0.0/1", "::/0")]) {
      assert.equal(part.everything, false);
    }
  });

  it("agree with a comparison bit by bit", () => {
    // Few values, so that networks nest, touch and repeat, and addresses fall on their edges.
    const byte = fc.constantFrom(0, 1, 0x7f, 0x80, 0xfe, 0xff);
    const ipv4 = fc.array(byte, { minLength: 4, maxLength: 4 });
    const ipv6 = fc.array(byte, { minLength: 16, maxLength: 16 });
    const address = fc.oneof(ipv4, ipv6, ipv4.map(mapped)).map((each) => Uint8Array.from(each));
    const one = fc.tuple(address, fc.nat(128)).map(([bytes, bits]): Network => {
      const prefix = holds(bytes) ? 96 + (bits % 33) : bits % (8 * bytes.length + 1);
      const kept = (i: number) => 0xff00 >> Math.min(8, Math.max(0, prefix - 8 * i));
      return { bytes: bytes.map((value, i) => value & kept(i)), prefix };
    });
    fc.assert(
      fc.property(fc.array(one, { maxLength: 12 }), address, (networks, sought) => {
        const expected = networks.some((each) => covers(each, sought));
        assert.equal(has(new Networks(networks), sought), expected);
      }),
      { numRuns: 5000 },
    );
  });

  it("of a list of 10,000 takes each network, and nothing beside", () => {
    const list = Array.from({ length: 10_000 }, (_, i): Network => {
      return { bytes: Uint8Array.of(20 + (i >> 13), (i >> 5) & 255, (i << 3) & 255, 0), prefix: 24 };
    });
    const networks = new Networks(list);
    for (const { bytes } of list) {
      assert.equal(has(networks, Uint8Array.of(bytes[0]!, bytes[1]!, bytes[2]!, 255)), true);
      assert.equal(has(networks, Uint8Array.of(bytes[0]!, bytes[1]!, bytes[2]! + 1, 0)), false);
    }
  });
});

it("an IPv4 address in IPv6 clothes is told from its neighbours", () => {
  const row = new Uint8Array(20);
  row.set(bytesOf("::ffff:1.2.3.4"), 3);
  assert.equal(holdsIpv4(row, 3), true);
  for (const text of [
    "::102:304", "::fffe:102:304", "::ff:102:304", "::1:ffff:102:304", "100::ffff:102:304", "ffff::",
  ]) {
    assert.equal(holdsIpv4(bytesOf(text), 0), false, text);
  }
});

function mapped(ipv4: readonly number[]): number[] {
  return [...bytesOf("::ffff:0:0").subarray(0, 12), ...ipv4];
}

function holds(bytes: Uint8Array): boolean {
  return bytes.length === 16 && mapped([...bytes.subarray(12)]).join() === bytes.join();
}

function bits(bytes: Uint8Array): string {
  const plain = holds(bytes) ? bytes.subarray(12) : bytes;
  return Array.from(plain, (value) => value.toString(2).padStart(8, "0")).join("");
}

function covers({ bytes, prefix }: Network, address: Uint8Array): boolean {
  const [net, sought] = [bits(bytes), bits(address)];
  const kept = holds(bytes) ? prefix - 96 : prefix;
  return net.length === sought.length && net.slice(0, kept) === sought.slice(0, kept);
}
