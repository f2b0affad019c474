/**
 * What the kernel's connection tracking knows of an accepted connection: the port that its client had
 * before a redirect changed it. Asked only where nothing else tells, since it costs two more calls.
 */
import { MSG_DONTWAIT, SOCK_CLOEXEC, SOCK_NONBLOCK } from "../../native-bindings/constants.ts";
import { CONNTRACK_REQUEST_BYTES, originalPort, writeConntrackGet } from "../../native-bindings/nfnetlink-conntrack.ts";
import { AF_NETLINK, NETLINK_NETFILTER, SOCK_RAW } from "../../native-bindings/nfnetlink-queue.ts";
import type { Memory, Syscalls } from "../../native-bindings/syscalls.ts";
import type { Ledger } from "./ledger.ts";

export interface ConntrackTools {
  readonly sys: Syscalls;
  readonly ledger: Ledger;
  readonly owner: number;
}

const ANSWER_BYTES = 2048;
const NOT_OPEN = -1;

export class Conntrack {
  readonly #tools: ConntrackTools;
  readonly #request: Memory;
  readonly #answer: Memory;
  #fd = NOT_OPEN;

  constructor(tools: ConntrackTools) {
    this.#tools = tools;
    this.#request = tools.sys.memory(CONNTRACK_REQUEST_BYTES);
    this.#answer = tools.sys.memory(ANSWER_BYTES);
  }

  /** Of the connection that is answered from `from` to `to`. 0: it does not say. */
  originalPort(family: 4 | 6, from: Uint8Array, fromPort: number, to: Uint8Array, toPort: number): number {
    const { sys } = this.#tools;
    if (this.#fd < 0 && !this.#open()) return 0;
    const length = writeConntrackGet(this.#request, family, from, fromPort, to, toPort);
    if (sys.send(this.#fd, this.#request, 0, length, MSG_DONTWAIT) < 0) return 0;
    // It has answered within send().
    return originalPort(this.#answer, sys.recv(this.#fd, this.#answer, 0, ANSWER_BYTES, MSG_DONTWAIT));
  }

  dispose(): void {
    if (this.#fd < 0) return;
    this.#tools.ledger.disown(this.#fd);
    this.#tools.sys.close(this.#fd);
    this.#fd = NOT_OPEN;
  }

  #open(): boolean {
    const { sys, ledger, owner } = this.#tools;
    const fd = sys.socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, NETLINK_NETFILTER);
    if (fd < 0) return false;
    if (!ledger.own(fd, owner)) {
      sys.close(fd);
      return false;
    }
    this.#fd = fd;
    return true;
  }
}
