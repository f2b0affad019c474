/**
 * The ranges that are not the internet: what the firewall's rules leave alone unless they are told
 * otherwise. Pure data; each row says where it is written down. The registries are IANA's
 * special-purpose address registries (RFC 6890); globally reachable rows of theirs are not here.
 */
export interface SpecialRange {
  readonly network: string;
  readonly what: string;
  readonly rfc: string;
}

export const SPECIAL_IPV4: readonly SpecialRange[] = [
  { network: "0.0.0.0/8", what: "this network", rfc: "RFC 791" },
  { network: "10.0.0.0/8", what: "private", rfc: "RFC 1918" },
  { network: "100.64.0.0/10", what: "shared address space", rfc: "RFC 6598" },
  { network: "127.0.0.0/8", what: "loopback", rfc: "RFC 1122" },
  { network: "169.254.0.0/16", what: "link-local", rfc: "RFC 3927" },
  { network: "172.16.0.0/12", what: "private", rfc: "RFC 1918" },
  { network: "192.0.0.0/24", what: "IETF protocol assignments", rfc: "RFC 6890" },
  { network: "192.168.0.0/16", what: "private", rfc: "RFC 1918" },
  { network: "198.18.0.0/15", what: "benchmarking", rfc: "RFC 2544" },
  { network: "224.0.0.0/4", what: "multicast", rfc: "RFC 5771" },
  { network: "240.0.0.0/4", what: "reserved, and broadcast", rfc: "RFC 1112, RFC 919" },
];

export const SPECIAL_IPV6: readonly SpecialRange[] = [
  { network: "::/128", what: "unspecified", rfc: "RFC 4291" },
  { network: "::1/128", what: "loopback", rfc: "RFC 4291" },
  { network: "64:ff9b:1::/48", what: "local IPv4/IPv6 translation", rfc: "RFC 8215" },
  { network: "fc00::/7", what: "unique local", rfc: "RFC 4193" },
  { network: "fe80::/10", what: "link-local", rfc: "RFC 4291" },
  { network: "ff00::/8", what: "multicast", rfc: "RFC 4291" },
];
