/**
 * The admin endpoint on real traffic: what it says is so, nobody learns from it what he should not, and
 * what it is told is done. It stays over a reload, an upgrade and to the end of a stop.
 */
import { strict as assert } from "node:assert";
import { statSync, writeFileSync } from "node:fs";
import { ADMIN_PORT, Asker, endings, lint, sum, TOKEN } from "./admin.ts";
import { connect, eventually, type Peer, sleep, text } from "./actors.ts";
import { PROXY, RELAY, SERVER } from "./network.ts";
import { Faults, type Relay, type Settings, type StartOptions } from "./relay.ts";
import { PRIVATE, shadow } from "./sandbox.ts";
import { scenario, type Stage } from "./scenario.ts";
import { codeOf, tunnel as tunnelBySocks } from "./socks.ts";
import { takenOver } from "./successor.ts";
import type { Upstream } from "./upstream.ts";

const LISTEN = "localhost:1081";
const ADMIN = { listen: `127.0.0.1:${ADMIN_PORT}`, token: TOKEN };
/** RFC 1928: connection not allowed by ruleset. */
const NOT_ALLOWED = 2;
const USER = { username: "joe", password: "sesame-open" };

interface Setting {
  readonly relay: Relay;
  readonly upstream: Upstream;
  readonly asker: Asker;
  readonly settings: Settings;
}

async function setting(stage: Stage, more: Settings = {}, options: StartOptions = {}): Promise<Setting> {
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const upstream = stage.upstream({ protocol: "socks5", echoes: true, credentials: USER });
  const settings = {
    listen: LISTEN, workers: 2, admin: ADMIN,
    proxy_url: `socks5://${USER.username}:${USER.password}@${text(PROXY[4], 1080)}`, ...more,
  };
  const relay = await stage.relay(settings, options);
  return { relay, upstream, settings, asker: new Asker(stage.net.relay) };
}

/** A tunnel that has echoed so many bytes. */
async function tunnel(stage: Stage, bytes = 4, port = 80): Promise<Peer> {
  const peer = await connect(stage.net.relay, SERVER[4], port);
  peer.write(Buffer.alloc(bytes, "x"));
  await peer.read(bytes);
  return peer;
}

