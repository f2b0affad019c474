import assert from "node:assert/strict";
import { isIPv4, isIPv6 } from "node:net";
import { describe, it } from "node:test";
import fc from "fast-check";
import { writeIpv4, writeIpv6 } from "../../src/protocol/address.ts";
import {
  PROXY_HEADER_BYTES_MAX, type ProxyHeader, readProxyHeader,
} from "../../src/protocol/proxy-protocol.ts";
import { type Bytes, bytesOf } from "./dialogue.ts";

const SIGNATURE = [...bytesOf("\r\n\r\n\0\r\nQUIT\n")];
const V6 = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
const IN4 = [2, 0, 0xdc, 0x04, 192, 0, 2, 1, ...new Array(20).fill(0)];
const IN6 = [10, 0, 0xdc, 0x04, 0, 0, 0, 0, ...V6, 0, 0, 0, 0];
const BEFORE = new Array(28).fill(0xbb);
/** The client's own first bytes, which could be more of a header. */
const CLIENT = [5, 1, 0, ...bytesOf("\r\nPROXY \n"), ...SIGNATURE];

/** What a caller sees who holds these bytes behind others; `source` is where the sockaddr is to stand. */
function reading(bytes: ArrayLike<number>): { header: ProxyHeader; source: number[] } {
  const start = 3;
  // What follows them is poison, or the buffer's end.
  const input = new Uint8Array(start + bytes.length + (bytes.length % 2) * 4).fill(0x0a);
  input.set(bytes, start);
  const into = new Uint8Array(5 + 28 + 5).fill(0xbb);
  const header = readProxyHeader(input, start, start + bytes.length, into, 5);
  for (const at of [0, 4, 33, 37]) assert.equal(into[at], 0xbb, "wrote past the sockaddr");
  return { header, source: [...into.subarray(5, 33)] };
}

/** Whole, byte by byte and with the client's bytes glued on; `source` null: it is left as it was. */
function announces(header: Bytes, source: readonly number[] | null): void {
  const bytes = bytesOf(header);
  for (let length = 0; length < bytes.length; length++) {
    assert.deepEqual(reading(bytes.subarray(0, length)), { header: { do: "read" }, source: BEFORE });
  }
  const whole = { header: { do: "finish", consumed: bytes.length }, source: source ?? BEFORE };
  assert.deepEqual(reading(bytes), whole, latin1(bytes));
  assert.deepEqual(reading([...bytes, ...CLIENT]), whole, `glued: ${latin1(bytes)}`);
}

function fails(header: Bytes, detail: RegExp): void {
  const bytes = bytesOf(header);
  const { header: read, source } = reading(bytes);
  assert.equal(read.do, "fail", latin1(bytes));
  if (read.do === "fail") assert.match(read.detail, detail, latin1(bytes));
  assert.deepEqual(source, BEFORE);
  assert.deepEqual(reading([...bytes, ...CLIENT]).header, read, `glued: ${latin1(bytes)}`);
}

const latin1 = (bytes: ArrayLike<number>): string => String.fromCharCode(...Array.from(bytes));
const binary = (command: number, family: number, rest: readonly number[]): number[] =>
  [...SIGNATURE, command, family, rest.length >> 8, rest.length & 255, ...rest];
const ports = [0xdc, 0x04, 0x04, 0x38];
const over4 = [192, 0, 2, 1, 198, 51, 100, 1, ...ports];
const over6 = [...V6, ...V6.toReversed(), ...ports];

