/**
 * The marks by which rules, routes and whoever reads the queues of SYNs know packets from each other, as
 * a FirewallPlan has them. Pure.
 */
import type { FirewallPlan } from "./plan.ts";

/** By which ip rules and routes of ours are known (rtm_protocol): no routing daemon's number. */
export const ROUTE_PROTOCOL = 181;

/**
 * TPROXY needs packets for foreign addresses delivered here. Also while nothing new is handed over: what
 * has been comes in by these interfaces, and goes on.
 */
export const isRouting = ({ mode, stage, interfaces }: FirewallPlan): boolean =>
  mode === "tproxy" && (stage === "engaged" || interfaces.length > 0);

/** The bits of the mark that are TPROXY's to set and to compare. */
export const markMask = ({ queues }: FirewallPlan): number =>
  queues === null ? 0xffff_ffff : ~(0xff << queues.markShift) >>> 0;

/** The mark of a SYN that is to be rejected: the bits, and in them the kind (engine/syns.ts), from 1. */
export const REJECTIONS = [
  { 4: "tcp-reset", 6: "tcp-reset" },
  { 4: "icmp-host-unreachable", 6: "icmp6-addr-unreachable" },
  { 4: "icmp-net-unreachable", 6: "icmp6-no-route" },
  { 4: "icmp-admin-prohibited", 6: "icmp6-adm-prohibited" },
] as const;
export const rejectMask = ({ markShift }: NonNullable<FirewallPlan["queues"]>): number => (0xf0 << markShift) >>> 0;
export const rejectMark = ({ markShift }: NonNullable<FirewallPlan["queues"]>, kind: number): number =>
  ((kind + 1) << (markShift + 4)) >>> 0;

/** As ip(8) says it. */
export const markText = (plan: FirewallPlan): string => {
  const mask = markMask(plan);
  return `0x${plan.mark.toString(16)}${mask === 0xffff_ffff ? "" : `/0x${mask.toString(16)}`}`;
};
export const ruleOf = (plan: FirewallPlan): string => `fwmark ${markText(plan)} lookup ${plan.table} protocol ${ROUTE_PROTOCOL}`;
export const routeOf = ({ table }: FirewallPlan): string => `local default dev lo table ${table} protocol ${ROUTE_PROTOCOL}`;
