/**
 * Nothing is accepted that cannot be served, nothing is kept that is over, and no connection of
 * ours comes back to us.
 */
import { strict as assert } from "node:assert";
import { readFileSync } from "node:fs";
import { connect, eventually, type Peer, settled, sleep, text } from "./actors.ts";
import { FAMILIES, PROXY, RELAY, SERVER } from "./network.ts";
import type { Process } from "./process.ts";
import { type Entry, Faults, type Relay } from "./relay.ts";
import { scenario, type Stage } from "./scenario.ts";
import { assertReset, curl, visit, webServer } from "./web.ts";

const LISTEN = "localhost:1081";

const newClient = (stage: Stage): Promise<Peer> => connect(stage.net.relay, SERVER[4], 80);

/** The client is served: what it sends comes back. */
async function served(client: Peer): Promise<boolean> {
  client.write("ping");
  try {
    return String(await client.read(4)) === "ping";
  } catch {
    return false;
  }
}

const limitOf = (relay: Relay): string =>
  /Max open files\s+(\d+)/.exec(readFileSync(`/proc/${relay.process.pid}/limits`, "utf8"))![1]!;

for (const whenFull of ["wait", "reset"] as const) {
  scenario(
    `64 file descriptors, 100 clients, when_full = ${whenFull}; then none; then service again`,
    async (stage) => {
      stage.intercept({ mode: "redirect", from: "local", port: 1081 });
      const upstream = stage.upstream({ protocol: "socks5", echoes: true });
      const relay = await stage.relay(
        { listen: LISTEN, proxy_url: upstream.url(), workers: 1, limits: { when_full: whenFull } },
        { nofile: "64:64" },
      );
      const idleFds = relay.process.fds();
      const clients = await Promise.all(Array.from({ length: 100 }, () => newClient(stage)));
      for (const client of clients) client.write("ping");
      const isAlive = (client: Peer): boolean => client.total === 4;
      const isGone = (client: Peer): boolean => client.end !== null;
      await eventually("some are served", () => clients.filter(isAlive).length >= 5);
      const decided = (): number => clients.filter((client) => isAlive(client) || isGone(client)).length;
      if (whenFull === "wait") await settled("what becomes of them", decided);
      else await eventually("each is served or reset", () => decided() === clients.length);
      const alive = clients.filter(isAlive);
      const gone = clients.filter(isGone);
      assert.ok(alive.length >= 5, `${alive.length} of 100 are served at once`);
      assert.ok(alive.length <= 32, `${alive.length} tunnels of 2 fds in 64 fds`);
      if (whenFull === "wait") assert.equal(gone.length, 0, "the others wait");
      else assert.equal(gone.length, 100 - alive.length, "the others are reset");
      for (const client of gone) assert.equal(client.end, "reset");

      // Full, and nobody moves: it costs nothing.
      const cpu = relay.process.cpuSeconds();
      await sleep(1_000);
      const spent = relay.process.cpuSeconds() - cpu;
      assert.ok(spent < 0.3, `${spent} s of CPU in a second of standing still`);
      assert.ok(relay.log().length < 1_000, "the log is not flooded");

      if (whenFull === "wait") {
        // As places come free those who wait are served, at once.
        for (const client of alive) client.finish();
        const next = clients.filter((client) => !alive.includes(client));
        await eventually(
          "others are served in their place",
          () => next.filter((client) => client.total === 4).length >= alive.length,
        );
      }
      for (const client of clients) client.destroy();
      await eventually("all is given back", () => relay.process.fds() <= idleFds);
      for (let i = 0; i < 20; i++) {
        const client = await newClient(stage);
        assert.ok(await served(client), `client ${i} afterwards is served`);
        client.destroy();
      }
      assert.equal(relay.process.exit, null);
    },
  );
}

scenario("max_connections is kept", async (stage) => {
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const upstream = stage.upstream({ protocol: "socks5", echoes: true });
  await stage.relay({ listen: LISTEN, proxy_url: upstream.url(), max_connections: 10, workers: 2 });
  const clients = await Promise.all(Array.from({ length: 15 }, () => newClient(stage)));
  for (const client of clients) client.write("ping");
  await eventually(
    "10 are served",
    () => clients.filter((client) => client.total === 4).length === 10,
  );
  await sleep(300);
  assert.equal(clients.filter((client) => client.total === 4).length, 10);
  for (const client of clients.filter((each) => each.total === 4)) client.finish();
  await eventually("the others are served", () => clients.every((client) => client.total === 4));
  for (const client of clients) client.destroy();
});

