/**
 * Upstreams: the proxies that people really run, with and without passwords; how an upstream is
 * named; what may travel through it.
 */
import { strict as assert } from "node:assert";
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { connect, eventually, PATIENCE_MS, sleep, text } from "./actors.ts";
import { DNS, Names } from "./names.ts";
import { BLACK_HOLE, FAMILIES, PROXY, RELAY, SERVER } from "./network.ts";
import {
  absence,
  type Account,
  asSomebody,
  dante,
  listening,
  microsocks,
  type Proxy,
  PROXIES,
  squid,
  tinyproxy,
} from "./proxies.ts";
import { type Host, PRIVATE, shadow, shadowAdding, unprivileged } from "./sandbox.ts";
import { scenario, type Stage } from "./scenario.ts";
import type { Upstream } from "./upstream.ts";
import { assertReset, curl, visit, webServer } from "./web.ts";

const PORT = 3128;
const PROTOCOLS = ["socks5", "http"] as const;
const LISTEN = "localhost:1081";
const MARK = 0x1081;

// Each with the most difficult characters that the program itself can take.
const ACCOUNTS = new Map<Proxy, Account>([
  [microsocks, { username: "us@er:1", password: "p:w/#%@ ü" }],
  [dante, { username: "alice", password: "p:w/#%@ ?" }],
  [squid, { username: "us@er", password: "p:w/#%@ ?" }],
  [tinyproxy, { username: "alice", password: "s3cret" }],
]);

const userinfo = ({ username, password }: Account): string =>
  `${encodeURIComponent(username)}:${encodeURIComponent(password)}@`;

function webServers(stage: Stage): void {
  for (const family of FAMILIES) {
    const server = webServer(stage.net.internet, SERVER[family], 80);
    stage.finally(() => {
      server.closeAllConnections();
      server.close();
    });
  }
}

async function start(
  stage: Stage,
  proxy: Proxy,
  account: Account | null,
  address: string = PROXY[4],
): Promise<void> {
  const missing = absence(proxy);
  if (missing !== null) stage.skip(missing);
  const program = stage.keep(proxy.start(stage.net.proxy, address, PORT, account));
  await listening(program, stage.net.relay, address, PORT);
}

/** Acknowledgements that waited for something to travel with, in vain. */
const delayedAcks = (host: Host): number => host.tcpExt("DelayedACKs");

