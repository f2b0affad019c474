/**
 * The text of a redsocks.conf -> its sections with their assignments, and all that is no such text.
 * Knows the grammar of redsocks 0.5's parser.c and no key. Pure; whatever comes, it ends.
 *
 *     file    = { NAME "{" { KEY [ "=" ] VALUE ";" } "}" }
 *     token   = "…" with \n \t \r \\ \' \" | digit { digit | . | / before a digit }
 *             | letter { letter | digit | _ | . | - } | { | } | = | ;
 *     between = white space, //… to the end of the line, and comments as this one
 *
 * Milder than parser.c: it goes on after a problem, and takes a last line without a line feed.
 */

export interface Assignment {
  readonly key: string;
  readonly value: string;
  /** Of the key. */
  readonly line: number;
}

export interface Section {
  readonly name: string;
  readonly line: number;
  readonly assignments: readonly Assignment[];
}

/** Says what is wrong in a line. Nothing of the file's values is in the message. */
export type Complain = (line: number, message: string) => void;

type Mark = "{" | "}" | "=" | ";";

interface Token {
  readonly line: number;
  /** null: `text` is a word, a number or a string. */
  readonly mark: Mark | null;
  readonly text: string;
}

const ESCAPES: ReadonlyMap<string, string> = new Map([
  ["n", "\n"], ["t", "\t"], ["r", "\r"], ["\\", "\\"], ["'", "'"], ['"', '"'],
]);

/** What may stand where there is nothing that may. */
const CHARACTERS = 'allowed: words, numbers, "strings", { } = ; and comments after // or between /* and */';

export function sectionsOf(text: string, complain: Complain): Section[] {
  const tokens = tokensOf(text, complain);
  const sections: Section[] = [];
  let at = 0;
  while (at < tokens.length) {
    const name = tokens[at]!;
    if (name.mark !== null) {
      complain(name.line, `found ${name.mark} outside of a section; allowed: NAME { KEY = VALUE; ... }`);
      at++;
      continue;
    }
    if (tokens[at + 1]?.mark !== "{") {
      complain(name.line, "a section's name is not followed by {; allowed: NAME { KEY = VALUE; ... }");
      at = afterSection(tokens, at + 1);
      continue;
    }
    const assignments: Assignment[] = [];
    at = readBody(tokens, at + 2, name, assignments, complain);
    sections.push({ name: name.text, line: name.line, assignments });
  }
  return sections;
}

/** Where the next section may begin. */
function afterSection(tokens: readonly Token[], from: number): number {
  let at = from;
  while (at < tokens.length && tokens[at]!.mark !== "}" && tokens[at]!.mark !== "{") at++;
  // A name is missing or doubled before this {: what is in it is not looked at.
  if (tokens[at]?.mark === "{") while (at < tokens.length && tokens[at]!.mark !== "}") at++;
  return at + 1;
}

/** From behind { to behind }. */
function readBody(
  tokens: readonly Token[], from: number, name: Token, into: Assignment[], complain: Complain,
): number {
  let at = from;
  while (at < tokens.length) {
    const key = tokens[at]!;
    if (key.mark === "}") return at + 1;
    if (key.mark !== null) {
      complain(key.line, `found ${key.mark} where a key is expected; allowed: KEY = VALUE;`);
      // After "{" or "=" a value may follow that is nobody's key.
      at = key.mark === ";" ? at + 1 : afterAssignment(tokens, at + 1);
      continue;
    }
    // The = may be left out, or stand twice: redsocks never looked.
    let value = at + 1;
    while (tokens[value]?.mark === "=") value++;
    const found = tokens[value];
    if (found === undefined || found.mark !== null) {
      complain(key.line, "the key has no value; allowed: KEY = VALUE;");
      at = afterAssignment(tokens, value);
      continue;
    }
    let end = value + 1;
    while (tokens[end]?.mark === "=") end++;
    if (tokens[end]?.mark !== ";") {
      complain(
        found.line,
        tokens[end] === undefined || tokens[end]!.mark === "}"
          ? "the value is not followed by ;"
          : 'the value is not followed by ;, or it is more than a word or a number and must stand in "quotes"',
      );
      at = afterAssignment(tokens, end);
      continue;
    }
    into.push({ key: key.text, value: found.text, line: key.line });
    at = end + 1;
  }
  complain(name.line, "the section is not closed by }");
  return at;
}

/** Behind the next ;, or at the } before it. */
function afterAssignment(tokens: readonly Token[], from: number): number {
  let at = from;
  while (at < tokens.length && tokens[at]!.mark !== ";" && tokens[at]!.mark !== "}") at++;
  return tokens[at]?.mark === ";" ? at + 1 : at;
}

function tokensOf(text: string, complain: Complain): Token[] {
  const tokens: Token[] = [];
  let line = 1;
  let at = 0;
  /** Stray characters are told once a line. */
  let strayIn = 0;
  while (at < text.length) {
    const from = line;
    const c = text[at]!;
    if (c === "\n") {
      line++;
      at++;
    } else if (/\s/.test(c)) {
      at++;
    } else if (text.startsWith("//", at)) {
      const end = text.indexOf("\n", at);
      at = end === -1 ? text.length : end;
    } else if (text.startsWith("/*", at)) {
      const end = text.indexOf("*/", at + 2);
      if (end === -1) complain(from, "the comment is not closed by */");
      const next = end === -1 ? text.length : end + 2;
      line += linesIn(text, at, next);
      at = next;
    } else if (c === '"') {
      const string = readString(text, at, from, complain);
      tokens.push({ line: from, mark: null, text: string.text });
      line += linesIn(text, at, string.next);
      at = string.next;
    } else if (c === "{" || c === "}" || c === "=" || c === ";") {
      tokens.push({ line: from, mark: c, text: c });
      at++;
    } else {
      WORD.lastIndex = at;
      const word = WORD.exec(text)?.[0];
      if (word !== undefined) {
        tokens.push({ line: from, mark: null, text: word });
        at += word.length;
      } else {
        if (strayIn !== from) complain(from, `found a character that may not stand there; ${CHARACTERS}`);
        strayIn = from;
        at++;
      }
    }
  }
  return tokens;
}

/** A number, an address with a mask, or a name. ASCII only, as in the C locale. */
const WORD = /[0-9](?:[0-9.]|\/(?=[0-9]))*|[A-Za-z][A-Za-z0-9_.-]*/y;

/** `at` is its first quotation mark. It may go over several lines. */
function readString(
  text: string, at: number, line: number, complain: Complain,
): { text: string; next: number } {
  let inside = "";
  let i = at + 1;
  while (i < text.length && text[i] !== '"') {
    if (text[i] !== "\\") {
      inside += text[i++];
      continue;
    }
    const escaped = ESCAPES.get(text[i + 1] ?? "");
    if (escaped === undefined) {
      complain(line + linesIn(text, at, i), "a \\ in a string is followed by what it may not; allowed: \\n \\t \\r \\\\ \\' \\\"");
    }
    inside += escaped ?? "";
    i += 2;
  }
  if (i >= text.length) complain(line, 'the string is not closed by "');
  return { text: inside, next: Math.min(i + 1, text.length) };
}

function linesIn(text: string, from: number, to: number): number {
  let lines = 0;
  for (let i = text.indexOf("\n", from); i !== -1 && i < to; i = text.indexOf("\n", i + 1)) lines++;
  return lines;
}
