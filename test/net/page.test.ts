/**
 * The status page in a real browser, of a real process with real traffic: on a desk and on a phone, by
 * day and by night, with a keyboard alone; while an upstream dies and returns, and while the process
 * itself does. What was seen is kept in artifacts/.
 */
import { strict as assert } from "node:assert";
import type { Page } from "playwright-core";
import { eventually, PATIENCE_MS, text } from "./actors.ts";
import { assertAccessible, browserOn, type Look, open, picture } from "./browser.ts";
import { RELAY, SERVER } from "./network.ts";
import type { Relay, Settings } from "./relay.ts";
import { scenario, type Stage } from "./scenario.ts";
import { Upstream } from "./upstream.ts";
import { webServer } from "./web.ts";

const MARK = 0x1081;
const ADMIN = "127.0.0.1:9181";
const URL_OF_PAGE = `http://${ADMIN}/`;
const DESK: Look = { width: 1280, height: 960, scheme: "light" };
const NIGHT: Look = { ...DESK, scheme: "dark" };
const PHONE: Look = { width: 360, height: 780, scheme: "light" };
const PHONE_NIGHT: Look = { ...PHONE, scheme: "dark" };

async function served(stage: Stage, more: Settings = {}): Promise<{ relay: Relay; upstream: Upstream }> {
  const server = webServer(stage.net.internet, SERVER[4], 80);
  stage.finally(() => {
    server.closeAllConnections();
    server.close();
  });
  const upstream = stage.upstream({ protocol: "socks5", dials: true });
  const relay = await stage.relay({ listen: "127.0.0.1:1081", proxy_url: upstream.url(), mark: MARK, workers: 2, timeouts: { dial: "2s" }, admin: { listen: ADMIN }, ...more });
  stage.intercept({ mode: "redirect", from: "local", port: 1081, exceptMark: MARK });
  return { relay, upstream };
}

/** Connections that stay, and downloads one after the other. */
function load(stage: Stage): void {
  const url = `http://${text(SERVER[4], 80)}`;
  for (let i = 0; i < 6; i++) stage.spawn(stage.net.relay, "curl", "-s", "-o", "/dev/null", "--noproxy", "*", "--limit-rate", `${300 + i * 100}k`, `${url}/bytes/500000000`);
  stage.spawn(stage.net.relay, "sh", "-c", `while :; do for bytes in 20000 20000 3000000; do curl -s -o /dev/null --noproxy '*' -m 5 ${url}/bytes/$bytes; sleep 0.1; done; done`);
}

/** The downloads' line in the chart: another with each snapshot. */
const lineOf = async (page: Page): Promise<string> => (await page.locator("#traffic path.down").getAttribute("d"))!;

const wordsOf = (page: Page, selector: string): Promise<string> => page.locator(selector).innerText();

async function says(page: Page, selector: string, wanted: RegExp, withinMs = PATIENCE_MS): Promise<void> {
  let words = "";
  await eventually(`${selector} says ${wanted}`, async () => {
    words = await wordsOf(page, selector);
    return wanted.test(words);
  }, withinMs).catch(async (error: Error) => assert.fail(`${error.message}; it says: ${words}; and: ${await wordsOf(page, "#verdict")}`));
}

const overflow = (page: Page): Promise<number> => page.evaluate<number>("document.documentElement.scrollWidth - document.documentElement.clientWidth");

