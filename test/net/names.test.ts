/**
 * Names and block lists against a real name server, with the real files of resolv.conf and hosts.
 */
import { strict as assert } from "node:assert";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { Dnsbl } from "../../src/control/names/dnsbl.ts";
import { type NameAnswer, Names } from "../../src/control/names/names.ts";
import { eventually, sleep } from "./actors.ts";
import { shadow } from "./sandbox.ts";
import { scenario, type Stage } from "./scenario.ts";
import { Unbound, type UnboundOptions } from "./unbound.ts";

const ADDRESS = "127.0.0.53";
const RESOLV_CONF = `nameserver ${ADDRESS}\n`;

const many = (count: number, record: (i: number) => string): string =>
  Array.from({ length: count }, (_, i) => record(i)).join("\n");

const EXAMPLE = `
both 300 A 192.0.2.1
both 300 A 192.0.2.2
both 300 AAAA 2001:db8::1
four 300 A 192.0.2.1
six 300 AAAA 2001:db8::1
short 1 A 192.0.2.1
now 0 A 192.0.2.1
alias 300 CNAME second
second 30 CNAME third
third 300 CNAME both
nowhere 300 CNAME nobody
loop 300 CNAME pool
pool 300 CNAME loop
${many(40, (i) => `many 300 A 192.0.2.${i}`)}
${many(60, (i) => `many 300 AAAA 2001:db8::${i}`)}
empty 300 TXT "no address"
`;

async function nameServer(stage: Stage, options: Partial<UnboundOptions> = {}): Promise<Unbound> {
  const server = new Unbound({ addresses: [ADDRESS], zones: { example: EXAMPLE }, ...options });
  stage.keep(server.process);
  await server.ready();
  shadow("/etc/resolv.conf", RESOLV_CONF);
  return server;
}

function resolver(stage: Stage, deadlineMs = 5000): Names {
  const names = new Names({ deadlineMs, log: { warning: (message) => stage.note(message) } });
  stage.finally(() => names.close());
  return names;
}

/** "192.0.2.1 v6:1", or the failure; of IPv6 the last byte stands for all. */
const said = ({ addresses, failure }: NameAnswer): string => {
  if (failure !== null) return failure;
  return addresses.map((bytes) => (bytes.length === 4 ? bytes.join(".") : `v6:${bytes[15]}`)).join(" ");
};

/** Of this network namespace; the server's own are among them. */
const udpSockets = (): number => readFileSync("/proc/net/udp", "utf8").trim().split("\n").length;

/** Something at a port 53 that takes questions; what it does with them, the caller says. */
async function socket(
  stage: Stage,
  address: string,
  port: number,
  answer: (question: Buffer) => Buffer | null,
  afterMs = 0,
): Promise<void> {
  const server = createSocket("udp4");
  stage.finally(() => void server.close());
  server.on("message", (question, from) => {
    const reply = answer(question);
    if (reply === null) return;
    setTimeout(() => server.send(reply, from.port, from.address, () => {}), afterMs);
  });
  server.bind(port, address);
  await once(server, "listening");
}

/** The answer to any question for A: 192.0.2.77; other types do not exist. */
function slowAnswer(question: Buffer): Buffer {
  let end = 12;
  while (question[end] !== 0) end += question[end]! + 1;
  end += 5;
  const isA = question.readUInt16BE(end - 4) === 1;
  const header = Buffer.from(question.subarray(0, 12));
  header.writeUInt16BE(0x8180, 2);
  header.writeUInt16BE(isA ? 1 : 0, 6);
  header.fill(0, 8);
  const record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 0, 0, 4, 192, 0, 2, 77];
  return Buffer.concat([header, question.subarray(12, end), Buffer.from(isA ? record : [])]);
}

/** It was asked these, and no others; who is answered late by a busy machine asks again. */
async function assertAsked(server: Unbound, wanted: readonly string[], timesMost = 1): Promise<void> {
  const all: string[] = [];
  await eventually(`the server is asked ${wanted}`, () => {
    all.push(...server.asked());
    return wanted.every((each) => all.includes(each));
  });
  assert.deepEqual([...new Set(all)].sort(), [...wanted].sort());
  assert.ok(all.length <= wanted.length * timesMost, `${all}`);
}

