/**
 * Micro benchmarks: what one system call through koffi costs by the form of its arguments, and
 * what the pure parts cost without any I/O. The calls are made with an fd that is not open, so the
 * kernel does next to nothing and the rest is the way there and back.
 *
 *     node dist/bench/micro.js [--quick] [--write]
 *
 * With --write the figures become the last part of bench/RESULTS.md.
 */
import { readFileSync, writeFileSync } from "node:fs";
import koffi from "koffi";
import { Bench } from "tinybench";
import { EBADF, EPOLL_CTL_ADD, EPOLLIN } from "../native-bindings/constants.ts";
import { linux } from "../native-bindings/syscalls.ts";
import { Timeouts, type Waiter } from "../src/engine/timeouts.ts";
import { Access, type AccessSettings, type Asker } from "../src/policy/access.ts";
import { type EgressAddress, EgressPool } from "../src/policy/egress.ts";
import { targetOf } from "../src/policy/name.ts";
import { exactly } from "../src/policy/network.ts";
import type { Destination, Handshake } from "../src/protocol/handshake.ts";
import { HttpConnect } from "../src/protocol/http-connect.ts";
import { Socks5Client } from "../src/protocol/socks5-client.ts";

/** So many operations make one sample: a single one is shorter than reading the clock. */
const BATCH = 1000;
const CLOSED = -1;
const quick = process.argv.includes("--quick");
const PAGE = new URL("../../bench/RESULTS.md", import.meta.url);
const HEADING = "## micro: what the parts cost, without any I/O";
const rows = ["| ns, median (least-p99) |  |", "| --- | ---: |"];

await section("a system call through koffi, by argument form", calls());
await section("the seam: native-bindings/syscalls.ts", seam());
await section("protocol machines, a whole dialogue", machines());
await section("deadlines", deadlines());
await section("egress address choice, 4,096 addresses", egressChoice());
await section("access rules", accessRules());
if (process.argv.includes("--write")) {
  const [page] = readFileSync(PAGE, "utf8").split(`\n${HEADING}`);
  writeFileSync(PAGE, `${page!.trimEnd()}\n\n${HEADING}\n\n${rows.join("\n")}\n`);
  console.log("written: the end of bench/RESULTS.md");
}

type Operations = Record<string, () => unknown>;

async function section(title: string, operations: Operations): Promise<void> {
  const bench = new Bench({
    time: quick ? 5 : 300, warmupTime: quick ? 1 : 100, warmupIterations: 5, iterations: 5,
  });
  for (const [name, operation] of Object.entries(operations)) {
    bench.add(name, () => {
      for (let i = 0; i < BATCH; i++) operation();
    });
  }
  await bench.run();
  console.log(title);
  rows.push(`| **${title}** |  |`);
  for (const { name, result } of bench.tasks) {
    if (result.state !== "completed") throw new Error(`${name} did not complete`);
    const ns = (ms: number) => ((ms * 1e6) / BATCH).toFixed(0).padStart(6);
    const { p50, min, p99 } = result.latency;
    rows.push(`| ${name} | ${ns(p50).trim()} (${ns(min).trim()}-${ns(p99).trim()}) |`);
    console.log(`  ${name.padEnd(56)} ${ns(p50)} ns  (${ns(min).trim()}-${ns(p99).trim()})`);
  }
  console.log("");
}

