/**
 * Who may go where: the predecessor's lists with their meaning, rules by network, name, port and
 * user, and no way round them, neither by another spelling nor by a name that leads elsewhere.
 */
import { strict as assert } from "node:assert";
import { eventually, type Listener, type Peer, sleep } from "./actors.ts";
import {
  asked,
  CLIENTS,
  dmz,
  echo,
  egress,
  METRICS_PORT,
  POOL,
  PRIVATE_SERVER,
  settingsOf,
  web,
} from "./dmz.ts";
import { Names } from "./names.ts";
import { FAMILIES, LAN, PROXY, SERVER } from "./network.ts";
import { haveIPv6 } from "./sandbox.ts";
import { scenario, type Stage } from "./scenario.ts";
import { ask, codeOf, dial, greeting, GRANTED, GRANTED4, REFUSED4, type Target } from "./socks.ts";
import { curl } from "./web.ts";

const NOT_ALLOWED = 2;
const REFUSED = 5;

/** Asks, and answers the code alone. The server's port 80 is open, all others are closed. */
const code = (stage: Stage, target: Partial<Target> & { to: string }): Promise<number> =>
  codeOf(stage.net.lan, asked(), { port: 80, ...target });

async function assertCodes(
  stage: Stage,
  expected: number,
  targets: readonly (string | (Partial<Target> & { to: string }))[],
): Promise<void> {
  for (const target of targets) {
    const it = typeof target === "string" ? { to: target } : target;
    assert.equal(await code(stage, it), expected, JSON.stringify(target));
  }
}

// ---------------------------------------------------------------------------------------------
// The predecessor's lists.

scenario("allow_from: networks and single addresses; the others hear 02", async (stage) => {
  web(stage);
  const [bare, , , ranged, last] = CLIENTS[4];
  const relay = await egress(stage, {
    incoming: { allow_from: [bare!, "10.7.0.14/31", CLIENTS[6][0]!] },
  });
  await assertCodes(stage, GRANTED, [
    { to: SERVER[4], from: bare! },
    { to: SERVER[4], from: ranged! },
    { to: SERVER[4], from: last! },
  ]);
  await assertCodes(stage, NOT_ALLOWED, [
    { to: SERVER[4] },
    { to: SERVER[4], from: CLIENTS[4][1]! },
    { to: SERVER[4], from: CLIENTS[4][5]! },
  ]);
  assert.equal(await code(stage, { to: SERVER[4], version: 4 }), REFUSED4);
  if (haveIPv6()) {
    const by = (from: string): Promise<number> =>
      codeOf(stage.net.lan, asked(6), { to: SERVER[4], port: 80, from });
    assert.equal(await by(CLIENTS[6][0]!), GRANTED);
    // usocksd took a bare IPv6 address for a network of 32 bits.
    assert.equal(await by(CLIENTS[6][1]!), NOT_ALLOWED);
  }
  await relay.logged("the refusal", (entry) => entry["reason"] === "denied");
});

scenario("allow_sites, deny_sites: exact, by suffix, in any spelling", async (stage) => {
  const sites = ["www.amazon.test", "www.google.test", "bad.google.test", "google.test",
    "a.b.2ch.test", "2ch.test", "other.test", "xn--bcher-kva.test"];
  await Names.start(stage, Object.fromEntries(sites.map((name) => [name, [SERVER[4]]])));
  web(stage);
  const relay = await egress(stage, {
    outgoing: {
      allow_sites: ["www.amazon.test", ".GOOGLE.test", ".2ch.test.", "Bücher.test"],
      deny_sites: ["bad.google.test", ".b.2ch.test", ""],
    },
  });
  await assertCodes(stage, GRANTED, [
    "www.amazon.test", "WWW.Amazon.TEST", "www.amazon.test.", "www.google.test",
    "bücher.test", "XN--BCHER-KVA.test.",
  ]);
  assert.equal(await code(stage, { to: "WWW.google.test.", version: 4 }), GRANTED4);
  await assertCodes(stage, NOT_ALLOWED, [
    "bad.google.test", "BAD.google.test", "bad.google.test.", "BAD.Google.Test.",
    "a.b.2ch.test", "google.test", "2ch.test", "other.test", "unknown.test",
    SERVER[4], SERVER[6], { to: SERVER[4], asName: true },
  ]);
  assert.equal(await code(stage, { to: "bad.google.test.", version: 4 }), REFUSED4);
  relay.configure(settingsOf({ outgoing: { allow_sites: [""] } }));
  await relay.reload();
  await assertCodes(stage, GRANTED, [SERVER[4], { to: SERVER[4], asName: true }]);
  await assertCodes(stage, NOT_ALLOWED, ["www.amazon.test"]);
});

