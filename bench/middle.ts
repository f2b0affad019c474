/** The middle of measurements: one that was disturbed does not move it. */
export function median(numbers: readonly number[]): number {
  const sorted = ascending(numbers);
  const middle = sorted.length >> 1;
  if (sorted.length === 0) return NaN;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** The mean of the middle half: as deaf to a few that were disturbed, and steadier where those around it are of two kinds. */
export function middleMean(numbers: readonly number[]): number {
  const sorted = ascending(numbers);
  const cut = sorted.length >> 2;
  const middle = sorted.slice(cut, sorted.length - cut);
  return middle.length === 0 ? NaN : middle.reduce((sum, n) => sum + n, 0) / middle.length;
}

/** Those that are numbers. */
const ascending = (numbers: readonly number[]): number[] => numbers.filter((n) => !Number.isNaN(n)).sort((a, b) => a - b);
