/**
 * Names to addresses for the egress, on the main thread: /etc/hosts, then a cache, then DNS.
 *
 * A name is asked for once, however many want it (Lookup), for both families at the same time, and
 * the answer holds as long as DNS says. What does not exist or fails is remembered too, for a
 * moment. Nothing here rejects, waits beyond the deadline, or grows without a bound.
 *
 * The caller has normalised the name (policy/name): lower case, no trailing dot, no literal.
 */
import { readFileSync, statSync } from "node:fs";
import { socketAddress } from "../../config/endpoint.ts";
import type { Log } from "../log/log.ts";
import { type AddressRecord, type Ask, Nameservers, type Question } from "./nameservers.ts";
import { Places } from "../places.ts";

export interface NameAnswer {
  /** 4 or 16 bytes each, the families taking turns, IPv6 first. Empty: see `failure`. */
  readonly addresses: readonly Uint8Array[];
  /** How long the answer may be used from now on. */
  readonly ttlMs: number;
  /** "busy": it was not asked for, as too many are. */
  readonly failure: null | "not-found" | "failed" | "timeout" | "busy";
}

export interface NamesStats {
  /** Names kept, and names being asked for. */
  readonly cached: number;
  readonly asking: number;
  /** Calls by where their answer came from. Their sum is the number of calls. */
  readonly fromHosts: number;
  readonly fromCache: number;
  readonly joined: number;
  readonly asked: number;
  readonly refused: number;
  /** Lookups by how they ended, when they did not find anything. */
  readonly notFound: number;
  readonly failed: number;
  readonly timeouts: number;
}

export interface NamesOptions {
  /** For both families together, from the first caller on. */
  readonly deadlineMs: number;
  readonly log: Pick<Log, "warning">;
}

/** What a test replaces. */
export interface NamesSeams {
  readonly ask: Ask;
  readonly hosts: HostsFile;
  readonly now: () => number;
  /** Runs `task` in `ms`; the answer cancels it. */
  readonly after: (ms: number, task: () => void) => () => void;
}

export interface HostsFile {
  /** Another text when the file is another. Both throw when there is none. */
  readonly version: () => string;
  readonly read: () => string;
}

const CACHED_MAX = 4096;
const ASKING_MAX = 1000;
/** What a dial can try within its deadline. */
const ADDRESSES_MAX = 16;
const TTL_MAX_MS = 3_600_000;
/** Node does not tell the SOA's word on it (RFC 2308). */
const NOT_FOUND_MS = 10_000;
/** A name server's trouble may be over soon, but not before the next of a thousand clients asks. */
const FAILED_MS = 2000;
/** One family has addresses and the other one failed: it may come back. */
const HALF_MS = 10_000;
/** RFC 8305, section 3: so long addresses of IPv4 wait for those of IPv6. */
const SIX_LATE_MS = 50;
/** The other way round: longer, because the host may have no IPv6. */
const FOUR_LATE_MS = 500;
/** An answer that somebody did not wait for is asked for again soon. */
const PART_MS = 1000;
/** As long as a change of /etc/hosts may take to be seen, by us and by those who keep an answer. */
const HOSTS_MS = 1000;

/** What one family came to. `until`: when it must be asked again. */
type Outcome =
  | { readonly is: "found"; readonly addresses: readonly Uint8Array[]; readonly until: number }
  | { readonly is: "no-name" | "no-record" | "failed" | "timeout" };

interface Kept {
  readonly addresses: readonly Uint8Array[];
  readonly failure: NameAnswer["failure"];
  readonly until: number;
  /** One family is still being waited for. */
  readonly part: boolean;
}

