import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import {
  type Credentials,
  type Destination,
  type Disclosed,
  OUTPUT_BYTES_MAX,
} from "../../src/protocol/handshake.ts";
import { CREDENTIALS_BYTES_MAX, HttpConnect } from "../../src/protocol/http-connect.ts";
import { type Bytes, bytesOf, cut, dialogue, play } from "./dialogue.ts";

const IPV4: Destination = {
  bytes: Uint8Array.of(9, 192, 0, 2, 1, 9), at: 1, length: 4, port: 80,
};
const IPV6: Destination = {
  bytes: Uint8Array.of(9, 0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 9),
  at: 1, length: 16, port: 65535,
};
const REQUEST =
  "CONNECT 192.0.2.1:80 HTTP/1.1\r\nHost: 192.0.2.1:80\r\nUser-Agent: transplice\r\n\r\n";
const LIMIT = 16 * 1024;

const connect = (destination = IPV4, credentials: Credentials | null = null) =>
  () => new HttpConnect(destination, credentials);
const NOT_HTTP = {
  failure: {
    code: "malformed", detail: "the answer does not start with an HTTP/1 status line",
  },
} as const;
const refused = (status: number, errno = 0) => ({ failure: { code: "status", status, errno } }) as const;
const TOO_LONG = { failure: { code: "too-long", bytesMax: LIMIT } } as const;

/** What comes of one answer to the plain request. */
function answered(answer: Bytes, outcome: Parameters<typeof dialogue>[2]): void {
  dialogue(connect(), [{ sends: REQUEST }, { gets: answer }], outcome);
}

describe("HttpConnect: the request", () => {
  it("names an IPv6 destination in brackets", () => {
    dialogue(connect(IPV6), [
      {
        sends:
          "CONNECT [2001:db8::10]:65535 HTTP/1.1\r\nHost: [2001:db8::10]:65535\r\n" +
          "User-Agent: transplice\r\n\r\n",
      },
      { gets: "HTTP/1.1 200 OK\r\n\r\n" },
    ], { do: "finish" });
  });
  it("carries Basic credentials of any length", () => {
    for (let length = 0; length < 8; length++) {
      const password = bytesOf("p:w".repeat(3).slice(0, length));
      const credentials = { user: bytesOf("ü\xff"), password };
      const basic = Buffer.concat([credentials.user, bytesOf(":"), credentials.password]);
      dialogue(connect(IPV4, credentials), [
        {
          sends:
            "CONNECT 192.0.2.1:80 HTTP/1.1\r\nHost: 192.0.2.1:80\r\nUser-Agent: transplice\r\n" +
            `Proxy-Authorization: Basic ${basic.toString("base64")}\r\n\r\n`,
        },
        { gets: "HTTP/1.1 200 OK\r\n\r\n" },
      ], { do: "finish" });
    }
  });
  it("tells who asks, as it was told to", () => {
    const cases: [Disclosed, Destination, string][] = [
      ["off", IPV4, ""],
      ["x-forwarded-for", IPV4, "X-Forwarded-For: 192.0.2.1\r\n"],
      ["x-forwarded-for", IPV6, "X-Forwarded-For: 2001:db8::10\r\n"],
      ["forwarded", IPV4, "Forwarded: for=192.0.2.1\r\n"],
      ["forwarded", IPV6, 'Forwarded: for="[2001:db8::10]"\r\n'],
      ["forwarded-with-port", IPV4, 'Forwarded: for="192.0.2.1:80"\r\n'],
      ["forwarded-with-port", IPV6, 'Forwarded: for="[2001:db8::10]:65535"\r\n'],
    ];
    for (const [as, client, line] of cases) {
      dialogue(() => new HttpConnect(IPV4, null, { as, client }), [
        { sends: `${REQUEST.slice(0, -2)}${line}\r\n` },
        { gets: "HTTP/1.1 200 OK\r\n\r\n" },
      ], { do: "finish" });
    }
  });
  it("fits the output with the longest credentials", () => {
    const credentials = {
      user: new Uint8Array(CREDENTIALS_BYTES_MAX - 1), password: new Uint8Array(1),
    };
    const longest = {
      bytes: new Uint8Array(16).fill(0xff), at: 0, length: 16, port: 65535,
    } as const;
    const step = new HttpConnect(longest, credentials, { as: "forwarded-with-port", client: longest })
      .advance(new Uint8Array(0), 0, 0, new Uint8Array(OUTPUT_BYTES_MAX));
    assert(step.do === "write" && step.length <= OUTPUT_BYTES_MAX);
  });
});

