/**
 * Which of our addresses a client leaves by: weighted rendezvous hashing, and a memory of it. Pure.
 *
 * Each client has its own order of the addresses: that of the hashes of client and address. It
 * leaves by the first that is usable; should that one have no port left, by the second. So an
 * address that is taken out moves only its own clients, each to its own second choice, and one that
 * comes back gets exactly them back. An address is known by its bytes and never by its place in the
 * configuration, and there is no secret: every worker, before and after a restart, says the same.
 *
 * What a hash is worth with weight w is ln(u) / w, u in (0, 1) being the hash as a fraction; the
 * greatest wins. Among equal weights that is the order of the hashes, so ln is taken only of the
 * best of each weight.
 */
import { holdsIpv4, wordAt } from "./network.ts";
import { HASH_MAX, Seeds } from "./seeds.ts";

/** One of [outgoing] addresses. */
export interface EgressAddress {
  /** 4 or 16. */
  readonly bytes: Uint8Array;
  /** 32; 128; or less for an IPv6 prefix, all of which is ours. */
  readonly prefix: number;
  /** Above 0: of two addresses, one with twice the weight has twice the clients. */
  readonly weight: number;
}

/** By what a client keeps its address; with "none" each connection draws one. */
export type Affinity = "client" | "client-destination" | "none";

/** Of so few addresses the best is found again faster than it is remembered. */
const SCANNED = 32;
/**
 * 256 KiB a worker. Only the third who falls into a pair of slots drives one out, to be scanned for
 * again: with 1,000 clients, single slots made the mean of a known client 150 ns, and pairs 30.
 */
const PAIRS = 8192;
/** A slot: the two words of the client's hash, family and rank (0: empty), the position found. */
const SLOT_WORDS = 4;
const PAIR_WORDS = 2 * SLOT_WORDS;
/** 2 ** 32 divided by the golden ratio: multiples of it are spread evenly. */
const GOLDEN = 0x9e3779b1;
const SUBNET_BITS_MAX = 126;

export class EgressPool {
  readonly #addresses: readonly EgressAddress[];
  readonly #affinity: Affinity;
  readonly #random: () => number;
  readonly #usable: Uint8Array;
  readonly #ipv4: Side;
  readonly #ipv6: Side;
  readonly #memory: Int32Array | null;
  /** The 64-bit hash of who asks. */
  readonly #key = new Int32Array(2);
  /** An address has come or gone since the sides were filled. */
  #changed = false;

  /** All addresses are usable. `random` answers in [0, 1). */
  constructor(addresses: readonly EgressAddress[], affinity: Affinity, random: () => number) {
    this.#addresses = addresses;
    this.#affinity = affinity;
    this.#random = random;
    this.#usable = new Uint8Array(addresses.length).fill(1);
    this.#ipv4 = new Side(addresses, 4);
    this.#ipv6 = new Side(addresses, 16);
    const remembers = affinity !== "none" && addresses.length > SCANNED;
    this.#memory = remembers ? new Int32Array(PAIRS * PAIR_WORDS) : null;
  }

