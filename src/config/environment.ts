/**
 * What the environment says; nobody else reads it. Of what systemd hands to a service:
 * sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3).
 */
import { VARIABLE_PREFIX } from "./settings.ts";
import type { Variable } from "./variables.ts";

export interface Environment {
  /** The path of a datagram socket; "@..." is one of the abstract namespace. null: nobody listens. */
  readonly notifySocket: string | null;
  /** Signs of life are awaited at least so often. null: not at all. */
  readonly watchdogMs: number | null;
  /** Sockets that were opened for us, under the names that FileDescriptorName= gave them, or "". */
  readonly sockets: readonly PassedSocket[];
  /** From the process that this one takes over from: control/upgrade.ts. null: there is none. */
  readonly handover: string | null;
  /** In place of keys of the configuration. */
  readonly variables: readonly Variable[];
  /** Everything but what was for this process alone: for a successor. */
  readonly rest: NodeJS.ProcessEnv;
}

export interface PassedSocket {
  readonly fd: number;
  readonly name: string;
}

export const HANDOVER = "TRANSPLICE_HANDOVER";

/** SD_LISTEN_FDS_START */
const FIRST_FD = 3;
/** More is no number that a service manager says. */
const SOCKETS_MAX = 1024;
/** They speak of one process, by its pid. */
const OWN = new Set([HANDOVER, "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "WATCHDOG_PID"]);

export function readEnvironment(env: NodeJS.ProcessEnv = process.env, pid = process.pid): Environment {
  const socket = env["NOTIFY_SOCKET"] ?? "";
  const usec = Number(env["WATCHDOG_USEC"] ?? "");
  // Inherited from a parent that was meant by it, it is not for us.
  const forUs = env["WATCHDOG_PID"] === undefined || env["WATCHDOG_PID"] === `${pid}`;
  const entries = Object.entries(env);
  return Object.freeze({
    notifySocket: /^[/@]./.test(socket) ? socket : null,
    watchdogMs: forUs && Number.isFinite(usec) && usec >= 1000 ? usec / 1000 : null,
    sockets: env["LISTEN_PID"] === `${pid}` ? passedSockets(env) : [],
    handover: env[HANDOVER] ?? null,
    variables: entries
      .filter(([name]) => name.startsWith(VARIABLE_PREFIX) && name !== HANDOVER)
      .map(([name, text]) => ({ name, text: text ?? "" })),
    rest: Object.fromEntries(entries.filter(([name]) => !OWN.has(name) && (forUs || name !== "WATCHDOG_USEC"))),
  });
}

function passedSockets(env: NodeJS.ProcessEnv): PassedSocket[] {
  const count = Number(env["LISTEN_FDS"] ?? "");
  if (!Number.isInteger(count) || count < 0 || count > SOCKETS_MAX) return [];
  const names = (env["LISTEN_FDNAMES"] ?? "").split(":");
  return Array.from({ length: count }, (_, i) => ({ fd: FIRST_FD + i, name: names[i] ?? "" }));
}
