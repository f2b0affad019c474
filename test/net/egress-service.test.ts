/**
 * The egress as a service: reloads, ends, limits, slow names and silent clients; together with the
 * relay in one process, and as the other end of the relay's tunnels.
 */
import { strict as assert } from "node:assert";
import { readFileSync, writeFileSync } from "node:fs";
import { connect, eventually, PATIENCE_MS, type Peer, settled, sleep, text } from "./actors.ts";
import {
  asked,
  CLIENTS,
  dmz,
  echo,
  egress,
  METRICS_PORT,
  METRICS_URL,
  metrics,
  POOL,
  PORT,
  sample,
  seen,
  settingsOf,
  web,
  WHOLE_POOL,
} from "./dmz.ts";
import { Names } from "./names.ts";
import { FAMILIES, PROXY, RELAY, SERVER } from "./network.ts";
import { Relay } from "./relay.ts";
import { scenario, type Stage } from "./scenario.ts";
import { ask, codeOf, dial, greeting, GRANTED, reply5, request, tunnel } from "./socks.ts";
import { assertReset, curl, visit } from "./web.ts";

const ECHO = { to: SERVER[4], port: 7 };

/** One short connection through the egress: "" if all went well, else what did not. */
async function short(stage: Stage, target = ECHO): Promise<string> {
  const it = await ask(stage.net.lan, asked(), target).catch((error: Error) => error);
  if (it instanceof Error) return (it as NodeJS.ErrnoException).code ?? it.message;
  if (it.code !== GRANTED) {
    it.peer.destroy();
    return `reply ${it.code}`;
  }
  it.peer.finish("ping");
  const { data, end } = await it.peer.rest();
  it.peer.destroy();
  return String(data) === "ping" && end === "fin" ? "" : `${data.length} bytes, ${end}`;
}

/** So many short connections, some at a time, while the disturbance goes on. Answers the losses. */
async function underLoad(
  stage: Stage,
  connections: number,
  disturb: (done: () => number) => Promise<void>,
): Promise<string[]> {
  let started = 0;
  let done = 0;
  const losses: string[] = [];
  const clients = Array.from({ length: 16 }, async () => {
    while (started++ < connections) {
      const loss = await short(stage).catch((error: Error) => error.message);
      if (loss !== "") losses.push(`connection ${done}: ${loss}`);
      done++;
    }
  });
  await disturb(() => done);
  await Promise.all(clients);
  return losses;
}

// ---------------------------------------------------------------------------------------------
// Reload and end.

scenario(
  "2,000 connections under 8 reloads: none is lost, and metrics are served throughout",
  async (stage) => {
    echo(stage);
    const settings = { outgoing: { addresses: WHOLE_POOL }, workers: 2, log: { level: "info" } };
    const relay = await egress(stage, settings);
    const long = await tunnel(stage.net.lan, asked(), ECHO);
    long.write("before");
    await long.read(6);
    // A scraper that keeps its connection: it would notice a port that is closed for a moment.
    const scraper = await connect(stage.net.proxy, PROXY[4], METRICS_PORT);
    const scrape = async (): Promise<void> => {
      scraper.write("GET /metrics HTTP/1.1\r\nHost: m\r\n\r\n");
      const head = await scraper.readUntil("\r\n\r\n");
      assert.match(head, /^HTTP\/1\.1 200/);
      await scraper.read(Number(/content-length: (\d+)/i.exec(head)![1]));
    };
    await scrape();
    let over = false;
    const counts: number[] = [];
    const failures: string[] = [];
    const scraping = (async () => {
      while (!over) {
        const { status, body, error } = await curl(stage.net.proxy, METRICS_URL);
        if (status !== 0) failures.push(`${status}: ${error}`);
        else counts.push(sample(String(body), "usocksd_connections_total", { status: "granted" }));
        await sleep(50);
      }
    })();
    const loaded = underLoad(stage, 2_000, async (done) => {
      for (let i = 1; i <= 8; i++) {
        await eventually("load", () => done() >= i * 200);
        // Each time something else: time-outs, users' limits, the pool, the listeners, nothing.
        relay.configure(
          settingsOf({
            ...settings,
            timeouts: { idle: `${i}h` },
            outgoing: { addresses: WHOLE_POOL.slice(i % 3), deny_ports: [1000 + i] },
            ...(i % 3 === 1 ? { incoming: { addresses: [PROXY[4], "127.0.0.1"] } } : {}),
          }),
        );
        await relay.reload();
        await scrape();
      }
    });
    const losses = await loaded.finally(() => (over = true));
    await scraping;
    assert.deepEqual(losses, []);
    assert.deepEqual(failures, [], "the metrics' port");
    assert.ok(counts.length >= 5, `${counts.length} scrapes`);
    assert.deepEqual(counts, [...counts].sort((a, b) => a - b), "no count goes back");
    long.finish("after");
    assert.equal(String((await long.rest()).data), "after", "a long connection lives through all");
    assert.equal((await relay.stop()).code, 0);
  },
);

