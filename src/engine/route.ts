/**
 * Where new tunnels are dialled, and how they are kept: what the engine needs of a configuration,
 * as main sends it to a worker (plain data) and as the worker keeps it (ready for the kernel).
 */
import { SOCKADDR_SIZE } from "../../native-bindings/constants.ts";
import type { Memory, Syscalls } from "../../native-bindings/syscalls.ts";
import { type Cause, PRESETS, type Trust } from "../policy/cause.ts";
import type { Own } from "../policy/own.ts";
import type { EgressSettings } from "./egress.ts";
import type { Credentials, Destination, Handshake } from "../protocol/handshake.ts";
import { HttpConnect } from "../protocol/http-connect.ts";
import { Socks5Client } from "../protocol/socks5-client.ts";

/** Crosses threads: data only. */
export interface Settings {
  /** There is a transparent proxy; else `mode` and `upstream` say nothing. */
  readonly transparent: boolean;
  readonly mode: "redirect" | "tproxy";
  /** null: there is no SOCKS server. */
  readonly egress: EgressSettings | null;
  readonly upstream: {
    readonly kind: "direct" | "socks5" | "http";
    /** Sockaddrs of 16 or 28 bytes, in the order in which they are to be tried. */
    readonly addresses: readonly Uint8Array[];
    readonly credentials: Credentials | null;
    readonly pipelined: boolean;
    readonly trust: Trust;
  };
  /** What a client is told where the cause is unknown. */
  readonly unknownAs: Cause;
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
  /** Journal every tunnel, not only those that an operator must hear of. */
  readonly journalAll: boolean;
}

export interface Address {
  readonly memory: Memory;
  readonly length: number;
}

export class Upstream {
  readonly kind: "direct" | "socks5" | "http";
  readonly addresses: readonly Address[];
  /** What its answers say of the destination. */
  readonly trust: Trust;
  readonly #credentials: Credentials | null;
  readonly #pipelined: boolean;
  /** The address that answered last: the next dial begins with it. */
  preferred = 0;

  constructor(settings: Settings["upstream"], sys: Syscalls) {
    this.kind = settings.kind;
    this.trust = settings.trust;
    this.#credentials = settings.credentials;
    this.#pipelined = settings.pipelined;
    this.addresses = settings.addresses.map((bytes) => {
      const memory = sys.memory(SOCKADDR_SIZE);
      memory.bytes.set(bytes);
      return { memory, length: bytes.length };
    });
  }

  /** Not for "direct", which has no handshake. */
  handshake(destination: Destination): Handshake {
    return this.kind === "http"
      ? new HttpConnect(destination, this.#credentials)
      : new Socks5Client(destination, this.#credentials, this.#pipelined);
  }

  /** The sockaddr is that of the upstream itself: nobody asks a proxy for the proxy. */
  isItself(bytes: Uint8Array, at: number): boolean {
    for (const { memory, length } of this.addresses) {
      if (sameAddress(memory.bytes, length, bytes, at)) return true;
    }
    return false;
  }
}

/** No upstream at all. */
export const DIRECT: Settings["upstream"] = {
  kind: "direct", addresses: [], credentials: null, pipelined: false, trust: PRESETS.nothing,
};

/** Family, port and address are the same; flow label and scope do not count. */
function sameAddress(a: Uint8Array, length: number, b: Uint8Array, at: number): boolean {
  // The port first: it nearly always settles it.
  if (a[2] !== b[at + 2] || a[3] !== b[at + 3] || a[0] !== b[at]) return false;
  const [start, end] = length === 16 ? [4, 8] : [8, 24];
  for (let i = start; i < end; i++) if (a[i] !== b[at + i]) return false;
  return true;
}
