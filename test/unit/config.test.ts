/** Configuration files, good and bad, and what is said about the bad ones. */
import assert from "node:assert/strict";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import type { Config, Upstream } from "../../src/config/config.ts";
import { loadConfig } from "../../src/config/file.ts";
import { type Override, type Parsed, parseConfig } from "../../src/config/parse.ts";
import { nearest, problemText, quoted } from "../../src/config/problem.ts";
import { PRESETS } from "../../src/policy/cause.ts";
import { SETTING_KEYS, SETTINGS, type Setting } from "../../src/config/settings.ts";
import { parseUpstream } from "../../src/config/upstream.ts";

const URL_LINE = 'proxy_url = "socks5://10.20.30.40:1080"\n';

function good(text: string): Config {
  const parsed = parseConfig(text, "t.toml");
  if ("problems" in parsed) assert.fail(problemsOf(parsed).join("\n"));
  return parsed.config;
}

function problemsOf(parsed: Parsed): string[] {
  return "problems" in parsed ? parsed.problems.map(problemText) : [];
}

/** The problems of a file that is right but for `text`. */
function bad(text: string, overrides: readonly Override[] = []): string[] {
  return problemsOf(parseConfig(`${URL_LINE}${text}`, "t.toml", overrides));
}

test("the smallest file has all defaults", () => {
  const config = good(URL_LINE);
  assert.deepEqual(
    config.listen.map(({ text, dualStack, optional }) => ({ text, dualStack, optional })),
    [
      { text: "127.0.0.1:1081", dualStack: false, optional: true },
      { text: "[::1]:1081", dualStack: false, optional: true },
    ],
  );
  const { listen: _, ...rest } = config;
  assert.deepEqual(rest, {
    upstream: { kind: "socks5", host: "10.20.30.40", port: 1080, credentials: null, text: "socks5://10.20.30.40:1080" },
    relays: [],
    egress: null,
    mode: "redirect",
    workers: null,
    user: null,
    group: null,
    mark: null,
    maxConnections: null,
    timeouts: { dialMs: 10_000, handshakeMs: 10_000, halfClosedMs: 300_000, idleMs: 7_440_000, drainMs: 60_000, negotiationMs: 10_000, dnsMs: 5000 },
    tcp: { keepaliveIdleMs: 180_000, keepaliveIntervalMs: 30_000, keepaliveProbes: 4, userTimeoutMs: 300_000 },
    limits: { whenFull: "wait", pipes: null, pipeBytes: 1_048_576 },
    pipelined: false,
    disclosed: "off",
    forwardsRefusals: false,
    connect: { trust: PRESETS.standard, learnMs: null, unknownAs: "host-unreachable", truthful: null },
    firewall: {
      backend: "auto", manage: false, onFailure: "open", output: true, interfaces: [], include: [], exclude: [], ports: [], excludePorts: [], users: [],
      excludeUsers: [], excludeCgroups: [], serviceUser: "transplice", tproxyMark: 0x1082, tproxyTable: 1082,
    },
    admin: null,
    log: { filename: null, level: "info", format: "plain" },
  });
});

test("the upstream's answers are believed as its program is known, or by name of what is believed", () => {
  const trust = (text: string) => good(`${URL_LINE}[connect]\ntrust = ${text}`).connect.trust;
  for (const [name, table] of Object.entries(PRESETS)) assert.deepEqual(trust(`"${name}"`), table);
  assert.deepEqual(trust('["refused", "timeout"]'), { replies: { 5: "refused", 6: "timeout" }, statuses: { 504: "timeout" }, errnos: ["refused", "timeout"], reports: false });
  assert.deepEqual(trust("[]"), PRESETS.nothing);
});

test("truthful connect(): its keys, and marks that its own bits of the mark would change", () => {
  const { truthful } = good(`${URL_LINE}[connect]\ntruthful = true\nwithout = "refuse"\nqueue = 7`).connect;
  assert.deepEqual(truthful, { required: true, timeoutAs: "silence", answer: "raw", queue: 7, markShift: 16 });
  assert.deepEqual(bad("mark = 0x10000\n[connect]\ntruthful = true"), [
    "t.toml:2: mark: has some of the eight bits of the mark that connect.mark_shift gives to SYNs (0xff0000); set another mark, or move them",
  ]);
  assert.deepEqual(bad("mark = 0x10000\n[connect]\ntruthful = true\nmark_shift = 24"), []);
});

test("a transocks.toml means what it meant", () => {
  const config = good(`listen = "localhost:1081"
proxy_url = "socks5://10.20.30.40:1080"
#proxy_url = "socks5://us%40er:p%3Aw@10.20.30.40:1080"
[log]
filename = "/var/log/transocks.log"
level = "information"
format = "json"
`);
  assert.deepEqual(config.log, { filename: "/var/log/transocks.log", level: "info", format: "json" });
  for (const [written, level] of [["crit", "critical"], ["critical", "critical"], ["error", "error"], ["warn", "warning"], ["warning", "warning"], ["info", "info"], ["debug", "debug"]]) {
    assert.equal(good(`${URL_LINE}[log]\nlevel = "${written}"`).log.level, level);
  }
  assert.equal(good(`${URL_LINE}[log]\nfilename = ""`).log.filename, null);
  // BurntSushi/toml matches keys without regard to case, and a byte order mark did no harm.
  assert.equal(good(`\ufeffProxy_URL = "http://h:1"\r\n[LOG]\r\nLevel = "debug"`).log.level, "debug");
});

