/**
 * A world of redirected connections: clients that a firewall rule sends to the listener, the
 * upstream proxies, and the servers behind.
 *
 * Whoever could not be connected saw a reset, never an end.
 */
import assert from "node:assert/strict";
import {
  AF_INET6, EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC,
} from "../../native-bindings/constants.ts";
import { PRESETS } from "../../src/policy/cause.ts";
import type { Settings } from "../../src/engine/route.ts";
import type { Role } from "../../src/engine/session.ts";
import { exactly } from "../../src/policy/network.ts";
import { Application, drawConversation, type Login, ProxyFront, type Script } from "./peers.ts";
import { SynGate } from "./syn-gate.ts";
import { type Address, nameOf, type Route, Tcp } from "./tcp.ts";
import {
  describeEnd, type Ended, type Fate, ipv6, LATE_MS, PATIENCE, sockaddr, World,
} from "./world.ts";

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

/** Where clients come from. */
const CLIENTS = [Uint8Array.of(10, 0, 0, 1), new Uint8Array(16).fill(1)];

/** So often the kernel is asked whether a client is gone that has said FIN. */
const LOOK_MS = 1000;
/** So long a granted tunnel waits for its client. */
const PAIR_MS = 5000;

/** Endings of tunnels whose client and server never met, though each was there for a while. */
const NEVER_RELAYED: readonly string[] = [
  "client-left", "dial-failed", "dial-timeout", "upstream-closed", "handshake-timeout", "resources",
  // Of a second attempt, for a client that came too late for the tunnel that stood.
  "upstream-status", "upstream-refused", "upstream-auth", "upstream-no-method", "upstream-malformed",
];

export class RedirectedWorld extends World {
  readonly role: Role = "transparent";
  readonly settings: Settings;
  readonly #tunnels: Tunnel[] = [];
  readonly #fronts: ProxyFront[] = [];
  readonly #login: Login | null;
  readonly #proxyFailureChance: number;
  /** Clients are programs of this host, and the kernel tells when one is gone. */
  readonly #watched: boolean;
  /** A connection may come to nothing though its own peers do all they should. */
  readonly #mayFail: boolean;
  readonly #upstreamFates = new Map<string, Fate>();
  #started = 0;

