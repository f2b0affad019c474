/** [[rules]]: who may go where. */
import { OWN_RULES, type Rule } from "../policy/access.ts";
import { nearest, quoted } from "./problem.ts";
import type { RuleValues } from "./settings.ts";
import type { Report, TableList } from "./table-list.ts";

/** Once all have been given, and all users are known. */
export function rulesOf(list: TableList, users: ReadonlySet<string>, report: Report): Rule[] {
  const first = new Map<string, number>();
  for (const { values, line, lines } of list.entries) {
    const { name } = values;
    if (typeof name === "string") {
      const other = first.get(name);
      const at = lines.get("name") ?? line;
      if (other !== undefined) {
        report(at, "rules.name", `${quoted(name)} is given twice, in line ${other} and in line ${at}`);
      } else if (OWN_RULES.includes(name)) {
        report(at, "rules.name", `${quoted(name)} is taken: log and metrics say it where no rule decides`);
      }
      first.set(name, at);
    }
    for (const user of (values["users"] as readonly string[] | undefined) ?? []) {
      if (users.has(user)) continue;
      const near = nearest(user, users);
      report(
        lines.get("users") ?? line,
        "rules.users",
        `${quoted(user)} is not in [users]${near === null ? "" : `; did you mean ${quoted(near)}?`}`,
      );
    }
  }
  return list.entries.map(({ values }) => ruleOf(values as unknown as RuleValues));
}

/** Of values that are complete, or of some that were reported and will not be used. */
function ruleOf({ name, action, from, users, sites, networks, ports }: RuleValues): Rule {
  return { name: name!, action: action!, from, users, sites, networks, ports };
}