test("a file that says everything", () => {
  const config = good(`
listen = [":1081", "127.0.0.2:1082", "[2001:db8::1]:1083", "[fe80::1%2]:1084"]
proxy_url = "http://[2001:DB8::2]:3128/"
mode = "tproxy"
workers = 3
mark = 0xffff_ffff
max_connections = 1
timeouts.dial = "1s"
timeouts.handshake = "2s"
timeouts.half_closed = "3s"
timeouts.idle = "1h"
timeouts.drain = "0s"
timeouts.negotiation = "4s"
timeouts.dns = "5s"
limits = { when_full = "reset", pipes = 0, pipe_size = 65536 }
[tcp]
keepalive_idle = "1m"
keepalive_interval = "1s"
keepalive_probes = 127
user_timeout = "1500ms"
[upstream]
pipelined = true
`);
  assert.deepEqual(config.listen.map(({ text }) => text), ["[::]:1081", "127.0.0.2:1082", "[2001:db8::1]:1083", "[fe80::1%2]:1084"]);
  assert.deepEqual(config.listen.map(({ dualStack }) => dualStack), [true, false, false, false]);
  assert.equal(config.listen.some(({ optional }) => optional), false);
  assert.equal(config.upstream?.kind === "http" && config.upstream.text, "http://[2001:db8::2]:3128");
  assert.equal(config.mode, "tproxy");
  assert.equal(config.workers, 3);
  assert.equal(config.mark, 0xffff_ffff);
  assert.equal(config.maxConnections, 1);
  assert.deepEqual(config.timeouts, { dialMs: 1000, handshakeMs: 2000, halfClosedMs: 3000, idleMs: 3_600_000, drainMs: 0, negotiationMs: 4000, dnsMs: 5000 });
  assert.deepEqual(config.tcp, { keepaliveIdleMs: 60_000, keepaliveIntervalMs: 1000, keepaliveProbes: 127, userTimeoutMs: 1500 });
  assert.deepEqual(config.limits, { whenFull: "reset", pipes: 0, pipeBytes: 65_536 });
  assert.equal(config.pipelined, true);
});

test("tcp.user_timeout is what keepalive takes, unless it is given", () => {
  const userTimeoutMs = (tcp: string): number => good(`${URL_LINE}[tcp]\n${tcp}`).tcp.userTimeoutMs;
  assert.equal(userTimeoutMs('keepalive_idle = "10s"\nkeepalive_interval = "5s"\nkeepalive_probes = 3'), 25_000);
  assert.equal(userTimeoutMs('keepalive_idle = "9h"\nkeepalive_probes = 127\nkeepalive_interval = "9h"'), 86_400_000);
  assert.equal(userTimeoutMs('keepalive_idle = "10s"\nuser_timeout = "1h"'), 3_600_000);
});

test("Go's wildcards are one dual-stack socket", () => {
  for (const listen of [":1081", "0.0.0.0:1081", "[::]:1081", "[::0]:1081"]) {
    const [address, ...others] = good(`listen = "${listen}"\n${URL_LINE}`).listen;
    assert.equal(address?.text, "[::]:1081");
    assert.equal(address?.dualStack, true);
    assert.equal(others.length, 0);
  }
});

const LISTEN = '"IP:PORT", "[IPv6]:PORT", "localhost:PORT", or ":PORT" for all addresses; ports from 1 to 65535';
const TRUST =
  '"standard", "nothing", "transplice", "dante", "microsocks", "usocksd", "3proxy", "gost", "ncat", "squid" or "tinyproxy"; or an array of "refused", "host-unreachable", "net-unreachable", "not-allowed" or "timeout"';
const DIAL = 'a duration such as "10s" or "1m30s" (h, m, s, ms), from 10ms to 1h';

