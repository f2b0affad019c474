/** The firewall's plan and its renderers: what is let through, what is handed over, and in what order. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { socketAddress } from "../../src/config/endpoint.ts";
import { parseConfig } from "../../src/config/parse.ts";
import { differences } from "../../src/control/firewall/kernel.ts";
import { iptablesRules, ownTables, transition } from "../../src/control/firewall/iptables.ts";
import { nftRules } from "../../src/control/firewall/nft.ts";
import { ruleOf } from "../../src/control/firewall/marks.ts";
import { exemption, fits, type Redirection, takers } from "../../src/control/firewall/others.ts";
import { type FirewallPlan, firewallPlan } from "../../src/control/firewall/plan.ts";
import { SPECIAL_IPV4, SPECIAL_IPV6 } from "../../src/policy/special.ts";

const FACTS = { upstream: ["203.0.113.5"], families: [4, 6] as const, cpus: 1, uid: (name: string) => (name === "none" ? null : 999) };

function planned(text: string, facts = {}): ReturnType<typeof firewallPlan> {
  const parsed = parseConfig(`proxy_url = "socks5://203.0.113.5:1080"\n${text}`, "t.toml");
  assert.ok("config" in parsed, JSON.stringify(parsed));
  return firewallPlan(parsed.config, { ...FACTS, ...facts });
}

function plan(text = "", facts = {}): FirewallPlan {
  const result = planned(text, facts);
  assert.ok("plan" in result, JSON.stringify(result));
  return result.plan;
}

test("the lists of docs/firewall.md are the table's", () => {
  const page = readFileSync(new URL("../../../docs/firewall.md", import.meta.url), "utf8");
  const list = (pattern: RegExp): string[] => {
    const found = pattern.exec(page)?.[1];
    assert.ok(found !== undefined, `${pattern}`);
    return found.split(/[\s,\\]+/).filter((word) => word !== "");
  };
  const v4 = SPECIAL_IPV4.map(({ network }) => network);
  const v6 = SPECIAL_IPV6.map(({ network }) => network);
  assert.deepEqual(list(/ipv4_addr; flags interval\s+elements = \{([^}]*)\}/), v4);
  assert.deepEqual(list(/ipv6_addr; flags interval\s+elements = \{([^}]*)\}/), v6);
  assert.deepEqual(list(/for net in (0\.0\.0\.0\/8[\s\S]*?)\ndo/), v4);
  assert.deepEqual(list(/for net in (::\/128[\s\S]*?)\ndo/), v6);
  for (const { rfc } of [...SPECIAL_IPV4, ...SPECIAL_IPV6]) assert.match(rfc, /^RFC \d+/);
});

test("transplice's own connections pass: by mark, or else by user, or not at all", () => {
  assert.deepEqual(plan("mark = 7").own, { mark: 7 });
  assert.deepEqual(plan().own, { uid: 999 });
  const result = planned('[firewall]\nservice_user = "none"');
  assert.ok("wrong" in result && result.run?.includes("useradd"));
  assert.equal(plan('[firewall]\nservice_user = "none"\nexclude_cgroups = ["/a/b"]').own, null);
  assert.match(nftRules(plan("mark = 7")), /meta mark 0x7 return/);
  assert.match(nftRules(plan('[firewall]\nexclude_cgroups = ["/a/b"]')), /socket cgroupv2 level 2 "a\/b" return/);
});

test("each family has the port of a listener of its own, and none without", () => {
  const ports = (text: string, facts = {}): [number, number][] => plan(text, facts).families.map(({ family, port }) => [family, port]);
  assert.deepEqual(ports('listen = ["127.0.0.1:1", "[::1]:2"]'), [[4, 1], [6, 2]]);
  assert.deepEqual(ports('listen = ":3"'), [[4, 3], [6, 3]]);
  assert.deepEqual(ports('listen = "127.0.0.1:4"'), [[4, 4]]);
  assert.deepEqual(ports('listen = ":5"', { families: [4] }), [[4, 5]]);
  assert.ok("wrong" in planned('listen = "[::1]:6"', { families: [4] }));
});

test("an included special network is lifted, and the rest of the special stays out", () => {
  const [v4, v6] = plan('[firewall]\ninclude = ["10.20.0.0/16", "198.51.100.0/24"]\nexclude = ["10.20.1.0/24"]').families;
  assert.deepEqual(v4?.lifted, ["10.20.0.0/16"]);
  assert.deepEqual(v4?.include, ["198.51.100.0/24"]);
  assert.deepEqual(v4?.exclude, ["203.0.113.5/32", "10.20.1.0/24"]);
  assert.deepEqual(v6?.include, [], "IPv6 was not named");
  const order = ["@exclude4", "@lifted4", "@special4", "@include4"];
  const text = nftRules(plan('[firewall]\ninclude = ["10.20.0.0/16", "198.51.100.0/24"]'));
  const places = order.map((name) => text.indexOf(`ip daddr ${name === "@include4" ? "!= " : ""}${name}`));
  assert.ok(places.every((at, i) => at > 0 && (i === 0 || at > places[i - 1]!)), `${places}`);
});

test("SYNs are spread over the queues by port, each with the next as its last resort, and go on where nobody reads", () => {
  const queues = (text: string): string[] => {
    const made = plan(`workers = ${text}\n[connect]\ntruthful = true`);
    return iptablesRules(made, made.families[0]!).get("raw")!.rules.filter((rule) => rule.includes("NFQUEUE"));
  };
  const to = (number: number): string => `-j NFQUEUE --queue-num ${number} --queue-bypass`;
  assert.deepEqual(queues("1"), [`-A TRANSPLICE_OUTPUT_PORT -p tcp ${to(1081)}`]);
  assert.deepEqual(queues("2").map((rule) => rule.slice(rule.indexOf("=0x") + 1)), [`0x0" ${to(1081)}`, `0x1" ${to(1082)}`, queues("1")[0]]);
  const three = queues("3").map((rule) => Number(/queue-num (\d+)/.exec(rule)![1]) - 1081);
  assert.deepEqual(three, [...Array.from({ length: 16 }, (_, part) => part % 3), 0]);
  assert.equal(queues("200").length, 17, "the mark has room for 15");
  assert.match(nftRules(plan("workers = 3\n[connect]\ntruthful = true\nqueue = 7")), /queue flags bypass to jhash ip6 saddr \. tcp sport mod 3 offset 7/);
});

test("with queues TPROXY leaves eight bits of the mark alone, and rejections come before it", () => {
  const made = plan('mode = "tproxy"\n[connect]\ntruthful = true\nanswer = "reject"\nmark_shift = 8\n[firewall]\ninterfaces = ["lan0"]\ntproxy_mark = 5');
  assert.equal(ruleOf(made), "fwmark 0x5/0xffff00ff lookup 1082 protocol 181");
  const tables = iptablesRules(made, made.families[0]!);
  const mangle = tables.get("mangle")!.rules.join("\n");
  assert.match(mangle, /TPROXY .*--tproxy-mark 0x5\/0xffff00ff/);
  assert.match(mangle, /-A TRANSPLICE_PREROUTING -m mark ! --mark 0x0\/0xf000 -j RETURN/);
  const filter = tables.get("filter")!.rules;
  assert.deepEqual(filter.filter((rule) => rule.startsWith("-I")).map((rule) => rule.split(" ")[1]), ["OUTPUT", "FORWARD"]);
  assert.ok(filter.includes("-A TRANSPLICE_REJECT -p tcp -m mark --mark 0x1000/0xf000 -j REJECT --reject-with tcp-reset"));
  assert.equal(filter.filter((rule) => rule.includes("--reject-with")).length, 4);
  const nft = nftRules(made);
  assert.match(nft, /meta mark set meta mark & 0xffff00ff \| 0x5/);
  assert.match(nft, /meta nfproto ipv6 meta mark & 0xf000 == 0x3000 reject with icmpv6 type no-route/);
  assert.equal(iptablesRules(plan(), plan().families[0]!).has("raw"), false);
});

test("two marks that are one, and the kernel's tables, are problems of the file", () => {
  for (const text of ["mark = 0x1082", "[firewall]\ntproxy_table = 254", '[firewall]\ninterfaces = ["a b"]', '[firewall]\nusers = ["a;b"]']) {
    assert.ok("problems" in parseConfig(`proxy_url = "direct:"\n${text}`, "t.toml"), text);
  }
});

test("what is for this host itself, as the admin endpoint is, is never handed over, queued or refused", () => {
  const admin = '[admin]\nlisten = ":9181"\ntoken = "0123456789abcdef"\n';
  const firewall = 'interfaces = ["lan0"]\nmanage = true\non_failure = "closed"\ninclude = ["192.0.2.0/24", "10.0.0.0/8", "127.0.0.0/8"]';
  for (const mode of ["redirect", "tproxy"]) {
    for (const truthful of [false, true]) {
      const made = plan(`mode = "${mode}"\nmark = 7\n${admin}[connect]\ntruthful = ${truthful}\n[firewall]\n${firewall}`);
      for (const stage of ["engaged", "refused", "draining"] as const) {
        const staged = { ...made, stage };
        const what = `${mode}, ${stage}${truthful ? ", truthful" : ""}`;
        for (const [name, rules] of nftChains(nftRules(staged))) {
          const leads = rules.findIndex((rule) => rule.startsWith("goto "));
          if (leads < 0) continue;
          const local = rules.indexOf("fib daddr type local return");
          assert.ok(local > 0 && local < leads, `${what}: nft, ${name}`);
          const judged = rules.findIndex((rule) => /daddr @/.test(rule));
          assert.ok(judged < 0 || local < judged, `${what}: nft, ${name}: lists of destinations come later`);
        }
        for (const [table, { rules }] of iptablesRules(staged, staged.families[0]!)) {
          for (const way of ["OUTPUT", "PREROUTING", "FORWARD"]) {
            const of = (chain: string): string[] => rules.filter((rule) => rule.startsWith(`-A TRANSPLICE_${way}${chain} `));
            const first = of("_NET")[0];
            assert.equal(first, of("_PORT").length === 0 ? undefined : `-A TRANSPLICE_${way}_NET -m addrtype --dst-type LOCAL -j RETURN`, `${what}: ${table}`);
            // Before it there is nothing that would take a connection, but what TPROXY has marked already.
            const takes = of("").filter((rule) => !/ -j RETURN$| -g TRANSPLICE_/.test(rule) && !rule.includes("-i lo -p tcp -m mark"));
            assert.deepEqual(takes, [], `${what}: ${table}`);
          }
        }
      }
    }
  }
});

/** Each chain's rules, in their order. */
function nftChains(text: string): Map<string, string[]> {
  const chains = [...text.matchAll(/^ {2}chain (\w+) \{\n([^}]*(?:\{[^}]*\}[^}]*)*)^ {2}\}/gm)];
  assert.equal(chains.length, text.split("\n  chain ").length - 1);
  return new Map(chains.map(([, name, body]) => [name!, body!.split("\n").map((line) => line.trim())]));
}

