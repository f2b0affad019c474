/**
 * A simulated Linux for one process: the fd table, TCP over a simulated network, pipes and splice,
 * eventfd, epoll, and a clock that only moves here. Seeded, deterministic, and hostile: transfers
 * are partial, events come late, out of order or for nothing, calls fail for want of resources,
 * and a number that was closed is at once given to the next who asks.
 *
 * Where Linux has a rule, the rule is kept; where it leaves something open, chance decides. What
 * no right program does (using a closed fd, asking for nothing, sleeping for ever while no event
 * can come, calling on and on without any effect) is an error that is thrown.
 */
import {
  EADDRINUSE, EADDRNOTAVAIL, EAGAIN, ECONNABORTED, EEXIST, EINPROGRESS, EINTR, EINVAL, EMFILE,
  ENETDOWN, ENETUNREACH, ENFILE, ENOBUFS, ENOENT, ENOMEM, ENOPROTOOPT, ENOSPC, ENOTCONN, EPERM,
  EPIPE, EPROTONOSUPPORT, AF_INET, AF_INET6, AF_NETLINK, EPOLL_CTL_ADD, EPOLL_CTL_DEL,
  EPOLL_CTL_MOD, EPOLL_EVENT_DATA, EPOLL_EVENT_SIZE, EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT,
  F_GETPIPE_SZ, F_SETPIPE_SZ, IP_FREEBIND, IP_TRANSPARENT, IPPROTO_TCP, IPV6_TRANSPARENT, MSG_OOB,
  MSG_PEEK, MSG_TRUNC, NETLINK_SOCK_DIAG, NLM_F_REQUEST, NLMSG_ERROR, O_NONBLOCK, SHUT_RD, SHUT_WR,
  SIOCOUTQ, SO_ERROR, SO_OOBINLINE, SO_ORIGINAL_DST, SO_REUSEPORT, SOCK_DIAG_BY_FAMILY,
  SOCK_NONBLOCK, SOL_IP, SOL_IPV6, SOL_SOCKET, SOL_TCP, TCP_SAVED_SYN, TCP_FIN_WAIT2,
} from "../../native-bindings/constants.ts";
import type { Memory, Result, Syscalls } from "../../native-bindings/syscalls.ts";
import { SOCK_RAW, VERDICT_BYTES } from "../../native-bindings/nfnetlink-queue.ts";
import { Random } from "./random.ts";
import type { SynGate } from "./syn-gate.ts";
import { type Address, nameOf, Network, type NetworkOptions, Tcp } from "./tcp.ts";

export interface KernelOptions extends NetworkOptions {
  readonly seed: number;
  /** RLIMIT_NOFILE. */
  readonly fdsMax: number;
  /** Of a call that takes a resource: it is refused. No more than `faultsMax` of them. */
  readonly faultChance: number;
  readonly faultsMax: number;
  /** Only this call is refused, by its name; null: any. */
  readonly faultCall: string | null;
  /** Of a transfer: EAGAIN though it could go on. An event follows, as it must. */
  readonly eagainChance: number;
  /** Of an event: it is reported some time after it was due. */
  readonly lateChance: number;
  /** Of an epoll_wait: an event for which there was no reason. */
  readonly spuriousChance: number;
  /** Of an epoll_wait that sleeps: EINTR. */
  readonly interruptChance: number;
  /** Of a system call: the thread was off the CPU for a while before it. */
  readonly preemptionChance: number;
  /** Of a connect: all is over before it returns, as on a loopback. */
  readonly atOnceChance: number;
  /** So many pipes get the usual size and may grow; later ones hold two pages (pipe(7)). */
  readonly widePipes: number;
  /** fs.pipe-max-size */
  readonly pipeBytesMax: number;
  /** Source addresses ("192.0.2.1") all of whose ports are taken. */
  readonly portless: readonly string[];
  /** Addresses that the host has not: bound only by IP_FREEBIND. */
  readonly absent: (bytes: Uint8Array) => boolean;
  /** It was built with sock_diag(7). */
  readonly sockDiag: boolean;
}

/** Nothing hostile: for comparing with the real kernel. */
export const BENIGN: KernelOptions = {
  seed: 1, fdsMax: 1024, faultChance: 0, faultsMax: 0, faultCall: null, eagainChance: 0,
  lateChance: 0, spuriousChance: 0, interruptChance: 0, preemptionChance: 0, atOnceChance: 1,
  widePipes: 1000, pipeBytesMax: 1 << 20, latencyUs: [10, 10], sendBuffer: [1 << 18, 1 << 18],
  receiveBuffer: [1 << 17, 1 << 17], segmentBytesMax: 65536,
  portless: [], absent: () => false, sockDiag: true,
};

const PAGE = 4096;
const TCP_ESTABLISHED = 1;
const PIPE_PAGES = 16;
const NARROW_PIPE_PAGES = 2;
/** Standard input, output and error. */
const FIRST_FD = 3;
/** So many calls on end without any effect are a loop that eats the CPU. */
const IDLE_CALLS_MAX = 10_000;

