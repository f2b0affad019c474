/**
 * Durations, sizes and rates: text <-> number. Durations as Go writes them ("2h4m", "1.5s",
 * "500ms"), in milliseconds; sizes by powers of 1024 ("256KiB", also "256K"), in bytes; rates
 * ("100/s", "600/m") per second. Pure.
 */

const UNIT_MS = { h: 3_600_000, m: 60_000, s: 1000, ms: 1 } as const;
type DurationUnit = keyof typeof UNIT_MS;

const DURATION = /^(?:[0-9]+(?:\.[0-9]+)?(?:h|ms|m|s))+$/;
const DURATION_PART = /([0-9]+(?:\.[0-9]+)?)(h|ms|m|s)/g;

/** Milliseconds, rounded to whole ones; null when it is not a duration. */
export function parseDuration(text: string): number | null {
  if (!DURATION.test(text)) return null;
  let ms = 0;
  for (const [, count, unit] of text.matchAll(DURATION_PART))
    ms += Number(count) * UNIT_MS[unit as DurationUnit];
  return Math.round(ms);
}

/** The shortest such text: 90000 is "1m30s". */
export function durationText(ms: number): string {
  let text = "";
  let rest = ms;
  for (const [unit, length] of Object.entries(UNIT_MS)) {
    const count = Math.floor(rest / length);
    if (count > 0) text += `${count}${unit}`;
    rest -= count * length;
  }
  return text === "" ? "0s" : text;
}

const UNIT_BYTES = { GiB: 2 ** 30, MiB: 2 ** 20, KiB: 2 ** 10 } as const;

const SIZE = /^([0-9]+)(?:([KMG])(?:iB)?)?$/i;

/**
 * Bytes; null when it is not a size. K, M and G stand for KiB, MiB and GiB. KB and MB are refused:
 * half of their readers take them for powers of 1000.
 */
export function parseSize(text: string): number | null {
  const match = SIZE.exec(text);
  if (match === null) return null;
  const unit =
    match[2] === undefined ? 1 : UNIT_BYTES[`${match[2].toUpperCase() as "K" | "M" | "G"}iB`];
  return Number(match[1]) * unit;
}

/** In the largest unit that divides it: 65536 is "64KiB", 1000 is "1000". */
export function sizeText(bytes: number): string {
  for (const [unit, size] of Object.entries(UNIT_BYTES)) {
    if (bytes >= size && bytes % size === 0) return `${bytes / size}${unit}`;
  }
  return `${bytes}`;
}

/** 0.5 for "30/m"; null when it is not a rate. */
export function parseRate(text: string): number | null {
  const match = /^([0-9]{1,9})\/([smh])$/.exec(text);
  return match === null ? null : (Number(match[1]) * 1000) / UNIT_MS[match[2] as "s" | "m" | "h"];
}
