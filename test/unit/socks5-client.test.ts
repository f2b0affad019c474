import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import type { Credentials, Destination } from "../../src/protocol/handshake.ts";
import { Socks5Client } from "../../src/protocol/socks5-client.ts";
import { type Bytes, bytesOf, cut, dialogue, play } from "./dialogue.ts";

// The address stands in the middle of other bytes, as it does in a sockaddr.
const IPV4: Destination = {
  bytes: Uint8Array.of(9, 9, 192, 0, 2, 1, 9, 9), at: 2, length: 4, port: 443,
};
const IPV6: Destination = {
  bytes: Uint8Array.of(9, 0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 9),
  at: 1, length: 16, port: 65280,
};
const LOGIN = credentials("us@er", "p:w");

const CONNECT_IPV4 = [5, 1, 0, 1, 192, 0, 2, 1, 0x01, 0xbb];
const CONNECT_IPV6 = [
  5, 1, 0, 4, 0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0xff, 0,
];
const LOGIN_BYTES = [1, 5, ...bytesOf("us@er"), 3, ...bytesOf("p:w")];
const GRANTED = [5, 0, 0, 1, 10, 0, 0, 9, 0x1f, 0x90];

function credentials(user: Bytes, password: Bytes): Credentials {
  return { user: bytesOf(user), password: bytesOf(password) };
}
const plain = (destination = IPV4) => () => new Socks5Client(destination, null, false);
const withLogin = (login = LOGIN) => () => new Socks5Client(IPV4, login, false);
const reporting = (login: Credentials | null, pipelines: boolean) => () =>
  new Socks5Client(IPV4, login, pipelines, true);
const pipelined = (login: Credentials | null) => () => new Socks5Client(IPV4, login, true);

describe("Socks5Client: granted", () => {
  it("without authentication", () => {
    dialogue(plain(), [
      { sends: [5, 1, 0] }, { gets: [5, 0] },
      { sends: CONNECT_IPV4 }, { gets: GRANTED },
    ], { do: "finish" });
  });
  it("to an IPv6 address", () => {
    dialogue(plain(IPV6), [
      { sends: [5, 1, 0] }, { gets: [5, 0] },
      { sends: CONNECT_IPV6 }, { gets: GRANTED },
    ], { do: "finish" });
  });
  it("with a bound address of each type and length", () => {
    const replies = [
      [5, 0, 0, 4, ...new Array(16).fill(0), 0, 80],
      [5, 0, 0xff, 1, 0, 0, 0, 0, 0, 0],
      [5, 0, 0, 3, 0, 0, 80],
      [5, 0, 0, 3, 4, ...bytesOf("host"), 0, 80],
      [5, 0, 0, 3, 255, ...new Array(255).fill(5), 0, 80],
    ];
    for (const reply of replies) {
      dialogue(plain(), [
        { sends: [5, 1, 0] }, { gets: [5, 0] },
        { sends: CONNECT_IPV4 }, { gets: reply },
      ], { do: "finish" });
    }
  });
  it("when the server wants the password", () => {
    dialogue(withLogin(), [
      { sends: [5, 2, 0, 2] }, { gets: [5, 2] },
      { sends: LOGIN_BYTES }, { gets: [1, 0] },
      { sends: CONNECT_IPV4 }, { gets: GRANTED },
    ], { do: "finish" });
  });
  it("when the server does not want the password that was offered", () => {
    dialogue(withLogin(), [
      { sends: [5, 2, 0, 2] }, { gets: [5, 0] },
      { sends: CONNECT_IPV4 }, { gets: GRANTED },
    ], { do: "finish" });
  });
  it("with an empty password, and with 255 bytes of each", () => {
    dialogue(withLogin(credentials("user", "")), [
      { sends: [5, 2, 0, 2] }, { gets: [5, 2] },
      { sends: [1, 4, ...bytesOf("user"), 0] }, { gets: [1, 0] },
      { sends: CONNECT_IPV4 }, { gets: GRANTED },
    ], { do: "finish" });
    const long = new Uint8Array(255).fill(0xfe);
    dialogue(withLogin(credentials(long, long)), [
      { sends: [5, 2, 0, 2] }, { gets: [5, 2] },
      { sends: [1, 255, ...long, 255, ...long] }, { gets: [1, 0] },
      { sends: CONNECT_IPV4 }, { gets: GRANTED },
    ], { do: "finish" });
  });
  it("by a server that repeats its SOCKS version in the login reply", () => {
    dialogue(withLogin(), [
      { sends: [5, 2, 0, 2] }, { gets: [5, 2] },
      { sends: LOGIN_BYTES }, { gets: [5, 0] },
      { sends: CONNECT_IPV4 }, { gets: GRANTED },
    ], { do: "finish" });
  });
});

