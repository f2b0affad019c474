/**
 * The commands that ask the running program, as an operator types them: tunnels, close, drain, trace;
 * and redsocks' list of clients at USR1.
 */
import { strict as assert } from "node:assert";
import { writeFileSync } from "node:fs";
import { ADMIN_PORT, Asker, TOKEN } from "./admin.ts";
import { BLACK_HOLE, PROXY, SERVER } from "./network.ts";
import { connect, eventually, type Peer, sleep, text } from "./actors.ts";
import type { Process } from "./process.ts";
import { entriesOf, MAIN, type Relay, type Settings } from "./relay.ts";
import { PRIVATE } from "./sandbox.ts";
import { scenario, type Stage } from "./scenario.ts";
import { codeOf } from "./socks.ts";

const ADMIN = { listen: `127.0.0.1:${ADMIN_PORT}`, token: TOKEN };
const UPSTREAM = text(PROXY[4], 1080);
/** Longer than a client of the endpoint waits for a sign of life. */
const LONG_SILENCE_MS = 11_000;

async function setting(stage: Stage, more: Settings = {}): Promise<Relay> {
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  stage.upstream({ protocol: "socks5", echoes: true });
  return stage.relay({ listen: "localhost:1081", workers: 2, proxy_url: `socks5://${UPSTREAM}`, admin: ADMIN, ...more });
}

const typed = (stage: Stage, file: string, ...words: string[]): Process =>
  stage.spawn(stage.net.relay, process.execPath, MAIN, ...words, "-f", file);

/** Exit code, and all it said. */
async function said(stage: Stage, file: string, ...words: string[]): Promise<[number | null, string]> {
  const command = typed(stage, file, ...words);
  const { code } = await command.exited;
  return [code, command.output];
}

async function tunnel(stage: Stage, port = 80): Promise<Peer> {
  const peer = await connect(stage.net.relay, SERVER[4], port);
  peer.write("ping");
  await peer.read(4);
  return peer;
}

scenario("tunnels and close, as they are typed", async (stage) => {
  const { file } = await setting(stage);
  const [one, other] = [await tunnel(stage, 81), await tunnel(stage, 82)];
  // A worker counts what it has passed on, which may have been heard before.
  let [code, list]: [number | null, string] = [null, ""];
  await eventually("all is counted", async () => {
    [code, list] = await said(stage, file, "tunnels");
    return code !== 0 || (list.match(/ 4B +4B /g) ?? []).length === 2;
  });
  assert.equal(code, 0, list);
  assert.match(list, /2 connections\n$/);
  const line = list.split("\n").find((each) => each.includes(one.local))!;
  assert.match(line, /^[0-9a-f-]{36} relay .* 4B +4B /);
  assert.ok(line.includes(text(SERVER[4], 81)) && line.includes(UPSTREAM), line);
  assert.match((await said(stage, file, "tunnels", ":82"))[1], /1 connection\n$/);
  assert.match((await said(stage, file, "tunnels", `client=${one.local}`, "state=relay"))[1], /1 connection\n$/);
  const [, json] = await said(stage, file, "tunnels", "--json", ":81");
  const { id } = JSON.parse(json) as { id: string };
  assert.deepEqual(await said(stage, file, "close", id), [0, `closed ${id}\n`]);
  assert.equal(await one.ending(), "reset");
  const [again, why] = await said(stage, file, "close", id);
  assert.equal(again, 1);
  assert.match(why, /^transplice: there is no connection /);
  other.write("ping");
  await other.read(4);
  const [wrong, what] = await said(stage, file, "tunnels", "state=asleep");
  assert.equal(wrong, 1);
  assert.match(what, /^transplice: state: found "asleep"; allowed: front, dial/);
});

scenario("commands say what stands in their way", async (stage) => {
  const relay = await setting(stage, { admin: { listen: ADMIN.listen } });
  const [code, why] = await said(stage, relay.file, "drain", UPSTREAM);
  assert.equal(code, 1);
  assert.match(why, /takes a token, and the configuration has none: set \[admin\] token/);
  const off = `${PRIVATE}/off.toml`;
  writeFileSync(off, 'proxy_url = "direct:"\n');
  assert.match((await said(stage, off, "tunnels"))[1], /no admin endpoint; .*\[admin\]/);
  await relay.stop();
  const [gone, nobody] = await said(stage, relay.file, "tunnels");
  assert.equal(gone, 1);
  assert.match(nobody, /127\.0\.0\.1:9181: nobody is there; does transplice run/);
});

interface Step {
  readonly id: string;
  readonly step: string;
  readonly at: number;
  readonly seconds: number;
  readonly [field: string]: unknown;
}

/** A trace that is on, and its steps so far. */
async function follow(stage: Stage, file: string, ...words: string[]): Promise<{ steps: () => Step[]; process: Process }> {
  const process = typed(stage, file, "trace", "--json", ...words);
  await eventually("it follows", () => process.output.includes("following connections"));
  const steps = (): Step[] => entriesOf(process.output) as unknown as Step[];
  return { process, steps };
}

const names = (steps: readonly Step[]): string[] => steps.map(({ step }) => step);

