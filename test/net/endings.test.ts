/**
 * How connections end: an end as an end, a reset as a reset, each direction on its own, and never
 * before the bytes in front of it; and every wait has its bound. The destination is played by the
 * upstream's end of the tunnel.
 */
import { strict as assert } from "node:assert";
import { connect, eventually, type Peer, sleep, text } from "./actors.ts";
import { BLACK_HOLE, FAMILIES, LAN, PROXY, SERVER } from "./network.ts";
import type { Relay, Settings } from "./relay.ts";
import { scenario, type Stage } from "./scenario.ts";
import { assertReset, curl } from "./web.ts";
import type { Script, Upstream } from "./upstream.ts";

const PROTOCOLS = ["socks5", "http"] as const;
const DESTINATION = text(SERVER[4], 80);

interface Setting {
  relay: Relay;
  upstream: Upstream;
}

/** The relay behind a redirect, and an upstream that does as the script says. */
async function setting(stage: Stage, script: Script, settings: Settings = {}): Promise<Setting> {
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const upstream = stage.upstream(script);
  const userinfo = script.credentials === undefined ? "" : "alice:s3cret@";
  const relay = await stage.relay({
    listen: "localhost:1081",
    proxy_url: upstream.url(userinfo),
    workers: 1,
    ...settings,
  });
  return { relay, upstream };
}

const newClient = (stage: Stage): Promise<Peer> => connect(stage.net.relay, SERVER[4], 80);

/** A tunnel that stands: its client's end and its far end. */
async function tunnel(stage: Stage, { upstream }: Setting): Promise<{ client: Peer; far: Peer }> {
  const client = await newClient(stage);
  const { peer } = await upstream.accept();
  return { client, far: peer };
}

for (const protocol of PROTOCOLS) {
  scenario(`${protocol}: the client ends first, and a late answer comes through`, async (stage) => {
    const it = await setting(stage, { protocol });
    const { client, far } = await tunnel(stage, it);
    client.finish("question");
    assert.deepEqual(await far.rest(), { data: Buffer.from("question"), end: "fin" });
    await sleep(700);
    assert.equal(client.end, null);
    far.write("an answer, ");
    await sleep(100);
    far.finish("and the rest of it");
    assert.deepEqual(await client.rest(), {
      data: Buffer.from("an answer, and the rest of it"),
      end: "fin",
    });
    const ended = await it.relay.ended(DESTINATION);
    assert.equal(ended.reason, "finished");
    assert.equal(ended.tx_bytes, 8);
    assert.equal(ended.rx_bytes, 29);
    assert.ok(ended.elapsed >= 0.7 && ended.elapsed < 600, `${ended.elapsed} s`);
  });

  scenario(`${protocol}: the server ends first, and the client still speaks`, async (stage) => {
    const it = await setting(stage, { protocol });
    const { client, far } = await tunnel(stage, it);
    far.finish("go on");
    assert.deepEqual(await client.rest(), { data: Buffer.from("go on"), end: "fin" });
    await sleep(300);
    client.write("I ");
    await sleep(50);
    client.finish("do");
    assert.deepEqual(await far.rest(), { data: Buffer.from("I do"), end: "fin" });
    assert.equal((await it.relay.ended(DESTINATION)).reason, "finished");
  });

  scenario(
    `${protocol}: the server's reset is a reset to the client, after all bytes`,
    async (stage) => {
      const it = await setting(stage, { protocol });
      const { client, far } = await tunnel(stage, it);
      far.write(Buffer.alloc(5_000, "a"));
      await eventually("the bytes have come", () => client.total === 5_000);
      far.reset();
      const { data, end } = await client.rest();
      assert.deepEqual({ bytes: data.length, end }, { bytes: 5_000, end: "reset" });
      const ended = await it.relay.ended(DESTINATION);
      assert.equal(ended.reason, "server-reset");
      assert.equal(ended.severity, "info", "an ordinary end is no error");
    },
  );

  scenario(
    `${protocol}: the client's reset is a reset to the server, after all bytes`,
    async (stage) => {
      const it = await setting(stage, { protocol });
      const { client, far } = await tunnel(stage, it);
      client.write(Buffer.alloc(5_000, "a"));
      await eventually("the bytes have come", () => far.total === 5_000);
      client.reset();
      const { data, end } = await far.rest();
      assert.deepEqual({ bytes: data.length, end }, { bytes: 5_000, end: "reset" });
      const ended = await it.relay.ended(DESTINATION);
      assert.equal(ended.reason, "client-reset");
      assert.equal(ended.severity, "info", "an ordinary end is no error");
    },
  );

  scenario(`${protocol}: a refused destination is a reset, never a clean end`, async (stage) => {
    const refuse = protocol === "http" ? 502 : 5;
    const it = await setting(stage, { protocol, refuse });
    const client = await newClient(stage);
    assert.deepEqual(await client.rest(), { data: Buffer.alloc(0), end: "reset" });
    const fetched = await curl(stage.net.relay, `http://${DESTINATION}/`);
    assertReset(fetched);
    const ended = await it.relay.ended(DESTINATION);
    assert.equal(ended.reason, protocol === "http" ? "upstream-status" : "upstream-refused");
    assert.match(
      JSON.stringify(ended),
      protocol === "http" ? /502/ : /refused/i,
      "the reply is told",
    );
  });
}

