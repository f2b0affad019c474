/**
 * The firewall's rules that live as the proxy lives (firewall.manage):
 *
 *     nothing --begin--> waiting --the upstream has answered--> engaged --drain--> ending --end--> nothing
 *                           ^                                      |
 *                           `------ begin after an accident -------'
 *
 * Decides what is to stand; its guardian (guardian.ts), a process that outlives this one, sets it. While
 * it waits nothing is redirected, and a refusal that an earlier process has left stands. In the end
 * it is `on_failure` that says what is left, whatever the end.
 */
import type { Syscalls } from "../../../native-bindings/syscalls.ts";
import type { Config } from "../../config/config.ts";
import { backendsOf, planned } from "./firewall.ts";
import type { FirewallPlan } from "./plan.ts";
import { type FirewallBackend, Refusal, refusalText } from "./tools.ts";
import { Guard } from "./guard.ts";
import type { Order, Report } from "./guardian.ts";
import type { Log } from "../log/log.ts";
import { probe, type Probed } from "../probe.ts";
import type { Upstreams } from "../upstreams.ts";

/** The upstream is asked again after so long, and then ever less often. */
const ASK_MS = 500;
const ASK_MS_MAX = 15_000;

const WORDS: Readonly<Record<Exclude<Probed, { ok: true }>["at"], string>> = {
  dial: "cannot be connected",
  silent: "says nothing",
  closed: "closes the connection",
  malformed: "does not speak the protocol",
  credentials: "does not accept the user and the password",
  unlike: "may not be dialled with the mark",
};

type State =
  | { readonly at: "nothing" }
  | { readonly at: "waiting"; readonly why: string | null }
  /** null: the guardian is about it. */
  | { readonly at: "engaged"; readonly backend: FirewallBackend | null }
  | { readonly at: "ending" };

export interface ReignOptions {
  readonly sys: Syscalls;
  readonly log: Log;
  readonly upstreams: Upstreams;
}

export class Reign {
  readonly #options: ReignOptions;
  readonly #guard: Guard;
  #state: State = { at: "nothing" };
  #config: Config | null = null;
  #plan: FirewallPlan | null = null;
  /** What the guardian was told last. */
  #order: Omit<Order, "number"> | null = null;
  /** Moves on with every decision: what was begun before it has no say any more. */
  #turn = 0;
  #timer: NodeJS.Timeout | null = null;

  constructor(options: ReignOptions) {
    this.#options = options;
    this.#guard = new Guard({ log: options.log, onReport: (report) => this.#hear(report) });
  }

  /** Rules stand, or are about to. */
  get isEngaged(): boolean {
    return this.#state.at === "engaged";
  }

  /** In a few words; "" where there is nothing to say. */
  get status(): string {
    const state = this.#state;
    if (state.at === "waiting") return `nothing is redirected: ${state.why === null ? "the upstream is being asked" : `the upstream does not answer: ${state.why}`}`;
    return state.at === "engaged" ? `rules ${state.backend === null ? "are being set" : `engaged (${state.backend})`}` : "";
  }

  /**
   * The listeners stand. Resolves with what stands against rules, or [] with those to come once the
   * upstream answers. `adopted`: the process before has engaged them; they go on without a gap, and
   * until confirm() are left as they are, whatever becomes of us.
   */
  async begin(config: Config, adopted = false): Promise<string[]> {
    if (!isManaged(config)) return [];
    this.#next();
    const plan = await this.#planOf(config);
    if (typeof plan === "string") return [`firewall: ${plan}`];
    if (adopted) this.#state = { at: "engaged", backend: null };
    const failure = await this.#tell(config, plan, adopted ? { now: plan, watch: true, isProvisional: true } : waiting(config, plan));
    if (failure !== null) {
      await this.leave();
      return [`firewall: ${failure}`];
    }
    if (!adopted) this.#wait();
    return [];
  }

