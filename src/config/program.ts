/**
 * Whose file it is decides how it is read: the predecessors' formats, each to a Config of ours.
 */
import type { Config } from "./config.ts";
import { type Override, parseConfig } from "./parse.ts";
import type { Problem } from "./problem.ts";
import { parseRedsocks, type RedsocksOptions, writtenOut } from "./redsocks.ts";

export type ProgramName = "transplice" | "transocks" | "usocksd" | "redsocks";

export const PREDECESSORS = ["transocks", "usocksd", "redsocks"] as const satisfies readonly ProgramName[];

export type Loaded =
  | {
      readonly config: Config;
      readonly warnings: readonly Problem[];
      /** Of a redsocks.conf: in the background. */
      readonly daemon: boolean;
    }
  | { readonly problems: readonly Problem[] };

/** `name` is what problems call the file. Pure. */
export function parseAs(
  as: ProgramName, text: string, name: string, overrides: readonly Override[], options: RedsocksOptions,
): Loaded {
  if (as !== "redsocks") {
    const parsed = parseConfig(text, name, overrides, as === "usocksd" ? "egress" : null);
    return "problems" in parsed ? parsed : Object.freeze({ ...parsed, daemon: false });
  }
  const read = parseRedsocks(text, name, options);
  if ("problems" in read) {
    // The flags are judged all the same.
    const flags = parseConfig('proxy_url = "direct:"', name, overrides);
    return Object.freeze({ problems: [...read.problems, ...("problems" in flags ? flags.problems : [])] });
  }
  const written = writtenOut(read);
  const parsed = parseConfig(written.text, name, overrides);
  const placed = (problem: Problem): Problem =>
    problem.line === null ? problem : Object.freeze({ ...problem, line: written.from[problem.line - 1] ?? null });
  if ("problems" in parsed) return Object.freeze({ problems: parsed.problems.map(placed) });
  return Object.freeze({
    config: parsed.config,
    warnings: Object.freeze([...read.warnings, ...parsed.warnings.map(placed)]),
    daemon: read.daemon,
  });
}
