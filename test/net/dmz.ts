/**
 * The network that the egress plays in: network.ts, and on its proxy host a pool of public
 * addresses that the internet knows a way back to.
 *
 *     lan ─────── relay ──────── proxy, the DMZ ──────────── internet
 *     clients     a router;      asked on 192.0.2.2          web servers on 198.51.100.0/24 and
 *     10.7.0.2    in the chain   and 2001:db8:2::2           2001:db8:100::10, which see from where
 *     10.7.0.11   the relay      leaves from                 they are asked; the DNS server
 *     to .26                     203.0.113.1 to .8           198.51.100.53 (a real one), and behind
 *     fd07::2                    2001:db8:e::1, ::2          it 198.51.100.54 for what no real one
 *     fd07::11                                               would say
 *     to ::26
 *
 * And destinations that lead nowhere, each in its own way: see NOWHERE.
 */
import { strict as assert } from "node:assert";
import { type Listener, type Peer, text } from "./actors.ts";
import { BLACK_HOLE, type Family, FAMILIES, type Network, PROXY, RELAY, SERVER } from "./network.ts";
import { Relay, type Settings, type StartOptions } from "./relay.ts";
import { haveIPv6, type Host, shadow } from "./sandbox.ts";
import type { Stage } from "./scenario.ts";
import { curl, type Seen, webServer } from "./web.ts";
import { DNS } from "./names.ts";
import { tunnel } from "./socks.ts";

export const PORT = 1080;
export const METRICS_PORT = 9180;

const numbered = (prefix: string, first: number, last: number): readonly string[] =>
  Array.from({ length: last - first + 1 }, (_, i) => `${prefix}${first + i}`);

/** The pool. */
export const POOL = {
  4: numbered("203.0.113.", 1, 8),
  6: numbered("2001:db8:e::", 1, 2),
} as const;
/** Those of the families that the kernel has. */
export const WHOLE_POOL: readonly string[] = FAMILIES.flatMap((family) => POOL[family]);
/** All of it is the DMZ host's. */
export const PREFIX = "2001:db8:e:1::/64";

/** Addresses of the client host, besides LAN. */
export const CLIENTS = {
  4: numbered("10.7.0.", 11, 26),
  6: numbered("fd07::", 11, 26),
} as const;

/** A private network that the internet host is in as well. */
export const PRIVATE_SERVER = { 4: "10.99.0.10", 6: "fd99::10" } as const;

/** Where nothing is, and how one hears of it. */
export const NOWHERE = {
  /** The DMZ host itself has no route: ENETUNREACH. */
  noRoute: { 4: "203.0.113.161", 6: "2001:db8:dead:1::1" },
  /** The DMZ host itself knows better than to try: EHOSTUNREACH. */
  unreachable: { 4: "203.0.113.177", 6: "2001:db8:dead:2::1" },
  /** The DMZ host itself may not: EACCES. */
  prohibited: { 4: "203.0.113.225", 6: "2001:db8:dead:5::1" },
  /** A router of the internet says so: ICMP host unreachable; ICMPv6 no route, ENETUNREACH. */
  icmpUnreachable: { 4: "203.0.113.193", 6: "2001:db8:dead:3::1" },
  /** A firewall of the internet says so: ICMP administratively prohibited. */
  icmpProhibited: { 4: "203.0.113.209", 6: "2001:db8:dead:4::1" },
  /** Nobody says anything. */
  blackHole: BLACK_HOLE,
} as const;

let made: Network | undefined;

/** The additions to the scenarios' network, made once. */
export function dmz(net: Network): Host {
  const { lan, proxy, internet } = net;
  if (made === net) return proxy;
  made = net;
  shadow("/etc/resolv.conf", `nameserver ${DNS.real}\noptions timeout:2 attempts:2\n`);
  lan.ip(...CLIENTS[4].map((address) => `address add ${address}/24 dev inner`));
  proxy.ip(...POOL[4].map((address) => `address add ${address}/32 dev wan`));
  proxy.route("10.7.0.0/24", RELAY[4]);
  internet.route("203.0.113.0/25", PROXY[4]);
  internet.owns(`${PRIVATE_SERVER[4]}/32`);
  internet.sysctl("net.ipv4.ip_forward", 1);
  internet.sysctl("net.ipv4.icmp_ratelimit", 0);
  if (haveIPv6()) {
    lan.ip(...CLIENTS[6].map((address) => `address add ${address}/64 dev inner nodad`));
    const deprecated = "nodad preferred_lft 0";
    proxy.ip(...POOL[6].map((address) => `address add ${address}/128 dev wan ${deprecated}`));
    proxy.ip(`route add local ${PREFIX} dev lo`);
    proxy.route("fd07::/64", RELAY[6]);
    internet.route("2001:db8:e::/48", PROXY[6]);
    internet.owns(`${PRIVATE_SERVER[6]}/128`);
    internet.sysctl("net.ipv6.conf.all.forwarding", 1);
    internet.sysctl("net.ipv6.icmp.ratelimit", 0);
  }
  for (const family of FAMILIES) {
    const [ip, bits] = family === 4 ? ["-4", 32] : ["-6", 128];
    const lead = (host: Host, how: string, where: { readonly [of in Family]: string }): void =>
      void host.run("ip", [`${ip}`, "route", "add", how, `${where[family]}/${bits}`]);
    lead(proxy, "throw", NOWHERE.noRoute);
    lead(proxy, "unreachable", NOWHERE.unreachable);
    lead(proxy, "prohibit", NOWHERE.prohibited);
    lead(internet, "unreachable", NOWHERE.icmpUnreachable);
    lead(internet, "prohibit", NOWHERE.icmpProhibited);
    proxy.ip(
      `neighbour add ${BLACK_HOLE[family]} lladdr 02:00:00:00:00:66 dev wan nud permanent`,
    );
  }
  return proxy;
}

