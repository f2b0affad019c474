/** [incoming], [outgoing], [users] and [[rules]]: what they come to, and what is said about them. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import type { Config, EgressConfig } from "../../src/config/config.ts";
import { addressBytes, addressText } from "../../src/config/endpoint.ts";
import { parseNetwork } from "../../src/config/network.ts";
import { type Parsed, parseConfig } from "../../src/config/parse.ts";
import { problemText } from "../../src/config/problem.ts";
import { parseRate } from "../../src/config/quantity.ts";
import { RULE_SETTINGS, type Setting, settingsMarkdown, USER_SETTING } from "../../src/config/settings.ts";
import { Access } from "../../src/policy/access.ts";
import type { Network } from "../../src/policy/network.ts";

const HASH = `scrypt:16384:8:1:${"A".repeat(22)}==:${"B".repeat(43)}=`;
const URL_LINE = 'proxy_url = "socks5://10.20.30.40:1080"\n';

function problemsOf(parsed: Parsed): string[] {
  return "problems" in parsed ? parsed.problems.map(problemText) : [];
}

const bad = (text: string): string[] => problemsOf(parseConfig(text, "t"));

function config(text: string): Config {
  const parsed = parseConfig(text, "t");
  if ("problems" in parsed) assert.fail(problemsOf(parsed).join("\n"));
  return parsed.config;
}

function egress(text: string): EgressConfig {
  const found = config(text).egress;
  assert.ok(found !== null);
  return found;
}

function warned(text: string): string[] {
  const parsed = parseConfig(text, "t");
  assert.ok("warnings" in parsed, problemsOf(parsed).join("\n"));
  return parsed.warnings.map(problemText);
}

const texts = (networks: readonly Network[]): string[] =>
  networks.map(({ bytes, prefix }) => `${addressText(bytes)}/${prefix}`);

// usocksd's own tests: TestEmptyConfig, TestConfig, TestConfigFail.

test("an empty [incoming] is what usocksd did without a file", () => {
  const { listen, upstream, egress: found, timeouts } = config("[incoming]");
  assert.deepEqual(listen, []);
  assert.equal(upstream, null);
  assert.ok(found !== null);
  const { listen: sockets, metrics, ...rest } = found;
  assert.deepEqual(sockets.map(({ text, dualStack, optional }) => [text, dualStack, optional]), [["[::]:1080", true, false]]);
  assert.deepEqual(metrics.map(({ text, dualStack }) => [text, dualStack]), [["[::]:1081", true]]);
  assert.deepEqual(rest, {
    access: {
      allowFrom: [], allowSites: [], denySites: [], allowPorts: [], denyPorts: [],
      allowNetworks: [], denyNetworks: [], allowPrivate: false, rules: [],
    },
    proxyProtocolFrom: [],
    maxPerClient: null, maxPerUser: null, ratePerClient: null, ratePerUser: null, rate: null,
    iface: null, addresses: [], affinity: "client",
    dnsbl: { domains: [], intervalMs: 60_000, whenMostListed: "use-all" },
    users: [],
  });
  assert.deepEqual([timeouts.negotiationMs, timeouts.dnsMs], [10_000, 5000]);
  for (const text of ["[outgoing]", "incoming = {}", "incoming.port = 1080", "[Incoming]", "[incoming]\n[outgoing]"]) {
    assert.deepEqual(config(text), config("[incoming]"), text);
  }
});

const SAMPLE = `[log]
filename = "/var/log/usocksd.log"
level = "info"
format = "json"

[incoming]
port = 1080
metrics_port = 9180
addresses = ["10.0.0.1"]
allow_from = ["10.0.0.0/8", "192.168.1.1"]

[outgoing]
allow_sites = ["www.amazon.com", ".google.com"]
deny_sites = [".2ch.net", "bad.google.com", ""]
deny_ports = [22, 25]
#iface = "tun0"
addresses = ["12.34.56.78", "12.34.56.79"]
dnsbl_domain = "zen.spamhaus.org"
`;

test("a usocksd.toml means what it meant", () => {
  const { log } = config(SAMPLE);
  assert.deepEqual(log, { filename: "/var/log/usocksd.log", level: "info", format: "json" });
  const { listen, metrics, access, addresses, dnsbl, iface } = egress(SAMPLE);
  assert.deepEqual(listen.map(({ text, dualStack }) => [text, dualStack]), [["10.0.0.1:1080", false]]);
  assert.deepEqual(metrics.map(({ text }) => text), ["[::]:9180"]);
  assert.deepEqual(texts(access.allowFrom), ["10.0.0.0/8", "192.168.1.1/32"]);
  assert.deepEqual(access.allowSites, ["www.amazon.com", ".google.com"]);
  assert.deepEqual(access.denySites, [".2ch.net", "bad.google.com", ""]);
  assert.deepEqual(access.denyPorts, [{ first: 22, last: 22 }, { first: 25, last: 25 }]);
  assert.deepEqual(addresses, [
    { bytes: Uint8Array.of(12, 34, 56, 78), prefix: 32, weight: 1 },
    { bytes: Uint8Array.of(12, 34, 56, 79), prefix: 32, weight: 1 },
  ]);
  assert.deepEqual(dnsbl.domains, ["zen.spamhaus.org"]);
  assert.equal(iface, null);
  const rules = new Access(access, []);
  const client = (text: string) => ({ bytes: addressBytes(text)!, at: 0, length: 4 as const, user: null });
  const admits = (text: string): boolean => rules.admits(client(text));
  assert.deepEqual(["10.1.32.4", "192.168.1.1", "12.34.56.78"].map(admits), [true, true, false]);
  const goes = (name: string, port = 443): boolean =>
    rules.judge(client("10.1.32.4"), name, port, Uint8Array.of(203, 0, 113, 9), 0, 4).allowed;
  assert.deepEqual(["www.amazon.com", "www.google.com", "bad.google.com", "www.2ch.net"].map((name) => goes(name)), [true, true, false, false]);
  assert.deepEqual([goes("www.amazon.com", 25), goes("www.amazon.com", 443), goes("")], [false, true, false]);
  // Empty texts were the absence of a value, and case did not count in keys.
  assert.deepEqual(egress('[Outgoing]\nIface = ""\nDNSBL_Domain = ""'), egress("[outgoing]"));
});

test("what usocksd refused is refused, with the reason", () => {
  assert.deepEqual(bad("[incoming]\nhoge = 1"), [
    "t:2: incoming.hoge: is not a setting; [incoming] has port, addresses, allow_from, metrics_port, metrics_address, proxy_protocol_from, max_per_client, max_per_user, rate_per_client, rate_per_user, rate",
  ]);
  assert.deepEqual(bad('[incoming]\nallow_from = "10.0.0.0/8"'), [
    't:2: incoming.allow_from: found "10.0.0.0/8" without brackets; allowed: an array of networks and addresses, such as "10.0.0.0/8" and "2001:db8::7"',
  ]);
});

test("a bare IPv6 address is one address, and host bits are dropped as Go drops them", () => {
  const { allowFrom } = egress('[incoming]\nallow_from = ["2001:db8::20", "10.1.2.3/8", "2001:db8::1/33", "::ffff:10.0.0.1", "::ffff:10.0.0.0/104", "0.0.0.0/0", "::/0", "10.9.8.7/31"]').access;
  assert.deepEqual(texts(allowFrom), ["2001:db8::20/128", "10.0.0.0/8", "2001:db8::/33", "10.0.0.1/32", "10.0.0.0/8", "0.0.0.0/0", "::/0", "10.9.8.6/31"]);
});

test("networks: bits up to the prefix are kept, bits after it are zero", () => {
  const address = fc.oneof(fc.ipV4(), fc.ipV6());
  fc.assert(
    fc.property(address, fc.nat(128), (host, length) => {
      const bytes = addressBytes(host);
      // Mapped ones have another prefix, see above.
      if (bytes === null || length > bytes.length * 8 || host.toLowerCase().includes("ffff:")) return;
      const network = parseNetwork(`${host}/${length}`);
      assert.ok(typeof network !== "string", `${network}`);
      const bits = (of: Uint8Array): string => [...of].map((byte) => byte.toString(2).padStart(8, "0")).join("");
      assert.equal(network.prefix, length);
      assert.equal(bits(network.bytes), bits(bytes).slice(0, length).padEnd(bytes.length * 8, "0"));
      assert.equal(network.hostBits, bits(bytes).slice(length).includes("1"));
    }),
  );
});

test("a file that says everything about the egress", () => {
  const found = egress(`
[incoming]
port = 1085
addresses = ["127.0.0.1", "::1", "fe80::1%2"]
allow_from = ["10.0.0.0/8", "2001:db8::7"]
metrics_port = 1086
metrics_address = "127.0.0.1"
proxy_protocol_from = ["10.0.0.5"]
max_per_client = 7
max_per_user = 8
rate_per_client = "100/s"
rate_per_user = "30/m"
rate = "2000/s"
[outgoing]
allow_sites = ["WWW.Example.COM.", ".Example.org", "bücher.example"]
deny_sites = [""]
allow_ports = [80, "8000-8999"]
deny_ports = ["0-65535"]
allow_networks = ["10.20.0.0/16"]
deny_networks = ["198.51.100.0/24"]
allow_private = true
addresses = [
  "192.0.2.1",
  { address = "192.0.2.2", weight = 2 },
  { weight = 0.5, address = "2001:db8:1::/64" },
]
affinity = "client-destination"
dnsbl_domain = ["zen.example", "Other.Example."]
dnsbl_interval = "5m"
dnsbl_when_most_listed = "use-clean"
[users]
alice = "${HASH}"
"bob@example.com" = "${HASH}"
Alice = "${HASH}"
[[rules]]
name = "mail-only"
action = "deny"
from = ["10.1.0.0/16"]
users = ["alice", "bob@example.com"]
sites = [".Example.com"]
networks = ["2001:db8::/32"]
ports = [25, "8000-8999"]
[[rules]]
Name = "rest_1"
action = "allow"
[timeouts]
negotiation = "1s"
dns = "2s"
`);
  assert.deepEqual(found.listen.map(({ text }) => text), ["127.0.0.1:1085", "[::1]:1085", "[fe80::1%2]:1085"]);
  assert.deepEqual(found.metrics.map(({ text }) => text), ["127.0.0.1:1086"]);
  assert.deepEqual(texts(found.access.allowFrom), ["10.0.0.0/8", "2001:db8::7/128"]);
  assert.deepEqual(texts(found.proxyProtocolFrom), ["10.0.0.5/32"]);
  assert.deepEqual([found.maxPerClient, found.maxPerUser, found.ratePerClient, found.ratePerUser, found.rate], [7, 8, 100, 0.5, 2000]);
  assert.deepEqual(found.access.allowSites, ["www.example.com", ".example.org", "xn--bcher-kva.example"]);
  assert.deepEqual(found.access.denySites, [""]);
  assert.deepEqual(found.access.allowPorts, [{ first: 80, last: 80 }, { first: 8000, last: 8999 }]);
  assert.deepEqual(found.access.denyPorts, [{ first: 0, last: 65_535 }]);
  assert.deepEqual(texts(found.access.allowNetworks), ["10.20.0.0/16"]);
  assert.deepEqual(texts(found.access.denyNetworks), ["198.51.100.0/24"]);
  assert.equal(found.access.allowPrivate, true);
  assert.deepEqual(found.addresses.map(({ bytes, prefix, weight }) => [addressText(bytes), prefix, weight]), [
    ["192.0.2.1", 32, 1], ["192.0.2.2", 32, 2], ["2001:db8:1::", 64, 0.5],
  ]);
  assert.equal(found.affinity, "client-destination");
  assert.deepEqual(found.dnsbl, { domains: ["zen.example", "other.example"], intervalMs: 300_000, whenMostListed: "use-clean" });
  assert.deepEqual(found.users, [
    { name: "alice", secret: HASH }, { name: "bob@example.com", secret: HASH }, { name: "Alice", secret: HASH },
  ]);
  const [mail, rest, ...others] = found.access.rules;
  assert.equal(others.length, 0);
  assert.ok(mail !== undefined);
  const { from, networks, ...plain } = mail;
  assert.deepEqual([texts(from), texts(networks)], [["10.1.0.0/16"], ["2001:db8::/32"]]);
  assert.deepEqual(plain, {
    name: "mail-only", action: "deny", users: ["alice", "bob@example.com"], sites: [".example.com"],
    ports: [{ first: 25, last: 25 }, { first: 8000, last: 8999 }],
  });
  assert.deepEqual(rest, { name: "rest_1", action: "allow", from: [], users: [], sites: [], networks: [], ports: [] });
  // Plain data: a worker gets it by structured clone.
  assert.deepEqual(structuredClone(found), found);
});

test("the forms that TOML has for tables mean the same", () => {
  const one = egress(`[incoming]\n[users]\na = "${HASH}"\n[[rules]]\nname = "x"\naction = "deny"\nusers = ["a"]`);
  assert.deepEqual(egress(`users = { a = "${HASH}" }\nrules = [{ name = "x", action = "deny", users = ["a"] }]\n[incoming]`), one);
  assert.deepEqual(egress(`users.a = "${HASH}"\n[incoming]\n[[Rules]]\nNAME = "x"\naction = "deny"\nusers = ["a"]`), one);
});

test("both roles from one file: metrics are off unless they are asked for, and then local", () => {
  const both = config(`${URL_LINE}[incoming]`);
  assert.equal(both.upstream?.kind, "socks5");
  assert.equal(both.listen.length, 2);
  assert.deepEqual(both.egress?.listen.map(({ text }) => text), ["[::]:1080"]);
  assert.deepEqual(both.egress?.metrics, []);
  const metrics = (text: string): string[] | undefined => config(text).egress?.metrics.map((address) => address.text);
  assert.deepEqual(metrics(`${URL_LINE}[incoming]\nmetrics_port = 9180`), ["127.0.0.1:9180"]);
  assert.deepEqual(metrics(`${URL_LINE}[incoming]\nmetrics_port = 9180\nmetrics_address = "0.0.0.0"`), ["[::]:9180"]);
  assert.deepEqual(metrics("[incoming]\nmetrics_port = 0"), []);
  assert.deepEqual(metrics('[incoming]\nmetrics_address = "::1"'), ["[::1]:1081"]);
  // The relay may have its own egress for an upstream: that leads out, not back.
  config('proxy_url = "socks5://127.0.0.1:1080"\n[incoming]');
});

test("a wildcard of either family is one dual-stack socket", () => {
  for (const text of ["0.0.0.0", "::", "::0"]) {
    assert.deepEqual(egress(`[incoming]\naddresses = ["${text}"]`).listen, egress("[incoming]").listen);
  }
});

test("rates", () => {
  const rates: [string, number | null][] = [
    ["100/s", 100], ["600/m", 10], ["3600/h", 1], ["1/h", 1 / 3600], ["0/s", 0], ["1.5/s", null],
    ["100", null], ["/s", null], ["100/d", null], ["100 /s", null], ["-1/s", null], ["1e3/s", null],
  ];
  for (const [text, rate] of rates) assert.equal(parseRate(text), rate, text);
});

const IP = 'an array of IP addresses, such as "10.0.0.1"; "0.0.0.0" or "::" for all';
const NETWORK = 'an array of networks and addresses, such as "10.0.0.0/8" and "2001:db8::7"';
const PORT = 'an array of ports from 0 to 65535, such as 25, and ranges, such as "8000-8999"';
const SITE = 'an array of names, such as "www.example.com", or ".example.com" for all below it';
const SOURCE =
  'an array of addresses, such as "192.0.2.1", IPv6 networks, such as "2001:db8:1::/64", and tables such as { address = "192.0.2.2", weight = 2 }';
const RATE = 'a number of connections per second, minute or hour, such as "100/s" or "600/m", from "1/h" to "1000000/s"';
const SECRET = 'a string, "scrypt:...", as `transplice passwd NAME` prints it, or a password in clear text';
const RULE_KEYS = "name, action, from, users, sites, networks, ports";

/** What stands in line 2, after [incoming], and what is said about it. */
const BAD: readonly [string, ...string[]][] = [
  ["port = 0", "t:2: incoming.port: found 0; allowed: an integer from 1 to 65535"],
  ["metrics_port = 65536", "t:2: incoming.metrics_port: found 65536; allowed: an integer from 0 to 65535"],
  ["prot = 1080", "t:2: incoming.prot: is not a setting; did you mean incoming.port?"],
  ["deny_ports = [25]", "t:2: incoming.deny_ports: is not a setting; outgoing.deny_ports exists; did you mean [outgoing] deny_ports?"],
  ["[log]\naddresses = []", "t:3: log.addresses: is not a setting; did you mean incoming.addresses or outgoing.addresses?"],
  ["[[outgoing]]", "t:2: outgoing: found an array of tables, [[outgoing]]; allowed: one table, [outgoing]"],
  ["[rule]", "t:2: [rule]: is not a table of this file; did you mean [[rules]]?"],
  ["[user]", 't:2: user: found a table; allowed: a name or a number, in quotes, such as "transplice" or "998"; or did you mean [users]?'],
  // Addresses to listen on.
  ['addresses = ["localhost"]', `t:2: incoming.addresses: found "localhost", which is not an address (names are not resolved); allowed: ${IP}`],
  ['addresses = ["10.0.0.1:1080"]', `t:2: incoming.addresses: found "10.0.0.1:1080", which is not an address (names are not resolved); allowed: ${IP}`],
  ['addresses = ["fe80::1"]', `t:2: incoming.addresses: found "fe80::1" without its interface's number (as in "fe80::1%2"; \`ip link\` shows it); allowed: ${IP}`],
  ['addresses = ["224.0.0.1"]', `t:2: incoming.addresses: found "224.0.0.1", which no TCP socket can listen on; allowed: ${IP}`],
  ["addresses = [1]", `t:2: incoming.addresses: found 1 in the array; allowed: ${IP}`],
  ['addresses = ["::1", "0::1"]', "t:2: incoming.addresses: ::1 is given twice"],
  ['addresses = [\n"::",\n"0.0.0.0"]', "t:4: incoming.addresses: :: is given twice, in line 3 and in line 4"],
  ['metrics_address = "localhost"', 't:2: incoming.metrics_address: found "localhost", which is not an address (names are not resolved); allowed: an IP address, 0.0.0.0 or :: for all'],
  ["metrics_address = 1", "t:2: incoming.metrics_address: found 1; allowed: an IP address, 0.0.0.0 or :: for all"],
  ["port = 1081", "t: incoming.metrics_port: [::]:1081 cannot be listened on beside [::]:1081 (incoming.port); another port is needed"],
  // Networks. The line is that of the item.
  ['allow_from = [\n"10.0.0.0/8",\n"10.0.0.0/33"]', `t:4: incoming.allow_from: found "10.0.0.0/33", where "/33" is not a prefix from /0 to /32; allowed: ${NETWORK}`],
  ['allow_from = ["2001:db8::/129"]', `t:2: incoming.allow_from: found "2001:db8::/129", where "/129" is not a prefix from /0 to /128; allowed: ${NETWORK}`],
  ['allow_from = ["::ffff:10.0.0.0/95"]', `t:2: incoming.allow_from: found "::ffff:10.0.0.0/95", where "/95" is not a prefix from /96 to /128; allowed: ${NETWORK}`],
  ['allow_from = ["10.0.0.0/255.0.0.0"]', `t:2: incoming.allow_from: found "10.0.0.0/255.0.0.0", where "/255.0.0.0" is not a prefix from /0 to /32; allowed: ${NETWORK}`],
  ['allow_from = ["10.0.0/8"]', `t:2: incoming.allow_from: found "10.0.0/8", where "10.0.0" is not an address; allowed: ${NETWORK}`],
  ['allow_from = ["010.0.0.0/8"]', `t:2: incoming.allow_from: found "010.0.0.0/8", where "010.0.0.0" is not an address; allowed: ${NETWORK}`],
  ['allow_from = ["lan"]', `t:2: incoming.allow_from: found "lan", which is not an address (names are not resolved); allowed: ${NETWORK}`],
  ['allow_from = ["fe80::1%2"]', `t:2: incoming.allow_from: found "fe80::1%2" with an interface, which a network does not have; allowed: ${NETWORK}`],
  ['allow_from = ["", []]', `t:2: incoming.allow_from: found "", which is not an address; allowed: ${NETWORK}`, `t:2: incoming.allow_from: found an array in the array; allowed: ${NETWORK}`],
  // Rates and limits.
  ["rate_per_client = 5", `t:2: incoming.rate_per_client: found 5 without a unit; allowed: ${RATE}`],
  ['rate_per_client = "5"', `t:2: incoming.rate_per_client: found "5" without a unit; allowed: ${RATE}`],
  ['rate_per_user = "0/s"', `t:2: incoming.rate_per_user: found "0/s"; allowed: ${RATE}`],
  ['rate_per_user = "1000001/s"', `t:2: incoming.rate_per_user: found "1000001/s"; allowed: ${RATE}`],
  ["max_per_client = 0", "t:2: incoming.max_per_client: found 0; allowed: an integer from 1 to 10000000"],
  // Ports and sites.
  ["[outgoing]\ndeny_ports = 25", `t:3: outgoing.deny_ports: found 25; allowed: ${PORT}`],
  ["[outgoing]\ndeny_ports = [65536]", `t:3: outgoing.deny_ports: found 65536 in the array; allowed: ${PORT}`],
  ['[outgoing]\ndeny_ports = ["25"]', `t:3: outgoing.deny_ports: found "25", a string; one port stands without quotes; allowed: ${PORT}`],
  ['[outgoing]\ndeny_ports = ["9-8"]', `t:3: outgoing.deny_ports: found "9-8", whose end is before its beginning; allowed: ${PORT}`],
  ['[outgoing]\ndeny_ports = ["1-65536", "a-b", "http"]', ...["1-65536", "a-b", "http"].map((text) => `t:3: outgoing.deny_ports: found "${text}"; allowed: ${PORT}`)],
  ["[outgoing]\ndeny_sites = [1]", `t:3: outgoing.deny_sites: found 1 in the array; allowed: ${SITE}`],
  // What connections leave by.
  ['[outgoing]\niface = "sixteen-bytes-xx"', 't:3: outgoing.iface: found "sixteen-bytes-xx"; allowed: the name of an interface, of at most 15 bytes, or "" for none'],
  ...["a/b", "a b", ".", "..", "eth0:1"].map((name): [string, string] => [
    `[outgoing]\niface = "${name}"`, `t:3: outgoing.iface: found "${name}"; allowed: the name of an interface, of at most 15 bytes, or "" for none`,
  ]),
  ['[outgoing]\naddresses = [{ address = "192.0.2.1", weight = 0 }]', `t:3: outgoing.addresses: found a table in the array whose weight is 0 and not a number from 0.001 to 1000; allowed: ${SOURCE}`],
  ...["-1", "1001", "nan", "inf", '"2"'].map((weight): [string, string] => [
    `[outgoing]\naddresses = [{ address = "192.0.2.1", weight = ${weight} }]`, `t:3: outgoing.addresses: found a table in the array whose weight is ${weight} and not a number from 0.001 to 1000; allowed: ${SOURCE}`,
  ]),
  ['[outgoing]\naddresses = [{ adress = "192.0.2.1" }]', `t:3: outgoing.addresses: found a table in the array with the key "adress" (did you mean address?); allowed: ${SOURCE}`],
  ["[outgoing]\naddresses = [{ weight = 1 }]", `t:3: outgoing.addresses: found a table in the array without an address; allowed: ${SOURCE}`],
  ["[outgoing]\naddresses = [{ address = 1 }]", `t:3: outgoing.addresses: found a table in the array whose address is 1; allowed: ${SOURCE}`],
  ['[outgoing]\naddresses = [{ address = "x" }]', `t:3: outgoing.addresses: found a table in the array with the address "x", which is not an address (names are not resolved); allowed: ${SOURCE}`],
  ['[outgoing]\naddresses = ["192.0.2.0/24"]', `t:3: outgoing.addresses: found "192.0.2.0/24", an IPv4 network; its addresses stand one by one; allowed: ${SOURCE}`],
  ['[outgoing]\naddresses = ["2001:db8::1/64"]', `t:3: outgoing.addresses: found "2001:db8::1/64", where bits are set after the prefix; one address is "2001:db8::1"; allowed: ${SOURCE}`],
  ['[outgoing]\naddresses = ["::/0"]', `t:3: outgoing.addresses: found "::/0", which is all addresses; allowed: ${SOURCE}`],
  ...["::", "0.0.0.0"].map((any): [string, string] => [
    `[outgoing]\naddresses = ["${any}"]`, `t:3: outgoing.addresses: found "${any}", which is no address to leave from; without addresses the kernel chooses; allowed: ${SOURCE}`,
  ]),
  ['[outgoing]\naddresses = ["ff02::/16"]', `t:3: outgoing.addresses: found "ff02::/16", which is no address to leave from; allowed: ${SOURCE}`],
  ['[outgoing]\naddresses = ["fe80::1"]', `t:3: outgoing.addresses: found "fe80::1", a link-local address, which leads nowhere; use iface; allowed: ${SOURCE}`],
  ['[outgoing]\naffinity = "clients"', 't:3: outgoing.affinity: found "clients" (did you mean "client"?); allowed: "client", "client-destination" or "none"'],
  ...["a..b", ".a", "a b"].map((zone): [string, string] => [
    `[outgoing]\ndnsbl_domain = ["${zone}"]`, `t:3: outgoing.dnsbl_domain: found "${zone}", which is not a domain; allowed: an array of domains, such as "zen.spamhaus.org", or one without brackets`,
  ]),
  // Users. No value is ever shown.
  ["[users]", "t:2: users: holds no user; without the table nobody is asked for a password, with it somebody must be there"],
  ["[[users]]\nname = 1", "t:2: users: found an array of tables, [[users]]; allowed: one table, [users]"],
  ["[users]\na = 12345", `t:3: users.a: allowed: ${SECRET}`],
  ["[users]\na = true\nb = []", `t:3: users.a: allowed: ${SECRET}`, `t:4: users.b: allowed: ${SECRET}`],
  ["[users]\na.b = \"x\"", "t:3: users.a.b: is not one name; a name with a dot in it stands in quotes"],
  ["[users.a]\npassword = \"x\"", 't:2: users.a: found a table; allowed: [users] with NAME = "scrypt:..."; a name with a dot in it stands in quotes'],
  ['[users]\n"" = "x"', 't:3: users."": the name is empty'],
  ['[users]\n"a\\u0000" = "x"', 't:3: users."a\\u0000": the name holds a control character'],
  [`[users]\n${"u".repeat(256)} = "x"`, `t:3: users."${"u".repeat(80)}…": the name has more than 255 bytes`],
  [`[users]\na = "${"p".repeat(256)}"`, "t:3: users.a: the password has more than 255 bytes"],
  ...["scrypt:", "scrypt:16384:8:1:AAAA:BBBB", HASH.replace("16384", "16383"), HASH.replace("16384", "16777216"), HASH.replace("16384", "131072"), HASH.replace(":8:1:", ":8:9:"), HASH.replace(":1:", ":0:")].map((hash): [string, string] => [
    `[users]\na = "${hash}"`, "t:3: users.a: begins as a hash and is none, or one that takes too much; `transplice passwd NAME` prints a right one",
  ]),
  // Rules.
  ["[rules]", "t:2: rules: found one table, [rules]; allowed: an array of tables, [[rules]]"],
  ["[outgoing]\n[rules.x]", `t:3: rules.x: found a table; [[rules]] has ${RULE_KEYS}`],
  ["[[rules]]", 't:2: rules: name and action missing; for example: name = "mail-only" and action = "deny"'],
  ['[[rules]]\nname = "x"', 't:2: rules: action missing; for example: action = "deny"'],
  ['[[rules]]\nname = "a b"\naction = "deny"', 't:3: rules.name: found "a b"; allowed: 1 to 64 letters, digits, - and _'],
  [`[[rules]]\nname = "${"x".repeat(65)}"\naction = "deny"`, `t:3: rules.name: found "${"x".repeat(65)}"; allowed: 1 to 64 letters, digits, - and _`],
  ['[[rules]]\nname = "x"\naction = "dney"', 't:4: rules.action: found "dney" (did you mean "deny"?); allowed: "allow" or "deny"'],
  ['[[rules]]\nname = "x"\naction = "deny"\nprots = [1]', "t:5: rules.prots: is not a setting; did you mean ports?"],
  ['[[rules]]\nname = "x"\naction = "deny"\nhoge = 1', `t:5: rules.hoge: is not a setting; [[rules]] has ${RULE_KEYS}`],
  ['[[rules]]\nname = "x"\naction = "deny"\nsites.x = 1', "t:5: rules.sites.x: is not a setting; did you mean sites?"],
  ['[[rules]]\nname = "x"\naction = "deny"\nAction = "deny"', "t:5: rules.action: is given twice: in line 4 and here"],
  ['[[rules]]\nname = "x"\naction = "deny"\n[[rules]]\nname = "x"\naction = "allow"', 't:6: rules.name: "x" is given twice, in line 3 and in line 6'],
  ['[[rules]]\nname = "own-address"\naction = "deny"', 't:3: rules.name: "own-address" is taken: log and metrics say it where no rule decides'],
  [`[[rules]]\nname = "x"\naction = "deny"\nusers = ["alcie"]\n[users]\nalice = "${HASH}"`, 't:5: rules.users: "alcie" is not in [users]; did you mean "alice"?'],
  ['[[rules]]\nname = "x"\naction = "deny"\nusers = ["bob"]', 't:5: rules.users: "bob" is not in [users]'],
  ['[[rules]]\nname = "x"\naction = "deny"\nports = [\n25,\n"x"]', `t:7: rules.ports: found "x"; allowed: ${PORT}`],
];

