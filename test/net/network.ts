/**
 * The network that the scenarios play in. IPv4 and IPv6 everywhere; nothing of it exists outside.
 *
 *     lan ────────── relay ─────────────┬───────────── proxy      the upstreams
 *     a routed       the program under  │ wan          192.0.2.2  2001:db8:2::2
 *     client         test, and local    │              192.0.2.12 2001:db8:2::12 (a second address)
 *     10.7.0.2       clients            │
 *     fd07::2        192.0.2.1          └───────────── internet   the servers
 *                    2001:db8:2::1                     198.51.100.10  2001:db8:100::10
 *                    10.7.0.1  fd07::1                 and others of these networks
 *
 * 198.51.100.99 and 2001:db8:100::99, port 82, are where no proxy lets anybody go.
 * 192.0.2.66 and 2001:db8:2::66 are black holes: what is sent there is never answered.
 */
import { existsSync } from "node:fs";
import { haveIPv6, Host, shadow, Wire } from "./sandbox.ts";

export interface Network {
  relay: Host;
  lan: Host;
  proxy: Host;
  internet: Host;
}

/** The server's addresses, in the order of the families. */
export const SERVER = { 4: "198.51.100.10", 6: "2001:db8:100::10" } as const;
export const PROXY = { 4: "192.0.2.2", 6: "2001:db8:2::2" } as const;
export const RELAY = { 4: "192.0.2.1", 6: "2001:db8:2::1" } as const;
export const LAN = { 4: "10.7.0.2", 6: "fd07::2" } as const;
export const BLACK_HOLE = { 4: "192.0.2.66", 6: "2001:db8:2::66" } as const;
export const DENIED = { 4: "198.51.100.99", 6: "2001:db8:100::99" } as const;
export const DENIED_PORT = 82;
export type Family = 4 | 6;
/** Those that the kernel has. */
export const FAMILIES: readonly Family[] = haveIPv6() ? [4, 6] : [4];

export function network(): Network {
  // Who asks for a name shall hear at once that there is nobody to ask.
  if (existsSync("/etc/resolv.conf")) shadow("/etc/resolv.conf", "nameserver 127.0.0.1\n");
  const relay = new Host("relay");
  const lan = new Host("lan");
  const proxy = new Host("proxy");
  const internet = new Host("internet");
  const wan = new Wire("wan");
  const inner = new Wire("inner");
  wan.plug(relay, `${RELAY[4]}/24`, `${RELAY[6]}/64`);
  wan.plug(proxy, `${PROXY[4]}/24`, `${PROXY[6]}/64`);
  // Not preferred: never the source of the proxy's own connections.
  proxy.ip("address add 192.0.2.12/24 dev wan");
  if (haveIPv6()) proxy.ip("address add 2001:db8:2::12/64 dev wan nodad preferred_lft 0");
  wan.plug(internet, "192.0.2.3/24", "2001:db8:2::3/64");
  inner.plug(relay, "10.7.0.1/24", "fd07::1/64");
  inner.plug(lan, `${LAN[4]}/24`, `${LAN[6]}/64`);
  internet.owns("198.51.100.0/24", `${SERVER[6]}/128`, "2001:db8:100::11/128");
  // Everybody's way out is the internet host, which knows no way back to the lan.
  for (const host of [relay, proxy]) {
    host.route("default", "192.0.2.3");
    host.route("default", "2001:db8:2::3");
    for (const name of ["all", "default", "wan", "lo"])
      host.sysctl(`net.ipv4.conf.${name}.rp_filter`, 0);
  }
  lan.route("default", "10.7.0.1");
  lan.route("default", "fd07::1");
  relay.sysctl("net.ipv4.conf.inner.rp_filter", 0);
  relay.sysctl("net.ipv4.ip_forward", 1);
  if (haveIPv6()) relay.sysctl("net.ipv6.conf.all.forwarding", 1);
  for (const family of FAMILIES) {
    // Frames to an Ethernet address that nobody has.
    relay.ip(`neighbour add ${BLACK_HOLE[family]} lladdr 02:00:00:00:00:66 dev wan nud permanent`);
  }
  return { relay, lan, proxy, internet };
}
