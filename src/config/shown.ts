/** A Config as it may be shown to anybody: addresses and networks as texts, secrets left out. */
import type { Config } from "./config.ts";
import { addressText } from "./endpoint.ts";

export const SECRET = "(secret)";

/** Whatever stands under these keys is not shown, at any depth. */
const SECRETS: ReadonlySet<string> = new Set(["credentials", "secret", "token", "password"]);

/** Plain data, for JSON. */
export function shownConfig(config: Config): unknown {
  return shown(config);
}

function shown(value: unknown): unknown {
  if (typeof value !== "object" || value === null) return value;
  if (Array.isArray(value)) return value.map(shown);
  if (ArrayBuffer.isView(value)) return "(bytes)";
  const { text, bytes, prefix, weight } = value as Record<string, unknown>;
  if (bytes instanceof Uint8Array && typeof text === "string") return text;
  if (bytes instanceof Uint8Array && typeof prefix === "number") {
    const network = prefix === bytes.length * 8 ? addressText(bytes) : `${addressText(bytes)}/${prefix}`;
    return weight === undefined || weight === 1 ? network : { address: network, weight };
  }
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) => [key, SECRETS.has(key) && inner !== null ? SECRET : shown(inner)]),
  );
}
