/**
 * What the arrays of the file hold: one reader for each sort of item.
 */
import { domainToASCII } from "node:url";
import type { AST } from "toml-eslint-parser";
import type { PortRange } from "../policy/access.ts";
import type { EgressAddress } from "../policy/egress.ts";
import { normalisedSite } from "../policy/name.ts";
import type { Network } from "../policy/network.ts";
import { addressText, rangeOf, socketAddress } from "./endpoint.ts";
import { hostFault } from "./listen.ts";
import { parseNetwork } from "./network.ts";
import { nearest, quoted } from "./problem.ts";
import type { Item } from "./settings.ts";
import { foundText, integerOf, namesOf, stringOf } from "./toml.ts";

const PORT_MAX = 65_535;
/** RFC 1929 has one byte for the length. */
export const USER_BYTES_MAX = 255;
const WEIGHT_MIN = 0.001;
const WEIGHT_MAX = 1000;
/** A reversed IPv6 address takes 64 of the 253 characters of a name. */
const ZONE_CHARACTERS_MAX = 188;

/** Says what is wrong, as what follows "found ...", and answers what stands for no item. */
type Fail = (hint?: string) => undefined;
type Reader<T> = (node: AST.TOMLContentNode, fail: Fail) => T | undefined;

export const ITEM_READERS: { readonly [I in Item]: Reader<unknown> } = {
  network: text((written, fail): Network | undefined => {
    const network = parseNetwork(written);
    if (typeof network === "string") return fail(network);
    return { bytes: network.bytes, prefix: network.prefix };
  }),
  site: text((written) => normalisedSite(written, domainToASCII)),
  port: (node, fail) => readPorts(node, fail),
  source: (node, fail) => readSource(node, fail),
  ip: text(readHost),
  zone: text((written, fail): string | undefined => {
    const zone = written.toLowerCase().replace(/\.$/, "");
    const sound = /^[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*$/.test(zone);
    return sound && zone.length <= ZONE_CHARACTERS_MAX ? zone : fail(", which is not a domain");
  }),
  interface: text((written, fail) => (isInterface(written) ? written : fail())),
  account: text((written, fail) => (isAccount(written) ? written : fail())),
  cgroup: text((written, fail) => (/^\/?[\w@:.-]+(?:\/[\w@:.-]+)*\/?$/.test(written) ? written : fail())),
  host: text((written, fail) => {
    const name = written.toLowerCase();
    return /^[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*$/.test(name) && name.length <= 253 ? name : fail(", which is no name");
  }),
  user: text((written, fail) => {
    const wrong = userFault(written);
    return wrong === null ? written : fail(`, which ${wrong}`);
  }),
};

/** An address to listen on, without a port; a wildcard of either family is "::". */
export function readHost(written: string, fail: Fail): string | undefined {
  const wrong = hostFault(written, ", which", (ip) => `"${ip}"`);
  if (wrong !== null) return fail(wrong);
  if (rangeOf(written)?.range === "wildcard") return "::";
  // The same address must be the same text.
  return socketAddress(written, 1)!.text.replace(/:1$/, "").replace(/^\[|\]$/g, "");
}

/** Why no client can say this name, or null. */
export function userFault(name: string): string | null {
  const { length } = new TextEncoder().encode(name);
  if (length === 0) return "is empty";
  if (length > USER_BYTES_MAX) return `has more than ${USER_BYTES_MAX} bytes`;
  return /\p{Cc}/u.test(name) ? "holds a control character" : null;
}

/** The name or number of a user or a group of this host, as useradd(8) makes them. */
export const isAccount = (name: string): boolean => /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\$?$/.test(name);

/** IFNAMSIZ in <linux/if.h>, less the NUL; and what a rule can say without quoting. */
function isInterface(name: string): boolean {
  return /^[\w.@-]{1,15}$/.test(name) && name !== "." && name !== ".." && !name.startsWith("-");
}

function text<T>(read: (written: string, fail: Fail) => T | undefined): Reader<T> {
  return (node, fail) => {
    const written = stringOf(node);
    return written === null ? fail() : read(written, fail);
  };
}

function readPorts(node: AST.TOMLContentNode, fail: Fail): PortRange | undefined {
  const port = integerOf(node);
  if (port !== null) return port >= 0 && port <= PORT_MAX ? { first: port, last: port } : fail();
  const written = stringOf(node);
  if (written === null) return fail();
  if (/^[0-9]+$/.test(written)) return fail(", a string; one port stands without quotes");
  const match = /^([0-9]{1,5})-([0-9]{1,5})$/.exec(written);
  if (match === null) return fail();
  const [first, last] = [Number(match[1]), Number(match[2])];
  if (last > PORT_MAX) return fail();
  return first <= last ? { first, last } : fail(", whose end is before its beginning");
}

function readSource(node: AST.TOMLContentNode, fail: Fail): EgressAddress | undefined {
  const written = stringOf(node);
  if (written !== null) return source(written, 1, (hint) => fail(hint));
  if (node.type !== "TOMLInlineTable") return fail();
  let weight: number | undefined = 1;
  let address: string | null = null;
  for (const pair of node.body) {
    const key = namesOf(pair.key).join(".");
    if (key === "weight") {
      weight = readWeight(pair.value);
      if (weight === undefined) {
        const range = `a number from ${WEIGHT_MIN} to ${WEIGHT_MAX}`;
        return fail(` whose weight is ${foundText(pair.value)} and not ${range}`);
      }
    } else if (key === "address") {
      address = stringOf(pair.value);
      if (address === null) return fail(` whose address is ${foundText(pair.value)}`);
    } else {
      const near = nearest(key, ["address", "weight"]);
      return fail(
        ` with the key ${quoted(key)}${near === null ? "" : ` (did you mean ${near}?)`}`,
      );
    }
  }
  if (address === null) return fail(" without an address");
  const shown = quoted(address);
  return source(address, weight, (hint) => fail(` with the address ${shown}${hint}`));
}

function source(
  written: string, weight: number, fail: (hint: string) => undefined,
): EgressAddress | undefined {
  const network = parseNetwork(written);
  if (typeof network === "string") return fail(network);
  const { bytes, prefix } = network;
  if (bytes.length === 4 && prefix < 32) {
    return fail(", an IPv4 network; its addresses stand one by one");
  }
  if (network.hostBits) {
    const address = written.slice(0, written.indexOf("/"));
    return fail(`, where bits are set after the prefix; one address is ${quoted(address)}`);
  }
  if (prefix === 0) return fail(", which is all addresses");
  const range = rangeOf(addressText(bytes))?.range;
  if (prefix === bytes.length * 8 && range === "wildcard") {
    return fail(", which is no address to leave from; without addresses the kernel chooses");
  }
  if (range === "multicast") return fail(", which is no address to leave from");
  if (range === "link-local" && bytes.length === 16) {
    return fail(", a link-local address, which leads nowhere; use iface");
  }
  return { bytes, prefix, weight };
}

function readWeight(node: AST.TOMLContentNode): number | undefined {
  if (node.type !== "TOMLValue" || (node.kind !== "integer" && node.kind !== "float")) {
    return undefined;
  }
  const weight = Number(node.value);
  return weight >= WEIGHT_MIN && weight <= WEIGHT_MAX ? weight : undefined;
}
