/**
 * Is the simulated kernel as strict as Linux? Each script makes system calls and notes what they
 * answer; it is played on the real kernel, over loopback, and on the simulated one with all
 * hostility turned off. The notes must be the same.
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import {
  AF_INET, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLL_EVENT_DATA, EPOLL_EVENT_SIZE,
  EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP, F_GETPIPE_SZ,
  F_SETPIPE_SZ, MSG_NOSIGNAL, MSG_OOB, MSG_PEEK, MSG_TRUNC, O_NONBLOCK, SHUT_WR, SIOCOUTQ,
  SO_ERROR, SO_OOBINLINE, SO_ORIGINAL_DST, SOCK_NONBLOCK, SOCK_STREAM, SOL_IP, SOL_SOCKET,
  SPLICE_F_NONBLOCK,
} from "../../native-bindings/constants.ts";
import { linux, type Memory, type Syscalls } from "../../native-bindings/syscalls.ts";
import { Ledger } from "../../src/engine/ledger.ts";
import { Orphans } from "../../src/engine/orphans.ts";
import { BENIGN, SimulatedKernel } from "../sim/kernel.ts";

const BITS = [
  [EPOLLIN, "IN"], [EPOLLPRI, "PRI"], [EPOLLOUT, "OUT"], [EPOLLERR, "ERR"], [EPOLLHUP, "HUP"],
  [EPOLLRDHUP, "RDHUP"],
] as const;
const EVERYTHING = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI;

/** A kernel, a notebook, and the calls in short forms that note what they answer. */
class Stage {
  readonly sys: Syscalls;
  readonly notes: string[] = [];
  readonly #settle: () => void;
  readonly #memory: Memory;
  readonly #opened = new Set<number>();

  constructor(sys: Syscalls, settle: () => void) {
    this.sys = sys;
    this.#settle = settle;
    this.#memory = sys.memory(1 << 20);
  }

  note(what: string, result: number | string): number {
    this.notes.push(`${what}: ${result}`);
    return Number(result);
  }

  /** Lets everything that is on its way arrive. */
  settle(): void {
    this.#settle();
  }

  own(fd: number): number {
    assert(fd >= 0, `no fd: ${fd}`);
    this.#opened.add(fd);
    return fd;
  }

  socket(): number {
    return this.own(this.sys.socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
  }

  #loopback(port: number): void {
    this.#memory.bytes.fill(0, 0, 16);
    this.#memory.view.setUint16(0, AF_INET, true);
    this.#memory.view.setUint16(2, port, false);
    this.#memory.bytes.set([127, 0, 0, 1], 4);
  }