scenario("a soft limit of 64 is raised to the hard one", async (stage) => {
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const upstream = stage.upstream({ protocol: "socks5", echoes: true });
  const relay = await stage.relay(
    { listen: LISTEN, proxy_url: upstream.url() },
    { nofile: "64:4096" },
  );
  assert.equal(limitOf(relay), "4096");
  const clients = await Promise.all(Array.from({ length: 300 }, () => newClient(stage)));
  assert.deepEqual(
    await Promise.all(clients.map((client) => served(client))),
    clients.map(() => true),
  );
  for (const client of clients) client.destroy();
});

scenario(
  "a limit of a billion files, or of as many as the kernel allows, costs nothing",
  async (stage) => {
    stage.intercept({ mode: "redirect", from: "local", port: 1081 });
    const upstream = stage.upstream({ protocol: "socks5", echoes: true });
    const allowed = (limit: string): boolean =>
      stage.net.relay.attempt("prlimit", [`--nofile=${limit}:${limit}`, "true"]).status === 0;
    const [hard] = readFileSync("/proc/self/limits", "utf8").match(
      /(?<=Max open files\s+\d+\s+)\d+/,
    )!;
    const most = readFileSync("/proc/sys/fs/nr_open", "utf8").trim();
    const limit = ["1000000000", most, hard].find(allowed)!;
    stage.note(`the limit is ${limit}`);
    const relay = await stage.relay(
      { listen: LISTEN, proxy_url: upstream.url() },
      { nofile: `${limit}:${limit}` },
    );
    const client = await newClient(stage);
    assert.ok(await served(client));
    client.destroy();
    assert.ok(relay.process.residentKiB() < 400_000, `${relay.process.residentKiB()} KiB resident`);
    const exit = await relay.stop();
    assert.equal(exit.code, 0);
  },
);

scenario(
  "10,000 connections later there are as many file descriptors as before, and the same heap",
  async (stage) => {
    stage.intercept({ mode: "redirect", from: "local", port: 1081 });
    const upstream = stage.upstream({ protocol: "socks5", echoes: true });
    const faults = new Faults(["--expose-gc"]);
    const relay = await stage.relay(
      { listen: LISTEN, proxy_url: upstream.url(), workers: 2 },
      faults.start,
    );
    const round = async (connections: number): Promise<void> => {
      let left = connections;
      const clients = Array.from({ length: 100 }, async () => {
        while (left-- > 0) {
          const client = await newClient(stage);
          client.finish("hello");
          const { data, end } = await client.rest();
          assert.deepEqual([String(data), end], ["hello", "fin"]);
          client.destroy();
        }
      });
      await Promise.all(clients);
      // The actors need not keep the dead.
      upstream.listener.peers.length = 0;
      upstream.requests.length = 0;
    };
    const heap = async (): Promise<number> => {
      faults.request("heap");
      const answers = (): string[] => faults.files().filter((file) => file.startsWith("heap-"));
      await eventually("both workers tell their heap", async () => {
        (await newClient(stage)).destroy();
        return answers().length === 2;
      });
      faults.take("heap");
      return answers().reduce((total, file) => total + Number(faults.take(file)), 0);
    };
    const idleFds = relay.process.fds();
    // Rings are walked through once, and V8 has its size.
    await round(6_000);
    const before = { heap: await heap(), resident: relay.process.residentKiB() };
    await round(10_000);
    await eventually("all is given back", () => relay.process.fds() <= idleFds);
    const grown = {
      heap: (await heap()) - before.heap,
      resident: relay.process.residentKiB() - before.resident,
    };
    stage.note(`grown by ${grown.heap} bytes of heap, ${grown.resident} KiB of resident memory`);
    assert.ok(grown.heap < 1 << 20, `${grown.heap} bytes more heap`);
    assert.ok(grown.resident < 16_384, `${grown.resident} KiB more resident memory`);
  },
);

