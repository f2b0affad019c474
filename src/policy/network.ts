/** The addresses of a network. Declared ahead of the code that uses it. */
export interface Network {
  /** 4 or 16; host bits are zero. */
  readonly bytes: Uint8Array;
  readonly prefix: number;
}
