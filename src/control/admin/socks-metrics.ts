/**
 * The metrics of the SOCKS server: usocksd's under their very names and labels, and behind them our
 * own, named transplice_.
 */
import type { AddressCounts, RuleCount } from "../../engine/egress-counters.ts";
import {
  type AddressType, type AuthMethod, type HistogramTotals, type SocksTotals, type SocksVersion, STATUS,
  STATUS_NAMES,
} from "../../engine/socks-counters.ts";
import { Each, type Family, Histogram, type Labels, type MetricsPart, One, oneHistogram } from "./metrics.ts";
import type { NamesStats } from "../names/names.ts";

/** Current numbers, all asked for once in each scrape. */
export interface SocksSources {
  /** There is an egress. Where there never was one, there is nothing to say. */
  readonly serves: () => boolean;
  readonly socks: () => SocksTotals;
  readonly addresses: () => readonly AddressCounts[];
  /** null: this address is no longer in the pool. */
  readonly health: (address: string) => Pick<EgressHealth, "usable" | "listed"> | null;
  readonly denied: () => readonly RuleCount[];
  readonly names: () => NamesStats;
}

export interface EgressHealth {
  /** absent: the host does not have it. failing: its dials get no answers, where the others' do. */
  readonly state: "ok" | "absent" | "listed" | "failing";
  /** New connections may leave from it. */
  readonly usable: boolean;
  /** A DNSBL lists it. */
  readonly listed: boolean;
}

/** What the sources said when a scrape began. */
interface Numbers {
  readonly socks: SocksTotals;
  /** Those of REQUESTS, and of ADDRESS_READS, that stand on the page. */
  readonly requests: readonly Request[];
  readonly reads: readonly AddressRead[];
  readonly addresses: readonly (AddressCounts & Pick<EgressHealth, "usable" | "listed">)[];
  readonly denied: readonly RuleCount[];
  readonly names: NamesStats;
}

export class SocksMetrics implements MetricsPart {
  readonly #sources: SocksSources;
  #numbers: Numbers | null = null;
  /** Counters that were shown once do not go. */
  #hasServed = false;

  constructor(sources: SocksSources) {
    this.#sources = sources;
  }

