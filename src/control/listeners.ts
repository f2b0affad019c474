/**
 * The listening sockets: opened and closed by main, accepted from by workers. So a worker that
 * dies takes no backlog with it, and a reload moves sockets without closing them.
 *
 * Each address has one SO_REUSEPORT socket for each worker, among which the kernel spreads
 * connections by a hash. Where the service manager has opened it, workers may share sockets.
 */
import { getSystemErrorMap } from "node:util";
import {
  AF_INET,
  AF_INET6,
  EACCES,
  EADDRINUSE,
  EADDRNOTAVAIL,
  EAFNOSUPPORT,
  IPV6_TRANSPARENT,
  IPV6_V6ONLY,
  IP_TRANSPARENT,
  FD_CLOEXEC,
  F_SETFD,
  F_SETFL,
  O_NONBLOCK,
  SOCKADDR_SIZE,
  SOCK_CLOEXEC,
  SOCK_NONBLOCK,
  SOCK_STREAM,
  SOL_IP,
  SOL_IPV6,
  SOL_SOCKET,
  SOL_TCP,
  SO_REUSEADDR,
  SO_ATTACH_REUSEPORT_CBPF,
  SO_REUSEPORT,
  TCP_NODELAY,
  TCP_SAVE_SYN,
} from "../../native-bindings/constants.ts";
import type { Memory, Result, Syscalls } from "../../native-bindings/syscalls.ts";
import type { Config, ListenAddress } from "../config/config.ts";
import type { Role } from "../engine/session.ts";
import { portOf } from "../policy/own.ts";

/** The kernel cuts it to what net.core.somaxconn is then. */
const BACKLOG = 65535;

/** Classic BPF (<linux/filter.h>): the four bits of the mark from the shift on, less one. */
const LANE_OF_MARK: readonly (readonly [code: number, value: number | null])[] = [
  [0x20, 0xffff_f000 + 20], // ld SKF_AD_OFF + SKF_AD_MARK
  [0x74, null], // rsh
  [0x54, 15], // and
  [0x14, 1], // sub
  [0x16, 0], // ret a
];

export interface ListeningAddress {
  readonly address: ListenAddress;
  readonly role: Role;
  readonly fds: readonly number[];
}

export class Listeners {
  readonly #sys: Syscalls;
  readonly #open = new Map<string, ListeningAddress>();
  /** The service manager's, of those that are open. */
  readonly #passed = new Set<number>();

  constructor(sys: Syscalls) {
    this.#sys = sys;
  }