// The relay is stopped while bytes and reset arrive: it finds both at once, and the kernel would
// tell of the reset first.
for (const bytes of [10, 5_000, 100_000]) {
  scenario(
    `a reset right behind ${bytes} bytes from the server loses none of them`,
    async (stage) => {
      const it = await setting(stage, { protocol: "socks5" });
      const { client, far } = await tunnel(stage, it);
      client.write("warm");
      await far.read(4);
      far.write("warm");
      await client.read(4);
      it.relay.process.signal("SIGSTOP");
      await sleep(50);
      far.write(Buffer.alloc(bytes, "a"));
      await acknowledged(stage, stage.net.proxy, far);
      far.reset();
      await sleep(50);
      it.relay.process.signal("SIGCONT");
      const { data, end } = await client.rest();
      assert.deepEqual({ bytes: data.length, end }, { bytes, end: "reset" });
    },
  );

  scenario(
    `a reset right behind ${bytes} bytes from the client loses none of them`,
    async (stage) => {
      const it = await setting(stage, { protocol: "socks5" });
      const { client, far } = await tunnel(stage, it);
      client.write("warm");
      await far.read(4);
      far.write("warm");
      await client.read(4);
      it.relay.process.signal("SIGSTOP");
      await sleep(50);
      client.write(Buffer.alloc(bytes, "a"));
      await acknowledged(stage, stage.net.relay, client);
      client.reset();
      await sleep(50);
      it.relay.process.signal("SIGCONT");
      const { data, end } = await far.rest();
      assert.deepEqual({ bytes: data.length, end }, { bytes, end: "reset" });
    },
  );
}

/** Waits until the other side's kernel has all that was written. */
async function acknowledged(stage: Stage, host: Stage["net"]["relay"], peer: Peer): Promise<void> {
  void stage;
  const port = peer.socket.localPort;
  const remote = peer.socket.remotePort;
  await eventually("all bytes are acknowledged", () => {
    const sockets = host.run("ss", [
      "-Htn",
      "state",
      "established",
      `( sport = :${port} and dport = :${remote} )`,
    ]);
    return peer.socket.writableLength === 0 && /^\s*\d+\s+0\s/.test(sockets);
  });
}

scenario("a half-closed connection is reset when the other end resets", async (stage) => {
  const it = await setting(stage, { protocol: "socks5" });
  const { client, far } = await tunnel(stage, it);
  client.finish("question");
  await far.rest();
  far.reset();
  assert.equal(await client.ending(), "reset");
  await it.relay.ended(DESTINATION);
});

