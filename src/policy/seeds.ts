/**
 * The seeds of addresses, side by side, and the search for the one whose hash with a client is the
 * greatest: all that a client costs whom nobody remembers. Pure.
 *
 * A hash is one xor and one multiplication, so WebAssembly's SIMD takes four seeds at once. Where
 * there is none (node --jitless, x86-64 without SSE4.1), or no room for it, JavaScript goes through
 * the seeds one by one: slower, with the same answer.
 */
import { simdSearch } from "./simd-search.ts";

/** Hashes are signed, of 32 bits. */
export const HASH_MAX = 2 ** 31 - 1;

/** So few are searched without SIMD: to make that ready takes 0.5 ms and 64 KiB. */
const PLAIN_MAX = 32;
/** What the module looks at in one go; of fewer it can say nothing. */
const BLOCK = 16;
const PAGE_BYTES = 65_536;

export class Seeds {
  readonly #seeds: Int32Array;
  readonly #search: Search | null;

  /** Room for `count`. */
  constructor(count: number) {
    const simd = count > PLAIN_MAX ? instantiate(4 * count) : null;
    this.#seeds = simd ? new Int32Array(simd.memory.buffer, 0, count) : new Int32Array(count);
    this.#search = simd ? simd.search : null;
  }

  /** Those from position 0 on. */
  fill(seeds: readonly number[]): void {
    this.#seeds.set(seeds);
  }

  /** Of a client and the seed at a position; one to one, where the client's factor is odd. */
  hash(client: number, factor: number, position: number): number {
    return Math.imul(client ^ this.#seeds[position]!, factor);
  }

  /**
   * The position in [from, to), not empty, of the greatest hash that is not above `most`. Should
   * all be above, that of the greatest.
   */
  greatest(client: number, factor: number, most: number, from: number, to: number): number {
    // Hashes lie on a circle. Turned so that `most` is where the greatest was, it is the greatest,
    // and those that are above it come last.
    const turn = (HASH_MAX - most) | 0;
    if (this.#search !== null && to - from >= BLOCK) {
      return this.#search(client, factor, turn, 4 * from, 4 * (to - BLOCK));
    }
    const seeds = this.#seeds;
    let best = (Math.imul(client ^ seeds[from]!, factor) + turn) | 0;
    let position = from;
    for (let at = from + 1; at < to; at++) {
      const turned = (Math.imul(client ^ seeds[at]!, factor) + turn) | 0;
      if (turned > best) {
        best = turned;
        position = at;
      }
    }
    return position;
  }
}

/** simd-search.ts says what of. */
type Search = (client: number, factor: number, turn: number, at: number, last: number) => number;

interface Memory {
  readonly buffer: ArrayBuffer;
}

/** What is used of it: the types of Node do not have it. With --jitless Node itself has not. */
declare const WebAssembly:
  | {
      validate(bytes: Uint8Array): boolean;
      readonly Memory: new (pages: { initial: number; maximum: number }) => Memory;
      readonly Module: new (bytes: Uint8Array) => object;
      readonly Instance: new (module: object, imports: object) => { readonly exports: object };
    }
  | undefined;

/** null: there is no SIMD here, or no room. */
function instantiate(bytes: number): { memory: Memory; search: Search } | null {
  if (typeof WebAssembly === "undefined") return null;
  const code = simdSearch();
  if (!WebAssembly.validate(code)) return null;
  const pages = Math.ceil(bytes / PAGE_BYTES);
  try {
    const memory = new WebAssembly.Memory({ initial: pages, maximum: pages });
    const module = new WebAssembly.Module(code);
    const { exports } = new WebAssembly.Instance(module, { m: { m: memory } });
    return { memory, search: (exports as { f: Search }).f };
  } catch (error) {
    // V8 sets 8 or 10 GiB of address space aside for any memory, which `ulimit -v` may forbid.
    if (error instanceof RangeError) return null;
    throw error;
  }
}
