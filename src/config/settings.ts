/**
 * All keys of transplice.toml, in the order in which they are documented. The one source for
 * reading a file, for the guess at what a misspelt key was meant to be, and for the documentation.
 *
 * A new key is one row here and one line in parse.ts where Config is put together.
 */
import type { PortRange } from "../policy/access.ts";
import { CAUSES, PRESETS, type Trust } from "../policy/cause.ts";
import type { EgressAddress } from "../policy/egress.ts";
import type { Network } from "../policy/network.ts";
import type { AdminAddress, ListenAddress, Upstream } from "./config.ts";
import { ADMIN_ALLOWED, LISTEN_ALLOWED } from "./listen.ts";
import { alternatives } from "./problem.ts";
import { durationText, sizeText } from "./quantity.ts";
import { UPSTREAM_ALLOWED } from "./upstream.ts";

interface Described {
  /** In TOML, as an operator would write it. null: not set. */
  readonly default: string | null;
  /** Where the default is null: what holds then. */
  readonly otherwise?: string;
  /** One sentence. */
  readonly description: string;
  /** In TOML. */
  readonly example: string;
}

interface Duration extends Described {
  readonly kind: "duration";
  readonly minMs: number;
  readonly maxMs: number;
  /** The kernel counts this one in seconds. */
  readonly wholeSeconds?: true;
}

interface Size extends Described {
  readonly kind: "size";
  readonly min: number;
  readonly max: number;
}

interface Integer extends Described {
  readonly kind: "integer";
  readonly min: number;
  readonly max: number;
}

interface Enumeration extends Described {
  readonly kind: "enum";
  readonly values: readonly string[];
  /** Other spellings of the values. */
  readonly aliases?: Readonly<Record<string, string>>;
}

interface Plain extends Described {
  readonly kind: "string" | "boolean" | "listen" | "admin" | "token" | "url" | "trust" | "rate" | "ip" | "iface" | "word" | "account";
}

/** What an array may hold. */
export type Item = "network" | "site" | "port" | "source" | "ip" | "zone" | "user" | "interface" | "account" | "cgroup" | "host";

interface List extends Described {
  readonly kind: "list";
  readonly of: Item;
  /** One may stand without brackets, and "" is none. */
  readonly bare?: true;
}

export type Setting = Duration | Size | Integer | Enumeration | Plain | List;

const SECOND = 1000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
/** TCP_KEEPIDLE and TCP_KEEPINTVL end at 32767 s (MAX_TCP_KEEPIDLE in the kernel's net/tcp.h). */
const KEEPALIVE_MAX = 9 * HOUR;