scenario(
  "a client that has sent and ended before the upstream answers is served",
  async (stage) => {
    for (const protocol of PROTOCOLS) {
      const port = protocol === "http" ? 3128 : 1080;
      const upstream = stage.upstream({ protocol, trickle: true }, PROXY[4], port);
      const listen = protocol === "http" ? 1082 : 1081;
      const relay = await stage.relay({
        listen: `localhost:${listen}`,
        proxy_url: upstream.url(),
        workers: 1,
      });
      const rules = stage.intercept({
        mode: "redirect",
        from: "local",
        port: listen,
        destinations: [`198.51.100.${listen - 1000}/32`],
      });
      const client = await connect(stage.net.relay, `198.51.100.${listen - 1000}`, 80);
      client.finish("all I have");
      const { peer } = await upstream.accept();
      assert.deepEqual(await peer.rest(), { data: Buffer.from("all I have"), end: "fin" });
      peer.finish("thanks");
      assert.deepEqual(await client.rest(), { data: Buffer.from("thanks"), end: "fin" });
      assert.equal(rules.packets(), 1);
      await relay.ended(`198.51.100.${listen - 1000}:80`);
    }
  },
);

// To be silent and at an end is not to be gone: the answer may be all that is wanted.
for (const mode of ["redirect", "tproxy"] as const) {
  for (const from of ["local", "routed"] as const) {
    for (const family of FAMILIES) {
      scenario(
        `${mode}, ${from}, IPv${family}: a client that ends without a word hears who speaks first`,
        async (stage) => {
          for (const protocol of PROTOCOLS) {
            stage.intercept({ mode, from, port: 1081 });
            let grant!: () => void;
            const waits = new Promise<void>((resolve) => {
              grant = resolve;
            });
            const upstream = stage.upstream({ protocol, waits });
            const routed = mode === "redirect" && from === "routed";
            const relay = await stage.relay({
              listen: routed ? ["10.7.0.1:1081", "[fd07::1]:1081"] : "localhost:1081",
              proxy_url: upstream.url(),
              mode,
              workers: 1,
            });
            const host = stage.net[from === "local" ? "relay" : "lan"];
            const client = await connect(host, SERVER[family], 80);
            client.finish();
            await eventually("the upstream is asked", () => upstream.requests.length === 1);
            await sleep(1_500);
            assert.equal(client.end, null, "it was given up");
            grant();
            const { peer } = await upstream.accept();
            assert.deepEqual(await peer.rest(), { data: Buffer.alloc(0), end: "fin" });
            peer.finish("220 welcome");
            assert.deepEqual(await client.rest(), { data: Buffer.from("220 welcome"), end: "fin" });
            assert.equal((await relay.ended(text(SERVER[family], 80))).reason, "finished");
            await stage.end();
          }
        },
      );
    }
  }
}

scenario("ncat with nothing to say hears a server that is reached late", async (stage) => {
  stage.intercept({ mode: "redirect", from: "local", port: 1081, exceptMark: 7 });
  const greet = (peer: Peer): void => void peer.finish("220 welcome\n");
  const server = stage.listen(stage.net.internet, SERVER[4], 80, greet);
  await stage.relay({ listen: "localhost:1081", proxy_url: "direct:", mark: 7, workers: 1 });
  // As a black hole, until ncat has said FIN; then SYN is sent again, after a second.
  const { relay } = stage.net;
  relay.ip("neighbour replace 192.0.2.3 lladdr 02:00:00:00:00:66 dev wan nud permanent");
  let hidden = true;
  const show = (): void => {
    if (hidden) relay.ip("neighbour delete 192.0.2.3 dev wan");
    hidden = false;
  };
  stage.finally(show);
  const ncat = stage.spawn(relay, "ncat", SERVER[4], "80");
  await eventually("ncat has said FIN", () =>
    relay.run("ss", ["-Htn", "state", "close-wait", "( sport = :1081 )"]).includes(":1081"),
  );
  assert.equal(server.peers.length, 0);
  show();
  assert.equal((await ncat.exited).code, 0);
  assert.equal(ncat.output, "220 welcome\n");
});

/** How a client goes. Of the last one nothing is to be seen when it goes: it has said FIN before. */
const LEAVING: Record<string, (client: Peer) => Promise<void> | void> = {
  "resets its connection": (client) => client.reset(),
  "closes its connection": (client) => client.destroy(),
  "speaks and closes its connection": (client) => void client.finish("hello?").destroy(),
  "half-closes its connection, and closes it later": async (client) => {
    client.finish();
    await sleep(1_500);
    client.destroy();
  },
};

