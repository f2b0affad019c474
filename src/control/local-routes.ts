/**
 * What the kernel delivers to this host itself, asked and heard by rtnetlink(7): the routes of the
 * table `local` (ip-route(8)). That is more than the addresses which getifaddrs(3) tells: also those
 * of an interface without a cable, and networks that are routed to lo.
 */
import {
  AF_INET, AF_INET6, AF_NETLINK, NETLINK_GET_STRICT_CHK, NETLINK_ROUTE, NLM_F_DUMP, NLM_F_REQUEST,
  NLMSG_DONE, NLMSG_ERROR, RTA_DST, RTM_GETROUTE, RTM_NEWROUTE, RTMGRP_IPV4_IFADDR,
  RTMGRP_IPV6_IFADDR, RTMGRP_LINK, RTN_LOCAL, RT_TABLE_LOCAL, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_RAW,
  SOL_NETLINK, EAGAIN,
} from "../../native-bindings/constants.ts";
import type { Memory, Syscalls } from "../../native-bindings/syscalls.ts";
import type { Network } from "../policy/network.ts";

/** struct nlmsghdr: length, type, flags, sequence, port. */
const HEADER = 16;
/** struct rtmsg: family, bits of the destination, 2 more; table, protocol, scope, type; flags. */
const ROUTE = 12;
/** struct rtattr: length and type. */
const ATTRIBUTE = 4;
/** As much as the kernel puts into one answer at most (netlink_dump). */
const BUFFER_BYTES = 32_768;
/** A full answer has some 700 routes: this is a bound for a kernel that never says "done". */
const ANSWERS_MAX = 10_000;

/** Null: the kernel does not say, of either family. */
export function localRoutes(sys: Syscalls): Network[] | null {
  const found = [AF_INET, AF_INET6].map((family) => routesOf(sys, family));
  return found.every((each) => each === null) ? null : found.flatMap((each) => each ?? []);
}

function routesOf(sys: Syscalls, family: number): Network[] | null {
  const fd = open(sys, 0);
  if (fd < 0) return null;
  try {
    const memory = sys.memory(BUFFER_BYTES);
    const { bytes, view } = memory;
    view.setUint32(0, HEADER + ROUTE, true);
    view.setUint16(4, RTM_GETROUTE, true);
    view.setUint16(6, NLM_F_REQUEST | NLM_F_DUMP, true);
    bytes[HEADER] = family;
    // A kernel from 4.20 on answers with these alone; an older one with all that it has.
    bytes[HEADER + 4] = RT_TABLE_LOCAL;
    bytes[HEADER + 7] = RTN_LOCAL;
    if (sys.send(fd, memory, 0, HEADER + ROUTE, 0) < 0) return null;
    const routes: Network[] = [];
    for (let answers = 0; answers < ANSWERS_MAX; answers++) {
      const got = sys.recv(fd, memory, 0, BUFFER_BYTES, 0);
      if (got < 0) return null;
      const end = readAnswer(memory, got, routes);
      if (end !== null) return end === "done" ? routes : null;
    }
    return null;
  } finally {
    sys.close(fd);
  }
}

/** Adds the routes of one answer; null: there is more. Its numbers have the machine's byte order. */
function readAnswer({ bytes, view }: Memory, length: number, into: Network[]): "done" | "failed" | null {
  for (let at = 0; at + HEADER <= length; at += aligned(view.getUint32(at, true))) {
    const type = view.getUint16(at + 4, true);
    if (type === NLMSG_DONE) return "done";
    if (type === NLMSG_ERROR) return "failed";
    const end = at + view.getUint32(at, true);
    if (end > length || end < at + HEADER) return "failed";
    const route = at + HEADER;
    const isLocal = bytes[route + 4] === RT_TABLE_LOCAL && bytes[route + 7] === RTN_LOCAL;
    if (type === RTM_NEWROUTE && isLocal) into.push(destinationOf(bytes, view, route, end));
  }
  return null;
}

/** Without the attribute, it is all addresses of the family. */
function destinationOf(bytes: Uint8Array, view: DataView, route: number, end: number): Network {
  const length = bytes[route] === AF_INET ? 4 : 16;
  const destination = new Uint8Array(length);
  for (let at = route + ROUTE; at + ATTRIBUTE <= end; at += aligned(view.getUint16(at, true))) {
    if (view.getUint16(at, true) < ATTRIBUTE) break;
    if (view.getUint16(at + 2, true) !== RTA_DST) continue;
    destination.set(bytes.subarray(at + ATTRIBUTE, at + ATTRIBUTE + length));
  }
  return { bytes: destination, prefix: bytes[route + 1]! };
}

const aligned = (length: number): number => Math.max(4, (length + 3) & ~3);

/** A socket, or -errno. */
function open(sys: Syscalls, groups: number): number {
  const fd = sys.socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, NETLINK_ROUTE);
  if (fd < 0) return fd;
  sys.setsockopt(fd, SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1);
  const address = sys.memory(12);
  address.view.setUint16(0, AF_NETLINK, true);
  address.view.setUint32(8, groups, true);
  const result = sys.bind(fd, address, 0, 12);
  if (result >= 0) return fd;
  sys.close(fd);
  return result;
}

/** Has an address or an interface come or gone? Owns the socket on which the kernel tells it. */
export class AddressNews {
  readonly #sys: Syscalls;
  readonly #scratch: Memory;
  readonly #fd: number;

  constructor(sys: Syscalls) {
    this.#sys = sys;
    this.#scratch = sys.memory(BUFFER_BYTES);
    this.#fd = open(sys, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR);
  }

  /** True if there was news since it was last asked. What it says is of no interest. */
  take(): boolean {
    if (this.#fd < 0) return false;
    let news = false;
    // ENOBUFS is news as well: there was more than the socket could hold.
    for (let reads = 0; reads < 100; reads++) {
      if (this.#sys.recv(this.#fd, this.#scratch, 0, BUFFER_BYTES, 0) === -EAGAIN) return news;
      news = true;
    }
    return news;
  }

  close(): void {
    if (this.#fd >= 0) this.#sys.close(this.#fd);
  }
}
