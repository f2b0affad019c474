/**
 * `transplice top`: the status page in a terminal. One frame a second, as wide and as high as the
 * terminal is; without a terminal one line a second.
 *
 * Owns the terminal's state (alternate screen, cursor, raw keys) from start to end, and gives it back
 * however it ends.
 */
import { bytesText, countText, type Judged, perSecondText, plainText, rateText, secondsText, type Verdict, verdicts } from "./verdict.ts";

/** The admin endpoint's snapshot, as much of it as is shown. */
export interface Status extends Judged {
  readonly version: string;
  readonly hostname: string;
  readonly pid: number;
  readonly now: number;
  readonly uptime_seconds: number;
  readonly rates: {
    readonly accepted_per_second: number;
    readonly refused_per_second: number;
    readonly failed_per_second: number;
    readonly bytes_up_per_second: number;
    readonly bytes_down_per_second: number;
  };
  readonly latency: { readonly first_byte: { readonly p50_seconds: number | null; readonly p99_seconds: number | null } };
  readonly endings: readonly (Judged["endings"][0] & { readonly last_5_minutes: number; readonly total: number })[];
  readonly upstreams: readonly (Judged["upstreams"][0] & { readonly active: number; readonly dials_per_second: number })[];
  readonly egress: readonly (Judged["egress"][0] & { readonly active: number; readonly opened_per_second: number; readonly failed: number })[];
  readonly destinations: readonly {
    readonly destination: string;
    readonly name: string | null;
    readonly tunnels: number;
    readonly bytes_per_second: number;
    readonly bytes_down: number;
    readonly bytes_up: number;
  }[];
  readonly slowest: readonly {
    readonly destination: string;
    readonly name: string | null;
    readonly client: string;
    readonly state: string;
    readonly waited_seconds: number;
  }[];
  readonly workers: readonly (Judged["workers"][0] & { readonly tunnels: number; readonly cpu_ratio: number | null })[];
}

export interface View {
  readonly status: Status;
  /** Bytes to clients each second, oldest first. */
  readonly traffic: readonly number[];
  /** Since the snapshot came. */
  readonly ageSeconds: number;
  /** Why nothing newer comes. null: all is as it should be. */
  readonly trouble: string | null;
  readonly columns: number;
  readonly rows: number;
}

// ---------------------------------------------------------------------------------------------
// A frame.

const ESC = "\u001b[";
const paint = (code: string) => (text: string): string => (text === "" ? "" : `${ESC}${code}m${text}${ESC}0m`);
const bold = paint("1");
const dim = paint("2");
const inverse = paint("7");
const LEVELS = {
  good: ["✓", paint("32")], note: ["·", paint("36")], risk: ["▲", paint("33")], broken: ["✕", paint("1;31")],
} as const satisfies Record<string, readonly [string, (text: string) => string]>;
const BLOCKS = "▁▂▃▄▅▆▇█";
const STALE_SECONDS = 3;

/** Pieces of a line: its colours take no room. */
type Piece = readonly [text: string, paint?: (text: string) => string];

/** A terminal counts columns; what is not of one is not shown as itself. */
const printable = (text: string): string => plainText(text).replace(/[^\u0020-\u007e–…·✓▲✕▁-█µ]/gu, (c) => `\\u${c.codePointAt(0)!.toString(16).padStart(4, "0")}`);

/** Exactly so wide, or less. */
function line(columns: number, ...pieces: readonly Piece[]): string {
  let left = columns;
  let out = "";
  for (const [text, color] of pieces) {
    const shown = printable(text);
    const cut = shown.length > left ? `${shown.slice(0, Math.max(0, left - 1))}${left > 0 ? "…" : ""}` : shown;
    left -= cut.length;
    out += color === undefined ? cut : color(cut);
  }
  return out;
}

interface Section {
  readonly title: string;
  readonly heads: readonly string[];
  readonly rows: readonly (readonly string[])[];
  /** Of a row: how its second column is painted. */
  readonly levels?: readonly (keyof typeof LEVELS)[];
}

