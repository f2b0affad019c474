/**
 * Rules that live as the proxy lives (firewall.manage), in a real kernel with real traffic: they come
 * once the upstream has answered, are mended, follow reloads and upgrades, and at the end, whatever
 * the end, leave what `on_failure` says: nothing, or a refusal.
 */
import { strict as assert } from "node:assert";
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { connect, eventually, type Peer, sleep, text } from "./actors.ts";
import { guardians } from "./guardians.ts";
import { FAMILIES, PROXY, RELAY, SERVER } from "./network.ts";
import { type Entry, isReloaded, type Relay, type Settings } from "./relay.ts";
import { BACKENDS, everything, Firewall, MARK, servers, theirs, touchLegacy } from "./rules.ts";
import { type Host, PRIVATE, unprivileged } from "./sandbox.ts";
import { scenario, type Stage } from "./scenario.ts";
import { curl, visit } from "./web.ts";

const ECHO = 7;

type Backend = (typeof BACKENDS)[number];
type Policy = "open" | "closed";

function managed(backend: Backend | "auto", policy: Policy, more: Settings = {}, firewall: Settings = {}): Settings {
  return {
    listen: ":1081", proxy_url: `socks5://${PROXY[4]}:1080`, mark: MARK, workers: 1, timeouts: { drain: "1h" }, ...more,
    firewall: { backend, manage: true, on_failure: policy, interfaces: ["inner"], ...firewall },
  };
}

/** Whether this machine has such rules at all; otherwise the scenario is not for it. */
function requireBackend(stage: Stage, settings: Settings, backend: Backend): Firewall {
  const firewall = new Firewall(stage, settings);
  firewall.apply(backend);
  assert.equal(firewall.run("remove").status, 0);
  return firewall;
}

const upstream = (stage: Stage): ReturnType<Stage["upstream"]> => stage.upstream({ protocol: "socks5", dials: true });

async function engaged(relay: Relay): Promise<Entry> {
  return relay.logged("engagement", ({ message }) => message === "the firewall's rules are engaged");
}

/** By which way one comes to a server: the address that it sees. */
async function way(host: Host, family: 4 | 6, port = 80): Promise<string> {
  return (await visit(host, `http://${text(SERVER[family], port)}/`)).peer;
}

async function assertThrough(stage: Stage): Promise<void> {
  for (const family of FAMILIES) {
    for (const host of [stage.net.relay, stage.net.lan]) assert.equal(await way(host, family), PROXY[family], `${host.name}, IPv${family}`);
  }
}

/** The lan's addresses have no way back from the internet. */
async function assertDirect(stage: Stage): Promise<void> {
  for (const family of FAMILIES) assert.equal(await way(stage.net.relay, family), RELAY[family], `IPv${family} goes direct`);
}

/** At once, with an error: curl's 7 is a connection that was refused. */
async function assertRefused(stage: Stage): Promise<void> {
  for (const family of FAMILIES) {
    for (const host of [stage.net.relay, stage.net.lan]) {
      const { status, error } = await curl(host, `http://${text(SERVER[family], 80)}/`);
      assert.equal(status, 7, `${host.name}, IPv${family}: ${error}`);
    }
  }
}

function echo(stage: Stage): void {
  for (const family of FAMILIES) {
    stage.listen(stage.net.internet, SERVER[family], ECHO, (peer) => {
      peer.socket.on("data", (bytes: Buffer) => peer.write(bytes));
      peer.socket.once("end", () => peer.finish());
    });
  }
}

async function exchange(peer: Peer): Promise<void> {
  peer.write("ping");
  assert.equal(String(await peer.read(4)), "ping");
}

/** Tunnels of the host's own and of a client's. With TPROXY only the latter outlive the rules. */
async function tunnels(hosts: readonly Host[]): Promise<Peer[]> {
  const all = await Promise.all(hosts.flatMap((host) => FAMILIES.map((family) => connect(host, SERVER[family], ECHO))));
  await Promise.all(all.map(exchange));
  return all;
}

async function unguarded(stage: Stage): Promise<void> {
  await eventually("the guardian has ended", () => guardians(stage).length === 0);
}

function kill(pid: number): void {
  if (existsSync(`/proc/${pid}`)) process.kill(pid, "SIGKILL");
}

