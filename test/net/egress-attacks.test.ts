/**
 * What attackers and accidents have done to the egress: each scenario was red once.
 */
import { strict as assert } from "node:assert";
import { connect, eventually, sleep } from "./actors.ts";
import { asked, CLIENTS, egress, METRICS_PORT, POOL, settingsOf, web } from "./dmz.ts";
import { Names } from "./names.ts";
import { LAN, PROXY, SERVER } from "./network.ts";
import { scenario, type Stage } from "./scenario.ts";
import { dial, greeting, request, tunnel } from "./socks.ts";

const ONE = { workers: 1, max_connections: 1 };
const TRANSPARENT = { listen: "127.0.0.1:1090", proxy_url: "socks5://192.0.2.12:9" };

scenario("the egress is taken out of the file while clients wait to be accepted", async (stage) => {
  web(stage);
  const it = await egress(stage, { ...TRANSPARENT, ...ONE });
  const stays = await tunnel(stage.net.lan, asked(), { to: SERVER[4], port: 80 });
  const waits = await dial(stage.net.lan, asked());
  await sleep(100);
  // There is room from now on, and nobody who could serve those who wait.
  it.configure({ ...TRANSPARENT, workers: 1 });
  await it.reload();
  await eventually("who waited hears of it", () => waits.end !== null);
  // One that takes a second to do what it is told is a warning, and a slow machine.
  assert.deepEqual(it.log().filter(({ message, severity }) => message.includes("worker") && severity !== "warning"), []);
  stays.write("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n");
  assert.match(String((await stays.rest()).data), /^HTTP\/1\.1 200/);
});

scenario("the proxy is taken out of the file: what was redirected to it goes nowhere else", async (stage) => {
  const { lan, relay, internet } = stage.net;
  const incoming = { port: 1080, addresses: ["127.0.0.1"], metrics_port: 0 };
  const it = await stage.relay({ ...TRANSPARENT, listen: ":1090", ...ONE, incoming });
  stage.intercept({ mode: "redirect", from: "routed", port: 1090, destinations: [SERVER[4]] });
  const server = stage.listen(internet, SERVER[4], 80);
  const taker = await dial(relay, "127.0.0.1:1080");
  const waits = await connect(lan, SERVER[4], 80);
  await sleep(100);
  it.configure({ workers: 1, incoming });
  await it.reload();
  await eventually("who waited hears of it", () => waits.end !== null || server.peers.length > 0);
  assert.equal(server.peers.length, 0, "it was dialled past its upstream");
  taker.destroy();
});

scenario("a block list that is not asked any more lists nobody", async (stage) => {
  const names = await Names.start(stage);
  const reversed = POOL[4][0]!.split(".").reverse().join(".");
  names.scripts.set(`${reversed}.bl.test`, { addresses: ["127.0.0.2"] });
  const outgoing = { addresses: POOL[4].slice(0, 2) };
  const it = await egress(stage, {
    outgoing: { ...outgoing, dnsbl_domain: "bl.test", dnsbl_interval: "1s", dnsbl_when_most_listed: "use-clean" },
  });
  await it.logged("the listing", ({ message }) => message === "egress address is listed");
  it.configure(settingsOf({ outgoing }));
  await it.reload();
  const metrics = await page(stage);
  assert.match(metrics, new RegExp(`transplice_egress_listed{address="${POOL[4][0]}"} 0`));
  assert.match(metrics, new RegExp(`transplice_egress_usable{address="${POOL[4][0]}"} 1`));
});

scenario("the time before granted is no time of a tunnel", async (stage) => {
  web(stage);
  await egress(stage);
  const slow = await dial(stage.net.lan, asked());
  await sleep(3000);
  const began = performance.now();
  slow.write(Buffer.concat([greeting(0), request(SERVER[4], 80)]));
  await slow.read(12);
  slow.destroy();
  await eventually("the tunnel is counted", async () => /elapsed_seconds_count\{.*\} 1/.test(await page(stage)));
  const most = (performance.now() - began) / 1000;
  const sums = [...(await page(stage)).matchAll(/elapsed_seconds_sum\{.*\} (\S+)/g)].map(([, sum]) => Number(sum));
  assert.ok(Math.max(...sums) <= most, `${sums}, and it was ${most} s ago that it asked`);
});

scenario("who is outside allow_from holds no place for long", async (stage) => {
  await egress(stage, { incoming: { allow_from: [LAN[4]] }, timeouts: { negotiation: "1h" } });
  const [outside] = CLIENTS[4];
  const silent = await dial(stage.net.lan, asked(), outside!);
  const inside = await dial(stage.net.lan, asked(), LAN[4]);
  await eventually("it is sent away", () => silent.end !== null);
  assert.equal(inside.end, null);
  const refused = await dial(stage.net.lan, asked(), outside!);
  refused.write(Buffer.concat([greeting(0), request(SERVER[4], 80)]));
  assert.equal((await refused.read(4))[3], 2);
});

scenario("who is outside allow_from leaves the last places to those inside", async (stage) => {
  web(stage);
  const incoming = { allow_from: [LAN[4]] };
  const it = await egress(stage, { ...ONE, max_connections: 8, incoming });
  const dials = Array.from({ length: 8 }, () => dial(stage.net.lan, asked(), CLIENTS[4][0]!));
  const outsiders = await Promise.all(dials);
  await tunnel(stage.net.lan, asked(), { to: SERVER[4], port: 80 });
  await eventually("all others have gone", () => outsiders.every(({ end }) => end !== null));
  const reasons = (): string[] => it.log().filter(({ dest_addr }) => dest_addr === "").map(({ reason }) => String(reason)).sort();
  await eventually("all is told", () => reasons().length === 8);
  assert.deepEqual(reasons(), [...Array<string>(6).fill("client-timeout"), "denied", "denied"], "two were sent away at once, and six had two seconds to ask");
  await it.logged("why", ({ reason, ...entry }) => reason === "denied" && JSON.stringify(entry).includes("allow_from"));
});

async function page(stage: Stage): Promise<string> {
  const peer = await connect(stage.net.lan, PROXY[4], METRICS_PORT);
  peer.write("GET /metrics HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n");
  return String((await peer.rest()).data);
}
