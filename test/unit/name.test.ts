/** What clients send as a name, in one form: against the URL standard, which knows every trick. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { domainToASCII } from "node:url";
import fc from "fast-check";
import ipaddr from "ipaddr.js";
import { literalOf, normalisedSite, siteOf, type Target, targetOf } from "../../src/policy/name.ts";

const never = () => assert.fail("ASCII needs no IDNA");
const utf8 = (text: string) => new TextEncoder().encode(text);

function parse(bytes: Uint8Array, toAscii: (unicode: string) => string): Target {
  const row = new Uint8Array(bytes.length + 20).fill(0x2e);
  row.set(bytes, 11);
  return targetOf(row, 11, 11 + bytes.length, toAscii);
}

/** "name", "[address]" (IPv4 dotted, IPv6 in full) or "bad". */
function said(text: string, toAscii: (unicode: string) => string = never): string {
  const target = parse(utf8(text), toAscii);
  if (target.kind === "name") return target.name;
  return target.kind === "bad" ? "bad" : `[${ipaddr.fromByteArray([...target.bytes])}]`;
}

/** What is sent, what it is. */
const TABLE: [string, string][] = [
  ["example.com", "example.com"],
  ["EXAMPLE.Com", "example.com"],
  ["example.com.", "example.com"],
  ["localhost", "localhost"],
  ["_dmarc.a-b.example", "_dmarc.a-b.example"],
  ["xn--bcher-kva.example", "xn--bcher-kva.example"],
  ["1.example", "1.example"],
  ["1e3.example.1e3", "1e3.example.1e3"],
  ["0xg", "0xg"],
  ["127.0.0.1.example", "127.0.0.1.example"],
  ["", "bad"],
  [".", "bad"],
  ["..", "bad"],
  ["example..com", "bad"],
  [".example.com", "bad"],
  ["example.com..", "bad"],
  ["a b.example", "bad"],
  ["example.com\0", "bad"],
  ["example.com\0.evil.example", "bad"],
  ["example.com\n", "bad"],
  [" example.com", "bad"],
  ["127.0.0.1 ", "bad"],
  ["127.0.0.1\0", "bad"],
  ["user@example.com", "bad"],
  ["example.com/path", "bad"],
  ["example.com?", "bad"],
  ["example.com#", "bad"],
  ["%65xample.com", "bad"],
  ["*.example.com", "bad"],
  ["example.com:80", "bad"],
  ["\x7f", "bad"],
  // Literals, as every inet_aton takes them.
  ["127.0.0.1", "[127.0.0.1]"],
  ["127.0.0.1.", "[127.0.0.1]"],
  ["127.1", "[127.0.0.1]"],
  ["127.0.1", "[127.0.0.1]"],
  ["2130706433", "[127.0.0.1]"],
  ["0x7f000001", "[127.0.0.1]"],
  ["0X7F.1", "[127.0.0.1]"],
  ["0x7f.0x0.0x0.0x1", "[127.0.0.1]"],
  ["017700000001", "[127.0.0.1]"],
  ["0177.0.0.01", "[127.0.0.1]"],
  ["017.0.0.1", "[15.0.0.1]"],
  ["0", "[0.0.0.0]"],
  ["0x", "[0.0.0.0]"],
  ["1.2.65535", "[1.2.255.255]"],
  ["1.16777215", "[1.255.255.255]"],
  ["4294967295", "[255.255.255.255]"],
  // What ends in a number is nothing else.
  ["4294967296", "bad"],
  ["1.16777216", "bad"],
  ["256.0.0.1", "bad"],
  ["1.2.3.256", "bad"],
  ["1.2.3.4.5", "bad"],
  ["1.2.3.4.0", "bad"],
  ["1..4", "bad"],
  ["08.0.0.1", "bad"],
  ["example.1", "bad"],
  ["example.0x1f", "bad"],
  ["example.0x", "bad"],
  ["-1", "-1"],
  // IPv6, with brackets and without.
  ["::1", "[::1]"],
  ["[::1]", "[::1]"],
  ["[::1].", "[::1]"],
  ["::", "[::]"],
  ["2001:DB8::10", "[2001:db8::10]"],
  ["2001:db8:0:0:0:0:0:10", "[2001:db8::10]"],
  ["1:2:3:4:5:6:7::", "[1:2:3:4:5:6:7:0]"],
  ["::ffff:127.0.0.1", "[127.0.0.1]"],
  ["[::ffff:7f00:1]", "[127.0.0.1]"],
  ["0:0:0:0:0:ffff:127.0.0.1", "[127.0.0.1]"],
  ["64:ff9b::127.0.0.1", "[64:ff9b::7f00:1]"],
  ["[::1", "bad"],
  ["::1]", "bad"],
  ["[[::1]]", "bad"],
  ["[]", "bad"],
  ["[127.0.0.1]", "bad"],
  ["[example.com]", "bad"],
  [":", "bad"],
  [":::", "bad"],
  ["1::2::3", "bad"],
  ["1:2:3:4:5:6:7", "bad"],
  ["1:2:3:4:5:6:7:8:9", "bad"],
  ["1:2:3:4::5:6:7:8", "bad"],
  [":1:2:3:4:5:6:7", "bad"],
  ["1:2:3:4:5:6:7:", "bad"],
  ["12345::", "bad"],
  ["::g", "bad"],
  ["::ffff:127.1", "bad"],
  ["::ffff:127.0.0.01", "bad"],
  ["::ffff:127.0.0.256", "bad"],
  ["127.0.0.1::", "bad"],
  ["1:127.0.0.1::", "bad"],
  ["::127.0.0.1:1", "bad"],
  ["fe80::1%1", "bad"],
  ["fe80::1%eth0", "bad"],
];