test("ports are merged for nft, and come fifteen at a time for iptables", () => {
  const some = plan(`[firewall]\nports = [${Array.from({ length: 20 }, (_, i) => 2 * i + 1)}, "100-200", "150-300"]`);
  assert.match(nftRules(some), /tcp dport != \{ 1, 3, .*39, 100-300 \} return/);
  const rules = iptablesRules(some, some.families[0]!).get("nat")!.rules.filter((rule) => rule.includes("multiport"));
  assert.deepEqual(rules.map((rule) => /--dports (\S+)/.exec(rule)![1]!.split(",").length), [15, 6]);
});

test("only what is needed changes: the transaction from one state to another", () => {
  const some = plan();
  const rules = iptablesRules(some, some.families[0]!);
  const fresh = transition(new Map(), rules);
  assert.match(fresh, /^\*nat\n:TRANSPLICE_OUTPUT - /);
  assert.match(fresh, /-A OUTPUT -p tcp -j TRANSPLICE_OUTPUT\nCOMMIT\n$/);
  const save = `*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -j THEIRS\n${fresh.split("\n").slice(1).join("\n")}`;
  const found = ownTables(save);
  assert.deepEqual(found.get("nat")?.rules, rules.get("nat")?.rules);
  const again = transition(found, rules);
  assert.doesNotMatch(again, /OUTPUT -p tcp|THEIRS/, "the jump stays where it is");
  const away = transition(found, new Map());
  assert.match(away, /-D OUTPUT -p tcp -j TRANSPLICE_OUTPUT\n-X TRANSPLICE_OUTPUT\n/);
  assert.doesNotMatch(away, /THEIRS|-A /);
  assert.equal(ownTables("*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -j THEIRS\nCOMMIT\n").size, 0);
});

