/**
 * What every simulated world has, whoever its clients are: the kernel and its moods, the limits,
 * what is done to the engine in the midst, and the verdict on how a tunnel went between its two
 * ends. It knows nothing of the engine but its settings and the records it leaves.
 *
 * The verdict: each end got the other's bytes, and no others. FIN was seen only behind all of
 * them. Where nothing went wrong, everything arrived and both ends saw FIN, never a reset. A reset
 * was passed on as a reset, behind the bytes that had come before it.
 */
import assert from "node:assert/strict";
import { AF_INET, AF_INET6 } from "../../native-bindings/constants.ts";
import type { Answer, Question, Shared } from "../../src/engine/engine.ts";
import type { Limits } from "../../src/engine/limits.ts";
import type { Settings } from "../../src/engine/route.ts";
import type { Role } from "../../src/engine/session.ts";
import { BENIGN, type KernelOptions, SimulatedKernel, writeSockaddr } from "./kernel.ts";
import type { Application, Script } from "./peers.ts";
import { Random } from "./random.ts";
import type { SynGate } from "./syn-gate.ts";
import type { Address } from "./tcp.ts";

/** What the engine said of one tunnel, when it was over. */
export interface Ended {
  readonly reason: string;
  /** errno, where the reason has one. */
  readonly detail: number;
  readonly text: string;
  readonly client: Address;
  readonly destination: Address;
  readonly source: Address;
  /** As a SOCKS client named them. */
  readonly version: number;
  readonly name: string;
  readonly user: string;
  /** In virtual time. */
  readonly beganMs: number;
  readonly endedMs: number;
  readonly bytesUp: number;
  readonly bytesDown: number;
}

/** The two ends of a tunnel, and what the engine said of it. */
export interface Ends {
  readonly client: Application;
  readonly server: Application;
  readonly record: Ended;
}

/** Of those who are dialled. tardy: it takes its time. */
export type Fate = "works" | "tardy" | "refusal" | "nowhere" | "unreachable";

const LISTENER_PORT = 1081;

/** Of every world: nothing here is drawn, as time costs nothing. */
export const PATIENCE = {
  dialMs: 10_000,
  handshakeMs: 10_000,
  halfClosedMs: 30_000,
  idleMs: 60_000,
  keepaliveIdleMs: 60_000,
  keepaliveIntervalMs: 10_000,
  keepaliveProbes: 5,
  userTimeoutMs: 60_000,
};

/** The slowest reader takes ten seconds for what stands in front of a reset. */
const RESET_US_MAX = 20e6;

/** Events come late, the thread is off the CPU, the clock is read once a turn. */
export const LATE_MS = 500;

export abstract class World {
  readonly seed: number;
  readonly kernel: SimulatedKernel;
  readonly limits: Limits;
  readonly listener: Address;
  readonly listenerFamily: number;
  /** When the engine is to accept no more; when to reset what is left; Infinity: never. */
  readonly drainMs: number;
  readonly cutMs: number;
  /** When it is told its settings again, in another order. */
  readonly configureMs: number;
  readonly tunnelsMax: number;
  gate: SynGate | null = null;
  abstract readonly role: Role;
  abstract readonly settings: Settings;
  protected readonly random: Random;
  /** Nothing goes wrong by itself. */
  protected readonly calm: boolean;
  /** Few tunnels, much to say, and room for it. */
  protected readonly bulk: boolean;
  /** Not even a buffer is certain. */
  protected readonly scarce: boolean;
  /** SYNs of redirected connections are held. */
  protected readonly holds: boolean;
  /** How many clients there shall be. */
  protected readonly crowd: number;

  constructor(seed: number, kernel: Partial<KernelOptions> = {}) {
    this.seed = seed;
    const random = new Random(seed ^ 0x5eed);
    this.random = random;
    const calm = random.chance(0.5);
    const bulk = random.chance(0.15);
    this.calm = calm;
    this.bulk = bulk;
    this.crowd = random.size(1, bulk ? 4 : 24);
    this.scarce = random.chance(0.3);
    this.limits = drawLimits(random, bulk, this.scarce);
    this.drainMs = !calm && random.chance(0.1) ? random.size(1, 3000) : Infinity;
    this.cutMs = random.chance(0.5) ? this.drainMs + random.size(1, 3000) : Infinity;
    this.configureMs = random.chance(0.1) ? random.size(1, 3000) : Infinity;
    this.tunnelsMax = random.chance(0.5) ? this.limits.tunnels : random.between(1, this.crowd);
    this.holds = random.chance(0.4);
    // Listener, epoll, eventfd, a queue and two that refuse, and exactly what so many tunnels need; or
    // some more.
    const fdsMax = calm ? 1000 : (this.holds ? 9 : 6) + random.pick([2 * this.tunnelsMax, 20, 60, 1000]);
    this.kernel = new SimulatedKernel({
      ...drawKernel(random, seed, bulk, calm), ...kernel, fdsMax,
    });
    this.listenerFamily = random.pick([AF_INET, AF_INET6]);
    this.listener = {
      bytes: this.listenerFamily === AF_INET ? Uint8Array.of(10, 0, 0, 2) : ipv6(2),
      port: LISTENER_PORT,
    };
  }

