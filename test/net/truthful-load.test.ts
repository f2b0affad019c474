/**
 * Truthful connect() in numbers: each connection is paired with the tunnel that was dialled for it,
 * also where the redirect has changed its port; and no failure makes a client wait for a second SYN.
 */
import { strict as assert } from "node:assert";
import { type Family, FAMILIES, SERVER } from "./network.ts";
import { scenario } from "./scenario.ts";
import { applyRules, attemptsAtOnce, PYTHON } from "./truthful.ts";

const MARK = 0x1081;
const CONNECTS = 3000;
const FAILURES = Number(process.env["TRUTHFUL_FAILURES"] ?? 150);

/**
 * Connects to each in turn, 32 at a time, and counts where what comes back is what it has sent. Each
 * of its ports leads to three destinations within two minutes, and so is changed by the redirect.
 */
const CLIENT = `
import asyncio, socket, sys
hosts, ports, count = sys.argv[1].split(","), int(sys.argv[2]), int(sys.argv[3])
async def one(i):
    host, port = hosts[i % len(hosts)], 1000 + i // len(hosts) % ports
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    s.setblocking(False)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("", 20000 + i % 1000))
    await asyncio.get_running_loop().sock_connect(s, (host, port))
    reader, writer = await asyncio.open_connection(sock=s)
    said = ("%s %d %d\\n" % (host, port, i)).encode()
    writer.write(said)
    heard = await reader.readexactly(len(said))
    writer.close()
    return said == heard
async def worker(numbers):
    return [await one(i) for i in numbers]
async def main():
    numbers = iter(range(count))
    answers = await asyncio.gather(*(worker(numbers) for _ in range(32)))
    print(sum(map(sum, answers)))
asyncio.run(main())
`;

const HOSTS: Readonly<Record<Family, readonly string[]>> = {
  4: ["198.51.100.10", "198.51.100.11", "198.51.100.12"],
  6: ["2001:db8:100::10", "2001:db8:100::11", "2001:db8:100::12"],
};

for (const family of FAMILIES) {
  scenario(`IPv${family}: ${CONNECTS} connections to 600 destinations, few ports: each is paired`, async (stage) => {
    const upstream = stage.upstream({ protocol: "socks5", echoes: true });
    const settings = {
      listen: "localhost:1081", proxy_url: upstream.url(), mark: MARK, workers: 3,
      connect: { truthful: true, without: "refuse" },
    };
    applyRules(stage, settings);
    await stage.relay(settings);
    const { output } = await stage.net.relay.execute(PYTHON, "-c", CLIENT, HOSTS[family].join(), "200", `${CONNECTS}`);
    assert.equal(output.trim(), `${CONNECTS}`);
    assert.equal(upstream.requests.length, CONNECTS, "each was dialled for once");
  });
}

for (const answer of ["raw", "reject"] as const) {
  scenario(`${FAILURES} failures of each kind, answered by ${answer}: none waits for a second SYN`, async (stage) => {
    const upstream = stage.upstream({ protocol: "socks5", refuse: ({ port }) => port - 1000 });
    const settings = {
      listen: "localhost:1081", proxy_url: upstream.url(), mark: MARK, workers: 1,
      connect: { truthful: true, without: "refuse", answer },
    };
    applyRules(stage, settings);
    const { relay } = stage.net;
    if (answer === "reject") {
      // As "firewall check" asks for.
      for (const [name, value] of [["ipv4.icmp_ratelimit", 0], ["ipv4.icmp_msgs_per_sec", 1_000_000], ["ipv4.icmp_msgs_burst", 10_000], ["ipv6.icmp.ratelimit", 0]] as const) {
        if (FAMILIES.includes(6) || name.startsWith("ipv4")) relay.sysctl(`net.${name}`, value);
      }
    }
    await stage.relay(settings);
    let made = 0;
    for (const family of FAMILIES) {
      for (const reply of [2, 3, 4, 5]) {
        const seen = await attemptsAtOnce(relay, SERVER[family], 1000 + reply, { count: FAILURES });
        made += seen.length;
        assert.ok(seen.length >= FAILURES);
        assert.equal(seen.filter(({ said }) => said === "ok").length, 0);
        const slowest = Math.max(...seen.map(({ ms }) => ms));
        stage.note(`IPv${family}, reply ${reply}: the slowest took ${slowest} ms`);
      }
    }
    assert.equal(upstream.requests.length, made, "each was dialled for once");
  });
}
