/**
 * A value of the file as the row in settings.ts wants it, or what is wrong with it.
 */
import type { AST } from "toml-eslint-parser";
import { type Cause, CAUSES, PRESETS, type Trust, trustOnly } from "../policy/cause.ts";
import type { AdminAddress } from "./config.ts";
import { isAccount, ITEM_READERS, readHost } from "./items.ts";
import { parseAdmin, parseListen } from "./listen.ts";
import { nearest, quoted } from "./problem.ts";
import { parseDuration, parseRate, parseSize } from "./quantity.ts";
import { allowedText, type Setting, tokenOf, WORD_CHARACTERS_MAX } from "./settings.ts";
import { foundText, integerOf, type Report, stringOf } from "./toml.ts";
import { parseUpstream } from "./upstream.ts";

const RATE_MAX = 1_000_000;
/** IFNAMSIZ in <linux/if.h>, less the NUL. */
const IFACE_BYTES_MAX = 15;
/** More listeners than this on one host are a mistake, and each worker opens all of them. */
const LISTEN_MAX = 64;

/** A row's value, or undefined after it has told `report` what is wrong with it. */
export function read(setting: Setting, node: AST.TOMLContentNode, report: Report): unknown {
  const fail = (hint = ""): undefined => {
    report(`found ${foundText(node)}${hint}; allowed: ${allowedText(setting)}`);
    return undefined;
  };
  const text = stringOf(node);
  switch (setting.kind) {
    case "duration": {
      if (text === null)
        return fail(node.type === "TOMLValue" && node.kind === "integer" ? " without a unit" : "");
      const ms = parseDuration(text);
      if (ms === null) return fail(/^[0-9]+$/.test(text) ? " without a unit" : "");
      if (ms < setting.minMs || ms > setting.maxMs) return fail();
      return setting.wholeSeconds && ms % 1000 !== 0 ? fail(", which is not whole seconds") : ms;
    }
    case "size": {
      const bytes = text === null ? integerOf(node) : parseSize(text);
      return bytes === null || bytes < setting.min || bytes > setting.max ? fail() : bytes;
    }
    case "integer": {
      const value = integerOf(node);
      if (value === null)
        return fail(
          text !== null && /^[0-9]+$/.test(text)
            ? ", a string; an integer stands without quotes"
            : "",
        );
      return value < setting.min || value > setting.max ? fail() : value;
    }
    case "enum": {
      if (text === null) return fail();
      if (setting.values.includes(text)) return text;
      const alias = Object.entries(setting.aliases ?? {}).find(([word]) => word === text);
      if (alias !== undefined) return alias[1];
      const near = nearest(text, setting.values);
      return fail(near === null ? "" : ` (did you mean "${near}"?)`);
    }
    case "boolean":
      if (node.type === "TOMLValue" && node.kind === "boolean") return node.value;
      return fail(
        text === "true" || text === "false"
          ? ", a string; true and false stand without quotes"
          : "",
      );
    case "string":
      if (text === null) return fail();
      return text.includes("\0") ? fail(", which holds a NUL character") : text;
    case "url":
      return text === null ? fail() : (parseUpstream(text, report) ?? undefined);
    case "trust":
      return readTrust(setting, node, report);
    case "listen":
      return readListen(setting, node, parseListen, report);
    case "admin":
      return readListen(setting, node, parseAdmin, report);
    case "token": {
      const token = text === null ? null : tokenOf(text);
      if (token !== null) return token;
      // What was found is a secret, or was meant to be.
      report(`found ${text === null ? foundText(node) : "something else"}; allowed: ${allowedText(setting)}`);
      return undefined;
    }
    case "rate": {
      if (text === null)
        return fail(node.type === "TOMLValue" && node.kind === "integer" ? " without a unit" : "");
      const rate = parseRate(text);
      if (rate === null) return fail(/^[0-9]+$/.test(text) ? " without a unit" : "");
      return rate > 0 && rate <= RATE_MAX ? rate : fail();
    }
    case "ip":
      return text === null ? fail() : readHost(text, fail);
    case "iface":
      if (text === null) return fail();
      return text === "" ? null : isInterface(text) ? text : fail();
    case "word":
      if (text === null) return fail();
      return /^[A-Za-z0-9_-]+$/.test(text) && text.length <= WORD_CHARACTERS_MAX ? text : fail();
    case "account":
      return text !== null && isAccount(text) ? text : fail();
    case "list":
      return readList(setting, node, report);
  }
}

