/**
 * Who may go where: the rules of the egress, asked for each request. Pure.
 *
 *     [[rules]], the first that matches   deny: refused. allow: allow_from, special addresses
 *     allow_sites, deny_sites, allow_from, deny_ports, allow_ports, deny_networks
 *     special addresses                   what must not be reached through a proxy
 *     default                             allowed
 *
 * allow_networks lifts the refusal of special addresses, as does an allow rule whose own networks
 * name the address; nothing lifts allow_from. Names are compared as name.ts writes them; the
 * address is the one that will be dialled, so that no name leads where a rule forbids to go.
 */
import { literalOf } from "./name.ts";
import { exactly, holdsIpv4, type Network, Networks, wordAt } from "./network.ts";

/** Both ends are in it. */
export interface PortRange {
  readonly first: number;
  readonly last: number;
}

/** One of [[rules]]. It matches when all its criteria do; an empty one is met by anything. */
export interface Rule {
  readonly name: string;
  readonly action: "allow" | "deny";
  readonly from: readonly Network[];
  readonly users: readonly string[];
  readonly sites: readonly string[];
  readonly networks: readonly Network[];
  readonly ports: readonly PortRange[];
}

/** Sites are normalised (name.ts). */
export interface AccessSettings {
  readonly allowFrom: readonly Network[];
  readonly allowSites: readonly string[];
  readonly denySites: readonly string[];
  readonly allowPorts: readonly PortRange[];
  readonly denyPorts: readonly PortRange[];
  readonly allowNetworks: readonly Network[];
  readonly denyNetworks: readonly Network[];
  readonly allowPrivate: boolean;
  readonly rules: readonly Rule[];
}

export interface Verdict {
  readonly allowed: boolean;
  /** The name of the rule that decided, or one of OWN_RULES: "default" when nothing forbade it. */
  readonly rule: string;
}

/** What a verdict's rule is called where no rule of [[rules]] decided. */
export const OWN_RULES: readonly string[] = [
  "allow_from", "allow_sites", "deny_sites", "allow_ports", "deny_ports", "deny_networks",
  "loopback", "link-local", "private", "own-address", "special", "default",
];

/** The client: `length` bytes at bytes[at], and who it has proved to be. */
export interface Asker {
  readonly bytes: Uint8Array;
  readonly at: number;
  readonly length: 4 | 16;
  readonly user: string | null;
}

export class Access {
  readonly #allowFrom: Networks;
  readonly #allowSites: Sites;
  readonly #denySites: Sites;
  readonly #allowPorts: readonly PortRange[];
  readonly #denyPorts: readonly PortRange[];
  readonly #allowNetworks: Networks;
  readonly #denyNetworks: Networks;
  readonly #allowPrivate: boolean;
  readonly #rules: readonly CompiledRule[];
  readonly #own: Networks;

  /** `own`: what is this host itself. */
  constructor(settings: AccessSettings, own: readonly Network[]) {
    this.#allowFrom = new Networks(settings.allowFrom);
    this.#allowSites = new Sites(settings.allowSites);
    this.#denySites = new Sites(settings.denySites);
    this.#allowPorts = settings.allowPorts;
    this.#denyPorts = settings.denyPorts;
    this.#allowNetworks = new Networks(settings.allowNetworks);
    this.#denyNetworks = new Networks(settings.denyNetworks);
    this.#allowPrivate = settings.allowPrivate;
    this.#rules = settings.rules.map((rule) => new CompiledRule(rule));
    this.#own = new Networks(own);
  }

  /** May this client ask for anything? Of allow_from alone: it can be asked before the login. */
  admits(asker: Asker): boolean {
    return this.#allowFrom.empty || this.#allowFrom.has(asker.bytes, asker.at, asker.length);
  }