for (const proxy of PROXIES) {
  const account = ACCOUNTS.get(proxy)!;
  const name = `${proxy.program} (${proxy.scheme})`;

  scenario(`${name} carries IPv4 and IPv6`, async (stage) => {
    webServers(stage);
    await start(stage, proxy, null);
    stage.intercept({ mode: "redirect", from: "local", port: 1081 });
    await stage.relay({ listen: LISTEN, proxy_url: `${proxy.scheme}://${PROXY[4]}:${PORT}` });
    for (const family of FAMILIES) {
      const url = `http://${text(SERVER[family], 80)}`;
      assert.equal((await visit(stage.net.relay, `${url}/`)).peer, PROXY[family]);
      const bulk = await curl(stage.net.relay, `${url}/bytes/3000000`);
      assert.equal(bulk.body.length, 3_000_000, bulk.error);
    }
    const refused = await curl(stage.net.relay, `http://${text(SERVER[4], 81)}/`);
    assertReset(refused);
  });

  // Its kernel may keep what a server says first until our kernel has acknowledged the answer before it.
  scenario(`${name}: no acknowledgement is put off when the server speaks first`, async (stage) => {
    const GREETING = "220 ready\r\n";
    stage.listen(stage.net.internet, SERVER[4], 25, (peer) => peer.write(GREETING));
    await start(stage, proxy, null);
    stage.intercept({ mode: "redirect", from: "routed", port: 1081 });
    await stage.relay({ listen: ":1081", proxy_url: `${proxy.scheme}://${PROXY[4]}:${PORT}` });
    let atOnce = 0;
    for (let i = 0; i < 20; i++) {
      const before = delayedAcks(stage.net.relay);
      const peer = await connect(stage.net.lan, SERVER[4], 25);
      assert.equal(String(await peer.read(GREETING.length)), GREETING);
      if (delayedAcks(stage.net.relay) === before) atOnce++;
    }
    // One is also put off by a machine that keeps us from reading for 40 ms; but not all of them.
    assert.ok(atOnce >= 5, `${atOnce} of 20`);
  });

  scenario(`${name} is reached by IPv6`, async (stage) => {
    webServers(stage);
    await start(stage, proxy, null, PROXY[6]);
    stage.intercept({ mode: "redirect", from: "local", port: 1081 });
    await stage.relay({ listen: LISTEN, proxy_url: `${proxy.scheme}://${text(PROXY[6], PORT)}` });
    for (const family of FAMILIES) {
      const seen = await visit(stage.net.relay, `http://${text(SERVER[family], 80)}/`);
      assert.equal(seen.peer, PROXY[family]);
    }
  });

  scenario(`${name} is told user name and password`, async (stage) => {
    webServers(stage);
    await start(stage, proxy, account);
    stage.intercept({ mode: "redirect", from: "local", port: 1081 });
    const url = `${proxy.scheme}://${userinfo(account)}${PROXY[4]}:${PORT}`;
    const relay = await stage.relay({ listen: LISTEN, proxy_url: url });
    const seen = await visit(stage.net.relay, `http://${text(SERVER[4], 80)}/`);
    assert.equal(seen.peer, PROXY[4]);
    assert.ok(
      !relay.process.output.includes(encodeURIComponent(account.password)),
      "the log has the password",
    );
  });

  scenario(`${name} refuses a wrong password: a reset, and an error in the log`, async (stage) => {
    await start(stage, proxy, account);
    stage.intercept({ mode: "redirect", from: "local", port: 1081 });
    for (const login of [`${userinfo({ ...account, password: "wr0ng" })}`, ""]) {
      const url = `${proxy.scheme}://${login}${PROXY[4]}:${PORT}`;
      const relay = await stage.relay({ listen: LISTEN, proxy_url: url });
      const fetched = await curl(stage.net.relay, `http://${text(SERVER[4], 80)}/`);
      assertReset(fetched);
      const failed = await relay.logged("the refusal", (entry) =>
        /failed to connect/.test(entry.message),
      );
      assert.equal(failed.severity, "error");
      assert.ok(!relay.process.output.includes("wr0ng"), "the log has the password");
      await relay.stop();
    }
  });
}

for (const protocol of PROTOCOLS) {
  for (const [login, expected] of [
    ["", null],
    ["us%40er:p%3Aw%25@", { username: "us@er", password: "p:w%" }],
    ["user:@", { username: "user", password: "" }],
    ["user@", { username: "user", password: "" }],
  ] as const) {
    scenario(`${protocol}://${login}host:port says what it says`, async (stage) => {
      stage.intercept({ mode: "redirect", from: "local", port: 1081 });
      const script = expected === null ? { protocol } : { protocol, credentials: expected };
      const upstream = stage.upstream(script);
      await stage.relay({ listen: LISTEN, proxy_url: upstream.url(login) });
      const client = await connect(stage.net.relay, SERVER[6], 443);
      const { request } = await upstream.accept();
      assert.deepEqual(request.credentials, expected);
      assert.deepEqual([request.host, request.port], [SERVER[6], 443]);
      if (protocol === "http") {
        const target = text(SERVER[6], 443);
        assert.ok(request.header.startsWith(`CONNECT ${target} HTTP/1.1\r\n`), request.header);
        assert.match(
          request.header,
          new RegExp(`^host: ${target.replaceAll(/[[\]]/g, "\\$&")}\r$`, "im"),
        );
      }
      client.destroy();
    });
  }

  scenario(
    `${protocol}: a server that speaks first is heard, its words glued to the reply or not`,
    async (stage) => {
      stage.intercept({ mode: "redirect", from: "local", port: 1081 });
      const banner = "220 mail.example ESMTP\r\n";
      for (const trickle of [false, true]) {
        const upstream = stage.upstream({ protocol, banner, trickle });
        const relay = await stage.relay({ listen: LISTEN, proxy_url: upstream.url() });
        const client = await connect(stage.net.relay, SERVER[4], 25);
        assert.equal(await client.readUntil("\r\n"), banner);
        const { peer } = await upstream.accept();
        client.write("EHLO me\r\n");
        assert.equal(await peer.readUntil("\r\n"), "EHLO me\r\n");
        client.finish();
        peer.finish();
        assert.equal((await relay.ended(text(SERVER[4], 25))).rx_bytes, banner.length);
        await relay.stop();
        upstream.close();
      }
    },
  );
}