/** What stands after proxy_url in line 1, and what is said about it. */
const BAD: readonly [string, ...string[]][] = [
  // Values of the wrong kind, or out of range.
  ["mode = 1", 't.toml:2: mode: found 1; allowed: "redirect" or "tproxy"'],
  ['mode = "tproxi"', 't.toml:2: mode: found "tproxi" (did you mean "tproxy"?); allowed: "redirect" or "tproxy"'],
  ['mode = "Redirect"', 't.toml:2: mode: found "Redirect" (did you mean "redirect"?); allowed: "redirect" or "tproxy"'],
  ["workers = 0", "t.toml:2: workers: found 0; allowed: an integer from 1 to 254"],
  ["workers = 2.0", "t.toml:2: workers: found 2.0; allowed: an integer from 1 to 254"],
  ['workers = "2"', 't.toml:2: workers: found "2", a string; an integer stands without quotes; allowed: an integer from 1 to 254'],
  ["mark = 0", "t.toml:2: mark: found 0; allowed: an integer from 1 to 4294967295"],
  ["mark = 0x1_0000_0000", "t.toml:2: mark: found 0x100000000; allowed: an integer from 1 to 4294967295"],
  ["max_connections = 99999999999999999999999", "t.toml:2: max_connections: found 99999999999999999999999; allowed: an integer from 1 to 10000000"],
  ["limits.pipes = -1", "t.toml:2: limits.pipes: found -1; allowed: an integer from 0 to 1000000"],
  ["mode = 1979-05-27", 't.toml:2: mode: found a date or time; allowed: "redirect" or "tproxy"'],
  ['mode = ["redirect"]', 't.toml:2: mode: found an array; allowed: "redirect" or "tproxy"'],
  ['connect.trust = "squit"', `t.toml:2: connect.trust: found "squit" (did you mean "squid"?); allowed: ${TRUST}`],
  ["connect.trust = 5", `t.toml:2: connect.trust: found 5; allowed: ${TRUST}`],
  ['connect.trust = [\n"refused",\n"dante"]', `t.toml:4: connect.trust: found "dante"; allowed: ${TRUST}`],
  ['connect.trust = ["unknown"]', `t.toml:2: connect.trust: found "unknown"; allowed: ${TRUST}`],
  ["upstream.pipelined = 1", "t.toml:2: upstream.pipelined: found 1; allowed: true or false"],
  ['upstream.pipelined = "true"', 't.toml:2: upstream.pipelined: found "true", a string; true and false stand without quotes; allowed: true or false'],
  ["log.filename = true", "t.toml:2: log.filename: found true; allowed: a string"],
  ['log.filename = "a\\u0000b"', 't.toml:2: log.filename: found "a\\u0000b", which holds a NUL character; allowed: a string'],
  // Durations and sizes.
  ['timeouts.dial = "10"', `t.toml:2: timeouts.dial: found "10" without a unit; allowed: ${DIAL}`],
  ["timeouts.dial = 10", `t.toml:2: timeouts.dial: found 10 without a unit; allowed: ${DIAL}`],
  ['timeouts.dial = "9ms"', `t.toml:2: timeouts.dial: found "9ms"; allowed: ${DIAL}`],
  ['timeouts.dial = "61m"', `t.toml:2: timeouts.dial: found "61m"; allowed: ${DIAL}`],
  ['timeouts.dial = "1e300s"', `t.toml:2: timeouts.dial: found "1e300s"; allowed: ${DIAL}`],
  ["timeouts.dial = 07:32:00", `t.toml:2: timeouts.dial: found a date or time; allowed: ${DIAL}`],
  ['tcp.keepalive_idle = "1500ms"', 't.toml:2: tcp.keepalive_idle: found "1500ms", which is not whole seconds; allowed: a duration such as "90s" or "5m" (h, m, s), from 1s to 9h'],
  ['limits.pipe_size = "1MB"', 't.toml:2: limits.pipe_size: found "1MB"; allowed: a size such as "256KiB" or "1MiB" (KiB, MiB, GiB, or an integer of bytes), from 64KiB to 64MiB'],
  ["limits.pipe_size = 65535", 't.toml:2: limits.pipe_size: found 65535; allowed: a size such as "256KiB" or "1MiB" (KiB, MiB, GiB, or an integer of bytes), from 64KiB to 64MiB'],
  // listen
  ['listen = "example.org:80"', `t.toml:2: listen: found "example.org:80", where "example.org" is not an address (names are not resolved); allowed: ${LISTEN}`],
  ['listen = "1081"', `t.toml:2: listen: found "1081", a port alone (did you mean ":1081"?); allowed: ${LISTEN}`],
  ['listen = "127.0.0.1"', `t.toml:2: listen: found "127.0.0.1" without a port; allowed: ${LISTEN}`],
  ['listen = "127.0.0.1:"', `t.toml:2: listen: found "127.0.0.1:" without a port; allowed: ${LISTEN}`],
  ['listen = "::1"', `t.toml:2: listen: found "::1" without brackets and port; allowed: ${LISTEN}`],
  ['listen = "2001:db8:::80"', `t.toml:2: listen: found "2001:db8:::80", which is not one address and one port; allowed: ${LISTEN}`],
  ['listen = "localhost:http"', `t.toml:2: listen: found "localhost:http", where "http" is not a port; allowed: ${LISTEN}`],
  ['listen = "127.0.0.1:0"', `t.toml:2: listen: found "127.0.0.1:0", where "0" is not a port; allowed: ${LISTEN}`],
  ['listen = "127.0.0.1:65536"', `t.toml:2: listen: found "127.0.0.1:65536", where "65536" is not a port; allowed: ${LISTEN}`],
  ['listen = "127.1:80"', `t.toml:2: listen: found "127.1:80", where "127.1" is not an address (names are not resolved); allowed: ${LISTEN}`],
  ['listen = "224.0.0.1:80"', `t.toml:2: listen: found "224.0.0.1:80", which no TCP socket can listen on; allowed: ${LISTEN}`],
  ['listen = "[fe80::1]:80"', `t.toml:2: listen: found "[fe80::1]:80" without its interface's number (as in "[fe80::1%2]:80"; \`ip link\` shows it); allowed: ${LISTEN}`],
  ["listen = []", "t.toml:2: listen: found 0 addresses; allowed: 1 to 64"],
  ['listen = [["127.0.0.1:1"]]', `t.toml:2: listen: found an array in the array; allowed: ${LISTEN}; or an array of these`],
  ["listen = 1081", `t.toml:2: listen: found 1081; allowed: ${LISTEN}; or an array of these`],
  ['listen = ["localhost:1", "127.0.0.1:1"]', 't.toml:2: listen: 127.0.0.1:1 is given twice, by "localhost:1" and by "127.0.0.1:1"'],
  ['listen = [":1", "0.0.0.0:1"]', 't.toml:2: listen: [::]:1 is given twice, by ":1" and by "0.0.0.0:1"'],
  ['listen = ["x:1", "y:1"]', `t.toml:2: listen: found "x:1", where "x" is not an address (names are not resolved); allowed: ${LISTEN}`, `t.toml:2: listen: found "y:1", where "y" is not an address (names are not resolved); allowed: ${LISTEN}`],
  // Keys that are not settings.
  ["frobnicate = 1", "t.toml:2: frobnicate: is not a setting; at the top there are listen, proxy_url, mode, workers, mark, max_connections, user, group"],
  ["work = 1", "t.toml:2: work: is not a setting; did you mean workers?"],
  ["maxconnections = 1", "t.toml:2: maxconnections: is not a setting; did you mean max_connections?"],
  ["dial = 1", "t.toml:2: dial: is not a setting; timeouts.dial exists; did you mean [timeouts] dial?"],
  ["timeouts.dail = 1", "t.toml:2: timeouts.dail: is not a setting; did you mean timeouts.dial?"],
  ["tcp.frobnicate = 1", "t.toml:2: tcp.frobnicate: is not a setting; [tcp] has keepalive_idle, keepalive_interval, keepalive_probes, user_timeout"],
  ["tcp.dial = 1", "t.toml:2: tcp.dial: is not a setting; timeouts.dial exists; did you mean [timeouts] dial?"],
  ["[log]\nmode = 1", "t.toml:3: log.mode: is not a setting; mode exists; it stands at the top, before the first [table]"],
  ['log_level = "info"', "t.toml:2: log_level: is not a setting; did you mean log.level?"],
  ['[log]\nfile = "x"', "t.toml:3: log.file: is not a setting; did you mean log.filename?"],
  ["timeout = 1", "t.toml:2: timeout: is not a setting; did you mean the table [timeouts]?"],
  ["constructor = 1", "t.toml:2: constructor: is not a setting; at the top there are listen, proxy_url, mode, workers, mark, max_connections, user, group"],
  ['"__proto__" = 1', "t.toml:2: __proto__: is not a setting; at the top there are listen, proxy_url, mode, workers, mark, max_connections, user, group"],
  ['"log.level" = "debug"', 't.toml:2: "log.level": is not a setting; did you mean log.level?'],
  ['"a\\u001bb" = 1', 't.toml:2: "a\\u001bb": is not a setting; at the top there are listen, proxy_url, mode, workers, mark, max_connections, user, group'],
  // Tables where they do not belong, and none where one does.
  ["[timeout]\nidle = 1\ndial = 2", "t.toml:2: [timeout]: is not a table of this file; did you mean [timeouts]?"],
  ["[[timeout]]\n[[timeout]]\n[Timeout]", "t.toml:2: [timeout]: is not a table of this file; did you mean [timeouts]?"],
  ["[frobnicate]", "t.toml:2: [frobnicate]: is not a table of this file; tables are [timeouts], [tcp], [limits], [upstream], [connect], [incoming], [outgoing], [firewall], [admin], [log], [users], [[rules]], [[relays]]"],
  ["[log.level]", 't.toml:2: log.level: found a table; allowed: "critical", "error", "warning", "info" or "debug"'],
  ["[log.level.x]\ny = 1", 't.toml:2: log.level: found a table; allowed: "critical", "error", "warning", "info" or "debug"'],
  ["mode.x = 1", 't.toml:2: mode: found a table; allowed: "redirect" or "tproxy"'],
  ["mode = { x = 1 }", 't.toml:2: mode: found a table; allowed: "redirect" or "tproxy"'],
  ["timeouts = 5", "t.toml:2: timeouts: found 5; allowed: a table, [timeouts], with the keys dial, handshake, half_closed, idle, drain, negotiation, dns"],
  ["[[log]]\nlevel = 1", "t.toml:2: log: found an array of tables, [[log]]; allowed: one table, [log]"],
  // Twice.
  ['mode = "tproxy"\nMode = "tproxy"', "t.toml:3: mode: is given twice: as mode in line 2 and as Mode here"],
  ['[log]\nlevel = "info"\n[LOG]\nlevel = "info"', "t.toml:5: log.level: is given twice: as log.level in line 3 and as LOG.level here"],
  // Not TOML.
  ["mode = ", "t.toml:2:8: not TOML: Unspecified values are invalid"],
  ["mode = tproxy", 't.toml:2:8: not TOML: Unexpected character; a text stands in quotes, as in "text"'],
  ["listen = 127.0.0.1:1081", 't.toml:2:15: not TOML: Must be a newline; a text stands in quotes, as in "text"'],
  ['[firewall]\nexclude = ["192.0.2.0/24", 10.0.0.1]', 't.toml:3:32: not TOML: Expected comma (,) token; a text stands in quotes, as in "text"'],
  ['[firewall]\nexclude = ["192.0.2.0/24" "10.0.0.1"]', "t.toml:3:27: not TOML: Expected comma (,) token"],
  ['mode: "tproxy"', "t.toml:2:5: not TOML: Unexpected character"],
  ['mode = "tproxy"\nmode = "tproxy"', "t.toml:3:1: not TOML: Defining a key multiple times is invalid"],
  [`x = ${"[".repeat(20_000)}${"]".repeat(20_000)}`, "t.toml: not readable: brackets are nested too deeply"],
];

