/**
 * Who the process is, where the configuration says so: another user with few capabilities; where a
 * redsocks.conf does, also a daemon with its pid in a file.
 *
 * A daemon is a second process: the first one waits until it serves, and then has ended well.
 */
import { execFileSync, spawn } from "node:child_process";
import { accessSync, chownSync, constants, existsSync, readFileSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import {
  CAP_NET_ADMIN, CAP_NET_BIND_SERVICE, CAP_NET_RAW, PR_CAPBSET_DROP, PR_CAPBSET_READ, PR_CAP_AMBIENT,
  PR_CAP_AMBIENT_RAISE, PR_SET_KEEPCAPS, PR_SET_NO_NEW_PRIVS,
} from "../../native-bindings/constants.ts";
import type { Syscalls } from "../../native-bindings/syscalls.ts";
import type { Config } from "../config/config.ts";
import { errnoText } from "./listeners.ts";
import { permittedCapabilities } from "./resources.ts";

/** Starts this same command line again, in the background, and answers the exit code of this one. */
export function beginDaemon(flag: string): Promise<number> {
  const child = spawn(process.execPath, [...process.execArgv, ...process.argv.slice(1), flag], {
    detached: true,
    // Under systemd, standard error is the journal.
    stdio: ["ignore", "ignore", "inherit", "ipc"],
  });
  return new Promise((resolve) => {
    child.once("message", () => {
      child.disconnect();
      child.unref();
      resolve(0);
    });
    child.once("error", (error) => {
      process.stderr.write(`redsocks: the daemon does not start: ${error.message}\n`);
      resolve(1);
    });
    child.once("exit", (code) => resolve(code === 0 || code === null ? 1 : code));
  });
}

/** Tells whoever began this daemon, if anybody, that it serves. */
export function daemonServes(): void {
  if (process.send === undefined) return;
  process.send("serves", () => process.disconnect?.());
}

/** A text: what is wrong. */
export function writePid(file: string): string | null {
  try {
    writeFileSync(file, `${process.pid}\n`);
    return null;
  } catch (error) {
    return `the pid file: ${(error as Error).message}`;
  }
}

/** What a configuration may need of root's powers, in a reader's words. */
const NAMES: ReadonlyMap<number, string> = new Map([
  [CAP_NET_BIND_SERVICE, "CAP_NET_BIND_SERVICE"],
  [CAP_NET_ADMIN, "CAP_NET_ADMIN"],
  [CAP_NET_RAW, "CAP_NET_RAW"],
]);
export const capabilityName = (capability: number): string => NAMES.get(capability) ?? `capability ${capability}`;
const PORT_UNPRIVILEGED = 1024;
/** A directory of users may be far away. */
const GETENT_MS = 10_000;
/** The kernel has 41 so far. */
const CAPABILITIES_MAX = 64;

export function capabilitiesOf({ upstream, mode, mark, listen, egress, firewall, connect }: Config): number[] {
  const ports = [...listen, ...(egress?.listen ?? []), ...(egress?.metrics ?? [])]
    .map(({ bytes }) => (bytes[2]! << 8) | bytes[3]!);
  const needed = new Map([
    [CAP_NET_BIND_SERVICE, ports.some((port) => port < PORT_UNPRIVILEGED)],
    [CAP_NET_ADMIN, mark !== null || firewall.manage || connect.truthful !== null || connect.learnMs !== null || (upstream !== null && mode === "tproxy")],
    // iptables-legacy speaks to the kernel on a raw socket; SO_BINDTODEVICE was root's before Linux 5.7.
    [CAP_NET_RAW, egress?.iface != null || connect.truthful?.answer === "raw" || (firewall.manage && firewall.backend === "iptables-legacy")],
  ]);
  return [...NAMES.keys()].filter((capability) => needed.get(capability));
}

export type Taken =
  | { readonly wrong: string }
  | {
      /** What is left of root's powers. null: nothing was given up here. */
      readonly kept: readonly number[] | null;
      readonly warnings: readonly string[];
    };

/** The configuration's user (null: none is named) and group on this host, and the user's line of passwd(5). */
type Account = { readonly uid: number | null; readonly gid: number; readonly found: readonly string[] | null };

/** null: neither is set. */
export function accountOf({ user, group }: Config): Account | { readonly wrong: string } | null {
  if (user === null && group === null) return null;
  const found = user === null ? null : entryOf("passwd", user);
  const uid = user === null ? null : idOf(user, found);
  if (uid === null && user !== null) {
    return { wrong: `user: there is no ${user} on this host; to make it: useradd --system --shell /usr/sbin/nologin ${user}` };
  }
  const gid = group === null ? (found === null ? null : Number(found[3])) : idOf(group, entryOf("group", group));
  if (gid === null && group !== null) {
    return { wrong: `group: there is no ${group} on this host; to make it: groupadd --system ${group}` };
  }
  if (gid === null) return { wrong: `user: ${user} is a number without a name on this host; then group must be set, too` };
  return { uid, gid, found };
}

/**
 * Becomes the configuration's user and group, for good: of all threads, with the capabilities that
 * the configuration needs on this one, and on those that it starts from now on. `own`: what is
 * to be the user's, and whether it must be.
 */
export function takeOn(sys: Syscalls, config: Config, own: readonly { readonly path: string; readonly must: boolean }[]): Taken {
  const { user, group } = config;
  const nothing = { kept: null, warnings: [] };
  const account = accountOf(config);
  if (account === null) return nothing;
  if ("wrong" in account) return account;
  const { uid, gid, found } = account;
  if ((uid === null || uid === process.getuid!()) && (group === null || gid === process.getgid!())) return nothing;
  if (process.getuid!() !== 0) {
    return { wrong: `user, group: only root can become another user, and this is user ${process.getuid!()}; start it as root, or leave them out` };
  }
  const { filename } = config.log;
  try {
    for (const { path, must } of own) {
      try {
        chownSync(path, uid ?? 0, gid);
      } catch (error) {
        if (must) throw error; // Without CAP_CHOWN, say.
      }
    }
    // Who stays root, keeps all.
    const drops = uid !== null && uid !== 0;
    const had = permittedCapabilities();
    const kept = drops ? capabilitiesOf(config).filter((capability) => (had & (1n << BigInt(capability))) !== 0n) : null;
    if (kept !== null) lessenBounds(sys, kept);
    // redsocks kept root's other groups.
    if (found !== null) initgroups(found[0]!, gid);
    else process.setgroups!([gid]);
    process.setgid!(gid);
    if (uid !== null) process.setuid!(uid);
    if (kept !== null) keep(sys, kept);
    return unreadable(user ?? "root") ?? { kept, warnings: unwritable(filename, user ?? "root") };
  } catch (error) {
    const { message } = error as Error;
    return { wrong: `user, group: ${message}; in a container, its user namespace must have the user, and root CAP_SETUID and CAP_SETGID` };
  }
}

/** Why a configuration cannot be taken on by a process that kept so little of root's powers. */
export function lacking(config: Config, kept: readonly number[] | null): string[] {
  if (kept === null) return [];
  return capabilitiesOf(config)
    .filter((capability) => !kept.includes(capability))
    .map((capability) => `it needs ${capabilityName(capability)}, which this process gave up when it became another user; a restart takes it on`);
}

/** No program that is started from here gets more, whatever its file says. */
function lessenBounds(sys: Syscalls, kept: readonly number[]): void {
  for (let capability = 0; capability < CAPABILITIES_MAX; capability++) {
    const held = sys.prctl(PR_CAPBSET_READ, capability);
    if (held < 0) break; // The kernel has no more.
    // Without CAP_SETPCAP it stays; no_new_privs does the same for exec.
    if (held === 1 && !kept.includes(capability)) sys.prctl(PR_CAPBSET_DROP, capability);
  }
  if (kept.length > 0) sys.prctl(PR_SET_KEEPCAPS, 1);
}

/** Node's own threads have none since setuid; they need none. */
function keep(sys: Syscalls, kept: readonly number[]): void {
  const steps: [string, () => number][] = [
    ["capset", () => sys.capset(kept)],
    // For what is started from here: the rules' tools, and the process that takes over.
    ...kept.map((capability): [string, () => number] => [
      `prctl PR_CAP_AMBIENT_RAISE ${capabilityName(capability)}`,
      () => sys.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability),
    ]),
    ["prctl PR_SET_NO_NEW_PRIVS", () => sys.prctl(PR_SET_NO_NEW_PRIVS, 1)],
  ];
  for (const [call, step] of steps) {
    const result = step();
    if (result < 0) throw new Error(`${call}: ${errnoText(-result)}`);
  }
}

