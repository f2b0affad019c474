/**
 * Which thread owns which fd. All threads of a process share one fd table, so a worker that dies
 * leaves its sockets and pipes open, and their peers waiting, unless someone else knows them.
 *
 * One byte for each fd number, in memory that every thread sees: 0, or the owner's number. The
 * owner writes; main reads a dead worker's part and closes it. An fd that lies outside the ledger
 * must not be kept: no one could close it after us.
 */
export class Ledger {
  readonly #owners: Uint8Array;

  constructor(shared: SharedArrayBuffer) {
    this.#owners = new Uint8Array(shared);
  }

  /** False if the number is outside the ledger; then the caller closes the fd at once. */
  own(fd: number, owner: number): boolean {
    if (fd >= this.#owners.length) return false;
    this.#owners[fd] = owner;
    return true;
  }

  /** To be called before close(2): after it, another thread may already own the number. */
  disown(fd: number): void {
    this.#owners[fd] = 0;
  }

  /** How many fds an owner has. Reads the whole ledger: for tests and for the dead. */
  *ownedBy(owner: number): Generator<number> {
    for (let fd = 0; fd < this.#owners.length; fd++) if (this.#owners[fd] === owner) yield fd;
  }
}

/** Owners are numbered from 1, and a byte holds them. */
export const OWNERS_MAX = 255;
