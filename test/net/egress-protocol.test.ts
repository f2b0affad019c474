/**
 * The egress as its clients meet it: SOCKS5, 4 and 4a as real programs speak them, and byte for byte
 * what it answers to those who speak them oddly, slowly, wrongly or not at all.
 */
import { strict as assert } from "node:assert";
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { eventually, type Listener, type Peer, sleep, text } from "./actors.ts";
import { asked, CLIENTS, dmz, echo, egress, NOWHERE, POOL, PORT, seen, web, WHOLE_POOL } from "./dmz.ts";
import { Names } from "./names.ts";
import { FAMILIES, type Family, LAN, PROXY, SERVER } from "./network.ts";
import type { Settings } from "./relay.ts";
import { PRIVATE, unprivileged } from "./sandbox.ts";
import { scenario, type Stage } from "./scenario.ts";
import {
  ask,
  codeOf,
  dial,
  greeting,
  GRANTED,
  GRANTED4,
  login,
  NO_METHOD,
  NO_REPLY,
  REFUSED4,
  reply4,
  reply5,
  request,
  request4,
  trickle,
  tunnel,
  WRONG_PASSWORD,
} from "./socks.ts";
import { curl, type Fetched, type Seen, visit } from "./web.ts";

const NAMES = { "web.test": [SERVER[4], SERVER[6]], "web4.test": [SERVER[4]], "web6.test": [SERVER[6]] };
const ACCOUNTS = { root: "", alice: "s3cret", "us:er": "p w#ü" };

/** curl on the client host, through the egress in the way that the option says. */
const through = (stage: Stage, way: string, url: string, ...args: string[]): Promise<Fetched> =>
  curl(stage.net.lan, "--noproxy", "", way, asked(), ...args, url);

const visited = (stage: Stage, way: string, url: string, ...args: string[]): Promise<Seen> =>
  visit(stage.net.lan, url, "--noproxy", "", way, asked(), ...args);

/** What curl says when the proxy did not grant: 97 for SOCKS, in older versions 7. */
const assertRefused = ({ status, error }: Fetched, what: string): void =>
  assert.ok(status === 97 || status === 7, `${what}: status ${status}: ${error}`);

const WAYS: readonly { way: string; families: readonly Family[]; byName: boolean }[] = [
  { way: "--socks4", families: [4], byName: false },
  { way: "--socks4a", families: [4], byName: true },
  { way: "--socks5", families: FAMILIES, byName: false },
  { way: "--socks5-hostname", families: FAMILIES, byName: true },
];

// ---------------------------------------------------------------------------------------------
// What usocksd's own suite wants.

for (const { way, families, byName } of WAYS) {
  scenario(`curl ${way} fetches, IPv4 and IPv6, from and through either`, async (stage) => {
    await Names.start(stage, NAMES);
    web(stage);
    const relay = await egress(stage, { outgoing: { addresses: WHOLE_POOL } });
    for (const family of families) {
      const host = byName ? `web${family}.test` : text(SERVER[family], 80);
      for (const proxy of FAMILIES) {
        const it = await visit(stage.net.lan, `http://${host}/`, "--noproxy", "", way, asked(proxy));
        assert.ok((POOL[family] as readonly string[]).includes(it.peer), `${it.peer} is of the pool`);
        assert.equal(it.local, text(SERVER[family], 80));
      }
    }
    const bulk = await through(stage, way, `http://${SERVER[4]}/bytes/3000000`);
    assert.equal(bulk.body.length, 3_000_000, bulk.error);
    assert.equal((await relay.stop()).code, 0);
  });
}

scenario("without a pool it leaves as the host does", async (stage) => {
  web(stage);
  await egress(stage);
  for (const family of FAMILIES) {
    const { peer } = await visited(stage, "--socks5", `http://${text(SERVER[family], 80)}/`);
    assert.equal(peer, PROXY[family]);
  }
});

