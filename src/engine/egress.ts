/**
 * What the SOCKS server is told of a configuration: as main sends it (plain data), and as a worker
 * keeps it. A session keeps the one that it was begun with.
 */
import { Access, type AccessSettings } from "../policy/access.ts";
import { type Network, Networks } from "../policy/network.ts";
import { Outgoing, type OutgoingSettings, type OutgoingTools } from "./outgoing.ts";
import type { Quota } from "./quota.ts";

export interface EgressSettings {
  readonly access: AccessSettings;
  /** Users are configured: a client must be one of them. */
  readonly login: boolean;
  readonly proxyProtocolFrom: readonly Network[];
  readonly perClient: Quota;
  readonly perUser: Quota;
  /** Of all clients together: only how fast they come. */
  readonly inAll: Quota;
  readonly outgoing: OutgoingSettings;
  /** Everything that may forbid something, and where it is counted. */
  readonly ruleSlots: readonly { readonly rule: string; readonly slot: number }[];
  readonly negotiationMs: number;
  readonly dnsMs: number;
}

/** Remembered logins. They are dropped all at once: who comes again is verified again. */
const LOGINS_MAX = 1024;

export class Egress {
  readonly settings: EgressSettings;
  readonly access: Access;
  readonly proxies: Networks;
  readonly outgoing: Outgoing;
  readonly #ruleSlots: ReadonlyMap<string, number>;
  /** Main has found these right, by a hash that takes its time; that is done once for each. */
  readonly #logins = new Map<string, Uint8Array>();

  constructor(settings: EgressSettings, own: readonly Network[], tools: OutgoingTools) {
    this.settings = settings;
    // A prefix of the pool is this host, also while it is not routed here.
    const sources = settings.outgoing.addresses.map(({ address }) => address);
    this.access = new Access(settings.access, [...own, ...sources]);
    this.proxies = new Networks(settings.proxyProtocolFrom);
    this.outgoing = new Outgoing(settings.outgoing, tools);
    this.#ruleSlots = new Map(settings.ruleSlots.map(({ rule, slot }) => [rule, slot]));
  }

  /** Where the rule is counted. */
  ruleSlot(rule: string): number | undefined {
    return this.#ruleSlots.get(rule);
  }

  remember(user: string, password: Uint8Array): void {
    if (this.#logins.size >= LOGINS_MAX) this.#logins.clear();
    this.#logins.set(user, password.slice());
  }

  /** True if main has found exactly this login right, under this configuration. */
  remembers(user: string, password: Uint8Array): boolean {
    const known = this.#logins.get(user);
    if (known === undefined || known.length !== password.length) return false;
    // All bytes, whatever the first difference: the time must not tell how far it was right.
    let difference = 0;
    for (let i = 0; i < known.length; i++) difference |= known[i]! ^ password[i]!;
    return difference === 0;
  }
}