/** As many lines as there are rows, none wider than there are columns. */
export function frame(view: View): string[] {
  const { status, columns, rows, ageSeconds, trouble } = view;
  const lines: string[] = [];
  const stale = ageSeconds > STALE_SECONDS;
  const clock = new Date(status.now * 1000).toISOString().slice(11, 19);
  const name = ` transplice ${status.hostname}  up ${secondsText(status.uptime_seconds)}`;
  const live = stale ? ` not live: ${secondsText(Math.round(ageSeconds))} old ` : ` live ${clock}Z `;
  // Whether it is live comes before whose it is.
  const left = line(Math.max(0, columns - live.length), [name]);
  lines.push(inverse(line(columns, [left.padEnd(columns - live.length)], [live])));
  lines.push(...verdictLines(columns, verdicts(status), stale ? trouble ?? "nothing has come" : null, Math.max(1, Math.floor(rows / 4))), "");
  const { rates, tunnels, latency } = status;
  lines.push(...wrapped(columns, [
    [["down "], [rateText(rates.bytes_down_per_second), bold]],
    [["up "], [rateText(rates.bytes_up_per_second), bold]],
    [["open "], [countText(tunnels.active), bold], [` of ${countText(tunnels.max)}`]],
    [["new "], [`${perSecondText(rates.accepted_per_second)}/s`, bold]],
    [["failed "], [`${perSecondText(rates.failed_per_second)}/s`, rates.failed_per_second > 0 ? LEVELS.risk[1] : bold]],
    [["first byte "], [secondsText(latency.first_byte.p50_seconds), bold], [` 99 % ${secondsText(latency.first_byte.p99_seconds)}`]],
  ]));
  lines.push(line(columns, [sparkline(view.traffic, columns), LEVELS.note[1]]));
  lines.push(...sectionLines(sectionsOf(status), columns, rows - lines.length));
  return lines.slice(0, rows);
}

/** As many items in each line as fit; none is torn. */
function wrapped(columns: number, items: readonly (readonly Piece[])[]): string[] {
  const widthOf = (pieces: readonly Piece[]): number => pieces.reduce((sum, [text]) => sum + text.length, 0);
  const lines: Piece[][] = [];
  for (const item of items) {
    const last = lines.at(-1);
    if (last !== undefined && widthOf(last) + 2 + widthOf(item) <= columns) last.push(["  "], ...item);
    else lines.push([...item]);
  }
  return lines.map((pieces) => line(columns, ...pieces));
}

/** `trouble`: why what was found is old; that all is well is not said then. */
function verdictLines(columns: number, found: readonly Verdict[], trouble: string | null, most: number): string[] {
  const says = (level: keyof typeof LEVELS, text: string): string => line(columns, [`${LEVELS[level][0]} `, LEVELS[level][1]], [text]);
  const isWell = found.every(({ level }) => level === "note");
  const head = trouble !== null ? [says("risk", `not live: ${trouble}`)] : isWell ? [line(columns, ["✓ All is well", LEVELS.good[1]])] : [];
  const room = most - head.length;
  const shown = found.slice(0, found.length > room ? Math.max(0, room - 1) : room);
  const more = shown.length < found.length ? [line(columns, [`  and ${found.length - shown.length} more`, dim])] : [];
  return [...head, ...shown.map(({ level, text }) => says(level, text)), ...more].slice(0, most);
}

function sparkline(values: readonly number[], columns: number): string {
  const shown = values.slice(-columns);
  const most = Math.max(1, ...shown);
  return shown.map((value) => BLOCKS[Math.min(BLOCKS.length - 1, Math.floor((value / most) * BLOCKS.length))]!).join("").padStart(columns);
}

const GOOD = new Set(["ok", "unknown", "running"]);
const place = ({ destination, name }: { destination: string; name: string | null }): string => (name === null ? destination : `${name} (${destination})`);

function sectionsOf(status: Status): Section[] {
  const { upstreams, egress, endings, destinations, slowest, workers } = status;
  const level = (health: string): keyof typeof LEVELS => (GOOD.has(health) ? "good" : health === "drained" || health === "gone" ? "note" : "broken");
  return [
    {
      title: "upstream", heads: ["health", "open", "dials/s", "failed/min"], levels: upstreams.map(({ health }) => level(health)),
      rows: upstreams.map(({ address, health, active, dials_per_second: dials, failures_last_minute: failures }) => [address, health, countText(active), perSecondText(dials), countText(failures)]),
    },
    {
      title: "leaves by", heads: ["health", "open", "new/s", "failed"], levels: egress.map(({ health }) => level(health)),
      rows: egress.map(({ address, health, active, opened_per_second: opened, failed }) => [address, health, countText(active), perSecondText(opened), countText(failed)]),
    },
    {
      title: "ended as", heads: ["who", "1 min", "5 min", "in all"],
      rows: endings.map(({ reason, result, last_minute: one, last_5_minutes: five, total }) => [reason, result === "ok" ? "nobody" : result, countText(one), countText(five), countText(total)]),
    },
    {
      title: "destination", heads: ["open", "rate", "down", "up"],
      rows: destinations.map((each) => [place(each), countText(each.tunnels), rateText(each.bytes_per_second), bytesText(each.bytes_down), bytesText(each.bytes_up)]),
    },
    {
      title: "slowest of the last minute", heads: ["state", "waited"],
      rows: slowest.map((each) => [`${place(each)} for ${each.client}`, each.state, secondsText(each.waited_seconds)]),
    },
    {
      title: "worker", heads: ["state", "open", "cpu", "turn 99 %", "pipes"], levels: workers.map(({ state }) => level(state)),
      rows: workers.map(({ worker, state, tunnels, cpu_ratio: cpu, lag, pipes_lent: lent, pipes_max: most }) => [
        `${worker}`, state, countText(tunnels), cpu === null ? "–" : `${Math.round(cpu * 100)} %`, secondsText(lag.p99_seconds), `${countText(lent)} of ${countText(most)}`]),
    },
  ].filter(({ rows }) => rows.length > 0);
}