  read(): string | null {
    const { serves, socks, addresses, health, denied, names } = this.#sources;
    this.#hasServed ||= serves();
    if (!this.#hasServed) return null;
    const totals = socks();
    const requests: Request[] = [];
    const reads: AddressRead[] = [];
    let shape = "";
    for (const one of REQUESTS) {
      if (!one.usual && totals.requests(one.version, one.status) === 0) continue;
      requests.push(one);
      shape += one.key;
    }
    for (const one of ADDRESS_READS) {
      if (one.type === null && totals.address(null, one.ok) === 0) continue;
      reads.push(one);
      shape += one.key;
    }
    const now: Numbers = {
      socks: totals,
      requests,
      reads,
      addresses: addresses().map((counts) => ({ ...counts, ...(health(counts.address) ?? GONE) })),
      denied: denied(),
      names: names(),
    };
    this.#numbers = now;
    for (const { address } of now.addresses) shape += ` ${address}`;
    for (const { rule } of now.denied) shape += ` ${JSON.stringify(rule)}`;
    return shape;
  }

  families(boundText: (bound: number) => string): Family[] {
    return families(() => this.#numbers!, boundText);
  }
}

const GONE: Pick<EgressHealth, "usable" | "listed"> = { usable: false, listed: false };

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

interface Request {
  readonly key: string;
  readonly version: SocksVersion;
  readonly status: number;
  readonly usual: boolean;
  readonly labels: Labels;
}

const REQUESTS: readonly Request[] = VERSIONS.flatMap(([version, name]) =>
  STATUS_NAMES.map((status) => ({
    key: `${version}/${STATUS[status]} `, version, status: STATUS[status], usual: USUAL[version].includes(STATUS[status]), labels: { version: name, status },
  })),
);

const RESULTS: readonly (readonly [boolean, string])[] = [[true, "ok"], [false, "failed"]];

interface AddressRead {
  readonly key: string;
  readonly type: AddressType;
  readonly ok: boolean;
  readonly labels: Labels;
}

const TYPES: readonly (readonly [AddressType, string])[] = [
  ["ipv4", "IPv4"], ["ipv6", "IPv6"], ["name", "Domain_name"], [null, "unknown"],
];
const ADDRESS_READS: readonly AddressRead[] = TYPES.flatMap(([type, name]) =>
  RESULTS.map(([ok, result]) => ({ key: `${type}/${ok} `, type, ok, labels: { type: name, result } })),
);

const METHODS: readonly (readonly [AuthMethod, string])[] = [["noauth", "no_auth"], ["password", "basic"]];
const AUTHENTICATIONS = METHODS.flatMap(([method, type]) =>
  RESULTS.map(([ok, result]) => ({ method, ok, labels: { type, result } })),
);

const labelsOf = ({ labels }: { readonly labels: Labels }): Labels => labels;

function families(numbers: () => Numbers, boundText: (bound: number) => string): Family[] {
  const socks = (): SocksTotals => numbers().socks;
  const histogram = (name: string, help: string, totals: () => HistogramTotals): Family =>
    oneHistogram(name, help, boundText, totals);
  const address = (
    type: "counter" | "gauge", name: string, help: string, value: (address: Numbers["addresses"][number]) => number,
  ): Family => new Each(type, name, help, () => numbers().addresses, (each) => ({ address: each.address }), value);
  return [
    new Each(
      "counter", "usocksd_connections_total", "Connections by the answer that they got.",
      () => numbers().requests, labelsOf, ({ version, status }) => socks().requests(version, status),
    ),
    new One("gauge", "usocksd_proxy_inflight_requests", "Tunnels that stand now.", () => socks().inflight),
    new Histogram(
      "usocksd_proxy_elapsed_seconds", "How long tunnels stood, from granted to the end.", boundText,
      () => [true, false], (success) => ({ result: success ? "success" : "error" }), (success) => socks().elapsed(success),
    ),
    histogram("usocksd_proxy_tx_bytes", "Bytes of a tunnel from the client to the destination.", () => socks().txBytes),
    histogram("usocksd_proxy_rx_bytes", "Bytes of a tunnel from the destination to the client.", () => socks().rxBytes),
    histogram("usocksd_proxy_tx_seconds", "How long a tunnel was open to the destination.", () => socks().txSeconds),
    histogram("usocksd_proxy_rx_seconds", "How long a tunnel was open to the client.", () => socks().rxSeconds),
    new One("counter", "usocksd_proxy_tx_errors_total", "Tunnels that broke on the way out.", () => socks().txErrors),
    new One("counter", "usocksd_proxy_rx_errors_total", "Tunnels that broke on the way back.", () => socks().rxErrors),
    new Each(
      "counter", "usocksd_socks5_auth_negotiated_total", "SOCKS5 authentications.",
      () => AUTHENTICATIONS, labelsOf, ({ method, ok }) => socks().auth(method, ok),
    ),
    new Each(
      "counter", "usocksd_socks5_address_read_total", "Destinations in SOCKS5 requests.",
      () => numbers().reads, labelsOf, ({ type, ok }) => socks().address(type, ok),
    ),
    new Each(
      "counter", "transplice_socks4_userid_total", "SOCKS4 user ids that were checked.",
      () => RESULTS, ([, result]) => ({ result }), ([ok]) => socks().auth("userid", ok),
    ),
    address("gauge", "transplice_egress_active_connections", "Connections that leave from an address now.", ({ active }) => active),
    address("counter", "transplice_egress_opened_total", "Connections made from an address.", ({ opened }) => opened),
    address("counter", "transplice_egress_answered_total", "Dials from an address that were answered, also by a refusal.", ({ answered }) => answered),
    address("counter", "transplice_egress_failed_total", "Dials from an address that got no answer.", ({ failed }) => failed),
    address("counter", "transplice_egress_spilled_total", "Connections that went to the next, as no port was free.", ({ spilled }) => spilled),
    address("gauge", "transplice_egress_usable", "1: new connections may leave from the address.", ({ usable }) => Number(usable)),
    address("gauge", "transplice_egress_listed", "1: a DNSBL lists the address.", ({ listed }) => Number(listed)),
    new Each(
      "counter", "transplice_denied_total", "Requests denied, by the rule that did.",
      () => numbers().denied, ({ rule }) => ({ rule }), ({ denied }) => denied,
    ),
    new One("counter", "transplice_names_cache_hits_total", "Names answered from the cache.", () => numbers().names.fromCache),
    new One("counter", "transplice_names_cache_misses_total", "Names that DNS was asked for.", () => numbers().names.asked),
    new One("gauge", "transplice_names_in_flight", "Names that wait for an answer of DNS.", () => numbers().names.asking),
  ];
}
