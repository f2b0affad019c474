/**
 * Who may go where: each hole of the predecessor by name, from the text of a configuration to the
 * verdict; and the order of the rules against a model that does it the long way.
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { domainToASCII } from "node:url";
import fc from "fast-check";
import { addressBytes } from "../../src/config/endpoint.ts";
import { parseConfig } from "../../src/config/parse.ts";
import {
  Access, type AccessSettings, type Asker, type PortRange, type Rule,
} from "../../src/policy/access.ts";
import { targetOf } from "../../src/policy/name.ts";
import { exactly, type Network } from "../../src/policy/network.ts";

type Length = 4 | 16;
/** This host's addresses. */
const OWN = ["192.0.2.1", "10.0.0.1", "2001:db8::1"];
const BYTES = new Map<string, Uint8Array>();
const bytesOf = (text: string): Uint8Array => {
  const bytes = BYTES.get(text) ?? addressBytes(text) ?? assert.fail(text);
  BYTES.set(text, bytes);
  return bytes;
};
const mapped = (bytes: Uint8Array) => Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, ...bytes);

/** `sent` as SOCKS sends a name; `address` as it sends an address. */
interface Request {
  readonly from?: string;
  readonly user?: string;
  readonly sent?: string;
  readonly address?: string;
  readonly port?: number;
  /** What the name resolves to. */
  readonly is?: string;
}

/** What decides on the request under this configuration, as the session asks. */
function decides(toml: string, request: Request): string {
  const { from = "10.9.9.9", user, sent, address, port = 443, is = "203.0.113.9" } = request;
  const parsed = parseConfig(toml, "t");
  assert.ok("config" in parsed, JSON.stringify(parsed));
  const access = new Access(parsed.config.egress!.access, OWN.map(bytesOf).map(exactly));
  const asker = askerOf(bytesOf(from), user ?? null);
  let name = "";
  let bytes = bytesOf(address ?? is);
  if (sent !== undefined) {
    const field = new TextEncoder().encode(sent);
    const target = targetOf(field, 0, field.length, domainToASCII);
    if (target.kind === "bad") return "bad";
    if (target.kind === "address") bytes = target.bytes;
    else name = target.name;
  }
  const early = name === "" ? null : access.judgeName(asker, name, port);
  const row = new Uint8Array(40);
  row.set(bytes, 21);
  const verdict = access.judge(asker, name, port, row, 21, bytes.length as Length);
  if (early !== null) assert.deepEqual([early.allowed, verdict.allowed], [false, false]);
  return (early ?? verdict).rule;
}

function askerOf(bytes: Uint8Array, user: string | null): Asker {
  const row = new Uint8Array(40).fill(0x5a);
  row.set(bytes, 13);
  return { bytes: row, at: 13, length: bytes.length as Length, user };
}

const outgoing = (text: string) => `[outgoing]\n${text}\n`;
const incoming = (text: string) => `[incoming]\n${text}\n`;