test("what is wrong is said with its line, its key, what was found and what is allowed", () => {
  for (const [text, ...expected] of BAD) assert.deepEqual(bad(text), expected, text);
});

test("all problems of a file come at once, in the order of the lines", () => {
  const problems = problemsOf(parseConfig('mode = 1\nfoo = 2\nproxy_url = "ftp://x:1"\n[tcp]\nx = 1\nkeepalive_probes = 0', "a.toml"));
  assert.deepEqual(problems.map((line) => line.slice(0, line.indexOf(" "))), ["a.toml:1:", "a.toml:2:", "a.toml:3:", "a.toml:5:", "a.toml:6:"]);
});

test("proxy_url must be there", () => {
  assert.deepEqual(problemsOf(parseConfig("", "t.toml")), [
    't.toml: proxy_url: is missing; for example: proxy_url = "socks5://user:password@10.20.30.40:1080"; or, for a SOCKS server instead of a transparent proxy: [incoming]',
  ]);
  assert.deepEqual(problemsOf(parseConfig("[proxy_url]\nx = 1", "t.toml")), [
    "t.toml:1: proxy_url: found a table; allowed: socks5://[USER[:PASSWORD]@]HOST:PORT, http://[USER[:PASSWORD]@]HOST:PORT, socks4://[USER@]HOST:PORT or direct:",
  ]);
});