const CELL = 11;

/** Each section gets its head, and rows by turns until the room is used up. */
function sectionLines(sections: readonly Section[], columns: number, room: number): string[] {
  const fit = sections.slice(0, Math.max(0, Math.floor(room / 3)));
  const counts = fit.map(() => 0);
  let left = room - fit.length * 2;
  for (let again = true; again; ) {
    again = false;
    fit.forEach(({ rows }, i) => {
      if (left <= 0 || counts[i]! >= rows.length) return;
      counts[i]!++;
      left--;
      again = true;
    });
  }
  return fit.flatMap(({ title, heads, rows, levels }, i) => {
    // A narrow terminal drops columns from the right.
    const cells = Math.min(heads.length, Math.max(1, Math.floor((columns - 20) / CELL)));
    const first = columns - cells * CELL;
    const head = line(columns, [title.toUpperCase().padEnd(first), bold], [heads.slice(0, cells).map((each) => each.padStart(CELL)).join(""), dim]);
    return ["", head, ...rows.slice(0, counts[i]).map((row, at) => {
      const [name = "", ...others] = row;
      const color = levels === undefined ? undefined : LEVELS[levels[at]!][1];
      const shown = printable(name);
      const cut = shown.length > first - 1 ? `${shown.slice(0, first - 2)}…` : shown;
      return line(columns, [cut.padEnd(first)], ...others.slice(0, cells).map((text, n): Piece => {
        const padded = text.padStart(CELL);
        return n === 0 && color !== undefined ? [padded, color] : [padded];
      }));
    })];
  });
}

/** One line, for a file or a pipe. */
export function lineOf(status: Status): string {
  const { rates, tunnels } = status;
  const [worst] = verdicts(status);
  return `${new Date(status.now * 1000).toISOString()} down=${rateText(rates.bytes_down_per_second)} up=${rateText(rates.bytes_up_per_second)} `.replaceAll(/(=\S+) (\S+)/g, "$1$2")
    + `open=${tunnels.active}/${tunnels.max} new=${perSecondText(rates.accepted_per_second)}/s failed=${perSecondText(rates.failed_per_second)}/s `
    + (worst === undefined ? "well" : `${worst.level}: ${printable(worst.text)}`);
}

// ---------------------------------------------------------------------------------------------
// The terminal.

/** Of the admin client (admin/client.ts), as much as is needed here. */
export interface StatusSource {
  get(path: string): Promise<{ readonly status: number; readonly body: unknown } | { readonly wrong: string }>;
  /** Answers when the stream has ended: null, or what went wrong. */
  stream(path: string, onEvent: (event: string, data: unknown) => void, signal?: AbortSignal): Promise<{ readonly wrong: string } | null>;
}

/** q, Ctrl-C, Ctrl-D, and Escape alone: it also begins what an arrow key sends. */
const ENDS = ["q", "Q", "\u0003", "\u0004", "\u001b"];
const AGAIN_MS = [500, 1000, 2000, 5000];
const SECOND_MS = 1000;
const HISTORY = 300;
const ENTER = `${ESC}?1049h${ESC}?25l`;
const LEAVE = `${ESC}?25h${ESC}?1049l`;

