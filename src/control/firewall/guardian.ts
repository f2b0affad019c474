/**
 * The guardian: a small process that owns the firewall's rules for a proxy, and outlives it. It sets
 * what it is ordered to, sees every few seconds whether that still stands, and mends it. Whatever ends
 * the proxy closes the socket between the two (file descriptor 3): then it sees to what is to stand
 * after the proxy, and ends, too.
 *
 * No signal ends it but KILL, and a session of its own keeps it out of the proxy's process group: what
 * is meant for the proxy reaches it by way of the socket. It loads no koffi and nothing of the data
 * plane; all it does it does through the tools of the host.
 */
import { appendFile } from "node:fs";
import { Socket } from "node:net";
import { hostname } from "node:os";
import type { Config, LogLevel } from "../../config/config.ts";
import { apply, compared, forgetRedirected, isAnyPresent, isRouted, type Listing, present, removeAll, usable } from "./kernel.ts";
import { isRouting, ruleOf } from "./marks.ts";
import type { FirewallPlan } from "./plan.ts";
import { type FirewallBackend, Refusal, refusalText } from "./tools.ts";
import { type Fields, LineFormat } from "../log/line.ts";

/** A line of JSON each, from the proxy. */
export interface Order {
  readonly number: number;
  /** What may set rules, the first that works. */
  readonly backends: readonly FirewallBackend[];
  /** What is to stand from now on. null: nothing of ours. */
  readonly now: FirewallPlan | null;
  /** What is to stand once the proxy has gone. */
  readonly after: FirewallPlan | null;
  /** `now` and `after` only take the place of rules of ours that are there: else none come. */
  readonly inPlace: boolean;
  /** Must be possible on this host, or the order has failed. */
  readonly trial: FirewallPlan | null;
  /** See whether it still stands. Not while another guardian may be about to set other rules. */
  readonly watch: boolean;
  /** The proxy before still serves, and its guardian sees to the rules if this proxy goes. */
  readonly isProvisional: boolean;
  /** For the last words, when nobody else is there to write them. */
  readonly log: { readonly topic: string } & Pick<Config["log"], "format" | "filename">;
}

/** ... and to it. */
export type Report =
  | { readonly kind: "done"; readonly number: number; readonly backend: FirewallBackend | null }
  /** It is tried again, and reported again once it is done. */
  | { readonly kind: "failed"; readonly number: number; readonly why: string }
  /** Somebody had changed the rules, and they stand again. What was missing, what was too much. */
  | { readonly kind: "mended"; readonly number: number; readonly changes: readonly string[] };

/** Instead of an order: everything stays as it is, and the guardian ends. */
const LEAVE = "leave";

