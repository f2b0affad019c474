/**
 * [[rules]]: an array of tables, each with the keys of RULE_SETTINGS.
 */
import type { AST } from "toml-eslint-parser";
import { OWN_RULES, type Rule } from "../policy/access.ts";
import { nearest, quoted } from "./problem.ts";
import { RULE_SETTINGS, type RuleValues, type Setting } from "./settings.ts";
import { folded, foundText, keyText, namesOf, tomlValue } from "./toml.ts";
import { read } from "./value.ts";

type Problem = (line: number, key: string, message: string) => void;

const ROWS: ReadonlyMap<string, Setting> = new Map(Object.entries(RULE_SETTINGS));

export class RuleList {
  readonly #problem: Problem;
  readonly #rules: { values: Partial<Record<string, unknown>>; line: number; lines: Lines }[] = [];
  /** Of the first rule. */
  line: number | null = null;

  constructor(problem: Problem) {
    this.#problem = problem;
  }

  /** [[rules]], or a table that should not be. `path` begins with "rules". */
  table(path: readonly string[], table: AST.TOMLTable): void {
    const line = table.loc.start.line;
    this.line ??= line;
    if (path.length > 1) {
      this.#problem(line, keyText(path), `found a table; [[rules]] has ${[...ROWS.keys()].join(", ")}`);
    } else if (table.kind !== "array") {
      this.#problem(line, "rules", "found one table, [rules]; allowed: an array of tables, [[rules]]");
    } else {
      this.#rule(table.body, line);
    }
  }

  /** rules = [{ ... }]. `path` begins with "rules". */
  pair(path: readonly string[], pair: AST.TOMLKeyValue): void {
    const line = pair.loc.start.line;
    this.line ??= line;
    if (path.length > 1 || pair.value.type !== "TOMLArray") {
      const found = path.length > 1 ? "a table" : foundText(pair.value);
      this.#problem(line, "rules", `found ${found}; allowed: an array of tables, [[rules]]`);
      return;
    }
    for (const element of pair.value.elements) {
      const at = element.loc.start.line;
      if (element.type === "TOMLInlineTable") this.#rule(element.body, at);
      else this.#problem(at, "rules", `found ${foundText(element)} in the array; allowed: tables`);
    }
  }

  /** Once all have been given, and all users are known. */
  rules(users: ReadonlySet<string>): Rule[] {
    const lines = new Map<string, number>();
    for (const { values, line, lines: lineOf } of this.#rules) {
      const { name } = values;
      if (typeof name === "string") {
        const other = lines.get(name);
        const at = lineOf.get("name") ?? line;
        if (other !== undefined) {
          this.#problem(at, "rules.name", `${quoted(name)} is given twice, in line ${other} and in line ${at}`);
        } else if (OWN_RULES.includes(name)) {
          this.#problem(at, "rules.name", `${quoted(name)} is taken: log and metrics say it where no rule decides`);
        }
        lines.set(name, at);
      }
      for (const user of (values["users"] as readonly string[] | undefined) ?? []) {
        if (users.has(user)) continue;
        const near = nearest(user, users);
        this.#problem(
          lineOf.get("users") ?? line,
          "rules.users",
          `${quoted(user)} is not in [users]${near === null ? "" : `; did you mean ${quoted(near)}?`}`,
        );
      }
    }
    return this.#rules.map(({ values }) => ruleOf(values as unknown as RuleValues));
  }

  #rule(pairs: readonly AST.TOMLKeyValue[], line: number): void {
    const values: Partial<Record<string, unknown>> = { ...DEFAULTS };
    const lines: Lines = new Map();
    for (const pair of pairs) {
      const path = namesOf(pair.key);
      const key = folded(path);
      const at = pair.loc.start.line;
      const setting = ROWS.get(key);
      if (setting === undefined) {
        const near = nearest(key, ROWS.keys());
        const hint = near === null ? `[[rules]] has ${[...ROWS.keys()].join(", ")}` : `did you mean ${near}?`;
        this.#problem(at, keyText(["rules", ...path]), `is not a setting; ${hint}`);
        continue;
      }
      const other = lines.get(key);
      if (other !== undefined) this.#problem(at, `rules.${key}`, `is given twice: in line ${other} and here`);
      lines.set(key, at);
      values[key] = read(setting, pair.value, (message, where) =>
        this.#problem(where ?? at, `rules.${key}`, message),
      );
    }
    const missing = ["name", "action"].filter((key) => !lines.has(key));
    if (missing.length > 0) {
      const examples = missing.map((key) => `${key} = ${ROWS.get(key)!.example}`);
      const what = missing.join(" and ");
      this.#problem(line, "rules", `${what} missing; for example: ${examples.join(" and ")}`);
    }
    this.#rules.push({ values, line, lines });
  }
}

type Lines = Map<string, number>;

const DEFAULTS: Readonly<Record<string, unknown>> = Object.fromEntries(
  [...ROWS].map(([key, setting]) => [
    key,
    setting.default === null
      ? null
      : read(setting, tomlValue(setting.default), (message) => {
          throw new Error(`the default of rules.${key}: ${message}`);
        }),
  ]),
);

/** Of values that are complete, or of some that were reported and will not be used. */
function ruleOf({ name, action, from, users, sites, networks, ports }: RuleValues): Rule {
  return { name: name!, action: action!, from, users, sites, networks, ports };
}