describe("what got past the predecessor", () => {
  const denied = outgoing(
    'deny_sites = ["bad.example.com", ".evil.example", "BÜCHER.example", "192.0.2.99"]',
  );

  it("a trailing dot", () => {
    for (const sent of ["bad.example.com", "bad.example.com.", "x.evil.example.", "bücher.example."]) {
      assert.equal(decides(denied, { sent }), "deny_sites", sent);
    }
    const dotted = outgoing('allow_sites = ["good.example."]\ndeny_sites = ["x.good.example."]');
    assert.equal(decides(dotted, { sent: "good.example" }), "default");
    assert.equal(decides(outgoing('deny_sites = ["x.example."]'), { sent: "x.example" }), "deny_sites");
    assert.equal(decides(denied, { sent: "bad.example.com.." }), "bad");
  });

  it("upper case", () => {
    for (const sent of ["BAD.example.com", "bad.EXAMPLE.com.", "X.Evil.Example"]) {
      assert.equal(decides(denied, { sent }), "deny_sites", sent);
    }
    assert.equal(decides(outgoing('allow_sites = ["Good.Example"]'), { sent: "gOOD.eXAMPLE" }), "default");
  });

  it("a name in other letters, or in the ASCII of them", () => {
    for (const sent of [
      "bücher.example", "Bücher.example", "xn--bcher-kva.example", "XN--BCHER-KVA.example",
      "ｂａｄ.example.com", "bad。example。com",
    ]) {
      assert.equal(decides(denied, { sent }), "deny_sites", sent);
    }
  });

  it("a NUL or a space behind the name", () => {
    for (const tail of ["\0", "\0.good.example", " ", "\n"]) {
      assert.equal(decides(denied, { sent: `bad.example.com${tail}` }), "bad", JSON.stringify(tail));
    }
  });

  it("a literal sent as a name, where literals are denied", () => {
    const noLiterals = outgoing('deny_sites = [""]\nallow_networks = ["127.0.0.0/8"]');
    const forms = [
      "127.0.0.1", "127.0.0.1.", "127.1", "2130706433", "0x7f000001", "0177.0.0.1",
      "::1", "[::1]", "::ffff:127.0.0.1", "203.0.113.9",
    ];
    for (const sent of forms) assert.equal(decides(noLiterals, { sent }), "deny_sites", sent);
    for (const address of ["127.0.0.1", "203.0.113.9", "2001:db8:9::9"]) {
      assert.equal(decides(noLiterals, { address }), "deny_sites", address);
    }
    assert.equal(decides(noLiterals, { sent: "example.com" }), "default");
    // And without the "", as literals are not among the sites that are allowed.
    const names = outgoing('allow_sites = [".example"]');
    for (const sent of forms) assert.equal(decides(names, { sent }), "allow_sites", sent);
    assert.equal(decides(outgoing('allow_sites = [""]'), { sent: "203.0.113.9" }), "default");
    assert.equal(decides(outgoing('allow_sites = [""]'), { sent: "example.com" }), "allow_sites");
  });

  it("a literal in another form than the site's", () => {
    for (const sent of ["192.0.2.99", "192.0.2.99.", "192.0.611", "0xc0000263", "::ffff:192.0.2.99"]) {
      assert.equal(decides(denied, { sent }), "deny_sites", sent);
    }
    assert.equal(decides(denied, { address: "192.0.2.99" }), "deny_sites");
    assert.equal(decides(denied, { sent: "192.0.2.98" }), "default");
    const allowed = outgoing('allow_sites = ["192.0.2.99", "2001:DB8:9:0::1"]');
    for (const [sent, rule] of [
      ["192.0.611", "default"], ["192.0.2.98", "allow_sites"], ["[2001:db8:9::1]", "default"],
      ["2001:db8:9::2", "allow_sites"], ["example.com", "allow_sites"],
    ] as const) {
      assert.equal(decides(allowed, { sent }), rule, sent);
    }
  });

  it("a bare IPv6 address was a /32", () => {
    const one = incoming('allow_from = ["2001:db8::20", "10.0.0.7"]');
    for (const [from, rule] of [
      ["2001:db8::20", "default"], ["2001:db8::21", "allow_from"], ["2001:db8:ffff::99", "allow_from"],
      ["10.0.0.7", "default"], ["10.0.0.8", "allow_from"],
    ] as const) {
      assert.equal(decides(one, { from, sent: "example.com" }), rule, from);
    }
  });

  it("a client in IPv6 clothes is the IPv4 client, on a socket of both families", () => {
    const parsed = parseConfig(incoming('allow_from = ["10.0.0.7"]'), "t");
    assert.ok("config" in parsed);
    const access = new Access(parsed.config.egress!.access, []);
    for (const [text, admitted] of [["10.0.0.7", true], ["10.0.0.8", false]] as const) {
      for (const bytes of [bytesOf(text), mapped(bytesOf(text))]) {
        assert.equal(access.admits(askerOf(bytes, null)), admitted);
      }
    }
  });

  it("loopback, private and link-local networks, this host: by literal, and by a name of them", () => {
    for (const [address, rule] of [
      ["127.0.0.1", "loopback"], ["127.255.255.254", "loopback"], ["::1", "loopback"],
      ["169.254.169.254", "link-local"], ["fe80::1", "link-local"], ["febf::1", "link-local"],
      ["10.1.2.3", "private"], ["172.16.0.1", "private"], ["172.31.255.255", "private"],
      ["192.168.1.1", "private"], ["100.64.0.1", "private"], ["100.127.255.255", "private"],
      ["fc00::1", "private"], ["fdff::1", "private"], ["fec0::1", "private"],
      ["192.0.2.1", "own-address"], ["2001:db8::1", "own-address"], ["10.0.0.1", "own-address"],
      ["0.0.0.0", "special"], ["0.1.2.3", "special"], ["::", "special"], ["::7f00:1", "special"],
      ["224.0.0.1", "special"], ["240.0.0.1", "special"], ["255.255.255.255", "special"],
      ["ff02::1", "special"],
      // IPv4 behind a gateway that makes it IPv4 again.
      ["64:ff9b::7f00:1", "loopback"], ["64:ff9b::a9fe:a9fe", "link-local"],
      ["64:ff9b::a01:203", "private"], ["2002:a9fe:a9fe::1", "link-local"],
      ["2002:c000:201::1", "own-address"], ["2002:a01:203::", "private"],
      // Their neighbours are out in the world.
      ["126.255.255.255", "default"], ["128.0.0.1", "default"], ["169.253.255.255", "default"],
      ["169.255.0.1", "default"], ["172.15.255.255", "default"], ["172.32.0.1", "default"],
      ["192.167.255.255", "default"], ["192.169.0.1", "default"], ["100.63.255.255", "default"],
      ["100.128.0.1", "default"], ["9.255.255.255", "default"], ["11.0.0.1", "default"],
      ["223.255.255.255", "default"], ["1.0.0.1", "default"], ["192.0.2.2", "default"],
      ["2001:db8::2", "default"], ["64:ff9b::cb00:7109", "default"],
      ["2002:cb00:7109::1", "default"], ["2003::7f00:1", "default"],
      ["fbff::1", "default"], ["fe00::1", "default"],
    ] as const) {
      for (const request of [{ address }, { sent: "x.example", is: address }]) {
        assert.equal(decides(incoming(""), request), rule, address);
        // Nothing but allow_networks lifts it; and that, for each.
        const bits = address.includes(":") ? 128 : 32;
        const lifted = outgoing(`allow_networks = ["${address}/${bits}"]`);
        assert.equal(decides(lifted, request), "default", address);
        const open = outgoing("allow_private = true");
        assert.equal(decides(open, request), rule === "private" ? "default" : rule, address);
      }
    }
  });

  it("a destination in IPv6 clothes is the IPv4 destination", () => {
    const denyNetworks = [network("203.0.113.0/24")];
    const access = new Access({ ...NOTHING, denyNetworks }, OWN.map(bytesOf).map(exactly));
    const asker = askerOf(bytesOf("10.0.0.7"), null);
    for (const [text, rule] of [
      ["127.0.0.1", "loopback"], ["192.0.2.1", "own-address"], ["203.0.113.9", "deny_networks"],
      ["192.0.2.2", "default"],
    ] as const) {
      assert.equal(access.judge(asker, "", 80, mapped(bytesOf(text)), 0, 16).rule, rule);
    }
  });

  it("a name that leads to a denied network", () => {
    const toml = outgoing('deny_networks = ["203.0.113.0/24", "2001:db8:bad::/48"]');
    for (const [is, rule] of [
      ["203.0.113.9", "deny_networks"], ["203.0.114.9", "default"], ["2001:db8:bad::1", "deny_networks"],
    ] as const) {
      assert.equal(decides(toml, { sent: "harmless.example", is }), rule);
    }
  });
});