test("what is wrong is said with its line, its key, what was found and what is allowed", () => {
  for (const [text, ...expected] of BAD) assert.deepEqual(bad(`[incoming]\n${text}`), expected, text);
});

test("tables in the wrong form", () => {
  assert.deepEqual(bad("[incoming]\n[outgoing]\naddresses = 1\nport = 1"), [
    `t:3: outgoing.addresses: found 1; allowed: ${SOURCE}`,
    "t:4: outgoing.port: is not a setting; incoming.port exists; did you mean [incoming] port?",
  ]);
  assert.deepEqual(bad('users = "alice:S3cretPw"\nrules = "x"\n[incoming]'), [
    't:1: users: allowed: a table, [users], with NAME = "scrypt:..."',
    't:2: rules: found "x"; allowed: an array of tables, [[rules]]',
  ]);
  assert.deepEqual(bad("rules = [1]\n[incoming]"), ["t:1: rules: found 1 in the array; allowed: tables"]);
  assert.deepEqual(bad("rules.name = 1\n[incoming]"), ["t:1: rules: found a table; allowed: an array of tables, [[rules]]"]);
});

test("a file must ask for one of the two roles", () => {
  const both = 't: proxy_url: is missing; for example: proxy_url = "socks5://user:password@10.20.30.40:1080"; or, for a SOCKS server instead of a transparent proxy: [incoming]';
  assert.deepEqual(bad(""), [both]);
  assert.deepEqual(bad('[log]\nlevel = "info"'), [both]);
  assert.deepEqual(bad(`[users]\na = "${HASH}"`), ["t:1: users: [users] is about the egress, and there is none: neither [incoming] nor [outgoing]", both]);
  assert.deepEqual(bad(`${URL_LINE}[[rules]]\nname = "x"\naction = "deny"`), ["t:2: rules: [[rules]] is about the egress, and there is none: neither [incoming] nor [outgoing]"]);
  // What is wrong with the one role does not make the other missing.
  assert.deepEqual(bad("incoming = 1").length, 1);
  assert.deepEqual(bad("[incoming]\nhoge = 1").length, 1);
  assert.deepEqual(bad("[[incoming]]").length, 1);
});