/** What was accepted and is not open has ended for one reason each. */
async function assertAddsUp(asker: Asker): Promise<ReadonlyMap<string, number>> {
  const metrics = await asker.metrics();
  const ended = sum(endings(metrics).values());
  assert.equal(metrics.get("transplice_connections_accepted_total")! - metrics.get("transplice_tunnels_active")!, ended);
  const results = [...metrics].filter(([name]) => /^transplice_connections_total\{result="(?!refused)/.test(name));
  assert.equal(sum(results.map(([, value]) => value)), ended, "results and reasons");
  return metrics;
}

scenario("metrics: what promtool reads without complaint, and is so", async (stage) => {
  const { asker } = await setting(stage);
  const standing = await Promise.all([10, 20, 30].map((bytes) => tunnel(stage, bytes)));
  const past = await Promise.all([1, 2, 3, 4, 5].map(() => tunnel(stage, 100)));
  for (const peer of past) peer.finish();
  for (const peer of past) await peer.rest();
  await eventuallyAddsUp(asker, 5);
  const page = (await asker.get("/metrics")).text;
  const said = lint(page);
  if (said === null) stage.note("promtool is not here (Debian's package prometheus): the page was not linted");
  else assert.equal(said, "");
  assert.doesNotMatch(page, /usocksd_|transplice_denied/, "there is no egress");
  const upstream = `{upstream="${text(PROXY[4], 1080)}"}`;
  const expected = {
    transplice_tunnels_active: 3,
    transplice_connections_accepted_total: 8,
    'transplice_connections_total{result="ok"}': 5,
    'transplice_connections_ended_total{reason="finished"}': 5,
    'transplice_bytes_total{direction="up"}': 560,
    'transplice_bytes_total{direction="down"}': 560,
    transplice_dial_seconds_count: 8,
    transplice_handshake_seconds_count: 8,
    transplice_first_byte_seconds_count: 8,
    transplice_connection_duration_seconds_count: 5,
    [`transplice_upstream_active_connections${upstream}`]: 3,
    [`transplice_upstream_dials_total${upstream}`]: 8,
    [`transplice_upstream_dial_failures_total${upstream}`]: 0,
    [`transplice_upstream_healthy${upstream}`]: 1,
    transplice_ready: 1,
  };
  let metrics: ReadonlyMap<string, number> = new Map();
  const counted = (): Record<string, number | undefined> => Object.fromEntries(Object.keys(expected).map((name) => [name, metrics.get(name)]));
  // A worker counts what it has passed on, which may have been heard before.
  await eventually("all is counted", async () => {
    metrics = await asker.metrics();
    return Object.entries(expected).every(([name, value]) => metrics.get(name) === value);
  }).catch(() => {});
  assert.deepEqual(counted(), expected);
  assert.equal(metrics.get('transplice_worker_tunnels{worker="0"}')! + metrics.get('transplice_worker_tunnels{worker="1"}')!, 3);
  for (const name of ["cpu_seconds_total", "turns_total"]) {
    assert.ok(metrics.get(`transplice_worker_${name}{worker="0"}`)! > 0, name);
  }
  // Two sockets for each tunnel, and what the process has besides.
  assert.ok(metrics.get("process_open_fds")! >= 6 + 10);
  for (const peer of standing) peer.reset();
  const after = await eventuallyAddsUp(asker, 8);
  assert.equal(after.get('transplice_connections_total{result="client"}'), 3);
});

/** A worker counts an end before it gives the connection's place back: for a moment one is both. */
async function eventuallyAddsUp(asker: Asker, ended: number): Promise<ReadonlyMap<string, number>> {
  await eventually(`${ended} connections have ended`, async () => {
    const metrics = await asker.metrics();
    const open = metrics.get("transplice_connections_accepted_total")! - ended;
    return sum(endings(metrics).values()) === ended && metrics.get("transplice_tunnels_active") === open;
  });
  return assertAddsUp(asker);
}

scenario("metrics: lines of the log that nobody took are counted", async (stage) => {
  const { relay, asker } = await setting(stage, { workers: 1, log: { level: "info" } });
  relay.process.closeOutput();
  const peer = await tunnel(stage);
  peer.finish();
  await peer.rest();
  // Each is a write of its own, a second apart, or both are one.
  await eventually("its start and its end are lost", async () => (await asker.metrics()).get("transplice_log_dropped_total") === 2);
});

scenario("a worker that dies leaves each of its connections a reason", async (stage) => {
  const faults = new Faults();
  const { asker } = await setting(stage, {}, faults.start);
  const standing = await Promise.all(Array.from({ length: 12 }, () => tunnel(stage)));
  faults.request("throw");
  const more: Peer[] = [];
  await eventually("a worker throws", async () => {
    more.push(await connect(stage.net.relay, SERVER[4], 80));
    return !faults.files().includes("throw");
  });
  await eventually("it is replaced", async () => (await asker.metrics()).get("transplice_worker_replacements_total") === 1);
  for (const peer of [...standing, ...more]) peer.destroy();
  await eventually("all have ended", async () => (await asker.metrics()).get("transplice_tunnels_active") === 0);
  const metrics = await assertAddsUp(asker);
  const lost = endings(metrics).get("worker-died") ?? 0;
  assert.ok(lost > 0 && lost <= 12 + more.length, `${lost} connections were lost`);
  assert.equal(metrics.get(`transplice_upstream_active_connections{upstream="${text(PROXY[4], 1080)}"}`), 0);
});

interface Shown {
  readonly id: string;
  readonly state: string;
  readonly client: string;
  readonly destination: string;
  readonly upstream: string;
  readonly bytes_up: number;
  readonly bytes_down: number;
  readonly age_seconds: number;
  readonly idle_seconds: number;
  readonly dial_seconds: number;
  readonly first_byte_seconds: number;
  readonly started: number;
}

interface Page {
  readonly tunnels: Shown[];
  readonly next: string | null;
}

scenario("tunnels: who, where to, since when and how much; by filter, and page by page", async (stage) => {
  const { relay, asker } = await setting(stage);
  const peers = await Promise.all([10, 20, 30, 40, 50].map((bytes, i) => tunnel(stage, bytes, 80 + i)));
  let listed: Page = { tunnels: [], next: null };
  await eventually("all bytes are counted", async () => {
    listed = await asker.json<Page>("/tunnels");
    return sum(listed.tunnels.map((each) => each.bytes_down)) === 150;
  });
  const { tunnels, next } = listed;
  assert.equal(next, null);
  assert.deepEqual(tunnels.map(({ client }) => client).sort(), peers.map(({ local }) => local).sort());
  for (const [i, peer] of peers.entries()) {
    const it = tunnels.find(({ client }) => client === peer.local)!;
    assert.equal(it.destination, text(SERVER[4], 80 + i));
    assert.deepEqual([it.state, it.upstream], ["relay", text(PROXY[4], 1080)]);
    assert.deepEqual([it.bytes_up, it.bytes_down], [10 + 10 * i, 10 + 10 * i]);
    assert.ok(it.dial_seconds >= 0 && it.first_byte_seconds >= it.dial_seconds);
    assert.ok(it.age_seconds >= it.idle_seconds && it.age_seconds < 600, `${it.age_seconds} s old`);
    assert.ok(Math.abs(it.started + it.age_seconds - Date.now() / 1000) < 600, "its times are Unix times");
    const started = await relay.logged("its start", ({ message, client_addr }) => message === "proxy starts" && client_addr === peer.local);
    assert.equal(it.id, started["request_id"], "it is called as in the log");
  }
  const found = async (query: string): Promise<string[]> =>
    (await asker.json<Page>(`/tunnels?${query}`)).tunnels.map(({ destination }) => destination).sort();
  assert.deepEqual(await found("destination=:82"), [text(SERVER[4], 82)]);
  assert.deepEqual(await found(`destination=${text(SERVER[4], 83)}`), [text(SERVER[4], 83)]);
  assert.equal((await found("destination=198.51.100.0/24")).length, 5);
  assert.equal((await found("destination=198.51.101.0/24")).length, 0);
  assert.deepEqual(await found(`client=${peers[1]!.local}`), [text(SERVER[4], 81)]);
  assert.equal((await found("state=relay&destination=:80")).length, 1);
  assert.equal((await found("state=dial")).length, 0);
  assert.equal((await found(`upstream=${text(PROXY[4], 1080)}`)).length, 5);
  assert.equal((await found("upstream=192.0.2.99:1080")).length, 0);
  const seen: string[] = [];
  let after = "";
  for (let page = 0; page < 5; page++) {
    const { tunnels: some, next: cursor } = await asker.json<Page>(`/tunnels?limit=2&after=${after}`);
    assert.ok(some.length <= 2);
    seen.push(...some.map(({ id }) => id));
    if (cursor === null) break;
    after = cursor;
  }
  assert.deepEqual(seen.sort(), tunnels.map(({ id }) => id).sort());
  for (const [query, what] of [
    ["state=asleep", "state"], ["client=joe", "client"], ["destination=a%20b", "destination"],
    ["limit=0", "limit"], ["limit=1001", "limit"], ["after=x", "after"], ["clint=10.0.0.1", "clint"],
  ] as const) {
    const { status, text: body } = await asker.get(`/tunnels?${query}`);
    assert.equal(status, 400, query);
    assert.match((JSON.parse(body) as { error: string }).error, new RegExp(`^${what}`));
  }
});

scenario("closing one connection resets both its ends, and no other", async (stage) => {
  const { relay, asker } = await setting(stage);
  const [one, other] = [await tunnel(stage), await tunnel(stage)];
  const { tunnels } = await asker.json<Page>(`/tunnels?client=${one.local}`);
  const { id } = tunnels[0]!;
  assert.equal((await asker.post(`/tunnels/${id}/close`, {})).status, 401, "without the token");
  const { status, text: body } = await asker.post(`/tunnels/${id}/close`);
  assert.deepEqual([status, JSON.parse(body)], [200, { closed: id }]);
  assert.equal(await one.ending(), "reset");
  const entry = await relay.logged("its end", ({ request_id, message }) => request_id === id && message.startsWith("proxy ends"));
  assert.equal(entry["reason"], "closed");
  assert.equal((await asker.post(`/tunnels/${id}/close`)).status, 404, "it is closed already");
  other.write("ping");
  assert.equal(String(await other.read(4)), "ping");
  await eventually("it is counted", async () => endings(await asker.metrics()).get("closed") === 1);
});

scenario("a drained address is dialled no more, who is connected stays, and it holds over HUP and USR2", async (stage) => {
  const addresses = [PROXY[4], "192.0.2.12"];
  shadow("/etc/hosts", `127.0.0.1 localhost\n${addresses.map((address) => `${address} two.example\n`).join("")}`);
  stage.finally(() => shadow("/etc/hosts", "127.0.0.1 localhost\n"));
  const second = stage.upstream({ protocol: "socks5", echoes: true, credentials: USER }, addresses[1]);
  const { relay, upstream, asker } = await setting(stage, {
    proxy_url: `socks5://${USER.username}:${USER.password}@two.example:1080`,
  });
  const [first, last] = addresses.map((address) => text(address, 1080)) as [string, string];
  const standing = await tunnel(stage);
  assert.deepEqual([upstream.requests.length, second.requests.length], [1, 0]);
  const { status, text: body } = await asker.post(`/upstreams/${encodeURIComponent(first)}/drain`);
  assert.deepEqual([status, JSON.parse(body)], [200, { upstream: first, drained: true }]);
  const alone = await asker.post(`/upstreams/${last}/drain`);
  assert.equal(alone.status, 409, alone.text);
  assert.equal((await asker.post("/upstreams/192.0.2.99:1080/drain")).status, 404);
  const avoids = async (what: string): Promise<void> => {
    const before = upstream.requests.length;
    const peers = await Promise.all(Array.from({ length: 8 }, () => tunnel(stage)));
    assert.equal(upstream.requests.length, before, `${what}: it was dialled`);
    for (const peer of peers) peer.destroy();
  };
  await avoids("drained");
  standing.write("ping");
  assert.equal(String(await standing.read(4)), "ping");
  assert.equal((await asker.metrics()).get(`transplice_upstream_drained{upstream="${first}"}`), 1);
  await relay.reload();
  await avoids("after HUP");
  relay.process.signal("SIGUSR2");
  await takenOver(stage, relay);
  await eventually("the successor has the endpoint", async () =>
    (await asker.metrics().catch(() => null))?.get("transplice_connections_accepted_total") === 0);
  await avoids("after USR2");
  assert.equal((await asker.post(`/upstreams/${first}/undrain`)).status, 200);
  assert.equal((await asker.post(`/upstreams/${last}/drain`)).status, 200);
  const before = upstream.requests.length;
  await tunnel(stage);
  assert.equal(upstream.requests.length, before + 1);
});

scenario("who may ask: the token for what changes, and from afar for what tells of connections", async (stage) => {
  const everywhere = { listen: `:${ADMIN_PORT}`, token: TOKEN };
  const { relay, asker, settings } = await setting(stage, { admin: everywhere });
  await tunnel(stage);
  const afar = new Asker(stage.net.proxy, RELAY[4]);
  const token = { authorization: `Bearer ${TOKEN}` };
  const status = async (who: Asker, method: string, path: string, headers = {}): Promise<number> =>
    (await who.ask(method, path, headers)).status;
  const TOLD = ["/status", "/tunnels", "/config"];
  for (const path of ["/healthz", "/readyz", "/metrics", "/"]) {
    assert.deepEqual([path, await status(asker, "GET", path), await status(afar, "GET", path)], [path, 200, 200]);
    assert.equal(await status(asker, "GET", path, { host: "rebound.example" }), 421, path);
    const { headers } = await asker.get(path);
    const safe = ["cache-control", "x-content-type-options", "referrer-policy"].map((name) => headers[name]);
    assert.deepEqual([path, ...safe], [path, "no-store", "nosniff", "no-referrer"]);
    assert.match(`${headers["content-security-policy"]}`, /^default-src 'none'/, path);
  }
  for (const path of TOLD) {
    assert.equal(await status(asker, "GET", path), 200, path);
    assert.equal(await status(afar, "GET", path), 401, path);
    assert.equal(await status(afar, "GET", path, token), 200, path);
    assert.equal(await status(afar, "GET", path, { authorization: "Bearer another-token-altogether" }), 401, path);
    assert.equal(await status(asker, "GET", path, { host: "rebound.example" }), 421, path);
    assert.equal(await status(asker, "GET", path, { "sec-fetch-site": "cross-site" }), 403, path);
    assert.equal(await status(asker, "GET", path, { origin: "http://evil.example" }), 403, path);
  }
  assert.equal(await status(afar, "GET", "/events"), 401);
  const close = "/tunnels/0-0-0-0-0/close";
  for (const who of [asker, afar]) {
    assert.equal(await status(who, "POST", close), 401);
    assert.equal(await status(who, "POST", close, { authorization: "Bearer another-token-altogether" }), 401);
    assert.equal(await status(who, "POST", close, token), 404);
    assert.equal(await status(who, "POST", close, { ...token, origin: "http://evil.example" }), 403);
    assert.equal(await status(who, "GET", close, token), 405);
    assert.equal(await status(who, "POST", "/status", token), 405);
    assert.equal(await status(who, "DELETE", "/status", token), 405);
    assert.equal(await status(who, "GET", "/nothing"), 404);
  }
  // Without a token nothing can be changed, and from afar nothing but metrics is told.
  relay.configure({ ...settings, admin: { listen: `:${ADMIN_PORT}`, hosts: ["rebound.example"] } });
  await relay.reload();
  assert.equal(await status(asker, "POST", close, token), 403);
  for (const path of TOLD) {
    assert.equal(await status(asker, "GET", path), 200, path);
    assert.equal(await status(afar, "GET", path, token), 403, path);
  }
  assert.equal(await status(afar, "GET", "/metrics"), 200);
  assert.equal(await status(asker, "GET", "/metrics", { host: `rebound.example:${ADMIN_PORT}` }), 200);
  // A name that was ours is remembered no longer than it is.
  relay.configure({ ...settings, admin: everywhere });
  await relay.reload();
  assert.equal(await status(asker, "GET", "/metrics", { host: `rebound.example:${ADMIN_PORT}` }), 421);
});

scenario("no secret is said anywhere", async (stage) => {
  const file = `${PRIVATE}/token`;
  writeFileSync(file, `${TOKEN}\n`);
  const { asker } = await setting(stage, {
    admin: { listen: `127.0.0.1:${ADMIN_PORT}`, token_file: file },
    incoming: { port: 1085, addresses: ["127.0.0.1"] },
    outgoing: {},
    users: { alice: "wonderland-7" },
  });
  await tunnel(stage);
  const stream = await asker.stream("/events");
  const pages = await Promise.all(
    ["/config", "/status", "/metrics", "/tunnels", "/readyz", "/healthz", "/"].map(async (path) => (await asker.get(path)).text),
  );
  pages.push(JSON.stringify(await stream.until("a snapshot", ({ event }) => event === "status")));
  stream.close();
  assert.match(pages[0]!, /"credentials":"\(secret\)"/);
  assert.match(pages[0]!, /"alice"/);
  const written = Buffer.from(`${USER.username}:${USER.password}`).toString("base64");
  for (const secret of [USER.password, "wonderland-7", TOKEN, written, Buffer.from(USER.password).toString("hex")]) {
    for (const page of pages) assert.ok(!page.includes(secret), `${secret} stands in ${page.slice(0, 80)}`);
  }
  assert.equal((await asker.post("/tunnels/x/close")).status, 404, "the file's token is the one");
});

interface Snapshot {
  readonly now: number;
  readonly state: string;
  readonly ready: boolean;
  readonly problems: string[];
  readonly tunnels: { readonly active: number; readonly states: Record<string, number> };
  readonly totals: Record<string, number>;
  readonly rates: Record<string, number>;
  readonly endings: { readonly reason: string; readonly total: number; readonly last_minute: number }[];
  readonly latency: Record<string, { readonly count: number; readonly p50_seconds: number; readonly max_seconds: number }>;
  readonly upstreams: { readonly address: string; readonly health: string; readonly active: number; readonly dials: number }[];
  readonly destinations: { readonly destination: string; readonly tunnels: number; readonly bytes_per_second: number }[];
  readonly slowest: { readonly destination: string; readonly waited_seconds: number; readonly first_byte_seconds: number | null }[];
  readonly workers: { readonly state: string; readonly tunnels: number }[];
  readonly history: Record<string, number[]>;
}

scenario("status and events: a snapshot each second, the same for everybody", async (stage) => {
  const { asker } = await setting(stage);
  const streams = await Promise.all([1, 2, 3].map(() => asker.stream("/events")));
  const peers = await Promise.all([81, 81, 82].map((port) => tunnel(stage, 1000, port)));
  (await tunnel(stage, 5)).reset();
  let moving = true;
  const traffic = (async () => {
    while (moving) {
      peers[2]!.write(Buffer.alloc(10_000));
      await peers[2]!.read(10_000);
      await sleep(5);
    }
  })();
  const wanted = (snapshot: Snapshot): boolean =>
    snapshot.tunnels.states["relay"] === 3 && snapshot.rates["bytes_down_per_second"]! > 10_000 &&
    (snapshot.destinations[0]?.bytes_per_second ?? 0) > 10_000 && snapshot.totals["ended"] === 1;
  const isWanted = ({ data }: { data: unknown }): boolean => wanted(data as Snapshot);
  const seen = (await streams[0]!.until("the traffic", isWanted)).data as unknown as Snapshot;
  assert.equal(seen.tunnels.active, 3);
  assert.equal(seen.totals["accepted"], 4);
  assert.deepEqual(seen.endings.map(({ reason, total, last_minute }) => [reason, total, last_minute]), [["client-reset", 1, 1]]);
  assert.deepEqual(
    seen.destinations.map(({ destination, tunnels }) => [destination, tunnels]),
    [[text(SERVER[4], 82), 1], [text(SERVER[4], 81), 2]],
  );
  assert.equal(seen.latency["dial"]!.count, 4);
  assert.ok(seen.latency["dial"]!.p50_seconds > 0 && seen.latency["dial"]!.p50_seconds <= seen.latency["dial"]!.max_seconds);
  assert.deepEqual(seen.upstreams.map(({ health, active, dials }) => [health, active, dials]), [["ok", 3, 4]]);
  assert.equal(seen.slowest.length, 4 - 1, "each open connection has waited for a first byte");
  assert.equal(sum(seen.workers.map(({ tunnels }) => tunnels)), 3);
  assert.deepEqual([seen.state, seen.ready, seen.problems], ["serving", true, []]);
  const same = await streams[2]!.until("the same snapshot", ({ data }) => (data as unknown as Snapshot).now === seen.now);
  assert.deepEqual(same.data, seen);
  const status = await asker.json<Snapshot>("/status");
  const { length } = status.history["active"]!;
  assert.ok(length >= 2 && Object.values(status.history).every((each) => !Array.isArray(each) || each.length === length));
  assert.ok(Math.max(...status.history["bytes_down_per_second"]!) > 10_000);
  moving = false;
  await traffic;
  // Those beyond the bound are sent away, and places come free.
  const others = await Promise.all(Array.from({ length: 13 }, () => asker.stream("/events")));
  const refused = await asker.get("/events");
  assert.deepEqual([refused.status, refused.headers["retry-after"]], [503, "5"]);
  others[0]!.close();
  await eventually("a place is free", async () => {
    const stream = await asker.stream("/events");
    const ok = stream.response.statusCode === 200;
    stream.close();
    return ok;
  });
  for (const stream of [...streams, ...others]) stream.close();
});

scenario("ready: not while the upstream is away, and not while it stops; a stop is seen to its end", async (stage) => {
  const { relay, upstream, asker } = await setting(stage, { timeouts: { drain: "1h" } });
  const ready = async (): Promise<{ ready: boolean; problems: string[] }> => JSON.parse((await asker.get("/readyz")).text);
  assert.deepEqual(await ready(), { ready: true, problems: [] });
  await asker.get("/status"); // From now on it knows what is of the last minute.
  const standing = await tunnel(stage);
  const others = await Promise.all(Array.from({ length: 9 }, () => tunnel(stage)));
  for (const other of others) other.destroy();
  upstream.listener.close();
  const peer = await connect(stage.net.relay, SERVER[4], 80).catch(() => null);
  // One that fails is enough to ask: the ten that went through before say nothing of now.
  await peer?.ending();
  await eventually("it is not ready", async () => !(await ready()).ready);
  assert.match((await ready()).problems[0]!, /192\.0\.2\.2:1080/);
  assert.equal((await asker.get("/healthz")).status, 200, "the process itself is well");
  const again = stage.upstream({ protocol: "socks5", echoes: true, credentials: USER });
  await eventually("it is ready again", async () => (await ready()).ready);
  assert.ok(again.requests.length === 0, "asking took no tunnel");
  const stream = await asker.stream("/events");
  await stream.until("a snapshot", ({ event }) => event === "status");
  relay.process.signal("SIGTERM");
  const end = await stream.until("the drain", ({ data }) => (data as unknown as Snapshot).state === "draining");
  assert.equal((end.data as unknown as Snapshot).tunnels.active, 1);
  assert.deepEqual((await asker.get("/readyz")).status, 503);
  standing.finish();
  await stream.until("a farewell", ({ event }) => event === "bye");
  await eventually("it has ended", () => relay.process.exit !== null);
  assert.equal(relay.process.exit?.code, 0);
});

scenario("HUP moves it: TCP, a socket of the file system, nowhere; a wrong file changes nothing", async (stage) => {
  const { relay, asker, settings } = await setting(stage);
  const path = `${PRIVATE}/admin.sock`;
  const local = new Asker(path);
  const healthy = async (who: Asker): Promise<boolean> => who.get("/healthz").then(({ status }) => status === 200, () => false);
  assert.ok(await healthy(asker));
  relay.configure({ ...settings, admin: { ...ADMIN, listen: [`unix:${path}`, `127.0.0.1:${ADMIN_PORT}`] } });
  await relay.reload();
  assert.deepEqual([await healthy(local), await healthy(asker)], [true, true]);
  assert.equal(statSync(path).mode & 0o777, 0o600);
  assert.equal((await local.post("/tunnels/x/close", {})).status, 401, "the token is wanted there, too");
  const isRefused = (entry: { message: string }): boolean => entry.message === "the configuration is not taken on";
  relay.configure({ ...settings, admin: { listen: ADMIN.listen, token_file: `${PRIVATE}/nothing` } });
  const refused = await relay.reload(isRefused);
  assert.match(String(refused["error"]), /admin\.token_file: open \S+\/nothing: no such file or directory; its first line is to be the token/);
  stage.listen(stage.net.relay, "127.0.0.1", 9190);
  relay.configure({ ...settings, admin: { ...ADMIN, listen: "127.0.0.1:9190" } });
  assert.match(String((await relay.reload(isRefused))["error"]), /127\.0\.0\.1:9190 for the admin endpoint/);
  assert.deepEqual([await healthy(local), await healthy(asker)], [true, true]);
  relay.configure({ ...settings, admin: { ...ADMIN, listen: `unix:${path}` } });
  await relay.reload();
  assert.deepEqual([await healthy(local), await healthy(asker)], [true, false]);
  const stream = await local.stream("/events");
  const { admin: _, ...without } = settings;
  relay.configure(without);
  await relay.reload();
  await stream.until("a farewell", ({ event }) => event === "bye");
  await eventually("nobody is there", async () => !(await healthy(local)));
  assert.throws(() => statSync(path));
});

scenario("100 scrapes and 3 pages under load disturb nobody, and the sums are right in the end", async (stage) => {
  const { asker } = await setting(stage);
  const streams = await Promise.all([1, 2, 3].map(() => asker.stream("/events")));
  let scrapes = 0;
  let over = false;
  let served = 0;
  const load = Array.from({ length: 16 }, async () => {
    while (!over) {
      (await tunnel(stage, 64)).finish();
      served++;
    }
  });
  const scraping = Array.from({ length: 5 }, async () => {
    while (scrapes < 100) {
      scrapes++;
      const { status, text: page } = await asker.get("/metrics");
      assert.equal(status, 200);
      assert.ok(page.includes("transplice_tunnels_active "));
      await asker.json("/tunnels?limit=1000");
    }
  });
  await Promise.all(scraping);
  over = true;
  await Promise.all(load);
  await eventually("all have ended", async () => (await asker.metrics()).get("transplice_tunnels_active") === 0);
  const metrics = await assertAddsUp(asker);
  assert.equal(metrics.get("transplice_connections_accepted_total"), served);
  assert.deepEqual([...endings(metrics).keys()], ["finished"]);
  for (const stream of streams) {
    // The first comes at once, the next in a second, which all of this may have taken less than.
    await eventually("a second event", () => stream.events.length >= 2);
    assert.ok(!stream.ended);
    stream.close();
  }
});

scenario("a SOCKS client does not come to it, whatever the rules allow", async (stage) => {
  const { relay, asker } = await setting(stage, {
    incoming: { port: 1085, addresses: ["127.0.0.1"] },
    outgoing: { allow_networks: ["127.0.0.0/8"] },
  });
  assert.equal((await asker.get("/healthz")).status, 200);
  for (const to of ["127.0.0.1", "127.9.9.9"]) {
    assert.equal(await codeOf(stage.net.relay, text("127.0.0.1", 1085), { to, port: ADMIN_PORT }), NOT_ALLOWED, to);
  }
  await relay.logged("why", ({ reason, dest_addr }) => reason === "own-address" && dest_addr === text("127.0.0.1", ADMIN_PORT));
});

scenario("a SOCKS client's tunnel says who he is, what he named, and by which address it leaves", async (stage) => {
  shadow("/etc/hosts", `127.0.0.1 localhost\n${PROXY[4]} www.inside.example\n`);
  stage.finally(() => shadow("/etc/hosts", "127.0.0.1 localhost\n"));
  stage.listen(stage.net.proxy, PROXY[4], 80, (peer) => void peer.write("hello"));
  const { asker } = await setting(stage, {
    incoming: { port: 1085, addresses: ["127.0.0.1"] },
    outgoing: { addresses: [RELAY[4]], allow_networks: ["192.0.2.0/24"] },
    users: { alice: "wonderland-7" },
  });
  const login = { user: "alice", password: "wonderland-7", port: 80 };
  const named = await tunnelBySocks(stage.net.relay, text("127.0.0.1", 1085), { to: "www.inside.example", ...login });
  await named.read(5);
  type Rows = Record<string, unknown>[];
  const listed = async (query: string): Promise<Rows> => (await asker.json<{ tunnels: Rows }>(`/tunnels?${query}`)).tunnels;
  let rows: Rows = [];
  await eventually("the greeting is counted", async () => {
    rows = await listed("user=alice&destination=.inside.example");
    return rows[0]?.["bytes_down"] === 5;
  });
  const [it, ...others] = rows;
  assert.equal(others.length, 0);
  const { client, front, state, name, user, destination, egress, source, upstream, bytes_down } = it!;
  assert.deepEqual(
    { client, front, state, name, user, destination, egress, upstream, bytes_down },
    {
      client: named.local, front: "socks5", state: "relay", name: "www.inside.example", user: "alice",
      destination: text(PROXY[4], 80), egress: RELAY[4], upstream: null, bytes_down: 5,
    },
  );
  assert.match(String(source), new RegExp(`^${RELAY[4].replaceAll(".", "\\.")}:\\d+$`));
  assert.equal((await asker.json<Page>("/tunnels?user=bob")).tunnels.length, 0);
  // Before it has said anything it has a client, and nothing else.
  const silent = await connect(stage.net.relay, "127.0.0.1", 1085);
  await eventually("it is accepted", async () => (await listed("state=front")).length === 1);
  const [waiting] = await listed("state=front");
  assert.deepEqual([waiting?.["client"], waiting?.["front"], waiting?.["destination"]], [silent.local, "socks", null]);
  assert.equal((await asker.metrics()).get(`transplice_egress_active_connections{address="${RELAY[4]}"}`), 1);
});
