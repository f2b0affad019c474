/**
 * The status page: reads the admin endpoint's snapshots as they come, and draws them. What clients
 * have said (names, addresses) is set as text only, never as markup.
 */
import { bytesText, countText, perSecondText, plainText, rateText, secondsText, verdicts } from "/verdict.js";

const HISTORY_SECONDS = 300;
/** A snapshot comes each second. */
const STALE_MS = 3500;
const SILENT_MS = 10_000;
const AGAIN_MS = [500, 1000, 2000, 5000];
const TOKEN = "transplice-token";

const $ = (id) => document.getElementById(id);

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

/** Screen readers and selections are not disturbed by what has not changed. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function mark(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

// ---------------------------------------------------------------------------------------------
// What is known.

let snapshot = null;
/** The snapshot's clock, and ours when it came. */
let arrivedMs = 0;
let paused = false;
/** "live", or why not. */
let trouble = "connecting";
/** It has said so. */
let stopping = false;

const SERIES = ["bytes_down_per_second", "bytes_up_per_second", "active", "accepted_per_second", "failed_per_second"];
let history = emptyHistory();

function emptyHistory() {
  return { pid: 0, until: 0, ...Object.fromEntries(SERIES.map((name) => [name, []])) };
}

function seed(status) {
  history = emptyHistory();
  history.pid = status.pid;
  history.until = Math.floor(status.now);
  for (const name of SERIES) history[name] = [...(status.history?.[name] ?? [])];
}

function push(status) {
  if (status.pid !== history.pid) seed({ ...status, history: undefined });
  const now = Math.floor(status.now);
  // What was missed is a gap.
  const missed = Math.min(HISTORY_SECONDS, Math.max(0, now - history.until - 2));
  const values = [status.rates.bytes_down_per_second, status.rates.bytes_up_per_second, status.tunnels.active, status.rates.accepted_per_second, status.rates.failed_per_second];
  const gap = new Array(missed).fill(null);
  const longer = SERIES.map((name, i) => [name, [...history[name], ...gap, values[i]].slice(-HISTORY_SECONDS)]);
  // A new one: what is drawn while paused is the old one.
  history = { ...history, until: now, ...Object.fromEntries(longer) };
}

// ---------------------------------------------------------------------------------------------
// The connection.

const token = () => {
  try {
    return sessionStorage.getItem(TOKEN);
  } catch {
    return null;
  }
};

const headers = () => (token() === null ? {} : { authorization: `Bearer ${token()}` });

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function follow() {
  for (let failures = 0; ; failures++) {
    try {
      const answer = await fetch("/status", { headers: headers(), signal: AbortSignal.timeout(SILENT_MS), cache: "no-store" });
      if (answer.status === 401 || answer.status === 403) {
        await login(answer.status === 401 ? "Here it shows its figures to whoever has the token." : await wordsOf(answer));
        failures = -1;
        continue;
      }
      if (!answer.ok) throw new Error(await wordsOf(answer));
      const status = await answer.json();
      seed(status);
      take(status);
      failures = 0;
      await stream();
      trouble = "the stream has ended";
    } catch (error) {
      trouble = wordsOfError(error);
    }
    // It may have had no time to say so, but that it was about to.
    if (stopping || snapshot?.state === "draining") trouble = "the process has stopped";
    draw();
    await sleep(AGAIN_MS[Math.min(failures, AGAIN_MS.length - 1)]);
  }
}

const wordsOfError = (error) =>
  error instanceof TypeError || error.name === "TimeoutError" || error.name === "AbortError" ? "no answer from the process" : error.message;

async function wordsOf(answer) {
  try {
    return (await answer.json()).error;
  } catch {
    return `the endpoint answers ${answer.status}`;
  }
}

/** Over when the stream is; or when nothing has come for a while. */
async function stream() {
  const silence = new AbortController();
  let timer = setTimeout(() => silence.abort(), SILENT_MS);
  try {
    const answer = await fetch("/events", { headers: { ...headers(), accept: "text/event-stream" }, signal: silence.signal, cache: "no-store" });
    if (!answer.ok) throw new Error(await wordsOf(answer));
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), SILENT_MS);
      const events = (text + value).split("\n\n");
      text = events.pop();
      for (const event of events) hear(event);
    }
  } finally {
    clearTimeout(timer);
  }
}

