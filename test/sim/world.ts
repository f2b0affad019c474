/**
 * What a seed makes of the world around the engine: the kernel and its moods, the limits and
 * settings, the upstream, and a crowd of clients and servers; and the verdict on how each tunnel
 * went. It knows nothing of the engine but its settings and the records it leaves.
 *
 * The verdict: each end got the other's bytes, and no others. FIN was seen only behind all of
 * them. Where nothing went wrong, everything arrived and both ends saw FIN, never a reset. A reset
 * was passed on as a reset, behind the bytes that had come before it. Whoever could not be
 * connected saw a reset, never an end.
 */
import assert from "node:assert/strict";
import {
  AF_INET, AF_INET6, EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC,
} from "../../native-bindings/constants.ts";
import type { Limits } from "../../src/engine/limits.ts";
import type { Settings } from "../../src/engine/route.ts";
import { BENIGN, type KernelOptions, SimulatedKernel, writeSockaddr } from "./kernel.ts";
import {
  Application, drawBytes, drawScript, type Login, ProxyFront, type Script,
} from "./peers.ts";
import { Random } from "./random.ts";
import { type Address, type Route, Tcp } from "./tcp.ts";

/** What the engine said of one tunnel, when it was over. */
export interface Ended {
  readonly reason: string;
  /** errno, where the reason has one. */
  readonly detail: number;
  /** In virtual time. */
  readonly beganMs: number;
  readonly endedMs: number;
  readonly bytesUp: number;
  readonly bytesDown: number;
}

interface Tunnel {
  readonly kind: "redirected" | "not redirected" | "to the listener";
  readonly destination: Address;
  readonly name: string;
  readonly clientScript: Script;
  readonly serverScript: Script;
  readonly stream: number;
  client: Application | null;
  server: Application | null;
  record: Ended | null;
}

const SHORTAGES: readonly number[] = [
  EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC,
];

const CONVERSATIONS = [
  ["freely", "freely"], ["last", "freely"], ["freely", "last"], ["lead", "follow"],
  ["follow", "lead"],
] as const;

type Fate = "works" | "refusal" | "nowhere" | "unreachable";

const LISTENER_PORT = 1081;

/** The slowest reader takes ten seconds for what stands in front of a reset. */
const RESET_US_MAX = 20e6;

/** Events come late, the thread is off the CPU, the clock is read once a turn. */
const LATE_MS = 500;

/** Endings of tunnels whose client and server never met, though each was there for a while. */
const NEVER_RELAYED: readonly string[] = [
  "client-left", "dial-failed", "dial-timeout", "upstream-closed", "handshake-timeout", "resources",
];

export class World {
  readonly seed: number;
  readonly kernel: SimulatedKernel;
  readonly limits: Limits;
  readonly settings: Settings;
  readonly listener: Address;
  readonly listenerFamily: number;
  /** When the engine is to accept no more; when to reset what is left; Infinity: never. */
  readonly drainMs: number;
  readonly cutMs: number;
  /** When it is told its settings again, the upstream's addresses in another order. */
  readonly configureMs: number;
  readonly tunnelsMax: number;
  readonly #random: Random;
  readonly #tunnels: Tunnel[] = [];
  readonly #fronts: ProxyFront[] = [];
  readonly #login: Login | null;
  readonly #proxyFailureChance: number;
  /** A connection may come to nothing though its own peers do all they should. */
  readonly #mayFail: boolean;
  /** Not even a buffer is certain. */
  readonly #scarce: boolean;
  readonly #upstreamFates = new Map<string, Fate>();
  #started = 0;