test("listeners that cannot both be are found", () => {
  const text = (port: number, addresses: string, metrics = 0): string =>
    `listen = "127.0.0.1:1081"\n${URL_LINE}[incoming]\nport = ${port}\naddresses = ${addresses}\nmetrics_port = ${metrics}`;
  assert.deepEqual(bad(text(1081, "[]")), ["t:4: incoming.port: [::]:1081 cannot be listened on beside 127.0.0.1:1081 (listen); another port is needed"]);
  assert.deepEqual(bad(text(1080, "[]", 1081)), ["t:6: incoming.metrics_port: 127.0.0.1:1081 cannot be listened on beside 127.0.0.1:1081 (listen); another port is needed"]);
  assert.deepEqual(bad(text(1080, "[]", 1080)), ["t:6: incoming.metrics_port: 127.0.0.1:1080 cannot be listened on beside [::]:1080 (incoming.port); another port is needed"]);
  config(text(1081, '["10.0.0.1"]'));
  // Without a transparent proxy its default port is free.
  config('[incoming]\nport = 1081\naddresses = ["127.0.0.1"]\nmetrics_port = 0');
});

const CLOSED = '[incoming]\naddresses = ["127.0.0.1"]\nmetrics_port = 0\n';

test("an open egress is told what is open, and the lines that close it close it", () => {
  assert.deepEqual(warned(CLOSED), []);
  const open = 't: incoming.allow_from: this is an OPEN PROXY: whoever reaches [::]:1080 may use it, without a password; to close it, write under [incoming] allow_from = ["10.0.0.0/8", "192.168.0.0/16"] with your clients\' networks, or addresses = ["127.0.0.1"]; or write [users] and below it the line that "transplice passwd NAME" prints';
  const metrics = 't: incoming.metrics_port: the metrics are open to whoever reaches [::]:1081; to close them, write under [incoming] metrics_address = "127.0.0.1", or metrics_port = 0';
  assert.deepEqual(warned("[incoming]"), [open, metrics]);
  const rest = '\nmetrics_address = "127.0.0.1"';
  for (const line of [rest, "\nmetrics_port = 0", '\nmetrics_address = "0.0.0.0"']) assert.deepEqual(warned(`[incoming]${line}`), [open], line);
  for (const line of ['allow_from = ["10.0.0.0/8", "192.168.0.0/16"]', 'addresses = ["127.0.0.1"]', 'addresses = ["::1", "127.0.0.2"]', `[users]\nalice = "${HASH}"`]) {
    assert.deepEqual(warned(`[incoming]${rest}\n${line}`), [], line);
  }
  assert.equal(warned(`[incoming]${rest}\naddresses = ["127.0.0.1", "10.0.0.1"]`)[0]?.includes("reaches 10.0.0.1:1080 may"), true);
  const rule = (criteria: string): string => `[incoming]${rest}\n[[rules]]\nname = "x"\naction = "deny"\n${criteria}`;
  assert.deepEqual(warned(rule("")), []);
  assert.deepEqual(warned(rule("ports = [25]")), [open]);
});

