/**
 * The event loop of a worker: epoll, edge-triggered.
 *
 * First mark, then run. A turn reads all events into flags, and only then runs the tasks they
 * concern. So no task can close an fd, and have its number reused, while an event for the old one
 * is still unread. What the loop hands to epoll as data is not the fd but the source's number,
 * which its owner keeps for life.
 */
import { EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLL_EVENT_DATA, EPOLL_EVENT_SIZE, EPOLL_CLOEXEC } from "../../native-bindings/constants.ts";
import type { Memory, Result, Syscalls } from "../../native-bindings/syscalls.ts";
import { assert } from "./assert.ts";

/** Something that epoll watches. */
export interface Source {
  /** Takes events into its flags, does nothing else, and answers who is to run for them. */
  mark(events: number): Task;
}

export interface Task {
  /** The loop's: it stands in the queue of this turn or the next. */
  queued: boolean;
  /** True if it stopped for its budget and wants to go on in the next turn. */
  turn(): boolean;
}

export class Loop {
  readonly #sys: Syscalls;
  readonly #epoll: number;
  readonly #events: Memory;
  readonly #words: Int32Array;
  readonly #eventsMax: number;
  readonly #sources: Source[] = [];
  // Two queues, swapped each turn; counted by hand, since length = 0 would free the memory.
  #ready: Task[] = [];
  #readyCount = 0;
  #running: Task[] = [];

  constructor(sys: Syscalls, eventsMax: number) {
    this.#sys = sys;
    this.#eventsMax = eventsMax;
    this.#events = sys.memory(eventsMax * EPOLL_EVENT_SIZE);
    this.#words = new Int32Array(this.#events.bytes.buffer);
    this.#epoll = sys.epoll_create1(EPOLL_CLOEXEC);
    assert(this.#epoll >= 0, `epoll_create1 answered ${this.#epoll}`);
  }

  get fd(): number {
    return this.#epoll;
  }

  /** The source's number, for add() and change(). Numbers are never taken back: pool sources. */
  number(source: Source): number {
    return this.#sources.push(source) - 1;
  }

  add(fd: number, events: number, source: number): Result {
    return this.#sys.epoll_ctl(this.#epoll, EPOLL_CTL_ADD, fd, events, source);
  }

  /** As epoll_ctl(EPOLL_CTL_MOD): what is ready now is reported again. */
  change(fd: number, events: number, source: number): Result {
    return this.#sys.epoll_ctl(this.#epoll, EPOLL_CTL_MOD, fd, events, source);
  }

  /** Only for an fd that is not closed: close(2) takes it out by itself. */
  remove(fd: number): Result {
    return this.#sys.epoll_ctl(this.#epoll, EPOLL_CTL_DEL, fd, 0, 0);
  }

  /** Has the task run, in this turn's second half or the next turn. */
  enqueue(task: Task): void {
    if (task.queued) return;
    task.queued = true;
    this.#ready[this.#readyCount++] = task;
  }

  /** Waits for events, at most `sleepMs`, unless a task is queued. Takes them into flags. */
  wait(sleepMs: number): void {
    const timeout = this.#readyCount > 0 ? 0 : sleepMs;
    const count = this.#sys.epoll_wait(this.#epoll, this.#events, this.#eventsMax, timeout);
    // EINTR is the only error that a right call can have, and an empty turn answers it.
    const words = this.#words;
    const step = EPOLL_EVENT_SIZE / 4;
    const data = EPOLL_EVENT_DATA / 4;
    for (let i = 0, at = 0; i < count; i++, at += step) {
      this.enqueue(this.#sources[words[at + data]!]!.mark(words[at]!));
    }
  }

  /** Runs every task that was queued before this call, and answers how many. */
  run(): number {
    const count = this.#readyCount;
    const running = this.#ready;
    this.#ready = this.#running;
    this.#running = running;
    this.#readyCount = 0;
    for (let i = 0; i < count; i++) {
      const task = running[i]!;
      task.queued = false;
      if (task.turn()) this.enqueue(task);
    }
    return count;
  }

  dispose(): void {
    this.#sys.close(this.#epoll);
  }
}
