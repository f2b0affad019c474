/** Addresses as text and as sockaddr bytes; durations and sizes. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import ipaddr from "ipaddr.js";
import {
  endpointText,
  parsePort,
  portOf,
  rangeOf,
  socketAddress,
  splitHostPort,
  textOf,
} from "../../src/config/endpoint.ts";
import { durationText, parseDuration, parseSize, sizeText } from "../../src/config/quantity.ts";

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

test("an IPv4 address becomes struct sockaddr_in", () => {
  const address = socketAddress("127.0.0.1", 1081);
  assert.equal(address?.text, "127.0.0.1:1081");
  assert.equal(hex(address!.bytes), `0200${"0439"}7f000001${"00".repeat(8)}`);
});

test("an IPv6 address becomes struct sockaddr_in6, with its scope", () => {
  const plain = socketAddress("2001:DB8:0:0:0:0:0:1", 443);
  assert.equal(plain?.text, "[2001:db8::1]:443");
  assert.equal(hex(plain!.bytes), `0a0001bb00000000${"20010db8000000000000000000000001"}00000000`);
  const scoped = socketAddress("fe80::1%2", 443);
  assert.equal(scoped?.text, "[fe80::1%2]:443");
  assert.equal(hex(scoped!.bytes), `0a0001bb00000000${"fe800000000000000000000000000001"}02000000`);
});

test("an IPv4 address in IPv6 clothes is an IPv4 address", () => {
  assert.equal(hex(socketAddress("::ffff:192.0.2.1", 80)!.bytes), `02000050c0000201${"00".repeat(8)}`);
  const mapped = Buffer.from(`0a00005000000000${"0".repeat(20)}ffffc000020100000000`, "hex");
  assert.equal(textOf(mapped, 0), "192.0.2.1:80");
  for (const near of ["::12ff:c000:201", "::ff12:c000:201", "::1:ffff:c000:201"]) assert.equal(socketAddress(near, 80)?.text, `[${near}]:80`);
  // The compatible form of old is none of its clothes (RFC 4291, section 2.5.5.1).
  assert.equal(socketAddress("::192.0.2.1", 80)?.text, "[::c000:201]:80");
});

test("what is not an address is none", () => {
  const bad = [
    "", "localhost", "127.1", "0x7f000001", "017.0.0.1", "1.2.3.4.5", "256.0.0.1", "1.2.3.4 ", "1.2.3.4%1",
    "::g", "1::2::3", "[::1]", "fe80::1%eth0", "fe80::1%", "fe80::1%0", "fe80::1%4294967296",
    "fe80::1%-1", `${"1:".repeat(4000)}`,
  ];
  for (const host of bad) assert.equal(socketAddress(host, 80), null, host);
  for (const port of [-1, 65_536, 1.5, Number.NaN]) assert.equal(socketAddress("::1", port), null);
});

test("textOf reads at an offset, and says - where there is no address", () => {
  const bytes = new Uint8Array(64);
  bytes.set(socketAddress("10.1.2.3", 65_535)!.bytes, 28);
  assert.equal(textOf(bytes, 28), "10.1.2.3:65535");
  assert.equal(portOf(bytes, 28), 65_535);
  assert.equal(textOf(bytes, 0), "-");
});

test("RFC 5952: the same text as ipaddr.js for any IPv6 address", () => {
  // Many zeros, so that runs of all lengths meet.
  const group = fc.oneof({ weight: 3, arbitrary: fc.constant(0) }, fc.integer({ min: 0, max: 0xffff }));
  fc.assert(
    fc.property(fc.array(group, { minLength: 8, maxLength: 8 }), fc.integer({ min: 0, max: 65_535 }), (groups, port) => {
      const address = new ipaddr.IPv6(groups);
      const host = address.isIPv4MappedAddress() ? address.toIPv4Address().toString() : address.toRFC5952String();
      const made = socketAddress(groups.map((g) => g.toString(16)).join(":"), port);
      assert.equal(made?.text, endpointText(host, port));
      assert.equal(portOf(made!.bytes, 0), port);
      const parts = splitHostPort(made!.text)!;
      assert.deepEqual(socketAddress(parts.host, Number(parts.port))?.bytes, made?.bytes);
    }),
    { numRuns: 2000 },
  );
});

test("host and port are split at the right colon", () => {
  assert.deepEqual(splitHostPort("a:1"), { host: "a", port: "1", bracketed: false });
  assert.deepEqual(splitHostPort(":1"), { host: "", port: "1", bracketed: false });
  assert.deepEqual(splitHostPort("[::1]:1"), { host: "::1", port: "1", bracketed: true });
  for (const text of ["", "a", "::1", "::1:80", "[::1]", "[::1]80", "[::1", "a:b:c"]) {
    assert.equal(splitHostPort(text), null, text);
  }
});

test("ports", () => {
  assert.equal(parsePort("1"), 1);
  assert.equal(parsePort("65535"), 65_535);
  for (const text of ["", "0", "65536", "-1", "+1", "1e3", " 1", "http", "00000080"]) assert.equal(parsePort(text), null, text);
});

test("ranges", () => {
  assert.equal(rangeOf("127.8.8.8")?.range, "loopback");
  assert.equal(rangeOf("::ffff:127.0.0.1")?.range, "loopback");
  assert.equal(rangeOf("::")?.range, "wildcard");
  assert.equal(rangeOf("0.0.0.0")?.range, "wildcard");
  assert.equal(rangeOf("ff02::1")?.range, "multicast");
  assert.equal(rangeOf("255.255.255.255")?.range, "multicast");
  assert.deepEqual(rangeOf("fe80::1%3"), { range: "link-local", scoped: true });
  assert.equal(rangeOf("example.org"), null);
});

test("durations", () => {
  const good: [string, number][] = [
    ["10s", 10_000], ["1m30s", 90_000], ["2h4m", 7_440_000], ["500ms", 500], ["1.5s", 1500], ["0s", 0],
    ["1h1m1s1ms", 3_661_001], ["90m", 5_400_000],
  ];
  for (const [text, ms] of good) assert.equal(parseDuration(text), ms, text);
  for (const text of ["", "10", "s", "10 s", "-1s", "+1s", "1d", "1S", ".5s", "1.s", "10us", "1s,", "1e3s"]) {
    assert.equal(parseDuration(text), null, text);
  }
  fc.assert(fc.property(fc.integer({ min: 0, max: 2 ** 40 }), (ms) => assert.equal(parseDuration(durationText(ms)), ms)));
});

test("sizes", () => {
  const good: [string, number][] = [
    ["256KiB", 262_144], ["1MiB", 1_048_576], ["1GiB", 2 ** 30], ["64k", 65_536], ["64K", 65_536],
    ["2m", 2 ** 21], ["65536", 65_536], ["1mib", 2 ** 20], ["0", 0],
  ];
  for (const [text, bytes] of good) assert.equal(parseSize(text), bytes, text);
  for (const text of ["", "KiB", "1KB", "1MB", "1.5MiB", "-1KiB", "1 KiB", "1T", "1B", "0x10"]) assert.equal(parseSize(text), null, text);
  fc.assert(fc.property(fc.integer({ min: 0, max: 2 ** 40 }), (bytes) => assert.equal(parseSize(sizeText(bytes)), bytes)));
});
