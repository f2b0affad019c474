/**
 * The command line: argv -> a frozen Command that says what to do. Does nothing itself: prints
 * nothing, reads no file but package.json for --version, never exits.
 *
 * The predecessors are Go programs, where -logfile, --logfile, -logfile=F and --logfile=F are the
 * same flag. Commander knows only --logfile, so Go's forms are rewritten before it sees them.
 */
import { readFileSync } from "node:fs";
import { Command as Program, CommanderError, Option } from "commander";
import { DEFAULT_FILE, OWN, type Reading } from "./config/file.ts";
import { userFault } from "./config/items.ts";
import type { Override } from "./config/parse.ts";
import { alternatives, nearest, quoted } from "./config/problem.ts";
import { PREDECESSORS, type ProgramName } from "./config/program.ts";
import type { UpSource } from "./config/up.ts";
import { ADMIN_ACTIONS, type AdminAction, type AdminRequest } from "./control/admin/actions.ts";
import { FIREWALL_ACTIONS, type FirewallAction } from "./control/firewall/firewall.ts";
import { FIREWALL_BACKENDS, type FirewallBackend } from "./control/firewall/tools.ts";
import { parseAsPredecessor, predecessorOf } from "./predecessor.ts";

interface OnFile {
  readonly file: string;
  readonly overrides: readonly Override[];
  /** Whose file it is; and the program's name in the log. */
  readonly reading: Reading;
}

export type Command =
  | (OnFile & {
      readonly kind: "run";
      /** redsocks': of a daemon. */
      readonly process: { readonly pidfile: string | null; readonly foreground: boolean } | null;
    })
  | (UpSource & { readonly kind: "up" })
  | (OnFile & { readonly kind: "check" })
  | {
      readonly kind: "migrate";
      readonly file: string;
      /** null: to be guessed. */
      readonly from: ProgramName | null;
      readonly ignoreUnsupported: boolean;
    }
  | (OnFile & {
      readonly kind: "firewall";
      readonly action: FirewallAction;
      /** null: as the configuration says. */
      readonly backend: FirewallBackend | null;
    })
  /** Of the process that runs with the file. */
  | { readonly kind: "upgrade"; readonly file: string }
  /** redsocks -v. */
  | { readonly kind: "version" }
  | (OnFile & { readonly kind: "doctor"; readonly json: boolean })
  | (OnFile & { readonly kind: "top" })
  /** Asked of the process that runs with the file, by its admin endpoint. */
  | (OnFile & AdminRequest & { readonly kind: "admin" })
  | {
      readonly kind: "passwd";
      /** Whose line is printed. null: the hash alone. */
      readonly user: string | null;
    }
  | {
      readonly kind: "print";
      readonly text: string;
      readonly stream: "stdout" | "stderr";
      readonly exitCode: number;
    };

interface Flag {
  readonly takes: "value" | "nothing";
  /** The long option that commander knows. */
  readonly option: string;
}

/** All names of all flags, without dashes. */
const FLAGS: ReadonlyMap<string, Flag> = new Map<string, Flag>([
  ["f", { takes: "value", option: "file" }],
  ["file", { takes: "value", option: "file" }],
  ["logfile", { takes: "value", option: "logfile" }],
  ["loglevel", { takes: "value", option: "loglevel" }],
  ["logformat", { takes: "value", option: "logformat" }],
  ["h", { takes: "nothing", option: "help" }],
  ["help", { takes: "nothing", option: "help" }],
  ["V", { takes: "nothing", option: "version" }],
  ["version", { takes: "nothing", option: "version" }],
  ["json", { takes: "nothing", option: "json" }],
  ["backend", { takes: "value", option: "backend" }],
  ["from", { takes: "value", option: "from" }],
  ["ignore-unsupported", { takes: "nothing", option: "ignore-unsupported" }],
]);

/** What follows the program's name: for --help, for misuse and for the manual. */
export const SYNOPSIS: readonly string[] = [
  "[-f FILE] [-logfile FILE] [-loglevel LEVEL] [-logformat FORMAT]",
  "up [UPSTREAM] [-f FILE] [-loglevel LEVEL]",
  "check [FILE]",
  "passwd [NAME]",
  "migrate FILE [--from PROGRAM] [--ignore-unsupported]",
  `firewall ${FIREWALL_ACTIONS.join("|")} [-f FILE] [--backend BACKEND]`,
  "doctor [-f FILE] [--json]",
  "upgrade [-f FILE]",
  "top [-f FILE]",
  "tunnels [FILTER...] [-f FILE] [--json]",
  "close ID | drain ADDRESS | undrain ADDRESS [-f FILE]",
  "trace DESTINATION [-f FILE] [--json]",
  "as PROGRAM [its flags]",
];