describe("what stays as it was", () => {
  it("a site with a leading dot is what is below, and not itself", () => {
    const toml = outgoing('deny_sites = [".example.com"]');
    for (const [sent, rule] of [
      ["example.com", "default"], ["a.example.com", "deny_sites"], ["a.b.example.com", "deny_sites"],
      ["aexample.com", "default"], ["example.com.org", "default"],
    ] as const) {
      assert.equal(decides(toml, { sent }), rule, sent);
    }
  });

  it("sites before clients before ports", () => {
    const toml = incoming('allow_from = ["10.0.0.0/8"]') + outgoing(`
      allow_sites = [".example"]
      deny_sites = ["bad.example"]
      deny_ports = [25]
      allow_ports = [25, "80-443"]
    `);
    for (const [sent, from, port, rule] of [
      ["a.test", "9.9.9.9", 25, "allow_sites"], ["bad.example", "9.9.9.9", 25, "deny_sites"],
      ["a.example", "9.9.9.9", 25, "allow_from"], ["a.example", "10.9.9.9", 25, "deny_ports"],
      ["a.example", "10.9.9.9", 22, "allow_ports"], ["a.example", "10.9.9.9", 444, "allow_ports"],
      ["a.example", "10.9.9.9", 80, "default"], ["a.example", "10.9.9.9", 443, "default"],
    ] as const) {
      assert.equal(decides(toml, { sent, from, port }), rule);
    }
  });
});