test("TPROXY leaves the answers of this host's servers alone, and REDIRECT needs not", () => {
  const tproxy = plan('listen = ":1081"\nmode = "tproxy"\n[firewall]\ninterfaces = ["lan0"]');
  const text = nftRules(tproxy);
  assert.equal(text.match(/ct direction reply return/g)?.length, 2);
  assert.match(text, /type route hook output priority -150/);
  assert.match(text, /iifname "lo" meta mark 0x1082 .* tproxy ip6 to \[::1\]:1081 accept/);
  assert.doesNotMatch(nftRules(plan()), /ct direction|prerouting/);
});

test("what differs is named", () => {
  assert.deepEqual(differences(["a", "b", "b"], ["b", "c"]), ["- a", "- b", "+ c"]);
  assert.deepEqual(differences(["a", "b"], ["b", "a"]), ["~ the same rules in another order"]);
  assert.deepEqual(differences(["a"], ["a"]), []);
});

test("a rule of somebody's is told to let one address, or one mark, pass, by the tool that it is of", () => {
  const by = (text: string, host: string, mark: number | null = null): string =>
    exemption({ families: [4, 6], hooks: ["output"], target: "redirect", address: null, port: 1081, ours: false, text }, socketAddress(host, 1080)!, mark);
  const nft = "nft inet theirs, chain output: meta l4proto tcp redirect to :1081";
  assert.equal(by(nft, "203.0.113.5"), "nft insert rule inet theirs output ip daddr 203.0.113.5 return");
  assert.equal(by(nft, "2001:db8::5"), "nft insert rule inet theirs output ip6 daddr 2001:db8::5 return");
  assert.equal(by(nft, "203.0.113.5", 7), "nft insert rule inet theirs output meta mark 7 return");
  assert.equal(by("ip6tables-legacy -t nat, chain THEIRS: -p tcp -j REDIRECT --to-ports 1081", "2001:db8::5"), "ip6tables-legacy -t nat -I THEIRS -d 2001:db8::5 -j RETURN");
  assert.equal(by("iptables -t nat, chain OUTPUT: -p tcp -j REDIRECT --to-ports 1081", "203.0.113.5", 7), "iptables -t nat -I OUTPUT -m mark --mark 7 -j RETURN");
});