const USAGE = `Usage: ${SYNOPSIS.map((line) => `transplice ${line}`).join("\n       ")}\n`;

/** What each signal does, in a few words: for --help, the manual and docs/operations.md. */
export const SIGNALS: readonly (readonly [signals: string, effect: string])[] = [
  ["TERM, INT", "accept nothing more, let connections finish for a while, exit; twice: at once"],
  ["HUP", "read the configuration again, if it is valid"],
  ["USR1", "open the log file again"],
  ["USR2", "start the program anew beside this process, which finishes its connections and exits"],
];

/** `words` is argv without the interpreter and the script, `called` the script's own name. */
export function parseCommandLine(words: readonly string[], called = "transplice"): Command {
  const predecessor = predecessorOf(called);
  if (predecessor !== null) return parseAsPredecessor(predecessor, words);
  // Before the flags are read: they are the other program's.
  const other = words[0] === "as" ? predecessorOf(words[1] ?? "") : null;
  if (other !== null) return parseAsPredecessor(other, words.slice(2));
  const line = readGoFlags(words);
  if ("wrong" in line) return misuse(line.wrong);
  let said = "";
  let command: Command | null = null;
  const settle = (value: Command): void => {
    command = value;
  };
  const program = describe(settle);
  const stray = strayOperand(line.operands, program);
  if (stray !== null) return misuse(stray);
  for (const part of [program, ...program.commands]) {
    part.exitOverride().configureOutput({
      writeOut: (text) => {
        said += text;
      },
      // Misuse is told in our own words.
      writeErr: () => {},
      getOutHelpWidth: () => 80,
    });
  }
  try {
    // The command first, so that --help beside it is the command's.
    program.parse([...line.operands.slice(0, 1), ...line.flags, "--", ...line.operands.slice(1)], {
      from: "user",
    });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode === 0) return print(`${said.trimEnd()}\n`, "stdout", 0);
    return misuse(error.message.replace(/^error: /, ""));
  }
  if (command === null) throw new Error("a command line without a command");
  return command;
}

