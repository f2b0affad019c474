/**
 * connect.learn: destinations that have failed are put for a moment into maps of the table `inet
 * transplice`, whose rules reject the next SYN to them, with the error that fits. A second best where
 * connect.truthful cannot be had: the first connection still succeeds and is reset.
 *
 * Learns from the workers' journals, so nothing waits for it. Owns what it remembers: at most
 * LEARNT_MAX, each until its time is over or a connection succeeds; the kernel forgets by itself.
 * Changes go to nft in batches, one at a time, and no more often than PAUSE_MS.
 */
import { addressText, portOf } from "../../config/endpoint.ts";
import { ENDED, type JournalRecord } from "../../engine/journal.ts";
import { LEARNT_BYTES, Learnt } from "../../engine/learnt.ts";
import { CAUSES } from "../../policy/cause.ts";
import { addressOf } from "../../policy/own.ts";
import { LEARNT_CHAINS, learntMap, NFT_TABLE } from "./nft.ts";
import { type Ran, run } from "./tools.ts";
import type { Log } from "../log/log.ts";

export const LEARNT_MAX = 4096;
const DESTINATION = 28;
const SOCKADDR_BYTES = 28;
/** Of one transaction. */
const BATCH_MAX = 256;
/** What does not fit is not worth telling: it would come too late. */
const COMMANDS_MAX = 2 * LEARNT_MAX;
const PAUSE_MS = 100;
/** nft would not: there are no such rules, or no rights. It is not asked all the time. */
const REFUSED_MS = 5000;
/** What fails again so long after it was told was not rejected: the kernel has lost it, or never had it. */
const LOST_MS = 1000;

export interface LearnerSeams {
  readonly log: Log;
  /** Monotonic, in ms. */
  readonly now?: () => number;
  /** Runs `nft -f -`. */
  readonly nft?: (commands: string) => Promise<Ran>;
}

interface Lesson {
  readonly sockaddr: Uint8Array;
  /** "learnt4 { 192.0.2.1 . 80": where it stands in the kernel, as far as the value. */
  readonly place: string;
  readonly chain: string;
  readonly untilMs: number;
  toldMs: number;
}

export class Learner {
  /** For workers. */
  readonly shared = new SharedArrayBuffer(LEARNT_BYTES);
  readonly #learnt = new Learnt(this.shared);
  readonly #log: Log;
  readonly #now: () => number;
  readonly #nft: (commands: string) => Promise<Ran>;
  /** By family, address and port. All have the same time, so the first to come is the first to go. */
  readonly #lessons = new Map<string, Lesson>();
  /** What nft is to be told, in this order. */
  #commands: string[] = [];
  #ms: number | null = null;
  #timer: NodeJS.Timeout | null = null;
  #running = false;

  constructor({ log, now = () => performance.now(), nft = (commands) => run("nft", ["-f", "-"], commands) }: LearnerSeams) {
    this.#log = log;
    this.#now = now;
    this.#nft = nft;
  }

  /** How long a destination is remembered; null: none is. */
  configure(ms: number | null): void {
    this.#ms = ms;
    if (ms === null) for (const key of [...this.#lessons.keys()]) this.#forget(key);
  }

  get size(): number {
    return this.#lessons.size;
  }

  close(): void {
    this.#ms = null;
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    this.#commands = [];
  }

  /** Of a redirected connection: it has failed, or has succeeded. */
  hear(record: JournalRecord): void {
    if (this.#ms === null || record.version !== 0 || record.addresses[DESTINATION] === 0) return;
    this.#expire();
    const chain = LEARNT_CHAINS[CAUSES[record.cause] as keyof typeof LEARNT_CHAINS] as string | undefined;
    if (record.kind === ENDED && chain === undefined) return; // It says nothing, or nothing that could be said at once.
    const sockaddr = record.addresses.slice(DESTINATION, DESTINATION + SOCKADDR_BYTES);
    const address = addressOf(sockaddr, 0);
    const key = `${addressText(address)} . ${portOf(sockaddr, 0)}`;
    if (record.kind !== ENDED) {
      this.#succeeded(key);
      return;
    }
    const now = this.#now();
    let lesson = this.#lessons.get(key);
    if (lesson === undefined) {
      if (this.#lessons.size >= LEARNT_MAX) return;
      const place = `${learntMap(address.length === 4 ? 4 : 6)} { ${key}`;
      lesson = { sockaddr, chain: chain!, place, untilMs: now + this.#ms, toldMs: -Infinity };
      this.#lessons.set(key, lesson);
      this.#learnt.count(sockaddr, 0, 1);
    }
    // Rules that are set anew have empty maps. Of many who were on their way, one is enough.
    if (now - lesson.toldMs < LOST_MS) return;
    lesson.toldMs = now;
    this.#tell(`add element ${NFT_TABLE} ${lesson.place} timeout ${Math.ceil(lesson.untilMs - now)}ms : goto ${lesson.chain} }\n`);
  }

  #succeeded(key: string): void {
    const lesson = this.#lessons.get(key);
    if (lesson === undefined) return;
    this.#forget(key);
    // The kernel may have forgotten it just now, and what is not there cannot be deleted.
    this.#tell(
      `add element ${NFT_TABLE} ${lesson.place} timeout 1s : goto ${lesson.chain} }\n` +
        `delete element ${NFT_TABLE} ${lesson.place} }\n`,
    );
  }

  #expire(): void {
    const now = this.#now();
    for (const [key, { untilMs }] of this.#lessons) {
      if (untilMs > now) return;
      this.#forget(key);
    }
  }

  #forget(key: string): void {
    this.#learnt.count(this.#lessons.get(key)!.sockaddr, 0, -1);
    this.#lessons.delete(key);
  }

  #tell(command: string): void {
    if (this.#commands.length < COMMANDS_MAX) this.#commands.push(command);
    if (!this.#running) this.#timer ??= this.#soon(PAUSE_MS);
  }

  #soon(ms: number): NodeJS.Timeout {
    const timer = setTimeout(() => {
      this.#timer = null;
      void this.#send();
    }, ms);
    timer.unref();
    return timer;
  }

  async #send(): Promise<void> {
    const batch = this.#commands.splice(0, BATCH_MAX);
    if (batch.length === 0) return;
    this.#running = true;
    const { ok, said } = await this.#nft(batch.join(""));
    this.#running = false;
    if (!ok) {
      // What could not be told in time is not worth telling any more.
      this.#commands = [];
      this.#log.warning("connect.learn: what has failed is not rejected", {
        error: said,
        remedy: "its rules are those of nft: transplice firewall apply, or manage = true in [firewall]; it takes CAP_NET_ADMIN",
      });
    }
    if (this.#ms !== null && (this.#commands.length > 0 || !ok)) this.#timer ??= this.#soon(ok ? PAUSE_MS : REFUSED_MS);
  }
}
