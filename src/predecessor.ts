/**
 * The command lines of transocks, usocksd and redsocks, as those programs read them: argv -> a
 * Command. Like cli.ts, does nothing itself.
 *
 * transocks and usocksd have Go's package flag: one dash or two, the first word that is no flag
 * ends them, and the usage goes to standard error. redsocks has getopt.
 */
import type { Command } from "./cli.ts";
import type { Reading } from "./config/file.ts";
import type { Override } from "./config/parse.ts";
import { type ProgramName, PREDECESSORS } from "./config/program.ts";

export type Predecessor = (typeof PREDECESSORS)[number];

/** What a program is called by: the last part of its path. */
export function predecessorOf(name: string): Predecessor | null {
  return PREDECESSORS.find((known) => known === name) ?? null;
}

/** `words` is what follows the name. */
export function parseAsPredecessor(name: Predecessor, words: readonly string[]): Command {
  return name === "redsocks" ? parseRedsocksLine(words) : parseGoLine(name, words);
}

const LOG_FLAGS = new Map<string, Override["key"]>([
  ["logfile", "log.filename"], ["loglevel", "log.level"], ["logformat", "log.format"],
]);

function parseGoLine(name: "transocks" | "usocksd", words: readonly string[]): Command {
  let file: string | null = null;
  const overrides: Override[] = [];
  for (let i = 0; i < words.length; i++) {
    const word = words[i]!;
    // As Go does: what is no flag ends them, and both programs ignore what follows.
    if (word === "--" || word === "-" || !word.startsWith("-")) break;
    const match = /^--?([^=-][^=]*)(?:=([\s\S]*))?$/.exec(word);
    if (match === null) return goMisuse(name, `bad flag syntax: ${shown(word)}`);
    const flag = match[1]!;
    if (flag === "h" || flag === "help") return print(goUsage(name), "stderr", 0);
    const key = LOG_FLAGS.get(flag);
    if (key === undefined && flag !== "f") return goMisuse(name, `flag provided but not defined: -${shown(flag)}`);
    const value = match[2] ?? words[++i];
    if (value === undefined) return goMisuse(name, `flag needs an argument: -${flag}`);
    if (key === undefined) file = value;
    else overrides.push(Object.freeze({ key, text: value, from: `-${flag}` }));
  }
  const optional = name === "usocksd" && (file === null || file === "");
  return Object.freeze({
    kind: "run",
    file: file === null || (optional && file === "") ? `/etc/${name}.toml` : file,
    overrides: Object.freeze(overrides),
    reading: reading(name, { optional }),
    process: null,
  });
}

function goMisuse(name: ProgramName, message: string): Command {
  return print(`${message}\n${goUsage(name)}`, "stderr", 2);
}

function goUsage(name: ProgramName): string {
  const file = name === "transocks"
    ? 'TOML configuration file path (default "/etc/transocks.toml")'
    : "configuration file name";
  return `Usage of ${name}:
  -f string
    \t${file}
  -logfile string
    \tLog filename
  -logformat string
    \tLog format [plain,logfmt,json]
  -loglevel string
    \tLog level [critical,error,warning,info,debug]
`;
}

const REDSOCKS_USAGE = `Usage: redsocks [-?hvt] [-c config] [-p pidfile]
  -h, -?       this message
  -v           print version
  -t           test config syntax
  -p           write pid to pidfile
transplice's own:
  --ignore-unsupported   leave out what there is nothing for, with a warning
  --foreground           stay, whatever daemon says
`;

function parseRedsocksLine(words: readonly string[]): Command {
  let file = "redsocks.conf";
  let pidfile: string | null = null;
  let test = false;
  let ignoreUnsupported = false;
  let foreground = false;
  for (let i = 0; i < words.length; i++) {
    const word = words[i]!;
    if (word === "--") {
      if (i + 1 < words.length) return redsocksMisuse(`${shown(words[i + 1]!)} is not expected`);
      break;
    }
    if (word === "--ignore-unsupported") ignoreUnsupported = true;
    else if (word === "--foreground") foreground = true;
    else if (word === "--help") return print(REDSOCKS_USAGE, "stdout", 0);
    else if (!/^-[^-]/.test(word)) return redsocksMisuse(`${shown(word)} is not expected`);
    else {
      for (let at = 1; at < word.length; at++) {
        const option = word[at]!;
        if (option === "h" || option === "?") return print(REDSOCKS_USAGE, "stdout", 0);
        if (option === "v") return Object.freeze({ kind: "version" });
        if (option === "t") {
          test = true;
          continue;
        }
        if (option !== "c" && option !== "p") return redsocksMisuse(`invalid option -- '${shown(option)}'`);
        const value = at + 1 < word.length ? word.slice(at + 1) : words[++i];
        if (value === undefined || value === "") return redsocksMisuse(`option requires an argument -- '${option}'`);
        if (option === "c") file = value;
        else pidfile = value;
        break;
      }
    }
  }
  const read = reading("redsocks", { ignoreUnsupported });
  return test
    ? Object.freeze({ kind: "check", file, overrides: Object.freeze([]), reading: read })
    : Object.freeze({
        kind: "run", file, overrides: Object.freeze([]), reading: read,
        process: Object.freeze({ pidfile, foreground }),
      });
}

function redsocksMisuse(message: string): Command {
  return print(`redsocks: ${message}\n${REDSOCKS_USAGE}`, "stderr", 1);
}

const reading = (as: ProgramName, given: Partial<Reading>): Reading =>
  Object.freeze({ as, optional: false, ignoreUnsupported: false, ...given });

/** Nobody's words may say anything to his terminal but text. */
const shown = (text: string): string => text.slice(0, 80).replace(/[\p{Cc}\u2028\u2029]/gu, "\ufffd");

function print(text: string, stream: "stdout" | "stderr", exitCode: number): Command {
  return Object.freeze({ kind: "print", text, stream, exitCode });
}