test("other warnings", () => {
  assert.deepEqual(warned(`${CLOSED}[users]\nalice = "S3cretPw"`), [
    't:4: users: the password of "alice" stands here in clear text; "transplice passwd NAME" prints a line to put instead',
  ]);
  assert.deepEqual(warned(`${CLOSED}[users]\na = "1"\nb = ""\nc = "3"\nd = "4"\ne = "${HASH}"`), [
    't:4: users: the passwords of "a", "b", "c", 1 more stand here in clear text; "transplice passwd NAME" prints a line to put instead',
  ]);
  const both = `${CLOSED}[outgoing]\niface = "tun0"\naddresses = ["192.0.2.1"]\ndnsbl_domain = "zen.example"`;
  assert.deepEqual(warned(both), [
    "t:6: outgoing.addresses: is not used: connections leave by iface, and the kernel chooses the address",
    "t:7: outgoing.dnsbl_domain: has nothing to look up: connections leave by no addresses of [outgoing] addresses",
  ]);
  assert.deepEqual([egress(both).iface, egress(both).addresses], ["tun0", []]);
  const twice = `${CLOSED}[outgoing]\naddresses = ["192.0.2.1", "192.0.2.2", { address = "192.0.2.1", weight = 2 }]`;
  assert.deepEqual(warned(twice), [
    "t:5: outgoing.addresses: names an address more than once: it has the weights of all of them together",
  ]);
  assert.deepEqual(egress(twice).addresses.map(({ weight }) => weight), [3, 1]);
  assert.deepEqual(warned(`${CLOSED}[outgoing]\naddresses = ["192.0.2.1", "2001:db8::/64"]\ndnsbl_domain = "zen.example"`), [
    "t:6: outgoing.dnsbl_domain: single addresses are looked up, the IPv6 networks in addresses are not",
  ]);
  const sites = `${CLOSED}[outgoing]\ndeny_sites = ["10.0.0.1", "0x7f.1", "*.example.com", ".2001:db8::1"]\n[[rules]]\nname = "x"\naction = "deny"\nsites = ["[::1]", "ok.example", "a b"]`;
  assert.deepEqual(egress(sites).access.denySites.slice(0, 2), ["10.0.0.1", "127.0.0.1"]);
  assert.deepEqual(warned(sites).map((line) => line.replace(/(request: ).*/, "$1...")), [
    't:5: outgoing.deny_sites: "*.example.com" fits no request: ...', 't:5: outgoing.deny_sites: ".2001:db8::1" fits no request: ...',
    't:6: rules: "x": "a b" fits no request: ...',
  ]);
  assert.deepEqual(warned(`listen = ":1"\nmode = "tproxy"\n${CLOSED}`), [
    "t:1: listen: is not used: without proxy_url there is no transparent proxy",
    "t:2: mode: is not used: without proxy_url there is no transparent proxy",
  ]);
});

