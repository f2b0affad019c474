/**
 * Which address the egress leaves from: the same for the same client, however it asks; another only
 * when there is a reason, and then only for those whom the reason concerns.
 */
import { strict as assert } from "node:assert";
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { connect, eventually, type Listener, sleep, text } from "./actors.ts";
import {
  asked,
  CLIENTS,
  dmz,
  egress,
  metrics,
  POOL,
  PREFIX,
  sample,
  seen,
  settingsOf,
  sourceOf,
  web,
  WHOLE_POOL,
} from "./dmz.ts";
import { type Answer, Names, SERVFAIL } from "./names.ts";
import { FAMILIES, LAN, SERVER } from "./network.ts";
import type { Relay, Settings } from "./relay.ts";
import { PRIVATE } from "./sandbox.ts";
import { scenario, type Stage } from "./scenario.ts";
import { ask, codeOf, GRANTED, tunnel } from "./socks.ts";
import { curl } from "./web.ts";

const NAMES = { "web4.test": [SERVER[4]], "web6.test": [SERVER[6]], "web.test": [SERVER[4], SERVER[6]] };
const OTHERS = ["198.51.100.11", "198.51.100.12", "198.51.100.13"];

/** From which address each client leaves to a destination. */
async function sources(
  stage: Stage,
  clients: readonly string[],
  destination: string,
): Promise<Map<string, string>> {
  const found = await Promise.all(clients.map((client) => sourceOf(stage, client, destination)));
  return new Map(clients.map((client, i) => [client, found[i]!]));
}

/** Those clients that leave from elsewhere than before. */
const moved = (before: Map<string, string>, after: Map<string, string>): string[] =>
  [...before].filter(([client, source]) => after.get(client) !== source).map(([client]) => client);

/** Waits until those clients, and no others, leave from elsewhere than before. Where each leaves from then. */
async function moves(
  stage: Stage, before: Map<string, string>, who: readonly string[], destination: string,
): Promise<Map<string, string>> {
  let after = before;
  // What is a metric, or in the log, the workers hear of a moment later.
  await eventually(`${who} move, and no others`, async () => {
    after = await sources(stage, [...before.keys()], destination);
    return moved(before, after).sort().join() === [...who].sort().join();
  });
  return after;
}

const those = (before: Map<string, string>, source: string): string[] =>
  [...before].filter(([, it]) => it === source).map(([client]) => client);

/** The address that most clients leave from: taking that one out concerns somebody. */
function favourite(of: Map<string, string>): string {
  const counts = new Map<string, number>();
  for (const source of of.values()) counts.set(source, (counts.get(source) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1])[0]![0];
}

const mentions = (relay: Relay, what: string): boolean =>
  relay.log().some((entry) => JSON.stringify(entry).includes(what));

for (const family of FAMILIES) {
  scenario(`IPv${family}: a client leaves by one address, by name and by literal`, async (stage) => {
    await Names.start(stage, NAMES);
    const destinations = family === 4 ? [SERVER[4], ...OTHERS] : [SERVER[6], "2001:db8:100::11"];
    web(stage, destinations);
    const relay = await egress(stage, { outgoing: { addresses: WHOLE_POOL } });
    const clients = CLIENTS[family];
    const first = await sources(stage, clients, destinations[0]!);
    for (const source of first.values()) {
      assert.ok((POOL[family] as readonly string[]).includes(source), `${source} is of the pool`);
    }
    const used = new Set(first.values()).size;
    assert.ok(used >= Math.min(4, POOL[family].length), `${used} addresses for 16 clients`);
    for (const destination of [`web${family}.test`, ...destinations]) {
      assert.deepEqual(await sources(stage, clients, destination), first, destination);
    }
    // And by any version of the protocol, after a restart too.
    await relay.stop();
    await egress(stage, { outgoing: { addresses: [...WHOLE_POOL].reverse() } });
    assert.deepEqual(await sources(stage, clients, `web${family}.test`), first, "after a restart");
    if (family === 6) return;
    for (const client of clients.slice(0, 4)) {
      const target = { to: "web4.test", port: 80, from: client, version: 4 } as const;
      const { peer } = await seen(await tunnel(stage.net.lan, asked(), target));
      assert.equal(peer, first.get(client), `SOCKS4a, ${client}`);
    }
  });
}

