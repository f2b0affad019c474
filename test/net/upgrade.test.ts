/**
 * USR2 and "transplice upgrade": another process of the program takes over under load. Nobody is refused, reset or left
 * waiting, and tunnels that stand stay where they are. One that does not serve changes nothing.
 */
import { strict as assert } from "node:assert";
import { existsSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { opened, passing } from "./activation.ts";
import { connect, eventually, type Peer, sleep } from "./actors.ts";
import { asked, echo, egress, metrics, POOL, sample } from "./dmz.ts";
import { SERVER } from "./network.ts";
import { LoadClient, target } from "./load.ts";
import { MAIN, type Relay, type Settings, type StartOptions } from "./relay.ts";
import { PRIVATE, unprivileged } from "./sandbox.ts";
import { scenario, type Stage } from "./scenario.ts";
import { codeOf, tunnel } from "./socks.ts";
import { end, lives, takenOver } from "./successor.ts";
import type { Upstream } from "./upstream.ts";

const CLIENTS = 24;
const STANDING = 200;
const GRANTED = "usocksd_connections_total";

const newClient = (stage: Stage): Promise<Peer> => connect(stage.net.relay, SERVER[4], 80);

async function exchange(client: Peer): Promise<void> {
  client.write("ping");
  assert.equal(String(await client.read(4)), "ping");
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

async function setting(stage: Stage, options: StartOptions = {}, drain = "1s"): Promise<{ relay: Relay; settings: Settings; upstream: Upstream }> {
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const upstream = stage.upstream({ protocol: "socks5", echoes: true });
  const settings = {
    listen: "localhost:1081", proxy_url: upstream.url(), workers: 2, timeouts: { drain },
  };
  return { relay: await stage.relay(settings, options), settings, upstream };
}

scenario("USR2 under load: none of the new connections is lost, and the old ones stay", async (stage) => {
  const { relay, upstream } = await setting(stage);
  const standing = await Promise.all(Array.from({ length: STANDING }, () => newClient(stage)));
  await Promise.all(standing.map(exchange));
  let over = false;
  const loads = Array.from({ length: CLIENTS }, () => load(stage, () => over));
  const heard = upstream.requests;
  await eventually("the load is on", () => heard.length > STANDING + CLIENTS);
  relay.process.signal("SIGUSR2");
  const successor = await takenOver(stage, relay);
  const before = heard.length;
  await eventually("the successor serves", () => heard.length > before + 200);
  // Longer than the drain deadline: who hands over cuts nobody.
  await sleep(1500);
  over = true;
  const served = (await Promise.all(loads)).reduce((sum, each) => sum + each, 0);
  stage.note(`${served} connections were served meanwhile`);
  assert.ok(lives(relay.process.pid), "the old process has left its tunnels");
  await Promise.all(standing.map(exchange));
  for (const client of standing) client.finish();
  // Its output stays open as long as its successor lives, who has it too.
  const { pid } = relay.process;
  await eventually("the old process has ended", () => !lives(pid));
  await load(stage, once());
  await end(successor);
});

const RATE = 1000;
const SECONDS = 10;
const TUNNELS = 2000;
const ONLY_DONE = { failed: 0, refused: 0, reset: 0, hung: 0 };

/** `transplice upgrade`, while the actors go on. */
async function command(stage: Stage, relay: Relay, as: readonly string[] = []): Promise<{ status: number | null; output: string }> {
  const [program, ...args] = [...as, process.execPath, MAIN, "upgrade", "-f", relay.file];
  const it = stage.spawn(stage.net.relay, program!, ...args);
  const { code } = await it.exited;
  return { status: code, output: it.output };
}

/** Logs so little that it does not say when it is ready. */
async function quiet(stage: Stage, settings: Settings, options: StartOptions = {}): Promise<Relay> {
  const complete = { ...settings, workers: 2, timeouts: { drain: "1s" }, log: { level: "warning" } };
  const relay = stage.relayStarting(complete, options);
  await eventually("it serves", () => existsSync(relay.pidFile));
  return relay;
}

/** 1,000 new connections a second; and 2,000 tunnels that stand before the upgrade and after it. */
async function upgradedAtSize(stage: Stage, relay: Relay, where: readonly string[]): Promise<void> {
  const host = stage.net.relay;
  const tunnels = await LoadClient.on(stage, host, "pp", ...where, "-c", `${TUNNELS}`, "-t", "0");
  assert.equal(tunnels.standing, TUNNELS);
  const fresh = await LoadClient.on(stage, host, "rr", ...where, "-R", `${RATE}`, "-t", `${SECONDS}`);
  const working = fresh.work();
  await sleep(1000 * SECONDS / 4);
  const { pid } = relay.process;
  const { status, output } = await command(stage, relay);
  const successor = await takenOver(stage, relay);
  assert.deepEqual([status, output], [0, `process ${successor} has taken over from process ${pid}, which ends with its last connection\n`]);
  const { done, failed, refused, reset, hung } = await working;
  const slow = done > RATE * (SECONDS - 1) ? "" : `; the machine was too busy for ${RATE} a second`;
  stage.note(`${done} connections in ${SECONDS} seconds, ${failed} failed${slow}`);
  assert.deepEqual({ failed, refused, reset, hung }, ONLY_DONE);
  assert.ok(done > RATE / 10, `only ${done} connections`);
  await fresh.end();

  assert.ok(lives(pid), "the old process has left its tunnels");
  const { done: pings, failed: broken } = await tunnels.work();
  assert.deepEqual([pings, broken], [TUNNELS, 0], "each tunnel passes bytes on");
  await tunnels.end();
  await eventually("the old process has ended with its last tunnel", () => !lives(pid));
  await end(successor);
}

scenario("transplice upgrade under 1,000 new connections a second, with 2,000 tunnels", async (stage) => {
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  await target(stage, stage.net.relay, 1080);
  const relay = await quiet(stage, { listen: "localhost:1081", proxy_url: "socks5://127.0.0.1:1080" });
  await upgradedAtSize(stage, relay, ["-a", SERVER[4], "-P", "80"]);
});

scenario("the same with a socket of the service manager's", async (stage) => {
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  await target(stage, stage.net.relay, 1080);
  const options = passing([opened(stage, { port: 1081 })], "relay");
  const relay = await quiet(stage, { proxy_url: "socks5://127.0.0.1:1080" }, options);
  await upgradedAtSize(stage, relay, ["-a", SERVER[4], "-P", "80"]);
});

scenario("the same of the egress", async (stage) => {
  await target(stage, stage.net.relay, 9000, "serve");
  const relay = await quiet(stage, {
    incoming: { port: 1080, addresses: ["127.0.0.1"], metrics_port: 0 }, outgoing: { allow_networks: ["127.0.0.1"] },
  });
  await upgradedAtSize(stage, relay, ["-a", "127.0.0.1", "-P", "9000", "-x", "1080"]);
});

scenario("after an upgrade TERM gives the old process' tunnels the drain time, and a second one cuts them", async (stage) => {
  for (const cuts of [false, true]) {
    const { relay } = await setting(stage, {}, cuts ? "1h" : "5s");
    const { pid } = relay.process;
    const client = await newClient(stage);
    await exchange(client);
    relay.process.signal("SIGUSR2");
    const successor = await takenOver(stage, relay);
    const saysCut = ({ message }: { message: string }): boolean => message.startsWith("connections are cut");
    assert.ok(!relay.log().some(saysCut));
    process.kill(pid, "SIGTERM");
    await exchange(client);
    if (cuts) {
      const signals = (): number => relay.log().filter(({ signal, pid: whose }) => signal === "SIGTERM" && whose === pid).length;
      await eventually("the first TERM is heard", () => signals() === 1);
      await exchange(client);
      process.kill(pid, "SIGTERM");
    } else await relay.logged("that they are cut", saysCut);
    assert.equal(await client.ending(), "reset");
    await eventually("the old process has ended", () => !lives(pid));
    await end(successor);
    await stage.end();
  }
});

/** What may stand where a new version should, and what is said of it. */
const VERSIONS: readonly [string, string | null, RegExp][] = [
  ["that ends at its start", "process.exit(7)", /^it ended with exit code 7$/],
  ["that is killed at its start", 'process.kill(process.pid, "SIGKILL")', /^it ended with SIGKILL$/],
  ["that hangs at its start", "setInterval(() => {}, 1e6)", /^it was not ready within 30 seconds$/],
  ["that is not there", null, /^it ended with exit code 1$/],
];

scenario("a new version that does not serve changes nothing, and is said to be what it is", async (stage) => {
  const main = `${PRIVATE}/transplice`;
  symlinkSync(MAIN, main);
  stage.finally(() => rmSync(main, { force: true }));
  const { relay } = await setting(stage, { main });
  const { pid } = relay.process;
  stage.finally(() => childrenOf(pid).forEach((child) => process.kill(Number(child), "SIGKILL")));
  const standing = await newClient(stage);
  const assertUnchanged = async (): Promise<void> => {
    await exchange(standing);
    await load(stage, once());
    assert.equal(relay.process.exit, null);
    await eventually("nothing is left of the new process", () => childrenOf(pid).length === 0);
  };
  for (const [, script, why] of VERSIONS) {
    rmSync(main);
    if (script !== null) writeFileSync(main, script);
    const { status, output } = await command(stage, relay);
    const said = /^transplice: the new process does not serve: (.*); process (\d+) goes on as before\n$/.exec(output);
    assert.equal(status, 1);
    assert.match(said?.[1] ?? output, why);
    assert.equal(Number(said?.[2]), pid);
    await assertUnchanged();
    writeFileSync(main, "");
  }
  rmSync(main);
  symlinkSync(MAIN, main);

  const file = readFileSync(relay.file, "utf8");
  writeFileSync(relay.file, `nonsense = 1\n${file}`);
  const { output } = await command(stage, relay);
  assert.match(output, /does not serve: \S+:1: nonsense: is not a setting; .*; process \d+ goes on as before\n$/);
  await assertUnchanged();
  // What stands against it only once it is on its way: a port that another program has.
  stage.listen(stage.net.relay, "127.0.0.1", 1099);
  writeFileSync(relay.file, file.replace('"localhost:1081"', '["localhost:1081", "127.0.0.1:1099"]'));
  assert.match((await command(stage, relay)).output, /does not serve: listen tcp 127\.0\.0\.1:1099: bind: address already in use/);
  await assertUnchanged();

  writeFileSync(relay.file, file);
  assert.equal((await command(stage, relay)).status, 0);
  await end(await takenOver(stage, relay));
});

/** Those that have not ended. */
function childrenOf(pid: number): string[] {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim();
  return children === "" ? [] : children.split(" ");
}

scenario("upgrade tells why it finds nobody to upgrade", async (stage) => {
  const { relay, settings } = await setting(stage);
  const path = relay.pidFile;
  assert.equal(readFileSync(path, "utf8"), `${relay.process.pid}\n`);
  await relay.stop();
  const host = stage.net.relay;
  const none = await command(stage, relay);
  assert.equal(none.status, 1);
  assert.match(none.output, /no process is known to run with \S+: there is no \/run\/transplice\/\S+\.pid\. One that runs and could not write it is upgraded by: kill -USR2 PID\n/);

  const other = stage.spawn(host, "sleep", "60");
  writeFileSync(path, `${other.pid}\n`);
  const stale = await command(stage, relay);
  assert.deepEqual([stale.status, stale.output], [1, `transplice: process ${other.pid}, of ${path}, does not run transplice any more\n`]);
  assert.equal(other.exit, null, "USR2 would have ended it");
  rmSync(path);
  if (unprivileged()) return;
  // Whoever may not write there runs all the same.
  const nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
  const poor = await stage.relay(settings, { command: nobody });
  await poor.logged("that it has no pid file", ({ message }) => message.startsWith("without a pid file"));
  const mine = await stage.relay({ ...settings, listen: "127.0.0.1:1082" });
  const refused = await command(stage, mine, nobody);
  assert.equal(refused.output, `transplice: process ${mine.process.pid} is another user's; this takes root, or that user\n`);
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
  const served = Promise.all(clients).then((each) => each.reduce((sum, count) => sum + count, 0));
  // Told below; before, it would stand in the way of what is told first.
  served.catch(() => {});
  // For a moment, the one has the port no more, and the other not yet.
  const told = (): Promise<{ began: number; granted: number }> => metrics(stage).then(
    (page) => ({ began: sample(page, "process_start_time_seconds"), granted: sample(page, GRANTED, { version: "SOCKS5", status: "granted" }) }),
    () => ({ began: 0, granted: 0 }),
  );
  let before = 0;
  await eventually("the load is on", async () => {
    const { began, granted } = await told();
    before = began;
    return granted > 20;
  });
  relay.process.signal("SIGUSR2");
  const successor = await takenOver(stage, relay);
  // The process before tells its own until it has let go of the port, which may be later than this.
  await eventually("the successor tells of what it serves", async () => {
    const { began, granted } = await told();
    return began > before && granted > 0;
  });
  over = true;
  const all = await served;
  // They are those of the process that serves now, which began at nothing.
  const { granted: after } = await told();
  assert.ok(after > 0 && after < all, `${after} of ${all}`);
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