for (const limits of [{}, { pipes: 4 }, { pipes: 0 }] as const) {
  scenario(
    `100 tunnels full of bytes at once, limits ${JSON.stringify(limits)}: each gets its own`,
    async (stage) => {
      stage.intercept({ mode: "redirect", from: "local", port: 1081 });
      const upstream = stage.upstream({ protocol: "socks5", echoes: true });
      const relay = await stage.relay({ listen: LISTEN, proxy_url: upstream.url(), limits });
      const idleFds = relay.process.fds();
      const bytes = 1_500_000;
      const clients = await Promise.all(Array.from({ length: 100 }, () => newClient(stage)));
      await Promise.all(
        clients.map(async (client, i) => {
          const words = Buffer.alloc(bytes, `tunnel ${i} `);
          client.finish(words);
          const { data, end } = await client.rest();
          assert.ok(data.equals(words), `tunnel ${i}: ${data.length} bytes`);
          assert.equal(end, "fin");
          client.destroy();
        }),
      );
      await eventually("all is logged", () => relay.ends().length === 100);
      for (const { reason, tx_bytes, rx_bytes } of relay.ends()) {
        assert.deepEqual([reason, tx_bytes, rx_bytes], ["finished", bytes, bytes]);
      }
      // Empty pipes are kept for the next, but not one for each tunnel and direction.
      await eventually("the tunnels are given back", () => relay.process.fds() <= idleFds + 256);
    },
  );
}

// ---------------------------------------------------------------------------------------------
// Connections that should not be here.

// With rules there is connection tracking, and the kernel then knows an "original" destination even
// of a connection that was never redirected: the listener itself.
for (const rules of [false, true]) {
  const title = `with${rules ? "" : "out"} rules for others, a connection that none redirected is reset`;
  scenario(title, async (stage) => {
    if (rules) stage.intercept({ mode: "redirect", from: "local", port: 1081 });
    const upstream = stage.upstream({ protocol: "socks5" });
    const relay = await stage.relay({
      listen: [LISTEN, "10.7.0.1:1081"],
      proxy_url: upstream.url(),
    });
    const { lan, relay: host } = stage.net;
    for (const [from, to] of [
      [host, "127.0.0.1"],
      [host, "::1"],
      [lan, "10.7.0.1"],
    ] as const) {
      for (let i = 0; i < 20; i++) {
        const client = await connect(from, to, 1081);
        assert.equal(await client.ending(), "reset", to);
        client.destroy();
      }
    }
    await relay.logged("why", (entry) =>
      /not-redirected|own-address/.test(String(entry["reason"])),
    );
    assert.equal(upstream.peers.length, 0);
  });
}

scenario("in tproxy mode, too, a connection to the listener itself is reset", async (stage) => {
  const upstream = stage.upstream({ protocol: "socks5" });
  await stage.relay({ listen: ":1081", proxy_url: upstream.url(), mode: "tproxy" });
  for (const to of ["127.0.0.1", "::1", RELAY[4], RELAY[6]]) {
    const client = await connect(stage.net.relay, to, 1081);
    assert.equal(await client.ending(), "reset", to);
    client.destroy();
  }
  assert.equal(upstream.peers.length, 0);
});

scenario(
  "redirected connections to our own listeners are reset, whatever their address",
  async (stage) => {
    const everywhere = ["0.0.0.0/0", "::/0"];
    stage.intercept({
      mode: "redirect",
      from: "local",
      port: 1081,
      destinations: everywhere,
      exceptMark: 7,
    });
    const upstream = stage.upstream({ protocol: "socks5" });
    const relay = await stage.relay({
      listen: ":1081",
      proxy_url: upstream.url(),
      mark: 7,
      workers: 1,
    });
    const idleFds = relay.process.fds();
    const forms = [
      "127.0.0.1",
      "127.0.0.2",
      "127.8.9.10",
      "0.0.0.0",
      "::1",
      "::",
      RELAY[4],
      RELAY[6],
      "10.7.0.1",
      "fd07::1",
    ];
    for (const address of forms) {
      const client = await connect(stage.net.relay, address, 1081);
      assert.equal(await client.ending(), "reset", address);
      client.destroy();
    }
    assert.equal(upstream.peers.length, 0);
    // Another port of ours is a destination as any other.
    const other = connect(stage.net.relay, RELAY[4], 8080);
    assert.equal((await upstream.accept()).request.port, 8080);
    (await other).reset();
    await eventually("all is given back", () => relay.process.fds() <= idleFds);
  },
);