scenario("with users, only those who know their password are served", async (stage) => {
  await Names.start(stage, NAMES);
  web(stage);
  const relay = await egress(stage, { users: ACCOUNTS });
  const url = `http://${SERVER[4]}/`;
  const cases: [way: string, user: string | null, right: boolean][] = [
    ["--socks4", null, false],
    ["--socks4", "root:", true],
    ["--socks4", "alice:", false],
    ["--socks4a", "root:", true],
    ["--socks5", null, false],
    ["--socks5", "root:", true],
    ["--socks5", "alice:s3cret", true],
    ["--socks5", "alice:", false],
    ["--socks5", "alice:bad", false],
    ["--socks5", "alice:s3crets", false],
    ["--socks5", "Alice:s3cret", false],
    ["--socks5", "nobody:s3cret", false],
    ["--socks5", "us%3Aer:p w#ü", true],
    ["--socks5-hostname", "alice:s3cret", true],
  ];
  for (const [way, user, right] of cases) {
    const words = user === null ? [] : ["--proxy-user", user];
    const fetched = await through(stage, way, url, ...words);
    if (right) assert.equal(fetched.status, 0, `${way} ${user}: ${fetched.error}`);
    else assertRefused(fetched, `${way} ${user}`);
  }
  if (FAMILIES.includes(6)) {
    const { peer } = await visited(
      stage,
      "--socks5",
      `http://${text(SERVER[6], 80)}/`,
      "--proxy-user",
      "alice:s3cret",
    );
    assert.equal(peer, PROXY[6]);
  }
  for (const password of ["s3cret", "s3crets", "p w#"]) {
    assert.ok(!relay.process.output.includes(password), `the log has ${password}`);
  }
});

scenario("the rule that wants a name is kept for each way of asking", async (stage) => {
  await Names.start(stage, NAMES);
  web(stage);
  await egress(stage, { outgoing: { deny_sites: [""] } });
  assertRefused(await through(stage, "--socks4", `http://${SERVER[4]}/`), "socks4");
  assertRefused(await through(stage, "--socks5", `http://${SERVER[4]}/`), "socks5");
  await visited(stage, "--socks4a", "http://web4.test/");
  await visited(stage, "--socks5-hostname", "http://web4.test/");
  if (!FAMILIES.includes(6)) return;
  assertRefused(await through(stage, "--socks5", `http://${text(SERVER[6], 80)}/`), "IPv6");
  assert.equal((await visited(stage, "--socks5-hostname", "http://web6.test/")).peer, PROXY[6]);
});

scenario("a closed port is an error to curl, however it asks", async (stage) => {
  await Names.start(stage, NAMES);
  await egress(stage);
  for (const { way, families, byName } of WAYS) {
    for (const family of families) {
      const host = byName ? `web${family}.test` : text(SERVER[family], 81).replace(":81", "");
      assertRefused(await through(stage, way, `http://${host}:81/`), `${way} ${host}`);
    }
  }
});

// ---------------------------------------------------------------------------------------------
// The reply.

scenario("BND.ADDR and BND.PORT are those really bound", async (stage) => {
  await Names.start(stage, NAMES);
  const { lan, internet } = stage.net;
  const listeners = new Map<Family, Listener>();
  dmz(stage.net);
  for (const family of FAMILIES) {
    listeners.set(family, stage.listen(internet, SERVER[family], 7000));
  }
  for (const addresses of [[], WHOLE_POOL]) {
    const relay = await egress(stage, { outgoing: { addresses } });
    for (const family of FAMILIES) {
      for (const to of [SERVER[family], `web${family}.test`]) {
        const { code, bound, peer } = await ask(lan, asked(), { to, port: 7000 });
        assert.equal(code, GRANTED);
        const far = await listeners.get(family)!.accept();
        assert.equal(bound, far.remote, `${to}, pool of ${addresses.length}`);
        peer.destroy();
        far.destroy();
      }
    }
    const { code, bound, peer } = await ask(lan, asked(), { to: SERVER[4], port: 7000, version: 4 });
    assert.equal(code, GRANTED4);
    const far = await listeners.get(4)!.accept();
    assert.equal(bound, far.remote, "SOCKS4");
    peer.destroy();
    far.destroy();
    await relay.stop();
  }
});

