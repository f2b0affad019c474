/**
 * A world of SOCKS clients: who asks for which destination, and in what manner; the hosts, some of
 * which refuse or never answer; the names, and when main knows them; rules, users, quotas, and the
 * addresses that the egress leaves by.
 *
 * What each client should be told is known from the start: `permitted` says so for a world without
 * faults, and where there may be faults, by what else it may have been ended. "Granted" came from
 * the address that it told, and stood. Who was refused could read all of why, and then saw FIN.
 */
import assert from "node:assert/strict";
import {
  EADDRNOTAVAIL, ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, ETIMEDOUT,
} from "../../native-bindings/constants.ts";
import { EgressReader } from "../../src/engine/egress-counters.ts";
import type { EgressSettings } from "../../src/engine/egress.ts";
import type { Answer, Question, Shared } from "../../src/engine/engine.ts";
import type { Quota } from "../../src/engine/quota.ts";
import { DIRECT, type Settings } from "../../src/engine/route.ts";
import type { Role } from "../../src/engine/session.ts";
import { SocksTotals, STATUS_NAMES } from "../../src/engine/socks-counters.ts";
import { exactly } from "../../src/policy/network.ts";
import { Exits } from "./exits.ts";
import { type KnownName, type KnownUser, Oracle } from "./oracle.ts";
import { Application, drawConversation, type Script } from "./peers.ts";
import type { Random } from "./random.ts";
import { SocksClient } from "./socks-client.ts";
import { drawHeader, drawSaid, drawTalk, type Outcome, type Talk } from "./talk.ts";
import { type Address, nameOf, type Route, Tcp } from "./tcp.ts";
import {
  describeEnd, type Ended, type Fate, ipv6, LATE_MS, PATIENCE, sockaddr, World,
} from "./world.ts";

/** Somewhere to go. */
interface Host {
  readonly bytes: Uint8Array;
  readonly fate: Fate;
  /** The rule that forbids it, or null. */
  readonly rule: string | null;
}

interface Name extends KnownName {
  readonly hosts: readonly Host[];
  /** As clients write it. */
  readonly written: string;
}

interface Caller {
  readonly bytes: Uint8Array;
  /** allow_from has it. */
  readonly admitted: boolean;
}

interface Call {
  /** Where the connection comes from: the caller itself, or a balancer. */
  readonly local: Address;
  /** By the PROXY header, if there is a right one. */
  readonly announced: Address;
  readonly talk: Talk;
  readonly port: number;
  readonly user: string;
  readonly candidates: readonly Host[];
  /** Asked by a name: how long that takes. */
  readonly nameUs: number;
  readonly permitted: readonly Outcome[];
  readonly outside: boolean;
  readonly clientScript: Script;
  readonly serverScript: Script;
  readonly stream: number;
  client: SocksClient | null;
  application: Application | null;
  readonly servers: Application[];
  record: Ended | null;
}

const NEGOTIATION_MS = 10_000;
/** Of those whom allow_from does not have, and for whom no balancer speaks. */
const OUTSIDE_MS = 2000;
const DNS_MS = 5000;
/** On top of it, for the way to main and back. */
const ANSWER_MS = 1000;
/** Who was refused is waited for so long. */
const REFUSED_MS = 2000;
const RACE_MS = 250;
/** Tried at the same time. */
const RACE_WIDTH = 4;

const DENIED_PORT = 25;
const ENDED_BY_FAULT: readonly Outcome[] = [
  { said: "nothing", reason: "resources" }, { said: "nothing", reason: "client-left" },
  { said: "nothing", reason: "drain" }, { said: "reply 1", reason: "resources" },
];
/** If one of the addresses came to nothing against expectation, it is up to the others. */
const DIAL_FAILED: readonly Outcome[] = [
  { said: "reply 1", reason: "dest-failed" }, { said: "reply 3", reason: "dest-failed" },
  { said: "reply 4", reason: "dest-failed" }, { said: "reply 5", reason: "dest-failed" },
  { said: "reply 6", reason: "dest-timeout" },
];

const USERS: ReadonlyMap<string, KnownUser> = new Map([
  ["alice", { password: "secret", delayUs: 1000 }],
  ["jörg", { password: "p".repeat(255), delayUs: 200_000 }],
  ["four", { password: "", delayUs: 1000 }],
  ["mallory", { password: "m", delayUs: 1000 }],
  ["slow", { password: "s", delayUs: 15e6 }],
]);

export class SocksWorld extends World {
  readonly role: Role = "socks";
  readonly settings: Settings;
  readonly #egress: EgressSettings;
  readonly #oracle: Oracle;
  readonly #calls: Call[] = [];
  readonly #hosts: readonly Host[];
  readonly #names = new Map<string, Name>();
  readonly #callers: readonly Caller[];
  readonly #exits: Exits;
  /** More outcomes than what each call deserves. */
  readonly #mayFail: boolean;
  #started = 0;
  #knockedInVain = false;
  /** Where the SYN of a call was let wait. */
  readonly #delayed = new Set<string>();

