/**
 * connect.learn: what has failed is rejected at the next SYN, by the kernel, with the error that fits,
 * until its time is over or a connection succeeds. For programs of the host and for routed clients.
 */
import { strict as assert } from "node:assert";
import { connect, eventually, type Peer, sleep, text } from "./actors.ts";
import { dmz, egress, NOWHERE, PORT } from "./dmz.ts";
import { FAMILIES, PROXY, SERVER } from "./network.ts";
import { Firewall, MARK } from "./rules.ts";
import { scenario, type Stage } from "./scenario.ts";
import type { Host } from "./sandbox.ts";
import { greeting } from "./socks.ts";

/** connect()'s errno; or "success", where a reset then comes of it. */
const outcome = async (from: Host, to: string, port: number): Promise<string> =>
  connect(from, to, port).then(async (peer) => {
    assert.equal(await peer.ending(), "reset");
    return "success";
  }, ({ code }: NodeJS.ErrnoException) => code ?? "");

const learnt = (stage: Stage): string =>
  FAMILIES.map((family) => stage.net.relay.run("nft", ["list", "map", "inet", "transplice", `learnt${family}`])).join("");

const place = (to: string, port: number): string => `${to} . ${port} `;

function firewallOf(stage: Stage, settings: ConstructorParameters<typeof Firewall>[1]): Firewall {
  const firewall = new Firewall(stage, settings);
  firewall.apply("nft");
  return firewall;
}

for (const mode of ["redirect", "tproxy"] as const) {
  scenario(`${mode}: the second connect() to what has failed says why, and then the kernel forgets`, async (stage) => {
    dmz(stage.net);
    const settings = {
      listen: ":1081", proxy_url: `socks5://${PROXY[4]}:${PORT}`, mode, mark: MARK,
      connect: { learn: true, learn_for: "20s", trust: "transplice" },
      firewall: { interfaces: ["inner"], include: ["0.0.0.0/0", "::/0"] },
    };
    const firewall = firewallOf(stage, settings);
    await egress(stage);
    await stage.relay(settings);
    const destinations = FAMILIES.flatMap((family) => [
      { to: SERVER[family], port: 81, errno: "ECONNREFUSED", chain: "refused" },
      { to: NOWHERE.unreachable[family], port: 80, errno: "EHOSTUNREACH", chain: "host_unreachable" },
      { to: NOWHERE.noRoute[family], port: 80, errno: "ENETUNREACH", chain: "net_unreachable" },
      { to: NOWHERE.prohibited[family], port: 80, errno: family === 4 ? "EHOSTUNREACH" : "EACCES", chain: "not_allowed" },
    ]);
    for (const [client, beyond] of [[stage.net.lan, 0], [stage.net.relay, 100]] as const) {
      await Promise.all(destinations.map(async ({ to, port: base, errno, chain }) => {
        const port = base + beyond;
        const where = `${text(to, port)} from ${client.name}`;
        assert.equal(await outcome(client, to, port), "success", where);
        await eventually(`${where} is learnt`, () => learnt(stage).includes(place(to, port)));
        assert.match(learnt(stage), new RegExp(`${place(to, port)}timeout 20s expires \\S+ : goto learnt_${chain}`));
        assert.equal(await outcome(client, to, port), errno, where);
      }));
      assert.match(firewall.status(), /^0 engaged/, "what is learnt is no rule");
    }
    await eventually("all is forgotten", () => !learnt(stage).includes("elements"));
    const { to, port } = destinations[0]!;
    assert.equal(await outcome(stage.net.lan, to, port), "success", "as at first");
  });
}

scenario("a connection that succeeds ends it before its time", async (stage) => {
  const { relay: client, proxy } = stage.net;
  const [to, port] = [SERVER[4], 80];
  const settings = {
    proxy_url: `socks5://${PROXY[4]}:${PORT}`, mark: MARK, connect: { learn: true, learn_for: "1m" }, timeouts: { handshake: "1h" },
    // It learns what is not logged, too.
    log: { level: "error" },
  };
  // The first is kept waiting for its answer, and all others are refused.
  const kept: Peer[] = [];
  stage.listen(proxy, PROXY[4], PORT, (peer) => void (async () => {
    await peer.read(greeting(0).length);
    peer.write(Uint8Array.of(5, 0));
    await peer.read(10);
    if (kept.length === 0) kept.push(peer);
    else peer.finish(Uint8Array.of(5, 5, 0, 1, 0, 0, 0, 0, 0, 0));
  })().catch(() => {}));
  firewallOf(stage, settings);
  const relay = stage.relayStarting(settings);
  await eventually("it listens", async () => {
    if (relay.process.exit !== null) throw new Error("it has ended");
    return client.run("ss", ["-Hltn", "sport", "=", ":1081"]) !== "";
  });
  const first = await connect(client, to, port);
  await eventually("the first waits", () => kept.length === 1);
  assert.equal(await outcome(client, to, port), "success");
  await eventually("it is learnt", () => learnt(stage).includes(place(to, port)));
  assert.equal(await outcome(client, to, port), "ECONNREFUSED");
  kept[0]!.write(Uint8Array.of(5, 0, 0, 1, 0, 0, 0, 0, 0, 0));
  await eventually("it is forgotten", () => !learnt(stage).includes(place(to, port)));
  assert.equal(await outcome(client, to, port), "success");
  first.destroy();
});

