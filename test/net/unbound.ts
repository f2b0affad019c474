/**
 * A real name server, unbound, with zones of the test's own: it serves them and counts what it was
 * asked. Names beneath no zone do not exist for it.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { Process } from "./process.ts";
import { HERE, type Place, PRIVATE } from "./sandbox.ts";

export interface UnboundOptions {
  /** Where it listens, at port 53. */
  addresses: readonly string[];
  /** Zone files by apex ("example"), without SOA and NS. null: the zone is sick, SERVFAIL. */
  zones?: Record<string, string | null>;
  /** Names about which it never says anything, but for the records ("NAME TTL TYPE DATA") given. */
  silent?: Record<string, readonly string[]>;
  /** Zones that it asks others about: "ADDRESS@PORT" by apex. */
  forward?: Record<string, string>;
}

let instances = 0;

export class Unbound {
  readonly process: Process;
  readonly #options: UnboundOptions;
  readonly #folder = `${PRIVATE}/unbound${instances++}`;
  #starts = 1;
  /** Output before this has been counted already. */
  #from = 0;

  constructor(options: UnboundOptions, place: Place = HERE) {
    this.#options = options;
    mkdirSync(this.#folder, { recursive: true });
    this.#write(options.zones ?? {});
    const command = ["-d", "-p", "-c", `${this.#folder}/unbound.conf`];
    this.process = place.within(() => new Process(place.name, "unbound", command, {}));
  }

  async ready(): Promise<this> {
    const started = (output: string): boolean => output.split("start of service").length > this.#starts;
    await this.process.says(started);
    return this;
  }

  /** Has it serve these zones, and no others, from now on. */
  async change(zones: Record<string, string | null>): Promise<void> {
    this.#write(zones);
    this.#starts++;
    this.process.signal("SIGHUP");
    await this.ready();
  }

  /** What it was asked since the last time, as "NAME TYPE", in alphabetical order. */
  asked(): string[] {
    const { output } = this.process;
    const asked = [...output.slice(this.#from).matchAll(/info: \S+ (\S+)\. (\S+) IN$/gm)];
    this.#from = output.length;
    return asked.map(([, name, type]) => `${name} ${type}`).sort();
  }

  #write(zones: Record<string, string | null>): void {
    const { addresses, silent = {}, forward = {} } = this.#options;
    const lines = [
      "server:",
      'chroot: ""',
      'username: ""',
      'pidfile: ""',
      `directory: "${this.#folder}"`,
      "use-syslog: no",
      "verbosity: 1",
      "log-queries: yes",
      ...addresses.map((address) => `interface: ${address}`),
      "access-control: 0.0.0.0/0 allow",
      "access-control: ::/0 allow",
      "rrset-roundrobin: no",
      "do-not-query-localhost: no",
      // Of those it asks: it would not hear answers that take longer.
      "unknown-server-time-limit: 5000",
      'module-config: "iterator"',
      ...Object.entries(silent).flatMap(([name, records]) => [
        `local-zone: "${name}." deny`,
        ...records.map((record) => `local-data: "${record}"`),
      ]),
      ...Object.entries(zones).flatMap(([apex, text]) => [
        "auth-zone:",
        `name: "${apex}."`,
        // To be had from where nobody is.
        text === null ? "primary: 127.0.0.1@9" : `zonefile: "${this.#folder}/${apex}"`,
        "for-upstream: no",
        "fallback-enabled: no",
      ]),
      ...Object.entries(forward).flatMap(([apex, to]) => [
        "forward-zone:",
        `name: "${apex}."`,
        `forward-addr: ${to}`,
      ]),
      "remote-control:",
      "control-enable: no",
    ];
    writeFileSync(`${this.#folder}/unbound.conf`, `${lines.join("\n")}\n`);
    for (const [apex, text] of Object.entries(zones)) {
      if (text !== null) writeFileSync(`${this.#folder}/${apex}`, `${head(apex)}${text}\n`);
    }
  }
}

const head = (apex: string): string => `$ORIGIN ${apex}.
$TTL 300
@ SOA ns.${apex}. root.${apex}. 1 3600 600 86400 60
@ NS ns.${apex}.
`;
