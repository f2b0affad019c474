/**
 * What [incoming], [outgoing], [users] and [[rules]] come to: an EgressConfig, and what is to be
 * said of one that works and is probably not meant.
 */
import { domainToASCII } from "node:url";
import type { Rule } from "../policy/access.ts";
import type { EgressAddress } from "../policy/egress.ts";
import { siteOf } from "../policy/name.ts";
import type { EgressConfig, ListenAddress } from "./config.ts";
import { portOf } from "./endpoint.ts";
import { listenOn } from "./listen.ts";
import { quoted } from "./problem.ts";
import { parseSecret } from "./secret.ts";
import type { SettingKey, Values } from "./settings.ts";

/** The predecessor's: on all addresses, and never off. */
const METRICS_PORT = 1081;

/**
 * Where the egress and its metrics listen. Beside a transparent proxy, metrics are asked for, or
 * there are none: the file is not the predecessor's, whose port would be the proxy's own.
 */
export function egressListeners(
  values: Partial<Values>, besideProxy: boolean,
): { listen: ListenAddress[]; metrics: ListenAddress[] } {
  const port = values["incoming.port"];
  const hosts = values["incoming.addresses"];
  const listen =
    port === undefined || hosts === undefined
      ? []
      : (hosts.length === 0 ? ["::"] : hosts).map((host) => listenOn(host, port));
  const metricsPort = values["incoming.metrics_port"];
  const metricsHost = values["incoming.metrics_address"];
  if (metricsPort === undefined || metricsHost === undefined) return { listen, metrics: [] };
  const openPort = metricsPort ?? (besideProxy ? 0 : METRICS_PORT);
  const openHost = metricsHost ?? (besideProxy ? "127.0.0.1" : "::");
  return { listen, metrics: openPort === 0 ? [] : [listenOn(openHost, openPort)] };
}

export function assembledEgress(
  values: Values, users: EgressConfig["users"], rules: readonly Rule[], besideProxy: boolean,
): EgressConfig {
  const iface = values["outgoing.iface"];
  return {
    ...egressListeners(values, besideProxy),
    access: {
      allowFrom: values["incoming.allow_from"],
      allowSites: values["outgoing.allow_sites"],
      denySites: values["outgoing.deny_sites"],
      allowPorts: values["outgoing.allow_ports"],
      denyPorts: values["outgoing.deny_ports"],
      allowNetworks: values["outgoing.allow_networks"],
      denyNetworks: values["outgoing.deny_networks"],
      allowPrivate: values["outgoing.allow_private"],
      rules,
    },
    proxyProtocolFrom: values["incoming.proxy_protocol_from"],
    maxPerClient: values["incoming.max_per_client"],
    maxPerUser: values["incoming.max_per_user"],
    ratePerClient: values["incoming.rate_per_client"],
    ratePerUser: values["incoming.rate_per_user"],
    rate: values["incoming.rate"],
    iface,
    // The predecessor's choice, though it did not say so.
    addresses: iface === null ? merged(values["outgoing.addresses"]) : [],
    affinity: values["outgoing.affinity"],
    dnsbl: {
      domains: values["outgoing.dnsbl_domain"],
      intervalMs: values["outgoing.dnsbl_interval"],
      whenMostListed: values["outgoing.dnsbl_when_most_listed"],
    },
    users,
  };
}

/** For usocksd an address that stood twice had twice the share: so it is here. */
function merged(addresses: readonly EgressAddress[]): EgressAddress[] {
  const byText = new Map<string, EgressAddress>();
  for (const address of addresses) {
    const key = `${address.bytes.join()}/${address.prefix}`;
    const weight = address.weight + (byText.get(key)?.weight ?? 0);
    byText.set(key, { ...address, weight });
  }
  return [...byText.values()];
}

/** Two listeners that cannot both be: the addresses as texts, or null. */
export function clash(
  some: readonly ListenAddress[], others: readonly ListenAddress[],
): { one: string; other: string } | null {
  for (const one of some) {
    for (const other of others) {
      if (portOf(one.bytes, 0) !== portOf(other.bytes, 0)) continue;
      if (one.text === other.text || one.dualStack || other.dualStack) {
        return { one: one.text, other: other.text };
      }
    }
  }
  return null;
}