  constructor(seed: number) {
    super(seed);
    const { random, calm } = this;
    this.#proxyFailureChance = calm ? 0 : random.pick([0, 0.1]);
    const whenFull = calm ? "wait" : random.pick(["wait", "reset"] as const);
    const kind = random.pick(["direct", "socks5", "socks5", "http"] as const);
    this.#login = kind !== "direct" && random.chance(0.4)
      ? { user: text("us@er"), password: text(random.pick(["", "p:w", "x".repeat(200)])) } : null;
    const addresses = this.#drawUpstreams(kind === "direct" ? 0 : random.between(1, 3), calm);
    const fromHere = random.chance(0.7);
    this.#watched = fromHere && calm && this.kernel.options.sockDiag;
    if (this.holds) {
      const { network } = this.kernel;
      this.gate = new SynGate(network, random, {
        failOpenChance: random.pick([0, 0.1, 0.5]), forgetChance: random.pick([0, 0.1]), copyChance: random.pick([0, 0.3]),
      });
    }
    this.#mayFail = !calm || (this.scarce && kind !== "direct");
    this.settings = {
      transparent: true,
      egress: null,
      mode: random.chance(0.2) ? "tproxy" : "redirect",
      upstream: {
        kind, credentials: this.#login, pipelined: random.chance(0.5),
        addresses: addresses.map((address, slot) => ({ bytes: sockaddr(address), slot, drained: false })),
        trust: random.pick([PRESETS.standard, PRESETS.transplice]),
        disclosed: "off", forwards: false,
      },
      truthful: this.gate === null ? null : { answer: "raw", timeoutAs: "host-unreachable", lanes: 1, markShift: 16 },
      unknownAs: "host-unreachable",
      relays: [],
      mark: random.pick([null, 7]),
      whenFull,
      ...PATIENCE,
      own: { listening: [sockaddr(this.listener)], local: [this.listener.bytes, ...(fromHere ? CLIENTS : [])].map(exactly) },
      learnt: null,
      journalAll: true,
    };
    for (let i = 0; i < this.crowd; i++) this.#addTunnel(i);
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

  override describeSettings(): string {
    const { upstream, mode, whenFull } = this.settings;
    return JSON.stringify({
      kind: upstream.kind, pipelined: upstream.pipelined, login: this.#login !== null, mode,
      whenFull, mayFail: this.#mayFail,
    }) + super.describeSettings();
  }

  reconfigured(): Settings {
    const { upstream } = this.settings;
    return { ...this.settings, upstream: { ...upstream, addresses: upstream.addresses.toReversed() } };
  }

  /** The tunnel that an application belongs to, for the report of a failure. */
  describe(application: Application): string {
    const isOf = ({ client, server }: Tunnel) => client === application || server === application;
    return this.#tunnels.filter(isOf).map((tunnel) => describe(tunnel)).join("\n");
  }

  ended(record: Ended): void {
    const tunnel = this.#find(record.destination);
    if (tunnel === undefined || tunnel.kind !== "redirected") return;
    // For want of resources a SYN is let go, and dialled for again once it is accepted.
    if (!this.#mayBeginAgain || ![...NEVER_RELAYED, "drain"].includes(tunnel.record?.reason ?? "")) {
      assert.equal(tunnel.record, null, "a tunnel ended twice");
    }
    tunnel.record = record;
  }

  override judge(): void {
    super.judge();
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

  get #mayBeginAgain(): boolean {
    // At the limit nothing is read: its connection, or its SYN when it comes again, may stand behind
    // others for so long that its tunnel is given up.
    return this.gate !== null && (!this.calm || this.tunnelsMax < this.limits.tunnels);
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
      const gaveUp = client.left || client.tcp.peer === null || client.tcp.hasReset;
      const refused = this.#mayFail || kind !== "redirected" || server !== null;
      assert(gaveUp || refused, "a client was never served");
      return;
    }
    assert.equal(kind, "redirected", "a connection was served that should have been refused");
    assert(record !== null, "no word of the tunnel's end");
    // Or it stood, and nobody had said a word in it.
    const heard = record.bytesUp + record.bytesDown > 0 || server.sawEnd || client.sawEnd;
    const letGo = this.gate !== null && record.reason === "drain" && !heard;
    // The second time it was dialled for, the upstream would not have it.
    const refusedAgain = this.#mayBeginAgain && record.reason.startsWith("upstream-") && !heard;
    if (letGo || refusedAgain || NEVER_RELAYED.includes(record.reason)) {
      const why = record.reason === "client-left" ? client : server;
      const gone = why.left || why.tcp.hasReset;
      assert(gone || this.#mayFail, "the tunnel's end was put on someone who was there");
      assert(!server.sawEnd && !client.sawEnd, "an end was seen where nothing had begun");
      assert.equal(server.received + client.received, 0, "bytes were relayed too early");
      return;
    }
    // For want of a buffer the bytes behind a handshake may have had no place.
    const homeless = this.scarce && record.reason === "resources" && client.received === 0;
    this.judgeRelay({ client, server, record }, homeless);
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
    if (relay === null || !NEVER_RELAYED.includes(reason)) return;
    // Of one who leaves before he is accepted nothing is known.
    const patienceMs = this.gate === null ? 0 : PAIR_MS;
    const wentOn = (sinceUs: number): number => endedMs - Math.max(beganMs, sinceUs / 1000) - patienceMs;
    if (relay.wasReset) {
      const ms = wentOn(relay.resetAtUs);
      assert(ms < LATE_MS, `the attempt went on for ${ms} ms after the client had gone`);
    } else if (this.#watched && client.left && relay.hasEnd) {
      // It may have said FIN long before.
      const ms = wentOn(Math.max(relay.endAtUs, client.tcp.closedAtUs));
      assert(ms < LATE_MS + LOOK_MS, `the attempt went on for ${ms} ms after an orphan's FIN`);
    }
  }

  // Making it.

  #drawUpstreams(count: number, calm: boolean): Address[] {
    const addresses: Address[] = [];
    for (let i = 0; i < count; i++) {
      const bytes = this.random.chance(0.5) ? Uint8Array.of(10, 9, 0, i + 1) : ipv6(0x900 + i);
      const address = { bytes, port: 1080 };
      const fate: Fate = this.random.chance(0.6)
        ? "works" : this.random.pick(["refusal", "nowhere", "unreachable"]);
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

  #addTunnel(index: number): void {
    const { random, calm } = this;
    const kind = random.chance(0.04)
      ? random.pick(["not redirected", "to the listener"] as const) : "redirected";
    const wide = this.listenerFamily === AF_INET6 && random.chance(0.5);
    const bytes = wide ? ipv6(0x1000 + index) : Uint8Array.of(198, 51, 100, index);
    const [clientScript, serverScript] = drawConversation(random, this.bulk);
    const destination =
      kind === "to the listener" ? this.listener : { bytes, port: 1000 + index };
    const tunnel: Tunnel = {
      kind,
      destination,
      name: nameOf(destination),
      clientScript,
      serverScript,
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
    if (fate !== "works" && fate !== "tardy") return { to: fate };
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
    const { kind, pipelined, trust } = this.settings.upstream;
    assert(kind === "socks5" || kind === "http");
    const options = {
      protocol: kind, login: this.#login, pipelined, wantsReport: trust.reports,
      failureChance: this.#proxyFailureChance,
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
    assert(tunnel.server === null || this.#mayBeginAgain, `a second tunnel to ${nameOf(to)}`);
    if (tunnel.server !== null) assert.equal(tunnel.server.received, 0, "bytes went to a tunnel that was not the client's");
    const { serverScript, stream } = tunnel;
    const { network } = this.kernel;
    tunnel.server = new Application(network, tcp, serverScript, stream + 1, stream, preface);
    return true;
  }
}


const isOver = ({ client, server }: Tunnel): boolean =>
  client !== null && (client.over || client.deaf) &&
  (server === null || server.over || server.deaf);

const text = (value: string): Uint8Array => new TextEncoder().encode(value);

const describe = ({ kind, destination, client, server, record }: Tunnel): string =>
  [
    `tunnel to ${nameOf(destination)} (${kind}), record ${JSON.stringify(record)}`,
    describeEnd("client", client),
    describeEnd("server", server),
  ].join("\n");
