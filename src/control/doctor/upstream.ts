/**
 * The way to the upstream, really gone: every address of it is dialled and spoken to as the service
 * would. And the name servers, where names are to be looked up.
 */
import { Resolver } from "node:dns/promises";
import type { Syscalls } from "../../../native-bindings/syscalls.ts";
import type { Config, SocketAddress, Upstream } from "../../config/config.ts";
import { endpointText, portOf, socketAddress } from "../../config/endpoint.ts";
import { addressOf } from "../../policy/own.ts";
import { asRoot, edit, listOf, type Setup, shellWord } from "./rules.ts";
import { type Finding, finding, type FindingId } from "./finding.ts";
import { addressesOf } from "../firewall/firewall.ts";
import { exemption, fits, redirections, takers } from "../firewall/others.ts";
import { Refusal } from "../firewall/tools.ts";
import { readText, sameAddress } from "../host.ts";
import { hostNames } from "../names/names.ts";
import { type Identity, type Landing, probe, type Probed } from "../probe.ts";

type Proxy = Exclude<Upstream, { kind: "direct" }>;

/** However patient the configuration is. */
const PATIENCE_MAX_MS = 5000;
const NAMESERVER_MS = 2000;

export interface UpstreamExamined {
  readonly addresses: readonly SocketAddress[];
  readonly findings: readonly Finding[];
}

export async function examineUpstream(sys: Syscalls, setup: Setup, identity: Identity): Promise<UpstreamExamined> {
  const examined = await Promise.all(proxiesOf(setup.config).map((upstream) => examineProxy(sys, setup, upstream, identity)));
  return { addresses: examined.flatMap((each) => each.addresses), findings: examined.flatMap((each) => each.findings) };
}

const proxiesOf = ({ upstream, relays }: Config): Proxy[] =>
  [upstream, ...relays.map((relay) => relay.upstream)].flatMap((each) => (each === null || each.kind === "direct" ? [] : [each]));

async function examineProxy(sys: Syscalls, setup: Setup, upstream: Proxy, identity: Identity): Promise<UpstreamExamined> {
  let addresses: SocketAddress[];
  try {
    addresses = (await addressesOf(upstream)).flatMap((host) => socketAddress(host, upstream.port) ?? []);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    return { addresses: [], findings: [finding("broken", "upstream-name", error.message, error.run ?? `getent ahosts ${upstream.host}`)] };
  }
  const each = await Promise.all(addresses.map((to) => examineAddress(sys, setup, upstream, to, identity)));
  const works = each.some((findings) => findings.length === 0);
  // With one address that answers, the service goes on.
  const findings = each.flat().map((it) => (works && it.level === "broken" ? { ...it, level: "risk" as const } : it));
  return { addresses, findings };
}

async function examineAddress(sys: Syscalls, setup: Setup, upstream: Proxy, to: SocketAddress, identity: Identity): Promise<Finding[]> {
  const { dialMs, handshakeMs } = setup.config.timeouts;
  const landed: Landing[] = [];
  const { listen, relays } = setup.config;
  const ports = [...listen, ...relays.flatMap((relay) => relay.listen)].map(({ bytes }) => portOf(bytes, 0));
  const outcome = await probe({
    sys, to, identity, kind: upstream.kind, credentials: upstream.credentials,
    patienceMs: Math.min(PATIENCE_MAX_MS, dialMs + handshakeMs),
    onLanding: (it) => landed.push(it),
    ports,
  });
  const row = landed[0] ?? null;
  if (row !== null && isElsewhere(row, to)) {
    const taker = takers(await redirections(), to).find(({ port }) => port === row.localPort);
    return [finding("broken", "upstream-redirected",
      `connections to the upstream ${to.text} are redirected themselves, to port ${row.localPort} of this host; a rule must let them pass`,
      taker === undefined ? listOf(taker) : taker.ours ? `transplice firewall apply -f ${shellWord(setup.file)}` : exemption(taker, to, identity.mark))];
  }
  if (outcome.ok) return [];
  if (outcome.at === "dial") {
    const taker = takers(await redirections(), to).find((each) => !each.ours && fits(each, to) === "named");
    if (taker !== undefined) {
      const leads = taker.address === null ? "to this host" : `to ${taker.address}`;
      return [finding("broken", "upstream-redirected",
        `the upstream ${to.text} is not reached (${outcome.detail}), and a rule leads what goes there ${leads}: ${taker.text}`, listOf(taker))];
    }
  }
  return [failure(setup, upstream, to, outcome)];
}

