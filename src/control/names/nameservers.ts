/**
 * The name servers of resolv.conf: a question goes out, its records or an error code come back.
 *
 * A try has a c-ares channel of its own while there are few, because one that lives on
 *   - knows the resolv.conf of the day it was made;
 *   - caches by itself from c-ares 1.31 on, where Node has not turned that off (nodejs/node#57640):
 *     an empty answer even for an hour (c-ares/c-ares#1293);
 *   - gives up after five times what answers have taken so far (nodejs/node#57839), so that a slow
 *     name fails because others were quick;
 *   - asks from one port for ever, which makes an answer easier to forge;
 *   - can be cancelled as a whole only.
 * What it would know and a fresh one does not, that a server is silent, is kept here.
 *
 * A channel knows one server, tries once, and takes no more questions after a timeout: from then on
 * c-ares 1.34.6 opens a socket for each, and a silent server would cost an fd for every question.
 */
import { promises as dns } from "node:dns";

export interface AddressRecord {
  readonly address: string;
  /** Seconds: the shortest of the record's own and of those of the aliases that led to it. */
  readonly ttl: number;
}

export interface Question {
  /** Rejects with a `code`: ENOTFOUND (no such name), ENODATA (no such record), ESERVFAIL, ... */
  readonly records: Promise<readonly AddressRecord[]>;
  /** Nobody waits for the answer any more: it may come to nothing, with ECANCELLED. */
  readonly cancel: () => void;
}

/** `patienceMs`: when the asker will give up; what is tried within it is divided accordingly. */
export type Ask = (name: string, family: 4 | 6, patienceMs: number) => Question;

/**
 * Channels, each with one socket; beyond, questions to the same server share one. When servers are
 * silent twice as many are on their way out, for as long as a try lasts: 36 sockets were seen, of
 * the 64 fds that are kept back.
 */
const CHANNELS_MAX = 12;
/** What a server is given at first; twice as much when all have been asked in vain. */
const TRY_MIN_MS = 250;
const TRY_MAX_MS = 2000;
/** For so long a server that was silent is asked after the others, unless it answers. */
const SILENT_MS = 30_000;
/** What one server says of itself rather than of the name: another may know better. */
const ELSEWHERE: ReadonlySet<string> = new Set([
  "ESERVFAIL",
  "EREFUSED",
  "ENOTIMP",
  "EFORMERR",
  "EBADRESP",
  "ECONNREFUSED",
]);

interface Channel {
  readonly resolver: dns.Resolver;
  readonly server: string;
  readonly timeoutMs: number;
  /** Under way on it. */
  questions: number;
}

export class Nameservers {
  /** Those that can take a question. */
  readonly #channels = new Set<Channel>();
  /** Those that had a timeout, while they have other questions: they end with them. */
  readonly #retired = new Set<Channel>();
  /** Servers that have been silent, and until when they are the last to be asked. */
  readonly #silent = new Map<string, number>();
  #closed = false;

  readonly ask: Ask = (name, family, patienceMs) => {
    let channel: Channel | null = null;
    let cancelled = false;
    const release = (): void => {
      if (channel !== null) this.#give(channel);
      channel = null;
    };
    const records = async (): Promise<readonly AddressRecord[]> => {
      const endsAt = performance.now() + patienceMs;
      const servers = this.#servers();
      for (let attempt = 0; ; attempt++) {
        if (this.#closed || cancelled) throw Object.assign(new Error("closed"), { code: "ECANCELLED" });
        const server = servers[attempt % servers.length]!;
        const firstMs = Math.min(Math.max(patienceMs / 3, TRY_MIN_MS), TRY_MAX_MS);
        const timeoutMs = Math.round(firstMs * 2 ** Math.floor(attempt / servers.length));
        const own = this.#take(server, timeoutMs);
        const { resolver } = own;
        channel = own;
        try {
          const asked =
            family === 4
              ? resolver.resolve4(name, { ttl: true })
              : resolver.resolve6(name, { ttl: true });
          const found = await within(timeoutMs, asked);
          this.#silent.delete(server);
          return found;
        } catch (error) {
          const code = (error as NodeJS.ErrnoException).code ?? "";
          if (code === "ENOTFOUND" || code === "ENODATA") this.#silent.delete(server);
          if (code === "ETIMEOUT") this.#timedOut(own);
          const again =
            code === "ETIMEOUT"
              ? performance.now() < endsAt
              : ELSEWHERE.has(code) && attempt < servers.length - 1;
          if (!again) throw error;
        } finally {
          release();
        }
      }
    };
    return {
      records: records(),
      cancel: () => {
        cancelled = true;
        if (channel !== null) this.#retire(channel);
        release();
      },
    };
  };

  /** Questions under way end with ECANCELLED, and so do all later ones. */
  close(): void {
    this.#closed = true;
    for (const { resolver } of [...this.#channels, ...this.#retired]) resolver.cancel();
  }

  /** Those of resolv.conf, as it is now, the silent ones behind the others. Never none. */
  #servers(): readonly string[] {
    const listed = new dns.Resolver().getServers();
    const now = performance.now();
    const silent = (server: string): boolean => (this.#silent.get(server) ?? 0) > now;
    const servers = [...listed.filter((server) => !silent(server)), ...listed.filter(silent)];
    return servers.length > 0 ? servers : ["127.0.0.1"];
  }

  #take(server: string, timeoutMs: number): Channel {
    const shared = this.#channels.size < CHANNELS_MAX ? undefined : this.#alike(server, timeoutMs);
    if (shared !== undefined) {
      // The one that was taken longest ago is the next to share, and then the last.
      this.#channels.delete(shared);
      this.#channels.add(shared);
      shared.questions++;
      return shared;
    }
    // Never the first to give up, but where c-ares knows better from other answers.
    const resolver = new dns.Resolver({ timeout: 2 * timeoutMs, tries: 1 });
    resolver.setServers([server]);
    const channel = { resolver, server, timeoutMs, questions: 1 };
    this.#channels.add(channel);
    return channel;
  }

  #alike(server: string, timeoutMs: number): Channel | undefined {
    for (const channel of this.#channels) {
      if (channel.server === server && channel.timeoutMs === timeoutMs) return channel;
    }
    return undefined;
  }

  #give(channel: Channel): void {
    if (--channel.questions > 0) return;
    this.#channels.delete(channel);
    this.#retired.delete(channel);
    channel.resolver.cancel();
  }

  #timedOut(channel: Channel): void {
    this.#silent.set(channel.server, performance.now() + SILENT_MS);
    this.#retire(channel);
  }

  /** A question was given up on which c-ares still has, and will find to have timed out. */
  #retire(channel: Channel): void {
    // Unless nobody holds it any more.
    if (this.#channels.delete(channel)) this.#retired.add(channel);
  }
}

/**
 * Node looks for timeouts of c-ares in intervals as long as the timeout itself, or a second, so that
 * they come late by up to as much again.
 */
function within<T>(ms: number, promise: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      reject(Object.assign(new Error("timed out"), { code: "ETIMEOUT" }));
    }, ms);
    promise.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}
