/**
 * Histograms as HDR histograms are made: log-linear, so that a value is known to an eighth of itself
 * over the whole range, by a count of leading zeros and two stores. They stand in shared memory,
 * written by one worker and read by main at any time.
 *
 * Values are integers from 0 to 2^31 - 1, of a unit that is the owner's; what lies beyond counts as
 * the last. A histogram is its buckets and the sum of its values; its count is made by the reader,
 * so it is whole even if it is read in mid-write.
 */

/** Buckets in each octave, as a power of two. */
const FINE_BITS = 3;
const FINE = 1 << FINE_BITS;
export const VALUE_MAX = 0x7fffffff;
export const BUCKETS = (31 - FINE_BITS + 1) * FINE;

/** Numbers that one takes: its buckets, and the sum. */
export const HISTOGRAM_NUMBERS = BUCKETS + 1;

/** Which bucket a value of 0 to VALUE_MAX falls into. */
export function bucketOf(value: number): number {
  if (value < FINE) return value;
  const octave = 31 - Math.clz32(value) - FINE_BITS;
  return (octave << FINE_BITS) + (value >> octave);
}

/** The least value of a bucket; that of the bucket behind the last is 2^31. */
export function leastOf(bucket: number): number {
  if (bucket < FINE) return bucket;
  const octave = (bucket >> FINE_BITS) - 1;
  return (FINE + (bucket & (FINE - 1))) * 2 ** octave;
}

/** Counts a value in the histogram at numbers[at]. */
export function observe(numbers: Float64Array, at: number, value: number): void {
  const whole = value >= VALUE_MAX ? VALUE_MAX : value > 0 ? value | 0 : 0;
  numbers[at + bucketOf(whole)]!++;
  numbers[at + BUCKETS]! += whole;
}