scenario('a literal is a literal in every spelling: deny_sites = [""] has no way round', async (stage) => {
  await Names.start(stage, { "web.test": [SERVER[4]] });
  web(stage);
  await egress(stage, { outgoing: { deny_sites: [""] } });
  const spellings = ["198.51.100.10", "198.51.100.10.", "198.51.25610", "0xc633640a", "3325256714",
    "0306.063.0144.012", "[2001:db8:100::10]", "2001:db8:100::10", "::ffff:198.51.100.10"];
  for (const to of spellings) {
    const it = await code(stage, { to, asName: true });
    assert.ok(it !== GRANTED, `${to}: ${it}`);
    if (!to.endsWith(".")) assert.equal(it, NOT_ALLOWED, to);
  }
  await assertCodes(stage, GRANTED, ["web.test"]);
});

scenario("names that are none are refused without a question to DNS", async (stage) => {
  const names = await Names.start(stage);
  const relay = await egress(stage);
  const before = names.program.output.length;
  for (const to of ["a b.test", "a\0b.test", "a..test", ".test", "x".repeat(64), "a/b.test",
    "1.2.3.4.5", "256.1.1.1", "[::1", "\u0001", "a\n.test", "x".repeat(255)]) {
    const it = await code(stage, { to });
    assert.ok(it !== GRANTED && it > 0, `${JSON.stringify(to)}: ${it}`);
  }
  assert.ok(!names.program.output.slice(before).includes("query["), names.program.output.slice(before));
  assert.equal(relay.process.exit, null);
});

scenario("deny_ports, allow_ports: single ports and ranges", async (stage) => {
  web(stage);
  const relay = await egress(stage, { outgoing: { deny_ports: [22, "8000-8010"] } });
  const to = SERVER[4];
  await assertCodes(stage, NOT_ALLOWED, [{ to, port: 22 }, { to, port: 8000 }, { to, port: 8010 }]);
  await assertCodes(stage, REFUSED, [{ to, port: 23 }, { to, port: 7999 }, { to, port: 8011 }]);
  await assertCodes(stage, GRANTED, [to]);
  relay.configure(settingsOf({ outgoing: { allow_ports: [80, "8000-8999"], deny_ports: [8080] } }));
  await relay.reload();
  await assertCodes(stage, NOT_ALLOWED, [{ to, port: 22 }, { to, port: 8080 }, { to, port: 79 }]);
  await assertCodes(stage, REFUSED, [{ to, port: 8000 }, { to, port: 8999 }]);
  await assertCodes(stage, GRANTED, [to]);
});

// ---------------------------------------------------------------------------------------------
// Where nobody may go unless it is allowed in so many words.

/** Servers on the DMZ host itself, and on a private network: what must not be reached. */
function forbidden(stage: Stage): Map<string, Listener> {
  const { proxy, internet } = stage.net;
  dmz(stage.net);
  const listeners = new Map<string, Listener>();
  const own = ["127.0.0.1", PROXY[4], POOL[4][0]!, ...(haveIPv6() ? ["::1", PROXY[6], POOL[6][0]!] : [])];
  for (const address of own) listeners.set(address, stage.listen(proxy, address, 80));
  for (const family of FAMILIES) {
    const address = PRIVATE_SERVER[family];
    listeners.set(address, stage.listen(internet, address, 80));
  }
  return listeners;
}

const untouched = (listeners: Map<string, Listener>): void => {
  for (const [address, { peers }] of listeners) assert.equal(peers.length, 0, `${address} was reached`);
};