/** Somebody's rules in the old tables, too. */
function theirChains(stage: Stage): void {
  const host = stage.net.relay;
  const rules = [
    ["-N", "THEIRS"], ["-A", "THEIRS", "-p", "tcp", "--dport", "9", "-j", "RETURN"], ["-A", "OUTPUT", "-j", "THEIRS"],
  ];
  for (const tool of ["iptables-nft", "iptables-legacy"]) {
    if (rules.some((rule) => host.attempt(tool, rule).status !== 0)) continue;
    stage.finally(() => {
      for (const rule of [["-D", "OUTPUT", "-j", "THEIRS"], ["-F", "THEIRS"], ["-X", "THEIRS"]]) host.attempt(tool, rule);
      if (tool === "iptables-nft") host.attempt("nft", ["delete", "table", "ip", "filter"]);
    });
  }
}

function vandalize(host: Host, backend: Backend, mode: string): void {
  const table = mode === "redirect" ? "nat" : "mangle";
  if (backend === "nft") host.run("nft", ["delete", "table", "inet", "transplice"]);
  else host.run(backend === "iptables" ? "iptables-nft" : backend, ["-t", table, "-F"]);
}

scenario("an upstream that takes no connection is told of after timeouts.dial, whatever its handshake may take", async (stage) => {
  upstream(stage);
  // It hears nothing.
  stage.net.proxy.run("nft", ["-f", "-"], "table inet deaf { chain input { type filter hook input priority 0; tcp dport 1080 drop; }; }\n");
  stage.finally(() => { stage.net.proxy.run("nft", ["delete", "table", "inet", "deaf"]); });
  const relay = await stage.relay(managed("nft", "open", { timeouts: { dial: "200ms", handshake: "1h" } }));
  const waits = await relay.logged("the reason", ({ message }) => message.startsWith("nothing is redirected"));
  assert.equal(waits["error"], `${PROXY[4]}:1080 cannot be connected: ETIMEDOUT`);
  await relay.stop();
});

for (const backend of BACKENDS) {
  for (const mode of ["redirect", "tproxy"] as const) {
    scenario(`${backend}, ${mode}: rules come with the upstream's answer, are mended, drain, and go without a trace`, async (stage) => {
      servers(stage);
      echo(stage);
      touchLegacy(stage);
      for (const tool of ["iptables-legacy", "ip6tables-legacy"]) stage.net.relay.attempt(tool, ["-t", "filter", "-S"]);
      const settings = managed(backend, "open", { mode });
      requireBackend(stage, settings, backend);
      theirs(stage);
      theirChains(stage);
      const before = everything(stage);
      const relay = await stage.relay(settings);
      const waits = await relay.logged("the reason", ({ message }) => message.startsWith("nothing is redirected"));
      assert.equal(waits["error"], `${PROXY[4]}:1080 cannot be connected: ECONNREFUSED`);
      assert.equal(everything(stage), before, "nothing is redirected yet");
      await assertDirect(stage);

      upstream(stage);
      assert.equal((await engaged(relay))["backend"], backend);
      const applied = everything(stage);
      await assertThrough(stage);

      vandalize(stage.net.relay, backend, mode);
      await relay.logged("the repair", ({ message }) => message.startsWith("somebody had changed"));
      assert.equal(everything(stage), applied, "as it was, and theirs beside it");
      await assertThrough(stage);

      const { lan, relay: own } = stage.net;
      const standing = await tunnels(mode === "redirect" ? [own, lan] : [lan]);
      relay.process.signal("SIGTERM");
      await relay.logged("the drain", ({ message }) => message.startsWith("waiting for connections to end"));
      await assertDirect(stage);
      await Promise.all(standing.map(exchange));
      for (const peer of standing) peer.finish();
      assert.equal((await relay.process.exited).code, 0);
      assert.equal(everything(stage), before, "without a trace");
      assert.deepEqual(guardians(stage), []);
    });
  }

  scenario(`${backend}: closed refuses at once, outlives the end, and yields to the next start`, async (stage) => {
    servers(stage);
    echo(stage);
    const settings = managed(backend, "closed");
    const firewall = requireBackend(stage, settings, backend);
    const first = await stage.relay(settings);
    await first.logged("the reason", ({ message }) => message.startsWith("nothing is redirected"));
    await assertDirect(stage);
    const proxy = upstream(stage);
    await engaged(first);
    await assertThrough(stage);
    const standing = await tunnels([stage.net.relay, stage.net.lan]);
    first.process.signal("SIGTERM");
    await first.logged("the drain", ({ message }) => message.startsWith("waiting for connections to end"));
    await assertRefused(stage);
    await Promise.all(standing.map(exchange));
    for (const peer of standing) peer.finish();
    assert.equal((await first.process.exited).code, 0);
    await unguarded(stage);
    await assertRefused(stage);
    assert.match(firewall.status(), new RegExp(`^5 refused \\(${backend}\\)`));

    proxy.close();
    const second = await stage.relay(settings);
    await second.logged("the reason", ({ message }) => message.startsWith("nothing is redirected"));
    await assertRefused(stage);
    upstream(stage);
    await engaged(second);
    await assertThrough(stage);
    assert.equal((await second.stop()).code, 0);
    await assertRefused(stage);
    firewall.run("remove");
    await assertDirect(stage);
  });
}

