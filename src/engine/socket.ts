/**
 * One end of a tunnel as the loop sees it: an fd, and what is known of its readiness.
 *
 * Readiness is a hint that is remembered; the system call is the truth. A socket is registered
 * once, edge-triggered, for reading; for writing only when a write has once found it full, which
 * most never do. `readable` and `writable` are forgotten when a call says EAGAIN, or has shown by
 * a short read that nothing is left.
 */
import { EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP } from "../../native-bindings/constants.ts";
import type { Result } from "../../native-bindings/syscalls.ts";
import type { Loop, Source, Task } from "./loop.ts";

const READING = EPOLLIN | EPOLLRDHUP | EPOLLPRI | EPOLLET;

export class Socket implements Source {
  readonly #loop: Loop;
  readonly #number: number;
  /** Who is to run for its events. */
  task: Task;
  fd = -1;
  readable = false;
  writable = true;
  /** The peer has said FIN: what can be read now is all there will be. */
  finished = false;
  /** EPOLLERR: it was reset, or lost, and the kernel has an error to tell. */
  broken = false;
  /**
   * There is urgent data (MSG_OOB). recv stops at its mark, so a short read no longer means that
   * nothing is left, and splice cannot pass the mark at all.
   */
  urgent = false;
  /** The first error that a call on it answered. The kernel says it once only; this remembers. */
  errno = 0;
  /** It is registered with the loop. */
  watched = false;
  /** TCP_NODELAY is still to be set: Nagle's algorithm would hold up the second small message. */
  nagles = false;
  #watchesWriting = false;

  constructor(loop: Loop, task: Task) {
    this.#loop = loop;
    this.task = task;
    this.#number = loop.number(this);
  }

  /** Begins a new life with an open fd. */
  reset(fd: number): void {
    this.fd = fd;
    this.readable = false;
    this.writable = true;
    this.finished = false;
    this.broken = false;
    this.urgent = false;
    this.errno = 0;
    this.watched = false;
    this.nagles = false;
    this.#watchesWriting = false;
  }

  /** Registers it with the loop; `writing` also for EPOLLOUT, as for a connect in progress. */
  watch(writing: boolean): Result {
    this.watched = true;
    this.#watchesWriting = writing;
    return this.#loop.add(this.fd, writing ? READING | EPOLLOUT : READING, this.#number);
  }

  /**
   * A write found it full: wait for EPOLLOUT. The first time this tells epoll, which reports at
   * once if there is room again meanwhile. Answers what epoll_ctl does.
   */
  awaitWritable(): Result {
    this.writable = false;
    if (this.#watchesWriting) return 0;
    this.#watchesWriting = true;
    return this.#loop.change(this.fd, READING | EPOLLOUT, this.#number);
  }

  /**
   * Takes over an fd that another has registered: from now on its events are ours. epoll_ctl
   * reports again what is ready, so nothing is missed. Answers what epoll_ctl does.
   */
  adopt(other: Socket): Result {
    this.reset(other.fd);
    this.nagles = other.nagles;
    other.fd = -1;
    this.watched = true;
    return this.#loop.change(this.fd, READING, this.#number);
  }

  mark(events: number): Task {
    if ((events & EPOLLIN) !== 0) this.readable = true;
    if ((events & EPOLLOUT) !== 0) this.writable = true;
    if ((events & (EPOLLRDHUP | EPOLLPRI | EPOLLERR | EPOLLHUP)) !== 0) this.#markRare(events);
    return this.task;
  }

  #markRare(events: number): void {
    this.readable = true;
    if ((events & EPOLLRDHUP) !== 0) this.finished = true;
    if ((events & EPOLLPRI) !== 0) this.urgent = true;
    // EPOLLHUP alone is no fault: both directions have said FIN.
    if ((events & EPOLLERR) !== 0) this.broken = true;
    if ((events & (EPOLLERR | EPOLLHUP)) !== 0) this.writable = true; // A write will say why.
  }
}