scenario("loopback, link-local, private and own addresses are refused as literals", async (stage) => {
  const listeners = forbidden(stage);
  await egress(stage, { outgoing: { addresses: POOL[4] } });
  const literals = ["127.0.0.1", "127.8.9.10", "0.0.0.0", "0.1.2.3", "169.254.169.254", PROXY[4], ...POOL[4],
    PRIVATE_SERVER[4], "192.168.1.1", "172.16.0.1", "172.31.255.255", "100.64.0.1",
    "224.0.0.1", "255.255.255.255", "240.0.0.1"];
  const sixes = ["::1", "::", "fe80::1", PROXY[6], POOL[6][0]!, PRIVATE_SERVER[6], "ff02::1", "fd00::1"];
  await assertCodes(stage, NOT_ALLOWED, [...literals, ...sixes]);
  // IPv4 in the clothes of IPv6.
  await assertCodes(stage, NOT_ALLOWED, ["::ffff:7f00:1", "::ffff:a9fe:a9fe", "::ffff:c000:202"]);
  const spellings = ["127.1", "0x7f000001", "2130706433", "017700000001", "127.0.0.1.", "0", "[::1]",
    "::1", "::ffff:127.0.0.1", "0x7f.1", "169.254.43518", "0xA9FEA9FE"];
  for (const to of spellings) {
    const it = await code(stage, { to, asName: true });
    assert.ok(it === NOT_ALLOWED || (to.endsWith(".") && it !== GRANTED), `${to}: ${it}`);
  }
  for (const to of ["127.0.0.1", PROXY[4]]) {
    assert.equal(await code(stage, { to, version: 4 }), REFUSED4, to);
  }
  untouched(listeners);
});

scenario("whatever the kernel takes for this host is own: no cable, a network routed here, an address just added", async (stage) => {
  const proxy = dmz(stage.net);
  const listener = stage.listen(proxy, "0.0.0.0", 8099);
  // The interface is up, and nothing is at its other end: getifaddrs' callers often leave it out.
  proxy.ip("link add dangling type veth peer name unplugged", "link set dangling up");
  stage.finally(() => proxy.ip("link delete dangling", "route delete local 198.51.100.160/28 dev lo"));
  proxy.ip("address add 198.51.100.150/32 dev dangling", "route add local 198.51.100.160/28 dev lo");
  const relay = await egress(stage, {});
  await assertCodes(stage, NOT_ALLOWED, [
    { to: "198.51.100.150", port: 8099 }, { to: "198.51.100.161", port: 8099 },
  ]);
  const told = await relay.logged("whose it is", (entry) => JSON.stringify(entry).includes("own-address"));
  assert.match(String(told["remedy"]), /outgoing\.allow_networks/);
  const late = { to: "198.51.100.151", port: 8099 };
  assert.notEqual(await code(stage, late), NOT_ALLOWED);
  proxy.ip("address add 198.51.100.151/32 dev dangling");
  await eventually("the kernel's word is heard", async () => (await code(stage, late)) === NOT_ALLOWED);
  proxy.ip("address delete 198.51.100.151/32 dev dangling");
  await eventually("and it is anybody's again", async () => (await code(stage, late)) !== NOT_ALLOWED);
  assert.deepEqual(listener.peers.filter(({ remote }) => remote.startsWith("198.51.100.16")), []);
});

scenario("a name that leads there is refused, after resolution, on the address", async (stage) => {
  const listeners = forbidden(stage);
  const bad: Record<string, string[]> = {
    "loopback.test": ["127.0.0.1"],
    "metadata.test": ["169.254.169.254"],
    "private.test": [PRIVATE_SERVER[4]],
    "own.test": [PROXY[4]],
    "pool.test": [POOL[4][0]!],
    "zero.test": ["0.0.0.0"],
  };
  if (haveIPv6()) {
    Object.assign(bad, {
      "loopback6.test": ["::1"],
      "mapped.test": ["::ffff:127.0.0.1"],
      "local6.test": ["fe80::1"],
      "private6.test": [PRIVATE_SERVER[6]],
      "own6.test": [PROXY[6]],
      "several.test": ["127.0.0.1", "::1"],
    });
  }
  await Names.start(stage, { ...bad, "mixed.test": ["127.0.0.1", SERVER[4]] });
  web(stage);
  const relay = await egress(stage, { outgoing: { addresses: POOL[4] } });
  await assertCodes(stage, NOT_ALLOWED, Object.keys(bad));
  await assertCodes(stage, NOT_ALLOWED, ["localhost", "LOCALHOST.", "Loopback.TEST."]);
  assert.equal(await code(stage, { to: "loopback.test", version: 4 }), REFUSED4);
  // Of several addresses those that are allowed may be dialled.
  await assertCodes(stage, GRANTED, ["mixed.test"]);
  await sleep(100);
  untouched(listeners);
  await relay.logged("which name", (entry) => JSON.stringify(entry).includes("metadata.test"));
});