  /**
   * What can be said of a name before it is resolved: a refusal, or null when it depends on the
   * address. So a name that is refused whatever its address costs no query, and tells no server.
   */
  judgeName(asker: Asker, name: string, port: number): Verdict | null {
    for (const rule of this.#rules) {
      if (!rule.matches(asker, name, port, NO_ADDRESS, 0, 4)) continue;
      const always = rule.networks.empty || rule.networks.everything;
      if (!rule.allows) {
        if (always) return rule.verdict;
      } else if (this.admits(asker)) {
        return null;
      } else if (always) {
        return ALLOW_FROM;
      }
    }
    const refusal = this.#refusal(asker, name, port, NO_ADDRESS, 0, 4);
    return refusal ?? (this.#denyNetworks.everything ? DENY_NETWORKS : null);
  }

  /**
   * The verdict on the address that will be dialled, the `length` bytes at bytes[at]. `name` is what
   * it was resolved from (name.ts), "" for a literal.
   */
  judge(asker: Asker, name: string, port: number, bytes: Uint8Array, at: number, length: 4 | 16): Verdict {
    for (const rule of this.#rules) {
      if (!rule.matches(asker, name, port, bytes, at, length)) continue;
      const named = rule.networks.has(bytes, at, length);
      if (!named && !rule.networks.empty) continue;
      if (!rule.allows) return rule.verdict;
      if (!this.admits(asker)) return ALLOW_FROM;
      return (named ? null : this.#special(bytes, at, length)) ?? rule.verdict;
    }
    const refusal = this.#refusal(asker, name, port, bytes, at, length);
    if (refusal !== null) return refusal;
    if (this.#denyNetworks.has(bytes, at, length)) return DENY_NETWORKS;
    return this.#special(bytes, at, length) ?? DEFAULT;
  }

  /** By the plain keys, in the order of the predecessor; the address counts for literals only. */
  #refusal(
    asker: Asker, name: string, port: number, bytes: Uint8Array, at: number, length: 4 | 16,
  ): Verdict | null {
    if (!this.#allowSites.empty && !this.#allowSites.has(name, bytes, at, length)) return ALLOW_SITES;
    if (this.#denySites.has(name, bytes, at, length)) return DENY_SITES;
    if (!this.admits(asker)) return ALLOW_FROM;
    if (inRanges(this.#denyPorts, port)) return DENY_PORTS;
    if (this.#allowPorts.length > 0 && !inRanges(this.#allowPorts, port)) return ALLOW_PORTS;
    return null;
  }

  /** The refusal of an address that is not out in the world, unless allow_networks has it. */
  #special(bytes: Uint8Array, at: number, length: 4 | 16): Verdict | null {
    if (this.#allowNetworks.has(bytes, at, length)) return null;
    if (length === 4) return this.#specialIpv4(bytes, at);
    if (holdsIpv4(bytes, at)) return this.#specialIpv4(bytes, at + 12);
    const first = wordAt(bytes, at);
    if (first >>> 24 === 0xff) return SPECIAL; // ff00::/8, multicast
    if (first >>> 22 === 0xfe80 >>> 6) return LINK_LOCAL; // fe80::/10
    const upper = first | wordAt(bytes, at + 4) | wordAt(bytes, at + 8);
    const last = wordAt(bytes, at + 12);
    if (upper === 0) return last === 1 ? LOOPBACK : SPECIAL; // ::/96: ::, ::1, IPv4-compatible
    if (this.#own.has(bytes, at, 16)) return OWN_ADDRESS;
    if (first >>> 25 === 0xfc >>> 1 || first >>> 22 === 0xfec0 >>> 6) {
      return this.#allowPrivate ? null : PRIVATE; // fc00::/7, fec0::/10
    }
    // An address that a gateway turns into an IPv4 one is what it is turned into: else
    // 64:ff9b::a9fe:a9fe were a way to 169.254.169.254. NAT64 (RFC 6052) and 6to4 (RFC 3056).
    if (first === 0x0064ff9b && (wordAt(bytes, at + 4) | wordAt(bytes, at + 8)) === 0) {
      return this.#specialIpv4(bytes, at + 12);
    }
    // Nothing else of 0000::/8 is out in the world; some of it leads into IPv4 by other gateways:
    // 64:ff9b:1::/48 (RFC 8215), ::ffff:0:0:0/96 (RFC 2765).
    if (first >>> 24 === 0) return SPECIAL;
    return first >>> 16 === 0x2002 ? this.#specialIpv4(bytes, at + 2) : null;
  }

  #specialIpv4(bytes: Uint8Array, at: number): Verdict | null {
    const [a, b] = [bytes[at]!, bytes[at + 1]!];
    if (a === 127) return LOOPBACK;
    if (a === 169 && b === 254) return LINK_LOCAL;
    // 0.0.0.0 is this host to connect(2); 224/4 is multicast, 240/4 reserved and the broadcast.
    if (a === 0 || a >= 224) return SPECIAL;
    // 192.0.0.0/24 is no network of anybody's (RFC 6890); a cloud has its metadata there.
    if (a === 192 && b === 0 && bytes[at + 2] === 0) return SPECIAL;
    if (this.#own.has(bytes, at, 4)) return OWN_ADDRESS;
    if (this.#allowPrivate) return null;
    // RFC 1918, and RFC 6598 for the inside of a carrier.
    const inside = a === 10 || (a === 172 && b >> 4 === 1) || (a === 192 && b === 168);
    return inside || (a === 100 && b >> 6 === 1) ? PRIVATE : null;
  }
}

class CompiledRule {
  readonly allows: boolean;
  readonly networks: Networks;
  readonly verdict: Verdict;
  readonly #from: Networks;
  readonly #users: ReadonlySet<string>;
  readonly #sites: Sites;
  readonly #ports: readonly PortRange[];

  constructor(rule: Rule) {
    this.allows = rule.action === "allow";
    this.networks = new Networks(rule.networks);
    this.verdict = Object.freeze({ allowed: this.allows, rule: rule.name });
    this.#from = new Networks(rule.from);
    this.#users = new Set(rule.users);
    this.#sites = new Sites(rule.sites);
    this.#ports = rule.ports;
  }

  /** In all but `networks`. */
  matches(
    asker: Asker, name: string, port: number, bytes: Uint8Array, at: number, length: 4 | 16,
  ): boolean {
    if (this.#ports.length > 0 && !inRanges(this.#ports, port)) return false;
    if (this.#users.size > 0 && (asker.user === null || !this.#users.has(asker.user))) return false;
    if (!this.#from.empty && !this.#from.has(asker.bytes, asker.at, asker.length)) return false;
    return this.#sites.empty || this.#sites.has(name, bytes, at, length);
  }
}

/** Names, names behind a dot (all that is below), "" (every literal) and single literals. */
class Sites {
  readonly empty: boolean;
  readonly #sites: ReadonlySet<string>;
  readonly #literals: Networks;
  readonly #anyBelow: boolean;

  constructor(sites: readonly string[]) {
    this.empty = sites.length === 0;
    this.#sites = new Set(sites);
    this.#literals = new Networks(sites.map(literalOf).filter((bytes) => bytes !== null).map(exactly));
    this.#anyBelow = sites.some((site) => site.startsWith("."));
  }

  /** `name` is "" for a literal, and only then the address counts. */
  has(name: string, bytes: Uint8Array, at: number, length: 4 | 16): boolean {
    if (this.#sites.has(name)) return true;
    if (name === "") return this.#literals.has(bytes, at, length);
    if (!this.#anyBelow) return false;
    for (let dot = name.indexOf("."); dot >= 0; dot = name.indexOf(".", dot + 1)) {
      if (this.#sites.has(name.slice(dot))) return true;
    }
    return false;
  }
}

function inRanges(ranges: readonly PortRange[], port: number): boolean {
  for (const { first, last } of ranges) if (port >= first && port <= last) return true;
  return false;
}

const denied = (rule: string): Verdict => Object.freeze({ allowed: false, rule });
const ALLOW_FROM = denied("allow_from");
const ALLOW_SITES = denied("allow_sites");
const DENY_SITES = denied("deny_sites");
const ALLOW_PORTS = denied("allow_ports");
const DENY_PORTS = denied("deny_ports");
const DENY_NETWORKS = denied("deny_networks");
const LOOPBACK = denied("loopback");
const LINK_LOCAL = denied("link-local");
const PRIVATE = denied("private");
const OWN_ADDRESS = denied("own-address");
const SPECIAL = denied("special");
const DEFAULT: Verdict = Object.freeze({ allowed: true, rule: "default" });
/** For a question that no address has a part in. */
const NO_ADDRESS = new Uint8Array(4);
