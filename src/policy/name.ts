/**
 * What a client asks for by a name, brought to one form before any rule sees it: otherwise
 * "BAD.example", "bad.example." and "bad.example" were three names, and "127.1" none that a rule
 * about addresses looks at. Pure; IDNA (UTS #46) is brought along by the caller.
 *
 * A literal sent as a name is a literal, in every form that a resolver's inet_aton would take. What
 * ends in a number is an IPv4 address or nothing, as in the URL standard: no top-level domain does.
 */
import { holdsIpv4 } from "./network.ts";

export type Target =
  | { readonly kind: "name"; readonly name: string }
  /** 4 or 16 bytes, never an IPv4 address in IPv6 clothes. */
  | { readonly kind: "address"; readonly bytes: Uint8Array }
  | { readonly kind: "bad"; readonly why: string };

export type Site =
  | { readonly kind: "site"; readonly site: string }
  | { readonly kind: "bad"; readonly why: string };

/** A name in ASCII (xn--...); "" when it has no such form. */
export type ToAscii = (unicode: string) => string;

/** RFC 1035 section 2.3.4, without the root's dot. */
const NAME_CHARACTERS_MAX = 253;
const LABEL_CHARACTERS_MAX = 63;
/** Above what any protocol lets a client send: longer is not decoded. */
const BYTES_MAX = 1024;
const TOO_LONG = bad("it is longer than a name may be");
const ODD_CHARACTER = bad("it has a character that no name has");

/** The name or literal in bytes[start, end). `toAscii` is called only when that is not ASCII. */
export function targetOf(bytes: Uint8Array, start: number, end: number, toAscii: ToAscii): Target {
  if (end - start > BYTES_MAX) return TOO_LONG;
  let text = "";
  for (let i = start; i < end; i++) {
    const byte = bytes[i]!;
    if (byte >= 0x80) return targetOfUtf8(bytes, start, end, toAscii);
    text += String.fromCharCode(byte);
  }
  return targetOfAscii(text.toLowerCase());
}

/**
 * A site of the configuration, in the form in which it is compared: a name, a name behind a dot
 * (whatever is below it), "" (every literal), or one literal.
 */
export function siteOf(text: string, toAscii: ToAscii): Site {
  if (text === "") return { kind: "site", site: "" };
  const below = text.startsWith(".");
  const target = targetOfText(below ? text.slice(1) : text, toAscii);
  switch (target.kind) {
    case "name": return { kind: "site", site: below ? `.${target.name}` : target.name };
    case "address":
      return below ? bad("nothing is below an address") : { kind: "site", site: literalText(target.bytes) };
    case "bad": return target;
  }
}

/** siteOf, and what is no site stays as it is: it is like no name that targetOf answers. */
export function normalisedSite(text: string, toAscii: ToAscii): string {
  const site = siteOf(text, toAscii);
  return site.kind === "site" ? site.site : text;
}

/** The address that a normalised site is, if it is one. */
export function literalOf(site: string): Uint8Array | null {
  const target = targetOfAscii(site);
  return target.kind === "address" ? target.bytes : null;
}

const UTF8 = new TextDecoder();
const NO_UTF8 = "\ufffd";

function targetOfUtf8(bytes: Uint8Array, start: number, end: number, toAscii: ToAscii): Target {
  const text = UTF8.decode(bytes.subarray(start, end));
  return text.includes(NO_UTF8) ? bad("it is neither ASCII nor UTF-8") : targetOfText(text, toAscii);
}

function targetOfText(text: string, toAscii: ToAscii): Target {
  if (isAscii(text)) return targetOfAscii(text.toLowerCase());
  // Before it is converted: a converter made for URLs would take "/", "?" or "%" as more than a name.
  for (const character of text) {
    if (isAscii(character) && !/[a-z0-9._-]/i.test(character)) return ODD_CHARACTER;
  }
  const ascii = toAscii(text);
  // Judged again: full-width digits may have become an address, an ideographic full stop a dot.
  return ascii === "" ? bad("it has no form in ASCII (IDNA)") : targetOfAscii(ascii.toLowerCase());
}

