/**
 * The front of a tunnel that a SOCKS client asks for: all that is said until it is known which
 * addresses may be dialled. PROXY header, greeting, login, request; who may go where; the name.
 *
 *   ask ──► verify ──► ask ──► resolve ──► ready
 *
 * It reads from the client and writes to it, and knows no other socket. It never says that a
 * request was granted: the session does, when the connection stands.
 */
import {
  AF_INET, AF_INET6, EAGAIN, ECONNREFUSED, EHOSTUNREACH, EINTR, ENETUNREACH, ENOBUFS, ETIMEDOUT,
  SOCKADDR_SIZE,
} from "../../native-bindings/constants.ts";
import type { Memory } from "../../native-bindings/syscalls.ts";
import type { Asker as Client, Verdict } from "../policy/access.ts";
import { type Target, targetOf } from "../policy/name.ts";
import { errnoOf } from "../policy/cause.ts";
import { isMapped } from "../policy/own.ts";
import { readProxyHeader } from "../protocol/proxy-protocol.ts";
import { type Attempt, ATTEMPTS_MAX, type Report } from "../protocol/report.ts";
import { type ServerFailure, type ServerStep, SocksServer } from "../protocol/socks-server.ts";
import type { Egress } from "./egress.ts";
import { type Ending, ending } from "./ending.ts";
import type { Engine } from "./engine.ts";
import type { NameAnswer, Asker as NameAsker } from "./names.ts";
import { hashOf, TOO_FAST, TOO_MANY, UNCOUNTED } from "./quota.ts";
import type { Socket } from "./socket.ts";
import { STATUS, statusOfReply } from "./socks-counters.ts";
import { FRONT } from "./table.ts";

/** What the session must do next. */
export type Outcome =
  /** The client must say more, or main must answer. */
  | "waits"
  /** `candidates` and `port` say where to go. */
  | "ready"
  /** The reply is sent: end it, so that the client can read it. `why` says why. */
  | "refused"
  /** There is nothing to be said: end it. */
  | "over";

const PROXY = 0;
const ASK = 1;
const VERIFY = 2;
const RESOLVE = 3;
const READY = 4;

/** One read; what stands behind the request is the tunnel's and is kept meanwhile. */
const READ_BYTES = 2048;
const CLIENT_KIND = 1;
const USER_KIND = 2;

// Reply codes: RFC 1928 section 6.
export const SUCCEEDED = 0;
const GENERAL_FAILURE = 1;
const NOT_ALLOWED = 2;
const NETWORK_UNREACHABLE = 3;
const HOST_UNREACHABLE = 4;
const CONNECTION_REFUSED = 5;
const TIMED_OUT = 6;
const COMMAND_NOT_SUPPORTED = 7;

const NOTHING = new Uint8Array(0);
const NONE: readonly Attempt[] = [];
const NOBODY: readonly Uint8Array[] = [];

/** Who waits: the session, which is queued when there is an answer, and its place in the table. */
export interface FrontHost extends NameAsker {
  readonly row: number;
  /** Of this tunnel: an answer that comes too late finds another. */
  readonly id: number;
  readonly client: Socket;
  /** The client's first bytes behind the request: they are the tunnel's. False: no memory. */
  keepForTunnel(from: Memory, start: number, end: number): boolean;
  /** Sends to the client from engine.output; what it does not take is sent before anything else. */
  say(length: number): boolean;
}

export class SocksFront {
  readonly #engine: Engine;
  readonly #host: FrontHost;
  /** Lent from the first byte to the reply: who says nothing costs next to nothing. */
  #machine: SocksServer | null = null;
  #version: 0 | 4 | 5 = 0;
  #egress!: Egress;
  #phase = ASK;
  /** A message that is not whole yet. Seldom: most come in one piece. */
  #partial: Uint8Array = NOTHING;
  #answer: NameAnswer | null = null;
  #verdict: boolean | null = null;
  #user = "";
  /** Only where they are to be reported. */
  #attempts: readonly Attempt[] = NONE;
  #outside = false;

  /** As the client named it, normalised; "" if it gave an address. */
  name = "";
  /** 4 or 16 bytes each, allowed, in the order in which they are to be tried. */
  candidates: readonly Uint8Array[] = NOBODY;
  port = 0;
  why: Ending | null = null;

  constructor(engine: Engine, host: FrontHost) {
    this.#engine = engine;
    this.#host = host;
  }

  get version(): 0 | 4 | 5 {
    return this.#machine?.version ?? this.#version;
  }

