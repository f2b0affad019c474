/**
 * The sandbox itself: the scenarios stand on it.
 */
import { strict as assert } from "node:assert";
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { connect, sleep } from "./actors.ts";
import { BACKENDS } from "./firewall.ts";
import { FAMILIES, LAN, PROXY, RELAY, SERVER } from "./network.ts";
import { haveIPv6, PRIVATE } from "./sandbox.ts";
import { scenario } from "./scenario.ts";

scenario("the kernel has IPv6", async (stage) => {
  if (!haveIPv6()) stage.skip("it has not: all scenarios of IPv6 are left out");
});

for (const family of FAMILIES) {
  scenario(`IPv${family}: a connection comes from the host that made it`, async (stage) => {
    const { internet, relay, proxy } = stage.net;
    const server = stage.listen(internet, SERVER[family], 7000);
    // At the same moment, so that one could be taken for the other.
    const both = await Promise.all(
      [relay, proxy].map((host) => connect(host, SERVER[family], 7000)),
    );
    const peers = [await server.accept(), await server.accept()].map(
      (peer) => peer.socket.remoteAddress,
    );
    assert.deepEqual(peers.sort(), [RELAY[family], PROXY[family]].sort());
    for (const peer of both) peer.destroy();
  });

  scenario(`IPv${family}: a program runs on the host that started it`, async (stage) => {
    const { lan } = stage.net;
    const addresses = lan.run("ip", ["address", "show"]);
    assert.match(addresses, new RegExp(`${LAN[family]}/`));
  });

  for (const backend of BACKENDS) {
    scenario(`IPv${family}: ${backend} redirects, counts and forgets`, async (stage) => {
      const { relay } = stage.net;
      const what = {
        mode: "redirect",
        from: "local",
        port: 1081,
        destinations: [SERVER[family]],
      } as const;
      const rules = stage.intercept(what, backend);
      const listener = stage.listen(relay, family === 4 ? "127.0.0.1" : "::1", 1081);
      const client = await connect(relay, SERVER[family], 80);
      await listener.accept();
      assert.equal(rules.packets(), 1);
      client.destroy();
    });
  }
}

scenario("an end is told from a reset, and no byte before either is lost", async (stage) => {
  const { internet, relay } = stage.net;
  const server = stage.listen(internet, SERVER[4], 7001);
  for (const end of ["fin", "reset"] as const) {
    const client = await connect(relay, SERVER[4], 7001);
    const peer = await server.accept();
    peer.write("x".repeat(1_000));
    await sleep(20);
    if (end === "fin") peer.finish();
    else peer.reset();
    // Our own loop reads only now: it finds all of it at once.
    const until = Date.now() + 50;
    while (Date.now() < until);
    const rest = await client.rest();
    assert.deepEqual({ bytes: rest.data.length, end: rest.end }, { bytes: 1_000, end });
    client.destroy();
  }
});

scenario("nothing of the host is touched", async () => {
  assert.ok(existsSync(PRIVATE));
  const networks = execFileSync("ip", ["-brief", "link"], { encoding: "utf8" });
  assert.doesNotMatch(networks, /eth0/);
  assert.equal(process.pid < 100, true, "a process-id namespace of our own");
});