export const SETTINGS = {
  listen: {
    kind: "listen",
    default: '"localhost:1081"',
    description:
      "Where redirected connections arrive; a string or an array of strings. `localhost` is 127.0.0.1 and ::1; without a host, all addresses of both families.",
    example: '["127.0.0.1:1081", "[::1]:1081"]',
  },
  proxy_url: {
    kind: "url",
    default: null,
    otherwise: "required, but with `[incoming]` or `[outgoing]`: no transparent proxy",
    description:
      "The upstream proxy. User name and password are percent-encoded; `direct:` connects to the destinations without a proxy.",
    example: '"socks5://user:password@10.20.30.40:1080"',
  },
  mode: {
    kind: "enum",
    values: ["redirect", "tproxy"],
    default: '"redirect"',
    description: "Which firewall target hands the connections over: REDIRECT or TPROXY.",
    example: '"tproxy"',
  },
  workers: {
    kind: "integer",
    min: 1,
    max: 254,
    default: null,
    otherwise: "one for each CPU",
    description: "How many threads relay.",
    example: "4",
  },
  mark: {
    kind: "integer",
    min: 1,
    max: 0xffff_ffff,
    default: null,
    otherwise: "none",
    description:
      "The firewall mark (SO_MARK) of transplice's own connections, by which the rules let them pass.",
    example: "0x1081",
  },
  max_connections: {
    kind: "integer",
    min: 1,
    max: 10_000_000,
    default: null,
    otherwise: "what the limit of open files carries",
    description: "How many connections are served at once.",
    example: "20000",
  },
  user: {
    kind: "account",
    default: null,
    otherwise: "whoever started it",
    description:
      "The user to become before the first connection, of the capabilities keeping those that the configuration needs. It takes a start as root, and a change takes another.",
    example: '"transplice"',
  },
  group: {
    kind: "account",
    default: null,
    otherwise: "`user`'s own",
    description: "The group to become; other groups are the user's.",
    example: '"transplice"',
  },
  "timeouts.dial": {
    kind: "duration",
    minMs: 10,
    maxMs: HOUR,
    default: '"10s"',
    description: "For connecting to the upstream, over all of its addresses.",
    example: '"5s"',
  },
  "timeouts.handshake": {
    kind: "duration",
    minMs: 10,
    maxMs: HOUR,
    default: '"10s"',
    description: "For the upstream's answer to authentication and request.",
    example: '"30s"',
  },
  "timeouts.half_closed": {
    kind: "duration",
    minMs: 10,
    maxMs: 168 * HOUR,
    default: '"5m"',
    description:
      "For a connection that one side has finished, without traffic in the other direction.",
    example: '"1m"',
  },
  "timeouts.idle": {
    kind: "duration",
    minMs: 10,
    maxMs: 168 * HOUR,
    default: '"2h4m"',
    description: "For a connection without traffic; RFC 5382 asks for no less than the default.",
    example: '"24h"',
  },
  "timeouts.drain": {
    kind: "duration",
    minMs: 0,
    maxMs: 24 * HOUR,
    default: '"60s"',
    description: "How long connections may go on after TERM or INT.",
    example: '"5m"',
  },
  "timeouts.negotiation": {
    kind: "duration",
    minMs: 10,
    maxMs: HOUR,
    default: '"10s"',
    description: "For what a client of the egress says until its destination is known.",
    example: '"5s"',
  },
  "timeouts.dns": {
    kind: "duration",
    minMs: 10,
    maxMs: MINUTE,
    default: '"5s"',
    description: "For the addresses of a name that a client of the egress asks for.",
    example: '"2s"',
  },
  "tcp.keepalive_idle": {
    kind: "duration",
    minMs: SECOND,
    maxMs: KEEPALIVE_MAX,
    wholeSeconds: true,
    default: '"3m"',
    description: "Silence after which TCP asks whether the peer is still there (TCP_KEEPIDLE).",
    example: '"1m"',
  },
  "tcp.keepalive_interval": {
    kind: "duration",
    minMs: SECOND,
    maxMs: KEEPALIVE_MAX,
    wholeSeconds: true,
    default: '"30s"',
    description: "Time between such questions (TCP_KEEPINTVL).",
    example: '"10s"',
  },
  "tcp.keepalive_probes": {
    kind: "integer",
    min: 1,
    max: 127,
    default: "4",
    description: "Unanswered questions after which the connection is given up (TCP_KEEPCNT); with `user_timeout`, that counts instead.",
    example: "3",
  },
  "tcp.user_timeout": {
    kind: "duration",
    minMs: SECOND,
    maxMs: 24 * HOUR,
    default: null,
    otherwise: "`keepalive_idle` and all `keepalive_probes`: `5m`",
    description: "How long a peer may leave sent bytes, or keepalive's questions, unanswered (TCP_USER_TIMEOUT). One that answers may pause as long as it likes.",
    example: '"1m"',
  },
  "limits.when_full": {
    kind: "enum",
    values: ["wait", "reset"],
    default: '"wait"',
    description: "At max_connections, new connections wait in the kernel's queue or are reset.",
    example: '"reset"',
  },
  "limits.pipes": {
    kind: "integer",
    min: 0,
    max: 1_000_000,
    default: null,
    otherwise: "what the kernel allows this user",
    description:
      "Pipes for bulk transfer in use at once, by all workers together; 0 copies all bytes instead.",
    example: "64",
  },
  "limits.pipe_size": {
    kind: "size",
    min: 64 * 2 ** 10,
    max: 64 * 2 ** 20,
    default: '"1MiB"',
    description: "The size of such a pipe; the kernel rounds it up to a power of two.",
    example: '"256KiB"',
  },
  "upstream.pipelined": {
    kind: "boolean",
    default: "false",
    description:
      "Send greeting, authentication and request at once, where the upstream is known to allow it.",
    example: "true",
  },
  "upstream.disclose_client": {
    kind: "enum",
    values: ["off", "x-forwarded-for", "forwarded", "forwarded-with-port"],
    default: '"off"',
    description: "Tell an HTTP upstream who asks, in a field of the CONNECT request: X-Forwarded-For, or Forwarded (RFC 7239).",
    example: '"x-forwarded-for"',
  },
  "upstream.on_refusal": {
    kind: "enum",
    values: ["reset", "forward"],
    default: '"reset"',
    description: "What the client gets where an HTTP upstream refuses: a reset, or the upstream's answer to read, which only a client that speaks HTTP understands.",
    example: '"forward"',
  },
  "connect.trust": {
    kind: "trust",
    default: '"standard"',
    description:
      "Which of the upstream's answers say what became of the connection: those that the named program means, or, of the standard's, those with these causes. Others are `unknown`. `transplice` also asks our own egress for the errno and what it tried.",
    example: '"dante"',
  },
  "connect.unknown_as": {
    kind: "enum",
    values: ["host-unreachable", "net-unreachable", "refused", "timeout"],
    default: '"host-unreachable"',
    description: "What a client is told when the upstream failed, or nothing is known of the destination.",
    example: '"refused"',
  },
  "connect.learn": {
    kind: "boolean",
    default: "false",
    description:
      "Without `truthful`: remember destinations that have failed for a moment, so that the next connect() to them hears why at once. It takes rules of nft.",
    example: "true",
  },
  "connect.learn_for": {
    kind: "duration",
    minMs: 1000,
    maxMs: MINUTE,
    default: '"5s"',
    description: "With `learn`, for how long; a connection that succeeds ends it.",
    example: '"10s"',
  },
  "connect.truthful": {
    kind: "boolean",
    default: "false",
    description:
      "Hold each connection's first packet (SYN) until the upstream has answered, so that connect() tells the application what became of it. It takes rules of `transplice firewall`, CAP_NET_ADMIN, and CAP_NET_RAW.",
    example: "true",
  },
  "connect.without": {
    kind: "enum",
    values: ["go-on", "refuse"],
    default: '"go-on"',
    description:
      "Where `truthful` cannot be had: go on without it, and say so in the log, or refuse to start.",
    example: '"refuse"',
  },
  "connect.timeout_as": {
    kind: "enum",
    values: ["silence", "host-unreachable"],
    default: '"silence"',
    description:
      "With `truthful`, what a client hears whose destination does not answer: nothing, so that it waits as long as it would have without a proxy, or that the host cannot be reached.",
    example: '"host-unreachable"',
  },
  "connect.answer": {
    kind: "enum",
    values: ["raw", "reject"],
    default: '"raw"',
    description:
      "With `truthful`, what sends refusals: transplice on a raw socket, or REJECT rules, whose ICMP errors the kernel limits to a few in a second.",
    example: '"reject"',
  },
  "connect.queue": {
    kind: "integer",
    min: 0,
    max: 65_000,
    default: "1081",
    description: "With `truthful`, the first of the NFQUEUE numbers; there is one for each worker.",
    example: "10",
  },
  "connect.mark_shift": {
    kind: "integer",
    min: 0,
    max: 24,
    default: "16",
    description:
      "With `truthful`, eight bits of the firewall mark from this one on are transplice's, on SYNs that it has held; no rule of the host may depend on them.",
    example: "8",
  },
  "incoming.port": {
    kind: "integer",
    min: 1,
    max: 65_535,
    default: "1080",
    description: "Where the egress, a SOCKS5, SOCKS4 and SOCKS4a server, listens.",
    example: "1080",
  },
  "incoming.addresses": {
    kind: "list",
    of: "ip",
    default: "[]",
    description: "On which addresses; none stands for all of both families.",
    example: '["10.0.0.1", "2001:db8::1"]',
  },
  "incoming.allow_from": {
    kind: "list",
    of: "network",
    default: "[]",
    description: "Which clients may use the egress; none stands for everybody.",
    example: '["10.0.0.0/8", "2001:db8::7"]',
  },
  "incoming.metrics_port": {
    kind: "integer",
    min: 0,
    max: 65_535,
    default: null,
    otherwise: "`1081`; with `proxy_url`, `0`",
    description: "Where metrics are served over HTTP; 0 serves none.",
    example: "9180",
  },
  "incoming.metrics_address": {
    kind: "ip",
    default: null,
    otherwise: "all addresses; with `proxy_url`, `127.0.0.1`",
    description: "On which address.",
    example: '"127.0.0.1"',
  },
  "incoming.proxy_protocol_from": {
    kind: "list",
    of: "network",
    default: "[]",
    description:
      "Load balancers: connections from there begin with a PROXY protocol header (v1 or v2), which says who the client is.",
    example: '["10.0.0.5"]',
  },
  "incoming.max_per_client": {
    kind: "integer",
    min: 1,
    max: 10_000_000,
    default: null,
    otherwise: "no limit",
    description: "How many connections one client address may have at once.",
    example: "1000",
  },
  "incoming.max_per_user": {
    kind: "integer",
    min: 1,
    max: 10_000_000,
    default: null,
    otherwise: "no limit",
    description: "How many connections one user may have at once.",
    example: "1000",
  },
  "incoming.rate_per_client": {
    kind: "rate",
    default: null,
    otherwise: "no limit",
    description: "How many new connections one client address may make.",
    example: '"100/s"',
  },
  "incoming.rate_per_user": {
    kind: "rate",
    default: null,
    otherwise: "no limit",
    description: "How many new connections one user may make.",
    example: '"600/m"',
  },
  "incoming.rate": {
    kind: "rate",
    default: null,
    otherwise: "no limit",
    description: "How many new connections all clients together may make.",
    example: '"2000/s"',
  },
  "outgoing.allow_sites": {
    kind: "list",
    of: "site",
    default: "[]",
    description:
      "Which names may be asked for; none stands for all. `.example.com` is all below example.com and not itself; an empty text is every request by address.",
    example: '["www.example.com", ".example.org"]',
  },
  "outgoing.deny_sites": {
    kind: "list",
    of: "site",
    default: "[]",
    description: "Which names may not be asked for, in the same words.",
    example: '[".example.net", ""]',
  },
  "outgoing.allow_ports": {
    kind: "list",
    of: "port",
    default: "[]",
    description: "Which ports may be asked for; none stands for all.",
    example: '[80, 443, "8000-8999"]',
  },
  "outgoing.deny_ports": {
    kind: "list",
    of: "port",
    default: "[]",
    description: "Which ports may not be asked for.",
    example: "[22, 25]",
  },
  "outgoing.allow_networks": {
    kind: "list",
    of: "network",
    default: "[]",
    description:
      "Destinations that are allowed although they are private, loopback, link-local, multicast or this host's own addresses.",
    example: '["10.20.0.0/16"]',
  },
  "outgoing.deny_networks": {
    kind: "list",
    of: "network",
    default: "[]",
    description: "Destinations that are not, judged by the address that would be connected to.",
    example: '["198.51.100.0/24"]',
  },
  "outgoing.allow_private": {
    kind: "boolean",
    default: "false",
    description: "Allow private destinations (RFC 1918, 100.64.0.0/10, fc00::/7).",
    example: "true",
  },
  "outgoing.iface": {
    kind: "iface",
    default: null,
    otherwise: "none",
    description: "The interface by which connections leave (SO_BINDTODEVICE), whatever the routes say.",
    example: '"tun0"',
  },
  "outgoing.addresses": {
    kind: "list",
    of: "source",
    default: "[]",
    description:
      "The addresses by which connections leave; none leaves it to the kernel. In an IPv6 network each client has its own address. A weight of 2 attracts twice the clients.",
    example: '["192.0.2.1", { address = "192.0.2.2", weight = 2 }, "2001:db8:1::/64"]',
  },
  "outgoing.affinity": {
    kind: "enum",
    values: ["client", "client-destination", "none"],
    default: '"client"',
    description: "What keeps its address: a client, a client with one destination, or nothing.",
    example: '"client-destination"',
  },
  "outgoing.dnsbl_domain": {
    kind: "list",
    of: "zone",
    bare: true,
    default: "[]",
    description: "DNS block lists; an address of ours that stands there is not used.",
    example: '"zen.spamhaus.org"',
  },
  "outgoing.dnsbl_interval": {
    kind: "duration",
    minMs: SECOND,
    maxMs: 24 * HOUR,
    default: '"60s"',
    description: "How often they are asked.",
    example: '"5m"',
  },
  "outgoing.dnsbl_when_most_listed": {
    kind: "enum",
    values: ["use-all", "use-clean"],
    default: '"use-all"',
    description: "When more are listed than not: use all of them, or only those that are clean.",
    example: '"use-clean"',
  },
  "firewall.backend": {
    kind: "enum",
    values: ["auto", "nft", "iptables", "iptables-legacy"],
    default: '"auto"',
    description: "What sets the rules; auto is the first of the others that works here.",
    example: '"iptables"',
  },
  "firewall.manage": {
    kind: "boolean",
    default: "false",
    description:
      "Set the rules once the listeners stand and the upstream has answered, mend them when somebody takes them away, and see to `on_failure` at the end.",
    example: "true",
  },
  "firewall.on_failure": {
    kind: "enum",
    values: ["open", "closed"],
    default: '"open"',
    description:
      "With `manage`, when transplice has ended, stopped or killed: open removes the rules, and connections go direct; closed refuses them at once.",
    example: '"closed"',
  },
  "firewall.output": {
    kind: "boolean",
    default: "true",
    description: "Redirect the connections of this host's own programs.",
    example: "false",
  },
  "firewall.interfaces": {
    kind: "list",
    of: "interface",
    default: "[]",
    description: "Redirect the connections of clients that come in by these, as on a gateway.",
    example: '["lan0"]',
  },
  "firewall.include": {
    kind: "list",
    of: "network",
    default: "[]",
    description:
      "Redirect only what goes there; none stands for the internet. A private or special network that is named here is redirected too.",
    example: '["10.20.0.0/16", "0.0.0.0/0"]',
  },
  "firewall.exclude": {
    kind: "list",
    of: "network",
    default: "[]",
    description: "Never redirect what goes there. The upstream and this host's own addresses need not be named.",
    example: '["198.51.100.0/24"]',
  },
  "firewall.ports": {
    kind: "list",
    of: "port",
    default: "[]",
    description: "Redirect only these destination ports; none stands for all.",
    example: '[80, 443, "8000-8999"]',
  },
  "firewall.exclude_ports": {
    kind: "list",
    of: "port",
    default: "[]",
    description: "Never redirect these.",
    example: "[22]",
  },
  "firewall.users": {
    kind: "list",
    of: "account",
    default: "[]",
    description: "Of this host's programs, redirect only those of these users; none stands for all.",
    example: '["alice", "1001"]',
  },
  "firewall.exclude_users": {
    kind: "list",
    of: "account",
    default: "[]",
    description: "Never redirect programs of these users; an upstream on this host belongs here.",
    example: '["tor"]',
  },
  "firewall.exclude_cgroups": {
    kind: "list",
    of: "cgroup",
    default: "[]",
    description: "Never redirect programs in these cgroups (version 2), which must exist when rules are applied.",
    example: '["system.slice/backup.service"]',
  },
  "firewall.service_user": {
    kind: "account",
    default: null,
    otherwise: '`user`, and without it `"transplice"`',
    description: "The user that transplice runs as, by whom its own connections are known and let through; `mark`, where it is set, counts instead.",
    example: '"transplice"',
  },
  "firewall.tproxy_mark": {
    kind: "integer",
    min: 1,
    max: 0xffff_ffff,
    default: "0x1082",
    description: "With TPROXY: the mark of packets that are to be delivered here.",
    example: "0x1",
  },
  "firewall.tproxy_table": {
    kind: "integer",
    min: 1,
    max: 0xffff_ffff,
    default: "1082",
    description: "With TPROXY: the routing table that does so; it must be nobody else's.",
    example: "100",
  },
  "admin.listen": {
    kind: "admin",
    default: null,
    otherwise: "nowhere: there is no admin endpoint",
    description:
      "Where the admin endpoint is: metrics, the status page, and what `transplice tunnels` and its like ask. On an address that is not loopback, all but metrics and health takes the token.",
    example: '"127.0.0.1:9181"',
  },
  "admin.token": {
    kind: "token",
    default: null,
    otherwise: "none: nothing can be changed by the endpoint",
    description: "What who closes a connection or drains an upstream must show.",
    example: '"0f4c1e7b52a94d6e8d13"',
  },
  "admin.token_file": {
    kind: "string",
    default: null,
    otherwise: "none",
    description: "A file whose first line is the token. It is read at the start and at HUP, by the user that transplice runs as.",
    example: '"/run/credentials/transplice.service/token"',
  },
  "admin.hosts": {
    kind: "list",
    of: "host",
    default: "[]",
    description:
      "Names by which the endpoint may be asked for, besides addresses, `localhost` and this host's own name; a web page elsewhere cannot lead a browser to it by a name of its own.",
    example: '["transplice.example.com"]',
  },
  "log.filename": {
    kind: "string",
    default: null,
    otherwise: "standard error",
    description: "The log file; USR1 opens it anew.",
    example: '"/var/log/transplice.log"',
  },
  "log.level": {
    kind: "enum",
    values: ["critical", "error", "warning", "info", "debug"],
    aliases: { crit: "critical", warn: "warning", information: "info" },
    default: '"info"',
    description: "The least severe level that is logged.",
    example: '"warning"',
  },
  "log.format": {
    kind: "enum",
    values: ["plain", "logfmt", "json"],
    default: '"plain"',
    description: "The form of a log line.",
    example: '"json"',
  },
} as const satisfies Readonly<Record<string, Setting>>;

