/**
 * Why a tunnel ended: once, for one reason, as one value. The log line and the metric are
 * functions of it. The list is closed, and is what an operator reads in the log.
 */
export interface Ending {
  readonly reason: Reason;
  /** errno, or the SOCKS reply, or the HTTP status; 0 where there is none. */
  readonly detail: number;
  /** In our words, where a number does not say it. */
  readonly text: string;
}

interface Kind {
  /** Whose ordinary business, or whose fault. Only what is ours or the upstream's is an error. */
  readonly blame: "nobody" | "client" | "server" | "upstream" | "us";
  readonly detail: "none" | "errno" | "reply" | "status";
  readonly meaning: string;
}

/** In the order of their numbers in the journal: add at the end. */
export const KINDS = {
  finished: { blame: "nobody", detail: "none", meaning: "both ends closed, all bytes were delivered" },
  "client-left": { blame: "client", detail: "errno", meaning: "the client went away before the upstream had answered" },
  "client-reset": { blame: "client", detail: "errno", meaning: "the client reset the connection, or was lost" },
  "server-reset": { blame: "server", detail: "errno", meaning: "the far end reset the connection, or was lost" },
  "not-redirected": { blame: "client", detail: "errno", meaning: "the connection came to the listener directly; no firewall rule had redirected it" },
  "own-address": { blame: "client", detail: "none", meaning: "the destination is one of our own listeners" },
  loop: { blame: "us", detail: "none", meaning: "our own connection was redirected back to us" },
  "dial-failed": { blame: "upstream", detail: "errno", meaning: "no address of the upstream could be connected" },
  "dial-timeout": { blame: "upstream", detail: "none", meaning: "the upstream did not accept the connection in time" },
  "no-address": { blame: "upstream", detail: "none", meaning: "the upstream's name has no address" },
  "upstream-closed": { blame: "upstream", detail: "errno", meaning: "the upstream closed or reset the connection during the handshake" },
  "upstream-malformed": { blame: "upstream", detail: "none", meaning: "the upstream does not speak the protocol" },
  "upstream-no-method": { blame: "upstream", detail: "none", meaning: "the upstream accepts none of our authentication methods" },
  "upstream-auth": { blame: "upstream", detail: "none", meaning: "the upstream refused the user name or password" },
  "upstream-refused": { blame: "server", detail: "reply", meaning: "the upstream could not or would not reach the destination (SOCKS reply)" },
  "upstream-status": { blame: "server", detail: "status", meaning: "the upstream could not or would not reach the destination (HTTP status)" },
  "handshake-timeout": { blame: "upstream", detail: "none", meaning: "the upstream did not answer the handshake in time" },
  "idle-timeout": { blame: "nobody", detail: "none", meaning: "no traffic for the idle time" },
  "half-closed-timeout": { blame: "nobody", detail: "none", meaning: "one end had closed, and the other sent nothing for the half-closed time" },
  resources: { blame: "us", detail: "errno", meaning: "the kernel had no file descriptor, memory or port for this connection" },
  drain: { blame: "nobody", detail: "none", meaning: "still open when the drain deadline passed, or a second signal came" },
} as const satisfies Record<string, Kind>;

export type Reason = keyof typeof KINDS;
export const REASONS = Object.keys(KINDS) as readonly Reason[];

const NUMBERS = new Map(REASONS.map((reason, number) => [reason, number]));
export const reasonNumber = (reason: Reason): number => NUMBERS.get(reason)!;

/** Ended so often that it is made only once. */
export const FINISHED: Ending = Object.freeze({ reason: "finished", detail: 0, text: "" });

export function ending(reason: Reason, detail = 0, text = ""): Ending {
  return { reason, detail, text };
}