/** The command line as commander knows it: also the manual's source. */
export function describe(settle: (command: Command) => void = () => {}): Program {
  const program = new Program("transplice")
    .description(
      "A transparent TCP proxy: what the firewall redirects to it goes to its destination through a SOCKS5 or HTTP CONNECT proxy. And such a proxy: a SOCKS server that leaves by addresses of your choice.",
    )
    .usage(SYNOPSIS.join("\n       transplice "))
    .version(`transplice ${packageVersion()}`, "-V, --version", "print the version")
    .helpOption("-h, --help", "print this help")
    .helpCommand(false)
    .option("-f, --file <FILE>", `the configuration, in TOML (default: ${DEFAULT_FILE})`)
    .option("--logfile <FILE>", "log to FILE (overrides filename in [log])")
    .option(
      "--loglevel <LEVEL>",
      "log what is at least critical, error, warning, info or debug (overrides level in [log])",
    )
    .option("--logformat <FORMAT>", "write lines as plain, logfmt or json (overrides format in [log])")
    .addOption(new Option("--backend <BACKEND>").hideHelp())
    .addOption(new Option("--json").hideHelp())
    .addOption(new Option("--from <PROGRAM>").hideHelp())
    .addOption(new Option("--ignore-unsupported").hideHelp())
    .allowExcessArguments(false)
    .action((options: Options) => settle(ofMigrate(options) ?? frozenCommand("run", options.file, options)));
  program
    .command("up")
    .summary("redirect this host's connections, until Ctrl-C, which leaves it as it was")
    .description(
      `Redirect this host's connections until Ctrl-C, and say once a second what they carry. UPSTREAM is a proxy, as in proxy_url; without it, ${DEFAULT_FILE} counts, or the FILE of -f; without any, there is no other proxy, and transplice is both ends itself. The rules are set once the upstream has answered, and leave nothing behind, whatever the end; transplice's own connections are exempt by a mark. It needs root.`,
    )
    .usage("[UPSTREAM] [-f FILE] [-loglevel LEVEL]")
    .argument("[UPSTREAM]", "a proxy, such as socks5://203.0.113.5:1080")
    .allowExcessArguments(false)
    .action((upstream: string | undefined) => settle(up(upstream, program.opts<Options>())));
  program
    .command("check")
    .summary("say everything that is wrong with a configuration, and do no more")
    .description(
      "Say everything that is wrong with a configuration, and do no more. Exit code 0: it is valid; 1: it is not.",
    )
    .usage("[FILE]")
    .argument("[FILE]", `the configuration (default: ${DEFAULT_FILE})`)
    .allowExcessArguments(false)
    .action((file: string | undefined) => {
      const options = program.opts<Options>();
      if (file !== undefined && options.file !== undefined)
        settle(misuse("check takes one file, as -f FILE or without -f"));
      else settle(ofMigrate(options) ?? frozenCommand("check", file ?? options.file, options));
    });
  program
    .command("passwd")
    .summary("print the line that a user of the SOCKS server needs in [users]")
    .description(
      "Ask for a password, or read it from standard input, and print its hash, as NAME's line for [users] of the configuration.",
    )
    .usage("[NAME]")
    .argument("[NAME]", "the user")
    .allowExcessArguments(false)
    .action((user: string | undefined) => settle(passwd(user, program.opts<Options>())));
  program
    .command("migrate")
    .summary("print a file of transocks, usocksd or redsocks as ours, with what changes")
    .description(
      "Print a configuration file of transocks, usocksd or redsocks as one of transplice, with a comment at each line whose meaning changes, and what it had wrong on top. --from transocks, usocksd, redsocks or transplice says whose file it is, where its keys do not; --ignore-unsupported leaves out what there is nothing for.",
    )
    .usage("FILE [--from PROGRAM] [--ignore-unsupported]")
    .argument("[FILE]", "the file")
    .allowExcessArguments(false)
    .action((file: string | undefined) => settle(migration(file, program.opts<Options>())));
  program
    .command("firewall")
    .summary("the rules that redirect connections: print, apply, remove, release, status, check")
    .description(
      `The firewall's rules, made of [firewall] and the rest of the configuration. print: say them; apply: set them, in one transaction, in place of our earlier ones; remove: take away all that is ours, whatever the configuration says; release: do what on_failure says, where a process that managed them has ended without doing it; status: compare; check: what this host lacks for them, with a command for each. --backend ${alternatives(FIREWALL_BACKENDS)}; without, the first that works here. Exit code of status: 0 engaged, 1 differs, 3 absent, 4 unknown, 5 refused or draining; of the others: 0 done, 1 not.`,
    )
    .usage(`${FIREWALL_ACTIONS.join("|")} [-f FILE] [--backend BACKEND]`)
    .argument("[ACTION]", alternatives(FIREWALL_ACTIONS))
    .allowExcessArguments(false)
    .action((action: string | undefined) => settle(firewallCommand(action, program.opts<Options>())));
  program
    .command("doctor")
    .summary("say what is wrong with this host, each with a command to run")
    .description(
      "Say what is wrong with this host for this configuration: the program, the rules, the upstream, limits of the kernel; each with a command to run. --json for scripts. Exit code 0: nothing is wrong; 1: something is broken; 3: it works, with risks; 4: some things only root may look at.",
    )
    .usage("[-f FILE] [--json]")
    .allowExcessArguments(false)
    .action(() => {
      const { json, ...others } = program.opts<Options>();
      settle(ofMigrate(others) ?? Object.freeze({ ...(frozenCommand("check", others.file, others) as OnFile), kind: "doctor", json: json ?? false }));
    });
  program
    .command("upgrade")
    .summary("start the program anew beside the running process, which hands its listeners over")
    .description(
      "Ask the process that runs with the configuration FILE to start the program anew beside itself, and wait until the new process serves. The old one finishes its connections and exits; no connection is refused or reset. Exit code 0: the new process serves; 1: it does not, what was wrong is said, and the old one goes on as before.",
    )
    .usage("[-f FILE]")
    .allowExcessArguments(false)
    .action(() => settle(upgradeCommand(program.opts<Options>())));
  for (const action of ADMIN_ACTIONS) {
    const { summary, description, usage } = ADMIN_TEXTS[action];
    program
      .command(action)
      .summary(summary)
      .description(description)
      .usage(usage)
      .argument("[WORDS...]")
      .action((operands: string[]) => settle(adminRequest(action, operands, program.opts<Options>())));
  }
  program
    .command("top")
    .summary("what the running process does, in this terminal")
    .description(
      "Show what the running process does, in this terminal: what is wrong, traffic, connections, how they end, upstreams, destinations. q ends it. Without a terminal, a line each second. It asks the admin endpoint of the configuration ([admin]).",
    )
    .usage("[-f FILE]")
    .allowExcessArguments(false)
    .action(() => {
      const options = program.opts<Options>();
      settle(ofMigrate(options) ?? Object.freeze({ ...(frozenCommand("check", options.file, options) as OnFile), kind: "top" }));
    });
  program
    .command("as")
    .summary("be transocks, usocksd or redsocks: their flags, files and names in the log")
    .usage("PROGRAM [its flags]")
    .description(
      "Be transocks, usocksd or redsocks: take that program's flags and configuration file, as a link of that name to transplice does. `transplice as PROGRAM -h` prints its flags.",
    )
    .argument("[PROGRAM]", alternatives(PREDECESSORS))
    .allowExcessArguments(true)
    .action((name: string | undefined) => {
      const found = name === undefined ? "" : `, not ${quoted(name)}`;
      settle(misuse(`as comes first, and then the name of a program: ${alternatives(PREDECESSORS)}${found}`));
    });
  program.addHelpText(
    "after",
    `
Flags may have one dash or two, and a value after = or a space.

Signals:
${SIGNALS.map(([signals, effect]) => `  ${signals.padEnd(12)} ${effect}`).join("\n")}

Examples:
  transplice                              run with ${DEFAULT_FILE}
  transplice -f /etc/transocks.toml       run with a configuration written for transocks
  transplice -f /etc/usocksd.toml         run with a configuration written for usocksd
  transplice up                           redirect this host's connections, until Ctrl-C
  transplice up socks5://10.0.0.1:1080    the same, by way of another proxy
  transplice check my.toml                is it valid?
  transplice passwd alice                 a line for [users]
  transplice migrate /etc/redsocks.conf   the same in our own file, and what changes
  transplice firewall apply -f my.toml    set the rules that redirect connections to it
  transplice doctor                       what is wrong on this host, and how to mend it
  transplice upgrade                      a new version takes over from the running one
  transplice top                          what the running process does
  transplice tunnels client=10.0.0.0/8    the connections of these clients
  transplice trace 203.0.113.5:443        each step of the connections there
  transplice as redsocks -c my.conf       run with a configuration of redsocks
  transplice -f my.toml -loglevel debug   run and say more
`,
  );
  return program;
}

