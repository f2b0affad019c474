/**
 * [users]: any name, and a password or its hash. No message of this file shows a value: numbers and
 * tables in the wrong place may be passwords, too.
 */
import type { AST } from "toml-eslint-parser";
import type { EgressConfig } from "./config.ts";
import { USER_BYTES_MAX, userFault } from "./items.ts";
import { parseSecret } from "./secret.ts";
import { keyText, namesOf, stringOf } from "./toml.ts";

type Problem = (line: number, key: string, message: string) => void;

const SECRET_ALLOWED =
  'a string, "scrypt:...", as `transplice passwd NAME` prints it, or a password in clear text';

export class UserTable {
  readonly #problem: Problem;
  readonly #users = new Map<string, { line: number; secret: string }>();
  /** Also of those whose password is wrong. */
  readonly #names = new Set<string>();
  /** What stands there is no table of users, and was reported. */
  #misshapen = false;
  /** Of the first table or key. */
  line: number | null = null;

  constructor(problem: Problem) {
    this.#problem = problem;
  }

  get names(): ReadonlySet<string> {
    return this.#names;
  }

  /** [users], or a table that should not be. `path` begins with "users". */
  table(path: readonly string[], table: AST.TOMLTable): void {
    const line = table.loc.start.line;
    this.line ??= line;
    this.#misshapen ||= path.length > 1 || table.kind === "array";
    if (path.length > 1) {
      this.#problem(
        line,
        keyText(path),
        'found a table; allowed: [users] with NAME = "scrypt:..."; a name with a dot in it stands in quotes',
      );
    } else if (table.kind === "array") {
      this.#problem(line, "users", "found an array of tables, [[users]]; allowed: one table, [users]");
    } else {
      for (const pair of table.body) this.pair([...path, ...namesOf(pair.key)], pair);
    }
  }

  /** One key and its value. `path` begins with "users". */
  pair(path: readonly string[], pair: AST.TOMLKeyValue): void {
    const line = pair.loc.start.line;
    this.line ??= line;
    const [, name] = path;
    if (name === undefined) {
      if (pair.value.type === "TOMLInlineTable") {
        for (const inner of pair.value.body) this.pair([...path, ...namesOf(inner.key)], inner);
      } else {
        this.#misshapen = true;
        this.#problem(line, "users", 'allowed: a table, [users], with NAME = "scrypt:..."');
      }
      return;
    }
    const key = keyText(path);
    if (path.length > 2) {
      this.#misshapen = true;
      this.#problem(line, key, "is not one name; a name with a dot in it stands in quotes");
      return;
    }
    if (this.#names.has(name)) this.#problem(line, key, "is given twice");
    this.#names.add(name);
    const wrongName = userFault(name);
    if (wrongName !== null) this.#problem(line, key, `the name ${wrongName}`);
    const secret = stringOf(pair.value);
    const wrong = secret === null ? `allowed: ${SECRET_ALLOWED}` : secretFault(secret);
    if (wrong !== null) this.#problem(line, key, wrong);
    this.#users.set(name, { line, secret: secret ?? "" });
  }

  /** Once all pairs have been given. */
  users(): EgressConfig["users"] {
    if (this.line !== null && this.#names.size === 0 && !this.#misshapen) {
      this.#problem(
        this.line,
        "users",
        "holds no user; without the table nobody is asked for a password, with it somebody must be there",
      );
    }
    return [...this.#users].map(([name, { secret }]) => ({ name, secret }));
  }

  lineOf(name: string): number | null {
    return this.#users.get(name)?.line ?? null;
  }
}

function secretFault(text: string): string | null {
  const secret = parseSecret(text);
  if (secret === null) {
    return "begins as a hash and is none, or one that takes too much; `transplice passwd NAME` prints a right one";
  }
  return secret.kind === "clear" && secret.password.length > USER_BYTES_MAX
    ? `the password has more than ${USER_BYTES_MAX} bytes`
    : null;
}
