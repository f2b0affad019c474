/**
 * The queues of SYNs (NFQUEUE): opened and closed by main, read by workers. So a worker that dies
 * takes no SYN with it, and the process that takes over reads on where the other has left off.
 */
import {
  EPERM, FD_CLOEXEC, F_SETFD, MSG_DONTWAIT, SOCK_CLOEXEC, SOCK_NONBLOCK, SOL_SOCKET, AF_INET, IPPROTO_RAW,
} from "../../native-bindings/constants.ts";
import {
  AF_NETLINK, CONFIG_BYTES, errorOf, NETLINK_NETFILTER, NETLINK_NO_ENOBUFS, NF_ACCEPT, SO_RCVBUF,
  SO_RCVBUFFORCE, SOCKADDR_NL_SIZE, SOCK_RAW, SOL_NETLINK, VERDICT_BYTES, writeConfig, writeUnbind, writeVerdict,
} from "../../native-bindings/nfnetlink-queue.ts";
import type { Memory, Result, Syscalls } from "../../native-bindings/syscalls.ts";
import type { Config } from "../config/config.ts";
import { heldIn } from "../engine/syn-table.ts";
import { errnoText } from "./listeners.ts";

export interface SynQueue {
  readonly fd: number;
  /** The kernel's number of it. */
  readonly queue: number;
  /** Ours, from 0. */
  readonly lane: number;
}

/** The mark has four bits for the lane, and 0 is none. */
export const LANES_MAX = 15;
/** One for each worker, as long as the mark has room. */
export const lanesOf = (workers: number): number => Math.min(workers, LANES_MAX);
/** Headers, with all their options. */
const COPY_BYTES = 256;
/** SYNs held in one queue, read or not; more go on unheld (FAIL_OPEN). */
const QUEUE_PACKETS_MAX = 65_536;
/** About 4000 SYNs that are not read yet. */
const BUFFER_BYTES = 4 << 20;
const ANSWER_BYTES = 256;

export class SynQueues {
  readonly #sys: Syscalls;
  readonly #open: SynQueue[] = [];
  readonly #memory: Memory;

  constructor(sys: Syscalls) {
    this.#sys = sys;
    this.#memory = sys.memory(ANSWER_BYTES);
  }

  get open(): readonly SynQueue[] {
    return this.#open;
  }

  /** From the process before. */
  adopt(queues: readonly SynQueue[]): void {
    for (const queue of queues) {
      this.#sys.fcntl(queue.fd, F_SETFD, FD_CLOEXEC);
      this.#open.push(queue);
    }
  }

  /** Opens what is missing of so many queues. Null, or what stands against it; then none is open that was not. */
  openNew(first: number, lanes: number, raw: boolean): { opened: SynQueue[] } | { wrong: string } {
    const refused = raw ? this.#rawRefusal() : null;
    if (refused !== null) return { wrong: refused };
    const opened: SynQueue[] = [];
    for (let lane = 0; lane < lanes; lane++) {
      const queue = first + lane;
      if (this.#open.some((each) => each.queue === queue)) continue;
      const fd = this.#openQueue(queue);
      if (typeof fd === "string") {
        for (const each of opened) this.#sys.close(each.fd);
        return { wrong: fd };
      }
      opened.push({ fd, queue, lane });
    }
    this.#open.push(...opened);
    return { opened };
  }

  /** Those that the configuration no longer has. Of fewer workers, each may read several. */
  obsolete({ connect: { truthful } }: Config): SynQueue[] {
    return this.#open.filter(({ queue, lane }) => truthful === null || queue !== truthful.queue + lane);
  }

  /** No worker reads it any more. Of what was still in it, the client asks again, and passes by. */
  close(queue: SynQueue): void {
    this.#open.splice(this.#open.indexOf(queue), 1);
    // Another process may have the same socket, so that closing it would not be the end.
    this.#sys.send(queue.fd, this.#memory, 0, writeUnbind(this.#memory, queue.queue), 0);
    this.#sys.close(queue.fd);
  }

  /** A worker has died: what it held goes on, and is dialled for once it is accepted. */
  letGo(held: SharedArrayBuffer): void {
    for (const { lane, id, mark } of heldIn(held)) {
      const queue = this.#open.find((each) => each.lane === lane);
      if (queue === undefined) continue;
      writeVerdict(this.#memory, 0, queue.queue, id, NF_ACCEPT, mark);
      this.#sys.send(queue.fd, this.#memory, 0, VERDICT_BYTES, MSG_DONTWAIT);
    }
  }

  #openQueue(queue: number): number | string {
    const sys = this.#sys;
    const fd = sys.socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, NETLINK_NETFILTER);
    if (fd < 0) return `connect.truthful: socket(AF_NETLINK): ${errnoText(-fd)}; the kernel needs nfnetlink_queue (modprobe nfnetlink_queue)`;
    const name = sys.memory(SOCKADDR_NL_SIZE);
    name.view.setUint16(0, AF_NETLINK, true);
    let result = sys.bind(fd, name, 0, SOCKADDR_NL_SIZE);
    if (result >= 0 && sys.setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES) < 0) {
      result = sys.setsockopt(fd, SOL_SOCKET, SO_RCVBUF, BUFFER_BYTES);
    }
    // What does not fit is no error to be told of: it goes on, or the client asks again.
    if (result >= 0) result = sys.setsockopt(fd, SOL_NETLINK, NETLINK_NO_ENOBUFS, 1);
    if (result >= 0) result = this.#configure(fd, queue);
    if (result >= 0) return fd;
    sys.close(fd);
    return queueTrouble(queue, -result);
  }

  #configure(fd: number, queue: number): Result {
    const sys = this.#sys;
    const message = sys.memory(CONFIG_BYTES);
    const sent = sys.send(fd, message, 0, writeConfig(message, queue, COPY_BYTES, QUEUE_PACKETS_MAX), 0);
    if (sent < 0) return sent;
    const got = sys.recv(fd, this.#memory, 0, ANSWER_BYTES, MSG_DONTWAIT);
    return got < 0 ? got : (errorOf(this.#memory, got) ?? 0);
  }

  #rawRefusal(): string | null {
    const fd = this.#sys.socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW);
    if (fd >= 0) this.#sys.close(fd);
    return fd === -EPERM
      ? 'connect.truthful: this process may not open raw sockets, which send its refusals; give it CAP_NET_RAW, or set answer = "reject" in [connect]'
      : null;
  }
}

function queueTrouble(queue: number, errno: number): string {
  const remedy =
    errno === EPERM
      ? "; it needs CAP_NET_ADMIN, and no other program may read that queue (connect.queue sets another, see /proc/net/netfilter/nfnetlink_queue)"
      : "; the kernel needs nfnetlink_queue (modprobe nfnetlink_queue)";
  return `connect.truthful: NFQUEUE ${queue}: ${errnoText(errno)}${remedy}`;
}
