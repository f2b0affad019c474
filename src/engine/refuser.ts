/**
 * Refuses connections in the name of their destinations, by packets of our own: RST and ICMP's
 * "unreachable". The kernel limits how many ICMP errors its REJECT may send; it does not limit these.
 */
import {
  AF_INET, AF_INET6, IPPROTO_RAW, IPV6_HDRINCL, MSG_DONTWAIT, SOCKADDR_SIZE, SOCK_CLOEXEC,
  SOCK_NONBLOCK, SOL_IPV6, SOL_SOCKET, SO_MARK,
} from "../../native-bindings/constants.ts";
import { SOCK_RAW } from "../../native-bindings/nfnetlink-queue.ts";
import type { Memory, Result, Syscalls } from "../../native-bindings/syscalls.ts";
import { type Refusal, REFUSAL_BYTES_MAX, type Syn, writeRefusal } from "../protocol/syn.ts";
import type { Ledger } from "./ledger.ts";

export interface RefuserTools {
  readonly sys: Syscalls;
  readonly ledger: Ledger;
  readonly owner: number;
  readonly settings: { readonly mark: number | null };
}

export class Refuser {
  readonly #tools: RefuserTools;
  readonly #packet: Memory;
  readonly #to: Memory;
  /** By family; -1: not opened yet. */
  readonly #fds = { 4: -1, 6: -1 };

  constructor(tools: RefuserTools) {
    this.#tools = tools;
    this.#packet = tools.sys.memory(REFUSAL_BYTES_MAX);
    this.#to = tools.sys.memory(SOCKADDR_SIZE);
  }

  /** False: the kernel would not send it. */
  refuse(syn: Syn, refusal: Refusal): boolean {
    const { sys } = this.#tools;
    const fd = this.#fds[syn.family] < 0 ? this.#open(syn.family) : this.#fds[syn.family];
    if (fd < 0) return false;
    const { bytes } = this.#to;
    const v6 = syn.family === 6;
    // The port stays 0: a raw socket has none (ipv6(7)).
    bytes.fill(0);
    bytes[0] = v6 ? AF_INET6 : AF_INET;
    bytes.set(syn.source.subarray(0, v6 ? 16 : 4), v6 ? 8 : 4);
    const length = writeRefusal(this.#packet.bytes, syn, refusal);
    return sys.sendto(fd, this.#packet, 0, length, MSG_DONTWAIT, this.#to, 0, v6 ? 28 : 16) === length;
  }

  dispose(): void {
    const { sys, ledger } = this.#tools;
    for (const fd of [this.#fds[4], this.#fds[6]]) {
      if (fd < 0) continue;
      ledger.disown(fd);
      sys.close(fd);
    }
    this.#fds[4] = this.#fds[6] = -1;
  }

  #open(family: 4 | 6): Result {
    const { sys, ledger, owner, settings } = this.#tools;
    const fd = sys.socket(family === 4 ? AF_INET : AF_INET6, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_RAW);
    if (fd < 0) return fd;
    let result = ledger.own(fd, owner) ? 0 : -1;
    if (result >= 0 && family === 6) result = sys.setsockopt(fd, SOL_IPV6, IPV6_HDRINCL, 1);
    if (result >= 0 && settings.mark !== null) result = sys.setsockopt(fd, SOL_SOCKET, SO_MARK, settings.mark);
    if (result >= 0) {
      this.#fds[family] = fd;
      return fd;
    }
    ledger.disown(fd);
    sys.close(fd);
    return result;
  }
}
