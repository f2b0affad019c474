/**
 * Who the process is, where a redsocks.conf says so: a daemon, another user, a pid in a file.
 *
 * A daemon is a second process: the first one waits until it serves, and then has ended well.
 */
import { spawn } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import type { Identity } from "../config/redsocks.ts";

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

/** Becomes user and group, for good, of all threads. A text: what is wrong. */
export function takeOn({ user, group }: Identity): string | null {
  if (user === null && group === null) return null;
  try {
    const gid = idOf(group, "/etc/group") ?? (user === null ? null : primaryGroupOf(user));
    const uid = user === null ? null : idOf(user, "/etc/passwd");
    if (user !== null && uid === null) return `user: there is no ${user} in /etc/passwd`;
    if (group !== null && gid === null) return `group: there is no ${group} in /etc/group`;
    if (uid === process.getuid!() && (gid === null || gid === process.getgid!())) return null;
    if (process.getuid!() !== 0) return "user, group: only root can become another user; start it as root, or leave them out";
    // redsocks kept root's other groups.
    if (user !== null && gid !== null && !/^[0-9]+$/.test(user)) initgroups(user, gid);
    else process.setgroups!(gid === null ? [] : [gid]);
    if (gid !== null) process.setgid!(gid);
    if (uid !== null) process.setuid!(uid);
    return null;
  } catch (error) {
    return `user, group: ${(error as Error).message}`;
  }
}

/** It is in Node's documentation and not in its types. */
function initgroups(user: string, gid: number): void {
  (process as unknown as { initgroups(user: string, gid: number): void }).initgroups(user, gid);
}

/** A name's number, by the file of users or of groups; null: neither. */
function idOf(name: string | null, file: string): number | null {
  if (name === null) return null;
  if (/^[0-9]+$/.test(name)) return Number(name);
  const id = fieldsOf(name, file)?.[2];
  return id === undefined ? null : Number(id);
}

function primaryGroupOf(user: string): number | null {
  const byName = fieldsOf(user, "/etc/passwd") ?? null;
  return byName === null ? null : Number(byName[3]);
}

function fieldsOf(name: string, file: string): string[] | null {
  const rows = readFileSync(file, "utf8").split("\n").map((row) => row.split(":"));
  return rows.find((fields) => fields[0] === name && fields.length > 3) ?? null;
}
