/**
 * What the environment says; nobody else reads it. Of what systemd hands to a service:
 * sd_notify(3), sd_watchdog_enabled(3).
 */
export interface Environment {
  /** The path of a datagram socket; "@..." is one of the abstract namespace. null: nobody listens. */
  readonly notifySocket: string | null;
  /** Signs of life are awaited at least so often. null: not at all. */
  readonly watchdogMs: number | null;
  /** From the process that this one takes over from: control/upgrade.ts. null: there is none. */
  readonly handover: string | null;
  /** Everything else: for a successor. */
  readonly rest: NodeJS.ProcessEnv;
}

export const HANDOVER = "TRANSPLICE_HANDOVER";

export function readEnvironment(env: NodeJS.ProcessEnv = process.env, pid = process.pid): Environment {
  const socket = env["NOTIFY_SOCKET"] ?? "";
  const usec = Number(env["WATCHDOG_USEC"] ?? "");
  // Inherited from a parent that was meant by it, it is not for us.
  const forUs = env["WATCHDOG_PID"] === undefined || env["WATCHDOG_PID"] === `${pid}`;
  return Object.freeze({
    notifySocket: /^[/@]./.test(socket) ? socket : null,
    handover: env[HANDOVER] ?? null,
    rest: Object.fromEntries(Object.entries(env).filter(([name]) => name !== HANDOVER)),
    watchdogMs: forUs && Number.isFinite(usec) && usec >= 1000 ? usec / 1000 : null,
  });
}
