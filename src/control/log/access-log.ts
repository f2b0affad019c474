/**
 * Journal records -> log lines, with the predecessors' messages and field names: "proxy starts",
 * "proxy ends", "failed to connect to proxy server". What ended a tunnel stands in `reason`, out of
 * the closed list in engine/ending.ts.
 */
import { textOf } from "../../config/endpoint.ts";
import { KINDS, type Reason, REASONS } from "../../engine/ending.ts";
import { type JournalRecord, STARTED } from "../../engine/journal.ts";
import { CAUSES } from "../../policy/cause.ts";
import { errnoName, errnoText } from "../listeners.ts";
import type { Field, Log } from "./log.ts";
import type { RequestIds } from "./request-ids.ts";

const DESTINATION = 28;
const SOURCE = 56;

const LOOP_TOLD_MS = 60_000;

/** RFC 1928 section 6. */
const SOCKS_REPLIES = [
  "succeeded",
  "general failure",
  "not allowed by ruleset",
  "network unreachable",
  "host unreachable",
  "connection refused",
  "TTL expired",
  "command not supported",
  "address type not supported",
];

const REMEDIES: Partial<Record<Reason, string>> = {
  loop: "exempt transplice from its own redirect: set `mark` and let the rules return packets with that mark, or exempt its user or the upstream's address",
  "not-redirected":
    "only the firewall may send connections here; is the listener open to others, or is conntrack missing?",
  "own-address": "exclude transplice's own port from the rules, unless a client connects to it by itself",
  "no-address": "the name in proxy_url does not resolve",
};

/** Of a destination that is refused though no key of the file names it: usocksd let clients go there. */
const DENIED_REMEDIES: Readonly<Record<string, string>> = Object.fromEntries([
  ...["loopback", "link-local", "own-address", "special"].map((rule) =>
    [rule, "if clients shall reach it, name it in outgoing.allow_networks"]),
  ["private", "if clients shall reach it, name it in outgoing.allow_networks, or set outgoing.allow_private"],
]);

/** usocksd's words for what it refuses. */
const MESSAGES: Partial<Record<Reason, string>> = {
  denied: "denied access",
  "too-many": "denied access",
  "client-auth": "authentication failure",
  "name-failed": "dial to destination failed",
  "name-timeout": "dial to destination failed",
};

export class AccessLog {
  readonly #log: Log;
  readonly #ids: RequestIds;
  #loopToldMs = -Infinity;

  constructor(log: Log, ids: RequestIds) {
    this.#log = log;
    this.#ids = ids;
  }

  write(record: JournalRecord, worker: number): void {
    const fields: Record<string, Field> = {
      type: "access",
      client_addr: textOf(record.addresses, 0),
      dest_addr: record.addresses[DESTINATION] === 0 ? "" : textOf(record.addresses, DESTINATION),
      request_id: this.#ids.text(record.incarnation, worker, record.id),
    };
    if (record.version !== 0) Object.assign(fields, socksFields(record));
    else if (record.addresses[SOURCE] !== 0) fields["egress_addr"] = textOf(record.addresses, SOURCE);
    if (record.kind === STARTED) return this.#log.info("proxy starts", fields, record.wallMs);
    const reason = REASONS[record.reason]!;
    const { level, blame } = KINDS[reason];
    Object.assign(fields, {
      elapsed: record.durationMs / 1000,
      tx_bytes: record.bytesUp,
      rx_bytes: record.bytesDown,
      reason,
    });
    if (record.cause !== 0) fields["cause"] = CAUSES[record.cause]!;
    if (record.errno !== 0) fields["errno"] = errnoName(record.errno);
    if (record.tried !== "") fields["tried"] = record.tried.replace(/errno (\d+)/g, (_, errno) => errnoName(Number(errno)));
    const error = errorText(reason, record);
    if (error !== null) fields["error"] = error;
    if (reason === "loop" && !this.#isFirst(record.wallMs)) {
      return this.#log.debug("proxy ends", fields, record.wallMs);
    }
    if (level === "info") return this.#log.info("proxy ends", fields, record.wallMs);
    const remedy = REMEDIES[reason] ?? (reason === "denied" ? DENIED_REMEDIES[record.text] : undefined);
    if (remedy !== undefined) fields["remedy"] = remedy;
    const message =
      MESSAGES[reason] ??
      (blame === "upstream" ? "failed to connect to proxy server" : "connection refused");
    this.#log[level](message, fields, record.wallMs, reason);
  }

  /** A loop is one mistake with thousands of connections: it is told once a minute. */
  #isFirst(wallMs: number): boolean {
    if (wallMs < this.#loopToldMs + LOOP_TOLD_MS) return false;
    this.#loopToldMs = wallMs;
    return true;
  }
}

/** As usocksd names them. */
function socksFields(record: JournalRecord): Record<string, Field> {
  const { addresses, name, user, version } = record;
  return {
    protocol: version === 4 ? "SOCKS4/4a" : "SOCKS5",
    command: "connect",
    dest_host: name === "" && addresses[DESTINATION] !== 0 ? hostOf(textOf(addresses, DESTINATION)) : name,
    src_addr: addresses[SOURCE] === 0 ? "" : textOf(addresses, SOURCE),
    ...(user === "" ? {} : { user }),
  };
}

/** "192.0.2.1:80", "[2001:db8::1]:80": without port and brackets. */
const hostOf = (text: string): string => text.replace(/:\d+$/, "").replace(/^\[|\]$/g, "");

/** In words, or null where nothing was wrong. */
function errorText(reason: Reason, record: JournalRecord): string | null {
  const { detail, meaning } = KINDS[reason];
  const number = record.detail;
  if (reason === "finished") return null;
  if (record.text !== "") return `${meaning}: ${record.text}`;
  switch (detail) {
    case "errno":
      return number === 0 ? meaning : `${meaning}: ${errnoText(number)}`;
    case "reply":
      return `${meaning}: ${number} ${SOCKS_REPLIES[number] ?? "unassigned"}`;
    case "status":
      return `${meaning}: ${number}`;
    case "none":
      return meaning;
  }
}
