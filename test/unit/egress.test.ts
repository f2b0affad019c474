/** Who leaves by which address: what must not move does not, and the shares are those asked for. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { describe, it } from "node:test";
import fc from "fast-check";
import { type Affinity, type EgressAddress, EgressPool } from "../../src/policy/egress.ts";

type Length = 4 | 16;
const IPV4_SERVER = Uint8Array.of(198, 51, 100, 10);
const IPV6_SERVER = Uint8Array.of(0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10);
const never = () => assert.fail("nothing is drawn but for affinity none");

const ipv4 = (i: number) => Uint8Array.of(192, i >> 16, (i >> 8) & 255, i & 255);
const ipv6 = (i: number) =>
  Uint8Array.of(0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, i >> 16, (i >> 8) & 255, i & 255);
/** The `i`th client: neighbours, as clients are. */
const client = (i: number) => Uint8Array.of(10, (i >> 16) & 255, (i >> 8) & 255, i & 255);
const clients = (count: number) => Array.from({ length: count }, (_, i) => client(i));
const mapped = (bytes: Uint8Array) => Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, ...bytes);
const address = (bytes: Uint8Array, weight = 1): EgressAddress => {
  return { bytes, prefix: 8 * bytes.length, weight };
};
const some = (count: number, weight = (_: number) => 1, first = 0) =>
  Array.from({ length: count }, (_, i) => address(ipv4(first + i), weight(i)));
const poolOf = (
  addresses: readonly EgressAddress[], affinity: Affinity = "client", random: () => number = never,
) => new EgressPool(addresses, affinity, random);

function choose(pool: EgressPool, from: Uint8Array, rank = 0, to = IPV4_SERVER): number {
  // Somewhere in a larger array, as the session's rows are.
  const row = new Uint8Array(64).fill(0x5a);
  row.set(from, 5);
  row.set(to, 37);
  return pool.choose(row, 5, from.length as Length, row, 37, to.length as Length, rank);
}

function order(pool: EgressPool, from: Uint8Array, to = IPV4_SERVER): number[] {
  const all: number[] = [];
  for (;;) {
    const index = choose(pool, from, all.length, to);
    if (index < 0) return all;
    all.push(index);
  }
}

const sum = (all: readonly number[]) => all.reduce((total, each) => total + each, 0);

/**
 * How many standard deviations a chi-square sum is above what chance gives (Wilson and Hilferty).
 * Chance alone reaches 6 once in 10 ** 9 times, so a test that fails has found something.
 */
function surprise(
  counts: readonly number[], expected: readonly number[], freedom = counts.length - 1,
): number {
  const chiSquare = sum(counts.map((count, i) => (count - expected[i]!) ** 2 / expected[i]!));
  const variance = 2 / (9 * freedom);
  return ((chiSquare / freedom) ** (1 / 3) - (1 - variance)) / Math.sqrt(variance);
}

function assertShares(chosen: readonly number[], weights: readonly number[]): void {
  const counts = weights.map(() => 0);
  for (const index of chosen) counts[index]!++;
  const expected = weights.map((weight) => (chosen.length * weight) / sum(weights));
  const deviations = surprise(counts, expected);
  assert.ok(deviations < 6, `${deviations.toFixed(1)} deviations: ${counts.slice(0, 20)}`);
}

const bytes = (length: Length) => fc.uint8Array({ minLength: length, maxLength: length });
/** Not one that holds an IPv4 address. */
const ipv6Bytes = bytes(16).filter((all) => all[0] !== 0);
const anyClient = fc.oneof(bytes(4), bytes(16), bytes(4).map(mapped));
const weight = fc.constantFrom(1, 1, 1, 2, 3, 0.5, 10);
/** Addresses of both families, no two alike, of one weight or of several. */
const anyAddresses = (most: number) =>
  fc.constantFrom(fc.constant(1), weight).chain((weights) => {
    const one = fc.tuple(fc.oneof(bytes(4), ipv6Bytes), weights).map((each) => address(...each));
    return fc.uniqueArray(one, { minLength: 1, maxLength: most, selector: (each) => each.bytes.join() });
  });
const AFFINITIES: readonly Affinity[] = ["client", "client-destination", "none"];
const servers = [IPV4_SERVER, IPV6_SERVER, mapped(IPV4_SERVER)];