describe("[[rules]]", () => {
  const toml = `${incoming('allow_from = ["10.0.0.0/8", "2001:db8::/32"]')}${outgoing("deny_ports = [25]")}
[users]
alice = "a"
mail = "m"
[[rules]]
name = "metadata"
action = "deny"
networks = ["169.254.0.0/16"]
[[rules]]
name = "mail-only"
action = "allow"
users = ["mail"]
ports = [25, 587]
[[rules]]
name = "mail-nothing-else"
action = "deny"
users = ["mail"]
[[rules]]
name = "lab"
action = "allow"
from = ["10.1.0.0/16"]
networks = ["192.168.7.0/24", "127.0.0.1"]
[[rules]]
name = "no-videos"
action = "deny"
sites = [".video.example", ""]
from = ["10.2.0.0/16"]
`;
  const mail = { user: "mail", sent: "mx.example" };
  const lab = { from: "10.1.2.3" };
  const video = { from: "10.2.0.1" };
  for (const [what, request, rule] of [
    ["the first that matches decides, before the plain keys", { ...mail, port: 25 }, "mail-only"],
    ["the next one does where it does not", { ...mail, port: 80 }, "mail-nothing-else"],
    ["another user", { ...mail, user: "alice", port: 25 }, "deny_ports"],
    ["no user", { sent: "mx.example", port: 25 }, "deny_ports"],
    ["allow_from counts before an allow", { ...mail, from: "9.9.9.9", port: 25 }, "allow_from"],
    ["a deny says its name to all", { ...mail, from: "9.9.9.9" }, "mail-nothing-else"],
    ["an allow lifts what its own networks name", { ...lab, address: "192.168.7.9" }, "lab"],
    ["also for a name that leads there", { ...lab, sent: "x.example", is: "127.0.0.1" }, "lab"],
    ["and nothing beside", { ...lab, address: "192.168.8.9" }, "private"],
    ["and not for others", { from: "10.3.2.3", address: "192.168.7.9" }, "private"],
    ["an allow of no network lifts nothing", { ...mail, is: "127.0.0.1", port: 25 }, "loopback"],
    ["a deny by network, of a name", { ...mail, port: 25, is: "169.254.169.254" }, "metadata"],
    ["by site", { ...video, sent: "A.Video.Example." }, "no-videos"],
    ["by literal", { ...video, sent: "203.0.113.9" }, "no-videos"],
    ["by neither", { ...video, sent: "video.example" }, "default"],
  ] as [string, Request, string][]) {
    it(what, () => assert.equal(decides(toml, request), rule));
  }
});