export class Names {
  readonly #log: NamesOptions["log"];
  readonly #seams: NamesSeams;
  readonly #nameservers = new Nameservers();
  readonly #hosts: Hosts;
  #deadlineMs: number;
  /** In the order of use, the longest unused first. */
  readonly #cache = new Map<string, Kept>();
  readonly #lookups = new Map<string, Lookup>();
  readonly #asking = new Set<Lookup>();
  /** Those of #asking that have answered a part. Nobody waits for them. */
  readonly #stragglers = new Set<Lookup>();
  /** Of the clients for whom names are being asked for, until there is an answer or a part of one. */
  readonly #places = new Places(ASKING_MAX);
  readonly #counts = {
    fromHosts: 0,
    fromCache: 0,
    joined: 0,
    asked: 0,
    refused: 0,
    notFound: 0,
    failed: 0,
    timeouts: 0,
  };
  #closed = false;

  constructor(options: NamesOptions, seams: Partial<NamesSeams> = {}) {
    this.#log = options.log;
    this.#deadlineMs = options.deadlineMs;
    this.#seams = { ask: this.#nameservers.ask, ...SEAMS, ...seams };
    this.#hosts = new Hosts(this.#seams, this.#log);
  }

  /** Of the lookups that begin from now on. */
  set deadlineMs(ms: number) {
    this.#deadlineMs = ms;
  }

  get stats(): NamesStats {
    return { cached: this.#cache.size, asking: this.#asking.size, ...this.#counts };
  }

  /**
   * Never rejects. The answer comes within the deadline, or an answer that has no addresses.
   * `client`: for whom, by any number.
   */
  async resolve(name: string, client = 0): Promise<NameAnswer> {
    if (this.#closed) return FAILED;
    const local = this.#hosts.addresses(name) ?? loopback(name);
    if (local !== null) {
      this.#counts.fromHosts++;
      return { addresses: local, ttlMs: HOSTS_MS, failure: null };
    }
    const kept = this.#recall(name);
    if (kept !== null) {
      this.#counts.fromCache++;
      return this.#answer(kept);
    }
    const lookup = this.#lookups.get(name);
    if (lookup !== undefined) {
      this.#counts.joined++;
      return this.#answer(await lookup.kept);
    }
    if (this.#asking.size >= ASKING_MAX) {
      // Where AAAA never comes, all places would soon be taken by what nobody waits for.
      const [straggler] = this.#stragglers;
      straggler?.hurry();
    }
    if (this.#asking.size >= ASKING_MAX || !this.#places.enter(client)) {
      this.#counts.refused++;
      this.#log.warning("too many names are being resolved; more are refused", { names: this.#asking.size });
      return BUSY;
    }
    this.#counts.asked++;
    const found = await this.#look(name).kept;
    this.#places.leave(client);
    return this.#answer(found);
  }

  /** Who still waits hears that it failed. */
  close(): void {
    this.#closed = true;
    for (const lookup of this.#asking) lookup.abandon();
    this.#nameservers.close();
    this.#cache.clear();
  }

  #look(name: string): Lookup {
    const lookup: Lookup = new Lookup(this.#seams, {
      answered: (kept) => {
        this.#keep(name, kept);
        if (kept.part) this.#stragglers.add(lookup);
        // Who comes when this answer, perhaps a part, has run out begins a lookup of his own.
        if (this.#lookups.get(name) === lookup) this.#lookups.delete(name);
      },
      over: (kept) => {
        this.#asking.delete(lookup);
        this.#stragglers.delete(lookup);
        if (kept.failure === "not-found") this.#counts.notFound++;
        else if (kept.failure === "failed") this.#counts.failed++;
        else if (kept.failure === "timeout") this.#counts.timeouts++;
      },
    });
    this.#lookups.set(name, lookup);
    this.#asking.add(lookup);
    lookup.begin(name, this.#deadlineMs);
    return lookup;
  }

  #recall(name: string): Kept | null {
    const kept = this.#cache.get(name);
    if (kept === undefined) return null;
    this.#cache.delete(name);
    if (kept.until <= this.#seams.now()) return null;
    this.#cache.set(name, kept);
    return kept;
  }

  #keep(name: string, kept: Kept): void {
    this.#cache.delete(name);
    if (kept.until <= this.#seams.now()) return;
    this.#cache.set(name, kept);
    if (this.#cache.size > CACHED_MAX) {
      const [oldest] = this.#cache.keys();
      this.#cache.delete(oldest!);
    }
  }

  #answer({ addresses, failure, until, part }: Kept): NameAnswer {
    const ttlMs = Math.max(until - this.#seams.now(), 0);
    return { addresses, failure, ttlMs: part ? Math.min(ttlMs, PART_MS) : ttlMs };
  }
}

/**
 * One name being asked for. It answers once or twice: as soon as nobody should wait any longer, and
 * again when the other family has come too, or the deadline.
 */
class Lookup {
  /** The first answer. */
  readonly kept: Promise<Kept>;
  readonly #seams: NamesSeams;
  readonly #on: LookupEvents;
  readonly #outcomes: Record<4 | 6, Outcome | null> = { 4: null, 6: null };
  #questions: readonly Question[] = [];
  #settle: (kept: Kept) => void = () => {};
  #cancelDeadline: (() => void) | null = null;
  #cancelWait: (() => void) | null = null;
  #over = false;

  constructor(seams: NamesSeams, on: LookupEvents) {
    this.#seams = seams;
    this.#on = on;
    this.kept = new Promise((resolve) => {
      this.#settle = resolve;
    });
  }

  begin(name: string, deadlineMs: number): void {
    this.#cancelDeadline = this.#seams.after(deadlineMs, () => this.hurry());
    this.#questions = ([6, 4] as const).map((family) => {
      const question = this.#seams.ask(name, family, deadlineMs);
      question.records.then(
        (records) => this.#hear(family, this.#outcome(records)),
        (error: NodeJS.ErrnoException) => this.#hear(family, failureOf(error.code)),
      );
      return question;
    });
  }

  /** Its time is over: what has not come will not come. */
  hurry(): void {
    this.#outcomes[4] ??= { is: "timeout" };
    this.#outcomes[6] ??= { is: "timeout" };
    this.#heard();
  }

  /** Whoever waits hears that it failed. */
  abandon(): void {
    if (this.#over) return;
    this.#end();
    this.#settle({ addresses: [], failure: "failed", until: 0, part: false });
  }

  #hear(family: 4 | 6, outcome: Outcome): void {
    if (this.#over) return;
    this.#outcomes[family] = outcome;
    this.#heard();
  }

  #heard(): void {
    const { 4: four, 6: six } = this.#outcomes;
    if (four !== null && six !== null) {
      this.#end();
      const kept = this.#answer();
      this.#on.over(kept);
      return;
    }
    const waitMs = patience(four, six);
    if (waitMs !== null) {
      this.#cancelWait = this.#seams.after(waitMs, () => {
        this.#cancelWait = null;
        this.#answer();
      });
    }
  }

  #answer(): Kept {
    const kept = together(this.#outcomes[4], this.#outcomes[6], this.#seams.now());
    this.#on.answered(kept);
    this.#settle(kept);
    return kept;
  }

  #end(): void {
    this.#over = true;
    this.#cancelDeadline?.();
    this.#cancelWait?.();
    for (const question of this.#questions) question.cancel();
  }

  #outcome(records: readonly AddressRecord[]): Outcome {
    const addresses: Uint8Array[] = [];
    let ttl = TTL_MAX_MS / 1000;
    for (const record of records) {
      const bytes = addressBytes(record.address);
      if (bytes === null) continue;
      addresses.push(bytes);
      ttl = Math.min(ttl, record.ttl);
    }
    if (addresses.length === 0) return { is: "no-record" };
    return { is: "found", addresses, until: this.#seams.now() + Math.max(ttl, 0) * 1000 };
  }
}

