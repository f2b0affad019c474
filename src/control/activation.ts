/**
 * Sockets that the service manager has opened and passes on: sd_listen_fds(3), systemd.socket(5).
 * What each is for is said by its name (FileDescriptorName=), or else by its address, which then is
 * one of the configuration. They stay the manager's: a restart, a reload and an upgrade find them as
 * they were.
 */
import {
  AF_INET, AF_INET6, F_DUPFD_CLOEXEC, IPV6_V6ONLY, SO_ACCEPTCONN, SO_TYPE, SOCK_STREAM, SOCKADDR_SIZE, SOL_IPV6, SOL_SOCKET,
} from "../../native-bindings/constants.ts";
import type { Memory, Syscalls } from "../../native-bindings/syscalls.ts";
import type { Config, ListenAddress } from "../config/config.ts";
import { textOf } from "../config/endpoint.ts";
import type { PassedSocket } from "../config/environment.ts";
import { alternatives } from "../config/problem.ts";
import type { Role } from "../engine/session.ts";
import type { ListeningAddress } from "./listeners.ts";

/** What a socket may be named. */
const USES = ["relay", "socks", "metrics", "admin"] as const;
type Use = (typeof USES)[number];

/** Where the configuration says what each use listens on. null: it has no such use. */
const LISTENS: Readonly<Record<Use, { of(config: Config): readonly ListenAddress[] | null; needs: string }>> = {
  relay: { of: ({ upstream, listen }) => (upstream === null ? null : listen), needs: "proxy_url" },
  socks: { of: ({ egress }) => egress?.listen ?? null, needs: "[incoming]" },
  metrics: { of: ({ egress }) => egress?.metrics ?? null, needs: "[incoming]" },
  admin: {
    of: ({ admin }) => admin?.listen.filter((address): address is ListenAddress => "bytes" in address) ?? null,
    needs: "admin.listen",
  },
};

const ROLES: Readonly<Record<Use, Role | null>> = { relay: "transparent", socks: "socks", metrics: null, admin: null };

interface Passed extends PassedSocket {
  readonly address: ListenAddress;
}

export class Activation {
  readonly #sys: Syscalls;
  readonly #sockets: readonly Passed[];
  /** Those that main itself serves, by address. */
  #controls: ReadonlyMap<string, number> = new Map();

  private constructor(sys: Syscalls, sockets: readonly Passed[]) {
    this.#sys = sys;
    this.#sockets = sockets;
  }

  /** Looks at what was passed: sockets that listen for TCP, or what is wrong with them. */
  static of(sys: Syscalls, passed: readonly PassedSocket[]): Activation | { wrong: string[] } {
    const memory = sys.memory(SOCKADDR_SIZE);
    const found = passed.map((socket) => ({ ...socket, address: addressOf(sys, socket.fd, memory) }));
    const wrong = found.filter(({ address }) => address === null).map(
      (socket) => `${textOfSocket(socket)} is no socket that listens for TCP; a socket unit says so with ListenStream=ADDRESS:PORT and Accept=no`,
    );
    return wrong.length > 0 ? { wrong } : new Activation(sys, found as Passed[]);
  }

  get sockets(): readonly PassedSocket[] {
    return this.#sockets;
  }

  /**
   * The configuration with what was passed in place of what it would open: named sockets in place
   * of all addresses of their use, others in place of their own. And the listening sockets among
   * them that workers accept from. Or what fits nothing.
   */
  fit(config: Config): { config: Config; listening: ListeningAddress[] } | { wrong: string[] } {
    const wrong: string[] = [];
    const named = new Map<Use, Passed[]>();
    const placed: { socket: Passed; use: Use }[] = [];
    for (const socket of this.#sockets) {
      const name = USES.find((use) => use === socket.name) ?? null;
      const matching = name === null ? usesOf(config, socket.address) : [name];
      const [use] = matching;
      if (use === undefined) wrong.push(`${textOfSocket(socket)} ${fitsNothing(config)}`);
      else if (LISTENS[use].of(config) === null) {
        wrong.push(`${textOfSocket(socket)}: the configuration has no use for it without ${LISTENS[use].needs}`);
      } else {
        placed.push({ socket, use });
        // One that leads to an upstream of [[relays]] is named relay, too, and stays there.
        const elsewhere = use === "relay" && config.relays.some(({ listen }) => listen.some((one) => isAt(socket.address, one)));
        if (name !== null && !elsewhere) named.set(use, [...(named.get(use) ?? []), socket]);
      }
    }
    if (wrong.length > 0) return { wrong };
    this.#controls = new Map(
      placed.filter(({ use }) => ROLES[use] === null).map(({ socket }) => [socket.address.text, socket.fd]),
    );
    return { config: this.#fitted(config, named), listening: listeningOf(placed) };
  }

