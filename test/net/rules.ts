/**
 * What the scenarios of managed and of commanded rules have in common: the command, all that a kernel
 * has of rules, an administrator's own beside ours, and servers that tell by which way one came.
 */
import { strict as assert } from "node:assert";
import { writeFileSync } from "node:fs";
import { FAMILIES, SERVER } from "./network.ts";
import { MAIN, type Settings, toml } from "./relay.ts";
import { PRIVATE } from "./sandbox.ts";
import type { Stage } from "./scenario.ts";
import { webServer } from "./web.ts";

export const BACKENDS = ["nft", "iptables", "iptables-legacy"] as const;
const ADMINISTRATOR = `table inet theirs {
  chain output { type filter hook output priority 0; policy accept; tcp dport 9 counter accept; }
}
`;

let files = 0;

export class Firewall {
  readonly #stage: Stage;
  readonly #file = `${PRIVATE}/firewall-${files++}.toml`;

  constructor(stage: Stage, settings: Settings) {
    this.#stage = stage;
    writeFileSync(this.#file, toml(settings));
    stage.finally(() => void this.run("remove"));
  }

  change(settings: Settings): void {
    writeFileSync(this.#file, toml(settings));
  }

  run(action: string, ...flags: string[]): { status: number | null; stdout: string; stderr: string } {
    return this.runAs([], action, ...flags);
  }

  /** `as`: a command that starts another with fewer rights. */
  runAs(as: readonly string[], action: string, ...flags: string[]): ReturnType<Firewall["run"]> {
    const [command, ...args] = [...as, process.execPath, MAIN, "firewall", action, "-f", this.#file, ...flags];
    return this.#stage.net.relay.attempt(command!, args);
  }

  /** The answer; or the scenario is not for this machine. */
  apply(backend: string): string {
    const { status, stdout, stderr } = this.run("apply", "--backend", backend);
    if (status !== 0 && /not installed|incompatible|not supported|does not exist|can't initialize/.test(stderr)) this.#stage.skip(stderr);
    assert.equal(status, 0, stderr);
    return stdout;
  }

  status(): string {
    const { status, stdout, stderr } = this.run("status");
    return `${status} ${stdout.split("\n")[0]}${stderr}`;
  }
}

/** All that the kernel has of rules, without dates and counters of packets. */
export function everything(stage: Stage): string {
  const host = stage.net.relay;
  // The old tables are there once somebody has looked.
  const saves = ["iptables-legacy-save", "ip6tables-legacy-save"].map((tool) => host.attempt(tool, []).stdout);
  const rules = ["-4", "-6"].flatMap((family) => [host.attempt("ip", [family, "rule"]).stdout, host.attempt("ip", [family, "route", "show", "table", "all"]).stdout]);
  return [host.attempt("nft", ["-s", "list", "ruleset"]).stdout, ...saves, ...rules]
    .join("\n").replaceAll(/^#.*$/gm, "").replaceAll(/^.* proto kernel .*$/gm, "").replaceAll(/\[\d+:\d+\]|expires \d+sec/g, "")
    // Link-local addresses come when the kernel has made sure of them.
    .replaceAll(/\n+/g, "\n");
}

export function touchLegacy(stage: Stage): void {
  for (const tool of ["iptables-legacy", "ip6tables-legacy"]) {
    for (const table of ["nat", "mangle"]) stage.net.relay.attempt(tool, ["-t", table, "-S"]);
  }
}

export function theirs(stage: Stage): void {
  const host = stage.net.relay;
  host.run("nft", ["-f", "-"], ADMINISTRATOR);
  stage.finally(() => void host.run("nft", ["delete", "table", "inet", "theirs"]));
}

export function servers(stage: Stage, port = 80): void {
  for (const family of FAMILIES) {
    const server = webServer(stage.net.internet, SERVER[family], port);
    stage.finally(() => {
      server.closeAllConnections();
      server.close();
    });
  }
}

export const MARK = 0x1081;
