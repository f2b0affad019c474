/**
 * Keeps the addresses of one upstream: an address stands for itself, a name is looked up here, on
 * the main thread, again and again, so that no worker ever resolves anything.
 *
 * The addresses come from getaddrinfo, so that /etc/hosts and nsswitch count; how long they hold
 * comes from DNS, where DNS has the same answer. A lookup that fails changes nothing: the last
 * good answer stays in use until there is a better one.
 */
import { promises as dns } from "node:dns";
import type { SocketAddress } from "../../config/config.ts";
import { endpointText, portOf, socketAddress } from "../../config/endpoint.ts";
import type { Log } from "../log/log.ts";

/** What a worker is given to try in turn; more would not be reached within a dial's deadline. */
const ADDRESSES_MAX = 16;
const LOOKUP_MS = 5000;
const TTL_MIN_MS = 5000;
const TTL_MAX_MS = 3_600_000;
/** Where nobody says: /etc/hosts has no TTL. */
const TTL_UNKNOWN_MS = 60_000;
const RETRY_MIN_MS = 1000;
const RETRY_MAX_MS = 60_000;
const REFRESH_MS = 1000;

export interface ResolverOptions {
  readonly host: string;
  readonly port: number;
  readonly log: Pick<Log, "warning" | "info">;
  /** Called when the addresses, or their order, are others than before. Not for a literal. */
  readonly onChange: (addresses: readonly SocketAddress[]) => void;
}

/** What a test replaces. */
export interface ResolverSeams {
  /** All addresses of a name, in the order to try them. Rejects with an errno-like `code`. */
  readonly lookup: (host: string) => Promise<readonly string[]>;
  /** What DNS says about one family. Rejects when it says nothing. */
  readonly records: (host: string, family: 4 | 6) => Promise<readonly AddressRecord[]>;
  readonly now: () => number;
  /** Runs `task` in `ms`; the answer cancels it. */
  readonly after: (ms: number, task: () => void) => () => void;
}

interface AddressRecord {
  readonly address: string;
  /** Seconds. */
  readonly ttl: number;
}

export class Resolver {
  readonly #options: ResolverOptions;
  readonly #seams: ResolverSeams;
  readonly #fixed: boolean;
  #addresses: readonly SocketAddress[] = Object.freeze([]);
  #running: Promise<void> | null = null;
  /** getaddrinfo cannot be cancelled and holds one of Node's few pool threads: never two. */
  #lookup: Promise<readonly string[]> | null = null;
  #startedAt = Number.NEGATIVE_INFINITY;
  #failures = 0;
  #cancelNext: (() => void) | null = null;
  #closed = false;

  constructor(options: ResolverOptions, seams: Partial<ResolverSeams> = {}) {
    this.#options = options;
    this.#seams = { ...SEAMS, ...seams };
    const literal = socketAddress(options.host, options.port);
    this.#fixed = literal !== null;
    if (literal !== null) this.#addresses = Object.freeze([literal]);
  }

  /** Empty while a name has never been resolved. */
  get addresses(): readonly SocketAddress[] {
    return this.#addresses;
  }

  /**
   * The first lookup; later ones follow by themselves until close(). Never rejects: when it fails
   * there are no addresses yet, and onChange will tell when there are.
   */
  async start(): Promise<readonly SocketAddress[]> {
    await this.#resolve();
    return this.#addresses;
  }

