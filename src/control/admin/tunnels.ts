/**
 * The connections that are open, as main finds them in the workers' tables: listed with a filter, a
 * page at a time, or found by name. A row is copied as it is read; no worker notices.
 */
import { splitHostPort, textOf } from "../../config/endpoint.ts";
import { parseNetwork } from "../../config/network.ts";
import { CLOCK_ORIGIN, ROWS_USED } from "../../engine/counters.ts";
import {
  ACTIVE, CLIENT, DESTINATION, DIALLED_US, DOWN, FIRST_BYTE_US, PHASES, type PhaseName, SHAKEN_US, SOURCE, STARTED,
  type TableReader, UP,
} from "../../engine/table.ts";
import { isAt, isNamed, type TracePlace } from "../../engine/trace.ts";
import type { WorkerView } from "../fleet.ts";
import type { RequestIds } from "../log/request-ids.ts";

export interface TunnelSources {
  readonly workers: () => readonly WorkerView[];
  readonly ids: RequestIds;
  /** Addresses by their slots. */
  readonly upstreams: () => ReadonlyMap<number, string>;
  readonly exits: () => ReadonlyMap<number, string>;
  readonly mode: () => "redirect" | "tproxy";
  /** Whoever waits for this CPU goes first. */
  readonly makeWay: () => void;
}

/** As it is shown. Times in Unix seconds, lengths of time in seconds. */
export interface Tunnel {
  readonly id: string;
  readonly state: PhaseName;
  readonly front: "redirect" | "tproxy" | "socks" | "socks4" | "socks5";
  readonly client: string;
  readonly destination: string | null;
  readonly name: string | null;
  readonly user: string | null;
  readonly upstream: string | null;
  readonly egress: string | null;
  readonly source: string | null;
  readonly started: number;
  readonly age_seconds: number;
  readonly idle_seconds: number;
  readonly bytes_up: number;
  readonly bytes_down: number;
  readonly dial_seconds: number | null;
  readonly handshake_seconds: number | null;
  readonly first_byte_seconds: number | null;
  readonly worker: number;
}

export interface TunnelPage {
  readonly tunnels: readonly Tunnel[];
  /** Where the next page begins; null: there is none. */
  readonly next: string | null;
}

/** True: the row that has been read is wanted. */
export type RowFilter = (row: TableReader) => boolean;

/** Rows that are read in one go: then others have their turn. */
const ROWS_PER_TURN = 16_384;
/** And between two moments at which a worker that waits for the CPU goes first: some tenth of a millisecond. */
const ROWS_PER_WAY = 2048;

export class Tunnels {
  readonly #sources: TunnelSources;

  constructor(sources: TunnelSources) {
    this.#sources = sources;
  }

  /** Every row that a tunnel may stand in; it has not been read. Lets others go on meanwhile. */
  async scan(see: (index: number, worker: WorkerView) => void): Promise<void> {
    let left = ROWS_PER_TURN;
    for (const worker of this.#sources.workers()) {
      for (let index = 0; index < worker.counters[ROWS_USED]!; index++) {
        see(index, worker);
        if (--left % ROWS_PER_WAY === 0) this.#sources.makeWay();
        if (left > 0) continue;
        left = ROWS_PER_TURN;
        await new Promise(setImmediate);
      }
    }
  }

  /** Up to `limit` from the cursor `after` on ("": from the first). null: that is no cursor. */
  async page(filter: RowFilter, limit: number, after: string): Promise<TunnelPage | null> {
    const cursor = after === "" ? [0, 0] : /^(\d{1,3})\.(\d{1,8})$/.exec(after)?.slice(1).map(Number);
    if (cursor === undefined) return null;
    const show = this.#show();
    const tunnels: Tunnel[] = [];
    let left = ROWS_PER_TURN;
    for (const worker of this.#sources.workers()) {
      if (worker.number < cursor[0]!) continue;
      const first = worker.number === cursor[0] ? cursor[1]! : 0;
      for (let index = first; index < worker.counters[ROWS_USED]!; index++) {
        if (worker.table.read(index) && filter(worker.table)) {
          if (tunnels.length === limit) return { tunnels, next: `${worker.number}.${index}` };
          tunnels.push(show(worker.table, worker));
        }
        if (--left % ROWS_PER_WAY === 0) this.#sources.makeWay();
        if (left > 0) continue;
        left = ROWS_PER_TURN;
        await new Promise(setImmediate);
      }
    }
    return { tunnels, next: null };
  }

  /** Where the tunnel of that name is; null: nowhere any more. */
  find(name: string): { readonly worker: number; readonly row: number; readonly id: number } | null {
    const wanted = this.#sources.ids.parse(name);
    const worker = this.#sources.workers().find(({ number }) => number === wanted?.worker);
    if (wanted === null || worker === undefined || (worker.incarnation & 0xffff) !== wanted.incarnation) return null;
    const { table } = worker;
    for (let index = 0; index < worker.counters[ROWS_USED]!; index++) {
      if (table.read(index) && table.id === wanted.id) return { worker: worker.number, row: table.row, id: table.id };
    }
    return null;
  }

