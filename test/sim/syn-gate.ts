/**
 * A rule that puts SYNs into a queue, the queue, and who hears of a verdict: what a packet says, what
 * the kernel answers to a verdict that comes too late, and that it may forget what it holds.
 */
import { NF_ACCEPT } from "../../native-bindings/nfnetlink-queue.ts";
import type { Memory } from "../../native-bindings/syscalls.ts";
import type { Random } from "./random.ts";
import type { Address, Network, Tcp } from "./tcp.ts";

interface Held {
  readonly client: Tcp;
  readonly go: () => void;
  readonly packet: Uint8Array;
}

export interface GateOptions {
  /** Of a SYN: the queue is full, and it goes on. */
  readonly failOpenChance: number;
  /** Of a SYN that is held: the kernel forgets it, as when somebody deletes a chain. */
  readonly forgetChance: number;
  /** Of a SYN that is held: another copy comes after a second. */
  readonly copyChance: number;
}

const EAGAIN = 11;
const ENOENT = 2;
const SYN_AGAIN_US = 1e6;
const SYN_RETRIES = 4;
const TCP = 6;

export class SynGate {
  readonly #network: Network;
  readonly #random: Random;
  readonly #options: GateOptions;
  readonly #held = new Map<number, Held>();
  /** Ids whose packets are not read yet. */
  #unread: number[] = [];
  /** Everybody whose SYN has come by: a refusal reaches who still waits, whatever is held. */
  readonly #clients = new Set<Tcp>();
  #errors = 0;
  #lastId = 0;
  onReadable: () => void = () => {};

  constructor(network: Network, random: Random, options: GateOptions) {
    this.#network = network;
    this.#random = random;
    this.#options = options;
    network.gate = (client, to, go) => this.#arrive(client, to, go, 0);
  }

  /** The rule is gone. What is held stays. */
  open(): void {
    this.#network.gate = null;
  }

  get readable(): boolean {
    return this.#unread.length + this.#errors > 0;
  }

  #arrive(client: Tcp, to: Address, go: () => void, retries: number): void {
    if (client.state !== "connecting") return;
    this.#clients.add(client);
    client.syn ??= synOf(client.local!, to, this.#random);
    if (this.#network.gate === null || this.#random.chance(this.#options.failOpenChance)) {
      // The copies would be dialled for, to no harm; but who has heard of a tunnel twice could not be judged.
      this.#forgetCopies(client);
      return go();
    }
    const id = this.#put({ client, go, packet: client.syn });
    const again = (): void => this.#arrive(client, to, go, retries + 1);
    if (this.#random.chance(this.#options.forgetChance)) {
      this.#network.after(this.#random.size(1, 20_000), () => {
        if (this.#held.delete(id)) this.#network.after(SYN_AGAIN_US, again);
      });
    } else if (retries < SYN_RETRIES && this.#random.chance(this.#options.copyChance)) {
      this.#network.after(SYN_AGAIN_US, () => {
        if (this.#held.has(id)) again();
      });
    }
  }

  #put(held: Held): number {
    const id = ++this.#lastId;
    this.#held.set(id, held);
    this.#unread.push(id);
    this.onReadable();
    return id;
  }

  /** One message, or -EAGAIN. */
  read(into: Memory, at: number): number {
    if (this.#errors > 0) {
      this.#errors--;
      into.view.setUint32(at, 36, true);
      into.view.setUint16(at + 4, 2, true);
      into.view.setInt32(at + 16, -ENOENT, true);
      return 36;
    }
    const id = this.#unread.shift();
    if (id === undefined) return -EAGAIN;
    const packet = this.#held.get(id)?.packet;
    if (packet === undefined) return this.read(into, at);
    const { view, bytes } = into;
    const length = 20 + 12 + 4 + ((packet.length + 3) & ~3);
    view.setUint32(at, length, true);
    view.setUint16(at + 4, 0x300, true);
    view.setUint16(at + 20, 11, true);
    view.setUint16(at + 22, 1, true);
    view.setUint32(at + 24, id);
    view.setUint16(at + 32, 4 + packet.length, true);
    view.setUint16(at + 34, 10, true);
    bytes.set(packet, at + 36);
    return length;
  }

  /** NFQNL_MSG_VERDICT. */
  verdict(message: Memory, at: number): void {
    const id = message.view.getUint32(at + 28);
    const held = this.#held.get(id);
    if (held === undefined) {
      this.#errors++;
      this.onReadable();
      return;
    }
    this.#held.delete(id);
    if (message.view.getUint32(at + 24) === NF_ACCEPT) {
      this.#forgetCopies(held.client);
      held.go();
    }
  }

  /** A packet of our own: who is refused by it hears of it. */
  sent(packet: Uint8Array): void {
    const v4 = packet[0]! >> 4 === 4;
    const header = v4 ? 20 : 40;
    const isReset = packet[v4 ? 9 : 6] === TCP;
    const tcp = packet.subarray(isReset ? header : header + 8 + header);
    const [from, to] = isReset ? [2, 0] : [0, 2];
    const port = (at: number): number => (tcp[at]! << 8) | tcp[at + 1]!;
    for (const client of this.#clients) {
      if (client.state !== "connecting" || client.local!.port !== port(from) || client.remote!.port !== port(to)) continue;
      if (client.remote!.bytes.join() !== packet.subarray(v4 ? 12 : 8, v4 ? 16 : 24).join()) continue;
      client.refuse();
      return this.#forgetCopies(client);
    }
  }

  #forgetCopies(client: Tcp): void {
    for (const [id, held] of this.#held) if (held.client === client && this.#unread.includes(id)) this.#held.delete(id);
  }
}

/** IPv4 or IPv6, and a TCP header without options. */
function synOf(from: Address, to: Address, random: Random): Uint8Array {
  const v4 = from.bytes.length === 4;
  const header = v4 ? 20 : 40;
  const packet = new Uint8Array(header + 20);
  packet[0] = v4 ? 0x45 : 0x60;
  packet[v4 ? 9 : 6] = TCP;
  packet.set(from.bytes, v4 ? 12 : 8);
  packet.set(to.bytes, v4 ? 16 : 24);
  const view = new DataView(packet.buffer, header);
  view.setUint16(0, from.port);
  view.setUint16(2, to.port);
  view.setUint32(4, random.between(0, 0xffff_fffe));
  view.setUint8(12, 5 << 4);
  view.setUint8(13, 2);
  return packet;
}
