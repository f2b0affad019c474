/**
 * The predecessors themselves: redsocks from Debian, transocks and usocksd built by Go from the
 * module proxy, once, where bench/run.ts puts them as well.
 *
 * Importing this builds what is not there: before the sandbox, from which nothing can be had.
 */
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { BIN, GO_PEERS, programPath } from "../../bench/subjects.ts";
import type { Predecessor } from "../../src/predecessor.ts";

const BUILD_MS = 180_000;

/** Where it is, or why it is not. */
export function programOf(name: Predecessor): { path: string } | { missing: string } {
  if (name === "redsocks") {
    const path = programPath("redsocks");
    return path === null ? { missing: "redsocks is not installed: apt install redsocks" } : { path };
  }
  const path = `${BIN}${name}`;
  return existsSync(path)
    ? { path }
    : { missing: `${name} could not be built: Go, and a Go module proxy that has it, are needed` };
}

/** The versions that are known, the best first. */
function build(name: string, versions: readonly string[]): void {
  mkdirSync(BIN, { recursive: true });
  const scratch = mkdtempSync(`${tmpdir()}/transplice-predecessor-`);
  const module = `github.com/cybozu-go/${name}`;
  const go = (...args: string[]): boolean =>
    spawnSync("go", args, { cwd: scratch, stdio: "ignore", timeout: BUILD_MS }).status === 0;
  try {
    if (!go("mod", "init", "peer")) return;
    for (const version of versions) {
      if (!go("mod", "edit", `-require=${module}@${version}`)) return;
      if (go("build", "-p", "2", "-mod=mod", "-o", `${BIN}${name}`, `${module}/cmd/${name}`)) return;
    }
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

// Inside the sandbox there is no network, and what could be built has been.
if (process.env["SANDBOX_INSIDE"] === undefined) {
  for (const [name, versions] of Object.entries(GO_PEERS)) {
    if (!existsSync(`${BIN}${name}`)) build(name, versions);
  }
}