scenario("a client that asks by IPv4-mapped or by plain IPv4 listener is the same", async (stage) => {
  web(stage);
  const outgoing = { addresses: POOL[4] };
  const plain = await egress(stage, { outgoing });
  const first = await sources(stage, CLIENTS[4], SERVER[4]);
  await plain.stop();
  await egress(stage, { incoming: { addresses: [] }, outgoing });
  assert.deepEqual(await sources(stage, CLIENTS[4], SERVER[4]), first);
});

scenario('affinity "client-destination": by the pair, by name and by literal alike', async (stage) => {
  await Names.start(stage, NAMES);
  web(stage, [SERVER[4], ...OTHERS]);
  await egress(stage, { outgoing: { addresses: POOL[4], affinity: "client-destination" } });
  const clients = CLIENTS[4].slice(0, 8);
  const first = await sources(stage, clients, SERVER[4]);
  assert.deepEqual(await sources(stage, clients, "web4.test"), first, "by name");
  assert.deepEqual(await sources(stage, clients, SERVER[4]), first, "again");
  let different = 0;
  for (const other of OTHERS) different += moved(first, await sources(stage, clients, other)).length;
  assert.ok(different > 8, `${different} of 24 pairs with another destination have another source`);
});

scenario('affinity "none": a client is spread over all addresses', async (stage) => {
  web(stage);
  await egress(stage, { outgoing: { addresses: POOL[4], affinity: "none" } });
  const used = new Set<string>();
  for (let i = 0; i < 40; i++) used.add(await sourceOf(stage, CLIENTS[4][0]!, SERVER[4]));
  assert.ok(used.size >= 6, `${used.size} of 8 addresses in 40 connections`);
});

scenario("an address with three times the weight has three times the clients", async (stage) => {
  web(stage);
  const [one, other] = POOL[4];
  await egress(stage, {
    incoming: { proxy_protocol_from: ["10.7.0.0/24"] },
    outgoing: { addresses: [one!, { address: other!, weight: 3 }] },
  });
  const counts = new Map<string, number>();
  for (let i = 0; i < 200; i++) {
    const preamble = `PROXY TCP4 172.16.${i}.${(i * 7) % 250} 192.0.2.2 1 1080\r\n`;
    const { bound, peer } = await ask(stage.net.lan, asked(), { to: SERVER[4], port: 80, preamble });
    const source = bound.replace(/:\d+$/, "");
    counts.set(source, (counts.get(source) ?? 0) + 1);
    peer.destroy();
  }
  // 150 expected; four standard deviations are 24.5.
  const heavy = counts.get(other!) ?? 0;
  assert.ok(heavy > 125 && heavy < 175, `${heavy} of 200`);
});

/** A hundred: searched in another way than the eight of the pool. */
const MANY = Array.from({ length: 100 }, (_, i) => `203.0.113.${i + 1}`);

for (const pool of [POOL[4], MANY]) {
  scenario(`one of ${pool.length} taken out and put back moves its own clients only`, async (stage) => {
    web(stage);
    const { proxy } = stage.net;
    const added = pool.filter((address) => !POOL[4].includes(address));
    proxy.ip(...added.map((address) => `address add ${address}/32 dev wan`));
    stage.finally(() => proxy.ip(...added.map((address) => `address delete ${address}/32 dev wan`)));
    const relay = await egress(stage, { outgoing: { addresses: pool } });
    const clients = CLIENTS[4];
    const before = await sources(stage, clients, SERVER[4]);
    const gone = favourite(before);
    const long = await tunnel(stage.net.lan, asked(), {
      to: SERVER[4],
      port: 80,
      from: those(before, gone)[0]!,
    });
    const left = pool.filter((address) => address !== gone);
    relay.configure(settingsOf({ outgoing: { addresses: left } }));
    await relay.reload();
    const after = await sources(stage, clients, SERVER[4]);
    assert.deepEqual(moved(before, after).sort(), those(before, gone).sort());
    relay.configure(settingsOf({ outgoing: { addresses: [...left, gone] } }));
    await relay.reload();
    assert.deepEqual(await sources(stage, clients, SERVER[4]), before);
    assert.equal((await seen(long)).peer, gone, "its connections have stayed");
  });
}

