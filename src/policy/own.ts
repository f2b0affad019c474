/**
 * Which addresses are this host's own: a connection whose destination is one of our own listeners
 * would come back to us for ever. Pure; main tells it the host's addresses and when they change.
 *
 * Addresses are struct sockaddr_in or sockaddr_in6 at an offset; v4-mapped ones count as IPv4.
 */
import { holdsIpv4, type Network, Networks } from "./network.ts";

export interface Own {
  /** Sockaddrs that we listen on. */
  readonly listening: readonly Uint8Array[];
  /** What the kernel delivers to this host itself: its addresses, and networks routed to it. */
  readonly local: readonly Network[];
}

const AF_INET = 2;
const PORT = 2;
const ADDRESS_4 = 4;
const ADDRESS_6 = 8;

/** The bytes of the address in a sockaddr: 4 for IPv4 and v4-mapped, else 16. */
export function addressOf(bytes: Uint8Array, at: number): Uint8Array {
  if (bytes[at] === AF_INET) return bytes.subarray(at + ADDRESS_4, at + ADDRESS_4 + 4);
  const start = at + ADDRESS_6;
  return isMapped(bytes, at) ? bytes.subarray(start + 12, start + 16) : bytes.subarray(start, start + 16);
}

/** A sockaddr_in6 that holds an IPv4 address (::ffff:a.b.c.d). */
export function isMapped(bytes: Uint8Array, at: number): boolean {
  return holdsIpv4(bytes, at + ADDRESS_6);
}

export function portOf(bytes: Uint8Array, at: number): number {
  return (bytes[at + PORT]! << 8) | bytes[at + PORT + 1]!;
}

export class OwnAddresses {
  readonly #listening: readonly { port: number; address: Uint8Array }[];
  readonly #local: Networks;

  constructor(own: Own) {
    this.#listening = own.listening.map((bytes) => ({
      port: portOf(bytes, 0),
      address: addressOf(bytes, 0),
    }));
    this.#local = new Networks(own.local);
  }

  /** The destination is one of our listeners, in any of the forms that reach it. */
  isListener(bytes: Uint8Array, at: number): boolean {
    const port = portOf(bytes, at);
    for (const listener of this.#listening) {
      if (listener.port === port && this.#reaches(addressOf(bytes, at), listener.address)) return true;
    }
    return false;
  }

  /** The address, whatever its port, is this host's. */
  isLocal(bytes: Uint8Array, at: number): boolean {
    const address = addressOf(bytes, at);
    return isLoopback(address) || this.#isLocal(address);
  }

  #isLocal(address: Uint8Array): boolean {
    return this.#local.has(address, 0, address.length as 4 | 16);
  }

  #reaches(address: Uint8Array, listener: Uint8Array): boolean {
    if (isWildcard(address)) return true;
    if (isWildcard(listener)) return isLoopback(address) || this.#isLocal(address);
    return (isLoopback(address) && isLoopback(listener)) || address.join() === listener.join();
  }
}

const isWildcard = (address: Uint8Array): boolean => address.every((byte) => byte === 0);

const isLoopback = (address: Uint8Array): boolean =>
  address.length === 4
    ? address[0] === 127
    : address[15] === 1 && address.subarray(0, 15).every((byte) => byte === 0);
