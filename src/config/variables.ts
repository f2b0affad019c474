/**
 * Environment variables in place of keys: TRANSPLICE_TIMEOUTS_DIAL is timeouts.dial. Pure: who has
 * read the environment hands them in.
 */
import type { AST } from "toml-eslint-parser";
import type { Override } from "./parse.ts";
import { nearest, type Problem } from "./problem.ts";
import { ALL_KEYS, type Setting, VARIABLE_PREFIX, variableOf } from "./settings.ts";
import { tomlPair, tomlString, tomlValue } from "./toml.ts";

/** A variable whose name begins with VARIABLE_PREFIX. */
export interface Variable {
  readonly name: string;
  readonly text: string;
}

const KEYS: ReadonlyMap<string, Override["key"]> = new Map(ALL_KEYS.map((key) => [variableOf(key), key]));

/**
 * Docker and Kubernetes tell a container of services beside it by such variables; to one that is
 * called transplice they look like ours.
 */
const LINK = /_(?:SERVICE_(?:HOST|PORT(?:_[A-Z0-9_]+)?)|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)$/;

const isLink = ({ name, text }: Variable): boolean =>
  LINK.test(name) || (name.endsWith("_PORT") && /^(?:tcp|udp|sctp):\/\//.test(text));

/** Keys' values, and what is wrong with names. An empty variable is as good as none. */
export function readVariables(
  variables: readonly Variable[],
): { overrides: Override[]; problems: Problem[] } {
  const overrides: Override[] = [];
  const problems: Problem[] = [];
  for (const variable of variables) {
    const { name, text } = variable;
    const key = KEYS.get(name);
    if (isLink(variable)) continue;
    if (key !== undefined) {
      overrides.push(Object.freeze({ key, text, from: name }));
      continue;
    }
    // Without what they all begin with, which would make all of them alike.
    const near = nearest(name.slice(VARIABLE_PREFIX.length), KEYS.values());
    const hint = near === null
      ? `variables are keys in capitals, ${variableOf("timeouts.dial")} for timeouts.dial`
      : `did you mean ${variableOf(near)}?`;
    problems.push(Object.freeze({ place: name, line: null, column: null, key: null, message: `is not a setting; ${hint}` }));
  }
  return { overrides, problems };
}

/**
 * What stands for a setting's value outside of a file: the value itself, without quotes; an array's
 * items with commas between them, or as in TOML.
 */
export function writtenValue(setting: Setting, text: string): AST.TOMLContentNode {
  switch (setting.kind) {
    case "integer":
    case "boolean":
      return tomlPair("x", text)?.value ?? tomlValue(tomlString(text));
    case "size":
      return tomlValue(/^[0-9]+$/.test(text) ? `${Number(text)}` : tomlString(text));
    case "listen":
    case "admin":
    case "list": {
      const array = tomlPair("x", text)?.value;
      if (array?.type === "TOMLArray") return array;
      const numbers = setting.kind === "list" && setting.of === "port";
      const items = text.split(",").map((item) => {
        const written = item.trim();
        return numbers && /^[0-9]{1,9}$/.test(written) ? `${Number(written)}` : tomlString(written);
      });
      return tomlValue(`[${items.join(", ")}]`);
    }
    default:
      return tomlValue(tomlString(text));
  }
}