/** `text` is in lower case. */
function targetOfAscii(text: string): Target {
  if (text.endsWith(".")) text = text.slice(0, -1);
  if (text === "") return bad("it is empty");
  if (text.includes(":") || text.startsWith("[")) return targetOfIpv6(text);
  if (text.length > NAME_CHARACTERS_MAX) return TOO_LONG;
  if (!/^[a-z0-9._-]*$/.test(text)) return ODD_CHARACTER;
  const labels = text.split(".");
  if (isNumber(labels.at(-1)!)) {
    const bytes = parseIpv4(labels);
    return bytes === null ? bad("it ends in a number and is no IPv4 address") : { kind: "address", bytes };
  }
  for (const { length } of labels) {
    if (length === 0) return bad("a part of it is empty");
    if (length > LABEL_CHARACTERS_MAX) return bad("a part of it is longer than 63 characters");
  }
  return { kind: "name", name: text };
}

function targetOfIpv6(text: string): Target {
  const inside = text.startsWith("[") && text.endsWith("]") ? text.slice(1, -1) : text;
  const bytes = parseIpv6(inside);
  if (bytes === null) return bad("it is no IPv6 address");
  return { kind: "address", bytes: holdsIpv4(bytes, 0) ? bytes.slice(12) : bytes };
}

/** As inet_aton(3): one to four numbers, the last of them fills what is left of the address. */
function parseIpv4(parts: readonly string[]): Uint8Array | null {
  if (parts.length > 4) return null;
  const bytes = new Uint8Array(4);
  for (const [i, part] of parts.entries()) {
    const value = numberOf(part);
    const bytesLeft = i === parts.length - 1 ? 4 - i : 1;
    if (!(value < 256 ** bytesLeft)) return null;
    for (let k = 0; k < bytesLeft; k++) bytes[i + k] = Math.floor(value / 256 ** (bytesLeft - 1 - k));
  }
  return bytes;
}

const isNumber = (part: string): boolean => /^([0-9]+|0x[0-9a-f]*)$/.test(part);

/** Hexadecimal behind 0x, octal behind 0, else decimal; NaN when it is none of these. */
function numberOf(part: string): number {
  if (!isNumber(part)) return NaN;
  if (part.startsWith("0x")) return Number(part === "0x" ? 0 : part);
  if (part.startsWith("0")) return part === "0" ? 0 : Number(`0o${part.slice(1)}`);
  return Number(part);
}

/** RFC 4291 section 2.2; no scope. */
function parseIpv6(text: string): Uint8Array | null {
  const halves = text.split("::");
  if (halves.length > 2) return null;
  const head = groupsOf(halves[0]!, halves.length === 1);
  const tail = groupsOf(halves[1] ?? "", true);
  if (head === null || tail === null) return null;
  const gap = 8 - head.length - tail.length;
  if (halves.length === 1 ? gap !== 0 : gap < 1) return null;
  const groups = [...head, ...new Array<number>(gap).fill(0), ...tail];
  return Uint8Array.from(groups.flatMap((group) => [group >> 8, group & 255]));
}

/** The 16-bit groups of one side of "::"; only what ends the address may end in a dotted one. */
function groupsOf(text: string, ends: boolean): number[] | null {
  if (text === "") return [];
  const groups: number[] = [];
  const parts = text.split(":");
  for (const [i, part] of parts.entries()) {
    if (/^[0-9a-f]{1,4}$/.test(part)) {
      groups.push(Number.parseInt(part, 16));
      continue;
    }
    const dotted = ends && i === parts.length - 1 ? part.split(".") : [];
    if (dotted.length !== 4 || !dotted.every(isDecimalByte)) return null;
    const [a, b, c, d] = dotted.map(Number);
    groups.push((a! << 8) | b!, (c! << 8) | d!);
  }
  return groups;
}

const isDecimalByte = (part: string): boolean => /^(0|[1-9][0-9]{0,2})$/.test(part) && Number(part) < 256;

/** One text for each address; not the shortest one for IPv6, as nobody reads it. */
function literalText(bytes: Uint8Array): string {
  if (bytes.length === 4) return bytes.join(".");
  const group = (i: number) => ((bytes[2 * i]! << 8) | bytes[2 * i + 1]!).toString(16);
  return Array.from({ length: 8 }, (_, i) => group(i)).join(":");
}

const isAscii = (text: string): boolean => /^[\0-\x7f]*$/.test(text);

function bad(why: string): { readonly kind: "bad"; readonly why: string } {
  return { kind: "bad", why };
}
