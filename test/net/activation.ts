/**
 * The test as a service manager, which opens sockets, keeps them, and passes them on by the protocol of
 * sd_listen_fds(3).
 */
import { strict as assert } from "node:assert";
import {
  AF_INET, IP_TRANSPARENT, SO_REUSEADDR, SO_REUSEPORT, SOCK_CLOEXEC, SOCK_STREAM, SOCKADDR_SIZE, SOL_IP, SOL_SOCKET,
} from "../../native-bindings/constants.ts";
import { linux } from "../../native-bindings/syscalls.ts";
import type { StartOptions } from "./relay.ts";
import type { Stage } from "./scenario.ts";

const sys = linux();

export interface Opened {
  readonly port: number;
  readonly reusePort?: boolean;
  readonly transparent?: boolean;
  /** It is bound and does not listen. */
  readonly silent?: boolean;
}

/** As a service manager does: blocking, with a small backlog, on 127.0.0.1 of the relay host. */
export function opened(stage: Stage, { port, reusePort = false, transparent = false, silent = false }: Opened): number {
  const address = sys.memory(SOCKADDR_SIZE);
  address.view.setUint16(0, AF_INET, true);
  address.view.setUint16(2, port);
  address.bytes.set([127, 0, 0, 1], 4);
  const fd = stage.net.relay.within(() => sys.socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  stage.finally(() => void sys.close(fd));
  sys.setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  if (reusePort) sys.setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, 1);
  if (transparent) assert.equal(sys.setsockopt(fd, SOL_IP, IP_TRANSPARENT, 1), 0);
  assert.equal(sys.bind(fd, address, 0, 16), 0, `bind port ${port}`);
  if (!silent) assert.equal(sys.listen(fd, 128), 0);
  return fd;
}

/** The start of a program to which these are passed. */
export function passing(fds: readonly number[], names: string | null, command: readonly string[] = []): StartOptions {
  return {
    fds,
    // Its pid is known where it becomes the program, and not before.
    command: ["sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", ...command],
    env: { LISTEN_FDS: `${fds.length}`, ...(names === null ? {} : { LISTEN_FDNAMES: names }) },
  };
}
