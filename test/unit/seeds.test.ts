/** The search for the greatest hash: by SIMD and without it, the same that a slow one finds. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import path from "node:path";
import { describe, it } from "node:test";
import fc from "fast-check";
import { HASH_MAX, Seeds } from "../../src/policy/seeds.ts";
import { type Found, type Searched, searches } from "./seeds-child.ts";

const HASH_MIN = -(2 ** 31);
const word = fc.integer({ min: HASH_MIN, max: HASH_MAX });
const odd = word.map((each) => each | 1);

function slowly({ seeds, client, factor, most, from, to }: Searched): number {
  const hash = (position: number) => Math.imul(client ^ seeds[position]!, factor);
  const all = Array.from({ length: to - from }, (_, i) => from + i).sort((a, b) => hash(b) - hash(a));
  return all.find((position) => hash(position) <= most) ?? all[0]!;
}

function quickly({ seeds, client, factor, most, from, to }: Searched): number {
  const searched = new Seeds(seeds.length);
  searched.fill(seeds);
  return searched.greatest(client, factor, most, from, to);
}

/** Up to 200 seeds, all of them or some in a row, under a bound that is often one of the hashes, or beside it. */
const anySearch = fc
  .tuple(fc.uniqueArray(word, { minLength: 1, maxLength: 200, size: "max" }), word, odd, fc.nat(), fc.nat(), fc.nat())
  .chain(([seeds, client, factor, one, other, which]) => {
    const [from, last] = [one % seeds.length, other % seeds.length].sort((a, b) => a - b) as [number, number];
    const hash = Math.imul(client ^ seeds[which % seeds.length]!, factor);
    const most = fc.oneof(word, fc.constantFrom(HASH_MAX, HASH_MIN, hash, (hash - 1) | 0, (hash + 1) | 0));
    const range = fc.constantFrom([0, seeds.length], [from, last + 1]);
    return fc.tuple(most, range).map(([most, [from, to]]): Searched => {
      return { seeds, client, factor, most, from: from!, to: to! };
    });
  });

describe("the greatest hash", () => {
  it("is found among any seeds, for any client, under any bound", () => {
    fc.assert(fc.property(anySearch, (each) => assert.equal(quickly(each), slowly(each))), { numRuns: 5000 });
  });

  it("is found wherever it lies, for each number of seeds", () => {
    for (let count = 1; count <= 100; count++) {
      for (let position = 0; position < count; position++) {
        // With this client and factor the hash is the seed.
        const seeds = Array.from({ length: count }, (_, i) => (i === position ? -1 : HASH_MIN + i));
        assert.equal(quickly({ seeds, client: 0, factor: 1, most: HASH_MAX, from: 0, to: count }), position);
      }
    }
  });

  it("is found in more seeds than are in a page, and after others have taken their place", () => {
    const count = 70_000;
    const seeds = new Seeds(count);
    const greatest = (to: number) => seeds.greatest(0, 1, HASH_MAX, 0, to);
    seeds.fill(Array.from({ length: count }, (_, i) => i));
    assert.equal(greatest(count), count - 1);
    seeds.fill(Array.from({ length: 50 }, (_, i) => -i));
    assert.equal(greatest(50), 0);
    assert.equal(seeds.hash(0, 1, 49), -49);
  });
});

describe("the same is found", () => {
  const CHILD = path.join(import.meta.dirname, "seeds-child.js");
  const MANY = 400;
  const expected = searches(MANY).map(slowly);
  const run = (command: string, ...parameters: string[]): Found => {
    const { stdout, stderr, status } = spawnSync(command, parameters, { encoding: "utf8", timeout: 60_000 });
    assert.equal(status, 0, stderr);
    return JSON.parse(stdout);
  };
  const node = (...flags: string[]) => run(process.execPath, ...flags, CHILD, String(MANY));

  it("by SIMD", () => assert.deepEqual(node(), { simd: true, positions: expected }));

  it("where there is no WebAssembly: node --jitless", () => {
    assert.deepEqual(node("--jitless"), { simd: false, positions: expected });
  });

  const x64 = process.arch === "x64" ? {} : { skip: "x86-64 can be without SSE4.1, others have SIMD always" };
  it("where WebAssembly has no SIMD: no SSE4.1", x64, () => {
    assert.deepEqual(node("--no-enable-sse4-1"), { simd: false, positions: expected });
  });

  it("where address space is short: ulimit -v", () => {
    // Up to Node 22 there is no room then; from 24 on, V8 does with less.
    const { positions } = run("sh", "-c", `ulimit -v 4000000 && exec "$0" "$1" 20`, process.execPath, CHILD);
    assert.deepEqual(positions, expected.slice(0, 20));
  });
});
