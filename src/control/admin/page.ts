/**
 * The files of the status page, as the admin endpoint serves them: those of page/, and the judgement
 * that the page shares with `transplice top`. Read once.
 */
import { readFileSync } from "node:fs";

export interface StaticFile {
  readonly type: string;
  readonly bytes: Buffer;
  /** Beside those that every answer has, or in their place. */
  readonly headers?: Readonly<Record<string, string>>;
}

/** From dist/src/control/, in the repository and in the installed package. */
const PAGE = new URL("../../../../page/", import.meta.url);

/** By URL path. */
export function pageFiles(): ReadonlyMap<string, StaticFile> {
  const file = (name: string | URL, type: string): StaticFile => ({ type, bytes: readFileSync(name) });
  const script = "text/javascript; charset=utf-8";
  return new Map([
    ["/", file(new URL("page.html", PAGE), "text/html; charset=utf-8")],
    ["/page.css", file(new URL("page.css", PAGE), "text/css; charset=utf-8")],
    ["/page.js", file(new URL("page.js", PAGE), script)],
    ["/verdict.js", file(new URL("verdict.js", import.meta.url), script)],
  ]);
}
