import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import type { Destination } from "../../src/protocol/handshake.ts";
import { Socks4Client } from "../../src/protocol/socks4-client.ts";
import { bytesOf, cut, dialogue, play } from "./dialogue.ts";

// The address stands in the middle of other bytes, as it does in a sockaddr.
const IPV4: Destination = {
  bytes: Uint8Array.of(9, 9, 192, 0, 2, 1, 9, 9), at: 2, length: 4, port: 443,
};
const USER = { user: bytesOf("us@er"), password: bytesOf("not sent") };
const CONNECT = [4, 1, 0x01, 0xbb, 192, 0, 2, 1];
const GRANTED = [0, 90, 0x1f, 0x90, 10, 0, 0, 9];

const plain = () => new Socks4Client(IPV4, null);
const withUser = () => new Socks4Client(IPV4, USER);

describe("Socks4Client", () => {
  it("is granted, with and without a user", () => {
    dialogue(plain, [{ sends: [...CONNECT, 0] }, { gets: GRANTED }], { do: "finish" });
    dialogue(withUser, [{ sends: [...CONNECT, ...bytesOf("us@er"), 0] }, { gets: GRANTED }], { do: "finish" });
  });
  it("is refused, by a whole answer or the first two bytes of one", () => {
    for (const code of [91, 0, 255]) {
      for (const rest of [[], [0, 0, 0, 0, 0, 0]]) {
        dialogue(plain, [{ sends: [...CONNECT, 0] }, { gets: [0, code, ...rest] }], {
          failure: { code: "refused", reply: 1, report: null },
        });
      }
    }
    for (const code of [92, 93]) {
      dialogue(withUser, [{ sends: [...CONNECT, ...bytesOf("us@er"), 0] }, { gets: [0, code] }], {
        failure: { code: "auth-refused" },
      });
    }
  });
  it("is answered by something else", () => {
    dialogue(plain, [{ sends: [...CONNECT, 0] }, { gets: [5, 0xff] }], {
      failure: { code: "malformed", detail: "the reply is not one of SOCKS version 4" },
    });
  });
  it("finishes, fails or asks for more, whatever comes, however it is cut", () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 20 }), fc.array(fc.nat(), { maxLength: 6 }), (bytes, places) => {
      const whole = play(plain, [bytes]);
      assert.deepEqual(play(plain, cut(bytes, places)), whole);
    }));
  });
});
