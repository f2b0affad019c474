/** The predecessors' files as ours: the same meaning, and what is said about it. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import type { Config } from "../../src/config/config.ts";
import { migrate } from "../../src/config/migrate.ts";
import { parseConfig } from "../../src/config/parse.ts";
import { problemText } from "../../src/config/problem.ts";
import { parseAs, type ProgramName } from "../../src/config/program.ts";

const OPTIONS = { ignoreUnsupported: true };

function page(text: string, from: ProgramName | null = null): string {
  const done = migrate(text, "old.conf", from, OPTIONS);
  if ("problems" in done) assert.fail(done.problems.map(problemText).join("\n"));
  return done.text;
}

function configOf(text: string): Config {
  const parsed = parseConfig(text, "new.toml");
  if ("problems" in parsed) assert.fail(`${parsed.problems.map(problemText).join("\n")}\n${text}`);
  return parsed.config;
}

/** The page passes a check, and means what the file meant. */
function same(text: string, from: ProgramName): string {
  const loaded = parseAs(from, text, "old.conf", [], OPTIONS);
  if ("problems" in loaded) assert.fail(`${loaded.problems.map(problemText).join("\n")}\n${text}`);
  const written = page(text, from);
  assert.deepEqual(configOf(written), loaded.config);
  return written;
}

const guess = (text: string): string => / of (\w+)$/m.exec(page(text).split("\n")[0]!)![1]!;

test("whose file it is shows in its keys", () => {
  assert.equal(guess('proxy_url = "socks5://10.0.0.1:1"\n[log]\nlevel = "info"\n# redsocks { }'), "transocks");
  assert.equal(guess('Proxy_url = "socks5://10.0.0.1:1"\nlisten = ":1"'), "transocks");
  assert.equal(guess('proxy_url = "socks5://10.0.0.1:1"\nmark = 7'), "transplice");
  assert.equal(guess("[incoming]\nport = 1080"), "usocksd");
  assert.equal(guess("outgoing = { deny_ports = [25] }"), "usocksd");
  assert.equal(guess("[incoming]\nmax_per_client = 5"), "transplice");
  assert.equal(guess("// x\nbase{redirector=iptables;}redsocks{local_port=1;ip=10.0.0.1;port=1;type=socks5;}"), "redsocks");
  const unknown = migrate('[log]\nlevel = "info"', "x", null, OPTIONS);
  assert.ok("problems" in unknown && /say whose it is with --from/.test(unknown.problems[0]!.message));
  assert.ok("problems" in migrate("proxy_url = ", "x", null, OPTIONS));
});

