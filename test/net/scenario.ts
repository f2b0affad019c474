/**
 * A scenario: a test with a network of hosts, whose actors are ended after it, and whose programs'
 * output is shown if it fails.
 */
import { test, type TestContext } from "node:test";
import { abandonClients, Listener } from "./actors.ts";
import { type Backend, intercept, type Interception, refusal, type Rules } from "./firewall.ts";
import { type Network, network } from "./network.ts";
import type { Process } from "./process.ts";
import { Relay, type Settings, type StartOptions } from "./relay.ts";
import { enter, type Host } from "./sandbox.ts";
import { type Script, Upstream } from "./upstream.ts";

await enter("run the tests as root, as `sudo env PATH=\"$PATH\" make test` does");

const LINES_SHOWN = 60;
/** The last resort: each wait has a bound of its own, and says what it has waited for. */
const SCENARIO_MS = 600_000;

let shared: Network | undefined;

/** Thrown by Stage.skip(): the scenario cannot be played here, and the reason is reported. */
class Skip extends Error {}

export class Stage {
  readonly net: Network;
  readonly #programs: Process[] = [];
  readonly #undo: (() => void | Promise<void>)[] = [];
  readonly #context: TestContext;

  constructor(context: TestContext) {
    this.#context = context;
    this.net = shared ??= network();
    // What the kernel takes for connections of the last scenario would lead those of this one astray.
    for (const family of ["ipv4", "ipv6"]) this.net.relay.attempt("conntrack", ["-F", "-f", family]);
  }

  /** Ends the scenario as not played, with the reason. */
  skip(reason: string): never {
    throw new Skip(reason);
  }

  note(text: string): void {
    this.#context.diagnostic(text);
  }

  /** To be done at the end, last in first out. */
  finally(undo: () => void | Promise<void>): void {
    this.#undo.push(undo);
  }

  /** Has the program ended with the scenario, without ceremony, and its output shown if that fails. */
  keep(program: Process): Process {
    this.#programs.push(program);
    this.finally(async () => {
      program.kill();
      await program.exited;
    });
    return program;
  }

  spawn(host: Host, command: string, ...args: string[]): Process {
    return this.keep(host.spawn(command, args));
  }

  /** transplice on the relay host, running. */
  async relay(settings: Settings, options: StartOptions = {}): Promise<Relay> {
    return this.relayStarting(settings, options).ready();
  }

  relayStarting(settings: Settings, options: StartOptions = {}): Relay {
    const relay = Relay.spawn(this.net.relay, settings, options);
    this.keep(relay.process);
    return relay;
  }

  /** Rules on the relay host. Without a dialect: any that this machine has. */
  intercept(what: Interception, dialect?: Backend): Rules {
    const backends =
      dialect === undefined ? (["nft", "iptables-nft", "iptables-legacy"] as const) : [dialect];
    const reasons = backends.map((backend) => refusal(backend, what));
    const usable = backends[reasons.indexOf(null)];
    if (usable === undefined) this.skip(reasons.join("; "));
    const rules = intercept(this.net.relay, usable, what);
    this.finally(() => rules.remove());
    return rules;
  }

  upstream(script: Script, address = "192.0.2.2", port = 1080): Upstream {
    const upstream = new Upstream(this.net.proxy, address, port, script);
    this.finally(() => upstream.close());
    return upstream;
  }

  listen(...args: ConstructorParameters<typeof Listener>): Listener {
    const listener = new Listener(...args);
    this.finally(() => listener.close());
    return listener;
  }

  /** May come before the scenario's own end, where it plays the same twice. */
  async end(): Promise<void> {
    for (const undo of this.#undo.splice(0).reverse()) await undo();
    abandonClients();
  }

  /** The last words of each program. */
  tell(): void {
    for (const program of this.#programs) {
      const lines = program.output.trimEnd().split("\n");
      const shown = lines.slice(-LINES_SHOWN);
      const omitted = lines.length - shown.length;
      this.note(`── ${program.title}${omitted > 0 ? ` (${omitted} lines before)` : ""}:`);
      for (const line of shown) this.note(`   ${line}`);
    }
  }
}

export function scenario(
  name: string,
  play: (stage: Stage) => Promise<void>,
): void {
  test(name, { timeout: SCENARIO_MS }, async (context) => {
    const stage = new Stage(context);
    try {
      await play(stage);
    } catch (error) {
      if (error instanceof Skip) {
        context.skip(error.message);
        return;
      }
      stage.tell();
      throw error;
    } finally {
      await stage.end();
    }
  });
}