export type SettingKey = keyof typeof SETTINGS;

/** The keys of each [[rules]]. */
export const RULE_SETTINGS = {
  name: {
    kind: "word",
    default: null,
    otherwise: "required",
    description: "What log and metrics call the rule.",
    example: '"mail-only"',
  },
  action: {
    kind: "enum",
    values: ["allow", "deny"],
    default: null,
    otherwise: "required",
    description: "What the rule decides where all of its criteria fit; the first such rule counts.",
    example: '"deny"',
  },
  from: {
    kind: "list",
    of: "network",
    default: "[]",
    description: "Clients; none stands for any.",
    example: '["10.1.0.0/16"]',
  },
  users: {
    kind: "list",
    of: "user",
    default: "[]",
    description: "Users of `[users]`; none stands for any.",
    example: '["alice"]',
  },
  sites: {
    kind: "list",
    of: "site",
    default: "[]",
    description: "Names that are asked for, as in `deny_sites`; none stands for any.",
    example: '[".example.com"]',
  },
  networks: {
    kind: "list",
    of: "network",
    default: "[]",
    description:
      "Destinations by address; none stands for any. An allowing rule that has some also allows special addresses among them.",
    example: '["198.51.100.0/24"]',
  },
  ports: {
    kind: "list",
    of: "port",
    default: "[]",
    description: "Destination ports; none stands for any.",
    example: '[25, "8000-8999"]',
  },
} as const satisfies Readonly<Record<string, Setting>>;

