/** The guardians of a stage: who sees to the firewall's rules. */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { statField } from "./process.ts";
import type { Stage } from "./scenario.ts";

/** In proc_pid_stat(5). */
const PARENT = 4;

/**
 * Processes that run guardian.js on the relay host: this machine may have others. Not the copy of one that
 * is about to become one of its tools.
 */
export function guardians(stage: Stage): number[] {
  const { ino } = statSync(stage.net.relay.namespace);
  const found = readdirSync("/proc").filter((name) => /^[0-9]+$/.test(name)).flatMap((pid) => {
    try {
      const guards = readFileSync(`/proc/${pid}/cmdline`, "utf8").includes("guardian.js");
      return guards && statSync(`/proc/${pid}/ns/net`).ino === ino ? [{ pid: Number(pid), parent: statField(pid, PARENT) }] : [];
    } catch {
      return []; // It has ended.
    }
  });
  return found.filter(({ parent }) => !found.some(({ pid }) => pid === parent)).map(({ pid }) => pid);
}
