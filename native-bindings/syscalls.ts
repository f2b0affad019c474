/**
 * The system calls, and the only file that knows koffi.
 *
 * Each call answers what the kernel answered, >= 0, or -errno; none throws. Bytes cross the
 * boundary, structs do not: a caller fills a Memory by the kernel's layout and names an offset in
 * it. Addresses are passed as numbers, which saves koffi a tenth of the call's cost.
 */
import koffi from "koffi";
import { EPOLL_EVENT_DATA, EPOLL_EVENT_SIZE, SO_LINGER, SOCKADDR_SIZE, SOL_SOCKET, TIMEX_SIZE } from "./constants.ts";

/** What a system call answers: >= 0, or -errno. */
export type Result = number;

/** Bytes that the kernel may read and write. They do not move; the owner keeps the object alive. */
export interface Memory {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  /** Where bytes[0] is, as the kernel counts. 0 in a simulated kernel. */
  readonly address: number;
}

/** The seam to the kernel: production passes linux(), tests may pass a simulated one. */
export interface Syscalls {
  /** Zeroed memory of so many bytes, or a view of memory that is shared between threads. */
  memory(of: number | SharedArrayBuffer): Memory;

  socket(domain: number, type: number, protocol: number): Result;
  bind(fd: number, address: Memory, at: number, length: number): Result;
  listen(fd: number, backlog: number): Result;
  /** Writes the peer's address, SOCKADDR_SIZE bytes at most, to `address` at `at`. */
  accept4(fd: number, address: Memory, at: number, flags: number): Result;
  connect(fd: number, address: Memory, at: number, length: number): Result;
  getsockname(fd: number, address: Memory, at: number): Result;
  getpeername(fd: number, address: Memory, at: number): Result;
  setsockopt(fd: number, level: number, name: number, value: number): Result;
  /** setsockopt of an option that takes bytes: `length` of them, of `from` at `at`. */
  setsockoptBytes(
    fd: number, level: number, name: number, from: Memory, at: number, length: number,
  ): Result;
  /** setsockopt(SO_LINGER): on close, a reset takes the place of FIN (seconds = 0). */
  setLinger(fd: number, on: boolean, seconds: number): Result;
  /** Writes up to `length` bytes of the option's value to `into` at `at`. */
  getsockopt(
    fd: number, level: number, name: number, into: Memory, at: number, length: number,
  ): Result;
  shutdown(fd: number, how: number): Result;
  close(fd: number): Result;

  recv(fd: number, into: Memory, at: number, length: number, flags: number): Result;
  send(fd: number, from: Memory, at: number, length: number, flags: number): Result;
  /** send to the sockaddr of `toLength` bytes at to[toAt]. */
  sendto(
    fd: number, from: Memory, at: number, length: number, flags: number,
    to: Memory, toAt: number, toLength: number,
  ): Result;
  read(fd: number, into: Memory, at: number, length: number): Result;
  write(fd: number, from: Memory, at: number, length: number): Result;
  splice(from: number, to: number, length: number, flags: number): Result;
  /** Writes the two fds, read end first, as 32-bit numbers to `into` at `at`. */
  pipe2(into: Memory, at: number, flags: number): Result;
  fcntl(fd: number, command: number, value: number): Result;
  /** An ioctl that answers with one int: that int, or -errno. */
  ioctlInt(fd: number, request: number): Result;
  eventfd(initial: number, flags: number): Result;

  epoll_create1(flags: number): Result;
  /** `data` comes back in the event; EPOLL_CTL_DEL ignores both. */
  epoll_ctl(epoll: number, operation: number, fd: number, events: number, data: number): Result;
  /** Fills `events` with up to `max` struct epoll_event. A timeout of -1 waits for ever. */
  epoll_wait(epoll: number, events: Memory, max: number, timeoutMs: number): Result;

  /** Soft and hard limit; Infinity for RLIM_INFINITY. Null if the kernel will not say. */
  getrlimit(resource: number): { soft: number; hard: number } | null;
  setrlimit(resource: number, soft: number, hard: number): Result;
  /** Of the calling thread, as capset(2) is. */
  prctl(option: number, value: number, more?: number): Result;
  /** Of the calling thread; it passes its policy on to threads and processes that it starts. musl: -ENOSYS. */
  sched_getscheduler(): Result;
  /** Whoever waits for this CPU goes first. */
  sched_yield(): Result;
  /** To one of the policies that know no priority. */
  sched_setscheduler(policy: number): Result;
  /** What a clock says, in ns; not for the time of day, of which a number has not so many digits. */
  clock_gettime(clock: number): Result;
  /** The state of the clock: TIME_ERROR when nothing keeps it right. Sets nothing. */
  adjtimex(): Result;
  /** The calling thread's capabilities from now on: permitted, effective and inheritable alike. */
  capset(capabilities: readonly number[]): Result;
}

