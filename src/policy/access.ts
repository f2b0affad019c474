/** The settings of who may go where. Declared ahead of the code that uses them. */
import type { Network } from "./network.ts";

export interface PortRange {
  readonly first: number;
  readonly last: number;
}

export interface Rule {
  readonly name: string;
  readonly action: "allow" | "deny";
  readonly from: readonly Network[];
  readonly users: readonly string[];
  readonly sites: readonly string[];
  readonly networks: readonly Network[];
  readonly ports: readonly PortRange[];
}

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
