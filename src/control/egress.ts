/**
 * What the SOCKS server needs of the main thread: names, passwords, and which of its addresses it
 * may leave by. An address is in use while the host has it, no block list names it, and it works.
 */
import {
  EADDRNOTAVAIL, SOCK_CLOEXEC, SOCK_STREAM,
} from "../../native-bindings/constants.ts";
import type { Syscalls } from "../../native-bindings/syscalls.ts";
import type { Config, EgressConfig } from "../config/config.ts";
import { addressText } from "../config/endpoint.ts";
import type { EgressReader } from "../engine/egress-counters.ts";
import type { EgressSettings } from "../engine/egress.ts";
import type { Answer, Question } from "../engine/engine.ts";
import { writeSockaddr } from "../engine/front.ts";
import { OWN_RULES } from "../policy/access.ts";
import type { EgressAddress } from "../policy/egress.ts";
import { Dnsbl } from "./names/dnsbl.ts";
import type { Log } from "./log/log.ts";
import { type NameAnswer, Names } from "./names/names.ts";
import { SearchList } from "./names/search-list.ts";
import type { EgressHealth } from "./admin/socks-metrics.ts";
import { parseSecret, Users } from "./users.ts";

/** Dials in a window that came to something, one way or the other; fewer say nothing. */
const DIALS_MIN = 30;
const WINDOW_TICKS = 30;
/** By one or two, who may have asked for what is nowhere to have it so, nothing is judged. */
const CLIENTS_MIN = 3;
/** So long an address is out that gets no answers; twice as long when it then still gets none. */
const OUT_TICKS = 60;
const OUT_DOUBLED_MAX = 6;

export interface EgressOptions {
  readonly sys: Syscalls;
  readonly log: Log;
  readonly counters: EgressReader;
  /** Workers must be told: other addresses are in use. */
  readonly onChange: () => void;
}

interface Exit {
  readonly address: EgressAddress;
  readonly text: string;
  present: boolean;
  listed: boolean;
  /** Out until this tick. */
  outUntil: number;
  /** Windows in a row that it was found to get no answers in. */
  strikes: number;
  answered: number;
  failed: number;
}

export class EgressControl {
  readonly #options: EgressOptions;
  readonly names: Names;
  readonly #search = new SearchList();
  #config: EgressConfig | null = null;
  #timeouts: Config["timeouts"] | null = null;
  #mark: number | null = null;
  #users = new Users(new Map());
  #exits: Exit[] = [];
  #slots: readonly number[] = [];
  #ruleSlots: EgressSettings["ruleSlots"] = [];
  #dnsbl: Dnsbl | null = null;
  #ticks = 0;
  #usable = "";
  #health: ReadonlyMap<string, EgressHealth> = new Map();

  constructor(options: EgressOptions) {
    this.#options = options;
    this.names = new Names({ deadlineMs: 5000, log: options.log });
  }

  /** There are addresses to leave by, and none of them can be used. */
  get noExit(): boolean {
    return this.#exits.length > 0 && !this.#isUsable().includes(true);
  }

  /** How the address does; null: it is not in the configuration any more. */
  health(address: string): EgressHealth | null {
    return this.#health.get(address) ?? null;
  }

