/**
 * What may go wrong with truthful connect(), and what a program sees of it: never less than behind a
 * proxy without it.
 */
import { strict as assert } from "node:assert";
import { existsSync } from "node:fs";
import { connect, eventually, type Peer, settled } from "./actors.ts";
import { FAMILIES, SERVER } from "./network.ts";
import { Faults, type Relay, type Settings, type StartOptions } from "./relay.ts";
import { unprivileged } from "./sandbox.ts";
import { scenario, type Stage } from "./scenario.ts";
import { applyRules, attempts, attemptsAtOnce, PYTHON, synsAgain } from "./truthful.ts";
import type { Script, Upstream } from "./upstream.ts";

const MARK = 0x1081;
const REFUSED = 5;
interface Setting {
  readonly relay: Relay;
  readonly upstream: Upstream;
  readonly settings: Settings;
}

async function setting(
  stage: Stage, script: Partial<Script>, more: Settings = {}, options: StartOptions = {},
): Promise<Setting> {
  const upstream = stage.upstream({ protocol: "socks5", echoes: true, ...script });
  const settings = {
    listen: ":1081", proxy_url: upstream.url(), mark: MARK, workers: 1,
    timeouts: { drain: "1h" },
    connect: { truthful: true, without: "refuse" },
    firewall: { interfaces: ["inner"] },
    ...more,
  };
  applyRules(stage, settings);
  return { relay: await stage.relay(settings, options), upstream, settings };
}

const client = (stage: Stage, port = 80): Promise<Peer> => connect(stage.net.relay, SERVER[4], port);

async function exchange(peer: Peer): Promise<void> {
  peer.write("ping");
  assert.equal(String(await peer.read(4)), "ping");
  peer.finish();
  await peer.rest();
}

/** What an upstream waits for: what must come before its answer is done by then, however slow the machine is. */
class Gate {
  readonly opened: Promise<void>;
  open!: () => void;

  constructor() {
    this.opened = new Promise((resolve) => (this.open = resolve));
  }
}

const errnoOf = (promise: Promise<unknown>): Promise<string> =>
  promise.then(() => "ok", (error: NodeJS.ErrnoException) => error.code ?? error.message);

scenario("three seconds until the upstream answers: three seconds of connect(), and one connection", async (stage) => {
  const { upstream } = await setting(stage, { delayMs: 3000, refuse: ({ port }) => (port === 80 ? 0 : REFUSED) });
  for (const host of [stage.net.relay, stage.net.lan]) {
    const before = upstream.requests.length;
    const [[granted], [refused]] = await Promise.all([
      attempts(host, SERVER[4], 80), attempts(host, SERVER[4], 81, { blocking: false }),
    ]);
    assert.equal(granted!.said, "ok");
    assert.equal(refused!.said, "ECONNREFUSED");
    for (const { ms } of [granted!, refused!]) assert.ok(ms > 2990, `${ms} ms on ${host.name}`);
    assert.equal(upstream.requests.length - before, 2, `dialled for once each, on ${host.name}`);
  }
});

scenario("a server that speaks first is heard", async (stage) => {
  const { upstream } = await setting(stage, { banner: "220 hello\r\n" });
  for (let i = 0; i < 20; i++) {
    const peer = await client(stage);
    assert.equal(String(await peer.read(11)), "220 hello\r\n");
    await exchange(peer);
  }
  assert.equal(upstream.requests.length, 20);
});

scenario("the client's port is taken again: the old attempt is over, the new one is made", async (stage) => {
  const gate = new Gate();
  const { upstream, relay } = await setting(stage, { waits: gate.opened });
  const program = `
import signal, socket, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
for i in range(3):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("", 45678))
    if i < 2:
        s.setblocking(False)
        s.connect_ex((sys.argv[1], 80))
        signal.sigwait([signal.SIGUSR1])
        s.close()
    else:
        s.connect((sys.argv[1], 80))
        s.sendall(b"ping")
        print(s.recv(4).decode())
`;
  const python = stage.spawn(stage.net.relay, PYTHON, "-c", program, SERVER[4]);
  for (const attempt of [1, 2, 3]) {
    await eventually(`attempt ${attempt} is dialled for`, () => upstream.requests.length === attempt);
    if (attempt < 3) python.signal("SIGUSR1");
  }
  gate.open();
  await python.exited;
  assert.equal(python.output.trim(), "ping");
  assert.equal(upstream.requests.length, 3);
  await eventually("both ends are told", () => relay.ends().filter(({ reason }) => reason === "client-left").length === 2);
});