/** Who leaves first, second, and third, of 3,000 clients, to either family: all in one number. */
function digest(pool: EgressPool): string {
  const hash = createHash("sha256");
  for (const each of clients(3000)) {
    for (const to of [IPV4_SERVER, IPV6_SERVER]) {
      for (const rank of [0, 1, 2]) hash.update(`${choose(pool, each, rank, to)} `);
    }
  }
  return hash.digest("hex").slice(0, 16);
}

/** Addresses by the thousand, of one weight and of several, of both families, and some of them out. */
const LARGE: Record<string, readonly [() => EgressPool, string]> = {
  "4,096 addresses": [() => poolOf(some(4096)), "2660f4b98042954f"],
  "4,096 addresses of three weights": [() => poolOf(some(4096, (i) => 1 + (i % 3))), "716ff9c13397b637"],
  "1,000 addresses of either family, one in seven of them out": [() => {
    const ipv6s = Array.from({ length: 1000 }, (_, i) => address(ipv6(i), 1 + (i & 1)));
    const pool = poolOf([...some(1000), ...ipv6s], "client-destination");
    for (let i = 0; i < 2000; i += 7) pool.setUsable(i, false);
    return pool;
  }, "2e95b608387f1b66"],
  "20,000 addresses of nineteen weights": [
    () => poolOf(some(20_000, (i) => 1 / (1 + ((i * i) % 37)))), "402fd51dab19bfad",
  ],
};

describe("rendezvous", () => {
  const scene = fc.tuple(anyAddresses(80), fc.array(anyClient, { minLength: 1, maxLength: 20 }), fc.nat());

  it("an address that is out moves its own clients, to their second choice; back, it has them again", () => {
    fc.assert(
      fc.property(scene, ([addresses, all, which]) => {
        const pool = poolOf(addresses);
        const out = which % addresses.length;
        for (const to of servers) {
          const before = all.map((each) => [choose(pool, each, 0, to), choose(pool, each, 1, to)]);
          pool.setUsable(out, false);
          for (const [i, each] of all.entries()) {
            assert.equal(choose(pool, each, 0, to), before[i]![0] === out ? before[i]![1] : before[i]![0]);
          }
          pool.setUsable(out, true);
          for (const [i, each] of all.entries()) assert.equal(choose(pool, each, 0, to), before[i]![0]);
        }
      }),
    );
  });

  it("an address that leaves the configuration leaves the order of the others, wherever they stand", () => {
    const reordered = scene.chain(([addresses, all, which]) => {
      const out = which % addresses.length;
      const rest = addresses.filter((_, i) => i !== out);
      const shuffled = fc.shuffledSubarray(rest, { minLength: rest.length });
      return fc.tuple(fc.constant(addresses), fc.constant(out), shuffled, fc.constant(all));
    });
    fc.assert(
      fc.property(reordered, ([addresses, out, rest, all]) => {
        const [whole, less] = [poolOf(addresses), poolOf(rest)];
        const disabled = poolOf(addresses);
        disabled.setUsable(out, false);
        for (const each of all.slice(0, 3)) {
          for (const to of servers) {
            const expected = order(whole, each, to).filter((index) => index !== out);
            assert.deepEqual(order(disabled, each, to), expected);
            const found = order(less, each, to).map((index) => rest[index]);
            assert.deepEqual(found, expected.map((index) => addresses[index]));
          }
        }
      }),
    );
  });

  it("the order of many is the order of each two of them", () => {
    fc.assert(
      fc.property(anyAddresses(12), anyClient, (addresses, from) => {
        for (const to of servers) {
          const whole = order(poolOf(addresses), from, to);
          for (const [rank, index] of whole.entries()) {
            for (const later of whole.slice(rank + 1)) {
              assert.equal(choose(poolOf([addresses[later]!, addresses[index]!]), from, 0, to), 1);
            }
          }
        }
      }),
    );
  });

  it("what is said to be unusable when it is so already changes nothing, and all may be", () => {
    const pool = poolOf(some(3));
    for (let i = 0; i < 3; i++) pool.setUsable(i, false);
    pool.setUsable(1, false);
    assert.equal(choose(pool, client(1)), -1);
    pool.setUsable(1, true);
    pool.setUsable(1, true);
    for (const each of clients(20)) assert.deepEqual(order(pool, each), [1]);
  });

  it("the same client has always left by the same address: it would be another after an upgrade", () => {
    const pool = poolOf([...some(8), ...Array.from({ length: 8 }, (_, i) => address(ipv6(i)))]);
    const weighted = poolOf(some(8, (i) => 1 + (i % 3)));
    const said = [1, 2, 3, 0x010203].map((i) => [
      order(pool, client(i)).join(""),
      order(pool, mapped(client(i)), IPV6_SERVER).map((index) => index - 8).join(""),
      order(weighted, ipv6(i)).join(""),
    ]);
    assert.deepEqual(said, GOLDEN);
  });

  it("so has each its whole order, by weight and with some out", () => {
    const pool = poolOf(some(300, (i) => [1, 2, 0.5, 10, 3][i % 5]!));
    for (let i = 0; i < 300; i += 7) pool.setUsable(i, false);
    const hash = createHash("sha256");
    for (const each of clients(100)) hash.update(order(pool, each).join(" "));
    assert.equal(hash.digest("hex").slice(0, 16), "b2e5a3bf713b38ff");
  });

  for (const [what, [pools, expected]] of Object.entries(LARGE)) {
    it(`so have the clients of ${what}`, () => assert.equal(digest(pools()), expected));
  }
});