for (const family of FAMILIES) {
  scenario(
    `IPv${family}: an address that the host loses is skipped, and used again when it is back`,
    async (stage) => {
      web(stage);
      const { proxy } = stage.net;
      const relay = await egress(stage, { outgoing: { addresses: WHOLE_POOL } });
      const clients = CLIENTS[family];
      const before = await sources(stage, clients, SERVER[family]);
      const gone = favourite(before);
      const bits = family === 4 ? "32" : "128 nodad preferred_lft 0";
      proxy.ip(`address delete ${gone}/${family === 4 ? 32 : 128} dev wan`);
      let there = false;
      const back = (): void => {
        if (!there) proxy.ip(`address add ${gone}/${bits} dev wan`);
        there = true;
      };
      stage.finally(back);
      // At once: a client whose address has gone is served by the next one.
      const after = await sources(stage, clients, SERVER[family]);
      assert.deepEqual(moved(before, after).sort(), those(before, gone).sort());
      await eventually("it is reported", () => mentions(relay, gone));
      const usable = async (): Promise<number> =>
        sample(await metrics(stage), "transplice_egress_usable", { address: gone });
      await eventually("it is a metric", async () => (await usable()) === 0);
      back();
      await eventually(
        "it is in use again",
        async () => moved(before, await sources(stage, clients, SERVER[family])).length === 0,
      );
    },
  );
}

scenario("an address that is not on the host at the start: told, skipped, used later", async (stage) => {
  web(stage);
  const { proxy } = stage.net;
  const late = "203.0.113.99";
  const relay = await egress(stage, { outgoing: { addresses: [late, POOL[4][0]!] } });
  const warned = await relay.logged("the address", (it) => JSON.stringify(it).includes(late));
  assert.match(warned.severity, /warning|error/);
  for (const source of (await sources(stage, CLIENTS[4], SERVER[4])).values()) {
    assert.equal(source, POOL[4][0]);
  }
  proxy.ip(`address add ${late}/32 dev wan`);
  stage.finally(() => proxy.ip(`address delete ${late}/32 dev wan`));
  await eventually(
    "it is in use",
    async () => [...(await sources(stage, CLIENTS[4], SERVER[4])).values()].includes(late),
  );
});

scenario("a pool without the destination's family is an answer, not another source", async (stage) => {
  if (!FAMILIES.includes(6)) stage.skip("the kernel has no IPv6");
  await Names.start(stage, NAMES);
  web(stage);
  const { lan } = stage.net;
  for (const [family, other] of [[4, 6], [6, 4]] as const) {
    const relay = await egress(stage, { outgoing: { addresses: POOL[family] } });
    const code = await codeOf(lan, asked(), { to: SERVER[other], port: 80 });
    assert.ok([1, 3, 4].includes(code), `IPv${other} from a pool of IPv${family}: ${code}`);
    // A name of both families leaves by the one that there is.
    const peer = await tunnel(lan, asked(), { to: "web.test", port: 80 });
    assert.ok((POOL[family] as readonly string[]).includes((await seen(peer)).peer));
    await relay.stop();
  }
});

scenario("iface: it leaves by that interface, or not at all", async (stage) => {
  web(stage);
  const { lan } = stage.net;
  const wan = await egress(stage, { outgoing: { iface: "wan" } });
  for (const family of FAMILIES) {
    assert.equal(await codeOf(lan, asked(), { to: SERVER[family], port: 80 }), GRANTED);
  }
  await wan.stop();
  const lo = await egress(stage, { outgoing: { iface: "lo" }, timeouts: { dial: "1s" } });
  assert.notEqual(await codeOf(lan, asked(), { to: SERVER[4], port: 80 }), GRANTED);
  await lo.stop();
});

