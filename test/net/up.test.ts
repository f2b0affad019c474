/**
 * `transplice up`: one command redirects a host, says what it carries, and at Ctrl-C, whenever that
 * comes, leaves the host as it was.
 */
import { strict as assert } from "node:assert";
import { connect, eventually, sleep, text } from "./actors.ts";
import { guardians } from "./guardians.ts";
import { FAMILIES, PROXY, RELAY, SERVER } from "./network.ts";
import type { Process } from "./process.ts";
import { MAIN } from "./relay.ts";
import { everything, servers, theirs } from "./rules.ts";
import { unprivileged } from "./sandbox.ts";
import { scenario, type Stage } from "./scenario.ts";
import { visit } from "./web.ts";

const ENGAGED = /^connections \d+ {2}active \d+ {2}in .*\/s {2}out .*\/s {2}failed \d+$/m;

function up(stage: Stage, ...words: string[]): Process {
  return stage.keep(stage.net.relay.spawn(process.execPath, [MAIN, "up", ...words], { env: { ...process.env, NODE_OPTIONS: "" } }));
}

async function way(stage: Stage, family: 4 | 6): Promise<string> {
  return (await visit(stage.net.relay, `http://${text(SERVER[family], 80)}/`)).peer;
}

/** As a terminal does it: to the whole process group. */
function interrupt(program: Process): void {
  process.kill(-program.pid, "SIGINT");
}

async function assertGone(stage: Stage, before: string): Promise<void> {
  await eventually("no process is left", () => guardians(stage).length === 0);
  assert.equal(everything(stage), before, "as it was");
}

scenario("up with an upstream: traffic goes there, the lines say so, and Ctrl-C undoes it", async (stage) => {
  servers(stage);
  theirs(stage);
  const before = everything(stage);
  const program = up(stage, `socks5://${PROXY[4]}:1080`);
  await program.says(/connections 0 .*\(nothing is redirected: the upstream does not answer: .*ECONNREFUSED/);
  assert.equal(await way(stage, 4), RELAY[4]);
  stage.upstream({ protocol: "socks5", dials: true });
  await program.says(ENGAGED);
  for (const family of FAMILIES) assert.equal(await way(stage, family), PROXY[family]);
  await program.says(new RegExp(`^connections ${FAMILIES.length} `, "m"));
  interrupt(program);
  assert.equal((await program.exited).code, 0);
  await assertGone(stage, before);
  assert.equal(await way(stage, 4), RELAY[4]);
});

scenario("up alone: the whole chain on this host", async (stage) => {
  servers(stage);
  const before = everything(stage);
  const program = up(stage);
  await program.says(ENGAGED);
  // By itself, and so from this host's own address; but its connections are counted.
  for (const family of FAMILIES) assert.equal(await way(stage, family), RELAY[family]);
  await program.says(new RegExp(`^connections ${FAMILIES.length}  active \\d+ .* failed 0$`, "m"));
  await assert.rejects(visit(stage.net.relay, "http://198.51.100.200:81/"));
  await program.says(/ failed 1$/m);
  const listing = stage.net.relay.run("nft", ["list", "ruleset"]);
  assert.match(listing, /meta mark 0x00001081 return/, "its own connections are exempt");
  interrupt(program);
  assert.equal((await program.exited).code, 0);
  await assertGone(stage, before);
});

scenario("up with a file, whose policy counts while it runs and not at its end; a connection that stands may end", async (stage) => {
  servers(stage);
  const before = everything(stage);
  const upstream = stage.upstream({ protocol: "socks5", echoes: true });
  const file = `${process.env["TMPDIR"] ?? "/tmp"}/up.toml`;
  stage.net.relay.run("sh", ["-c", `cat > ${file}`], `proxy_url = "${upstream.url()}"\nlisten = "127.0.0.1:1099"\n[timeouts]\ndrain = "1h"\n[firewall]\non_failure = "closed"\nports = [7]\n`);
  const program = up(stage, "-f", file);
  await program.says(ENGAGED);
  assert.equal(await way(stage, 4), RELAY[4], "another port");
  const peer = await connect(stage.net.relay, SERVER[4], 7);
  peer.write("ping");
  await peer.read(4);
  interrupt(program);
  await eventually("new ones go direct", () => !/redirect/.test(everything(stage)));
  peer.write("pong");
  assert.equal(String(await peer.read(4)), "pong", "what stands goes on for a while");
  peer.finish();
  assert.equal((await program.exited).code, 0);
  await assertGone(stage, before);
});

scenario("Ctrl-C at any moment leaves nothing behind, and so does kill -9", async (stage) => {
  const before = everything(stage);
  stage.upstream({ protocol: "socks5", dials: true });
  for (const afterMs of [0, 100, 200, 300, 400, 500, 600, 800, 1000, 1300, 1600]) {
    const program = up(stage, `socks5://${PROXY[4]}:1080`);
    await sleep(afterMs);
    interrupt(program);
    const { code, signal } = await program.exited;
    assert.ok(code === 0 || signal === "SIGINT", `${afterMs} ms: ${code} ${signal}\n${program.output}`);
    await assertGone(stage, before);
  }
  const program = up(stage, `socks5://${PROXY[4]}:1080`);
  await program.says(ENGAGED);
  process.kill(-program.pid, "SIGKILL");
  await program.exited;
  await assertGone(stage, before);
});

scenario("what stands in the way is one clear error, with what to run", async (stage) => {
  const attempt = (command: readonly string[]): string => {
    const { status, stdout, stderr } = stage.net.relay.attempt(command[0]!, command.slice(1));
    assert.equal(status, 1, stderr);
    assert.equal(stdout, "");
    assert.equal(stderr.trimEnd().split("\n").length, 1, stderr);
    return stderr;
  };
  if (!unprivileged()) {
    const nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", process.execPath, MAIN, "up"];
    assert.match(attempt(nobody), /^transplice up: this needs CAP_NET_ADMIN.*; run: sudo transplice up$/m);
  }
  const bare = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /usr/sbin && exec "$@"', "sh", process.execPath, MAIN, "up"];
  assert.match(attempt(bare), /^transplice up: firewall: there is no nft and no iptables here; run: apt-get install nftables/);
  assert.match(attempt([process.execPath, MAIN, "up", "sox://192.0.2.1:1"]), /^UPSTREAM: sox:\/\/ is not supported; allowed: socks5:/);
});
