/**
 * Socket activation: the test is the service manager, which opens the sockets, keeps them, and
 * passes them on by the protocol of sd_listen_fds(3).
 */
import { strict as assert } from "node:assert";
import { existsSync, readdirSync, readFileSync, readlinkSync, rmSync } from "node:fs";
import { AF_UNIX, IP_TRANSPARENT, MSG_DONTWAIT, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_STREAM, SOL_IP } from "../../native-bindings/constants.ts";
import { linux } from "../../native-bindings/syscalls.ts";
import { type Opened, opened, passing } from "./activation.ts";
import { connect, eventually, type Peer } from "./actors.ts";
import { PROXY, SERVER } from "./network.ts";
import type { Relay, Settings } from "./relay.ts";
import { scenario, type Stage } from "./scenario.ts";
import { PRIVATE } from "./sandbox.ts";
import { end, lives, takenOver } from "./successor.ts";
import { applyRules } from "./truthful.ts";
import { curl } from "./web.ts";

const sys = linux();
const WORKERS = 2;
const PORT = 1081;

function settingsOf(stage: Stage, more: Settings = {}): Settings {
  const upstream = stage.upstream({ protocol: "socks5", echoes: true });
  return { listen: `127.0.0.1:${PORT}`, proxy_url: upstream.url(), workers: WORKERS, timeouts: { drain: "1s" }, ...more };
}

const newClient = (stage: Stage): Promise<Peer> => connect(stage.net.relay, SERVER[4], 80);

async function exchange(client: Peer): Promise<void> {
  client.write("ping");
  assert.equal(String(await client.read(4)), "ping");
}

async function assertServes(stage: Stage, connections = 20): Promise<void> {
  for (let i = 0; i < connections; i++) {
    const client = await newClient(stage);
    await exchange(client);
    client.finish();
  }
}

/** The inode of each socket of the process that listens on this port of 127.0.0.1. */
function listening(pid: number, port: number): string[] {
  const local = `0100007F:${port.toString(16).padStart(4, "0").toUpperCase()}`;
  const rows = readFileSync(`/proc/${pid}/net/tcp`, "utf8").split("\n").map((row) => row.trim().split(/\s+/));
  const inodes = rows.filter((row) => row[1] === local && row[3] === "0A").map((row) => row[9]!);
  const own = new Set(readdirSync(`/proc/${pid}/fd`).map((fd) => linkOf(`/proc/${pid}/fd/${fd}`)));
  return inodes.filter((inode) => own.has(`socket:[${inode}]`));
}

function linkOf(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    return ""; // It was closed meanwhile.
  }
}

/** How many epolls of the process, of which each worker has one, watch a socket with this inode. */
function watchers(pid: number, inode: string): number {
  const infos = readdirSync(`/proc/${pid}/fdinfo`).map((fd) => {
    try {
      return readFileSync(`/proc/${pid}/fdinfo/${fd}`, "utf8");
    } catch {
      return "";
    }
  });
  const hexadecimal = Number(inode).toString(16);
  return infos.filter((info) => new RegExp(`^tfd:.* ino:${hexadecimal} `, "m").test(info)).length;
}

for (const names of ["relay", "transplice.socket", null]) {
  scenario(`a passed socket (${names ?? "without a name"}) is shared by all workers, through HUP and USR2`, async (stage) => {
    stage.intercept({ mode: "redirect", from: "local", port: PORT });
    const fd = opened(stage, { port: PORT });
    const settings = settingsOf(stage);
    const relay = await stage.relay(settings, passing([fd], names));
    const { pid } = relay.process;
    const [inode, ...others] = listening(pid, PORT);
    assert.deepEqual(others, [], "no other socket listens there");
    await eventually("each worker has its share", () => watchers(pid, inode!) === WORKERS);
    await assertServes(stage);

    relay.configure({ ...settings, workers: WORKERS + 1 });
    await relay.reload();
    await eventually("the new worker has its share", () => watchers(pid, inode!) === WORKERS + 1);
    relay.configure({ ...settings, workers: 1 });
    await relay.reload();
    await eventually("one worker has all", () => watchers(pid, inode!) === 1);
    await assertServes(stage);
    relay.configure(settings);

    const standing = await newClient(stage);
    await exchange(standing);
    relay.process.signal("SIGUSR2");
    const successor = await takenOver(stage, relay);
    assert.deepEqual(listening(successor, PORT), [inode]);
    await eventually("each worker has its share", () => watchers(successor, inode!) === WORKERS);
    await assertServes(stage);
    await exchange(standing);
    standing.finish();
    assert.deepEqual(relay.log().filter(({ severity }) => severity === "critical"), [], "no worker died of it");
    await end(successor);
  });
}

