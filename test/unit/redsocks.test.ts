/** redsocks.conf: its grammar, its keys, and what is said about what cannot be had. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { CAP_NET_BIND_SERVICE } from "../../native-bindings/constants.ts";
import type { Config } from "../../src/config/config.ts";
import { problemText } from "../../src/config/problem.ts";
import { type Loaded, parseAs } from "../../src/config/program.ts";
import { capabilitiesOf } from "../../src/control/identity.ts";
import { type Section, sectionsOf } from "../../src/config/redsocks-lexer.ts";

const BASE = "base { log_info = on; redirector = iptables; }\n";
const SOCKS = "redsocks { local_port = 12345; ip = 10.0.0.1; port = 1080; type = socks5; }\n";

const load = (text: string, ignoreUnsupported = false): Loaded => parseAs("redsocks", text, "r.conf", [], { ignoreUnsupported });

function good(text: string, ignoreUnsupported = false): { config: Config; warnings: string[]; daemon: boolean } {
  const loaded = load(text, ignoreUnsupported);
  if ("problems" in loaded) assert.fail(loaded.problems.map(problemText).join("\n"));
  return { config: loaded.config, warnings: loaded.warnings.map(problemText), daemon: loaded.daemon };
}

function bad(text: string): string[] {
  const loaded = load(text);
  return "problems" in loaded ? loaded.problems.map(problemText) : [];
}

function lexed(text: string): { sections: Section[]; said: string[] } {
  const said: string[] = [];
  const sections = sectionsOf(text, (line, message) => said.push(`${line}: ${message}`));
  return { sections, said };
}

/** base with one line more, redsocks with one line more. */
const inBase = (line: string): string => `base { redirector = iptables;\n${line} }\n${SOCKS}`;
const inRedsocks = (line: string): string =>
  `${BASE}redsocks { local_port = 12345; ip = 10.0.0.1; port = 1080; type = socks5;\n${line} }\n`;

test("the grammar: strings, numbers, words, comments, and the = that nobody enforced", () => {
  const { sections, said } = lexed(`// a { b = c; }
base/* x
 */{ a = "1 \\n\\t\\r\\\\\\'\\"{;" ; b c; d = = 10.0.0.1/8/* y */; e=x-y.z_1;}
empty {} last { k = "two
lines"; z = 1; }`);
  assert.deepEqual(said, []);
  assert.deepEqual(sections, [
    {
      name: "base",
      line: 2,
      assignments: [
        { key: "a", value: '1 \n\t\r\\\'"{;', line: 3 },
        { key: "b", value: "c", line: 3 },
        { key: "d", value: "10.0.0.1/8", line: 3 },
        { key: "e", value: "x-y.z_1", line: 3 },
      ],
    },
    { name: "empty", line: 4, assignments: [] },
    { name: "last", line: 4, assignments: [{ key: "k", value: "two\nlines", line: 4 }, { key: "z", value: "1", line: 5 }] },
  ]);
});

test("what is not the grammar is told with its line, all of it, and reading goes on", () => {
  const { sections, said } = lexed('a { # x\n ; k = ;\n = 3;\n x = 12ab;\n y = "a\\q";\n z = 1 }\nb c { d = 1; }\ne { f = 1;\n');
  assert.deepEqual(said.map((text) => text.split(";")[0]), [
    "1: found a character that may not stand there",
    '5: a \\ in a string is followed by what it may not',
    "1: the key has no value",
    "2: the key has no value",
    "3: found = where a key is expected",
    "4: the value is not followed by ",
    "6: the value is not followed by ",
    "7: a section's name is not followed by {",
    "8: the section is not closed by }",
  ]);
  assert.deepEqual(sections.map(({ name }) => name), ["a", "e"]);
  assert.deepEqual(lexed('a { k = "x').said.map((text) => text.split(";")[0]), ['1: the string is not closed by "', "1: the value is not followed by ", "1: the section is not closed by }"]);
  assert.deepEqual(lexed("/* x").said, ["1: the comment is not closed by */"]);
  assert.deepEqual(lexed("} =").said.length, 2);
});

test("a section's name is shown in one line", () => {
  for (const problem of bad('" \n " { }')) assert.doesNotMatch(problem, /\p{Cc}/u);
});