scenario("a name that changes between two answers has no way round", async (stage) => {
  const listeners = forbidden(stage);
  const names = await Names.start(stage);
  web(stage);
  const turning = (ttlSeconds: number) => (question: number, type: string) =>
    type === "AAAA" ? {} : { addresses: [question === 1 ? SERVER[4] : "127.0.0.1"], ttlSeconds };
  names.scripts.set("rebinds.scripted.test", turning(0));
  names.scripts.set("rebinds1.scripted.test", turning(1));
  await egress(stage);
  for (const to of ["rebinds.scripted.test", "rebinds1.scripted.test"]) {
    const first = await ask(stage.net.lan, asked(), { to, port: 80 });
    assert.equal(first.code, GRANTED, to);
    first.peer.destroy();
    await eventually(
      `${to} is asked again`,
      async () => (await code(stage, { to })) === NOT_ALLOWED,
    );
    for (let i = 0; i < 5; i++) assert.equal(await code(stage, { to }), NOT_ALLOWED, to);
  }
  untouched(listeners);
});

scenario("allow_private and allow_networks let through what they name, and no more", async (stage) => {
  const listeners = forbidden(stage);
  await Names.start(stage, { "private.test": [PRIVATE_SERVER[4]], "loopback.test": ["127.0.0.1"] });
  const relay = await egress(stage, { outgoing: { allow_private: true } });
  await assertCodes(stage, GRANTED, [
    ...FAMILIES.map((family) => PRIVATE_SERVER[family]),
    "private.test",
  ]);
  await assertCodes(stage, NOT_ALLOWED, ["127.0.0.1", "loopback.test", "169.254.169.254", PROXY[4]]);
  for (const listener of listeners.values()) listener.peers.length = 0;
  relay.configure(settingsOf({ outgoing: { allow_networks: ["127.0.0.1/32", "10.99.0.0/24"] } }));
  await relay.reload();
  await assertCodes(stage, GRANTED, ["127.0.0.1", "loopback.test", PRIVATE_SERVER[4]]);
  await assertCodes(stage, NOT_ALLOWED, ["127.0.0.2", "10.98.0.1", "192.168.1.1", PROXY[4]]);
  // It is no list of all that is allowed.
  web(stage);
  await assertCodes(stage, GRANTED, [SERVER[4]]);
});

scenario("deny_networks is judged on the address, by name and by literal", async (stage) => {
  await Names.start(stage, { "web.test": [SERVER[4]], "other.test": ["198.51.100.99"] });
  web(stage);
  await egress(stage, { outgoing: { deny_networks: ["198.51.100.96/28", "2001:db8:100::/48"] } });
  await assertCodes(stage, GRANTED, ["web.test", SERVER[4]]);
  await assertCodes(stage, NOT_ALLOWED, ["other.test", "198.51.100.99", "198.51.100.111", SERVER[6],
    { to: "198.51.100.99", asName: true }, "::ffff:c633:6463"]);
  await assertCodes(stage, REFUSED, ["198.51.100.95", "198.51.100.112"]);
});

// ---------------------------------------------------------------------------------------------
// Rules with names.