scenario("HUP moves the metrics' port, and the listeners", async (stage) => {
  echo(stage);
  const relay = await egress(stage);
  await metrics(stage);
  relay.configure(settingsOf({ incoming: { metrics_port: METRICS_PORT + 1, port: PORT + 1 } }));
  await relay.reload();
  const at = (port: number) => curl(stage.net.proxy, `http://${text(PROXY[4], port)}/metrics`);
  assert.equal((await at(METRICS_PORT + 1)).status, 0);
  await eventually("the old port is closed", async () => (await at(METRICS_PORT)).status === 7);
  assert.equal(await codeOf(stage.net.lan, text(PROXY[4], PORT + 1), ECHO), GRANTED);
  await eventually("the old listener is closed", async () => (await short(stage)) === "ECONNREFUSED");
  relay.configure(settingsOf({ incoming: { metrics_port: 0 } }));
  await relay.reload();
  await eventually("0 is off", async () => (await at(METRICS_PORT + 1)).status === 7);
  assert.equal(await short(stage), "");
});

scenario("a broken file on HUP: told with its line, and nothing changes", async (stage) => {
  echo(stage);
  const relay = await egress(stage, { outgoing: { deny_ports: [25] } });
  const good = readFileSync(relay.file, "utf8");
  for (const broken of [
    good.replace("deny_ports", "deny_portz"),
    good.replace("[25]", '["25-"]'),
    `${good}\n[incoming\n`,
    good.replace(/addresses = \["192\.0\.2\.2"/, 'addresses = ["localhost"'),
  ]) {
    assert.notEqual(broken, good);
    writeFileSync(relay.file, broken);
    const before = relay.log().length;
    const losses = await underLoad(stage, 50, async () => {
      relay.process.signal("SIGHUP");
      const told = (): boolean =>
        relay.log().slice(before).some((entry) => entry.severity === "error");
      await eventually("it is told", told);
    });
    assert.deepEqual(losses, []);
    const told = JSON.stringify(relay.log().slice(before));
    assert.match(told, new RegExp(`${relay.file}:\\d+`), "with the file and the line");
    assert.equal(await codeOf(stage.net.lan, asked(), { to: SERVER[4], port: 25 }), 2);
    await metrics(stage);
  }
});

scenario("TERM: new connections are refused, running ones finish, exit 0", async (stage) => {
  echo(stage);
  const relay = await egress(stage, { workers: 2 });
  const { lan } = stage.net;
  const running = await Promise.all(Array.from({ length: 10 }, () => tunnel(lan, asked(), ECHO)));
  const asking = await dial(lan, asked());
  asking.write(greeting(0));
  await asking.read(2);
  relay.process.signal("SIGTERM");
  await eventually("refused", async () => (await short(stage)) === "ECONNREFUSED");
  for (const [i, client] of running.entries()) {
    client.write(`still ${i}`);
    assert.equal(String(await client.read(7)), `still ${i}`);
  }
  assert.equal(relay.process.exit, null, "it waits for them");
  for (const client of running) {
    client.finish("bye");
    assert.equal(String((await client.rest()).data), "bye");
  }
  asking.destroy();
  const exit = await Promise.race([relay.process.exited, sleep(PATIENCE_MS).then(() => "still there")]);
  assert.deepEqual(exit, { code: 0, signal: null });
});

scenario("TERM ends those who negotiate, dial or resolve by the drain's deadline", async (stage) => {
  const names = await Names.start(stage);
  names.scripts.set("silent.scripted.test", { silent: true });
  const relay = await egress(stage, {
    timeouts: { drain: "1s", dial: "1h", dns: "1m", negotiation: "1h" },
  });
  const { lan } = stage.net;
  const peers = await Promise.all(Array.from({ length: 3 }, () => dial(lan, asked())));
  peers[1]!.write(Buffer.concat([greeting(0), request("192.0.2.66", 80)]));
  peers[2]!.write(Buffer.concat([greeting(0), request("silent.scripted.test", 80)]));
  await sleep(300);
  relay.process.signal("SIGTERM");
  const exit = await Promise.race([relay.process.exited, sleep(PATIENCE_MS).then(() => "still there")]);
  assert.deepEqual(exit, { code: 0, signal: null });
  for (const peer of peers) await peer.ending();
});

// ---------------------------------------------------------------------------------------------
// Configuration of the predecessor's.

scenario("a usocksd.toml is understood, and what is open is said", async (stage) => {
  await Names.start(stage, { "www.amazon.test": [SERVER[4]] });
  web(stage);
  echo(stage);
  const { lan, proxy } = stage.net;
  const start = async (content: string): Promise<Relay> => {
    const relay = Relay.spawn(proxy, content);
    stage.keep(relay.process);
    return relay.ready();
  };
  const full = `
[log]
level = "info"
format = "json"
[incoming]
port = 1080
metrics_port = 9180
addresses = ["${PROXY[4]}"]
allow_from = ["10.0.0.0/8", "192.168.1.1"]
[outgoing]
allow_sites = ["www.amazon.test", ".google.com"]
deny_sites = [".2ch.net", "bad.google.com", ""]
deny_ports = [22, 25]
#iface = "tun0"
addresses = ["${POOL[4][0]}", "${POOL[4][1]}"]
dnsbl_domain = "bl.test"
`;
  const one = await start(full);
  assert.equal(await codeOf(lan, asked(), { to: "www.amazon.test", port: 80 }), GRANTED);
  assert.equal(await codeOf(lan, asked(), { to: SERVER[4], port: 80 }), 2);
  await metrics(stage);
  await one.stop();
  // All its defaults: it is open to everybody, as usocksd was, and that is no secret.
  const open = await start("[incoming]\n[log]\nformat = \"json\"\n");
  for (const family of FAMILIES) {
    assert.equal(await codeOf(lan, asked(family), ECHO), GRANTED, "on all interfaces");
    const url = `http://${text(PROXY[family], 1081)}/`;
    assert.equal((await curl(lan, url)).status, 0, "and its metrics, at any path");
  }
  await open.logged(
    "what is open",
    (entry) => /warning|error/.test(entry.severity) && JSON.stringify(entry).includes("allow_from"),
  );
});

scenario("usocksd's metrics have their names and labels", async (stage) => {
  await Names.start(stage, { "web.test": [SERVER[4]] });
  echo(stage);
  const { lan } = stage.net;
  const relay = await egress(stage, {
    outgoing: { addresses: POOL[4], deny_ports: [25] },
    users: { root: "" },
  });
  const user = { user: "root", password: "" };
  const many = async (target: object, count: number, version: 4 | 5 = 5): Promise<void> => {
    for (let i = 0; i < count; i++) {
      const it = await ask(lan, asked(), { ...ECHO, ...user, ...target, version });
      it.peer.finish("x".repeat(1_000));
      await it.peer.rest().catch(() => {});
      it.peer.destroy();
    }
  };
  await many({}, 3);
  await many({ to: "web.test" }, 2);
  await many({}, 2, 4);
  await many({ port: 25 }, 4);
  await many({ port: 81 }, 5);
  await many({ password: "wrong" }, 6);
  const nonsense = await dial(lan, asked());
  nonsense.write("GET / HTTP/1.1\r\n\r\n");
  await nonsense.ending();
  const total = "usocksd_connections_total";
  const expected: [name: string, labels: Record<string, string>, value: number][] = [
    [total, { version: "SOCKS5", status: "granted" }, 5],
    [total, { version: "SOCKS4_4a", status: "granted" }, 2],
    [total, { version: "SOCKS5", status: "not_allowed" }, 4],
    [total, { version: "SOCKS5", status: "connection_refused" }, 5],
    [total, { version: "SOCKS5", status: "authentication_failure" }, 6],
    [total, { version: "unknown", status: "unknown_version" }, 1],
    ["usocksd_proxy_inflight_requests", {}, 0],
    ["usocksd_proxy_elapsed_seconds_count", { result: "success" }, 7],
    ["usocksd_proxy_tx_bytes_sum", {}, 7_000],
    ["usocksd_proxy_rx_bytes_sum", {}, 7_000],
    ["usocksd_socks5_address_read_total", { type: "Domain_name", result: "ok" }, 2],
  ];
  let text = "";
  // A client hears the end of its tunnel before that is counted, and one number is before the other.
  await eventually("all is counted", async () => {
    text = await metrics(stage);
    return expected.every(([name, labels, value]) => sample(text, name, labels) >= value) && sample(text, "usocksd_proxy_inflight_requests") === 0;
  }).catch(() => {});
  for (const [name, labels, value] of expected) {
    assert.equal(sample(text, name, labels), value, `${name} ${JSON.stringify(labels)}\n${text}`);
  }
  for (const name of [
    "usocksd_proxy_tx_seconds",
    "usocksd_proxy_rx_seconds",
    "usocksd_proxy_tx_bytes",
    "usocksd_proxy_rx_bytes",
    "usocksd_proxy_elapsed_seconds",
  ]) {
    assert.match(text, new RegExp(`^# TYPE ${name} histogram$`, "m"));
  }
  for (const name of ["usocksd_proxy_tx_errors_total", "usocksd_socks5_auth_negotiated_total"]) {
    assert.match(text, new RegExp(`^# TYPE ${name} counter$`, "m"));
  }
  const bounds = [...text.matchAll(/^usocksd_proxy_tx_bytes_bucket\{.*le="([^"]+)"/gm)];
  const largest = Math.max(...bounds.map(([, le]) => Number(le)).filter(Number.isFinite));
  assert.ok(largest >= 1e6, `byte buckets up to ${largest} mean nothing`);
  assert.equal(relay.process.exit, null);
});

scenario("each direction has its own time, as usocksd had it", async (stage) => {
  echo(stage);
  const answers = stage.listen(stage.net.internet, SERVER[4], 7000);
  await egress(stage);
  const client = await tunnel(stage.net.lan, asked(), { to: SERVER[4], port: 7000 });
  const server = await answers.accept();
  client.finish("question");
  await server.rest();
  await sleep(1_500);
  server.finish("answer");
  await client.rest();
  let page = "";
  await eventually("it is counted", async () => {
    page = await metrics(stage);
    return sample(page, "usocksd_proxy_rx_seconds_count") === 1;
  });
  const tx = sample(page, "usocksd_proxy_tx_seconds_sum");
  const rx = sample(page, "usocksd_proxy_rx_seconds_sum");
  assert.ok(rx - tx > 1, `tx ${tx} s, rx ${rx} s`);
  assert.equal(sample(page, "usocksd_proxy_elapsed_seconds_sum", { result: "success" }), rx);
});

// ---------------------------------------------------------------------------------------------
// Limits.

scenario("64 file descriptors, 100 clients; then none; then service again", async (stage) => {
  echo(stage);
  const { lan } = stage.net;
  const relay = await egress(
    stage,
    { workers: 1, incoming: { metrics_port: 0 }, timeouts: { negotiation: "1h" } },
    { nofile: "64:64" },
  );
  const before = relay.process.fds();
  const clients = await Promise.all(Array.from({ length: 100 }, () => dial(lan, asked())));
  const ask = Buffer.concat([greeting(0), request(ECHO.to, ECHO.port), Buffer.from("ping")]);
  for (const client of clients) client.write(ask);
  const whole = 2 + 10 + 4;
  const served = (): Peer[] => clients.filter((client) => client.total === whole);
  await eventually("some are served", () => served().length >= 4);
  await settled("their number", () => served().length);
  const alive = served();
  assert.ok(alive.length >= 4 && alive.length <= 32, `${alive.length} of 100 are served`);
  const cpu = relay.process.cpuSeconds();
  await sleep(1_000);
  const spent = relay.process.cpuSeconds() - cpu;
  assert.ok(spent < 0.3, `${spent} s of CPU in a second of standing still`);
  assert.ok(relay.log().length < 1_000, "the log is not flooded");
  for (const client of alive) client.finish();
  const next = clients.filter((client) => !alive.includes(client));
  await eventually(
    "others are served in their place",
    () => next.filter((client) => client.total === whole).length >= alive.length / 2,
  );
  for (const client of clients) client.destroy();
  await eventually("all is given back", () => relay.process.fds() <= before);
  for (let i = 0; i < 20; i++) assert.equal(await short(stage), "", `client ${i} afterwards`);
  assert.equal(relay.process.exit, null);
});

scenario(
  "10,000 clients that say nothing cost two KiB of user memory each, and others are served",
  async (stage) => {
    echo(stage);
    const { lan } = stage.net;
    const relay = await egress(stage, { workers: 2, timeouts: { negotiation: "1h" } });
    const ready = await relay.logged("readiness", (entry) => "max_connections" in entry);
    // Each may come to need two descriptors; and one connection more must find room.
    const room = Number(ready["max_connections"]) - 100;
    const count = Math.floor(Math.min(10_000, room) / 100) * 100;
    if (count < 10_000) stage.note(`only ${count}: nofile is ${ready["nofile"]}`);
    // In service: the workers' young generations, some MiB once, have grown to what they need.
    await underLoad(stage, 1_000, async () => {});
    const resident = (): number => relay.process.residentKiB();
    const anonymous = (): number =>
      Number(/RssAnon:\s+(\d+)/.exec(readFileSync(`/proc/${relay.process.pid}/status`, "utf8"))![1]);
    const fds = relay.process.fds();
    const before = { anonymous: anonymous(), resident: resident() };
    const clients: Peer[] = [];
    try {
      for (let i = 0; i < count; i += 100) {
        // From several addresses: one has not so many ports towards one listener.
        const from = CLIENTS[4][(i / 100) % CLIENTS[4].length]!;
        const some = Array.from({ length: 100 }, () => dial(lan, asked(), from));
        clients.push(...(await Promise.all(some)));
      }
      // Half of them begin to speak, and stop.
      for (const client of clients.slice(0, count / 2)) client.write(greeting(0).subarray(0, 2));
      await eventually("all are accepted", () => relay.process.fds() >= fds + count);
      await sleep(500);
      const grown = anonymous() - before.anonymous;
      stage.note(
        `${count} clients: ${grown} KiB of anonymous memory, ` +
          `${resident() - before.resident} KiB resident: ${(grown / count).toFixed(2)} KiB each`,
      );
      assert.ok(grown / count <= 2, `${(grown / count).toFixed(2)} KiB each`);
      assert.equal(await short(stage), "");
    } finally {
      for (const client of clients) client.destroy();
    }
    await eventually("all is given back", () => relay.process.fds() <= fds + 64);
  },
);

// ---------------------------------------------------------------------------------------------
// Names.

scenario("a DNS that never answers holds up nobody else", async (stage) => {
  const names = await Names.start(stage, { "web.test": [SERVER[4]] });
  echo(stage);
  const { lan } = stage.net;
  for (let i = 0; i < 100; i++) names.scripts.set(`s${i}.scripted.test`, { silent: true });
  const relay = await egress(stage, { timeouts: { dns: "1m", negotiation: "1h" } });
  const held: Peer[] = [];
  for (let i = 0; i < 200; i++) {
    const peer = await dial(lan, asked());
    peer.write(Buffer.concat([greeting(0), request(`s${i % 100}.scripted.test`, 80)]));
    held.push(peer);
  }
  await eventually("they are asked for", async () => sample(await metrics(stage), "transplice_names_in_flight") === 100);
  for (const to of [SERVER[4], "web.test", SERVER[4], "unknown.test"]) {
    assert.equal(await codeOf(lan, asked(), { to, port: 7 }), to === "unknown.test" ? 4 : GRANTED, to);
  }
  for (const peer of held) {
    assert.equal(peer.end, null, "nobody else has been let go meanwhile");
    peer.destroy();
  }
  // And with a deadline they hear of it.
  relay.configure(settingsOf({ timeouts: { dns: "2s" } }));
  await relay.reload();
  for (let i = 0; i < 100; i++) names.scripts.set(`t${i}.scripted.test`, { silent: true });
  const began = performance.now();
  const codes = await Promise.all(Array.from({ length: 200 }, (_, i) => codeOf(lan, asked(), { to: `t${i % 100}.scripted.test`, port: 80 })));
  assert.ok(performance.now() - began > 1_900);
  assert.deepEqual([...new Set(codes)].filter((code) => ![4, 6, 1].includes(code)), []);
});

scenario("clients with many names that nobody answers leave room for the names of others", async (stage) => {
  const names = await Names.start(stage, { "web.test": [SERVER[4]] });
  echo(stage);
  const { lan } = stage.net;
  const relay = await egress(stage, { workers: 2, timeouts: { dns: "1m", negotiation: "1h" } });
  // Three clients, 600 names each: more than are asked for at a time.
  const peers: Peer[] = [];
  for (let i = 0; i < 1_800; i++) {
    const name = `silent${i}.scripted.test`;
    names.scripts.set(name, { silent: true });
    const peer = await dial(lan, asked(), CLIENTS[4][i % 3]!);
    peer.write(Buffer.concat([greeting(0), request(name, 80)]));
    peers.push(peer);
  }
  await eventually("the names are being asked for", async () =>
    sample(await metrics(stage), "transplice_names_in_flight") >= 500);
  for (const from of CLIENTS[4].slice(3, 6)) {
    assert.equal(await codeOf(lan, asked(), { to: "web.test", port: 7, from }), GRANTED, from);
    assert.equal(await codeOf(lan, asked(), { to: `un${from}.test`, port: 7, from }), 4, from);
  }
  for (const peer of peers) peer.destroy();
  assert.equal(relay.process.exit, null);
});

scenario("a thousand clients that ask for one slow name cost one question", async (stage) => {
  const names = await Names.start(stage);
  names.scripts.set("slow.scripted.test", {
    addresses: [SERVER[4]],
    delayMs: 500,
    ttlSeconds: 60,
  });
  echo(stage);
  const { lan } = stage.net;
  await egress(stage, { workers: 2 });
  const target = { to: "slow.scripted.test", port: 7 };
  const codes = await Promise.all(
    Array.from({ length: 1_000 }, (_, i) =>
      codeOf(lan, asked(), { ...target, from: CLIENTS[4][i % CLIENTS[4].length]! }),
    ),
  );
  assert.deepEqual(codes.filter((code) => code !== GRANTED), []);
  // This process answers it, and is busy: what is answered late is asked again, twice at most by the deadline.
  const questions = await names.allQuestions("slow.scripted.test", "A");
  assert.ok(questions >= 1 && questions <= 3, `${questions} questions`);
  assert.ok(names.questions("slow.scripted.test", "AAAA") <= 3);
  // And none while its time to live lasts.
  assert.equal(await codeOf(lan, asked(), target), GRANTED);
  assert.equal(await names.allQuestions("slow.scripted.test", "A"), questions);
});

scenario("a time to live is kept, a name that is unknown is asked again later", async (stage) => {
  const names = await Names.start(stage);
  web(stage, [SERVER[4], "198.51.100.11"]);
  let address: string = SERVER[4];
  names.scripts.set("moves.scripted.test", () => ({ addresses: [address], ttlSeconds: 12 }));
  await egress(stage);
  const { lan } = stage.net;
  const where = async (): Promise<string> =>
    (await seen(await tunnel(lan, asked(), { to: "moves.scripted.test", port: 80 }))).local;
  assert.equal(await where(), `${SERVER[4]}:80`);
  address = "198.51.100.11";
  assert.equal(await where(), `${SERVER[4]}:80`, "within the time to live");
  await eventually("it has moved", async () => (await where()) === "198.51.100.11:80");
  const unknown = { to: "late.scripted.test", port: 80 };
  assert.equal(await codeOf(lan, asked(), unknown), 4);
  // More than one if this busy process has answered it late.
  const questions = await names.allQuestions("late.scripted.test", "A");
  assert.ok(questions >= 1 && questions <= 3, `${questions} questions`);
  for (let i = 0; i < 20; i++) assert.equal(await codeOf(lan, asked(), unknown), 4);
  assert.equal(await names.allQuestions("late.scripted.test", "A"), questions, "an unknown name is kept as well");
});

// ---------------------------------------------------------------------------------------------
// Together with the relay.

scenario("relay and egress in one process, from one file", async (stage) => {
  web(stage);
  const { lan, relay: host } = stage.net;
  stage.intercept({ mode: "redirect", from: "routed", port: 1081 });
  const upstream = stage.upstream({ protocol: "socks5", dials: true }, PROXY[4], 1088);
  const both = await stage.relay({
    listen: ":1081",
    proxy_url: upstream.url(),
    incoming: { addresses: ["10.7.0.1"], port: PORT, metrics_port: METRICS_PORT },
    outgoing: { deny_ports: [25] },
  });
  for (const family of FAMILIES) {
    const url = `http://${text(SERVER[family], 80)}/`;
    const redirected = await visit(lan, url);
    assert.equal(redirected.peer, PROXY[family], "through the upstream");
    // What asks the egress is routed to the relay host itself, and not redirected.
    const by = ["--noproxy", "", "--socks5", `10.7.0.1:${PORT}`];
    assert.equal((await visit(lan, url, ...by)).peer, RELAY[family], "by the egress");
  }
  assert.equal(upstream.requests.length, FAMILIES.length);
  assert.equal(await codeOf(lan, `10.7.0.1:${PORT}`, { to: SERVER[4], port: 25 }), 2);
  const local = `http://127.0.0.1:${METRICS_PORT}/metrics`;
  const { body } = await curl(host, local);
  assert.match(String(body), /usocksd_connections_total/);
  const outside = await curl(lan, `http://10.7.0.1:${METRICS_PORT}/metrics`);
  assert.equal(outside.status, 7, "its metrics are for the host alone");
  await both.reload();
  assert.equal((await visit(lan, `http://${SERVER[4]}/`)).peer, PROXY[4]);
  assert.equal((await both.stop()).code, 0);
});

scenario("client, redirect, relay, egress with a pool, server: IPv4 and IPv6", async (stage) => {
  web(stage);
  const { lan } = stage.net;
  stage.intercept({ mode: "redirect", from: "routed", port: 1081 });
  const far = await egress(stage, {
    incoming: { allow_from: [RELAY[4]], proxy_protocol_from: [] },
    outgoing: { addresses: WHOLE_POOL },
    users: { relay: "s3cret" },
  });
  const near = await stage.relay({
    listen: ":1081",
    proxy_url: `socks5://relay:s3cret@${asked()}`,
    upstream: { pipelined: true },
  });
  const sources = new Set<string>();
  for (const family of FAMILIES) {
    for (const client of CLIENTS[family].slice(0, 3)) {
      const url = `http://${text(SERVER[family], 80)}`;
      const { peer, local } = await visit(lan, `${url}/`, "--interface", client);
      assert.ok((POOL[family] as readonly string[]).includes(peer), `${peer} is of the pool`);
      assert.equal(local, text(SERVER[family], 80));
      sources.add(peer);
      const bulk = await curl(lan, "--interface", client, `${url}/bytes/5000000`);
      assert.equal(bulk.body.length, 5_000_000, bulk.error);
    }
  }
  // To the egress the relay is one client: it leaves by one address of each family.
  assert.equal(sources.size, FAMILIES.length, [...sources].join(" "));
  const refused = await curl(lan, `http://${SERVER[4]}:81/`);
  assertReset(refused);
  await near.logged("the refusal", (entry) => JSON.stringify(entry).includes("refused"));
  assert.equal((await near.stop()).code, 0);
  assert.equal((await far.stop()).code, 0);
});

scenario("a reply is never late: 06 comes before a patient client gives up", async (stage) => {
  dmz(stage.net);
  await egress(stage, { timeouts: { dial: "1s" } });
  const peer = await dial(stage.net.lan, asked());
  peer.write(Buffer.concat([greeting(0), request("192.0.2.66", 80)]));
  await peer.read(2);
  assert.equal((await reply5(peer)).code, 6);
  assert.equal(await peer.ending(), "fin");
});