scenario("HTTP: any 2xx is success, however long its header", async (stage) => {
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const long = `200 OK\r\n${`X-Padding: ${"x".repeat(100)}\r\n`.repeat(50)}Via: here`;
  for (const status of ["200 OK", "201 Created", "299 ", long]) {
    const upstream = stage.upstream({ protocol: "http", status, banner: "hi" });
    const relay = await stage.relay({ listen: LISTEN, proxy_url: upstream.url() });
    const client = await connect(stage.net.relay, SERVER[4], 80);
    assert.equal(String(await client.read(2)), "hi");
    client.destroy();
    upstream.close();
    await relay.stop();
  }
});

for (const protocol of PROTOCOLS) {
  scenario(`${protocol}: an upstream is found by its name`, async (stage) => {
    shadowAdding("/etc/hosts", `${PROXY[4]} upstream.test\n${PROXY[6]} upstream6.test`);
    webServers(stage);
    stage.intercept({ mode: "redirect", from: "local", port: 1081 });
    for (const [name, family] of [
      ["upstream.test", 4],
      ["upstream6.test", 6],
    ] as const) {
      const upstream = stage.upstream({ protocol, dials: true }, PROXY[family]);
      const relay = await stage.relay({ listen: LISTEN, proxy_url: `${protocol}://${name}:1080` });
      await visit(stage.net.relay, `http://${text(SERVER[4], 80)}/`);
      assert.equal(upstream.requests.length, 1);
      await relay.stop();
      upstream.close();
    }
  });
}

scenario("an upstream's name is asked for again: when its TTL has passed, and when a dial fails", async (stage) => {
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const names = await Names.start(stage);
  shadow("/etc/resolv.conf", `nameserver ${DNS.real}\n`);
  stage.finally(() => shadow("/etc/resolv.conf", "nameserver 127.0.0.1\n"));
  const [first, second] = [PROXY[4], "192.0.2.12"].map((address) =>
    stage.upstream({ protocol: "socks5", echoes: true }, address),
  ) as [Upstream, Upstream];
  const name = "upstream.scripted.test";
  const points = (upstream: Upstream, ttlSeconds: number): void =>
    void names.scripts.set(name, { addresses: [upstream.listener.address], ttlSeconds });
  points(first, 5);
  await stage.relay({ listen: LISTEN, proxy_url: `socks5://${name}:1080` });
  /** Which of the two a new connection comes to; null: it failed. */
  const leads = async (): Promise<Upstream | null> => {
    const before = first.requests.length;
    const client = await connect(stage.net.relay, SERVER[4], 80);
    client.finish("ping");
    const { data } = await client.rest();
    if (String(data) !== "ping") return null;
    return first.requests.length > before ? first : second;
  };
  assert.equal(await leads(), first);
  // Both serve, and no dial fails: only the TTL says that there is another address. The last answer
  // holds for an hour, and is asked for again since nobody is there any more.
  points(second, 3600);
  // A worker may hear of it a little later than the other: so many come to both.
  await eventually("the TTL has passed", async () => {
    for (let i = 0; i < 20; i++) if ((await leads()) !== second) return false;
    return true;
  });
  points(first, 3600);
  for (let i = 0; i < 5; i++) assert.equal(await leads(), second);
  second.close();
  await eventually("the failure has been heard of", async () => (await leads()) === first);
});

scenario("of an upstream's addresses the first is dead: the next is taken", async (stage) => {
  webServers(stage);
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  stage.upstream({ protocol: "socks5", dials: true });
  for (const dead of ["192.0.2.12", BLACK_HOLE[4]]) {
    shadowAdding("/etc/hosts", `${dead} several.test\n${PROXY[4]} several.test`);
    const relay = await stage.relay({
      listen: LISTEN,
      proxy_url: "socks5://several.test:1080",
      timeouts: { dial: "4s" },
    });
    for (let i = 0; i < 3; i++) {
      const seen = await visit(stage.net.relay, `http://${text(SERVER[4], 80)}/`);
      assert.equal(seen.peer, PROXY[4]);
    }
    await relay.stop();
  }
});