test("whose connections another rule may take, by its own words", () => {
  const answers = (text: string, to: string, port = 443): string =>
    fits({ families: [4], hooks: ["output"], target: "redirect", address: null, port: 9999, text: `x, chain OUTPUT: ${text}`, ours: false }, socketAddress(to, port)!);
  const cases: [rule: string, to: string, answer: string][] = [
    ["-p tcp -j REDIRECT --to-ports 9999", "203.0.113.1", "maybe"],
    ["-d 203.0.113.0/24 -p tcp -j REDIRECT --to-ports 9999", "203.0.113.1", "named"],
    ["-d 192.0.2.2/32 -p tcp -m tcp --dport 443 -j DNAT --to-destination 10.0.0.1:80", "192.0.2.2", "named"],
    ["-d 192.0.2.2/32 -p tcp -j REDIRECT --to-ports 9999", "203.0.113.1", "no"],
    ["! -d 192.0.2.2/32 -p tcp -j REDIRECT --to-ports 9999", "192.0.2.2", "maybe"],
    ["! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80", "203.0.113.1", "no"],
    ["-p tcp -m tcp --dport 400:500 -j REDIRECT --to-ports 9999", "203.0.113.1", "maybe"],
    ["ip daddr 203.0.113.1 tcp dport 443 redirect to :9999", "203.0.113.1", "named"],
    ["ip daddr 198.18.0.0/15 redirect to :9999", "203.0.113.1", "no"],
    ["ip daddr != 203.0.113.1 redirect to :9999", "203.0.113.1", "maybe"],
    ["ip daddr { 192.0.2.1, 192.0.2.2 } redirect to :9999", "203.0.113.1", "maybe"],
    ["ip6 daddr 2001:db8::/32 redirect to :9999", "2001:db8:ffff::1", "named"],
    ["ip6 daddr 2001:db8::/32 redirect to :9999", "203.0.113.1", "no"],
    ["meta l4proto tcp tcp dport { 80, 443 } redirect to :9999", "203.0.113.1", "maybe"],
  ];
  for (const [rule, to, answer] of cases) assert.equal(answers(rule, to), answer, rule);
});

test("who may take what a program of this host sends there: by the hook, the family and the rule's words", () => {
  const rule = (other: Partial<Redirection> = {}): Redirection =>
    ({ families: [4], hooks: ["output"], target: "redirect", address: null, port: 9999, text: "x, chain c: redirect to :9999", ours: false, ...other });
  const to = socketAddress("203.0.113.1", 443)!;
  const able = [rule(), rule({ families: [4, 6] }), rule({ text: "x, chain c: ip daddr 203.0.113.0/24 redirect to :9999" })];
  const unable = [rule({ hooks: ["prerouting"] }), rule({ families: [6] }), rule({ text: "x, chain c: tcp dport 80 redirect to :9999" })];
  assert.deepEqual(takers([...unable, ...able], to), able);
  assert.deepEqual(takers([...unable, ...able], socketAddress("2001:db8::1", 443)!), [unable[1], able[1]]);
});
