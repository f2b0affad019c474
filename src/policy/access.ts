/**
 * Who may go where: the egress' access rules, decided for each request. Pure.
 */
import type { Network } from "./network.ts";

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
  /**
   * The name of the rule that decided, or the key: "allow_from", "allow_sites", "deny_sites",
   * "allow_ports", "deny_ports", "deny_networks"; or what the address is: "loopback",
   * "link-local", "private", "own-address", "special"; or "default", when nothing forbade it.
   */
  readonly rule: string;
}

/** The client: `length` bytes at bytes[at], and who it has proved to be. */
export interface Asker {
  readonly bytes: Uint8Array;
  readonly at: number;
  readonly length: 4 | 16;
  readonly user: string | null;
}