test("a password never stands in a message, wherever it was put", () => {
  const secret = "S3cretPw";
  const key = fc.constantFrom("users", "users.a", "Users.a.b", "[users]\na", "[users]\n\"b@c\"", "[users.x]\na", "[[users]]\na", "alice", "[incoming]\nalice");
  const value = fc.constantFrom(`"${secret}"`, `"scrypt:${secret}"`, `["${secret}"]`, `{ x = "${secret}" }`, `"scrypt:16384:8:1:${secret}:${secret}"`, `"${secret.repeat(40)}"`);
  fc.assert(
    fc.property(fc.array(fc.tuple(key, value), { minLength: 1, maxLength: 3 }), (pairs) => {
      const parsed = parseConfig(`${pairs.map(([k, v]) => `${k} = ${v}`).join("\n")}\n[incoming]`, "t");
      const said = ("problems" in parsed ? parsed.problems : parsed.warnings).map(problemText).join("\n");
      assert.ok(!said.includes(secret), said);
    }),
    { numRuns: 1000 },
  );
});

test("the egress is frozen to the bottom", () => {
  const walk = (value: unknown, at: string): void => {
    if (typeof value !== "object" || value === null || ArrayBuffer.isView(value)) return;
    assert.ok(Object.isFrozen(value), at);
    for (const [key, inner] of Object.entries(value)) walk(inner, `${at}.${key}`);
  };
  walk(egress(`${SAMPLE}[users]\na = "${HASH}"\n[[rules]]\nname = "x"\naction = "deny"\nports = [1]`), "egress");
});

