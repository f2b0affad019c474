/**
 * What a worker counts of SOCKS, under the predecessor's names (usocksd 1.3): one row of numbers in
 * shared memory, written by the worker alone and read by main at any time. So a scrape never touches
 * a worker, and counting allocates nothing.
 *
 * A histogram stands as what fell into each bucket alone, and the sum of the values. Its count is
 * made from its buckets by whoever reads it: so it is whole even if it is read in mid-write.
 */

/** Named as usocksd's `status` label; the last two are replies that it knew and never sent. */
export const STATUS = {
  granted: 0,
  rejected: 1,
  failure: 2,
  not_allowed: 3,
  network_unreachable: 4,
  host_unreachable: 5,
  connection_refused: 6,
  command_not_supported: 7,
  authentication_failure: 8,
  address_read_failure: 9,
  invalid_request: 10,
  unknown_version: 11,
  TTL_expired: 12,
  address_type_not_supported: 13,
} as const;
export type StatusName = keyof typeof STATUS;
export const STATUS_NAMES = Object.keys(STATUS) as StatusName[];

/** By reply code of RFC 1928, from 00 to 08. */
const STATUS_OF_REPLY: readonly number[] = [
  STATUS.granted, STATUS.failure, STATUS.not_allowed, STATUS.network_unreachable, STATUS.host_unreachable,
  STATUS.connection_refused, STATUS.TTL_expired, STATUS.command_not_supported,
  STATUS.address_type_not_supported,
];

/** The status of a request that was answered with this reply code of RFC 1928; SOCKS4 knows but two. */
export function statusOfReply(version: 4 | 5, code: number): number {
  if (version === 4) return code === 0 ? STATUS.granted : STATUS.rejected;
  return STATUS_OF_REPLY[code] ?? STATUS.failure;
}

/** 0: the client's first byte was no version, or never came. */
export type SocksVersion = 0 | 4 | 5;
/** As the SOCKS server machine names them. "none": none was agreed on. */
export type AuthMethod = "none" | "noauth" | "password" | "userid";
/** As the SOCKS server machine names them. null: of no known type. */
export type AddressType = "ipv4" | "ipv6" | "name" | null;

/** Upper bounds of buckets: those of every Prometheus client, and what a tunnel may well last. */
export const SECONDS: readonly number[] = [
  0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600, 3600,
];
/** Powers of 4 from 256 B to 16 GiB. */
export const BYTES: readonly number[] = Array.from({ length: 14 }, (_, i) => 4 ** (i + 4));

const VERSIONS = 3;
const STATUSES = STATUS_NAMES.length;

const REQUESTS = 0;
const INFLIGHT = REQUESTS + VERSIONS * STATUSES;
const TX_ERRORS = INFLIGHT + 1;
const RX_ERRORS = TX_ERRORS + 1;
/** For each kind two numbers: failed, and ok. */
const AUTH = RX_ERRORS + 1;
const ADDRESS = AUTH + 3 * 2;
/** Each: its buckets, the one without a bound, and the sum. */
const HISTOGRAM = SECONDS.length + 2;
const ELAPSED_ERROR = ADDRESS + 4 * 2;
const ELAPSED_SUCCESS = ELAPSED_ERROR + HISTOGRAM;
const TX_SECONDS = ELAPSED_SUCCESS + HISTOGRAM;
const RX_SECONDS = TX_SECONDS + HISTOGRAM;
const TX_BYTES = RX_SECONDS + HISTOGRAM;
const RX_BYTES = TX_BYTES + HISTOGRAM;
const ROW = RX_BYTES + HISTOGRAM;

export const socksCountersBytes = (workers: number): number => workers * ROW * 8;

const rowOf = (shared: SharedArrayBuffer, worker: number): Float64Array =>
  new Float64Array(shared, worker * ROW * 8, ROW);

/** One worker's, and its alone. */
export class SocksCounters {
  readonly #row: Float64Array;

  constructor(shared: SharedArrayBuffer, worker: number) {
    this.#row = rowOf(shared, worker);
  }

  /** A request has been answered, or given up: `status` is one of STATUS. Once for each connection. */
  request(version: SocksVersion, status: number): void {
    this.#row[REQUESTS + versionAt(version) * STATUSES + status]!++;
  }

  /** A tunnel stands. */
  begins(): void {
    this.#row[INFLIGHT]!++;
  }