  /** An unusable address is chosen for nobody. It takes effect at the next choice. */
  setUsable(index: number, usable: boolean): void {
    if (this.#usable[index] === Number(usable)) return;
    this.#usable[index] = Number(usable);
    this.#changed = true;
  }

  /**
   * The index of the address by which the client (`clientLength` bytes at client[clientAt]) leaves
   * to the destination: among the usable ones of the destination's family, the `rank`th (0: first)
   * in the client's order. -1: there are not so many. With affinity "none" an order is drawn with
   * each rank 0, and the ranks above are of the order drawn last.
   */
  choose(
    client: Uint8Array, clientAt: number, clientLength: 4 | 16,
    destination: Uint8Array, destinationAt: number, length: 4 | 16, rank: number,
  ): number {
    if (this.#changed) this.#refill();
    const isIpv4 = length === 4 || holdsIpv4(destination, destinationAt);
    const side = isIpv4 ? this.#ipv4 : this.#ipv6;
    if (rank >= side.count) return -1;
    if (this.#affinity === "none") return side.indexes[side.drawn(rank, this.#random)]!;
    const key = this.#key;
    absorb(key, client, clientAt, clientLength, true);
    if (this.#affinity === "client-destination") absorb(key, destination, destinationAt, length, false);
    const family = isIpv4 ? 0 : 1;
    let position = -1;
    for (let each = 0; each <= rank; each++) position = this.#behind(side, position, 2 * each + family + 1);
    return side.indexes[position]!;
  }

  /**
   * Writes the source to bind to, 4 or 16 bytes at into[at]: the address, or of a prefix the one
   * that is this client's for good. Who knows the prefix can try clients against it: the bits of
   * the host are no secret either.
   */
  writeSource(
    index: number, client: Uint8Array, clientAt: number, clientLength: 4 | 16,
    into: Uint8Array, at: number,
  ): void {
    const { bytes, prefix } = this.#addresses[index]!;
    into.set(bytes, at);
    if (prefix >= 8 * bytes.length) return;
    const key = this.#key;
    absorb(key, bytes, 0, 16, true);
    absorb(key, client, clientAt, clientLength, false);
    let host = 0;
    for (let i = prefix >> 3; i < 16; i++) {
      const mask = 0xff >> Math.max(0, prefix - 8 * i);
      const word = i & 4 ? key[0]! + i : key[1]! ^ i;
      const bits = (mixed(word) >>> 24) & mask;
      into[at + i] = (bytes[i]! & ~mask) | bits;
      host |= bits;
    }
    // The address without any bit of the host is the subnet's routers' (RFC 4291, section 2.6.1).
    if (host === 0 && prefix <= SUBNET_BITS_MAX) into[at + 15]! |= 1;
  }

  /** The position behind `previous` (-1: the first) in the order of #key; `what`: family and rank. */
  #behind(side: Side, previous: number, what: number): number {
    const [one, other] = [this.#key[0]!, this.#key[1]!];
    const memory = this.#memory;
    if (memory === null) return side.behind(one, other, previous);
    const slot = PAIR_WORDS * ((one + Math.imul(what, GOLDEN)) & (PAIRS - 1));
    for (let at = slot; at < slot + PAIR_WORDS; at += SLOT_WORDS) {
      if (memory[at + 2] === what && memory[at] === one && memory[at + 1] === other) return memory[at + 3]!;
    }
    const position = side.behind(one, other, previous);
    memory.copyWithin(slot + SLOT_WORDS, slot, slot + SLOT_WORDS);
    memory[slot] = one;
    memory[slot + 1] = other;
    memory[slot + 2] = what;
    memory[slot + 3] = position;
    return position;
  }

  #refill(): void {
    this.#changed = false;
    this.#ipv4.fill(this.#usable);
    this.#ipv6.fill(this.#usable);
    this.#memory?.fill(0);
  }
}

/** An address of one family: where it is in the configuration, and the hash of its bytes. */
interface Member {
  readonly index: number;
  readonly bytes: Uint8Array;
  readonly weight: number;
  seed: number;
}

/** Positions [from, to) have this weight. */
interface Group {
  readonly from: number;
  to: number;
  readonly weight: number;
}

/**
 * The usable addresses of one family, by position: those of one weight side by side. No two have
 * one seed; and as what is made of it is one to one (an odd multiplier), no two have one hash.
 */
class Side {
  /** By position: the address' index in the configuration. */
  indexes = new Int32Array(0);
  readonly #seeds: Seeds;
  #groups: Group[] = [];
  readonly #members: readonly Member[];
  /** Of affinity "none": what was drawn. */
  #start = 0;
  #stride = 1;

  constructor(addresses: readonly EgressAddress[], length: 4 | 16) {
    const members: Member[] = [];
    const key = new Int32Array(2);
    for (const [index, { bytes, weight }] of addresses.entries()) {
      if (bytes.length !== length) continue;
      absorb(key, bytes, 0, length, true);
      members.push({ index, bytes, weight, seed: key[0]! });
    }
    members.sort(byWeightAndBytes);
    // Of two addresses with one seed one would have no clients. In the order of the bytes, so that
    // which of them gets another does not depend on the configuration's.
    const taken = new Set<number>();
    for (const member of members) {
      while (taken.has(member.seed)) member.seed = mixed(member.seed + GOLDEN);
      taken.add(member.seed);
    }
    this.#members = members;
    this.#seeds = new Seeds(members.length);
    this.fill(new Uint8Array(addresses.length).fill(1));
  }

  get count(): number {
    return this.indexes.length;
  }

  fill(usable: Uint8Array): void {
    const members = this.#members.filter(({ index }) => usable[index] === 1);
    this.indexes = Int32Array.from(members, ({ index }) => index);
    this.#seeds.fill(members.map(({ seed }) => seed));
    this.#groups = [];
    for (const [position, { weight }] of members.entries()) {
      const last = this.#groups.at(-1);
      if (last?.weight === weight) last.to = position + 1;
      else this.#groups.push({ from: position, to: position + 1, weight });
    }
  }

  /** The position that comes behind `previous` in the order of the client (-1: that comes first). */
  behind(one: number, other: number, previous: number): number {
    // A multiplier of the client's own: with one for all, the second choices of those who share
    // their first would crowd together.
    const factor = other | 1;
    const seeds = this.#seeds;
    const groups = this.#groups;
    const last = previous < 0 ? HASH_MAX + 1 : seeds.hash(one, factor, previous);
    if (groups.length === 1) return seeds.greatest(one, factor, last - 1, 0, this.count);
    const limit = previous < 0 ? Infinity : worth(last, groups.find(({ to }) => previous < to)!.weight);
    let best = -Infinity;
    let position = -1;
    for (const { from, to, weight } of groups) {
      let most = last - 1;
      // Of another weight, what is worth as much, or one more: it is rounded.
      if (previous >= 0 && (previous < from || previous >= to)) most = hashWorth(limit, weight) + 1;
      let value: number;
      let candidate: number;
      do {
        candidate = seeds.greatest(one, factor, most, from, to);
        const hash = seeds.hash(one, factor, candidate);
        value = hash > most ? -Infinity : worth(hash, weight);
        most = hash - 1;
      } while (value > limit || (value === limit && from < previous)); // Once, seldom twice.
      if (value > best) [best, position] = [value, candidate];
    }
    return position;
  }

  /** Affinity "none": the position at this rank of the order drawn; rank 0 draws another. */
  drawn(rank: number, random: () => number): number {
    const { count } = this;
    if (rank === 0) this.#start = this.#draw(random());
    // Those who find one address full go on to different ones.
    if (rank === 1) this.#stride = coprime(1 + Math.floor(random() * (count - 1)), count);
    return (this.#start + rank * this.#stride) % count;
  }

  #draw(fraction: number): number {
    let sum = 0;
    for (const { from, to, weight } of this.#groups) sum += (to - from) * weight;
    let left = fraction * sum;
    for (const { from, to, weight } of this.#groups) {
      if (left < (to - from) * weight) return Math.min(to - 1, from + Math.floor(left / weight));
      left -= (to - from) * weight;
    }
    return this.count - 1;
  }
}

function worth(hash: number, weight: number): number {
  return Math.log((hash + 2 ** 31 + 0.5) / 2 ** 32) / weight;
}

/** The greatest hash that is worth no more, give or take one for the rounding. */
function hashWorth(value: number, weight: number): number {
  return Math.min(HASH_MAX - 1, Math.floor(Math.exp(value * weight) * 2 ** 32 - 2 ** 31 - 0.5));
}

/** Makes `key` the hash of an address, or of what it was of and an address. */
function absorb(key: Int32Array, bytes: Uint8Array, at: number, length: 4 | 16, first: boolean): void {
  let one = first ? GOLDEN : key[0]!;
  let other = first ? 0x7feb352d : key[1]!;
  const isIpv4 = length === 4 || holdsIpv4(bytes, at);
  for (let i = isIpv4 ? length - 4 : 0; i < length; i += 4) {
    const word = wordAt(bytes, at + i);
    one = mixed(one ^ word);
    other = mixed(Math.imul(other ^ word, 0x2c1b3c6d) + one);
  }
  key[0] = one;
  key[1] = other;
}

/** 32 bits to 32 bits, one to one; each bit of the answer depends on all (MurmurHash3's ending). */
function mixed(word: number): number {
  word = Math.imul(word ^ (word >>> 16), 0x85ebca6b);
  word = Math.imul(word ^ (word >>> 13), 0xc2b2ae35);
  return word ^ (word >>> 16);
}

function byWeightAndBytes(one: Member, other: Member): number {
  if (one.weight !== other.weight) return one.weight - other.weight;
  for (const [i, byte] of one.bytes.entries()) if (byte !== other.bytes[i]) return byte - other.bytes[i]!;
  return 0;
}

/** The first from `stride` on, below `count`, that shares no divisor with it: its steps reach all. */
function coprime(stride: number, count: number): number {
  while (divisor(stride, count) !== 1) stride = stride + 1 < count ? stride + 1 : 1;
  return stride;
}

function divisor(one: number, other: number): number {
  while (other !== 0) [one, other] = [other, one % other];
  return one;
}
