import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { HOST_PORT_BYTES_MAX, hostPort, writeHostPort } from "../../src/protocol/address.ts";
import type { Destination } from "../../src/protocol/handshake.ts";

const ipv6 = (groups: readonly number[], port = 443): Destination => ({
  bytes: Uint8Array.from(groups.flatMap((group) => [group >> 8, group & 255])),
  at: 0, length: 16, port,
});

describe("the text of an address", () => {
  it("is dotted for IPv4", () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 4, maxLength: 4 }), fc.nat(65535), (bytes, port) => {
        assert.equal(hostPort({ bytes, at: 0, length: 4, port }), `${bytes.join(".")}:${port}`);
      }),
    );
  });

  it("follows RFC 5952 for IPv6", () => {
    for (const [groups, text] of [
      [[0, 0, 0, 0, 0, 0, 0, 0], "::"],
      [[0, 0, 0, 0, 0, 0, 0, 1], "::1"],
      [[1, 0, 0, 0, 0, 0, 0, 0], "1::"],
      [[0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10], "2001:db8::10"],
      [[0x2001, 0xdb8, 0, 1, 1, 1, 1, 1], "2001:db8:0:1:1:1:1:1"],
      [[0x2001, 0, 0, 1, 0, 0, 0, 1], "2001:0:0:1::1"],
      [[0x2001, 0xdb8, 0, 0, 1, 0, 0, 1], "2001:db8::1:0:0:1"],
      [[0, 0, 0, 0, 0, 0xffff, 0xc000, 0x0201], "::ffff:192.0.2.1"],
      [[0, 0, 0, 0, 1, 0xffff, 0xc000, 0x0201], "::1:ffff:c000:201"],
    ] as const) {
      assert.equal(hostPort(ipv6(groups)), `[${text}]:443`);
    }
  });

  it("agrees with the URL standard on any IPv6 address but a mapped one", () => {
    const group = fc.oneof(fc.constant(0), fc.nat(0xffff), fc.nat(0xf));
    const groups = fc.array(group, { minLength: 8, maxLength: 8 });
    fc.assert(
      fc.property(groups, fc.nat(65535), (each, port) => {
        fc.pre(each[5] !== 0xffff);
        const full = each.map((value) => value.toString(16)).join(":");
        const expected = new URL(`http://[${full}]`).hostname;
        assert.equal(hostPort(ipv6(each, port)), `${expected}:${port}`);
      }),
      { numRuns: 2000 },
    );
  });

  it("never takes more room than it says", () => {
    const bytes = new Uint8Array(18).fill(0xff);
    const longest = { bytes, at: 1, length: 16, port: 65535 } as const;
    assert.equal(writeHostPort(longest, new Uint8Array(100), 0), HOST_PORT_BYTES_MAX);
  });
});