const SILENCES: { script: Script; title: string }[] = [
  { title: "SOCKS5, after the connection", script: { protocol: "socks5", silentAt: "accept" } },
  { title: "SOCKS5, after the greeting", script: { protocol: "socks5", silentAt: "greeting" } },
  {
    title: "SOCKS5, after the password",
    script: {
      protocol: "socks5",
      silentAt: "authentication",
      credentials: { username: "alice", password: "s3cret" },
    },
  },
  { title: "SOCKS5, after the request", script: { protocol: "socks5", silentAt: "request" } },
  { title: "HTTP, after the connection", script: { protocol: "http", silentAt: "accept" } },
  { title: "HTTP, after the request", script: { protocol: "http", silentAt: "request" } },
];

for (const { title, script } of SILENCES) {
  for (const leaves of ["fin", "reset"] as const) {
    scenario(`an upstream that leaves (${leaves}; ${title}) is a reset at once`, async (stage) => {
      const it = await setting(stage, { ...script, leaves }, { timeouts: { handshake: "1h" } });
      const client = await newClient(stage);
      client.write("hello?");
      assert.equal(await client.ending(), "reset");
      const failed = await it.relay.logged(
        "the failure",
        (entry) => entry["dest_addr"] === DESTINATION && /fail/.test(entry.message),
      );
      assert.equal(failed.severity, "error");
      // Reset at once, it may look as if it had never stood.
      assert.match(String(failed["reason"]), /^(upstream-closed|dial-failed)$/);
    });
  }

  scenario(`a silent upstream (${title}) is given up`, async (stage) => {
    const it = await setting(stage, script, { timeouts: { handshake: "1s" } });
    const began = performance.now();
    const client = await newClient(stage);
    client.write("hello?");
    assert.equal(await client.ending(), "reset");
    const waited = performance.now() - began;
    assert.ok(waited > 900, `${waited} ms`);
    await eventually("the upstream is let go", () => it.upstream.peers[0]!.end !== null);
    const failed = await it.relay.logged(
      "the failure",
      (entry) => entry["dest_addr"] === DESTINATION && /fail/.test(entry.message),
    );
    assert.equal(failed.severity, "error");
    assert.match(JSON.stringify(failed), /handshake|time/);
  });

  for (const [how, leave] of Object.entries(LEAVING)) {
    scenario(`a client that ${how} ends the attempt (${title})`, async (stage) => {
      const it = await setting(stage, script, { timeouts: { handshake: "1h" } });
      const idleFds = it.relay.process.fds();
      const client = await newClient(stage);
      await eventually("the upstream is asked", () => it.upstream.peers.length === 1);
      await sleep(100);
      await leave(client);
      await eventually("the upstream sees the end", () => it.upstream.peers[0]!.end !== null);
      await eventually("all is given back", () => it.relay.process.fds() <= idleFds);
      assert.equal((await it.relay.ended(DESTINATION)).reason, "client-left");
    });
  }
}

for (const family of [4, 6] as const) {
  scenario(`IPv${family}: a black-holed upstream is given up at the deadline`, async (stage) => {
    stage.intercept({ mode: "redirect", from: "local", port: 1081 });
    const relay = await stage.relay({
      listen: "localhost:1081",
      proxy_url: `socks5://${text(BLACK_HOLE[family], 1080)}`,
      workers: 1,
      timeouts: { dial: "1s" },
    });
    const idleFds = relay.process.fds();
    const began = performance.now();
    const client = await newClient(stage);
    assert.equal(await client.ending(), "reset");
    const waited = performance.now() - began;
    assert.ok(waited > 900, `${waited} ms`);
    const failed = await relay.logged("the failure", (entry) =>
      /failed to connect/.test(entry.message),
    );
    assert.equal(failed.severity, "error");
    await eventually("all is given back", () => relay.process.fds() <= idleFds);
  });
}

