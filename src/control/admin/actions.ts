/** What the running program can be asked for on the command line, by its admin endpoint. */
export const ADMIN_ACTIONS = ["tunnels", "close", "drain", "undrain", "trace"] as const;
export type AdminAction = (typeof ADMIN_ACTIONS)[number];

export interface AdminRequest {
  readonly action: AdminAction;
  /** KEY=VALUE, or a word alone: what the action is about. */
  readonly operands: readonly string[];
  readonly json: boolean;
}