describe("SIMD", () => {
  const withoutSimd = (addresses: readonly EgressAddress[], affinity: Affinity): EgressPool => {
    const { WebAssembly } = globalThis as unknown as { WebAssembly: { validate(bytes: unknown): boolean } };
    const { validate } = WebAssembly;
    try {
      WebAssembly.validate = () => false;
      return poolOf(addresses, affinity);
    } finally {
      WebAssembly.validate = validate;
    }
  };

  it("or none, every client has the same order, whatever the weights and which of them are out", () => {
    const many = fc.constantFrom(fc.constant(1), weight).chain((weights) =>
      fc.tuple(fc.constantFrom(ipv4, ipv6), fc.array(weights, { minLength: 33, maxLength: 200, size: "max" })),
    );
    fc.assert(
      fc.property(many, fc.array(fc.nat(199)), fc.array(anyClient, { minLength: 1, maxLength: 4 }),
        fc.constantFrom<Affinity>("client", "client-destination"),
        ([bytesOf, weights], out, all, affinity) => {
          const addresses = weights.map((each, i) => address(bytesOf(i), each));
          const [pool, plain] = [poolOf(addresses, affinity), withoutSimd(addresses, affinity)];
          for (const outside of [[], out]) {
            for (const index of outside.filter((each) => each < addresses.length)) {
              pool.setUsable(index, false);
              plain.setUsable(index, false);
            }
            for (const each of all) {
              for (const to of servers) assert.deepEqual(order(pool, each, to), order(plain, each, to));
            }
          }
        },
      ),
      { numRuns: 300 },
    );
  });

  it("or none, the clients of 4,096 addresses leave by the same", () => {
    for (const weights of [1, 3, 50]) {
      const addresses = some(4096, (i) => 1 + (i % weights));
      const [pool, plain] = [poolOf(addresses), withoutSimd(addresses, "client")];
      for (const each of clients(5000)) {
        for (const rank of [0, 1]) assert.equal(choose(pool, each, rank), choose(plain, each, rank));
      }
    }
  });
});