scenario("IPv6 prefix: each client has an address of its own in it", async (stage) => {
  if (!FAMILIES.includes(6)) stage.skip("the kernel has no IPv6");
  await Names.start(stage, NAMES);
  web(stage);
  const relay = await egress(stage, { outgoing: { addresses: [PREFIX, POOL[4][0]!] } });
  const first = await sources(stage, CLIENTS[6], SERVER[6]);
  for (const source of first.values()) assert.match(source, /^2001:db8:e:1:[^:]+:/, source);
  assert.equal(new Set(first.values()).size, first.size, "all different");
  assert.deepEqual(await sources(stage, CLIENTS[6], "web6.test"), first);
  // IPv4 clients too have theirs, for destinations of IPv6.
  const target = { to: SERVER[6], port: 80, from: CLIENTS[4][0]! };
  const { peer } = await seen(await tunnel(stage.net.lan, asked(), target));
  assert.match(peer, /^2001:db8:e:1:/);
  await relay.stop();
  await egress(stage, { outgoing: { addresses: [PREFIX] } });
  assert.deepEqual(await sources(stage, CLIENTS[6], SERVER[6]), first, "after a restart");
});

scenario("out of ports to a destination: the client's next address takes over", async (stage) => {
  const { lan, internet } = stage.net;
  const proxy = dmz(stage.net);
  const [low, high] = ["net.ipv4.ip_local_port_range", "32768 60999"];
  proxy.sysctl(low, "40000 40009");
  stage.finally(() => proxy.sysctl(low, high));
  const server = stage.listen(internet, SERVER[4], 7000);
  const relay = await egress(stage, { outgoing: { addresses: POOL[4] } });
  const client = CLIENTS[4][3]!;
  const used: string[] = [];
  for (let i = 0; i < 25; i++) {
    const reply = await ask(lan, asked(), { to: SERVER[4], port: 7000, from: client });
    assert.equal(reply.code, GRANTED, `connection ${i}`);
    used.push(reply.bound.replace(/:\d+$/, ""));
  }
  const order = [...new Set(used)];
  assert.equal(order.length, 3, `25 connections of 10 ports each: ${used.join(" ")}`);
  assert.deepEqual(used, [...used].sort((a, b) => order.indexOf(a) - order.indexOf(b)));
  assert.equal(used.filter((it) => it === order[0]).length, 10);
  const [first = "", second = "", third = ""] = order;
  const counted = await metrics(stage);
  for (const [name, expected] of [
    ["active_connections", { [first]: 10, [second]: 10, [third]: 5 }],
    ["spilled_total", { [first]: 15, [second]: 5, [third]: 0 }],
  ] as const) {
    for (const [address, value] of Object.entries(expected)) {
      assert.equal(sample(counted, `transplice_egress_${name}`, { address }), value, name);
    }
  }
  await giveBack(stage, server, 25);
  assert.equal(relay.process.exit, null);
});

/** Ends the connections by resets of the server's: no port of ours waits in TIME-WAIT. */
async function giveBack(stage: Stage, server: Listener, connections: number): Promise<void> {
  await eventually("all are accepted", () => server.peers.length === connections);
  for (const peer of server.peers) peer.reset();
  const held = (): string => stage.net.proxy.run("ss", ["-Htn", "dport", "=", `:${server.port}`]);
  await eventually("the ports are given back", () => held() === "");
}

scenario("all ports of all addresses in use: an answer at once, and service again", async (stage) => {
  const { lan, internet } = stage.net;
  const proxy = dmz(stage.net);
  // An even number: of an odd one the kernel does not look at each every time.
  proxy.sysctl("net.ipv4.ip_local_port_range", "40000 40003");
  stage.finally(() => proxy.sysctl("net.ipv4.ip_local_port_range", "32768 60999"));
  const server = stage.listen(internet, SERVER[4], 7001);
  const relay = await egress(stage, { outgoing: { addresses: POOL[4].slice(0, 2) } });
  const target = { to: SERVER[4], port: 7001 };
  const replies = [];
  for (let i = 0; i < 10; i++) replies.push(await ask(lan, asked(), target));
  assert.deepEqual(
    replies.map(({ code }) => code),
    [...Array<number>(8).fill(GRANTED), 1, 1],
  );
  await giveBack(stage, server, 8);
  assert.equal(await codeOf(lan, asked(), target), GRANTED, "there are ports again");
  assert.equal(relay.process.exit, null);
});

// ---------------------------------------------------------------------------------------------
// FTP: the data connection must come from where the control connection came from.

const VSFTPD = "/usr/sbin/vsftpd";

