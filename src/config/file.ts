/** The configuration file itself: read within bounds, and handed to the parser. */
import { open } from "node:fs/promises";
import { type Override, parseConfig } from "./parse.ts";
import type { Problem } from "./problem.ts";
import { type Loaded, parseAs, type ProgramName } from "./program.ts";
import { readVariables, type Variable } from "./variables.ts";

export const DEFAULT_FILE = "/etc/transplice.toml";

/** Whose file it is, and what is to be thought of it. */
export interface Reading {
  readonly as: ProgramName;
  /** Without the file, the defaults hold. */
  readonly optional: boolean;
  /** What we have nothing for is a warning, not a problem. */
  readonly ignoreUnsupported: boolean;
}

export const OWN: Reading = { as: "transplice", optional: false, ignoreUnsupported: false };

/** A configuration of this size was meant to be another file (a log, a device). */
const FILE_BYTES_MAX = 1024 * 1024;

/**
 * Variables win over the file, and flags over both. Never rejects: a file that cannot be read is a
 * problem like any other.
 */
export async function loadConfig(
  file: string, flags: readonly Override[] = [], reading: Reading = OWN, variables: readonly Variable[] = [],
): Promise<Loaded> {
  const said = readVariables(variables);
  const overrides = [...said.overrides, ...flags];
  // Variables may say all there is to say.
  const optional = reading.optional || (file === DEFAULT_FILE && said.overrides.length > 0);
  const loaded = await loadFile(file, overrides, { ...reading, optional });
  if (said.problems.length === 0) return loaded;
  const others = "problems" in loaded ? loaded.problems : [];
  return Object.freeze({ problems: Object.freeze([...others, ...said.problems]) });
}

async function loadFile(file: string, overrides: readonly Override[], reading: Reading): Promise<Loaded> {
  const text = await readText(file, reading);
  if (typeof text === "string") return parseAs(reading.as, text, file, overrides, reading);
  if (text === null) return parseAs(reading.as, "", `no ${file}, so the defaults`, overrides, reading);
  // The flags are judged all the same, so that one start shows all there is to mend; of what an
  // empty file lacks, nobody wants to hear.
  const parsed = parseConfig('proxy_url = "direct:"', file, overrides);
  return Object.freeze({
    problems: Object.freeze([text, ...("problems" in parsed ? parsed.problems : [])]),
  });
}

/** null: there is none, and none is needed. `as` null: it is to be read, and nobody is to run with it. */
export async function readText(
  file: string, { as, optional }: { readonly as: ProgramName | null; readonly optional: boolean },
): Promise<string | Problem | null> {
  const problem = (message: string, line: number | null = null): Problem =>
    Object.freeze({ place: file, line, column: null, key: null, message });
  let bytes: Uint8Array;
  try {
    bytes = await readBytes(file);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? String(error);
    return optional && code === "ENOENT" ? null : problem(readFailure(code, as));
  }
  if (bytes.length > FILE_BYTES_MAX)
    return problem("is larger than 1 MiB; is it a configuration file?");
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    return problem(`is not UTF-8 here, which ${as === "redsocks" ? "it" : "TOML"} must be`, lineOfBadUtf8(bytes));
  }
}

/** One byte more than allowed at most: /dev/zero is a file, too. */
async function readBytes(file: string): Promise<Uint8Array> {
  const handle = await open(file, "r");
  try {
    const buffer = new Uint8Array(FILE_BYTES_MAX + 1);
    let length = 0;
    while (length < buffer.length) {
      const { bytesRead } = await handle.read(buffer, length, buffer.length - length, null);
      if (bytesRead === 0) break;
      length += bytesRead;
    }
    return buffer.subarray(0, length);
  } finally {
    await handle.close();
  }
}

function readFailure(code: string, as: ProgramName | null): string {
  switch (code) {
    case "ENOENT":
      if (as === null) return "does not exist";
      if (as === "redsocks") return "does not exist; name another with -c FILE";
      if (as === "usocksd") return "does not exist; name another with -f FILE";
      return 'does not exist; name another with -f FILE, or create it with at least proxy_url = "socks5://HOST:PORT"';
    case "EACCES":
      return "may not be read by this user; check its permissions and those of its directory";
    case "EISDIR":
      return as === null ? "is a directory, not a file" : "is a directory; -f takes a file";
    default:
      return `cannot be read (${code})`;
  }
}

function lineOfBadUtf8(bytes: Uint8Array): number {
  let line = 1;
  let start = 0;
  // A newline byte never stands inside a character, so each line can be judged by itself.
  for (let i = 0; i <= bytes.length; i++) {
    if (i < bytes.length && bytes[i] !== 0x0a) continue;
    try {
      new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(start, i));
    } catch {
      return line;
    }
    start = i + 1;
    line++;
  }
  return line;
}