test("whatever text comes, the lexer and the parser answer", () => {
  const word = fc.constantFrom("base", "redsocks", "{", "}", "=", ";", '"', "\\", "//", "/*", "*/", "\n", "ip", "local_port", "type", "socks5", "1080", "10.0.0.1", " ", "daemon", "on");
  fc.assert(
    fc.property(fc.oneof(fc.string({ unit: "binary" }), fc.array(word, { maxLength: 60 }).map((words) => words.join(" "))), (text) => {
      const { said } = lexed(text);
      for (const line of said) assert.ok(Number.parseInt(line, 10) <= text.split("\n").length);
      const loaded = load(text, true);
      assert.ok("config" in loaded || loaded.problems.length > 0);
      if ("problems" in loaded) for (const problem of loaded.problems) assert.doesNotMatch(problemText(problem), /\p{Cc}/u);
    }),
    { numRuns: 2000 },
  );
});

test("what is written in the grammar is read as it was", () => {
  const name = fc.stringMatching(/^[A-Za-z][A-Za-z0-9_.-]{0,8}$/);
  const value = fc.oneof(name, fc.string({ unit: "grapheme", maxLength: 12 }));
  const space = fc.constantFrom("", " ", "\n", " // no } ;\n", "/* = */", "\t/* \n */ ");
  const written = (text: string): string =>
    /^[A-Za-z][A-Za-z0-9_.-]*$/.test(text) ? text : `"${text.replace(/[\\"]/g, "\\$&").replaceAll("\n", "\\n")}"`;
  fc.assert(
    fc.property(fc.array(fc.record({ name, pairs: fc.array(fc.tuple(name, value)) }), { maxLength: 4 }), fc.array(space, { minLength: 1 }), (sections, spaces) => {
      let i = 0;
      const gap = (): string => ` ${spaces[i++ % spaces.length]} `;
      const text = sections
        .map((each) => `${each.name}${gap()}{${each.pairs.map(([key, given]) => `${gap()}${key}${gap()}=${gap()}${written(given)}${gap()};`).join("")}${gap()}}${gap()}`)
        .join("");
      const read = lexed(text);
      assert.deepEqual(read.said, []);
      assert.deepEqual(
        read.sections.map(({ name: of, assignments }) => ({ name: of, pairs: assignments.map(({ key, value: got }) => [key, got]) })),
        sections.map((each) => ({ name: each.name, pairs: each.pairs })),
      );
    }),
    { numRuns: 500 },
  );
});

test("a redsocks.conf means what it meant", () => {
  const { config, warnings, daemon } = good(`base {
	log_debug = off;
	log_info = on;
	log = "file:/var/log/redsocks.log";
	daemon = on;
	user = redsocks;
	group = redsocks;
	redirector = iptables;
	tcp_keepalive_time = 60; tcp_keepalive_probes = 5; tcp_keepalive_intvl = 10;
	redsocks_conn_max = 010;
	connpres_idle_timeout = 7440;
}
redsocks {
	local_ip = 10.1.1.1;
	local_port = 12345;
	ip = proxy.example.com;
	port = 1080;
	type = socks5;
	login = "us@er"; password = "p:w/é";
	splice = off; on_proxy_fail = close; disclose_src = off;
}`);
  assert.deepEqual(warnings, []);
  assert.deepEqual([daemon, config.user, config.group], [true, "redsocks", "redsocks"]);
  assert.deepEqual(config.listen.map(({ text }) => text), ["10.1.1.1:12345"]);
  assert.deepEqual(config.upstream, {
    kind: "socks5", host: "proxy.example.com", port: 1080, text: "socks5://proxy.example.com:1080",
    credentials: { user: new TextEncoder().encode("us@er"), password: new TextEncoder().encode("p:w/é") },
  });
  assert.equal(config.mode, "redirect");
  assert.equal(config.maxConnections, 8);
  assert.equal(config.limits.pipes, 0);
  assert.deepEqual(config.log, { filename: "/var/log/redsocks.log", level: "info", format: "plain" });
  assert.deepEqual([config.tcp.keepaliveIdleMs, config.tcp.keepaliveProbes, config.tcp.keepaliveIntervalMs], [60_000, 5, 10_000]);
});