function readTrust(setting: Setting, node: AST.TOMLContentNode, report: Report): Trust | undefined {
  const fail = (item: AST.TOMLContentNode, known: readonly string[]): undefined => {
    const near = nearest(stringOf(item) ?? "", known);
    const hint = near === null ? "" : ` (did you mean "${near}"?)`;
    report(`found ${foundText(item)}${hint}; allowed: ${allowedText(setting)}`, item.loc.start.line);
    return undefined;
  };
  if (node.type !== "TOMLArray") {
    const text = stringOf(node);
    const known = Object.entries<Trust>(PRESETS).find(([name]) => name === text);
    return known?.[1] ?? fail(node, Object.keys(PRESETS));
  }
  const causes: Cause[] = [];
  for (const element of node.elements) {
    const cause = CAUSES.find((name) => name === stringOf(element) && name !== "unknown");
    if (cause === undefined) return fail(element, CAUSES.slice(1));
    causes.push(cause);
  }
  return trustOnly(causes);
}

/** As the kernel's dev_valid_name. */
function isInterface(name: string): boolean {
  if (new TextEncoder().encode(name).length > IFACE_BYTES_MAX) return false;
  return name !== "." && name !== ".." && !/[/:\s\p{Cc}]/u.test(name);
}

function readList(
  setting: Setting & { kind: "list" },
  node: AST.TOMLContentNode,
  report: Report,
): unknown[] | undefined {
  const allowed = allowedText(setting);
  const text = stringOf(node);
  if (node.type !== "TOMLArray" && (text === null || !setting.bare)) {
    report(`found ${foundText(node)}${text === null ? "" : " without brackets"}; allowed: ${allowed}`);
    return undefined;
  }
  if (text === "") return [];
  const nodes = node.type === "TOMLArray" ? node.elements : [node];
  let sound = true;
  const items: unknown[] = [];
  const writtenIn = new Map<string, number>();
  for (const element of nodes) {
    const line = element.loc.start.line;
    const fail = (message: string): undefined => {
      sound = false;
      report(message, line);
      return undefined;
    };
    const where = stringOf(element) === null ? " in the array" : "";
    const item = ITEM_READERS[setting.of](element, (hint = "") =>
      fail(`found ${foundText(element)}${where}${hint}; allowed: ${allowed}`),
    );
    if (item === undefined) continue;
    items.push(item);
    // Twice the same network to be let in is no harm; twice the same socket is.
    const key = uniqueText(setting.of, item);
    if (key === null) continue;
    const other = writtenIn.get(key);
    const places = other === line ? "" : `, in line ${other} and in line ${line}`;
    if (other !== undefined) fail(`${key} is given twice${places}`);
    writtenIn.set(key, line);
  }
  return sound ? items : undefined;
}

/** By what an item may stand in its array only once. null: as often as one likes. */
function uniqueText(of: string, item: unknown): string | null {
  return of === "ip" || of === "zone" ? (item as string) : null;
}

function readListen<A extends AdminAddress>(
  setting: Setting,
  node: AST.TOMLContentNode,
  parse: (text: string, report: (message: string) => void) => A[] | null,
  report: Report,
): A[] | undefined {
  const nodes = node.type === "TOMLArray" ? node.elements : [node];
  if (nodes.length === 0 || nodes.length > LISTEN_MAX) {
    report(`found ${nodes.length} addresses; allowed: 1 to ${LISTEN_MAX}`);
    return undefined;
  }
  let sound = true;
  const addresses: A[] = [];
  const writtenAs = new Map<string, string>();
  const fail = (message: string): void => {
    sound = false;
    report(message);
  };
  for (const element of nodes) {
    if (element.type !== "TOMLValue" || element.kind !== "string") {
      fail(
        `found ${foundText(element)}${node.type === "TOMLArray" ? " in the array" : ""}; allowed: ${allowedText(setting)}`,
      );
      continue;
    }
    for (const address of parse(element.value, fail) ?? []) {
      const other = writtenAs.get(address.text);
      if (other === undefined) addresses.push(address);
      else
        fail(`${address.text} is given twice, by ${quoted(other)} and by ${quoted(element.value)}`);
      writtenAs.set(address.text, element.value);
    }
  }
  return sound ? addresses : undefined;
}