for (const family of FAMILIES) {
  scenario(`IPv${family}: each failure has its code`, async (stage) => {
    const { lan, internet } = stage.net;
    const names = await Names.start(stage, NAMES);
    names.scripts.set("fails.scripted.test", { code: 2 });
    names.scripts.set("empty.scripted.test", {});
    stage.listen(internet, SERVER[family], 7000);
    const relay = await egress(stage, {
      outgoing: { deny_ports: [25] },
      timeouts: { dial: "2s" },
    });
    const name = `web${family}.test`;
    const cases: [to: string, port: number, code: number, why: string][] = [
      [SERVER[family], 7000, 0, "granted"],
      [name, 7000, 0, "granted by name"],
      [SERVER[family], 25, 2, "not allowed"],
      [name, 25, 2, "not allowed by name"],
      [NOWHERE.noRoute[family], 80, 3, "ENETUNREACH"],
      [NOWHERE.unreachable[family], 80, 4, "EHOSTUNREACH"],
      [NOWHERE.icmpUnreachable[family], 80, family === 4 ? 4 : 3, "ICMP unreachable"],
      ["unknown.test", 80, 4, "NXDOMAIN"],
      ["unknown.scripted.test", 80, 4, "NXDOMAIN from behind"],
      ["empty.scripted.test", 80, 4, "a name without addresses"],
      [SERVER[family], 81, 5, "ECONNREFUSED"],
      [name, 81, 5, "ECONNREFUSED by name"],
      [NOWHERE.blackHole[family], 80, 6, "a black hole"],
    ];
    for (const [to, port, code, why] of cases) {
      const reply = await ask(lan, asked(), { to, port });
      reply.peer.destroy();
      assert.equal(reply.code, code, `${why}: ${text(to, port)}`);
      if (family === 6 || code === 0) continue;
      const four = await codeOf(lan, asked(), { to, port, version: 4 });
      assert.equal(four, REFUSED4, `SOCKS4, ${why}`);
    }
    for (const to of [NOWHERE.icmpProhibited[family], "fails.scripted.test"]) {
      const code = await codeOf(lan, asked(), { to, port: 80 });
      assert.ok([1, 3, 4].includes(code), `${to}: ${code}`);
    }
    assert.equal(relay.process.exit, null);
  });
}

scenario("after a refusal the connection ends, and not by a reset", async (stage) => {
  await egress(stage, { timeouts: { negotiation: "1h" } });
  for (const version of [4, 5] as const) {
    const { peer } = await ask(stage.net.lan, asked(), { to: SERVER[4], port: 81, version });
    assert.equal(await peer.ending(), "fin");
    peer.destroy();
  }
});

scenario("commands but CONNECT are answered 07, unknown address types 08", async (stage) => {
  const relay = await egress(stage);
  const { lan } = stage.net;
  for (const command of [0, 2, 3, 9, 255]) {
    const peer = await dial(lan, asked());
    peer.write(greeting(0));
    await peer.read(2);
    peer.write(request(SERVER[4], 80, command));
    assert.equal((await reply5(peer)).code, 7, `command ${command}`);
    peer.destroy();
    const four = await dial(lan, asked());
    four.write(request4(SERVER[4], 80, "", command));
    assert.equal((await reply4(four)).code, REFUSED4, `SOCKS4, command ${command}`);
    four.destroy();
  }
  for (const type of [0, 2, 5, 255]) {
    const peer = await dial(lan, asked());
    peer.write(greeting(0));
    await peer.read(2);
    peer.write(Buffer.from([5, 1, 0, type, 1, 2, 3, 4, 0, 80]));
    assert.equal((await reply5(peer)).code, 8, `address type ${type}`);
    peer.destroy();
  }
  assert.equal(relay.process.exit, null);
});

scenario("what is no SOCKS ends without an answer, at once", async (stage) => {
  const relay = await egress(stage, { timeouts: { negotiation: "1h" } });
  const { lan } = stage.net;
  const nonsense = ["GET / HTTP/1.1\r\n\r\n", "\x00\x00\x00", "\x06\x01\x00", "\x16\x03\x01\x02\x00"];
  for (const words of nonsense) {
    const peer = await dial(lan, asked());
    peer.write(Buffer.from(words, "latin1"));
    const { data } = await peer.rest();
    assert.equal(data.length, 0, JSON.stringify(words));
    peer.destroy();
  }
  // It says no to methods it does not have; a name without characters is none.
  const methods = await dial(lan, asked());
  methods.write(greeting(1, 3, 0x80));
  assert.deepEqual([...(await methods.rest()).data], [5, NO_METHOD]);
  methods.destroy();
  assert.equal(await codeOf(lan, asked(), { to: "", port: 80 }), 1);
  assert.equal(relay.process.exit, null);
});