const PROXY_FD = 3;
const STDERR_FD = 2;
const SIGNALS = ["SIGHUP", "SIGINT", "SIGQUIT", "SIGABRT", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM"] as const;
/** How often it is seen whether the rules stand; and ever less often the more often they do not. */
const WATCH_MS = 2000;
const WATCH_MS_MAX = 60_000;
const AGAIN_MS = 250;
const AGAIN_MS_MAX = 15_000;
/** Without a proxy, a failure is nobody's to see: after so long it is left to the operator. */
const GIVE_UP_MS = 60_000;
const WORDS_MS = 500;
/** How often rules are set at most until they are as they were. */
const ATTEMPTS = 5;
/** A table that is gone is told by its first lines. */
const CHANGES_MAX = 3;

interface Standing {
  readonly plan: FirewallPlan;
  readonly backend: FirewallBackend;
  /** As the tool lists them. */
  readonly listing: Listing;
}

class Guardian {
  #order: Order | null = null;
  /** The order that has been carried out. */
  #done: Order | null = null;
  /** When the proxy was found to have gone, in ms. */
  #orphanedMs: number | null = null;
  #leaving = false;
  #standing: Standing | null = null;
  readonly #proxy = new Socket({ fd: PROXY_FD });
  #news: () => void = () => {};

  constructor() {
    let text = "";
    this.#proxy.setEncoding("utf8");
    this.#proxy.on("data", (chunk) => {
      const lines = `${text}${chunk}`.split("\n");
      text = lines.pop()!;
      for (const line of lines) this.#hear(line);
    });
    this.#proxy.on("error", () => {});
    this.#proxy.on("close", () => this.#orphan());
  }

  /** Until there is nothing left to guard. */
  async live(): Promise<void> {
    let watchMs = WATCH_MS;
    let againMs = AGAIN_MS;
    while (!this.#leaving) {
      const order = this.#order;
      let waitMs = WATCH_MS_MAX;
      if (order === this.#done) {
        if (this.#orphanedMs !== null) return;
        if (order?.watch) {
          watchMs = (await this.#mend(order)) ? Math.min(2 * watchMs, WATCH_MS_MAX) : Math.max(watchMs / 2, WATCH_MS);
          waitMs = watchMs;
        }
      } else if (order !== null) {
        const failure = await this.#carryOut(order);
        if (failure === null) {
          againMs = AGAIN_MS;
          waitMs = 0;
        } else {
          if (this.#orphanedMs !== null && performance.now() - this.#orphanedMs > GIVE_UP_MS) return giveUp(order, failure);
          waitMs = againMs;
          againMs = Math.min(2 * againMs, AGAIN_MS_MAX);
        }
      }
      if (waitMs > 0 && this.#order === order && !this.#leaving) await this.#wait(waitMs);
    }
  }

  #hear(line: string): void {
    if (line === LEAVE) this.#leaving = true;
    else this.#order = JSON.parse(line) as Order;
    this.#news();
  }

  #orphan(): void {
    this.#orphanedMs = performance.now();
    if (this.#order?.isProvisional) this.#leaving = true;
    else if (this.#order !== null) this.#order = { ...this.#order, now: this.#order.after, trial: null, watch: false };
    this.#news();
  }

  /** Null, or what went wrong. */
  async #carryOut(order: Order): Promise<string | null> {
    try {
      if (order.trial !== null) await usable(order.backends, order.trial);
      const before = this.#standing;
      const { changed, standing } = await bring(order, before?.backend ?? null);
      this.#standing = standing;
      // While the proxy lives, what it holds works again when rules come back.
      if (before !== null && standing === null && this.#orphanedMs !== null) await forgetRedirected(before.plan);
      this.#done = order;
      if (this.#orphanedMs !== null && changed) await lastWords(order);
      this.#report({ kind: "done", number: order.number, backend: standing?.backend ?? null });
      return null;
    } catch (error) {
      const why = error instanceof Refusal ? refusalText(error) : String((error as Error).stack);
      this.#report({ kind: "failed", number: order.number, why });
      return why;
    }
  }

  /** Whether it was necessary. */
  async #mend(order: Order): Promise<boolean> {
    if (this.#standing === null) return false;
    const changes = await changesOf(this.#standing);
    // Whoever has ordered something else meanwhile gets that.
    if (changes.length === 0 || this.#order !== order) return false;
    if ((await this.#carryOut(order)) === null) this.#report({ kind: "mended", number: order.number, changes: changes.slice(0, CHANGES_MAX) });
    else this.#done = null;
    return true;
  }

  #report(report: Report): void {
    if (this.#orphanedMs === null) this.#proxy.write(`${JSON.stringify(report)}\n`);
  }

  /** For news, or so long. */
  #wait(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#news = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}

/** Sets what the order says, with the backend of before if that still works. Throws a Refusal. */
async function bring(
  { now, inPlace, backends }: Order, before: FirewallBackend | null,
): Promise<{ changed: boolean; standing: Standing | null }> {
  if (inPlace && !(await isAnyPresent())) return { changed: false, standing: null };
  if (now === null) {
    await removeAll(null);
    return { changed: true, standing: null };
  }
  const backend = await usable(before !== null && backends.includes(before) ? [before, ...backends] : backends, now);
  const listing = await set(backend, now);
  await removeAll(backend);
  return { changed: true, standing: { plan: now, backend, listing } };
}

/**
 * Sets them, and answers how the tool lists them. What somebody else has taken away by then would never be
 * missed: so a listing counts once the same rules, set again, are listed the same. Throws a Refusal.
 */
async function set(backend: FirewallBackend, plan: FirewallPlan): Promise<Listing> {
  let before: Listing | null = null;
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    await apply(backend, plan);
    const listing = await present(backend);
    if (before !== null && compared(before, listing).length === 0) return listing;
    before = listing;
  }
  throw new Refusal("somebody else changes the rules as often as they are set");
}

async function changesOf({ plan, backend, listing }: Standing): Promise<string[]> {
  const changes = compared(listing, await present(backend));
  if (!isRouting(plan)) return changes;
  for (const { family } of plan.families) {
    if (!(await isRouted(family, plan))) changes.push(`- ip -${family} rule ${ruleOf(plan)}`);
  }
  return changes;
}

function lastWords({ log, after }: Order): Promise<void> {
  return say(log, "warning", after === null
    ? "transplice has ended without a word; its firewall rules are removed, and connections go direct"
    : "transplice has ended without a word; connections are refused until it runs again, or until: transplice firewall remove", {});
}

function giveUp({ log }: Order, error: string): Promise<void> {
  return say(log, "critical", "transplice has ended without a word, and its firewall rules still stand; run: transplice firewall remove", { error });
}

/** To the log that nobody else writes now. A reader who does not read is no reason to stay. */
function say({ topic, format, filename }: Order["log"], level: LogLevel, message: string, fields: Fields): Promise<void> {
  const lines = new LineFormat({ topic, format, hostname: hostname(), defaults: { pid: process.pid } });
  return new Promise((resolve) => {
    setTimeout(() => process.kill(process.pid, "SIGKILL"), WORDS_MS).unref();
    appendFile(filename ?? STDERR_FD, lines.line(level, message, fields, Date.now()), () => resolve());
  });
}

for (const signal of SIGNALS) process.on(signal, () => {});
await new Guardian().live();
process.exit(0);