test("what the old file had wrong stands on top", () => {
  const transocks = page('listen = "127.0.0.1:1081"\nproxy_url = "http://u:S3cret@198.51.100.1:3128"\n');
  for (const said of [
    /password stands here in clear text/, /198\.51\.100\.1 is special \(reserved\)|a loop in waiting/,
    /no IPv6 listener: .*"\[::1\]:1081"/, /^# any 2xx answer to CONNECT is success.*\nproxy_url/m,
  ]) assert.match(transocks, said);
  assert.match(page('proxy_url = "socks5://8.8.8.8:1"'), /a loop in waiting: 8\.8\.8\.8 is a public address/);
  assert.match(page('proxy_url = "socks5://127.0.0.1:1"'), /a loop in waiting: the upstream is on this host/);
  assert.match(page('proxy_url = "socks5://p.example:1"'), /a loop in waiting, should "p\.example" have/);
  assert.doesNotMatch(page('listen = ":1"\nproxy_url = "socks5://10.0.0.1:1"'), /loop in waiting|IPv6 listener|clear text/);
  assert.doesNotMatch(page('mark = 1\nproxy_url = "socks5://8.8.8.8:1"'), /loop in waiting/);
  const usocksd = page('[incoming]\nmetrics_port = 0\nallow_from = ["2001:db8::20"]\n[outgoing]\n  addresses = ["10.0.0.1"]\ndnsbl_domain = "d.example"\n');
  for (const said of [
    /^# no metrics; .*\nmetrics_port = 0$/m, /^# an IPv6 address .*\nallow_from/m, /^ {2}# a client keeps .*\n {2}addresses/m,
    /^# asked every 60 s.*\ndnsbl/m, /10\.0\.0\.1 is special \(private\)/, /loopback, link-local, private.* no destinations/,
  ]) assert.match(usocksd, said);
  assert.match(page("", "usocksd"), /OPEN PROXY/);
  const redsocks = page('base { redirector = iptables; daemon = on; user = u; }\nredsocks { local_ip = 0.0.0.0; local_port = 1025; ip = 8.8.8.8; port = 1; type = http-connect; }\nredudp { }');
  for (const said of [/daemon: there is none/, /^user = "u"$/m, /redudp: is ignored/, /^# 0\.0\.0\.0 is all .*\nlisten = "0\.0\.0\.0:1025"$/m, /^# CONNECT in HTTP\/1\.1, with Host\nproxy_url/m, /^\[log\]\n# redsocks told.*\nlevel = "warning"$/m]) {
    assert.match(redsocks, said);
  }
});

test("a file keeps its own lines, whatever its shape", () => {
  same('\ufeffproxy_url = "socks5://10.0.0.1:1"\r\nlisten = [\r\n  ":1",\r\n]\r\n[log]\r\nfilename = """\n#x"""', "transocks");
  same('log = { level = "debug" }\nproxy_url = "socks5://a%20b:c@h:1"', "transocks");
  same("", "usocksd");
  same('[log]\nlevel = "debug"', "usocksd");
  same('log.level = "debug"\nincoming.port = 7', "usocksd");
  same('incoming = { port = 1, metrics_port = 0 }\nOutgoing.deny_sites = ["", "A.b."]', "usocksd");
  same('[ "incoming" ]\n', "usocksd");
});

const port = fc.integer({ min: 1, max: 65_535 });
const ip = fc.oneof(fc.ipV4(), fc.constantFrom("::1", "2001:db8::7", "fd00::1", "10.0.0.1", "127.0.0.1"))
  .filter((text) => !/^(0\..*|2(2[4-9]|3\d)\..*|255\.255\.255\.255)$/.test(text));
const bracketed = (host: string): string => (host.includes(":") ? `[${host}]` : host);
const host = fc.oneof(ip, fc.constantFrom("proxy.example.com", "a-b.c_d"));
/** Each as often given as not. */
const maybe = (key: string, value: fc.Arbitrary<string>): fc.Arbitrary<string> =>
  fc.option(value, { nil: undefined }).map((text) => (text === undefined ? "" : `${key} = ${text}`));
const lines = (...parts: fc.Arbitrary<string>[]): fc.Arbitrary<string> =>
  fc.tuple(...parts).map((all) => `${all.filter((line) => line !== "").join("\n")}\n`);
const array = (items: fc.Arbitrary<string>): fc.Arbitrary<string> =>
  fc.uniqueArray(items, { maxLength: 3 }).map((all) => `[${all.map((item) => JSON.stringify(item)).join(", ")}]`);
const log = fc.constantFrom("", '[log]\nlevel = "warn"\nformat = "json"', '[log]\nfilename = "/x"');

test("a transocks.toml migrated means what it meant", () => {
  const login = fc.option(fc.tuple(fc.string({ minLength: 1, maxLength: 9, unit: "grapheme" }), fc.string({ maxLength: 9 })), { nil: undefined })
    .map((pair) => (pair === undefined ? "" : `${encodeURIComponent(pair[0])}:${encodeURIComponent(pair[1])}@`));
  const url = fc.tuple(login, host, port).map(([user, at, number]) => JSON.stringify(`socks5://${user}${bracketed(at)}:${number}`));
  const file = lines(
    maybe("listen", fc.oneof(fc.constantFrom('"localhost:7"', '":7"', '"0.0.0.0:7"'), fc.tuple(ip, port).map(([at, number]) => JSON.stringify(`${bracketed(at)}:${number}`)))),
    url.map((text) => `proxy_url = ${text} # mine`), log,
  );
  fc.assert(fc.property(file, (text) => {
    // An upstream that is the listener itself is nobody's file.
    if ("problems" in parseAs("transocks", text, "x", [], OPTIONS)) return;
    assert.match(same(text, "transocks"), /# mine/);
  }), { numRuns: 400 });
});

test("a usocksd.toml migrated means what it meant", () => {
  const network = fc.oneof(ip, fc.tuple(fc.ipV4(), fc.integer({ min: 0, max: 32 })).map(([at, bits]) => `${at}/${bits}`));
  const site = fc.constantFrom("", "a.example", ".b.example", "A.example.", "127.0.0.1");
  const file = lines(
    log,
    fc.oneof(fc.constant(""), lines(
      fc.constant("[incoming]"), maybe("port", fc.integer({ min: 2000, max: 9000 }).map(String)), maybe("metrics_port", fc.constantFrom("0", "9180")),
      maybe("addresses", array(fc.constantFrom("10.0.0.1", "::1"))), maybe("allow_from", array(network)),
    )),
    fc.oneof(fc.constant(""), lines(
      fc.constant("[outgoing]"), maybe("allow_sites", array(site)), maybe("deny_sites", array(site)), maybe("deny_ports", fc.constant("[22, 25]")),
      maybe("iface", fc.constantFrom('""', '"tun0"')), maybe("addresses", array(fc.constantFrom("192.0.2.1", "2001:db8::1", "8.8.4.4"))),
      maybe("dnsbl_domain", fc.constantFrom('""', '"zen.example"')),
    )),
  );
  fc.assert(fc.property(file, (text) => void same(text, "usocksd")), { numRuns: 400 });
});

test("a redsocks.conf migrated means what it meant, and that is what it says", () => {
  const string = fc.oneof(fc.string({ minLength: 1, maxLength: 9, unit: "grapheme" }), fc.string({ minLength: 1, maxLength: 9, unit: "binary-ascii" }));
  const quote = (text: string): string => `"${text.replace(/[\\"]/g, "\\$&").replaceAll("\n", "\\n")}"`;
  const given = fc.record({
    local: ip, localPort: port, host, port, login: fc.option(fc.tuple(string, string), { nil: undefined }),
    level: fc.constantFrom("debug", "info", "warning"), max: fc.option(fc.integer({ min: 1, max: 9999 }), { nil: undefined }),
    keepalive: fc.option(fc.integer({ min: 1, max: 32_400 }), { nil: undefined }), file: fc.option(string, { nil: undefined }),
    splice: fc.option(fc.boolean(), { nil: undefined }),
  });
  fc.assert(fc.property(given, (it) => {
    if (bracketed(it.local) === bracketed(it.host) && it.localPort === it.port) return;
    const text = `base { redirector = iptables;
${it.level === "warning" ? "" : `log_${it.level} = on;`} ${it.max === undefined ? "" : `redsocks_conn_max = ${it.max};`}
${it.keepalive === undefined ? "" : `tcp_keepalive_time = ${it.keepalive};`} ${it.file === undefined ? "" : `log = ${quote(`file:${it.file}`)};`} }
redsocks { local_ip = "${it.local}"; local_port = ${it.localPort}; ip = "${it.host}"; port = ${it.port}; type = socks5;
${it.login === undefined ? "" : `login = ${quote(it.login[0])}; password = ${quote(it.login[1])};`} ${it.splice === undefined ? "" : `splice = ${it.splice ? "on" : "off"};`} }`;
    if (it.login?.some((part) => new TextEncoder().encode(part).length > 255) === true || it.file?.includes("\0") === true) return;
    const config = configOf(same(text, "redsocks"));
    const { upstream } = config;
    assert.ok(upstream?.kind === "socks5");
    assert.deepEqual([upstream.host, upstream.port], [it.host, it.port]);
    const decoded = upstream.credentials === null ? undefined : [upstream.credentials.user, upstream.credentials.password].map((bytes) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes));
    assert.deepEqual(decoded, it.login);
    assert.equal(config.log.level, it.level);
    assert.equal(config.log.filename, it.file ?? null);
    assert.equal(config.maxConnections, it.max ?? null);
    assert.equal(config.tcp.keepaliveIdleMs, it.keepalive === undefined ? 180_000 : it.keepalive * 1000);
    assert.equal(config.limits.pipes, it.splice === false ? 0 : null);
  }), { numRuns: 400 });
});

test("no text of the file gets out of a comment", () => {
  fc.assert(fc.property(fc.oneof(fc.string({ unit: "binary", maxLength: 20 }), fc.constantFrom("a\nb", "a\r\nlisten = 1")), (name) => {
    // With a warning, which begins with the file's name.
    const done = migrate('proxy_url = "direct:"\n', name, null, OPTIONS);
    assert.ok("text" in done);
    assert.equal(configOf(done.text).listen.length, 2);
  }));
});
