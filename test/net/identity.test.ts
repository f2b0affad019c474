/**
 * Who the process is: it starts as root, becomes another user, and keeps of root's powers what the
 * configuration needs, on the threads that need them.
 */
import { strict as assert } from "node:assert";
import { spawnSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync } from "node:fs";
import { eventually, text } from "./actors.ts";
import { FAMILIES, PROXY, RELAY, SERVER } from "./network.ts";
import { MAIN, type Relay, type Settings } from "./relay.ts";
import { PRIVATE, unprivileged } from "./sandbox.ts";
import { scenario, type Stage } from "./scenario.ts";
import { end, takenOver } from "./successor.ts";
import { visit, webServer } from "./web.ts";

const NOBODY = 65534;
const MARK = 0x1081;
const WORKERS = 2;
const BIND_SERVICE = 1n << 10n;
const ADMIN = 1n << 12n;

interface Thread {
  readonly uids: string;
  readonly gids: string;
  readonly groups: string;
  readonly effective: bigint;
  readonly permitted: bigint;
  readonly inheritable: bigint;
  readonly ambient: bigint;
  readonly bounding: bigint;
  readonly noNewPrivs: string;
}

/** Main is the first. */
function threads(pid: number): Thread[] {
  return readdirSync(`/proc/${pid}/task`).map((thread) => {
    const status = readFileSync(`/proc/${pid}/task/${thread}/status`, "utf8");
    const field = (name: string): string => new RegExp(`^${name}:[ \\t]*(.*)$`, "m").exec(status)![1]!.trim();
    const set = (name: string): bigint => BigInt(`0x${field(name)}`);
    return {
      uids: field("Uid"), gids: field("Gid"), groups: field("Groups"), effective: set("CapEff"),
      permitted: set("CapPrm"), inheritable: set("CapInh"), ambient: set("CapAmb"),
      bounding: set("CapBnd"), noNewPrivs: field("NoNewPrivs"),
    };
  });
}

function needsSecondUser(stage: Stage): void {
  if (unprivileged()) stage.skip("in a user namespace of an ordinary user there is no second user to become");
}

/**
 * Everybody is nobody; main and the workers have these, Node's own threads nothing. A successor was
 * started with them, and so has them on all threads.
 */
function assertIdentity(pid: number, kept: bigint, successor = false): void {
  const all = threads(pid);
  const four = Array(4).fill(NOBODY).join("\t");
  for (const { uids, gids, groups } of all) {
    assert.deepEqual([uids, gids, groups], [four, four, `${NOBODY}`]);
  }
  const ours = all.filter(({ noNewPrivs }) => noNewPrivs === "1");
  assert.equal(ours.length, successor ? all.length : 1 + WORKERS, "main and its workers can gain nothing by exec");
  for (const thread of ours) {
    const { effective, permitted, inheritable, ambient, bounding } = thread;
    assert.deepEqual([effective, permitted, inheritable, ambient, bounding], Array(5).fill(kept));
  }
  for (const { effective, permitted, ambient, noNewPrivs } of all) {
    if (noNewPrivs !== "1") assert.deepEqual([effective, permitted, ambient], [0n, 0n, 0n], "a thread of Node's own");
  }
}

function webServers(stage: Stage): void {
  for (const family of FAMILIES) {
    const server = webServer(stage.net.internet, SERVER[family], 80);
    stage.finally(() => void server.close());
  }
}

async function assertServed(stage: Stage): Promise<void> {
  for (const family of FAMILIES) {
    const seen = await visit(stage.net.relay, `http://${text(SERVER[family], 80)}/`);
    assert.equal(seen.peer, PROXY[family], "by way of the upstream");
  }
}

/** A directory of root's. */
function folder(stage: Stage): string {
  const path = `${PRIVATE}/identity`;
  mkdirSync(path, { mode: 0o755 });
  stage.finally(() => rmSync(path, { recursive: true }));
  return path;
}

async function logLines(file: string, wanted: string): Promise<void> {
  await eventually(`${file} has ${wanted}`, () => readFileSync(file, "utf8").includes(wanted));
}

scenario("root becomes nobody, and keeps what mark and a low port need; HUP, USR1, USR2 go on", async (stage) => {
  needsSecondUser(stage);
  webServers(stage);
  // Without the mark, what transplice connects to would come back to it.
  const everywhere = ["0.0.0.0/0", "::/0"];
  stage.intercept({ mode: "redirect", from: "local", port: 81, destinations: everywhere, exceptMark: MARK });
  const upstream = stage.upstream({ protocol: "socks5", dials: true });
  const file = `${folder(stage)}/log`;
  const settings = {
    listen: "localhost:81", proxy_url: upstream.url(), workers: WORKERS, mark: MARK, user: "nobody", group: "nogroup",
    log: { filename: file },
  };
  const relay = await stage.relay(settings);
  const { pid } = relay.process;
  assertIdentity(pid, BIND_SERVICE | ADMIN);
  await assertServed(stage);

  assert.equal(statSync(file).uid, NOBODY, "the new log is the user's");
  await relay.logged("a warning for USR1", ({ message }) => message.startsWith("log.filename: nobody may not write"));
  relay.process.signal("SIGUSR1");
  await logLines(file, "the log file is open again");

  relay.configure({ ...settings, listen: ["localhost:81", "127.0.0.1:82"], mode: "tproxy" });
  await relay.reload();
  relay.configure({ ...settings, user: "daemon" });
  await relay.reload();
  await relay.logged("what a reload cannot do", ({ message }) => message.startsWith("user and group stay"));
  await assertServed(stage);
  relay.configure(settings);

  relay.process.signal("SIGUSR2");
  const successor = await takenOver(stage, relay);
  assertIdentity(successor, BIND_SERVICE | ADMIN, true);
  await assertServed(stage);
  await end(successor);
});

