/**
 * The units of the package under a real systemd: sockets, notifications, the watchdog, reload, upgrade,
 * an end in order; and not one system call outside of the filter.
 */
import { strict as assert } from "node:assert";
import { connect, eventually, type Peer } from "./actors.ts";
import { target } from "./load.ts";
import { SERVER } from "./network.ts";
import { scenario, type Stage } from "./scenario.ts";
import { ask, GRANTED } from "./socks.ts";
import { Systemd } from "./systemd.ts";

const LOG = "/var/log/transplice/log";

async function exchange(client: Peer, text = "p".repeat(64)): Promise<void> {
  client.write(text);
  assert.equal(String(await client.read(text.length)), text);
}

const newClient = (stage: Stage): Promise<Peer> => connect(stage.net.relay, SERVER[4], 80);

async function assertServes(stage: Stage, connections = 10): Promise<void> {
  for (let i = 0; i < connections; i++) {
    const client = await newClient(stage);
    await exchange(client);
    client.finish();
  }
}

/** A call outside of the filter ends the process, where the unit as it is only refuses it. */
const STRICT = "[Service]\nSystemCallErrorNumber=\nSystemCallErrorNumber=kill\nWatchdogSec=10\n";

async function threadsOf(systemd: Systemd, pid: string, field: string): Promise<string[]> {
  const rows = await systemd.run("sh", "-c", `cat /proc/${pid}/task/*/status`);
  return rows.split("\n").filter((row) => row.startsWith(`${field}:`)).map((row) => row.replace(/^.*:\s*/, ""));
}

scenario("the relay's units: socket, readiness, reload, watchdog, upgrade, restart and stop", async (stage) => {
  const { relay: host } = stage.net;
  const systemd = await Systemd.on(stage, host);
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const upstream = stage.upstream({ protocol: "socks5", echoes: true });
  const configuration = `proxy_url = "${upstream.url()}"\nworkers = 2\nmark = 5\n[timeouts]\ndrain = "1s"\n[log]\nfilename = "${LOG}"\n`;
  await systemd.write("/etc/transplice.toml", configuration);
  await systemd.write("/run/units/transplice.service.d/strict.conf", STRICT);
  await systemd.run("systemctl", "start", "transplice.socket");
  const property = (name: string): Promise<string> => systemd.property("transplice.service", name);
  const log = (): Promise<string> => systemd.run("cat", LOG);

  // Who comes before the service waits in the socket, and systemd starts it.
  const early = await newClient(stage);
  early.write("early");
  await systemd.run("systemctl", "start", "transplice.service");
  assert.equal(String(await early.read(5)), "early");
  early.finish();
  assert.equal(await property("ActiveState"), "active");
  assert.match(await property("StatusText"), /of at most \d+ connections, 2 workers$/);
  await assertServes(stage);

  const first = await property("MainPID");
  for (const [field, value] of [["NoNewPrivs", "1"], ["Seccomp", "2"], ["CapEff", /^0*1400$/], ["CapBnd", /^0*1400$/]] as const) {
    const found = await threadsOf(systemd, first, field);
    assert.ok(found.length > 4 && found.every((each) => (typeof value === "string" ? each === value : value.test(each))), `${field}: ${found}`);
  }
  const user = await systemd.run("id", "-u", "transplice");
  assert.deepEqual([...new Set(await threadsOf(systemd, first, "Uid"))], [Array(4).fill(user).join("\t")]);

  await systemd.write("/etc/transplice.toml", configuration.replace("workers = 2", "workers = 1"));
  await systemd.run("systemctl", "reload", "transplice.service");
  await eventually("the reload is over", async () => /, 1 workers$/.test(await property("StatusText")));
  assert.equal(await property("MainPID"), first);
  assert.equal(await property("SubState"), "running");
  await systemd.write("/etc/transplice.toml", configuration);

  const standing = await newClient(stage);
  await exchange(standing);
  await systemd.run("transplice", "upgrade");
  await eventually("systemd knows the successor", async () => (await property("MainPID")) !== first);
  const second = await property("MainPID");
  await assertServes(stage);
  await exchange(standing);
  standing.finish();
  await eventually("the old process has ended", async () => (await systemd.try("kill", "-0", first)).status !== 0);

  // Longer than the watchdog's patience: the successor has its own signs of life.
  const since = Number(await property("WatchdogTimestampMonotonic"));
  await eventually("it has given several signs of life", async () =>
    Number(await property("WatchdogTimestampMonotonic")) > since + 15_000_000);
  assert.deepEqual([await property("MainPID"), await property("NRestarts")], [second, "0"]);

  // Who hangs is started again, and nobody is refused meanwhile.
  await systemd.run("kill", "-STOP", second);
  const patient = await newClient(stage);
  await eventually("it was started again", async () => (await property("NRestarts")) === "1");
  await eventually("it serves again", async () => (await property("ActiveState")) === "active");
  assert.notEqual(await property("MainPID"), second);

  // It was let in; but on its way out, woken by SIGCONT, the old process may have accepted it.
  patient.destroy();
  await assertServes(stage);

  let over = false;
  const restart = systemd.run("systemctl", "restart", "transplice.service").finally(() => {
    over = true;
  });
  while (!over) await assertServes(stage, 1);
  await restart;
  // A successor that dies while the old process still drains, whose child it is: systemd has no word of
  // its end, but the watchdog misses it.
  const last = await newClient(stage);
  await exchange(last);
  const before = await property("MainPID");
  await systemd.run("transplice", "upgrade");
  await eventually("systemd knows the successor", async () => (await property("MainPID")) !== before);
  const third = await property("MainPID");
  await systemd.run("kill", "-KILL", third);
  await eventually("another process serves", async () =>
    (await property("ActiveState")) === "active" && (await property("MainPID")) !== third);
  await assertServes(stage);

  await systemd.run("systemctl", "stop", "transplice.socket", "transplice.service");
  assert.deepEqual([await property("ActiveState"), await property("Result"), await property("ExecMainStatus")], ["inactive", "success", "0"]);
  assert.doesNotMatch(await log(), /critical/);
});