scenario("the method is chosen as usocksd did, the password judged as RFC 1929 says", async (stage) => {
  const { lan } = stage.net;
  echo(stage, 7000);
  const method = async (...methods: number[]): Promise<number> => {
    const peer = await dial(lan, asked());
    peer.write(greeting(...methods));
    const [, chosen] = await peer.read(2);
    peer.destroy();
    return chosen!;
  };
  const open = await egress(stage);
  assert.equal(await method(0), 0);
  // Who offers a password only is let in with any, where there are no users.
  assert.equal(await method(2), 2);
  const any = { to: SERVER[4], port: 7000, user: "who", password: "ever" };
  assert.equal(await codeOf(lan, asked(), any), GRANTED);
  await open.stop();

  await egress(stage, { users: ACCOUNTS });
  assert.equal(await method(0), NO_METHOD);
  assert.equal(await method(0, 2), 2);
  assert.equal(await method(2), 2);
  const known = { to: SERVER[4], port: 7000, user: "alice" };
  assert.equal(await codeOf(lan, asked(), { ...known, password: "s3cret" }), GRANTED);
  assert.equal(await codeOf(lan, asked(), { ...known, password: "s3cre" }), WRONG_PASSWORD);
  assert.equal(await codeOf(lan, asked(), { ...known, password: "" }), WRONG_PASSWORD);
  assert.equal(await codeOf(lan, asked(), { ...known, user: "", password: "" }), WRONG_PASSWORD);
  const long = { ...known, user: "u".repeat(255), password: "p".repeat(255) };
  assert.equal(await codeOf(lan, asked(), long), WRONG_PASSWORD);
  const four = { to: SERVER[4], port: 7000, version: 4 } as const;
  assert.equal(await codeOf(lan, asked(), { ...four, user: "root" }), GRANTED4);
  for (const user of ["", "alice", "nobody"]) {
    assert.equal(await codeOf(lan, asked(), { ...four, user }), REFUSED4, `SOCKS4, ${user}`);
  }
});

scenario("a password's hash, made by `transplice passwd`, is as good as the password", async (stage) => {
  const { lan } = stage.net;
  echo(stage, 7000);
  const hash = passwd(stage, "corr3ct horse");
  assert.match(hash, /^scrypt:\d+:\d+:\d+:[\w+/=-]+:[\w+/=-]+$/);
  const relay = await egress(stage, { users: { alice: hash } });
  const known = { to: SERVER[4], port: 7000, user: "alice" };
  for (let i = 0; i < 3; i++) {
    assert.equal(await codeOf(lan, asked(), { ...known, password: "corr3ct horse" }), GRANTED);
    assert.equal(await codeOf(lan, asked(), { ...known, password: "correct horse" }), WRONG_PASSWORD);
    assert.equal(await codeOf(lan, asked(), { ...known, password: hash }), WRONG_PASSWORD);
  }
  assert.ok(!relay.process.output.includes("corr"), "the log has the password");
});

// ---------------------------------------------------------------------------------------------
// Clients who speak fast, slowly, or not.

/** Every message of a client in one piece, for an echo server's port. */
function dialogues(): { name: string; users: Settings; bytes: Buffer; granted: Buffer }[] {
  const name = "web4.test";
  const granted5 = Buffer.from([5, 0]);
  const users = { users: ACCOUNTS };
  return [
    {
      name: "SOCKS5",
      users: {},
      bytes: Buffer.concat([greeting(0), request(name, 7)]),
      granted: Buffer.concat([granted5, granted5]),
    },
    {
      name: "SOCKS5 with a password",
      users,
      bytes: Buffer.concat([greeting(0, 2), login("alice", "s3cret"), request(name, 7)]),
      granted: Buffer.concat([Buffer.from([5, 2, 1, 0]), granted5]),
    },
    {
      name: "SOCKS4",
      users,
      bytes: request4(SERVER[4], 7, "root"),
      granted: Buffer.from([0, GRANTED4]),
    },
    { name: "SOCKS4a", users: {}, bytes: request4(name, 7), granted: Buffer.from([0, GRANTED4]) },
  ];
}

for (const { name, users, bytes, granted } of dialogues()) {
  const length = name.startsWith("SOCKS4") ? 8 : granted.length - 2 + 10;
  const payload = "first words";

  scenario(`${name}: all messages and the first words in one segment are taken`, async (stage) => {
    await Names.start(stage, NAMES);
    echo(stage);
    await egress(stage, users);
    const peer = await dial(stage.net.lan, asked());
    peer.finish(Buffer.concat([bytes, Buffer.from(payload)]));
    const said = await peer.read(length);
    assert.deepEqual(said.subarray(0, granted.length), granted);
    assert.equal(String((await peer.rest()).data), payload);
  });

  scenario(`${name}: one byte at a time is taken`, async (stage) => {
    await Names.start(stage, NAMES);
    echo(stage);
    await egress(stage, users);
    const peer = await dial(stage.net.lan, asked());
    await trickle(peer, bytes);
    const said = await peer.read(length);
    assert.deepEqual(said.subarray(0, granted.length), granted);
    await trickle(peer, Buffer.from(payload));
    peer.finish();
    assert.equal(String((await peer.rest()).data), payload);
  });
}