scenario("killed: who is held hears of it, and who comes is refused at once", async (stage) => {
  const { relay, upstream } = await setting(stage, { silentAt: "request" });
  const held = attempts(stage.net.relay, SERVER[4], 80);
  await eventually("it is held", () => upstream.requests.length === 1);
  relay.process.signal("SIGKILL");
  await relay.process.exited;
  const [fresh] = await attemptsAtOnce(stage.net.relay, SERVER[4], 81);
  assert.equal(fresh!.said, "ECONNREFUSED");
  // Its SYN is sent again, and passes the queue by.
  assert.equal((await held)[0]!.said, "ECONNREFUSED");
});

scenario("told to end: who is held is let go, and nobody waits", async (stage) => {
  const { relay, upstream } = await setting(stage, { silentAt: "request" });
  const held = attempts(stage.net.relay, SERVER[4], 80);
  await eventually("it is held", () => upstream.requests.length === 1);
  relay.process.signal("SIGTERM");
  assert.equal((await held)[0]!.said, "ok", "accepted, as without the mode");
  await relay.process.exited;
  assert.equal((await attempts(stage.net.relay, SERVER[4], 81))[0]!.said, "ECONNREFUSED");
});

scenario("an nft chain is deleted, and with it the kernel forgets what it held: the client asks again", async (stage) => {
  const { upstream } = await setting(stage, { delayMs: 1500, refuse: ({ port }) => (port === 80 ? 0 : REFUSED) });
  const { relay } = stage.net;
  const held = [attempts(relay, SERVER[4], 80), attempts(relay, SERVER[4], 81)];
  await eventually("both are held", () => upstream.requests.length === 2);
  relay.run("nft", ["-f", "-"], "table inet other {\n chain c {\n type filter hook input priority 0\n }\n}\n");
  relay.run("nft", ["delete", "table", "inet", "other"]);
  const said = (await Promise.all(held)).map(([attempt]) => attempt!.said);
  assert.deepEqual(said, ["ok", "ECONNREFUSED"]);
  assert.equal(upstream.requests.length, 2, "dialled for once each");
});

scenario("SYN cookies leave no SYN to pair by: conntrack knows the port", async (stage) => {
  stage.net.relay.sysctl("net.ipv4.tcp_syncookies", 2);
  stage.finally(() => stage.net.relay.sysctl("net.ipv4.tcp_syncookies", 1));
  const { upstream } = await setting(stage, { refuse: ({ port }) => (port === 80 ? 0 : REFUSED) });
  for (const family of FAMILIES) {
    assert.equal(await errnoOf(connect(stage.net.relay, SERVER[family], 81)), "ECONNREFUSED");
    // The first connection has, for a while, the port that the second comes from.
    const program = `
import socket, sys
for host in sys.argv[1:]:
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("", 20001))
    s.connect((host, 80))
    s.sendall(b"ping")
    print(s.recv(4).decode(), end=" ")
    s.close()
`;
    const before = upstream.requests.length;
    const { output } = await stage.net.relay.execute(PYTHON, "-c", program, SERVER[family], family === 4 ? "198.51.100.11" : "2001:db8:100::11");
    assert.equal(output.trim(), "ping ping");
    assert.equal(upstream.requests.length, before + 2, "dialled for once each, also where the port was changed");
  }
});

scenario("a worker is replaced: what it held is let go, and dialled for after accept", async (stage) => {
  const faults = new Faults();
  const gate = new Gate();
  const { relay, upstream } = await setting(stage, { waits: gate.opened }, {}, faults.start);
  const held = client(stage);
  await eventually("it is held", () => upstream.requests.length === 1);
  faults.request("throw");
  const replaced = relay.logged("the replacement", ({ message }) => message.includes("a worker is replaced"));
  const [provoking] = await Promise.all([client(stage, 82), replaced.then(() => gate.open())]);
  const first = await held;
  await exchange(first);
  await exchange(provoking);
  assert.ok(upstream.requests.length >= 3);
  const before = upstream.requests.length;
  await exchange(await client(stage));
  assert.equal(upstream.requests.length, before + 1, "the new one holds and pairs as the old one did");
});

