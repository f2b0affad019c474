/**
 * What is measured. A measure runs one load through one subject and answers with numbers; it knows
 * nothing of repetitions, order or ratios. The relay's CPU clock is read while the load stands
 * still, so a window holds the work and nothing else.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import {
  adminPortOf, BIN, cpuBetween, isTruthful, listening, logOf, queuesOf, readCpu, readMachine, readUsage, readWorkerCpu, roleOf, startSubject, stop, TARGET_PORT,
  type Role, type Subject, type SubjectName, type SubjectOptions,
} from "./subjects.ts";
import { middleMean } from "./middle.ts";
import { Floor, type Seen, Watchers } from "./watchers.ts";

export type Numbers = Readonly<Record<string, number>>;

export interface Scale {
  readonly seconds: number;
  /** Tunnels that stand idle, fewer first. */
  readonly idle: readonly [number, number];
  readonly ttfbSamples: number;
  readonly heapMessages: number;
  /** Connections that are to fail, of each kind. */
  readonly failures: number;
  /** Of each kind, watched and not, in one repetition. */
  readonly watchedRounds: number;
}

export const FULL: Scale = {
  seconds: 1, idle: [1000, 9000], ttfbSamples: 20, heapMessages: 1_000_000, failures: 10_000, watchedRounds: 24,
};
export const QUICK: Scale = {
  seconds: 0.2, idle: [100, 500], ttfbSamples: 3, heapMessages: 20_000, failures: 200, watchedRounds: 2,
};

interface Described {
  readonly title: string;
  /** Subjects that it makes no sense for are left out. */
  readonly subjects: (name: SubjectName) => boolean;
  /** Milliseconds that the upstream delays each of its handshake replies. */
  readonly upstreamMs?: number;
  /** The numbers of each subject are of several kinds, a row for each: what its keys begin with, and a heading. */
  readonly parts?: readonly (readonly [key: string, heading: string])[];
  /** Numbers to show, in this order: key, heading, digits after the point. */
  readonly columns: readonly (readonly [key: string, heading: string, digits: number])[];
}

/** Most run on a process that serves all of them; some start a fresh one on the same port. */
export type Measure = Described & (
  | {
      readonly kind: "shared";
      /** So many repetitions where the others have one. */
      readonly often?: number;
      readonly run: (on: Subject, scale: Scale) => Promise<Numbers>;
    }
  | {
      readonly kind: "alone";
      /** They take long and vary little: one repetition where the others have so many. */
      readonly oneIn: number;
      readonly run: (on: SubjectName, scale: Scale, options: SubjectOptions) => Promise<Numbers>;
    }
);

const are = (role: Role) => (name: SubjectName) => roleOf(name) === role;
/** Those that differ from the moment of the connection on. */
const unwatched = (name: SubjectName) => are("relay")(name) && name !== "transplice+admin";
const connecting = (name: SubjectName) => unwatched(name) && name !== "transplice+log" && !name.endsWith("+workers");
const everyone = (name: SubjectName) => connecting(name) && queuesOf(name) === null;
const relays = (name: SubjectName) => everyone(name) && name !== "direct";

/** Of each of four streams: microsocks ends at the client's FIN, so that time cannot be the end. */
const BYTES_PER_SECOND = 4e8;

/** What relays, egresses and chains are asked alike. */
const SHORT = {
  title: "short connections, 64 at a time: 64 bytes there, 128 back, close",
  kind: "shared",
  run: (subject: Subject, { seconds }: Scale): Promise<Numbers> => short(subject, 64, seconds),
  columns: [
    ["perSecond", "conn/s", 0], ["cpuUs", "CPU µs/conn", 1], ["allUs", "with both ends'", 1],
    ["p50", "p50 µs", 0], ["p99", "p99 µs", 0], ["failed", "failed", 0],
  ],
} as const;

async function short(subject: Subject, connections: number, seconds: number): Promise<Numbers> {
  const { result, cpuNs, allNs } = await load(subject, "rr", ["-c", `${connections}`, "-t", `${seconds}`]);
  return { ...result, cpuUs: cpuNs / 1000 / result.done, allUs: allNs / 1000 / result.done };
}