  constructor(seed: number) {
    const exits = new Exits();
    super(seed, { portless: exits.portless, absent: (bytes) => exits.isAbsent(bytes) });
    const { random, calm } = this;
    this.#exits = exits;
    exits.draw(random);
    this.#mayFail = !calm || this.scarce;
    this.#hosts = this.#drawHosts();
    this.#drawNames();
    this.#oracle = new Oracle(this.kernel.network, this.#names, USERS);
    const wide = this.listener.bytes.length === 16;
    this.#callers = Array.from({ length: random.between(1, 4) }, (_, i) => {
      const admitted = random.chance(0.9);
      const bytes = wide && random.chance(0.5)
        ? Uint8Array.of(0x20, 1, 0xd, 0xb8, admitted ? 1 : 2, i, 0, 0, ...new Uint8Array(7), 1)
        : Uint8Array.of(10, admitted ? 1 : 2, 0, i + 1);
      return { bytes, admitted };
    });
    this.#egress = {
      access: {
        allowFrom: [
          { bytes: Uint8Array.of(10, 1, 0, 0), prefix: 16 },
          { bytes: Uint8Array.of(0x20, 1, 0xd, 0xb8, 1, ...new Uint8Array(11)), prefix: 40 },
        ],
        allowSites: [], denySites: [".denied.example"], allowPorts: [],
        denyPorts: [{ first: DENIED_PORT, last: DENIED_PORT }], allowNetworks: [],
        denyNetworks: [{ bytes: Uint8Array.of(203, 0, 113, 128), prefix: 25 }],
        allowPrivate: false,
        rules: [{
          name: "not-mallory", action: "deny", from: [], users: ["mallory"], sites: [],
          networks: [], ports: [],
        }],
      },
      login: random.chance(0.5),
      proxyProtocolFrom: [{ bytes: Uint8Array.of(10, 1, 9, 0), prefix: 24 }],
      perClient: drawQuota(random),
      perUser: drawQuota(random),
      inAll: { most: null, perSecond: drawQuota(random).perSecond },
      outgoing: {
        mark: random.pick([null, 7]), iface: random.pick([null, "tun0"]),
        addresses: exits.addresses, affinity: random.pick(["client", "client-destination", "none"]),
      },
      ruleSlots: [{ rule: "deny_ports", slot: 0 }],
      negotiationMs: NEGOTIATION_MS,
      dnsMs: DNS_MS,
    };
    this.settings = {
      transparent: false,
      egress: this.#egress,
      mode: "redirect",
      upstream: DIRECT,
      truthful: null,
      unknownAs: "host-unreachable",
      relays: [],
      mark: null,
      whenFull: calm ? "wait" : random.pick(["wait", "reset"]),
      ...PATIENCE,
      own: { listening: [sockaddr(this.listener)], local: [exactly(this.listener.bytes)] },
      learnt: null,
      journalAll: true,
    };
    for (let i = 0; i < this.crowd; i++) this.#addCall(i);
    const everywhere = new Tcp(this.kernel.network);
    everywhere.local = { bytes: Uint8Array.of(203, 0, 113, 250), port: 1 };
    everywhere.onWake = () => this.#accept(everywhere);
    everywhere.listen(1000);
    this.kernel.network.route = (to) => this.#route(to, everywhere);
  }

  get over(): boolean {
    const { pending } = this.#oracle;
    return this.#started === this.#calls.length && pending === 0 && this.#calls.every(isOver);
  }

  unfinished(): string {
    return this.#calls.filter((call) => !isOver(call)).map(describe).join("\n");
  }

  describe(application: Application): string {
    const isOf = (call: Call) => call.application === application || call.servers.includes(application);
    return this.#calls.filter(isOf).map(describe).join("\n");
  }

  override describeSettings(): string {
    const { login, perClient, perUser, inAll, outgoing } = this.#egress;
    return `${JSON.stringify({ login, perClient, perUser, inAll, outgoing })}\n${super.describeSettings()}`;
  }

  /** The same again, with the addresses in another order: no client should see a difference. */
  reconfigured(): Settings {
    const { outgoing } = this.#egress;
    const addresses = outgoing.addresses.toReversed();
    return { ...this.settings, egress: { ...this.#egress, outgoing: { ...outgoing, addresses } } };
  }

  override ask(question: Question, answer: (answer: Answer) => void): void {
    this.#oracle.ask(question, answer);
  }

  ended(record: Ended): void {
    const name = nameOf(record.client);
    const call = this.#calls.find(({ local, announced }) =>
      nameOf(local) === name || nameOf(announced) === name);
    assert(call !== undefined, `a record of ${name}, whom nobody knows`);
    assert.equal(call.record, null, "a tunnel ended twice");
    call.record = record;
  }

  override judge(): void {
    super.judge();
    for (const call of this.#calls) {
      try {
        this.#judge(call);
      } catch (error) {
        throw new Error(`${(error as Error).message}\n${describe(call)}`, { cause: error });
      }
    }
    this.#judgeQuota(this.#egress.perClient, "client", ({ record }) => quotaName(record!.client.bytes));
    this.#judgeQuota(this.#egress.perUser, "user", ({ record }) => record!.user);
    // Behind a balancer a client is counted when the header has come; those outside never are.
    judgeRate(
      this.#calls.flatMap(({ record, local, outside }) =>
        record !== null && !isBalancer(local.bytes) && !outside ? [record] : []),
      this.#egress.inAll.perSecond,
    );
    this.#judgeAffinity();
  }

  override judgeCounted({ quotas, socks, exits }: Shared): void {
    const held = new Int32Array(quotas).filter((_, i) => i % 4 === 1).some((active) => active !== 0);
    assert(!held, "a place in a quota is held");
    const totals = new SocksTotals(socks);
    assert.equal(totals.inflight, 0, "tunnels are counted that are over");
    let requests = 0;
    for (const version of [0, 4, 5] as const) {
      for (const status of STATUS_NAMES.keys()) requests += totals.requests(version, status);
    }
    const records = this.#calls.filter(({ record }) => record !== null).length;
    assert(requests <= records, "a connection was counted twice");
    const reader = new EgressReader(exits);
    reader.addressSlots(this.#exits.addresses.map((_, slot) => `${slot}`));
    const silent = this.#hosts.some(({ fate }) => fate !== "works" && fate !== "refusal") ||
      this.#calls.some(({ servers }) => servers.some(({ tcp }) => tcp.hasReset));
    const granted = this.#calls.filter(({ client }) => client !== null && client.granted !== null).length;
    let answers = 0;
    for (const { address, active, opened, answered, failed, spilled } of reader.addresses()) {
      answers += answered;
      const index = Number(address);
      assert.equal(active, 0, "a connection is counted that is over");
      assert(failed === 0 || silent, "a failure is put on an address, though every host answers");
      assert(answered + failed <= opened, "a dial has come to two things");
      if (this.#exits.hasNoPorts(index)) assert.equal(opened, 0);
      else if (!this.#mayFail) assert.equal(spilled, 0, "an address with ports was spilled over");
    }
    if (this.#exits.addresses.length > 0) assert(answers >= granted, "an answer was not counted");
  }

  // The verdict on one call.

  #judge(call: Call): void {
    const { client, record, application, talk, permitted } = call;
    assert(client !== null);
    const said = client.granted !== null ? "granted"
      : client.refusal !== null ? `${client.refusal.answer} ${client.refusal.code}` : "nothing";
    if (record === null) {
      assert(client.left || client.tcp.wasReset, "neither a record nor a reset");
      assert(this.#mayFail || client.left || this.#knockedInVain, "no word of a connection");
      assert.equal(said, "nothing");
      for (const server of call.servers) assert.fail(`a server without a record: ${describeEnd("", server)}`);
      return;
    }
    this.#judgeTimes(call, client, record);
    this.#judgeRecord(call, record);
    const relayed = client.granted !== null;
    const loose = client.left || talk.fault !== null;
    if (!relayed && !loose) {
      // A server that resets at once may do so before anyone has seen the connection stand.
      const quit = call.servers.some(({ tcp }) => tcp.hasReset);
      const others = [
        ...(this.#mayFail ? ENDED_BY_FAULT : []), ...(this.#mayFail || quit ? DIAL_FAILED : []),
      ];
      const fits = [...permitted, ...others].some((outcome) =>
        (outcome.reason === record.reason || (outcome.said === "granted" && said === "granted") ||
          (record.reason === "drain" && this.cutMs !== Infinity)) &&
        // Without a buffer an answer that the socket does not take at once is lost.
        (wordsOf(talk.version, outcome.said) === said || (this.scarce && said === "nothing")));
      assert(fits, `it was told "${said}" (${record.reason}), not ${JSON.stringify(permitted)}`);
    } else if (relayed) {
      assert(permitted.some((outcome) => outcome.said === "granted"), "it should not have been granted");
    }
    for (const server of call.servers) {
      if (isBound(server, record.source)) continue;
      // It lost a race, or nobody wanted it any more.
      assert.equal(server.received, 0, "bytes came to one who was not chosen");
      assert(!server.sawEnd, "one who was not chosen saw an end, not a reset");
      assert(server.left || server.over || server.deaf, "one who was not chosen was left alone");
    }
    if (relayed) return this.#judgeGranted(call, client, record);
    assert.equal(application, null);
    if (said === "nothing") {
      assert(client.left || client.tcp.wasReset, "it was told nothing, and not reset");
      assert(client.pending === 0 || this.#mayFail || this.cutMs !== Infinity || loose, "half an answer");
      return;
    }
    if (client.left || this.cutMs !== Infinity) return;
    assert(client.sawEnd, "a reset came behind the refusal, or in front of its end");
  }

  #judgeGranted(call: Call, client: SocksClient, record: Ended): void {
    const { application } = call;
    const bound = client.granted!;
    const server = call.servers.find((each) => isBound(each, bound));
    const cutShort = record.reason === "drain";
    if (server === undefined) {
      // The engine's last ACK may still have been on its way when it was reset.
      const left = client.tcp.hasReset || application?.left === true;
      assert(this.#mayFail || left, "granted, and nobody is there");
      const known = call.candidates.some((host) =>
        isThere(host) && nameOf({ bytes: host.bytes, port: call.port }) === nameOf(record.destination));
      assert(known, "granted, though nobody would have answered");
      return;
    }
    assert.equal(nameOf(server.tcp.remote!), nameOf(record.source), "another source than the one told");
    if (client.talk.version === 5) assert.equal(nameOf(server.tcp.remote!), nameOf(bound));
    assert.equal(nameOf(record.destination), nameOf(server.tcp.local!), "a wrong destination in the record");
    assert.equal(record.user, call.user, "a wrong user in the record");
    const [, latencyUs] = this.kernel.options.latencyUs;
    assert(server.beganUs <= client.heardUs + latencyUs + 1000, "granted before the connection stood");
    this.judgeRelay({ client: application!, server, record }, cutShort);
  }

  /** What is said by reply and by record are the same. */
  #judgeRecord({ client, talk, user, port, servers }: Call, record: Ended): void {
    const { reason, detail, version, user: told } = record;
    const { refusal } = client!;
    const { destination, source } = record;
    assert(destination.port === 0 || destination.port === port, "another's destination in the record");
    if (client!.granted === null && !client!.left && talk.fault === null && talk.deafUs === 0) {
      assert(source.port === 0 || servers.some((server) => isBound(server, source)), "another's source");
    }
    if (refusal?.answer !== "reply") return;
    assert.equal(version, talk.version);
    assert(told === user || told === "", "a wrong user in the record");
    if (talk.version === 4) return;
    const codes = CODES[reason] ?? [];
    const code = reason === "dest-failed" ? [replyOf(detail)] : codes;
    assert(code.includes(refusal.code), `reply ${refusal.code}, and the record says ${reason} ${detail}`);
  }

  #judgeTimes(call: Call, client: SocksClient, { reason, beganMs, endedMs }: Ended): void {
    const took = endedMs - beganMs;
    if (reason === "client-timeout") {
      const timeMs = call.outside ? OUTSIDE_MS : NEGOTIATION_MS;
      assert(took < timeMs + LATE_MS, `silent for ${took} ms`);
      assert(took > timeMs - LATE_MS, `it was not given its time, but ${took} ms`);
    }
    const { heardUs, requestedUs, talk } = client;
    if (talk.deafUs === 0 && (client.refusal?.answer === "reply" || client.granted !== null)) {
      const askedMs = Math.max(beganMs, requestedUs / 1000);
      const verifyMs = this.#egress.login ? NEGOTIATION_MS : 0;
      const tookMs = heardUs / 1000 - askedMs;
      const dialMs = PATIENCE.dialMs;
      const named = call.nameUs > 0 ? DNS_MS + ANSWER_MS : 0;
      const dials = reason === "name-timeout" ? 0 : dialMs;
      assert(tookMs < verifyMs + named + dials + LATE_MS, `an answer (${reason}) came after ${tookMs} ms`);
      const quick = call.candidates.every(({ fate }) => fate !== "nowhere" && fate !== "unreachable");
      const few = call.candidates.length <= RACE_WIDTH;
      if (!this.#mayFail && few && (client.granted !== null || (quick && reason === "dest-failed"))) {
        const [, latencyUs] = this.kernel.options.latencyUs;
        const raceMs = (call.candidates.length - 1) * RACE_MS;
        const lateMs = call.candidates.some(({ fate }) => fate !== "works") ? 1000 : 0;
        const most = verifyMs + named + lateMs + raceMs + (10 * latencyUs) / 1000 + LATE_MS;
        assert(tookMs < most, `an answer after ${tookMs} ms, by a race of ${raceMs}`);
      }
    }
    if (client.refusal !== null && talk.deafUs === 0 && !client.left && this.cutMs === Infinity) {
      const heardMs = heardUs / 1000;
      assert(client.endUs / 1000 < heardMs + LATE_MS, "FIN did not follow the refusal");
      assert(endedMs < heardMs + REFUSED_MS + LATE_MS, `held for ${endedMs - heardMs} ms after its refusal`);
    }
    // Gone without a word behind the request: then nothing is worth going on for.
    const relay = client.tcp.peer;
    if (relay === null || talk.early > 0 || client.granted !== null) return;
    // What stands behind a login that is being verified may yet be a request and more.
    const heard = talk.pipelined && this.#egress.login ? Infinity : relay.endAtUs;
    const goneMs = Math.min(relay.wasReset ? relay.resetAtUs : Infinity, heard) / 1000;
    if (goneMs === Infinity) return;
    const since = endedMs - Math.max(beganMs, goneMs);
    const still = client.granted === null && reason !== "finished";
    assert(!still || since < LATE_MS, `it went on for ${since} ms after the client had gone`);
  }

  /** Nobody had more than his share, and who was refused for it had all of it. */
  #judgeQuota({ most, perSecond }: Quota, whose: string, nameOfCall: (call: Call) => string): void {
    const groups = new Map<string, Call[]>();
    for (const call of this.#calls) {
      const { record } = call;
      if (record === null || (whose === "client" && isBalancer(record.client.bytes))) continue;
      const name = nameOfCall(call);
      if (whose === "user" && (!this.#egress.login || name === "")) continue;
      groups.set(name, [...(groups.get(name) ?? []), call]);
    }
    for (const calls of groups.values()) {
      const isRefusal = ({ reason, text }: Ended) => reason === "too-many" && text.endsWith(`_${whose}`);
      const records = calls.map(({ record }) => record!);
      const counted = records.filter((record) => !isRefusal(record));
      // Behind a balancer a client is counted when the header has come.
      const direct = calls.filter(({ local, announced }) => local === announced).map(({ record }) => record!);
      if (whose === "client") judgeRate(direct, perSecond);
      for (const record of records) {
        const { beganMs, endedMs, text } = record;
        const meets = (other: Ended, slackMs: number) =>
          other !== record && other.beganMs < endedMs + slackMs && other.endedMs > beganMs - slackMs;
        if (isRefusal(record)) {
          const others = counted.filter((other) => meets(other, LATE_MS)).length;
          if (text.startsWith("max")) assert(others >= most!, `refused by ${text} beside ${others}`);
          else assert(perSecond !== null && records.length > perSecond, `refused by ${text}`);
        } else if (most !== null && whose === "user") {
          const call = calls.find((each) => each.record === record)!;
          if (call.client!.granted === null) continue;
          const fromMs = Math.max(beganMs, Math.min(call.client!.requestedUs / 1000, Infinity)) - LATE_MS;
          const others = calls.filter(({ client, record: other }) =>
            client!.granted !== null && client!.heardUs / 1000 < fromMs &&
            other!.endedMs > call.client!.heardUs / 1000 + LATE_MS).length;
          assert(others < most, `${others + 1} of one user at a time`);
        } else if (most !== null && direct.includes(record)) {
          const others = direct.filter((other) =>
            counted.includes(other) && meets(other, 0) &&
            other.beganMs < beganMs - LATE_MS && other.endedMs > beganMs + LATE_MS).length;
          assert(others < most, `${others + 1} at a time`);
        }
      }
    }
  }

  /** One client, one address (in each family): else FTP and the like come to grief. */
  #judgeAffinity(): void {
    const { addresses, affinity } = this.#egress.outgoing;
    const steady = affinity === "client" && !this.#mayFail && this.configureMs === Infinity;
    const by = new Map<string, string>();
    for (const { record, servers } of this.#calls) {
      for (const { tcp } of servers) {
        const source = tcp.remote!.bytes;
        if (addresses.some(({ address }) => address.bytes.length === source.length)) {
          assert(this.#exits.mayLeaveBy(source), `it left by ${source.join(".")}`);
        }
        if (!steady || record === null || isBalancer(record.client.bytes)) continue;
        const key = `${record.client.bytes.join(".")} ${source.length}`;
        assert.equal(source.join("."), by.get(key) ?? source.join("."), `${key} left by two addresses`);
        by.set(key, source.join("."));
      }
    }
  }

  // Making it.

  #drawHosts(): Host[] {
    const { random } = this;
    // In some worlds hardly anyone is there.
    const bleak = random.chance(0.3);
    const hosts = Array.from({ length: random.between(3, 16) }, (_, i): Host => {
      const fate: Fate = random.chance(bleak ? 0.2 : 0.7)
        ? random.pick(["works", "tardy"])
        : bleak && random.chance(0.7) ? "nowhere" : random.pick(["refusal", "nowhere", "unreachable"]);
      if (random.chance(0.85)) {
        const bytes = random.chance(0.5) ? Uint8Array.of(198, 51, 100, i) : ipv6(0x1000 + i);
        return { bytes, fate, rule: null };
      }
      return random.pick([
        { bytes: Uint8Array.of(203, 0, 113, 200 + i), fate, rule: "deny_networks" },
        { bytes: Uint8Array.of(192, 168, 0, i), fate, rule: "private" },
        { bytes: Uint8Array.of(127, 0, 0, i), fate, rule: "loopback" },
        { bytes: this.listener.bytes, fate, rule: "own-address" },
      ]);
    });
    return hosts;
  }

  #drawNames(): void {
    const { random } = this;
    for (let i = 0; i < 6; i++) {
      const count = random.chance(0.3) ? random.between(5, 16) : random.between(1, 4);
      // Or all of a kind.
      const alike = random.chance(0.2) ? random.pick(this.#hosts).fate : null;
      const choice = this.#hosts.filter(({ fate }) => alike === null || fate === alike);
      const hosts = [...new Set(Array.from({ length: count }, () => random.pick(choice)))];
      // Whoever answers may stand behind more silent ones than are tried at a time.
      const silence = ({ fate }: Host) => Number(fate === "nowhere");
      if (random.chance(0.3)) hosts.sort((a, b) => silence(b) - silence(a));
      const failure = random.chance(0.8)
        ? null : random.pick(["not-found", "failed", "timeout", null] as const);
      const denied = random.chance(0.1);
      const name = denied ? `h${i}.denied.example` : `h${i}.example`;
      const found = failure === null && random.chance(0.95) ? hosts : [];
      this.#names.set(name, {
        hosts: found,
        answer: {
          addresses: found.map(({ bytes }) => bytes),
          ttlMs: random.pick([0, 50, 2000, 100_000]), failure,
        },
        // Shortly before anyone's patience is at an end, or long after.
        delayUs: random.pick([10, 1000, 300_000, 4_500_000, 30e6]),
        denied,
        written: random.pick([name, name.toUpperCase(), `${name}.`]),
      });
    }
  }

  #addCall(index: number): void {
    const { random } = this;
    const { login, perClient, perUser, inAll } = this.#egress;
    const caller = random.pick(this.#callers);
    const port = random.chance(0.05) ? DENIED_PORT : 1000 + index;
    const version = random.chance(0.7) ? 5 : 4;
    const [clientScript, serverScript] = drawConversation(random, this.bulk);
    const balanced = random.chance(0.15);
    const local = { bytes: balanced ? BALANCER : caller.bytes, port: 20_000 + index };
    const header = balanced
      ? drawHeader(random, { bytes: caller.bytes, port: 30_000 + index }, local) : null;
    const admitted = isBalancer((header?.announced ?? local).bytes) || caller.admitted;
    const name = random.chance(0.5) ? random.pick([...this.#names.keys()]) : null;
    const hosts = name === null ? [this.#pickLiteral(version)] : this.#names.get(name)!.hosts;
    const target = name === null ? this.#write(hosts[0]!.bytes) : this.#names.get(name)!.written;
    const said = drawSaid(random, { version, target, port, login, admitted, users: USERS });
    const mistake = header !== null && header.announced === null
      ? { said: "nothing", reason: "client-malformed" } : said.mistake;
    const permitted = mistake === null
      ? this.#expect(admitted, login ? said.user : "", port, name, hosts) : [mistake];
    const outside = !balanced && !caller.admitted;
    if (outside) permitted.push({ said: "nothing", reason: "client-timeout" });
    // While places are few.
    if (!admitted) permitted.push({ said: "nothing", reason: "denied" });
    if (isLimited(perClient) || (admitted && isLimited(inAll))) permitted.push({ said: "nothing", reason: "too-many" });
    if (login && isLimited(perUser)) permitted.push({ said: "reply 2", reason: "too-many" });
    const call: Call = {
      local,
      announced: header?.announced ?? local,
      talk: drawTalk(random, version, header?.bytes ?? new Uint8Array(0), said, clientScript),
      port, permitted, outside,
      user: said.user,
      candidates: hosts.filter(({ rule }) => rule === null),
      nameUs: name === null ? 0 : this.#names.get(name)!.delayUs,
      clientScript, serverScript,
      stream: random.between(1, 1 << 30),
      client: null, application: null, servers: [], record: null,
    };
    this.#calls.push(call);
    this.kernel.network.after(random.size(1, random.pick([1000, 3e6])), () => this.#start(call));
  }

  #pickLiteral(version: 4 | 5): Host {
    const fit = this.#hosts.filter(({ bytes }) => version === 5 || bytes.length === 4);
    return this.random.pick(fit.length > 0 ? fit : [LOOPBACK]);
  }

  /** A literal, or a name that is one. */
  #write(bytes: Uint8Array): Uint8Array | string {
    if (bytes.length === 16 || this.random.chance(0.8)) return bytes;
    const number = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0);
    return this.random.pick([bytes.join("."), `${number}`, `0x${number.toString(16)}`]);
  }

  /** What a right request comes to. */
  #expect(
    admitted: boolean, user: string, port: number, name: string | null, hosts: readonly Host[],
  ): Outcome[] {
    const known = name === null ? null : this.#names.get(name)!;
    const forbidden = { said: "reply 2", reason: "denied" };
    if (user === "mallory" || !admitted || port === DENIED_PORT || known?.denied) return [forbidden];
    const late = { said: "reply 6", reason: "name-timeout" };
    // Someone may have asked before.
    const isLate = known !== null && known.delayUs > 1000 * (DNS_MS + ANSWER_MS);
    const outcomes: Outcome[] = isLate ? [late] : [];
    switch (known?.answer.failure ?? null) {
      case "not-found": return [...outcomes, { said: "reply 4", reason: "name-not-found" }];
      case "failed": return [...outcomes, { said: "reply 1", reason: "name-failed" }];
      case "timeout": return [late];
      case null:
    }
    if (hosts.length === 0) return [...outcomes, { said: "reply 4", reason: "name-not-found" }];
    const allowed = hosts.filter(({ rule }) => rule === null);
    if (allowed.length === 0) return [...outcomes, forbidden];
    return [...outcomes, ...this.#expectDial(allowed)];
  }

  #expectDial(hosts: readonly Host[]): Outcome[] {
    const errnos = hosts.map(({ bytes, fate }) => {
      const state = this.#exits.state(bytes.length);
      return state === "good" ? ERRNOS[fate] : state === "none" ? ENETUNREACH : EADDRNOTAVAIL;
    });
    if (errnos.includes(0)) return [{ said: "granted", reason: "" }];
    const worst = TELLING.findLast((errno) => errnos.includes(errno))!;
    if (worst === ETIMEDOUT) return [{ said: "reply 6", reason: "dest-timeout" }];
    if (worst === EADDRNOTAVAIL) return [{ said: "reply 1", reason: "resources" }];
    const outcome = { said: `reply ${replyOf(worst)}`, reason: "dest-failed" };
    // "Unreachable" takes its time, which many do not give each other.
    return worst === EHOSTUNREACH && hosts.length > RACE_WIDTH
      ? [outcome, { said: "reply 6", reason: "dest-timeout" }] : [outcome];
  }

  #start(call: Call): void {
    this.#started++;
    const { network } = this.kernel;
    const tcp = new Tcp(network);
    const { local, talk, clientScript, stream } = call;
    tcp.local = local;
    tcp.connect(this.listener);
    call.client = new SocksClient(network, tcp, talk, stream, (_, sent) => {
      const nothing = new Uint8Array(0);
      call.application = new Application(network, tcp, clientScript, stream, stream + 1, nothing, sent);
    });
  }

  #route(to: Address, everywhere: Tcp): Route {
    if (nameOf(to) === nameOf(this.listener)) {
      this.#knockedInVain = true; // It is not there yet, or gone.
      return { to: "refusal" };
    }
    const call = this.#calls.find(({ port }) => port === to.port);
    const host = call?.candidates.find(({ bytes }) => bytes.join() === to.bytes.join());
    const may = call?.permitted.some(({ reason }) => reason === "" || reason.startsWith("dest-"));
    const wanted = host !== undefined && may === true;
    if (!wanted) throw new Error(`a connection to ${nameOf(to)}, which nobody may want`);
    const { fate } = host;
    const { random } = this.kernel;
    // About when the next one begins to race, or any time.
    const lateUs = random.pick([1000 * RACE_MS + random.between(-5000, 30_000), random.size(1000, 1e6)]);
    if (fate === "refusal") return { to: fate, afterUs: random.pick([0, 0, lateUs]) };
    if (fate === "tardy" && !this.#delayed.has(nameOf(to))) {
      this.#delayed.add(nameOf(to));
      return { to: "delay", afterUs: lateUs };
    }
    return fate === "works" || fate === "tardy" ? { to: "listener", listener: everywhere } : { to: fate };
  }

  #accept(listener: Tcp): void {
    for (let tcp = listener.accept(); tcp !== null; tcp = listener.accept()) {
      const { port } = tcp.local!;
      const call = this.#calls.find((each) => each.port === port)!;
      const { serverScript, stream, servers } = call;
      servers.push(new Application(this.kernel.network, tcp, serverScript, stream + 1, stream));
    }
  }
}

