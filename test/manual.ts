/**
 * The generated parts of the manual pages, in mdoc(7): the keys from src/config/settings.ts, the
 * command line and the signals from src/cli.ts. What stands around them is written by hand, in
 * man/; test/documents.ts puts the two together.
 */
import type { Command as Program } from "commander";
import { describe, SIGNALS, SYNOPSIS } from "../src/cli.ts";
import {
  allowedText, keysOf, RELAY_SETTINGS, RULE_SETTINGS, type Setting, SETTINGS, TABLES, USER_SETTING, variableOf,
} from "../src/config/settings.ts";

/** What the tables are about. One that is not here stands without a word. */
const ABOUT: Readonly<Record<string, string>> = {
  "": "They stand before the first table.",
  timeouts: "How long a connection may stay in each of its states.",
  tcp: "Of both sides of each connection.",
  limits: "Of the whole process.",
  upstream: "How the upstream is spoken to.",
  incoming: "The clients' side of the SOCKS server. The table makes the process one, even without keys.",
  outgoing: "The destinations' side of the SOCKS server. The table makes the process one, even without keys.",
  firewall: "What the command firewall, and the process where it manages the rules, make rules of.",
  log: "The log.",
  users: "Who may use the SOCKS server. As soon as there is one user, nobody is served without a login.",
  relays: "Further listeners, each with an upstream of its own.",
  rules: "Who may go where, by the SOCKS server. The first rule decides all of whose criteria fit.",
};

/** Text as it is: nothing of it is a request or an escape. */
function plain(text: string): string {
  return text.replaceAll("\\", "\\e").replace(/^(?=[.'])/gm, "\\&");
}

/** To be copied: groff must not make typographic characters of it. */
function literal(text: string): string {
  const glyphs: Readonly<Record<string, string>> = { "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti" };
  return plain(text).replace(/[-'`^~]/g, (character) => glyphs[character]!);
}

const bold = (text: string): string => `\\fB${literal(text)}\\fR`;
const italic = (text: string): string => `\\fI${literal(text)}\\fR`;

/** Markdown's `literals`, flags, and a line for each sentence, as mdoc wants it. */
function prose(text: string): string {
  const parts = text.split(/`([^`]*)`|(?<= )(--[a-z-]+)/).map((part, i) => (i % 3 === 0 ? plain(part ?? "") : part === undefined ? "" : bold(part)));
  return parts.join("").replace(/\. (?=[A-Z\\])/g, ".\n");
}

/** "-f FILE", "check [FILE]", "print|apply": flags and words are bold, what stands for another italic. */
function usage(text: string): string {
  return text.replace(/\b[A-Z]+\b|--?[a-z-]+|[a-z]+(?![a-z]*\])/g, (word) => (/^[A-Z]/.test(word) ? italic(word) : bold(word)));
}

const item = (head: string, ...body: string[]): string => [`.It ${head}`, ...body].join("\n");

function list(items: readonly string[]): string {
  return [".Bl -tag -width Ds", ...items, ".El"].join("\n");
}

/** `variable`: what may stand in its place in the environment. */
function key(name: string, setting: Setting, variable: string | null = null): string {
  const fallback = setting.default === null ? prose(setting.otherwise ?? "none") : bold(setting.default);
  return item(
    bold(name), prose(setting.description), ".Pp", `Default: ${fallback}.`, ".br",
    `Allowed: ${prose(allowedText(setting))}.`, ".br", `Example: ${bold(`${/^[A-Z]/.test(name) ? "alice" : name} = ${setting.example}`)}`,
    ...(variable === null ? [] : [".br", `Variable: ${bold(variable)}`]),
  );
}

/** All keys, a subsection for each table. */
export function settingsManual(): string {
  const section = (title: string, about: string | undefined, keys: readonly string[]): string =>
    [`.Ss ${title}`, ...(about === undefined ? [] : [prose(about)]), list(keys)].join("\n");
  const tables = ["", ...TABLES].map((table) =>
    section(
      table === "" ? "Top level" : `[${table}]`, ABOUT[table],
      keysOf(table).map((name) => key(name.slice(table === "" ? 0 : table.length + 1), SETTINGS[name], variableOf(name))),
    ));
  const rules = Object.entries(RULE_SETTINGS).map(([name, setting]) => key(name, setting));
  const relays = Object.entries(RELAY_SETTINGS).map(([name, setting]) => key(name, setting));
  return [
    ...tables, section("[users]", ABOUT["users"], [key("NAME", USER_SETTING)]), section("[[rules]]", ABOUT["rules"], rules),
    section("[[relays]]", ABOUT["relays"], relays),
  ].join("\n");
}

export function synopsisManual(): string {
  return SYNOPSIS.map((line) => `.Nm\n${usage(line)}`).join("\n");
}

/** The commands, by what commander prints of each. */
export function commandsManual(): string {
  return list(describe().commands.map((command: Program) =>
    item(`${bold(command.name())} ${usage(command.usage())}`, prose(command.description()))));
}

export function optionsManual(): string {
  const help = "\\fB\\-h\\fR, \\fB\\-\\-help\\fR";
  const options = describe().options.filter(({ hidden }) => !hidden).map(({ flags, description }) =>
    item(usage(flags.replace(/[<>]/g, "").replace(/^--(?=log)/, "-")), prose(sentence(description))));
  return list([...options, item(help, "Print the flags and commands.\nAfter a command: what it takes.")]);
}

export function signalsManual(): string {
  return list(SIGNALS.map(([signals, effect]) => item(bold(signals), prose(sentence(effect)))));
}

const sentence = (text: string): string => `${text[0]!.toUpperCase()}${text.slice(1)}.`;