  get open(): readonly ListeningAddress[] {
    return [...this.#open.values()];
  }

  /**
   * Sockets that listen already, from the process before: they are as good as opened here. Answers
   * what is wrong with them, or null.
   */
  adopt(listening: readonly ListeningAddress[]): string | null {
    const sys = this.#sys;
    const name = sys.memory(SOCKADDR_SIZE);
    for (const { address, role, fds } of listening) {
      for (const fd of fds) {
        const named = sys.getsockname(fd, name, 0);
        const same = address.bytes.every((byte, i) => i < 2 || byte === name.bytes[i]);
        if (named < 0 || !same) return `fd ${fd} is not a socket that listens on ${address.text}`;
        sys.fcntl(fd, F_SETFD, FD_CLOEXEC);
      }
      this.#add({ address, role, fds });
    }
    return null;
  }

  /** Sockets of the service manager's, who did not open them as we do. Answers what is wrong, or null. */
  adoptPassed(listening: readonly ListeningAddress[], mode: Config["mode"]): string | null {
    const sys = this.#sys;
    for (const { address, role, fds } of listening) {
      for (const fd of fds) {
        this.#passed.add(fd);
        const steps: [string, () => Result][] = [
          ["fcntl O_NONBLOCK", () => sys.fcntl(fd, F_SETFL, O_NONBLOCK)],
          ["setsockopt TCP_NODELAY", () => sys.setsockopt(fd, SOL_TCP, TCP_NODELAY, 1)],
          // The manager's Backlog= may be small.
          ["listen", () => sys.listen(fd, BACKLOG)],
        ];
        for (const [call, step] of steps) {
          const result = step();
          if (result < 0) return trouble(address, call, result).text;
        }
        if (role === "transparent" && mode === "tproxy" && !this.#madeTransparent(fd, address)) {
          return `listen tcp ${address.text}: mode = "tproxy" needs Transparent=yes in the socket's unit, or CAP_NET_ADMIN`;
        }
      }
    }
    return this.adopt(listening);
  }

  /**
   * Opens what the configuration lists and is not open, so that each address has `sockets` sockets
   * at least. All or nothing: the texts of what went wrong, or what is newly open, and the
   * addresses left out because this host lacks them (half of "localhost").
   */
  openNew(
    config: Config,
    sockets: number,
  ): { opened: ListeningAddress[]; missing: string[] } | { wrong: string[] } {
    const opened: ListeningAddress[] = [];
    const missing: string[] = [];
    const wrong: string[] = [];
    const wanted = wantedBy(config);
    for (const { address, role } of wanted) {
      const open = this.#open.get(keyOf(address, role))?.fds ?? [];
      const has = open.length;
      // net.core.somaxconn may have grown since; of one that listens, nothing else changes.
      for (const fd of open) this.#sys.listen(fd, BACKLOG);
      const passed = open.find((fd) => this.#passed.has(fd));
      if (has >= sockets || (passed !== undefined && !this.#is(passed, SOL_SOCKET, SO_REUSEPORT))) continue;
      const ours = [...this.open, ...opened].some((other) => overlap(other.address, address));
      const fds = this.#openAddress(address, modeOf(config, role), sockets - has, !ours);
      // SO_REUSEPORT is for the sockets of one user; beside another's, workers share what there is.
      if (!Array.isArray(fds) && passed !== undefined) continue;
      if (Array.isArray(fds)) opened.push({ address, role, fds });
      else if (address.optional && fds.absent) missing.push(address.text);
      else wrong.push(fds.text);
    }
    const kept = wanted.filter(({ address, role }) => this.#open.has(keyOf(address, role)));
    if (wrong.length === 0 && opened.length + kept.length === 0) {
      wrong.push(`none of ${wanted.map(({ address }) => address.text).join(", ")} exists on this host`);
    }
    if (wrong.length > 0) {
      for (const { fds } of opened) this.#close(fds);
      return { wrong };
    }
    for (const listening of opened) this.#add(listening);
    return { opened, missing };
  }

  /**
   * Listening addresses that the configuration no longer has. One that is covered by a wildcard now
   * is no such: it goes on beside it, as its end would cost whoever is just connecting.
   */
  obsolete(config: Config): ListeningAddress[] {
    const wanted = new Set(wantedBy(config).map(({ address, role }) => keyOf(address, role)));
    const isCovered = ({ address, role }: ListeningAddress): boolean =>
      (role === "socks" ? (config.egress?.listen ?? []) : config.listen).some((wide) => covers(wide, address));
    return this.open.filter((each) => !wanted.has(keyOf(each.address, each.role)) && !isCovered(each));
  }

  /** The mode has changed: listening sockets learn it where they stand. */
  setMode(mode: Config["mode"]): Result {
    let result = 0;
    for (const { address, role, fds } of this.#open.values()) {
      if (role !== "transparent") continue;
      for (const fd of fds) {
        const set = this.#transparent(fd, address, mode === "tproxy");
        if (set < 0 && !(mode === "tproxy" && this.#madeTransparent(fd, address))) result = set;
      }
    }
    return result;
  }

  /** As many sockets as each address of redirected connections has at least. */
  get fewest(): number {
    return Math.min(...this.open.filter(({ role }) => role === "transparent").map(({ fds }) => fds.length));
  }

  /**
   * Sockets of redirected connections remember the SYN of each; and the SYN that has a lane in these
   * bits of its mark goes to the socket of that number. Null: neither.
   */
  setTruthful(markShift: number | null): Result {
    const sys = this.#sys;
    let result = 0;
    for (const { role, fds } of this.#open.values()) {
      if (role !== "transparent") continue;
      for (const fd of fds) {
        result = Math.min(result, sys.setsockopt(fd, SOL_TCP, TCP_SAVE_SYN, markShift === null ? 0 : 1));
      }
      // It is the whole group's. Without a lane it leads nowhere, and the kernel chooses by its hash.
      if (markShift !== null && fds.length > 1) result = Math.min(result, this.#steer(fds[0]!, markShift));
    }
    return result;
  }

  #steer(fd: number, markShift: number): Result {
    const program = this.#sys.memory(LANE_OF_MARK.length * 8);
    for (const [i, [code, value]] of LANE_OF_MARK.entries()) {
      program.view.setUint16(i * 8, code, true);
      program.view.setUint32(i * 8 + 4, value ?? markShift, true);
    }
    // struct sock_fprog: the number of instructions, and where they are.
    const fprog = this.#sys.memory(16);
    fprog.view.setUint16(0, LANE_OF_MARK.length, true);
    fprog.view.setBigUint64(8, BigInt(program.address), true);
    return this.#sys.setsockoptBytes(fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, fprog, 0, 16);
  }

  /** No worker accepts from them any more: connections are refused from now on. */
  close({ address, role, fds }: ListeningAddress): void {
    this.#close(fds);
    const key = keyOf(address, role);
    const left = this.#open.get(key)!.fds.filter((fd) => !fds.includes(fd));
    if (left.length === 0) this.#open.delete(key);
    else this.#open.set(key, { address, role, fds: left });
  }

  #add({ address, role, fds }: ListeningAddress): void {
    const had = this.#open.get(keyOf(address, role))?.fds ?? [];
    this.#open.set(keyOf(address, role), { address, role, fds: [...had, ...fds] });
  }

  #openAddress(
    address: ListenAddress, mode: Config["mode"], sockets: number, alone: boolean,
  ): number[] | Trouble {
    // With SO_REUSEPORT a second program could share the port unnoticed, and take half of the
    // connections. So the first bind is tried without it, where no socket of our own stands in the way.
    if (alone) {
      const probe = this.#bind(address, mode, false);
      if (typeof probe !== "number") return probe;
      this.#sys.close(probe);
    }
    const fds: number[] = [];
    for (let i = 0; i < sockets; i++) {
      const fd = this.#bind(address, mode, true);
      const listening = typeof fd === "number" ? this.#sys.listen(fd, BACKLOG) : fd;
      if (typeof fd === "number") fds.push(fd);
      if (typeof listening === "number" && listening >= 0) continue;
      this.#close(fds);
      return typeof listening === "number" ? trouble(address, "listen", listening) : listening;
    }
    return fds;
  }

  #bind(address: ListenAddress, mode: Config["mode"], shared: boolean): number | Trouble {
    const sys = this.#sys;
    const { bytes } = address;
    const family = bytes[0]!;
    const fd = sys.socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    // A kernel without IPv6: all of its addresses are those of IPv4.
    if (fd === -EAFNOSUPPORT && address.dualStack) return this.#bind(allOfIpv4(address), mode, shared);
    if (fd < 0) return trouble(address, "socket", fd);
    const memory: Memory = sys.memory(bytes.length);
    memory.bytes.set(bytes);
    const steps: [string, () => Result][] = [
      ["setsockopt SO_REUSEADDR", () => sys.setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, 1)],
      [
        "setsockopt SO_REUSEPORT",
        () => (shared ? sys.setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, 1) : 0),
      ],
      // Accepted sockets inherit it, which saves a call for each.
      ["setsockopt TCP_NODELAY", () => sys.setsockopt(fd, SOL_TCP, TCP_NODELAY, 1)],
      [
        "setsockopt IPV6_V6ONLY",
        () =>
          family === AF_INET6
            ? sys.setsockopt(fd, SOL_IPV6, IPV6_V6ONLY, address.dualStack ? 0 : 1)
            : 0,
      ],
      [
        "setsockopt IP_TRANSPARENT",
        () => (mode === "tproxy" ? this.#transparent(fd, address, true) : 0),
      ],
      ["bind", () => sys.bind(fd, memory, 0, bytes.length)],
    ];
    for (const [call, step] of steps) {
      const result = step();
      if (result >= 0) continue;
      sys.close(fd);
      return trouble(address, call, result);
    }
    return fd;
  }

  #transparent(fd: number, address: ListenAddress, on: boolean): Result {
    const sys = this.#sys;
    if (address.bytes[0] !== AF_INET6)
      return sys.setsockopt(fd, SOL_IP, IP_TRANSPARENT, on ? 1 : 0);
    const result = sys.setsockopt(fd, SOL_IPV6, IPV6_TRANSPARENT, on ? 1 : 0);
    if (result < 0 || !address.dualStack) return result;
    return sys.setsockopt(fd, SOL_IP, IP_TRANSPARENT, on ? 1 : 0);
  }

  /** Without CAP_NET_ADMIN it stands if it stood before. */
  #madeTransparent(fd: number, address: ListenAddress): boolean {
    if (this.#transparent(fd, address, true) >= 0) return true;
    return address.bytes[0] === AF_INET6
      ? this.#is(fd, SOL_IPV6, IPV6_TRANSPARENT) && (!address.dualStack || this.#is(fd, SOL_IP, IP_TRANSPARENT))
      : this.#is(fd, SOL_IP, IP_TRANSPARENT);
  }

  /** A boolean option is set. */
  #is(fd: number, level: number, option: number): boolean {
    const value = this.#sys.memory(4);
    return this.#sys.getsockopt(fd, level, option, value, 0, 4) >= 0 && value.view.getInt32(0, true) !== 0;
  }

  #close(fds: readonly number[]): void {
    for (const fd of fds) {
      this.#passed.delete(fd);
      this.#sys.close(fd);
    }
  }
}

