/**
 * What is wrong with a configuration, said to the one who wrote it: where it stands, what was
 * found, what is allowed. A secret must never get in here: every quotation goes through `quoted`.
 */
import { distance } from "fastest-levenshtein";

export interface Problem {
  /** The file, or the flag ("-loglevel"). */
  readonly place: string;
  /** From 1. null: the problem stands nowhere in the file, such as a key that is missing. */
  readonly line: number | null;
  /** From 1; for syntax errors. */
  readonly column: number | null;
  /** Dotted. null: the problem is not with one key. */
  readonly key: string | null;
  readonly message: string;
}

/** "FILE:LINE: KEY: MESSAGE", without what is not known. */
export function problemText(problem: Problem): string {
  let place = problem.place;
  if (problem.line !== null) place += `:${problem.line}`;
  if (problem.column !== null) place += `:${problem.column}`;
  return problem.key === null
    ? `${place}: ${problem.message}`
    : `${place}: ${problem.key}: ${problem.message}`;
}

/** Longer values are cut in messages. */
const QUOTED_CHARACTERS_MAX = 80;

/** A value of the file as a message may show it: one line, bounded, without user and password. */
export function quoted(text: string): string {
  const open = withoutUserinfo(text);
  const cut =
    open.length > QUOTED_CHARACTERS_MAX ? `${open.slice(0, QUOTED_CHARACTERS_MAX)}…` : open;
  // JSON leaves U+007F to U+009F as they are, and some of them move a terminal's cursor.
  return JSON.stringify(cut).replace(
    /[\u007f-\u009f\u2028\u2029]/g,
    (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** What stands before the last "@" may be a password, however broken the URL around it is. */
function withoutUserinfo(text: string): string {
  const at = text.lastIndexOf("@");
  if (at === -1) return text;
  const scheme = /^[A-Za-z][A-Za-z0-9+.-]*:\/\//.exec(text)?.[0] ?? "";
  return `${scheme}***${text.slice(at)}`;
}

/** "a", "a or b", "a, b or c". */
export function alternatives(words: readonly string[]): string {
  if (words.length < 2) return words.join("");
  return `${words.slice(0, -1).join(", ")} or ${words.at(-1)}`;
}

/**
 * The known word that was probably meant, or null. Case, and what separates the parts of a name, do
 * not count; a beginning ("proxy" for "proxy_url") is as good as a slip of the finger.
 */
export function nearest(word: string, known: Iterable<string>): string | null {
  const wanted = folded(word);
  let best: string | null = null;
  let bestDistance = Number.POSITIVE_INFINITY;
  for (const candidate of known) {
    const name = folded(candidate);
    const slips = Math.max(
      wanted.length > 2 ? 1 : 0,
      Math.floor(Math.max(name.length, wanted.length) / 3),
    );
    const short = Math.min(name.length, wanted.length);
    const begins = short >= 3 && (name.startsWith(wanted) || wanted.startsWith(name));
    // Lengths first: the distance is at least their difference, and a word of a megabyte is not
    // worth the comparison.
    if (!begins && Math.abs(name.length - wanted.length) > slips) continue;
    const away = begins
      ? 0.5 + Math.abs(name.length - wanted.length) / 100
      : isSwapped(wanted, name)
        ? 1
        : distance(wanted, name);
    if (away < bestDistance && (begins || away <= slips)) {
      best = candidate;
      bestDistance = away;
    }
  }
  return best;
}

/** Two neighbours have changed places, which is one slip and not two: "prot" for "port". */
function isSwapped(a: string, b: string): boolean {
  if (a.length !== b.length) return false;
  let i = 0;
  while (i < a.length && a[i] === b[i]) i++;
  return i < a.length && a[i] === b[i + 1] && a[i + 1] === b[i] && a.slice(i + 2) === b.slice(i + 2);
}

function folded(name: string): string {
  return name.toLowerCase().replace(/[.\\-]+/g, "_");
}