interface LookupEvents {
  /** Once or twice. */
  readonly answered: (kept: Kept) => void;
  /** The last answer has been given. */
  readonly over: (kept: Kept) => void;
}

/** How long one family's outcome waits for the other's; null: as long as the deadline allows. */
function patience(four: Outcome | null, six: Outcome | null): number | null {
  // That there is no such name goes for both families (RFC 8020), but servers exist which say it
  // of AAAA while they have an A.
  if (four?.is === "found" || four?.is === "no-name") return SIX_LATE_MS;
  return six?.is === "found" ? FOUR_LATE_MS : null;
}

/** What both families say together; null is one that has not said anything yet. */
function together(four: Outcome | null, six: Outcome | null, now: number): Kept {
  const part = four === null || six === null;
  const outcomes = [six, four].filter((outcome) => outcome !== null);
  const found = outcomes.filter((outcome) => outcome.is === "found");
  if (found.length > 0) {
    const half = outcomes.some(({ is }) => is === "failed" || is === "timeout");
    const ends = [...found.map(({ until }) => until), half ? now + HALF_MS : Number.POSITIVE_INFINITY];
    const addresses = interleaved(found.flatMap((outcome) => outcome.addresses));
    return { addresses, failure: null, until: Math.min(...ends), part };
  }
  const is = (what: Outcome["is"]): boolean => outcomes.some((outcome) => outcome.is === what);
  // What the A question says of the name counts, for the reason given in patience().
  if (four?.is === "no-name" || (!is("failed") && !is("timeout"))) {
    return { addresses: [], failure: "not-found", until: now + NOT_FOUND_MS, part };
  }
  const failure = is("timeout") ? "timeout" : "failed";
  return { addresses: [], failure, until: now + FAILED_MS, part };
}