scenario("a megabyte behind the request, before any answer, arrives whole", async (stage) => {
  await Names.start(stage, NAMES);
  echo(stage);
  await egress(stage);
  const words = Buffer.alloc(1 << 20, "pipelined ");
  const peer = await dial(stage.net.lan, asked());
  peer.finish(Buffer.concat([greeting(0), request("web4.test", 7), words]));
  await peer.read(12);
  const { data, end } = await peer.rest();
  assert.ok(data.equals(words), `${data.length} bytes`);
  assert.equal(end, "fin");
});

scenario("an end is passed on as an end, a reset as a reset, each way", async (stage) => {
  const { lan, internet } = stage.net;
  dmz(stage.net);
  const server = stage.listen(internet, SERVER[4], 7000);
  await egress(stage);
  const both = async (): Promise<[Peer, Peer]> => {
    const client = await tunnel(lan, asked(), { to: SERVER[4], port: 7000 });
    return [client, await server.accept()];
  };
  for (const turned of [false, true]) {
    const ends = await both();
    const [one, other] = turned ? ends.reverse() : ends;
    one!.finish("question");
    assert.deepEqual(await other!.rest(), { data: Buffer.from("question"), end: "fin" });
    await sleep(50);
    other!.finish("answer");
    assert.deepEqual(await one!.rest(), { data: Buffer.from("answer"), end: "fin" });
  }
  for (const turned of [false, true]) {
    const ends = await both();
    const [one, other] = turned ? ends.reverse() : ends;
    one!.reset();
    assert.equal(await other!.ending(), "reset");
  }
});

scenario("who says nothing, or too little, or too slowly, is ended by the deadline", async (stage) => {
  const relay = await egress(stage, { timeouts: { negotiation: "1s" }, users: ACCOUNTS });
  const { lan } = stage.net;
  const beginnings = [
    Buffer.alloc(0),
    Buffer.from([5]),
    Buffer.from([5, 3, 0]),
    greeting(2),
    Buffer.concat([greeting(2), login("alice", "s3cret").subarray(0, 9)]),
    Buffer.concat([greeting(2), login("alice", "s3cret")]),
    Buffer.concat([greeting(2), login("alice", "s3cret"), request("name.test", 80).subarray(0, 9)]),
    Buffer.from([4, 1, 0, 80]),
    request4("name.test", 80, "root").subarray(0, 15),
  ];
  const before = relay.process.fds();
  const began = performance.now();
  await Promise.all(
    beginnings.map(async (bytes, i) => {
      const peer = await dial(lan, asked());
      peer.write(bytes);
      await peer.ending();
      const waited = performance.now() - began;
      assert.ok(waited > 900, `beginning ${i}: ${waited} ms`);
      peer.destroy();
    }),
  );
  // The deadline is for all of it: a byte now and then does not move it.
  const start = performance.now();
  const slow = await dial(lan, asked());
  const drip = setInterval(() => slow.write(Buffer.from([0])), 200);
  slow.write(Buffer.from([5, 200]));
  await slow.ending();
  clearInterval(drip);
  const waited = performance.now() - start;
  assert.ok(waited > 900, `by drips: ${waited} ms`);
  slow.destroy();
  await eventually("all is given back", () => relay.process.fds() <= before);
});

scenario("a tunnel that stands is not under the negotiation's deadline", async (stage) => {
  echo(stage);
  await egress(stage, { timeouts: { negotiation: "4s" } });
  const peer = await tunnel(stage.net.lan, asked(), { to: SERVER[4], port: 7 });
  await sleep(5_000);
  peer.finish("still here");
  assert.equal(String((await peer.rest()).data), "still here");
});