scenario("a passed socket with SO_REUSEPORT has further ones beside it, one for each worker", async (stage) => {
  stage.intercept({ mode: "redirect", from: "local", port: PORT });
  const fd = opened(stage, { port: PORT, reusePort: true });
  const relay = await stage.relay(settingsOf(stage), passing([fd], "relay"));
  const inodes = listening(relay.process.pid, PORT);
  assert.equal(inodes.length, WORKERS);
  const { pid } = relay.process;
  await eventually("each worker has its own", () => inodes.every((inode) => watchers(pid, inode) === 1));
  await assertServes(stage);
  relay.process.signal("SIGUSR2");
  const successor = await takenOver(stage, relay);
  assert.deepEqual(listening(successor, PORT).sort(), inodes.sort());
  await assertServes(stage);
  await end(successor);
});

scenario("beside a socket with SO_REUSEPORT of another user's there can be none: workers share it", async (stage) => {
  stage.intercept({ mode: "redirect", from: "local", port: PORT });
  const fd = opened(stage, { port: PORT, reusePort: true });
  const nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
  if (stage.net.relay.attempt(nobody[0]!, [...nobody.slice(1), "true"]).status !== 0) stage.skip("there is no second user here");
  const relay = await stage.relay(settingsOf(stage), passing([fd], "relay", nobody));
  const inodes = listening(relay.process.pid, PORT);
  assert.equal(inodes.length, 1);
  await eventually("each worker has its share", () => watchers(relay.process.pid, inodes[0]!) === WORKERS);
  await assertServes(stage);
});

scenario("who connects while the program is being started again waits in the manager's socket", async (stage) => {
  stage.intercept({ mode: "redirect", from: "local", port: PORT });
  const fd = opened(stage, { port: PORT });
  const settings = settingsOf(stage);
  const first = await stage.relay(settings, passing([fd], "relay"));
  await assertServes(stage, 1);
  first.process.kill();
  await first.process.exited;
  const waiting = await Promise.all(Array.from({ length: 20 }, () => newClient(stage)));
  for (const client of waiting) client.write("ping");
  await stage.relay(settings, passing([fd], "relay"));
  for (const client of waiting) assert.equal(String(await client.read(4)), "ping");
});

scenario("relay, socks, metrics and admin by name, wherever the configuration would listen; HUP leaves them", async (stage) => {
  stage.intercept({ mode: "redirect", from: "local", port: 2081 });
  const ports = { relay: 2081, metrics: 2180, socks: 2080, admin: 2199 };
  const fds = Object.values(ports).map((port) => opened(stage, { port }));
  const settings = settingsOf(stage, {
    incoming: { port: 1080, addresses: ["127.0.0.1"], metrics_port: 9180, allow_from: ["127.0.0.1"] },
    outgoing: { allow_networks: [`${PROXY[4]}/32`] },
    admin: { listen: "127.0.0.1:1082" },
  });
  const relay = await stage.relay(settings, passing(fds, Object.keys(ports).join(":")));
  const ready = relay.log().find(({ message }) => message === "transplice is ready");
  assert.equal(ready?.["listen"], "127.0.0.1:2081 127.0.0.1:2080");
  const scrape = async (): Promise<string> => (await curl(stage.net.relay, `http://127.0.0.1:${ports.metrics}/metrics`)).body.toString();
  const healthy = async (): Promise<number | null> =>
    (await curl(stage.net.relay, "--fail", `http://127.0.0.1:${ports.admin}/healthz`)).status;
  await assertServes(stage, 4);
  assert.match(await scrape(), /^usocksd_/m);
  assert.equal(await healthy(), 0);
  await relay.reload();
  await assertServes(stage, 4);
  assert.match(await scrape(), /^usocksd_/m);
  assert.equal(await healthy(), 0);
  const client = await connect(stage.net.relay, "127.0.0.1", ports.socks);
  client.write(Uint8Array.of(5, 1, 0));
  assert.deepEqual([...(await client.read(2))], [5, 0]);
  client.destroy();

  relay.process.signal("SIGUSR2");
  const successor = await takenOver(stage, relay);
  await eventually("the old process has ended", () => !existsSync(`/proc/${relay.process.pid}`));
  assert.match(await scrape(), /^usocksd_/m);
  assert.equal(await healthy(), 0);
  await assertServes(stage, 4);
  await end(successor);
});

scenario("TPROXY on a passed socket: it is made transparent, or must have been", async (stage) => {
  stage.intercept({ mode: "tproxy", from: "local", port: PORT });
  const settings = settingsOf(stage, { mode: "tproxy" });
  const plain = opened(stage, { port: PORT });
  const powerless = ["setpriv", "--bounding-set=-net_admin,-net_raw"];
  const refused = stage.relayStarting(settings, passing([plain], "relay", powerless));
  assert.equal((await refused.process.exited).code, 1);
  assert.equal(
    refused.log().at(-1)?.["error"],
    `listen tcp 127.0.0.1:${PORT}: mode = "tproxy" needs Transparent=yes in the socket's unit, or CAP_NET_ADMIN`,
  );
  const able = await stage.relay(settings, passing([plain], "relay"));
  await assertServes(stage, 4);
  await able.stop();
  assert.equal(sys.setsockopt(plain, SOL_IP, IP_TRANSPARENT, 1), 0);
  await stage.relay(settings, passing([plain], "relay", powerless));
  await assertServes(stage, 4);
});