scenario("both families, aliases, and what does not exist", async (stage) => {
  const server = await nameServer(stage);
  const names = resolver(stage);
  const expected: [string, string, number][] = [
    ["both.example", "v6:1 192.0.2.1 192.0.2.2", 300_000],
    ["four.example", "192.0.2.1", 300_000],
    ["six.example", "v6:1", 300_000],
    // The alias with the shortest life decides.
    ["alias.example", "v6:1 192.0.2.1 192.0.2.2", 30_000],
    ["nowhere.example", "not-found", 10_000],
    ["nobody.example", "not-found", 10_000],
    ["empty.example", "not-found", 10_000],
  ];
  for (const [name, addresses, ttlMs] of expected) {
    const answer = await names.resolve(name);
    assert.deepEqual([said(answer), answer.ttlMs > ttlMs / 2, answer.ttlMs <= ttlMs], [addresses, true, true], name);
    await assertAsked(server, [`${name} A`, `${name} AAAA`]);
    assert.equal(said(await names.resolve(name)), addresses);
    assert.deepEqual(server.asked(), [], "from the cache");
  }
  assert.match(said(await names.resolve("loop.example")), /not-found|failed/);
});

scenario("more addresses than a datagram holds: 16, the families in turns", async (stage) => {
  await nameServer(stage);
  const { addresses } = await resolver(stage).resolve("many.example");
  const lengths = addresses.map(({ length }) => length);
  assert.deepEqual(lengths, Array.from({ length: 16 }, (_, i) => (i % 2 === 0 ? 16 : 4)));
  assert.equal(new Set(addresses.map((bytes) => bytes.join("."))).size, 16);
});

scenario("an answer holds for its TTL and no longer", async (stage) => {
  const server = await nameServer(stage);
  const names = resolver(stage);
  assert.equal(said(await names.resolve("short.example")), "192.0.2.1");
  await server.change({ example: EXAMPLE.replace("short 1 A 192.0.2.1", "short 1 A 192.0.2.9") });
  await sleep(1050);
  assert.equal(said(await names.resolve("short.example")), "192.0.2.9");
  server.asked();
  for (let i = 0; i < 3; i++) assert.equal(said(await names.resolve("now.example")), "192.0.2.1");
  let questions = 0;
  await eventually("it is asked for each time", () => {
    questions += server.asked().filter((question) => question === "now.example A").length;
    return questions >= 3;
  });
  assert.equal(questions, 3);
});

scenario("a thousand callers of one slow name cost one query", async (stage) => {
  await socket(stage, "127.0.0.1", 5353, slowAnswer, 800);
  const server = await nameServer(stage, { forward: { slow: "127.0.0.1@5353" } });
  const names = resolver(stage);
  const callers = Array.from({ length: 1000 }, () => names.resolve("host.slow"));
  const answers = await Promise.all(callers);
  assert.deepEqual([...new Set(answers.map(said))], ["192.0.2.77"]);
  await assertAsked(server, ["host.slow A", "host.slow AAAA"], 3);
});

scenario("others being quick does not make a slow name fail", async (stage) => {
  await socket(stage, "127.0.0.1", 5353, slowAnswer, 1200);
  await nameServer(stage, { forward: { slow: "127.0.0.1@5353" } });
  const names = resolver(stage);
  for (let i = 0; i < 30; i++) await names.resolve(`quick${i}.example`);
  assert.equal(said(await names.resolve("host.slow")), "192.0.2.77");
});

scenario("a name that is never answered ends at the deadline, and holds up no other", async (stage) => {
  const server = await nameServer(stage, { silent: { dead: [] } });
  const names = resolver(stage, 10_000);
  const startedAt = performance.now();
  let ended = 0;
  // Of nine clients: one alone has a third of all places.
  const dead = Array.from({ length: 500 }, async (_, i) => {
    const answer = await names.resolve(`host${i}.dead`, i % 9);
    ended++;
    return answer;
  });
  await sleep(100);
  assert.equal(said(await names.resolve("both.example", 9)), "v6:1 192.0.2.1 192.0.2.2");
  assert.equal(ended, 0, "long before any of the others");
  assert.deepEqual([...new Set((await Promise.all(dead)).map(said))], ["timeout"]);
  const passed = performance.now() - startedAt;
  assert.ok(passed >= 9_900, `${passed} ms`);
  server.asked();
  assert.equal(said(await names.resolve("host0.dead")), "timeout");
  assert.deepEqual(server.asked(), [], "a failure is remembered, too");
});