/** The families in turns, IPv6 first, each in its own order and without repetitions. */
function interleaved(addresses: readonly Uint8Array[]): readonly Uint8Array[] {
  const distinct = [...new Map(addresses.map((bytes) => [bytes.join("."), bytes])).values()];
  const six = distinct.filter(({ length }) => length === 16);
  const four = distinct.filter(({ length }) => length === 4);
  const turns = Array.from({ length: Math.max(six.length, four.length) }, (_, i) => [six[i], four[i]]);
  return turns.flat().filter((bytes) => bytes !== undefined).slice(0, ADDRESSES_MAX);
}

function failureOf(code: string | undefined): Outcome {
  if (code === "ENOTFOUND") return { is: "no-name" };
  if (code === "ENODATA") return { is: "no-record" };
  return { is: code === "ETIMEOUT" ? "timeout" : "failed" };
}

/** RFC 6761, section 6.3: never asked of a name server. */
function loopback(name: string): readonly Uint8Array[] | null {
  if (name !== "localhost" && !name.endsWith(".localhost")) return null;
  return [Uint8Array.from({ length: 16 }, (_, i) => (i === 15 ? 1 : 0)), Uint8Array.of(127, 0, 0, 1)];
}

/** Of a literal without a scope; an IPv4 address in IPv6 clothes is one of IPv4. */
function addressBytes(text: string): Uint8Array | null {
  if (text.includes("%")) return null;
  const address = socketAddress(text, 0);
  if (address === null) return null;
  return address.bytes.length === 16 ? address.bytes.slice(4, 8) : address.bytes.slice(8, 24);
}

/**
 * /etc/hosts, read again when it has become another file. A name that is in it with one family only
 * has only that one, as with getaddrinfo.
 */
class Hosts {
  readonly #seams: NamesSeams;
  readonly #log: NamesOptions["log"];
  #names: ReadonlyMap<string, readonly Uint8Array[]> = new Map();
  #version: string | null = null;
  #lookedAt = Number.NEGATIVE_INFINITY;

  constructor(seams: NamesSeams, log: NamesOptions["log"]) {
    this.#seams = seams;
    this.#log = log;
  }

  addresses(name: string): readonly Uint8Array[] | null {
    const now = this.#seams.now();
    if (now - this.#lookedAt >= HOSTS_MS) {
      this.#lookedAt = now;
      this.#look();
    }
    return this.#names.get(name) ?? null;
  }

  #look(): void {
    try {
      const version = this.#seams.hosts.version();
      if (version === this.#version) return;
      this.#names = hostNames(this.#seams.hosts.read());
      this.#version = version;
    } catch (error) {
      // None is as good as an empty one. One that cannot be read may be in the making: the names
      // that are known stay.
      const code = (error as NodeJS.ErrnoException).code ?? String(error);
      if (code === "ENOENT") this.#names = new Map();
      else this.#log.warning("the hosts file cannot be read", { error: code });
      this.#version = null;
    }
  }
}

/** What a hosts(5) says: names in lower case, addresses of 4 or 16 bytes. */
export function hostNames(text: string): ReadonlyMap<string, readonly Uint8Array[]> {
  const all = new Map<string, Uint8Array[]>();
  for (const line of text.split("\n")) {
    const [address, ...names] = line.replace(/#.*/, "").trim().split(/\s+/);
    const bytes = address === undefined ? null : addressBytes(address);
    if (bytes === null) continue;
    for (const written of names) {
      const name = written.toLowerCase().replace(/\.$/, "");
      const known = all.get(name);
      if (known === undefined) all.set(name, [bytes]);
      else known.push(bytes);
    }
  }
  return new Map([...all].map(([name, addresses]) => [name, interleaved(addresses)]));
}

const FAILED: NameAnswer = Object.freeze({ addresses: [], ttlMs: 0, failure: "failed" });
const BUSY: NameAnswer = Object.freeze({ addresses: [], ttlMs: 0, failure: "busy" });

const HOSTS_PATH = "/etc/hosts";

const SEAMS: Omit<NamesSeams, "ask"> = {
  hosts: {
    version: () => {
      const { dev, ino, size, mtimeMs } = statSync(HOSTS_PATH);
      return [dev, ino, size, mtimeMs].join(" ");
    },
    read: () => readFileSync(HOSTS_PATH, "utf8"),
  },
  now: () => performance.now(),
  after: (ms, task) => {
    const timer = setTimeout(task, ms);
    timer.unref();
    return () => clearTimeout(timer);
  },
};