type File = SocketFile | PipeEnd | EventFile | EpollFile | DiagFile | QueueFile | RawFile;

interface SocketFile {
  readonly kind: "socket";
  readonly tcp: Tcp;
  readonly family: number;
  readonly options: Map<number, number>;
  abort: boolean;
  readonly watches: Watch[];
}

interface Pipe {
  readonly slots: Uint8Array[];
  pages: number;
  readonly wide: boolean;
  readers: number;
  writers: number;
}

interface PipeEnd {
  readonly kind: "read end" | "write end";
  readonly pipe: Pipe;
  readonly watches: Watch[];
}

interface EventFile {
  readonly kind: "eventfd";
  count: number;
  readonly watches: Watch[];
}

/** A netlink socket for sock_diag(7): the kernel answers within send(2). */
interface DiagFile {
  readonly kind: "sock_diag";
  answer: Uint8Array | null;
  readonly watches: Watch[];
}

/** A netlink socket that reads a queue of SYNs. */
interface QueueFile {
  readonly kind: "queue";
  readonly gate: SynGate;
  readonly watches: Watch[];
}

/** A raw socket: sends whole packets. */
interface RawFile {
  readonly kind: "raw";
  readonly watches: Watch[];
}

interface EpollFile {
  readonly kind: "epoll";
  readonly byFd: Map<number, Watch>;
  ready: Watch[];
  readonly watches: Watch[];
}

/** An fd's place in an epoll. */
interface Watch {
  readonly file: File;
  readonly fd: number;
  readonly epoll: EpollFile;
  events: number;
  data: number;
  queued: boolean;
  /** Not to be reported before this. */
  dueUs: number;
  /** Reported once though they are not there. */
  lies: number;
}

export class SimulatedKernel implements Syscalls {
  readonly options: KernelOptions;
  readonly random: Random;
  readonly network: Network;
  readonly #files: (File | undefined)[] = [];
  #faults = 0;
  #unleashed = false;
  #pipes = 0;
  #idleCalls = 0;
  readonly #pipesOpen = new Set<Pipe>();
  readonly #readsThisTurn = new Map<number, number>();
  readonly #splicesThisTurn = new Map<number, number>();
  /** epoll_waits that really waited. */
  sleeps = 0;
  /** Pipes that were open at once. */
  pipesMost = 0;
  /** Transfers through a pipe below the usual size, slower than a copy. */
  narrowSplices = 0;
  /** How often bytes were taken from one fd between two epoll_waits, at most: recv and splice. */
  readsPerTurnMost = 0;
  splicesPerTurnMost = 0;
  /** The names of the calls that were refused, for the report of a failure. */
  readonly refused: string[] = [];

  constructor(options: KernelOptions) {
    this.options = options;
    this.random = new Random(options.seed);
    this.network = new Network(this.random, options);
  }

  /** The monotonic clock, in ms. */
  now(): number {
    return this.network.nowUs / 1000;
  }

  /** What is open, as text: empty when nothing is. */
  openFds(): string[] {
    return this.#files.flatMap((file, fd) => (file === undefined ? [] : [`${fd}: ${file.kind}`]));
  }

  /** From now on calls are refused by chance. Until then whoever needs one fd to begin gets it. */
  unleash(): void {
    this.#unleashed = true;
  }

  get pipesWithBytes(): number {
    return [...this.#pipesOpen].filter((pipe) => pipe.slots.length > 0).length;
  }

  /** Lets time pass while no system call is made. */
  pass(us: number): void {
    this.network.advance(this.network.nowUs + us);
  }

  /** Opened by whoever owns it, which is not the program. */
  openQueue(gate: SynGate): number {
    const file: QueueFile = { kind: "queue", gate, watches: [] };
    gate.onReadable = () => this.#wake(file, EPOLLIN);
    return this.#open(file);
  }

  // The fd table.

  #enter(): void {
    if (++this.#idleCalls > IDLE_CALLS_MAX) fail(`${IDLE_CALLS_MAX} calls without any effect`);
    const off = this.random.chance(this.options.preemptionChance);
    this.pass(off ? this.random.size(10, 5000) : this.random.next());
  }

  /** Something has changed by this call: the program is getting on. */
  #effect<T>(result: T): T {
    this.#idleCalls = 0;
    return result;
  }

  #fault(call: string, errors: readonly number[]): number {
    const { faultChance, faultsMax, faultCall } = this.options;
    if (faultCall !== null && faultCall !== call) return 0;
    if (!this.#unleashed || this.#faults >= faultsMax || !this.random.chance(faultChance)) return 0;
    this.#faults++;
    this.refused.push(call);
    return -this.random.pick(errors);
  }

