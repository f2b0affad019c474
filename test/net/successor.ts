/** The process that takes over: found, watched and ended. It is nobody's child that a test would know. */
import { existsSync } from "node:fs";
import { eventually } from "./actors.ts";
import type { Relay } from "./relay.ts";
import type { Stage } from "./scenario.ts";

/** Waits until another process has taken over from this one; it is ended with the scenario. Its pid. */
export async function takenOver(stage: Stage, relay: Relay): Promise<number> {
  const before = relay.process.pid;
  const entry = await relay.logged(
    "a successor", ({ message, pid }) => message.includes("has taken over") && pid === before,
  );
  const successor = Number(entry["successor"]);
  stage.finally(() => end(successor));
  return successor;
}

/** Nobody may have taken its last words: it is killed. */
export async function end(pid: number): Promise<void> {
  if (lives(pid)) process.kill(pid, "SIGKILL");
  await eventually(`process ${pid} has ended`, () => !lives(pid));
}

export const lives = (pid: number): boolean => existsSync(`/proc/${pid}`);
