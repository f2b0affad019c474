/** What our own egress tells our own relay behind the SOCKS5 reply, and how both come to it. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe, it } from "node:test";
import fc from "fast-check";
import { type Credentials, type Destination, OUTPUT_BYTES_MAX } from "../../src/protocol/handshake.ts";
import {
  ATTEMPTS_MAX, attemptsText, readReport, type Report, REPORT_BYTES_MAX, writeReport,
} from "../../src/protocol/report.ts";
import { Socks5Client } from "../../src/protocol/socks5-client.ts";
import { bytesOf, dialogue, type Line } from "./dialogue.ts";

const written = (report: Report | null): number[] => {
  const output = new Uint8Array(OUTPUT_BYTES_MAX).fill(0xee);
  return [...output.subarray(0, writeReport(report, output, 0))];
};

const attempt = fc.constantFrom(4, 16).chain((length) => {
  const address = fc.uint8Array({ minLength: length, maxLength: length });
  const source = fc.option(address.filter((bytes) => bytes.some((byte) => byte !== 0)));
  return fc.record({ errno: fc.nat(0xffff), address, source }, { noNullPrototype: true });
});
const report = fc.record({ errno: fc.nat(0xffff), attempts: fc.array(attempt, { maxLength: 9 }) }, { noNullPrototype: true });

describe("a report", () => {
  it("is as docs/extension.md has it", () => {
    const told: Report = {
      errno: 111,
      attempts: [
        { errno: 110, address: Uint8Array.of(198, 51, 100, 10), source: Uint8Array.of(203, 0, 113, 1) },
        { errno: 101, address: Uint8Array.of(0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1), source: null },
      ],
    };
    assert.deepEqual(written(told), [
      0, 52,
      1, 2, 0, 111,
      2, 10, 0, 110, 198, 51, 100, 10, 203, 0, 113, 1,
      2, 34, 0, 101, 0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, ...new Array<number>(16).fill(0),
    ]);
    assert.equal(attemptsText(told), "198.51.100.10 errno 110 from 203.0.113.1, 2001:db8::1 errno 101");
    assert.deepEqual(written(null), [0, 0]);
  });
  it("is read as it was written, up to so many attempts and bytes", () => {
    fc.assert(fc.property(report, (told) => {
      const bytes = Uint8Array.from(written(told));
      assert(bytes.length - 2 <= REPORT_BYTES_MAX);
      const read = readReport(bytes, 2, bytes.length)!;
      assert.deepEqual(read, { ...told, attempts: told.attempts.slice(0, ATTEMPTS_MAX) });
    }));
  });
  it("may have parts of a type that is not known yet", () => {
    const bytes = Uint8Array.of(9, 0, 1, 2, 0, 111, 255, 3, 1, 2, 3);
    assert.deepEqual(readReport(bytes, 0, bytes.length), { errno: 111, attempts: [] });
  });
  it("is one, or it is none, whatever the bytes", () => {
    const head = fc.constantFrom([1, 2], [2, 10], [2, 34], [9, 1], [1, 3], [2, 11]);
    const piece = fc.oneof(head, fc.array(fc.nat(255), { maxLength: 12 }));
    fc.assert(fc.property(fc.array(piece, { maxLength: 8 }), fc.nat(5), (pieces, at) => {
      const bytes = Uint8Array.from([...new Array<number>(at).fill(1), ...pieces.flat()]);
      const read = readReport(bytes, at, bytes.length);
      if (read === null) return;
      for (const { address, source } of read.attempts) {
        assert([4, 16].includes(address.length) && (source === null || source.length === address.length));
      }
    }), { numRuns: 2000 });
    for (const bad of [[1], [1, 2, 0], [1, 1, 5], [2, 4, 0, 1, 2, 3], [9, 200]]) {
      assert.equal(readReport(Uint8Array.from(bad), 0, bad.length), null, bad.join(" "));
    }
  });
});

const TO: Destination = { bytes: Uint8Array.of(192, 0, 2, 1), at: 0, length: 4, port: 443 };
const LOGIN: Credentials = { user: bytesOf("us@er"), password: bytesOf("p:w") };
const LOGIN_BYTES = [1, 5, ...LOGIN.user, 3, ...LOGIN.password];
const CONNECT = [5, 1, 0, 1, 192, 0, 2, 1, 0x01, 0xbb];
const GRANTED = [5, 0, 0, 1, 203, 0, 113, 9, 0x1f, 0x90];
const REFUSED = [5, 5, 0, 1, 0, 0, 0, 0, 0, 0];
const TOLD: Report = {
  errno: 111,
  attempts: [{ errno: 111, address: Uint8Array.of(192, 0, 2, 1), source: Uint8Array.of(203, 0, 113, 9) }],
};
const make = (login: Credentials | null, pipelined: boolean) => () => new Socks5Client(TO, login, pipelined, true);

/** Every way there is to the request, by a server that reports and by one that does not. */
function ways(): { name: string; machine: () => Socks5Client; lines: readonly Line[]; reports: boolean }[] {
  return [true, false].flatMap((reports) => {
    const [none, password] = reports ? [0xe0, 0xe2] : [0, 2];
    return [
      { name: "no login", machine: make(null, false), reports,
        lines: [{ sends: [5, 2, 0xe0, 0] }, { gets: [5, none] }, { sends: CONNECT }] },
      { name: "a login", machine: make(LOGIN, false), reports,
        lines: [{ sends: [5, 4, 0xe0, 0xe2, 0, 2] }, { gets: [5, password] }, { sends: LOGIN_BYTES }, { gets: [1, 0] }, { sends: CONNECT }] },
      { name: "a login that is not wanted", machine: make(LOGIN, false), reports,
        lines: [{ sends: [5, 4, 0xe0, 0xe2, 0, 2] }, { gets: [5, none] }, { sends: CONNECT }] },
      { name: "pipelined", machine: make(null, true), reports,
        lines: [{ sends: [5, 2, 0xe0, 0, ...CONNECT] }, { gets: [5, none] }] },
      { name: "pipelined with a login", machine: make(LOGIN, true), reports,
        lines: [{ sends: [5, 2, 0xe2, 2, ...LOGIN_BYTES, ...CONNECT] }, { gets: [5, password] }, { gets: [1, 0] }] },
    ];
  });
}

