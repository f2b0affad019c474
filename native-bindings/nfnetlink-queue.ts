/**
 * The messages of <linux/netfilter/nfnetlink_queue.h>: how a queue is asked for, how a packet comes
 * out of it, and how its verdict goes back. Names are the kernel's. Only layouts live here; who
 * sends and receives is elsewhere. Host byte order is little-endian; `be` marks network order.
 *
 *     nlmsghdr   0 length | 4 u16 type | 6 u16 flags | 8 sequence | 12 port, 0
 *     nfgenmsg  16 u8 family 0 | 17 u8 version 0 | 18 be16 queue number
 *     attribute  0 u16 length with this header | 2 u16 type | 4 payload, padded to 4
 */
import type { Memory } from "./syscalls.ts";

// netlink(7)
export const AF_NETLINK = 16;
export const SOCK_RAW = 3;
export const NETLINK_NETFILTER = 12;
export const SOL_NETLINK = 270;
export const NETLINK_NO_ENOBUFS = 5;
export const NETLINK_CAP_ACK = 10;
export const SO_RCVBUF = 8;
export const SO_RCVBUFFORCE = 33;
export const SOCKADDR_NL_SIZE = 12;
const NLMSG_ERROR = 2;
const NLM_F_REQUEST = 1;
const NLM_F_ACK = 4;

const NFNL_SUBSYS_QUEUE = 3;
const NFQNL_MSG_PACKET = (NFNL_SUBSYS_QUEUE << 8) | 0;
const NFQNL_MSG_VERDICT = (NFNL_SUBSYS_QUEUE << 8) | 1;
const NFQNL_MSG_CONFIG = (NFNL_SUBSYS_QUEUE << 8) | 2;

const NFQA_CFG_CMD = 1;
const NFQA_CFG_PARAMS = 2;
const NFQA_CFG_QUEUE_MAXLEN = 3;
const NFQA_CFG_MASK = 4;
const NFQA_CFG_FLAGS = 5;
const NFQNL_CFG_CMD_BIND = 1;
const NFQNL_CFG_CMD_UNBIND = 2;
const NFQNL_COPY_PACKET = 2;
/** When the queue is full, packets go on as if there were no queue. */
const NFQA_CFG_F_FAIL_OPEN = 1;

const NFQA_PACKET_HDR = 1;
const NFQA_VERDICT_HDR = 2;
const NFQA_MARK = 3;
const NFQA_PAYLOAD = 10;
const NLA_TYPE_MASK = 0x3fff;

export const NF_DROP = 0;
export const NF_ACCEPT = 1;

const HEADER = 20;
export const VERDICT_BYTES = 40;
export const CONFIG_BYTES = 64;

/**
 * Writes NFQNL_MSG_CONFIG: this socket reads the queue, of each packet so many bytes, and no more
 * than `packets` are held at once. Answers its length; the kernel acknowledges it.
 */
export function writeConfig(into: Memory, queue: number, copyBytes: number, packets: number): number {
  const { view, bytes } = into;
  bytes.fill(0, 0, CONFIG_BYTES);
  let at = writeHeader(view, 0, NFQNL_MSG_CONFIG, NLM_F_REQUEST | NLM_F_ACK, queue);
  const attribute = (type: number, length: number): number => {
    view.setUint16(at, 4 + length, true);
    view.setUint16(at + 2, type, true);
    const payload = at + 4;
    at = payload + ((length + 3) & ~3);
    return payload;
  };
  view.setUint8(attribute(NFQA_CFG_CMD, 4), NFQNL_CFG_CMD_BIND);
  const params = attribute(NFQA_CFG_PARAMS, 5);
  view.setUint32(params, copyBytes);
  view.setUint8(params + 4, NFQNL_COPY_PACKET);
  view.setUint32(attribute(NFQA_CFG_QUEUE_MAXLEN, 4), packets);
  view.setUint32(attribute(NFQA_CFG_MASK, 4), NFQA_CFG_F_FAIL_OPEN);
  view.setUint32(attribute(NFQA_CFG_FLAGS, 4), NFQA_CFG_F_FAIL_OPEN);
  view.setUint32(0, at, true);
  return at;
}

/** Writes NFQNL_MSG_CONFIG: the queue is nobody's any more. Answers its length. */
export function writeUnbind(into: Memory, queue: number): number {
  const { view } = into;
  writeHeader(view, 0, NFQNL_MSG_CONFIG, NLM_F_REQUEST, queue);
  view.setUint32(0, 28, true);
  view.setUint16(20, 8, true);
  view.setUint16(22, NFQA_CFG_CMD, true);
  view.setUint32(24, NFQNL_CFG_CMD_UNBIND << 24);
  return 28;
}

/** What the kernel answers to a message: 0 or -errno. Null: bytes[0, length) is no such answer. */
export function errorOf(bytes: Memory, length: number): number | null {
  if (length < HEADER || bytes.view.getUint16(4, true) !== NLMSG_ERROR) return null;
  return bytes.view.getInt32(16, true);
}

/** A packet in a queue. One object serves many messages. */
export interface QueuedPacket {
  id: number;
  mark: number;
  /** Its IP header and what follows, of which perhaps not all was copied. */
  payloadAt: number;
  payloadEnd: number;
}

/** Reads NFQNL_MSG_PACKET in bytes[0, length). False if it is another message. */
export function readPacket(from: Memory, length: number, into: QueuedPacket): boolean {
  const { view } = from;
  if (length < HEADER || view.getUint16(4, true) !== NFQNL_MSG_PACKET) return false;
  const end = Math.min(length, view.getUint32(0, true));
  into.mark = 0;
  into.payloadAt = 0;
  let found = false;
  for (let at = HEADER; at + 4 <= end; ) {
    const size = view.getUint16(at, true);
    if (size < 4 || at + size > end) return false;
    switch (view.getUint16(at + 2, true) & NLA_TYPE_MASK) {
      case NFQA_PACKET_HDR:
        into.id = view.getUint32(at + 4);
        found = size >= 8;
        break;
      case NFQA_MARK:
        if (size >= 8) into.mark = view.getUint32(at + 4);
        break;
      case NFQA_PAYLOAD:
        into.payloadAt = at + 4;
        into.payloadEnd = at + size;
        break;
    }
    at += (size + 3) & ~3;
  }
  return found;
}

/**
 * Writes NFQNL_MSG_VERDICT of VERDICT_BYTES at `at`. The mark becomes the packet's, whatever it had.
 * One send may bring several, one behind the other.
 */
export function writeVerdict(
  into: Memory, at: number, queue: number, id: number, verdict: number, mark: number,
): void {
  const { view } = into;
  writeHeader(view, at, NFQNL_MSG_VERDICT, NLM_F_REQUEST, queue);
  view.setUint32(at, VERDICT_BYTES, true);
  view.setUint16(at + 20, 12, true);
  view.setUint16(at + 22, NFQA_VERDICT_HDR, true);
  view.setUint32(at + 24, verdict);
  view.setUint32(at + 28, id);
  view.setUint16(at + 32, 8, true);
  view.setUint16(at + 34, NFQA_MARK, true);
  view.setUint32(at + 36, mark);
}

function writeHeader(view: DataView, at: number, type: number, flags: number, queue: number): number {
  view.setUint16(at + 4, type, true);
  view.setUint16(at + 6, flags, true);
  view.setUint32(at + 8, 0, true);
  view.setUint32(at + 12, 0, true);
  view.setUint16(at + 16, 0);
  view.setUint16(at + 18, queue);
  return at + HEADER;
}