/** The loop was told, with what to do about it, and not over and over. */
async function assertTold(relay: Relay): Promise<void> {
  const isLoop = (entry: Entry): boolean => entry["reason"] === "loop" && entry.severity === "error";
  await relay.logged("the loop", isLoop);
  const told = relay.log().filter(isLoop);
  assert.ok(told.length >= 1 && told.length <= 3, `told ${told.length} times`);
  assert.match(JSON.stringify(told[0]), /remedy.*mark/);
}

/** The most file descriptors that the program had while the work went on. */
async function fdsMost(program: Process, work: () => Promise<void>): Promise<number> {
  let most = 0;
  const look = setInterval(() => (most = Math.max(most, program.fds())), 5);
  try {
    await work();
  } finally {
    clearInterval(look);
  }
  return most;
}

for (const protocol of ["socks5", "http"] as const) {
  scenario(
    `${protocol}: an upstream that is redirected to us is recognised, and service goes on`,
    async (stage) => {
      const web = webServer(stage.net.internet, SERVER[4], 80);
      stage.finally(() => void web.close());
      const upstream = stage.upstream({ protocol, dials: true });
      const relay = await stage.relay({ listen: LISTEN, proxy_url: upstream.url(), workers: 2 });
      const idleFds = relay.process.fds();
      const rules = [PROXY[4], SERVER[4]].map((address) =>
        stage.intercept({
          mode: "redirect",
          from: "local",
          port: 1081,
          destinations: [`${address}/32`],
        }),
      );
      const most = await fdsMost(relay.process, async () => {
        for (let i = 0; i < 10; i++) {
          const fetched = await curl(stage.net.relay, `http://${SERVER[4]}/`);
          assertReset(fetched);
        }
      });
      // Three tunnels where source ports are kept; where they are changed, as behind the thousands
      // of connections of other scenarios here, up to 33.
      assert.ok(most - idleFds < 90, `${most - idleFds} fds for ten looping connections`);
      await assertTold(relay);
      assert.equal(upstream.peers.length, 0);

      rules[0]!.remove();
      rules[0]!.remove = () => {};
      for (let i = 0; i < 5; i++) {
        assert.equal((await visit(stage.net.relay, `http://${SERVER[4]}/`)).peer, PROXY[4]);
      }
      await eventually("all is given back", () => relay.process.fds() <= idleFds);
    },
  );
}

scenario("a program that speaks to the upstream by itself is no loop", async (stage) => {
  const web = webServer(stage.net.internet, SERVER[4], 80);
  stage.finally(() => void web.close());
  const upstream = stage.upstream({ protocol: "socks5", dials: true });
  const destinations = [`${PROXY[4]}/32`];
  stage.intercept({ mode: "redirect", from: "local", port: 1081, destinations, exceptMark: 7 });
  const relay = await stage.relay({ listen: LISTEN, proxy_url: upstream.url(), mark: 7 });
  for (let round = 0; round < 5; round++) {
    const fetches = Array.from({ length: 8 }, () =>
      curl(stage.net.relay, "--noproxy", "", "--proxy", upstream.url(), `http://${SERVER[4]}/`),
    );
    for (const { status, error } of await Promise.all(fetches)) assert.equal(status, 0, error);
  }
  assert.deepEqual(
    relay.ends().filter((end) => end.reason !== "finished"),
    [],
  );
});

for (const family of FAMILIES) {
  scenario(
    `IPv${family}: direct connections that are redirected to us are recognised`,
    async (stage) => {
      stage.intercept({ mode: "redirect", from: "local", port: 1081 });
      const relay = await stage.relay({ listen: LISTEN, proxy_url: "direct:", workers: 2 });
      const idleFds = relay.process.fds();
      const most = await fdsMost(relay.process, async () => {
        for (let i = 0; i < 10; i++) {
          const fetched = await curl(stage.net.relay, `http://${text(SERVER[family], 80)}/`);
          assertReset(fetched);
        }
      });
      assert.ok(most - idleFds < 250, `${most - idleFds} fds for ten looping connections`);
      await assertTold(relay);
      await eventually("all is given back", () => relay.process.fds() <= idleFds);
    },
  );
}