/** By how much an errno says of the destination. */
const TELLING: readonly number[] = [EADDRNOTAVAIL, ENETUNREACH, ETIMEDOUT, EHOSTUNREACH, ECONNREFUSED];
const ERRNOS: Record<Fate, number> = {
  works: 0, tardy: 0, refusal: ECONNREFUSED, nowhere: ETIMEDOUT, unreachable: EHOSTUNREACH,
};

/** Whom SOCKS4 may ask for if there is nobody else. */
const LOOPBACK: Host = { bytes: Uint8Array.of(127, 9, 9, 9), fate: "works", rule: "loopback" };

/** Someone answers there, at last. */
const isThere = ({ fate }: Host): boolean => fate === "works" || fate === "tardy";

/** Which replies go with which reason; that of "dest-failed" goes with its errno. */
const CODES: Record<string, readonly number[]> = {
  "client-malformed": [1], unsupported: [7, 8], denied: [2], "too-many": [2], "name-not-found": [4],
  "name-failed": [1], "name-timeout": [6], "dest-timeout": [6], resources: [1],
  // It was told, and then left, or was cut off.
  "client-reset": [1, 2, 3, 4, 5, 6, 7, 8], drain: [1, 2, 3, 4, 5, 6, 7, 8],
};

function replyOf(errno: number): number {
  switch (errno) {
    case ENETUNREACH: return 3;
    case EHOSTUNREACH: return 4;
    case ECONNREFUSED: return 5;
    case ETIMEDOUT: return 6;
    default: return 1;
  }
}