for (const family of FAMILIES) {
  for (const [how, leave] of Object.entries(LEAVING)) {
    scenario(`IPv${family}: a client that ${how} ends the dial`, async (stage) => {
      stage.intercept({ mode: "redirect", from: "local", port: 1081 });
      const relay = await stage.relay({
        listen: "localhost:1081",
        proxy_url: `socks5://${text(BLACK_HOLE[family], 1080)}`,
        workers: 1,
        timeouts: { dial: "1h" },
      });
      const idleFds = relay.process.fds();
      const client = await connect(stage.net.relay, SERVER[family], 80);
      await eventually("it is being dialled", () => relay.process.fds() === idleFds + 2);
      await leave(client);
      await eventually("all is given back", () => relay.process.fds() === idleFds);
      assert.equal((await relay.ended(text(SERVER[family], 80))).reason, "client-left");
    });
  }
}

scenario("a refused upstream is a reset at once", async (stage) => {
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const relay = await stage.relay({
    listen: "localhost:1081",
    proxy_url: `socks5://${text(PROXY[4], 9)}`,
  });
  const client = await newClient(stage);
  assert.equal(await client.ending(), "reset");
  const failed = await relay.logged("the failure", (entry) =>
    /failed to connect/.test(entry.message),
  );
  assert.equal(failed.severity, "error");
  assert.match(JSON.stringify(failed), /ECONNREFUSED|refused/);
});

const BULK = 48 << 20;

for (const direction of ["down", "up"] as const) {
  scenario(
    `a slow reader (${direction}) gets all, and the relay keeps little of it`,
    async (stage) => {
      const it = await setting(stage, { protocol: "socks5" });
      const client = await connect(stage.net.relay, SERVER[4], 80, { reading: direction === "up" });
      const { peer: far } = await it.upstream.accept();
      const [from, to] = direction === "down" ? [far, client] : [client, far];
      if (direction === "up") far.socket.pause();
      const before = it.relay.process.residentKiB();
      const block = Buffer.alloc(1 << 20, "z");
      for (let sent = 0; sent < BULK; sent += block.length) from.write(block);
      from.finish();
      await sleep(1_000);
      assert.ok(
        from.socket.writableLength > BULK / 4,
        "the relay has taken nearly all: it buffers",
      );
      assert.ok(
        it.relay.process.residentKiB() - before < 16_384,
        "resident memory has grown by 16 MiB",
      );
      const cpu = it.relay.process.cpuSeconds();
      await sleep(500);
      assert.ok(
        it.relay.process.cpuSeconds() - cpu < 0.2,
        "the relay spins while the reader sleeps",
      );
      if (direction === "down") client.resume();
      else far.socket.resume();
      await to.ending();
      assert.deepEqual({ bytes: to.total, end: to.end }, { bytes: BULK, end: "fin" });
    },
  );
}

// Once it has lived for ten seconds, TCP itself looks after a tunnel: an end that is cut off, without
// a word, is noticed long before the idle deadline; one that owes an acknowledgement, too.
for (const [what, tcp] of [
  ["silence (keepalive)", { keepalive_idle: "1s", keepalive_interval: "1s", keepalive_probes: 2 }],
  ["bytes on their way (TCP_USER_TIMEOUT)", { keepalive_idle: "9h", user_timeout: "2s" }],
] as const) {
  scenario(
    `${what}: a client, or an upstream, that is cut off is noticed`,
    async (stage) => {
      stage.intercept({ mode: "redirect", from: "routed", port: 1081 });
      const upstream = stage.upstream({ protocol: "socks5" });
      const relay = await stage.relay({
        listen: ["10.7.0.1:1081", "[fd07::1]:1081"], proxy_url: upstream.url(), workers: 1, tcp,
      });
      const { lan, relay: host } = stage.net;
      const stands = async (): Promise<{ client: Peer; far: Peer }> => {
        const client = await connect(lan, SERVER[4], 80);
        const { peer } = await upstream.accept();
        client.write("ping");
        await peer.read(4);
        return { client, far: peer };
      };
      const isSilent = what.startsWith("silence");
      const cutOff = async (address: string, wire: string, from: Peer, to: Peer): Promise<void> => {
        host.ip(`neighbour replace ${address} lladdr 02:00:00:00:00:66 dev ${wire} nud permanent`);
        try {
          // From the end that is still there to the one that is not.
          if (!isSilent) from.write("are you there?");
          assert.equal(await from.ending(), "reset");
          assert.equal(to.end, null);
        } finally {
          host.ip(`neighbour delete ${address} dev ${wire}`);
        }
        to.destroy();
      };
      const one = await stands();
      await sleep(11_000);
      await cutOff(LAN[4], "inner", one.far, one.client);
      const other = await stands();
      await sleep(11_000);
      await cutOff(PROXY[4], "wan", other.client, other.far);
      await eventually("both are logged", () => relay.ends().length === 2);
      assert.deepEqual(relay.ends().map((end) => end.reason).sort(), ["client-reset", "server-reset"]);
      assert.match(JSON.stringify(relay.ends()), /timed out/);
    },
  );
}