  /** Every client has come, and every program is done. */
  abstract get over(): boolean;

  /** What is not over, for the report of a failure. */
  abstract unfinished(): string;

  /** What the engine is told at configureMs. */
  abstract reconfigured(): Settings;

  /** The engine asks; `answer` may be called at any time. */
  ask(question: Question, _answer: (answer: Answer) => void): void {
    assert.fail(`a question about a ${question.kind}, although nobody speaks SOCKS`);
  }

  /** The engine has said that a tunnel is over. */
  abstract ended(record: Ended): void;

  /** The tunnel that an application belongs to, for the report of a failure. */
  abstract describe(application: Application): string;

  describeSettings(): string {
    return JSON.stringify({
      calm: this.calm, scarce: this.scarce, clients: this.crowd, tunnelsMax: this.tunnelsMax,
      drainMs: this.drainMs, cutMs: this.cutMs, configureMs: this.configureMs, ...this.limits,
      kernel: this.kernel.options, refused: this.kernel.refused,
    });
  }

  judge(): void {
    const { kernel, limits } = this;
    // A turn pumps a flow once, and once more when an end is found dead; and a handshake reads.
    const { readsPerTurnMost: reads, splicesPerTurnMost: splices } = kernel;
    assert(reads <= 2 * limits.readsPerTurn + 20, `${reads} reads in one turn`);
    assert(splices <= 2 * limits.splicesPerTurn, `${splices} splices in one turn`);
    assert(kernel.pipesMost <= limits.pipes, `${kernel.pipesMost} pipes at once`);
    assert.equal(kernel.narrowSplices, 0, "bytes went through a narrow pipe");
  }

  /** And on what the engine has left in the memory that threads share. */
  judgeCounted(_shared: Shared): void {}

  /** The verdict on a tunnel that stood. `cut`: it may have ended before its time. */
  protected judgeRelay({ client, server, record }: Ends, cut: boolean): void {
    judgeDirection(client, server, record);
    judgeDirection(server, client, record);
    // Left alone, it comes to an end before any deadline: someone speaks the first FIN.
    const scripts = [client.script, server.script];
    const ends = scripts.every(isPatient) && scripts.some(({ ending }) => ending !== "answer");
    const hasReset = client.tcp.hasReset || server.tcp.hasReset;
    if (ends && !cut && this.cutMs === Infinity && !hasReset) {
      for (const [one, other] of [[client, server], [server, client]] as const) {
        assert(!one.tcp.wasReset, "a reset that nobody had sent");
        assert(one.left || one.sawEnd, "no end was seen");
        assert(one.left || one.received === other.sent, "bytes were lost");
      }
      assert.equal(record.reason, "finished");
      if (!server.left) assert.equal(record.bytesUp, server.received);
      if (!client.left) assert.equal(record.bytesDown, client.received);
    }
    if (record.reason === "finished") {
      assert(record.bytesUp <= client.sent && record.bytesDown <= server.sent, "counted too much");
    }
  }
}

/** What `to` has seen of `from`. */
function judgeDirection(from: Application, to: Application, { reason }: Ended): void {
  assert(to.received <= from.sent, "more came out than went in");
  if (to.sawEnd) {
    assert(from.tcp.hasFinished, "an end was seen that nobody had said");
    assert.equal(to.received, from.sent, "an end was seen in front of the last byte");
  }
  // The relay's own end of the connection to `from`: did the reset reach it?
  const relay = from.tcp.peer;
  if (relay === null || !from.tcp.hasReset || !relay.wasReset || to.left) return;
  if (reason === "drain") return; // The engine was told not to wait for anything.
  const complete = to.tcp.hasEnd && to.tcp.hasFinished;
  assert(complete || to.tcp.wasReset, "a reset was not passed on");
  const delayUs = to.tcp.resetAtUs - Math.max(relay.resetAtUs, from.beganUs, to.beganUs);
  const late = delayUs >= RESET_US_MAX && to.script.stall === null;
  assert(complete || !late, "a reset was passed on late");
  if (to.script.stall === null && !to.tcp.hasReset) {
    // What was said before the stream, to the relay itself, does not count.
    const arrived = relay.arrivedBytes - (from.tcp.takenBytes - from.sent);
    assert(to.received >= arrived, "bytes in front of a reset were lost");
  }
}