function drawQuota(random: Random): Quota {
  return {
    most: random.chance(0.3) ? random.between(1, 5) : null,
    perSecond: random.chance(0.15) ? random.pick([1, 5, 0.05]) : null,
  };
}

const isLimited = ({ most, perSecond }: Quota): boolean => most !== null || perSecond !== null;

const BALANCER = Uint8Array.of(10, 1, 9, 1);
const isBalancer = (bytes: Uint8Array): boolean => bytes.length === 4 && bytes[0] === 10 && bytes[2] === 9;

/** In less than one window there began no more than two of them allow. */
function judgeRate(records: readonly Ended[], perSecond: number | null): void {
  if (perSecond === null) return;
  const [most, windowMs] = perSecond < 1 ? [Math.ceil(perSecond * 60), 59_000] : [perSecond, 800];
  const began = records.filter(({ reason }) => reason !== "too-many").map(({ beganMs }) => beganMs);
  for (const from of began) {
    const together = began.filter((ms) => ms >= from && ms < from + windowMs).length;
    assert(together <= 2 * most, `${together} in ${windowMs} ms`);
  }
}

/** All of an IPv6 network of 64 bits is one client. */
const quotaName = (bytes: Uint8Array): string => bytes.subarray(0, 8).join(".");

/** The server's end of the connection that we made from there. */
function isBound(server: Application, { bytes, port }: Address): boolean {
  const remote = server.tcp.remote!;
  // SOCKS4 has no room for an address of IPv6.
  const same = bytes.join() === remote.bytes.join() || bytes.every((byte) => byte === 0);
  return remote.port === port && same;
}

