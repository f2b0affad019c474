/**
 * Asks the DNS block lists (RFC 5782) about our egress addresses, again and again, and tells which
 * ones are listed. What follows from that, also when most are, is not decided here.
 *
 * Only a clear answer counts, and but for the very first only when the next clear one agrees. A list that fails, does not
 * answer, refuses us or says what no list says changes nothing: it is complained about once.
 */
import { addressText } from "../../config/endpoint.ts";
import type { Log } from "../log/log.ts";
import { type AddressRecord, type Ask, Nameservers, type Question } from "./nameservers.ts";

export interface DnsblOptions {
  readonly domains: readonly string[];
  readonly intervalMs: number;
  /** 4 or 16 bytes each. Of a prefix, its first address. */
  readonly addresses: readonly Uint8Array[];
  readonly log: Pick<Log, "warning" | "info">;
  /** The indices of all that are listed, whenever they are others than before. */
  readonly onChange: (listed: ReadonlySet<number>) => void;
  /** What an earlier configuration knew: of addresses and lists that are still there it holds. */
  readonly previous?: readonly DnsblState[];
}

/** One address. */
export interface DnsblState {
  readonly address: string;
  /** The domains that list it. */
  readonly lists: readonly string[];
}

/** What a test replaces. */
export interface DnsblSeams {
  readonly ask: Ask;
  readonly now: () => number;
  /** Runs `task` in `ms`; the answer cancels it. */
  readonly after: (ms: number, task: () => void) => () => void;
}

/** Rounds in a row whose answer must contradict what is known before it changes. */
const ROUNDS = 2;
const ANSWER_MS = 5000;
/** Questions at a time: thousands of addresses are no reason to look like an attack. */
const AT_A_TIME = 16;
/** After so many useless answers in a row a list is left alone until the next round. */
const USELESS_MAX = 32;

type Verdict = "listed" | "clean" | "refused" | "strange" | "failed";

/** One list. */
interface List {
  readonly domain: string;
  /** The last complaint about it, so that it is made once; null: it answers. */
  complaint: string | null;
  /** Answers in a row, of this round, that said nothing. */
  useless: number;
}

/** What one list says of one address. */
interface Entry {
  readonly index: number;
  readonly list: List;
  readonly name: string;
  listed: boolean;
  /** Answers in a row that contradict `listed`. */
  contradictions: number;
}

export class Dnsbl {
  readonly #options: DnsblOptions;
  readonly #seams: DnsblSeams;
  readonly #nameservers = new Nameservers();
  readonly #texts: readonly string[];
  readonly #lists: readonly List[];
  readonly #entries: readonly Entry[];
  #listed: ReadonlySet<number> = new Set();
  readonly #questions = new Set<Question>();
  readonly #cancels = new Set<() => void>();
  #closed = false;