function calls(): Operations {
  const libc = koffi.load(null);
  koffi.struct("epoll_event_form", { events: "uint32_t", data: "uint64_t" });
  const bytes = new Uint8Array(new ArrayBuffer(4096));
  const address = Number(koffi.address(bytes));
  const bigAddress = BigInt(address);
  const getppid = libc.func("int getppid()");
  const recvPointer = libc.func("int recv(int, void *, size_t, int)");
  const recvNumber = libc.func("int recv(int, uintptr_t, size_t, int)");
  const recvInt64 = libc.func("int64_t recv(int, uintptr_t, size_t, int)");
  const splicePointer = libc.func("int splice(int, void *, int, void *, size_t, unsigned int)");
  const spliceNumber = libc.func(
    "int splice(int, uintptr_t, int, uintptr_t, size_t, unsigned int)",
  );
  const ctlStruct = libc.func("int epoll_ctl(int, int, int, epoll_event_form *)");
  const ctlNumber = libc.func("int epoll_ctl(int, int, int, uintptr_t)");
  const words = new Int32Array(bytes.buffer);
  const errno = koffi.errno;
  return {
    "no argument": () => getppid(),
    "recv: Uint8Array as void *": () => recvPointer(CLOSED, bytes, 4096, 0),
    "recv: address as a number": () => recvNumber(CLOSED, address, 4096, 0),
    "recv: address as a BigInt": () => recvNumber(CLOSED, bigAddress, 4096, 0),
    "recv: address as a number, answer as int64_t": () => recvInt64(CLOSED, address, 4096, 0),
    "recv: as above with int, then errno": () =>
      recvNumber(CLOSED, address, 4096, 0) === -1 ? -errno() : 0,
    "splice: null as void *": () => splicePointer(CLOSED, null, CLOSED, null, 4096, 0),
    "splice: 0 as uintptr_t": () => spliceNumber(CLOSED, 0, CLOSED, 0, 4096, 0),
    "epoll_ctl: a struct": () =>
      ctlStruct(CLOSED, EPOLL_CTL_ADD, CLOSED, { events: EPOLLIN, data: 7 }),
    "epoll_ctl: bytes, by address": () => {
      words[0] = EPOLLIN;
      words[1] = 7;
      return ctlNumber(CLOSED, EPOLL_CTL_ADD, CLOSED, address);
    },
  };
}

function seam(): Operations {
  const sys = linux();
  const buffer = sys.memory(4096);
  const expect = (result: number) => {
    if (result !== -EBADF) throw new Error(`a call on no fd answered ${result}`);
  };
  return {
    recv: () => expect(sys.recv(CLOSED, buffer, 0, 4096, 0)),
    send: () => expect(sys.send(CLOSED, buffer, 0, 4096, 0)),
    splice: () => expect(sys.splice(CLOSED, CLOSED, 4096, 0)),
    epoll_ctl: () => expect(sys.epoll_ctl(CLOSED, EPOLL_CTL_ADD, CLOSED, EPOLLIN, 7)),
    close: () => expect(sys.close(CLOSED)),
  };
}

function machines(): Operations {
  const ascii = (text: string) => Uint8Array.from(text, (character) => character.charCodeAt(0));
  const destination: Destination = {
    bytes: Uint8Array.of(192, 0, 2, 1), at: 0, length: 4, port: 443,
  };
  const credentials = { user: ascii("alice"), password: ascii("a secret") };
  const output = new Uint8Array(4096);
  const method = Uint8Array.of(5, 0);
  const login = Uint8Array.of(5, 2);
  const welcome = Uint8Array.of(1, 0);
  const reply = Uint8Array.of(5, 0, 0, 1, 10, 0, 0, 9, 0x1f, 0x90);
  const pipelined = Uint8Array.of(...method, ...reply);
  const http = ascii("HTTP/1.1 200 Connection established\r\nVia: 1.1 proxy\r\n\r\n");
  const play = (machine: Handshake, ...messages: Uint8Array[]) => {
    let step = machine.advance(output, 0, 0, output);
    for (const message of messages) step = machine.advance(message, 0, message.length, output);
    if (step.do !== "finish") throw new Error(`the dialogue ended with ${step.do}`);
  };
  return {
    "SOCKS5": () => play(new Socks5Client(destination, null, false), method, reply),
    "SOCKS5 with a login": () =>
      play(new Socks5Client(destination, credentials, false), login, welcome, reply),
    "SOCKS5 in one write": () => play(new Socks5Client(destination, null, true), pipelined),
    "HTTP CONNECT": () => play(new HttpConnect(destination, null), http),
    "HTTP CONNECT with Basic": () => play(new HttpConnect(destination, credentials), http),
  };
}

function deadlines(): Operations {
  const waiters: Waiter[] = Array.from({ length: 10_000 }, () => ({
    nextWaiter: null,
    previousWaiter: null,
    bucket: -1,
    due: (nowMs) => nowMs + 10_000,
  }));
  const timeouts = new Timeouts(0);
  for (const [i, waiter] of waiters.entries()) timeouts.start(waiter, 10_000 + (i % 5000));
  let turn = 0;
  let now = 0;
  return {
    "start and stop, 10,000 waiting": () => {
      const waiter = waiters[turn++ % waiters.length]!;
      timeouts.stop(waiter);
      timeouts.start(waiter, now + 10_000);
    },
    "a turn of the loop in which nobody is due": () => {
      const ms = timeouts.nextMs(now, 1000);
      timeouts.expire(now);
      return ms;
    },
    "1 ms of time, 10,000 waiting 10 s each": () => timeouts.expire(now++),
  };
}

