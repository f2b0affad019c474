/**
 * Truthful connect(): a program learns from connect() what became of its connection, behind the proxy
 * as without one. Real rules, real queues, real programs.
 */
import { strict as assert } from "node:assert";
import { FAMILIES, SERVER } from "./network.ts";
import { scenario } from "./scenario.ts";
import { applyRules, attemptsAtOnce } from "./truthful.ts";

const MARK = 0x1081;
const COUNT = 5;

/** SOCKS5 replies and what connect() makes of them, by IPv4 and IPv6. */
const REPLIES = [
  { reply: 2, 4: "EHOSTUNREACH", 6: "EACCES" },
  { reply: 3, 4: "ENETUNREACH", 6: "ENETUNREACH" },
  { reply: 4, 4: "EHOSTUNREACH", 6: "EHOSTUNREACH" },
  { reply: 5, 4: "ECONNREFUSED", 6: "ECONNREFUSED" },
  { reply: 0, 4: "ok", 6: "ok" },
] as const;

const WAYS = [
  ["iptables", "raw"], ["iptables-legacy", "raw"], ["nft", "raw"], ["iptables", "reject"], ["nft", "reject"],
] as const;

for (const [backend, answer] of WAYS) {
  for (const mode of ["redirect", "tproxy"] as const) {
    for (const from of ["local", "routed"] as const) {
      scenario(`${backend}, ${answer}, ${mode}, ${from}: what the upstream says is what connect() says`, async (stage) => {
        const upstream = stage.upstream({ protocol: "socks5", echoes: true, refuse: ({ port }) => port - 1000 });
        const settings = {
          listen: ":1081", proxy_url: upstream.url(), mark: MARK, workers: 2, mode,
          connect: { truthful: true, without: "refuse", answer },
          firewall: { output: from === "local", interfaces: from === "local" ? [] : ["inner"] },
        };
        applyRules(stage, settings, backend);
        if (answer === "reject") {
          stage.net.relay.sysctl("net.ipv4.icmp_ratelimit", 0);
          if (FAMILIES.includes(6)) stage.net.relay.sysctl("net.ipv6.icmp.ratelimit", 0);
        }
        await stage.relay(settings);
        const client = from === "local" ? stage.net.relay : stage.net.lan;
        let made = 0;
        for (const family of FAMILIES) {
          for (const blocking of [true, false]) {
            for (const { reply, [family]: said } of REPLIES) {
              const seen = await attemptsAtOnce(client, SERVER[family], 1000 + reply, { count: COUNT, blocking });
              made += seen.length;
              assert.deepEqual(seen.map((attempt) => attempt.said), Array(seen.length).fill(said), `reply ${reply}, IPv${family}`);
            }
          }
        }
        assert.ok(made >= FAMILIES.length * 2 * REPLIES.length * COUNT);
        assert.equal(upstream.requests.length, made, "each was dialled for once");
      });
    }
  }
}