/** What is sent, what it is: with IDNA. */
const UNICODE: [string, string][] = [
  ["bücher.example", "xn--bcher-kva.example"],
  ["BÜCHER.Example.", "xn--bcher-kva.example"],
  ["bu\u0308cher.example", "xn--bcher-kva.example"],
  ["exam\u00adple.com", "example.com"],
  ["ｅｘａｍｐｌｅ.com", "example.com"],
  ["example。com。", "example.com"],
  ["１２７.0.0.1", "[127.0.0.1]"],
  ["127。0。0。1", "[127.0.0.1]"],
  ["①②⑦.1", "[127.0.0.1]"],
  ["\u212a.example", "k.example"],
  ["\ufeffexample.com", "example.com"],
  ["bücher..example", "bad"],
  ["bücher example", "bad"],
  ["bücher/example", "bad"],
  ["bücher:80", "bad"],
  ["bücher%2eexample", "bad"],
  ["bücher@example", "bad"],
  ["bücher?.example", "bad"],
  ["bücher\0.example", "bad"],
  ["example.com／x", "bad"],
  ["[：：1]", "bad"],
  ["：：1", "bad"],
  ["\u00ad", "bad"],
  ["xn--a.ü", "bad"],
];

describe("a name that is sent", () => {
  for (const [text, expected] of TABLE) {
    it(`${JSON.stringify(text)} is ${expected}`, () => assert.equal(said(text), expected));
  }
  for (const [text, expected] of UNICODE) {
    it(`${JSON.stringify(text)} is ${expected}, by IDNA`, () => {
      assert.equal(said(text, domainToASCII), expected);
    });
  }

  it("is as long as a name may be, and its parts", () => {
    const part = "a".repeat(63);
    assert.equal(said(`${part}.example`), `${part}.example`);
    assert.equal(said(`${part}a.example`), "bad");
    const longest = [part, part, part, "a".repeat(61)].join(".");
    assert.equal(longest.length, 253);
    for (const text of [longest, `${longest}.`]) assert.equal(said(text), longest);
    assert.equal(said(`${longest}a`), "bad");
    assert.equal(said("1".repeat(2000)), "bad");
    assert.equal(said("ü".repeat(2000)), "bad");
    assert.equal(said("ü".repeat(120), domainToASCII), "bad");
  });

  it("is UTF-8", () => {
    for (const bytes of [[0xff], [0x61, 0xc3], [0xc0, 0xae], [0xed, 0xa0, 0x80]]) {
      assert.equal(parse(Uint8Array.from(bytes), never).kind, "bad");
    }
  });

  it("is judged again when IDNA has made it", () => {
    for (const [made, expected] of [
      ["", "bad"], ["a b", "bad"], ["A.Example.", "a.example"], ["127.1", "[127.0.0.1]"], ["::1", "[::1]"],
      ["ü", "bad"], ["x.1", "bad"],
    ] as const) {
      assert.equal(said("ü", () => made), expected);
    }
  });

  it("may stand in memory that threads share", () => {
    const shared = new Uint8Array(new SharedArrayBuffer(64));
    shared.set(utf8("bücher.example"), 3);
    const end = 3 + utf8("bücher.example").length;
    const expected = { kind: "name", name: "xn--bcher-kva.example" };
    assert.deepEqual(targetOf(shared, 3, end, domainToASCII), expected);
  });
});

const label = fc.oneof(
  { weight: 3, arbitrary: fc.stringMatching(/^[a-zA-Z0-9_-]{1,6}$/) },
  { weight: 3, arbitrary: fc.nat(300).map(String) },
  fc.nat(2 ** 32 + 10).map(String),
  fc.nat(2 ** 25).map((value) => `0x${value.toString(16)}`),
  fc.nat(300).map((value) => `0${value.toString(8)}`),
  fc.constantFrom("", "0", "00", "0x", "0X7f", "08", "localhost"),
);
const anyName = fc.tuple(fc.array(label, { minLength: 1, maxLength: 5 }), fc.constantFrom("", "", "."))
  .map(([labels, dot]) => labels.join(".") + dot)
  // The URL standard looks into such labels, DNS does not.
  .filter((text) => !/(^|\.)xn--/i.test(text));