/** Each key of [users]. */
export const USER_SETTING = {
  kind: "string",
  default: null,
  otherwise: "no users: nobody is asked for a password",
  description:
    "A user of the egress and his password, hashed by `transplice passwd NAME`; a clear one works and is warned about. A name with other characters than A-Z a-z 0-9 - _ stands in quotes.",
  example: '"scrypt:16384:8:1:..."',
} as const satisfies Setting;

/** What a row's value is once read. */
type Read<S extends Setting> = S extends { kind: "enum"; values: readonly (infer V)[] }
  ? V
  : S extends { kind: "list"; of: infer I extends Item }
    ? readonly {
        network: Network;
        site: string;
        port: PortRange;
        source: EgressAddress;
        ip: string;
        zone: string;
        user: string;
        interface: string;
        account: string;
        cgroup: string;
        host: string;
      }[I][]
    : {
        duration: number;
        size: number;
        integer: number;
        enum: string;
        string: string;
        boolean: boolean;
        listen: readonly ListenAddress[];
        admin: readonly AdminAddress[];
        token: string;
        url: Upstream;
        trust: Trust;
        rate: number;
        ip: string;
        iface: string | null;
        word: string;
        account: string;
        list: never;
      }[S["kind"]];

/** null: not set, and the row has no default. */
type ValuesOf<T extends Readonly<Record<string, Setting>>> = {
  readonly [K in keyof T]: Read<T[K]> | (T[K] extends { default: null } ? null : never);
};