  #file(fd: number): File {
    const file = this.#files[fd];
    if (file === undefined) fail(`fd ${fd} is not open`);
    return file;
  }

  #socket(fd: number): SocketFile {
    const file = this.#file(fd);
    if (file.kind !== "socket") fail(`fd ${fd} is not a socket but of kind ${file.kind}`);
    return file;
  }

  #epoll(fd: number): EpollFile {
    const file = this.#file(fd);
    if (file.kind !== "epoll") fail(`fd ${fd} is not an epoll but of kind ${file.kind}`);
    return file;
  }

  #freeFd(from = FIRST_FD): number {
    let fd = from;
    while (this.#files[fd] !== undefined) fd++;
    return fd < this.options.fdsMax ? fd : -EMFILE;
  }

  #open(file: File): Result {
    const fd = this.#freeFd();
    if (fd >= 0) this.#files[fd] = file;
    return this.#effect(fd);
  }

  close(fd: number): Result {
    this.#enter();
    const file = this.#file(fd);
    this.#files[fd] = undefined;
    for (const watch of file.watches.splice(0)) this.#forget(watch);
    switch (file.kind) {
      case "socket":
        file.tcp.close(file.abort);
        break;
      case "read end":
        if (--file.pipe.readers + file.pipe.writers === 0) this.#pipesOpen.delete(file.pipe);
        break;
      case "write end":
        if (--file.pipe.writers + file.pipe.readers === 0) this.#pipesOpen.delete(file.pipe);
        break;
      case "epoll":
        for (const watch of file.byFd.values()) remove(watch.file.watches, watch);
        break;
      case "eventfd":
      case "sock_diag":
      case "queue":
      case "raw":
        break;
    }
    return this.#effect(0);
  }

  memory(of: number | SharedArrayBuffer): Memory {
    const buffer = typeof of === "number" ? new ArrayBuffer(of) : of;
    return { bytes: new Uint8Array(buffer), view: new DataView(buffer), address: 0 };
  }

  // Sockets.

  socket(domain: number, type: number, protocol: number): Result {
    this.#enter();
    if ((type & SOCK_NONBLOCK) === 0) fail("a blocking socket");
    const fault = this.#fault("socket", [EMFILE, ENFILE, ENOBUFS, ENOMEM]);
    if (fault < 0) return fault;
    if ((type & SOCK_RAW) === SOCK_RAW && domain !== AF_NETLINK) return this.#open({ kind: "raw", watches: [] });
    if (domain === AF_NETLINK) {
      // It has no conntrack to be asked.
      if (protocol !== NETLINK_SOCK_DIAG || !this.options.sockDiag) return -EPROTONOSUPPORT;
      return this.#open({ kind: "sock_diag", answer: null, watches: [] });
    }
    return this.#open(this.#makeSocket(new Tcp(this.network), domain, new Map(), false));
  }

  #makeSocket(
    tcp: Tcp, family: number, options: ReadonlyMap<number, number>, abort: boolean,
  ): SocketFile {
    const file: SocketFile = {
      kind: "socket", tcp, family, options: new Map(options), abort, watches: [],
    };
    tcp.onWake = (key) => this.#wake(file, key);
    return file;
  }

  bind(fd: number, address: Memory, at: number, _length: number): Result {
    this.#enter();
    const { tcp, options } = this.#socket(fd);
    const wanted = readSockaddr(address, at);
    const shared = options.get(key(SOL_SOCKET, SO_REUSEPORT)) === 1;
    if (this.network.listening(wanted).length > 0 && !shared) return -EADDRINUSE;
    const free = options.get(key(SOL_IP, IP_FREEBIND)) === 1;
    if (!free && this.options.absent(wanted.bytes)) return -EADDRNOTAVAIL;
    tcp.local = wanted.port === 0 ? { ...wanted, port: this.network.ephemeralPort() } : wanted;
    return this.#effect(0);
  }

  listen(fd: number, backlog: number): Result {
    this.#enter();
    const { tcp } = this.#socket(fd);
    if (tcp.local === null) fail("listening without an address");
    tcp.listen(backlog);
    return this.#effect(0);
  }

  accept4(fd: number, address: Memory, at: number, flags: number): Result {
    this.#enter();
    const listener = this.#socket(fd);
    if (listener.tcp.state !== "listening") return -EINVAL;
    if ((flags & SOCK_NONBLOCK) === 0) fail("a blocking socket");
    // The fd comes first, as in the kernel: a full table leaves the connection in the queue.
    const fault = this.#fault("accept4", [EMFILE, ENFILE, ENOBUFS, ENOMEM, EMFILE, EPERM]);
    if (fault < 0) return fault;
    if (this.#freeFd() < 0) return -EMFILE;
    const tcp = listener.tcp.accept();
    if (tcp === null) return -EAGAIN;
    const lost = this.#fault("accept4", [ECONNABORTED, ENETDOWN]);
    if (lost < 0) {
      tcp.close(true);
      return this.#effect(lost);
    }
    const { family, options, abort } = listener;
    tcp.urgentInline = options.get(key(SOL_SOCKET, SO_OOBINLINE)) === 1;
    if (
      options.get(key(SOL_IP, IP_TRANSPARENT)) === 1 ||
      options.get(key(SOL_IPV6, IPV6_TRANSPARENT)) === 1
    ) {
      tcp.local = tcp.originalDestination ?? tcp.local;
      tcp.originalDestination = null;
    }
    writeSockaddr(tcp.remote!, family, address, at);
    return this.#open(this.#makeSocket(tcp, family, options, abort));
  }

  connect(fd: number, address: Memory, at: number, _length: number): Result {
    this.#enter();
    const { tcp } = this.#socket(fd);
    if (tcp.state !== "closed" || tcp.remote !== null) fail("connect() for the second time");
    const fault = this.#fault("connect", [EADDRNOTAVAIL, ENETUNREACH, ENOBUFS, EPERM]);
    if (fault < 0) return fault;
    // ip_local_port_range is used up; bind(2) took no port (IP_BIND_ADDRESS_NO_PORT).
    if (this.options.portless.includes(tcp.local?.bytes.join(".") ?? "")) return -EADDRNOTAVAIL;
    const to = readSockaddr(address, at);
    if (tcp.local !== null && tcp.local.bytes.length !== to.bytes.length) fail("connect() to another family");
    const atOnce = this.random.chance(this.options.atOnceChance);
    tcp.connect(to, null, atOnce);
    return this.#effect(-EINPROGRESS);
  }

  getsockname(fd: number, address: Memory, at: number): Result {
    this.#enter();
    const { tcp, family } = this.#socket(fd);
    const none = { bytes: new Uint8Array(family === AF_INET ? 4 : 16), port: 0 };
    writeSockaddr(tcp.local ?? none, family, address, at);
    return 0;
  }

  getpeername(fd: number, address: Memory, at: number): Result {
    this.#enter();
    const { tcp, family } = this.#socket(fd);
    if (tcp.state !== "open") return -ENOTCONN;
    writeSockaddr(tcp.remote!, family, address, at);
    return 0;
  }

  setsockoptBytes(fd: number, level: number, name: number): Result {
    return this.setsockopt(fd, level, name, 1);
  }

  setsockopt(fd: number, level: number, name: number, value: number): Result {
    this.#enter();
    if (this.#file(fd).kind === "raw") return this.#effect(0);
    const { tcp, options } = this.#socket(fd);
    const fault = this.#fault("setsockopt", [ENOMEM, ENOBUFS]);
    if (fault < 0) return fault;
    options.set(key(level, name), value);
    if (level === SOL_SOCKET && name === SO_OOBINLINE) tcp.urgentInline = value === 1;
    return this.#effect(0);
  }

  setLinger(fd: number, on: boolean, seconds: number): Result {
    this.#enter();
    if (on && seconds > 0) fail("a close() that blocks");
    this.#socket(fd).abort = on;
    return this.#effect(0);
  }

  getsockopt(
    fd: number, level: number, name: number, into: Memory, at: number, length: number,
  ): Result {
    this.#enter();
    const { tcp, options } = this.#socket(fd);
    if (level === SOL_SOCKET && name === SO_ERROR) {
      if (length < 4) return -EINVAL;
      into.view.setInt32(at, tcp.takeError(), true);
      return 0;
    }
    if (level === SOL_TCP && name === TCP_SAVED_SYN) {
      if (tcp.syn !== null) {
        into.bytes.set(tcp.syn.subarray(0, length), at);
        // A redirect may have changed its port.
        if (this.random.chance(0.3)) into.bytes[at + (tcp.syn[0] === 0x45 ? 20 : 40)]! ^= 1;
      }
      tcp.syn = null;
      return 0;
    }
    if (name === SO_ORIGINAL_DST && (level === SOL_IP || level === SOL_IPV6)) {
      const original = tcp.originalDestination;
      const size = level === SOL_IP ? 4 : 16;
      if (original === null || original.bytes.length !== size) return -ENOENT;
      if (length < (size === 4 ? 16 : 28)) return -EINVAL;
      writeSockaddr(original, size === 4 ? AF_INET : 10, into, at);
      return 0;
    }
    const value = options.get(key(level, name));
    if (value === undefined) return -ENOPROTOOPT;
    into.view.setInt32(at, value, true);
    return 0;
  }

  shutdown(fd: number, how: number): Result {
    this.#enter();
    const { tcp } = this.#socket(fd);
    if (how === SHUT_RD) return this.#effect(tcp.shutdownRead());
    if (how !== SHUT_WR) tcp.shutdownRead();
    return this.#effect(tcp.shutdownWrite());
  }

  ioctlInt(fd: number, request: number): Result {
    this.#enter();
    if (request !== SIOCOUTQ) fail(`ioctl ${request} is not simulated`);
    return this.#socket(fd).tcp.unacknowledged;
  }

  // Bytes.

  recv(fd: number, into: Memory, at: number, length: number, flags: number): Result {
    this.#enter();
    const file = this.#file(fd);
    if (file.kind === "sock_diag") {
      const { answer } = file;
      if (answer === null) return -EAGAIN;
      file.answer = null;
      into.bytes.set(answer.subarray(0, length), at);
      return this.#effect(Math.min(answer.length, length));
    }
    if (file.kind === "queue") {
      const got = file.gate.read(into, at);
      return got < 0 ? got : this.#effect(got);
    }
    const { tcp } = this.#socket(fd);
    const discard = (flags & MSG_TRUNC) !== 0;
    if (length <= 0) fail("recv() of nothing answers 0, like an end");
    if (!discard && at + length > into.bytes.length) fail("recv() past the end of the memory");
    // What a peek has shown is there.
    if (!discard && this.#delayed(tcp)) return -EAGAIN;
    const peek = (flags & MSG_PEEK) !== 0;
    const got = tcp.receive(discard ? null : into.bytes, at, length, peek);
    if (got <= 0 || peek) return got;
    this.readsPerTurnMost = Math.max(this.readsPerTurnMost, countOne(this.#readsThisTurn, fd));
    return this.#effect(got);
  }

  /** The bytes that are there come only now, so to say; and their event behind this call. */
  #delayed(tcp: Tcp): boolean {
    if (!this.random.chance(this.options.eagainChance)) return false;
    if (tcp.state === "listening") return false;
    this.network.after(this.network.latencyUs(), () => tcp.onWake(EPOLLIN));
    return true;
  }

  /** The kernel has no memory for all of the segments just now. An event follows when it has. */
  #starved(tcp: Tcp): boolean {
    if (!this.random.chance(this.options.eagainChance)) return false;
    if (tcp.state !== "open" || tcp.error !== 0) return false;
    tcp.starve();
    return true;
  }

  sendto(fd: number, from: Memory, at: number, length: number): Result {
    this.#enter();
    if (this.#file(fd).kind !== "raw") fail("nobody sends without a connection here");
    const fault = this.#fault("sendto", [ENOBUFS, EPERM]);
    if (fault < 0) return fault;
    for (const file of this.#files) if (file?.kind === "queue") file.gate.sent(from.bytes.slice(at, at + length));
    return this.#effect(length);
  }

  send(fd: number, from: Memory, at: number, length: number, flags: number): Result {
    this.#enter();
    const file = this.#file(fd);
    if (file.kind === "sock_diag") {
      file.answer = this.#diagnose(from.bytes.slice(at, at + length));
      return this.#effect(length);
    }
    if (file.kind === "queue") {
      // Where there is no memory for several there may be for one.
      const several = length > VERDICT_BYTES;
      if (several && this.random.chance(this.options.eagainChance)) return -ENOBUFS;
      for (let one = at; one < at + length; one += from.view.getUint32(one, true)) file.gate.verdict(from, one);
      return this.#effect(length);
    }
    const { tcp } = this.#socket(fd);
    if (length < 0 || at + length > from.bytes.length) fail("send() past the end of the memory");
    // Of nothing: only says what is wrong with the connection, if anything is.
    if (length === 0) return tcp.sendError();
    let some = length;
    if (this.#starved(tcp)) {
      some = this.random.between(0, length - 1);
      if (some === 0) return -EAGAIN;
    }
    const sent = tcp.send(from.bytes, at, some, some === length && (flags & MSG_OOB) !== 0);
    return sent > 0 ? this.#effect(sent) : sent;
  }

  /**
   * A struct inet_diag_req_v2 behind its nlmsghdr, and what inet_diag_dump_one_icsk() answers, as
   * far as it is known here: the state of a socket that has said FIN, and whether it has an inode.
   */
  #diagnose(request: Uint8Array): Uint8Array {
    const asked = new DataView(request.buffer);
    if (request.length !== 72 || asked.getUint32(0, true) !== 72) fail("no inet_diag_req_v2");
    const oneSocket = asked.getUint16(4, true) === SOCK_DIAG_BY_FAMILY;
    if (!oneSocket || asked.getUint16(6, true) !== NLM_F_REQUEST) fail("not about one socket");
    const [family, protocol] = [request[16]!, request[17]!];
    if ((family !== AF_INET && family !== AF_INET6) || protocol !== IPPROTO_TCP) fail("not about TCP");
    if (!request.subarray(64, 72).every((byte) => byte === 0xff)) fail("a question with a cookie");
    const size = family === AF_INET ? 4 : 16;
    const [from, to] = [[24, 28], [26, 44]].map(([port, address]) =>
      nameOf({ bytes: request.subarray(address!, address! + size), port: asked.getUint16(port!) }));
    const isAsked = (tcp: Tcp): boolean =>
      tcp.local !== null && nameOf(tcp.local) === from && tcp.remote !== null && nameOf(tcp.remote) === to;
    const found = this.#files
      .flatMap((file) => (file?.kind === "socket" ? [file.tcp, file.tcp.peer] : []))
      .find((tcp) => tcp !== null && isAsked(tcp) && !tcp.wasReset && !tcp.hasReset);
    const answer = new Uint8Array(found ? 88 : 36);
    const view = new DataView(answer.buffer);
    view.setUint32(0, answer.length, true);
    view.setUint16(4, found ? SOCK_DIAG_BY_FAMILY : NLMSG_ERROR, true);
    if (!found) {
      view.setInt32(16, -ENOENT, true);
      return answer;
    }
    const orphan = found.closedAtUs !== Infinity;
    answer.set([family, found.hasFinished ? TCP_FIN_WAIT2 : TCP_ESTABLISHED], 16);
    view.setUint32(84, orphan ? 0 : 4711, true);
    return answer;
  }

  read(fd: number, into: Memory, at: number, length: number): Result {
    this.#enter();
    const file = this.#file(fd);
    if (file.kind !== "eventfd") fail(`read() from a ${file.kind} is not simulated`);
    if (length < 8) return -EINVAL;
    if (file.count === 0) return -EAGAIN;
    into.view.setBigUint64(at, BigInt(file.count), true);
    file.count = 0;
    this.#wake(file, EPOLLOUT);
    return this.#effect(8);
  }

  write(fd: number, from: Memory, at: number, length: number): Result {
    this.#enter();
    const file = this.#file(fd);
    if (file.kind !== "eventfd") fail(`write() to a ${file.kind} is not simulated`);
    if (length < 8) return -EINVAL;
    file.count += Number(from.view.getBigUint64(at, true));
    this.#wake(file, EPOLLIN);
    return this.#effect(8);
  }

  eventfd(initial: number, flags: number): Result {
    this.#enter();
    if ((flags & O_NONBLOCK) === 0) fail("an eventfd that blocks");
    return this.#open({ kind: "eventfd", count: initial, watches: [] });
  }

  /** Another thread writes 1 to an eventfd. */
  ring(fd: number): void {
    const file = this.#file(fd);
    if (file.kind !== "eventfd") fail(`fd ${fd} is no eventfd`);
    file.count++;
    this.#wake(file, EPOLLIN);
  }

  // Pipes.

  pipe2(into: Memory, at: number, flags: number): Result {
    this.#enter();
    if ((flags & O_NONBLOCK) === 0) fail("a pipe that blocks");
    const fault = this.#fault("pipe2", [EMFILE, ENFILE]);
    if (fault < 0) return fault;
    const readEnd = this.#freeFd();
    const writeEnd = readEnd < 0 ? readEnd : this.#freeFd(readEnd + 1);
    if (writeEnd < 0) return -EMFILE;
    const wide = this.#pipes++ < this.options.widePipes;
    const pages = wide ? PIPE_PAGES : NARROW_PIPE_PAGES;
    const pipe: Pipe = { slots: [], pages, wide, readers: 1, writers: 1 };
    this.#pipesOpen.add(pipe);
    this.pipesMost = Math.max(this.pipesMost, this.#pipesOpen.size);
    this.#files[readEnd] = { kind: "read end", pipe, watches: [] };
    this.#files[writeEnd] = { kind: "write end", pipe, watches: [] };
    into.view.setInt32(at, readEnd, true);
    into.view.setInt32(at + 4, writeEnd, true);
    return this.#effect(0);
  }

  fcntl(fd: number, command: number, value: number): Result {
    this.#enter();
    const file = this.#file(fd);
    if (file.kind !== "read end" && file.kind !== "write end") fail("fcntl() on what is no pipe");
    const { pipe } = file;
    if (command === F_GETPIPE_SZ) return pipe.pages * PAGE;
    if (command !== F_SETPIPE_SZ) fail(`fcntl ${command} is not simulated`);
    if (!pipe.wide || value > this.options.pipeBytesMax) return -EPERM;
    pipe.pages = 2 ** Math.ceil(Math.log2(Math.max(1, value / PAGE)));
    return this.#effect(pipe.pages * PAGE);
  }

  splice(from: number, to: number, length: number, _flags: number): Result {
    this.#enter();
    if (length <= 0) fail("splice() of nothing answers 0, like an end");
    const [source, target] = [this.#file(from), this.#file(to)];
    if (source.kind === "socket" && target.kind === "write end") {
      const moved = this.#fill(source.tcp, target.pipe, length);
      if (moved <= 0) return moved;
      const times = countOne(this.#splicesThisTurn, from);
      this.splicesPerTurnMost = Math.max(this.splicesPerTurnMost, times);
      return this.#effect(moved);
    }
    if (source.kind === "read end" && target.kind === "socket") {
      return this.#drain(source.pipe, target.tcp, length);
    }
    return fail(`splice() from a ${source.kind} to a ${target.kind}`);
  }

  #fill(tcp: Tcp, pipe: Pipe, length: number): Result {
    if (pipe.readers === 0) return -EPIPE;
    // The pipe is looked at first: a full one hides even the end of the stream.
    const slots = pipe.pages - pipe.slots.length;
    if (slots <= 0 || this.#delayed(tcp)) return -EAGAIN;
    if (pipe.pages < PIPE_PAGES) this.narrowSplices++;
    return tcp.spliceTo((bytes) => pipe.slots.push(bytes), length, slots);
  }

  #drain(pipe: Pipe, tcp: Tcp, length: number): Result {
    if (pipe.slots.length === 0) return pipe.writers === 0 ? 0 : -EAGAIN;
    if (this.#starved(tcp)) return -EAGAIN;
    let moved = 0;
    while (moved < length && pipe.slots.length > 0) {
      const slot = pipe.slots[0]!;
      const part = Math.min(slot.length, length - moved);
      const sent = tcp.send(slot, 0, part);
      if (sent < 0) return moved > 0 ? this.#effect(moved) : sent;
      moved += sent;
      if (sent === slot.length) pipe.slots.shift();
      else pipe.slots[0] = slot.subarray(sent);
      if (sent < part) break;
    }
    return this.#effect(moved);
  }

  // epoll.

  epoll_create1(_flags: number): Result {
    this.#enter();
    return this.#open({ kind: "epoll", byFd: new Map(), ready: [], watches: [] });
  }

  epoll_ctl(epollFd: number, operation: number, fd: number, events: number, data: number): Result {
    this.#enter();
    const epoll = this.#epoll(epollFd);
    const file = this.#file(fd);
    const known = epoll.byFd.get(fd);
    if (operation === EPOLL_CTL_ADD) {
      if (known !== undefined) return -EEXIST;
      const fault = this.#fault("epoll_ctl", [ENOMEM, ENOSPC]);
      if (fault < 0) return fault;
      const watch: Watch = {
        file, fd, epoll, events, data, queued: false, dueUs: 0, lies: 0,
      };
      epoll.byFd.set(fd, watch);
      file.watches.push(watch);
      if ((this.#poll(file) & interest(watch)) !== 0) this.#enqueue(watch, 0);
      return this.#effect(0);
    }
    if (known === undefined) return -ENOENT;
    if (operation === EPOLL_CTL_DEL) {
      remove(file.watches, known);
      this.#forget(known);
      return this.#effect(0);
    }
    if (operation !== EPOLL_CTL_MOD) return -EINVAL;
    const changed = known.events !== events || known.data !== data;
    known.events = events;
    known.data = data;
    if ((this.#poll(file) & interest(known)) !== 0) this.#enqueue(known, 0);
    return changed ? this.#effect(0) : 0;
  }

  epoll_wait(epollFd: number, events: Memory, max: number, timeoutMs: number): Result {
    this.#enter();
    const epoll = this.#epoll(epollFd);
    if (max <= 0 || max * EPOLL_EVENT_SIZE > events.bytes.length) return fail("no room for events");
    const deadlineUs = timeoutMs < 0 ? Infinity : this.network.nowUs + timeoutMs * 1000;
    this.#invent(epoll);
    this.#readsThisTurn.clear();
    this.#splicesThisTurn.clear();
    for (;;) {
      const count = this.#report(epoll, events, max);
      if (count > 0 || timeoutMs === 0) return count;
      this.#effect(0); // It sleeps: whatever it does, it does not eat the CPU.
      this.sleeps++;
      if (this.random.chance(this.options.interruptChance)) {
        this.network.advance(Math.min(deadlineUs, this.network.nowUs + 50));
        return -EINTR;
      }
      const dueUs = epoll.ready.reduce((least, each) => Math.min(least, each.dueUs), Infinity);
      const nextUs = Math.min(dueUs, this.network.nextUs);
      if (nextUs > deadlineUs) {
        this.network.advance(deadlineUs);
        return this.#report(epoll, events, max);
      }
      if (nextUs === Infinity) fail("epoll_wait() sleeps for ever: no event can come");
      this.network.advance(nextUs);
    }
  }

  /** ep_send_events(): what is queued is looked at again, and reported if it is still so. */
  #report(epoll: EpollFile, events: Memory, max: number): number {
    let count = 0;
    const due = epoll.ready.filter((watch) => watch.dueUs <= this.network.nowUs);
    if (this.options.lateChance > 0) this.#shuffle(due);
    const again: Watch[] = [];
    for (const watch of due) {
      if (count === max) break;
      remove(epoll.ready, watch);
      watch.queued = false;
      const mask = (this.#poll(watch.file) | watch.lies) & interest(watch);
      watch.lies = 0;
      if (mask === 0) continue;
      const at = count++ * EPOLL_EVENT_SIZE;
      events.view.setUint32(at, mask, true);
      events.view.setInt32(at + EPOLL_EVENT_DATA, watch.data, true);
      events.view.setInt32(at + EPOLL_EVENT_DATA + 4, 0, true);
      if ((watch.events & EPOLLET) === 0) again.push(watch);
    }
    for (const watch of again) this.#enqueue(watch, 0);
    return count;
  }

  #shuffle(watches: Watch[]): void {
    for (let i = watches.length - 1; i > 0; i--) {
      const other = this.random.between(0, i);
      [watches[i], watches[other]] = [watches[other]!, watches[i]!];
    }
  }

  /** An event without a reason. It may claim that a socket can be read or written. */
  #invent(epoll: EpollFile): void {
    if (!this.random.chance(this.options.spuriousChance)) return;
    const watch = this.random.pick([...epoll.byFd.values()]);
    if (watch === undefined || watch.queued) return;
    // Of a connection attempt, EPOLLOUT is the only news there is: that one is always true.
    const connecting = watch.file.kind === "socket" && watch.file.tcp.state === "connecting";
    watch.lies = connecting ? 0 : this.random.pick([0, EPOLLIN, EPOLLOUT, EPOLLIN | EPOLLOUT]);
    this.#enqueue(watch, 0);
  }

  /** ep_poll_callback(): `key` says what may have happened; 0 is anything. */
  #wake(file: File, key: number): void {
    for (const watch of file.watches) {
      if (key !== 0 && (key & interest(watch)) === 0) continue;
      const late = this.random.chance(this.options.lateChance);
      this.#enqueue(watch, late ? this.random.size(1, 20_000) : 0);
    }
  }

  #enqueue(watch: Watch, delayUs: number): void {
    if (watch.queued) return;
    watch.queued = true;
    watch.dueUs = this.network.nowUs + delayUs;
    watch.epoll.ready.push(watch);
  }

  #forget(watch: Watch): void {
    watch.epoll.byFd.delete(watch.fd);
    remove(watch.epoll.ready, watch);
  }

  #poll(file: File): number {
    switch (file.kind) {
      case "socket":
        return file.tcp.poll();
      case "eventfd":
        return (file.count > 0 ? EPOLLIN : 0) | EPOLLOUT;
      case "read end":
        return (file.pipe.slots.length > 0 ? EPOLLIN : 0) | (file.pipe.writers > 0 ? 0 : EPOLLHUP);
      case "write end":
        return (
          (file.pipe.slots.length < file.pipe.pages ? EPOLLOUT : 0) |
          (file.pipe.readers > 0 ? 0 : EPOLLERR)
        );
      case "epoll":
        return file.ready.length > 0 ? EPOLLIN : 0;
      case "queue":
        return file.gate.readable ? EPOLLIN : 0;
      case "raw":
        return EPOLLOUT;
      case "sock_diag":
        return (file.answer === null ? 0 : EPOLLIN) | EPOLLOUT;
    }
  }

  getrlimit(_resource: number): { soft: number; hard: number } {
    return { soft: this.options.fdsMax, hard: this.options.fdsMax };
  }

  setrlimit(_resource: number, _soft: number, _hard: number): Result {
    return -EPERM;
  }

  sched_yield(): Result {
    return 0;
  }

  sched_getscheduler(): Result {
    return 0;
  }

  sched_setscheduler(_policy: number): Result {
    return -EPERM;
  }

  clock_gettime(_clock: number): Result {
    return -EINVAL;
  }

  adjtimex(): Result {
    return 0;
  }

  prctl(_option: number, _value: number): Result {
    return -EPERM;
  }

  capset(_capabilities: readonly number[]): Result {
    return -EPERM;
  }
}

function countOne(counts: Map<number, number>, of: number): number {
  const count = (counts.get(of) ?? 0) + 1;
  counts.set(of, count);
  return count;
}

function fail(message: string): never {
  throw new Error(`simulated kernel: ${message}`);
}

/** What Linux reports whether asked or not is part of it. */
const interest = (watch: Watch): number => watch.events | EPOLLERR | EPOLLHUP;

const key = (level: number, name: number): number => level * 65536 + name;

function remove<T>(from: T[], item: T): void {
  const at = from.indexOf(item);
  if (at >= 0) from.splice(at, 1);
}

const MAPPED = Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff);

/** A v4-mapped address is the IPv4 address: the kernel connects and binds it as such. */
export function readSockaddr(memory: { bytes: Uint8Array; view: DataView }, at: number): Address {
  const port = memory.view.getUint16(at + 2, false);
  const ipv4 = memory.view.getUint16(at, true) === AF_INET;
  const bytes = ipv4 ? memory.bytes.slice(at + 4, at + 8) : memory.bytes.slice(at + 8, at + 24);
  const mapped = !ipv4 && MAPPED.every((byte, i) => bytes[i] === byte);
  return { bytes: mapped ? bytes.slice(12) : bytes, port };
}

/** On an IPv6 socket an IPv4 address appears as v4-mapped. */
export function writeSockaddr(
  address: Address, family: number, memory: { bytes: Uint8Array; view: DataView }, at: number,
): void {
  const { bytes, view } = memory;
  bytes.fill(0, at, at + (family === AF_INET ? 16 : 28));
  view.setUint16(at, family, true);
  view.setUint16(at + 2, address.port, false);
  if (family === AF_INET) {
    bytes.set(address.bytes, at + 4);
  } else if (address.bytes.length === 4) {
    bytes.set(MAPPED, at + 8);
    bytes.set(address.bytes, at + 20);
  } else {
    bytes.set(address.bytes, at + 8);
  }
}