/** vsftpd, which takes a data connection from the control connection's address only. */
async function ftp(stage: Stage, address: string): Promise<string> {
  if (!existsSync(VSFTPD)) stage.skip("vsftpd is not installed");
  const root = `${PRIVATE}/ftp`;
  mkdirSync(`${root}/empty`, { recursive: true });
  const words = "carried by FTP\n".repeat(10_000);
  writeFileSync(`${root}/file`, words);
  const ipv6 = address.includes(":");
  const conf = {
    listen: ipv6 ? "NO" : "YES",
    listen_ipv6: ipv6 ? "YES" : "NO",
    [ipv6 ? "listen_address6" : "listen_address"]: address,
    background: "NO",
    anonymous_enable: "YES",
    local_enable: "NO",
    no_anon_password: "YES",
    run_as_launching_user: "YES",
    anon_root: root,
    secure_chroot_dir: `${root}/empty`,
    pasv_enable: "YES",
    pasv_promiscuous: "NO",
    seccomp_sandbox: "NO",
    isolate: "NO",
    isolate_network: "NO",
    connect_from_port_20: "NO",
    use_localtime: "NO",
    xferlog_enable: "NO",
  };
  const file = `${PRIVATE}/vsftpd.conf`;
  const lines = Object.entries(conf).map(([key, value]) => `${key}=${value}\n`);
  writeFileSync(file, lines.join(""));
  // It complains on the descriptor 0, which is its control connection elsewhere.
  const start = ["-c", 'exec 0>&1; exec "$0" "$1"', VSFTPD, file];
  const program = stage.spawn(stage.net.internet, "sh", ...start);
  await eventually("vsftpd listens", async () => {
    if (program.exit !== null) throw new Error(`vsftpd ended: ${program.output}`);
    const peer = await connect(stage.net.internet, address, 21).catch(() => null);
    peer?.destroy();
    return peer !== null;
  });
  return words;
}

/** PASV, and the address of its answer as it stands there: a literal, after a name. */
const PASSIVE = ["--disable-epsv", "--no-ftp-skip-pasv-ip"];

async function fetchByFtp(stage: Stage, client: string, url: string, ...args: string[]) {
  const way = ["--noproxy", "", "--socks5-hostname", asked(), "--interface", client];
  return curl(stage.net.lan, ...way, "--max-time", "60", ...args, url);
}

scenario("FTP by name, its passive data connections by literal: all clients are served", async (stage) => {
  const words = await ftp(stage, SERVER[4]);
  await Names.start(stage, { "ftp.test": [SERVER[4]] });
  await egress(stage, { outgoing: { addresses: POOL[4] } });
  const fetches = CLIENTS[4].map((client) =>
    fetchByFtp(stage, client, "ftp://ftp.test/file", ...PASSIVE),
  );
  for (const { status, body, error } of await Promise.all(fetches)) {
    assert.equal(status, 0, error);
    assert.equal(String(body), words);
  }
});

scenario("FTP: the server does insist, where nothing holds a client to one address", async (stage) => {
  await ftp(stage, SERVER[4]);
  await Names.start(stage, { "ftp.test": [SERVER[4]] });
  await egress(stage, { outgoing: { addresses: POOL[4], affinity: "none" } });
  const fetches = CLIENTS[4].map((client) => fetchByFtp(stage, client, "ftp://ftp.test/file", ...PASSIVE));
  const failed = (await Promise.all(fetches)).filter(({ status }) => status !== 0);
  // One in eight draws the same address for both connections; that 13 of 16 do has odds of 7 to 10^10.
  assert.ok(failed.length >= 4, `${failed.length} of 16 fail`);
});

scenario("FTP over IPv6, by EPSV", async (stage) => {
  if (!FAMILIES.includes(6)) stage.skip("the kernel has no IPv6");
  const words = await ftp(stage, SERVER[6]);
  await Names.start(stage, { "ftp6.test": [SERVER[6]] });
  await egress(stage, { outgoing: { addresses: WHOLE_POOL } });
  for (const client of CLIENTS[4].slice(0, 6)) {
    const { status, body, error } = await fetchByFtp(stage, client, "ftp://ftp6.test/file");
    assert.equal(status, 0, error);
    assert.equal(String(body), words);
  }
});

// ---------------------------------------------------------------------------------------------
// DNSBL.

const LISTED: Answer = { addresses: ["127.0.0.2"], ttlSeconds: 0 };