/** New connections from the host, one after the other, until told to stop: what became of each. */
async function load(stage: Stage, until: () => boolean): Promise<string[]> {
  const seen: string[] = [];
  let isOver = false;
  stage.finally(() => {
    isOver = true;
  });
  while (!until() && !isOver) {
    try {
      const peer = await connect(stage.net.relay, SERVER[4], ECHO);
      peer.write("ping");
      await peer.until("an answer", () => peer.total >= 4 || peer.end !== null);
      seen.push(peer.total >= 4 ? "served" : `${peer.end}`);
      peer.destroy();
    } catch (error) {
      seen.push((error as NodeJS.ErrnoException).code ?? (error as Error).message);
    }
  }
  return seen;
}

for (const policy of ["open", "closed"] as const) {
  for (const [backend, mode] of [...BACKENDS.map((each) => [each, "redirect"] as const), ["nft", "tproxy"] as const]) {
    scenario(`kill -9 of the proxy under load: ${policy}, ${backend}, ${mode}`, async (stage) => {
      servers(stage);
      echo(stage);
      const settings = managed(backend, policy, { mode });
      requireBackend(stage, settings, backend);
      const before = everything(stage);
      upstream(stage);
      const relay = await stage.relay(settings);
      await engaged(relay);
      let over = false;
      const loads = Array.from({ length: 8 }, () => load(stage, () => over));
      await sleep(500);
      process.kill(relay.process.pid, "SIGKILL");
      await unguarded(stage);
      over = true;
      const seen = (await Promise.all(loads)).flat();
      const counts = new Map<string, number>();
      for (const each of seen) counts.set(each, (counts.get(each) ?? 0) + 1);
      stage.note(JSON.stringify([...counts]));
      for (const each of counts.keys()) assert.match(each, /^(served|fin|reset|ECONNREFUSED|ECONNRESET|EPIPE)$/, "nothing hangs");
      if (policy === "open") {
        assert.equal(everything(stage), before, "without a trace");
        await assertDirect(stage);
      } else {
        await assertRefused(stage);
      }
      assert.match(relay.process.output, policy === "open" ? /removed, and connections go direct/ : /connections are refused until/);
    });
  }
}

scenario("kill -9 of the guardian: another takes its place, and does its work", async (stage) => {
  servers(stage);
  const settings = managed("nft", "open");
  requireBackend(stage, settings, "nft");
  const before = everything(stage);
  upstream(stage);
  const relay = await stage.relay(settings);
  await engaged(relay);
  const applied = everything(stage);
  const [first] = guardians(stage);
  kill(first!);
  await relay.logged("the death", ({ message }) => message.startsWith("the guardian"));
  await eventually("there is another", () => guardians(stage).some((pid) => pid !== first));
  assert.equal(everything(stage), applied, "nothing has changed");
  vandalize(stage.net.relay, "nft", "redirect");
  await eventually("it mends", () => everything(stage) === applied);
  await assertThrough(stage);
  process.kill(relay.process.pid, "SIGKILL");
  await unguarded(stage);
  assert.equal(everything(stage), before, "without a trace");
});