describe("the PROXY protocol, version 1", () => {
  it("announces an IPv4 source", () => {
    announces("PROXY TCP4 192.0.2.1 198.51.100.1 56324 1080\r\n", IN4);
    announces("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
      [2, 0, 255, 255, 255, 255, 255, 255, ...new Array(20).fill(0)]);
    announces("PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", [2, ...new Array(27).fill(0)]);
  });
  it("announces an IPv6 source", () => {
    for (const text of ["2001:db8::10", "2001:DB8::10", "2001:0db8:0:0:0:0:0:0010", "2001:db8::0.0.0.16"]) {
      announces(`PROXY TCP6 ${text} ::1 56324 1080\r\n`, IN6);
    }
    const long = new Array(8).fill("ffff").join(":");
    announces(`PROXY TCP6 ${long} ${long} 65535 65535\r\n`,
      [10, 0, 255, 255, 0, 0, 0, 0, ...new Array(16).fill(255), 0, 0, 0, 0]);
    announces("PROXY TCP6 ::ffff:192.0.2.1 :: 56324 1080\r\n",
      [10, 0, 0xdc, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 192, 0, 2, 1, 0, 0, 0, 0]);
  });
  it("announces no source, whatever follows UNKNOWN up to 107 bytes", () => {
    announces("PROXY UNKNOWN\r\n", null);
    announces("PROXY UNKNOWN \r\n", null);
    announces("PROXY UNKNOWN TCP4 1.2.3.4 \r \0\r\n", null);
    announces(`PROXY UNKNOWN ${"f".repeat(107 - 16)}\r\n`, null);
  });
  it("is no longer than 107 bytes", () => {
    fails(`PROXY UNKNOWN ${"f".repeat(107 - 14)}`, /longer than 107/);
    fails(`PROXY UNKNOWN ${"f".repeat(108 - 16)}\r\n`, /longer than 107/);
    assert.equal(reading(bytesOf(`PROXY UNKNOWN ${"f".repeat(106 - 14)}`)).header.do, "read");
  });
  it("ends in CR LF", () => {
    fails("PROXY TCP4 192.0.2.1 198.51.100.1 56324 1080\n", /CR LF/);
    fails("PROXY UNKNOWN\n", /CR LF/);
    fails("PROXY \n", /CR LF/);
    fails("PROXY TCP4 192.0.2.1 198.51.100.1 56324 1080\r \r\n", /ports/);
  });
  it("has six fields and one space between them", () => {
    for (const [line, detail] of [
      ["", /TCP4, TCP6/], ["TCP", /TCP4, TCP6/], ["TCP44", /TCP4, TCP6/], ["tcp4", /TCP4, TCP6/],
      ["UNKNOWNS", /TCP4, TCP6/], ["UDP4 192.0.2.1 198.51.100.1 1 2", /TCP4, TCP6/],
      [" TCP4 192.0.2.1 198.51.100.1 1 2", /TCP4, TCP6/],
      ["TCP4", /source/], ["TCP4 ", /source/], ["TCP4  192.0.2.1 198.51.100.1 1 2", /source/],
      ["TCP4 192.0.2.1", /destination/], ["TCP4 192.0.2.1  198.51.100.1 1 2", /destination/],
      ["TCP4 192.0.2.1 198.51.100.1", /ports/], ["TCP4 192.0.2.1 198.51.100.1 1", /ports/],
      ["TCP4 192.0.2.1 198.51.100.1 1 ", /ports/], ["TCP4 192.0.2.1 198.51.100.1  1 2", /ports/],
      ["TCP4 192.0.2.1 198.51.100.1 1 2 ", /ports/], ["TCP4 192.0.2.1 198.51.100.1 1 2 3", /ports/],
    ] as const) fails(`PROXY ${line}\r\n`, detail);
  });
  it("has addresses of its family", () => {
    fails("PROXY TCP4 ::1 198.51.100.1 1 2\r\n", /source/);
    fails("PROXY TCP4 192.0.2.1 ::1 1 2\r\n", /destination/);
    fails("PROXY TCP6 192.0.2.1 ::1 1 2\r\n", /source/);
    fails("PROXY TCP6 ::1 192.0.2.1 1 2\r\n", /destination/);
  });
  it("has decimal ports up to 65535", () => {
    for (const port of ["65536", "99999", "100000", "01", "00", "-1", "+1", "0x1", "1.", "a", "/", ":"]) {
      fails(`PROXY TCP4 192.0.2.1 198.51.100.1 ${port} 2\r\n`, /ports/);
      fails(`PROXY TCP4 192.0.2.1 198.51.100.1 1 ${port}\r\n`, /ports/);
    }
  });
  it("has one gap in an IPv6 address, for one group at least", () => {
    for (const text of [
      "1::2::3", "::1::", "1:::2", "::1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8::", "1:2::3:4:5:6:7:8",
    ]) {
      fails(`PROXY TCP6 ${text} ::1 1 2\r\n`, /source/);
    }
    const seven = [0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0, 7];
    announces("PROXY TCP6 ::1:2:3:4:5:6:7 ::1 0 0\r\n", [10, ...new Array(9).fill(0), ...seven, 0, 0, 0, 0]);
    announces("PROXY TCP6 1:2:3:4:5:6:7:: ::1 0 0\r\n",
      [10, ...new Array(7).fill(0), ...seven, 0, 0, 0, 0, 0, 0]);
  });
  it("knows an address as node:net does", () => {
    const accepted = (family: string, text: string, other: string): boolean => {
      const { header } = reading(bytesOf(`PROXY ${family} ${text} ${other} 1 2\r\n`));
      return header.do === "finish";
    };
    const group = fc.constantFrom(
      "", "0", "1", "ab", "0Fc", "ffff", "12345", "g", "/", "@", "`", "1.2.3.4", "1.2",
    );
    const text6 = fc.oneof(
      fc.array(group, { maxLength: 10 }).map((groups) => groups.join(":")),
      // About as many groups as there should be, with gaps.
      fc.array(fc.constantFrom("1", "ab", "0", ""), { minLength: 3, maxLength: 10 })
        .map((groups) => groups.join(":")),
    );
    fc.assert(
      fc.property(fc.oneof(text6, fc.ipV6()), (text) => {
        assert.equal(accepted("TCP6", text, "::"), isIPv6(text), text);
        assert.equal(accepted("TCP6", "::", text), isIPv6(text), text);
      }),
      { numRuns: 5000 },
    );
    const text4 = fc.array(fc.constantFrom("", "0", "01", "9", "10", "255", "256", "1234", "a", "/", ":"), {
      minLength: 3, maxLength: 5,
    }).map((numbers) => numbers.join("."));
    fc.assert(
      fc.property(fc.oneof(text4, fc.ipV4()), (text) => {
        assert.equal(accepted("TCP4", text, "1.2.3.4"), isIPv4(text), text);
        assert.equal(accepted("TCP4", "1.2.3.4", text), isIPv4(text), text);
      }),
      { numRuns: 5000 },
    );
  });
});

