/**
 * A process whose log goes to a standard error that the test chooses: writes many lines, says on fd
 * 3 how long its loop was ever held up and how long close() took, and exits.
 */
import { writeSync } from "node:fs";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { Log } from "../../src/control/log/log.ts";

const [lines = "0"] = process.argv.slice(2);
const log = new Log({ topic: "child", level: "info", format: "plain", filename: null });
const delay = monitorEventLoopDelay({ resolution: 1 });
delay.enable();
const text = "x".repeat(100);
for (let written = 0; written < Number(lines); ) {
  for (let i = 0; i < 500 && written < Number(lines); i++, written++) log.info(text, { i: written });
  await new Promise((resolve) => setTimeout(resolve, 1));
}
delay.disable();
const before = performance.now();
await log.close();
writeSync(3, JSON.stringify({ heldUpMs: delay.max / 1e6, closeMs: performance.now() - before }));
process.exit(0);