/** The proxy and its guardian, so that neither sees the other's end. */
async function killBoth(stage: Stage, { process: { pid, exited } }: Relay): Promise<void> {
  const [guardian] = guardians(stage);
  for (const each of [guardian!, pid]) process.kill(each, "SIGSTOP");
  for (const each of [guardian!, pid]) process.kill(each, "SIGKILL");
  await exited;
}

scenario("kill -9 of both at once: rules stand until the next start, which makes of them what they should be", async (stage) => {
  servers(stage);
  for (const policy of ["open", "closed"] as const) {
    const settings = managed("nft", policy);
    const firewall = requireBackend(stage, settings, "nft");
    const before = everything(stage);
    const proxy = upstream(stage);
    const relay = await stage.relay(settings);
    await engaged(relay);
    await killBoth(stage, relay);
    await assertRefused(stage);
    // What a unit's ExecStopPost does.
    assert.equal(firewall.run("release").status, 0);
    if (policy === "open") assert.equal(everything(stage), before);
    else await assertRefused(stage);
    firewall.run("apply");
    proxy.close();
    const next = await stage.relay(settings);
    await next.logged("the reason", ({ message }) => message.startsWith("nothing is redirected"));
    if (policy === "open") assert.equal(everything(stage), before);
    else assert.match(firewall.status(), /^5 refused/);
    await next.stop();
    firewall.run("remove");
  }
});

scenario("HUP: other settings, another upstream, another port, and no rules at all, under load", async (stage) => {
  servers(stage);
  servers(stage, 81);
  echo(stage);
  const settings = managed("nft", "open");
  requireBackend(stage, settings, "nft");
  const before = everything(stage);
  upstream(stage);
  const relay = await stage.relay(settings);
  await engaged(relay);
  let over = false;
  const loads = Array.from({ length: 4 }, () => load(stage, () => over));

  relay.configure(managed("nft", "open", {}, { exclude_ports: [81] }));
  await relay.reload();
  assert.equal(await way(stage.net.relay, 4, 81), RELAY[4]);
  await assertThrough(stage);

  const second = stage.upstream({ protocol: "socks5", dials: true }, "192.0.2.12");
  relay.configure(managed("nft", "open", { listen: ":1082", proxy_url: second.url(), timeouts: { drain: "5s" } }));
  await relay.reload();
  await assertThrough(stage);
  assert.ok(second.requests.length > 0, "by way of the other upstream");
  assert.match(everything(stage), /192\.0\.2\.12/);

  // What cannot be set is not taken on, and nothing has changed.
  const stands = everything(stage);
  relay.configure(managed("nft", "open", { listen: ":1083" }, { users: ["nobody-such"] }));
  const refusal = await relay.reload(({ message }) => message === "the configuration is not taken on");
  assert.match(String(refusal["error"]), /there is no user nobody-such/);
  assert.equal(everything(stage), stands);
  await assertThrough(stage);
  over = true;
  const seen = new Set((await Promise.all(loads)).flat());
  assert.deepEqual([...seen], ["served"]);

  relay.configure(managed("nft", "open", {}, { manage: false }));
  const standing = await tunnels([stage.net.relay]);
  await relay.reload();
  await assertDirect(stage);
  await Promise.all(standing.map(exchange));
  // When the drain time is over, of the settings before.
  await unguarded(stage);
  assert.equal(everything(stage), before, "without a trace");
  relay.configure(settings);
  await relay.reload(isReloaded);
  await eventually("they come back", () => everything(stage) !== before);
  await eventually("and serve", async () => (await way(stage.net.relay, 4)) === PROXY[4]);
  for (const peer of standing) peer.finish();
  assert.equal((await relay.stop()).code, 0);
  assert.equal(everything(stage), before);
});

scenario("what stood when the rules went leads nobody astray afterwards", async (stage) => {
  const tracked = (): number => FAMILIES.map((family) => stage.net.relay.attempt("conntrack", ["-L", "-f", `ipv${family}`, "-p", "tcp", "--reply-port-src", "1081"]))
    .reduce((sum, { stdout }) => sum + stdout.split("\n").filter((line) => line !== "").length, 0);
  if (stage.net.relay.attempt("conntrack", ["-L"]).status !== 0) stage.skip("conntrack cannot be run here");
  servers(stage);
  echo(stage);
  const settings = managed("nft", "open");
  const firewall = requireBackend(stage, settings, "nft");
  upstream(stage);
  for (const by of ["the guardian", "release"]) {
    const relay = await stage.relay(settings);
    await engaged(relay);
    await tunnels([stage.net.relay, stage.net.lan]);
    assert.equal(tracked(), 2 * FAMILIES.length);
    if (by === "the guardian") kill(relay.process.pid);
    else {
      await killBoth(stage, relay);
      assert.equal(firewall.run("release").status, 0);
    }
    await unguarded(stage);
    assert.equal(tracked(), 0, by);
  }
});