scenario("AAAA that is never answered: IPv4 does not wait for it", async (stage) => {
  const silent = { "halfdead.example": ["halfdead.example. 300 A 192.0.2.7"] };
  const server = await nameServer(stage, { silent });
  // An hour, of which nothing is waited for.
  assert.equal(said(await resolver(stage, 3_600_000).resolve("halfdead.example")), "192.0.2.7");
  const names = resolver(stage, 2000);
  const startedAt = performance.now();
  const answer = await names.resolve("halfdead.example");
  const passed = performance.now() - startedAt;
  assert.deepEqual([said(answer), answer.ttlMs], ["192.0.2.7", 1000]);
  assert.ok(passed >= 45, `AAAA has its chance: ${passed} ms`);
  let later = answer;
  await eventually("AAAA is known to be silent", async () => {
    later = await names.resolve("halfdead.example");
    return later.ttlMs > 1000;
  });
  assert.equal(said(later), "192.0.2.7");
  assert.ok(later.ttlMs <= 10_000, `${later.ttlMs}`);
  assert.equal(server.asked().filter((question) => question.endsWith(" A")).length, 2, "once for each");
});

scenario("SERVFAIL: failed, for two seconds", async (stage) => {
  const server = await nameServer(stage, { zones: { sick: null } });
  const names = resolver(stage);
  assert.equal(said(await names.resolve("host.sick")), "failed", "and not at the deadline");
  assert.equal(said(await names.resolve("host.sick")), "failed");
  await assertAsked(server, ["host.sick A", "host.sick AAAA"]);
  await server.change({ sick: "host A 192.0.2.1" });
  await sleep(2050);
  assert.equal(said(await names.resolve("host.sick")), "192.0.2.1");
});

scenario("/etc/hosts counts, with its changes", async (stage) => {
  const server = await nameServer(stage);
  const names = resolver(stage);
  stage.finally(() => shadow("/etc/hosts", "127.0.0.1 localhost\n"));
  shadow("/etc/hosts", "127.0.0.1 localhost\n192.0.2.50 both.example\n");
  assert.equal(said(await names.resolve("both.example")), "192.0.2.50");
  assert.deepEqual(server.asked(), []);
  shadow("/etc/hosts", "127.0.0.1 localhost\n2001:db8::51 both.example\n192.0.2.51 both.example\n");
  await eventually("the change is seen", async () => said(await names.resolve("both.example")) === "v6:81 192.0.2.51");
  shadow("/etc/hosts", "127.0.0.1 localhost\n");
  await eventually("and that it has gone", async () => said(await names.resolve("both.example")) === "v6:1 192.0.2.1 192.0.2.2");
});

scenario("resolv.conf counts, with its changes", async (stage) => {
  await nameServer(stage);
  const names = resolver(stage);
  shadow("/etc/resolv.conf", "nameserver 127.0.0.99\n");
  assert.equal(said(await names.resolve("four.example")), "failed", "nobody listens there");
  shadow("/etc/resolv.conf", RESOLV_CONF);
  assert.equal(said(await names.resolve("both.example")), "v6:1 192.0.2.1 192.0.2.2");
});

scenario("the first name server is silent: the second is asked, and remembered", async (stage) => {
  await nameServer(stage);
  let questions = 0;
  await socket(stage, "127.0.0.66", 53, () => {
    questions++;
    return null;
  });
  shadow("/etc/resolv.conf", `nameserver 127.0.0.66\n${RESOLV_CONF}`);
  const names = resolver(stage, 30_000);
  assert.equal(said(await names.resolve("both.example")), "v6:1 192.0.2.1 192.0.2.2");
  assert.equal(questions, 2);
  assert.equal(said(await names.resolve("four.example")), "192.0.2.1");
  assert.equal(questions, 2);
});

scenario("the first name server is sick: the second is asked", async (stage) => {
  await nameServer(stage);
  const sick = new Unbound({ addresses: ["127.0.0.54"], zones: { example: null } });
  stage.keep(sick.process);
  await sick.ready();
  shadow("/etc/resolv.conf", `nameserver 127.0.0.54\n${RESOLV_CONF}`);
  const answer = await resolver(stage).resolve("both.example");
  assert.equal(said(answer), "v6:1 192.0.2.1 192.0.2.2");
  await assertAsked(sick, ["both.example A", "both.example AAAA"]);
});