  /**
   * A tunnel that has begun is over. tx is from the client to the destination, rx the other way;
   * a direction's time is from the tunnel's begin to the direction's end.
   */
  ends(
    success: boolean, elapsedMs: number, txBytes: number, rxBytes: number, txMs: number, rxMs: number,
    txError: boolean, rxError: boolean,
  ): void {
    const row = this.#row;
    row[INFLIGHT]!--;
    observe(row, success ? ELAPSED_SUCCESS : ELAPSED_ERROR, SECONDS, elapsedMs / 1000);
    observe(row, TX_SECONDS, SECONDS, txMs / 1000);
    observe(row, RX_SECONDS, SECONDS, rxMs / 1000);
    observe(row, TX_BYTES, BYTES, txBytes);
    observe(row, RX_BYTES, BYTES, rxBytes);
    if (txError) row[TX_ERRORS]!++;
    if (rxError) row[RX_ERRORS]!++;
  }

  auth(method: AuthMethod, ok: boolean): void {
    this.#row[authAt(method) + (ok ? 1 : 0)]!++;
  }

  /** The address of a SOCKS5 request has been read, or (not ok) could not be. */
  address(type: AddressType, ok: boolean): void {
    this.#row[addressAt(type) + (ok ? 1 : 0)]!++;
  }
}

/** To be called by main when a worker is gone, for its tunnels are, too. */
export function forgetInflight(shared: SharedArrayBuffer, worker: number): void {
  rowOf(shared, worker)[INFLIGHT] = 0;
}

export interface HistogramTotals {
  readonly bounds: readonly number[];
  /** What fell into each bucket alone; one more than there are bounds. */
  readonly counts: Float64Array;
  readonly sum: number;
}

/** What all workers together have counted up to now. */
export class SocksTotals {
  readonly #row = new Float64Array(ROW);

  /** `used`: workers that there have ever been. The rows of others say nothing, and are not read. */
  constructor(shared: SharedArrayBuffer, used = shared.byteLength / (ROW * 8)) {
    for (let worker = 0; worker < used; worker++) {
      const row = rowOf(shared, worker);
      for (let at = 0; at < ROW; at++) this.#row[at]! += row[at]!;
    }
  }

  get inflight(): number {
    return this.#row[INFLIGHT]!;
  }

  get txErrors(): number {
    return this.#row[TX_ERRORS]!;
  }

  get rxErrors(): number {
    return this.#row[RX_ERRORS]!;
  }

  get txSeconds(): HistogramTotals {
    return this.#histogram(TX_SECONDS, SECONDS);
  }

  get rxSeconds(): HistogramTotals {
    return this.#histogram(RX_SECONDS, SECONDS);
  }

  get txBytes(): HistogramTotals {
    return this.#histogram(TX_BYTES, BYTES);
  }

  get rxBytes(): HistogramTotals {
    return this.#histogram(RX_BYTES, BYTES);
  }

  elapsed(success: boolean): HistogramTotals {
    return this.#histogram(success ? ELAPSED_SUCCESS : ELAPSED_ERROR, SECONDS);
  }

  requests(version: SocksVersion, status: number): number {
    return this.#row[REQUESTS + versionAt(version) * STATUSES + status]!;
  }

  auth(method: AuthMethod, ok: boolean): number {
    return this.#row[authAt(method) + (ok ? 1 : 0)]!;
  }

  address(type: AddressType, ok: boolean): number {
    return this.#row[addressAt(type) + (ok ? 1 : 0)]!;
  }

  #histogram(at: number, bounds: readonly number[]): HistogramTotals {
    const end = at + bounds.length + 1;
    return { bounds, counts: this.#row.subarray(at, end), sum: this.#row[end]! };
  }
}

function observe(row: Float64Array, at: number, bounds: readonly number[], value: number): void {
  let bucket = 0;
  while (bucket < bounds.length && value > bounds[bucket]!) bucket++;
  row[at + bucket]!++;
  row[at + bounds.length + 1]! += value;
}

const versionAt = (version: SocksVersion): number => (version === 0 ? 0 : version - 3);

function authAt(method: AuthMethod): number {
  switch (method) {
    case "none": // usocksd counted a client with which it agreed on nothing as one without auth.
    case "noauth":
      return AUTH;
    case "password":
      return AUTH + 2;
    case "userid":
      return AUTH + 4;
  }
}

function addressAt(type: AddressType): number {
  switch (type) {
    case null:
      return ADDRESS;
    case "ipv4":
      return ADDRESS + 2;
    case "ipv6":
      return ADDRESS + 4;
    case "name":
      return ADDRESS + 6;
  }
}