scenario("an upgrade: rules stand without a gap, and the guardian is the successor's", async (stage) => {
  servers(stage);
  echo(stage);
  const settings = managed("nft", "open");
  requireBackend(stage, settings, "nft");
  const before = everything(stage);
  upstream(stage);
  const relay = await stage.relay(settings);
  await engaged(relay);
  const applied = everything(stage);
  const [first] = guardians(stage);
  let over = false;
  let direct = 0;
  stage.finally(() => {
    over = true;
  });
  const watch = (async (): Promise<void> => {
    while (!over) if ((await way(stage.net.relay, 4)) !== PROXY[4]) direct++;
  })();
  const loads = Array.from({ length: 4 }, () => load(stage, () => over));

  // One that does not serve changes nothing.
  relay.configure({ ...settings, listen: ["198.51.100.1:1"] });
  relay.process.signal("SIGUSR2");
  await relay.logged("the failure", ({ message }) => message.includes("does not serve"));
  assert.equal(everything(stage), applied);
  assert.deepEqual(guardians(stage), [first]);

  relay.configure(settings);
  const standing = await tunnels([stage.net.relay]);
  relay.process.signal("SIGUSR2");
  const { successor } = await relay.logged("a successor", ({ message }) => message.includes("has taken over"));
  stage.finally(() => kill(Number(successor)));
  await eventually("the old guardian has ended", () => !guardians(stage).includes(first!));
  assert.equal(guardians(stage).length, 1);
  await sleep(1000);
  over = true;
  await watch;
  assert.equal(direct, 0, "nobody went direct");
  assert.deepEqual([...new Set((await Promise.all(loads)).flat())], ["served"]);
  await Promise.all(standing.map(exchange));
  for (const peer of standing) peer.finish();
  await eventually("the old process has ended", () => !existsSync(`/proc/${relay.process.pid}`));
  assert.equal(everything(stage), applied);
  vandalize(stage.net.relay, "nft", "redirect");
  await eventually("the successor's guardian mends them", () => everything(stage) === applied);

  kill(Number(successor));
  await unguarded(stage);
  assert.equal(everything(stage), before, "without a trace");
});

for (const [name, listen, family] of [["IPv4", "127.0.0.1:1081", 4], ["IPv6", "[::1]:1081", 6]] as const) {
  scenario(`${name} only: the other family goes its own way`, async (stage) => {
    if (!FAMILIES.includes(family)) stage.skip("this kernel has no IPv6");
    servers(stage);
    for (const backend of BACKENDS) {
      const settings = managed(backend, "closed", { listen }, { interfaces: [] });
      const firewall = requireBackend(stage, settings, backend);
      const proxy = upstream(stage);
      const relay = await stage.relay(settings);
      await engaged(relay);
      for (const each of FAMILIES) assert.equal(await way(stage.net.relay, each), each === family ? PROXY[each] : RELAY[each]);
      process.kill(relay.process.pid, "SIGKILL");
      await unguarded(stage);
      for (const each of FAMILIES) {
        const { status } = await curl(stage.net.relay, `http://${text(SERVER[each], 80)}/`);
        assert.equal(status, each === family ? 7 : 0, `${backend}, IPv${each}`);
      }
      firewall.run("remove");
      proxy.close();
    }
  });
}