/** It never keeps the other waiting for as long as a deadline. */
const isPatient = (script: Script): boolean =>
  script.ending !== "hold" && script.stall?.us !== Infinity;

function drawKernel(
  random: Random, seed: number, bulk: boolean, calm: boolean,
): KernelOptions {
  const rare = (most: number) => random.pick([0, most / 10, most]);
  const slow = random.chance(0.2);
  return {
    ...BENIGN,
    seed,
    faultChance: calm ? 0 : random.pick([0, 0.02, 0.2]),
    faultsMax: random.size(1, 30),
    faultCall: random.pick([
      null, "accept4", "socket", "setsockopt", "connect", "epoll_ctl", "pipe2",
    ]),
    eagainChance: rare(0.2),
    lateChance: rare(0.3),
    spuriousChance: rare(0.3),
    interruptChance: rare(0.1),
    preemptionChance: rare(0.1),
    atOnceChance: random.pick([0, 0.5, 1]),
    sockDiag: random.chance(0.8),
    widePipes: bulk ? 1000 : random.pick([1000, 2, 0]),
    pipeBytesMax: random.pick([1 << 16, 1 << 20]),
    latencyUs: slow ? [1000, 50_000] : [5, random.pick([20, 1000])],
    sendBuffer: random.pick(bulk ? LARGE : [[600, 600], ...LARGE]),
    receiveBuffer: random.pick(bulk ? LARGE : [[600, 2000], ...LARGE]),
    segmentBytesMax: random.pick([1460, 16_000, 65_536]),
  };
}

const LARGE: readonly (readonly [number, number])[] = [
  [4000, 100_000], [200_000, 400_000],
];

/** Small, so that every one of them is reached. */
function drawLimits(random: Random, bulk: boolean, scarce: boolean): Limits {
  const bufferBytes = random.pick([512, 2048, 16_384]);
  return {
    tunnels: 64,
    pipes: bulk ? random.pick([1, 20]) : random.pick([0, 1, 2, 20]),
    pipeBytes: random.pick([1 << 16, 1 << 18]),
    buffers: scarce ? random.pick([0, 0, 1, 3]) : 200,
    bufferBytes,
    chunkBytes: random.size(64, bufferBytes),
    eventsPerTurn: random.pick([1, 3, 64]),
    acceptsPerTurn: random.pick([1, 2, 64]),
    readsPerTurn: random.pick([1, 3, 16]),
    splicesPerTurn: random.pick([1, 2, 8]),
    syns: random.pick([1, 4, 32]),
    sleepMs: 1000,
  };
}

export function ipv6(last: number): Uint8Array {
  return Uint8Array.of(0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last >> 8, last & 255);
}

export function sockaddr(address: Address): Uint8Array {
  const bytes = new Uint8Array(address.bytes.length === 4 ? 16 : 28);
  const memory = { bytes, view: new DataView(bytes.buffer) };
  writeSockaddr(address, address.bytes.length === 4 ? AF_INET : AF_INET6, memory, 0);
  return bytes;
}

export function describeEnd(name: string, application: Application | null): string {
  if (application === null) return `  ${name}: none`;
  const { tcp, script, sent, received, sawEnd, left, over } = application;
  return (
    `  ${name}: sent ${sent} of ${script.bytes}, received ${received}` +
    `${sawEnd ? ", saw the end" : ""}${left ? ", left" : ""}${over ? ", over" : ""}` +
    `${tcp.hasFinished ? ", FIN out" : ""}${tcp.hasReset ? ", RST out" : ""}` +
    `${tcp.wasReset ? ", RST in" : ""}, ${tcp.state}; ${JSON.stringify(script)}\n` +
    `    the relay's end: ${tcp.peer?.arrivedBytes ?? "none"} arrived` +
    `${tcp.peer?.wasReset ? ", RST in" : ""}${tcp.peer?.hasReset ? ", RST out" : ""}` +
    `${tcp.peer?.hasFinished ? ", FIN out" : ""}, ${tcp.peer?.state}`
  );
}
