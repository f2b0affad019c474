/**
 * The metrics of the SOCKS server: usocksd's under their very names and labels, and behind them our
 * own, named transplice_.
 */
import type { AddressCounts, RuleCount } from "../engine/egress-counters.ts";
import {
  type AddressType, type AuthMethod, type HistogramTotals, type SocksTotals, type SocksVersion, STATUS,
  STATUS_NAMES,
} from "../engine/socks-counters.ts";
import { Family, histogramSamples, type MetricsPart, one, type Sample } from "./metrics.ts";
import type { NamesStats } from "./names.ts";

/** Current numbers, all asked for once in each scrape. */
export interface SocksSources {
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
  readonly addresses: readonly (AddressCounts & Pick<EgressHealth, "usable" | "listed">)[];
  readonly denied: readonly RuleCount[];
  readonly names: NamesStats;
}

export class SocksMetrics implements MetricsPart {
  readonly #sources: SocksSources;
  #numbers: Numbers | null = null;

  constructor(sources: SocksSources) {
    this.#sources = sources;
  }

  read(): void {
    const { socks, addresses, health, denied, names } = this.#sources;
    this.#numbers = {
      socks: socks(),
      addresses: addresses().map((counts) => ({ ...counts, ...(health(counts.address) ?? GONE) })),
      denied: denied(),
      names: names(),
    };
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

const METHODS: readonly (readonly [AuthMethod, string])[] = [["noauth", "no_auth"], ["password", "basic"]];

const TYPES: readonly (readonly [AddressType, string])[] = [
  ["ipv4", "IPv4"], ["ipv6", "IPv6"], ["name", "Domain_name"], [null, "unknown"],
];

const RESULTS: readonly (readonly [boolean, string])[] = [[true, "ok"], [false, "failed"]];

function families(numbers: () => Numbers, boundText: (bound: number) => string): Family[] {
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
