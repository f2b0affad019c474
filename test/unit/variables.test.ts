/** Environment variables in place of keys: the same Config as from a file, and the same problems. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { readEnvironment } from "../../src/config/environment.ts";
import { DEFAULT_FILE, loadConfig, OWN } from "../../src/config/file.ts";
import { type Parsed, parseConfig } from "../../src/config/parse.ts";
import { problemText } from "../../src/config/problem.ts";
import { ALL_KEYS, SETTING_KEYS, SETTINGS, variableOf } from "../../src/config/settings.ts";
import { readVariables, type Variable } from "../../src/config/variables.ts";

/** Both roles, and nothing that stands in the way of an example. */
const BASE = 'proxy_url = "socks5://192.0.2.9:1080"\n[incoming]\n';

const variables = (of: Readonly<Record<string, string>>): Variable[] => [...readEnvironment(of).variables];

function parsed(of: Readonly<Record<string, string>>, text = BASE): Parsed {
  const { overrides, problems } = readVariables(variables(of));
  return problems.length > 0 ? { problems } : parseConfig(text, "t.toml", overrides);
}

function config(found: Parsed) {
  assert.ok("config" in found, "problems" in found ? found.problems.map(problemText).join("\n") : "");
  return found.config;
}

const problems = (found: Parsed): string[] => {
  assert.ok("problems" in found, "there should be problems");
  return found.problems.map(problemText);
};

/** The file that says `key = value` besides BASE. */
function fileWith(key: string, value: string): string {
  const table = key.includes(".") ? key.slice(0, key.lastIndexOf(".")) : "";
  const line = `${key.slice(table === "" ? 0 : table.length + 1)} = ${value}\n`;
  if (key === "proxy_url") return `${line}[incoming]\n`;
  if (table === "") return line + BASE;
  return table === "incoming" ? BASE + line : `${BASE}[${table}]\n${line}`;
}

test("each key's example means in its variable what it means in a file, as in TOML and without quotes", () => {
  for (const key of SETTING_KEYS) {
    const { example } = SETTINGS[key];
    const bare = /^\[.*\]$/.test(example) && !example.includes("{")
      ? example.slice(1, -1).replaceAll('"', "").replaceAll(", ", ",")
      : /^"[^"]*"$/.test(example) ? example.slice(1, -1) : example;
    const base = key === "proxy_url" ? "[incoming]\n" : BASE;
    const wanted = parseConfig(fileWith(key, example), "t.toml");
    // Whatever else an example needs, it is a problem with the file and with the variable alike.
    if ("problems" in wanted) {
      assert.equal(problems(parsed({ [variableOf(key)]: bare }, base)).length, wanted.problems.length, key);
      continue;
    }
    for (const text of example.startsWith("[") ? [example, bare] : [bare]) {
      assert.deepEqual(config(parsed({ [variableOf(key)]: text }, base)), wanted.config, `${variableOf(key)}=${text}`);
    }
  }
});

test("variables' names are different, and none is one of a service beside the container", () => {
  const names = ALL_KEYS.map(variableOf);
  assert.equal(new Set(names).size, names.length);
  const all = Object.fromEntries(names.map((name) => [name, "x"]));
  assert.equal(readVariables(variables(all)).overrides.length, names.length);
});

test("a variable wins over the file and a flag over the variable; an empty one is none", () => {
  const level = (of: Readonly<Record<string, string>>, flags: readonly string[] = []) =>
    config(parseConfig(`${BASE}[log]\nlevel = "error"`, "t.toml", [
      ...readVariables(variables(of)).overrides,
      ...flags.map((text) => ({ key: "log.level" as const, text, from: "-loglevel" })),
    ])).log.level;
  assert.equal(level({ TRANSPLICE_LOG_LEVEL: "debug" }), "debug");
  assert.equal(level({ TRANSPLICE_LOG_LEVEL: "" }), "error");
  assert.equal(level({ TRANSPLICE_LOG_LEVEL: "debug" }, ["warning"]), "warning");
});

test("a table that stands in variables alone makes the process an egress", () => {
  assert.equal(config(parsed({ TRANSPLICE_INCOMING_PORT: "1085" }, "")).egress?.listen[0]?.text, "[::]:1085");
  assert.equal(config(parsed({ TRANSPLICE_PROXY_URL: "direct:", TRANSPLICE_LISTEN: "127.0.0.1:1,[::1]:2" }, ""))
    .listen.map(({ text }) => text).join(" "), "127.0.0.1:1 [::1]:2");
  assert.match(problems(parsed({}, "")).join(), /proxy_url: is missing/);
});