const hex = fc.nat(0xffff).map((value) => value.toString(16));
const group = fc.oneof(hex, hex, fc.constantFrom("0", "", "ffff", "00001", "G", "7F"));
const groups = fc.array(group, { minLength: 1, maxLength: 10 });
const anyIpv6 = fc.tuple(groups, fc.constantFrom("", "", ":1.2.3.4", ":1.2.3", ":1.2.3.04"))
  .map(([each, end]) => each.join(":") + end).filter((text) => text.includes(":"));

/** Does not end in a number. */
const ASKED = /^(?!.*(^|\.)(\d+|0x[0-9a-f]*)$)[a-z0-9_.-]{1,253}$/;

describe("every name", () => {
  it("is what the URL standard says of it", () => {
    fc.assert(
      fc.property(anyName, (text) => assert.equal(said(text), reference(text))),
      { numRuns: 5000 },
    );
  });

  it("is the IPv6 address that the URL standard says, with brackets and without", () => {
    fc.assert(
      fc.property(anyIpv6, (text) => {
        assert.equal(said(text), referenceIpv6(text));
        assert.equal(said(`[${text}]`), referenceIpv6(text));
      }),
      { numRuns: 5000 },
    );
  });

  it("stays itself when it is sent again, in capitals, with a dot", () => {
    fc.assert(
      fc.property(fc.oneof(anyName, fc.string({ unit: "grapheme" }), fc.domain()), (text) => {
        const target = parse(utf8(text), domainToASCII);
        fc.pre(target.kind === "name");
        const { name } = target as { name: string };
        for (const again of [name, `${name}.`, name.toUpperCase()]) assert.equal(said(again), name);
      }),
    );
  });

  it("of any bytes is a name that may be asked of DNS, an address, or bad", () => {
    const bytes = fc.oneof(fc.uint8Array({ maxLength: 300 }), fc.string({ unit: "binary" }).map(utf8));
    fc.assert(
      fc.property(bytes, (sent) => {
        const target = parse(sent, domainToASCII);
        if (target.kind === "name") assert.match(target.name, ASKED);
        if (target.kind === "address") assert.ok([4, 16].includes(target.bytes.length));
      }),
      { numRuns: 3000 },
    );
  });
});

describe("a site of the configuration", () => {
  for (const [site, expected] of [
    ["", ""],
    ["Example.COM", "example.com"],
    ["example.com.", "example.com"],
    [".Example.COM.", ".example.com"],
    [".com", ".com"],
    ["Bücher.example", "xn--bcher-kva.example"],
    [".Bücher.example", ".xn--bcher-kva.example"],
    ["127.1", "127.0.0.1"],
    ["[::1]", "0:0:0:0:0:0:0:1"],
    ["::ffff:192.0.2.1", "192.0.2.1"],
    // None of these can be like any name.
    [".", "."],
    ["..", ".."],
    ["*.example.com", "*.example.com"],
    [".127.0.0.1", ".127.0.0.1"],
    ["a b", "a b"],
    ["..com", "..com"],
  ] as const) {
    it(`${JSON.stringify(site)} is ${JSON.stringify(expected)}`, () => {
      assert.equal(normalisedSite(site, domainToASCII), expected);
      assert.equal(normalisedSite(expected, domainToASCII), expected);
    });
  }

  it("that is none says why", () => {
    for (const site of [".", "..", "*.example.com", ".127.0.0.1", "a b", "::1::", "x.1", "a..b"]) {
      const parsed = siteOf(site, domainToASCII);
      assert.equal(parsed.kind, "bad", site);
    }
    assert.deepEqual(siteOf(".a.example", never), { kind: "site", site: ".a.example" });
  });

  it("is compared in the form in which names are", () => {
    fc.assert(
      fc.property(fc.oneof(anyName, anyIpv6, fc.domain(), fc.string({ unit: "grapheme" })), (text) => {
        const site = normalisedSite(text, domainToASCII);
        assert.equal(normalisedSite(site, domainToASCII), site);
        fc.pre(!text.startsWith("."));
        const target = parse(utf8(text), domainToASCII);
        if (target.kind === "name") assert.equal(site, target.name);
        else if (target.kind === "address") assert.deepEqual(literalOf(site), target.bytes);
        else assert.equal(site, text);
      }),
      { numRuns: 2000 },
    );
  });
});

function reference(text: string): string {
  const rooted = text.endsWith(".") ? text.slice(0, -1) : text;
  const host = urlHost(rooted);
  // The URL standard drops a dot itself, so two.
  if (host === null || rooted === "" || rooted.endsWith(".")) return "bad";
  if (/^\d+\.\d+\.\d+\.\d+$/.test(host)) return `[${host}]`;
  return host.split(".").every((part) => part.length >= 1 && part.length <= 63) ? host : "bad";
}

function referenceIpv6(text: string): string {
  const host = urlHost(`[${text}]`);
  if (host === null) return "bad";
  const address = ipaddr.parse(host.slice(1, -1)) as ipaddr.IPv6;
  return `[${address.isIPv4MappedAddress() ? address.toIPv4Address() : address}]`;
}

function urlHost(text: string): string | null {
  try {
    return new URL(`http://${text}/`).hostname;
  } catch {
    return null;
  }
}
