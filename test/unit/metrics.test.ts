/**
 * The page of metrics is written once for each set of lines, and then only its numbers change: whatever
 * lines come and go, and in whatever order scrapes are answered, it is the page that is written anew.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Each, type Family, Histogram, MetricsPage, type MetricsPart, One } from "../../src/control/admin/metrics.ts";
import { ProxyMetrics, type ProxyNumbers } from "../../src/control/admin/proxy-metrics.ts";
import type { WorkerView } from "../../src/control/fleet.ts";
import { countersBytes, countersRow } from "../../src/engine/counters.ts";
import { metersBytes, metersRow } from "../../src/engine/meters.ts";

const FORMATS = ["text/plain", "application/openmetrics-text"];

/** What a scraper gets. */
function scrape(page: MetricsPage, accept = FORMATS[0]!): Promise<string> {
  return new Promise((resolve, reject) => {
    const response = { writeHead: () => {}, end: resolve };
    page.answer({ headers: { accept } } as never, response as never)?.catch(reject);
  });
}

/** A part whose lines are what the test says. */
class Part implements MetricsPart {
  /** A line for each, of this number. */
  is: Record<string, number> = {};
  #read: Record<string, number> = {};

  read(): string | null {
    this.#read = { ...this.is };
    return Object.keys(this.#read).join();
  }

  families(boundText: (bound: number) => string): Family[] {
    const names = (): string[] => Object.keys(this.#read);
    const value = (name: string): number => this.#read[name]!;
    return [
      new One("counter", "a_total", "Of all.", () => Object.values(this.#read).reduce((sum, each) => sum + each, 0)),
      new Each("gauge", "each", "Each.", names, (name) => ({ name }), value),
      new Histogram("times", "Times.", boundText, names, (name) => ({ name }), (name) => ({
        bounds: [1, 2.5], counts: new Float64Array([value(name), 1, 2]), sum: value(name) * 4,
      })),
    ];
  }
}

test("lines that stay are answered at once, in steps between which others go first", async () => {
  const part = new Part();
  let steps = 0;
  const page = new MetricsPage([part], () => steps++);
  part.is = { here: 1 };
  await scrape(page);
  part.is = { here: 2 };
  steps = 0;
  const sent: unknown[] = [];
  const response = { writeHead: (...head: unknown[]) => sent.push(head), end: (...body: unknown[]) => sent.push(body, steps) };
  assert.equal(page.answer({ headers: {} } as never, response as never, ["x-other", "one"]), undefined);
  const [[status, headers], [text, encoding], before] = sent as [[number, string[]], [string, string], number];
  assert.deepEqual([status, headers.slice(0, 3), headers.at(-1), encoding], [200, ["x-other", "one", "content-type"], `${text.length}`, "latin1"]);
  assert.match(text, /^a_total 2$/m);
  assert.deepEqual([before, steps], [3, 4], "after asking, reading and writing; and when it has gone");
});

test("a page with other letters than ASCII has its length in bytes", async () => {
  const part = new Part();
  part.is = { "\u00fcber": 1 };
  const page = new MetricsPage([part]);
  await scrape(page);
  const sent: unknown[] = [];
  const response = { writeHead: (...head: unknown[]) => sent.push(head), end: (...body: unknown[]) => sent.push(body) };
  await page.answer({ headers: {} } as never, response as never);
  const [[, headers], [text, encoding]] = sent as [[number, string[]], [string, string]];
  assert.deepEqual([headers.at(-1), encoding], [`${Buffer.byteLength(text)}`, "utf8"]);
});

test("numbers stand where they belong, whatever they look like", async () => {
  const part = new Part();
  const page = new MetricsPage([part]);
  part.is = { "x -8675309": 0.25, "\"\\\n -8675309": -8_675_309 };
  const expected = `# HELP a_total Of all.
# TYPE a_total counter
a_total ${0.25 - 8_675_309}

# HELP each Each.
# TYPE each gauge
each{name="x -8675309"} 0.25
each{name="\\"\\\\\\n -8675309"} -8675309

# HELP times Times.
# TYPE times histogram
times_bucket{name="x -8675309",le="1"} 0.25
times_bucket{name="x -8675309",le="2.5"} 1.25
times_bucket{name="x -8675309",le="+Inf"} 3.25
times_sum{name="x -8675309"} 1
times_count{name="x -8675309"} 3.25
times_bucket{name="\\"\\\\\\n -8675309",le="1"} -8675309
times_bucket{name="\\"\\\\\\n -8675309",le="2.5"} -8675308
times_bucket{name="\\"\\\\\\n -8675309",le="+Inf"} -8675306
times_sum{name="\\"\\\\\\n -8675309"} -34701236
times_count{name="\\"\\\\\\n -8675309"} -8675306
`;
  assert.equal(await scrape(page), expected);
  assert.equal(await scrape(page), expected, "and again");
});

test("a part that has nothing to say is not on the page, until it has", async () => {
  class Late extends Part {
    begun = false;

    override read(): string | null {
      return super.read() !== null && this.begun ? "begun" : null;
    }

    override families(): Family[] {
      return [new One("gauge", "late", "Late.", () => 7)];
    }
  }
  for (const accept of FORMATS) {
    const [part, late] = [new Part(), new Late()];
    const page = new MetricsPage([late, part]);
    const without = await scrape(new MetricsPage([part]), accept);
    assert.equal(await scrape(page, accept), without);
    late.begun = true;
    assert.match(await scrape(page, accept), /^# HELP late Late\.\n# TYPE late gauge\nlate 7\n\n?# HELP a/);
    late.begun = false;
    assert.equal(await scrape(page, accept), without);
  }
});

test("lines come and go", async () => {
  const part = new Part();
  const page = new MetricsPage([part]);
  for (const is of [{}, { a: 1 }, { a: 2 }, { b: 2 }, { b: 3, c: 4 }, { c: 4, b: 3 }, {}, { a: 1e21, b: 0.1 + 0.2 }] as Record<string, number>[]) {
    part.is = is;
    for (const accept of FORMATS) assert.equal(await scrape(page, accept), await scrape(new MetricsPage([part]), accept), JSON.stringify(is));
  }
});

test("scrapes that overlap, while lines come and go, get each the page of their moment", async () => {
  const part = new Part();
  const page = new MetricsPage([part]);
  const moments: Record<string, number>[] = [{ a: 1 }, { b: 2, a: 3 }, { a: 4 }, { a: 5 }, { c: 6, a: 7 }, { a: 8 }];
  const texts = moments.map((is) => {
    part.is = is;
    return scrape(page);
  });
  for (const [i, is] of moments.entries()) {
    part.is = is;
    assert.equal(await texts[i], await scrape(new MetricsPage([part])), JSON.stringify(is));
  }
});

test("a worker, an upstream's address and a listener come and go, and the kernel stops telling CPU time", async () => {
  const counters = countersRow(new SharedArrayBuffer(countersBytes(1)), 0);
  const meters = metersRow(new SharedArrayBuffer(metersBytes(1)), 0);
  const worker = (number: number): WorkerView => ({
    number, incarnation: 0, state: "running", full: false, counters, meters, table: null as never, limits: { pipes: number, buffers: 2 } as never,
  });
  const upstream = (address: string, dials: number) =>
    ({ address, active: 1, dials, dialFailures: 0, handshakeFailures: 0, drained: false, healthy: true });
  const backlog = (address: string) => ({ address, role: "transparent" as const, waiting: 3, max: 4 });
  let now: ProxyNumbers = {
    counters, meters, workers: [worker(0)], cpuSeconds: [1.5], replacements: 0, logDropped: 0, tunnelsMax: 100, upstreams: [], backlogs: [],
    fds: { open: 10, limit: 20 }, residentBytes: 30, ready: true, version: "1.2.3",
  };
  const page = new MetricsPage([new ProxyMetrics(() => now)]);
  /** Without what moves by itself. */
  const still = (text: string): string => text.replace(/^process_cpu_seconds.*$/gm, "");
  const changes: Partial<ProxyNumbers>[] = [
    {}, { cpuSeconds: [null] }, { cpuSeconds: [2] }, { workers: [worker(0), worker(1)], cpuSeconds: [1, null] }, { cpuSeconds: [null, 1] },
    { workers: [worker(1), worker(0)] }, { upstreams: [upstream("192.0.2.1:1080", 5)] }, { upstreams: [upstream("192.0.2.2:1080", 6)] },
    { backlogs: [backlog("127.0.0.1:1081")] }, { backlogs: [backlog("[::1]:1081")], upstreams: [upstream("192.0.2.2:1080", 7), upstream("192.0.2.1:1080", 8)] },
    { workers: [], cpuSeconds: [], upstreams: [], backlogs: [] },
  ];
  for (const change of changes) {
    now = { ...now, ...change };
    for (const accept of FORMATS) {
      assert.equal(still(await scrape(page, accept)), still(await scrape(new MetricsPage([new ProxyMetrics(() => now)]), accept)), JSON.stringify(change));
    }
  }
});