function up(upstream: string | undefined, options: Options): Command {
  const stray = ofMigrate(options);
  if (stray !== null) return stray;
  if (upstream !== undefined && options.file !== undefined) return misuse("up takes an upstream or a file, not both");
  const { overrides } = frozenCommand("run", undefined, options) as OnFile;
  return Object.freeze({ kind: "up", file: options.file ?? null, upstream: upstream ?? null, overrides });
}

/** For each that asks the admin endpoint. */
const ADMIN_TEXTS: Readonly<Record<AdminAction, { readonly summary: string; readonly description: string; readonly usage: string }>> = {
  tunnels: {
    summary: "list the connections of the running process",
    description:
      "List the connections of the running process: who, where to, since when, how many bytes. FILTER is a destination (an address, a network, ADDRESS:PORT, :PORT, a name, .example.com for all below it), or client=, destination=, state=, user= or upstream= and a value; all must fit. --json prints one object a line. It asks the admin endpoint of the configuration ([admin]). Exit code 0: done; 1: not.",
    usage: "[FILTER...] [-f FILE] [--json]",
  },
  close: {
    summary: "reset one connection of the running process",
    description:
      "Reset one connection of the running process. ID is what `transplice tunnels` calls it, and the log's request_id. It takes [admin] token. Exit code 0: done; 1: not.",
    usage: "ID [-f FILE]",
  },
  drain: {
    summary: "let an address of the upstream be dialled no more",
    description:
      "Let an address of the upstream (ADDRESS:PORT) be dialled no more; the connections to it go on. It holds over a reload and an upgrade, until `transplice undrain` or a restart; an upstream's last address cannot be drained. It takes [admin] token. Exit code 0: done; 1: not.",
    usage: "ADDRESS [-f FILE]",
  },
  undrain: {
    summary: "let an address of the upstream be dialled again",
    description: "Let an address of the upstream (ADDRESS:PORT) be dialled again. It takes [admin] token. Exit code 0: done; 1: not.",
    usage: "ADDRESS [-f FILE]",
  },
  trace: {
    summary: "follow the connections to a destination, step by step",
    description:
      "Print every step of the connections that begin from now on and go to DESTINATION (an address, a network, ADDRESS:PORT, :PORT, a name, .example.com for all below it), or come from=CLIENT, until Ctrl-C. --json prints one object a line. It asks the admin endpoint of the configuration ([admin]). Exit code 1: it cannot be had, or the process stops.",
    usage: "DESTINATION [-f FILE] [--json]",
  },
};

