/** The guardians of a stage: who sees to the firewall's rules. */
import { readdirSync, readFileSync, statSync } from "node:fs";
import type { Stage } from "./scenario.ts";

/** Processes that run guardian.js on the relay host: this machine may have others. */
export function guardians(stage: Stage): number[] {
  const { ino } = statSync(stage.net.relay.namespace);
  return readdirSync("/proc").filter((name) => /^[0-9]+$/.test(name)).flatMap((pid) => {
    try {
      const guards = readFileSync(`/proc/${pid}/cmdline`, "utf8").includes("guardian.js");
      return guards && statSync(`/proc/${pid}/ns/net`).ino === ino ? [Number(pid)] : [];
    } catch {
      return []; // It has ended.
    }
  });
}
