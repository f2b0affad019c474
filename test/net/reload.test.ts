/**
 * Signals: a reload loses nothing, a broken file changes nothing, the log file can be moved away,
 * and an end is orderly.
 */
import { strict as assert } from "node:assert";
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { connect, eventually, PATIENCE_MS, type Peer, sleep, text } from "./actors.ts";
import { PROXY, SERVER } from "./network.ts";
import { entriesOf, Faults, type Relay } from "./relay.ts";
import { PRIVATE } from "./sandbox.ts";
import { scenario, type Stage } from "./scenario.ts";
import { end, takenOver } from "./successor.ts";

const LISTEN = "localhost:1081";
const DESTINATION = text(SERVER[4], 80);

const newClient = (stage: Stage): Promise<Peer> => connect(stage.net.relay, SERVER[4], 80);

/** One short connection: "" if all went well, else what did not. */
async function short(stage: Stage): Promise<string> {
  let client: Peer;
  try {
    client = await newClient(stage);
  } catch (error) {
    return `connect: ${(error as NodeJS.ErrnoException).code}`;
  }
  client.finish("ping");
  const { data, end } = await client.rest();
  client.destroy();
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

scenario(
  "2,000 connections under 8 reloads: none is lost",
  async (stage) => {
    stage.intercept({ mode: "redirect", from: "local", port: 1081 });
    const upstream = stage.upstream({ protocol: "socks5", echoes: true });
    const settings = {
      listen: LISTEN,
      proxy_url: upstream.url(),
      workers: 2,
      log: { level: "info" },
    };
    const relay = await stage.relay(settings);
    const long = await newClient(stage);
    long.write("before");
    await long.read(6);
    const losses = await underLoad(stage, 2_000, async (done) => {
      for (let i = 1; i <= 8; i++) {
        await eventually("load", () => done() >= i * 200);
        // Each time something else: time-outs, the number of listeners, nothing at all.
        relay.configure({
          ...settings,
          listen: i % 3 === 1 ? [LISTEN, "127.0.0.1:1090"] : LISTEN,
          timeouts: { idle: `${i}h` },
        });
        await relay.reload();
      }
    });
    assert.deepEqual(losses, []);
    long.finish("after");
    assert.equal(String((await long.rest()).data), "after", "a long connection lives through all");
    assert.equal((await relay.stop()).code, 0);
  },
);

scenario("a broken file on HUP: told with its line, and nothing changes", async (stage) => {
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const upstream = stage.upstream({ protocol: "socks5", echoes: true });
  const relay = await stage.relay({ listen: LISTEN, proxy_url: upstream.url() });
  const long = await newClient(stage);
  const good = readFileSync(relay.file, "utf8");
  for (const broken of [
    `${good}\n[timeouts]\nidel = "1h"\n`,
    "listen = \n",
    good.replace("socks5://", "sock5://"),
  ]) {
    writeFileSync(relay.file, broken);
    const before = relay.log().length;
    const losses = await underLoad(stage, 50, async () => {
      relay.process.signal("SIGHUP");
      await eventually("it is told", () =>
        relay
          .log()
          .slice(before)
          .some((entry) => entry.severity === "error"),
      );
    });
    assert.deepEqual(losses, []);
    const told = JSON.stringify(
      relay
        .log()
        .slice(before)
        .filter((entry) => entry.severity === "error"),
    );
    if (broken.includes("idel")) assert.match(told, /idel.*idle|idle.*idel/);
    assert.match(told, new RegExp(`${relay.file}:\\d+|line`), "with the file and the line");
  }
  long.finish("still here");
  assert.equal(String((await long.rest()).data), "still here");
  writeFileSync(relay.file, good);
  await relay.reload();
  assert.equal(await short(stage), "");
});

/**
 * For node: raises the three in the moment in which the last of them is caught. Before it, node itself is
 * starting, and nobody can ask for anything; who sends them from without may come when it has started.
 */
const SIGNALS_AT_START = `data:text/javascript,${encodeURIComponent(`
  let raised = "TRANSPLICE_HANDOVER" in process.env; // Not in a successor.
  process.on("newListener", (name) => {
    if (name !== "SIGUSR2" || raised) return;
    raised = true;
    setImmediate(() => { for (const signal of ["SIGHUP", "SIGUSR1", "SIGUSR2"]) process.kill(process.pid, signal); });
  });
`)}`;

scenario("HUP, USR1 and USR2 while it starts: it starts, and reads the file again", async (stage) => {
  const upstream = stage.upstream({ protocol: "socks5", echoes: true });
  const relay = await stage.relay({ listen: LISTEN, proxy_url: upstream.url() }, { nodeFlags: ["--import", SIGNALS_AT_START] });
  await relay.logged("the reload", ({ message }) => message === "the configuration is taken on");
  assert.doesNotMatch(relay.process.output, /Debugger/);
  // USR2 would be obeyed by now, and TERM after it.
  relay.process.signal("SIGTERM");
  await eventually("it has ended", () => relay.process.exit !== null);
  const upgraded = relay.log().some(({ signal }) => signal === "SIGUSR2");
  if (upgraded) await end(await takenOver(stage, relay));
  assert.ok(!upgraded, "it was upgraded before it had begun");
});

scenario("HUP adds listeners and takes them away", async (stage) => {
  const upstream = stage.upstream({ protocol: "socks5", echoes: true });
  const settings = { listen: ["127.0.0.1:1081"], proxy_url: upstream.url() };
  const relay = await stage.relay(settings);
  const rules = stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  assert.equal(await short(stage), "");
  const long = await newClient(stage);
  long.write("ping");
  await long.read(4);
  relay.configure({ ...settings, listen: ["127.0.0.1:1081", "127.0.0.1:1082"] });
  await relay.reload();
  rules.remove();
  rules.remove = () => {};
  const moved = stage.intercept({ mode: "redirect", from: "local", port: 1082 });
  await eventually("the new listener serves", async () => (await short(stage)) === "");
  relay.configure({ ...settings, listen: ["127.0.0.1:1082"] });
  await relay.reload();
  assert.equal(await short(stage), "");
  moved.remove();
  moved.remove = () => {};
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  await eventually(
    "the old listener is gone",
    async () => (await short(stage)) === "connect: ECONNREFUSED",
  );
  long.finish("pong");
  assert.equal(String((await long.rest()).data), "pong", "its connections live on");
});

scenario(
  "2,000 connections while the listener becomes one for all addresses, and is one again: none is lost",
  async (stage) => {
    stage.intercept({ mode: "redirect", from: "local", port: 1081 });
    const upstream = stage.upstream({ protocol: "socks5", echoes: true });
    const settings = { listen: "127.0.0.1:1081", proxy_url: upstream.url(), workers: 2 };
    const relay = await stage.relay(settings);
    const isListenedOn = async (address: string): Promise<boolean> => {
      const client = await connect(stage.net.relay, address, 1081).catch(() => null);
      client?.destroy();
      return client !== null;
    };
    const losses = await underLoad(stage, 2_000, async (done) => {
      for (let i = 1; i <= 8; i++) {
        await eventually("load", () => done() >= i * 200);
        relay.configure({ ...settings, listen: i % 2 === 1 ? ":1081" : "127.0.0.1:1081" });
        await relay.reload();
        assert.equal(await isListenedOn("10.7.0.1"), i % 2 === 1, `after reload ${i}`);
      }
    });
    assert.deepEqual(losses, []);
  },
);

scenario("fewer workers on HUP: none of the listening sockets is left alone", async (stage) => {
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const upstream = stage.upstream({ protocol: "socks5", echoes: true });
  const settings = { listen: LISTEN, proxy_url: upstream.url() };
  const relay = await stage.relay({ ...settings, workers: 4 });
  for (const workers of [1, 3, 2]) {
    relay.configure({ ...settings, workers });
    await relay.reload();
    for (let i = 0; i < 30; i++) assert.equal(await short(stage), "", `connection ${i}, ${workers} workers`);
  }
});

scenario("a listener that cannot be had on HUP: told, and nothing changes", async (stage) => {
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const upstream = stage.upstream({ protocol: "socks5", echoes: true });
  stage.listen(stage.net.relay, "127.0.0.1", 1085);
  const settings = { listen: LISTEN, proxy_url: upstream.url() };
  const relay = await stage.relay(settings);
  relay.configure({ ...settings, listen: [LISTEN, "127.0.0.1:1085"] });
  const before = relay.log().length;
  relay.process.signal("SIGHUP");
  await eventually("it is told", () =>
    relay
      .log()
      .slice(before)
      .some((entry) => entry.severity === "error"),
  );
  assert.match(JSON.stringify(relay.log().slice(before)), /127\.0\.0\.1:1085/);
  assert.equal(await short(stage), "");
});

scenario("a new upstream is for new connections, old ones keep theirs", async (stage) => {
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const old = stage.upstream({ protocol: "socks5" });
  const fresh = stage.upstream({ protocol: "http" }, PROXY[4], 3128);
  const relay = await stage.relay({ listen: LISTEN, proxy_url: old.url() });
  const long = await newClient(stage);
  const { peer: longFar } = await old.accept();
  relay.configure({ listen: LISTEN, proxy_url: fresh.url() });
  await relay.reload();
  const client = await newClient(stage);
  const { peer: far } = await fresh.accept();
  far.finish("from the new one");
  assert.equal(String((await client.rest()).data), "from the new one");
  longFar.finish("from the old one");
  assert.equal(String((await long.rest()).data), "from the old one");
  assert.equal(old.requests.length, 1);
});

scenario("what is told to be taken on holds for the next connection, where a worker lags", async (stage) => {
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const old = stage.upstream({ protocol: "socks5" });
  const fresh = stage.upstream({ protocol: "http" }, PROXY[4], 3128);
  const faults = new Faults();
  const relay = await stage.relay({ listen: LISTEN, proxy_url: old.url(), workers: 1 }, faults.start);
  faults.request("hang");
  const first = await newClient(stage);
  await eventually("the worker hangs", () => faults.files().includes("hanging"));
  relay.configure({ listen: LISTEN, proxy_url: fresh.url(), workers: 1 });
  // Shorter than one waits for a worker that lags: then it is told, and nobody waits.
  const lag = setTimeout(() => faults.take("hanging"), 200);
  await relay.reload();
  const client = await newClient(stage);
  const { peer: far } = await fresh.accept();
  far.finish("from the new one");
  assert.equal(String((await client.rest()).data), "from the new one");
  clearTimeout(lag);
  first.destroy();
});

scenario("the log file changes with HUP", async (stage) => {
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const upstream = stage.upstream({ protocol: "socks5", echoes: true });
  const [first, second] = [`${PRIVATE}/first.log`, `${PRIVATE}/second.log`];
  const settings = { listen: LISTEN, proxy_url: upstream.url(), log: { filename: first } };
  const relay = await stage.relay(settings);
  assert.equal(await short(stage), "");
  await relay.ended(DESTINATION);
  relay.configure({ ...settings, log: { filename: second } });
  await relay.reload();
  assert.equal(await short(stage), "");
  await relay.ended(DESTINATION);
  const ends = (file: string): number =>
    entriesOf(readFileSync(file, "utf8")).filter((entry) => entry.message === "proxy ends").length;
  assert.deepEqual([ends(first), ends(second)], [1, 1]);
});

scenario("USR1 after a rename: a new file is begun, and no line is lost", async (stage) => {
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const upstream = stage.upstream({ protocol: "socks5", echoes: true });
  const file = `${PRIVATE}/rotated.log`;
  const relay = await stage.relay({
    listen: LISTEN,
    proxy_url: upstream.url(),
    log: { filename: file },
  });
  const rotated: string[] = [file];
  const losses = await underLoad(stage, 1_000, async (done) => {
    for (let i = 1; i <= 4; i++) {
      await eventually("load", () => done() >= i * 150);
      renameSync(file, `${file}.${i}`);
      rotated.push(`${file}.${i}`);
      relay.process.signal("SIGUSR1");
      await eventually("a new file", () => {
        try {
          return readFileSync(file).length > 0;
        } catch {
          return false;
        }
      });
    }
  });
  assert.deepEqual(losses, []);
  const entries = () => rotated.flatMap((each) => entriesOf(readFileSync(each, "utf8")));
  await eventually(
    "all ends are there",
    () => entries().filter((entry) => entry.message === "proxy ends").length >= 1_000,
  );
  for (const message of ["proxy starts", "proxy ends"]) {
    const ids = entries()
      .filter((entry) => entry.message === message)
      .map((entry) => entry["request_id"]);
    assert.equal(ids.length, 1_000, message);
    assert.equal(new Set(ids).size, 1_000, "each its own request_id");
  }
});

scenario("TERM in the moment in which it begins to listen ends it in order", async (stage) => {
  const faults = new Faults();
  faults.request("listen");
  const relay = stage.relayStarting({ listen: LISTEN, proxy_url: `socks5://${PROXY[4]}:1080` }, faults.start);
  await eventually("it listens", () => faults.files().includes("listens"));
  relay.process.signal("SIGTERM");
  assert.deepEqual(await relay.process.exited, { code: 0, signal: null });
});

for (const signal of ["SIGTERM", "SIGINT"] as const) {
  scenario(
    `${signal}: new connections are refused at once, running ones finish, exit 0`,
    async (stage) => {
      stage.intercept({ mode: "redirect", from: "local", port: 1081 });
      const upstream = stage.upstream({ protocol: "socks5", echoes: true });
      const relay = await stage.relay({ listen: LISTEN, proxy_url: upstream.url(), workers: 2, timeouts: { drain: "1h" } });
      const running = await Promise.all(Array.from({ length: 10 }, () => newClient(stage)));
      const names = running.map((client) => client.local);
      for (const client of running) {
        client.write("ping");
        await client.read(4);
      }
      relay.process.signal(signal);
      await eventually(
        "new connections are refused",
        async () => (await short(stage)) === "connect: ECONNREFUSED",
      );
      for (const [i, client] of running.entries()) {
        client.write(`still ${i}`);
        assert.equal(String(await client.read(7)), `still ${i}`);
      }
      await sleep(300);
      assert.equal(relay.process.exit, null, "it waits for them");
      for (const client of running) {
        client.finish("bye");
        assert.equal(String((await client.rest()).data), "bye");
      }
      assert.deepEqual(await exitOf(relay), { code: 0, signal: null });
      const ended = relay.ends().map((end) => end.client_addr);
      for (const name of names) assert.ok(ended.includes(name), `${name} is logged`);
    },
  );
}

scenario("the drain ends at its deadline: what is left is reset, exit 0", async (stage) => {
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const upstream = stage.upstream({ protocol: "socks5", echoes: true });
  const relay = await stage.relay({
    listen: LISTEN,
    proxy_url: upstream.url(),
    timeouts: { drain: "1s" },
  });
  const client = await newClient(stage);
  client.write("ping");
  await client.read(4);
  const began = performance.now();
  relay.process.signal("SIGTERM");
  assert.equal(await client.ending(), "reset");
  const waited = performance.now() - began;
  assert.ok(waited > 900, `${waited} ms`);
  assert.deepEqual(await exitOf(relay), { code: 0, signal: null });
  assert.equal(relay.ends()[0]?.reason, "drain");
});

scenario("a second TERM cuts at once, exit 0", async (stage) => {
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const upstream = stage.upstream({ protocol: "socks5", echoes: true });
  const relay = await stage.relay({ listen: LISTEN, proxy_url: upstream.url(), timeouts: { drain: "1h" } });
  const client = await newClient(stage);
  client.write("ping");
  await client.read(4);
  relay.process.signal("SIGTERM");
  // Two signals that nobody has heard yet are one.
  await relay.logged("the drain", ({ message }) => message.startsWith("waiting for connections to end"));
  assert.equal(relay.process.exit, null);
  assert.equal(client.end, null);
  relay.process.signal("SIGTERM");
  assert.equal(await client.ending(), "reset");
  assert.deepEqual(await exitOf(relay), { code: 0, signal: null });
});

scenario("TERM without connections ends at once, also right after the start", async (stage) => {
  const upstream = stage.upstream({ protocol: "socks5" });
  const relay = await stage.relay({ listen: LISTEN, proxy_url: upstream.url() });
  relay.process.signal("SIGTERM");
  assert.deepEqual(await exitOf(relay), { code: 0, signal: null });
});

scenario("SIGPIPE does not matter, nor does a closed standard error", async (stage) => {
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const upstream = stage.upstream({ protocol: "socks5", echoes: true });
  const relay = await stage.relay({ listen: LISTEN, proxy_url: upstream.url() });
  relay.process.signal("SIGPIPE");
  assert.equal(await short(stage), "");
  relay.process.closeOutput();
  for (let i = 0; i < 20; i++) assert.equal(await short(stage), "", `connection ${i}`);
  assert.equal(relay.process.exit, null);
});

async function exitOf(relay: Relay): Promise<unknown> {
  return Promise.race([relay.process.exited, sleep(PATIENCE_MS).then(() => "still there")]);
}