function adminRequest(action: AdminAction, operands: readonly string[], options: Options): Command {
  const { json, ...others } = options;
  const stray = ofMigrate(others);
  if (stray !== null) return stray;
  if (json === true && action !== "tunnels" && action !== "trace") return misuse("--json is a flag of doctor, tunnels and trace");
  const many = action === "tunnels" || action === "trace";
  if (!many && operands.length !== 1) return misuse(`${action} takes one ${action === "close" ? "id" : "address"}`);
  if (action === "trace" && operands.length === 0) return misuse("trace takes a destination");
  const onFile = frozenCommand("check", others.file, others) as OnFile;
  return Object.freeze({ ...onFile, kind: "admin", action, operands: Object.freeze([...operands]), json: json ?? false });
}

function passwd(user: string | undefined, options: Options): Command {
  if (Object.keys(options).length > 0) return misuse("passwd takes a name and no flags");
  const wrong = user === undefined ? null : userFault(user);
  if (wrong !== null) return misuse(`the name ${wrong}`);
  return Object.freeze({ kind: "passwd", user: user ?? null });
}

function firewallCommand(action: string | undefined, options: Options): Command {
  const { backend, ...others } = options;
  const stray = ofMigrate(others);
  if (stray !== null) return stray;
  const known = FIREWALL_ACTIONS.find((each) => each === action);
  if (known === undefined) {
    return misuse(`firewall takes ${alternatives(FIREWALL_ACTIONS)}${action === undefined ? "" : `, not ${quoted(action)}`}`);
  }
  const found = FIREWALL_BACKENDS.find((each) => each === backend) ?? null;
  if (backend !== undefined && found === null) {
    return misuse(`--backend takes ${alternatives(FIREWALL_BACKENDS)}, not ${quoted(backend)}`);
  }
  const { file, overrides, reading } = frozenCommand("check", others.file, others) as OnFile;
  return Object.freeze({ kind: "firewall", action: known, backend: found, file, overrides, reading });
}

function upgradeCommand(options: Options): Command {
  const { file, ...others } = options;
  if (Object.keys(others).length > 0) return misuse("upgrade takes no flag but -f FILE");
  return Object.freeze({ kind: "upgrade", file: file ?? DEFAULT_FILE });
}

function migration(file: string | undefined, options: Options): Command {
  const { from, ignoreUnsupported, ...others } = options;
  if (file === undefined) return misuse("migrate needs the name of a file");
  if (Object.keys(others).length > 0) return misuse("migrate takes a file, --from and --ignore-unsupported");
  const program = from === undefined ? null : (FROM.find((name) => name === from) ?? undefined);
  if (program === undefined) return misuse(`--from takes ${alternatives(FROM)}, not ${quoted(from!)}`);
  return Object.freeze({ kind: "migrate", file, from: program, ignoreUnsupported: ignoreUnsupported ?? false });
}

const FROM: readonly ProgramName[] = [...PREDECESSORS, "transplice"];

/** migrate's flags, where there is no migrate. */
function ofMigrate({ from, ignoreUnsupported, backend, json }: Options): Command | null {
  if (json !== undefined) return misuse("--json is a flag of doctor");
  if (backend !== undefined) return misuse("--backend is a flag of firewall");
  if (from !== undefined) return misuse("--from is a flag of migrate");
  return ignoreUnsupported === undefined ? null : misuse("--ignore-unsupported is a flag of migrate");
}

