/**
 * What a configuration file comes to: a frozen value that cannot be wrong. Everything that runs
 * takes a Config or a part of it; nothing else reads a file, an environment variable or a flag.
 */
import type { AccessSettings, PortRange } from "../policy/access.ts";
import type { Cause, Trust } from "../policy/cause.ts";
import type { Affinity, EgressAddress } from "../policy/egress.ts";
import type { Network } from "../policy/network.ts";
import type { Credentials, Disclosed } from "../protocol/handshake.ts";

/** A socket address to listen on or to dial: the text for people, the bytes for the kernel. */
export interface SocketAddress {
  /** "127.0.0.1:1081" or "[::1]:1081". */
  readonly text: string;
  /** struct sockaddr_in or sockaddr_in6: 16 or 28 bytes. */
  readonly bytes: Uint8Array;
}

export interface ListenAddress extends SocketAddress {
  /** An IPv6 wildcard that also takes IPv4 (":1081", "0.0.0.0:1081", "[::]:1081", as in Go). */
  readonly dualStack: boolean;
  /** Half of "localhost": left out with a warning on a host that has no such address. */
  readonly optional: boolean;
}

export type Upstream =
  | { readonly kind: "direct" }
  | {
      readonly kind: "socks5" | "socks4" | "http";
      /** An IP address without brackets, or a name. */
      readonly host: string;
      readonly port: number;
      readonly credentials: Credentials | null;
      /** Without credentials: for logs. */
      readonly text: string;
    };

/** A transparent proxy of its own beside the first, by other listeners to another upstream. */
export interface Relay {
  readonly listen: readonly ListenAddress[];
  readonly upstream: Upstream;
  /** null: as connect.trust. */
  readonly trust: Trust | null;
}

/** What [incoming], [outgoing], [users] and [[rules]] come to. */
export interface EgressConfig {
  readonly listen: readonly ListenAddress[];
  /** [] = no metrics. */
  readonly metrics: readonly ListenAddress[];
  readonly access: AccessSettings;
  /** The load balancers whose connections begin with a PROXY protocol header. */
  readonly proxyProtocolFrom: readonly Network[];
  /** Connections at once. null: no limit of their own. */
  readonly maxPerClient: number | null;
  readonly maxPerUser: number | null;
  /** New connections per second. null: as they come. */
  readonly ratePerClient: number | null;
  readonly ratePerUser: number | null;
  /** Of all clients together. */
  readonly rate: number | null;
  /** SO_BINDTODEVICE; then `addresses` is empty. */
  readonly iface: string | null;
  /** [] = the kernel chooses. */
  readonly addresses: readonly EgressAddress[];
  readonly affinity: Affinity;
  readonly dnsbl: {
    /** Zones without a dot at either end. [] = nothing is asked. */
    readonly domains: readonly string[];
    readonly intervalMs: number;
    readonly whenMostListed: "use-all" | "use-clean";
  };
  /** [] = nobody is asked who he is. */
  readonly users: readonly {
    readonly name: string;
    /** "scrypt:...", or the password itself. */
    readonly secret: string;
  }[];
}

export type LogLevel = "critical" | "error" | "warning" | "info" | "debug";
export type LogFormat = "plain" | "logfmt" | "json";

export interface FirewallConfig {
  readonly backend: "auto" | "nft" | "iptables" | "iptables-legacy";
  /** The running program sets them, and sees to them. */
  readonly manage: boolean;
  /** Once it has ended: connections go direct, or are refused. */
  readonly onFailure: "open" | "closed";
  readonly output: boolean;
  readonly interfaces: readonly string[];
  readonly include: readonly Network[];
  readonly exclude: readonly Network[];
  readonly ports: readonly PortRange[];
  readonly excludePorts: readonly PortRange[];
  readonly users: readonly string[];
  readonly excludeUsers: readonly string[];
  readonly excludeCgroups: readonly string[];
  readonly serviceUser: string;
  readonly tproxyMark: number;
  readonly tproxyTable: number;
}

/** A socket of the file system. */
export interface UnixAddress {
  /** "unix:/run/transplice/admin.sock". */
  readonly text: string;
  readonly path: string;
}

export type AdminAddress = ListenAddress | UnixAddress;

export interface AdminConfig {
  readonly listen: readonly AdminAddress[];
  /** The token itself, or the file that has it. Both null: nothing can be changed. */
  readonly token: string | null;
  readonly tokenFile: string | null;
  /** Names that it may be called by, in lower case. */
  readonly hosts: readonly string[];
}

export interface Config {
  /** Where redirected connections arrive. [] if and only if there is no upstream. */
  readonly listen: readonly ListenAddress[];
  /** null: no transparent proxy. */
  readonly upstream: Upstream | null;
  /** [[relays]]. */
  readonly relays: readonly Relay[];
  /** null: no SOCKS server. */
  readonly egress: EgressConfig | null;
  readonly mode: "redirect" | "tproxy";
  /** Worker threads. null: one for each CPU. */
  readonly workers: number | null;
  /** Who the process becomes, by name or number. null: whoever it was started as. */
  readonly user: string | null;
  readonly group: string | null;
  /** SO_MARK for our own sockets. null: none. */
  readonly mark: number | null;
  /** null: what the fd budget carries. */
  readonly maxConnections: number | null;
  readonly timeouts: {
    readonly dialMs: number;
    readonly handshakeMs: number;
    readonly halfClosedMs: number;
    readonly idleMs: number;
    readonly drainMs: number;
    /** For all that a client of the egress says before its destination is known. */
    readonly negotiationMs: number;
    /** For one name that a client of the egress asks for. */
    readonly dnsMs: number;
  };
  readonly tcp: {
    readonly keepaliveIdleMs: number;
    readonly keepaliveIntervalMs: number;
    readonly keepaliveProbes: number;
    readonly userTimeoutMs: number;
  };
  readonly limits: {
    /** At the limit new connections wait in the backlog, or are reset. */
    readonly whenFull: "wait" | "reset";
    /** Pipes in use at once, all workers together. null: what the kernel allows this user. */
    readonly pipes: number | null;
    readonly pipeBytes: number;
  };
  /** Greeting, authentication and request in one write. */
  readonly pipelined: boolean;
  /** Whether, and how, an HTTP upstream is told who asks. */
  readonly disclosed: Disclosed;
  /** An HTTP upstream's refusal is passed on to the client. */
  readonly forwardsRefusals: boolean;
  /** What a client learns of a connection that failed. */
  readonly connect: {
    readonly trust: Trust;
    /** How long a destination that failed is remembered, in ms. null: it is not. */
    readonly learnMs: number | null;
    /** Where the upstream's answer, or its absence, says nothing. */
    readonly unknownAs: Exclude<Cause, "unknown" | "not-allowed">;
    /** SYNs are held until it is known. null: the kernel completes every connection. */
    readonly truthful: {
      /** Where it cannot be had, do not start. */
      readonly required: boolean;
      readonly timeoutAs: "silence" | "host-unreachable";
      readonly answer: "raw" | "reject";
      /** The first NFQUEUE number. */
      readonly queue: number;
      /** Where our eight bits of the mark begin. */
      readonly markShift: number;
    } | null;
  };
  /** What "transplice firewall" makes rules of. */
  readonly firewall: FirewallConfig;
  /** null: there is no admin endpoint. */
  readonly admin: AdminConfig | null;
  readonly log: {
    /** null: standard error. */
    readonly filename: string | null;
    readonly level: LogLevel;
    readonly format: LogFormat;
  };
}
