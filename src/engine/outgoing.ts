/**
 * Connections to the outside: which of our addresses each leaves by, and how the socket is made.
 * It opens, and never waits: what becomes of a connection is its owner's to see. TCP_NODELAY, too, is
 * the owner's to set, once there is need for it (relay.ts).
 *
 * An address whose ports are used up, or that the host has lost, is no reason to fail: the next
 * address in the client's own order takes over, which is counted.
 */
import {
  AF_INET, AF_INET6, EADDRNOTAVAIL, EINPROGRESS, EMFILE, ENETUNREACH, IP_BIND_ADDRESS_NO_PORT,
  IP_FREEBIND, SOCKADDR_SIZE, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_IP, SOL_SOCKET, SO_BINDTODEVICE,
  SO_MARK,
} from "../../native-bindings/constants.ts";
import type { Memory, Result, Syscalls } from "../../native-bindings/syscalls.ts";
import { type Affinity, type EgressAddress, EgressPool } from "../policy/egress.ts";
import { isMapped } from "../policy/own.ts";
import type { EgressCounters } from "./egress-counters.ts";
import type { Ledger } from "./ledger.ts";
import { NO_SLOT } from "./slots.ts";

/** Plain data: crosses threads. */
export interface OutgoingSettings {
  readonly mark: number | null;
  /** SO_BINDTODEVICE. */
  readonly iface: string | null;
  /** [] : the kernel chooses. */
  readonly addresses: readonly {
    readonly address: EgressAddress;
    /** Its number in the counters, for the life of the process. */
    readonly slot: number;
    readonly usable: boolean;
  }[];
  readonly affinity: Affinity;
}

export interface OutgoingTools {
  readonly sys: Syscalls;
  readonly ledger: Ledger;
  readonly owner: number;
  readonly exits: EgressCounters;
}

/** Addresses tried for one connection. */
const SPILLS_MAX = 8;

export class Outgoing {
  readonly #tools: OutgoingTools;
  readonly #mark: number | null;
  readonly #pool: EgressPool | null;
  readonly #slots: readonly number[];
  readonly #prefixes: readonly boolean[];
  readonly #device: Memory | null;
  readonly #source: Memory;
  /** Of the connection that open() has opened last. */
  slot = NO_SLOT;
  /** The sockaddr that it was bound to, until the next open(); null: the kernel chooses. */
  bound: Uint8Array | null = null;

  constructor(settings: OutgoingSettings, tools: OutgoingTools) {
    this.#tools = tools;
    this.#mark = settings.mark;
    const { addresses, iface } = settings;
    this.#pool =
      addresses.length === 0
        ? null
        : new EgressPool(addresses.map(({ address }) => address), settings.affinity, Math.random);
    this.#slots = addresses.map(({ slot }) => slot);
    this.#prefixes = addresses.map(({ address: { bytes, prefix } }) => prefix < bytes.length * 8);
    for (const [index, { usable }] of addresses.entries()) this.#pool?.setUsable(index, usable);
    this.#device = iface === null ? null : tools.sys.memory(iface.length + 1);
    for (let i = 0; i < (iface?.length ?? 0); i++) this.#device!.bytes[i] = iface!.charCodeAt(i);
    this.#source = tools.sys.memory(SOCKADDR_SIZE);
  }

  /**
   * A socket that connects, or has connected, to the sockaddr at to[at]: its fd, owned in the
   * ledger, or -errno. The client's sockaddr at client[clientAt] decides by which address.
   */
  open(to: Memory, at: number, client: Uint8Array, clientAt: number): Result {
    this.slot = NO_SLOT;
    this.bound = null;
    const pool = this.#pool;
    if (pool === null) return this.#open(to, at, -1);
    const { exits } = this.#tools;
    const destination = at + addressOffset(to.bytes, at);
    const length = to.bytes[at] === AF_INET6 ? 16 : 4;
    const from = clientAt + addressOffset(client, clientAt);
    const fromLength = client[clientAt] === AF_INET6 && !isMapped(client, clientAt) ? 16 : 4;
    let result = -ENETUNREACH; // No address of that family is in use.
    for (let rank = 0; rank < SPILLS_MAX; rank++) {
      const index = pool.choose(client, from, fromLength, to.bytes, destination, length, rank);
      if (index < 0) break;
      const slot = this.#slots[index]!;
      this.#writeSource(index, length, client, from, fromLength);
      this.bound = this.#source.bytes;
      result = this.#open(to, at, index);
      if (result >= 0) {
        exits.opened(slot);
        this.slot = slot;
        return result;
      }
      if (result !== -EADDRNOTAVAIL) break;
      exits.spilled(slot);
    }
    return result;
  }

  #writeSource(
    index: number, length: number, client: Uint8Array, from: number, fromLength: 4 | 16,
  ): void {
    const { bytes } = this.#source;
    bytes.fill(0);
    bytes[0] = length === 4 ? AF_INET : AF_INET6;
    this.#pool!.writeSource(index, client, from, fromLength, bytes, length === 4 ? 4 : 8);
  }

  #open(to: Memory, at: number, index: number): Result {
    const { sys, ledger, owner } = this.#tools;
    const family = to.bytes[at]!;
    const fd = sys.socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return fd;
    let result = ledger.own(fd, owner) ? this.#prepare(fd, to.bytes, at, index) : -EMFILE;
    if (result >= 0) {
      result = sys.connect(fd, to, at, family === AF_INET6 ? 28 : 16);
      if (result >= 0 || result === -EINPROGRESS) return fd;
    }
    ledger.disown(fd);
    sys.close(fd);
    return result;
  }

  #prepare(fd: number, to: Uint8Array, at: number, index: number): Result {
    const { sys } = this.#tools;
    let result = 0;
    if (this.#mark !== null) result = sys.setsockopt(fd, SOL_SOCKET, SO_MARK, this.#mark);
    if (result >= 0 && this.#device !== null && isGlobal(to, at)) {
      const { bytes } = this.#device;
      result = sys.setsockoptBytes(fd, SOL_SOCKET, SO_BINDTODEVICE, this.#device, 0, bytes.length);
    }
    if (result < 0 || index < 0) return result;
    // The port is chosen by connect(2), which knows the destination: so each address has all its
    // ports for each destination, not for all of them together (ip(7)).
    result = sys.setsockopt(fd, SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1);
    // Of a prefix the host need not have every address.
    if (result >= 0 && this.#prefixes[index]!) result = sys.setsockopt(fd, SOL_IP, IP_FREEBIND, 1);
    if (result < 0) return result;
    return sys.bind(fd, this.#source, 0, to[at] === AF_INET6 ? 28 : 16);
  }
}

/** Where in a sockaddr the address stands; of a v4-mapped one, its IPv4 address. */
function addressOffset(bytes: Uint8Array, at: number): number {
  if (bytes[at] !== AF_INET6) return 4;
  return isMapped(bytes, at) ? 20 : 8;
}

/** As Go's IsGlobalUnicast: whatever is not loopback, link-local, multicast or unspecified. */
function isGlobal(bytes: Uint8Array, at: number): boolean {
  const start = at + addressOffset(bytes, at);
  const first = bytes[start]!;
  if (bytes[at] !== AF_INET6) {
    const linkLocal = first === 169 && bytes[start + 1] === 254;
    return first !== 0 && first !== 127 && first < 224 && !linkLocal;
  }
  if (first === 0xff || (first === 0xfe && (bytes[start + 1]! & 0xc0) === 0x80)) return false;
  for (let i = 0; i < 15; i++) if (bytes[start + i] !== 0) return true;
  return bytes[start + 15]! > 1;
}