/** The keys of each [[relays]]. */
export const RELAY_SETTINGS = {
  listen: {
    kind: "listen",
    default: null,
    otherwise: "required",
    description: "Where connections arrive that go by this upstream instead of the first; as `listen`.",
    example: '"localhost:1082"',
  },
  proxy_url: {
    kind: "url",
    default: null,
    otherwise: "required",
    description: "Their upstream; as `proxy_url`. All other settings hold for all.",
    example: '"http://10.20.30.41:3128"',
  },
  trust: {
    kind: "trust",
    default: null,
    otherwise: "`connect.trust`",
    description: "Which of its answers are believed; as `connect.trust`.",
    example: '"squid"',
  },
} as const satisfies Record<string, Setting>;

export type Values = ValuesOf<typeof SETTINGS>;
export type RuleValues = ValuesOf<typeof RULE_SETTINGS>;
export type RelayValues = ValuesOf<typeof RELAY_SETTINGS>;

const ROWS: ReadonlyMap<string, Setting> = new Map(Object.entries(SETTINGS));

export const SETTING_KEYS = Object.keys(SETTINGS) as readonly SettingKey[];

/** A Map's answer, not an object's: a file may well say `constructor = 1`. */
export function isSettingKey(key: string): key is SettingKey {
  return ROWS.has(key);
}