/** Resolves with an exit code when the reader has had enough; with what is wrong if it never began. */
export async function top(source: StatusSource, input: NodeJS.ReadStream, output: NodeJS.WriteStream): Promise<{ readonly code: number; readonly wrong: string | null }> {
  const first = await source.get("/status");
  const refusal = "wrong" in first ? first.wrong : first.status !== 200 ? errorOf(first) : null;
  if (refusal !== null || "wrong" in first) return { code: 1, wrong: refusal };
  const seed = first.body as Status & { readonly history?: { readonly bytes_down_per_second: readonly number[] } };
  const end = new AbortController();
  const screen = output.isTTY ? new Screen(seed, input, output, () => end.abort()) : new Lines(output, () => end.abort());
  const stop = (): void => end.abort();
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.once(signal, stop);
  try {
    await follow(source, screen, end.signal);
  } finally {
    screen.close();
  }
  return { code: 0, wrong: null };
}

const errorOf = ({ status, body }: { readonly status: number; readonly body: unknown }): string =>
  (body as { error?: string } | null)?.error ?? `the admin endpoint answers ${status}`;

interface Shows {
  take(status: Status): void;
  lose(trouble: string): void;
  close(): void;
}

async function follow(source: StatusSource, shows: Shows, signal: AbortSignal): Promise<void> {
  for (let failures = 0; !signal.aborted; failures++) {
    const outcome = await source.stream("/events", (event, data) => {
      if (event === "status") {
        failures = -1;
        shows.take(data as Status);
      }
      if (event === "bye") shows.lose("the process stops");
    }, signal);
    if (signal.aborted) return;
    shows.lose(outcome?.wrong ?? "the process has closed the stream");
    await pause(AGAIN_MS[Math.min(Math.max(0, failures), AGAIN_MS.length - 1)]!, signal);
  }
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    }, { once: true });
  });
}

class Screen implements Shows {
  readonly #input: NodeJS.ReadStream;
  readonly #output: NodeJS.WriteStream;
  readonly #traffic: number[];
  readonly #timer: NodeJS.Timeout;
  readonly #draw = (): void => this.draw();
  readonly #onKey: (keys: Buffer) => void;
  #status: Status;
  #takenMs = performance.now();
  #trouble: string | null = null;

  constructor(seed: Status & { readonly history?: { readonly bytes_down_per_second: readonly number[] } }, input: NodeJS.ReadStream, output: NodeJS.WriteStream, onEnd: () => void) {
    this.#input = input;
    this.#output = output;
    this.#status = seed;
    this.#traffic = [...(seed.history?.bytes_down_per_second ?? [])];
    // Raw: Ctrl-C is a key, too.
    this.#onKey = (keys) => {
      if (ENDS.includes(keys.toString("latin1"))) onEnd();
    };
    if (input.isTTY) {
      input.setRawMode(true);
      input.on("data", this.#onKey);
      input.resume();
    }
    output.write(ENTER);
    output.on("resize", this.#draw);
    output.on("error", onEnd);
    // What is old shows its age.
    this.#timer = setInterval(this.#draw, SECOND_MS);
    this.draw();
  }

  take(status: Status): void {
    this.#status = status;
    this.#takenMs = performance.now();
    this.#trouble = null;
    this.#traffic.push(status.rates.bytes_down_per_second);
    this.#traffic.splice(0, this.#traffic.length - HISTORY);
    this.#timer.refresh();
    this.draw();
  }

  lose(trouble: string): void {
    this.#trouble = trouble;
  }

  draw(): void {
    // A terminal that does not read gets no more.
    if (this.#output.writableNeedDrain) return;
    const lines = frame({
      status: this.#status, traffic: this.#traffic, trouble: this.#trouble,
      ageSeconds: (performance.now() - this.#takenMs) / SECOND_MS, columns: this.#output.columns, rows: this.#output.rows,
    });
    this.#output.write(`${ESC}H${lines.map((each) => `${each}${ESC}K`).join("\r\n")}${ESC}J`);
  }

  close(): void {
    clearInterval(this.#timer);
    this.#output.off("resize", this.#draw);
    this.#output.write(LEAVE);
    if (!this.#input.isTTY) return;
    this.#input.setRawMode(false);
    this.#input.off("data", this.#onKey);
    this.#input.pause();
  }
}

class Lines implements Shows {
  readonly #output: NodeJS.WriteStream;
  #trouble: string | null = null;

  constructor(output: NodeJS.WriteStream, onEnd: () => void) {
    this.#output = output;
    // Who has read enough (head -1) closes the pipe.
    output.on("error", onEnd);
  }

  take(status: Status): void {
    this.#trouble = null;
    if (!this.#output.writableNeedDrain) this.#output.write(`${lineOf(status)}\n`);
  }

  lose(trouble: string): void {
    if (trouble !== this.#trouble) process.stderr.write(`transplice: ${trouble}\n`);
    this.#trouble = trouble;
  }

  close(): void {}
}
