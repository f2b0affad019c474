/**
 * Sets of networks (192.0.2.0/24, 2001:db8::/32), asked for each connection: is this address in it?
 * One binary search, whatever the length of the list; nothing is allocated.
 *
 * An IPv4 address in IPv6 clothes (::ffff:192.0.2.1) is an IPv4 address, on both sides of the
 * question. So ::/0 is all of IPv6 and nothing of IPv4.
 */
export interface Network {
  /** 4 or 16 bytes, those behind the prefix are zero. */
  readonly bytes: Uint8Array;
  readonly prefix: number;
}

/** The network of one address. */
export const exactly = (bytes: Uint8Array): Network => ({ bytes, prefix: 8 * bytes.length });

/** ::ffff:0:0/96 is how IPv6 writes IPv4: so many bytes before the four that matter. */
const MAPPED_BYTES = 12;

/** The 16 bytes at bytes[at] hold an IPv4 address (::ffff:a.b.c.d); it is their last four. */
export function holdsIpv4(bytes: Uint8Array, at: number): boolean {
  for (let i = 0; i < 10; i++) if (bytes[at + i] !== 0) return false;
  return bytes[at + 10] === 0xff && bytes[at + 11] === 0xff;
}

/** Bytes [at, at + 4) as one number below 2 ** 32, in network order. */
export function wordAt(bytes: Uint8Array, at: number): number {
  const high = (bytes[at]! << 24) | (bytes[at + 1]! << 16);
  return (high | (bytes[at + 2]! << 8) | bytes[at + 3]!) >>> 0;
}

export class Networks {
  readonly #ipv4: Ranges;
  readonly #ipv6: Ranges;

  constructor(list: readonly Network[]) {
    const networks = list.map(unmapped);
    this.#ipv4 = new Ranges(networks.filter(({ bytes }) => bytes.length === 4));
    this.#ipv6 = new Ranges(networks.filter(({ bytes }) => bytes.length === 16));
  }

  get empty(): boolean {
    return this.#ipv4.count === 0 && this.#ipv6.count === 0;
  }

  /** 0.0.0.0/0 and ::/0 are in it: there is no address that is not. */
  get everything(): boolean {
    return this.#ipv4.everything && this.#ipv6.everything;
  }

  /** The address is the `length` bytes at bytes[at]. */
  has(bytes: Uint8Array, at: number, length: 4 | 16): boolean {
    if (length === 4) return this.#ipv4.has(bytes, at);
    if (holdsIpv4(bytes, at)) return this.#ipv4.has(bytes, at + MAPPED_BYTES);
    return this.#ipv6.has(bytes, at);
  }
}

/** The networks of one family: their first and last addresses, sorted by the first. */
class Ranges {
  readonly count: number;
  readonly everything: boolean;
  /** 32-bit words in an address: 1 or 4. */
  readonly #words: number;
  readonly #firsts: Uint32Array;
  readonly #lasts: Uint32Array;

  constructor(networks: readonly Network[]) {
    const words = networks[0]?.bytes.length === 16 ? 4 : 1;
    this.#words = words;
    this.#firsts = new Uint32Array(networks.length * words);
    this.#lasts = new Uint32Array(networks.length * words);
    const sorted = networks.map((network) => ends(network, words)).sort(byFirst);
    let count = 0;
    for (const { first, last } of sorted) {
      // Two networks are apart, or one is in the other: what is in the last one kept is dropped. So
      // an address is in none but perhaps the last that does not begin behind it; of two that begin
      // together and are both kept, the wider is the later.
      if (count > 0 && this.#compare(this.#lasts, count - 1, last) >= 0) continue;
      this.#firsts.set(first, count * words);
      this.#lasts.set(last, count * words);
      count++;
    }
    this.count = count;
    this.everything = networks.some(({ prefix }) => prefix === 0);
  }

  has(bytes: Uint8Array, at: number): boolean {
    if (this.count === 0) return false;
    const address = SOUGHT;
    for (let word = 0; word < this.#words; word++) address[word] = wordAt(bytes, at + 4 * word);
    // The last range that does not begin behind the address.
    let low = 0;
    let high = this.count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#compare(this.#firsts, middle, address) <= 0) low = middle + 1;
      else high = middle;
    }
    return low > 0 && this.#compare(this.#lasts, low - 1, address) >= 0;
  }

  /** Below 0: the range's end is before the address; 0: the same; above 0: behind it. */
  #compare(ends: Uint32Array, range: number, address: ArrayLike<number>): number {
    for (let word = 0, at = range * this.#words; word < this.#words; word++, at++) {
      const difference = ends[at]! - address[word]!;
      if (difference !== 0) return difference;
    }
    return 0;
  }
}

/** The address that is being looked for. One is enough: nothing here waits. */
const SOUGHT = new Uint32Array(4);

function unmapped({ bytes, prefix }: Network): Network {
  const bits = 8 * MAPPED_BYTES;
  if (bytes.length === 4 || prefix < bits || !holdsIpv4(bytes, 0)) return { bytes, prefix };
  return { bytes: bytes.subarray(MAPPED_BYTES), prefix: prefix - bits };
}

function ends({ bytes, prefix }: Network, words: number): { first: number[]; last: number[] } {
  const first: number[] = [];
  const last: number[] = [];
  for (let word = 0; word < words; word++) {
    const kept = Math.min(32, Math.max(0, prefix - 32 * word));
    // A shift by 32 is one by 0 in JavaScript.
    const mask = kept === 0 ? 0 : (-1 << (32 - kept)) >>> 0;
    const value = (wordAt(bytes, 4 * word) & mask) >>> 0;
    first.push(value);
    last.push((value | ~mask) >>> 0);
  }
  return { first, last };
}

function byFirst(one: { first: number[] }, other: { first: number[] }): number {
  for (const [i, word] of one.first.entries()) {
    if (word !== other.first[i]) return word - other.first[i]!;
  }
  return 0;
}