describe("a name before it is resolved", () => {
  const of = (settings: Partial<AccessSettings>, from = "10.0.0.7", port = 80) =>
    new Access({ ...NOTHING, ...settings }, [])
      .judgeName(askerOf(bytesOf(from), null), "a.example", port)?.rule;
  const rule = (part: Partial<Rule>): Rule => {
    return { name: "r", action: "deny", from: [], users: [], sites: [], networks: [], ports: [], ...part };
  };
  const everywhere = ["0.0.0.0/0", "::/0"].map((text) => network(text));

  it("is refused if every address would be", () => {
    assert.equal(of({ denySites: [".example"] }), "deny_sites");
    assert.equal(of({ denyPorts: [{ first: 80, last: 80 }] }), "deny_ports");
    assert.equal(of({ denyNetworks: everywhere }), "deny_networks");
    assert.equal(of({ rules: [rule({})] }), "r");
    assert.equal(of({ rules: [rule({ networks: everywhere })] }), "r");
    assert.equal(of({ allowFrom: [network("9.0.0.0/8")], rules: [rule({ action: "allow" })] }), "allow_from");
    assert.equal(of({ allowFrom: [network("9.0.0.0/8")] }), "allow_from");
    // A rule by network cannot save it from the denial behind, nor from allow_from.
    const denySites = [".example"];
    const nine = [network("9.0.0.0/8")];
    assert.equal(of({ denySites, rules: [rule({ networks: nine })] }), "deny_sites");
    const saving = rule({ action: "allow", networks: nine });
    assert.equal(of({ allowFrom: nine, denySites, rules: [saving] }), "deny_sites");
  });

  it("is resolved if an address may be allowed", () => {
    assert.equal(of({}), undefined);
    assert.equal(of({ rules: [rule({ action: "allow" })], denySites: [".example"] }), undefined);
    const saving = rule({ action: "allow", networks: [network("9.0.0.0/8")] });
    assert.equal(of({ rules: [saving], denySites: [".example"] }), undefined);
    assert.equal(of({ rules: [saving, rule({ name: "all" })] }), undefined);
    assert.equal(of({ rules: [rule({ networks: [network("9.0.0.0/8")] })] }), undefined);
    assert.equal(of({ rules: [rule({ networks: [network("0.0.0.0/0")] })] }), undefined);
  });
});

const NOTHING: AccessSettings = {
  allowFrom: [], allowSites: [], denySites: [], allowPorts: [], denyPorts: [],
  allowNetworks: [], denyNetworks: [], allowPrivate: false, rules: [],
};

function network(text: string): Network {
  const [address, prefix] = text.split("/");
  const bytes = bytesOf(address!);
  return { bytes, prefix: prefix === undefined ? 8 * bytes.length : Number(prefix) };
}

/* The model: networks are texts, addresses are rows of bits, and every step is written out. */

const CLIENTS = ["10.0.0.7", "10.1.0.7", "2001:db8:1::7"];
const ADDRESSES = [
  "127.0.0.1", "169.254.169.254", "0.0.0.0", "240.0.0.1", "10.1.2.3", "100.64.0.1", "192.0.2.1",
  "203.0.113.9", "198.51.100.1", "::1", "::", "fe80::1", "ff02::1", "fd00::1", "2001:db8::1",
  "2001:db8:9::9", "64:ff9b::a01:203",
];
const NETWORKS = [
  "10.0.0.0/8", "10.0.0.7/32", "127.0.0.0/8", "169.254.0.0/16", "203.0.113.0/24", "192.0.2.1/32",
  "0.0.0.0/0", "::/0", "2001:db8::/32", "2001:db8:9::/48", "fd00::/8", "::1/128", "64:ff9b::/96",
];
const NAMES = ["a.example", "b.a.example", "example", "c.test"];
const SITES = ["", ".example", "a.example", ".a.example", "c.test", "203.0.113.9", "0:0:0:0:0:0:0:1"];
const PORTS = [[25, 25], [80, 443], [1, 1023], [443, 9000]]
  .map(([first, last]): PortRange => ({ first: first!, last: last! }));