describe("HttpConnect: success", () => {
  it("is any 2xx, with any reason or none, of HTTP/1.0 or 1.1", () => {
    for (const line of [
      "HTTP/1.1 200 Connection established", "HTTP/1.0 200 OK", "HTTP/1.1 201 Created",
      "HTTP/1.1 204 ", "HTTP/1.1 200", "HTTP/1.1 299 \xff\xfe",
    ]) {
      answered(`${line}\r\n\r\n`, { do: "finish" });
      answered(`${line}\r\nProxy-Agent: x\r\n\r\n`, { do: "finish" });
    }
  });
  it("has no body, whatever its header says", () => {
    answered("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", { do: "finish" });
    answered("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", { do: "finish" });
  });
  it("may come with bare line feeds, and with both", () => {
    answered("HTTP/1.1 200 OK\n\n", { do: "finish" });
    answered("HTTP/1.1 200\n\n", { do: "finish" });
    answered("HTTP/1.1 200 OK\nA: b\n\n", { do: "finish" });
    answered("HTTP/1.1 200 OK\r\nA: b\n\r\n", { do: "finish" });
    answered("HTTP/1.1 200 OK\nA: b\r\n\n", { do: "finish" });
  });
  it("does not end at line ends that are not an empty line", () => {
    answered("HTTP/1.1 200 OK\r\nA: b\r\n\rC: d\r\r\n \r\n\r\n", { do: "finish" });
  });
  it("may come after interim answers", () => {
    answered(
      "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" +
        "HTTP/1.1 200 OK\r\n\r\n",
      { do: "finish" },
    );
    answered("HTTP/1.1 100\n\nHTTP/1.1 200\n\n", { do: "finish" });
  });
  it("may be as long as the limit", () => {
    const [head, tail] = ["HTTP/1.1 200 OK\r\nA: ", "\r\n\r\n"];
    const fill = (length: number) => "x".repeat(length - head.length - tail.length);
    answered(head + fill(LIMIT) + tail, { do: "finish" });
    answered(head + fill(LIMIT + 1) + tail, TOO_LONG);
  });
});

describe("HttpConnect: failure", () => {
  it("is a status that is not 2xx, once the header is there", () => {
    for (const status of [101, 300, 302, 400, 403, 404, 500, 502, 503, 504, 999]) {
      answered(`HTTP/1.1 ${status} No\r\nContent-Length: 3\r\n\r\nabc`, refused(status));
      answered(`HTTP/1.0 ${status}\n\n`, refused(status));
    }
    answered("HTTP/1.1 000 \n\n", refused(0));
    answered("HTTP/1.1 100 \r\n\r\nHTTP/1.1 503 \r\n\r\n", refused(503));
  });
  it("is known from the first line, should the rest not come", () => {
    const machine = connect()();
    const output = new Uint8Array(OUTPUT_BYTES_MAX);
    machine.advance(new Uint8Array(0), 0, 0, output);
    const answer = bytesOf("HTTP/1.1 503 Service Unavailable\r\nX-Squid-Error: ERR_CONNECT_FAIL 111");
    for (let end = 1; end <= answer.length; end++) {
      assert.equal(machine.advance(answer, 0, end, output).do, "read");
      assert.deepEqual(machine.refusal, end < "HTTP/1.1 503 ".length ? null : refused(503).failure);
    }
  });
  it("has an errno where the proxy names one, as Squid does", () => {
    const squid = (line: string) => `HTTP/1.1 503 Service Unavailable\r\nServer: squid\r\n${line}\r\nVary: x\r\n\r\n`;
    answered(squid("X-Squid-Error: ERR_CONNECT_FAIL 111"), refused(503, 111));
    answered(squid("x-squid-error:ERR_CONNECT_FAIL 101"), refused(503, 101));
    answered("HTTP/1.1 503\nX-Squid-Error: 113\n\n", refused(503, 113));
    for (const line of [
      "X-Squid-Error: ERR_DNS_FAIL 0", "X-Squid-Error: ERR_CONNECT_FAIL", "X-Squid-Error: ERR_CONNECT_FAIL 12345",
      "X-Squid-Error: ERR_CONNECT_FAIL111", "X-Squid-Error: 111 ", "X-Squid-Error:", "X-Squid-Err: X 111",
      " X-Squid-Error: X 111", "Via: X-Squid-Error: X 111", "X-Squid-Error: ERR_CONNECT_FAIL -111",
    ]) answered(squid(line), refused(503));
    // In the header of an interim answer, or of a success, it says nothing.
    answered("HTTP/1.1 100\r\nX-Squid-Error: X 111\r\n\r\nHTTP/1.1 503\r\n\r\n", refused(503));
    answered("HTTP/1.1 200\r\nX-Squid-Error: X 111\r\n\r\n", { do: "finish" });
  });
  it("is itself, however long its header", () => {
    answered(`HTTP/1.1 502 No\r\n${"A: b\r\n".repeat(3000)}`, refused(502));
  });
  it("is 407 for the credentials, or 401", () => {
    for (const status of [401, 407]) {
      answered(`HTTP/1.1 ${status} Unauthorized\r\nProxy-Authenticate: Basic\r\n\r\n`, {
        failure: { code: "auth-refused" },
      });
    }
  });
  it("is anything that is not HTTP/1", () => {
    for (const answer of [
      [5, 255], "SSH-2.0-OpenSSH_9.2\r\n", "220 mail ESMTP\r\n", "HTTP/2.0 200 OK\r\n\r\n",
      "HTTP/1.2 200 OK\r\n\r\n", "http/1.1 200 OK\r\n\r\n", "HTTP/1.1  200 OK\r\n\r\n",
      "HTTP/1.1 20 OK\r\n\r\n", "HTTP/1.1 2000 OK\r\n\r\n", "HTTP/1.1 2OO OK\r\n\r\n",
      "HTTP/1.1\t200 OK\r\n\r\n", "\r\nHTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1\r\n\r\n", "\n\n",
      "HTTP/1.1 100 Continue\r\n\r\nHELLO",
    ]) {
      answered(answer, NOT_HTTP);
    }
  });
  it("is an answer without end, also one of interim answers", () => {
    answered(`HTTP/1.1 200 OK\r\n${"A: b\r\n".repeat(3000)}`, TOO_LONG);
    answered("HTTP/1.1 100 Continue\r\n\r\n".repeat(1000), TOO_LONG);
    answered(`HTTP/1.1 200 OK\r\n${"\r".repeat(LIMIT)}`, TOO_LONG);
  });
});