test("defaults, and the values that stand for them", () => {
  const { config } = good(`base { redirector = iptables; tcp_keepalive_time = 0; redsocks_conn_max = 0; log = stderr; }\n${SOCKS}`);
  assert.deepEqual(config.listen.map(({ text }) => text), ["127.0.0.1:12345"]);
  assert.equal(config.log.level, "warning");
  assert.equal(config.maxConnections, null);
  assert.equal(config.tcp.keepaliveIdleMs, 180_000);
  assert.equal(config.limits.pipes, null);
  for (const [words, level] of [["log_debug = on; log_info = off;", "debug"], ["log_info = yes;", "info"], ["log_info = ok;", "info"], ["log_info = false;", "warning"]]) {
    assert.equal(good(inBase(words!)).config.log.level, level, words);
  }
});

test("several sections are several listeners of one upstream, IPv6 among them; redsocks2's words", () => {
  const { config } = good(`${BASE}
redsocks { local_ip = "::1"; local_port = 1081; ip = "2001:db8::7"; port = 3128; type = http-connect; login = a; password = ""; }
redsocks { bind = "127.0.0.1:1081"; relay = "[2001:db8::7]:3128"; type = http-connect; login = "a"; password = ""; timeout = 7; }`);
  assert.deepEqual(config.listen.map(({ text }) => text), ["[::1]:1081", "127.0.0.1:1081"]);
  assert.equal(config.upstream?.kind === "http" && config.upstream.text, "http://[2001:db8::7]:3128");
  assert.equal(config.timeouts.dialMs, 7000);
  assert.equal(good(`${BASE}redsocks { bind = ":1"; type = direct; }`).config.upstream?.kind, "direct");
  assert.equal(good(`base { redirector = generic; }\n${SOCKS}`).config.mode, "tproxy");
});

test("sections with other upstreams are relays of their own, in one process", () => {
  const { config } = good(`${BASE}${SOCKS}
redsocks { local_port = 12346; ip = 10.0.0.2; port = 3128; type = http-connect; }
redsocks { local_port = 12347; ip = 10.0.0.1; port = 1080; type = socks5; }
redsocks { local_port = 12348; ip = 10.0.0.3; port = 1080; type = socks4; login = me; password = ignored; }
redsocks { local_port = 12349; ip = 10.0.0.1; port = 1080; type = socks5; login = me; password = mine; }`);
  assert.deepEqual(config.listen.map(({ text }) => text), ["127.0.0.1:12345", "127.0.0.1:12347"]);
  assert.deepEqual(
    config.relays.map(({ listen, upstream }) => [listen[0]!.text, upstream.kind, upstream.kind !== "direct" && upstream.credentials !== null]),
    [["127.0.0.1:12346", "http", false], ["127.0.0.1:12348", "socks4", true], ["127.0.0.1:12349", "socks5", true]],
  );
  // Where a problem of the TOML that is made of it stands in their own file.
  assert.deepEqual(bad(`${BASE}${SOCKS}\nredsocks { local_port = 12346; ip = 127.0.0.1; port = 12345; type = socks5; }`), [
    "r.conf:4: relays: socks5://127.0.0.1:12345 is transplice's own address (listen has 127.0.0.1:12345); the upstream must be another program",
  ]);
});

test("disclose_src and on_proxy_fail of http-connect", () => {
  const http = (line: string): string => `redsocks { local_port = ${line.length + 1}; ip = 10.0.0.1; port = 3128; type = http-connect; ${line} }\n`;
  const ways = [["X-Forwarded-For", "x-forwarded-for"], ["Forwarded_ip", "forwarded"], ["Forwarded_ipport", "forwarded-with-port"], ["off", "off"]];
  for (const [theirs, ours] of ways) assert.equal(good(`${BASE}${http(`disclose_src = ${theirs};`)}`).config.disclosed, ours);
  assert.equal(good(`${BASE}${http("on_proxy_fail = close;")}`).config.forwardsRefusals, false);
  const { config, warnings } = good(`${BASE}${http("on_proxy_fail = forward_http_err;")}${http("")}`);
  assert.equal(config.forwardsRefusals, true);
  assert.deepEqual(warnings, ["r.conf:2: on_proxy_fail: is not the same in all sections; this one counts for all"]);
});

