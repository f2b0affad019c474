/**
 * Where a simulation's chance comes from: one seed, one sequence. And the bytes that its peers
 * send: a function of the stream and the position, so that any byte can be checked by itself and
 * none has to be stored.
 */
export class Random {
  #state: number;

  constructor(seed: number) {
    // Neighbouring seeds must not begin alike.
    this.#state = mix(seed + 0x9e3779b9) | 1;
  }

  /** 0 <= x < 1. */
  next(): number {
    // xorshift32: short, fast, and good enough to be hostile.
    let x = this.#state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#state = x;
    return (x >>> 0) / 0x100000000;
  }

  chance(probability: number): boolean {
    return probability > 0 && this.next() < probability;
  }

  /** Both ends included. */
  between(least: number, most: number): number {
    return least + Math.floor(this.next() * (most - least + 1));
  }

  /** Both ends included; small ones as likely as large ones, by order of magnitude. */
  size(least: number, most: number): number {
    return Math.min(most, Math.floor(least * (most / least + 1) ** this.next()));
  }

  pick<T>(from: readonly T[]): T {
    return from[Math.floor(this.next() * from.length)]!;
  }
}

function mix(value: number): number {
  let x = value | 0;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return x ^ (x >>> 16);
}

// Long enough, and of a length that no buffer has: a shift by one round is not met by accident.
const ROUND = 65521;
const TWICE = new Uint8Array(2 * ROUND);
for (let i = 0; i < ROUND; i++) TWICE[i] = TWICE[i + ROUND] = mix(i * 2654435761 + 1) & 255;

/** What stands in the stream from `position` on: `length` bytes, or fewer where a round ends. */
function piece(stream: number, position: number, length: number): Uint8Array {
  const from = (Math.imul(stream, 7919) + position) % ROUND;
  const start = from < 0 ? from + ROUND : from;
  return TWICE.subarray(start, start + Math.min(length, ROUND));
}

/** Fills into[at, at + length) with what stands in the stream from `position` on. */
export function fillStream(
  stream: number, position: number, into: Uint8Array, at: number, length: number,
): void {
  for (let done = 0; done < length; ) {
    const next = piece(stream, position + done, length - done);
    into.set(next, at + done);
    done += next.length;
  }
}

/** The first of `length` bytes that is not the stream's, counted from `at`; -1 if all are. */
export function firstWrong(
  stream: number, position: number, bytes: Uint8Array, at: number, length: number,
): number {
  for (let done = 0; done < length; ) {
    const next = piece(stream, position + done, length - done);
    const found = bytes.subarray(at + done, at + done + next.length);
    if (Buffer.compare(next, found) !== 0) {
      return done + found.findIndex((byte, i) => byte !== next[i]);
    }
    done += next.length;
  }
  return -1;
}
