/**
 * The addresses that an egress of a simulated world leaves by: some have no ports left, some the
 * host has lost, some were taken out of use; and a prefix, of which the host has no address.
 */
import type { OutgoingSettings } from "../../src/engine/outgoing.ts";
import type { Random } from "./random.ts";

interface Exit {
  readonly bytes: Uint8Array;
  readonly prefix: number;
  readonly usable: boolean;
  readonly state: "good" | "portless" | "absent";
}

const PREFIX_BYTES = 8;

export class Exits {
  readonly #exits: Exit[] = [];
  /** For the kernel, which has it before anything is drawn. */
  readonly portless: string[] = [];

  draw(random: Random): void {
    if (random.chance(0.4)) return;
    const [narrow, wide] = [random.between(0, 4), random.between(0, 3)];
    for (let i = 0; i < narrow + wide; i++) {
      const prefix = i >= narrow && random.chance(0.3);
      const bytes = i < narrow ? Uint8Array.of(192, 0, 2, i + 1)
        : Uint8Array.of(0x20, 1, 0xd, 0xb8, 3, i, 0, 0, ...new Uint8Array(7), prefix ? 0 : 1);
      const state = prefix || random.chance(0.7) ? "good" : random.pick(["portless", "absent"] as const);
      const usable = random.chance(0.9);
      this.#exits.push({ bytes, prefix: prefix ? 8 * PREFIX_BYTES : 8 * bytes.length, usable, state });
      if (state === "portless") this.portless.push(bytes.join("."));
    }
  }

  /** As the engine is told. */
  get addresses(): OutgoingSettings["addresses"] {
    return this.#exits.map(({ bytes, prefix, usable }, slot) => ({
      address: { bytes, prefix, weight: 1 }, slot, usable,
    }));
  }

  /** The kernel knows it not as its own. */
  isAbsent(bytes: Uint8Array): boolean {
    return this.#exits.some((exit) => isOf(exit, bytes) && (exit.state === "absent" || exit.prefix === 64));
  }

  hasNoPorts(index: number): boolean {
    return this.#exits[index]!.state !== "good";
  }

  mayLeaveBy(bytes: Uint8Array): boolean {
    return this.#exits.some((exit) => isOf(exit, bytes) && exit.usable && exit.state === "good");
  }

  /** What becomes of a connection to a family's address, as far as it lies with us. */
  state(length: number): "good" | "none" | "portless" {
    if (this.#exits.length === 0) return "good";
    const usable = this.#exits.filter((exit) => exit.usable && exit.bytes.length === length);
    if (usable.length === 0) return "none";
    return usable.some(({ state }) => state === "good") ? "good" : "portless";
  }
}

function isOf({ bytes, prefix }: Exit, other: Uint8Array): boolean {
  return bytes.length === other.length && bytes.every((byte, i) => i >= prefix / 8 || byte === other[i]);
}