  constructor(seed: number) {
    this.seed = seed;
    const random = new Random(seed ^ 0x5eed);
    this.#random = random;
    const calm = random.chance(0.5);
    // Some worlds are for bulk: few tunnels, much to say, and room for it.
    const bulk = random.chance(0.15);
    const tunnels = random.size(1, bulk ? 4 : 24);
    this.#scarce = random.chance(0.3);
    this.limits = drawLimits(random, bulk, this.#scarce);
    this.#proxyFailureChance = calm ? 0 : random.pick([0, 0.1]);
    this.drainMs = !calm && random.chance(0.1) ? random.size(1, 3000) : Infinity;
    this.cutMs = random.chance(0.5) ? this.drainMs + random.size(1, 3000) : Infinity;
    this.configureMs = random.chance(0.1) ? random.size(1, 3000) : Infinity;
    const whenFull = calm ? "wait" : random.pick(["wait", "reset"] as const);
    this.tunnelsMax = random.chance(0.5) ? this.limits.tunnels : random.between(1, tunnels);
    // Listener, epoll, eventfd, and exactly what so many tunnels need; or some more.
    const fdsMax = calm ? 1000 : 6 + random.pick([2 * this.tunnelsMax, 20, 60, 1000]);
    this.kernel = new SimulatedKernel({ ...drawKernel(random, seed, bulk, calm), fdsMax });

    this.listenerFamily = random.pick([AF_INET, AF_INET6]);
    this.listener = {
      bytes: this.listenerFamily === AF_INET ? Uint8Array.of(10, 0, 0, 2) : ipv6(2),
      port: LISTENER_PORT,
    };
    const kind = random.pick(["direct", "socks5", "socks5", "http"] as const);
    this.#login = kind !== "direct" && random.chance(0.4)
      ? { user: text("us@er"), password: text(random.pick(["", "p:w", "x".repeat(200)])) } : null;
    const addresses = this.#drawUpstreams(kind === "direct" ? 0 : random.between(1, 3), calm);
    this.#mayFail = !calm || (this.#scarce && kind !== "direct");
    this.settings = {
      transparent: true,
      egress: null,
      mode: random.chance(0.2) ? "tproxy" : "redirect",
      upstream: {
        kind, credentials: this.#login, pipelined: random.chance(0.5),
        addresses: addresses.map(sockaddr),
      },
      mark: random.pick([null, 7]),
      whenFull,
      dialMs: 10_000,
      handshakeMs: 10_000,
      halfClosedMs: 30_000,
      idleMs: 60_000,
      keepaliveIdleMs: 60_000,
      keepaliveIntervalMs: 10_000,
      keepaliveProbes: 5,
      userTimeoutMs: 60_000,
      own: { listening: [sockaddr(this.listener)], local: [this.listener.bytes] },
      journalAll: true,
    };
    for (let i = 0; i < tunnels; i++) this.#addTunnel(i, bulk, calm);
    const direct = new Tcp(this.kernel.network);
    direct.local = { bytes: Uint8Array.of(203, 0, 113, 250), port: 1 };
    direct.onWake = () => this.#acceptDirect(direct);
    direct.listen(1000);
    this.kernel.network.route = (to) => this.#route(to, direct);
  }

  /** Every client has come, and every program is done. */
  get over(): boolean {
    return this.#started === this.#tunnels.length && this.#tunnels.every(isOver);
  }

  /** What is not over, for the report of a failure. */
  unfinished(): string {
    return this.#tunnels
      .filter((tunnel) => !isOver(tunnel))
      .map((tunnel) => describe(tunnel))
      .join("\n");
  }

  describeSettings(): string {
    const { upstream, mode, whenFull } = this.settings;
    return JSON.stringify({
      kind: upstream.kind, pipelined: upstream.pipelined, login: this.#login !== null, mode,
      whenFull,
      clients: this.#tunnels.length, tunnelsMax: this.tunnelsMax,
      drainMs: this.drainMs, cutMs: this.cutMs,
      mayFail: this.#mayFail, scarce: this.#scarce, ...this.limits, kernel: this.kernel.options,
      refused: this.kernel.refused,
    });
  }

  /** The tunnel that an application belongs to, for the report of a failure. */
  describe(application: Application): string {
    const isOf = ({ client, server }: Tunnel) => client === application || server === application;
    return this.#tunnels.filter(isOf).map((tunnel) => describe(tunnel)).join("\n");
  }

  /** The engine has said of a tunnel, by its destination, that it is over. */
  ended(destination: Address, record: Ended): void {
    const tunnel = this.#find(destination);
    if (tunnel === undefined || tunnel.kind !== "redirected") return;
    assert.equal(tunnel.record, null, "a tunnel ended twice");
    tunnel.record = record;
  }

  judge(): void {
    const { kernel, limits } = this;
    // A turn pumps a flow once, and once more when an end is found dead; and a handshake reads.
    const { readsPerTurnMost: reads, splicesPerTurnMost: splices } = kernel;
    assert(reads <= 2 * limits.readsPerTurn + 20, `${reads} reads in one turn`);
    assert(splices <= 2 * limits.splicesPerTurn, `${splices} splices in one turn`);
    assert(kernel.pipesMost <= limits.pipes, `${kernel.pipesMost} pipes at once`);
    assert.equal(kernel.narrowSplices, 0, "bytes went through a narrow pipe");
    for (const { brokeOffUs, tcp } of this.#fronts) {
      const lateUs = (tcp.peer?.closedAtUs ?? 0) - brokeOffUs;
      assert(lateUs < 1000 * LATE_MS, `a handshake was given up ${lateUs / 1000} ms late`);
    }
    for (const tunnel of this.#tunnels) {
      try {
        this.#judge(tunnel);
      } catch (error) {
        throw new Error(`${(error as Error).message}\n${describe(tunnel)}`, { cause: error });
      }
    }
  }

  // The verdict on one tunnel.

  #judge(tunnel: Tunnel): void {
    const { client, server, record, kind } = tunnel;
    assert(client !== null);
    if (record !== null) this.#judgeAttempt(client, record);
    if (server === null || !server.granted) {
      assert.equal(client.received, 0, "bytes came although nobody sent any");
      assert(!client.sawEnd, "a client that could not be connected saw an end, not a reset");
      const gone = client.left || client.tcp.wasReset;
      assert(gone, "a client that could not be connected was not reset");
      const gaveUp = client.left || client.sent === 0 || client.tcp.hasReset;
      const refused = this.#mayFail || kind !== "redirected" || server !== null;
      assert(gaveUp || refused, "a client was never served");
      return;
    }
    assert.equal(kind, "redirected", "a connection was served that should have been refused");
    assert(record !== null, "no word of the tunnel's end");
    if (NEVER_RELAYED.includes(record.reason)) {
      const why = record.reason === "client-left" ? client : server;
      const gone = why.left || why.tcp.hasReset || (why === client && client.sent === 0);
      assert(gone || this.#mayFail, "the tunnel's end was put on someone who was there");
      assert(!server.sawEnd && !client.sawEnd, "an end was seen where nothing had begun");
      assert.equal(server.received + client.received, 0, "bytes were relayed too early");
      return;
    }
    judgeDirection(client, server, record);
    judgeDirection(server, client, record);
    // Left alone, it comes to an end before any deadline: someone speaks the first FIN.
    const scripts = [client.script, server.script];
    const ends = scripts.every(isPatient) && scripts.some(({ ending }) => ending !== "answer");
    // For want of a buffer the bytes behind a handshake may have had no place.
    const homeless = this.#scarce && record.reason === "resources" && client.received === 0;
    const cut = this.cutMs !== Infinity || homeless;
    const hasReset = client.tcp.hasReset || server.tcp.hasReset;
    if (ends && !cut && !hasReset) {
      // A client that ends without a word may have ended before the upstream was there.
      if (client.sent === 0 && client.tcp.wasReset) return;
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

  /** Attempts are given up for a good reason, in time, and when the client has gone. */
  #judgeAttempt(client: Application, { reason, detail, beganMs, endedMs }: Ended): void {
    const { dialMs, handshakeMs } = this.settings;
    const took = endedMs - beganMs;
    if (reason === "dial-failed" || reason === "dial-timeout") {
      assert(!SHORTAGES.includes(detail), `errno ${detail} is no fault of an address`);
      assert(took < dialMs + LATE_MS, `${reason} after ${took} ms`);
    } else if (reason === "handshake-timeout") {
      assert(took < dialMs + handshakeMs + LATE_MS, `${reason} after ${took} ms`);
    }
    const relay = client.tcp.peer;
    if (relay === null || !relay.wasReset || !NEVER_RELAYED.includes(reason)) return;
    const since = endedMs - Math.max(beganMs, relay.resetAtUs / 1000);
    assert(since < LATE_MS, `the attempt went on for ${since} ms after the client had gone`);
  }

  // Making it.

  #drawUpstreams(count: number, calm: boolean): Address[] {
    const addresses: Address[] = [];
    for (let i = 0; i < count; i++) {
      const bytes = this.#random.chance(0.5) ? Uint8Array.of(10, 9, 0, i + 1) : ipv6(0x900 + i);
      const address = { bytes, port: 1080 };
      const fate: Fate = this.#random.chance(0.6)
        ? "works" : this.#random.pick(["refusal", "nowhere", "unreachable"]);
      const last = calm && i === count - 1;
      addresses.push(address);
      this.#upstreamFates.set(nameOf(address), last ? "works" : fate);
      if (!last && fate !== "works") continue;
      const listener = new Tcp(this.kernel.network);
      listener.local = address;
      listener.onWake = () => this.#acceptProxied(listener);
      listener.listen(1000);
    }
    return addresses;
  }

  #addTunnel(index: number, bulk: boolean, calm: boolean): void {
    const random = this.#random;
    const kind = random.chance(0.04)
      ? random.pick(["not redirected", "to the listener"] as const) : "redirected";
    const wide = this.listenerFamily === AF_INET6 && random.chance(0.5);
    const bytes = wide ? ipv6(0x1000 + index) : Uint8Array.of(198, 51, 100, index);
    const [up, down] = [drawBytes(random, bulk), drawBytes(random, bulk)];
    const [clientManners, serverManners] = random.pick(
      up > 0 && down > 0 ? CONVERSATIONS : [["freely", "freely"]] as const,
    );
    const client = { ...drawScript(random, up, down), manners: clientManners };
    // A server's urgent byte may be lost: see Session's #keepUrgentInline().
    const server = { ...drawScript(random, down, up), manners: serverManners, urgent: false };
    // One talks to a wall, and resets at last: what it said can never be delivered.
    const toWall = random.chance(0.03) ? makeWall(client, server, random) : null;
    const destination =
      kind === "to the listener" ? this.listener : { bytes, port: 1000 + index };
    const tunnel: Tunnel = {
      kind,
      destination,
      name: nameOf(destination),
      clientScript: toWall?.[0] ?? client,
      serverScript: toWall?.[1] ?? server,
      stream: random.between(1, 1 << 30),
      client: null, server: null, record: null,
    };
    this.#tunnels.push(tunnel);
    if (this.settings.upstream.kind === "direct" && !calm) {
      const fate: Fate = random.chance(0.8)
        ? "works" : random.pick(["refusal", "nowhere", "unreachable"]);
      this.#upstreamFates.set(nameOf(tunnel.destination), fate);
    }
    this.kernel.network.after(random.size(1, random.pick([1000, 3e6])), () => this.#start(tunnel));
  }

  #start(tunnel: Tunnel): void {
    this.#started++;
    const { network } = this.kernel;
    const tcp = new Tcp(network);
    const { destination, kind, clientScript, stream } = tunnel;
    if (kind === "not redirected") tcp.connect(this.listener);
    else tcp.connect(destination, this.listener);
    tunnel.client = new Application(network, tcp, clientScript, stream, stream + 1);
  }