describe("the PROXY protocol, version 2", () => {
  it("announces a source", () => {
    announces(binary(0x21, 0x11, over4), IN4);
    announces(binary(0x21, 0x21, over6), IN6);
  });
  it("skips TLVs, up to 536 bytes in all", () => {
    announces(binary(0x21, 0x11, [...over4, 3, 0, 4, 1, 2, 3, 4]), IN4);
    announces(binary(0x21, 0x21, [...over6, 4]), IN6);
    announces(binary(0x21, 0x11, [...over4, ...new Array(520 - 12).fill(0x0a)]), IN4);
    assert.equal(PROXY_HEADER_BYTES_MAX, 536);
    fails(binary(0x21, 0x11, [...over4, ...new Array(521 - 12).fill(0)]), /longer than 536/);
    fails([...SIGNATURE, 0x20, 0, 255, 255], /longer than 536/);
  });
  it("announces none when the balancer speaks for itself, whatever the family", () => {
    for (const family of [0, 0x11, 0x21, 0x31, 0x40, 0x13, 0xff]) {
      announces(binary(0x20, family, []), null);
      announces(binary(0x20, family, over4), null);
    }
  });
  it("announces none for what is not TCP", () => {
    for (const family of [0, 1, 2, 0x10, 0x12, 0x20, 0x22, 0x30, 0x31, 0x32]) {
      announces(binary(0x21, family, []), null);
      announces(binary(0x21, family, new Array(216).fill(1)), null);
    }
  });
  it("is of a known version, command, family and transport", () => {
    for (const version of [0x01, 0x11, 0x31, 0xf0]) fails([...SIGNATURE, version], /neither 1 nor 2/);
    for (const command of [0x22, 0x2f]) fails([...SIGNATURE, command], /command/);
    for (const family of [0x41, 0xf1, 0x13, 0x1f]) fails(binary(0x21, family, over4), /family/);
  });
  it("is as long as its addresses", () => {
    for (let length = 0; length < 12; length++) fails(binary(0x21, 0x11, over4.slice(0, length)), /shorter/);
    for (const length of [0, 12, 35]) fails(binary(0x21, 0x21, over6.slice(0, length)), /shorter/);
  });
});

