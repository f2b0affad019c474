/**
 * A worker that throws is replaced, and costs no more than its own connections; a worker that
 * hangs is noticed. The faults come from outside: see fault.ts.
 */
import { strict as assert } from "node:assert";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { connect, eventually, type Peer, sleep } from "./actors.ts";
import { SERVER } from "./network.ts";
import type { Relay } from "./relay.ts";
import { PRIVATE } from "./sandbox.ts";
import { scenario, type Stage } from "./scenario.ts";
import type { Upstream } from "./upstream.ts";

const FAULT = fileURLToPath(new URL("./fault.js", import.meta.url));
const REQUESTS = `${PRIVATE}/faults`;
const LISTEN = "localhost:1081";

interface Setting {
  relay: Relay;
  upstream: Upstream;
}

async function setting(stage: Stage, workers: number, nodeFlags: string[] = []): Promise<Setting> {
  rmSync(REQUESTS, { recursive: true, force: true });
  mkdirSync(REQUESTS);
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const upstream = stage.upstream({ protocol: "socks5", echoes: true });
  const relay = await stage.relay(
    { listen: LISTEN, proxy_url: upstream.url(), workers },
    { env: { NODE_OPTIONS: `--import=${FAULT}`, FAULT_REQUESTS: REQUESTS }, nodeFlags },
  );
  return { relay, upstream };
}

const newClient = (stage: Stage): Promise<Peer> => connect(stage.net.relay, SERVER[4], 80);
const request = (fault: string): void => writeFileSync(`${REQUESTS}/${fault}`, "");

async function answers(client: Peer, withinMs = 10_000): Promise<boolean> {
  client.write("ping");
  return client.read(4, withinMs).then((bytes) => String(bytes) === "ping", () => false);
}

async function tunnels(stage: Stage, count: number): Promise<Peer[]> {
  const clients = await Promise.all(Array.from({ length: count }, () => newClient(stage)));
  for (const client of clients) assert.ok(await answers(client));
  return clients;
}

/** Connections, one after the other, until a worker has answered the request. */
async function provoke(stage: Stage, done: () => boolean): Promise<Peer[]> {
  const clients: Peer[] = [];
  await eventually("a worker answers the request", async () => {
    if (!done()) clients.push(await newClient(stage));
    await sleep(5);
    return done();
  });
  return clients;
}

for (const workers of [1, 3]) {
  scenario(`one of ${workers} workers throws: it is replaced, the others go on, nothing leaks`, async (stage) => {
    const { relay } = await setting(stage, workers);
    const idleFds = relay.process.fds();
    for (let round = 1; round <= 3; round++) {
      const standing = await tunnels(stage, 60);
      request("throw");
      const provoking = await provoke(stage, () => !existsSync(`${REQUESTS}/throw`));
      // From the first moment on, nobody is refused, and all are served.
      const fresh = await Promise.all(Array.from({ length: 100 }, () => newClient(stage)));
      const served = await Promise.all(fresh.map((client) => answers(client)));
      const lost = served.filter((each) => !each).length;
      assert.ok(lost <= (workers === 1 ? 100 : 50), `${lost} of 100 new connections are lost`);
      const later = await Promise.all(Array.from({ length: 20 }, () => newClient(stage)));
      assert.deepEqual(await Promise.all(later.map((client) => answers(client))), later.map(() => true));

      const alive = await Promise.all(standing.map((client) => answers(client, 2_000)));
      const survivors = alive.filter((each) => each).length;
      if (workers === 1) assert.equal(survivors, 0);
      else assert.ok(survivors >= 15 && survivors < 60, `${survivors} of 60 have survived`);
      for (const [i, client] of standing.entries()) {
        if (!alive[i]) assert.equal(client.end, "reset", "who is lost is told by a reset");
      }
      await relay.logged(`replacement ${round}`, () =>
        relay.log().filter((entry) => /worker/i.test(entry.message) && /a fault was asked for/.test(JSON.stringify(entry))).length >= round);
      for (const client of [...standing, ...provoking, ...fresh, ...later]) client.destroy();
      await eventually("all is given back", () => relay.process.fds() <= idleFds, 15_000);
    }
    assert.equal((await relay.stop()).code, 0);
  });
}

scenario("a worker that hangs is noticed in the log, and the others go on", async (stage) => {
  const { relay } = await setting(stage, 2);
  const standing = await tunnels(stage, 40);
  request("hang");
  await provoke(stage, () => existsSync(`${REQUESTS}/hanging`));
  await relay.logged(
    "the hanging worker",
    (entry) => /worker/i.test(entry.message) && /hang|stuck|not (turned|answer|respond|moved)|stall|no sign/i.test(JSON.stringify(entry)),
    60_000,
  );
  const alive = await Promise.all(standing.map((client) => answers(client, 2_000)));
  const survivors = alive.filter((each) => each).length;
  assert.ok(survivors >= 8, `${survivors} of 40 have survived`);
  rmSync(`${REQUESTS}/hanging`);
  await eventually("service goes on", async () => {
    const client = await newClient(stage);
    const well = await answers(client, 1_000);
    client.destroy();
    return well;
  });
}, { timeoutMs: 120_000 });

scenario("20,000 connections leave the workers' heaps where they were", async (stage) => {
  const { relay } = await setting(stage, 2, ["--expose-gc"]);
  const heaps = async (): Promise<number> => {
    request("heap");
    const files = () => readdirSync(REQUESTS).filter((file) => file.startsWith("heap-"));
    const provoking = await provoke(stage, () => files().length === 2);
    for (const client of provoking) client.destroy();
    const sum = files().reduce((total, file) => total + Number(readFileSync(`${REQUESTS}/${file}`)), 0);
    for (const file of [...files(), "heap"]) rmSync(`${REQUESTS}/${file}`);
    return sum;
  };
  const round = async (connections: number): Promise<void> => {
    let left = connections;
    await Promise.all(Array.from({ length: 64 }, async () => {
      while (left-- > 0) {
        const client = await newClient(stage);
        client.finish("ping");
        assert.equal(String((await client.rest()).data), "ping");
        client.destroy();
      }
    }));
  };
  await round(3_000);
  const before = await heaps();
  await round(20_000);
  const after = await heaps();
  stage.note(`both heaps: ${before} bytes before, ${after - before} bytes more after`);
  assert.ok(after - before < 1 << 20, `${after - before} bytes more`);
  void relay;
}, { timeoutMs: 120_000 });