function allOfIpv4(address: ListenAddress): ListenAddress {
  const bytes = new Uint8Array(16);
  bytes[0] = AF_INET;
  bytes.set(address.bytes.subarray(2, 4), 2);
  return { ...address, bytes, dualStack: false };
}

/** The same socket address may be wanted dual-stack or not: another socket. */
const keyOf = (address: ListenAddress, role: Role): string =>
  `${role} ${address.text} ${address.dualStack}`;

/** What comes to the other address would come to this one as well: it is the port's wildcard. */
const covers = (wide: ListenAddress, other: ListenAddress): boolean =>
  wide.dualStack && portOf(wide.bytes, 0) === portOf(other.bytes, 0);

/** Without SO_REUSEPORT there is no socket for the one beside one for the other. */
const overlap = (a: ListenAddress, b: ListenAddress): boolean =>
  a.text === b.text || covers(a, b) || covers(b, a);

/** Where this configuration wants connections. */
export function wantedBy({ listen, relays, egress }: Config): { address: ListenAddress; role: Role }[] {
  return [
    ...[...listen, ...relays.flatMap((relay) => relay.listen)]
      .map((address) => ({ address, role: "transparent" as const })),
    ...(egress?.listen ?? []).map((address) => ({ address, role: "socks" as const })),
  ];
}