  /** A descriptor of one's own to serve on, if such a socket was passed. */
  take({ text }: { readonly text: string }): number | null {
    const fd = this.#controls.get(text);
    if (fd === undefined) return null;
    const own = this.#sys.fcntl(fd, F_DUPFD_CLOEXEC, 0);
    return own < 0 ? null : own;
  }

  #fitted(config: Config, named: ReadonlyMap<Use, readonly Passed[]>): Config {
    const instead = (list: readonly ListenAddress[], use: Use | null): ListenAddress[] => {
      const own = use === null ? undefined : named.get(use);
      const addresses = own !== undefined
        ? own.map(({ address }) => address)
        : list.flatMap((wanted) => {
            const passed = this.#sockets.filter(({ address }) => isAt(address, wanted));
            return passed.length > 0 ? passed.map(({ address }) => address) : [wanted];
          });
      return addresses.filter((one, i) => addresses.findIndex((other) => isSame(one, other)) === i);
    };
    const { egress, admin } = config;
    return Object.freeze({
      ...config,
      listen: instead(config.listen, "relay"),
      relays: config.relays.map((relay) => ({ ...relay, listen: instead(relay.listen, null) })),
      egress: egress === null
        ? null
        : { ...egress, listen: instead(egress.listen, "socks"), metrics: instead(egress.metrics, "metrics") },
      admin: admin === null
        ? null
        : {
            ...admin,
            listen: [
              ...instead(LISTENS.admin.of(config) ?? [], "admin"),
              ...admin.listen.filter((address) => "path" in address),
            ],
          },
    });
  }
}

/** Where it listens; null: it is no such socket. */
function addressOf(sys: Syscalls, fd: number, memory: Memory): ListenAddress | null {
  const option = sys.memory(4);
  const is = (level: number, name: number, value: number): boolean =>
    sys.getsockopt(fd, level, name, option, 0, 4) >= 0 && option.view.getInt32(0, true) === value;
  if (!is(SOL_SOCKET, SO_TYPE, SOCK_STREAM) || !is(SOL_SOCKET, SO_ACCEPTCONN, 1)) return null;
  if (sys.getsockname(fd, memory, 0) < 0) return null;
  const family = memory.view.getUint16(0, true);
  if (family !== AF_INET && family !== AF_INET6) return null;
  const bytes = memory.bytes.slice(0, family === AF_INET ? 16 : 28);
  const wildcard = family === AF_INET6 && bytes.subarray(8, 24).every((byte) => byte === 0);
  return Object.freeze({
    text: textOf(bytes, 0), bytes, dualStack: wildcard && is(SOL_IPV6, IPV6_V6ONLY, 0), optional: false,
  });
}

/** The address is one that the configuration wants: ":1081" is also each family's wildcard. */
function isAt(address: ListenAddress, wanted: ListenAddress): boolean {
  if (address.text === wanted.text) return true;
  return wanted.dualStack && address.text === `0.0.0.0:${wanted.text.slice(wanted.text.lastIndexOf(":") + 1)}`;
}

const isSame = (one: ListenAddress, other: ListenAddress): boolean =>
  one.text === other.text && one.dualStack === other.dualStack;

function usesOf(config: Config, address: ListenAddress): Use[] {
  return USES.filter((use) =>
    [...(LISTENS[use].of(config) ?? []), ...(use === "relay" ? config.relays.flatMap(({ listen }) => listen) : [])]
      .some((wanted) => isAt(address, wanted)));
}

function listeningOf(placed: readonly { readonly socket: Passed; readonly use: Use }[]): ListeningAddress[] {
  const listening: { address: ListenAddress; role: Role; fds: number[] }[] = [];
  for (const { socket: { address, fd }, use } of placed) {
    const role = ROLES[use];
    if (role === null) continue;
    const known = listening.find((one) => one.role === role && isSame(one.address, address));
    if (known === undefined) listening.push({ address, role, fds: [fd] });
    else known.fds.push(fd);
  }
  return listening;
}

function textOfSocket({ fd, name, address }: PassedSocket & { readonly address?: ListenAddress | null }): string {
  const where = address == null ? "" : `, which listens on ${address.text},`;
  return `the service manager's socket ${fd}${name === "" ? "" : ` (${name})`}${where}`;
}

function fitsNothing(config: Config): string {
  const wanted = USES.flatMap((use) => (LISTENS[use].of(config) ?? []).map(({ text }) => `${text} (${use})`));
  return `is none of the configuration's: ${wanted.join(", ")}; say what it is for with FileDescriptorName=${alternatives(USES)} in its unit, or let it listen on one of these`;
}