describe("Socks5Client that wants reports", () => {
  for (const { name, machine, lines, reports } of ways()) {
    const told = (report: Report | null) => (reports ? written(report) : []);
    it(`${name}: granted, by one who ${reports ? "reports" : "has never heard of it"}`, () => {
      dialogue(machine, [...lines, { gets: [...GRANTED, ...told(null)] }], { do: "finish" });
    });
    it(`${name}: refused, by one who ${reports ? "reports" : "has never heard of it"}`, () => {
      dialogue(machine, [...lines, { gets: [...REFUSED, ...told(TOLD)] }], {
        failure: { code: "refused", reply: 5, report: reports ? TOLD : null },
      });
    });
  }
  const start: readonly Line[] = [{ sends: [5, 2, 0xe0, 0] }, { gets: [5, 0xe0] }, { sends: CONNECT }];
  it("takes a refusal for one, whatever report stands behind it", () => {
    for (const report of [[0, 3, 9, 9, 9], [0, 2, 1, 2], [0xff, 0xff], [0, 0]]) {
      const read = report.length === 2 && report[1] === 0 ? { errno: 0, attempts: [] } : null;
      dialogue(make(null, false), [...start, { gets: [...REFUSED, ...report] }], {
        failure: { code: "refused", reply: 5, report: read },
      });
    }
    dialogue(make(null, false), [...start, { gets: [5, 4, 0, 9, 0] }], {
      failure: { code: "refused", reply: 4, report: null },
    });
  });
  it("knows a refusal whose report does not come", () => {
    const machine = make(null, false)();
    const output = new Uint8Array(OUTPUT_BYTES_MAX);
    machine.advance(output, 0, 0, output);
    machine.advance(Uint8Array.of(5, 0xe0), 0, 2, output);
    const answer = Uint8Array.from([...REFUSED, ...written(TOLD)]);
    for (let end = 1; end < answer.length; end++) {
      assert.equal(machine.advance(answer, 0, end, output).do, "read");
      assert.deepEqual(machine.refusal, end < 2 ? null : { code: "refused", reply: 5, report: null });
    }
  });
  it("learns by which address it has gone on", () => {
    for (const [bound, family, address] of [
      [[1, 203, 0, 113, 9], 2, 4], [[4, 0x20, 1, 0x0d, 0xb8, ...new Array<number>(11).fill(0), 1], 10, 8],
    ] as const) {
      const machine = make(null, false)();
      const output = new Uint8Array(OUTPUT_BYTES_MAX);
      machine.advance(output, 0, 0, output);
      machine.advance(Uint8Array.of(5, 0xe0), 0, 2, output);
      const answer = Uint8Array.from([5, 0, 0, ...bound, 0x1f, 0x90, 0, 0]);
      assert.deepEqual(machine.advance(answer, 0, answer.length, output), { do: "finish", consumed: answer.length });
      const source = machine.source!;
      assert.deepEqual([source.length, source[0], source[2], source[3]], [28, family, 0x1f, 0x90]);
      assert.deepEqual([...source.subarray(address, address + bound.length - 1)], bound.slice(1));
    }
  });
  it("speaks as in the example of docs/extension.md", () => {
    const page = readFileSync(new URL("../../../docs/extension.md", import.meta.url), "utf8");
    const lines = [...page.matchAll(/^ {4}([<>]) +(.*)$/gm)].map(([, who, words]): Line => {
      const bytes = words!.trim().split(/\s+/).flatMap((word) =>
        /^[0-9A-F]{2}$/.test(word) ? [Number.parseInt(word, 16)] : [...bytesOf(word)]);
      return who === ">" ? { sends: bytes } : { gets: bytes };
    });
    const to: Destination = { bytes: Uint8Array.of(198, 51, 100, 10), at: 0, length: 4, port: 81 };
    const alice = { user: bytesOf("alice"), password: bytesOf("s3cret") };
    const [address, source] = [to.bytes, Uint8Array.of(203, 0, 113, 1)];
    dialogue(() => new Socks5Client(to, alice, true, true), lines, {
      failure: { code: "refused", reply: 5, report: { errno: 111, attempts: [{ errno: 111, address, source }] } },
    });
  });
  it("does not accept a report that it has not room for, nor a method that it has not offered", () => {
    dialogue(make(null, false), [...start, { gets: [...GRANTED, 0, REPORT_BYTES_MAX + 1] }], {
      failure: { code: "malformed", detail: "the report is longer than any" },
    });
    dialogue(make(null, false), [...start, { gets: [...GRANTED, 0, REPORT_BYTES_MAX, ...new Array<number>(REPORT_BYTES_MAX).fill(0)] }], { do: "finish" });
    for (const method of [2, 0xe1, 0xe2, 0xe3, 0xfe]) {
      dialogue(make(null, false), [{ sends: [5, 2, 0xe0, 0] }, { gets: [5, method] }], {
        failure: { code: "malformed", detail: "the server chose a method that was not offered" },
      });
    }
    for (const method of [0, 0xe0]) {
      dialogue(make(LOGIN, true), [
        { sends: [5, 2, 0xe2, 2, ...LOGIN_BYTES, ...CONNECT] }, { gets: [5, method] },
      ], { failure: { code: "malformed", detail: "the server chose a method that was not offered" } });
    }
  });
});