scenario("rules that are managed stay as they are while something is learnt", async (stage) => {
  const upstream = stage.upstream({ protocol: "socks5", refuse: 5 });
  const relay = await stage.relay({
    proxy_url: upstream.url(), mark: MARK, connect: { learn: true, learn_for: "1m" },
    firewall: { manage: true, backend: "nft" },
  });
  const managed = ({ message }: { message: string }): boolean => /firewall|rules/.test(message);
  await eventually("the rules stand", () => stage.net.relay.attempt("nft", ["list", "map", "inet", "transplice", "learnt4"]).status === 0);
  await eventually("they are known", () => relay.log().some(managed));
  assert.equal(await outcome(stage.net.relay, SERVER[4], 80), "success");
  await eventually("it is learnt", () => learnt(stage).includes(place(SERVER[4], 80)));
  const before = relay.log().filter(managed).length;
  // The guardian looks when a table changes, and now and then.
  await sleep(3000);
  assert.ok(learnt(stage).includes(place(SERVER[4], 80)), "it is still there");
  assert.deepEqual(relay.log().filter(managed).slice(before), []);
  assert.equal(await outcome(stage.net.relay, SERVER[4], 80), "ECONNREFUSED");
});

scenario("rules that are set anew have forgotten it: who fails again is learnt again", async (stage) => {
  stage.upstream({ protocol: "socks5", refuse: 5 }, PROXY[4], PORT);
  const settings = { proxy_url: `socks5://${PROXY[4]}:${PORT}`, mark: MARK, connect: { learn: true, learn_for: "1m" } };
  const firewall = firewallOf(stage, settings);
  await stage.relay(settings);
  assert.equal(await outcome(stage.net.relay, SERVER[4], 80), "success");
  await eventually("it is learnt", () => learnt(stage).includes(place(SERVER[4], 80)));
  firewall.apply("nft");
  assert.ok(!learnt(stage).includes("elements"), "the maps are new");
  await eventually("it is learnt again", async () => (await outcome(stage.net.relay, SERVER[4], 80)) === "ECONNREFUSED");
});

scenario("what the upstream says nothing of is not learnt, nor is anything without rules; that is said", async (stage) => {
  const settings = { proxy_url: `socks5://${PROXY[4]}:${PORT}`, mark: MARK, connect: { learn: true } };
  const rules = firewallOf(stage, settings);
  const relay = await stage.relay(settings);
  assert.equal(await outcome(stage.net.relay, SERVER[4], 80), "success");
  const ended = await relay.logged("the end", (entry) => entry["reason"] === "dial-failed");
  assert.equal(ended["cause"], undefined);
  await sleep(500);
  assert.ok(!learnt(stage).includes("elements"), "an upstream that is down");
  rules.run("remove");
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  stage.upstream({ protocol: "socks5", refuse: 5 }, PROXY[4], PORT);
  assert.equal(await outcome(stage.net.relay, SERVER[4], 80), "success");
  const said = await relay.logged("the warning", (entry) => /connect\.learn/.test(entry.message));
  assert.match(String(said["remedy"]), /transplice firewall apply/);
});

for (const backend of ["iptables", "iptables-legacy"]) {
  scenario(`with ${backend} it is said that nft is needed`, async (stage) => {
    const firewall = new Firewall(stage, { proxy_url: `socks5://${PROXY[4]}:${PORT}`, mark: MARK, connect: { learn: true } });
    for (const action of ["apply", "print"]) {
      const { status, stderr } = firewall.run(action, "--backend", backend);
      assert.equal(status, 1);
      assert.match(stderr, /connect\.learn needs nft: set backend = "nft" in \[firewall\]/);
    }
  });
}