scenario("reload in mid-dial: who is held hears the truth; and the mode is switched off and on", async (stage) => {
  let gate = new Gate();
  const { relay, upstream, settings } = await setting(stage, { waits: () => gate.opened, refuse: ({ port }) => (port === 80 ? 0 : REFUSED) });
  const held = [errnoOf(client(stage, 81)), client(stage)] as const;
  await eventually("both are held", () => upstream.requests.length === 2);
  await relay.reload();
  gate.open();
  assert.equal(await held[0], "ECONNREFUSED");
  await exchange(await held[1]);
  assert.equal(upstream.requests.length, 2);

  gate = new Gate();
  const letGo = client(stage, 81);
  await eventually("it is held", () => upstream.requests.length === 3);
  relay.configure({ ...settings, connect: {} });
  await relay.reload();
  const peer = await letGo;
  gate.open();
  assert.equal((await peer.rest()).end, "reset", "accepted, and reset when it was refused");
  await exchange(await client(stage));

  relay.configure({ ...settings, workers: 2 });
  await relay.reload();
  assert.equal(await errnoOf(client(stage, 81)), "ECONNREFUSED");
  relay.configure({ ...settings, workers: 1 });
  await relay.reload();
  const before = upstream.requests.length;
  for (let i = 0; i < 4; i++) assert.equal(await errnoOf(client(stage, 81)), "ECONNREFUSED");
  for (let i = 0; i < 4; i++) await exchange(await client(stage));
  assert.equal(upstream.requests.length, before + 8, "one worker reads both queues, and pairs");
});

scenario("USR2 in mid-dial: the old process answers whom it holds, the new one reads on", async (stage) => {
  const gate = new Gate();
  const { relay, upstream } = await setting(stage, { waits: gate.opened, refuse: ({ port }) => (port === 80 ? 0 : REFUSED) });
  const held = [errnoOf(client(stage, 81)), client(stage)] as const;
  await eventually("both are held", () => upstream.requests.length === 2);
  relay.process.signal("SIGUSR2");
  const { successor } = await relay.logged("a successor", ({ message }) => message.includes("has taken over"));
  const pid = Number(successor);
  stage.finally(async () => {
    if (existsSync(`/proc/${pid}`)) process.kill(pid, "SIGKILL");
    await eventually("the successor has ended", () => !existsSync(`/proc/${pid}`));
  });
  const fresh = [errnoOf(client(stage, 81)), client(stage)] as const;
  await eventually("the new one holds, too", () => upstream.requests.length === 4);
  gate.open();
  assert.equal(await held[0], "ECONNREFUSED");
  await exchange(await held[1]);
  assert.equal(await fresh[0], "ECONNREFUSED");
  await exchange(await fresh[1]);
  const before = upstream.requests.length;
  await exchange(await client(stage));
  assert.equal(upstream.requests.length, before + 1, "held and paired");
});

for (const [lacks, keeps] of [["CAP_NET_ADMIN", "net_raw"], ["CAP_NET_RAW", "net_admin"]] as const) {
  scenario(`without ${lacks} it says so, and goes on as without the mode, or refuses to start`, async (stage) => {
    if (unprivileged()) stage.skip("only root can start it as another user");
    const upstream = stage.upstream({ protocol: "socks5", echoes: true });
    const settings = { listen: "localhost:1081", proxy_url: upstream.url(), workers: 1, firewall: { service_user: "nobody" } };
    applyRules(stage, { ...settings, connect: { truthful: true } });
    const command = ["setpriv", "--reuid=nobody", "--clear-groups", `--inh-caps=-all,+${keeps}`, `--ambient-caps=-all,+${keeps}`, "--bounding-set", `-all,+${keeps}`];
    const refused = stage.relayStarting({ ...settings, connect: { truthful: true, without: "refuse" } }, { command });
    const { code } = await refused.process.exited;
    assert.equal(code, 1);
    assert.match(refused.process.output, new RegExp(lacks));
    const relay = await stage.relay({ ...settings, connect: { truthful: true } }, { command });
    assert.ok(relay.log().some(({ severity, error }) => severity === "error" && String(error).includes(lacks)));
    await exchange(await client(stage));
  });
}

scenario("root starts it, and it becomes its user with what it needs", async (stage) => {
  if (unprivileged()) stage.skip("only root can become another user");
  const { upstream } = await setting(stage, { refuse: ({ port }) => (port === 80 ? 0 : REFUSED) }, { user: "nobody" });
  assert.equal(await errnoOf(client(stage, 81)), "ECONNREFUSED");
  await exchange(await client(stage));
  assert.equal(upstream.requests.length, 2);
});