describe("the ranks", () => {
  it("name every usable address of the family once, then nothing", () => {
    fc.assert(
      fc.property(anyAddresses(80), fc.array(fc.nat(79)), anyClient, fc.constantFrom(...AFFINITIES),
        (addresses, out, from, affinity) => {
          const pool = poolOf(addresses, affinity, Math.random);
          for (const index of out) if (index < addresses.length) pool.setUsable(index, false);
          for (const to of servers) {
            const length = to === IPV6_SERVER ? 16 : 4;
            const expected = addresses.flatMap(({ bytes }, i) =>
              bytes.length === length && !out.includes(i) ? [i] : []);
            const all = order(pool, from, to);
            assert.deepEqual([...all].sort((a, b) => a - b), expected);
            assert.equal(choose(pool, from, all.length + 5, to), -1);
          }
        },
      ),
    );
  });

  it("name all of 4,096, also by weight", () => {
    for (const weights of [() => 1, (i: number) => 1 + (i % 5)]) {
      assert.equal(new Set(order(poolOf(some(4096, weights)), client(7))).size, 4096);
    }
  });

  it("name each once where two are worth the same to a client, to the last bit", () => {
    for (const each of clients(300)) {
      // The weight of the second at which it overtakes the first: between two neighbours of doubles.
      const pool = (one: number, count: number) => poolOf(some(count, (i) => (i === 1 ? one : 1)));
      let [below, above] = [2 ** -40, 2 ** 40];
      for (;;) {
        const middle = Math.sqrt(below * above);
        const half = middle > below && middle < above ? middle : (below + above) / 2;
        if (half <= below || half >= above) break;
        if (choose(pool(half, 2), each) === 0) below = half;
        else above = half;
      }
      for (const one of [below, above, below * (1 - 2e-16), above * (1 + 3e-16)]) {
        assert.deepEqual(order(pool(one, 5), each).sort(), [0, 1, 2, 3, 4]);
      }
    }
  });

  it("may be asked for in any order", () => {
    const pool = poolOf(some(100));
    const expected = order(poolOf(some(100)), client(9));
    for (const rank of [57, 3, 99, 0, 58, 1]) assert.equal(choose(pool, client(9), rank), expected[rank]);
  });

  it("an address that is listed twice is two addresses", () => {
    const pool = poolOf([...some(1), ...some(1), ...some(2)]);
    assertShares(clients(20_000).map((each) => choose(pool, each)).filter((index) => index < 3), [1, 1, 1]);
  });
});

describe("the shares", () => {
  const count = (addresses: number) => Math.max(40_000, 100 * addresses);

  for (const size of [2, 3, 8, 64, 1000]) {
    it(`${size} addresses of one weight have as many clients each`, () => {
      const pool = poolOf(some(size));
      assertShares(clients(count(size)).map((each) => choose(pool, each)), new Array<number>(size).fill(1));
    });
  }

  it("4,096 addresses have so, too", { timeout: 60_000 }, () => {
    const pool = poolOf(some(4096));
    assertShares(clients(100_000).map((each) => choose(pool, each)), new Array<number>(4096).fill(1));
  });

  it("whatever the addresses and the clients, of either family", () => {
    const families = fc.tuple(fc.constantFrom<Length>(4, 16), fc.constantFrom(bytes(4), ipv6Bytes));
    const scene = families.chain(([inside, outside]) =>
      fc.tuple(bytes(inside), fc.uniqueArray(outside, { minLength: 2, maxLength: 20, selector: String })),
    );
    fc.assert(
      fc.property(scene, ([from, outside]) => {
        const pool = poolOf(outside.map((each) => address(each)));
        const to = outside[0]!.length === 4 ? IPV4_SERVER : IPV6_SERVER;
        const chosen = Array.from({ length: 5000 }, (_, i) => {
          const each = Uint8Array.from(from);
          [each[1], each[from.length - 1]] = [i >> 8, i & 255];
          return choose(pool, each, 0, to);
        });
        assertShares(chosen, outside.map(() => 1));
      }),
      { numRuns: 50 },
    );
  });

  for (const weights of [
    [1, 2], [1, 2, 3, 4], [0.5, 0.25, 0.25], [5, 1, 1, 1, 1, 5], [1, 1.5, 2, 2.5, 3, 3.5], [100, 1],
  ]) {
    it(`are as the weights: ${weights.join(", ")}`, () => {
      const pool = poolOf(some(weights.length, (i) => weights[i]!));
      assertShares(clients(60_000).map((each) => choose(pool, each)), weights);
    });
  }

  it("the clients of an address that is out go to all others alike", () => {
    const equal = new Array<number>(16).fill(1);
    for (const [set, weights] of [[1, 2, 3, 1, 2, 3], equal, equal, equal, equal, equal].entries()) {
      const pool = poolOf(some(weights.length, (i) => weights[i]!, 1000 * set));
      const counts = weights.map(() => weights.map(() => 0));
      for (const each of clients(200_000)) counts[choose(pool, each)]![choose(pool, each, 1)]!++;
      const expected = counts.map((row, out) => {
        const rest = sum(weights) - weights[out]!;
        return row.map((_, i) => (i === out ? 0 : (sum(row) * weights[i]!) / rest));
      });
      const others = (table: number[][]) => table.flatMap((row, out) => row.filter((_, i) => i !== out));
      const freedom = weights.length * (weights.length - 2);
      assert.ok(surprise(others(counts), others(expected), freedom) < 6, String(counts));
    }
  });

  it("equal weights of any size need no logarithm", () => {
    const log = Math.log;
    try {
      Math.log = () => assert.fail("Math.log");
      for (const weight of [1, 7]) {
        for (const each of clients(50)) order(poolOf(some(50, () => weight)), each);
      }
    } finally {
      Math.log = log;
    }
  });
});