scenario("the first rule that matches decides, by client, user, name, network and port", async (stage) => {
  const { lan, proxy } = stage.net;
  await Names.start(stage, { "web.test": [SERVER[4]], "news.test": [SERVER[4]] });
  web(stage);
  const [one, two, three] = CLIENTS[4];
  const relay = await egress(stage, {
    users: { alice: "a", bob: "b" },
    outgoing: { deny_sites: ["news.test"] },
    rules: [
      { name: "alice-reads", action: "allow", users: ["alice"], sites: ["news.test"] },
      { name: "no-mail", action: "deny", ports: [25, "465-587"] },
      { name: "kiosk-web", action: "allow", from: [`${one}/32`], ports: [80], sites: ["web.test"] },
      { name: "kiosk-rest", action: "deny", from: [one!] },
      { name: "bob-literals", action: "deny", users: ["bob"], networks: ["198.51.100.0/24"] },
    ],
  });
  const by = (user: string, target: Partial<Target> & { to: string }): Promise<number> =>
    codeOf(lan, asked(), { port: 80, user, password: user[0]!, ...target });
  assert.equal(await by("alice", { to: "news.test", from: two! }), GRANTED, "before deny_sites");
  assert.equal(await by("bob", { to: "news.test", from: two! }), NOT_ALLOWED);
  assert.equal(await by("alice", { to: "web.test", port: 25, from: two! }), NOT_ALLOWED);
  assert.equal(await by("alice", { to: "web.test", port: 500, from: one! }), NOT_ALLOWED);
  assert.equal(await by("alice", { to: "web.test", from: one! }), GRANTED);
  assert.equal(await by("alice", { to: SERVER[4], from: one! }), NOT_ALLOWED);
  assert.equal(await by("alice", { to: SERVER[4], from: three! }), GRANTED);
  assert.equal(await by("bob", { to: SERVER[4], from: three! }), NOT_ALLOWED);
  assert.equal(await by("bob", { to: "web.test", from: three! }), NOT_ALLOWED, "on the address");
  for (const name of ["no-mail", "kiosk-rest", "bob-literals"]) {
    await relay.logged(`the rule ${name}`, (entry) => JSON.stringify(entry).includes(name));
  }
  await eventually("the rules are metrics", async () => {
    const { body } = await curl(proxy, `http://${PROXY[4]}:${METRICS_PORT}/metrics`);
    return /"kiosk-rest"\S* 1$/m.test(String(body)) && /"bob-literals"\S* 2$/m.test(String(body));
  });
});

scenario("a rule may lift the refusal of a special address, where it names it", async (stage) => {
  const listeners = forbidden(stage);
  await egress(stage, {
    rules: [
      { name: "anything", action: "allow", from: [CLIENTS[4][0]!] },
      { name: "to-loopback", action: "allow", from: [CLIENTS[4][1]!], networks: ["127.0.0.0/8"] },
    ],
  });
  const to = "127.0.0.1";
  assert.equal(await code(stage, { to, from: CLIENTS[4][0]! }), NOT_ALLOWED);
  assert.equal(await code(stage, { to, from: CLIENTS[4][1]! }), GRANTED);
  assert.equal(await code(stage, { to, from: CLIENTS[4][2]! }), NOT_ALLOWED);
  assert.equal(await code(stage, { to: PROXY[4], from: CLIENTS[4][1]! }), NOT_ALLOWED);
  assert.equal(listeners.get("127.0.0.1")!.peers.length, 1);
});

// ---------------------------------------------------------------------------------------------
// How many, and how fast.

/** Tunnels of one asker, until one is not granted: how many were. */
async function most(stage: Stage, target: Partial<Target>, tries: number): Promise<Peer[]> {
  const granted: Peer[] = [];
  for (let i = 0; i < tries; i++) {
    const it = { to: SERVER[4], port: 7000, ...target };
    const reply = await ask(stage.net.lan, asked(), it);
    if (reply.code === GRANTED) granted.push(reply.peer);
    else reply.peer.destroy();
  }
  return granted;
}