scenario("a socket that fits nothing is an error that says what is expected", async (stage) => {
  const faults: readonly [Opened, string, RegExp][] = [
    [{ port: 1099 }, "transplice.socket", /^\S+: the service manager's socket 3 \(transplice\.socket\), which listens on 127\.0\.0\.1:1099, is none of the configuration's: 127\.0\.0\.1:1081 \(relay\); say what it is for with FileDescriptorName=relay, socks, metrics or admin in its unit, or let it listen on one of these$/],
    [{ port: 1098 }, "socks", /: the configuration has no use for it without \[incoming\]$/],
    [{ port: 1081, silent: true }, "relay", /: the service manager's socket 3 \(relay\) is no socket that listens for TCP; a socket unit says so with ListenStream=ADDRESS:PORT and Accept=no$/],
  ];
  const settings = settingsOf(stage);
  for (const [what, name, message] of faults) {
    const relay: Relay = stage.relayStarting(settings, passing([opened(stage, what)], name));
    assert.equal((await relay.process.exited).code, 1);
    assert.match(relay.process.output.trim(), message);
  }
});

scenario("sockets that were passed to another process are none of ours", async (stage) => {
  stage.intercept({ mode: "redirect", from: "local", port: PORT });
  const fd = sys.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  stage.finally(() => void sys.close(fd));
  await stage.relay(settingsOf(stage), { fds: [fd], env: { LISTEN_PID: "1", LISTEN_FDS: "1", LISTEN_FDNAMES: "relay" } });
  await assertServes(stage, 4);
});

scenario("truthful connect() on one passed socket: each connection comes to the worker that has dialled for it", async (stage) => {
  let requests = 0;
  const upstream = stage.upstream({ protocol: "socks5", echoes: true, heard: () => void requests++ });
  const settings = {
    listen: `127.0.0.1:${PORT}`, proxy_url: upstream.url(), workers: WORKERS, mark: 0x1081, connect: { truthful: true, without: "refuse" },
  };
  applyRules(stage, settings);
  await stage.relay(settings, passing([opened(stage, { port: PORT })], null));
  await assertServes(stage, 40);
  assert.equal(requests, 40, "dialled for once each");
});

scenario("without systemd, its protocol: READY, RELOADING, MAINPID, WATCHDOG of both, STOPPING", async (stage) => {
  const path = `${PRIVATE}/notify`;
  const address = sys.memory(2 + path.length + 1);
  address.bytes[0] = AF_UNIX;
  address.bytes.set(new TextEncoder().encode(path), 2);
  const fd = sys.socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  stage.finally(() => {
    sys.close(fd);
    rmSync(path, { force: true });
  });
  assert.equal(sys.bind(fd, address, 0, address.bytes.length), 0);
  const heard: string[] = [];
  const into = sys.memory(4096);
  const hears = (what: RegExp): Promise<void> => eventually(`the manager hears ${what}`, () => {
    for (let got = sys.recv(fd, into, 0, 4096, MSG_DONTWAIT); got > 0; got = sys.recv(fd, into, 0, 4096, MSG_DONTWAIT)) {
      heard.push(new TextDecoder().decode(into.bytes.subarray(0, got)));
    }
    const at = heard.findIndex((message) => what.test(message));
    if (at !== -1) heard.splice(0, at + 1);
    return at !== -1;
  });

  const settings = settingsOf(stage);
  // Of a process that systemd starts, WATCHDOG_PID is the pid: of this one alone.
  const relay = stage.relayStarting(settings, {
    command: ["sh", "-c", 'WATCHDOG_PID=$$ exec "$@"', "sh"], env: { NOTIFY_SOCKET: path, WATCHDOG_USEC: "3000000" },
  });
  await hears(/^READY=1\nSTATUS=0 of at most \d+ connections, 2 workers$/);
  // From now on "transplice upgrade" finds it.
  assert.equal(readFileSync(relay.pidFile, "utf8"), `${relay.process.pid}\n`);
  await hears(/^WATCHDOG=1\n/);
  await relay.reload();
  await hears(/^RELOADING=1\nMONOTONIC_USEC=\d+\n/);
  await hears(/^READY=1\n/);
  relay.process.signal("SIGUSR2");
  const successor = await takenOver(stage, relay);
  await hears(new RegExp(`^MAINPID=${successor}\nWATCHDOG=1$`));
  await eventually("the old process has ended", () => !lives(relay.process.pid));
  await hears(/^WATCHDOG=1\n/);
  process.kill(successor, "SIGTERM");
  await hears(/^STOPPING=1\n/);
  await eventually("the successor has ended", () => !lives(successor));
});