function hear(event) {
  const fields = event.split("\n");
  const of = (name) => fields.filter((line) => line.startsWith(`${name}:`)).map((line) => line.slice(name.length + 1).trimStart()).join("\n");
  if (of("event") === "status") {
    const status = JSON.parse(of("data"));
    push(status);
    take(status);
  } else if (of("event") === "bye") {
    stopping = true;
    trouble = "the process stops";
    draw();
  }
}

function take(status) {
  snapshot = status;
  arrivedMs = performance.now();
  trouble = "live";
  stopping = false;
  $("login").hidden = true;
  $("board").hidden = false;
  draw();
}

/** Resolves when a token has been given. */
function login(why) {
  const form = $("login");
  say($("login-why"), token() === null ? why : "That is not the token.");
  $("board").hidden = true;
  form.hidden = false;
  trouble = "a token is needed";
  drawLink();
  $("token").focus();
  return new Promise((resolve) => {
    form.onsubmit = (event) => {
      event.preventDefault();
      try {
        sessionStorage.setItem(TOKEN, $("token").value);
      } catch {
        // A browser that keeps nothing asks again.
      }
      $("token").value = "";
      resolve();
    };
  });
}

// ---------------------------------------------------------------------------------------------
// Drawing.

/** What is shown: while paused, what was there then. */
let shown = null;
let shownHistory = history;

function draw() {
  drawLink();
  if (snapshot === null || paused) return;
  shown = snapshot;
  shownHistory = history;
  drawVerdict(shown);
  drawTiles(shown);
  for (const chart of charts) chart.draw();
  for (const table of tables) table.draw(shown);
  const { version, node, pid, uptime_seconds: uptime, listen, fds } = shown;
  say($("host"), plainText(shown.hostname));
  say($("about"), `transplice ${version} on Node ${node}, process ${pid}, up ${secondsText(uptime)}; listens on ${listen.map(({ address }) => address).join(", ") || "nothing"}; ${countText(fds.open)} of ${countText(fds.limit)} file descriptors open`);
}

function drawLink() {
  const age = performance.now() - arrivedMs;
  const stale = snapshot !== null && age > STALE_MS;
  const ago = secondsText(Math.round(age / 1000));
  let state = "waiting";
  let words = trouble;
  if (paused) {
    state = "paused";
    words = "paused";
  } else if (stale) {
    state = "stale";
    words = `not live: ${trouble === "live" ? "nothing has come" : trouble}; these figures are ${ago} old`;
  } else if (trouble === "live") {
    state = "live";
    words = "live";
  }
  const link = $("link");
  mark(link, "data-state", state);
  // A screen reader is told of the change, and not of every second.
  if (state === "stale") {
    if (link.firstChild?.nodeName !== "SPAN" || link.firstChild.dataset.words !== trouble) {
      const spoken = make("span", "", words);
      spoken.dataset.words = trouble;
      mark(spoken, "aria-live", "off");
      link.replaceChildren(spoken);
    } else say(link.firstChild, words);
  } else say(link, words);
  mark(document.body, "data-stale", stale && !paused ? "" : null);
  drawTitle(stale);
}

const ICONS = { good: "#2f9e44", risk: "#e8890c", broken: "#e03131", stale: "#868e96" };