  get #socks(): SocksServer {
    if (this.#machine === null) {
      this.#machine = this.#engine.machines.pop() ?? new SocksServer();
      this.#machine.begin(this.#egress.settings.login);
    }
    return this.#machine;
  }

  /** Everything has been said. */
  #giveMachine(): void {
    if (this.#machine === null) return;
    this.#version = this.#machine.version;
    this.#machine.begin(false); // Nothing of this client stays behind.
    this.#engine.machines.push(this.#machine);
    this.#machine = null;
  }

  /** It waits for main, and does not read. */
  get asks(): boolean {
    return this.#phase === VERIFY || this.#phase === RESOLVE;
  }

  /** Of what the client has said some is still to be read: it has not left without a word. */
  get holds(): boolean {
    return this.#partial.length > 0;
  }

  /** allow_from does not have it, and no balancer speaks for another: it will be refused. */
  get outside(): boolean {
    return this.#phase !== PROXY && this.#outside;
  }

  get resolves(): boolean {
    return this.#phase === RESOLVE;
  }

  get user(): string {
    return this.#user;
  }

  get egress(): Egress {
    return this.#egress;
  }

  begin(egress: Egress): Outcome {
    this.#egress = egress;
    this.#version = 0;
    this.#partial = NOTHING;
    this.#answer = null;
    this.#verdict = null;
    this.#user = "";
    this.name = "";
    this.candidates = NOBODY;
    this.port = 0;
    this.why = null;
    this.#attempts = NONE;
    const { rows } = this.#engine;
    const { bytes } = rows;
    const client = this.#client();
    const proxied = !egress.proxies.empty && egress.proxies.has(bytes, client.at, client.length);
    this.#phase = proxied ? PROXY : ASK;
    return proxied ? "waits" : this.#admit();
  }

  /** Over, for whatever reason: gives back what it holds, and waits no more. */
  end(): void {
    this.#forget();
    this.#giveMachine();
    this.#partial = NOTHING;
    this.#phase = READY;
    this.#engine.leaveQuotas(this.#host.row);
  }

  #forget(): void {
    if (this.#phase === RESOLVE && this.#answer === null) {
      this.#engine.names.forget(this.name, this.#host);
    }
  }

  /** The client wants to know more of a failure than a reply can say. */
  get reports(): boolean {
    return this.#machine?.reports === true;
  }

  /** For its report: the candidate is dialled. `source`: the sockaddr that the socket has, if it has one. */
  attempted(candidate: number, errno: number, source: Uint8Array | null): void {
    if (this.#attempts.length === ATTEMPTS_MAX) return;
    const address = this.candidates[candidate]!;
    const start = address.length === 4 ? 4 : 8;
    const attempt = { errno, address, source: source?.slice(start, start + address.length) ?? null };
    this.#attempts = [...this.#attempts, attempt];
  }

  attemptFailed(candidate: number, errno: number): void {
    const address = this.candidates[candidate];
    this.#attempts = this.#attempts.map((each) => (each.address === address ? { ...each, errno } : each));
  }

  /** Goes on with what the client has said, or main has answered. */
  turn(): Outcome {
    for (;;) {
      let outcome: Outcome | null;
      switch (this.#phase) {
        case VERIFY:
          if (this.#verdict === null) return "waits";
          outcome = this.#verified(this.#verdict);
          break;
        case RESOLVE:
          if (this.#answer === null) return "waits";
          return this.#resolved(this.#answer);
        case READY:
          return "ready";
        default:
          outcome = this.#read();
      }
      if (outcome !== null) return outcome;
    }
  }

  /** Main has answered: the password is right, or not. */
  verdict(right: boolean): void {
    if (this.#phase === VERIFY) this.#verdict = right;
  }

  named(answer: NameAnswer): void {
    if (this.#phase === RESOLVE) this.#answer = answer;
  }

  /** Main has not answered in time. */
  late(): Outcome {
    const named = this.#phase === RESOLVE;
    this.#forget();
    return named ? this.#deny(TIMED_OUT, ending("name-timeout")) : this.#over(ending("client-timeout"));
  }

  /** The reply to a request whose dial came to an end: 0, or errno. False: the client has gone. */
  reply(errno: number, bound: Memory | null, at: number): boolean {
    const code = errno === 0 ? SUCCEEDED : replyOf(errno);
    this.#countReply(code);
    const report = errno !== 0 && this.reports ? { errno, attempts: this.#attempts } : null;
    const said = this.#say(code, bound?.bytes ?? null, at, report);
    this.#giveMachine();
    this.candidates = NOBODY; // A tunnel that lasts need not keep them.
    return said;
  }

  // ---- asking

  /** Null: go on. */
  #read(): Outcome | null {
    const { sys, scratch } = this.#engine;
    const { client } = this.#host;
    if (!client.readable) return "waits";
    const start = this.#partial.length;
    if (start > 0) scratch.bytes.set(this.#partial, 0);
    const room = Math.min(READ_BYTES, scratch.bytes.length - start);
    const got = sys.recv(client.fd, scratch, start, room, 0);
    if (got === -EAGAIN) {
      client.readable = false;
      return "waits";
    }
    if (got === -EINTR) return null;
    if (got <= 0) return this.#over(ending("client-left", -got));
    if (got < room && !client.finished && !client.urgent) client.readable = false;
    return this.#play(start + got);
  }

  /** Plays what stands in scratch[0, end). */
  #play(end: number): Outcome | null {
    const { scratch, output } = this.#engine;
    let start = 0;
    if (this.#phase === PROXY) {
      const { rows, table } = this.#engine;
      table.changing(this.#host.row);
      const header = readProxyHeader(scratch.bytes, 0, end, rows.bytes, this.#host.row);
      table.changed(this.#host.row, FRONT);
      if (header.do === "read") return this.#keep(0, end);
      if (header.do === "fail") return this.#over(ending("client-malformed", 0, header.detail));
      start = header.consumed;
      this.#phase = ASK;
      const outcome = this.#admit();
      if (outcome !== "waits") return outcome;
    }
    for (;;) {
      const step = this.#socks.advance(scratch.bytes, start, end, output.bytes);
      switch (step.do) {
        case "read":
          return this.#keep(start, end);
        case "write":
          start += step.consumed;
          if (!this.#host.say(step.length)) return this.#over(ending("client-left"));
          break;
        case "verify":
          start += step.consumed;
          this.#keep(start, end);
          return this.#verify();
        case "request":
          start += step.consumed;
          return this.#requested(start, end);
        case "refuse":
          return this.#refused(step);
      }
    }
  }

  /** Null, for the ease of callers. */
  #keep(start: number, end: number): null {
    this.#partial = start === end ? NOTHING : this.#engine.scratch.bytes.slice(start, end);
    return null;
  }

  #refused(step: ServerStep & { do: "refuse" }): Outcome {
    const { socks } = this.#engine;
    const { version, method } = this.#socks;
    switch (step.failure) {
      case "auth-refused":
      case "no-method":
        socks.auth(method, false);
        this.#count(STATUS.authentication_failure);
        break;
      case "command":
        this.#countReply(COMMAND_NOT_SUPPORTED);
        break;
      case "address-type":
        socks.address(null, false);
        this.#count(STATUS.address_read_failure);
        break;
      default:
        this.#count(version === 0 ? STATUS.unknown_version : STATUS.invalid_request);
    }
    this.why = ending(FAILURES[step.failure], 0, step.failure);
    if (step.length === 0) return "over";
    return this.#host.say(step.length) ? "refused" : "over";
  }

  // ---- who it is

  /** Its address is known: may it come at all? */
  #admit(): Outcome {
    const refusal = this.#enter(0, this.clientHash, this.#egress.settings.perClient);
    if (refusal !== null) return this.#over(refusal);
    this.#outside = !this.#egress.access.admits(this.#asker());
    // It would hear a refusal, whatever it asks for; while places are few it takes none for that.
    if (this.#outside) {
      return this.#engine.admission.crowded ? this.#over(ending("denied", 0, "allow_from")) : "waits";
    }
    const { inAll } = this.#egress.settings;
    return this.#engine.paces(inAll) ? "waits" : this.#over(ending("too-many", 0, "rate"));
  }

  #enter(which: 0 | 1, hash: number, quota: Egress["settings"]["perClient"]): Ending | null {
    const entry = this.#engine.enterQuota(this.#host.row, which, hash, quota);
    if (entry >= UNCOUNTED) return null;
    const limit = which === 0 ? "client" : "user";
    if (entry === TOO_MANY) return ending("too-many", 0, `max_per_${limit}`);
    return ending("too-many", 0, entry === TOO_FAST ? `rate_per_${limit}` : limit);
  }

  #verify(): Outcome | null {
    const { user, password } = this.#socks;
    this.#user = textOf(user);
    // Who may ask for nothing may not try passwords, either.
    if (!this.#egress.access.admits(this.#asker())) return this.#verified(false);
    if (this.#egress.remembers(this.#user, password)) return this.#verified(true);
    this.#phase = VERIFY;
    this.#verdict = null;
    this.#engine.askVerdict(this.#host.row, this.#host.id, this.clientHash, user, password);
    return "waits";
  }

  #verified(right: boolean): Outcome | null {
    const { scratch, output } = this.#engine;
    if (right) this.#egress.remember(this.#user, this.#socks.password);
    this.#phase = ASK;
    const step = this.#socks.verdict(right, output.bytes);
    if (step.do === "refuse") return this.#refused(step);
    if (step.do === "write" && !this.#host.say(step.length)) return this.#over(ending("client-left"));
    // What had come behind the login has waited.
    const end = this.#partial.length;
    scratch.bytes.set(this.#partial, 0);
    if (step.do === "request") return this.#requested(0, end);
    return end === 0 ? null : this.#play(end);
  }

  // ---- where to

  /** The request is whole; scratch[start, end) is the tunnel's. */
  #requested(start: number, end: number): Outcome {
    const socks = this.#socks;
    const { access, settings } = this.#egress;
    this.#engine.socks.auth(socks.method, true);
    this.#partial = NOTHING;
    if (start < end && !this.#host.keepForTunnel(this.#engine.scratch, start, end)) {
      return this.#deny(GENERAL_FAILURE, ending("resources", ENOBUFS));
    }
    this.#user = textOf(socks.user);
    this.port = socks.port;
    const target = this.#target();
    this.#engine.socks.address(socks.addressType, target.kind !== "bad");
    if (target.kind === "bad") {
      return this.#deny(HOST_UNREACHABLE, ending("name-not-found", 0, target.why));
    }
    if (this.#user !== "") {
      const hash = hashOf(USER_KIND, socks.user, 0, socks.user.length);
      const refusal = settings.login ? this.#enter(1, hash, settings.perUser) : null;
      if (refusal !== null) return this.#deny(NOT_ALLOWED, refusal);
    }
    if (target.kind === "address") {
      this.#tellTexts();
      this.#writeDestination(target.bytes);
      return this.#judge([target.bytes]);
    }
    this.name = target.name;
    this.#tellTexts();
    const verdict = access.judgeName(this.#asker(), this.name, this.port);
    if (verdict !== null && !verdict.allowed) return this.#forbid(verdict);
    this.#phase = RESOLVE;
    const { names, nowMs } = this.#engine;
    this.#answer = names.lookup(this.name, this.#host, nowMs, this.clientHash);
    return this.#answer === null ? "waits" : this.#resolved(this.#answer);
  }

  #target(): Target {
    const { addressType, address, addressLength, name } = this.#socks;
    if (addressType === "name") return targetOf(name, 0, name.length, this.#engine.toAscii);
    const bytes = address.slice(0, addressLength);
    return { kind: "address", bytes: bytes.length === 16 && isMapped(bytes, -8) ? bytes.slice(12) : bytes };
  }

  #resolved({ addresses, failure }: NameAnswer): Outcome {
    switch (failure) {
      case null:
        return this.#judge(addresses);
      case "not-found":
        return this.#deny(HOST_UNREACHABLE, ending("name-not-found"));
      case "timeout":
        return this.#deny(TIMED_OUT, ending("name-timeout"));
      case "failed":
      case "busy":
        return this.#deny(GENERAL_FAILURE, ending("name-failed"));
    }
  }

  /** Each address is judged by itself: a name must not lead where its address may not. */
  #judge(addresses: readonly Uint8Array[]): Outcome {
    const { access } = this.#egress;
    const asker = this.#asker();
    let verdict: Verdict | null = null;
    const allowed = addresses.filter((bytes) => {
      const length = bytes.length as 4 | 16;
      const judged = access.judge(asker, this.name, this.port, bytes, 0, length);
      if (!judged.allowed) verdict ??= judged;
      return judged.allowed;
    });
    // Whatever rules allow: nobody comes by us to our own listeners, of which one tells about connections.
    if (allowed.some((bytes) => this.#isOwn(bytes))) return this.#deny(NOT_ALLOWED, ending("own-address"));
    if (allowed.length === 0) {
      if (verdict === null) return this.#deny(HOST_UNREACHABLE, ending("name-not-found"));
      if (this.name !== "") this.#writeDestination(addresses[0]!);
      return this.#forbid(verdict);
    }
    this.candidates = allowed;
    this.#phase = READY;
    return "ready";
  }

  #isOwn(bytes: Uint8Array): boolean {
    const { scratch, own } = this.#engine;
    writeSockaddr(bytes, this.port, scratch.bytes, 0);
    return own.isListener(scratch.bytes, 0);
  }

  #forbid({ rule }: Verdict): Outcome {
    const slot = this.#egress.ruleSlot(rule);
    if (slot !== undefined) this.#engine.exits.denied(slot);
    return this.#deny(NOT_ALLOWED, ending("denied", 0, rule, "not-allowed"));
  }

  #deny(code: number, why: Ending): Outcome {
    this.why = why;
    this.#countReply(code);
    const report = this.reports ? { errno: errnoOf(why.cause), attempts: NONE } : null;
    return this.#say(code, null, 0, report) ? "refused" : "over";
  }

  #say(code: number, bound: Uint8Array | null, at: number, report: Report | null): boolean {
    const { output } = this.#engine;
    return this.#host.say(this.#socks.reply(code, bound, at, output.bytes, report));
  }

  #over(why: Ending): "over" {
    this.why = why;
    this.#count(STATUS.invalid_request);
    return "over";
  }

  #countReply(code: number): void {
    const { version } = this;
    if (version !== 0) this.#count(statusOfReply(version, code));
  }

  #count(which: number): void {
    this.#engine.socks.request(this.version, which);
  }

  /** For the log: where it wants to go, as long as it is not known by which address. */
  #writeDestination(bytes: Uint8Array): void {
    const { rows, table } = this.#engine;
    table.changing(this.#host.row);
    writeSockaddr(bytes, this.port, rows.bytes, this.#host.row + SOCKADDR_SIZE);
    table.changed(this.#host.row, FRONT);
  }

  /** For who looks at the tunnel. */
  #tellTexts(): void {
    const { table } = this.#engine;
    table.changing(this.#host.row);
    table.setTexts(this.#host.row, this.version || 1, this.name, this.#user);
    table.changed(this.#host.row, FRONT);
  }

  #client(): { at: number; length: 4 | 16 } {
    const { bytes } = this.#engine.rows;
    const { row } = this.#host;
    if (bytes[row] !== AF_INET6) return { at: row + 4, length: 4 };
    return isMapped(bytes, row) ? { at: row + 20, length: 4 } : { at: row + 8, length: 16 };
  }

  /** Of an IPv6 network of 64 bits, which one host can fill, all are one client. */
  get clientHash(): number {
    const { at, length } = this.#client();
    return hashOf(CLIENT_KIND, this.#engine.rows.bytes, at, Math.min(length, 8));
  }

  #asker(): Client {
    const { at, length } = this.#client();
    const user = this.#egress.settings.login ? this.#user : null;
    return { bytes: this.#engine.rows.bytes, at, length, user };
  }
}

/** Of `length` bytes of an address: 4 or 16. */
export function writeSockaddr(
  address: Uint8Array, port: number, into: Uint8Array, at: number, length = address.length,
): void {
  const start = at + (length === 4 ? 4 : 8);
  for (let i = at; i < at + SOCKADDR_SIZE; i++) into[i] = 0;
  into[at] = length === 4 ? AF_INET : AF_INET6;
  into[at + 2] = port >> 8;
  into[at + 3] = port & 255;
  for (let i = 0; i < length; i++) into[start + i] = address[i]!;
}

/** By errno, never by text. */
function replyOf(errno: number): number {
  switch (errno) {
    case ENETUNREACH: return NETWORK_UNREACHABLE;
    case EHOSTUNREACH: return HOST_UNREACHABLE;
    case ECONNREFUSED: return CONNECTION_REFUSED;
    case ETIMEDOUT: return TIMED_OUT;
    default: return GENERAL_FAILURE;
  }
}

const FAILURES = {
  "not-socks": "client-malformed",
  malformed: "client-malformed",
  "too-long": "client-malformed",
  "no-method": "client-auth",
  "auth-refused": "client-auth",
  command: "unsupported",
  "address-type": "unsupported",
} as const satisfies Record<ServerFailure, string>;

/** For keys and logs. Bytes that are no UTF-8 stay apart from each other as far as they can. */
function textOf(bytes: Uint8Array): string {
  let ascii = true;
  let text = "";
  for (const byte of bytes) {
    if (byte > 127) ascii = false;
    text += String.fromCharCode(byte);
  }
  return ascii ? text : new TextDecoder().decode(bytes);
}
