/**
 * Where log lines go: a file, or standard error, whatever that is. A target never blocks this
 * thread, and where it can be helped no other thread either: a thread of Node's pool that waits for
 * a reader who has stopped reading cannot be ended, and holds up the exit of the process.
 */
import fs from "node:fs";
import { getSystemErrorMap } from "node:util";
import { MSG_DONTWAIT, MSG_NOSIGNAL } from "../../../native-bindings/constants.ts";
import { linux } from "../../../native-bindings/syscalls.ts";

export interface Target {
  /** Calls back later, with how many bytes went out, or with the name of an errno ("EAGAIN"). */
  write(bytes: Uint8Array, at: number, done: (error: string | null, written: number) => void): void;
  close(): void;
}

/** Production passes `targets`; a test may pass one whose disk is full. */
export interface Targets {
  /** null: standard error, which never fails to open. Throws an errno exception. */
  open(filename: string | null): Target;
}

const STDERR = 2;

export const targets: Targets = {
  open: (filename) => (filename === null ? openStderr() : openFile(filename)),
};

/** "open /x/y: no such file or directory", as Go programs say it. */
export function openFailure(filename: string, error: unknown): string {
  const { errno, message } = error as NodeJS.ErrnoException;
  return `open ${filename}: ${getSystemErrorMap().get(errno ?? 0)?.[1] ?? message}`;
}

function openFile(filename: string): Target {
  const { O_RDWR, O_WRONLY, O_APPEND, O_CREAT, O_NONBLOCK, O_NOCTTY } = fs.constants;
  const flags = O_APPEND | O_CREAT | O_NONBLOCK | O_NOCTTY;
  let fd: number;
  try {
    // Reading is for the newline below, and lets a FIFO be opened that nobody reads yet.
    fd = fs.openSync(filename, flags | O_RDWR, 0o644);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EACCES") throw error;
    fd = fs.openSync(filename, flags | O_WRONLY, 0o644);
  }
  endLastLine(fd);
  return fileTarget(fd, true);
}

/** A crash or a full disk may have left half a line; ours must not be glued to it. */
function endLastLine(fd: number): void {
  try {
    const { size } = fs.fstatSync(fd);
    const last = new Uint8Array(1);
    if (size > 0 && fs.readSync(fd, last, 0, 1, size - 1) === 1 && last[0] !== 0x0a)
      fs.writeSync(fd, "\n");
  } catch {
    // Not readable, or full: then the lines themselves will tell.
  }
}

function openStderr(): Target {
  const stat = fs.fstatSync(STDERR);
  if (stat.isSocket()) return socketTarget(STDERR);
  if (stat.isFIFO() || stat.isCharacterDevice()) {
    try {
      // Opened anew, because O_NONBLOCK on fd 2 itself would hold for everyone who shares it.
      const { O_WRONLY, O_APPEND, O_NONBLOCK, O_NOCTTY } = fs.constants;
      return fileTarget(
        fs.openSync(`/proc/self/fd/${STDERR}`, O_WRONLY | O_APPEND | O_NONBLOCK | O_NOCTTY),
        true,
      );
    } catch {
      // No /proc, or a pipe that another user has made.
    }
  }
  return fileTarget(STDERR, false);
}

function fileTarget(fd: number, owned: boolean): Target {
  return {
    write: (bytes, at, done) => {
      fs.write(fd, bytes, at, bytes.length - at, null, (error, written) =>
        done(error === null ? null : (error.code ?? "EIO"), written),
      );
    },
    close: () => {
      if (owned) fs.close(fd, () => {});
    },
  };
}

/** The journal's stream is a socket: /proc cannot open it anew, but send(2) need not wait. */
function socketTarget(fd: number): Target {
  const sys = linux();
  const chunk = sys.memory(64 * 1024);
  return {
    write: (bytes, at, done) => {
      const length = Math.min(bytes.length - at, chunk.bytes.length);
      chunk.bytes.set(bytes.subarray(at, at + length));
      const result = sys.send(fd, chunk, 0, length, MSG_DONTWAIT | MSG_NOSIGNAL);
      setImmediate(() =>
        result < 0 ? done(getSystemErrorMap().get(result)?.[0] ?? "EIO", 0) : done(null, result),
      );
    },
    close: () => {},
  };
}