/** Where no address of this host was meant, or another port. */
const isElsewhere = (row: Landing, { bytes }: SocketAddress): boolean =>
  row.localPort !== portOf(bytes, 0) || !sameAddress(row.local, addressOf(bytes, 0));

const WORDS: Readonly<Record<string, readonly [words: string, shows: "nc" | "route"]>> = {
  ECONNREFUSED: ["refuses the connection: nothing listens there, or a firewall says so", "nc"],
  ETIMEDOUT: ["does not answer", "route"],
  EHOSTUNREACH: ["cannot be reached: no host answers there, or a firewall says so", "route"],
  ENETUNREACH: ["cannot be reached: there is no route to it", "route"],
};

function failure(setup: Setup, upstream: Proxy, to: SocketAddress, outcome: Exclude<Probed, { ok: true }>): Finding {
  const host = to.text.replace(/:\d+$/, "").replace(/^\[|\]$/g, "");
  const commands = { nc: `nc -vz ${host} ${upstream.port}`, route: `ip route get ${host}` };
  const broken = (id: FindingId, text: string, run: string): Finding => finding("broken", id, `the upstream ${to.text} ${text}`, run);
  switch (outcome.at) {
    case "dial": {
      const [words, shows] = WORDS[outcome.detail] ?? [`cannot be connected (${outcome.detail})`, "nc"];
      return broken("upstream-unreachable", words, commands[shows]);
    }
    case "silent":
      return broken("upstream-protocol", `accepts the connection and says nothing for ${outcome.detail}; does it speak ${upstream.kind}?`, commands.nc);
    case "closed":
      return broken("upstream-protocol", `closes the connection in the handshake; does it speak ${upstream.kind}, and may this host use it?`, commands.nc);
    case "malformed":
      return broken("upstream-protocol", `does not speak ${upstream.kind} (${outcome.detail}); see proxy_url`, edit(setup));
    case "credentials":
      return broken("upstream-credentials", `does not accept the user and password of proxy_url: ${outcome.detail}`, edit(setup));
    case "unlike":
      return finding("unknown", "upstream-unreachable", "whether the upstream answers may only be tried by the service's user or root", asRoot(setup));
  }
}

/** Needed where names are that /etc/hosts does not know: a client's of the SOCKS server, the upstream's. */
export async function examineNames({ config }: Setup): Promise<Finding[]> {
  const known = hostNames(readText("/etc/hosts") ?? "");
  const byName = proxiesOf(config).some(({ host, port }) => socketAddress(host, port) === null && !known.has(host.toLowerCase()));
  if (config.egress === null && !byName) return [];
  const servers = [...(readText("/etc/resolv.conf") ?? "").matchAll(/^\s*nameserver\s+(\S+)/gm)].map((match) => match[1]!);
  if (servers.length === 0) return [finding("broken", "dns", "/etc/resolv.conf has no name server", "cat /etc/resolv.conf")];
  const answers = await Promise.all(servers.map(answersAtAll));
  const silent = servers.filter((_, i) => !answers[i]);
  if (silent.length === 0) return [];
  const all = silent.length === servers.length;
  return [finding(all ? "broken" : "risk", "dns", `${all ? "no name server answers" : "a name server does not answer"}: ${silent.join(", ")} (/etc/resolv.conf)`, `nc -vzu ${silent[0]} 53`)];
}

async function answersAtAll(server: string): Promise<boolean> {
  const resolver = new Resolver({ timeout: NAMESERVER_MS, tries: 1 });
  try {
    resolver.setServers([endpointText(server.replace(/%.*/, ""), 53)]);
    await resolver.resolveNs(".");
    return true;
  } catch (error) {
    // Whatever it says, it is there.
    return !["ETIMEOUT", "ECONNREFUSED", "ERR_INVALID_IP_ADDRESS"].includes((error as NodeJS.ErrnoException).code ?? "");
  }
}