scenario("a user of its own, with CAP_NET_ADMIN and nothing else, and so its guardian", async (stage) => {
  if (unprivileged()) stage.skip("in a user namespace there is only one user");
  servers(stage);
  for (const backend of ["nft", "iptables"] as const) {
    const settings = managed(backend, "open", { user: "nobody" });
    requireBackend(stage, settings, backend);
    const before = everything(stage);
    const proxy = upstream(stage);
    const relay = await stage.relay(settings);
    await engaged(relay);
    await assertThrough(stage);
    const [guardian] = guardians(stage);
    assert.match(readFileSync(`/proc/${guardian}/status`, "utf8"), /^Uid:\s65534\s/m);
    vandalize(stage.net.relay, backend, "redirect");
    await relay.logged("the repair", ({ message }) => message.startsWith("somebody had changed"));
    process.kill(relay.process.pid, "SIGKILL");
    await unguarded(stage);
    assert.equal(everything(stage), before, "without a trace");
    proxy.close();
  }
});

scenario("a process that may not, and a host that cannot, say so at the start", async (stage) => {
  const start = async (settings: Settings, ...command: string[]): Promise<string> => {
    const relay = stage.relayStarting(settings, { command });
    assert.equal((await relay.process.exited).code, 1);
    return String(relay.log().at(-1)?.["error"]);
  };
  const without = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"];
  assert.match(await start(managed("auto", "open", { user: "root" }), ...without), /CAP_NET_ADMIN/);
  assert.match(await start(managed("auto", "open"), ...hostWithout(/nft|tables/)), /^firewall: there is no nft and no iptables here; run: apt-get install nftables/);
  assert.match(await start(managed("nft", "open"), ...hostWithout(/nft/)), /^firewall: no backend works here: nft is not installed/);
  assert.deepEqual(guardians(stage), []);
});

let withouts = 0;

/** What starts a program on a host that lacks such tools: in a mount namespace, /usr/sbin has the others only, and scripts. */
function hostWithout(tools: RegExp, scripts: Readonly<Record<string, string>> = {}): string[] {
  const [real, fake] = [`${PRIVATE}/sbin`, `${PRIVATE}/sbin-${withouts++}`];
  mkdirSync(fake);
  if (!existsSync(real)) {
    mkdirSync(real);
    execFileSync("mount", ["--bind", "/usr/sbin", real]);
  }
  for (const name of readdirSync(real)) if (!tools.test(name)) symlinkSync(`${real}/${name}`, `${fake}/${name}`);
  for (const [name, script] of Object.entries(scripts)) writeFileSync(`${fake}/${name}`, script, { mode: 0o755 });
  return ["unshare", "--mount", "sh", "-c", `mount --bind ${fake} /usr/sbin && exec "$@"`, "sh"];
}

scenario("rules that somebody takes away before they are listed come back, and are not told of before", async (stage) => {
  servers(stage);
  const settings = managed("nft", "open");
  requireBackend(stage, settings, "nft");
  upstream(stage);
  const armed = `${PRIVATE}/armed`;
  writeFileSync(armed, "");
  // In the place of nft: once, when it has set rules, they are gone.
  const command = hostWithout(/^nft$/, {
    nft: `#!/bin/sh
      ${PRIVATE}/sbin/nft "$@" || exit
      [ "$1" = -f ] && rm ${armed} 2>/dev/null && ${PRIVATE}/sbin/nft delete table inet transplice
      exit 0
    `,
  });
  const relay = await stage.relay(settings, { command });
  await engaged(relay);
  assert.ok(!existsSync(armed), "they were taken away");
  await assertThrough(stage);
  vandalize(stage.net.relay, "nft", "redirect");
  await relay.logged("the repair", ({ message }) => message.startsWith("somebody had changed"));
  await assertThrough(stage);
});

for (const [name, lacking, expected] of [
  ["its iptables is the legacy one, and there is no nft", /nft/, "iptables-legacy"],
  ["it has nft and no iptables", /tables/, "nft"],
  ["its iptables speaks to nf_tables, and there is no nft", /^nft$|legacy/, "iptables"],
] as const) {
  scenario(`a host of which ${name}: auto finds what works`, async (stage) => {
    servers(stage);
    const settings = managed("auto", "closed");
    const firewall = requireBackend(stage, settings, expected);
    upstream(stage);
    const relay = await stage.relay(settings, { command: hostWithout(lacking) });
    assert.equal((await engaged(relay))["backend"], expected);
    await assertThrough(stage);
    process.kill(relay.process.pid, "SIGKILL");
    await unguarded(stage);
    await assertRefused(stage);
    assert.match(firewall.status(), new RegExp(`^5 refused \\(${expected}\\)`));
  });
}
