/**
 * An array of tables, [[rules]] or [[relays]]: each with the keys of its rows, as settings.ts has them.
 */
import type { AST } from "toml-eslint-parser";
import { nearest } from "./problem.ts";
import type { Setting } from "./settings.ts";
import { folded, foundText, keyText, namesOf, tomlValue } from "./toml.ts";
import { read } from "./value.ts";

export type Report = (line: number, key: string, message: string) => void;

/** One of the tables. A value that is wrong is undefined, and was reported. */
export interface Entry {
  readonly values: Readonly<Partial<Record<string, unknown>>>;
  readonly line: number;
  /** Of the keys that are there. */
  readonly lines: ReadonlyMap<string, number>;
}

export class TableList {
  readonly #name: string;
  readonly #rows: ReadonlyMap<string, Setting>;
  readonly #report: Report;
  readonly #defaults: Readonly<Record<string, unknown>>;
  readonly entries: Entry[] = [];
  /** Of the first table. */
  line: number | null = null;

  constructor(name: string, rows: Readonly<Record<string, Setting>>, report: Report) {
    this.#name = name;
    this.#rows = new Map(Object.entries(rows));
    this.#report = report;
    this.#defaults = Object.fromEntries(
      [...this.#rows].map(([key, setting]) => [
        key,
        setting.default === null
          ? null
          : read(setting, tomlValue(setting.default), (message) => {
              throw new Error(`the default of ${name}.${key}: ${message}`);
            }),
      ]),
    );
  }

  /** [[rules]], or a table that should not be. `path` begins with the list's name. */
  table(path: readonly string[], table: AST.TOMLTable): void {
    const line = table.loc.start.line;
    this.line ??= line;
    if (path.length > 1) {
      this.#report(line, keyText(path), `found a table; [[${this.#name}]] has ${this.#keys}`);
    } else if (table.kind !== "array") {
      this.#report(line, this.#name, `found one table, [${this.#name}]; allowed: an array of tables, [[${this.#name}]]`);
    } else {
      this.#entry(table.body, line);
    }
  }

  /** rules = [{ ... }]. `path` begins with the list's name. */
  pair(path: readonly string[], pair: AST.TOMLKeyValue): void {
    const line = pair.loc.start.line;
    this.line ??= line;
    if (path.length > 1 || pair.value.type !== "TOMLArray") {
      const found = path.length > 1 ? "a table" : foundText(pair.value);
      this.#report(line, this.#name, `found ${found}; allowed: an array of tables, [[${this.#name}]]`);
      return;
    }
    for (const element of pair.value.elements) {
      const at = element.loc.start.line;
      if (element.type === "TOMLInlineTable") this.#entry(element.body, at);
      else this.#report(at, this.#name, `found ${foundText(element)} in the array; allowed: tables`);
    }
  }

  get #keys(): string {
    return [...this.#rows.keys()].join(", ");
  }

  #entry(pairs: readonly AST.TOMLKeyValue[], line: number): void {
    const values: Partial<Record<string, unknown>> = { ...this.#defaults };
    const lines = new Map<string, number>();
    const name = this.#name;
    for (const pair of pairs) {
      const path = namesOf(pair.key);
      const key = folded(path);
      const at = pair.loc.start.line;
      const setting = this.#rows.get(key);
      if (setting === undefined) {
        const near = nearest(key, this.#rows.keys());
        const hint = near === null ? `[[${name}]] has ${this.#keys}` : `did you mean ${near}?`;
        this.#report(at, keyText([name, ...path]), `is not a setting; ${hint}`);
        continue;
      }
      const other = lines.get(key);
      if (other !== undefined) this.#report(at, `${name}.${key}`, `is given twice: in line ${other} and here`);
      lines.set(key, at);
      values[key] = read(setting, pair.value, (message, where) =>
        this.#report(where ?? at, `${name}.${key}`, message),
      );
    }
    const missing = [...this.#rows].filter(([key, row]) => row.otherwise === "required" && !lines.has(key));
    if (missing.length > 0) {
      const examples = missing.map(([key, { example }]) => `${key} = ${example}`);
      const what = missing.map(([key]) => key).join(" and ");
      this.#report(line, name, `${what} missing; for example: ${examples.join(" and ")}`);
    }
    this.entries.push({ values, line, lines });
  }
}
