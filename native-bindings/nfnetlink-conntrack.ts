/**
 * One question of <linux/netfilter/nfnetlink_conntrack.h>: which connection is this the answer of?
 * Messages are built as in nfnetlink-queue.ts.
 *
 *     CTA_TUPLE_REPLY { CTA_TUPLE_IP { source, destination }, CTA_TUPLE_PROTO { TCP, ports } }
 */
import type { Memory } from "./syscalls.ts";

const NLM_F_REQUEST = 1;
const NFNL_SUBSYS_CTNETLINK = 1;
const IPCTNL_MSG_CT_NEW = (NFNL_SUBSYS_CTNETLINK << 8) | 0;
const IPCTNL_MSG_CT_GET = (NFNL_SUBSYS_CTNETLINK << 8) | 1;
const CTA_TUPLE_ORIG = 1;
const CTA_TUPLE_REPLY = 2;
const CTA_TUPLE_IP = 1;
const CTA_TUPLE_PROTO = 2;
/** And the destination is one more. */
const CTA_IP_SRC = { 4: 1, 6: 3 } as const;
const CTA_PROTO_NUM = 1;
const CTA_PROTO_SRC_PORT = 2;
const CTA_PROTO_DST_PORT = 3;
const NLA_F_NESTED = 0x8000;
const NLA_TYPE_MASK = 0x3fff;
const IPPROTO_TCP = 6;
const AF = { 4: 2, 6: 10 } as const;
const HEADER = 20;
const ATTRIBUTE = 4;

export const CONNTRACK_REQUEST_BYTES = 128;

/** Writes the question for the answers from `from` to `to`; of addresses 4 or 16 bytes count. Answers its length. */
export function writeConntrackGet(
  into: Memory, family: 4 | 6, from: Uint8Array, fromPort: number, to: Uint8Array, toPort: number,
): number {
  const { view, bytes } = into;
  bytes.fill(0, 0, CONNTRACK_REQUEST_BYTES);
  let at = HEADER;
  const open = (type: number, length = 0): number => {
    const start = at;
    view.setUint16(start, ATTRIBUTE + length, true);
    view.setUint16(start + 2, length === 0 ? type | NLA_F_NESTED : type, true);
    at += ATTRIBUTE + ((length + 3) & ~3);
    return length === 0 ? start : start + ATTRIBUTE;
  };
  const close = (start: number): void => view.setUint16(start, at - start, true);
  const size = family === 4 ? 4 : 16;
  const tuple = open(CTA_TUPLE_REPLY);
  const ip = open(CTA_TUPLE_IP);
  bytes.set(from.subarray(0, size), open(CTA_IP_SRC[family], size));
  bytes.set(to.subarray(0, size), open(CTA_IP_SRC[family] + 1, size));
  close(ip);
  const proto = open(CTA_TUPLE_PROTO);
  view.setUint8(open(CTA_PROTO_NUM, 1), IPPROTO_TCP);
  view.setUint16(open(CTA_PROTO_SRC_PORT, 2), fromPort);
  view.setUint16(open(CTA_PROTO_DST_PORT, 2), toPort);
  close(proto);
  close(tuple);
  view.setUint32(0, at, true);
  view.setUint16(4, IPCTNL_MSG_CT_GET, true);
  view.setUint16(6, NLM_F_REQUEST, true);
  view.setUint8(16, AF[family]);
  return at;
}

/** The source port that the connection had before it was translated; 0: bytes[0, length) does not say. */
export function originalPort({ view }: Memory, length: number): number {
  if (length < HEADER || view.getUint16(4, true) !== IPCTNL_MSG_CT_NEW) return 0;
  const find = ([start, end]: readonly [number, number], type: number): readonly [number, number] | null => {
    for (let at = start; at + ATTRIBUTE <= end; ) {
      const size = view.getUint16(at, true);
      if (size < ATTRIBUTE || at + size > end) return null;
      if ((view.getUint16(at + 2, true) & NLA_TYPE_MASK) === type) return [at + ATTRIBUTE, at + size];
      at += (size + 3) & ~3;
    }
    return null;
  };
  const tuple = find([HEADER, Math.min(length, view.getUint32(0, true))], CTA_TUPLE_ORIG);
  const proto = tuple === null ? null : find(tuple, CTA_TUPLE_PROTO);
  const port = proto === null ? null : find(proto, CTA_PROTO_SRC_PORT);
  return port === null || port[1] - port[0] < 2 ? 0 : view.getUint16(port[0]);
}