scenario(
  "an upstream whose name is unknown: reset, and said; served once it is known",
  async (stage) => {
    shadowAdding("/etc/hosts", "");
    webServers(stage);
    stage.intercept({ mode: "redirect", from: "local", port: 1081 });
    stage.upstream({ protocol: "socks5", dials: true });
    const relay = await stage.relay({ listen: LISTEN, proxy_url: "socks5://late.test:1080" });
    const refused = await curl(stage.net.relay, `http://${text(SERVER[4], 80)}/`);
    assertReset(refused);
    await relay.logged("the unknown name", (entry) => JSON.stringify(entry).includes("late.test"));
    shadowAdding("/etc/hosts", `${PROXY[4]} late.test`);
    await eventually(
      "it is served",
      async () => {
        await sleep(200);
        return (await curl(stage.net.relay, `http://${text(SERVER[4], 80)}/`)).status === 0;
      },
    );
  },
);

scenario("pipelined: greeting, password and request come in one write", async (stage) => {
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const credentials = { username: "alice", password: "s3cret" };
  const silent = stage.upstream({ protocol: "socks5", silentAt: "greeting", credentials });
  const relay = await stage.relay({
    listen: LISTEN,
    proxy_url: silent.url("alice:s3cret@"),
    upstream: { pipelined: true },
  });
  const client = await connect(stage.net.relay, SERVER[4], 80);
  const whole = 3 + 3 + "alice".length + "s3cret".length + 10;
  await eventually("all of it is there", () => silent.peers[0]?.total === whole);
  client.destroy();
  await relay.stop();
  silent.close();

  webServers(stage);
  const willing = stage.upstream({ protocol: "socks5", credentials, dials: true });
  await stage.relay({
    listen: LISTEN,
    proxy_url: willing.url("alice:s3cret@"),
    upstream: { pipelined: true },
  });
  for (const family of FAMILIES) {
    assert.equal(
      (await visit(stage.net.relay, `http://${text(SERVER[family], 80)}/`)).peer,
      PROXY[family],
    );
  }
});

// Not so microsocks: it takes the greeting as a whole message, and loses what comes with it.
scenario("danted can be spoken to pipelined", async (stage) => {
  webServers(stage);
  await start(stage, dante, null);
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  await stage.relay({
    listen: LISTEN,
    proxy_url: `socks5://${PROXY[4]}:${PORT}`,
    upstream: { pipelined: true },
  });
  for (let i = 0; i < 5; i++) {
    assert.equal((await visit(stage.net.relay, `http://${text(SERVER[4], 80)}/`)).peer, PROXY[4]);
  }
});

scenario(
  "direct: connects without an upstream, and its mark keeps it out of the rules",
  async (stage) => {
    webServers(stage);
    const everywhere = ["0.0.0.0/0", "::/0"];
    stage.intercept({
      mode: "redirect",
      from: "local",
      port: 1081,
      destinations: everywhere,
      exceptMark: MARK,
    });
    const relay = await stage.relay({ listen: LISTEN, proxy_url: "direct:", mark: MARK });
    for (const family of FAMILIES) {
      const destination = text(SERVER[family], 80);
      const seen = await visit(stage.net.relay, `http://${destination}/`);
      assert.equal(seen.peer, RELAY[family]);
      assert.equal(seen.local, destination);
      assert.equal((await relay.ended(destination)).reason, "finished");
    }
    const refused = await curl(stage.net.relay, `http://${text(SERVER[4], 81)}/`);
    assertReset(refused);
  },
);

// ---------------------------------------------------------------------------------------------
// Much data, and programs that are particular about theirs.

const GIGABYTE = 1_000_000_000;
const BULK = fileURLToPath(new URL("./bulk.js", import.meta.url));

for (const [direction, why] of [
  ["down", "a download"],
  ["up", "an upload"],
] as const) {
  scenario(
    `${why} of 1 GB arrives as it was sent`,
    async (stage) => {
      const { relay: host, internet } = stage.net;
      const server = stage.spawn(internet, process.execPath, BULK, "serve", SERVER[4], "80");
      await server.says(/listening/);
      if (absence(microsocks) === null) await start(stage, microsocks, null);
      else stage.upstream({ protocol: "socks5", dials: true }, PROXY[4], PORT);
      stage.intercept({ mode: "redirect", from: "local", port: 1081 });
      const relay = await stage.relay({
        listen: LISTEN,
        proxy_url: `socks5://${PROXY[4]}:${PORT}`,
      });
      const url = `http://${text(SERVER[4], 80)}`;
      const digests = `${PRIVATE}/digest`;
      const command =
        direction === "down"
          ? `curl -sS --noproxy '*' ${url}/${GIGABYTE} | ${process.execPath} ${BULK} digest >${digests} && curl -sS --noproxy '*' ${url}/digest`
          : `${process.execPath} ${BULK} generate ${GIGABYTE} 2>${digests} | curl -sS --noproxy '*' -H 'Expect:' -T - ${url}/up`;
      const transfer = stage.spawn(host, "sh", "-c", command);
      const exit = await transfer.exited;
      assert.equal(exit.code, 0, transfer.output);
      const digest = readFileSync(digests, "utf8");
      assert.equal(transfer.output.trim(), digest);
      assert.equal(digest.length, 64);
      const ends = () =>
        relay.ends().some((end) => Math.max(end.rx_bytes, end.tx_bytes) >= GIGABYTE);
      await eventually("the log counts the bytes", ends);
    },
  );
}

