/**
 * Pieces of a TOML file's syntax tree: the names of keys, and what a message may say of a value.
 */
import { type AST, parseTOML } from "toml-eslint-parser";
import { quoted } from "./problem.ts";

/** Says what is wrong, in words that follow the key's name; `line` if not that of the key. */
export type Report = (message: string, line?: number) => void;

export function namesOf(key: AST.TOMLKey): string[] {
  return key.keys.map((part) => (part.type === "TOMLBare" ? part.name : part.value));
}

/** The dotted key as settings.ts writes it. A quoted name with a dot in it must not become two. */
export function folded(path: readonly string[]): string {
  return path.map((name) => name.toLowerCase().replaceAll(".", "\\.")).join(".");
}

/** The key as its file would write it. */
export function keyText(path: readonly string[]): string {
  return path.map((name) => (/^[A-Za-z0-9_-]{1,64}$/.test(name) ? name : quoted(name))).join(".");
}

/** A name without control characters, as a key. */
export function tomlName(name: string): string {
  return /^[A-Za-z0-9_-]+$/.test(name) ? name : JSON.stringify(name);
}

/** A value of the file in a message. The contents of arrays and tables are not shown. */
export function foundText(node: AST.TOMLContentNode): string {
  if (node.type === "TOMLArray") return "an array";
  if (node.type === "TOMLInlineTable") return "a table";
  switch (node.kind) {
    case "string":
      return quoted(node.value);
    case "integer":
    case "float":
      // toml-eslint-parser drops leading zeros, and so all of "0".
      return (node.number === "" ? "0" : node.number).slice(0, 64);
    case "boolean":
      return `${node.value}`;
    default:
      return "a date or time";
  }
}

export function stringOf(node: AST.TOMLContentNode): string | null {
  return node.type === "TOMLValue" && node.kind === "string" ? node.value : null;
}

/** Beyond 2^53 it is inexact, and still out of every row's range. */
export function integerOf(node: AST.TOMLContentNode): number | null {
  return node.type === "TOMLValue" && node.kind === "integer" ? Number(node.bigint) : null;
}

/** A text as a value. TOML allows U+007F in no string, and half a character in none. */
export function tomlString(text: string): string {
  return JSON.stringify(text).replaceAll("\u007f", "\\u007f").replace(/\\ud[89a-f][0-9a-f]{2}/g, "\ufffd");
}

/** A value that stands in no file. Throws if it is none, or more than one. */
export function tomlValue(toml: string): AST.TOMLContentNode {
  const pair = tomlPair("x", toml);
  if (pair === null) throw new Error(`not a value in TOML: ${toml}`);
  return pair.value;
}

/** As if a file said `name = TOML` and no more. null: it is no value of TOML. */
export function tomlPair(name: string, toml: string): AST.TOMLKeyValue | null {
  try {
    const [pair, ...others] = parseTOML(`${name} = ${toml}`).body[0].body;
    return pair?.type === "TOMLKeyValue" && others.length === 0 ? pair : null;
  } catch {
    return null; // ParseError, or a RangeError for brackets that are nested too deeply.
  }
}