/** What stands so close to its target that more must be looked at, to tell it from noise. */
export const OFTEN = 3;

const often = (measure: Measure): Measure => (measure.kind === "shared" ? { ...measure, often: OFTEN } : measure);

const IDLE = {
  title: "idle tunnels: what each costs",
  kind: "alone",
  oneIn: 3,
  run: idle,
  columns: [
    ["bytesFew", "bytes/tunnel, few", 0], ["bytesMany", "bytes/tunnel, many", 0],
    ["fds", "fds/tunnel", 2], ["tunnels", "tunnels", 0], ["baseMiB", "base MiB", 1],
  ],
} as const;

export const MEASURES = {
  "down-4": bulk("down", 4, everyone),
  "down-1": bulk("down", 1, everyone),
  "up-4": bulk("up", 4, everyone),
  "up-1": bulk("up", 1, everyone),
  rr: often({ ...SHORT, subjects: unwatched }),
  "rr-1": {
    ...SHORT,
    title: "short connections, one at a time",
    subjects: connecting,
    run: (subject: Subject, { seconds }: Scale): Promise<Numbers> => short(subject, 1, seconds),
  },
  "pp-64": often(pingPong(64)),
  "pp-1": pingPong(1),
  http: {
    title: "HTTP/1.1 keep-alive by autocannon, 64 connections",
    kind: "shared",
    subjects: everyone,
    run: http,
    columns: [["perSecond", "req/s", 0], ["cpuUs", "CPU µs/req", 1], ["p99", "p99 ms", 1]],
  },
  "ttfb-0": firstByte(0),
  "ttfb-20": firstByte(20),
  "ttfb-50": firstByte(50),
  "fail-prohibited": failures("administratively prohibited", 2),
  "fail-net": failures("network unreachable", 3),
  "fail-host": failures("host unreachable", 4),
  "fail-refused": failures("connection refused", 5),
  idle: { ...IDLE, subjects: relays },
  heap: {
    title: "messages of 64 bytes leave the heap where it was",
    kind: "alone",
    oneIn: 9,
    subjects: (name) => name === "limit" || name === "transplice",
    run: heap,
    columns: [
      ["messages", "messages", 0], ["grownKiB", "RSS grown KiB", 0],
      ["collections", "collections", 0], ["garbage", "garbage bytes/message", 1],
    ],
  },
  watched: {
    title: "9,000 idle tunnels and traffic, watched by 10 scrapes a second and 3 open pages: against the same unwatched",
    parts: [["null", "nobody looks"], ["floor", "watchers of answer.c"], ["watched", "watched"]],
    kind: "alone",
    oneIn: 1,
    subjects: (name) => name === "transplice+admin",
    run: watched,
    columns: [
      ["tunnels", "tunnels", 0], ["trips", "round trips/s", 3], ["tripsP99", "their p99", 3],
      ["tripCpu", "worker's CPU for each", 3], ["shorts", "conn/s", 3], ["shortCpu", "worker's CPU for each", 3],
      ["scrapes", "scrapes/s", 1], ["events", "events/s", 1], ["mainCpu", "main's CPU, share", 3],
    ],
  },
  "egress-down-4": often(bulk("down", 4, are("egress"))),
  "egress-up-4": often(bulk("up", 4, are("egress"), BYTES_PER_SECOND)),
  "egress-rr": { ...SHORT, subjects: are("egress") },
  "egress-idle": { ...IDLE, subjects: are("egress") },
  "chain-down-4": bulk("down", 4, are("chain")),
  "chain-up-4": bulk("up", 4, are("chain")),
  "chain-rr": { ...SHORT, subjects: are("chain") },
} satisfies Record<string, Measure>;

export type MeasureName = keyof typeof MEASURES;