  #find(destination: Address): Tunnel | undefined {
    const name = nameOf(destination);
    return this.#tunnels.find((each) => each.name === name);
  }

  #route(to: Address, direct: Tcp): Route {
    const fate = this.#upstreamFates.get(nameOf(to)) ?? "works";
    if (nameOf(to) === nameOf(this.listener)) return { to: "refusal" }; // Not there yet, or gone.
    if (fate !== "works") return { to: fate };
    const tunnel = this.#find(to);
    // A proxy is wanted: then nobody may go there by himself.
    if (tunnel === undefined || this.settings.upstream.kind !== "direct") {
      throw new Error(`a connection to ${nameOf(to)}, which nobody wanted`);
    }
    return { to: "listener", listener: direct };
  }

  #acceptDirect(listener: Tcp): void {
    for (let tcp = listener.accept(); tcp !== null; tcp = listener.accept()) {
      this.#serve(tcp.local!, tcp, new Uint8Array(0));
    }
  }

  #acceptProxied(listener: Tcp): void {
    const { kind, pipelined } = this.settings.upstream;
    assert(kind !== "direct");
    const options = {
      protocol: kind, login: this.#login, pipelined, failureChance: this.#proxyFailureChance,
    };
    for (let tcp = listener.accept(); tcp !== null; tcp = listener.accept()) {
      const { network } = this.kernel;
      const serve = this.#serve.bind(this);
      this.#fronts.push(new ProxyFront(network, tcp, options, serve));
    }
  }

  /** The server's end of a tunnel stands. */
  #serve(to: Address, tcp: Tcp, preface: Uint8Array): boolean {
    const tunnel = this.#find(to);
    assert(tunnel?.kind === "redirected", `a tunnel to ${nameOf(to)}, which nobody wanted`);
    assert(tunnel.server === null, `a second tunnel to ${nameOf(to)}`);
    const { serverScript, stream } = tunnel;
    const { network } = this.kernel;
    tunnel.server = new Application(network, tcp, serverScript, stream + 1, stream, preface);
    return true;
  }
}

