/**
 * A real browser on a host of the network inside: Debian's Chromium, driven by playwright-core over a
 * pipe, so that nothing of the driving is on the network. And axe-core, to look for what a keyboard
 * or a screen reader would miss.
 */
import { strict as assert } from "node:assert";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { type Browser, chromium, type Page } from "playwright-core";
import { PATIENCE_MS } from "./actors.ts";
import { type Host, PRIVATE } from "./sandbox.ts";
import type { Stage } from "./scenario.ts";

const CHROMIUM = "/usr/bin/chromium";
/** Without a sandbox of its own, for it is in ours; and it speaks to nobody by itself. */
const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
  "--no-first-run", "--disable-quic", "--disable-dev-shm-usage",
];
/** What was seen is kept here, from run to run. */
const ARTIFACTS = fileURLToPath(new URL("../../../artifacts/", import.meta.url));

export async function browserOn(stage: Stage, host: Host): Promise<Browser> {
  if (!existsSync(CHROMIUM)) stage.skip("chromium is not installed");
  const wrapper = `${PRIVATE}/chromium-${host.name}`;
  writeFileSync(wrapper, `#!/bin/sh\nexec nsenter --net=/run/netns/${host.name} ${CHROMIUM} "$@"\n`, { mode: 0o755 });
  const browser = await chromium.launch({ executablePath: wrapper, args: FLAGS, timeout: 2 * PATIENCE_MS });
  stage.finally(() => browser.close());
  return browser;
}

export interface Look {
  readonly width: number;
  readonly height: number;
  readonly scheme: "light" | "dark";
}

export interface Visit {
  readonly page: Page;
  /** Errors of scripts and of the console, a violated policy among them. */
  readonly errors: string[];
  /** Every URL that was asked for. */
  readonly asked: string[];
}

export async function open(browser: Browser, url: string, { width, height, scheme }: Look): Promise<Visit> {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme: scheme });
  context.setDefaultTimeout(PATIENCE_MS);
  const page = await context.newPage();
  const errors: string[] = [];
  const asked: string[] = [];
  page.on("pageerror", (error) => errors.push(error.message));
  page.on("console", (message) => {
    // That the endpoint is not there, or wants a token, is the page's to say, and Chromium's, too.
    if (message.type() === "error" && !/Failed to load resource|ERR_/.test(message.text())) errors.push(message.text());
  });
  page.on("request", (request) => asked.push(request.url()));
  await page.goto(url);
  return { page, errors, asked };
}

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

interface Violation {
  readonly id: string;
  readonly help: string;
  readonly nodes: readonly { readonly html: string; readonly failureSummary: string }[];
}

/** axe-core finds nothing: all of its rules, best practices among them. */
export async function assertAccessible(page: Page, what: string): Promise<void> {
  // By the debugger's door: the page's policy lets no script in.
  await page.evaluate(AXE);
  const { violations } = await page.evaluate<{ violations: Violation[] }>("axe.run()");
  const words = violations.map(({ id, help, nodes }) => `${id}: ${help}\n${nodes.map((node) => `  ${node.html}\n  ${node.failureSummary}`).join("\n")}`);
  assert.deepEqual(words, [], what);
}

/** The whole page as a picture, kept as an artefact of this run. */
export async function picture(stage: Stage, page: Page, name: string, fullPage = true): Promise<void> {
  try {
    mkdirSync(ARTIFACTS, { recursive: true });
    await page.screenshot({ path: `${ARTIFACTS}${name}.png`, fullPage });
  } catch (error) {
    stage.note(`no picture ${name}: ${(error as Error).message}`);
  }
}