const isOver = ({ client, application, servers }: Call): boolean =>
  client !== null && (application === null ? client.over : application.over || application.deaf) &&
  servers.every((server) => server.over || server.deaf);

function describe(call: Call): string {
  const { client, talk, application, servers, permitted, candidates, record, port } = call;
  const { messages, header, ...manner } = talk;
  const hosts = candidates.map(({ bytes, fate }) => `${bytes.join(".")} ${fate}`).join(", ");
  const heard = client === null ? "not there yet" : JSON.stringify({
    granted: client.granted === null ? null : nameOf(client.granted), refusal: client.refusal,
    pending: client.pending, sawEnd: client.sawEnd, left: client.left, over: client.over,
    early: client.early, heardUs: client.heardUs, requestedUs: client.requestedUs,
    state: client.tcp.state, resetIn: client.tcp.wasReset, resetOut: client.tcp.hasReset,
  });
  return [
    `call from ${nameOf(call.local)} (${nameOf(call.announced)}) to port ${port} of ${hosts}`,
    `  permitted: ${JSON.stringify(permitted)}`,
    `  record: ${JSON.stringify(record)}`,
    `  says ${[header, ...messages].map((each) => Buffer.from(each).toString("hex")).join(" ")}`,
    `  ${JSON.stringify(manner)}`,
    `  client: ${heard}`,
    describeEnd("application", application),
    ...servers.map((server) => describeEnd("server", server)),
  ].join("\n");
}

/** As a client of that version hears it. */
const wordsOf = (version: 4 | 5, said: string): string =>
  version === 4 && said.startsWith("reply") ? `reply ${0x5b}` : said;