/** Threads, and whoever takes over, read the program's files as the user that we are now. */
function unreadable(user: string): { wrong: string } | null {
  const file = fileURLToPath(new URL("../worker.js", import.meta.url));
  return may(file, constants.R_OK)
    ? null
    : { wrong: `user: ${user} may not read ${file}, which is transplice's own; install it where everybody may read, with: npm install -g` };
}

function unwritable(filename: string | null, user: string): string[] {
  if (filename === null) return [];
  const which = !may(filename, constants.W_OK)
    ? filename
    : may(dirname(filename), constants.W_OK | constants.X_OK) ? null : dirname(filename);
  if (which === null) return [];
  return [`log.filename: ${user} may not write ${which}, so USR1 may fail after the file was renamed; a directory of the log's own helps: install -d -o ${user} /var/log/transplice`];
}

function may(file: string, how: number): boolean {
  try {
    accessSync(file, how);
    return true;
  } catch {
    return false;
  }
}

/** To be asked before the log is opened. */
export const isNew = (filename: string | null): boolean => filename !== null && !existsSync(filename);

/** It is in Node's documentation and not in its types. */
function initgroups(user: string, gid: number): void {
  (process as unknown as { initgroups(user: string, gid: number): void }).initgroups(user, gid);
}

function idOf(name: string, found: readonly string[] | null): number | null {
  if (found !== null) return Number(found[2]);
  return /^[0-9]+$/.test(name) ? Number(name) : null;
}

/** The line of users or groups with this name or number: of the file, or of whatever else the host asks. */
function entryOf(base: "passwd" | "group", name: string): string[] | null {
  const rows = (text: string): string[][] => text.split("\n").map((row) => row.split(":"));
  const at = /^[0-9]+$/.test(name) ? 2 : 0;
  const found = rows(readFileSync(`/etc/${base}`, "utf8")).find((fields) => fields[at] === name && fields.length > 3);
  if (found !== undefined) return found;
  try {
    const stdio = ["ignore", "pipe", "ignore"] as const;
    return rows(execFileSync("getent", [base, name], { encoding: "utf8", stdio: [...stdio], timeout: GETENT_MS }))[0] ?? null;
  } catch {
    return null; // There is none; or this host has no getent, and so nobody else to ask.
  }
}