  constructor(options: DnsblOptions, seams: Partial<DnsblSeams> = {}) {
    this.#options = options;
    this.#seams = { ask: this.#nameservers.ask, ...SEAMS, ...seams };
    this.#texts = options.addresses.map(addressText);
    this.#lists = [...new Set(options.domains)].map((domain) => {
      return { domain, complaint: null, useless: 0 };
    });
    const before = new Map(options.previous?.map(({ address, lists }) => [address, lists]));
    this.#entries = options.addresses.flatMap((address, index) =>
      this.#lists.map((list) => {
        const known = before.get(this.#texts[index]!);
        const listed = known?.includes(list.domain) ?? false;
        const name = questionName(address, list.domain);
        // Where nothing is known the first answer counts: a listed address is not used for a round more.
        return { index, list, name, listed, contradictions: known === undefined ? ROUNDS - 1 : 0 };
      }),
    );
  }

  /** One for each address, in their order. */
  get states(): readonly DnsblState[] {
    const lists = this.#texts.map((): string[] => []);
    for (const { index, list, listed } of this.#entries) if (listed) lists[index]!.push(list.domain);
    return this.#texts.map((address, index) => ({ address, lists: lists[index]! }));
  }

  /** The first round begins, and others follow until close(). What was known before is told now. */
  start(): void {
    this.#tell();
    void this.#round();
  }

  close(): void {
    this.#closed = true;
    for (const cancel of this.#cancels) cancel();
    for (const question of this.#questions) question.cancel();
    this.#nameservers.close();
  }

  async #round(): Promise<void> {
    if (this.#closed || this.#entries.length === 0) return;
    const startedAt = this.#seams.now();
    for (const list of this.#lists) list.useless = 0;
    const waiting = this.#entries[Symbol.iterator]();
    const work = async (): Promise<void> => {
      // All workers take from the same iterator.
      for (const entry of waiting) await this.#check(entry);
    };
    await Promise.all(Array.from({ length: AT_A_TIME }, work));
    if (this.#closed) return;
    this.#tell();
    const passed = this.#seams.now() - startedAt;
    this.#after(Math.max(this.#options.intervalMs - passed, 0), () => void this.#round());
  }

  async #check(entry: Entry): Promise<void> {
    const { list } = entry;
    if (this.#closed || list.useless >= USELESS_MAX) return;
    const [verdict, said] = await this.#ask(entry.name);
    if (this.#closed) return;
    const clear = verdict === "listed" || verdict === "clean";
    list.useless = clear ? 0 : list.useless + 1;
    if (clear) this.#hear(entry, verdict === "listed", said);
    // One name that fails is nobody's concern. A list that fails for all is worth a line.
    const many = Math.min(USELESS_MAX, this.#options.addresses.length);
    if (verdict !== "failed" || list.useless === many) this.#complain(list, COMPLAINTS[verdict], said);
  }

  #hear(entry: Entry, listed: boolean, said: string): void {
    entry.contradictions = listed === entry.listed ? 0 : entry.contradictions + 1;
    if (entry.contradictions < ROUNDS) return;
    entry.listed = listed;
    entry.contradictions = 0;
    const address = this.#texts[entry.index]!;
    const { domain } = entry.list;
    if (listed) {
      const fields = { address, answer: said, dnsbl: domain };
      this.#options.log.warning("egress address is listed", fields, undefined, `${address} ${domain}`);
    } else {
      this.#options.log.info("egress address is no longer listed", { address, dnsbl: domain });
    }
  }

  #complain(list: List, complaint: string | null, answer: string): void {
    if (complaint === list.complaint) return;
    const { log } = this.#options;
    if (complaint === null) log.info("DNSBL answers again", { dnsbl: list.domain });
    else log.warning(complaint, { answer, dnsbl: list.domain }, undefined, list.domain);
    list.complaint = complaint;
  }

  #tell(): void {
    const listed = new Set(this.#entries.filter((entry) => entry.listed).map(({ index }) => index));
    const same = listed.size === this.#listed.size && [...listed].every((index) => this.#listed.has(index));
    if (same) return;
    this.#listed = listed;
    this.#options.onChange(listed);
  }

  /** Never rejects: the verdict, and what it was taken from. */
  async #ask(name: string): Promise<[Verdict, string]> {
    const question = this.#seams.ask(name, 4, ANSWER_MS);
    this.#questions.add(question);
    let cancel = (): void => {};
    const late = new Promise<[Verdict, string]>((resolve) => {
      cancel = this.#after(ANSWER_MS, () => resolve(["failed", "ETIMEOUT"]));
    });
    const heard = question.records.then(verdictOf, (error: NodeJS.ErrnoException): [Verdict, string] => {
      const code = error.code ?? String(error);
      return [code === "ENOTFOUND" || code === "ENODATA" ? "clean" : "failed", code];
    });
    const verdict = await Promise.race([heard, late]);
    cancel();
    question.cancel();
    this.#questions.delete(question);
    return verdict;
  }

  #after(ms: number, task: () => void): () => void {
    const cancelTimer = this.#seams.after(ms, () => {
      this.#cancels.delete(cancel);
      task();
    });
    const cancel = (): void => {
      this.#cancels.delete(cancel);
      cancelTimer();
    };
    this.#cancels.add(cancel);
    return cancel;
  }
}

const COMPLAINTS: Readonly<Record<Verdict, string | null>> = {
  listed: null,
  clean: null,
  refused: "DNSBL refuses our questions; it changes nothing until it answers",
  strange: "DNSBL gives answers that no block list gives; they change nothing",
  failed: "DNSBL does not answer; it changes nothing until it does",
};

/**
 * RFC 5782, section 2.1: an entry is an address of 127.0.0.0/24, and 127.0.0.1 is none. The block
 * 127.255.255.0/24 is what lists have agreed upon for refusals (a public resolver, too many
 * questions). Anything else comes from somebody in between who answers for names that do not exist.
 */
function verdictOf(records: readonly AddressRecord[]): [Verdict, string] {
  const said = records.map(({ address }) => address).join(" ");
  if (records.length === 0) return ["clean", "ENODATA"];
  if (records.some(({ address }) => address.startsWith("127.255.255."))) return ["refused", said];
  const listed = records.some(({ address }) => address.startsWith("127.0.0.") && address !== "127.0.0.1");
  return [listed ? "listed" : "strange", said];
}

/** RFC 5782, sections 2.1 and 2.4: the bytes, or the nibbles of IPv6, the last one first. */
export function questionName(address: Uint8Array, domain: string): string {
  const labels =
    address.length === 4
      ? [...address].map(String)
      : [...address].flatMap((byte) => [byte >> 4, byte & 15].map((nibble) => nibble.toString(16)));
  return `${labels.reverse().join(".")}.${domain.replace(/^\.+|\.+$/g, "")}`;
}

const SEAMS: Omit<DnsblSeams, "ask"> = {
  now: () => performance.now(),
  after: (ms, task) => {
    const timer = setTimeout(task, ms);
    timer.unref();
    return () => clearTimeout(timer);
  },
};