/** What a list is asked about an address. */
function dnsblName(address: string, domain = "bl.test"): string {
  if (!address.includes(":")) return `${address.split(".").reverse().join(".")}.${domain}`;
  const hex = bytesOf(address).map((byte) => byte.toString(16).padStart(2, "0"));
  return `${[...hex.join("")].reverse().join(".")}.${domain}`;
}

function bytesOf(address: string): number[] {
  const [head = "", tail = ""] = address.split("::");
  const groups = (half: string): string[] => (half === "" ? [] : half.split(":"));
  const missing = 8 - groups(head).length - groups(tail).length;
  const all = [...groups(head), ...Array<string>(missing).fill("0"), ...groups(tail)];
  return all.flatMap((group) => [Number.parseInt(group, 16) >> 8, Number.parseInt(group, 16) & 255]);
}

interface Listing {
  names: Names;
  relay: Relay;
  /** So many rounds later: what changes nothing has had its time to change something. */
  rounds(count: number): Promise<void>;
  /** Waits until these addresses are listed, and no others. */
  listed(addresses: readonly string[]): Promise<void>;
}

async function withDnsbl(stage: Stage, outgoing: Settings = {}): Promise<Listing> {
  const names = await Names.start(stage, NAMES);
  web(stage);
  const addresses = WHOLE_POOL;
  const dnsbl = { dnsbl_domain: "bl.test", dnsbl_interval: "1s" };
  const relay = await egress(stage, { outgoing: { addresses, ...dnsbl, ...outgoing } });
  const last = dnsblName(POOL[4][7]!);
  const asked = (): number => names.questions(last, "A");
  const rounds = async (count: number): Promise<void> => {
    const until = asked() + count;
    await eventually(`${count} rounds`, () => asked() >= until);
    await sleep(300);
  };
  const listed = (addresses: readonly string[]): Promise<void> =>
    eventually(`listed are: ${addresses}`, async () => {
      const page = await metrics(stage);
      return WHOLE_POOL.every((address) =>
        sample(page, "transplice_egress_listed", { address }) === Number(addresses.includes(address)));
    });
  return { names, relay, rounds, listed };
}

for (const family of FAMILIES) {
  scenario(`IPv${family}: an address that a DNSBL lists is left, and taken again`, async (stage) => {
    const { names, relay, listed } = await withDnsbl(stage);
    const clients = CLIENTS[family];
    const before = await sources(stage, clients, SERVER[family]);
    const bad = favourite(before);
    const long = await tunnel(stage.net.lan, text(family === 4 ? "192.0.2.2" : "2001:db8:2::2", 1080), {
      to: SERVER[family],
      port: 80,
      from: those(before, bad)[0]!,
    });
    names.scripts.set(dnsblName(bad), LISTED);
    await listed([bad]);
    await moves(stage, before, those(before, bad), SERVER[family]);
    await relay.logged("the listing", (entry) => JSON.stringify(entry).includes(bad));
    assert.equal((await seen(long)).peer, bad, "its connections stay");
    names.scripts.delete(dnsblName(bad));
    await listed([]);
    await moves(stage, before, [], SERVER[family]);
  });
}

scenario("a DNSBL's error codes and silence list nobody, and its SERVFAIL frees nobody", async (stage) => {
  const { names, relay, rounds, listed } = await withDnsbl(stage);
  const clients = CLIENTS[4];
  const before = await sources(stage, clients, SERVER[4]);
  const bad = favourite(before);
  // One at a time: were all taken for listed, all would be used again.
  const unclear = ["127.255.255.254", "127.255.255.1", "127.0.1.2", "192.0.2.80"];
  for (const answer of unclear) {
    names.scripts.set(dnsblName(bad), { addresses: [answer] });
    await rounds(3);
    assert.deepEqual(await sources(stage, clients, SERVER[4]), before, answer);
  }
  // A list that refuses us does so whatever we ask.
  const told = (): number =>
    relay.log().filter((entry) => JSON.stringify(entry).includes("127.255.255.255")).length;
  const refusal = { addresses: ["127.255.255.255"] };
  for (const address of WHOLE_POOL) names.scripts.set(dnsblName(address), refusal);
  await rounds(3);
  assert.deepEqual(await sources(stage, clients, SERVER[4]), before, "127.255.255.255");
  assert.ok(told() === 1 || told() === 2, `told ${told()} times`);
  // One is listed; then nobody answers.
  for (const address of WHOLE_POOL) names.scripts.delete(dnsblName(address));
  names.scripts.set(dnsblName(bad), LISTED);
  await listed([bad]);
  const after = await moves(stage, before, those(before, bad), SERVER[4]);
  for (const address of WHOLE_POOL) names.scripts.set(dnsblName(address), { code: SERVFAIL });
  await rounds(3);
  assert.deepEqual(await sources(stage, clients, SERVER[4]), after, "SERVFAIL");
});

