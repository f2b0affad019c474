/**
 * How a user's password stands in the file: "scrypt:N:r:p:SALT:HASH" as `transplice passwd` writes
 * it, or, if it begins otherwise, the password itself.
 */

export type Secret =
  | {
      readonly kind: "scrypt";
      readonly N: number;
      readonly r: number;
      readonly p: number;
      readonly salt: Uint8Array;
      readonly hash: Uint8Array;
    }
  | { readonly kind: "clear"; readonly password: Uint8Array };

/** 128 * N * r bytes: what one verification may take of memory. */
const MEMORY_MAX = 64 * 2 ** 20;
/** Blocks of 128 bytes: what it may take of time; hashPassword's own take an eighth of it. */
const WORK_MAX = 2 ** 20;

const HASH = /^scrypt:([0-9]{1,8}):([0-9]{1,3}):([0-9]{1,3}):([A-Za-z0-9+/]{11,86}={0,2}):([A-Za-z0-9+/]{22,86}={0,2})$/;

/** null: it begins as a hash, and is none. */
export function parseSecret(text: string): Secret | null {
  if (!text.startsWith("scrypt:")) {
    return { kind: "clear", password: new TextEncoder().encode(text) };
  }
  const match = HASH.exec(text);
  if (match === null) return null;
  const [N, r, p] = match.slice(1, 4).map(Number) as [number, number, number];
  if (N < 2 || (N & (N - 1)) !== 0 || r < 1 || p < 1) return null;
  if (128 * N * r > MEMORY_MAX || N * r * p > WORK_MAX) return null;
  const [salt, hash] = match.slice(4).map(bytesOf) as [Uint8Array, Uint8Array];
  return { kind: "scrypt", N, r, p, salt, hash };
}

const bytesOf = (base64: string): Uint8Array => new Uint8Array(Buffer.from(base64, "base64"));