/** A SOCKS server is spoken to by its own address. */
const modeOf = (config: Config, role: Role): Config["mode"] =>
  role === "transparent" ? config.mode : "redirect";

interface Trouble {
  readonly text: string;
  /** This host has no such address. */
  readonly absent: boolean;
}

function trouble(address: ListenAddress, call: string, result: Result): Trouble {
  const remedy = call.endsWith("IP_TRANSPARENT") ? '; mode = "tproxy" needs CAP_NET_ADMIN' : bindRemedy(-result);
  return {
    text: `listen tcp ${address.text}: ${call}: ${errnoText(-result)}${remedy}`,
    absent: -result === EADDRNOTAVAIL || -result === EAFNOSUPPORT,
  };
}

/** What to do where a port of an address was not to be had, to stand behind the error; or "". */
export function bindRemedy(errno: number): string {
  switch (errno) {
    case EADDRINUSE: return "; another program listens there, see: ss -ltnp";
    case EADDRNOTAVAIL: return "; this host has no such address, see: ip address";
    case EACCES: return "; a port below 1024 takes CAP_NET_BIND_SERVICE, or root";
    default: return "";
  }
}

const ERRORS = getSystemErrorMap();

/** "ECONNREFUSED". */
export function errnoName(errno: number): string {
  return ERRORS.get(-errno)?.[0] ?? `errno ${errno}`;
}

/** "connection refused", as libuv puts it. */
export function errnoText(errno: number): string {
  return ERRORS.get(-errno)?.[1] ?? `errno ${errno}`;
}