/** <linux/capability.h> */
const LINUX_CAPABILITY_VERSION_3 = 0x20080522;
const RLIM_INFINITY = 0xffffffffffffffffn;

/** The real kernel, through libc: glibc and musl alike. Load it once in each thread. */
export function linux(): Syscalls {
  const libc = koffi.load(null);
  // A byte count returned as int: no call here asks for 2 GiB, and int is the cheapest to return.
  const c = {
    socket: libc.func("int socket(int, int, int)"),
    bind: libc.func("int bind(int, uintptr_t, uint32_t)"),
    listen: libc.func("int listen(int, int)"),
    accept4: libc.func("int accept4(int, uintptr_t, uintptr_t, int)"),
    connect: libc.func("int connect(int, uintptr_t, uint32_t)"),
    getsockname: libc.func("int getsockname(int, uintptr_t, uintptr_t)"),
    getpeername: libc.func("int getpeername(int, uintptr_t, uintptr_t)"),
    setsockopt: libc.func("int setsockopt(int, int, int, uintptr_t, uint32_t)"),
    getsockopt: libc.func("int getsockopt(int, int, int, uintptr_t, uintptr_t)"),
    shutdown: libc.func("int shutdown(int, int)"),
    close: libc.func("int close(int)"),
    recv: libc.func("int recv(int, uintptr_t, size_t, int)"),
    send: libc.func("int send(int, uintptr_t, size_t, int)"),
    sendto: libc.func("int sendto(int, uintptr_t, size_t, int, uintptr_t, uint32_t)"),
    read: libc.func("int read(int, uintptr_t, size_t)"),
    write: libc.func("int write(int, uintptr_t, size_t)"),
    splice: libc.func("int splice(int, uintptr_t, int, uintptr_t, size_t, unsigned int)"),
    pipe2: libc.func("int pipe2(uintptr_t, int)"),
    fcntl: libc.func("int fcntl(int, int, ...)"),
    ioctl: libc.func("int ioctl(int, unsigned long, ...)"),
    eventfd: libc.func("int eventfd(unsigned int, int)"),
    epoll_create1: libc.func("int epoll_create1(int)"),
    epoll_ctl: libc.func("int epoll_ctl(int, int, int, uintptr_t)"),
    epoll_wait: libc.func("int epoll_wait(int, uintptr_t, int, int)"),
    getrlimit: libc.func("int getrlimit(int, uintptr_t)"),
    setrlimit: libc.func("int setrlimit(int, uintptr_t)"),
    prctl: libc.func("int prctl(int, unsigned long, unsigned long, unsigned long, unsigned long)"),
    sched_getscheduler: libc.func("int sched_getscheduler(int)"),
    sched_yield: libc.func("int sched_yield()"),
    sched_setscheduler: libc.func("int sched_setscheduler(int, int, uintptr_t)"),
    clock_gettime: libc.func("int clock_gettime(int, uintptr_t)"),
    adjtimex: libc.func("int adjtimex(uintptr_t)"),
    capset: libc.func("int capset(uintptr_t, uintptr_t)"),
  };
  const errno = koffi.errno;
  /** errno is read at once, here and nowhere else: the next call overwrites it. */
  const answer = (result: number): Result => (result === -1 ? -errno() : result);

  const memory = (of: number | SharedArrayBuffer): Memory => {
    // Never a small typed array of V8's own: those live on the heap, and move.
    const buffer = typeof of === "number" ? new ArrayBuffer(of) : of;
    const bytes = new Uint8Array(buffer);
    return { bytes, view: new DataView(buffer), address: Number(koffi.address(bytes)) };
  };
  // One scratch for each kind of small argument; no call keeps what it was given.
  const int = memory(8);
  const length = memory(8);
  const linger = memory(8);
  const event = memory(16);
  const limit = memory(16);
  const ints = new Int32Array(int.bytes.buffer);
  const lengths = new Int32Array(length.bytes.buffer);
  const eventWords = new Int32Array(event.bytes.buffer);
  const eventData = EPOLL_EVENT_DATA / 4;

  return {
    memory,

    socket: (domain, type, protocol) => answer(c.socket(domain, type, protocol)),
    bind: (fd, address, at, size) => answer(c.bind(fd, address.address + at, size)),
    listen: (fd, backlog) => answer(c.listen(fd, backlog)),
    accept4: (fd, address, at, flags) => {
      lengths[0] = SOCKADDR_SIZE;
      return answer(c.accept4(fd, address.address + at, length.address, flags));
    },
    connect: (fd, address, at, size) => answer(c.connect(fd, address.address + at, size)),
    getsockname: (fd, address, at) => {
      lengths[0] = SOCKADDR_SIZE;
      return answer(c.getsockname(fd, address.address + at, length.address));
    },
    getpeername: (fd, address, at) => {
      lengths[0] = SOCKADDR_SIZE;
      return answer(c.getpeername(fd, address.address + at, length.address));
    },
    setsockopt: (fd, level, name, value) => {
      ints[0] = value;
      return answer(c.setsockopt(fd, level, name, int.address, 4));
    },
    setsockoptBytes: (fd, level, name, from, at, size) =>
      answer(c.setsockopt(fd, level, name, from.address + at, size)),
    setLinger: (fd, on, seconds) => {
      linger.view.setInt32(0, on ? 1 : 0, true);
      linger.view.setInt32(4, seconds, true);
      return answer(c.setsockopt(fd, SOL_SOCKET, SO_LINGER, linger.address, 8));
    },
    getsockopt: (fd, level, name, into, at, size) => {
      lengths[0] = size;
      return answer(c.getsockopt(fd, level, name, into.address + at, length.address));
    },
    shutdown: (fd, how) => answer(c.shutdown(fd, how)),
    close: (fd) => answer(c.close(fd)),

    recv: (fd, into, at, size, flags) => answer(c.recv(fd, into.address + at, size, flags)),
    send: (fd, from, at, size, flags) => answer(c.send(fd, from.address + at, size, flags)),
    sendto: (fd, from, at, size, flags, to, toAt, toLength) =>
      answer(c.sendto(fd, from.address + at, size, flags, to.address + toAt, toLength)),
    read: (fd, into, at, size) => answer(c.read(fd, into.address + at, size)),
    write: (fd, from, at, size) => answer(c.write(fd, from.address + at, size)),
    splice: (from, to, size, flags) => answer(c.splice(from, 0, to, 0, size, flags)),
    pipe2: (into, at, flags) => answer(c.pipe2(into.address + at, flags)),
    fcntl: (fd, command, value) => answer(c.fcntl(fd, command, "int", value)),
    ioctlInt: (fd, request) => {
      const result = c.ioctl(fd, request, "uintptr_t", int.address);
      return result === -1 ? -errno() : ints[0]!;
    },
    eventfd: (initial, flags) => answer(c.eventfd(initial, flags)),

    epoll_create1: (flags) => answer(c.epoll_create1(flags)),
    epoll_ctl: (epoll, operation, fd, events, data) => {
      eventWords[0] = events;
      eventWords[eventData] = data;
      return answer(c.epoll_ctl(epoll, operation, fd, event.address));
    },
    epoll_wait: (epoll, events, max, timeoutMs) =>
      answer(c.epoll_wait(epoll, events.address, max, timeoutMs)),

    getrlimit: (resource) => {
      if (c.getrlimit(resource, limit.address) === -1) return null;
      const [soft, hard] = [limit.view.getBigUint64(0, true), limit.view.getBigUint64(8, true)];
      const number = (value: bigint) => (value === RLIM_INFINITY ? Infinity : Number(value));
      return { soft: number(soft), hard: number(hard) };
    },
    setrlimit: (resource, soft, hard) => {
      const big = (value: number) => (value === Infinity ? RLIM_INFINITY : BigInt(value));
      limit.view.setBigUint64(0, big(soft), true);
      limit.view.setBigUint64(8, big(hard), true);
      return answer(c.setrlimit(resource, limit.address));
    },
    prctl: (option, value, more = 0) => answer(c.prctl(option, value, more, 0, 0)),
    sched_getscheduler: () => answer(c.sched_getscheduler(0)),
    sched_yield: () => answer(c.sched_yield()),
    // struct sched_param is one int, the priority: 0.
    sched_setscheduler: (policy) => {
      ints[0] = 0;
      return answer(c.sched_setscheduler(0, policy, int.address));
    },
    clock_gettime: (clock) => {
      // struct timespec: seconds, and ns, in 64 bits each.
      const result = c.clock_gettime(clock, limit.address);
      return result === -1 ? -errno() : limit.view.getUint32(0, true) * 1e9 + limit.view.getUint32(8, true);
    },
    adjtimex: () => answer(c.adjtimex(memory(TIMEX_SIZE).address)),
    capset: (capabilities) => {
      // A version and a pid (0: this thread), then twice three words of 32 bits each.
      const header = memory(8);
      const sets = memory(24);
      header.view.setUint32(0, LINUX_CAPABILITY_VERSION_3, true);
      for (const capability of capabilities) {
        const first = capability < 32 ? 0 : 12;
        for (let at = first; at < first + 12; at += 4) {
          sets.view.setUint32(at, (sets.view.getUint32(at, true) | (1 << (capability % 32))) >>> 0, true);
        }
      }
      return answer(c.capset(header.address, sets.address));
    },
  };
}

/** How many events an epoll_wait buffer of so many bytes holds. */
export const eventsIn = (bytes: number): number => Math.floor(bytes / EPOLL_EVENT_SIZE);