test("[[relays]]: further listeners, each with its upstream", () => {
  const config = good(`listen = "127.0.0.1:1"
${URL_LINE}[[relays]]
listen = "127.0.0.1:2"
proxy_url = "http://10.0.0.2:3128"
trust = "squid"
[[relays]]
listen = ["127.0.0.1:3", "[::1]:3"]
proxy_url = "socks4://u@10.0.0.3:1080"`);
  assert.deepEqual(
    config.relays.map(({ listen, upstream: to }) => [listen.map(({ text }) => text), to.kind === "direct" ? "" : to.text]),
    [[["127.0.0.1:2"], "http://10.0.0.2:3128"], [["127.0.0.1:3", "[::1]:3"], "socks4://10.0.0.3:1080"]],
  );
  assert.deepEqual(config.relays.map(({ trust }) => trust), [PRESETS.squid, null]);
  const cases: [string, string][] = [
    ["[[relays]]", 't.toml:2: relays: listen and proxy_url missing; for example: listen = "localhost:1082" and proxy_url = "http://10.20.30.41:3128"'],
    ["[relays]\nlisten = 1", "t.toml:2: relays: found one table, [relays]; allowed: an array of tables, [[relays]]"],
    ['[[relays]]\nlisten = "127.0.0.1:1081"\nproxy_url = "http://h:1"', "t.toml:2: relays: 127.0.0.1:1081 cannot be listened on beside 127.0.0.1:1081; another port is needed"],
    ['[[relays]]\nlisten = "127.0.0.1:9"\nproxy_url = "http://127.0.0.1:1081"', "t.toml:2: relays: http://127.0.0.1:1081 is transplice's own address (listen has 127.0.0.1:1081); the upstream must be another program"],
    ['[[relays]]\nlisten = "127.0.0.1:9"\nproxyurl = "http://h:1"', "t.toml:4: relays.proxyurl: is not a setting; did you mean proxy_url?"],
  ];
  for (const [text, expected] of cases) assert.ok(bad(text).includes(expected), `${text}: ${bad(text).join("\n")}`);
  const alone = parseConfig('[incoming]\n[[relays]]\nlisten = ":9"\nproxy_url = "http://h:1"', "t.toml");
  assert.deepEqual(problemsOf(alone), ["t.toml:2: relays: [[relays]] stands beside proxy_url, the first upstream, and there is none"]);
});

test("flags win over the file and are judged with it", () => {
  const overrides: Override[] = [
    { key: "log.level", text: "warn", from: "-loglevel" },
    { key: "log.filename", text: "a \"quoted\"\\ name\u0001", from: "-logfile" },
    { key: "log.format", text: "", from: "-logformat" },
  ];
  const parsed = parseConfig(`${URL_LINE}[log]\nlevel = "debug"\nformat = "json"`, "t.toml", overrides);
  assert.ok("config" in parsed);
  assert.deepEqual(parsed.config.log, { filename: "a \"quoted\"\\ name\u0001", level: "warning", format: "json" });
  assert.deepEqual(bad("x = 1\n", [{ key: "log.level", text: "verbose", from: "-loglevel" }]).map((line) => line.slice(0, 20)), [
    "t.toml:2: x: is not ",
    '-loglevel: found "ve',
  ]);
  assert.equal(bad("x = ", [{ key: "log.level", text: "verbose", from: "-loglevel" }]).length, 2);
});

test("a Config is frozen to the bottom", () => {
  const config = good(`listen = ":1"\n${URL_LINE}`);
  const walk = (value: unknown, at: string): void => {
    if (typeof value !== "object" || value === null || ArrayBuffer.isView(value)) return;
    assert.ok(Object.isFrozen(value), at);
    for (const [key, inner] of Object.entries(value)) walk(inner, `${at}.${key}`);
  };
  walk(config, "config");
});

function upstream(text: string): { upstream: Upstream | null; messages: string[] } {
  const messages: string[] = [];
  return { upstream: parseUpstream(text, (message) => messages.push(message)), messages };
}