/** What works, and probably not as meant; each with the key that it is about. */
export function egressWarnings(
  egress: EgressConfig, values: Values, isGiven: (key: SettingKey) => boolean,
): { key: SettingKey | "users" | "rules"; message: string }[] {
  const warnings: { key: SettingKey | "users" | "rules"; message: string }[] = [];
  const warn = (key: SettingKey | "users" | "rules", message: string): void => {
    warnings.push({ key, message });
  };
  const open = egress.listen.filter(({ text }) => !isLoopback(text));
  if (open.length > 0 && isOpen(egress)) {
    warn(
      "incoming.allow_from",
      `this is an OPEN PROXY: whoever reaches ${textsOf(open)} may use it, without a password; to close it, write under [incoming] allow_from = ["10.0.0.0/8", "192.168.0.0/16"] with your clients' networks, or addresses = ["127.0.0.1"]; or write [users] and below it the line that "transplice passwd NAME" prints`,
    );
  }
  const shown = egress.metrics.filter(({ text }) => !isLoopback(text));
  if (shown.length > 0 && !isGiven("incoming.metrics_address")) {
    warn(
      "incoming.metrics_port",
      `the metrics are open to whoever reaches ${textsOf(shown)}; to close them, write under [incoming] metrics_address = "127.0.0.1", or metrics_port = 0`,
    );
  }
  const clear = egress.users.filter(({ secret }) => parseSecret(secret)?.kind === "clear");
  if (clear.length > 0) {
    const names = clear.slice(0, 3).map(({ name }) => quoted(name));
    if (clear.length > names.length) names.push(`${clear.length - names.length} more`);
    const one = clear.length === 1;
    warn(
      "users",
      `the ${one ? "password" : "passwords"} of ${names.join(", ")} ${one ? "stands" : "stand"} here in clear text; "transplice passwd NAME" prints a line to put instead`,
    );
  }
  if (egress.iface !== null && values["outgoing.addresses"].length > 0) {
    warn("outgoing.addresses", "is not used: connections leave by iface, and the kernel chooses the address");
  }
  if (egress.addresses.length < values["outgoing.addresses"].length && egress.iface === null) {
    warn("outgoing.addresses", "names an address more than once: it has the weights of all of them together");
  }
  if (egress.dnsbl.domains.length > 0) {
    if (egress.addresses.length === 0) {
      warn("outgoing.dnsbl_domain", "has nothing to look up: connections leave by no addresses of [outgoing] addresses");
    } else if (egress.addresses.some(({ bytes, prefix }) => prefix < bytes.length * 8)) {
      warn("outgoing.dnsbl_domain", "single addresses are looked up, the IPv6 networks in addresses are not");
    }
  }
  for (const key of ["outgoing.allow_sites", "outgoing.deny_sites"] as const) {
    for (const message of siteWarnings(values[key])) warn(key, message);
  }
  for (const { name, sites } of egress.access.rules) {
    for (const message of siteWarnings(sites)) warn("rules", `${quoted(name)}: ${message}`);
  }
  return warnings;
}

/** Sites that no request can have, which the predecessor took all the same. */
function siteWarnings(sites: readonly string[]): string[] {
  return sites.flatMap((text) => {
    const site = siteOf(text, domainToASCII);
    return site.kind === "bad" ? [`${quoted(text)} fits no request: ${site.why}`] : [];
  });
}

/** Nobody is kept out: neither by address, nor by password, nor by a last rule that denies all. */
function isOpen({ access, users }: EgressConfig): boolean {
  const closed = access.rules.some(
    ({ action, from, users: only, sites, networks, ports }) =>
      action === "deny" && [from, only, sites, networks, ports].every(({ length }) => length === 0),
  );
  return access.allowFrom.length === 0 && users.length === 0 && !closed;
}

export const isLoopback = (text: string): boolean => /^(?:127\.|\[::1\])/.test(text);

const textsOf = (addresses: readonly ListenAddress[]): string =>
  addresses.map(({ text }) => text).join(", ");