/** A tree of files whose copy can be compared. */
function tree(path: string): void {
  mkdirSync(`${path}/deep/er`, { recursive: true });
  for (let i = 0; i < 200; i++) writeFileSync(`${path}/deep/${i}`, `${i} `.repeat(i * 50));
  execFileSync("sh", ["-c", `head -c 20000000 /dev/urandom >${path}/deep/er/large`]);
}

/** Runs a program until its server has come up; fails with what it said last. */
async function untilItSucceeds(host: Host, command: string, ...args: string[]): Promise<void> {
  const deadline = Date.now() + PATIENCE_MS;
  for (;;) {
    const { status, output } = await host.execute(command, ...args);
    if (status === 0) return;
    if (Date.now() > deadline) throw new Error(`${command}: status ${status}: ${output}`);
    await sleep(100);
  }
}

scenario("rsync fetches a tree from its daemon", async (stage) => {
  if (!existsSync("/usr/bin/rsync")) stage.skip("rsync is not installed");
  const { relay: host, internet } = stage.net;
  tree(`${PRIVATE}/rsync/source`);
  writeFileSync(
    `${PRIVATE}/rsync/conf`,
    `
use chroot = no
[files]
path = ${PRIVATE}/rsync/source
`,
  );
  const daemon = [
    "--daemon",
    "--no-detach",
    "--port=8730",
    "--address",
    SERVER[6],
    "--config",
    `${PRIVATE}/rsync/conf`,
  ];
  stage.keep(asSomebody(internet, "/usr/bin/rsync", daemon));
  const upstream = stage.upstream({ protocol: "socks5", dials: true });
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  await stage.relay({ listen: LISTEN, proxy_url: upstream.url() });
  const copy = [
    "-rt",
    "--timeout=60",
    `rsync://${text(SERVER[6], 8730)}/files/`,
    `${PRIVATE}/rsync/copy/`,
  ];
  await untilItSucceeds(host, "rsync", ...copy);
  host.run("diff", ["-r", `${PRIVATE}/rsync/source`, `${PRIVATE}/rsync/copy`]);
  assert.ok(upstream.requests.length > 0);
});

scenario("ssh runs a command and carries a file", async (stage) => {
  if (!existsSync("/usr/sbin/sshd")) stage.skip("sshd is not installed");
  if (unprivileged())
    stage.skip("sshd separates its privileges by a second user, and there is one here only");
  const { relay: host, internet } = stage.net;
  const files = `${PRIVATE}/ssh`;
  mkdirSync(files, { recursive: true, mode: 0o700 });
  mkdirSync("/run/sshd", { recursive: true, mode: 0o755 });
  for (const key of ["host", "user"])
    execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", `${files}/${key}`]);
  execFileSync("cp", [`${files}/user.pub`, `${files}/authorized_keys`]);
  const options = [
    "UsePAM=no",
    "StrictModes=no",
    "PermitRootLogin=yes",
    `AuthorizedKeysFile=${files}/authorized_keys`,
    `PidFile=${files}/pid`,
    `HostKey=${files}/host`,
    `ListenAddress=${SERVER[4]}:22`,
  ];
  stage.spawn(
    internet,
    "/usr/sbin/sshd",
    "-D",
    "-e",
    "-f",
    "/dev/null",
    ...options.flatMap((option) => ["-o", option]),
  );
  const upstream = stage.upstream({ protocol: "http", dials: true });
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  await stage.relay({ listen: LISTEN, proxy_url: upstream.url() });
  const ssh = [
    "-F",
    "none",
    "-i",
    `${files}/user`,
    "-o",
    "StrictHostKeyChecking=no",
    "-o",
    `UserKnownHostsFile=${files}/known`,
    "-o",
    "BatchMode=yes",
    `root@${SERVER[4]}`,
  ];
  await untilItSucceeds(host, "ssh", ...ssh, "true");
  assert.equal((await host.execute("ssh", ...ssh, "echo", "$((6*7))")).output.trim(), "42");
  execFileSync("sh", ["-c", `head -c 20000000 /dev/urandom >${files}/large`]);
  const { status, output } = await host.execute(
    "sh",
    "-c",
    `ssh ${ssh.join(" ")} 'cat >${files}/copy' <${files}/large`,
  );
  assert.equal(status, 0, output);
  host.run("cmp", [`${files}/large`, `${files}/copy`]);
  assert.ok(upstream.requests.length > 0);
});

