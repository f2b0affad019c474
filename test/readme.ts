/**
 * The parts of README.md that come from elsewhere, so that they are true: the table of keys from
 * src/config/settings.ts, the reasons from src/engine/ending.ts, the measurements from
 * bench/RESULTS.md. `make readme` writes them; test/tidy.test.ts sees that they are up to date.
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { settingsMarkdown } from "../src/config/settings.ts";
import { KINDS, REASONS } from "../src/engine/ending.ts";

const ROOT = new URL("../../", import.meta.url);
const FILE = new URL("README.md", ROOT);
const RESULTS = new URL("bench/RESULTS.md", ROOT);

function reasons(): string {
  const rows = REASONS.map((reason) => `| \`${reason}\` | ${KINDS[reason].level} | ${KINDS[reason].meaning} |`);
  return ["| reason | level | what happened |", "|---|---|---|", ...rows].join("\n");
}

/** The page's list of facts, and the tables that say the most. */
function results(): string {
  if (!existsSync(RESULTS)) return "Not measured yet.";
  const page = readFileSync(RESULTS, "utf8");
  const section = (title: string): string =>
    new RegExp(`\\n## ${title}[^\\n]*\\n\\n([\\s\\S]*?)(?=\\n## |$)`).exec(page)?.[1]?.trim() ?? "";
  const facts = /\n((?:- .*\n)+)/.exec(page)?.[1]?.trim() ?? "";
  const titled = (name: string): string => {
    const title = new RegExp(`\\n## ${name}: ([^\\n]*)`).exec(page)?.[1];
    return title === undefined ? "" : `\n\n**${title[0]!.toUpperCase()}${title.slice(1)}**\n\n${section(name)}`;
  };
  const tables = ["down-4", "up-4", "rr", "pp-64", "idle"].map(titled).join("");
  // The egress' half has its own headings, a level below.
  const reached = /\n## The egress\n[\s\S]*?\n### To reach, and reached\n\n([\s\S]*?)\n\n/.exec(page)?.[1];
  const egress = reached === undefined ? "" : `\n\n**The egress, and the whole chain**\n\n${reached}`;
  return `${facts}\n\n${section("To reach, and reached")}${tables}${egress}`;
}

/** README.md as it should be. */
export function filled(): string {
  let text = readFileSync(FILE, "utf8");
  const parts = { settings: `\n${settingsMarkdown().trim()}\n`, reasons: reasons(), results: results() };
  for (const [name, part] of Object.entries(parts)) {
    const block = new RegExp(`<!-- ${name} -->[\\s\\S]*<!-- /${name} -->`);
    text = text.replace(block, () => `<!-- ${name} -->\n${part}\n<!-- /${name} -->`);
  }
  return text;
}

if (process.argv[1] === new URL(import.meta.url).pathname) writeFileSync(FILE, filled());
