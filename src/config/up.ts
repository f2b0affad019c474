/**
 * What `transplice up` runs with: a configuration as ever, from a file or from an upstream's address
 * alone; or none, and then the whole chain on this host, a relay and an egress on loopback. Rules are
 * managed, transplice's own connections are exempt by a mark, and nothing is left of them at the end.
 */
import { existsSync } from "node:fs";
import { createServer } from "node:net";
import type { AddressInfo } from "node:net";
import type { Config } from "./config.ts";
import { DEFAULT_FILE, loadConfig, OWN } from "./file.ts";
import type { Override } from "./parse.ts";
import { type Loaded, parseAs } from "./program.ts";
import type { Variable } from "./variables.ts";

/** Nobody who has asked for a terminal's worth of proxy waits longer for connections to end. */
const DRAIN_MS_MAX = 5000;
const MARK = 0x1081;
/** What stands in for a file's name. */
const PLACE = "transplice up";

export interface UpSource {
  /** null: the default file, if there is one. */
  readonly file: string | null;
  /** In place of a file. */
  readonly upstream: string | null;
  readonly overrides: readonly Override[];
}

/** Of the egress that is its own upstream; the same for the life of the process. */
let egressPort: number | null = null;

export async function loadUp({ file, upstream, overrides }: UpSource, variables: readonly Variable[]): Promise<Loaded> {
  const said = file ?? (existsSync(DEFAULT_FILE) ? DEFAULT_FILE : null);
  const loaded = await (async (): Promise<Loaded> => {
    if (upstream !== null) {
      return parseAs("transplice", "", PLACE, [...overrides, { key: "proxy_url", text: upstream, from: "UPSTREAM" }], OWN);
    }
    if (said !== null) return loadConfig(said, overrides, OWN, variables);
    egressPort ??= await freePort();
    return parseAs("transplice", chain(egressPort), PLACE, overrides, OWN);
  })();
  if ("problems" in loaded) return loaded;
  if (loaded.config.upstream === null) {
    const message = "says nothing of an upstream, to which connections are to be led; add proxy_url, or name one: transplice up socks5://HOST:PORT";
    return { problems: [{ place: said ?? PLACE, line: null, column: null, key: null, message }] };
  }
  return { ...loaded, config: temporary(loaded.config, overrides) };
}

/** Every connection passes this process twice: as a relay's, and as an egress'. */
export const isChain = ({ upstream, egress }: Config): boolean =>
  upstream !== null && upstream.kind !== "direct" && egress !== null && egressPort !== null && upstream.port === egressPort;

function temporary(config: Config, overrides: readonly Override[]): Config {
  const { log, timeouts, firewall, mark } = config;
  // Standard error is where the lines of traffic are, too.
  const isQuiet = log.filename === null && !overrides.some(({ key }) => key === "log.level");
  return {
    ...config,
    mark: mark ?? MARK,
    timeouts: { ...timeouts, drainMs: Math.min(timeouts.drainMs, DRAIN_MS_MAX) },
    log: isQuiet ? { ...log, level: "warning" } : log,
    firewall: { ...firewall, manage: true, onFailure: "open" },
  };
}

const chain = (port: number): string => `proxy_url = "socks5://127.0.0.1:${port}"
[incoming]
port = ${port}
addresses = ["127.0.0.1"]
allow_from = ["127.0.0.1/32"]
`;

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address() as AddressInfo;
      server.close(() => resolve(port));
    });
  });
}
