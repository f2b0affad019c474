/**
 * A process that searches seeds in whichever way its Node has for it, and says on standard output
 * what it has found and whether that was by SIMD. The searches are the same in each process; how
 * many is its argument.
 */
import { fileURLToPath } from "node:url";
import { HASH_MAX, Seeds } from "../../src/policy/seeds.ts";

export interface Found {
  simd: boolean;
  positions: number[];
}

export interface Searched {
  seeds: number[];
  client: number;
  factor: number;
  most: number;
  from: number;
  to: number;
}

/** In 33 to 4,096 seeds, of which no two are alike. */
export function searches(many: number): Searched[] {
  let state = 1;
  const next = () => {
    state = Math.imul(state, 0x9e3779b1) + 0x7f4a7c15;
    return Math.imul(state ^ (state >>> 15), 0x85ebca6b);
  };
  const below = (count: number) => (next() >>> 0) % count;
  return Array.from({ length: many }, (_, i) => {
    const count = 33 + below(i % 8 === 0 ? 4064 : 300);
    const seeds = [...new Set(Array.from({ length: count }, next))];
    const from = i % 2 === 0 ? 0 : below(seeds.length - 1);
    const to = i % 2 === 0 ? seeds.length : from + 1 + below(seeds.length - from);
    return { seeds, client: next(), factor: next() | 1, most: i % 3 === 0 ? HASH_MAX : next(), from, to };
  });
}

function found(many: number): Found {
  const { WebAssembly } = globalThis as { WebAssembly?: { Instance: new () => object } };
  let instances = 0;
  if (WebAssembly !== undefined) {
    WebAssembly.Instance = new Proxy(WebAssembly.Instance, {
      construct(target, parameters: []) {
        instances++;
        return new target(...parameters);
      },
    });
  }
  const positions = searches(many).map(({ seeds, client, factor, most, from, to }) => {
    const searched = new Seeds(seeds.length);
    searched.fill(seeds);
    return searched.greatest(client, factor, most, from, to);
  });
  return { simd: instances > 0, positions };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) console.log(JSON.stringify(found(Number(process.argv[2]))));
