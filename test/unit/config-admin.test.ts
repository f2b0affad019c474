/** [admin]: where it listens, its token, and that no secret of a configuration is ever shown. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { AdminConfig, Config } from "../../src/config/config.ts";
import { parseConfig } from "../../src/config/parse.ts";
import { problemText } from "../../src/config/problem.ts";
import { SECRET, shownConfig } from "../../src/config/shown.ts";

const PROXY = 'proxy_url = "socks5://10.20.30.40:1080"\n';
const TOKEN = "0123456789abcdef";

function parsed(text: string): { config: Config; warnings: string[] } {
  const result = parseConfig(PROXY + text, "t");
  if ("problems" in result) throw new Error(result.problems.map(problemText).join("\n"));
  return { config: result.config, warnings: result.warnings.map(problemText) };
}

const admin = (text: string): AdminConfig | null => parsed(text).config.admin;

function problems(text: string): string[] {
  const result = parseConfig(PROXY + text, "t");
  return "problems" in result ? result.problems.map(problemText) : [];
}

test("without admin.listen there is no endpoint, and what is said about it is of no use", () => {
  assert.equal(admin(""), null);
  const { config, warnings } = parsed(`[admin]\ntoken = "${TOKEN}"\nhosts = ["a.example"]`);
  assert.equal(config.admin, null);
  assert.deepEqual(warnings, [
    "t:3: admin.token: is not used: without admin.listen there is no admin endpoint",
    "t:4: admin.hosts: is not used: without admin.listen there is no admin endpoint",
  ]);
});

test("it listens on addresses and at paths", () => {
  const { listen, token, tokenFile, hosts } = admin(
    `[admin]\nlisten = ["127.0.0.1:9181", "[::1]:9181", "unix:/run/transplice/admin.sock"]\ntoken = "${TOKEN}"\nhosts = ["A.example"]`,
  )!;
  assert.deepEqual(listen.map(({ text }) => text), ["127.0.0.1:9181", "[::1]:9181", "unix:/run/transplice/admin.sock"]);
  assert.deepEqual(listen.map((address) => ("path" in address ? address.path : null)), [null, null, "/run/transplice/admin.sock"]);
  assert.deepEqual([token, tokenFile, hosts], [TOKEN, null, ["a.example"]]);
  assert.deepEqual(admin('[admin]\nlisten = "localhost:9181"')!.listen.map(({ text }) => text), ["127.0.0.1:9181", "[::1]:9181"]);
});

test("what is wrong is said, and never what the token was", () => {
  const short = "s3cret";
  for (const [text, expected] of [
    ['listen = "9181"', /^t:3: admin\.listen: found "9181", a port alone/],
    ['listen = "unix:admin.sock"', /^t:3: admin\.listen: found "unix:admin\.sock"; allowed: unix: and an absolute path/],
    [`listen = "unix:/${"x".repeat(90)}"`, /at most 90 bytes/],
    ['listen = ["unix:/a", "unix:/a"]', /is given twice/],
    ['listen = "localhost:1081"', /^t:3: admin\.listen: 127\.0\.0\.1:1081 cannot be listened on beside 127\.0\.0\.1:1081 \(listen\)/],
    [`token = "${short}"`, /^t:3: admin\.token: found something else; allowed: 16 to 256 letters/],
    [`token = "${short} with a blank in it"`, /found something else/],
    [`listen = ":9181"\ntoken = "${TOKEN}"\ntoken_file = "/x"`, /admin\.token_file: stands beside admin\.token/],
    ['hosts = ["a b"]', /^t:3: admin\.hosts: found "a b", which is no name/],
  ] as const) {
    const said = problems(`[admin]\n${text}`).join("\n");
    assert.match(said, expected, text);
    assert.ok(!said.includes(short), said);
  }
});

test("an address that others reach is warned about where nothing guards it", () => {
  assert.deepEqual(parsed('[admin]\nlisten = "127.0.0.1:9181"').warnings, []);
  assert.deepEqual(parsed('[admin]\nlisten = "unix:/run/x"').warnings, []);
  assert.deepEqual(parsed(`[admin]\nlisten = ":9181"\ntoken = "${TOKEN}"`).warnings, []);
  assert.match(parsed('[admin]\nlisten = "10.0.0.1:9181"').warnings.join(), /at 10\.0\.0\.1:9181 only metrics and health are answered/);
});

test("a configuration is shown without its secrets", () => {
  const text = `[admin]
listen = "127.0.0.1:9181"
token = "${TOKEN}"
[incoming]
[outgoing]
addresses = ["192.0.2.1", { address = "192.0.2.2", weight = 2 }, "2001:db8:1::/64"]
allow_networks = ["10.0.0.0/8"]
[users]
alice = "wonderland"
bob = "scrypt:16384:8:1:AAAAAAAAAAAAAAAAAAAAAA==:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
[[relays]]
listen = "localhost:1082"
proxy_url = "http://joe:sesame@10.20.30.41:3128"
`;
  const result = parseConfig(`proxy_url = "socks5://jim:opensaysme@10.20.30.40:1080"\n${text}`, "t");
  assert.ok("config" in result);
  const shown = JSON.stringify(shownConfig(result.config));
  for (const secret of [TOKEN, "wonderland", "sesame", "AAAAAAAA", "scrypt", "jim", "opensaysme"]) {
    assert.ok(!shown.includes(secret), `${secret} is shown`);
  }
  const { upstream, egress, admin: endpoint } = JSON.parse(shown) as {
    upstream: unknown; admin: unknown; egress: { users: unknown; addresses: unknown };
  };
  assert.deepEqual(upstream, { kind: "socks5", host: "10.20.30.40", port: 1080, credentials: SECRET, text: "socks5://10.20.30.40:1080" });
  assert.deepEqual(egress.users, [{ name: "alice", secret: SECRET }, { name: "bob", secret: SECRET }]);
  assert.deepEqual(egress.addresses, ["192.0.2.1", { address: "192.0.2.2", weight: 2 }, "2001:db8:1::/64"]);
  assert.deepEqual(endpoint, { listen: ["127.0.0.1:9181"], token: SECRET, tokenFile: null, hosts: [] });
});