scenario(
  "a reader that pauses is waited for, though the kernel would count it as silence",
  async (stage) => {
    const it = await setting(stage, { protocol: "socks5" }, { tcp: { user_timeout: "3s" } });
    const down = await connect(stage.net.relay, SERVER[4], 80, { reading: false });
    const { peer: downFar } = await it.upstream.accept();
    const { client: up, far: upFar } = await tunnel(stage, it);
    upFar.socket.pause();
    // One stands still when TCP begins to look after it, the other comes to a stand later.
    downFar.write(Buffer.alloc(BULK / 4, "a")).finish();
    await sleep(11_000);
    up.write(Buffer.alloc(BULK / 4, "b")).finish();
    await sleep(10_000);
    assert.deepEqual([down.end, up.end, downFar.end, upFar.end], [null, null, null, null]);
    assert.equal(it.relay.ends().length, 0, "one was given up");
    down.resume();
    upFar.socket.resume();
    await Promise.all([down.ending(), upFar.ending()]);
    assert.deepEqual([down.total, down.end], [BULK / 4, "fin"]);
    assert.deepEqual([upFar.total, upFar.end], [BULK / 4, "fin"]);
  },
);

scenario("an idle connection ends at its deadline, a busy one does not", async (stage) => {
  const it = await setting(stage, { protocol: "socks5" }, { timeouts: { idle: "5s" } });
  const began = performance.now();
  const idle = await tunnel(stage, it);
  const busy = await tunnel(stage, it);
  const beat = setInterval(() => busy.client.write("."), 200);
  stage.finally(() => clearInterval(beat));
  await Promise.all([idle.client.ending(), idle.far.ending()]);
  const waited = performance.now() - began;
  assert.ok(waited > 4_900, `${waited} ms`);
  await sleep(1_500);
  assert.equal(busy.client.end, null);
  clearInterval(beat);
  await busy.client.ending();
  await eventually("both are logged", () => it.relay.ends().length === 2);
  assert.deepEqual(
    it.relay.ends().map((end) => end.reason),
    ["idle-timeout", "idle-timeout"],
  );
});

scenario("a half-closed connection ends at its deadline, a busy one does not", async (stage) => {
  const it = await setting(stage, { protocol: "socks5" }, { timeouts: { half_closed: "5s" } });
  const idle = await tunnel(stage, it);
  const busy = await tunnel(stage, it);
  const open = await tunnel(stage, it);
  const began = performance.now();
  for (const { client, far } of [idle, busy]) {
    client.finish("question");
    await far.rest();
  }
  const beat = setInterval(() => busy.far.write("."), 200);
  stage.finally(() => clearInterval(beat));
  await idle.client.ending();
  const waited = performance.now() - began;
  assert.ok(waited > 4_900, `${waited} ms`);
  await sleep(1_500);
  assert.equal(busy.client.end, null);
  assert.equal(open.client.end, null);
  clearInterval(beat);
  busy.far.finish();
  assert.equal(await busy.client.ending(), "fin");
  open.client.finish();
  open.far.finish();
  await eventually("all are logged", () => it.relay.ends().length === 3);
  assert.deepEqual(
    it.relay
      .ends()
      .map((end) => end.reason)
      .sort(),
    ["finished", "finished", "half-closed-timeout"],
  );
});
