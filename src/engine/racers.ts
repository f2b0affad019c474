/**
 * Connections that are tried beside the first one, when that does not answer at once (RFC 8305).
 * Lent to sessions that dial; there are few, since they take fds that tunnels were promised: who
 * gets none waits for his first attempt, as everyone did before.
 */
import type { Loop, Task } from "./loop.ts";
import { NO_SLOT } from "./slots.ts";
import { Socket } from "./socket.ts";

const RACERS_MAX = 128;

export class Racer extends Socket {
  /** Which of the session's candidates it leads to. */
  candidate = 0;
  slot = NO_SLOT;
  /** As loops.note() has answered. */
  notedPort = 0;
}

export class Racers {
  readonly #loop: Loop;
  readonly #spare: Racer[] = [];
  #made = 0;

  constructor(loop: Loop) {
    this.#loop = loop;
  }

  get lent(): number {
    return this.#made - this.#spare.length;
  }

  take(task: Task): Racer | null {
    const racer = this.#spare.pop() ?? this.#make(task);
    if (racer !== null) racer.task = task;
    return racer;
  }

  /** It has no fd any more. */
  give(racer: Racer): void {
    this.#spare.push(racer);
  }

  #make(task: Task): Racer | null {
    if (this.#made >= RACERS_MAX) return null;
    this.#made++;
    return new Racer(this.#loop, task);
  }
}