test("each row of [[rules]] and [users] has a default or says what holds, and an example that it takes", () => {
  const rows: [string, Setting][] = Object.entries(RULE_SETTINGS);
  for (const [key, { example, description, ...setting }] of rows) {
    const rest = [["name", '"n"'], ["action", '"deny"']].filter(([other]) => other !== key).map((pair) => pair.join(" = "));
    config(`[incoming]\n[users]\nalice = "${HASH}"\n[[rules]]\n${key} = ${example}\n${rest.join("\n")}`);
    assert.match(description, /^[A-Z].*\.$/, key);
    assert.ok(setting.default !== null || setting.otherwise !== undefined, key);
  }
  assert.match(USER_SETTING.description, /^[A-Z].*\.$/);
  for (const text of ["| `outgoing.deny_sites`<br>`TRANSPLICE_OUTGOING_DENY_SITES` |", "| `users.NAME` |", "| `[[rules]] networks` |"]) assert.ok(settingsMarkdown().includes(text), text);
});

test("whatever stands in the tables, parseConfig answers", () => {
  const key = fc.constantFrom(
    "[incoming]", "[outgoing]", "[users]", "[[rules]]", "[rules]", "[[users]]", "[rules.a]", "[users.a]", "[users.a.b]", "[[incoming]]",
    "users", "rules", "users.a", "rules.a", "name", "action", "from", "sites", "ports", "users.a.b", "addresses", "allow_from", "iface",
    "incoming.addresses", "outgoing.addresses", "outgoing.deny_ports", "dnsbl_domain", "incoming", "outgoing", '"__proto__"', "constructor",
  );
  const value = fc.oneof(
    fc.constantFrom("1", "nan", "true", '""', "[]", "{}", "[{}]", "[[]]", '[""]', '["x"]', "[{ address = 1 }]", '[{ address = "::1", weight = 1e400 }]', '{ a = "x" }', "[{ name = 1 }]", '["::/1"]', "[25]", "1979-05-27"),
    fc.string({ maxLength: 20 }).map((text) => JSON.stringify(text)),
    fc.string({ unit: "binary", maxLength: 20 }).map((text) => JSON.stringify([text])),
  );
  const line = fc.tuple(key, value).map(([k, v]) => (k.startsWith("[") ? k : `${k} = ${v}`));
  fc.assert(
    fc.property(fc.array(line, { maxLength: 12 }), (lines) => {
      const parsed = parseConfig(lines.join("\n"), "t");
      if ("problems" in parsed) for (const said of parsed.problems.map(problemText)) assert.match(said, /^t(:\d+){0,2}: [^\n]+$/u);
      else for (const said of parsed.warnings.map(problemText)) assert.match(said, /^t(:\d+)?: [^\n]+$/u);
      assert.ok("config" in parsed || parsed.problems.length > 0);
    }),
    { numRuns: 5000 },
  );
});