test("proxy_url", () => {
  const userOf = (text: string): string[] | null => {
    const { upstream: found, messages } = upstream(text);
    assert.deepEqual(messages, [], text);
    assert.ok(found !== null && found.kind !== "direct");
    const { credentials } = found;
    return credentials && [Buffer.from(credentials.user).toString("latin1"), Buffer.from(credentials.password).toString("latin1")];
  };
  assert.deepEqual(upstream("direct:").upstream, { kind: "direct" });
  assert.deepEqual(upstream("SOCKS5://Proxy.Example.ORG:1080/").upstream, { kind: "socks5", host: "proxy.example.org", port: 1080, credentials: null, text: "socks5://proxy.example.org:1080" });
  assert.deepEqual(userOf("socks5://us%40er:p%3Aw@10.20.30.40:1080"), ["us@er", "p:w"]);
  assert.deepEqual(userOf("socks5://user@h:1"), ["user", ""]);
  assert.deepEqual(userOf("socks5://user:@h:1"), ["user", ""]);
  assert.deepEqual(userOf("socks5://u%3as:%00%ff@h:1"), ["u:s", "\0\xff"]);
  assert.deepEqual(userOf("http://us@er:a:b@h:1"), ["us@er", "a:b"]);
  assert.deepEqual(userOf("http://:p@h:1"), ["", "p"]);
  assert.deepEqual(userOf("socks4://us%40er@h:1"), ["us@er", ""]);
  assert.equal(userOf("socks4://h:1"), null);
  assert.deepEqual(userOf("socks5://é:ü@h:1"), ["\xc3\xa9", "\xc3\xbc"]);
  assert.deepEqual(userOf(`socks5://${"u".repeat(255)}:${"p".repeat(255)}@h:1`)?.map((s) => s.length), [255, 255]);
  const hosts: [string, string][] = [
    ["socks5://[::1]:1080", "::1"], ["socks5://[FE80::1%252]:1080", "fe80::1%2"], ["socks5://[fe80::1%3]:1080", "fe80::1%3"],
    ["http://a_b.example.:1", "a_b.example."], ["http://xn--bcher-kva.example:1", "xn--bcher-kva.example"],
  ];
  for (const [text, host] of hosts) {
    const { upstream: found, messages } = upstream(text);
    assert.equal(found !== null && found.kind !== "direct" && found.host, host, messages.join());
  }
});

const ALLOWED = "socks5://[USER[:PASSWORD]@]HOST:PORT, http://[USER[:PASSWORD]@]HOST:PORT, socks4://[USER@]HOST:PORT or direct:";
const BAD_URLS: readonly [string, ...string[]][] = [
  ["", `found nothing; allowed: ${ALLOWED}`],
  ["10.20.30.40", `found no scheme; allowed: ${ALLOWED}`],
  ["10.20.30.40:1080", `found no scheme; allowed: ${ALLOWED}`],
  ["https://h:1", `https:// is not supported; allowed: ${ALLOWED}`],
  ["socks4a://h:1", `socks4a:// is not supported; allowed: ${ALLOWED}`],
  ["socks4://u:p@h:1", "socks4 has a user and no password; allowed: socks4://[USER@]HOST:PORT"],
  ["socks4://u%00@h:1", "the user name holds a NUL, which ends it in SOCKS4"],
  ["socks5h://h:1", `socks5h:// is not supported; allowed: ${ALLOWED}`],
  ["proxy:1080", `found no scheme that is supported; allowed: ${ALLOWED}`],
  ["socks5:h:1", `socks5: must be followed by //; allowed: ${ALLOWED}`],
  ["direct://h", "direct: connects to the destination itself and takes nothing after the colon"],
  ["socks5://127.0.0.1", "the port is missing; allowed: 1 to 65535"],
  ["socks5://127.0.0.1:", "the port is missing; allowed: 1 to 65535"],
  ["socks5://127.0.0.1:0", "what follows the host is not a port; allowed: 1 to 65535"],
  ["socks5://127.0.0.1:65536", "what follows the host is not a port; allowed: 1 to 65535"],
  ["socks5://:1080", "the host is missing"],
  ["socks5://", "the port is missing; allowed: 1 to 65535", "the host is missing"],
  ["socks5://u:p@", "the port is missing; allowed: 1 to 65535", "the host is missing"],
  ["socks5://::1:1080", "found more than one colon in the host; an IPv6 address stands in brackets, as in [2001:db8::1]:1080"],
  ["socks5://[::1:1080", "found [ without ]; an IPv6 address stands in brackets, as in [2001:db8::1]:1080"],
  ["socks5://[::1]1080", "what follows the host is not a port; allowed: 1 to 65535"],
  ["socks5://[127.0.0.1]:1080", "what stands in brackets is not an IPv6 address (an interface is given by number, as in [fe80::1%2]:1080)"],
  ["socks5://[fe80::1%eth0]:1080", "what stands in brackets is not an IPv6 address (an interface is given by number, as in [fe80::1%2]:1080)"],
  ["socks5://[fe80::1]:1080", "a link-local address needs its interface's number, as in [fe80::1%2]:1080; `ip link` shows it"],
  ["socks5://127.1:1080", 'the host "127.1" is not an IPv4 address; allowed: four numbers from 0 to 255'],
  ["socks5://0x7f000001:1080", 'the host "0x7f000001" is not an IPv4 address; allowed: four numbers from 0 to 255'],
  ["socks5://0.0.0.0:1080", "0.0.0.0 stands for all addresses of this host; the upstream needs one address"],
  ["socks5://[::]:1080", ":: stands for all addresses of this host; the upstream needs one address"],
  ["socks5://224.0.0.1:1080", "224.0.0.1 is a multicast or broadcast address; TCP cannot connect to it"],
  ["socks5://bücher.example:1", "the host is neither an address nor a name of letters, digits, - or _ (other scripts: its xn-- form)"],
  ["socks5://a..b:1", "the host is neither an address nor a name of letters, digits, - or _ (other scripts: its xn-- form)"],
  [`socks5://${"a.".repeat(127)}:1`, "the host is neither an address nor a name of letters, digits, - or _ (other scripts: its xn-- form)"],
  ["socks5://h:1/x", "found a path after the port; nothing may follow it"],
  ["socks5://h:1?x", "found a query after the port; nothing may follow it"],
  ["socks5://h:1#x", "found a fragment after the port; nothing may follow it"],
  ["socks5://u:p/w@h:1", "in a user name or password, / ? # @ must be written %2F %3F %23 %40"],
  ["socks5://@h:1", "the user name has 0 bytes; allowed: 1 to 255"],
  ["socks5://:p@h:1", "the user name has 0 bytes; allowed: 1 to 255"],
  [`socks5://${"u".repeat(256)}@h:1`, "the user name has 256 bytes; allowed: 1 to 255"],
  [`socks5://u:${"p".repeat(256)}@h:1`, "the password has more than 255 bytes"],
  ["socks5://%zz:%2@h:1", "in the user name a % is not followed by two hexadecimal digits; a % itself is written %25", "in the password a % is not followed by two hexadecimal digits; a % itself is written %25"],
  ["http://u%3As:p@h:1", "the user name holds a colon, which HTTP's Basic scheme cannot carry (RFC 7617)"],
  ["http://u:p%0aX@h:1", "the user name or password holds a control character, which HTTP's Basic scheme cannot carry (RFC 7617)"],
  // All of its problems at once.
  ["socks5://:p@h:x/y", "found a path after the port; nothing may follow it", "the user name has 0 bytes; allowed: 1 to 255", "what follows the host is not a port; allowed: 1 to 65535"],
];