scenario("a user id or a name without end is not kept, nor waited for", async (stage) => {
  const relay = await egress(stage, { timeouts: { negotiation: "1h" } });
  for (const head of [Buffer.from([4, 1, 0, 80, 1, 2, 3, 4]), request4("a", 80).subarray(0, 9)]) {
    const peer = await dial(stage.net.lan, asked());
    const before = relay.process.residentKiB();
    peer.write(head);
    const flood = setInterval(() => peer.write(Buffer.alloc(65_536, "x")), 5);
    await peer.ending().finally(() => clearInterval(flood));
    peer.destroy();
    const grown = relay.process.residentKiB() - before;
    assert.ok(grown < 8_192, `${grown} KiB more`);
  }
});

// ---------------------------------------------------------------------------------------------
// Dialling.

scenario("a black hole is answered 06 within the dial's deadline", async (stage) => {
  const { lan } = stage.net;
  await Names.start(stage, {
    "dead.test": FAMILIES.map((family) => NOWHERE.blackHole[family]),
  });
  await egress(stage, { timeouts: { dial: "2s" } });
  const targets = [...FAMILIES.map((family) => NOWHERE.blackHole[family]), "dead.test"];
  await Promise.all(
    targets.map(async (to) => {
      const began = performance.now();
      assert.equal(await codeOf(lan, asked(), { to, port: 80 }), 6, to);
      const waited = performance.now() - began;
      assert.ok(waited > 1_900, `${to}: ${waited} ms`);
    }),
  );
});

scenario("of a name's addresses one that is dead is not waited for", async (stage) => {
  if (!FAMILIES.includes(6)) stage.skip("the kernel has no IPv6");
  await Names.start(stage, {
    "half.test": [NOWHERE.blackHole[6], SERVER[4]],
    "refused.test": ["198.51.100.99", SERVER[6]],
    "lost.test": [NOWHERE.noRoute[6], SERVER[4]],
  });
  web(stage);
  await egress(stage, { outgoing: { addresses: WHOLE_POOL }, timeouts: { dial: "1h" } });
  for (const [to, family] of [["half.test", 4], ["refused.test", 6], ["lost.test", 4]] as const) {
    const peer = await tunnel(stage.net.lan, asked(), { to, port: 80 });
    const source = (await seen(peer)).peer;
    assert.ok((POOL[family] as readonly string[]).includes(source), `${to} from ${source}`);
  }
});

scenario("a client that leaves ends the dial, and the question for a name", async (stage) => {
  const names = await Names.start(stage);
  names.scripts.set("silent.scripted.test", { silent: true });
  const relay = await egress(stage, { timeouts: { dial: "1h", dns: "1m", negotiation: "1h" } });
  const { lan, proxy } = stage.net;
  const sockets = (...which: string[]): number =>
    proxy.run("ss", ["-Htn", ...which]).split("\n").filter(Boolean).length;
  const dialling = (): number => sockets("state", "syn-sent");
  for (const leave of ["destroy", "reset"] as const) {
    const peers: Peer[] = [];
    for (const to of [NOWHERE.blackHole[4], "silent.scripted.test"]) {
      const peer = await dial(lan, asked());
      peers.push(peer);
      peer.write(greeting(0));
      await peer.read(2);
      peer.write(request(to, 80));
    }
    await eventually("it dials", () => dialling() > 0);
    for (const peer of peers) peer[leave]();
    await eventually("the dial is ended", () => dialling() === 0);
    const held = ["state", "established", "state", "close-wait", "sport", "=", `:${PORT}`];
    const left = (): number => sockets(...held);
    await eventually("nobody is waited for", () => left() === 0);
  }
  const gone = (): number =>
    relay.log().filter((entry) => entry["reason"] === "client-left").length;
  await eventually("it is told, of each", () => gone() === 4);
});

// ---------------------------------------------------------------------------------------------
// PROXY protocol.

/** PROXY protocol version 2 (PROXY over TCP), with a TLV that nobody needs to know. */
function headerV2(source: string, destination: string, local = false): Buffer {
  const bytes = (address: string): number[] => address.split(".").map(Number);
  const body = Buffer.concat([
    Buffer.from([...bytes(source), ...bytes(destination), 0x30, 0x39, 4, 56]),
    Buffer.from([4, 0, 3, 1, 2, 3]),
  ]);
  const head = Buffer.from("\r\n\r\n\0\r\nQUIT\n", "latin1");
  return Buffer.concat([head, Buffer.from([local ? 0x20 : 0x21, 0x11, 0, body.length]), body]);
}

const headerV1 = (source: string): string => `PROXY TCP4 ${source} ${PROXY[4]} 12345 ${PORT}\r\n`;

