/**
 * The name servers of resolv.conf: a question goes out, its records or an error code come back.
 *
 * A question has a c-ares channel of its own while there are few, because one that lives on
 *   - knows the resolv.conf of the day it was made;
 *   - caches by itself from c-ares 1.31 on, where Node has not turned that off (nodejs/node#57640):
 *     an empty answer even for an hour (c-ares/c-ares#1293);
 *   - gives up after five times what answers have taken so far (nodejs/node#57839), so that a slow
 *     name fails because others were quick;
 *   - asks from one port for ever, which makes an answer easier to forge;
 *   - can be cancelled as a whole only.
 * What it would know and a fresh one does not, that a server is dead, is kept here.
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

/** Sockets at a time; beyond, questions share. Half of what the fd budget keeps back for us. */
const CHANNELS_MAX = 32;
/** A question is sent to one server so often at most, each time with twice the patience. */
const TRIES = 3;
const TRY_MIN_MS = 250;
const TRY_MAX_MS = 2000;
/** For so long a server that was silent is not the first to be asked. */
const DISTRUST_MS = 30_000;
/** What one server says of itself rather than of the name: another may know better. */
const ELSEWHERE: ReadonlySet<string> = new Set(["ESERVFAIL", "EREFUSED", "ENOTIMP", "EFORMERR"]);

interface Channel {
  readonly resolver: dns.Resolver;
  readonly servers: number;
  /** How far their list is turned. */
  readonly turn: number;
  /** What the first server is given before the second is asked. */
  readonly tryMs: number;
  /** Under way on it. */
  questions: number;
}

export class Nameservers {
  readonly #channels = new Set<Channel>();
  /** How far the list of resolv.conf is to be turned, and until when. */
  #turned = 0;
  #turnedUntil = 0;
  #closed = false;

  readonly ask: Ask = (name, family, patienceMs) => {
    const held = new Set<Channel>();
    const giveBack = (channel: Channel): void => {
      if (held.delete(channel)) this.#give(channel);
    };
    const attempt = async (channel: Channel): Promise<readonly AddressRecord[]> => {
      held.add(channel);
      const startedAt = performance.now();
      try {
        return family === 4
          ? await channel.resolver.resolve4(name, { ttl: true })
          : await channel.resolver.resolve6(name, { ttl: true });
      } finally {
        if (performance.now() - startedAt > channel.tryMs) this.#distrust(channel);
        giveBack(channel);
      }
    };
    let cancelled = false;
    const records = async (): Promise<readonly AddressRecord[]> => {
      if (this.#closed) throw Object.assign(new Error("closed"), { code: "ECANCELLED" });
      const channel = this.#take(patienceMs);
      try {
        return await attempt(channel);
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        // Node's channels take such an answer for the last word (ARES_FLAG_NOCHECKRESP).
        const again = !cancelled && !this.#closed && channel.servers > 1;
        if (!again || code === undefined || !ELSEWHERE.has(code)) throw error;
        return await attempt(this.#take(patienceMs, channel.turn + 1));
      }
    };
    return {
      records: records(),
      cancel: () => {
        cancelled = true;
        for (const channel of held) giveBack(channel);
      },
    };
  };

  /** Questions under way end with ECANCELLED, and so do all later ones. */
  close(): void {
    this.#closed = true;
    for (const { resolver } of this.#channels) resolver.cancel();
  }

  #take(patienceMs: number, turn = this.#turn()): Channel {
    if (this.#channels.size >= CHANNELS_MAX) {
      // The one that was taken longest ago is the next to share, and then the last.
      const [channel] = this.#channels;
      this.#channels.delete(channel!);
      this.#channels.add(channel!);
      channel!.questions++;
      return channel!;
    }
    const tryMs = Math.round(Math.min(Math.max(patienceMs / 3, TRY_MIN_MS), TRY_MAX_MS));
    const resolver = new dns.Resolver({ timeout: tryMs, tries: TRIES });
    const listed = resolver.getServers();
    const servers = listed.length;
    const from = turn % Math.max(servers, 1);
    if (from > 0) resolver.setServers([...listed.slice(from), ...listed.slice(0, from)]);
    const channel = { resolver, servers, turn, tryMs, questions: 1 };
    this.#channels.add(channel);
    return channel;
  }

  #give(channel: Channel): void {
    if (--channel.questions > 0) return;
    this.#channels.delete(channel);
    channel.resolver.cancel();
  }

  #turn(): number {
    return performance.now() < this.#turnedUntil ? this.#turned : 0;
  }

  /** Its first server was silent: for a while the next one is asked first. */
  #distrust(channel: Channel): void {
    // Many questions find the same server silent: the list is turned by one for all of them.
    if (channel.servers < 2 || channel.turn !== this.#turn()) return;
    this.#turned = channel.turn + 1;
    this.#turnedUntil = performance.now() + DISTRUST_MS;
  }
}