/** One line more in base. */
const BASE_PROBLEMS: readonly [string, string][] = [
  ["daemon = 1;", 'daemon: found "1"; allowed: ok, on, yes, true, off, no or false'],
  ["tcp_keepalive_time = 70000;", 'tcp_keepalive_time: found "70000"; allowed: an integer from 0 to 65535'],
  ["tcp_keepalive_time = 65535;", "tcp_keepalive_time: found 65535; allowed: 0, the kernel's, to 32400"],
  ["tcp_keepalive_probes = 128;", "tcp_keepalive_probes: found 128; allowed: 0, the kernel's, to 127"],
  ["tcp_keepalive_intvl = 089;", 'tcp_keepalive_intvl: found "089"; allowed: an integer from 0 to 65535'],
  ['rlimit_nofile = "-1";', 'rlimit_nofile: found "-1"; allowed: an integer from 0 to 4294967295'],
  ["log = syslog;", 'log: found "syslog"; allowed: stderr, "file:/PATH", or "syslog:FACILITY" with daemon, local0, local1, local2, local3, local4, local5, local6 or local7'],
  ["redirector = pf;", "redirector: pf is not of Linux; allowed: iptables or generic"],
  ["redirector = nft;", 'redirector: found "nft"; allowed: iptables or generic'],
  ["chroot = x;", "chroot: is not supported: RootDirectory= or ProtectSystem=strict of a systemd unit does more; with --ignore-unsupported it is left out"],
  ["user = \"a b\";", 'user: found "a b"; allowed: the name or number of a user'],
  ["max_accept_backoff = 0;", "max_accept_backoff: found 0; allowed: 1 to 4294967295"],
  ["log_inf = on;", "log_inf: is not a key of base; did you mean log_info?"],
  ["redsocks_conn_max = 4294967295;", "redsocks_conn_max: allowed: 0 to 10000000, where 0 is what the limit of open files carries"],
];

/** One line more in redsocks. */
const REDSOCKS_PROBLEMS: readonly [string, string][] = [
  ["type = shadowsocks;", "type: shadowsocks is not spoken to an upstream; allowed: socks4, socks5, http-connect or direct"],
  ["type = sock5;", 'type: found "sock5"; allowed: socks4, socks5, http-connect or direct'],
  ["local_ip = proxy.example;", 'local_ip: found "proxy.example"; allowed: an IP address of this host (names are not resolved), 0.0.0.0 or :: for all'],
  ["local_ip = 10.0.0;", 'local_ip: found "10.0.0"; allowed: an IP address, or a name'],
  ["local_port = 0;", "local_port: is missing; allowed: 1 to 65535, the port that the firewall redirects to"],
  ["ip = 0.0.0.0;", 'ip: found "0.0.0.0", which TCP cannot connect to; allowed: the proxy\'s address or name'],
  ["port = 65536;", 'port: found "65536"; allowed: an integer from 0 to 65535'],
  ["login = a;", "login: stands without password; both are needed, or none"],
  ["password = S3cret;", "password: stands without login; both are needed, or none"],
  ['bind = "1.2.3.4";', 'bind: found "1.2.3.4"; allowed: "IP:PORT", "[IPv6]:PORT" or ":PORT"'],
  ["disclose_src = yes;", 'disclose_src: found "yes"; allowed: off, no, false, X-Forwarded-For, Forwarded_ip or Forwarded_ipport'],
  ["disclose_src = Forwarded_ip;", "disclose_src: is for http-connect only"],
  ["on_proxy_fail = forward_http_err;", "on_proxy_fail: is for http-connect only"],
  ["on_proxy_fail = open;", 'on_proxy_fail: found "open"; allowed: close or forward_http_err'],
  ["max_pktqueue = 5;", "max_pktqueue: is not a key of redsocks; there are local_ip, local_port, ip, port, type, login, password, listenq, splice, disclose_src, on_proxy_fail, min_accept_backoff, max_accept_backoff, bind, relay, interface, autoproxy, timeout"],
  ["autoproxy = 1;", "autoproxy: is not supported: there is no direct attempt before the proxy; with --ignore-unsupported it is left out"],
];

