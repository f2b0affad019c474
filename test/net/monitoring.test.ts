/**
 * The Grafana dashboard and the alert rules against a running process: every metric that they name is
 * there, every expression is one, and promtool's own tests of the rules pass.
 */
import { strict as assert } from "node:assert";
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { Names } from "./names.ts";
import { RELAY } from "./network.ts";
import { PRIVATE } from "./sandbox.ts";
import { scenario, type Stage } from "./scenario.ts";
import { curl } from "./web.ts";

const MONITORING = fileURLToPath(new URL("../../../monitoring/", import.meta.url));
const read = (file: string): string => readFileSync(`${MONITORING}${file}`, "utf8");

interface Panel {
  readonly title: string;
  readonly description?: string;
  readonly id: number;
  readonly gridPos: { readonly x: number; readonly y: number; readonly w: number; readonly h: number };
  readonly targets?: readonly { readonly expr: string }[];
}

interface Dashboard {
  readonly panels: readonly Panel[];
  readonly annotations: { readonly list: readonly { readonly expr: string }[] };
}

const dashboard = JSON.parse(read("grafana-dashboard.json")) as Dashboard;
const expressions = [...dashboard.panels.flatMap(({ targets = [] }) => targets.map(({ expr }) => expr)), ...dashboard.annotations.list.map(({ expr }) => expr)];

function promtool(stage: Stage, ...args: string[]): string {
  if (!existsSync("/usr/bin/promtool")) stage.skip("promtool is not installed (Debian: prometheus)");
  return execFileSync("promtool", args, { encoding: "utf8", cwd: MONITORING, stdio: ["ignore", "pipe", "inherit"], timeout: 60_000 });
}

scenario("every metric of the dashboard and of the alerts is one that the process has", async (stage) => {
  await Names.start(stage);
  const upstream = stage.upstream({ protocol: "socks5", dials: true });
  await stage.relay({
    listen: "127.0.0.1:1081", proxy_url: upstream.url(), workers: 1, admin: { listen: "127.0.0.1:9181" },
    incoming: { port: 1080, addresses: [RELAY[4]], allow_from: ["10.0.0.0/8"] }, outgoing: { addresses: [RELAY[4]], deny_ports: [25] },
  });
  const page = String((await curl(stage.net.relay, "http://127.0.0.1:9181/metrics")).body);
  const has = new Set<string>();
  for (const [, name, type] of page.matchAll(/^# TYPE (\S+) (\S+)/gm)) {
    for (const end of type === "histogram" ? ["_bucket", "_sum", "_count"] : [""]) has.add(`${name}${end}`);
  }
  assert.ok(has.size > 30, page.slice(0, 1000));
  const named = [...expressions, read("alerts.yml").replace(/^ *(description|summary):.*$/gm, "")].flatMap((text) => [...text.matchAll(/\b(?:transplice|usocksd|process|nodejs)_[a-z0-9_]+/g)].map(([name]) => name));
  assert.ok(named.length > 60);
  for (const name of named) assert.ok(has.has(name), `${name} is not in /metrics`);
  // Labels, too: a selector that matches nothing draws nothing.
  for (const [, metric, labels] of [...expressions, read("alerts.yml")].join("\n").matchAll(/\b(transplice_[a-z_]+)\{([^}]*)\}/g)) {
    for (const [, label] of labels!.matchAll(/(\w+)\s*(?:=~|!~|=|!=)/g)) {
      if (label === "job" || label === "instance") continue;
      assert.match(page, new RegExp(`^${metric}\\{[^}]*\\b${label}="`, "m"), `${metric} has no label ${label}`);
    }
  }
  // A relay has less, and its panels say so.
  const relayPage = await relayMetrics(stage);
  for (const { title, description, targets = [] } of dashboard.panels) {
    const missing = targets.flatMap(({ expr }) => [...expr.matchAll(/\btransplice_[a-z0-9_]+/g)].map(([name]) => name.replace(/_(bucket|sum|count)$/, ""))).filter((name) => !relayPage.includes(`# TYPE ${name} `));
    if (missing.length > 0) assert.match(description ?? "", /egress/, `${title}: ${missing.join(", ")}`);
  }
  // What promtool's tests of the rules are fed with is what there is: else an alert speaks of a label that is not there.
  const labelsOf = (labels: string): string[] => [...labels.matchAll(/(\w+)="/g)].map(([, label]) => label!).filter((label) => !["job", "instance"].includes(label)).sort();
  for (const [, metric, labels] of read("alerts.test.yml").matchAll(/series: '(\w+)\{([^}]*)\}'/g)) {
    const [, real = ""] = new RegExp(`^${metric}(?:\\{([^}]*)\\})? `, "m").exec(page)!;
    assert.deepEqual(labelsOf(labels!), labelsOf(real), `the labels of ${metric}`);
  }
});

async function relayMetrics(stage: Stage): Promise<string> {
  await stage.relay({ listen: "127.0.0.1:1083", proxy_url: "direct:", workers: 1, admin: { listen: "127.0.0.1:9183" } });
  return String((await curl(stage.net.relay, "http://127.0.0.1:9183/metrics")).body);
}

scenario("the alert rules are right, and come when they should", async (stage) => {
  assert.match(promtool(stage, "check", "rules", "alerts.yml"), /SUCCESS: 17 rules found/);
  assert.match(promtool(stage, "test", "rules", "alerts.test.yml"), /SUCCESS/);
  const alerts = [...read("alerts.yml").matchAll(/alert: (\w+)/g)].map((match) => match[1]!);
  const tests = read("alerts.test.yml");
  for (const alert of alerts) {
    assert.match(tests, new RegExp(`alertname: ${alert}, exp_alerts: \\[\\]`), `${alert} is quiet on a good day`);
    assert.match(tests, new RegExp(`name: ${alert}\\n[\\s\\S]*?alertname: ${alert}\\n`), `${alert} comes on a bad one`);
  }
});

scenario("every expression of the dashboard is one, and no two panels overlap", async (stage) => {
  const rules = expressions.map((expr, i) => ({ record: `panel:${i}`, expr: expr.replaceAll("$__rate_interval", "5m").replaceAll("$job", "x").replaceAll("$instance", "y") }));
  const file = `${PRIVATE}/dashboard-rules.json`;
  // JSON is YAML.
  writeFileSync(file, JSON.stringify({ groups: [{ name: "dashboard", rules }] }));
  assert.match(promtool(stage, "check", "rules", file), new RegExp(`SUCCESS: ${rules.length} rules found`));
  const { panels } = dashboard;
  assert.equal(new Set(panels.map(({ id }) => id)).size, panels.length);
  for (const one of panels) {
    assert.ok(one.gridPos.x + one.gridPos.w <= 24, one.title);
    for (const other of panels) {
      const [a, b] = [one.gridPos, other.gridPos];
      const apart = a.x + a.w <= b.x || b.x + b.w <= a.x || a.y + a.h <= b.y || b.y + b.h <= a.y;
      assert.ok(one === other || apart, `${one.title} and ${other.title}`);
    }
  }
});
