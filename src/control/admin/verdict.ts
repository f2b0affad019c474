/**
 * What is wrong, out of one snapshot of the running process: for the page, for `transplice top`. Pure,
 * and without a runtime import, for a browser runs it, too.
 */

/** Of the admin endpoint's snapshot, as much as is judged here. */
export interface Judged {
  readonly state: string;
  readonly problems: readonly string[];
  readonly listen: readonly { readonly address: string; readonly waiting: number; readonly waiting_max: number }[];
  readonly tunnels: { readonly active: number; readonly max: number };
  readonly totals: { readonly log_dropped: number };
  readonly rates: { readonly refused_per_second: number };
  readonly endings: readonly { readonly reason: string; readonly result: string; readonly meaning: string; readonly last_minute: number }[];
  readonly upstreams: readonly { readonly address: string; readonly health: string; readonly failures_last_minute: number }[];
  readonly egress: readonly { readonly address: string; readonly health: string; readonly usable: boolean }[];
  readonly workers: readonly {
    readonly worker: number;
    readonly state: string;
    readonly lag: { readonly count: number; readonly p50_seconds: number | null; readonly p99_seconds: number | null };
    readonly pipes_lent: number;
    readonly pipes_max: number;
  }[];
  readonly fds: { readonly open: number; readonly limit: number };
}

export interface Verdict {
  /** "broken": it does not work. "risk": it works, and somebody should look. "note": good to know. */
  readonly level: "broken" | "risk" | "note";
  readonly text: string;
}

/** Parts of a whole from which on it is said. */
const NEARLY_FULL = 0.9;
const FAILING = 0.05;
/** Fewer in a minute say little. */
const FAILED_MIN = 10;
const SLOW_TURN_SECONDS = 0.1;
/** Of fewer, one says little: the kernel may have let the thread wait once. Then half of them must be slow. */
const TURNS_MIN = 100;

const EGRESS: Readonly<Record<string, string>> = {
  listed: "is on a blocklist",
  failing: "gets no answers",
  absent: "is not on this host",
  gone: "is not in the configuration any more",
};

/** The worst first. [] = all is well. */
export function verdicts(status: Judged): Verdict[] {
  const found: Verdict[] = status.problems.map((text) => ({ level: "broken", text }));
  const say = (level: Verdict["level"], text: string): void => void found.push({ level, text });
  const { tunnels, upstreams, egress, workers, fds, endings, listen } = status;
  for (const { worker, state, lag } of workers) {
    if (state !== "running") say("broken", `worker ${worker} ${state === "hangs" ? "hangs" : "is down"}`);
    else {
      const [share, seconds] = lag.count < TURNS_MIN ? ["half of its turns take", lag.p50_seconds] : ["one turn in a hundred takes", lag.p99_seconds];
      if ((seconds ?? 0) >= SLOW_TURN_SECONDS) say("risk", `worker ${worker} is slow: ${share} ${milliseconds(seconds!)} or more`);
    }
  }
  const failing = upstreams.filter(({ health }) => health === "failing");
  for (const { address, failures_last_minute: failures } of failing) {
    if (status.problems.some((text) => text.includes(address))) continue;
    say(failing.length === upstreams.length ? "broken" : "risk", `upstream ${address} is failing: ${countText(failures)} failures in the last minute`);
  }
  for (const { address, health, usable } of egress) {
    if (usable || health === "gone") continue;
    say(egress.some((each) => each.usable) ? "risk" : "broken", `egress address ${address} ${EGRESS[health] ?? "is not used"}`);
  }
  if (tunnels.max > 0 && tunnels.active >= tunnels.max) say("broken", `all ${countText(tunnels.max)} connections are in use; new ones wait or are refused`);
  else if (tunnels.active >= tunnels.max * NEARLY_FULL) say("risk", `${countText(tunnels.active)} of at most ${countText(tunnels.max)} connections are in use`);
  for (const { address, waiting, waiting_max: most } of listen) {
    if (waiting > most * 0.5) say("risk", `${countText(waiting)} connections wait to be accepted on ${address}, of at most ${countText(most)}`);
  }
  if (fds.open >= fds.limit * NEARLY_FULL) say("risk", `${countText(fds.open)} of ${countText(fds.limit)} file descriptors are open`);
  const failed = endings.filter(({ result, last_minute: count }) => count > 0 && (result === "upstream" || result === "internal"));
  const sum = (some: typeof endings): number => some.reduce((all, { last_minute: count }) => all + count, 0);
  if (sum(failed) >= FAILED_MIN && sum(failed) >= sum(endings) * FAILING) {
    const [most] = [...failed].sort((a, b) => b.last_minute - a.last_minute);
    const share = Math.round((sum(failed) / sum(endings)) * 100);
    say("risk", `${share} % of the connections of the last minute failed, most of them as ${most!.reason}: ${most!.meaning}`);
  }
  for (const { worker, pipes_lent: lent, pipes_max: most } of workers) {
    if (most > 0 && lent >= most) say("note", `worker ${worker} has lent all ${most} pipes: more bulk traffic is copied, at a higher price`);
  }
  if (status.totals.log_dropped > 0) say("note", `${countText(status.totals.log_dropped)} lines of the log were dropped since the start`);
  if (status.state === "draining") say("note", "this process is draining: it accepts nothing more");
  const order = ["broken", "risk", "note"];
  return found.sort((a, b) => order.indexOf(a.level) - order.indexOf(b.level));
}

const milliseconds = (seconds: number): string => `${Math.round(seconds * 1000)} ms`;

// ---------------------------------------------------------------------------------------------
// Figures as text. SI: a megabyte is a million bytes.

const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];

/** "0 B", "999 B", "1.2 kB", "45 MB". */
export function bytesText(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${unit === 0 ? Math.round(value) : short(value)} ${UNITS[unit]}`;
}

export const rateText = (bytesPerSecond: number): string => `${bytesText(bytesPerSecond)}/s`;

/** Two digits of what is small, none behind the point of what is not. */
const short = (value: number): string => (value < 9.95 ? value.toFixed(1) : `${Math.round(value)}`);

/** "12,345". */
export const countText = (count: number): string => `${Math.round(count)}`.replace(/\B(?=([0-9]{3})+$)/g, ",");

/** "0.2", "12", "1,234": of something that is counted each second. */
export const perSecondText = (rate: number): string => (rate === 0 ? "0" : rate < 9.95 ? rate.toFixed(1) : countText(rate));

/** "80 µs", "12 ms", "1.5 s", "12 s", "3 min", "2 h 4 min", "5 d 3 h"; "–" where it is not known. */
export function secondsText(seconds: number | null): string {
  if (seconds === null) return "–";
  if (seconds < 0.000_95) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 0.999_5) return `${short(seconds * 1000)} ms`;
  if (seconds < 59.5) return `${short(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return `${hours} h${minutes % 60 === 0 ? "" : ` ${minutes % 60} min`}`;
  return `${Math.floor(hours / 24)} d${hours % 24 === 0 ? "" : ` ${hours % 24} h`}`;
}

/** Names and addresses are the clients' words: nothing in them moves a cursor or turns the line round. */
export const plainText = (text: string): string =>
  text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (c) => `\\u${c.codePointAt(0)!.toString(16).padStart(4, "0")}`);
