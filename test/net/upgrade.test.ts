/**
 * USR2: another process of the program takes over under load. Nobody is refused, reset or left
 * waiting, and tunnels that stand stay where they are. One that does not serve changes nothing.
 */
import { strict as assert } from "node:assert";
import { appendFileSync } from "node:fs";
import { connect, eventually, type Peer, sleep } from "./actors.ts";
import { asked, echo, egress, metrics, POOL, sample } from "./dmz.ts";
import { SERVER } from "./network.ts";
import type { Relay, Settings } from "./relay.ts";
import { scenario, type Stage } from "./scenario.ts";
import { codeOf, tunnel } from "./socks.ts";
import { end, lives, takenOver } from "./successor.ts";

const CLIENTS = 24;
const LOAD_MS = 4000;
const STANDING = 200;
const GRANTED = "usocksd_connections_total";

const newClient = (stage: Stage): Promise<Peer> => connect(stage.net.relay, SERVER[4], 80);

async function exchange(client: Peer): Promise<void> {
  client.write("ping");
  assert.equal(String(await client.read(4, 10_000)), "ping");
}

/** New connections, one after the other, until told to stop. */
async function load(stage: Stage, until: () => boolean): Promise<number> {
  let served = 0;
  while (!until()) {
    const client = await newClient(stage);
    await exchange(client);
    client.finish();
    served++;
  }
  return served;
}

async function setting(stage: Stage): Promise<{ relay: Relay; settings: Settings }> {
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const upstream = stage.upstream({ protocol: "socks5", echoes: true });
  const settings = {
    listen: "localhost:1081", proxy_url: upstream.url(), workers: 2, timeouts: { drain: "1s" },
  };
  return { relay: await stage.relay(settings), settings };
}

scenario("USR2 under load: none of the new connections is lost, and the old ones stay", async (stage) => {
  const { relay } = await setting(stage);
  const standing = await Promise.all(Array.from({ length: STANDING }, () => newClient(stage)));
  await Promise.all(standing.map(exchange));
  let over = false;
  const loads = Array.from({ length: CLIENTS }, () => load(stage, () => over));
  await sleep(500);
  relay.process.signal("SIGUSR2");
  const successor = await takenOver(stage, relay);
  await sleep(LOAD_MS);
  over = true;
  const served = (await Promise.all(loads)).reduce((sum, each) => sum + each, 0);
  stage.note(`${served} connections were served meanwhile`);
  assert.ok(served > 200, `only ${served} connections were served`);
  // Longer than the drain deadline: who hands over cuts nobody.
  assert.ok(lives(relay.process.pid), "the old process has left its tunnels");
  await Promise.all(standing.map(exchange));
  for (const client of standing) client.finish();
  // Its output stays open as long as its successor lives, who has it too.
  const { pid } = relay.process;
  await eventually("the old process has ended", () => !lives(pid));
  await load(stage, once());
  await end(successor);
});

scenario("USR2 with a broken file: the new process does not serve, and nothing has changed", async (stage) => {
  const { relay } = await setting(stage);
  appendFileSync(relay.file, "\nnonsense = 1\n");
  relay.process.signal("SIGUSR2");
  await relay.logged("the failure", ({ message }) => message.includes("does not serve"), 20_000);
  await load(stage, once());
  assert.equal(relay.process.exit, null);
});

scenario("USR2 of the egress: no client is lost, and the metrics go to the successor", async (stage) => {
  const { lan } = stage.net;
  echo(stage);
  const relay = await egress(stage, { outgoing: { addresses: POOL[4] }, workers: 2, timeouts: { drain: "1s" } });
  const target = { to: SERVER[4], port: 7 };
  const standing = await tunnel(lan, asked(), target);
  let over = false;
  const clients = Array.from({ length: 8 }, async () => {
    for (let served = 0; ; served++) {
      if (over) return served;
      const client = await tunnel(lan, asked(), target);
      await exchange(client);
      client.destroy();
    }
  });
  await sleep(300);
  const before = sample(await metrics(stage), GRANTED, { version: "SOCKS5", status: "granted" });
  assert.ok(before > 1);
  relay.process.signal("SIGUSR2");
  const successor = await takenOver(stage, relay);
  await sleep(1_000);
  over = true;
  const served = (await Promise.all(clients)).reduce((sum, each) => sum + each, 0);
  // They are those of the process that serves now, which began at nothing.
  let after = 0;
  await eventually("the metrics are served", async () => {
    after = sample(await metrics(stage), GRANTED, { version: "SOCKS5", status: "granted" });
    return true;
  });
  assert.ok(after > 0 && after < served, `${after} of ${served}`);
  await exchange(standing);
  standing.destroy();
  const { pid } = relay.process;
  await eventually("the old process has ended", () => !lives(pid));
  await metrics(stage);
  assert.equal(await codeOf(lan, asked(), target), 0);
  await end(successor);
});

function once(): () => boolean {
  let asked = 0;
  return () => asked++ > 0;
}
