/**
 * The chain of our own relay and our own egress: the relay's log has what the egress knows, exactly.
 * And nobody else sees a byte that RFC 1928 does not have.
 */
import { strict as assert } from "node:assert";
import { getSystemErrorName } from "node:util";
import { readReport } from "../../src/protocol/report.ts";
import { connect, type Peer, sleep, text } from "./actors.ts";
import { dmz, egress, NOWHERE, POOL, PORT, WHOLE_POOL, web } from "./dmz.ts";
import { DENIED, FAMILIES, PROXY, SERVER } from "./network.ts";
import { Names } from "./names.ts";
import { absence, dante, listening, microsocks } from "./proxies.ts";
import type { Entry, Relay } from "./relay.ts";
import { scenario, type Stage } from "./scenario.ts";
import { addressText, ask, dial, greeting, login, reply5, request } from "./socks.ts";
import { curl } from "./web.ts";

const LISTEN = "localhost:1081";
const USER = { username: "alice", password: "s3cret" };

const DESTINATIONS = FAMILIES.flatMap((family) => [
  { errno: "ECONNREFUSED", cause: "refused", to: SERVER[family], port: 81, tried: true },
  { errno: "EHOSTUNREACH", cause: "host-unreachable", to: NOWHERE.unreachable[family], port: 80, tried: true },
  { errno: "ENETUNREACH", cause: "net-unreachable", to: NOWHERE.noRoute[family], port: 80, tried: true },
  { errno: "EACCES", cause: "not-allowed", to: NOWHERE.prohibited[family], port: 80, tried: true },
  { errno: "ETIMEDOUT", cause: "timeout", to: NOWHERE.blackHole[family], port: 80, tried: true },
  { errno: "EACCES", cause: "not-allowed", to: DENIED[family], port: 80, tried: false },
]);

async function end(relay: Relay, where: string): Promise<Entry> {
  return relay.logged(`the end of ${where}`, (it) => it["dest_addr"] === where && it["reason"] !== undefined);
}

function intercept(stage: Stage): void {
  dmz(stage.net);
  stage.intercept({
    mode: "redirect", from: "local", port: 1081,
    destinations: DESTINATIONS.map(({ to }) => `${to}/${to.includes(":") ? 128 : 32}`),
  });
}

for (const { name, userinfo, users, pipelined } of [
  { name: "without a login", userinfo: "", users: {}, pipelined: false },
  { name: "with a login", userinfo: "alice:s3cret@", users: { alice: "s3cret" }, pipelined: false },
  { name: "with a login, pipelined", userinfo: "alice:s3cret@", users: { alice: "s3cret" }, pipelined: true },
  { name: "with a login that nobody asks for", userinfo: "alice:s3cret@", users: {}, pipelined: false },
]) {
  scenario(`the relay knows what the egress knows: ${name}`, async (stage) => {
    web(stage);
    await egress(stage, {
      outgoing: { addresses: WHOLE_POOL, deny_networks: FAMILIES.map((family) => DENIED[family]) },
      timeouts: { dial: "1s" },
      ...(Object.keys(users).length > 0 ? { users } : {}),
    });
    intercept(stage);
    const relay = await stage.relay({
      listen: LISTEN,
      proxy_url: `socks5://${userinfo}${PROXY[4]}:${PORT}`,
      connect: { trust: "transplice" },
      upstream: { pipelined },
    });
    await Promise.all(DESTINATIONS.map(async ({ errno, cause, to, port, tried }) => {
      const where = text(to, port);
      await connect(stage.net.relay, to, port);
      const entry = await end(relay, where);
      assert.deepEqual([entry["errno"], entry["cause"], entry["reason"]], [errno, cause, "upstream-refused"], where);
      if (!tried) return assert.equal(entry["tried"], undefined, where);
      const [, address, what, from] = /^(\S+) (\S+) from (\S+)$/.exec(String(entry["tried"])) ?? [];
      assert.deepEqual([address, what], [to, errno], String(entry["tried"]));
      assert.ok(POOL[to.includes(":") ? 6 : 4].includes(from!), String(entry["tried"]));
    }));
    for (const family of FAMILIES) {
      const { status, body, error } = await curl(stage.net.relay, `http://${text(SERVER[family], 80)}/`);
      assert.equal(status, 0, error);
      const { egress_addr } = await relay.ended(text(SERVER[family], 80));
      const { peer } = JSON.parse(String(body)) as { peer: string };
      assert.match(String(egress_addr), new RegExp(`^\\[?${peer}\\]?:\\d+$`));
    }
  });
}

/** Everything that goes up to the server at PROXY:PORT, by a port of its own. */
async function recorded(stage: Stage): Promise<{ port: number; heard: () => Buffer }> {
  const up: Buffer[] = [];
  const port = PORT + 1;
  const pass = async ({ socket }: Peer): Promise<void> => {
    const { socket: server } = await connect(stage.net.proxy, PROXY[4], PORT, { reading: false });
    socket.on("data", (bytes: Buffer) => up.push(bytes));
    socket.pipe(server).pipe(socket);
  };
  stage.listen(stage.net.proxy, PROXY[4], port, (peer) => void pass(peer), { reading: false });
  return { port, heard: () => Buffer.concat(up) };
}