describe("the PROXY protocol, whatever comes", () => {
  const piece = fc.oneof(
    fc.constantFrom<readonly number[]>(
      SIGNATURE, [0x21, 0x11, 0, 12], [0x20, 0], [0x21, 0x21, 0, 40], over4, over6,
      ...[
        "PROXY ", "PROXY TCP4 ", "PROXY TCP6 ", "PROXY UNKNOWN ", "\r\n", "1.2.3.4 5.6.7.8 9", "::1 ::2",
        " ", "10",
      ].map((text) => [...bytesOf(text)]),
    ),
    fc.array(fc.nat(255), { maxLength: 20 }),
  );
  const input = fc.oneof(
    fc.array(piece, { maxLength: 8 }).map((pieces) => pieces.flat()),
    // A good header with one byte of it changed.
    fc.tuple(
      fc.constantFrom(
        [...bytesOf("PROXY TCP4 192.0.2.1 198.51.100.1 56324 1080\r\n")],
        [...bytesOf("PROXY TCP6 2001:db8::1 ::ffff:198.51.100.1 56324 1080\r\n")],
        binary(0x21, 0x11, over4), binary(0x21, 0x21, [...over6, 1, 0, 1, 7]),
      ),
      fc.nat(), fc.nat(255),
    ).map(([bytes, place, byte]) => [...bytes.with(place % bytes.length, byte), ...CLIENT]),
  );

  it("the first prefix that is not too short decides, and what is behind it makes no difference", () => {
    fc.assert(
      fc.property(input, (bytes) => {
        const whole = reading(bytes);
        let length = 0;
        let read = reading([]);
        while (read.header.do === "read" && length < bytes.length) {
          assert.deepEqual(read.source, BEFORE);
          assert(length < PROXY_HEADER_BYTES_MAX, "asks for more than its bound");
          read = reading(bytes.slice(0, ++length));
        }
        assert.deepEqual(read, whole);
        if (read.header.do === "finish") assert.equal(read.header.consumed, length);
        else assert.deepEqual(read.source, BEFORE);
      }),
      { numRuns: 3000 },
    );
  });

  it("both versions announce every source", () => {
    const address = fc.constantFrom<4 | 16>(4, 16).chain((length) =>
      fc.tuple(...[0, 1].map(() => fc.uint8Array({ minLength: length, maxLength: length }))));
    fc.assert(
      fc.property(address, fc.nat(65535), fc.nat(65535), ([from, to], port, toPort) => {
        const v6 = from!.length === 16;
        const text = (bytes: Uint8Array): string => {
          const into = new Uint8Array(64);
          return latin1(into.subarray(0, v6 ? writeIpv6(bytes, 0, into, 0) : writeIpv4(bytes, 0, into, 0)));
        };
        const source = [v6 ? 10 : 2, 0, port >> 8, port & 255, ...(v6 ? [0, 0, 0, 0] : []), ...from!];
        while (source.length < 28) source.push(0);
        announces(`PROXY TCP${v6 ? 6 : 4} ${text(from!)} ${text(to!)} ${port} ${toPort}\r\n`, source);
        const both = [port >> 8, port & 255, toPort >> 8, toPort & 255];
        announces(binary(0x21, v6 ? 0x21 : 0x11, [...from!, ...to!, ...both]), source);
      }),
      { numRuns: 200 },
    );
  });
});
