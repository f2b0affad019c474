/**
 * Where new tunnels are dialled, and how they are kept: what the engine needs of a configuration,
 * as main sends it to a worker (plain data) and as the worker keeps it (ready for the kernel).
 */
import { AF_INET, SOCKADDR_SIZE } from "../../native-bindings/constants.ts";
import type { Memory, Syscalls } from "../../native-bindings/syscalls.ts";
import { type Cause, PRESETS, type Trust } from "../policy/cause.ts";
import type { Own } from "../policy/own.ts";
import type { EgressSettings } from "./egress.ts";
import type { TruthfulSettings } from "./syns.ts";
import type { Credentials, Destination, Disclosed, Handshake } from "../protocol/handshake.ts";
import { HttpConnect } from "../protocol/http-connect.ts";
import { Socks4Client } from "../protocol/socks4-client.ts";
import { Socks5Client } from "../protocol/socks5-client.ts";

export interface UpstreamSettings {
  readonly kind: "direct" | "socks5" | "socks4" | "http";
  /** In the order in which they are to be tried. */
  readonly addresses: readonly UpstreamAddress[];
  readonly credentials: Credentials | null;
  readonly pipelined: boolean;
  readonly trust: Trust;
  readonly disclosed: Disclosed;
  /** The client may read an answer that refuses, of HTTP; else it is reset. */
  readonly forwards: boolean;
}

/** Crosses threads: data only. */
export interface Settings {
  /** There is a transparent proxy; else `mode` and `upstream` say nothing. */
  readonly transparent: boolean;
  readonly mode: "redirect" | "tproxy";
  /** SYNs are held until it is known what becomes of them. null: connections are as they come. */
  readonly truthful: TruthfulSettings | null;
  /** null: there is no SOCKS server. */
  readonly egress: EgressSettings | null;
  readonly upstream: UpstreamSettings;
  /** What a client is told where the cause is unknown. */
  readonly unknownAs: Cause;
  /** Listening sockets that lead to another upstream than `upstream`. */
  readonly relays: readonly { readonly fds: readonly number[]; readonly upstream: UpstreamSettings }[];
  readonly mark: number | null;
  readonly whenFull: "wait" | "reset";
  readonly dialMs: number;
  readonly handshakeMs: number;
  readonly halfClosedMs: number;
  readonly idleMs: number;
  readonly keepaliveIdleMs: number;
  readonly keepaliveIntervalMs: number;
  readonly keepaliveProbes: number;
  readonly userTimeoutMs: number;
  readonly own: Own;
  /** What has failed is to be journalled, and what succeeds although it stands here (learnt.ts). null: neither. */
  readonly learnt: SharedArrayBuffer | null;
  /** Journal every tunnel, not only those that an operator must hear of. */
  readonly journalAll: boolean;
}

export interface UpstreamAddress {
  /** A sockaddr of 16 or 28 bytes. */
  readonly bytes: Uint8Array;
  /** Its number in the counters. */
  readonly slot: number;
  /** Nobody is to be dialled there any more; who is connected stays. */
  readonly drained: boolean;
}

export interface Address {
  readonly memory: Memory;
  readonly length: number;
  readonly slot: number;
}

export class Upstream {
  readonly kind: UpstreamSettings["kind"];
  /** Those that may be dialled. */
  readonly addresses: readonly Address[];
  readonly #all: readonly Address[];
  /** What its answers say of the destination. */
  readonly trust: Trust;
  readonly #credentials: Credentials | null;
  readonly #pipelined: boolean;
  readonly #disclosed: Disclosed;
  readonly forwards: boolean;
  /** The address that answered last: the next dial begins with it. */
  preferred = 0;

  constructor(settings: UpstreamSettings, sys: Syscalls) {
    this.kind = settings.kind;
    this.trust = settings.trust;
    this.#credentials = settings.credentials;
    this.#pipelined = settings.pipelined;
    this.#disclosed = settings.disclosed;
    this.forwards = settings.forwards && settings.kind === "http";
    this.#all = settings.addresses.map(({ bytes, slot }) => {
      const memory = sys.memory(SOCKADDR_SIZE);
      memory.bytes.set(bytes);
      return { memory, length: bytes.length, slot };
    });
    this.addresses = this.#all.filter((_, i) => !settings.addresses[i]!.drained);
  }

  /** It is told who asks. */
  get discloses(): boolean {
    return this.#disclosed !== "off" && this.kind === "http";
  }

  /** Not for "direct", which has no handshake. `client`: if it discloses. */
  handshake(destination: Destination, client: Destination | null): Handshake {
    switch (this.kind) {
      case "http":
        return new HttpConnect(destination, this.#credentials, client === null ? null : { as: this.#disclosed, client });
      case "socks4":
        return new Socks4Client(destination, this.#credentials);
      default:
        return new Socks5Client(destination, this.#credentials, this.#pipelined, this.trust.reports);
    }
  }

  /** Its protocol has room for an address of this family. */
  carries(family: number): boolean {
    return this.kind !== "socks4" || family === AF_INET;
  }

  /** The sockaddr is that of the upstream itself: nobody asks a proxy for the proxy. */
  isItself(bytes: Uint8Array, at: number): boolean {
    for (const { memory, length } of this.#all) {
      if (sameAddress(memory.bytes, length, bytes, at)) return true;
    }
    return false;
  }
}

/** No upstream at all. */
export const DIRECT: UpstreamSettings = {
  kind: "direct", addresses: [], credentials: null, pipelined: false, trust: PRESETS.nothing,
  disclosed: "off", forwards: false,
};

/** Family, port and address are the same; flow label and scope do not count. */
function sameAddress(a: Uint8Array, length: number, b: Uint8Array, at: number): boolean {
  // The port first: it nearly always settles it.
  if (a[2] !== b[at + 2] || a[3] !== b[at + 3] || a[0] !== b[at]) return false;
  const [start, end] = length === 16 ? [4, 8] : [8, 24];
  for (let i = start; i < end; i++) if (a[i] !== b[at + i]) return false;
  return true;
}
