/**
 * Why a destination could not be reached, out of what is known: an errno of our own dial, or what an
 * upstream answered. Pure.
 *
 * Upstreams differ in what they say: 5 is a refusal from most, and from some whatever went wrong.
 * So a reply is read by a table, Trust, of the upstream that gave it; what the table does not
 * vouch for is "unknown", and so is every failure of the upstream itself, which says nothing of
 * the destination.
 */

/** In the order of their numbers in the journal: add at the end. */
export const CAUSES = [
  "unknown", "refused", "host-unreachable", "net-unreachable", "not-allowed", "timeout",
] as const;
export type Cause = (typeof CAUSES)[number];

/** What an upstream's answers are worth. Plain data: crosses threads. */
export interface Trust {
  /** By SOCKS5 reply code; what is missing is unknown. */
  readonly replies: Readonly<Partial<Record<number, Cause>>>;
  /** By HTTP status. */
  readonly statuses: Readonly<Partial<Record<number, Cause>>>;
  /** Where the errno that it names beside the status (X-Squid-Error) is one of these, that counts. */
  readonly errnos: readonly Cause[];
  /** It is our own egress, which is asked for reports (protocol/report.ts). */
  readonly reports: boolean;
}

const NOT_ALLOWED = 2;
const NETWORK_UNREACHABLE = 3;
const HOST_UNREACHABLE = 4;
const CONNECTION_REFUSED = 5;
const TTL_EXPIRED = 6;
const ADDRESS_TYPE_NOT_SUPPORTED = 8;
const FORBIDDEN = 403;
const GATEWAY_TIMEOUT = 504;

/**
 * RFC 1928 section 6 and RFC 9110 section 15, taken at their word. 6, "TTL expired", is what
 * servers say of a timeout, for which there is no code; who says 8 has no
 * way to a destination of this family. 502 and 503 say only that it failed.
 */
const STANDARD: Trust = {
  replies: {
    [NOT_ALLOWED]: "not-allowed",
    [NETWORK_UNREACHABLE]: "net-unreachable",
    [HOST_UNREACHABLE]: "host-unreachable",
    [CONNECTION_REFUSED]: "refused",
    [TTL_EXPIRED]: "timeout",
    [ADDRESS_TYPE_NOT_SUPPORTED]: "net-unreachable",
  },
  statuses: { [FORBIDDEN]: "not-allowed", [GATEWAY_TIMEOUT]: "timeout" },
  errnos: CAUSES,
  reports: false,
};

const NOTHING: Trust = { replies: {}, statuses: {}, errnos: [], reports: false };

/**
 * By what `connect.trust` calls them. test/net/causes.test.ts measures what these programs say; of
 * 3proxy and gost it is as their sources have it. Who only hangs up, as `ssh -D` does, needs none.
 */
export const PRESETS = {
  standard: STANDARD,
  nothing: NOTHING,
  // Which tells the errno besides.
  transplice: { ...STANDARD, reports: true },
  dante: STANDARD,
  microsocks: STANDARD,
  // A timeout is 1, general failure.
  usocksd: STANDARD,
  // 5 is every connection that failed.
  "3proxy": { ...NOTHING, replies: { [NOT_ALLOWED]: "not-allowed" } },
  // 3 is every connection that failed.
  gost: { ...NOTHING, replies: { [NOT_ALLOWED]: "not-allowed" } },
  // 504 is every connection that failed.
  ncat: NOTHING,
  // 503 is nearly everything, but the errno stands beside it.
  squid: { replies: {}, statuses: { [FORBIDDEN]: "not-allowed" }, errnos: CAUSES, reports: false },
  // 500 is every connection that failed.
  tinyproxy: { ...NOTHING, statuses: { [FORBIDDEN]: "not-allowed" } },
} as const satisfies Record<string, Trust>;

export type Preset = keyof typeof PRESETS;

/** The standard's answers with these causes, and no others, are believed. */
export function trustOnly(causes: readonly Cause[]): Trust {
  const kept = (table: Readonly<Partial<Record<number, Cause>>>) =>
    Object.fromEntries(Object.entries(table).filter(([, cause]) => causes.includes(cause!)));
  return { replies: kept(STANDARD.replies), statuses: kept(STANDARD.statuses), errnos: causes, reports: false };
}

/** Of a SOCKS5 reply other than 0. */
export function causeOfReply({ replies }: Trust, reply: number): Cause {
  return replies[reply] ?? "unknown";
}

/** Of an HTTP status other than 2xx, and the errno that stood beside it; 0: none did. */
export function causeOfStatus({ statuses, errnos }: Trust, status: number, errno: number): Cause {
  const named = causeOfErrno(errno);
  if (named !== "unknown" && errnos.includes(named)) return named;
  return statuses[status] ?? "unknown";
}

// errno(3), as the kernel's connect(2) answers.
const EPERM = 1;
const EACCES = 13;
const ENETDOWN = 100;
const ENETUNREACH = 101;
const ETIMEDOUT = 110;
const ECONNREFUSED = 111;
const EHOSTDOWN = 112;
const EHOSTUNREACH = 113;

/** Of a connect() to the destination itself: ours, or one that our egress has told us of. */
export function causeOfErrno(errno: number): Cause {
  switch (errno) {
    case ECONNREFUSED: return "refused";
    case EHOSTUNREACH: case EHOSTDOWN: return "host-unreachable";
    case ENETUNREACH: case ENETDOWN: return "net-unreachable";
    case EACCES: case EPERM: return "not-allowed";
    case ETIMEDOUT: return "timeout";
    default: return "unknown";
  }
}

/** What connect() would have said; 0: nobody knows. */
export function errnoOf(cause: Cause): number {
  switch (cause) {
    case "refused": return ECONNREFUSED;
    case "host-unreachable": return EHOSTUNREACH;
    case "net-unreachable": return ENETUNREACH;
    case "not-allowed": return EACCES;
    case "timeout": return ETIMEDOUT;
    case "unknown": return 0;
  }
}