scenario("trace: every step of the connections that are asked for, and of no other", async (stage) => {
  const { file } = await setting(stage);
  const { steps, process } = await follow(stage, file, text(SERVER[4], 85));
  const [followed, other] = [await tunnel(stage, 85), await tunnel(stage, 86)];
  const client = followed.local;
  followed.finish();
  await followed.rest();
  other.finish();
  await other.rest();
  await eventually("its end is told", () => names(steps()).includes("ended"));
  const all = steps();
  assert.deepEqual(names(all).filter((step) => !step.startsWith("fin-")), [
    "accepted", "destination", "dial", "connected", "handshake-done", "first-byte-up", "first-byte-down", "ended",
  ]);
  assert.ok(names(all).includes("fin-up"));
  assert.equal(new Set(all.map(({ id }) => id)).size, 1);
  const field = (step: string, name: string): unknown => all.find((each) => each.step === step)?.[name];
  assert.deepEqual(
    [field("accepted", "client"), field("destination", "destination"), field("dial", "to"), field("ended", "reason"), field("ended", "bytes_up")],
    [client, text(SERVER[4], 85), UPSTREAM, "finished", 4],
  );
  assert.ok(all.every(({ at, seconds }, i) => i === 0 || (at >= all[i - 1]!.at && seconds >= all[i - 1]!.seconds)));
  assert.ok(Math.abs(all[0]!.at - Date.now() / 1000) < 600, "its times are Unix times");
  process.signal("SIGINT");
  assert.equal((await process.exited).code, 0, process.output);
});

scenario("trace: a client's, a name's, and what fails; five at once are too many, and a stop ends them", async (stage) => {
  const relay = await setting(stage, {
    incoming: { port: 1085, addresses: ["127.0.0.1"] },
    outgoing: { allow_networks: ["192.0.2.0/24"] },
    timeouts: { dial: "1s" },
  });
  const { file } = relay;
  const byClient = await follow(stage, file, "from=127.0.0.1");
  const byNetwork = await follow(stage, file, "192.0.2.64/26");
  const byName = await follow(stage, file, ".nowhere.example");
  const ask = (to: string): Promise<number> => codeOf(stage.net.relay, text("127.0.0.1", 1085), { to, port: 80 });
  await ask(BLACK_HOLE[4]);
  await ask("www.nowhere.example");
  await eventually("both ends are told", () => names(byClient.steps()).filter((step) => step === "ended").length === 2);
  await eventually("the name's end is told", () => names(byName.steps()).includes("ended"));
  await eventually("the network's end is told", () => names(byNetwork.steps()).includes("ended"));
  assert.deepEqual(names(byNetwork.steps()), ["accepted", "destination", "dial", "dial-failed", "ended"]);
  assert.match(String(byNetwork.steps().find(({ step }) => step === "dial-failed")!["error"]), /timed out/);
  assert.deepEqual(byName.steps().map(({ step, name, reason }) => [step, name ?? reason]), [
    ["accepted", undefined], ["destination", "www.nowhere.example"], ["ended", byName.steps().at(-1)!["reason"]],
  ]);
  assert.match(String(byName.steps().at(-1)!["reason"]), /^name-/);
  await follow(stage, file, ":9999");
  const asker = new Asker(stage.net.relay);
  assert.equal((await asker.get("/trace?to=:1")).status, 503);
  assert.equal((await asker.get("/trace")).status, 400);
  assert.equal((await asker.get("/trace?to=a%20b")).status, 400);
  assert.equal((await asker.get("/trace?two=:80")).status, 400);
  await relay.stop();
  assert.deepEqual([(await byClient.process.exited).code, /the process stops/.test(byClient.process.output)], [1, true]);
});

scenario("trace: whoever waits for a connection is told of it, however late it comes", async (stage) => {
  const { file } = await setting(stage);
  const { steps, process } = await follow(stage, file, text(SERVER[4], 85));
  await sleep(LONG_SILENCE_MS);
  await tunnel(stage, 85);
  await eventually("it is told", () => names(steps()).includes("first-byte-down"));
  process.signal("SIGINT");
  assert.equal((await process.exited).code, 0, process.output);
});

scenario("as redsocks, USR1 lists the clients in the log", async (stage) => {
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  stage.upstream({ protocol: "socks5", echoes: true });
  const file = `${PRIVATE}/redsocks.conf`;
  writeFileSync(file, `
    base { log_info = on; log = stderr; daemon = off; redirector = iptables; }
    redsocks { local_ip = 127.0.0.1; local_port = 1081; ip = ${PROXY[4]}; port = 1080; type = socks5; }
  `);
  const program = stage.spawn(stage.net.relay, process.execPath, MAIN, "as", "redsocks", "-c", file);
  await eventually("it is ready", () => program.output.includes("is ready"));
  const peers = await Promise.all([81, 82, 83].map((port) => tunnel(stage, port)));
  // A worker counts what it has passed on, which may have been heard before.
  let lines: string[] = [];
  await eventually("all is counted", async () => {
    const before = program.output.length;
    program.signal("SIGUSR1");
    await eventually("the list is whole", () => /clients.* count=3/.test(program.output.slice(before)));
    lines = program.output.slice(before).split("\n").filter((line) => /"client" /.test(line));
    return lines.every((line) => /rx_bytes=4 .* tx_bytes=4/.test(line));
  });
  assert.equal(lines.length, 3, program.output);
  for (const [i, peer] of peers.entries()) {
    const line = lines.find((each) => each.includes(`client_addr="${peer.local}"`));
    assert.match(line ?? "", new RegExp(`dest_addr="${text(SERVER[4], 81 + i).replaceAll(".", "\\.")}".*rx_bytes=4 .*state="relay" tx_bytes=4`));
  }
  assert.deepEqual(entriesOf(program.output), [], "its log is in words, not in JSON");
});