describe("families", () => {
  it("are never mixed, and an IPv4 address in IPv6 clothes is IPv4, client or destination", () => {
    fc.assert(
      fc.property(anyAddresses(40), bytes(4), ipv6Bytes, (addresses, inside, outside) => {
        const pool = poolOf(addresses, "client-destination");
        for (const to of [inside, outside, mapped(inside)]) {
          for (const index of order(pool, inside, to)) {
            assert.equal(addresses[index]!.bytes.length, to === outside ? 16 : 4);
          }
          assert.deepEqual(order(pool, mapped(inside), to), order(pool, inside, to));
        }
        assert.deepEqual(order(pool, outside, mapped(inside)), order(pool, outside, inside));
      }),
    );
  });

  it("without an address of the family there is none", () => {
    assert.equal(choose(poolOf(some(5)), client(1), 0, IPV6_SERVER), -1);
    assert.equal(choose(poolOf([]), client(1)), -1);
  });
});

describe("affinity", () => {
  const servers = Array.from({ length: 20_000 }, (_, i) => Uint8Array.of(203, 0, i >> 8, i & 255));

  it("client: one address to all destinations", () => {
    const pool = poolOf(some(50));
    assert.equal(new Set(servers.map((to) => choose(pool, client(3), 0, to))).size, 1);
  });

  it("client-destination: one address to one destination, all in all", () => {
    const pool = poolOf(some(50), "client-destination");
    const chosen = servers.map((to) => choose(pool, client(3), 0, to));
    assertShares(chosen, new Array<number>(50).fill(1));
    assert.deepEqual(servers.map((to) => choose(pool, client(3), 0, mapped(to))), chosen);
    const others = servers.map((to) => choose(pool, client(4), 0, to));
    assert.ok(others.filter((index, i) => index !== chosen[i]).length > 19_000);
  });

  it("none: drawn for each connection, by weight, and the later ranks with it", () => {
    let state = 1;
    const random = () => {
      state = Math.imul(state, 48271) >>> 0;
      return state / 2 ** 32;
    };
    for (const weights of [new Array<number>(40).fill(1), [1, 2, 3, 4, 1, 2, 3, 4]]) {
      const pool = poolOf(some(weights.length, (i) => weights[i]!), "none", random);
      assertShares(Array.from({ length: 40_000 }, () => choose(pool, client(3))), weights);
    }
    const pool = poolOf(some(12), "none", random);
    const seconds = new Set<number>();
    for (let i = 0; i < 500; i++) {
      const all = order(pool, client(3));
      assert.equal(new Set(all).size, 12);
      if (all[0] === 5) seconds.add(all[1]!);
    }
    assert.ok(seconds.size > 2, "all who find an address full go to one and the same");
  });

  it("none: whatever is drawn is an address", () => {
    for (const fraction of [0, 0.5, 1 - Number.EPSILON / 2]) {
      const pool = poolOf(some(7, (i) => 0.1 * (1 + (i % 3))), "none", () => fraction);
      assert.equal(new Set(order(pool, client(1))).size, 7);
    }
  });
});

