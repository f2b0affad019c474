/**
 * One thread of the data plane: builds an engine on the real kernel and turns it until it is told
 * to stop. It never returns to Node's event loop; main speaks to it by message and eventfd.
 */
import { domainToASCII } from "node:url";
import { type MessagePort, receiveMessageOnPort, workerData } from "node:worker_threads";
import { EPOLLIN, PR_SET_NAME, SCHED_BATCH, SCHED_OTHER } from "../native-bindings/constants.ts";
import { linux, type Memory, type Syscalls } from "../native-bindings/syscalls.ts";
import { assert } from "./engine/assert.ts";
import { ORDERS, threadName } from "./engine/counters.ts";
import { type Answer, Engine, type OwnMemory, type Question, type Shared } from "./engine/engine.ts";
import type { Limits } from "./engine/limits.ts";
import type { Source, Task } from "./engine/loop.ts";
import type { Settings } from "./engine/route.ts";
import type { Role } from "./engine/session.ts";
import type { TraceQuestion, TraceStep } from "./engine/trace.ts";

export interface WorkerStart {
  readonly port: MessagePort;
  readonly worker: number;
  readonly incarnation: number;
  readonly eventfd: number;
  readonly limits: Limits;
  readonly settings: Settings;
  readonly shared: Shared;
  readonly own: OwnMemory;
}

/** TASK_COMM_LEN in <linux/sched.h>. */
const THREAD_NAME_BYTES = 16;

/** Main to worker. */
export type Order =
  | { readonly kind: "configure"; readonly settings: Settings }
  | { readonly kind: "listen"; readonly fds: readonly number[]; readonly role: Role }
  /** Answered by "unlistened": then main may close them. */
  | { readonly kind: "unlisten"; readonly fds: readonly number[] }
  /** A queue of SYNs. */
  | { readonly kind: "hold"; readonly fd: number; readonly queue: number; readonly lane: number }
  /** Answered by "unlistened", too. Unless what it holds is let go, the fd is needed to the end. */
  | { readonly kind: "unhold"; readonly fd: number; readonly letGo: boolean }
  | { readonly kind: "answer"; readonly answer: Answer }
  /** Reset one tunnel, if it is still there. */
  | { readonly kind: "close"; readonly row: number; readonly id: number }
  /** Instead of what was asked before. */
  | { readonly kind: "trace"; readonly questions: readonly TraceQuestion[] }
  /** Accept no more, and exit when the last tunnel is over. */
  | { readonly kind: "drain" }
  /** Reset what is left, and exit. */
  | { readonly kind: "cut" };

/** Worker to main. */
export type Report =
  | { readonly kind: "ready" }
  | { readonly kind: "unlistened"; readonly fds: readonly number[] }
  | { readonly kind: "question"; readonly question: Question }
  | { readonly kind: "step"; readonly step: TraceStep }
  | { readonly kind: "journal" };

/** The eventfd by which others wake this worker. Main's: it outlives the worker. */
class Bell implements Source, Task {
  readonly fd: number;
  readonly #sys: Syscalls;
  readonly #count: Memory;
  rung = true;
  queued = false;

  constructor(sys: Syscalls, fd: number) {
    this.#sys = sys;
    this.#count = sys.memory(8);
    this.fd = fd;
  }

  mark(): Task {
    this.rung = true;
    return this;
  }

  turn(): boolean {
    this.#sys.read(this.fd, this.#count, 0, 8);
    return false;
  }
}

function work(start: WorkerStart): void {
  const sys = linux();
  const { port } = start;
  const report = (message: Report): void => port.postMessage(message);
  const engine = new Engine({
    ...start,
    sys,
    clock: () => performance.now(),
    wallClock: () => performance.timeOrigin + performance.now(),
    ask: (question) => report({ kind: "question", question }),
    onStep: (step) => report({ kind: "step", step }),
    toAscii: domainToASCII,
  });
  // Main makes way for workers (resources.ts), and has passed that on to this thread.
  if (sys.sched_getscheduler() === SCHED_BATCH) sys.sched_setscheduler(SCHED_OTHER);
  // By this name top -H shows it, and main finds what CPU it has had.
  const name = sys.memory(THREAD_NAME_BYTES);
  new TextEncoder().encodeInto(threadName(start.worker), name.bytes);
  sys.prctl(PR_SET_NAME, name.address);
  const bell = new Bell(sys, start.eventfd);
  const watched = engine.loop.add(bell.fd, EPOLLIN, engine.loop.number(bell));
  assert(watched >= 0, `epoll_ctl for the eventfd answered ${watched}`);
  let draining = false;

  const obey = (order: Order): void => {
    switch (order.kind) {
      case "configure":
        engine.configure(order.settings);
        break;
      case "listen":
        for (const fd of order.fds) engine.listen(fd, order.role);
        break;
      case "unlisten":
        for (const fd of order.fds) engine.unlisten(fd);
        report({ kind: "unlistened", fds: order.fds });
        break;
      case "hold":
        engine.holdSyns(order.fd, order.queue, order.lane);
        break;
      case "unhold":
        engine.stopSyns(order.fd, order.letGo);
        report({ kind: "unlistened", fds: [order.fd] });
        break;
      case "answer":
        engine.answer(order.answer);
        break;
      case "close":
        engine.close(order.row, order.id);
        break;
      case "trace":
        engine.trace(order.questions);
        break;
      case "drain":
        draining = true;
        break;
      case "cut":
        draining = true;
        engine.cut();
        break;
    }
  };

  report({ kind: "ready" });
  while (!draining || engine.tunnels > 0) {
    engine.turn();
    if (bell.rung) {
      bell.rung = false;
      for (let m = receiveMessageOnPort(port); m !== undefined; m = receiveMessageOnPort(port)) {
        obey(m.message as Order);
        engine.counters[ORDERS]!++;
      }
      engine.resumeAccepting();
    }
    if (engine.shouldWakeReader()) report({ kind: "journal" });
  }
  engine.dispose();
  port.close();
}

work(workerData as WorkerStart);