  /** To be called when a dial failed. Looks the name up now, unless that was done a moment ago. */
  async refresh(): Promise<void> {
    if (this.#running === null && this.#seams.now() - this.#startedAt < REFRESH_MS) return;
    await this.#resolve();
  }

  close(): void {
    this.#closed = true;
    this.#cancelNext?.();
    this.#cancelNext = null;
  }

  #resolve(): Promise<void> {
    if (this.#fixed || this.#closed) return Promise.resolve();
    this.#running ??= this.#attempt().finally(() => {
      this.#running = null;
    });
    return this.#running;
  }

  async #attempt(): Promise<void> {
    this.#cancelNext?.();
    this.#cancelNext = null;
    this.#startedAt = this.#seams.now();
    const records = this.#records();
    let texts: readonly string[];
    try {
      texts = await this.#within(this.#lookup ?? this.#startLookup());
    } catch (error) {
      this.#failed((error as NodeJS.ErrnoException).code ?? String(error));
      return;
    }
    this.#answered(texts, records);
  }

  #startLookup(): Promise<readonly string[]> {
    const lookup = this.#seams.lookup(this.#options.host);
    this.#lookup = lookup;
    lookup.then(
      (texts) => {
        this.#lookup = null;
        // Too late for the attempt that asked, but an answer: with a dead server in resolv.conf
        // every lookup may take longer than an attempt waits.
        if (this.#running === null) this.#answered(texts, this.#records());
      },
      () => {
        this.#lookup = null;
      },
    );
    return lookup;
  }

  #answered(texts: readonly string[], records: Promise<readonly AddressRecord[]>): void {
    if (this.#closed) return;
    const addresses = new Map<string, SocketAddress>();
    for (const text of texts) {
      const address = socketAddress(text, this.#options.port);
      if (address !== null && addresses.size < ADDRESSES_MAX) addresses.set(address.text, address);
    }
    if (addresses.size === 0) {
      this.#failed("ENODATA");
      return;
    }
    const found = Object.freeze([...addresses.values()]);
    this.#succeeded(found);
    // The addresses are of use at once; nobody waits for how long they hold.
    const startedAt = this.#startedAt;
    void records.then((answers) => {
      if (startedAt === this.#startedAt) this.#next(ttlOf(answers, found));
    });
  }

  #next(ms: number): void {
    if (this.#closed) return;
    this.#cancelNext?.();
    this.#cancelNext = this.#seams.after(ms, () => {
      this.#cancelNext = null;
      void this.#resolve();
    });
  }

  /** Never rejects: where DNS does not answer, there are no records. */
  async #records(): Promise<readonly AddressRecord[]> {
    const ask = async (family: 4 | 6): Promise<readonly AddressRecord[]> => {
      try {
        return await this.#within(this.#seams.records(this.#options.host, family));
      } catch {
        return [];
      }
    };
    return (await Promise.all([ask(4), ask(6)])).flat();
  }

  #within<T>(promise: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const cancel = this.#seams.after(LOOKUP_MS, () =>
        reject(Object.assign(new Error("timed out"), { code: "ETIMEOUT" })),
      );
      promise.then(resolve, reject).finally(cancel);
    });
  }

  #succeeded(addresses: readonly SocketAddress[]): void {
    const { host, port, log, onChange } = this.#options;
    if (this.#failures > 0) {
      log.info("upstream name resolves again", {
        addresses: addresses.map(({ text }) => text).join(" "),
        upstream: endpointText(host, port),
      });
    }
    this.#failures = 0;
    const same =
      addresses.length === this.#addresses.length &&
      addresses.every(({ text }, i) => text === this.#addresses[i]!.text);
    if (same) return;
    this.#addresses = addresses;
    onChange(addresses);
  }

  #failed(error: string): void {
    if (this.#closed) return;
    const { host, port, log } = this.#options;
    if (this.#failures === 0) {
      const known = this.#addresses.length > 0;
      log.warning(
        known
          ? "upstream name no longer resolves; its last addresses stay in use"
          : "upstream name does not resolve",
        { error, upstream: endpointText(host, port) },
      );
    }
    this.#failures++;
    this.#next(Math.min(RETRY_MIN_MS * 2 ** Math.min(this.#failures - 1, 10), RETRY_MAX_MS));
  }
}

/**
 * The shortest TTL of the addresses that are in use, bounded. Records of other addresses say
 * nothing about them: /etc/hosts may have the word.
 */
function ttlOf(records: readonly AddressRecord[], addresses: readonly SocketAddress[]): number {
  const used = new Set(addresses.map(({ text }) => text));
  const seconds = records
    .filter(({ address }) =>
      used.has(socketAddress(address, portOf(addresses[0]!.bytes, 0))?.text ?? ""),
    )
    .map(({ ttl }) => ttl);
  if (seconds.length === 0) return TTL_UNKNOWN_MS;
  return Math.min(Math.max(Math.min(...seconds) * 1000, TTL_MIN_MS), TTL_MAX_MS);
}

const SEAMS: ResolverSeams = {
  lookup: async (host) => {
    const answers = await dns.lookup(host, { all: true, verbatim: true });
    return answers.map(({ address }) => address);
  },
  records: async (host, family) => {
    const resolver = new dns.Resolver({ timeout: LOOKUP_MS, tries: 1 });
    return family === 4
      ? await resolver.resolve4(host, { ttl: true })
      : await resolver.resolve6(host, { ttl: true });
  },
  now: () => performance.now(),
  after: (ms, task) => {
    const timer = setTimeout(task, ms);
    timer.unref();
    return () => clearTimeout(timer);
  },
};
