/**
 * Which of our addresses a client leaves by. Pure.
 */

/** One of [outgoing] addresses. */
export interface EgressAddress {
  /** 4 or 16. */
  readonly bytes: Uint8Array;
  /** 32; 128; or less for an IPv6 prefix, all of which is ours. */
  readonly prefix: number;
  /** Above 0: of two addresses, one with twice the weight has twice the clients. */
  readonly weight: number;
}

/** By what a client keeps its address. */
export type Affinity = "client" | "client-destination" | "none";