  /** The process before has nothing to say any more. */
  async confirm(): Promise<void> {
    if (this.#order?.isProvisional) await this.#again({ isProvisional: false });
  }

  /** Another configuration, whose listeners stand already beside those of before. All or nothing. */
  async change(config: Config): Promise<string[]> {
    const before = { config: this.#config, plan: this.#plan, order: this.#order };
    if (before.config === null || before.plan === null || before.order === null) return this.begin(config);
    if (!isManaged(config)) {
      await this.#release(before.config, before.plan);
      return [];
    }
    const plan = await this.#planOf(config);
    if (typeof plan === "string") return [`firewall: ${plan}`];
    this.#next();
    const { isEngaged } = this;
    const failure = await this.#tell(config, plan, isEngaged ? { now: plan, watch: true } : waiting(config, plan));
    if (failure !== null) await this.#tell(before.config, before.plan, before.order);
    if (!isEngaged) this.#wait();
    return failure === null ? [] : [`firewall: ${failure}`];
  }

  /** The upstream's name has come to other addresses. */
  async follow(): Promise<void> {
    const config = this.#config;
    if (config === null) return;
    if (this.#state.at === "waiting") return this.#wait();
    if (this.#state.at !== "engaged") return;
    const turn = this.#turn;
    const plan = await this.#planOf(config);
    if (turn !== this.#turn || typeof plan === "string" || JSON.stringify(plan) === JSON.stringify(this.#plan)) return;
    await this.#tell(config, plan, { now: plan, watch: true });
  }

  /** A successor is about to set its own. */
  async pause(): Promise<void> {
    if (this.isEngaged) await this.#again({ watch: false });
  }

  /** There is none. */
  async resume(): Promise<void> {
    if (this.isEngaged) await this.#again({ watch: true });
  }

  /** New connections go direct, or are refused; those that were handed over go on. */
  async drain(): Promise<void> {
    const { isEngaged } = this;
    this.#next();
    this.#state = { at: "ending" };
    const [config, plan] = [this.#config, this.#plan];
    if (!isEngaged || config === null || plan === null) return;
    const failure = await this.#tell(config, plan, { now: ended(config, plan) ?? { ...plan, stage: "draining" } });
    if (failure !== null) this.#options.log.error("the firewall's rules cannot be changed", { error: failure });
  }

  /** After the last connection, and after drain(): what the policy says is left, and no guardian. */
  async end(): Promise<void> {
    this.#next();
    const [config, plan, order] = [this.#config, this.#plan, this.#order];
    if (config === null || plan === null || order === null) return;
    const now = ended(config, plan);
    // What is only in place of others is there already, and so is a refusal.
    const failure = order.inPlace || now !== null ? null : await this.#tell(config, plan, { now });
    if (failure !== null) {
      // The guardian goes on trying when we are gone.
      this.#options.log.error("the firewall's rules cannot be removed", { error: failure });
      return;
    }
    const wasEngaged = !order.inPlace;
    await this.leave();
    if (wasEngaged) this.#options.log.info(now === null ? "the firewall's rules are removed" : "the firewall's rules refuse connections from now on");
  }

  /** Whatever stands is another's from now on. */
  async leave(): Promise<void> {
    this.#next();
    this.#state = { at: "nothing" };
    this.#config = null;
    this.#order = null;
    await this.#guard.leave();
  }

  /** Rules are not ours to set any more: they go as when the process ends, but it goes on. */
  async #release(config: Config, plan: FirewallPlan): Promise<void> {
    const { isEngaged } = this;
    const turn = this.#next();
    this.#state = { at: "ending" };
    const remove = async (): Promise<void> => {
      if (turn !== this.#turn) return;
      await this.#tell(config, plan, { now: null, after: null });
      if (turn === this.#turn) await this.leave();
    };
    if (!isEngaged) return remove();
    await this.#tell(config, plan, { now: { ...plan, stage: "draining" }, after: null });
    this.#timer = setTimeout(() => void remove(), config.timeouts.drainMs);
  }

  /** Asks the upstream until it answers, and then engages. */
  #wait(): void {
    const turn = this.#next();
    const config = this.#config!;
    const before = this.#state;
    this.#state = before.at === "waiting" ? before : { at: "waiting", why: null };
    let ms = ASK_MS;
    const ask = async (): Promise<void> => {
      const why = await this.#ask(config);
      if (turn !== this.#turn) return;
      if (why === null) return this.#engage(config);
      this.#tellWhy(why);
      this.#timer = setTimeout(() => void ask(), ms);
      ms = Math.min(2 * ms, ASK_MS_MAX);
    };
    void ask();
  }

  /** Null: one of its addresses answers. Else why none does, in words. */
  async #ask({ upstream, mark, timeouts }: Config): Promise<string | null> {
    if (upstream === null || upstream.kind === "direct") return null;
    const { sys, upstreams } = this.#options;
    const addresses = upstreams.addressesOf(upstream);
    if (addresses.length === 0) return `${upstream.host} has no address now`;
    const { kind, credentials } = upstream;
    const answers = addresses.map(async (to) => {
      const { dialMs, handshakeMs } = timeouts;
      const probed = await probe({ sys, to, identity: { mark, uid: null }, kind, credentials, dialMs, patienceMs: dialMs + handshakeMs });
      if (!probed.ok) throw new Error(`${to.text} ${WORDS[probed.at]}: ${probed.detail}`);
    });
    return Promise.any(answers).then(() => null, ({ errors }: AggregateError) => errors.map(({ message }: Error) => message).join(" | "));
  }

  async #engage(config: Config): Promise<void> {
    const turn = this.#next();
    // Its name may have come to other addresses meanwhile.
    const plan = await this.#planOf(config);
    if (turn !== this.#turn) return;
    if (typeof plan === "string") {
      this.#tellWhy(plan);
      this.#timer = setTimeout(() => this.#wait(), ASK_MS_MAX);
      return;
    }
    this.#state = { at: "engaged", backend: null };
    await this.#tell(config, plan, { now: plan, watch: true });
  }

  #tellWhy(why: string): void {
    const state = this.#state;
    if (state.at === "waiting" && state.why === why) return;
    this.#state = { at: "waiting", why };
    this.#options.log.warning("nothing is redirected: the upstream does not answer; transplice doctor says more", { error: why });
  }

  #tell(config: Config, plan: FirewallPlan, order: Orders): Promise<string | null> {
    this.#config = config;
    this.#plan = plan;
    const { format, filename } = config.log;
    this.#order = {
      inPlace: false, trial: null, watch: false, isProvisional: false, after: ended(config, plan), ...order,
      backends: backendsOf(config), log: { topic: this.#options.log.topic, format, filename },
    };
    return this.#guard.order(this.#order);
  }

  /** The last order, with a difference. */
  #again(change: Partial<Order>): Promise<string | null> {
    this.#order = { ...this.#order!, ...change };
    return this.#guard.order(this.#order);
  }

  #hear(report: Report): void {
    const { log } = this.#options;
    switch (report.kind) {
      case "done":
        if (this.#state.at !== "engaged" || report.backend === null) return;
        if (this.#state.backend === null) log.info("the firewall's rules are engaged", { backend: report.backend });
        this.#state = { at: "engaged", backend: report.backend };
        return;
      case "failed":
        // Then it is an error of begin().
        if (this.#state.at !== "nothing") log.error("the firewall's rules cannot be set", { error: report.why });
        return;
      case "mended":
        log.warning("somebody had changed the firewall's rules; they stand again", { changes: report.changes.join(" | ") });
        return;
    }
  }

  /** Or why there is none. */
  async #planOf(config: Config): Promise<FirewallPlan | string> {
    try {
      return await planned(config, this.#options.upstreams.hosts);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      return refusalText(error);
    }
  }

  /** Whatever is going on has no say any more. */
  #next(): number {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    return ++this.#turn;
  }
}

/** What is ordered, where it is not the rule. */
type Orders = Pick<Order, "now"> & Partial<Pick<Order, "after" | "inPlace" | "trial" | "watch" | "isProvisional">>;

/** Nobody is redirected yet; what an earlier process has left becomes what it should have. */
const waiting = (config: Config, plan: FirewallPlan): Orders => ({ now: ended(config, plan), inPlace: true, trial: plan });

/** firewall.manage says nothing where there is no transparent proxy. */
const isManaged = ({ firewall, upstream }: Config): boolean => firewall.manage && upstream !== null;

/** What is left when the proxy has ended, however it has. */
const ended = ({ firewall }: Config, plan: FirewallPlan): FirewallPlan | null =>
  firewall.onFailure === "closed" ? { ...plan, stage: "refused" } : null;
