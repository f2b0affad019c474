/**
 * The metrics over HTTP, for Prometheus: usocksd's under its very names and labels, and behind them
 * our own, named transplice_.
 *
 * Everything is read from shared memory when somebody asks; no worker notices, and nothing here
 * happens for a connection. Each address has a server of its own; whoever connects has a few
 * seconds to ask and to take the answer.
 */
import http from "node:http";
import type { Socket } from "node:net";
import { type Metric, type OpenMetricsContentType, Registry } from "prom-client";
import type { ListenAddress } from "../config/config.ts";
import { endpointText, splitHostPort } from "../config/endpoint.ts";
import type { AddressCounts, RuleCount } from "../engine/egress-counters.ts";
import {
  type AddressType, type AuthMethod, type HistogramTotals, type SocksTotals, type SocksVersion, STATUS,
  STATUS_NAMES,
} from "../engine/socks-counters.ts";
import type { Log } from "./log.ts";
import type { NamesStats } from "./names.ts";

/** Current numbers, all asked for once in each scrape. */
export interface MetricsSources {
  readonly socks: () => SocksTotals;
  readonly addresses: () => readonly AddressCounts[];
  /** null: this address is no longer in the pool. */
  readonly health: (address: string) => EgressHealth | null;
  readonly denied: () => readonly RuleCount[];
  readonly names: () => NamesStats;
}

export interface EgressHealth {
  /** New connections may leave from it. */
  readonly usable: boolean;
  /** A DNSBL lists it. */
  readonly listed: boolean;
}

export type MetricsAddress = Pick<ListenAddress, "text" | "dualStack">;

/** For a request to come, and again for its answer to go. */
const REQUEST_MS = 5000;
/** For an answer under way when its address is let go. */
const LEAVE_MS = 1000;
/** Longer than the usual scrape intervals, so that a scraper keeps its connection. */
const KEEP_ALIVE_MS = 75_000;
/** Per address; what comes beyond is closed at once. */
const CONNECTIONS_MAX = 64;

export class SocksMetrics {
  readonly #log: Pick<Log, "error" | "warning">;
  readonly #page: Page;
  readonly #requestMs: number;
  readonly #servers = new Map<string, http.Server>();
  /** A socket that listens there already, for a server of ours to have; or null. */
  readonly #passed: (address: MetricsAddress) => number | null;

  constructor(
    sources: MetricsSources, log: Pick<Log, "error" | "warning">,
    passed: (address: MetricsAddress) => number | null = () => null, requestMs = REQUEST_MS,
  ) {
    this.#passed = passed;
    this.#log = log;
    this.#page = new Page(sources);
    this.#requestMs = requestMs;
  }

