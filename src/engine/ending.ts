/**
 * Why a tunnel ended: once, for one reason, as one value. The log line and the metric are
 * functions of it. The list is closed, and is what an operator reads in the log.
 */
import { type Cause, CAUSES } from "../policy/cause.ts";
import type { Report } from "../protocol/report.ts";

export interface Ending {
  readonly reason: Reason;
  /** What is known of the destination: what connect() would have said. */
  readonly cause: Cause;
  /** errno, or the SOCKS reply, or the HTTP status; 0 where there is none. */
  readonly detail: number;
  /** In our words, where a number does not say it. */
  readonly text: string;
  /** What our own egress has told of it. */
  readonly report: Report | null;
}

interface Kind {
  /** Whose doing it was. */
  readonly blame: "nobody" | "client" | "server" | "upstream" | "us";
  /** What the peers do in the ordinary course of things is no more than "info". */
  readonly level: "info" | "warning" | "error";
  readonly detail: "none" | "errno" | "reply" | "status";
  readonly meaning: string;
}

/** In the order of their numbers in the journal: add at the end. */
export const KINDS = {
  finished: { blame: "nobody", level: "info", detail: "none", meaning: "both ends closed, all bytes were delivered" },
  "client-left": { blame: "client", level: "info", detail: "errno", meaning: "the client went away before the upstream had answered" },
  "client-reset": { blame: "client", level: "info", detail: "errno", meaning: "the client reset the connection, or was lost" },
  "server-reset": { blame: "server", level: "info", detail: "errno", meaning: "the far end reset the connection, or was lost" },
  "not-redirected": { blame: "client", level: "warning", detail: "errno", meaning: "the connection came to the listener directly; no firewall rule had redirected it" },
  "own-address": { blame: "client", level: "warning", detail: "none", meaning: "the destination is one of our own listeners" },
  loop: { blame: "us", level: "error", detail: "none", meaning: "our own connection was redirected back to us" },
  "dial-failed": { blame: "upstream", level: "error", detail: "errno", meaning: "no address of the upstream could be connected" },
  "dial-timeout": { blame: "upstream", level: "error", detail: "none", meaning: "the upstream did not accept the connection in time" },
  "no-address": { blame: "upstream", level: "error", detail: "none", meaning: "the upstream's name has no address" },
  "upstream-closed": { blame: "upstream", level: "error", detail: "errno", meaning: "the upstream closed or reset the connection during the handshake" },
  "upstream-malformed": { blame: "upstream", level: "error", detail: "none", meaning: "the upstream does not speak the protocol" },
  "upstream-no-method": { blame: "upstream", level: "error", detail: "none", meaning: "the upstream accepts none of our authentication methods" },
  "upstream-auth": { blame: "upstream", level: "error", detail: "none", meaning: "the upstream refused the user name or password" },
  "upstream-refused": { blame: "server", level: "info", detail: "reply", meaning: "the upstream could not or would not reach the destination (SOCKS reply)" },
  "upstream-status": { blame: "server", level: "info", detail: "status", meaning: "the upstream could not or would not reach the destination (HTTP status)" },
  "handshake-timeout": { blame: "upstream", level: "error", detail: "none", meaning: "the upstream did not answer the handshake in time" },
  "idle-timeout": { blame: "nobody", level: "info", detail: "none", meaning: "no traffic for the idle time" },
  "half-closed-timeout": { blame: "nobody", level: "info", detail: "none", meaning: "one end had closed, and the other sent nothing for the half-closed time" },
  resources: { blame: "us", level: "error", detail: "errno", meaning: "the kernel had no file descriptor, memory or port for this connection" },
  drain: { blame: "nobody", level: "info", detail: "none", meaning: "still open when the drain deadline passed, or a second signal came" },
  "client-malformed": { blame: "client", level: "info", detail: "none", meaning: "the client does not speak SOCKS" },
  "client-timeout": { blame: "client", level: "info", detail: "none", meaning: "the client did not ask for anything in time" },
  "client-auth": { blame: "client", level: "warning", detail: "none", meaning: "the client's user name or password is wrong, or it offered none" },
  unsupported: { blame: "client", level: "info", detail: "none", meaning: "the client asked for another command than CONNECT, or for an unknown type of address" },
  denied: { blame: "client", level: "warning", detail: "none", meaning: "a rule forbids it" },
  "too-many": { blame: "client", level: "warning", detail: "none", meaning: "the client or user has as many connections as it may, or opens them too fast" },
  "name-not-found": { blame: "server", level: "info", detail: "none", meaning: "the name has no address" },
  "name-failed": { blame: "us", level: "warning", detail: "none", meaning: "no DNS server would answer for the name" },
  "name-timeout": { blame: "us", level: "warning", detail: "none", meaning: "the name was not resolved in time" },
  "dest-failed": { blame: "server", level: "info", detail: "errno", meaning: "the destination could not be connected" },
  "dest-timeout": { blame: "server", level: "info", detail: "none", meaning: "the destination did not accept the connection in time" },
  closed: { blame: "nobody", level: "info", detail: "none", meaning: "an operator closed it" },
  "worker-died": { blame: "us", level: "error", detail: "none", meaning: "the worker that served it died: it is counted, and has no line of its own" },
} as const satisfies Record<string, Kind>;

export type Reason = keyof typeof KINDS;
export const REASONS = Object.keys(KINDS) as readonly Reason[];

const NUMBERS = new Map(REASONS.map((reason, number) => [reason, number]));
export const reasonNumber = (reason: Reason): number => NUMBERS.get(reason)!;

/** Ended so often that it is made only once. */
export const FINISHED: Ending = Object.freeze(ending("finished"));

export function ending(
  reason: Reason, detail = 0, text = "", cause: Cause = "unknown", report: Report | null = null,
): Ending {
  return { reason, cause, detail, text, report };
}

/** In the journal. */
export const causeNumber = (cause: Cause): number => CAUSES.indexOf(cause);