scenario("PROXY protocol: the announced client is the client", async (stage) => {
  const { lan } = stage.net;
  web(stage);
  const relay = await egress(stage, {
    incoming: {
      proxy_protocol_from: [CLIENTS[4][0]!],
      allow_from: ["172.16.0.0/16", LAN[4]],
    },
    outgoing: { addresses: POOL[4] },
  });
  const balancer = CLIENTS[4][0]!;
  const target = { to: SERVER[4], port: 80, from: balancer };
  const one = "172.16.3.4";
  for (const preamble of [headerV1(one), headerV2(one, PROXY[4])]) {
    const peer = await tunnel(lan, asked(), { ...target, preamble });
    await seen(peer);
  }
  await relay.logged("the announced client", (entry) =>
    String(entry["client_addr"]).startsWith(`${one}:`),
  );
  // By whom it is announced to be the rules judge, and the pool chooses.
  const foreign = await ask(lan, asked(), { ...target, preamble: headerV1("192.168.7.7") });
  assert.equal(foreign.code, 2);
  foreign.peer.destroy();
  const sources = new Map<string, string>();
  for (let i = 0; i < 24; i++) {
    const client = `172.16.9.${i}`;
    for (const preamble of [headerV1(client), headerV2(client, PROXY[4])]) {
      const source = (await seen(await tunnel(lan, asked(), { ...target, preamble }))).peer;
      assert.equal(sources.get(client) ?? source, source, client);
      sources.set(client, source);
    }
  }
  assert.ok(new Set(sources.values()).size > 3, "the clients are spread over the pool");
});

scenario("PROXY protocol: only from whom it is expected, and from those always", async (stage) => {
  const { lan } = stage.net;
  echo(stage);
  const balancer = CLIENTS[4][0]!;
  await egress(stage, { incoming: { proxy_protocol_from: [`${balancer}/32`] } });
  const target = { to: SERVER[4], port: 7 };
  assert.equal(await codeOf(lan, asked(), target), GRANTED, "others do without");
  const liar = { ...target, preamble: headerV1("172.16.3.4") };
  assert.equal(await codeOf(lan, asked(), liar), NO_REPLY, "others may not");
  const without = { ...target, from: balancer };
  assert.equal(await codeOf(lan, asked(), without), NO_REPLY, "the balancer must");
  const local = { ...without, preamble: headerV2("0.0.0.0", "0.0.0.0", true) };
  assert.equal(await codeOf(lan, asked(), local), GRANTED, "LOCAL is the balancer itself");
  for (const bad of ["PROXY TCP4 1.2.3 x\r\n", `PROXY ${"x".repeat(200)}`, "\r\n\r\n\0\r\nQUIT\nxxxx"]) {
    assert.equal(await codeOf(lan, asked(), { ...without, preamble: bad }), NO_REPLY, bad);
  }
  const peer = await dial(lan, asked(), balancer);
  await trickle(peer, Buffer.from(headerV1("172.16.3.4")));
  await trickle(peer, Buffer.concat([greeting(0), request(SERVER[4], 7)]));
  await peer.read(2);
  assert.equal((await reply5(peer)).code, GRANTED, "byte by byte");
  peer.destroy();
});

// ---------------------------------------------------------------------------------------------
// Clients that others have written.

const STRANGERS = fileURLToPath(new URL("./strangers.js", import.meta.url));

scenario("Node's socks package and undici are served", async (stage) => {
  await Names.start(stage, NAMES);
  web(stage);
  const ask = async (client: string, ...args: string[]): Promise<Seen> => {
    const strangers = [STRANGERS, client, PROXY[4], `${PORT}`, ...args];
    const { status, output } = await stage.net.lan.execute(process.execPath, ...strangers);
    assert.equal(status, 0, `${client} ${args.join(" ")}: ${output}`);
    return JSON.parse(output.split("\n").find((line) => line.startsWith("{"))!) as Seen;
  };
  const open = await egress(stage, { outgoing: { addresses: WHOLE_POOL } });
  const asked: Promise<Seen>[] = [
    ask("socks", "4", SERVER[4], "80"),
    ask("socks", "4", "web4.test", "80"),
    ask("socks", "5", "web4.test", "80"),
    ask("undici", "http://web4.test/"),
  ];
  for (const family of FAMILIES) {
    asked.push(ask("socks", "5", SERVER[family], "80"));
    asked.push(ask("undici", `http://${text(SERVER[family], 80)}/`));
  }
  for (const it of await Promise.all(asked)) assert.ok(WHOLE_POOL.includes(it.peer), it.peer);
  await open.stop();
  await egress(stage, { users: ACCOUNTS });
  const known: Promise<Seen>[] = [
    ask("socks", "4", SERVER[4], "80", "root"),
    ask("socks", "5", "web4.test", "80", "alice", "s3cret"),
    ask("undici", "http://web4.test/", "alice", "s3cret"),
  ];
  for (const it of await Promise.all(known)) assert.equal(it.peer, PROXY[4]);
});