test("a wrong proxy_url is told part by part", () => {
  for (const [text, ...expected] of BAD_URLS) {
    const { upstream: found, messages } = upstream(text);
    assert.equal(found, null, text);
    assert.deepEqual(messages, expected, text);
  }
});

test("a password never stands in a message", () => {
  const secret = "S3cretPw";
  // A URL taken apart and put together again in any wrong way.
  const piece = fc.constantFrom("socks5", "http", "ftp", ":", "//", "/", "@", "[", "]", "?", "#", "%", "%4", "user", "h", "1080", " ", "é");
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 8 }), fc.array(piece, { maxLength: 8 }), fc.boolean(), (before, after, misplaced) => {
      const head = before.join("");
      const url = `${head}user:${secret}@${after.join("")}`;
      const text = misplaced ? `listen = ${JSON.stringify(url)}\nmode = ${JSON.stringify(url)}` : `proxy_url = ${JSON.stringify(url)}`;
      const said = problemsOf(parseConfig(text, "t")).join("\n");
      assert.ok(!said.includes(secret), said);
    }),
    { numRuns: 3000 },
  );
  for (const text of [`socks5://user:${secret}`, `socks5://user:${secret}/`, `socks5://user:${secret}:1080`, `http:${secret}`, `user:${secret}`]) {
    assert.ok(!upstream(text).messages.join().includes(secret), text);
  }
});

test("credentials and hosts survive the way through the URL", () => {
  const bytes = fc.uint8Array({ minLength: 1, maxLength: 255 });
  const encoded = (value: Uint8Array): string => [...value].map((byte) => `%${byte.toString(16).padStart(2, "0")}`).join("");
  fc.assert(
    fc.property(bytes, bytes, fc.ipV6(), fc.integer({ min: 1, max: 65_535 }), (user, password, host, port) => {
      const { upstream: found } = upstream(`socks5://${encoded(user)}:${encoded(password)}@[${host}]:${port}`);
      // Wildcards, multicast and link-local addresses are refused.
      if (found === null) return;
      assert.ok(found.kind === "socks5");
      assert.deepEqual([found.credentials?.user, found.credentials?.password, found.port], [user, password, port]);
    }),
  );
});