export const VARIABLE_PREFIX = "TRANSPLICE_";

/** The environment variable that may stand in place of a key. */
export const variableOf = (key: string): string => VARIABLE_PREFIX + key.toUpperCase().replaceAll(".", "_");

/** The tables that hold keys: "timeouts", "tcp"... */
export const TABLES: ReadonlySet<string> = new Set(
  SETTING_KEYS.flatMap((key) => (key.includes(".") ? [key.slice(0, key.lastIndexOf("."))] : [])),
);

const OTHERS = { users: "[users]", rules: "[[rules]]", relays: "[[relays]]" } as const;

/** Tables that are no list of keys: how they are written. */
export const OTHER_TABLES: ReadonlyMap<string, string> = new Map(Object.entries(OTHERS));

export type OtherTable = keyof typeof OTHERS;

/** All that a file may say. */
export const ALL_KEYS: readonly (SettingKey | OtherTable)[] = [
  ...SETTING_KEYS, ...(Object.keys(OTHERS) as OtherTable[]),
];

/** The keys that stand directly in a table; "" is the top level. */
export function keysOf(table: string): SettingKey[] {
  return SETTING_KEYS.filter((key) => key.slice(0, Math.max(0, key.lastIndexOf("."))) === table);
}

/** What may stand there, as the end of a sentence. */
export function allowedText(setting: Setting): string {
  switch (setting.kind) {
    case "duration":
      return `a duration such as ${setting.wholeSeconds ? '"90s" or "5m" (h, m, s)' : '"10s" or "1m30s" (h, m, s, ms)'}, from ${durationText(setting.minMs)} to ${durationText(setting.maxMs)}`;
    case "size":
      return `a size such as "256KiB" or "1MiB" (KiB, MiB, GiB, or an integer of bytes), from ${sizeText(setting.min)} to ${sizeText(setting.max)}`;
    case "integer":
      return `an integer from ${setting.min} to ${setting.max}`;
    case "enum":
      return alternatives(setting.values.map((value) => `"${value}"`));
    case "string":
      return "a string";
    case "boolean":
      return "true or false";
    case "listen":
      return `${LISTEN_ALLOWED}; or an array of these`;
    case "admin":
      return `${ADMIN_ALLOWED}; or an array of these`;
    case "token":
      return `${TOKEN_CHARACTERS_MIN} to ${TOKEN_CHARACTERS_MAX} letters, digits and characters of - . _ ~ + / =`;
    case "url":
      return UPSTREAM_ALLOWED;
    case "trust":
      return `${alternatives(Object.keys(PRESETS).map((name) => `"${name}"`))}; or an array of ${alternatives(CAUSES.slice(1).map((cause) => `"${cause}"`))}`;
    case "rate":
      return 'a number of connections per second, minute or hour, such as "100/s" or "600/m", from "1/h" to "1000000/s"';
    case "ip":
      return "an IP address, 0.0.0.0 or :: for all";
    case "iface":
      return 'the name of an interface, of at most 15 bytes, or "" for none';
    case "word":
      return `1 to ${WORD_CHARACTERS_MAX} letters, digits, - and _`;
    case "account":
      return 'a name or a number, in quotes, such as "transplice" or "998"';
    case "list": {
      const array = `an array of ${ITEMS[setting.of]}`;
      return setting.bare ? `${array}, or one without brackets` : array;
    }
  }
}

