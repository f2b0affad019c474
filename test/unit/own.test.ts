/** Which destinations are our own listeners, in all the forms that reach them. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { socketAddress } from "../../src/config/endpoint.ts";
import { exactly } from "../../src/policy/network.ts";
import { addressOf, OwnAddresses } from "../../src/policy/own.ts";

const sockaddr = (text: string): Uint8Array => {
  const [, host, port] = /^\[?([^\]]+)\]?:(\d+)$/.exec(text)!;
  return socketAddress(host!, Number(port))!.bytes;
};
const own = (listening: string[], local: string[] = ["192.0.2.7", "2001:db8::7"]) =>
  new OwnAddresses({
    listening: listening.map(sockaddr),
    local: local.map((host) => exactly(addressOf(socketAddress(host, 1)!.bytes, 0))),
  });

/** Rows: listeners, destination, is it ours? */
const TABLE: [string[], string, boolean][] = [
  [["127.0.0.1:1081"], "127.0.0.1:1081", true],
  [["127.0.0.1:1081"], "127.0.0.1:1082", false],
  [["127.0.0.1:1081"], "127.9.8.7:1081", true],
  [["127.0.0.1:1081"], "0.0.0.0:1081", true],
  [["127.0.0.1:1081"], "192.0.2.7:1081", false],
  [["127.0.0.1:1081"], "198.51.100.1:1081", false],
  [["127.0.0.1:1081"], "[::1]:1081", true],
  [["[::1]:1081"], "[::1]:1081", true],
  [["[::1]:1081"], "[::]:1081", true],
  [["[::]:1081"], "192.0.2.7:1081", true],
  [["[::]:1081"], "[2001:db8::7]:1081", true],
  [["[::]:1081"], "[::ffff:192.0.2.7]:1081", true],
  [["[::]:1081"], "127.0.0.1:1081", true],
  [["[::]:1081"], "192.0.2.8:1081", false],
  [["0.0.0.0:1081"], "192.0.2.7:1081", true],
  [["192.0.2.7:1081"], "192.0.2.7:1081", true],
  [["192.0.2.7:1081"], "127.0.0.1:1081", false],
  [["192.0.2.7:1081", "[::1]:2000"], "[::1]:2000", true],
];

for (const [listening, destination, expected] of TABLE) {
  test(`listening on ${listening.join(", ")}, ${destination} is ${expected ? "" : "not "}ours`, () => {
    const row = new Uint8Array(64);
    row.set(sockaddr(destination), 28);
    assert.equal(own(listening).isListener(row, 28), expected);
  });
}

test("local are loopback and the host's own addresses, v4-mapped too", () => {
  const addresses = own([]);
  for (const text of ["127.1.2.3:1", "[::1]:1", "192.0.2.7:1", "[::ffff:192.0.2.7]:1", "[2001:db8::7]:1"]) {
    assert.equal(addresses.isLocal(sockaddr(text), 0), true, text);
  }
  for (const text of ["192.0.2.8:1", "[2001:db8::8]:1"]) assert.equal(addresses.isLocal(sockaddr(text), 0), false, text);
});