test("an upstream that is our own listener is found", () => {
  for (const [listen, url] of [
    ["localhost:1081", "socks5://127.0.0.1:1081"], ["localhost:1081", "http://[::1]:1081"], ["127.0.0.1:1081", "http://localhost:1081"],
    [":1081", "socks5://127.0.0.9:1081"], [":1081", "socks5://localhost:1081"], ["10.0.0.1:1", "http://10.0.0.1:1"],
  ]) {
    const problems = problemsOf(parseConfig(`listen = "${listen}"\nproxy_url = "${url}"`, "t"));
    assert.match(problems.join(), /^t:2: proxy_url: .* is transplice's own address/);
  }
  good('listen = "localhost:1081"\nproxy_url = "socks5://127.0.0.1:1080"');
  good('listen = ":1081"\nproxy_url = "socks5://10.0.0.1:1081"');
});

test("warnings", () => {
  const warned = (text: string): string[] => {
    const parsed = parseConfig(text, "t");
    assert.ok("warnings" in parsed, problemsOf(parsed).join());
    return parsed.warnings.map((warning) => problemText(warning).slice(0, 40));
  };
  assert.deepEqual(warned(URL_LINE), []);
  assert.deepEqual(warned(`mode = "tproxy"\n${URL_LINE}`), ['t: listen: with mode = "tproxy" a router']);
  assert.deepEqual(warned(`mode = "tproxy"\nlisten = ":1"\n${URL_LINE}`), []);
  assert.deepEqual(warned('proxy_url = "direct:"'), ["t:1: proxy_url: direct: without mark: tr"]);
  assert.deepEqual(warned('proxy_url = "direct:"\nmark = 1'), []);
  assert.deepEqual(warned(`${URL_LINE}connect.trust = "transplice"`), []);
  assert.deepEqual(warned('proxy_url = "http://h:1"\nconnect.trust = "transplice"'), ["t:2: connect.trust: transplice tells mor"]);
});

test("whatever text comes, parseConfig answers", () => {
  const answers = (text: string): void => {
    const parsed = parseConfig(text, "t");
    if ("problems" in parsed) {
      assert.ok(parsed.problems.length > 0);
      for (const line of parsed.problems.map(problemText)) assert.match(line, /^t(:\d+){0,2}: [^\n]+$/u);
    } else {
      assert.ok(Object.isFrozen(parsed.config));
    }
  };
  fc.assert(fc.property(fc.string({ unit: "binary", maxLength: 200 }), answers), { numRuns: 2000 });
  const key = fc.constantFrom(...SETTING_KEYS, "Log.Level", "x", "a.b.c", '"a b"', "log", "timeouts.dial.x");
  const value = fc.oneof(
    fc.constantFrom("1", "-1", "0x10", "1.5", "nan", "true", '""', '"10s"', "[]", "{}", '[["x"]]', "{a=1}", "1979-05-27", "07:32:00", "'lit'", '"""m\nl"""', '"socks5://h:1"', '":1"'),
    fc.string({ maxLength: 30 }).map((text) => JSON.stringify(text)),
    fc.string({ maxLength: 10 }),
  );
  const line = fc.oneof(
    fc.tuple(key, value).map(([k, v]) => `${k} = ${v}`),
    key.map((k) => `[${k}]`),
    key.map((k) => `[[${k}]]`),
    fc.constant("[log]"),
  );
  fc.assert(fc.property(fc.array(line, { maxLength: 12 }), (lines) => answers(lines.join("\n"))), { numRuns: 5000 });
});

test("each row's default and example are values that it takes", () => {
  for (const key of SETTING_KEYS) {
    const setting: Setting = SETTINGS[key];
    const rest = key === "proxy_url" ? "" : URL_LINE;
    good(`${key} = ${setting.example}\n${rest}`.replace(/^(.*)\n(proxy_url.*)$/m, "$2\n$1"));
    if (setting.default !== null) good(`${rest}${key} = ${setting.default}`);
    assert.match(setting.description, /^[A-Z].*\.$/, key);
    assert.ok(setting.default !== null || setting.otherwise !== undefined, key);
  }
});

test("loadConfig: what keeps a file from being read is a problem with advice", async (t) => {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), "transplice-config-"));
  t.after(() => fs.rmSync(directory, { recursive: true }));
  const file = (name: string, content: string | Uint8Array): string => {
    fs.writeFileSync(path.join(directory, name), content);
    return path.join(directory, name);
  };
  const said = async (name: string, overrides: readonly Override[] = []): Promise<string[]> =>
    problemsOf(await loadConfig(name, overrides)).map((line) => line.replace(`${directory}/`, ""));
  assert.deepEqual(await said(file("good.toml", URL_LINE)), []);
  assert.deepEqual(await said(`${directory}/none.toml`, [{ key: "log.level", text: "x", from: "-loglevel" }]), [
    'none.toml: does not exist; name another with -f FILE, or create it with at least proxy_url = "socks5://HOST:PORT"',
    '-loglevel: found "x"; allowed: "critical", "error", "warning", "info" or "debug"',
  ]);
  assert.deepEqual(await said(`${directory}/`), [`${directory}/: is a directory; -f takes a file`].map((line) => line.replace(`${directory}/`, "")));
  assert.deepEqual(await said(file("latin1.toml", Buffer.from('a = 1\n\n# \xe9\n', "latin1"))), ["latin1.toml:3: is not UTF-8 here, which TOML must be"]);
  assert.deepEqual(await said("/dev/zero"), ["/dev/zero: is larger than 1 MiB; is it a configuration file?"]);
  assert.deepEqual(await said("a\0b"), ["a\0b: cannot be read (ERR_INVALID_ARG_VALUE)"]);
  if (process.getuid?.() !== 0) {
    fs.chmodSync(file("closed.toml", URL_LINE), 0);
    assert.match((await said(`${directory}/closed.toml`)).join(), /may not be read by this user/);
  }
});

test("nearest and quoted", () => {
  assert.equal(nearest("proxy", ["listen", "proxy_url"]), "proxy_url");
  assert.equal(nearest("LISTEN", ["listen"]), "listen");
  assert.equal(nearest("x", ["f", "h"]), null);
  assert.equal(nearest("y".repeat(1_000_000), SETTING_KEYS), null);
  assert.equal(quoted("a\u001b[2Jb\u009bc"), '"a\\u001b[2Jb\\u009bc"');
  assert.equal(quoted("socks5://user:pw@host:1"), '"socks5://***@host:1"');
  assert.equal(quoted("x".repeat(200)).length, 83);
});