interface Options {
  readonly json?: boolean;
  readonly backend?: string;
  readonly from?: string;
  readonly ignoreUnsupported?: boolean;
  readonly file?: string;
  readonly logfile?: string;
  readonly loglevel?: string;
  readonly logformat?: string;
}

function frozenCommand(kind: "run" | "check", file: string | undefined, options: Options): Command {
  const overrides: Override[] = [];
  if (options.logfile !== undefined)
    overrides.push({ key: "log.filename", text: options.logfile, from: "-logfile" });
  if (options.loglevel !== undefined)
    overrides.push({ key: "log.level", text: options.loglevel, from: "-loglevel" });
  if (options.logformat !== undefined)
    overrides.push({ key: "log.format", text: options.logformat, from: "-logformat" });
  for (const override of overrides) Object.freeze(override);
  const common = { file: file ?? DEFAULT_FILE, overrides: Object.freeze(overrides), reading: OWN };
  return Object.freeze(kind === "run" ? { kind, ...common, process: null } : { kind, ...common });
}

/** What commander would call too many arguments. */
function strayOperand(operands: readonly string[], program: Program): string | null {
  const [name] = operands;
  if (name === undefined) return null;
  const names = program.commands.map((command) => command.name());
  if (names.includes(name)) {
    if (name === "upgrade" && operands.length > 1) return "upgrade takes its file as -f FILE";
    if (operands.length <= 2 || name === "as" || (ADMIN_ACTIONS as readonly string[]).includes(name)) return null;
    // What stands there may be a password, which has no business on a command line.
    if (name === "passwd") return "passwd takes one name, and asks for the password";
    return `${name} takes one ${{ firewall: "action", up: "upstream" }[name] ?? "file"}`;
  }
  if (/[./]/.test(name))
    return `${quoted(name)} is not a command; a configuration file is given as -f ${name}`;
  const near = nearest(name, names);
  return `${quoted(name)} is not a command; ${near === null ? `there is ${names.join(", ")}` : `did you mean ${near}?`}`;
}

/** -f FILE, --f=FILE, -logfile=F... -> --file=FILE, --logfile=F; or what is wrong with them. */
function readGoFlags(
  words: readonly string[],
): { flags: string[]; operands: string[] } | { wrong: string } {
  const flags: string[] = [];
  const operands: string[] = [];
  for (let i = 0; i < words.length; i++) {
    const word = words[i]!;
    if (word === "--") {
      operands.push(...words.slice(i + 1));
      break;
    }
    const match = /^--?([^=-][^=]*)(?:=([\s\S]*))?$/.exec(word);
    if (match === null) {
      if (word.startsWith("-") && word !== "-") return { wrong: `${quoted(word)} is not a flag` };
      operands.push(word);
      continue;
    }
    const name = match[1]!;
    const flag = FLAGS.get(name);
    if (flag === undefined) {
      const near = nearest(name, FLAGS.keys());
      return {
        wrong: `${quoted(dashed(name))} is not a flag${near === null ? "" : `; did you mean ${dashed(near)}?`}`,
      };
    }
    const value = match[2];
    if (flag.takes === "nothing") {
      if (value !== undefined) return { wrong: `${dashed(name)} takes no value` };
      flags.push(`--${flag.option}`);
    } else {
      // As Go does: the next word is the value, whatever it looks like.
      const given = value ?? words[++i];
      if (given === undefined) return { wrong: `${dashed(name)} needs a value` };
      if (given === "" && flag.option === "file")
        return { wrong: `${dashed(name)} needs the name of a file` };
      flags.push(`--${flag.option}=${given}`);
    }
  }
  return { flags, operands };
}

function dashed(name: string): string {
  return name.length === 1 || name.startsWith("log") ? `-${name}` : `--${name}`;
}

function misuse(message: string): Command {
  return print(`transplice: ${message}\n${USAGE}Try "transplice --help".\n`, "stderr", 2);
}

function print(text: string, stream: "stdout" | "stderr", exitCode: number): Command {
  return Object.freeze({ kind: "print", text, stream, exitCode });
}

/** Two directories up both from dist/src/ and from an installed package's dist/src/. */
export function packageVersion(): string {
  const text = readFileSync(new URL("../../package.json", import.meta.url), "utf8");
  return (JSON.parse(text) as { version: string }).version;
}
