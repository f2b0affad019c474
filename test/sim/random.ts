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

function byteAt(stream: number, position: number): number {
  return mix(Math.imul(position, 0x9e3779b1) ^ stream) & 255;
}

/** Fills into[at, at + length) with what stands in the stream from `position` on. */
export function fillStream(
  stream: number, position: number, into: Uint8Array, at: number, length: number,
): void {
  for (let i = 0; i < length; i++) into[at + i] = byteAt(stream, position + i);
}

/** The first of `length` bytes that is not the stream's, counted from `at`; -1 if all are. */
export function firstWrong(
  stream: number, position: number, bytes: Uint8Array, at: number, length: number,
): number {
  for (let i = 0; i < length; i++) if (bytes[at + i] !== byteAt(stream, position + i)) return i;
  return -1;
}