/** Each stream for a time, or as many bytes as are given for a second of it. */
function bulk(
  direction: "down" | "up", streams: number, subjects: Described["subjects"], bytes = 0,
): Measure {
  return {
    title: `bulk ${direction}, ${streams} stream${streams > 1 ? "s" : ""}`,
    kind: "shared",
    subjects,
    run: async (subject, { seconds }) => {
      const extent = bytes === 0 ? ["-t", `${seconds}`] : ["-b", `${Math.round(bytes * seconds)}`];
      const { result, cpuNs } = await load(subject, direction, ["-c", `${streams}`, ...extent]);
      return { ...result, cpuPerGb: cpuNs / result.bytes };
    },
    columns: [["gbps", "Gbit/s", 1], ["cpuPerGb", "CPU s/GB", 3], ["failed", "failed", 0]],
  };
}

function pingPong(connections: number): Measure {
  return {
    title: `64-byte round trips, ${connections} connection${connections > 1 ? "s" : ""}`,
    kind: "shared",
    subjects: everyone,
    run: async (subject, { seconds }) => {
      const args = ["-c", `${connections}`, "-t", `${seconds}`];
      const { result, cpuNs } = await load(subject, "pp", args);
      return { ...result, cpuUs: cpuNs / 1000 / result.done };
    },
    columns: [
      ["perSecond", "round trips/s", 0], ["cpuUs", "CPU µs each", 2], ["p50", "p50 µs", 0],
      ["p99", "p99 µs", 0], ["p999", "p99.9 µs", 0],
    ],
  };
}

/** The destination refuses by SOCKS5's reply of the port's number. */
function failures(said: string, reply: number): Measure {
  return {
    title: `connections that fail, 8 at a time: ${said}`,
    kind: "shared",
    subjects: isTruthful,
    run: async (subject, { failures: count }) => {
      const args = ["-c", "8", "-P", `${reply}`, "-n", `${count}`];
      const { result, cpuNs } = await load(subject, "fail", args);
      return { ...result, cpuUs: cpuNs / 1000 / result.done };
    },
    columns: [
      ["done", "failed as they should", 0], ["stalled", "took a second", 0], ["cpuUs", "CPU µs/conn", 1],
      ["p50", "p50 µs", 0], ["p99", "p99 µs", 0], ["slowestMs", "slowest ms", 1],
    ],
  };
}

function firstByte(ms: number): Measure {
  return {
    title: `time to first byte, each handshake reply of the upstream ${ms} ms late`,
    kind: "shared",
    subjects: connecting,
    upstreamMs: ms,
    run: async (subject, { ttfbSamples }) => {
      // One after the other; the load stops at the first exchange that ends after its time.
      const seconds = (ttfbSamples * Math.max(1, 2 * ms)) / 1000;
      const { result } = await load(subject, "rr", ["-c", "1", "-t", `${seconds}`]);
      return { ms: result.firstByteP50 / 1000, failed: result.failed };
    },
    columns: [["ms", "p50 ms", 2], ["failed", "failed", 0]],
  };
}

/**
 * Runs a bit of everything, so that nobody is measured before it is compiled: in JavaScript the
 * first second of short connections costs half as much again as the third.
 */
export async function warmUp(subject: Subject, scale: Scale): Promise<void> {
  const seconds = (times: number) => ["-t", `${times * scale.seconds}`];
  await load(subject, "down", ["-c", "4", ...seconds(0.5)]);
  await load(subject, "up", ["-c", "4", "-b", `${Math.round(0.5 * scale.seconds * BYTES_PER_SECOND)}`]);
  for (const role of ["pp", "rr"]) await load(subject, role, ["-c", "64", ...seconds(2)]);
}

// ---- the load ----------------------------------------------------------------------------------

interface LoadResult {
  readonly done: number;
  readonly failed: number;
  readonly bytes: number;
  readonly seconds: number;
  readonly perSecond: number;
  readonly gbps: number;
  readonly p50: number;
  readonly p99: number;
  readonly p999: number;
  readonly firstByteP50: number;
  readonly slowestMs: number;
  /** As many as had to ask a second time. */
  readonly stalled: number;
}

/** A client that has opened what it needs, and waits for the word to begin. */
class Load {
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;