/** RFC 6750 has these characters for a bearer's token; fewer can be tried through. */
export const TOKEN_CHARACTERS_MIN = 16;
export const TOKEN_CHARACTERS_MAX = 256;

/** null: it is no token. */
export function tokenOf(text: string): string | null {
  const sound = /^[A-Za-z0-9._~+/-]+=*$/.test(text);
  return sound && text.length >= TOKEN_CHARACTERS_MIN && text.length <= TOKEN_CHARACTERS_MAX ? text : null;
}

/** Longer names make no label for a metric. */
export const WORD_CHARACTERS_MAX = 64;

const ITEMS: Readonly<Record<Item, string>> = {
  network: 'networks and addresses, such as "10.0.0.0/8" and "2001:db8::7"',
  site: 'names, such as "www.example.com", or ".example.com" for all below it',
  port: 'ports from 0 to 65535, such as 25, and ranges, such as "8000-8999"',
  source:
    'addresses, such as "192.0.2.1", IPv6 networks, such as "2001:db8:1::/64", and tables such as { address = "192.0.2.2", weight = 2 }',
  ip: 'IP addresses, such as "10.0.0.1"; "0.0.0.0" or "::" for all',
  zone: 'domains, such as "zen.spamhaus.org"',
  user: 'names of users, such as "alice"',
  interface: 'names of interfaces, such as "lan0"',
  account: 'names or numbers of users of this host, such as "alice" or "1000"',
  host: 'names of hosts, such as "transplice.example.com"',
  cgroup: 'paths of cgroups below /sys/fs/cgroup, such as "system.slice/backup.service"',
};

/** The README's table of keys, in Markdown. */
export function settingsMarkdown(): string {
  const row = (key: string, setting: Setting): string[] => [
    isSettingKey(key) ? `\`${key}\`<br>\`${variableOf(key)}\`` : `\`${key}\``,
    setting.default === null ? (setting.otherwise ?? "") : `\`${setting.default}\``,
    setting.description,
    allowedText(setting),
    `\`${setting.example}\``,
  ];
  const lines = [
    ["key, variable", "default", "what it says", "allowed", "example"],
    ["---", "---", "---", "---", "---"],
    ...SETTING_KEYS.map((key) => row(key, SETTINGS[key])),
    row("users.NAME", USER_SETTING),
    ...Object.entries(RULE_SETTINGS).map(([key, setting]) => row(`[[rules]] ${key}`, setting)),
    ...Object.entries(RELAY_SETTINGS).map(([key, setting]) => row(`[[relays]] ${key}`, setting)),
  ];
  return lines
    .map((cells) => `| ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`)
    .join("\n");
}
