/**
 * Has a program let go of its socket? That makes the socket an orphan (tcp(7)).
 *
 * Its FIN does not say: close(2) and shutdown(SHUT_WR) send the same, and only the second still
 * waits for an answer. Of a socket of this host the kernel can be asked, by sock_diag(7): one that
 * no file leads to has no inode. Rare, so the netlink socket lives for one question; no privilege
 * is needed. Where the kernel does not say, or knows nothing of the socket, it is no orphan.
 */
import {
  AF_INET, AF_INET6, AF_NETLINK, IPPROTO_TCP, NETLINK_SOCK_DIAG, NLM_F_REQUEST, SOCK_CLOEXEC,
  SOCK_DGRAM, SOCK_DIAG_BY_FAMILY, SOCK_NONBLOCK, TCP_FIN_WAIT1, TCP_FIN_WAIT2,
} from "../../native-bindings/constants.ts";
import type { Memory, Syscalls } from "../../native-bindings/syscalls.ts";
import { addressOf } from "../policy/own.ts";
import type { Ledger } from "./ledger.ts";

/** struct nlmsghdr: length, type, flags, sequence, port. */
const HEADER = 16;
/** struct inet_diag_req_v2: family, protocol, 2 more, states; then struct inet_diag_sockid. */
const REQUEST_ID = HEADER + 8;
/** struct inet_diag_sockid: ports, addresses of 16 bytes each, interface, cookie. */
const ID_SOURCE = 4;
const ID_DESTINATION = 20;
const ID_COOKIE = 40;
const ID = 48;
const REQUEST = REQUEST_ID + ID;
/** struct inet_diag_msg: family, state, 2 more, the id, then five numbers: the last is the inode. */
const ANSWER_STATE = HEADER + 1;
const ANSWER_INODE = HEADER + 4 + ID + 16;
const ANSWER = ANSWER_INODE + 4;
/** With room for attributes that were not asked for. */
const BUFFER_BYTES = 4096;

export class Orphans {
  readonly #sys: Syscalls;
  readonly #ledger: Ledger;
  readonly #owner: number;
  readonly #buffer: Memory;

  constructor(sys: Syscalls, ledger: Ledger, owner: number) {
    this.#sys = sys;
    this.#ledger = ledger;
    this.#owner = owner;
    this.#buffer = sys.memory(BUFFER_BYTES);
  }

  /**
   * Of the socket that has said FIN and leads from one sockaddr to another, in its own view: `from`
   * is its local address.
   */
  has(from: Uint8Array, fromAt: number, to: Uint8Array, toAt: number): boolean {
    const sys = this.#sys;
    const kind = SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
    const fd = sys.socket(AF_NETLINK, kind, NETLINK_SOCK_DIAG);
    if (fd < 0) return false;
    const owned = this.#ledger.own(fd, this.#owner);
    this.#writeRequest(from, fromAt, to, toAt);
    // The kernel answers within send(2).
    const got = owned && sys.send(fd, this.#buffer, 0, REQUEST, 0) === REQUEST
      ? sys.recv(fd, this.#buffer, 0, BUFFER_BYTES, 0) : -1;
    this.#ledger.disown(fd);
    sys.close(fd);
    return got >= ANSWER && this.#saysOrphan();
  }

  /** Ports and addresses in network order, numbers in the machine's. */
  #writeRequest(from: Uint8Array, fromAt: number, to: Uint8Array, toAt: number): void {
    const { bytes, view } = this.#buffer;
    const [source, destination] = [addressOf(from, fromAt), addressOf(to, toAt)];
    bytes.fill(0, 0, REQUEST);
    view.setUint32(0, REQUEST, true);
    view.setUint16(4, SOCK_DIAG_BY_FAMILY, true);
    view.setUint16(6, NLM_F_REQUEST, true);
    bytes[HEADER] = source.length === 4 ? AF_INET : AF_INET6;
    bytes[HEADER + 1] = IPPROTO_TCP;
    bytes.fill(0xff, HEADER + 4, REQUEST_ID); // In whatever state.
    bytes.set(from.subarray(fromAt + 2, fromAt + 4), REQUEST_ID);
    bytes.set(to.subarray(toAt + 2, toAt + 4), REQUEST_ID + 2);
    bytes.set(source, REQUEST_ID + ID_SOURCE);
    bytes.set(destination, REQUEST_ID + ID_DESTINATION);
    bytes.fill(0xff, REQUEST_ID + ID_COOKIE, REQUEST); // INET_DIAG_NOCOOKIE
  }

  #saysOrphan(): boolean {
    const { bytes, view } = this.#buffer;
    if (view.getUint16(4, true) !== SOCK_DIAG_BY_FAMILY) return false;
    const state = bytes[ANSWER_STATE];
    const halfClosed = state === TCP_FIN_WAIT1 || state === TCP_FIN_WAIT2;
    return halfClosed && view.getUint32(ANSWER_INODE, true) === 0;
  }
}