/** On the DMZ host. */
export const METRICS_URL = `http://${PROXY[4]}:${METRICS_PORT}/metrics`;

/** How the egress is asked, for the tools that want a word for it. */
export const asked = (family: Family = 4): string => text(PROXY[family], PORT);

const BASE: Settings = {
  incoming: {
    port: PORT,
    addresses: FAMILIES.map((family) => PROXY[family]),
    metrics_port: METRICS_PORT,
  },
  outgoing: {},
};

/** Its tables added to those of the usual configuration. */
export function settingsOf(settings: Settings): Settings {
  const merged: Record<string, Settings[string]> = { ...BASE };
  for (const [name, it] of Object.entries(settings)) {
    const base = BASE[name];
    const both = typeof base === "object" && typeof it === "object" && !Array.isArray(it);
    merged[name] = both ? { ...(base as Settings), ...(it as Settings) } : it;
  }
  return merged;
}

/** The egress on the DMZ host, running. */
export async function egress(
  stage: Stage,
  settings: Settings = {},
  options: StartOptions = {},
): Promise<Relay> {
  const it = Relay.spawn(dmz(stage.net), settingsOf(settings), options);
  stage.keep(it.process);
  return it.ready();
}

/** A web server on each of these addresses of the internet host. */
export function web(stage: Stage, addresses: readonly string[] = servers(), port = 80): void {
  dmz(stage.net);
  for (const address of addresses) {
    const server = webServer(stage.net.internet, address, port);
    stage.finally(() => {
      server.closeAllConnections();
      server.close();
    });
  }
}

const servers = (): string[] => FAMILIES.map((family) => SERVER[family]);

/** What comes to a port of the server is sent back, and an end with it. */
export function echo(stage: Stage, port = 7): Listener {
  dmz(stage.net);
  return stage.listen(stage.net.internet, SERVER[4], port, (peer) => {
    peer.socket.removeAllListeners("data");
    peer.socket.pipe(peer.socket);
  });
}

/** All that it counts, as Prometheus is told. */
export async function metrics(stage: Stage): Promise<string> {
  const { status, body, error } = await curl(stage.net.proxy, METRICS_URL);
  assert.equal(status, 0, error);
  return String(body);
}

/** The value of a sample with these labels, in any order; 0 where there is none. */
export function sample(of: string, name: string, labels: Record<string, string> = {}): number {
  const line = of
    .split("\n")
    .find(
      (it) =>
        new RegExp(`^${name}[ {]`).test(it) &&
        Object.entries(labels).every(([label, value]) => it.includes(`${label}="${value}"`)),
    );
  return line === undefined ? 0 : Number(line.slice(line.lastIndexOf(" ") + 1));
}

/** What a web server sees of one who asks it through a tunnel that stands, and ends it. */
export async function seen(peer: Peer, host = "web.test"): Promise<Seen> {
  peer.write(`GET / HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`);
  const { data } = await peer.rest();
  peer.destroy();
  const [head, body = ""] = String(data).split("\r\n\r\n");
  if (!/^HTTP\/1\.1 200 /.test(head ?? "")) throw new Error(`no answer but ${JSON.stringify(head)}`);
  const json = body.slice(body.indexOf("{"), body.lastIndexOf("}") + 1);
  return JSON.parse(json) as Seen;
}

/** The address that a client (one of the lan's) leaves from to a web server, by name or literal. */
export async function sourceOf(
  stage: Stage,
  client: string,
  destination: string,
  options: { port?: number } = {},
): Promise<string> {
  const family = client.includes(":") ? 6 : 4;
  const peer = await tunnel(stage.net.lan, text(PROXY[family], PORT), {
    to: destination,
    port: options.port ?? 80,
    from: client,
  });
  return (await seen(peer)).peer;
}