const USERS = ["alice", "bob"];

const KINDS: [string, string][] = [
  ["127.0.0.0/8", "loopback"], ["::1/128", "loopback"],
  ["169.254.0.0/16", "link-local"], ["fe80::/10", "link-local"],
  ["0.0.0.0/8", "special"], ["224.0.0.0/3", "special"], ["::/96", "special"], ["ff00::/8", "special"],
  ...OWN.map((text): [string, string] => [text.includes(":") ? `${text}/128` : `${text}/32`, "own-address"]),
  ["10.0.0.0/8", "private"], ["172.16.0.0/12", "private"], ["192.168.0.0/16", "private"],
  ["100.64.0.0/10", "private"],
  ["fc00::/7", "private"], ["fec0::/10", "private"], ["64:ff9b::a00:0/104", "private"],
];

type TextRule = Omit<Rule, "from" | "networks"> & { from: string[]; networks: string[] };
type TextSettings = Omit<AccessSettings, "allowFrom" | "allowNetworks" | "denyNetworks" | "rules"> & {
  allowFrom: string[]; allowNetworks: string[]; denyNetworks: string[]; rules: TextRule[];
};

const someOf = <T>(all: readonly T[], most = 2) =>
  fc.oneof({ weight: 3, arbitrary: fc.constant<T[]>([]) }, fc.subarray([...all], { maxLength: most }));
const anyRule = fc.record({
  name: fc.constantFrom("r1", "r2", "r3", "r4"), action: fc.constantFrom("allow" as const, "deny" as const),
  from: someOf(NETWORKS), users: someOf(USERS, 1), sites: someOf(SITES), networks: someOf(NETWORKS),
  ports: someOf(PORTS, 1),
});
const anySettings: fc.Arbitrary<TextSettings> = fc.record({
  allowFrom: someOf(NETWORKS, 3), allowSites: someOf(SITES, 3), denySites: someOf(SITES),
  allowPorts: someOf(PORTS), denyPorts: someOf(PORTS, 1),
  allowNetworks: someOf(NETWORKS), denyNetworks: someOf(NETWORKS, 1),
  allowPrivate: fc.boolean(), rules: fc.array(anyRule, { maxLength: 4 }),
});
const anyRequest = fc.record({
  client: fc.constantFrom(...CLIENTS), user: fc.constantFrom(null, ...USERS),
  name: fc.constantFrom("", "", ...NAMES), port: fc.constantFrom(22, 25, 80, 443, 8080, 65535),
  address: fc.constantFrom(...ADDRESSES), disguised: fc.boolean(),
});
type ModelRequest = Omit<typeof anyRequest extends fc.Arbitrary<infer T> ? T : never, "disguised">;

describe("every verdict", () => {
  it("is that of the model", () => {
    fc.assert(
      fc.property(anySettings, anyRequest, (settings, request) => {
        const access = new Access(compiled(settings), OWN.map(bytesOf).map(exactly));
        const dress = (text: string) =>
          request.disguised && !text.includes(":") ? mapped(bytesOf(text)) : bytesOf(text);
        const [asker, to] = [askerOf(dress(request.client), request.user), dress(request.address)];
        const verdict = access.judge(asker, request.name, request.port, to, 0, to.length as Length);
        assert.deepEqual(verdict, model(settings, request));
        assert.equal(access.admits(asker), admitted(settings, request.client));
      }),
      { numRuns: 30_000 },
    );
  });

  it("on a name alone is a refusal that holds for all addresses; and when all are refused, it is one", () => {
    fc.assert(
      fc.property(anySettings, anyRequest, (settings, request) => {
        const name = request.name || "a.example";
        const access = new Access(compiled(settings), OWN.map(bytesOf).map(exactly));
        const verdict = access.judgeName(askerOf(bytesOf(request.client), request.user), name, request.port);
        const addresses = [...ADDRESSES, "9.9.9.9", "2a00::9"];
        const refused = addresses.every((address) => !model(settings, { ...request, name, address }).allowed);
        // One network may stand in the shadow of another, which is not looked into.
        const shadows = [settings.denyNetworks, ...settings.rules.map(({ networks }) => networks)];
        if (verdict !== null) assert.deepEqual([verdict.allowed, refused], [false, true]);
        else if (shadows.flat().length === 0) assert.equal(refused, false);
      }),
      { numRuns: 5000 },
    );
  });
});