scenario("the relay's unit with managed rules: they come with it, outlive an upgrade, and go with it", async (stage) => {
  const { relay: host } = stage.net;
  const systemd = await Systemd.on(stage, host);
  const upstream = stage.upstream({ protocol: "socks5", echoes: true });
  await systemd.write(
    "/etc/transplice.toml",
    `proxy_url = "${upstream.url()}"\nworkers = 1\nmark = 5\n[firewall]\nmanage = true\nbackend = "nft"\ninclude = ["${SERVER[4]}"]\n[log]\nfilename = "${LOG}"\n`,
  );
  await systemd.write("/run/units/transplice.service.d/strict.conf", STRICT);
  const engaged = (): boolean => host.attempt("nft", ["list", "table", "inet", "transplice"]).status === 0;
  await systemd.run("systemctl", "start", "transplice.service");
  await eventually("the rules are engaged", engaged);
  await assertServes(stage, 4);
  await systemd.run("transplice", "upgrade");
  await assertServes(stage, 4);
  await systemd.run("systemctl", "stop", "transplice.service");
  assert.equal(await systemd.property("transplice.service", "Result"), "success", await systemd.run("cat", LOG));
  await eventually("the rules are gone", () => !engaged());
});

scenario("the egress' units: by its socket, as its user, with bulk and names, within the filter", async (stage) => {
  const { relay: host } = stage.net;
  const systemd = await Systemd.on(stage, host);
  await target(stage, host, 9000, "serve");
  await systemd.write(
    "/etc/transplice-egress.toml",
    `workers = 2\n[incoming]\nmetrics_port = 0\n[outgoing]\nallow_networks = ["127.0.0.0/8", "::1"]\n[log]\nfilename = "${LOG}"\n`,
  );
  await systemd.write("/run/units/transplice-egress.service.d/strict.conf", STRICT);
  await systemd.run("systemctl", "start", "transplice-egress.socket", "transplice-egress.service");
  // A wish of the load's destination, "u": many bytes come, and their number goes back.
  const bytes = 32 << 20;
  for (const to of ["127.0.0.1", "localhost"]) {
    const { code, peer } = await ask(host, "127.0.0.1:1080", { to, port: 9000 });
    assert.equal(code, GRANTED);
    const wish = Buffer.alloc(64);
    wish.write("u");
    wish.writeBigUInt64LE(BigInt(bytes), 16);
    peer.write(wish);
    peer.write(Buffer.alloc(bytes));
    assert.equal((await peer.read(8)).readBigUInt64LE(), BigInt(bytes));
    peer.destroy();
  }
  const before = await systemd.property("transplice-egress.service", "MainPID");
  await systemd.run("transplice", "upgrade", "-f", "/etc/transplice-egress.toml");
  await eventually("systemd knows the successor", async () => (await systemd.property("transplice-egress.service", "MainPID")) !== before);
  assert.equal(await systemd.property("transplice-egress.service", "NRestarts"), "0");
  await systemd.run("systemctl", "stop", "transplice-egress.socket", "transplice-egress.service");
  const status = await systemd.try("systemctl", "status", "--no-pager", "transplice-egress.service");
  assert.equal(await systemd.property("transplice-egress.service", "Result"), "success", status.output + await systemd.run("cat", LOG));
});