function egressChoice(): Operations {
  const addresses = (weight: (i: number) => number) =>
    Array.from({ length: 4096 }, (_, i): EgressAddress => {
      return { bytes: Uint8Array.of(192, 0, i >> 8, i & 255), prefix: 32, weight: weight(i) };
    });
  const never = () => 0;
  const known = new EgressPool(addresses(() => 1), "client", never);
  const fresh = new EgressPool(addresses(() => 1), "client", never);
  const weighted = new EgressPool(addresses((i) => 1 + (i % 3)), "client", never);
  const eight = new EgressPool(addresses((i) => 1 + (i % 8)), "client", never);
  const drawing = new EgressPool(addresses(() => 1), "none", Math.random);
  const few = new EgressPool(addresses(() => 1).slice(0, 8), "client", never);
  const server = Uint8Array.of(198, 51, 100, 10);
  const client = Uint8Array.of(10, 0, 0, 0);
  const view = new DataView(client.buffer);
  let turn = 0;
  const ask = (pool: EgressPool, number: number, rank: number) => {
    view.setUint32(0, number);
    return pool.choose(client, 0, 4, server, 0, 4, rank);
  };
  return {
    "a known client, of 1,000": () => ask(known, turn++ % 1000, 0),
    "a known client's second choice": () => ask(known, turn++ % 1000, 1),
    "a new client": () => ask(fresh, turn++, 0),
    "a new client, its first choice and its second": () => {
      ask(fresh, turn, 0);
      return ask(fresh, turn++, 1);
    },
    "a new client, three weights": () => ask(weighted, turn++, 0),
    "a new client, eight weights": () => ask(eight, turn++, 0),
    "affinity none": () => ask(drawing, turn++, 0),
    "a client of 8 addresses": () => ask(few, turn++, 0),
  };
}

function accessRules(): Operations {
  const network = (a: number, b: number) => ({ bytes: Uint8Array.of(a, b, 0, 0), prefix: 16 });
  const none: AccessSettings = {
    allowFrom: [], allowSites: [], denySites: [], allowPorts: [], denyPorts: [],
    allowNetworks: [], denyNetworks: [], allowPrivate: false, rules: [],
  };
  const plain = new Access(none, [exactly(Uint8Array.of(192, 0, 2, 1))]);
  const long = new Access({
    ...none,
    allowFrom: [network(10, 0), network(172, 16)],
    denySites: Array.from({ length: 10_000 }, (_, i) => `.site-${i}.example`),
    denyPorts: [{ first: 25, last: 25 }],
    denyNetworks: Array.from({ length: 10_000 }, (_, i) => network(20 + (i >> 8), i & 255)),
    rules: Array.from({ length: 10 }, (_, i) => ({
      name: `rule-${i}`, action: "deny", from: [network(10, i + 1)], users: [], sites: [],
      networks: [], ports: [{ first: 1, last: 1023 }],
    })),
  }, [exactly(Uint8Array.of(192, 0, 2, 1))]);
  const asker: Asker = { bytes: Uint8Array.of(10, 0, 0, 7), at: 0, length: 4, user: null };
  const server = Uint8Array.of(198, 51, 100, 10);
  const name = Uint8Array.from("WWW.Shop.Example.COM.", (character) => character.charCodeAt(0));
  const expect = (verdict: { allowed: boolean } | null) => {
    if (verdict?.allowed === false) throw new Error("what the rules allow is denied");
  };
  return {
    "a name is brought to its form": () => targetOf(name, 0, name.length, String),
    "an address, no rules": () => expect(plain.judge(asker, "", 443, server, 0, 4)),
    "10 rules, 10,000 networks": () => expect(long.judge(asker, "", 443, server, 0, 4)),
    "a name before it is resolved, 10,000 sites": () =>
      expect(long.judgeName(asker, "www.shop.example.com", 443)),
    "the same name with its address": () =>
      expect(long.judge(asker, "www.shop.example.com", 443, server, 0, 4)),
  };
}