function model(settings: TextSettings, request: ModelRequest): { allowed: boolean; rule: string } {
  const { client, user, name, port, address } = request;
  const no = (rule: string) => ({ allowed: false, rule });
  const special = within(settings.allowNetworks, address) ? undefined
    : KINDS.find(([text, kind]) => within([text], address) && !(kind === "private" && settings.allowPrivate));
  const rule = settings.rules.find(({ from, users, sites, networks, ports }) =>
    (from.length === 0 || within(from, client)) &&
    (users.length === 0 || (user !== null && users.includes(user))) &&
    (sites.length === 0 || at(sites, name, address)) &&
    (networks.length === 0 || within(networks, address)) &&
    (ports.length === 0 || open(ports, port)));
  if (rule?.action === "deny") return no(rule.name);
  if (rule?.action === "allow") {
    if (!admitted(settings, client)) return no("allow_from");
    if (special !== undefined && !within(rule.networks, address)) return no(special[1]);
    return { allowed: true, rule: rule.name };
  }
  if (settings.allowSites.length > 0 && !at(settings.allowSites, name, address)) return no("allow_sites");
  if (at(settings.denySites, name, address)) return no("deny_sites");
  if (!admitted(settings, client)) return no("allow_from");
  if (open(settings.denyPorts, port)) return no("deny_ports");
  if (settings.allowPorts.length > 0 && !open(settings.allowPorts, port)) return no("allow_ports");
  if (within(settings.denyNetworks, address)) return no("deny_networks");
  return special === undefined ? { allowed: true, rule: "default" } : no(special[1]);
}

function admitted(settings: TextSettings, client: string): boolean {
  return settings.allowFrom.length === 0 || within(settings.allowFrom, client);
}

function at(sites: readonly string[], name: string, address: string): boolean {
  return sites.some((site) => {
    if (name === "") return site === "" || (isLiteral(site) && bits(site) === bits(address));
    return site.startsWith(".") ? name.endsWith(site) : site === name;
  });
}

const isLiteral = (site: string): boolean => addressBytes(site) !== null;
const open = (ranges: readonly PortRange[], port: number): boolean =>
  ranges.some(({ first, last }) => first <= port && port <= last);
const BITS = new Map<string, string>();

function bits(text: string): string {
  const known = BITS.get(text);
  if (known !== undefined) return known;
  const found = Array.from(bytesOf(text), (byte) => byte.toString(2).padStart(8, "0")).join("");
  BITS.set(text, found);
  return found;
}

function within(networks: readonly string[], address: string): boolean {
  return networks.some((text) => {
    const [base, prefix] = text.split("/");
    const [one, other] = [bits(base!), bits(address)];
    return one.length === other.length && one.slice(0, Number(prefix)) === other.slice(0, Number(prefix));
  });
}

function compiled(settings: TextSettings): AccessSettings {
  const networks = (texts: readonly string[]) => texts.map(network);
  return {
    ...settings, allowFrom: networks(settings.allowFrom), allowNetworks: networks(settings.allowNetworks),
    denyNetworks: networks(settings.denyNetworks),
    rules: settings.rules.map((rule) => {
      return { ...rule, from: networks(rule.from), networks: networks(rule.networks) };
    }),
  };
}