scenario("names that are never answered take few sockets, also in a long row", async (stage) => {
  const server = await nameServer(stage, { silent: { dead: [] } });
  const names = resolver(stage, 1500);
  const before = udpSockets();
  const dead: Promise<NameAnswer>[] = [];
  let sockets = 0;
  // The first ones are asked again after 500 ms, while others begin.
  for (let i = 0; i < 1400; i++) {
    dead.push(names.resolve(`host${i}.dead`, i));
    if (i % 2 === 0) await sleep(5);
    sockets = Math.max(sockets, udpSockets() - before);
  }
  assert.ok(sockets > 0 && sockets <= 48, `${sockets} sockets`);
  let questions = 0;
  await eventually("they are asked for again", () => {
    questions += server.asked().length;
    return questions > 2800;
  });
  assert.deepEqual([...new Set((await Promise.all(dead)).map(said))], ["timeout"]);
  await eventually("they are closed at once", () => udpSockets() === before);
});

const LISTS = {
  bl: "1.2.0.192 A 127.0.0.2\n3.2.0.192 A 127.0.0.4\n3.2.0.192 A 127.0.0.11\nd.c.b.a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2 A 127.0.0.2",
  refusing: "* A 127.255.255.254",
  sicklist: null,
} as const;

scenario("DNSBL: listed, delisted, error codes and SERVFAIL", async (stage) => {
  const server = await nameServer(stage, { zones: LISTS });
  const told: string[] = [];
  const changes: number[][] = [];
  const askedAbout = (wanted: string): number => server.asked().filter((question) => question === wanted).length;
  let askedByThen = 0;
  const say = (message: string, fields?: Readonly<Record<string, unknown>>): void => {
    told.push(`${message}: ${fields?.["address"] ?? ""} ${fields?.["dnsbl"]}`);
  };
  const six = Uint8Array.of(0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xab, 0xcd);
  const dnsbl = new Dnsbl({
    domains: ["bl", "refusing", "sicklist"],
    intervalMs: 200,
    addresses: [Uint8Array.of(192, 0, 2, 1), Uint8Array.of(192, 0, 2, 2), six, Uint8Array.of(192, 0, 2, 3)],
    log: { warning: say, info: say },
    onChange: (listed) => {
      if (changes.push([...listed]) === 1) askedByThen = askedAbout("1.2.0.192.bl A");
    },
  });
  stage.finally(() => dnsbl.close());
  dnsbl.start();
  await eventually("it is listed", () => changes.length > 0);
  assert.deepEqual(changes, [[0, 2, 3]]);
  assert.ok(askedByThen <= 1, `the first answer counts, and not that of question ${askedByThen}`);
  assert.deepEqual(told.splice(0).sort(), [
    "DNSBL does not answer; it changes nothing until it does:  sicklist",
    "DNSBL refuses our questions; it changes nothing until it answers:  refusing",
    "egress address is listed: 192.0.2.1 bl",
    "egress address is listed: 192.0.2.3 bl",
    "egress address is listed: 2001:db8::abcd bl",
  ]);

  // SERVFAIL of the list that lists: nothing changes.
  await server.change({ ...LISTS, bl: null });
  let questions = 0;
  await eventually("it has been asked several times", () => {
    questions += askedAbout("1.2.0.192.bl A");
    return questions >= 3;
  });
  assert.equal(changes.length, 1);
  // Refusals: neither.
  await server.change({ ...LISTS, bl: "* A 127.255.255.252" });
  await sleep(1000);
  assert.equal(changes.length, 1);

  await server.change({ ...LISTS, bl: "3.2.0.192 A 127.0.0.4" });
  // A round that was under way while the server began anew has answers of before and of after, so that one may go first.
  await eventually("two are delisted", () => changes.at(-1)!.join() === "3");
  await sleep(500);
  assert.equal(changes.at(-1)!.join(), "3");
  assert.ok(changes.every((listed) => listed.includes(3)) && changes.length <= 3, JSON.stringify(changes));
  assert.deepEqual(told.filter((line) => line.startsWith("egress")).sort(), [
    "egress address is no longer listed: 192.0.2.1 bl",
    "egress address is no longer listed: 2001:db8::abcd bl",
  ]);
  assert.deepEqual(dnsbl.states.map(({ lists }) => lists.join()), ["", "", "", "bl"]);
});