  /** Where it listens really. */
  get listening(): string[] {
    return [...this.#servers.values()].map((server) => {
      const bound = server.address();
      if (bound === null || typeof bound === "string") return "-";
      return endpointText(bound.address, bound.port);
    });
  }

  /** All or nothing: listens on each, or answers what went wrong. */
  listen(addresses: readonly MetricsAddress[]): Promise<string[]> {
    return this.move(addresses);
  }

  /**
   * Listens on these from now on: the sockets of addresses that stay are not touched, and others
   * are let go when the new ones stand. When anything goes wrong, it is answered, and nothing has
   * changed. Not to be called again before it has answered.
   */
  async move(addresses: readonly MetricsAddress[]): Promise<string[]> {
    const wanted = new Map(addresses.map((address) => [keyOf(address), address]));
    const leaving = [...this.#servers].filter(([key]) => !wanted.has(key));
    const opened = new Map<string, http.Server>();
    const wrong: string[] = [];
    const inTheWay: MetricsAddress[] = [];
    for (const [key, address] of wanted) {
      if (this.#servers.has(key)) continue;
      const server = await this.#open(address);
      if (server instanceof http.Server) opened.set(key, server);
      else if (server.code === "EADDRINUSE" && leaving.some(([, old]) => sharePort(old, address)))
        inTheWay.push(address);
      else wrong.push(textOf(address, server));
    }
    if (wrong.length === 0 && inTheWay.length > 0)
      wrong.push(...(await this.#replace(leaving.map(([key]) => key), inTheWay, opened)));
    if (wrong.length > 0) {
      for (const server of opened.values()) void this.#leave(server);
      return wrong;
    }
    for (const [key, server] of leaving) {
      void this.#leave(server);
      this.#servers.delete(key);
    }
    for (const [key, server] of opened) this.#servers.set(key, server);
    return [];
  }

  /** Resolves when the answers under way have gone out, or have had their time. */
  async close(): Promise<void> {
    const servers = [...this.#servers.values()];
    this.#servers.clear();
    await Promise.all(servers.map((server) => this.#leave(server)));
  }

  /**
   * One of our own sockets holds a port that a new one wants: 127.0.0.1:1081 becomes [::]:1081, or
   * the other way round. Then the old one is closed a moment before; and opened again, if that has
   * not helped.
   */
  async #replace(
    keys: readonly string[], addresses: readonly MetricsAddress[], opened: Map<string, http.Server>,
  ): Promise<string[]> {
    const closed: MetricsAddress[] = [];
    for (const key of keys) {
      const server = this.#servers.get(key)!;
      if (!addresses.some((address) => sharePort(server, address))) continue;
      void this.#leave(server);
      closed.push(addressOf(key));
    }
    const wrong: string[] = [];
    for (const address of addresses) {
      const server = await this.#open(address);
      if (server instanceof http.Server) opened.set(keyOf(address), server);
      else wrong.push(textOf(address, server));
    }
    if (wrong.length === 0) return [];
    for (const server of opened.values()) void this.#leave(server);
    for (const address of closed) {
      const again = await this.#open(address);
      if (again instanceof http.Server) this.#servers.set(keyOf(address), again);
      else if (this.#servers.delete(keyOf(address))) wrong.push(textOf(address, again));
    }
    return wrong;
  }

  #open(address: MetricsAddress): Promise<http.Server | NodeJS.ErrnoException> {
    const server = http.createServer(
      {
        requestTimeout: this.#requestMs,
        connectionsCheckingInterval: this.#requestMs / 5,
        keepAliveTimeout: KEEP_ALIVE_MS,
      },
      (request, response) => void this.#answer(server, request, response),
    );
    server.maxConnections = CONNECTIONS_MAX;
    server.on("connect", (_request, socket: Socket) => {
      socket.end("HTTP/1.1 405 Method Not Allowed\r\nallow: GET, HEAD\r\n\r\n");
    });
    const { host, port } = splitHostPort(address.text)!;
    return new Promise((resolve) => {
      server.once("error", (error: NodeJS.ErrnoException) => {
        // A kernel without IPv6: all of its addresses are those of IPv4.
        const noIpv6 = error.code === "EAFNOSUPPORT" && address.dualStack;
        resolve(noIpv6 ? this.#open({ text: `0.0.0.0:${port}`, dualStack: false }) : error);
      });
      const fd = this.#passed(address);
      const where = fd === null ? { host, port: Number(port), ipv6Only: !address.dualStack } : { fd };
      server.listen(where, () => {
        server.removeAllListeners("error");
        // accept has failed, of fds or memory; it is tried again with the next connection.
        server.on("error", ({ message }) => {
          this.#log.warning("a scrape was not accepted", { error: message });
        });
        resolve(server);
      });
    });
  }

  /** Nobody is accepted from now on; who is being answered has a moment. */
  #leave(server: http.Server): Promise<void> {
    const deadline = setTimeout(() => server.closeAllConnections(), Math.min(LEAVE_MS, this.#requestMs));
    return new Promise((resolve) => {
      server.close(() => {
        clearTimeout(deadline);
        resolve();
      });
    });
  }

  async #answer(
    server: http.Server, request: http.IncomingMessage, response: http.ServerResponse,
  ): Promise<void> {
    const { socket } = request;
    const deadline = setTimeout(() => socket.destroy(), this.#requestMs);
    response.on("close", () => {
      clearTimeout(deadline);
      if (!server.listening) socket.end(); // Its address has gone meanwhile.
    });
    if (request.method !== "GET" && request.method !== "HEAD") {
      // Closed, for its body is not read.
      response.writeHead(405, { allow: "GET, HEAD", "content-length": 0, connection: "close" }).end();
      return;
    }
    try {
      const { text, type } = await this.#page.render(request.headers.accept ?? "");
      const bytes = Buffer.from(text);
      response.writeHead(200, { "content-type": type, "content-length": bytes.length }).end(bytes);
    } catch (error) {
      this.#log.error("the metrics could not be read", { error: String(error) });
      response.writeHead(500, { "content-length": 0 }).end();
    }
  }
}

/** The same text may be wanted dual-stack or not: another socket. */
const keyOf = ({ text, dualStack }: MetricsAddress): string => `${dualStack ? "*" : ""}${text}`;

const addressOf = (key: string): MetricsAddress =>
  key.startsWith("*") ? { text: key.slice(1), dualStack: true } : { text: key, dualStack: false };

const textOf = ({ text }: MetricsAddress, error: NodeJS.ErrnoException): string =>
  `listen tcp ${text} for metrics: ${error.message}`;

function sharePort(server: http.Server, { text }: MetricsAddress): boolean {
  const bound = server.address();
  return bound !== null && typeof bound !== "string" && text.endsWith(`:${bound.port}`);
}

// ---- the page

interface Sample {
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
  readonly metricName?: string;
}

/** What the sources said when a scrape began. */
interface Numbers {
  readonly socks: SocksTotals;
  readonly addresses: readonly (AddressCounts & EgressHealth)[];
  readonly denied: readonly RuleCount[];
  readonly names: NamesStats;
}

/** One metric: to the registry what its own Counter, Gauge and Histogram are, but with no memory. */
class Family {
  /** The registry of OpenMetrics takes a counter's "_total" away, for there it is the samples'. */
  name: string;
  readonly type: "counter" | "gauge" | "histogram";
  readonly #help: string;
  readonly #samples: () => Sample[];

  constructor(
    type: "counter" | "gauge" | "histogram", name: string, help: string, samples: () => Sample[],
  ) {
    this.name = name;
    this.type = type;
    this.#help = help;
    this.#samples = samples;
  }

  get(): Promise<object> {
    const { name, type } = this;
    return Promise.resolve({ name, type, help: this.#help, values: this.#samples() });
  }
}

class Page {
  readonly #sources: MetricsSources;
  readonly #plain = new Registry();
  readonly #open = new Registry<OpenMetricsContentType>();
  #numbers: Numbers | null = null;

  constructor(sources: MetricsSources) {
    this.#sources = sources;
    this.#open.setContentType(Registry.OPENMETRICS_CONTENT_TYPE);
    const numbers = (): Numbers => this.#numbers!;
    for (const family of families(numbers, String)) register(this.#plain, family);
    for (const family of families(numbers, floatText)) register(this.#open, family);
  }

  /** In OpenMetrics if it is asked for, as usocksd did and Prometheus does. */
  async render(accept: string): Promise<{ text: string; type: string }> {
    const { socks, addresses, health, denied, names } = this.#sources;
    // Every family is asked before the first await in metrics(), so all see the same numbers.
    this.#numbers = {
      socks: socks(),
      addresses: addresses().map((counts) => ({ ...counts, ...(health(counts.address) ?? GONE) })),
      denied: denied(),
      names: names(),
    };
    const registry = accept.includes("application/openmetrics-text") ? this.#open : this.#plain;
    return { text: await registry.metrics(), type: registry.contentType };
  }
}

const GONE: EgressHealth = { usable: false, listed: false };

/** What the types do not say: a registry wants no more of a metric than its name and get(). */
function register(registry: Pick<Registry, "registerMetric">, family: Family): void {
  registry.registerMetric(family as unknown as Metric);
}

/** OpenMetrics writes bounds as floating-point numbers. */
const floatText = (value: number): string => (Number.isInteger(value) ? `${value}.0` : `${value}`);

const VERSIONS: readonly (readonly [SocksVersion, string])[] = [
  [4, "SOCKS4_4a"], [5, "SOCKS5"], [0, "unknown"],
];

/** What is there from the start, at 0; all else appears with the first that is counted. */
const USUAL: Readonly<Record<SocksVersion, readonly number[]>> = {
  4: [STATUS.granted, STATUS.rejected],
  5: [
    STATUS.granted, STATUS.failure, STATUS.not_allowed, STATUS.network_unreachable, STATUS.host_unreachable,
    STATUS.connection_refused, STATUS.command_not_supported, STATUS.authentication_failure,
    STATUS.address_read_failure,
  ],
  0: [STATUS.invalid_request, STATUS.unknown_version],
};

const METHODS: readonly (readonly [AuthMethod, string])[] = [["noauth", "no_auth"], ["password", "basic"]];

const TYPES: readonly (readonly [AddressType, string])[] = [
  ["ipv4", "IPv4"], ["ipv6", "IPv6"], ["name", "Domain_name"], [null, "unknown"],
];

const RESULTS: readonly (readonly [boolean, string])[] = [[true, "ok"], [false, "failed"]];

function families(numbers: () => Numbers, boundText: (bound: number) => string): Family[] {
  const one = (value: number): Sample[] => [{ labels: {}, value }];
  const socks = (): SocksTotals => numbers().socks;
  const perAddress = (value: (address: Numbers["addresses"][number]) => number) => (): Sample[] =>
    numbers().addresses.map((address) => ({ labels: { address: address.address }, value: value(address) }));
  type Parts = [Record<string, string>, HistogramTotals][];
  const histogram = (name: string, help: string, parts: () => Parts): Family =>
    new Family("histogram", name, help, () =>
      parts().flatMap(([labels, totals]) => histogramSamples(name, labels, totals, boundText)),
    );
  return [
    new Family("counter", "usocksd_connections_total", "Connections by the answer that they got.", () =>
      VERSIONS.flatMap(([version, versionName]) =>
        STATUS_NAMES.map((status) => ({
          labels: { version: versionName, status },
          value: socks().requests(version, STATUS[status]),
        })).filter(({ labels, value }) => value > 0 || USUAL[version].includes(STATUS[labels.status])),
      ),
    ),
    new Family("gauge", "usocksd_proxy_inflight_requests", "Tunnels that stand now.", () =>
      one(socks().inflight),
    ),
    histogram("usocksd_proxy_elapsed_seconds", "How long tunnels stood, from granted to the end.", () => [
      [{ result: "success" }, socks().elapsed(true)],
      [{ result: "error" }, socks().elapsed(false)],
    ]),
    histogram("usocksd_proxy_tx_bytes", "Bytes of a tunnel from the client to the destination.", () => [
      [{}, socks().txBytes],
    ]),
    histogram("usocksd_proxy_rx_bytes", "Bytes of a tunnel from the destination to the client.", () => [
      [{}, socks().rxBytes],
    ]),
    histogram("usocksd_proxy_tx_seconds", "How long a tunnel was open to the destination.", () => [
      [{}, socks().txSeconds],
    ]),
    histogram("usocksd_proxy_rx_seconds", "How long a tunnel was open to the client.", () => [
      [{}, socks().rxSeconds],
    ]),
    new Family("counter", "usocksd_proxy_tx_errors_total", "Tunnels that broke on the way out.", () =>
      one(socks().txErrors),
    ),
    new Family("counter", "usocksd_proxy_rx_errors_total", "Tunnels that broke on the way back.", () =>
      one(socks().rxErrors),
    ),
    new Family("counter", "usocksd_socks5_auth_negotiated_total", "SOCKS5 authentications.", () =>
      METHODS.flatMap(([method, type]) =>
        RESULTS.map(([ok, result]) => ({ labels: { type, result }, value: socks().auth(method, ok) })),
      ),
    ),
    new Family("counter", "usocksd_socks5_address_read_total", "Destinations in SOCKS5 requests.", () =>
      TYPES.flatMap(([type, typeName]) =>
        RESULTS.map(([ok, result]) => ({
          labels: { type: typeName, result },
          value: socks().address(type, ok),
        })).filter(({ value }) => type !== null || value > 0),
      ),
    ),
    new Family("counter", "transplice_socks4_userid_total", "SOCKS4 user ids that were checked.", () =>
      RESULTS.map(([ok, result]) => ({ labels: { result }, value: socks().auth("userid", ok) })),
    ),
    new Family(
      "gauge", "transplice_egress_active_connections", "Connections that leave from an address now.",
      perAddress(({ active }) => active),
    ),
    new Family(
      "counter", "transplice_egress_opened_total", "Connections made from an address.",
      perAddress(({ opened }) => opened),
    ),
    new Family(
      "counter", "transplice_egress_answered_total", "Dials from an address that were answered, also by a refusal.",
      perAddress(({ answered }) => answered),
    ),
    new Family(
      "counter", "transplice_egress_failed_total", "Dials from an address that got no answer.",
      perAddress(({ failed }) => failed),
    ),
    new Family(
      "counter", "transplice_egress_spilled_total", "Connections that went to the next, as no port was free.",
      perAddress(({ spilled }) => spilled),
    ),
    new Family(
      "gauge", "transplice_egress_usable", "1: new connections may leave from the address.",
      perAddress(({ usable }) => Number(usable)),
    ),
    new Family(
      "gauge", "transplice_egress_listed", "1: a DNSBL lists the address.",
      perAddress(({ listed }) => Number(listed)),
    ),
    new Family("counter", "transplice_denied_total", "Requests denied, by the rule that did.", () =>
      numbers().denied.map(({ rule, denied }) => ({ labels: { rule }, value: denied })),
    ),
    new Family("counter", "transplice_names_cache_hits_total", "Names answered from the cache.", () =>
      one(numbers().names.fromCache),
    ),
    new Family("counter", "transplice_names_cache_misses_total", "Names that DNS was asked for.", () =>
      one(numbers().names.asked),
    ),
    new Family("gauge", "transplice_names_in_flight", "Names that wait for an answer of DNS.", () =>
      one(numbers().names.asking),
    ),
  ];
}

function histogramSamples(
  name: string, labels: Readonly<Record<string, string>>, { bounds, counts, sum }: HistogramTotals,
  boundText: (bound: number) => string,
): Sample[] {
  let count = 0;
  const samples: Sample[] = [...bounds.map(boundText), "+Inf"].map((le, bucket) => {
    count += counts[bucket]!;
    return { labels: { ...labels, le }, value: count, metricName: `${name}_bucket` };
  });
  samples.push({ labels, value: sum, metricName: `${name}_sum` });
  samples.push({ labels, value: count, metricName: `${name}_count` });
  return samples;
}