test("users and rules are values of TOML, in place of the file's", () => {
  const file = `${BASE}[users]\nbob = "clear"\n`;
  const rules = '[{ name = "a", action = "deny", users = ["alice"],\n ports = [25] }]';
  const { egress } = config(parsed({ TRANSPLICE_USERS: '{ alice = "secret" }', TRANSPLICE_RULES: rules }, file));
  assert.deepEqual(egress?.users.map(({ name }) => name), ["alice"]);
  assert.deepEqual(egress?.access.rules.map(({ name }) => name), ["a"]);
  const wrong = problems(parsed({ TRANSPLICE_USERS: "alice:secret", TRANSPLICE_RULES: '[{ name = "a", acton = "deny" }]' }));
  assert.match(wrong[0]!, /^TRANSPLICE_USERS: is not a value of TOML; for example: \{ alice/);
  assert.doesNotMatch(wrong.join(), /secret/);
  assert.ok(wrong.some((text) => /^TRANSPLICE_RULES: .*did you mean action\?/.test(text)), wrong.join("\n"));
  assert.match(problems(parsed({ TRANSPLICE_USERS: '{ a = "b" }' }, 'proxy_url = "direct:"'))[0]!, /^TRANSPLICE_USERS: \[users\] is about the egress/);
});

test("relays are a value of TOML", () => {
  const { relays } = config(parsed({ TRANSPLICE_RELAYS: '[{ listen = "127.0.0.1:1082", proxy_url = "direct:" }]' }));
  assert.deepEqual(relays.flatMap(({ listen }) => listen.map(({ text }) => text)), ["127.0.0.1:1082"]);
  assert.match(problems(parsed({ TRANSPLICE_RELAYS: '[{ listen = "localhost:1081", proxy_url = "direct:" }]' }))[0]!, /^TRANSPLICE_RELAYS: /);
});

test("what is wrong is said under the variable's name, and all at once", () => {
  assert.deepEqual(problems(parsed({ TRANSPLICE_WORKERS: "many", TRANSPLICE_TIMEOUTS_DIAL: "5", TRANSPLICE_MODE: "tprox" })), [
    'TRANSPLICE_WORKERS: found "many"; allowed: an integer from 1 to 254',
    'TRANSPLICE_TIMEOUTS_DIAL: found "5" without a unit; allowed: a duration such as "10s" or "1m30s" (h, m, s, ms), from 10ms to 1h',
    'TRANSPLICE_MODE: found "tprox" (did you mean "tproxy"?); allowed: "redirect" or "tproxy"',
  ]);
  // Wrong in company: with the other's value from the file.
  assert.match(problems(parsed({ TRANSPLICE_LISTEN: "192.0.2.9:1080" }))[0]!, /^t\.toml:1: proxy_url: .* is transplice's own address/);
  assert.match(problems(parsed({ TRANSPLICE_PROXY_URL: "socks5://localhost:1081" }))[0]!, /^TRANSPLICE_PROXY_URL: socks5/);
  // The text of one is no way into another.
  assert.match(problems(parsed({ TRANSPLICE_WORKERS: "1\nmark = 2" }))[0]!, /^TRANSPLICE_WORKERS: found/);
});

test("a variable that is no key is a problem, with what was meant; those of services are let be", () => {
  assert.deepEqual(problems(parsed({ TRANSPLICE_PROXY_ULR: "x", TRANSPLICE_XYZZY: "1" })), [
    "TRANSPLICE_PROXY_ULR: is not a setting; did you mean TRANSPLICE_PROXY_URL?",
    "TRANSPLICE_XYZZY: is not a setting; variables are keys in capitals, TRANSPLICE_TIMEOUTS_DIAL for timeouts.dial",
  ]);
  config(parsed({
    TRANSPLICE_SERVICE_HOST: "10.0.0.1", TRANSPLICE_SERVICE_PORT: "1080", TRANSPLICE_SERVICE_PORT_SOCKS: "1080",
    TRANSPLICE_PORT: "tcp://10.0.0.1:1080", TRANSPLICE_PORT_1080_TCP: "tcp://10.0.0.1:1080",
    TRANSPLICE_PORT_1080_TCP_ADDR: "10.0.0.1", TRANSPLICE_EGRESS_SERVICE_HOST: "10.0.0.1",
    TRANSPLICE_INCOMING_PORT: "tcp://10.0.0.2:1080", TRANSPLICE_HANDOVER: "{}", OTHER_PORT: "x",
  }));
});

test("with enough variables there need be no default file; a file that is named must be there", async () => {
  const enough = variables({ TRANSPLICE_PROXY_URL: "socks5://192.0.2.9:1080" });
  const folder = mkdtempSync(join(tmpdir(), "transplice-"));
  try {
    const absent = join(folder, "absent.toml");
    const named = await loadConfig(absent, [], OWN, enough);
    assert.match("problems" in named ? problemText(named.problems[0]!) : "", /does not exist/);
    const file = join(folder, "t.toml");
    writeFileSync(file, 'workers = 3\nproxy_url = "direct:"\n');
    const both = await loadConfig(file, [], OWN, enough);
    assert.ok("config" in both && both.config.workers === 3 && both.config.upstream?.kind === "socks5");
    const typo = await loadConfig(file, [], OWN, variables({ TRANSPLICE_WORKRES: "3" }));
    assert.match("problems" in typo ? problemText(typo.problems[0]!) : "", /did you mean TRANSPLICE_WORKERS/);
    const none = await loadConfig(DEFAULT_FILE, [], OWN, enough);
    assert.ok("config" in none, "without a file");
  } finally {
    rmSync(folder, { recursive: true });
  }
});