  listener(): { fd: number; port: number } {
    const fd = this.socket();
    this.#loopback(0);
    assert.equal(this.sys.bind(fd, this.#memory, 0, 16), 0);
    assert.equal(this.sys.listen(fd, 16), 0);
    this.sys.getsockname(fd, this.#memory, 0);
    return { fd, port: this.#memory.view.getUint16(2, false) };
  }

  connect(fd: number, port: number): number {
    this.#loopback(port);
    return this.sys.connect(fd, this.#memory, 0, 16);
  }

  accept(listener: number): number {
    return this.own(this.sys.accept4(listener, this.#memory, 0, SOCK_NONBLOCK));
  }

  /** Both ends of a connection. */
  pair(): [number, number] {
    const listener = this.listener();
    const a = this.socket();
    this.connect(a, listener.port);
    this.settle();
    const b = this.accept(listener.fd);
    this.drop(listener.fd);
    return [a, b];
  }

  pipe(): [number, number] {
    assert.equal(this.sys.pipe2(this.#memory, 0, O_NONBLOCK), 0);
    const { view } = this.#memory;
    return [this.own(view.getInt32(0, true)), this.own(view.getInt32(4, true))];
  }

  /** Closes, and neither notes nor waits. */
  drop(fd: number): number {
    this.#opened.delete(fd);
    return this.sys.close(fd);
  }

  close(fd: number): void {
    this.note("close", this.drop(fd));
    this.settle();
  }

  abort(fd: number): void {
    this.sys.setLinger(fd, true, 0);
    this.close(fd);
  }

  send(fd: number, text: string, flags = 0): void {
    for (let i = 0; i < text.length; i++) this.#memory.bytes[i] = text.charCodeAt(i);
    const sent = this.sys.send(fd, this.#memory, 0, text.length, flags | MSG_NOSIGNAL);
    this.note(`send ${text}`, sent);
    this.settle();
  }

  recv(fd: number, length = 100, flags = 0): void {
    const got = this.sys.recv(fd, this.#memory, 0, length, flags);
    const text = got > 0 && (flags & MSG_TRUNC) === 0
      ? String.fromCharCode(...this.#memory.bytes.subarray(0, Math.min(got, 20))) : "";
    this.note("recv", `${got} ${text}`);
  }

  /** Sends until there is no more room; answers how much went out. */
  stuff(fd: number): number {
    let sent = 0;
    for (;;) {
      const result = this.sys.send(fd, this.#memory, 0, 65536, MSG_NOSIGNAL);
      if (result < 0) {
        this.settle();
        // Room may have come free meanwhile: the other end has taken some in.
        if (this.sys.send(fd, this.#memory, 0, 65536, MSG_NOSIGNAL) < 0) {
          this.note("stuffed", result);
          return sent;
        }
      }
      sent += Math.max(0, result);
    }
  }

  /** Reads until there is nothing more, for a while. */
  exhaust(fd: number): void {
    for (let empty = 0; empty < 3; ) {
      if (this.sys.recv(fd, this.#memory, 0, 1 << 20, 0) > 0) empty = 0;
      else empty++;
      this.settle();
    }
  }

  splice(from: number, to: number, length = 65536): number {
    return this.note("splice", this.sys.splice(from, to, length, SPLICE_F_NONBLOCK));
  }

  error(fd: number): void {
    this.sys.getsockopt(fd, SOL_SOCKET, SO_ERROR, this.#memory, 0, 4);
    this.note("SO_ERROR", this.#memory.view.getInt32(0, true));
  }

  unacked(fd: number): void {
    this.note("SIOCOUTQ", this.sys.ioctlInt(fd, SIOCOUTQ));
  }

  epoll(): number {
    return this.own(this.sys.epoll_create1(0));
  }

  add(epoll: number, fd: number, events: number, data = 7): void {
    this.note("ADD", this.sys.epoll_ctl(epoll, EPOLL_CTL_ADD, fd, events, data));
  }

  mod(epoll: number, fd: number, events: number, data = 7): void {
    this.note("MOD", this.sys.epoll_ctl(epoll, EPOLL_CTL_MOD, fd, events, data));
  }

  /** What is reported now, by data word. */
  events(epoll: number, max = 8): void {
    const count = this.sys.epoll_wait(epoll, this.#memory, max, 0);
    const events: string[] = [];
    for (let i = 0; i < count; i++) {
      const at = i * EPOLL_EVENT_SIZE;
      const mask = this.#memory.view.getUint32(at, true);
      const data = this.#memory.view.getInt32(at + EPOLL_EVENT_DATA, true);
      const names = BITS.filter(([bit]) => (mask & bit) !== 0).map(([, name]) => name);
      events.push(`${data}=${names.join("|")}`);
    }
    this.note("events", events.sort().join(" ") || String(count));
  }

  /** What a fresh look at the fd says. */
  poll(fd: number): void {
    const epoll = this.epoll();
    this.sys.epoll_ctl(epoll, EPOLL_CTL_ADD, fd, EVERYTHING | EPOLLET, 0);
    this.events(epoll);
    this.drop(epoll);
  }

  read(fd: number): void {
    this.note("read", this.sys.read(fd, this.#memory, 0, 8));
  }

  write(fd: number): void {
    this.#memory.view.setBigUint64(0, 1n, true);
    this.note("write", this.sys.write(fd, this.#memory, 0, 8));
  }

  end(): void {
    for (const fd of this.#opened) this.drop(fd);
  }
}

const sleeper = new Int32Array(new SharedArrayBuffer(4));
const real = linux();

function play(script: (stage: Stage) => void): void {
  const here = new Stage(real, () => Atomics.wait(sleeper, 0, 0, 4));
  const simulated = new SimulatedKernel(BENIGN);
  const there = new Stage(simulated, () => simulated.pass(50_000));
  for (const stage of [here, there]) {
    try {
      script(stage);
    } finally {
      stage.end();
    }
  }
  assert.deepEqual(there.notes, here.notes);
  assert.deepEqual(simulated.openFds(), []);
}

describe("the simulated kernel does what Linux does:", () => {
  it("half-close", () => {
    play((s) => {
      const [a, b] = s.pair();
      s.send(a, "hello");
      s.note("shutdown", s.sys.shutdown(a, SHUT_WR));
      s.settle();
      s.send(a, "more");
      s.poll(b);
      s.recv(b);
      s.recv(b);
      s.recv(b);
      s.poll(b);
      s.send(b, "answer");
      s.recv(a);
      s.recv(a);
      s.unacked(a);
      s.poll(a);
      s.note("shutdown", s.sys.shutdown(b, SHUT_WR));
      s.settle();
      for (const end of [a, b]) {
        s.poll(end);
        s.recv(end);
        s.send(end, "x");
        s.error(end);
        s.unacked(end);
        s.note("shutdown", s.sys.shutdown(end, SHUT_WR));
      }
    });
  });

  it("a reset behind data, seen first by recv, send or SO_ERROR", () => {
    for (const first of ["recv", "send", "SO_ERROR", "send of nothing"]) {
      play((s) => {
        const [a, b] = s.pair();
        s.send(b, "lost");
        s.recv(a);
        s.send(a, "hello");
        s.abort(a);
        s.poll(b);
        if (first === "send") s.send(b, "x");
        if (first === "send of nothing") s.send(b, "");
        if (first === "SO_ERROR") s.error(b);
        s.recv(b, 3);
        s.recv(b);
        s.recv(b);
        s.recv(b);
        s.poll(b);
        s.send(b, "x");
        s.send(b, "");
        s.error(b);
        s.unacked(b);
        s.note("shutdown", s.sys.shutdown(b, SHUT_WR));
      });
    }
  });

  it("close: with unread bytes a reset, else FIN, then a reset for whatever comes", () => {
    play((s) => {
      const [a, b] = s.pair();
      s.send(a, "unread");
      s.close(b);
      s.poll(a);
      s.recv(a);
      s.recv(a);
    });
    play((s) => {
      const [a, b] = s.pair();
      s.close(b);
      s.poll(a);
      s.recv(a);
      s.send(a, "first");
      s.poll(a);
      s.send(a, "second");
      s.recv(a);
      s.error(a);
    });
    play((s) => {
      const [a, b] = s.pair();
      s.send(b, "bytes in front of the end");
      s.close(b);
      s.send(a, "x");
      s.poll(a);
      s.recv(a, 5);
      s.recv(a);
      s.recv(a);
      s.send(a, "y");
    });
  });

  it("linger {1, 0}: no reset where both ends have said FIN", () => {
    play((s) => {
      const [a, b] = s.pair();
      s.sys.shutdown(a, SHUT_WR);
      s.settle();
      s.abort(a);
      s.poll(b);
      s.recv(b);
      s.error(b);
    });
    play((s) => {
      const [a, b] = s.pair();
      s.sys.shutdown(a, SHUT_WR);
      s.settle();
      s.abort(b);
      s.poll(a);
      s.recv(a);
      s.recv(a);
    });
    play((s) => {
      const [a, b] = s.pair();
      s.sys.shutdown(a, SHUT_WR);
      s.settle();
      s.sys.shutdown(b, SHUT_WR);
      s.settle();
      s.abort(a);
      s.poll(b);
      s.recv(b);
      s.error(b);
      s.send(b, "x");
    });
  });

  it("linger {1, 0} behind a FIN that could not be sent yet", () => {
    play((s) => {
      const [a, b] = s.pair();
      s.sys.shutdown(a, SHUT_WR);
      s.settle();
      s.stuff(b);
      const before = s.sys.ioctlInt(b, SIOCOUTQ);
      s.sys.shutdown(b, SHUT_WR);
      s.note("a FIN counts as", s.sys.ioctlInt(b, SIOCOUTQ) - before);
      s.abort(b);
      s.error(a);
    });
  });

  it("unsent bytes are lost with linger {1, 0}, and delivered without", () => {
    for (const abort of [false, true]) {
      play((s) => {
        const [a, b] = s.pair();
        const sent = s.stuff(a);
        if (abort) s.sys.setLinger(a, true, 0);
        s.drop(a);
        s.settle();
        let got = 0;
        const into = s.sys.memory(1 << 20);
        let result = 0;
        for (let empty = 0; empty < 5; ) {
          result = s.sys.recv(b, into, 0, 1 << 20, 0);
          if (result > 0) got += result;
          else if (result !== -11) break;
          else empty++;
          s.settle();
        }
        s.note("the end", result);
        s.note("some were lost", String(got < sent));
        s.recv(b);
        });
    }
  });

  it("unacknowledged bytes, while nobody reads and after", () => {
    play((s) => {
      const [a, b] = s.pair();
      s.send(a, "hello");
      s.unacked(a);
      s.stuff(a);
      s.note("some are not", String(s.sys.ioctlInt(a, SIOCOUTQ) > 0));
      s.poll(a);
      s.exhaust(b);
      s.unacked(a);
      s.poll(a);
      s.stuff(a);
      s.sys.shutdown(a, SHUT_WR);
      s.exhaust(b);
      s.unacked(a);
    });
  });

  it("a full socket becomes writable again", () => {
    play((s) => {
      const [a, b] = s.pair();
      const epoll = s.epoll();
      s.add(epoll, a, EPOLLIN | EPOLLOUT | EPOLLET);
      s.events(epoll);
      s.stuff(a);
      while (s.sys.epoll_wait(epoll, s.sys.memory(100), 1, 0) > 0);
      s.events(epoll);
      s.exhaust(b);
      s.events(epoll);
      s.events(epoll);
      s.stuff(a);
      s.settle();
      while (s.sys.epoll_wait(epoll, s.sys.memory(100), 1, 0) > 0);
      s.mod(epoll, a, EPOLLIN | EPOLLOUT | EPOLLET);
      s.events(epoll);
      s.exhaust(b);
      s.events(epoll);
    });
  });

  it("room for a little is not yet EPOLLOUT", () => {
    play((s) => {
      const [a, b] = s.pair();
      s.stuff(a);
      const epoll = s.epoll();
      s.add(epoll, a, EPOLLOUT);
      const into = s.sys.memory(16384);
      let little = false;
      while (s.sys.epoll_wait(epoll, into, 1, 0) === 0) {
        s.sys.recv(b, into, 0, 16384, 0);
        s.settle();
        if (s.sys.epoll_wait(epoll, into, 1, 0) > 0) break;
        if (s.sys.send(a, into, 0, 1, MSG_NOSIGNAL) > 0) little = true;
      }
      s.note("a little went out before", String(little));
    });
  });

  it("shutdown wakes the one who did it", () => {
    play((s) => {
      const [a] = s.pair();
      const epoll = s.epoll();
      s.add(epoll, a, EPOLLIN | EPOLLOUT | EPOLLET);
      s.events(epoll);
      // With no room for it, FIN itself goes nowhere.
      s.stuff(a);
      s.events(epoll);
      s.sys.shutdown(a, SHUT_WR);
      s.events(epoll);
      s.events(epoll);
    });
  });

  it("a connection that is refused, or was never made", () => {
    for (const first of ["recv", "send", "SO_ERROR", "nothing"]) {
      play((s) => {
        const { fd: listener, port } = s.listener();
        s.close(listener);
        const a = s.socket();
        s.poll(a);
        s.note("connect", s.connect(a, port));
        s.settle();
        s.poll(a);
        if (first === "recv") s.recv(a);
        if (first === "send") s.send(a, "x");
        if (first === "SO_ERROR") s.error(a);
        s.send(a, "");
        s.send(a, "x");
        s.recv(a);
        s.error(a);
      });
    }
    play((s) => {
      const a = s.socket();
      s.recv(a);
      s.send(a, "x");
      s.note("shutdown", s.sys.shutdown(a, SHUT_WR));
      s.abort(a);
    });
  });

  it("a connection that is gone before it is accepted", () => {
    for (const how of ["abort", "close"] as const) {
      play((s) => {
        const listener = s.listener();
        const a = s.socket();
        s.connect(a, listener.port);
        s.settle();
        s.poll(listener.fd);
        s.send(a, "hello");
        s[how](a);
        const b = s.accept(listener.fd);
        s.note("again", s.sys.accept4(listener.fd, s.sys.memory(28), 0, SOCK_NONBLOCK));
        s.poll(b);
        s.recv(b, 2);
        s.recv(b);
        s.recv(b);
        s.recv(b);
        s.send(b, "x");
      });
    }
    play((s) => {
      const listener = s.listener();
      const a = s.socket();
      s.connect(a, listener.port);
      s.settle();
      s.close(listener.fd);
      s.recv(a);
      s.poll(a);
    });
  });

  it("sock_diag: an orphan has said FIN, and no file leads to it", () => {
    play((s) => {
      const [a, b] = s.pair();
      const names = s.sys.memory(56);
      const orphans = new Orphans(s.sys, new Ledger(new SharedArrayBuffer(1 << 16)), 1);
      const ask = (who: string) => s.note(`${who} is an orphan`, `${orphans.has(names.bytes, 0, names.bytes, 28)}`);
      s.sys.getsockname(a, names, 0);
      s.sys.getpeername(a, names, 28);
      ask("an open socket");
      s.note("shutdown", s.sys.shutdown(a, SHUT_WR));
      s.settle();
      ask("a half-closed one");
      s.close(a);
      ask("a closed one");
      s.send(b, "is there anybody?");
      ask("one that has answered with a reset");
    });
  });

  it("SO_ORIGINAL_DST of what was not redirected", () => {
    play((s) => {
      const [, b] = s.pair();
      const into = s.sys.memory(28);
      s.note("getsockopt", s.sys.getsockopt(b, SOL_IP, SO_ORIGINAL_DST, into, 0, 16));
    });
  });

  it("splice from a socket: nothing, a full pipe, the end", () => {
    play((s) => {
      const [a, b] = s.pair();
      const [read, write] = s.pipe();
      s.splice(b, write);
      s.send(a, "hello");
      s.splice(b, write, 3);
      s.splice(b, write);
      s.splice(b, write);
      s.splice(read, b, 5);
      s.settle();
      s.recv(a);
      s.splice(read, b);
      s.sys.shutdown(a, SHUT_WR);
      s.settle();
      s.splice(b, write);
      s.splice(b, write);
      s.drop(write);
      s.splice(read, b);
    });
    play((s) => {
      const [a, b] = s.pair();
      const [read, write] = s.pipe();
      s.note("size", s.sys.fcntl(write, F_GETPIPE_SZ, 0));
      s.note("size", s.sys.fcntl(write, F_SETPIPE_SZ, 8192));
      // One page for each segment, however short it is.
      s.send(a, "one");
      s.send(a, "two");
      s.send(a, "three");
      s.splice(b, write, 3);
      s.splice(b, write, 3);
      s.splice(b, write);
      s.recv(b);
      s.sys.shutdown(a, SHUT_WR);
      s.settle();
      s.splice(b, write);
      s.splice(read, b);
      s.splice(b, write);
      s.settle();
      s.recv(a);
    });
    play((s) => {
      const [, write] = s.pipe();
      s.note("size", s.sys.fcntl(write, F_SETPIPE_SZ, 1));
      s.note("size", s.sys.fcntl(write, F_SETPIPE_SZ, 70000));
    });
  });

  it("splice at a socket that was reset", () => {
    play((s) => {
      const [a, b] = s.pair();
      const [read, write] = s.pipe();
      s.send(a, "hello");
      s.abort(a);
      s.splice(b, write, 3);
      s.splice(b, write);
      s.splice(b, write);
      s.splice(b, write);
      s.splice(read, b);
      s.splice(read, b);
    });
    play((s) => {
      const [a, b] = s.pair();
      const [read, write] = s.pipe();
      s.send(a, "hello");
      s.splice(b, write);
      s.abort(a);
      s.splice(read, b);
      s.splice(read, b);
      s.recv(b);
    });
  });

  it("splice to a socket that is full", () => {
    play((s) => {
      const [a, b] = s.pair();
      const [c, d] = s.pair();
      const [read, write] = s.pipe();
      s.send(a, "hello");
      s.splice(b, write);
      s.stuff(c);
      s.splice(read, c);
      s.exhaust(d);
      s.splice(read, c);
      s.splice(read, c);
      s.settle();
      s.recv(d);
    });
  });

  it("MSG_PEEK and MSG_TRUNC", () => {
    play((s) => {
      const [a, b] = s.pair();
      s.recv(b, 5, MSG_PEEK);
      s.recv(b, 5, MSG_TRUNC);
      s.send(a, "one");
      s.send(a, "two");
      s.recv(b, 5, MSG_PEEK);
      s.recv(b, 100, MSG_PEEK);
      s.recv(b, 4, MSG_TRUNC);
      s.recv(b, 100, MSG_PEEK);
      s.recv(b, 100, MSG_TRUNC);
      s.recv(b, 100, MSG_TRUNC);
      s.sys.shutdown(a, SHUT_WR);
      s.settle();
      s.recv(b, 100, MSG_PEEK);
      s.recv(b, 100, MSG_TRUNC);
    });
  });

  it("epoll, edge-triggered", () => {
    play((s) => {
      const [a, b] = s.pair();
      const epoll = s.epoll();
      s.mod(epoll, b, EPOLLIN | EPOLLET);
      s.add(epoll, b, EPOLLIN | EPOLLRDHUP | EPOLLET);
      s.add(epoll, b, EPOLLIN | EPOLLRDHUP | EPOLLET);
      s.events(epoll);
      s.send(a, "one");
      s.events(epoll);
      s.events(epoll);
      s.send(a, "two");
      s.events(epoll);
      s.recv(b, 3);
      s.events(epoll);
      s.mod(epoll, b, EPOLLIN | EPOLLRDHUP | EPOLLET, 8);
      s.events(epoll);
      s.mod(epoll, b, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, 9);
      s.events(epoll);
      s.events(epoll);
      // What is no longer so when it is looked at is not reported.
      s.send(a, "three");
      s.recv(b);
      s.mod(epoll, b, EPOLLIN | EPOLLRDHUP | EPOLLET, 8);
      s.events(epoll);
      s.sys.shutdown(a, SHUT_WR);
      s.settle();
      s.events(epoll);
      s.events(epoll);
      s.recv(b);
      s.events(epoll);
      s.sys.shutdown(b, SHUT_WR);
      s.settle();
      s.events(epoll);
      s.events(epoll);
      s.note("DEL", s.sys.epoll_ctl(epoll, EPOLL_CTL_DEL, b, 0, 0));
      s.note("DEL", s.sys.epoll_ctl(epoll, EPOLL_CTL_DEL, b, 0, 0));
      s.events(epoll);
    });
    play((s) => {
      const [a, b] = s.pair();
      const epoll = s.epoll();
      s.add(epoll, b, EPOLLOUT | EPOLLET);
      s.events(epoll);
      s.send(a, "not asked for");
      s.events(epoll);
      s.sys.shutdown(a, SHUT_WR);
      s.settle();
      s.events(epoll);
    });
    play((s) => {
      const [a, b] = s.pair();
      const epoll = s.epoll();
      s.add(epoll, b, EPOLLIN | EPOLLET);
      s.send(a, "x");
      s.abort(a);
      s.events(epoll);
      s.events(epoll);
      s.close(b);
      s.events(epoll);
    });
    play((s) => {
      const [a, b] = s.pair();
      const epoll = s.epoll();
      s.add(epoll, b, EPOLLIN | EPOLLET, 1);
      s.send(a, "x");
      s.drop(b);
      s.events(epoll);
    });
  });

  it("epoll, level-triggered", () => {
    play((s) => {
      const [a, b] = s.pair();
      const epoll = s.epoll();
      s.add(epoll, b, EPOLLIN);
      s.events(epoll);
      s.send(a, "one");
      s.events(epoll);
      s.events(epoll);
      s.recv(b, 1);
      s.events(epoll);
      s.recv(b);
      s.events(epoll);
      s.mod(epoll, b, 0);
      s.send(a, "two");
      s.events(epoll);
      s.abort(a);
      s.events(epoll);
    });
  });

  it("epoll on a listener, a connection attempt and an eventfd", () => {
    play((s) => {
      const epoll = s.epoll();
      const listener = s.listener();
      s.add(epoll, listener.fd, EPOLLIN | EPOLLET, 1);
      const event = s.own(s.sys.eventfd(0, O_NONBLOCK));
      s.add(epoll, event, EPOLLIN | EPOLLET, 2);
      s.events(epoll);
      s.write(event);
      s.events(epoll);
      s.write(event);
      s.events(epoll);
      s.events(epoll);
      s.read(event);
      s.read(event);
      s.events(epoll);
      const a = s.socket();
      s.connect(a, listener.port);
      s.settle();
      s.add(epoll, a, EPOLLIN | EPOLLOUT | EPOLLET, 3);
      s.events(epoll);
      s.events(epoll);
      const c = s.socket();
      s.connect(c, listener.port);
      s.settle();
      s.events(epoll);
      s.accept(listener.fd);
      s.events(epoll);
      s.accept(listener.fd);
    });
  });

  it("an urgent byte: recv stops at it, splice cannot pass it", () => {
    for (const inline of [0, 1]) {
      play((s) => {
        const [a, b] = s.pair();
        const [, write] = s.pipe();
        s.sys.setsockopt(b, SOL_SOCKET, SO_OOBINLINE, inline);
        s.send(a, "abc");
        s.send(a, "D", MSG_OOB);
        s.send(a, "efg");
        s.poll(b);
        s.recv(b, 2);
        s.recv(b, 100, MSG_PEEK);
        s.recv(b);
        s.splice(b, write);
        s.poll(b);
        s.recv(b, 2, MSG_PEEK);
        s.recv(b, 2);
        s.poll(b);
        s.splice(b, write);
        s.recv(b);
        s.send(a, "hi");
        s.send(a, "J", MSG_OOB);
        s.splice(b, write);
        s.splice(b, write);
        s.recv(b);
        s.recv(b);
      });
    }
  });

  it("an urgent byte with FIN behind it: splice says that this is the end", () => {
    play((s) => {
      const [a, b] = s.pair();
      const [, write] = s.pipe();
      s.sys.setsockopt(b, SOL_SOCKET, SO_OOBINLINE, 1);
      s.send(a, "abc");
      s.send(a, "D", MSG_OOB);
      s.sys.shutdown(a, SHUT_WR);
      s.settle();
      s.splice(b, write);
      s.splice(b, write);
      s.recv(b);
      s.recv(b);
    });
  });

  it("the lowest number that is free is given first", () => {
    play((s) => {
      const fds = [s.socket(), s.socket(), s.socket()];
      const first = Math.min(...fds);
      s.close(fds[2]!);
      s.close(fds[0]!);
      s.note("again", s.socket() - first);
      const [read, write] = s.pipe();
      s.note("the pipe's read end comes first", String(read < write));
    });
  });
});
