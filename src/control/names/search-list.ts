/**
 * The search list of resolv.conf(5): what a name without a dot may stand for. Names with a dot are
 * taken as they are: a mistyped name of the world is nobody's name at home.
 */
import { readFileSync, statSync } from "node:fs";

const FILE = "/etc/resolv.conf";
/** As glibc had it for long; more is asked for by nobody. */
const DOMAINS_MAX = 6;

export class SearchList {
  readonly #file: string;
  #version = "";
  #domains: readonly string[] = [];

  constructor(file = FILE) {
    this.#file = file;
  }

  /** In the order in which they are to be resolved. */
  names(name: string): string[] {
    if (name.includes(".")) return [name];
    this.#look();
    return [...this.#domains.map((domain) => `${name}.${domain}`), name];
  }

  /** The file may be another since last time, or not be there at all. */
  #look(): void {
    try {
      const { mtimeMs, size, ino } = statSync(this.#file);
      const version = `${mtimeMs} ${size} ${ino}`;
      if (version === this.#version) return;
      this.#version = version;
      this.#domains = domainsOf(readFileSync(this.#file, "utf8"));
    } catch {
      this.#domains = [];
      this.#version = "";
    }
  }
}

/** Of `search` and `domain` the last line counts. */
function domainsOf(text: string): string[] {
  const lines = [...text.matchAll(/^[ \t]*(?:search|domain)[ \t]+(.*)$/gm)];
  return (lines.at(-1)?.[1] ?? "")
    .split(/\s+/)
    .map((domain) => domain.toLowerCase().replace(/\.$/, ""))
    .filter((domain) => /^[a-z0-9_-]+(?:\.[a-z0-9_-]+)*$/.test(domain))
    .slice(0, DOMAINS_MAX);
}
