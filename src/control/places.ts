/**
 * A bounded number of places for all, of which whoever has some may have half as many as are free.
 * So one alone gets a third of them, three together leave two fifths, and as long as there are fewer
 * greedy ones than places, there is one for the next who comes.
 */
export class Places {
  readonly #most: number;
  readonly #held = new Map<number, number>();
  #taken = 0;

  constructor(most: number) {
    this.#most = most;
  }

  /** True: `who` has one more, until leave(). */
  enter(who: number): boolean {
    const held = this.#held.get(who) ?? 0;
    if (held >= (this.#most - this.#taken) / 2) return false;
    this.#held.set(who, held + 1);
    this.#taken++;
    return true;
  }

  leave(who: number): void {
    const held = this.#held.get(who)! - 1;
    if (held === 0) this.#held.delete(who);
    else this.#held.set(who, held);
    this.#taken--;
  }
}