scenario("[[relays]]: each listener leads to its own upstream, and HUP to another", async (stage) => {
  const upstreams = [1080, 3128, 4145].map((port, i) =>
    stage.upstream({ protocol: i === 1 ? "http" : "socks5", echoes: true }, PROXY[4], port));
  const [first, second, third] = upstreams as [Upstream, Upstream, Upstream];
  const ways = [["198.51.100.20", 1081], ["198.51.100.21", 1082]] as const;
  for (const [to, port] of ways) stage.intercept({ mode: "redirect", from: "local", port, destinations: [`${to}/32`] });
  const settings = (relays: Upstream) => ({
    listen: "127.0.0.1:1081", proxy_url: first.url(), relays: [{ listen: "127.0.0.1:1082", proxy_url: relays.url() }], workers: 2,
  });
  const relay = await stage.relay(settings(second));
  const asked = async (): Promise<number[]> => {
    for (const upstream of upstreams) upstream.requests.length = 0;
    // More than there are workers, so that each has some.
    for (let i = 0; i < 8; i++) {
      for (const [to] of ways) {
        const client = await connect(stage.net.relay, to, 80);
        client.write("ping");
        assert.equal(String(await client.read(4)), "ping");
        client.finish();
      }
    }
    return upstreams.map(({ requests }) => requests.length);
  };
  assert.deepEqual(await asked(), [8, 8, 0]);
  assert.ok(first.requests.every(({ host }) => host === "198.51.100.20"));
  assert.ok(second.requests.every(({ host }) => host === "198.51.100.21"));
  relay.configure(settings(third));
  await relay.reload();
  assert.deepEqual(await asked(), [8, 0, 8]);
});

scenario("socks4: Dante is asked as a SOCKS4 client asks, and IPv6 is refused at once", async (stage) => {
  webServers(stage);
  await start(stage, dante, null);
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const relay = await stage.relay({ listen: LISTEN, proxy_url: `socks4://somebody@${PROXY[4]}:${PORT}` });
  assert.equal((await visit(stage.net.relay, `http://${text(SERVER[4], 80)}/`)).peer, PROXY[4]);
  assertReset(await curl(stage.net.relay, `http://${text(SERVER[4], 81)}/`));
  assert.equal((await relay.ended(text(SERVER[4], 81))).reason, "upstream-refused");
  assertReset(await curl(stage.net.relay, `http://${text(SERVER[6], 80)}/`));
  const ended = await relay.ended(text(SERVER[6], 80));
  assert.equal(ended.reason, "upstream-refused");
  assert.match(String(ended["error"]), /address type/i);
});

scenario("upstream.on_refusal: an HTTP upstream's refusal is the client's to read", async (stage) => {
  const upstream = stage.upstream({ protocol: "http", refuse: 503 });
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const settings = { listen: LISTEN, proxy_url: upstream.url(), upstream: { on_refusal: "forward", disclose_client: "forwarded-with-port" } };
  const relay = await stage.relay(settings);
  const url = `http://${text(SERVER[4], 80)}/`;
  const refused = await stage.net.relay.execute("curl", "-sS", "-m", "60", "-o", "/dev/null", "-w", "%{http_code}", url);
  assert.equal(refused.output.trim(), "503");
  const ended = await relay.ended(text(SERVER[4], 80));
  assert.equal(ended.reason, "upstream-status");
  assert.match(upstream.requests[0]!.header, new RegExp(`Forwarded: for="${RELAY[4]}:\\d+"`));
  relay.configure({ ...settings, upstream: { on_refusal: "reset" } });
  await relay.reload();
  assertReset(await curl(stage.net.relay, url));
  assert.doesNotMatch(upstream.requests[1]!.header, /Forwarded/);
});
