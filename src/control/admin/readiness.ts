/**
 * Whether this process does what it is there for. What is known already is used first: as long as all
 * connections go through, nobody needs to try; only where one has failed, or nobody has dialled lately,
 * the upstream is asked, once in a while for whoever wants to know.
 */
import type { SocketAddress } from "../../config/config.ts";
import type { WorkerView } from "../fleet.ts";

export interface UpstreamView {
  /** As it is written in the configuration, without secrets. */
  readonly text: string;
  /** Those that may be dialled. */
  readonly addresses: readonly SocketAddress[];
}

export interface ReadinessSources {
  readonly stopping: () => boolean;
  readonly workers: () => readonly WorkerView[];
  readonly upstreams: () => readonly UpstreamView[];
  /** By the last minute's dials. */
  readonly isFailing: (address: string) => boolean;
  /** By the latest of them: all got through. */
  readonly isAnswering: (address: string) => boolean;
  /** null: the upstream answers; or why not. Never rejects. */
  readonly probe: (upstream: UpstreamView) => Promise<string | null>;
  /** Of the egress: its addresses are configured, and none of them can be used. */
  readonly noExit: () => boolean;
}

/** An answer of the upstream's holds so long, for who asks it. */
const PROBED_MS = 5000;
/** That it gave none is known so long, as a failed dial is. */
const KNOWN_MS = 60_000;

interface Probed {
  readonly atMs: number;
  readonly outcome: Promise<string | null>;
  /** The outcome, as soon as it is there. */
  why: string | null;
}

export class Readiness {
  readonly #sources: ReadinessSources;
  readonly #probed = new Map<string, Probed>();

  constructor(sources: ReadinessSources) {
    this.#sources = sources;
  }

  /** What is wrong with the process itself. */
  get ills(): string[] {
    const workers = this.#sources.workers();
    const ills = workers.filter(({ state }) => state === "hangs").map(({ number }) => `worker ${number} hangs`);
    if (workers.every(({ state }) => state === "down")) ills.push("no worker runs");
    return ills;
  }

  /** Why it is of no use to send connections here, as far as that is known. */
  get problems(): string[] {
    const { isFailing, isAnswering } = this.#sources;
    const upstreams = this.#sources.upstreams();
    const problems = this.#ownProblems(upstreams);
    for (const upstream of upstreams) {
      const { text, addresses } = upstream;
      if (addresses.length === 0 || addresses.some((address) => isAnswering(address.text))) continue;
      const probed = this.#probed.get(keyOf(upstream));
      if (addresses.every((address) => isFailing(address.text))) problems.push(`${text}: most dials of the last minute failed`);
      else if (probed !== undefined && probed.why !== null && performance.now() - probed.atMs < KNOWN_MS) problems.push(`${text} does not answer: ${probed.why}`);
    }
    return problems;
  }

  /** The same, where the upstream is asked if need be. */
  async check(): Promise<string[]> {
    const upstreams = this.#sources.upstreams();
    const asked = await Promise.all(upstreams.map(async (upstream) => {
      const { text, addresses } = upstream;
      if (addresses.length === 0 || addresses.some((address) => this.#sources.isAnswering(address.text))) return null;
      const why = await this.#ask(upstream);
      return why === null ? null : `${text} does not answer: ${why}`;
    }));
    return [...this.#ownProblems(upstreams), ...asked.filter((why) => why !== null)];
  }

  #ownProblems(upstreams: readonly UpstreamView[]): string[] {
    const { stopping, noExit } = this.#sources;
    const problems = this.ills;
    if (stopping()) problems.push("this process is stopping");
    for (const { text, addresses } of upstreams) {
      if (addresses.length === 0) problems.push(`${text}: its name has no address`);
    }
    if (noExit()) problems.push("none of outgoing.addresses can be used");
    return problems;
  }

  /** Many who ask at once are one question. */
  #ask(upstream: UpstreamView): Promise<string | null> {
    const key = keyOf(upstream);
    const now = performance.now();
    const known = this.#probed.get(key);
    if (known !== undefined && now - known.atMs < PROBED_MS) return known.outcome;
    // What was asked of former configurations is of no use.
    for (const [old, { atMs }] of this.#probed) if (now - atMs >= KNOWN_MS) this.#probed.delete(old);
    const probed: Probed = { atMs: now, outcome: this.#sources.probe(upstream), why: known?.why ?? null };
    this.#probed.set(key, probed);
    // Who asked hears of a probe that could not be made.
    probed.outcome.then((why) => (probed.why = why), () => {});
    return probed.outcome;
  }
}

const keyOf = ({ text, addresses }: UpstreamView): string => `${text} ${addresses.map((address) => address.text).join()}`;