  /** A row as one tunnel, with what is the same for all of a page looked up once. */
  #show(): (row: TableReader, worker: WorkerView) => Tunnel {
    const { ids, upstreams, exits, mode } = this.#sources;
    const [upstreamNames, exitNames, redirect] = [upstreams(), exits(), mode()];
    const nowMs = performance.timeOrigin + performance.now();
    return (row, { number, incarnation, counters }) => {
      const origin = counters[CLOCK_ORIGIN]!;
      const startedMs = origin + row.number(STARTED);
      const seconds = (offset: number): number | null => (row.micros(offset) < 0 ? null : row.micros(offset) / 1e6);
      return {
        id: ids.text(incarnation, number, row.id),
        state: PHASES[row.phase]!,
        front: frontOf(row.version, redirect),
        client: textOf(row.bytes, CLIENT),
        destination: endpointAt(row, DESTINATION),
        name: row.name === "" ? null : row.name,
        user: row.user === "" ? null : row.user,
        upstream: upstreamNames.get(row.upstream) ?? null,
        egress: exitNames.get(row.exit) ?? null,
        source: row.version === 0 ? null : endpointAt(row, SOURCE),
        started: startedMs / 1000,
        age_seconds: secondsBetween(startedMs, nowMs),
        idle_seconds: secondsBetween(origin + row.number(ACTIVE), nowMs),
        bytes_up: row.number(UP),
        bytes_down: row.number(DOWN),
        dial_seconds: seconds(DIALLED_US),
        handshake_seconds: seconds(SHAKEN_US),
        first_byte_seconds: seconds(FIRST_BYTE_US),
        worker: number,
      };
    };
  }
}

const secondsBetween = (fromMs: number, toMs: number): number => Math.max(0, Math.round(toMs - fromMs)) / 1000;

function frontOf(version: number, mode: "redirect" | "tproxy"): Tunnel["front"] {
  switch (version) {
    case 0: return mode;
    case 4: return "socks4";
    case 5: return "socks5";
    default: return "socks";
  }
}

/** null: it is not known yet. */
export function endpointAt(row: TableReader, offset: number): string | null {
  return row.bytes[offset] === 0 ? null : textOf(row.bytes, offset);
}

// ---- filters, as one asks for them

export interface TunnelQuery {
  /** ADDRESS, NETWORK/PREFIX or ADDRESS:PORT. */
  readonly client?: string;
  /** The same; or :PORT; or a name, ".example.com" for all below it. */
  readonly destination?: string;
  readonly state?: string;
  readonly user?: string;
  /** ADDRESS:PORT. */
  readonly upstream?: string;
}

/** What a query asks for, or what is wrong with it. */
export function filterOf(query: TunnelQuery, upstreams: ReadonlyMap<number, string>): RowFilter | { wrong: string } {
  const filters: RowFilter[] = [];
  const { client, destination, state, user, upstream } = query;
  if (client !== undefined) {
    const place = placeOf(client);
    if (place === null) return { wrong: `client: found "${client}"; allowed: an address, a network such as 10.0.0.0/8, or ADDRESS:PORT` };
    filters.push((row) => isAt(place, row.bytes, CLIENT));
  }
  if (destination !== undefined) {
    const place = placeOf(destination);
    const name = place === null ? nameOf(destination) : null;
    if (place === null && name === null) {
      return { wrong: `destination: found "${destination}"; allowed: an address, a network, ADDRESS:PORT, :PORT, or a name, .example.com for all below it` };
    }
    filters.push((row) => (place === null ? isNamed(name!, row.name) : isAt(place, row.bytes, DESTINATION)));
  }
  if (state !== undefined) {
    const phase = (PHASES as readonly string[]).indexOf(state);
    if (phase < 1) return { wrong: `state: found "${state}"; allowed: ${PHASES.slice(1).join(", ")}` };
    filters.push((row) => row.phase === phase);
  }
  if (user !== undefined) filters.push((row) => row.user === user);
  if (upstream !== undefined) {
    const slots = new Set([...upstreams].filter(([, text]) => text === upstream).map(([slot]) => slot));
    filters.push((row) => slots.has(row.upstream));
  }
  return (row) => filters.every((filter) => filter(row));
}

/** ADDRESS, NETWORK/PREFIX, ADDRESS:PORT or :PORT; null: it is none of these. */
export function placeOf(text: string): TracePlace | null {
  const network = parseNetwork(text);
  if (typeof network !== "string") return { network: { bytes: network.bytes, prefix: network.prefix }, port: null };
  const parts = splitHostPort(text);
  if (parts === null || !/^\d{1,5}$/.test(parts.port) || Number(parts.port) > 65_535) return null;
  const port = Number(parts.port);
  if (parts.host === "") return { network: null, port };
  const host = parseNetwork(parts.host);
  return typeof host === "string" ? null : { network: { bytes: host.bytes, prefix: host.prefix }, port };
}

/** As names are kept; ".example.com" is all below it. null: it cannot be a name. */
export function nameOf(text: string): string | null {
  const wanted = text.toLowerCase().replace(/\.$/, "");
  return /^\.?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*$/.test(wanted) ? wanted : null;
}