for (const policy of ["use-all", "use-clean"] as const) {
  scenario(`most addresses listed, dnsbl_when_most_listed = ${policy}`, async (stage) => {
    const { names, rounds, listed } = await withDnsbl(stage, { dnsbl_when_most_listed: policy });
    const clients = CLIENTS[4];
    const before = await sources(stage, clients, SERVER[4]);
    const clean = favourite(before);
    const bad = POOL[4].filter((address) => address !== clean);
    for (const address of bad) names.scripts.set(dnsblName(address), LISTED);
    await listed(bad);
    if (policy === "use-all") {
      await moves(stage, before, [], SERVER[4]);
      await rounds(2);
      assert.deepEqual(await sources(stage, clients, SERVER[4]), before);
    } else {
      const after = await moves(stage, before, clients.filter((client) => before.get(client) !== clean), SERVER[4]);
      assert.deepEqual([...new Set(after.values())], [clean]);
    }
  });
}

scenario(
  "an address that gets no answers is left, where the others do: told, and a metric",
  async (stage) => {
    web(stage);
    const { lan, internet } = stage.net;
    const relay = await egress(stage, { outgoing: { addresses: POOL[4] }, timeouts: { dial: "1s" } });
    const before = await sources(stage, CLIENTS[4], SERVER[4]);
    const bad = favourite(before);
    const its = those(before, bad);
    // The way back to it is lost. A client is but one, however often it asks: three are needed.
    internet.ip(`route add blackhole ${bad}/32`);
    stage.finally(() => internet.ip(`route delete blackhole ${bad}/32`));
    const clients = Array.from({ length: 40 }, (_, i) => `172.16.5.${i}`);
    const failed = async (): Promise<number> =>
      sample(await metrics(stage), "transplice_egress_failed_total", { address: bad });
    relay.configure(settingsOf({
      incoming: { proxy_protocol_from: [LAN[4]] },
      outgoing: { addresses: POOL[4] },
      timeouts: { dial: "1s" },
    }));
    await relay.reload();
    const dials = async (): Promise<void> => {
      const target = { to: SERVER[4], port: 80 };
      const preambles = clients.map((client) => `PROXY TCP4 ${client} 192.0.2.2 1 1080\r\n`);
      const asking = preambles.map((preamble) => ask(lan, asked(), { ...target, preamble }));
      for (const { peer } of await Promise.all(asking)) peer.destroy();
    };
    await eventually("thirty dials get no answer", async () => {
      await dials();
      return (await failed()) >= 30;
    });
    const usable = async (): Promise<number> =>
      sample(await metrics(stage), "transplice_egress_usable", { address: bad });
    await eventually("it is a metric", async () => {
      await dials();
      return (await usable()) === 0;
    }, 240_000);
    const told = await relay.logged("it is told", (entry) => /gets no answers/.test(entry.message));
    assert.equal(told["address"], bad);
    // The metric is main's: a worker that has not heard of it yet dials once more in vain, and refuses.
    await eventually("its clients move, and no others", async () => {
      const after = await sources(stage, CLIENTS[4], SERVER[4]).catch(() => before);
      return moved(before, after).sort().join() === its.sort().join();
    });
  },
);

scenario("the sources are a metric, and the log names them", async (stage) => {
  web(stage);
  const relay = await egress(stage, { outgoing: { addresses: POOL[4] } });
  const source = await sourceOf(stage, CLIENTS[4][0]!, SERVER[4]);
  const started = await relay.logged("a start", (entry) => entry.message === "proxy starts");
  assert.match(String(started["src_addr"]), new RegExp(`^${source.replaceAll(".", "\\.")}:\\d+$`));
  const opened = sample(await metrics(stage), "transplice_egress_opened_total", { address: source });
  assert.equal(opened, 1);
});