scenario("ncat reaches a server that speaks first", async (stage) => {
  if (!existsSync("/usr/bin/ncat")) stage.skip("ncat is not installed");
  const { lan, internet } = stage.net;
  await Names.start(stage, NAMES);
  stage.listen(internet, SERVER[4], 25, (peer) => void peer.finish("220 mail.test ESMTP\r\n"));
  await egress(stage, { users: ACCOUNTS });
  for (const [type, auth, to] of [
    ["socks5", "alice:s3cret", SERVER[4]],
    ["socks4", "root", SERVER[4]],
  ] as const) {
    const proxy = ["--proxy", asked(), "--proxy-type", type, "--proxy-auth", auth];
    const { status, output } = await lan.execute("ncat", "--recv-only", ...proxy, to, "25");
    assert.equal(status, 0, output);
    assert.match(output, /220 mail\.test ESMTP/, type);
  }
});

scenario("ssh runs a command and carries a file through ncat --proxy", async (stage) => {
  for (const program of ["/usr/sbin/sshd", "/usr/bin/ncat"]) {
    if (!existsSync(program)) stage.skip(`${program} is not installed`);
  }
  if (unprivileged())
    stage.skip("sshd separates its privileges by a second user, and there is one here only");
  const { lan, internet } = stage.net;
  const files = `${PRIVATE}/ssh`;
  mkdirSync(files, { recursive: true, mode: 0o700 });
  mkdirSync("/run/sshd", { recursive: true, mode: 0o755 });
  for (const key of ["host", "user"])
    execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", `${files}/${key}`]);
  execFileSync("cp", [`${files}/user.pub`, `${files}/authorized_keys`]);
  const options = [
    "UsePAM=no",
    "StrictModes=no",
    "PermitRootLogin=yes",
    `AuthorizedKeysFile=${files}/authorized_keys`,
    `PidFile=${files}/pid`,
    `HostKey=${files}/host`,
    `ListenAddress=${SERVER[4]}:22`,
  ].flatMap((option) => ["-o", option]);
  dmz(stage.net);
  stage.spawn(internet, "/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", ...options);
  await egress(stage, { users: ACCOUNTS, outgoing: { addresses: POOL[4] } });
  const proxy = `ncat --proxy ${asked()} --proxy-type socks5 --proxy-auth alice:s3cret %h %p`;
  const ssh = [
    "-F", "none", "-i", `${files}/user`,
    "-o", "StrictHostKeyChecking=no", "-o", `UserKnownHostsFile=${files}/known`,
    "-o", "BatchMode=yes", "-o", `ProxyCommand=${proxy}`, `root@${SERVER[4]}`,
  ];
  await eventually("sshd serves", async () => (await lan.execute("ssh", ...ssh, "true")).status === 0);
  const { output } = await lan.execute("ssh", ...ssh, "echo", "$((6*7)) $SSH_CLIENT");
  assert.match(output, /^42 203\.0\.113\.\d /m);
  execFileSync("sh", ["-c", `head -c 20000000 /dev/urandom >${files}/large`]);
  const quoted = ssh.map((word) => `'${word}'`).join(" ");
  const copy = `ssh ${quoted} 'cat >${files}/copy' <${files}/large`;
  const copied = await lan.execute("sh", "-c", copy);
  assert.equal(copied.status, 0, copied.output);
  lan.run("cmp", [`${files}/large`, `${files}/copy`]);
});

/** The hash of a password, as `transplice passwd` makes it. */
function passwd(stage: Stage, password: string): string {
  const main = fileURLToPath(new URL("../../src/main.js", import.meta.url));
  const input = `${password}\n`;
  const { status, stdout, stderr } = stage.net.proxy.attempt(process.execPath, [main, "passwd"], input);
  assert.equal(status, 0, stderr);
  return /scrypt:\S+/.exec(stdout)![0].replace(/"$/, "");
}
