/**
 * Tells the service manager how things stand, by the protocol of sd_notify(3): one datagram of
 * lines for each message. Node has no datagram sockets of the unix domain, so these are system
 * calls. Without a service manager it does nothing.
 */
import { AF_UNIX, MSG_DONTWAIT, MSG_NOSIGNAL, SOCK_CLOEXEC, SOCK_DGRAM } from "../../native-bindings/constants.ts";
import type { Memory, Syscalls } from "../../native-bindings/syscalls.ts";
import type { Environment } from "../config/environment.ts";

/** sizeof(sun_path) */
const PATH_BYTES_MAX = 108;
const MESSAGE_BYTES_MAX = 4096;

export class ServiceManager {
  readonly #sys: Syscalls;
  readonly #address: Memory | null;
  readonly #message: Memory;
  readonly #watchdogMs: number | null;
  #toldMs = -Infinity;

  constructor(sys: Syscalls, { notifySocket, watchdogMs }: Environment) {
    this.#sys = sys;
    this.#address = notifySocket === null ? null : sockaddr(sys, notifySocket);
    this.#message = sys.memory(MESSAGE_BYTES_MAX);
    this.#watchdogMs = watchdogMs;
  }

  ready(status: string): void {
    this.#tell(`READY=1\nSTATUS=${status}`);
  }

  /** The configuration is being read again; ready() ends that. `nowUsec`: CLOCK_MONOTONIC. */
  reloading(nowUsec: bigint): void {
    this.#tell(`RELOADING=1\nMONOTONIC_USEC=${nowUsec}\nSTATUS=reading the configuration again`);
  }

  /** Another process is the service from now on; it is given as long as any for its first sign of life. */
  handedOver(pid: number): void {
    this.#tell(`MAINPID=${pid}\nWATCHDOG=1`);
  }

  stopping(status: string): void {
    this.#tell(`STOPPING=1\nSTATUS=${status}`);
  }

  /** To be called once a second while all is well: who hangs must not call it. */
  alive(nowMs: number, status: string): void {
    if (this.#watchdogMs === null) return;
    // Twice as often as it is awaited, as sd_watchdog_enabled(3) advises.
    if (nowMs - this.#toldMs < this.#watchdogMs / 2 - 1000) return;
    this.#toldMs = nowMs;
    this.#tell(`WATCHDOG=1\nSTATUS=${status}`);
  }

  /** A manager that does not listen is no reason to fail. */
  #tell(lines: string): void {
    if (this.#address === null) return;
    const sys = this.#sys;
    const fd = sys.socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return;
    const { written } = new TextEncoder().encodeInto(lines, this.#message.bytes);
    const { length } = this.#address.bytes;
    if (sys.connect(fd, this.#address, 0, length) >= 0) {
      sys.send(fd, this.#message, 0, written, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    sys.close(fd);
  }
}

/** struct sockaddr_un, exactly as long as it must be: unix(7). */
function sockaddr(sys: Syscalls, path: string): Memory | null {
  const bytes = new TextEncoder().encode(path);
  if (bytes.length >= PATH_BYTES_MAX) return null;
  const abstract = path.startsWith("@");
  const memory = sys.memory(2 + bytes.length + (abstract ? 0 : 1));
  memory.bytes[0] = AF_UNIX;
  memory.bytes.set(bytes, 2);
  if (abstract) memory.bytes[2] = 0;
  return memory;
}