scenario("every place is taken: who has one is paired past those who wait, and they are served in their turn", async (stage) => {
  const gate = new Gate();
  const { upstream } = await setting(stage, { waits: async ({ port }) => (port === 80 ? gate.opened : undefined) }, { max_connections: 4 });
  // Half of the places is for held ones.
  const held = [client(stage), client(stage)];
  await eventually("both are held", () => upstream.requests.length === 2);
  // Three at once for two places: all go on unheld, and one waits in front of those that are dialled for.
  let connected = 0;
  const answered: Peer[] = [];
  const others = Array.from({ length: 3 }, async () => {
    const peer = (await client(stage, 82)).write("ping");
    connected++;
    assert.equal(String(await peer.read(4)), "ping");
    answered.push(peer);
  });
  await eventually("two are served, and one waits", () => connected === 3 && answered.length === 2);
  gate.open();
  for (const peer of await Promise.all(held)) {
    peer.write("ping");
    assert.equal(String(await peer.read(4)), "ping");
  }
  await settled("how many have an answer", () => answered.length);
  assert.equal(answered.length, 2, "every place is taken");
  assert.equal(upstream.requests.length, 4);
  answered[0]!.finish();
  await Promise.all(others);
  assert.equal(upstream.requests.length, 5, "and each was dialled for once");
});

scenario("more SYNs than a queue has room for: those that find none are accepted as without the mode", async (stage) => {
  const { relay } = await setting(stage, { refuse: REFUSED });
  relay.process.signal("SIGSTOP");
  stage.finally(() => relay.process.signal("SIGCONT"));
  const program = `
import resource, select, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
sockets = []
poll = select.poll()
connected = 0
for i in range(15000):
    s = socket.socket()
    s.setblocking(False)
    s.connect_ex((sys.argv[1], 1 + i % 60000))
    sockets.append(s)
    poll.register(s, select.POLLOUT)
    if i % 500 == 499 and any(events & select.POLLOUT for _, events in poll.poll(0)):
        print("accepted after", i)
        break
else:
    print("all are held")
`;
  const { output } = await stage.net.relay.execute(PYTHON, "-c", program, SERVER[4]);
  assert.match(output, /accepted after/);
  relay.process.signal("SIGCONT");
  // What is left of all those is worked off, and the truth is told again.
  await eventually("connect() is told the truth", async () => (await attempts(stage.net.relay, SERVER[4], 80))[0]!.said === "ECONNREFUSED");
});

scenario("a flood of SYNs with forged sources: memory is bounded, and service goes on", async (stage) => {
  const { relay, upstream } = await setting(stage, { delayMs: 50 }, { max_connections: 400 });
  await exchange(await client(stage));
  const before = relay.process.residentKiB();
  // From the wire: 20,000 SYNs, each of another source.
  const program = `
import random, socket, struct, sys
def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    total = (total & 0xffff) + (total >> 16)
    return ~(total + (total >> 16)) & 0xffff
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
to = socket.inet_aton(sys.argv[1])
for i in range(20000):
    source = bytes([10, 66, random.randrange(256), random.randrange(1, 255)])
    tcp = struct.pack("!HHIIBBHHH", 1024 + i % 60000, 80, random.getrandbits(32), 0, 5 << 4, 2, 65535, 0, 0)
    tcp = tcp[:16] + struct.pack("!H", checksum(source + to + struct.pack("!HH", 6, len(tcp)) + tcp)) + tcp[18:]
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0, source, to)
    try:
        raw.sendto(ip + tcp, (sys.argv[1], 0))
    except OSError:
        pass
print("sent")
`;
  const flood = stage.net.lan.execute(PYTHON, "-c", program, SERVER[4]);
  let served = 0;
  let over = false;
  void flood.then(() => (over = true));
  while (!over || served < 5) {
    await exchange(await client(stage));
    served++;
  }
  assert.match((await flood).output, /sent/);
  stage.note(`${served} served meanwhile, ${upstream.requests.length} requests, from ${before} to ${relay.process.residentKiB()} KiB`);
  assert.ok(relay.process.residentKiB() - before < 100 * 1024);
  await eventually("the flood is forgotten", async () => {
    const before = synsAgain(stage.net.lan);
    const [seen] = await attempts(stage.net.lan, SERVER[4], 80);
    return seen!.said === "ok" && synsAgain(stage.net.lan) === before;
  });
});
