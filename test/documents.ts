/**
 * The parts of README.md, docs/ and man/ that come from elsewhere, so that they are true: the keys
 * from src/config/settings.ts, the command line from src/cli.ts, the reasons from
 * src/engine/ending.ts, the measurements from bench/RESULTS.md, the symptoms from docs/seeing.md.
 * `make documents` writes them; test/tidy.test.ts sees that they are up to date.
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { SIGNALS } from "../src/cli.ts";
import { settingsMarkdown } from "../src/config/settings.ts";
import { FINDINGS } from "../src/control/doctor/finding.ts";
import { KINDS, REASONS } from "../src/engine/ending.ts";
import { commandsManual, optionsManual, settingsManual, signalsManual, synopsisManual } from "./manual.ts";

const ROOT = new URL("../../", import.meta.url);
const RESULTS = new URL("bench/RESULTS.md", ROOT);
const SYMPTOMS_SHOWN = 8;

function reasons(): string {
  const rows = REASONS.map((reason) => `| \`${reason}\` | ${KINDS[reason].level} | ${KINDS[reason].meaning} |`);
  return ["| reason | level | what happened |", "|---|---|---|", ...rows].join("\n");
}

function findings(): string {
  return ["| finding | what the doctor looks at |", "|---|---|", ...Object.entries(FINDINGS).map(([id, looks]) => `| \`${id}\` | ${looks} |`)].join("\n");
}

function signals(): string {
  return ["| signal | what it does |", "|---|---|", ...SIGNALS.map(([names, effect]) => `| ${names} | ${effect} |`)].join("\n");
}

/** The first of the table that docs/seeing.md begins with, where the commonest stand first. */
function symptoms(): string {
  const table = /^\| symptom .*\n(?:\|.*\n)+/m.exec(readFileSync(new URL("docs/seeing.md", ROOT), "utf8"))?.[0];
  if (table === undefined) throw new Error("docs/seeing.md has no table of symptoms");
  return table.split("\n").slice(0, 2 + SYMPTOMS_SHOWN).join("\n");
}

/** The measurements' list of facts, and what was to be reached. */
function results(): string {
  if (!existsSync(RESULTS)) return "Not measured yet.";
  const page = readFileSync(RESULTS, "utf8");
  const facts = /\n((?:- .*\n)+)/.exec(page)?.[1]?.trim() ?? "";
  const reached = /\n## To reach, and reached[^\n]*\n\n([\s\S]*?)(?=\n\n|\n## )/.exec(page)?.[1] ?? "";
  // The egress' half has its own headings, a level below.
  const egress = /\n## The egress\n[\s\S]*?\n### To reach, and reached\n\n([\s\S]*?)\n\n/.exec(page)?.[1];
  return `${facts}\n\n${reached.trim()}${egress === undefined ? "" : `\n\n**The egress, and the whole chain**\n\n${egress}`}`;
}

/** By the name that stands in the markers of a Markdown page... */
const MARKDOWN: Readonly<Record<string, () => string>> = {
  settings: () => `\n${settingsMarkdown().trim()}\n`, reasons, results, signals, findings, symptoms,
};
/** ... and in those of a manual page. */
const MANUAL: Readonly<Record<string, () => string>> = {
  settings: settingsManual, synopsis: synopsisManual, commands: commandsManual, options: optionsManual, signals: signalsManual,
};

export interface Document {
  /** From the root of the repository. */
  readonly file: string;
  /** As it is, and as it should be. */
  readonly text: string;
  readonly filled: string;
}

export function documents(): Document[] {
  const found = ["", "docs/", "man/"].flatMap((folder) =>
    readdirSync(new URL(`./${folder}`, ROOT)).filter((name) => /\.(md|[1-8])$/.test(name)).map((name) => folder + name));
  return found.map((file) => {
    const text = readFileSync(new URL(file, ROOT), "utf8");
    return { file, text, filled: file.startsWith("man/") ? manualPage(text) : markdownPage(text) };
  });
}

function markdownPage(text: string): string {
  return text.replace(/<!-- (\w+) -->\n[\s\S]*?<!-- \/\1 -->/g, (_block, name: string) =>
    `<!-- ${name} -->\n${partOf(MARKDOWN, name)}\n<!-- /${name} -->`);
}

/** A page whose text has changed is of today. */
function manualPage(text: string): string {
  const page = text.replace(/^\.\\" <(\w+)>\n[\s\S]*?^\.\\" <\/\1>$/gm, (_block, name: string) =>
    `.\\" <${name}>\n${partOf(MANUAL, name)}\n.\\" </${name}>`);
  if (page === text) return page;
  const today = new Date().toLocaleDateString("en-US", { year: "numeric", month: "long", day: "numeric", timeZone: "UTC" });
  return page.replace(/^\.Dd .*$/m, `.Dd ${today}`);
}

function partOf(parts: Readonly<Record<string, () => string>>, name: string): string {
  const part = Object.hasOwn(parts, name) ? parts[name] : undefined;
  if (part === undefined) throw new Error(`nothing is known to stand between markers called ${name}`);
  return part();
}

if (process.argv[1] === new URL(import.meta.url).pathname) {
  for (const { file, text, filled } of documents()) {
    if (text !== filled) writeFileSync(new URL(file, ROOT), filled);
  }
}