describe("HttpConnect: unfinished", () => {
  it("asks for more until the empty line is whole", () => {
    const answer = "HTTP/1.1 200 OK\r\nA: b\r\n\r\n";
    for (let length = 0; length < answer.length; length++) {
      answered(answer.slice(0, length), { do: "read" });
    }
  });
  it("never looks twice at what it has judged", () => {
    for (const text of [
      `HTTP/1.1 200 OK\r\n${"A: b\r\n".repeat(1000)}`, `HTTP/1.1 200 OK\n${"\r".repeat(5000)}`,
      `HTTP/1.1 200 OK\r\n${"\n\r\r".repeat(1000)}`, "HTTP/1.1 100 Continue\r\n\r\n".repeat(300),
      `HTTP/1.1 503 No\r\n${"A: b\r\n".repeat(1000)}`,
    ]) {
      let looks = 0;
      const bytes = bytesOf(text);
      const counted = new Proxy(bytes, {
        get: (target, key) => {
          looks++;
          return Reflect.get(target, key) as unknown;
        },
      });
      const machine = new HttpConnect(IPV4, null);
      const output = new Uint8Array(OUTPUT_BYTES_MAX);
      for (let end = 0; end <= bytes.length; end++) machine.advance(counted, 0, end, output);
      assert(looks < 4 * bytes.length, `${looks} looks at ${bytes.length} bytes`);
    }
  });
});

describe("HttpConnect: whatever comes", () => {
  const piece = fc.oneof(
    fc.constantFrom("HTTP/1.1 200 OK\r\n", "HTTP/1.0 200\n", "\r\n", "\n"),
    { weight: 3, arbitrary: fc.constantFrom("\r\n", "\n", "HTTP/1.1 200\r\n") },
    fc.constantFrom("HTTP/1.1 100 \r\n\r\n", "HTTP/1.1 407 x\r\n", "HTTP/1.1 503 x\r\n", "HTTP/"),
    fc.constantFrom("X-Squid-Error: X 111\r\n", "X-Squid-Error: ", "113"),
    { weight: 2, arbitrary: fc.constantFrom("A: b\r\n", "\r", " ", "x".repeat(6000)) },
    fc.string(),
  );
  const input = fc.array(piece, { maxLength: 20 }).map((pieces) => bytesOf(pieces.join("")));
  const places = fc.array(fc.nat(), { maxLength: 12 });

  it("it finishes, fails or asks, and the cuts make no difference", () => {
    fc.assert(
      fc.property(input, places, (bytes, at) => {
        const whole = play(connect(), [bytes]);
        assert.deepEqual(play(connect(), cut(bytes, at)), whole);
        if (bytes.length > 1000) return;
        assert.deepEqual(play(connect(), [...bytes].map((byte) => [byte])), whole);
      }),
      { numRuns: 2000 },
    );
  });
});