function drawTitle(stale) {
  const level = stale ? "stale" : levelOf(snapshot === null ? [] : verdicts(snapshot));
  const mood = { good: "", note: "", risk: "▲ ", broken: "✕ ", stale: "? " }[level];
  const title = `${mood}${snapshot === null ? "" : `${plainText(snapshot.hostname)} · `}transplice`;
  if (document.title !== title) document.title = title;
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="8" cy="8" r="7" fill="${ICONS[level] ?? ICONS.good}"/></svg>`;
  mark($("icon"), "href", `data:image/svg+xml,${encodeURIComponent(svg)}`);
}

const levelOf = (found) => found[0]?.level ?? "good";

let verdictWords = null;

function drawVerdict(status) {
  const found = verdicts(status);
  // The live region speaks when there is something new to say, not when a number has moved.
  const words = found.map(({ level, text }) => `${level} ${text}`).join("\n");
  if (words === verdictWords) return;
  const kinds = found.map(({ level, text }) => `${level} ${text.replace(/[0-9]+/g, "#")}`).join("\n");
  const spoken = verdictWords?.replace(/[0-9]+/g, "#") !== kinds;
  verdictWords = words;
  const section = $("verdict");
  mark(section, "aria-live", spoken ? "polite" : "off");
  const level = levelOf(found);
  mark(section, "data-level", level);
  const count = found.filter((each) => each.level !== "note").length;
  const broken = found.filter((each) => each.level === "broken").length;
  const things = (some) => (some === 1 ? "One thing" : `${some} things`);
  say($("verdict-head"), count === 0 ? "All is well" : broken > 0 ? `${things(broken)} ${broken === 1 ? "is" : "are"} broken` : `${things(count)} to look at`);
  const items = found.map((each) => {
    const item = make("li");
    const name = { broken: "Broken: ", risk: "Risk: ", note: "Note: " }[each.level];
    const strong = make("b", "", name);
    strong.dataset.level = each.level;
    item.append(strong, plainText(each.text));
    return item;
  });
  if (count > 0) {
    const hint = make("li", "hint", "What to do: run ");
    hint.append(make("code", "", "transplice doctor"), " on that host.");
    items.push(hint);
  }
  $("verdict-list").replaceChildren(...items);
}

function drawTiles(status) {
  const { rates, totals, tunnels, endings, latency } = status;
  // What a destination refuses is its own business, and an ordinary day's.
  const ofLastMinute = (wanted) => endings.filter(({ result }) => wanted.includes(result)).reduce((sum, each) => sum + each.last_minute, 0);
  const failed = ofLastMinute(["upstream", "internal"]);
  const refused = ofLastMinute(["destination"]);
  say($("tile-down"), rateText(rates.bytes_down_per_second));
  say($("tile-down-sub"), `${bytesText(totals.bytes_down)} in all`);
  say($("tile-up"), rateText(rates.bytes_up_per_second));
  say($("tile-up-sub"), `${bytesText(totals.bytes_up)} in all`);
  say($("tile-active"), countText(tunnels.active));
  const { front = 0, dial = 0, upstream = 0 } = tunnels.states;
  const begin = front + dial + upstream;
  say($("tile-active-sub"), `of ${countText(tunnels.max)}${begin > 0 ? `; ${countText(begin)} starting` : ""}`);
  say($("tile-new"), perSecondText(rates.accepted_per_second));
  say($("tile-new-sub"), `${countText(totals.accepted)} in all${rates.refused_per_second > 0 ? `; ${perSecondText(rates.refused_per_second)} refused` : ""}`);
  say($("tile-failed"), countText(failed));
  mark($("tile-failed"), "data-bad", failed > 0 ? "" : null);
  say($("tile-failed-sub"), `and ${countText(refused)} at their destinations`);
  say($("tile-first"), secondsText(latency.first_byte.p50_seconds));
  say($("tile-first-sub"), `half of them; 99 % in ${secondsText(latency.first_byte.p99_seconds)}`);
}

// ---------------------------------------------------------------------------------------------
// Charts: the last five minutes, oldest left. A keyboard walks along them.

const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes = {}, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** A round number, so that the largest value fits. */
function ceiling(most) {
  if (most <= 1) return 1;
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= most) * power;
}

/** For the words below the lines. */
const FOOT_PIXELS = 18;
/** Of a mirrored chart, the upper side's part. */
const ABOVE = 0.68;

class Chart {
  #place;
  #lines;
  #text;
  #mirrored;
  #svg = svg("svg", { "aria-hidden": "true", focusable: "false" });
  #legend = make("ul", "legend");
  #values;
  /** The place looked at, in seconds before now; null: none. It stays where it is, and what it shows moves on. */
  #ago = null;
  #agoText = make("li", "at");

  /** lines: {name, label, kind, below?}. */
  constructor(place, label, lines, text) {
    this.#place = place;
    this.#lines = lines;
    this.#text = text;
    this.#mirrored = lines.some(({ below }) => below);
    mark(place, "role", "slider");
    mark(place, "tabindex", "0");
    mark(place, "aria-label", label);
    mark(place, "aria-orientation", "horizontal");
    place.append(this.#svg);
    this.#values = lines.map(({ label: name, kind }) => {
      const item = make("li");
      const value = make("span");
      item.append(make("span", `key ${kind}`), `${name} `, value);
      this.#legend.append(item);
      return value;
    });
    this.#legend.append(this.#agoText);
    place.after(this.#legend);
    place.addEventListener("keydown", (event) => this.#onKey(event));
    place.addEventListener("pointermove", (event) => this.#onPointer(event));
    place.addEventListener("pointerleave", () => this.#look(null));
    place.addEventListener("blur", () => this.#look(null));
    place.addEventListener("focus", () => this.#look(this.#ago));
    new ResizeObserver(() => this.draw()).observe(place);
  }

  #length() {
    return shownHistory[this.#lines[0].name].length;
  }

  #onKey(event) {
    const steps = { ArrowLeft: 1, ArrowRight: -1, ArrowDown: 1, ArrowUp: -1, PageDown: 30, PageUp: -30, Home: HISTORY_SECONDS, End: -HISTORY_SECONDS };
    if (event.key === "Escape") return this.#look(null);
    const step = steps[event.key];
    if (step === undefined) return;
    event.preventDefault();
    this.#look(Math.max(0, Math.min(this.#length() - 1, (this.#ago ?? 0) + step)));
  }

  #onPointer(event) {
    const box = this.#place.getBoundingClientRect();
    const ago = Math.max(0, Math.round((1 - (event.clientX - box.left) / box.width) * (HISTORY_SECONDS - 1)));
    this.#look(ago < this.#length() ? ago : null);
  }

  /** Spoken when a reader comes and moves; else it would be spoken each second. */
  #look(ago) {
    this.#ago = ago;
    this.#place.removeAttribute("aria-valuetext");
    this.draw();
  }

  draw() {
    const { width, height } = this.#place.getBoundingClientRect();
    if (width === 0) return;
    const length = this.#length();
    const all = (below) => this.#lines.filter((line) => Boolean(line.below) === below).flatMap(({ name }) => shownHistory[name]);
    const peak = (values) => values.reduce((most, value) => Math.max(most, value ?? 0), 0);
    const most = ceiling(peak(all(false)));
    const mostBelow = this.#mirrored ? ceiling(peak(all(true))) : 0;
    // Each side has its own scale: uploads are a hundredth of downloads, and have a shape all the same.
    const foot = height - FOOT_PIXELS;
    const base = this.#mirrored ? Math.round(foot * ABOVE) : foot;
    const x = (i) => ((HISTORY_SECONDS - length + i) / (HISTORY_SECONDS - 1)) * width;
    const y = (value, isBelow) => (isBelow ? base + (value / mostBelow) * (foot - base) : base - (value / most) * (base - 2));
    const parts = [];
    for (const [value, side] of [[most / 2, false], [most, false], ...(this.#mirrored ? [[mostBelow, true]] : [])]) {
      const at = Math.round(y(value, side)) + 0.5;
      parts.push(svg("line", { class: "grid", x1: 0, x2: width, y1: at, y2: at }));
    }
    for (const { name, kind, below: isBelow = false, area } of this.#lines) {
      const runs = runsOf(shownHistory[name], (value, i) => `${x(i).toFixed(1)},${y(value, isBelow).toFixed(1)}`);
      if (area) parts.push(svg("path", { class: `${kind}-area`, d: runs.map(({ points, first, last }) => `M${x(first).toFixed(1)},${base}L${points.join("L")}L${x(last).toFixed(1)},${base}Z`).join("") }));
      parts.push(svg("path", { class: kind, d: runs.map(({ points }) => `M${points.join("L")}`).join("") }));
    }
    parts.push(svg("line", { class: "base", x1: 0, x2: width, y1: base + 0.5, y2: base + 0.5 }));
    parts.push(svg("text", { x: 2, y: y(most, false) + 13 }, this.#text(most)));
    if (this.#mirrored) parts.push(svg("text", { x: 2, y: y(mostBelow, true) - 4 }, this.#text(mostBelow)));
    parts.push(svg("text", { x: 2, y: height - 3 }, "5 min ago"), svg("text", { x: width - 2, y: height - 3, "text-anchor": "end" }, "now"));
    if (this.#ago !== null) {
      const at = x(length - 1 - this.#ago);
      parts.push(svg("line", { class: "hair", x1: at, x2: at, y1: 0, y2: foot }));
    }
    mark(this.#svg, "viewBox", `0 0 ${width} ${height}`);
    this.#svg.replaceChildren(...parts);
    this.#tell(length);
  }

  #tell(length) {
    const ago = this.#ago ?? 0;
    const values = this.#lines.map(({ name, label }, i) => {
      const value = shownHistory[name][length - 1 - ago];
      const text = value === null || value === undefined ? "not known" : this.#text(value);
      say(this.#values[i], text);
      return `${label} ${text}`;
    });
    const when = ago === 0 ? "now" : `${secondsText(ago)} ago`;
    say(this.#agoText, this.#ago === null ? "" : when);
    mark(this.#place, "aria-valuemin", `${-HISTORY_SECONDS}`);
    mark(this.#place, "aria-valuemax", "0");
    if (this.#place.hasAttribute("aria-valuetext")) return;
    mark(this.#place, "aria-valuenow", `${-ago}`);
    mark(this.#place, "aria-valuetext", `${when}: ${values.join(", ")}`);
  }
}

/** The parts of a series without gaps. */
function runsOf(values, pointOf) {
  const runs = [];
  let run = null;
  values.forEach((value, i) => {
    if (value === null) {
      run = null;
      return;
    }
    if (run === null) {
      run = { points: [], first: i, last: i };
      runs.push(run);
    }
    run.points.push(pointOf(value, i));
    run.last = i;
  });
  return runs;
}

// ---------------------------------------------------------------------------------------------
// Tables.

/** A cell: its text, what stands below it in small, a badge's level, a bar's length and colour. */
const cell = (text, more = {}) => ({ text, ...more });
const number = (text) => cell(text, { number: true });

class Table {
  #section;
  #body = document.createElement("tbody");
  #columns;
  #rowsOf;
  #none;
  #optional;
  #rows = new Map();

  /** columns: {head, of, number?, spare?}; spare ones are left out on a phone. */
  constructor(section, caption, rowsOf, columns, { none = "none yet", optional = false } = {}) {
    this.#section = section;
    this.#columns = columns;
    this.#rowsOf = rowsOf;
    this.#none = none;
    this.#optional = optional;
    const table = make("table");
    const head = document.createElement("tr");
    for (const column of columns) {
      const th = make("th", this.#classOf(column), column.head);
      th.scope = "col";
      head.append(th);
    }
    const thead = document.createElement("thead");
    thead.append(head);
    table.append(make("caption", "", caption), thead, this.#body);
    section.append(table);
  }

  #classOf({ number: isNumber, spare }) {
    return [isNumber ? "number" : "", spare ? "spare" : ""].join(" ").trim();
  }

  draw(status) {
    const items = this.#rowsOf(status);
    this.#section.hidden = this.#optional && items.length === 0;
    const old = this.#rows;
    this.#rows = new Map();
    const rows = items.map(({ key, item }) => {
      const row = old.get(key) ?? this.#make();
      this.#rows.set(key, row);
      this.#columns.forEach(({ of }, i) => this.#fill(row.cells[i], of(item)));
      return row;
    });
    if (rows.length === 0) rows.push(this.#empty());
    // Moved only if the order has changed: a selection in a row lives on.
    if (rows.length !== this.#body.rows.length || rows.some((row, i) => row !== this.#body.rows[i])) this.#body.replaceChildren(...rows);
  }

  #make() {
    const row = document.createElement("tr");
    this.#columns.forEach((column, i) => {
      const element = make(i === 0 ? "th" : "td", this.#classOf(column));
      if (i === 0) element.scope = "row";
      element.append(make("span"));
      row.append(element);
    });
    return row;
  }

  #empty() {
    const existing = this.#body.rows[0];
    if (existing?.dataset.none !== undefined) return existing;
    const row = document.createElement("tr");
    row.dataset.none = "";
    const only = make("td", "none", this.#none);
    only.colSpan = this.#columns.length;
    row.append(only);
    return row;
  }

  #fill(element, { text, small = "", badge = null, bar = null, isolate = false }) {
    const [span] = element.children;
    say(span, text);
    mark(span, "class", badge === null ? (isolate ? "name" : null) : "badge");
    mark(span, "data-level", badge);
    if (isolate) mark(span, "dir", "auto");
    let below = element.querySelector("small");
    if (small !== "" && below === null) {
      below = make("small");
      element.append(below);
    }
    if (below !== null) say(below, small);
    let line = element.querySelector(".bar");
    if (bar !== null && line === null) {
      line = make("span", "bar");
      mark(line, "aria-hidden", "true");
      element.append(line);
    }
    if (line !== null && bar !== null) {
      line.style.width = `${Math.round(bar.share * 100)}%`;
      mark(line, "data-result", bar.result);
    }
  }
}

const HEALTH = { ok: ["good", "good"], failing: ["bad", "failing"], unknown: ["idle", "not used yet"], drained: ["risk", "drained"], listed: ["bad", "on a blocklist"], absent: ["bad", "not on this host"], gone: ["idle", "not in the file any more"] };
const healthCell = (health) => {
  const [badge, text] = HEALTH[health] ?? ["idle", health];
  return cell(text, { badge });
};

/** A name where it is known, with the address below. */
function placeCell(address, name, more = "") {
  const named = name !== null && name !== undefined;
  const small = [named ? address : null, more].filter(Boolean).map(plainText).join(" ");
  return cell(plainText(named ? name : (address ?? "not known yet")), { small, isolate: true });
}

const keyed = (items, keyOf) => items.map((item) => ({ key: keyOf(item), item }));

const RESULTS = { ok: "nobody", client: "client", destination: "destination", upstream: "upstream", internal: "transplice", refused: "limit" };
const STATES = { front: "asking", dial: "dialling", upstream: "handshake", relay: "relaying", reset: "resetting", refused: "refusing" };
const LATENCIES = [["dial", "Dial", "to the upstream or the destination"], ["handshake", "Handshake", "with the upstream"], ["first_byte", "First byte", "from accept to the destination's first byte"], ["duration", "Whole connection", "that ended"]];

let charts = [];
let tables = [];

function build() {
  charts = [
    new Chart($("traffic"), "Traffic of the last five minutes", [
      { name: "bytes_down_per_second", label: "down", kind: "down", area: true },
      { name: "bytes_up_per_second", label: "up", kind: "up", area: true, below: true },
    ], rateText),
    new Chart($("connections"), "Open connections in the last five minutes", [{ name: "active", label: "open", kind: "down", area: true }], countText),
    new Chart($("arrivals"), "New and failed connections in the last five minutes", [
      { name: "accepted_per_second", label: "new", kind: "down", area: true },
      { name: "failed_per_second", label: "failed", kind: "bad" },
    ], perSecondText),
  ];
  tables = [
    new Table($("upstreams"), "Upstreams and their health", ({ upstreams }) => keyed(upstreams, ({ address }) => address), [
      { head: "Address", of: ({ address, name, kind }) => cell(address, { small: name === address ? kind : `${plainText(name)}, ${kind}` }) },
      { head: "Health", of: ({ health }) => healthCell(health) },
      { head: "Open", number: true, of: ({ active }) => number(countText(active)) },
      { head: "Dials/s", number: true, spare: true, of: ({ dials_per_second: rate }) => number(perSecondText(rate)) },
      { head: "Failed, 1 min", number: true, of: ({ failures_last_minute: count }) => number(countText(count)) },
    ], { optional: true }),
    new Table($("egress"), "Addresses to leave by, and their health", ({ egress }) => keyed(egress, ({ address }) => address), [
      { head: "Address", of: ({ address }) => cell(address) },
      { head: "Health", of: ({ health }) => healthCell(health) },
      { head: "Open", number: true, of: ({ active }) => number(countText(active)) },
      { head: "New/s", number: true, spare: true, of: ({ opened_per_second: rate }) => number(perSecondText(rate)) },
      { head: "Failed", number: true, of: ({ failed }) => number(countText(failed)) },
      { head: "Spilled", number: true, spare: true, of: ({ spilled }) => number(countText(spilled)) },
    ], { optional: true }),
    new Table($("endings"), "How connections ended, by reason", ({ endings }) => {
      const most = Math.max(1, ...endings.map((each) => each.last_5_minutes));
      return keyed(endings, ({ reason }) => reason).map(({ key, item }) => ({ key, item: { ...item, share: item.last_5_minutes / most } }));
    }, [
      { head: "Reason", of: ({ reason, meaning, result, share }) => cell(reason, { small: meaning, bar: { share, result } }) },
      { head: "Who", spare: true, of: ({ result }) => cell(RESULTS[result] ?? result) },
      { head: "1 min", number: true, of: ({ last_minute: count }) => number(countText(count)) },
      { head: "5 min", number: true, of: ({ last_5_minutes: count }) => number(countText(count)) },
      { head: "In all", number: true, spare: true, of: ({ total }) => number(countText(total)) },
    ], { none: "no connection has ended yet" }),
    new Table($("rules"), "Connections that a rule denied", ({ rules }) => keyed(rules.filter(({ denied }) => denied > 0), ({ rule }) => rule), [
      { head: "Rule", of: ({ rule }) => cell(plainText(rule)) },
      { head: "Denied", number: true, of: ({ denied }) => number(countText(denied)) },
    ], { optional: true }),
    new Table($("destinations"), "The destinations with most traffic", ({ destinations }) => keyed(destinations, ({ destination }) => destination), [
      { head: "Destination", of: ({ destination, name }) => placeCell(destination, name) },
      { head: "Open", number: true, of: ({ tunnels }) => number(countText(tunnels)) },
      { head: "Rate", number: true, of: ({ bytes_per_second: rate }) => number(rateText(rate)) },
      { head: "Down", number: true, spare: true, of: ({ bytes_down: bytes }) => number(bytesText(bytes)) },
      { head: "Up", number: true, spare: true, of: ({ bytes_up: bytes }) => number(bytesText(bytes)) },
    ], { none: "no connection is open" }),
    new Table($("slowest"), "The connections that waited longest for a first byte", ({ slowest }) => keyed(slowest, ({ id }) => id), [
      { head: "Destination, and client", of: ({ destination, name, client }) => placeCell(destination, name, `for ${client}`) },
      { head: "State", of: ({ state }) => cell(STATES[state] ?? state) },
      { head: "Waited", number: true, of: ({ waited_seconds: seconds }) => number(secondsText(seconds)) },
      { head: "Dial", number: true, spare: true, of: ({ dial_seconds: seconds }) => number(secondsText(seconds)) },
      { head: "Handshake", number: true, spare: true, of: ({ handshake_seconds: seconds }) => number(secondsText(seconds)) },
    ], { none: "nobody has waited" }),
    new Table($("latency"), "How long steps took in the last minute", ({ latency }) => keyed(LATENCIES.map(([name, label, what]) => ({ label, what, ...latency[name] })), ({ label }) => label), [
      { head: "Last minute", of: ({ label, what }) => cell(label, { small: what }) },
      { head: "Count", number: true, spare: true, of: ({ count }) => number(countText(count)) },
      { head: "Half", number: true, of: ({ p50_seconds: seconds }) => number(secondsText(seconds)) },
      { head: "90 %", number: true, spare: true, of: ({ p90_seconds: seconds }) => number(secondsText(seconds)) },
      { head: "99 %", number: true, of: ({ p99_seconds: seconds }) => number(secondsText(seconds)) },
      { head: "Longest", number: true, of: ({ max_seconds: seconds }) => number(secondsText(seconds)) },
    ]),
    new Table($("workers"), "The threads that relay", ({ workers }) => keyed(workers, ({ worker }) => worker), [
      { head: "Worker", of: ({ worker, state, full, replaced }) => workerCell(worker, state, full, replaced) },
      { head: "Open", number: true, of: ({ tunnels }) => number(countText(tunnels)) },
      { head: "CPU", number: true, of: ({ cpu_ratio: ratio }) => number(ratio === null ? "–" : `${Math.round(ratio * 100)} %`) },
      { head: "Turn, 99 %", number: true, of: ({ lag }) => number(secondsText(lag.p99_seconds)) },
      { head: "Pipes", number: true, spare: true, of: ({ pipes_lent: lent, pipes_max: most }) => number(`${countText(lent)} of ${countText(most)}`) },
      { head: "Bytes a splice", number: true, spare: true, of: ({ bytes_per_splice: bytes }) => number(bytes === null ? "–" : bytesText(bytes)) },
    ]),
  ];
}

function workerCell(worker, state, full, replaced) {
  const badge = state !== "running" ? "bad" : full ? "risk" : "good";
  const words = state === "running" ? (full ? "accepts nothing: at the limit" : "") : state === "hangs" ? "hangs" : "is down";
  const again = replaced > 0 ? `replaced ${countText(replaced)} times` : "";
  return cell(`${worker}`, { badge, small: [words, again].filter((part) => part !== "").join("; ") });
}

$("pause").addEventListener("click", () => {
  paused = !paused;
  mark($("pause"), "aria-pressed", `${paused}`);
  draw();
});

build();
setInterval(drawLink, 1000);
void follow();