  static async ready(subject: Subject, role: string, args: readonly string[]): Promise<Load> {
    const one = new Load(subject, role, args);
    one.standing = (JSON.parse(await one.#line()) as { standing: number }).standing;
    return one;
  }

  /** Connections that stand before the word is given; a relay may not have taken them all. */
  standing = 0;

  private constructor(subject: Subject, role: string, args: readonly string[]) {
    this.#child = spawn(`${BIN}load`, [role, ...subject.way, ...args], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    this.#lines = createInterface({ input: this.#child.stdout! })[Symbol.asyncIterator]();
  }

  async run(): Promise<LoadResult> {
    this.#child.stdin!.write("go\n");
    return JSON.parse(await this.#line()) as LoadResult;
  }

  /** Closes its connections. */
  async end(): Promise<void> {
    const gone = new Promise((resolve) => this.#child.once("exit", resolve));
    this.#child.stdin!.end();
    await gone;
  }

  async #line(): Promise<string> {
    const next = await this.#lines.next();
    if (next.done === true) throw new Error("the load ended early");
    return next.value;
  }
}

/** `cpuNs`: of the relay. `allNs`: of everything that we have running, client and destination among it. */
async function load(
  subject: Subject, role: string, args: readonly string[],
): Promise<{ result: LoadResult; cpuNs: number; allNs: number }> {
  const one = await Load.ready(subject, role, args);
  const [before, allBefore] = [readCpu(subject.pid), readMachine().oursNs];
  const result = await one.run();
  const [after, allAfter] = [readCpu(subject.pid), readMachine().oursNs];
  await one.end();
  // `direct` has no relay: its process is the destination, and its CPU time means nothing here.
  const cpuNs = subject.name === "direct" ? NaN : cpuBetween(before, after);
  return { result, cpuNs, allNs: allAfter - allBefore };
}

/** The SOCKS5 server behind all relays, and the destination behind all. */
export async function startTarget(delayMs: number): Promise<ChildProcess> {
  const child = spawn(`${BIN}load`, ["target", `${TARGET_PORT}`, "-r", `${delayMs}`], {
    stdio: ["ignore", "inherit", "inherit"],
  });
  await listening(TARGET_PORT, child, "target");
  return child;
}

// ---- measures with a process of their own ------------------------------------------------------

/** What autocannon answers, as far as it is used here; it brings no types. */
interface CannonResult {
  readonly requests: { readonly total: number };
  readonly latency: { readonly p99: number };
  readonly duration: number;
  readonly non2xx: number;
  readonly errors: number;
}

async function http(subject: Subject, { seconds }: Scale): Promise<Numbers> {
  const autocannon = createRequire(import.meta.url)("autocannon") as (
    options: { url: string; connections: number; duration: number },
  ) => Promise<CannonResult>;
  const host = subject.address.includes(":") ? `[${subject.address}]` : subject.address;
  const before = readCpu(subject.pid);
  const result = await autocannon({
    url: `http://${host}/`, connections: 64, duration: Math.max(1, seconds),
  });
  await sleep(50); // Until the last connection is closed.
  const after = readCpu(subject.pid);
  const cpuNs = subject.name === "direct" ? NaN : cpuBetween(before, after);
  return {
    perSecond: result.requests.total / result.duration,
    cpuUs: cpuNs / 1000 / result.requests.total,
    p99: result.latency.p99,
    failed: result.non2xx + result.errors,
  };
}

/** A fresh process, warmed up by short connections; then few tunnels stand, then many. */
async function idle(name: SubjectName, scale: Scale, options: SubjectOptions): Promise<Numbers> {
  return withFresh(name, options, async (fresh) => {
    for (const role of ["rr", "pp"]) {
      await load(fresh, role, ["-c", "64", "-t", `${2 * scale.seconds}`]);
    }
    await sleep(300);
    const base = readUsage(fresh.pid);
    const [few, many] = scale.idle;
    const first = await Load.ready(fresh, "idle", ["-c", `${few}`]);
    await sleep(300);
    const withFew = readUsage(fresh.pid);
    const second = await Load.ready(fresh, "idle", ["-c", `${many - few}`]);
    const tunnels = first.standing + second.standing;
    await sleep(300);
    const withMany = readUsage(fresh.pid);
    await Promise.all([first.end(), second.end()]);
    const grown = (to: typeof base) => to.privateBytes - base.privateBytes;
    return {
      bytesFew: grown(withFew) / first.standing,
      bytesMany: grown(withMany) / tunnels,
      fds: (withMany.fds - base.fds) / tunnels,
      tunnels,
      baseMiB: base.privateBytes / 2 ** 20,
    };
  });
}

/**
 * There are many rounds of each kind, in turn: what drifts, drifts for all; and on two cores the p99 of a
 * round is one or its double, by where the scheduler has put three busy threads in it: alike rounds are 15 %
 * apart. They take whole seconds: what happens once a second is in each, or their middle would leave it out.
 */
const ROUND_SECONDS = 1;
/** Rates vary less than p99: rounds of short connections are one in so many. */
const SHORTS_IN = 3;
/** Before anything is measured, so often a second: who is watched for hours is compiled. */
const WARM_SCRAPES = 1000;

/** Whom the watchers look at in a round. */
const LOOKS = ["nobody", "null", "floor", "watched"] as const;
type Look = (typeof LOOKS)[number];

interface Round {
  readonly perSecond: number;
  readonly p99: number;
  readonly workerNs: number;
  readonly mainCpu: number;
  readonly scrapes: number;
  readonly events: number;
}

/**
 * Ratios of middles to rounds that nobody looks at, of a fresh process: of others such ("null": what a ratio is
 * when nothing has been done), of those beside which the watchers are answered by answer.c, and of those
 * in which they look at the process itself. What goes on for some seconds after somebody has looked (the
 * survey of open connections, half a millisecond of main's a second) is in the rounds of all.
 */
async function watched(name: SubjectName, scale: Scale, options: SubjectOptions): Promise<Numbers> {
  return withFresh(name, options, async (fresh) => {
    const idlers = await Load.ready(fresh, "idle", ["-c", `${scale.idle[1]}`]);
    const floor = await Floor.begin(adminPortOf(name));
    const round = async (role: string, look: Look, scrapes?: number): Promise<Round> => {
      const port = look === "watched" ? adminPortOf(name) : look === "floor" ? floor.port : null;
      const watchers = port === null ? null : await Watchers.begin(port, scrapes);
      const one = await Load.ready(fresh, role, ["-c", "64", "-t", `${ROUND_SECONDS * scale.seconds}`]);
      const before = await watchers?.seen();
      const [cpu, worker, begin] = [readCpu(fresh.pid), readWorkerCpu(fresh.pid), performance.now()];
      const { perSecond, p99, done } = await one.run();
      const seconds = (performance.now() - begin) / 1000;
      const workerNs = readWorkerCpu(fresh.pid) - worker;
      const allNs = cpuBetween(cpu, readCpu(fresh.pid));
      const after = await watchers?.seen();
      await Promise.all([one.end(), watchers?.end()]);
      const seen = (key: keyof Seen): number => (after === undefined ? NaN : (after[key] - before![key]) / seconds);
      return {
        perSecond, p99, workerNs: workerNs / done, mainCpu: (allNs - workerNs) / 1e9 / seconds,
        scrapes: seen("scrapes"), events: seen("events"),
      };
    };
    for (let i = 0; i < scale.watchedRounds / 2; i++) await round(i % 2 === 0 ? "pp" : "rr", "watched", WARM_SCRAPES);
    // A round right after so many scrapes has twice the p99 of any other, whoever looks: one is not counted.
    await round("pp", "nobody");
    const rounds: Record<"trips" | "shorts", Record<Look, Round>[]> = { trips: [], shorts: [] };
    for (let i = 0; i < scale.watchedRounds; i++) {
      for (const [kind, role] of [["trips", "pp"], ["shorts", "rr"]] as const) {
        if (kind === "shorts" && i % SHORTS_IN !== 0) continue;
        const found: Partial<Record<Look, Round>> = {};
        for (const look of inTurn(rounds[kind].length)) found[look] = await round(role, look);
        rounds[kind].push(found as Record<Look, Round>);
      }
    }
    floor.end();
    await idlers.end();
    const of = (kind: keyof typeof rounds, look: Look, key: keyof Round): number => middleMean(rounds[kind].map((each) => each[look][key]));
    /** Of what takes a share that is not the same in each. */
    const mean = (kind: keyof typeof rounds, look: Look, key: keyof Round): number =>
      rounds[kind].reduce((sum, each) => sum + each[look][key], 0) / rounds[kind].length;
    const ratioOf = (kind: keyof typeof rounds, look: Look, key: keyof Round): number => of(kind, look, key) / of(kind, "nobody", key);
    return Object.fromEntries(LOOKS.slice(1).flatMap((look) => Object.entries({
      tunnels: idlers.standing,
      trips: ratioOf("trips", look, "perSecond"), tripsP99: ratioOf("trips", look, "p99"), tripCpu: ratioOf("trips", look, "workerNs"),
      shorts: ratioOf("shorts", look, "perSecond"), shortCpu: ratioOf("shorts", look, "workerNs"),
      scrapes: mean("trips", look, "scrapes"), events: mean("trips", look, "events"), mainCpu: mean("trips", look, "mainCpu"),
    }).map(([key, value]) => [`${look}.${key}`, value])));
  });
}

/** All of LOOKS: each has each place as often as the others, and comes behind another as often as before him. */
function inTurn(n: number): readonly Look[] {
  const turns = LOOKS.map((_, at) => LOOKS[(at + n) % LOOKS.length]!);
  return n % (2 * LOOKS.length) < LOOKS.length ? turns : turns.toReversed();
}

/** Once for the memory, and once more with V8's own account of its collections. */
async function heap(name: SubjectName, scale: Scale, options: SubjectOptions): Promise<Numbers> {
  const messages = scale.heapMessages;
  const exchange = (fresh: Subject, count: number) =>
    load(fresh, "pp", ["-c", "64", "-n", `${Math.round(count)}`]);
  const grownKiB = await withFresh(name, options, async (fresh) => {
    await exchange(fresh, messages / 2);
    const before = readUsage(fresh.pid);
    await exchange(fresh, messages);
    return (readUsage(fresh.pid).residentBytes - before.residentBytes) / 1024;
  });
  if (name === "limit") return { messages, grownKiB, collections: 0, garbage: 0 };
  const traced = { ...options, nodeFlags: ["--trace-gc"] };
  return withFresh(name, traced, async (fresh) => {
    await exchange(fresh, messages / 2);
    const before = readFileSync(logOf(name), "utf8").length;
    await exchange(fresh, messages);
    const { collections, garbage } = collected(readFileSync(logOf(name), "utf8").slice(before));
    return { messages, grownKiB, collections, garbage: garbage / messages };
  });
}

/** Collections and bytes collected, of the isolate that had most: the one that does the work. */
function collected(trace: string): { collections: number; garbage: number } {
  const isolates = new Map<string, { collections: number; garbage: number }>();
  const line = /^\[\d+:(\w+)\].* ms: [^(]*?([\d.]+) \([\d.]+\) -> ([\d.]+) /gm;
  for (const [, isolate, from, to] of trace.matchAll(line)) {
    const so = isolates.get(isolate!) ?? { collections: 0, garbage: 0 };
    so.collections++;
    so.garbage += (Number(from) - Number(to)) * 2 ** 20;
    isolates.set(isolate!, so);
  }
  const most = [...isolates.values()].sort((a, b) => b.garbage - a.garbage)[0];
  return most ?? { collections: 0, garbage: 0 };
}

/** The shared process of that name must have been stopped: the port is the same. */
async function withFresh<T>(
  name: SubjectName, options: SubjectOptions, work: (fresh: Subject) => Promise<T>,
): Promise<T> {
  const fresh = await startSubject(name, options);
  try {
    return await work(fresh);
  } finally {
    await stop(fresh.process);
  }
}
