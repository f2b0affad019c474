/** What is this host itself, as the kernel says: asked of the real one, and of some that say odd things. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";
import { AF_INET, ENOBUFS, ENOENT } from "../../native-bindings/constants.ts";
import { linux, type Memory, type Syscalls } from "../../native-bindings/syscalls.ts";
import { addressText } from "../../src/config/endpoint.ts";
import { AddressNews, localRoutes } from "../../src/control/local-routes.ts";
import type { Network } from "../../src/policy/network.ts";

const texts = (networks: readonly Network[] | null): string[] =>
  (networks ?? assert.fail("no answer")).map(({ bytes, prefix }) => `${addressText(bytes)}/${prefix}`);

test("they are those that ip(8) shows", (context) => {
  const shown = (family: string, bits: number): string[] | null => {
    const { status, stdout } = spawnSync("ip", [family, "route", "show", "table", "local", "type", "local"], {
      encoding: "utf8",
    });
    if (status !== 0) return null;
    return stdout.split("\n").filter(Boolean).map((line) => {
      const [, to = ""] = /^(?:local )?(\S+)/.exec(line)!;
      return to.includes("/") ? to : `${to}/${bits}`;
    });
  };
  const four = shown("-4", 32);
  if (four === null) return context.skip("ip is not here: it comes with Debian's package iproute2");
  const expected = [...four, ...(shown("-6", 128) ?? [])];
  assert.ok(expected.includes("127.0.0.0/8"));
  assert.deepEqual(texts(localRoutes(linux())).sort(), expected.sort());
});

/** A kernel that answers a dump of IPv4 with these messages, one in each recv, and has no IPv6. */
function kernel(answers: readonly (Uint8Array | number)[]): { sys: Syscalls; open: () => number } {
  let open = 0;
  let family = 0;
  let next = 0;
  const sys: Syscalls = {
    ...linux(),
    socket: () => {
      open++;
      return 77;
    },
    bind: () => 0,
    setsockopt: () => 0,
    close: () => {
      open--;
      return 0;
    },
    send: (_fd: number, from: Memory, at: number, length: number) => {
      family = from.bytes[at + 16]!;
      return family === AF_INET ? length : -ENOENT;
    },
    recv: (_fd: number, into: Memory) => {
      const answer = answers[Math.min(next++, answers.length - 1)]!;
      if (typeof answer === "number") return answer;
      into.bytes.set(answer);
      return answer.length;
    },
  };
  return { sys, open: () => open };
}

const DONE = message(3, new Uint8Array(4));

function message(type: number, body: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(16 + ((body.length + 3) & ~3));
  const view = new DataView(bytes.buffer);
  view.setUint32(0, 16 + body.length, true);
  view.setUint16(4, type, true);
  bytes.set(body, 16);
  return bytes;
}

/** RTM_NEWROUTE, to 10.0.0.x with a length of the prefix. */
const route = (x: number, { bits = 32, table = 255, type = 2 } = {}): Uint8Array =>
  message(24, Uint8Array.of(AF_INET, bits, 0, 0, table, 2, 254, type, 0, 0, 0, 0, 8, 0, 7, 0, 1, 2, 3, 4, 8, 0, 1, 0, 10, 0, 0, x));

test("of a kernel that cannot choose, only those of the table local are taken", () => {
  const all = Buffer.concat([
    route(1), route(2, { table: 254 }), route(3, { type: 1 }), route(64, { bits: 26 }),
    // All addresses, in another table, as TPROXY has it: nobody's own.
    message(24, Uint8Array.of(AF_INET, 0, 0, 0, 100, 2, 254, 2, 0, 0, 0, 0)),
  ]);
  const { sys, open } = kernel([all, route(9), DONE]);
  assert.deepEqual(texts(localRoutes(sys)), ["10.0.0.1/32", "10.0.0.64/26", "10.0.0.9/32"]);
  assert.equal(open(), 0, "its sockets are closed");
});

test("what is no answer is none, and nobody waits for it", () => {
  const short = route(1);
  new DataView(short.buffer).setUint32(0, 4000, true);
  const broken: (Uint8Array | number)[][] = [
    [-ENOBUFS], [message(2, new Uint8Array(20))], [short], [new Uint8Array(0)], [route(1)],
    [Uint8Array.of(0, 0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)],
  ];
  for (const answers of broken) {
    const { sys, open } = kernel(answers);
    assert.equal(localRoutes(sys), null);
    assert.equal(open(), 0, "its sockets are closed");
  }
});

test("there is no news until something has happened", () => {
  const news = new AddressNews(linux());
  assert.equal(news.take(), false);
  news.close();
});