scenario("with TPROXY, root becomes nobody and keeps CAP_NET_ADMIN", async (stage) => {
  needsSecondUser(stage);
  webServers(stage);
  stage.intercept({ mode: "tproxy", from: "local", port: 1081 });
  const upstream = stage.upstream({ protocol: "socks5", dials: true });
  const relay = await stage.relay({
    listen: "localhost:1081", proxy_url: upstream.url(), workers: WORKERS, mode: "tproxy", user: `${NOBODY}`,
  });
  assertIdentity(relay.process.pid, ADMIN);
  await assertServed(stage);
});

scenario("what the configuration does not need is gone, and a reload says so; a log of one's own is opened again", async (stage) => {
  needsSecondUser(stage);
  webServers(stage);
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const upstream = stage.upstream({ protocol: "socks5", dials: true });
  const path = folder(stage);
  stage.net.relay.run("chown", ["nobody", path]);
  const file = `${path}/log`;
  const settings = {
    listen: "localhost:1081", proxy_url: upstream.url(), workers: WORKERS, user: "nobody", log: { filename: file },
  };
  const relay = await stage.relay(settings);
  assertIdentity(relay.process.pid, 0n);
  await assertServed(stage);
  assert.ok(!relay.log().some(({ severity }) => severity === "warning"), "nothing is in the way of USR1");
  renameSync(file, `${file}.1`);
  relay.process.signal("SIGUSR1");
  await eventually("there is a new log", () => readdirSync(path).includes("log"));
  assert.equal(statSync(file).uid, NOBODY);
  await logLines(file, "the log file is open again");
  const refusals = [[{ mark: MARK }, "CAP_NET_ADMIN"], [{ listen: "localhost:81" }, "CAP_NET_BIND_SERVICE"]] as const;
  for (const [more, capability] of refusals) {
    relay.configure({ ...settings, ...more });
    const answer = await relay.reload(({ message }) => message === "the configuration is not taken on");
    assert.equal(answer["error"], `it needs ${capability}, which this process gave up when it became another user; a restart takes it on`);
  }
  await assertServed(stage);
});

const FAULTS: readonly [Settings, string][] = [
  [{ user: "nobody-such" }, "user: there is no nobody-such on this host; to make it: useradd --system --shell /usr/sbin/nologin nobody-such"],
  [{ user: "nobody", group: "none-such" }, "group: there is no none-such on this host; to make it: groupadd --system none-such"],
  [{ user: "4294960000" }, "user: 4294960000 is a number without a name on this host; then group must be set, too"],
];

scenario("a user that is not there is one clear error, and a warning to who checks the file", async (stage) => {
  for (const [identity, error] of FAULTS) {
    const relay = stage.relayStarting({ proxy_url: `socks5://${PROXY[4]}:1080`, ...identity });
    assert.equal((await relay.process.exited).code, 1);
    assert.equal(relay.log().at(-1)?.["error"], error);
    const { status, stderr } = spawnSync(process.execPath, [MAIN, "check", "-f", relay.file], { encoding: "utf8" });
    assert.deepEqual([status, stderr], [0, `warning: ${relay.file}: ${error}\n`]);
  }
});

scenario("an ordinary user cannot become another, and need not become himself", async (stage) => {
  needsSecondUser(stage);
  const start = (user: string): Relay => {
    const relay = stage.relayStarting({ proxy_url: `socks5://${PROXY[4]}:1080`, workers: WORKERS, user }, {
      command: ["setpriv", `--reuid=${NOBODY}`, `--regid=${NOBODY}`, "--clear-groups"],
    });
    return relay;
  };
  const other = start("daemon");
  assert.equal((await other.process.exited).code, 1);
  assert.equal(
    other.log().at(-1)?.["error"],
    `user, group: only root can become another user, and this is user ${NOBODY}; start it as root, or leave them out`,
  );
  const own = await start("nobody").ready();
  assert.deepEqual(threads(own.process.pid).map(({ effective }) => effective).filter((set) => set !== 0n), []);
  assert.equal((await own.stop()).code, 0);
});

scenario("root that is to be root stays as it is", async (stage) => {
  const relay = await stage.relay({ proxy_url: `socks5://${RELAY[4]}:1080`, user: "root" });
  const [main] = threads(relay.process.pid);
  assert.equal(main!.effective, threads(process.pid)[0]!.effective);
});