function makeWall(client: Script, server: Script, random: Random): [Script, Script] {
  const talks = (script: Script): Script => ({
    ...script, bytes: 1_000_000, chunkMax: 20_000, manners: "freely", ending: "reset", stall: null,
    leaves: { afterBytes: Infinity, afterUs: random.size(1e5, 5e6) },
  });
  const hears = (script: Script): Script => ({
    ...script, manners: "freely", ending: "hold",
    stall: { afterBytes: random.size(1, 1000), us: Infinity },
  });
  return random.chance(0.5) ? [talks(client), hears(server)] : [hears(client), talks(server)];
}

const isOver = ({ client, server }: Tunnel): boolean =>
  client !== null && (client.over || client.deaf) &&
  (server === null || server.over || server.deaf);

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
    sleepMs: 1000,
  };
}

const text = (value: string): Uint8Array => new TextEncoder().encode(value);

const nameOf = (address: Address): string => `${address.bytes.join(".")}:${address.port}`;

function ipv6(last: number): Uint8Array {
  return Uint8Array.of(0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last >> 8, last & 255);
}

export function sockaddr(address: Address): Uint8Array {
  const bytes = new Uint8Array(address.bytes.length === 4 ? 16 : 28);
  const memory = { bytes, view: new DataView(bytes.buffer) };
  writeSockaddr(address, address.bytes.length === 4 ? AF_INET : AF_INET6, memory, 0);
  return bytes;
}

function describe({ kind, destination, client, server, record }: Tunnel): string {
  const end = (name: string, application: Application | null): string => {
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
  };
  return [
    `tunnel to ${nameOf(destination)} (${kind}), record ${JSON.stringify(record)}`,
    end("client", client),
    end("server", server),
  ].join("\n");
}
