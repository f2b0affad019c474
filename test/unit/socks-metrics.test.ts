/** The page of metrics: usocksd's names, formats that scrapers read, and a server that stays. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import http from "node:http";
import net from "node:net";
import { test, type TestContext } from "node:test";
import { type HttpAddress, type HttpOptions, HttpServers } from "../../src/control/admin/http-server.ts";
import { MetricsPage } from "../../src/control/admin/metrics.ts";
import { SocksMetrics, type SocksSources } from "../../src/control/admin/socks-metrics.ts";
import { EgressCounters, EgressReader, egressCountersBytes } from "../../src/engine/egress-counters.ts";
import { SocksCounters, socksCountersBytes, SocksTotals, STATUS } from "../../src/engine/socks-counters.ts";

const LOOPBACK: HttpAddress = { text: "127.0.0.1:0", dualStack: false };

/** A server over numbers that the test writes, and what it has logged. */
class World {
  readonly #socks = new SharedArrayBuffer(socksCountersBytes(2));
  readonly #egress = new SharedArrayBuffer(egressCountersBytes(2));
  readonly reader = new EgressReader(this.#egress);
  readonly socks = [new SocksCounters(this.#socks, 0), new SocksCounters(this.#socks, 1)] as const;
  readonly egress = [new EgressCounters(this.#egress, 0), new EgressCounters(this.#egress, 1)] as const;
  readonly health = new Map<string, { usable: boolean; listed: boolean }>();
  readonly told: string[] = [];
  readonly sources: { -readonly [name in keyof SocksSources]: SocksSources[name] } = {
    serves: () => true,
    socks: () => new SocksTotals(this.#socks),
    addresses: () => this.reader.addresses(),
    health: (address) => this.health.get(address) ?? null,
    denied: () => this.reader.denied(),
    names: () => ({
      cached: 99, asking: 2, fromHosts: 99, fromCache: 7, joined: 99, asked: 3, refused: 99, notFound: 99, failed: 99,
      timeouts: 99,
    }),
  };
  readonly metrics: HttpServers;
  answer: HttpOptions["answer"];

  constructor(context: TestContext, requestMs = 5000) {
    const log = (level: string) => (message: string, fields?: object) =>
      void this.told.push(`${level}: ${message} ${JSON.stringify(fields)}`);
    const page = this.page();
    this.answer = (request, response) => page.answer(request, response);
    this.metrics = new HttpServers({
      purpose: "metrics", log: { error: log("error"), warning: log("warning") }, methods: ["GET", "HEAD"], requestMs,
      answer: (...asked) => this.answer(...asked),
    });
    context.after(() => this.metrics.close());
  }

  /** Over the same numbers. */
  page(): MetricsPage {
    const sources = Object.fromEntries(
      Object.keys(this.sources).map((name) => [
        name, (...args: never[]) => (this.sources[name as keyof SocksSources] as (...args: never[]) => unknown)(...args),
      ]),
    ) as unknown as SocksSources;
    return new MetricsPage([new SocksMetrics(sources)]);
  }

  async listen(...addresses: HttpAddress[]): Promise<number> {
    assert.deepEqual(await this.metrics.move(addresses.length === 0 ? [LOOPBACK] : addresses), []);
    return portOf(this.metrics.listening[0]!);
  }

  /** Something in every number. */
  fill(): void {
    const [one, two] = this.socks;
    for (const worker of [one, two]) {
      worker.request(5, STATUS.granted);
      worker.begins();
      worker.ends(true, 20, 3000, 2 ** 21, 20, 15, false, false);
    }
    one.begins();
    one.request(4, STATUS.granted);
    two.request(4, STATUS.rejected);
    two.request(5, STATUS.TTL_expired);
    one.request(0, STATUS.unknown_version);
    one.begins();
    one.ends(false, 4e6, 2 ** 40, 0, 1, 4e6, true, true);
    two.auth("password", true);
    two.auth("none", false);
    two.auth("userid", true);
    one.address("name", true);
    one.address(null, false);
    const [v4, prefix] = this.reader.addressSlots(["192.0.2.1", "2001:db8::/64"]) as [number, number];
    this.health.set("192.0.2.1", { usable: true, listed: false });
    this.health.set("2001:db8::/64", { usable: false, listed: true });
    this.egress[0].opened(v4);
    this.egress[1].opened(v4);
    this.egress[1].ended(v4);
    this.egress[1].answered(v4);
    this.egress[1].failed(prefix);
    this.egress[1].spilled(prefix);
    const [rule] = this.reader.ruleSlots(["mail-only", "deny_ports"]) as [number];
    this.egress[0].denied(rule);
  }
}

const portOf = (listening: string): number => Number(/:(\d+)$/.exec(listening)![1]);

interface Answer {
  readonly status: number;
  readonly headers: http.IncomingHttpHeaders;
  readonly body: string;
}

function ask(port: number, options: http.RequestOptions = {}, body = ""): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const request = http.request({ host: "127.0.0.1", port, agent: false, path: "/metrics", ...options }, (response) => {
      let text = "";
      response.setEncoding("utf8").on("data", (data) => (text += data));
      response.on("end", () => resolve({ status: response.statusCode!, headers: response.headers, body: text }));
      response.on("error", reject);
    });
    request.on("error", reject).end(body);
  });
}

/** A page as its families: type, and samples by what stands before the value. */
function parse(page: string): Map<string, { type: string; samples: Map<string, number> }> {
  const families = new Map<string, { type: string; samples: Map<string, number> }>();
  let help = "";
  let family = { type: "", samples: new Map<string, number>() };
  for (const line of page.split("\n").filter((line) => line !== "" && line !== "# EOF")) {
    const head = /^# (HELP|TYPE) ([a-z][a-z0-9_]*) (.+)$/.exec(line);
    if (head?.[1] === "HELP") {
      help = head[2]!;
      continue;
    }
    if (head !== null) {
      assert.equal(head[2], help);
      assert.ok(!families.has(help), `${help} stands there twice`);
      family = { type: head[3]!, samples: new Map() };
      families.set(help, family);
      continue;
    }
    const sample = /^([a-zA-Z0-9_]+(?:\{(?:[a-z]+="[^"\\]*",?)*\})?) (\S+)$/.exec(line);
    assert.ok(sample, `not a sample: ${line}`);
    assert.ok(sample[1]!.startsWith(help), line);
    assert.ok(!family.samples.has(sample[1]!), `twice: ${line}`);
    assert.ok(Number.isFinite(Number(sample[2])), line);
    family.samples.set(sample[1]!, Number(sample[2]));
  }
  return families;
}

const samplesOf = (page: string): Record<string, number> =>
  Object.fromEntries([...parse(page).values()].flatMap(({ samples }) => [...samples]));

test("names, types and labels are usocksd's", async (context) => {
  const world = new World(context);
  const port = await world.listen();
  const families = parse((await ask(port)).body);
  const usocksd = [...families].filter(([name]) => !name.startsWith("transplice_"));
  assert.deepEqual(Object.fromEntries(usocksd.map(([name, { type }]) => [name, type])), {
    usocksd_connections_total: "counter",
    usocksd_proxy_inflight_requests: "gauge",
    usocksd_proxy_elapsed_seconds: "histogram",
    usocksd_proxy_tx_bytes: "histogram",
    usocksd_proxy_rx_bytes: "histogram",
    usocksd_proxy_tx_seconds: "histogram",
    usocksd_proxy_rx_seconds: "histogram",
    usocksd_proxy_tx_errors_total: "counter",
    usocksd_proxy_rx_errors_total: "counter",
    usocksd_socks5_auth_negotiated_total: "counter",
    usocksd_socks5_address_read_total: "counter",
  });
  const series = usocksd.flatMap(([, { samples }]) => [...samples.keys()].filter((name) => !name.includes("_bucket{")));
  assert.deepEqual(series, [
    ...["granted", "rejected"].map((status) => `usocksd_connections_total{version="SOCKS4_4a",status="${status}"}`),
    ...[
      "granted", "failure", "not_allowed", "network_unreachable", "host_unreachable", "connection_refused",
      "command_not_supported", "authentication_failure", "address_read_failure",
    ].map((status) => `usocksd_connections_total{version="SOCKS5",status="${status}"}`),
    'usocksd_connections_total{version="unknown",status="invalid_request"}',
    'usocksd_connections_total{version="unknown",status="unknown_version"}',
    "usocksd_proxy_inflight_requests",
    ...["success", "error"].flatMap((result) =>
      ["sum", "count"].map((part) => `usocksd_proxy_elapsed_seconds_${part}{result="${result}"}`),
    ),
    ...["tx_bytes", "rx_bytes", "tx_seconds", "rx_seconds"].flatMap((name) =>
      ["sum", "count"].map((part) => `usocksd_proxy_${name}_${part}`),
    ),
    "usocksd_proxy_tx_errors_total",
    "usocksd_proxy_rx_errors_total",
    ...["no_auth", "basic"].flatMap((type) =>
      ["ok", "failed"].map((result) => `usocksd_socks5_auth_negotiated_total{type="${type}",result="${result}"}`),
    ),
    ...["IPv4", "IPv6", "Domain_name"].flatMap((type) =>
      ["ok", "failed"].map((result) => `usocksd_socks5_address_read_total{type="${type}",result="${result}"}`),
    ),
  ]);
  assert.ok(Object.values(samplesOf((await ask(port)).body)).filter((value) => value !== 0).length === 3, "only names()");
});

test("numbers stand under their names, and are those of now", async (context) => {
  const world = new World(context);
  const port = await world.listen();
  await ask(port);
  world.fill();
  const found = samplesOf((await ask(port)).body);
  const expected: Record<string, number> = {
    'usocksd_connections_total{version="SOCKS5",status="granted"}': 2,
    'usocksd_connections_total{version="SOCKS5",status="TTL_expired"}': 1,
    'usocksd_connections_total{version="SOCKS4_4a",status="granted"}': 1,
    'usocksd_connections_total{version="SOCKS4_4a",status="rejected"}': 1,
    'usocksd_connections_total{version="unknown",status="unknown_version"}': 1,
    usocksd_proxy_inflight_requests: 1,
    'usocksd_proxy_elapsed_seconds_count{result="success"}': 2,
    'usocksd_proxy_elapsed_seconds_sum{result="success"}': 0.04,
    'usocksd_proxy_elapsed_seconds_bucket{result="success",le="0.01"}': 0,
    'usocksd_proxy_elapsed_seconds_bucket{result="success",le="0.025"}': 2,
    'usocksd_proxy_elapsed_seconds_bucket{result="error",le="3600"}': 0,
    'usocksd_proxy_elapsed_seconds_bucket{result="error",le="+Inf"}': 1,
    'usocksd_proxy_tx_bytes_bucket{le="1024"}': 0,
    'usocksd_proxy_tx_bytes_bucket{le="4096"}': 2,
    'usocksd_proxy_tx_bytes_bucket{le="17179869184"}': 2,
    'usocksd_proxy_tx_bytes_bucket{le="+Inf"}': 3,
    usocksd_proxy_tx_bytes_count: 3,
    usocksd_proxy_tx_bytes_sum: 6000 + 2 ** 40,
    'usocksd_proxy_rx_bytes_bucket{le="256"}': 1,
    usocksd_proxy_rx_bytes_sum: 2 ** 22,
    'usocksd_proxy_tx_seconds_bucket{le="0.005"}': 1,
    'usocksd_proxy_rx_seconds_bucket{le="0.025"}': 2,
    usocksd_proxy_tx_errors_total: 1,
    usocksd_proxy_rx_errors_total: 1,
    'usocksd_socks5_auth_negotiated_total{type="basic",result="ok"}': 1,
    'usocksd_socks5_auth_negotiated_total{type="no_auth",result="failed"}': 1,
    'usocksd_socks5_address_read_total{type="Domain_name",result="ok"}': 1,
    'usocksd_socks5_address_read_total{type="unknown",result="failed"}': 1,
    'transplice_socks4_userid_total{result="ok"}': 1,
    'transplice_egress_active_connections{address="192.0.2.1"}': 1,
    'transplice_egress_opened_total{address="192.0.2.1"}': 2,
    'transplice_egress_answered_total{address="192.0.2.1"}': 1,
    'transplice_egress_failed_total{address="192.0.2.1"}': 0,
    'transplice_egress_failed_total{address="2001:db8::/64"}': 1,
    'transplice_egress_spilled_total{address="2001:db8::/64"}': 1,
    'transplice_egress_usable{address="192.0.2.1"}': 1,
    'transplice_egress_usable{address="2001:db8::/64"}': 0,
    'transplice_egress_listed{address="192.0.2.1"}': 0,
    'transplice_egress_listed{address="2001:db8::/64"}': 1,
    'transplice_denied_total{rule="mail-only"}': 1,
    'transplice_denied_total{rule="deny_ports"}': 0,
    transplice_names_cache_hits_total: 7,
    transplice_names_cache_misses_total: 3,
    transplice_names_in_flight: 2,
  };
  for (const [name, value] of Object.entries(expected)) assert.equal(found[name], value, name);
  // Out of the pool, and still left from.
  world.reader.addressSlots([]);
  world.health.clear();
  const later = samplesOf((await ask(port)).body);
  assert.equal(later['transplice_egress_active_connections{address="192.0.2.1"}'], 1);
  assert.equal(later['transplice_egress_usable{address="192.0.2.1"}'], 0);
  assert.equal(later['transplice_egress_usable{address="2001:db8::/64"}'], undefined);
});

for (const accept of ["text/plain", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"]) {
  test(`histograms are whole: every bucket holds the one below (${accept})`, async (context) => {
    const world = new World(context);
    const port = await world.listen();
    world.fill();
    const histograms = [...parse((await ask(port, { headers: { accept } })).body)].filter(([, { type }]) => type === "histogram");
    assert.equal(histograms.length, 5);
    for (const [name, { samples }] of histograms) {
      const results = name.includes("elapsed") ? ['result="success"', 'result="error"'] : [""];
      for (const result of results) {
        const buckets = [...samples].filter(([key]) => key.startsWith(`${name}_bucket{${result}`));
        const bounds = buckets.map(([key]) => Number(/le="(.*)"/.exec(key)![1]!.replace("+Inf", "Infinity")));
        assert.equal(bounds.length, 15);
        assert.deepEqual(bounds, bounds.toSorted((a, b) => a - b));
        const counts = buckets.map(([, count]) => count);
        assert.deepEqual(counts, counts.toSorted((a, b) => a - b), name);
        const braces = result === "" ? "" : `{${result}}`;
        assert.equal(samples.get(`${name}_count${braces}`), counts.at(-1));
        assert.ok(counts.at(-1)! > 0 && samples.get(`${name}_sum${braces}`)! > 0, name);
      }
    }
  });
}

test("who asks for OpenMetrics gets it", async (context) => {
  const world = new World(context);
  const port = await world.listen();
  world.fill();
  const plain = await ask(port, { headers: { accept: "text/plain;version=0.0.4" } });
  const open = await ask(port, { headers: { accept: "application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1" } });
  assert.equal(plain.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
  assert.equal(open.headers["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
  assert.match(open.body, /\n# EOF\n$/);
  assert.doesNotMatch(plain.body, /EOF/);
  assert.match(open.body, /^# TYPE usocksd_connections counter$/m);
  assert.match(open.body, /^usocksd_connections_total\{version="SOCKS5",status="granted"\} 2$/m);
  assert.match(open.body, /^usocksd_proxy_rx_seconds_bucket\{le="10\.0"\}/m);
  assert.match(plain.body, /^usocksd_proxy_rx_seconds_bucket\{le="10"\}/m);
  const numbers = ({ body }: Answer) => Object.entries(samplesOf(body)).map(([name, value]) => [name.replace(/\.0"/, '"'), value]);
  assert.deepEqual(numbers(open), numbers(plain));
  // And again, for the registry of OpenMetrics renames what it has.
  assert.equal((await ask(port, { headers: { accept: "text/plain" } })).body, plain.body);
});

test("lines that come with the first that is counted, and go with their address, are those of a page written anew", async (context) => {
  const world = new World(context);
  const port = await world.listen();
  const [one] = world.socks;
  const steps = [
    () => {}, () => one.request(5, STATUS.TTL_expired), () => one.request(4, STATUS.granted), () => one.address(null, false),
    () => world.fill(), () => world.reader.addressSlots(["2001:db8::/64", "192.0.2.7"]), () => world.reader.addressSlots([]),
    () => world.reader.ruleSlots(["another", "rule"]), () => world.reader.ruleSlots(["another,rule"]),
  ];
  for (const [i, step] of steps.entries()) {
    step();
    for (const accept of ["text/plain", "application/openmetrics-text"]) {
      const fresh: HttpServers = new HttpServers({
        purpose: "metrics", log: { error: () => {}, warning: () => {} }, methods: ["GET"],
        answer: (request, response) => world.page().answer(request, response),
      });
      assert.deepEqual(await fresh.move([LOOPBACK]), []);
      const expected = await ask(portOf(fresh.listening[0]!), { headers: { accept } });
      assert.equal((await ask(port, { headers: { accept } })).body, expected.body, `step ${i}, ${accept}`);
      await fresh.close();
    }
  }
});

test("promtool finds nothing to say", async (context) => {
  if (spawnSync("promtool", ["--version"]).error !== undefined) {
    context.skip("promtool is not here: it comes with Debian's package prometheus, 96 MB");
    return;
  }
  const world = new World(context);
  const port = await world.listen();
  world.fill();
  const { body } = await ask(port);
  const { status, stdout, stderr } = spawnSync("promtool", ["check", "metrics"], { input: body, encoding: "utf8" });
  assert.deepEqual([status, stdout, stderr], [0, "", ""]);
});

test("any path answers, HEAD without a body, and other methods not at all", async (context) => {
  const port = await new World(context).listen();
  const expected = (await ask(port)).body;
  for (const path of ["/", "/metrics?x=1", "/a/b", "//", "*"]) {
    const { status, body } = await ask(port, { path });
    assert.deepEqual([status, body], [200, expected], path);
  }
  const head = await ask(port, { method: "HEAD" });
  assert.deepEqual([head.status, head.body, head.headers["content-length"]], [200, "", `${Buffer.byteLength(expected)}`]);
  for (const method of ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"]) {
    const { status, headers, body } = await ask(port, { method }, "some body");
    assert.deepEqual([status, headers.allow, body], [405, "GET, HEAD", ""], method);
  }
  assert.match(await raw(port, "CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n"), /^HTTP\/1.1 405 /);
  assert.match(await raw(port, "nonsense\r\n\r\n"), /^HTTP\/1.1 400 /);
});

/** What comes until the server closes. */
function raw(port: number, text: string): Promise<string> {
  return new Promise((resolve, reject) => {
    let got = "";
    const socket = net.connect(port, "127.0.0.1", () => socket.write(text));
    socket.setEncoding("utf8").on("data", (data) => (got += data));
    socket.on("error", reject).on("close", () => resolve(got));
  });
}

test("where no egress has ever been there is not a line; what it has counted stays when it goes", async (context) => {
  const world = new World(context);
  const port = await world.listen();
  world.sources.serves = () => false;
  assert.doesNotMatch((await ask(port)).body, /usocksd_|transplice_/);
  world.sources.serves = () => true;
  world.socks[0].request(5, STATUS.granted);
  const granted = /^usocksd_connections_total\{version="SOCKS5",status="granted"\} 1$/m;
  assert.match((await ask(port)).body, granted);
  world.sources.serves = () => false;
  assert.match((await ask(port)).body, granted);
});

test("a source that throws is an answer of 500, and the next scrape is served", async (context) => {
  const world = new World(context);
  const port = await world.listen();
  const { socks } = world.sources;
  world.sources.socks = () => {
    throw new Error("no numbers");
  };
  assert.equal((await ask(port)).status, 500);
  assert.deepEqual(world.told, ['error: a request for metrics could not be answered {"error":"Error: no numbers"}']);
  world.sources.socks = socks;
  assert.equal((await ask(port)).status, 200);
});

test("who says nothing, or half of it, or does not take the answer, is cut off in time", async (context) => {
  const world = new World(context, 300);
  const port = await world.listen();
  const started = performance.now();
  const [silent, half] = [raw(port, ""), raw(port, "GET / HTTP/1.1\r\nhost:")];
  assert.match(await silent, /^(HTTP\/1.1 408 |$)/);
  assert.match(await half, /^HTTP\/1.1 408 /);
  const waited = performance.now() - started;
  assert.ok(waited > 250 && waited < TOO_LATE_MS, `${waited} ms`);
  const closed = closing(world);
  const slow = net.connect(port, "127.0.0.1").on("error", () => {}).pause();
  slow.write("GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(2000));
  await closed;
  let got = "";
  slow.setEncoding("latin1").on("data", (data) => (got += data)).resume();
  await new Promise((resolve) => slow.once("close", resolve));
  const answers = got.split("HTTP/1.1 200 OK").length - 1;
  assert.ok(answers > 0 && answers < 2000, `${answers}`);
});

test("an answer that does not come has a deadline, and one that has gone out leaves none behind", async (context) => {
  const world = new World(context, 300);
  const port = await world.listen();
  world.answer = () => new Promise(() => {});
  assert.equal(await raw(port, "GET / HTTP/1.1\r\nhost: a\r\n\r\n"), "");
  world.answer = () => {};
  assert.equal(await raw(port, "GET / HTTP/1.1\r\nhost: a\r\n\r\n"), "", "and says nothing of coming later");
  world.answer = (_request, response) => void response.end("x".repeat(2e7));
  const closed = closing(world);
  const slow = net.connect(port, "127.0.0.1").on("error", () => {}).pause();
  slow.write("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
  await closed;
  let got = 0;
  slow.on("data", ({ length }) => (got += length)).resume();
  await new Promise((resolve) => slow.once("close", resolve));
  assert.ok(got > 0 && got < 2e7, `${got}`);
  const other = await new World(context, 1500).listen();
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  context.after(() => agent.destroy());
  const sockets = new Set<unknown>();
  agent.on("free", (socket) => sockets.add(socket));
  for (let i = 0; i < 3; i++) {
    await ask(other, { agent });
    await sleep(1000);
  }
  assert.equal(sockets.size, 1);
});

/** A deadline that is kept is kept by then, on any machine; one that is not is never. */
const TOO_LATE_MS = 30_000;

/** Resolves when the server has closed the connection of whoever asks next. */
function closing(world: World): Promise<void> {
  const { answer } = world;
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error("nobody is cut off")), TOO_LATE_MS);
    world.answer = (request, response, asker) => {
      world.answer = answer;
      request.socket.once("close", () => {
        clearTimeout(timer);
        resolve();
      });
      return answer(request, response, asker);
    };
  });
}

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

test("a scraper keeps its connection", async (context) => {
  const port = await new World(context).listen();
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  context.after(() => agent.destroy());
  const ports = new Set<number>();
  agent.on("free", (socket: net.Socket) => ports.add(socket.localPort!));
  for (let i = 0; i < 3; i++) {
    const { status, headers } = await ask(port, { agent });
    assert.deepEqual([status, headers["keep-alive"]], [200, "timeout=75"]);
    await sleep(5);
  }
  assert.equal(ports.size, 1);
});

test("an address that stays keeps its socket: no scrape fails while others come and go", async (context) => {
  const world = new World(context);
  const probe = await free();
  const stays: HttpAddress = { text: `127.0.0.1:${probe}`, dualStack: false };
  const other: HttpAddress = { text: "127.0.0.2:0", dualStack: false };
  await world.listen(stays);
  let over = false;
  let scrapes = 0;
  const scraping = (async () => {
    while (!over) {
      assert.equal((await ask(probe)).status, 200);
      scrapes++;
    }
  })();
  for (let i = 0; i < 20; i++) {
    assert.deepEqual(await world.metrics.move([stays, other]), []);
    assert.equal(world.metrics.listening.length, 2);
    const second = portOf(world.metrics.listening[1]!);
    assert.equal((await ask(second, { host: "127.0.0.2" })).status, 200);
    assert.deepEqual(await world.metrics.move([stays]), []);
    await assert.rejects(ask(second, { host: "127.0.0.2" }), { code: "ECONNREFUSED" });
  }
  over = true;
  await scraping;
  assert.ok(scrapes > 5, `${scrapes}`);
  assert.deepEqual(world.told, []);
});

let ports = 10_000 + ((process.pid * 16) % 20_000);

/** A port that nobody listens on, nor will: the kernel gives none to whoever takes any (ip_local_port_range). */
async function free(): Promise<number> {
  for (;;) {
    const port = ports++;
    const server = net.createServer().listen(port, "0.0.0.0");
    const isFree = await new Promise((resolve) => server.once("listening", () => resolve(true)).once("error", () => resolve(false)));
    if (isFree === false) continue;
    await new Promise((resolve) => server.close(resolve));
    return port;
  }
}

test("what cannot be listened on is said, and nothing has changed", async (context) => {
  const world = new World(context);
  const strangers = net.createServer().listen(0, "127.0.0.1");
  context.after(() => strangers.close());
  await new Promise((resolve) => strangers.once("listening", resolve));
  const taken = `127.0.0.1:${(strangers.address() as net.AddressInfo).port}`;
  const port = await world.listen();
  const before = world.metrics.listening;
  const fresh = await free();
  for (const others of [[], [LOOPBACK]]) {
    const wrong = await world.metrics.move([
      { text: `127.0.0.1:${fresh}`, dualStack: false }, { text: taken, dualStack: false },
      { text: "192.0.2.1:1081", dualStack: false }, { text: "unix:/nowhere/a.sock", path: "/nowhere/a.sock" }, ...others,
    ]);
    assert.deepEqual(wrong, [
      `listen tcp ${taken} for metrics: listen EADDRINUSE: address already in use ${taken}; another program listens there, see: ss -ltnp`,
      "listen tcp 192.0.2.1:1081 for metrics: listen EADDRNOTAVAIL: address not available 192.0.2.1:1081; this host has no such address, see: ip address",
      "listen unix:/nowhere/a.sock for metrics: there is no folder /nowhere",
    ]);
    assert.deepEqual(world.metrics.listening, before);
    assert.equal((await ask(port)).status, 200);
    await assert.rejects(ask(fresh), { code: "ECONNREFUSED" });
  }
});

test("from one address to all and back, on the same port", async (context) => {
  const world = new World(context);
  const port = await free();
  const one: HttpAddress = { text: `127.0.0.1:${port}`, dualStack: false };
  const all: HttpAddress = { text: `0.0.0.0:${port}`, dualStack: false };
  const away: HttpAddress = { text: "192.0.2.1:1081", dualStack: false };
  await world.listen(one);
  for (let i = 0; i < 3; i++) {
    assert.deepEqual(await world.metrics.move([all]), []);
    assert.equal((await ask(port, { host: "127.0.0.3" })).status, 200);
    assert.deepEqual(await world.metrics.move([one]), []);
    await assert.rejects(ask(port, { host: "127.0.0.3" }), { code: "ECONNREFUSED" });
    assert.equal((await ask(port)).status, 200);
    assert.deepEqual(world.metrics.listening, [one.text]);
  }
  assert.equal((await world.metrics.move([all, away])).length, 1);
  assert.deepEqual(world.metrics.listening, [one.text]);
  assert.equal((await ask(port)).status, 200);
  // A stranger holds what the wildcard needs too, so the old socket comes back.
  const stranger = net.createServer().listen(port, "127.0.0.9");
  context.after(() => stranger.close());
  await new Promise((resolve) => stranger.once("listening", resolve));
  assert.match((await world.metrics.move([all])).join(), /EADDRINUSE/);
  assert.deepEqual(world.metrics.listening, [one.text]);
  assert.equal((await ask(port)).status, 200);
});

test("dual-stack takes both families, and a literal its own", async (context) => {
  const world = new World(context);
  const port = await free();
  const [wrong] = await world.metrics.move([{ text: `[::]:${port}`, dualStack: true }]);
  if (wrong !== undefined) {
    context.skip(`no IPv6 here: ${wrong}`);
    return;
  }
  for (const host of ["127.0.0.1", "::1"]) assert.equal((await ask(port, { host })).status, 200, host);
  assert.deepEqual(await world.metrics.move([{ text: `[::1]:${port}`, dualStack: false }]), []);
  assert.equal((await ask(port, { host: "::1" })).status, 200);
  await assert.rejects(ask(port), { code: "ECONNREFUSED" });
  assert.deepEqual(world.metrics.listening, [`[::1]:${port}`]);
});

test("beyond 64 connections the next is closed, until one has gone", async (context) => {
  const port = await new World(context).listen();
  const sockets = Array.from({ length: 64 }, () => net.connect(port, "127.0.0.1"));
  await Promise.all(sockets.map((socket) => new Promise((resolve) => socket.once("connect", resolve))));
  await assert.rejects(ask(port));
  sockets[0]!.destroy();
  // The server has to hear of it; until then the next is closed, too.
  const status = (): Promise<number> => ask(port).then((answer) => answer.status, () => 0);
  const untilMs = performance.now() + TOO_LATE_MS;
  while ((await status()) !== 200) assert.ok(performance.now() < untilMs, "nobody else is let in");
  for (const socket of sockets) socket.destroy();
});

test("close() waits for an answer under way, for no longer than that may take, and for no idle scraper", async (context) => {
  const agent = new http.Agent({ keepAlive: true });
  context.after(() => agent.destroy());
  let started = 0;
  const tookMs: number[] = [];
  for (let i = 0; i < 3; i++) {
    const world = new World(context);
    const port = await world.listen();
    await ask(port, { agent });
    started = performance.now();
    await world.metrics.close();
    tookMs.push(performance.now() - started);
    await assert.rejects(ask(port), { code: "ECONNREFUSED" });
  }
  // Who waits for an idle scraper waits a second each time; a machine stands still for one now and then.
  assert.ok(Math.min(...tookMs) < 900, `${tookMs}`);
  const world = new World(context, 1500);
  const half = raw(await world.listen(), "GET / HTTP/1.1\r\nhost:");
  await sleep(50);
  started = performance.now();
  await world.metrics.close();
  assert.ok(performance.now() - started < TOO_LATE_MS);
  await half.catch(() => {});
});

test("close() in the middle of an answer lets it go out, and then the connection", async (context) => {
  const world = new World(context, 2 * TOO_LATE_MS);
  const port = await world.listen();
  const agent = new http.Agent({ keepAlive: true });
  context.after(() => agent.destroy());
  const { socks } = world.sources;
  let closed = Promise.resolve();
  world.sources.socks = () => {
    closed = world.metrics.close();
    return socks();
  };
  const started = performance.now();
  assert.equal((await ask(port, { agent })).status, 200);
  await closed;
  assert.ok(performance.now() - started < TOO_LATE_MS);
});
