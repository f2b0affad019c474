/**
 * Names that have a number each. A worker knows numbers, main knows whose they are. A name keeps its
 * number over reloads, and as long after it has gone as there are numbers that nobody had: what is
 * still counted there by a worker that has not heard of the reload, or by tunnels that stay, is
 * counted rightly.
 */

/** The name of the slot behind the last, for all that come when the others are taken. */
export const OTHERS = "(others)";

/** Of a connection that is counted in none. */
export const NO_SLOT = -1;

/** The slots of one kind of names: `slots` of them, and the one behind. */
export class Slots {
  readonly #slots: number;
  readonly #isIdle: (slot: number) => boolean;
  readonly #onReuse: (slot: number) => void;
  /** Who was last asked for longest ago stands first. */
  readonly #numbers = new Map<string, number>();
  #current: ReadonlySet<string> = new Set();
  #crowded = false;

  constructor(slots: number, isIdle: (slot: number) => boolean, onReuse: (slot: number) => void) {
    this.#slots = slots;
    this.#isIdle = isIdle;
    this.#onReuse = onReuse;
  }

  /** The names that count from now on. Those that find no slot share the last. */
  assign(names: readonly string[]): number[] {
    this.#current = new Set(names);
    this.#crowded = false;
    for (const name of this.#current) {
      const slot = this.#numbers.get(name);
      if (slot === undefined) continue;
      this.#numbers.delete(name);
      this.#numbers.set(name, slot);
    }
    return names.map((name) => {
      const slot = this.#numbers.get(name) ?? this.#take();
      if (slot === this.#slots) this.#crowded = true;
      else this.#numbers.set(name, slot);
      return slot;
    });
  }

  /** Whose each number is. */
  names(): Map<number, string> {
    return new Map([...this.all()].map(({ name, slot }) => [slot, name]));
  }

  *all(): Generator<{ name: string; slot: number; current: boolean }> {
    for (const [name, slot] of this.#numbers) yield { name, slot, current: this.#current.has(name) };
    yield { name: OTHERS, slot: this.#slots, current: this.#crowded };
  }

  #take(): number {
    if (this.#numbers.size < this.#slots) return this.#numbers.size;
    for (const [name, slot] of this.#numbers) {
      if (this.#current.has(name)) break; // Behind it stand only such.
      if (!this.#isIdle(slot)) continue;
      this.#numbers.delete(name);
      this.#onReuse(slot);
      return slot;
    }
    return this.#slots;
  }
}