describe("Socks5Client: pipelined", () => {
  it("sends greeting and request in one write", () => {
    dialogue(pipelined(null), [
      { sends: [5, 1, 0, ...CONNECT_IPV4] }, { gets: [5, 0] }, { gets: GRANTED },
    ], { do: "finish" });
  });
  it("sends the login, too, and offers nothing else", () => {
    dialogue(pipelined(LOGIN), [
      { sends: [5, 1, 2, ...LOGIN_BYTES, ...CONNECT_IPV4] },
      { gets: [5, 2] }, { gets: [1, 0] }, { gets: GRANTED },
    ], { do: "finish" });
  });
  it("takes all answers in one segment, even the longest", () => {
    const longest = [5, 0, 0, 3, 255, ...new Array(255).fill(5), 0, 80];
    dialogue(pipelined(LOGIN), [
      { sends: [5, 1, 2, ...LOGIN_BYTES, ...CONNECT_IPV4] }, { gets: [5, 2, 1, 0, ...longest] },
    ], { do: "finish" });
    dialogue(pipelined(null), [
      { sends: [5, 1, 0, ...CONNECT_IPV4] }, { gets: [5, 0, ...longest] },
    ], { do: "finish" });
  });
  it("does not accept that the server skips the login", () => {
    dialogue(pipelined(LOGIN), [
      { sends: [5, 1, 2, ...LOGIN_BYTES, ...CONNECT_IPV4] }, { gets: [5, 0] },
    ], {
      failure: { code: "malformed", detail: "the server chose a method that was not offered" },
    });
  });
});

describe("Socks5Client: refused", () => {
  it("with any code, whatever address follows", () => {
    for (const rest of [[], [0], [0, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0], [7, 7, 7, 7]]) {
      for (const reply of [1, 2, 3, 4, 5, 6, 7, 8, 9, 0x5b, 255]) {
        dialogue(plain(), [
          { sends: [5, 1, 0] }, { gets: [5, 0] },
          { sends: CONNECT_IPV4 }, { gets: [5, reply, ...rest] },
        ], { failure: { code: "refused", reply, report: null } });
      }
    }
  });
  it("for lack of a method", () => {
    dialogue(plain(), [{ sends: [5, 1, 0] }, { gets: [5, 255] }], {
      failure: { code: "no-method" },
    });
    dialogue(pipelined(LOGIN), [
      { sends: [5, 1, 2, ...LOGIN_BYTES, ...CONNECT_IPV4] }, { gets: [5, 255] },
    ], { failure: { code: "no-method" } });
  });
  it("for the login", () => {
    for (const status of [1, 2, 255]) {
      dialogue(withLogin(), [
        { sends: [5, 2, 0, 2] }, { gets: [5, 2] }, { sends: LOGIN_BYTES }, { gets: [1, status] },
      ], { failure: { code: "auth-refused" } });
    }
  });
});

describe("Socks5Client: malformed", () => {
  it("when the server is none", () => {
    dialogue(plain(), [{ sends: [5, 1, 0] }, { gets: "HTTP/1.1 400 Bad Request\r\n\r\n" }], {
      failure: { code: "malformed", detail: "the method reply is not of SOCKS version 5" },
    });
  });
  it("when the method was not offered", () => {
    for (const method of [1, 2, 3, 0x80]) {
      dialogue(plain(), [{ sends: [5, 1, 0] }, { gets: [5, method] }], {
        failure: { code: "malformed", detail: "the server chose a method that was not offered" },
      });
    }
  });
  it("when the reply is of another version or has an unknown address", () => {
    dialogue(plain(), [
      { sends: [5, 1, 0] }, { gets: [5, 0] }, { sends: CONNECT_IPV4 }, { gets: [0, 0x5a] },
    ], { failure: { code: "malformed", detail: "the reply is not of SOCKS version 5" } });
    for (const type of [0, 2, 5, 255]) {
      dialogue(plain(), [
        { sends: [5, 1, 0] }, { gets: [5, 0] },
        { sends: CONNECT_IPV4 }, { gets: [5, 0, 0, type, 0] },
      ], { failure: { code: "malformed", detail: "the reply's address is of an unknown type" } });
    }
  });
});

describe("Socks5Client: unfinished", () => {
  it("asks for more until the reply is whole", () => {
    for (let length = 0; length < GRANTED.length; length++) {
      dialogue(plain(), [
        { sends: [5, 1, 0] }, { gets: [5, 0] },
        { sends: CONNECT_IPV4 }, { gets: GRANTED.slice(0, length) },
      ], { do: "read" });
    }
  });
});

describe("Socks5Client: whatever comes", () => {
  // Pieces of good dialogues, so that the far states are reached, among bytes of no meaning.
  const piece = fc.oneof(
    fc.constantFrom<number[]>([5, 0xe0], [5, 0xe2], [0, 0], [0, 4, 1, 2, 0, 111], [0, 0xdc], [5, 5, 0, 1, 0, 0, 0, 0, 0, 0]),
    fc.constantFrom<number[]>([5, 0], [5, 2], [1, 0], GRANTED, [5, 0, 0, 4], [5, 0, 0, 3]),
    fc.array(fc.oneof(fc.nat(5), fc.nat(255)), { maxLength: 20 }),
  );
  const input = fc.array(piece, { maxLength: 30 }).map((pieces) => Uint8Array.from(pieces.flat()));
  const machine = fc.constantFrom(
    plain(), plain(IPV6), withLogin(), pipelined(null), pipelined(LOGIN), reporting(null, false),
    reporting(LOGIN, false), reporting(null, true), reporting(LOGIN, true),
  );

  it("it finishes, fails or asks, and the cuts make no difference", () => {
    fc.assert(
      fc.property(machine, input, fc.array(fc.nat(), { maxLength: 12 }), (make, bytes, places) => {
        const whole = play(make, [bytes]);
        assert.deepEqual(play(make, cut(bytes, places)), whole);
        assert.deepEqual(play(make, [...bytes].map((byte) => [byte])), whole);
      }),
      { numRuns: 2000 },
    );
  });
});