  /** Takes on another configuration; what it keeps is not asked for again. */
  configure(config: Config): void {
    const { log, counters } = this.#options;
    const egress = config.egress;
    this.#config = egress;
    this.#timeouts = config.timeouts;
    this.#mark = config.mark;
    this.names.deadlineMs = config.timeouts.dnsMs;
    this.#users = new Users(
      new Map((egress?.users ?? []).map(({ name, secret }) => [name, parseSecret(secret)!])),
    );
    const before = new Map(this.#exits.map((exit) => [exit.text, exit]));
    this.#exits = (egress?.addresses ?? []).map((address) => {
      const text = exitText(address);
      const old = before.get(text);
      const fresh = { present: true, listed: false, outUntil: 0, strikes: 0, answered: 0, failed: 0 };
      // What lists it is told again, by those that are still asked.
      return { ...fresh, ...old, listed: false, address, text };
    });
    this.#slots = counters.addressSlots(this.#exits.map(({ text }) => text));
    const rules = [...OWN_RULES.filter((rule) => rule !== "default"), ...(egress?.access.rules ?? []).map(({ name }) => name)];
    this.#ruleSlots = counters.ruleSlots(rules).map((slot, i) => ({ rule: rules[i]!, slot }));
    this.#look();
    const previous = this.#dnsbl?.states ?? [];
    this.#dnsbl?.close();
    this.#dnsbl = null;
    if (egress !== null && egress.dnsbl.domains.length > 0 && this.#exits.length > 0) {
      const { domains, intervalMs } = egress.dnsbl;
      const exits = this.#exits;
      this.#dnsbl = new Dnsbl({
        domains,
        intervalMs,
        log,
        previous,
        addresses: exits.map(({ address }) => address.bytes),
        onChange: (listed) => {
          for (const [i, exit] of exits.entries()) exit.listed = listed.has(i);
          this.#tell();
        },
      });
      this.#dnsbl.start();
    }
    this.#judged();
  }

  close(): void {
    this.#dnsbl?.close();
    this.names.close();
  }

  settings(): EgressSettings | null {
    const config = this.#config;
    const timeouts = this.#timeouts;
    if (config === null || timeouts === null) return null;
    const usable = this.#isUsable();
    return {
      access: config.access,
      login: config.users.length > 0,
      proxyProtocolFrom: config.proxyProtocolFrom,
      perClient: { most: config.maxPerClient, perSecond: config.ratePerClient },
      perUser: { most: config.maxPerUser, perSecond: config.ratePerUser },
      inAll: { most: null, perSecond: config.rate },
      outgoing: {
        mark: this.#mark,
        iface: config.iface,
        affinity: config.affinity,
        addresses: this.#exits.map(({ address }, i) => ({
          address, slot: this.#slots[i]!, usable: usable[i]!,
        })),
      },
      ruleSlots: this.#ruleSlots,
      negotiationMs: timeouts.negotiationMs,
      dnsMs: timeouts.dnsMs,
    };
  }

  /** Never rejects. */
  async answer(question: Question): Promise<Answer> {
    if (question.kind === "name") {
      const { name, client } = question;
      return { kind: "name", name, answer: await this.#resolve(name, client) };
    }
    const { row, id, client, user, password } = question;
    return { kind: "login", row, id, right: await this.#users.verify(user, password, client) };
  }

  /** The first of the names that it may stand for which has an address. */
  async #resolve(name: string, client: number): Promise<NameAnswer> {
    const failures: NameAnswer[] = [];
    for (const full of this.#search.names(name)) {
      const answer = await this.names.resolve(full, client);
      if (answer.failure === null) return answer;
      failures.push(answer);
    }
    // That there is no such name is known only if each of them was looked up.
    return failures.find(({ failure }) => failure !== "not-found") ?? failures[0]!;
  }

  /** To be called once a second. `look`: addresses of the host may have come or gone. */
  tick(look: boolean): void {
    this.#ticks++;
    if (this.#exits.length === 0) return;
    if (this.#ticks % WINDOW_TICKS === 0) this.#judge();
    if (look) this.#look();
    this.#tell();
  }

  #tell(): void {
    if (this.#judged()) this.#options.onChange();
  }

  /** True if other addresses are in use than before. */
  #judged(): boolean {
    const before = this.#usable;
    const usable = this.#isUsable();
    this.#usable = usable.join();
    this.#health = new Map(
      this.#exits.map((exit, i) => [exit.text, { usable: usable[i]!, listed: exit.listed, state: this.#stateOf(exit) }]),
    );
    return this.#usable !== before;
  }

  #stateOf({ present, listed, outUntil }: Exit): EgressHealth["state"] {
    if (!present) return "absent";
    if (listed) return "listed";
    return outUntil > this.#ticks ? "failing" : "ok";
  }

  #isUsable(): boolean[] {
    const whenMost = this.#config?.dnsbl.whenMostListed;
    const present = this.#exits.filter((exit) => exit.present);
    const listed = present.filter((exit) => exit.listed).length;
    const ignoreLists = whenMost === "use-all" && listed > present.length - listed;
    const clean = (exit: Exit) => exit.present && (ignoreLists || !exit.listed);
    // Where all are out, it is not the addresses that do not work.
    const works = (exit: Exit) => exit.outUntil <= this.#ticks;
    const allOut = !this.#exits.some((exit) => clean(exit) && works(exit));
    return this.#exits.map((exit) => clean(exit) && (allOut || works(exit)));
  }

  /** Which addresses does the host have? A bind tells, also of addresses on no interface. */
  #look(): void {
    const { sys, log } = this.#options;
    const memory = sys.memory(28);
    for (const exit of this.#exits) {
      const { bytes, prefix } = exit.address;
      if (prefix < bytes.length * 8) continue; // Bound with IP_FREEBIND.
      writeSockaddr(bytes, 0, memory.bytes, 0);
      const fd = sys.socket(memory.bytes[0]!, SOCK_STREAM | SOCK_CLOEXEC, 0);
      if (fd < 0) return;
      const present = sys.bind(fd, memory, 0, bytes.length === 4 ? 16 : 28) !== -EADDRNOTAVAIL;
      sys.close(fd);
      if (present === exit.present) continue;
      exit.present = present;
      if (present) log.info("an egress address is on this host again", { address: exit.text });
      else
        log.warning("an egress address is not on this host and is not used", {
          address: exit.text,
          remedy: `ip address add ${exit.text} dev INTERFACE, or take it out of outgoing.addresses`,
        });
    }
  }

  /**
   * Which addresses get no answers, where the others do? One that anybody has got an answer by works:
   * whoever asks for what is nowhere can take no address away from those for whom it works.
   */
  #judge(): void {
    const { counters, log } = this.#options;
    const counts = new Map(counters.addresses().map((each) => [each.address, each]));
    const clients = counters.failedClients();
    const window = this.#exits.map((exit) => {
      const { answered = 0, failed = 0 } = counts.get(exit.text) ?? {};
      const delta = { exit, answered: answered - exit.answered, failed: failed - exit.failed };
      exit.answered = answered;
      exit.failed = failed;
      return delta;
    });
    const answeredAll = window.reduce((sum, each) => sum + each.answered, 0);
    const failedAll = window.reduce((sum, each) => sum + each.failed, 0);
    for (const { exit, answered, failed } of window) {
      if (answered > 0) exit.strikes = 0;
      const others = answeredAll - answered;
      const othersWork = others >= DIALS_MIN && others >= failedAll - failed;
      const several = (clients.get(exit.text) ?? 0) >= CLIENTS_MIN;
      const wasOut = exit.outUntil > 0;
      if (answered === 0 && failed >= DIALS_MIN && several && othersWork) {
        const seconds = OUT_TICKS * 2 ** Math.min(exit.strikes++, OUT_DOUBLED_MAX);
        exit.outUntil = this.#ticks + seconds;
        log.warning("an egress address gets no answers and is not used for a while", {
          address: exit.text, failed, seconds,
        });
      } else if (wasOut && exit.outUntil <= this.#ticks) {
        exit.outUntil = 0;
        log.info("an egress address is tried again", { address: exit.text });
      }
    }
  }
}

/** "192.0.2.1", "2001:db8::1", "2001:db8:1::/64". */
export function exitText({ bytes, prefix }: EgressAddress): string {
  const host = addressText(bytes);
  return prefix < bytes.length * 8 ? `${host}/${prefix}` : host;
}
