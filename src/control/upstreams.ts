/**
 * The upstreams of a configuration as workers need them: each name followed (resolver.ts), and which
 * listening socket leads to which.
 */
import { addressText, endpointText, socketAddress } from "../config/endpoint.ts";
import type { Config, SocketAddress, Upstream } from "../config/config.ts";
import type { Settings, UpstreamAddress, UpstreamSettings } from "../engine/route.ts";
import type { UpstreamReader } from "../engine/upstream-counters.ts";
import type { Trust } from "../policy/cause.ts";
import { addressOf } from "../policy/own.ts";
import type { ListeningAddress } from "./listeners.ts";
import type { Log } from "./log/log.ts";
import type { UpstreamView } from "./admin/readiness.ts";
import { Resolver } from "./names/resolver.ts";

/** Without a transparent proxy there is no upstream to follow. */
const DIRECT: Upstream = { kind: "direct" };

export type Proxy = Exclude<Upstream, { kind: "direct" }>;

export interface UpstreamsOptions {
  readonly log: Log;
  readonly counters: UpstreamReader;
  /** An upstream's name has come to other addresses. */
  readonly onChange: () => void;
}

export class Upstreams {
  readonly #options: UpstreamsOptions;
  /** By host and port. */
  #resolvers: ReadonlyMap<string, Resolver> = new Map();
  readonly #drained = new Set<string>();

  constructor(options: UpstreamsOptions) {
    this.#options = options;
  }

  /** Follows those of the configuration from now on; resolves when their addresses are known, or late. */
  async follow(config: Config): Promise<void> {
    const next = new Map<string, Resolver>();
    const started: Promise<unknown>[] = [];
    for (const upstream of upstreamsOf(config)) {
      const key = keyOf(upstream);
      if (next.has(key)) continue;
      const known = this.#resolvers.get(key);
      const resolver: Resolver = known ?? new Resolver({
        host: upstream.host,
        port: upstream.port,
        log: this.#options.log,
        onChange: () => {
          if (this.#resolvers.get(key) === resolver) this.#options.onChange();
        },
      });
      if (known === undefined) started.push(resolver.start());
      next.set(key, resolver);
    }
    await Promise.all(started);
    for (const [key, resolver] of this.#resolvers) if (next.get(key) !== resolver) resolver.close();
    this.#resolvers = next;
  }

  /** `open`: the listening sockets there are. */
  settings(config: Config, open: readonly ListeningAddress[]): Pick<Settings, "upstream" | "relays"> {
    const slots = this.#slots(config);
    const withSlot = (upstream: Proxy): UpstreamAddress[] => {
      const dialled = this.#dialledOf(upstream);
      return this.addressesOf(upstream).map((address) => ({
        bytes: address.bytes, slot: slots.get(address.text)!, drained: !dialled.includes(address),
      }));
    };
    const settingsOf = (upstream: Upstream, trust: Trust | null): UpstreamSettings => ({
      kind: upstream.kind,
      addresses: upstream.kind === "direct" ? [] : withSlot(upstream),
      credentials: upstream.kind === "direct" ? null : upstream.credentials,
      pipelined: config.pipelined,
      disclosed: config.disclosed,
      forwards: config.forwardsRefusals,
      trust: trust ?? config.connect.trust,
    });
    return {
      upstream: settingsOf(config.upstream ?? DIRECT, null),
      relays: config.relays.map(({ listen, upstream, trust }) => ({
        fds: open
          .filter(({ address, role }) => role === "transparent" && listen.some(({ text }) => text === address.text))
          .flatMap(({ fds }) => fds),
        upstream: settingsOf(upstream, trust),
      })),
    };
  }

  /** The addresses of all, without ports, as text. */
  get hosts(): string[] {
    const addresses = [...this.#resolvers.values()].flatMap((resolver) => resolver.addresses);
    return [...new Set(addresses.map(({ bytes }) => addressText(addressOf(bytes, 0))))];
  }

  /** In the order in which they are to be tried. [] while its name has none. */
  addressesOf(upstream: Proxy): readonly SocketAddress[] {
    return this.#resolvers.get(keyOf(upstream))?.addresses ?? [];
  }

  /** Where each address is counted. */
  #slots(config: Config): ReadonlyMap<string, number> {
    const texts = upstreamsOf(config).flatMap((upstream) => this.addressesOf(upstream)).map(({ text }) => text);
    const slots = this.#options.counters.slots(texts);
    return new Map(texts.map((text, i) => [text, slots[i]!]));
  }

  /** Addresses that an operator lets nobody be dialled at, until he says so or the process ends. */
  get drained(): ReadonlySet<string> {
    return this.#drained;
  }

  /** For a successor. */
  adoptDrained(addresses: readonly string[]): void {
    for (const address of addresses) this.#drained.add(address);
  }

  /** "unknown": no upstream has it. "last": its upstream has no other that may be dialled. */
  setDrained(config: Config, address: string, drained: boolean): "done" | "unknown" | "last" {
    const having = upstreamsOf(config).filter((upstream) => this.addressesOf(upstream).some(({ text }) => text === address));
    if (having.length === 0) return "unknown";
    if (drained && having.some((upstream) => this.#undrainedOf(upstream).every(({ text }) => text === address))) return "last";
    if (drained) this.#drained.add(address);
    else this.#drained.delete(address);
    return "done";
  }

  /** Each upstream, and where it may be dialled. */
  dialled(config: Config): UpstreamView[] {
    return upstreamsOf(config).map((upstream) => ({ text: upstream.text, addresses: this.#dialledOf(upstream) }));
  }

  /** By address: how its upstream is written, and what it speaks. */
  kinds(config: Config): ReadonlyMap<string, { readonly name: string; readonly kind: string }> {
    return new Map(
      upstreamsOf(config).flatMap((upstream) =>
        this.addressesOf(upstream).map(({ text }) => [text, { name: endpointText(upstream.host, upstream.port), kind: upstream.kind }]),
      ),
    );
  }

  /** All of them, where each was drained under another name: better there than nowhere. */
  #dialledOf(upstream: Proxy): readonly SocketAddress[] {
    const undrained = this.#undrainedOf(upstream);
    return undrained.length > 0 ? undrained : this.addressesOf(upstream);
  }

  #undrainedOf(upstream: Proxy): readonly SocketAddress[] {
    const addresses = this.addressesOf(upstream);
    return this.#drained.size === 0 ? addresses : addresses.filter(({ text }) => !this.#drained.has(text));
  }

  /** A dial has failed: the names may have moved. */
  refresh(): void {
    for (const resolver of this.#resolvers.values()) void resolver.refresh();
  }

  close(): void {
    for (const resolver of this.#resolvers.values()) resolver.close();
  }
}

/** Each scrape asks for them, and an upstream of a configuration stays what it is. */
const keys = new WeakMap<Proxy, string>();

function keyOf(upstream: Proxy): string {
  let key = keys.get(upstream);
  if (key === undefined) {
    const { host, port } = upstream;
    key = socketAddress(host, port)?.text ?? `${host}:${port}`;
    keys.set(upstream, key);
  }
  return key;
}

/** All that are proxies, the first one first. */
function upstreamsOf({ upstream, relays }: Config): Proxy[] {
  return [upstream ?? DIRECT, ...relays.map((relay) => relay.upstream)].filter(
    (each): each is Proxy => each.kind !== "direct",
  );
}
