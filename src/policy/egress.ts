/** The settings of which address a connection leaves from. Declared ahead of the code that uses them. */
export interface EgressAddress {
  readonly bytes: Uint8Array;
  /** 32; 128; or less for an IPv6 prefix. */
  readonly prefix: number;
  /** > 0 */
  readonly weight: number;
}

export type Affinity = "client" | "client-destination" | "none";