scenario("max_per_client, max_per_user: no more at a time, and others are not touched", async (stage) => {
  echo(stage, 7000);
  const relay = await egress(stage, {
    incoming: { max_per_client: 5, max_per_user: 8 },
    users: { alice: "a", bob: "b" },
    workers: 2,
  });
  const alice = { user: "alice", password: "a" };
  const bob = { user: "bob", password: "b" };
  const [one, two, three] = CLIENTS[4];
  const first = await most(stage, { ...alice, from: one! }, 8);
  assert.equal(first.length, 5, "of one client");
  const second = await most(stage, { ...alice, from: two! }, 5);
  assert.equal(second.length, 3, "of one user");
  assert.equal((await most(stage, { ...bob, from: three! }, 4)).length, 4, "another");
  for (const peer of first) peer.destroy();
  let again: Peer[] = [];
  await eventually("there is room again", async () => {
    again.push(...(await most(stage, { ...alice, from: one! }, 1)));
    return again.length === 5;
  });
  for (const peer of [...again, ...second]) peer.destroy();
  again = [];
  await relay.logged("why", (entry) => entry["reason"] === "too-many");
});

scenario("rate_per_client, rate_per_user: so many new ones in a second", async (stage) => {
  echo(stage, 7000);
  const relay = await egress(stage, { incoming: { rate_per_client: "5/s" } });
  const [one, two] = CLIENTS[4];
  const began = Date.now();
  const first = await most(stage, { from: one! }, 40);
  const granted = first.length;
  const seconds = (Date.now() - began) / 1_000;
  assert.ok(granted >= 5 && granted <= 5 * (seconds + 2), `${granted} in ${seconds} s`);
  const second = await most(stage, { from: two! }, 3);
  assert.equal(second.length, 3, "another client");
  await sleep(1_100);
  const third = await most(stage, { from: one! }, 3);
  assert.equal(third.length, 3, "a second later");
  for (const peer of [...first, ...second, ...third]) peer.destroy();
  await relay.stop();

  await egress(stage, { incoming: { rate_per_user: "6/m" }, users: { alice: "a", bob: "b" } });
  const alice = { user: "alice", password: "a" };
  const all = await Promise.all(
    CLIENTS[4].slice(0, 5).map((from) => most(stage, { ...alice, from }, 2)),
  );
  const total = all.flat().length;
  assert.ok(total >= 6 && total <= 12, `${total} of 10 in a minute, or two`);
  assert.equal((await most(stage, { user: "bob", password: "b" }, 3)).length, 3, "another user");
});

scenario("rate: so many new ones in a second of all together; those outside are not of them", async (stage) => {
  echo(stage, 7000);
  const inside = CLIENTS[4].slice(0, 4);
  const relay = await egress(stage, { incoming: { rate: "12/m", allow_from: inside }, workers: 2 });
  for (let i = 0; i < 20; i++) {
    assert.equal(await codeOf(stage.net.lan, asked(), { to: SERVER[4], port: 7000, from: CLIENTS[4][9]! }), 2);
  }
  const all = (await Promise.all(inside.map((from) => most(stage, { from }, 10)))).flat();
  // In a minute, or at the end of one and the beginning of the next.
  assert.ok(all.length >= 12 && all.length <= 24, `${all.length} of 40`);
  await relay.logged("why", (entry) => entry["reason"] === "too-many" && /\brate\b/.test(String(entry["error"])));
});

scenario("who is refused by a limit costs no upstream connection and no name", async (stage) => {
  const names = await Names.start(stage, { "web.test": [SERVER[4]] });
  const server = echo(stage, 7000);
  await egress(stage, { incoming: { allow_from: [LAN[4]], max_per_client: 2 } });
  const held = await most(stage, {}, 2);
  assert.equal(held.length, 2);
  const before = await names.allQuestions("web.test", "A");
  assert.equal((await most(stage, { to: "web.test" }, 5)).length, 0);
  assert.equal(await codeOf(stage.net.lan, asked(), { to: "web.test", port: 7000, from: CLIENTS[4][0]! }), 2);
  assert.equal(await names.allQuestions("web.test", "A"), before);
  assert.equal(server.peers.length, 2);
  // A half-open one counts, too: the limit holds while they say nothing.
  for (const peer of held) peer.destroy();
  await sleep(200);
  const silent = await Promise.all([dial(stage.net.lan, asked()), dial(stage.net.lan, asked())]);
  for (const peer of silent) peer.write(greeting(0));
  await sleep(100);
  for (const peer of silent) peer.destroy();
});