describe("the memory of a large pool", () => {
  it("says what would be found again, also when clients fall into one slot", () => {
    const [pool, small] = [poolOf(some(40)), some(40)];
    const all = clients(60_000);
    const first = all.map((each) => choose(pool, each));
    const second = all.map((each) => choose(pool, each, 1));
    for (let i = 0; i < all.length; i += 97) {
      // A new pool remembers nothing.
      assert.deepEqual([first[i], second[i]], order(poolOf(small), all[i]!).slice(0, 2));
      assert.equal(choose(pool, all[i]!), first[i]);
    }
  });

  for (const affinity of ["client", "client-destination"] as const) {
    it(`keeps families, ranks and destinations apart (${affinity})`, () => {
      const addresses = [...some(40), ...Array.from({ length: 40 }, (_, i) => address(ipv6(i)))];
      const pool = poolOf(addresses, affinity);
      for (let round = 0; round < 2; round++) {
        for (const each of clients(50)) {
          for (const to of [IPV4_SERVER, IPV6_SERVER, client(77)]) {
            assert.deepEqual(order(pool, each, to), order(poolOf(addresses, affinity), each, to));
          }
        }
      }
    });
  }

  it("forgets who was on an address that goes, or whose own has come back", () => {
    const pool = poolOf(some(40));
    const all = clients(500);
    const before = all.map((each) => order(pool, each).slice(0, 2));
    for (let out = 0; out < 40; out++) {
      pool.setUsable(out, false);
      for (const [i, each] of all.entries()) {
        assert.equal(choose(pool, each), before[i]![0] === out ? before[i]![1] : before[i]![0]);
      }
      pool.setUsable(out, true);
      for (const [i, each] of all.entries()) assert.equal(choose(pool, each), before[i]![0]);
    }
  });
});

describe("the source", () => {
  const source = (of: EgressAddress, from: Uint8Array): Uint8Array => {
    const [row, into] = [new Uint8Array(40).fill(0x5a), new Uint8Array(40).fill(0x77)];
    row.set(from, 3);
    poolOf([of]).writeSource(0, row, 3, from.length as Length, into, 9);
    const end = 9 + of.bytes.length;
    const beside = [...into.subarray(0, 9), ...into.subarray(end)];
    assert.ok(beside.every((each) => each === 0x77), "written beside");
    return into.slice(9, end);
  };
  const bits = (all: Uint8Array) => Array.from(all, (each) => each.toString(2).padStart(8, "0")).join("");

  it("is the address", () => {
    for (const bytes of [ipv4(7), ipv6(7)]) assert.deepEqual(source(address(bytes), client(1)), bytes);
  });

  it("of a prefix is inside it, the client's own for good, and not its first address", () => {
    const prefixes = fc.tuple(ipv6Bytes, fc.nat(127)).map(([all, prefix]): EgressAddress => {
      const cleared = all.map((each, i) => each & ~(0xff >> Math.min(8, Math.max(0, prefix - 8 * i))));
      return { bytes: cleared, prefix, weight: 1 };
    });
    fc.assert(
      fc.property(prefixes, bytes(4), bytes(16), (of, four, sixteen) => {
        for (const from of [four, sixteen]) {
          const written = source(of, from);
          assert.equal(bits(written).slice(0, of.prefix), bits(of.bytes).slice(0, of.prefix));
          assert.deepEqual(source(of, from), written);
          if (of.prefix < 127) assert.match(bits(written).slice(of.prefix), /1/);
        }
        assert.deepEqual(source(of, mapped(four)), source(of, four));
      }),
      { numRuns: 1000 },
    );
  });

  it("of a /64 is another for each client, and uses all bits alike", () => {
    const of = { bytes: ipv6(0), prefix: 64, weight: 1 };
    const written = clients(20_000).map((each) => bits(source(of, each)).slice(64));
    assert.equal(new Set(written).size, 20_000);
    for (let bit = 0; bit < 64; bit++) {
      const ones = written.filter((text) => text[bit] === "1").length;
      assert.ok(surprise([ones, 20_000 - ones], [10_000, 10_000]) < 6, `bit ${bit}`);
    }
  });

  it("of a /127 or a /120 uses all of it", () => {
    for (const [prefix, size] of [[127, 2], [120, 255]] as const) {
      const of = { bytes: ipv6(0x1200), prefix, weight: 1 };
      assert.equal(new Set(clients(20_000).map((each) => source(of, each).join())).size, size);
    }
  });

  it("does not depend on the affinity or the destination, and disturbs no choice", () => {
    const of = { bytes: ipv6(0), prefix: 64, weight: 1 };
    const pool = poolOf([of, ...some(40)], "client-destination");
    const into = new Uint8Array(16);
    const before = order(pool, client(1));
    pool.writeSource(0, client(1), 0, 4, into, 0);
    assert.deepEqual(into, source(of, client(1)));
    assert.deepEqual(order(pool, client(1)), before);
  });
});

const GOLDEN = [
  ["37564120", "10753462", "23460571"],
  ["57062143", "30264517", "32654107"],
  ["56432107", "15603247", "54673102"],
  ["15023674", "51460273", "53472061"],
];