test("wrong values are told with their line and what is allowed", () => {
  for (const [line, expected] of BASE_PROBLEMS) assert.ok(bad(inBase(line)).includes(`r.conf:2: ${expected}`), `${line}\n${bad(inBase(line)).join("\n")}`);
  for (const [line, expected] of REDSOCKS_PROBLEMS) assert.ok(bad(inRedsocks(line)).includes(`r.conf:3: ${expected}`), `${line}\n${bad(inRedsocks(line)).join("\n")}`);
});

test("all problems at once, and no password among them", () => {
  const said = bad(`bas { }\nbase { daemon = 2;\n log = x; }\nredsocks {\n login = "${"u".repeat(256)}"; password = "S3cret\\q";\n type = socks5; foo = "S3cret";\n}\nbase { redirector = ipf; }`);
  assert.deepEqual(said.map((text) => text.split(/[;<]| allowed/)[0]), [
    'r.conf:1: bas: is not a section of redsocks.conf',
    "r.conf:2: base: is missing".replace(": base: is missing", ": redirector: is missing"),
    'r.conf:2: daemon: found "2"',
    'r.conf:3: log: found "x"',
    "r.conf:4: ip: is missing",
    "r.conf:4: port: is missing",
    "r.conf:4: local_port: is missing",
    "r.conf:5: a \\ in a string is followed by what it may not",
    "r.conf:5: login: has 256 bytes",
    "r.conf:6: foo: is not a key of redsocks",
    "r.conf:8: base: stands twice, first in line 2",
  ].sort((a, b) => said.findIndex((text) => text.startsWith(a)) - said.findIndex((text) => text.startsWith(b))));
  assert.doesNotMatch(said.join(), /S3cret/);
  assert.deepEqual(bad("").map((text) => text.split(";")[0]), ["r.conf: base: is missing", "r.conf: redsocks: is missing"]);
});

test("what there is nothing for is a problem, or a warning if the operator says so", () => {
  const text = `${BASE}${SOCKS}redudp { anything = 1; }\ndnstc { }\ndnsu2t { }\nautoproxy { }\n`;
  const said = bad(text);
  assert.equal(said.length, 4);
  assert.equal(said[0], "r.conf:3: redudp: is not supported: UDP is not relayed; with --ignore-unsupported it is left out");
  const { warnings } = good(text, true);
  assert.equal(warnings.length, 4);
  assert.equal(warnings[0], "r.conf:3: redudp: is ignored: UDP is not relayed");
});

test("what has no effect is told: keys of 0.4, twins, the log of a daemon", () => {
  const warned = (line: string, text: string): string[] => good(text, true).warnings.filter((said) => said.includes(line));
  assert.equal(warned("is a key of redsocks 0.4, which 0.5 refuses", inRedsocks("min_accept_backoff = 5; max_accept_backoff = 10;")).length, 2);
  assert.deepEqual(warned("twice", inRedsocks("port = 1081;")), ["r.conf:3: port: is given twice, first in line 2; the last counts"]);
  assert.equal(good(inRedsocks("port = 1081;")).config.upstream?.kind === "socks5" && (good(inRedsocks("port = 1081;")).config.upstream as { port: number }).port, 1081);
  for (const [line, expected] of [
    ['log = "syslog:local3";', "log: the log goes to standard error"],
    ["daemon = on;", "log: the log goes to standard error"],
    ["rlimit_nofile = 4096;", "rlimit_nofile: has no effect"],
    ["connpres_idle_timeout = 60;", "connpres_idle_timeout: has no effect"],
    ["max_accept_backoff = 5;", "max_accept_backoff: is not needed"],
  ]) assert.equal(warned(expected!, inBase(line!)).length, 1, line);
});

test("splice is off where all sections say so", () => {
  const other = (splice: string): string => `redsocks { local_port = 12346; ip = 10.0.0.1; port = 1080; type = socks5; ${splice} }\n`;
  const pipes = (splice: string): number | null => good(inRedsocks("splice = no;") + other(splice)).config.limits.pipes;
  assert.deepEqual([pipes("splice = off;"), pipes("splice = on;"), pipes("")], [0, null, null]);
});

test("a privileged port and a user go together: the capability is kept", () => {
  const { config } = good(`base { redirector = iptables; user = nobody; }\n${SOCKS.replace("12345", "80")}`);
  assert.deepEqual(capabilitiesOf(config), [CAP_NET_BIND_SERVICE]);
});
