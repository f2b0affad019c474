/**
 * Connections get from the firewall into the relay, and the relay knows where they wanted to go:
 * REDIRECT and TPROXY, programs of the host and routed clients, all dialects of rules, both
 * families. curl is the client; the web server says who came to it.
 */
import { strict as assert } from "node:assert";
import { connect, text } from "./actors.ts";
import { BACKENDS, INTERNET } from "./firewall.ts";
import { FAMILIES, LAN, PROXY, RELAY, SERVER } from "./network.ts";
import type { Relay } from "./relay.ts";
import { scenario, type Stage } from "./scenario.ts";
import { visit, webServer } from "./web.ts";

function webServers(stage: Stage): void {
  for (const family of FAMILIES) {
    const server = webServer(stage.net.internet, SERVER[family], 80);
    stage.finally(() => {
      server.closeAllConnections();
      server.close();
    });
  }
}

/** Both lines that the log has of a connection, and that they agree with what happened. */
async function assertLogged(relay: Relay, destination: string, client: string): Promise<void> {
  const ended = await relay.ended(destination);
  const started = relay
    .log()
    .find(
      (entry) => entry.message === "proxy starts" && entry["request_id"] === ended["request_id"],
    );
  assert.ok(started !== undefined, "the log has the start of the connection");
  assert.equal(started["dest_addr"], destination);
  assert.ok(ended.client_addr.startsWith(client.replace(/:\d+$/, "")), ended.client_addr);
  assert.ok(
    ended.tx_bytes > 50 && ended.rx_bytes > 50,
    `${ended.tx_bytes}, ${ended.rx_bytes} bytes`,
  );
  assert.equal(ended.reason, "finished");
}

const LISTEN = {
  // A redirect goes to loopback for the host's own programs, and to the address of the interface
  // on which a routed client's packets came; our TPROXY rules name loopback for both.
  "redirect local": "localhost:1081",
  "redirect routed": ["10.7.0.1:1081", "[fd07::1]:1081"],
  "tproxy local": "localhost:1081",
  "tproxy routed": "localhost:1081",
} as const;

for (const mode of ["redirect", "tproxy"] as const) {
  for (const from of ["local", "routed"] as const) {
    for (const backend of BACKENDS) {
      for (const family of FAMILIES) {
        const title = `${mode}, ${from}, ${backend}, IPv${family}: curl fetches through the upstream`;
        scenario(title, async (stage) => {
          webServers(stage);
          const destinations = [INTERNET[family === 4 ? 0 : 1]];
          const rules = stage.intercept({ mode, from, port: 1081, destinations }, backend);
          const upstream = stage.upstream({ protocol: "socks5", dials: true });
          const listen = LISTEN[`${mode} ${from}`];
          const relay = await stage.relay({ listen, proxy_url: upstream.url(), mode, workers: 1 });
          const destination = text(SERVER[family], 80);
          const seen = await visit(
            stage.net[from === "local" ? "relay" : "lan"],
            `http://${destination}/`,
          );
          assert.equal(seen.peer, PROXY[family], "the server sees the proxy");
          assert.equal(seen.local, destination);
          assert.deepEqual(
            upstream.requests.map(({ host, port }) => text(host, port)),
            [destination],
          );
          assert.ok(rules.packets() > 0, "the rules have counted the connection");
          const client = from === "local" ? RELAY[family] : LAN[family];
          await assertLogged(relay, destination, text(client, 1));
        });
      }
    }
  }
}

for (const mode of ["redirect", "tproxy"] as const) {
  for (const listen of [":1081", "0.0.0.0:1081", "[::]:1081"]) {
    scenario(`${mode}: ${listen} is one dual-stack socket for everybody`, async (stage) => {
      webServers(stage);
      stage.intercept({ mode, from: "local", port: 1081 });
      if (mode === "redirect") stage.intercept({ mode, from: "routed", port: 1081 });
      const upstream = stage.upstream({ protocol: "http", dials: true });
      const relay = await stage.relay({ listen, proxy_url: upstream.url(), mode });
      for (const family of FAMILIES) {
        const destination = text(SERVER[family], 80);
        for (const client of [stage.net.relay, stage.net.lan]) {
          const seen = await visit(client, `http://${destination}/`);
          assert.equal(seen.peer, PROXY[family]);
          // An IPv4 destination has come through an IPv6 socket, too; nobody is to know.
          assert.equal(upstream.requests.at(-1)?.host, SERVER[family]);
        }
        await relay.ended(destination);
      }
      const addresses = relay.ends().flatMap((end) => [end.client_addr, end.dest_addr]);
      assert.ok(
        addresses.every((address) => !address.includes("ffff:")),
        addresses.join(),
      );
    });
  }
}

scenario("several listeners serve side by side", async (stage) => {
  webServers(stage);
  const ports = [1081, 1082, 1083];
  const upstream = stage.upstream({ protocol: "socks5", dials: true });
  await stage.relay({
    listen: ["127.0.0.1:1081", "[::1]:1081", "127.0.0.1:1082", "localhost:1083"],
    proxy_url: upstream.url(),
  });
  for (const port of ports) {
    const destinations = [`198.51.100.${port - 1000}/32`];
    stage.intercept({ mode: "redirect", from: "local", port, destinations });
    stage.finally(() => void server.close());
    const server = webServer(stage.net.internet, `198.51.100.${port - 1000}`, 80);
    const seen = await visit(stage.net.relay, `http://198.51.100.${port - 1000}/`);
    assert.equal(seen.peer, PROXY[4]);
  }
});

scenario("everything is redirected, but for our own mark", async (stage) => {
  webServers(stage);
  const everywhere = ["0.0.0.0/0", "::/0"];
  stage.intercept({
    mode: "redirect",
    from: "local",
    port: 1081,
    destinations: everywhere,
    exceptMark: 0x1081,
  });
  const upstream = stage.upstream({ protocol: "socks5", dials: true });
  await stage.relay({ listen: "localhost:1081", proxy_url: upstream.url(), mark: 0x1081 });
  for (const family of FAMILIES) {
    const seen = await visit(stage.net.relay, `http://${text(SERVER[family], 80)}/`);
    assert.equal(seen.peer, PROXY[family]);
  }
});

scenario("400 clients at once each get their own answer", async (stage) => {
  webServers(stage);
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const upstream = stage.upstream({ protocol: "socks5" });
  const relay = await stage.relay({
    listen: "localhost:1081",
    proxy_url: upstream.url(),
    workers: 2,
  });
  const clients = await Promise.all(
    Array.from({ length: 400 }, async (_, i) => {
      const client = await connect(stage.net.relay, SERVER[i % 2 === 0 ? 4 : 6], 1_000 + i);
      client.finish(`I am ${i}`);
      return client;
    }),
  );
  for (const _ of clients) {
    const { request, peer } = await upstream.accept();
    const question = await peer.rest();
    assert.equal(String(question.data), `I am ${request.port - 1_000}`);
    peer.finish(`you are ${request.port - 1_000}`);
  }
  for (const [i, client] of clients.entries()) {
    const answer = await client.rest();
    assert.equal(String(answer.data), `you are ${i}`);
    assert.equal(answer.end, "fin");
  }
  await relay.logged("the last end", () => relay.ends().length === 400);
});
