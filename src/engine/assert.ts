/**
 * What we did wrong ends the worker: main closes what it held and starts another. What the kernel
 * says is a number, what a peer does is a value; neither is ever asserted.
 */
export function assert(condition: boolean, message: string): asserts condition {
  if (!condition) throw new Error(`assertion failed: ${message}`);
}