for (const proxy of [dante, microsocks]) {
  for (const [trust, account, methods] of [
    [proxy.program === "danted" ? "dante" : "microsocks", null, [0]],
    [proxy.program === "danted" ? "dante" : "microsocks", USER, [0, 2]],
    ["transplice", null, [0xe0, 0]],
    ["transplice", USER, [0xe0, 0xe2, 0, 2]],
  ] as const) {
    const asks = `trust = "${trust}"${account === null ? "" : " and a login"}`;
    scenario(`${proxy.program} is spoken to in plain RFC 1928, ${trust === "transplice" ? "but for what is offered, " : ""}with ${asks}`, async (stage) => {
      const missing = absence(proxy);
      if (missing !== null) stage.skip(missing);
      const host = dmz(stage.net);
      const program = stage.keep(proxy.start(host, PROXY[4], PORT, account));
      await listening(program, stage.net.relay, PROXY[4], PORT);
      const { port, heard } = await recorded(stage);
      intercept(stage);
      const userinfo = account === null ? "" : `${account.username}:${account.password}@`;
      const relay = await stage.relay({
        listen: LISTEN, proxy_url: `socks5://${userinfo}${PROXY[4]}:${port}`, connect: { trust },
      });
      await connect(stage.net.relay, SERVER[4], 81);
      const { cause, errno, error } = await end(relay, text(SERVER[4], 81));
      assert.deepEqual([cause, errno], ["refused", undefined], String(error));
      const expected = Buffer.concat([
        greeting(...methods),
        ...(account === null ? [] : [login(account.username, account.password)]),
        request(SERVER[4], 81),
      ]);
      assert.equal(heard().toString("hex"), expected.toString("hex"));
    });
  }
}

scenario("of a name each address that was tried is reported, with what came of it", async (stage) => {
  const nowhere = { [SERVER[4]]: "ECONNREFUSED", [NOWHERE.blackHole[4]]: "ETIMEDOUT", [NOWHERE.noRoute[4]]: "ENETUNREACH" };
  if (FAMILIES.includes(6)) Object.assign(nowhere, { [NOWHERE.blackHole[6]]: "ETIMEDOUT", [NOWHERE.unreachable[6]]: "EHOSTUNREACH" });
  await Names.start(stage, { "several.test": Object.keys(nowhere) });
  await egress(stage, { outgoing: { addresses: WHOLE_POOL }, timeouts: { dial: "2s" } });
  const peer = await dial(stage.net.relay, text(PROXY[4], PORT));
  peer.write(greeting(0xe0, 0));
  assert.deepEqual([...(await peer.read(2))], [5, 0xe0]);
  peer.write(request("several.test", 81));
  assert.equal((await reply5(peer)).code, 5);
  const length = (await peer.read(2)).readUInt16BE();
  const report = readReport(await peer.read(length), 0, length)!;
  const nameOf = (errno: number) => getSystemErrorName(-errno);
  assert.equal(nameOf(report.errno), "ECONNREFUSED");
  const tried = report.attempts.map(({ errno, address }) => [addressText(Buffer.from(address)), nameOf(errno)]);
  assert.deepEqual(Object.fromEntries(tried), nowhere);
  for (const { address, source } of report.attempts) {
    const from = addressText(Buffer.from(source!));
    assert.ok((POOL[address.length === 4 ? 4 : 6] as readonly string[]).includes(from), from);
  }
});

scenario("a report has nothing of those before it", async (stage) => {
  await egress(stage, { workers: 1 });
  for (const [to, errno] of [[SERVER[4], "ECONNREFUSED"], [NOWHERE.noRoute[4], "ENETUNREACH"], [SERVER[4], "ECONNREFUSED"]] as const) {
    const peer = await dial(stage.net.relay, text(PROXY[4], PORT));
    peer.write(greeting(0xe0));
    await peer.read(2);
    peer.write(request(to, 81));
    await reply5(peer);
    const length = (await peer.read(2)).readUInt16BE();
    const { attempts } = readReport(await peer.read(length), 0, length)!;
    assert.deepEqual(attempts.map((it) => [addressText(Buffer.from(it.address)), getSystemErrorName(-it.errno)]), [[to, errno]]);
    // So that the next one has the place of this one.
    assert.equal(await peer.ending(), "fin");
    peer.destroy();
    await sleep(200);
  }
});

scenario("whoever does not ask the egress for a report hears none", async (stage) => {
  await egress(stage);
  const { code, peer } = await ask(stage.net.relay, text(PROXY[4], PORT), { to: SERVER[4], port: 81 });
  assert.equal(code, 5);
  const { data } = await peer.rest();
  assert.equal(data.length, 0);
});
