/**
 * "10.0.0.0/8", "2001:db8::7" -> the bytes of a network. Literals only. An IPv4 network in IPv6
 * clothes (::ffff:10.0.0.0/104) is an IPv4 network.
 */
import type { Network } from "../policy/network.ts";
import { addressBytes } from "./endpoint.ts";
import { quoted } from "./problem.ts";

export interface WrittenNetwork extends Network {
  /** Bits past the prefix were set: 10.0.0.1/8. */
  readonly hostBits: boolean;
  /** There was a slash. */
  readonly written: "address" | "network";
}

/** A text instead of a network: what is wrong with it, as what follows "found ...". */
export function parseNetwork(text: string): WrittenNetwork | string {
  const slash = text.indexOf("/");
  const host = slash === -1 ? text : text.slice(0, slash);
  const address = addressBytes(host);
  if (address === null) {
    if (host.includes("%")) return " with an interface, which a network does not have";
    const what = slash === -1 ? "" : `, where ${quoted(host)}`;
    return /[A-Za-z]/.test(host) && !host.includes(":")
      ? `${what === "" ? ", which" : what} is not an address (names are not resolved)`
      : `${what === "" ? ", which" : what} is not an address`;
  }
  const bits = address.length * 8;
  if (slash === -1) return { bytes: address, prefix: bits, hostBits: false, written: "address" };
  const mapped = host.includes(":") && address.length === 4;
  const least = mapped ? 96 : 0;
  const given = text.slice(slash + 1);
  const length = /^[0-9]{1,3}$/.test(given) ? Number(given) : -1;
  if (length < least || length > least + bits) {
    return `, where ${quoted(`/${given}`)} is not a prefix from /${least} to /${least + bits}`;
  }
  const prefix = length - least;
  const bytes = masked(address, prefix);
  const hostBits = bytes.some((byte, i) => byte !== address[i]);
  return { bytes, prefix, hostBits, written: "network" };
}

function masked(address: Uint8Array, prefix: number): Uint8Array {
  return address.map((byte, i) => {
    const kept = Math.min(8, Math.max(0, prefix - 8 * i));
    return byte & (0xff << (8 - kept));
  });
}