scenario("the page, under load: on a desk and a phone, by day and by night", async (stage) => {
  await served(stage);
  load(stage);
  const browser = await browserOn(stage, stage.net.relay);
  for (const [name, look] of [["desk", DESK], ["desk-dark", NIGHT], ["phone", PHONE], ["phone-dark", PHONE_NIGHT]] as const) {
    const { page, errors, asked } = await open(browser, URL_OF_PAGE, look);
    await says(page, "#link", /^live$/);
    await says(page, "#verdict-head", /^All is well$/);
    await says(page, "#tile-down", /^[1-9]\S* [kM]B\/s$/);
    await says(page, "#tile-active", /^[6-9]$/);
    await says(page, "#destinations tbody", new RegExp(text(SERVER[4], 80).replaceAll(".", "\\.")));
    await says(page, "#upstreams tbody", /192\.0\.2\.2:1080[\s\S]*good/);
    await says(page, "#endings tbody", /finished/);
    assert.ok(await overflow(page) <= 0, `${name}: nothing is wider than the screen`);
    assert.equal(await page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches"), look.scheme === "dark");
    assert.ok((await lineOf(page)).length > 20, "traffic is drawn");
    await assertAccessible(page, name);
    await picture(stage, page, `page-${name}`);
    assert.deepEqual(errors, []);
    assert.deepEqual(asked.filter((url) => !url.startsWith(URL_OF_PAGE) && !url.startsWith("data:")), [], "nobody else is asked");
    await page.context().close();
  }
});

scenario("the page: an upstream dies, and returns", async (stage) => {
  const { upstream } = await served(stage);
  load(stage);
  const browser = await browserOn(stage, stage.net.relay);
  const { page, errors } = await open(browser, URL_OF_PAGE, NIGHT);
  await says(page, "#verdict-head", /^All is well$/);
  upstream.close();
  for (const peer of upstream.peers) peer.reset();
  await says(page, "#upstreams tbody", /failing/);
  await says(page, "#verdict-list", /Broken: .*192\.0\.2\.2:1080/);
  await says(page, "#endings tbody", /dial-failed/);
  assert.equal(await page.locator("#verdict").getAttribute("data-level"), "broken");
  assert.match(await page.title(), /^✕ /, "the tab says it, too");
  await assertAccessible(page, "while the upstream is dead");
  await picture(stage, page, "page-upstream-dead");
  const again = new Upstream(stage.net.proxy, upstream.listener.address, upstream.listener.port, { protocol: "socks5", dials: true });
  stage.finally(() => again.close());
  // Failures are of the last minute, and so the verdict is.
  await says(page, "#verdict-head", /^All is well$/, 60_000 + PATIENCE_MS);
  await says(page, "#upstreams tbody", /good/);
  assert.deepEqual(errors, []);
});

scenario("the page says when its figures are old, and comes back by itself", async (stage) => {
  const { relay } = await served(stage);
  const browser = await browserOn(stage, stage.net.relay);
  const { page } = await open(browser, URL_OF_PAGE, PHONE);
  await says(page, "#link", /^live$/);
  relay.process.signal("SIGSTOP");
  await says(page, "#link", /^not live: .* old$/);
  assert.equal(await page.locator("body").getAttribute("data-stale"), "");
  assert.match(await page.title(), /^\? /);
  await assertAccessible(page, "while it is stale");
  await picture(stage, page, "page-stale");
  relay.process.signal("SIGCONT");
  await says(page, "#link", /^live$/);
  const before = await wordsOf(page, "#about");
  await relay.stop();
  await says(page, "#link", /^not live: the process has stopped/);
  await stage.relay({ listen: "127.0.0.1:1081", proxy_url: "socks5://192.0.2.2:1080", mark: MARK, admin: { listen: ADMIN } });
  await says(page, "#link", /^live$/);
  assert.notEqual(await wordsOf(page, "#about"), before, "another process");
});

scenario("the page, with a keyboard alone", async (stage) => {
  await served(stage);
  load(stage);
  const browser = await browserOn(stage, stage.net.relay);
  const { page } = await open(browser, URL_OF_PAGE, DESK);
  await says(page, "#link", /^live$/);
  await eventually("there is some history", async () => (await lineOf(page)).split("L").length > 4);
  const focused = (): Promise<string> => page.evaluate<string>("document.activeElement.id");
  const isSeen = (): Promise<boolean> => page.evaluate<boolean>("getComputedStyle(document.activeElement).outlineStyle !== 'none' && parseFloat(getComputedStyle(document.activeElement).outlineWidth) >= 2");
  const order: string[] = [];
  for (let i = 0; i < 4; i++) {
    await page.keyboard.press("Tab");
    order.push(await focused());
    assert.ok(await isSeen(), `the focus on ${order.at(-1)} is seen`);
  }
  assert.deepEqual(order, ["pause", "traffic", "connections", "arrivals"]);
  await page.keyboard.press("Shift+Tab");
  await page.keyboard.press("Shift+Tab");
  const spoken = (): Promise<string | null> => page.locator("#traffic").getAttribute("aria-valuetext");
  await page.keyboard.press("ArrowLeft");
  assert.match((await spoken())!, /^1\.0 s ago: down .*B\/s, up .*B\/s$/);
  await page.keyboard.press("ArrowLeft");
  assert.match((await spoken())!, /^2\.0 s ago: /);
  const heard = await spoken();
  const drawn = await lineOf(page);
  await eventually("a second goes by", async () => (await lineOf(page)) !== drawn);
  assert.equal(await spoken(), heard, "nobody is told what he has not asked for");
  assert.equal(await wordsOf(page, "#traffic + .legend .at"), "2.0 s ago", "the place looked at stays");
  await picture(stage, page, "page-keyboard", false);
  await page.keyboard.press("End");
  assert.match((await spoken())!, /^now: /);
  await page.keyboard.press("Escape");
  await page.keyboard.press("Shift+Tab");
  assert.equal(await focused(), "pause");
  await page.keyboard.press("Space");
  await says(page, "#link", /^paused$/);
  assert.equal(await page.locator("#pause").getAttribute("aria-pressed"), "true");
  const about = await wordsOf(page, "#about");
  const frozen = await lineOf(page);
  const clock = (): number => (JSON.parse(stage.net.relay.run("curl", ["-s", `${URL_OF_PAGE}status`])) as { now: number }).now;
  const pausedAt = clock();
  await eventually("snapshots have come meanwhile", () => clock() > pausedAt + 3);
  await page.keyboard.press("Tab");
  await page.keyboard.press("ArrowLeft");
  assert.equal(await wordsOf(page, "#about"), about);
  assert.equal(await lineOf(page), frozen, "a chart that is walked along is the one of then, too");
  await page.keyboard.press("Shift+Tab");
  await page.keyboard.press("Enter");
  await says(page, "#link", /^live$/);
  await eventually("it goes on", async () => (await lineOf(page)) !== frozen);
});

scenario("the page shows what clients say as text, whatever it is", async (stage) => {
  await served(stage);
  load(stage);
  const browser = await browserOn(stage, stage.net.relay);
  const hostile = ["<img src=x onerror=\"document.title='caught'\">", "</td><script>document.title='caught'</script>", "evil\u202egnp.exe", "a".repeat(253), "javascript:alert(1)"];
  const context = await browser.newContext({ viewport: { width: 360, height: 780 } });
  const page = await context.newPage();
  await page.route("**/status", async (route) => {
    const status = JSON.parse(stage.net.relay.run("curl", ["-s", `${URL_OF_PAGE}status`])) as { [key: string]: unknown };
    const names = hostile.map((name, i) => ({ destination: `${name}:${i}`, name, tunnels: 1, bytes_up: 0, bytes_down: 0, bytes_per_second: 1 }));
    const slowest = hostile.map((name, i) => ({ id: `${i}`, client: name, destination: name, name: null, upstream: null, state: "relay", at: 0, dial_seconds: null, handshake_seconds: null, first_byte_seconds: null, waited_seconds: 1 }));
    await route.fulfill({ json: { ...status, hostname: hostile[0], problems: hostile, destinations: names, slowest } });
  });
  await page.route("**/events", (route) => route.abort());
  await page.goto(URL_OF_PAGE);
  await says(page, "#destinations tbody", /onerror/);
  await says(page, "#verdict-list", /<script>/);
  await says(page, "#destinations tbody", /evil\\u202egnp\.exe/);
  assert.equal(await page.locator("main img, main script, main a").count(), 0);
  assert.doesNotMatch(await page.title(), /^caught$/);
  assert.ok(await overflow(page) <= 0, "a long name is broken, not the page");
  await assertAccessible(page, "with hostile names");
  await picture(stage, page, "page-hostile");
});

scenario("the page asks for the token where it takes one, and keeps it in its tab", async (stage) => {
  const admin = text(RELAY[4], 9181);
  await served(stage, { admin: { listen: admin, token: "correct-horse-battery-staple" } });
  const browser = await browserOn(stage, stage.net.lan);
  const { page } = await open(browser, `http://${admin}/`, PHONE);
  // The heading stands in the page before it is shown.
  await says(page, "#login-why", /has the token/);
  assert.equal(await page.evaluate("document.activeElement.id"), "token");
  await assertAccessible(page, "the form");
  await picture(stage, page, "page-token");
  await page.keyboard.type("wrong");
  await page.keyboard.press("Enter");
  await says(page, "#login-why", /not the token/);
  await page.keyboard.type("correct-horse-battery-staple");
  await page.keyboard.press("Enter");
  await says(page, "#link", /^live$/);
  await page.reload();
  await says(page, "#link", /^live$/);
  assert.doesNotMatch(page.url(), /horse/);
});
