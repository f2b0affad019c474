/**
 * A SOCKS client of the simulated network: says what a talk has for it, in pieces as small as it
 * likes, waiting for answers or not, and hands the connection to its Application once it was
 * granted. It judges the form of what it hears and nothing else; what it has heard stays to be
 * judged. It may fall silent, leave, or say nonsense.
 */
import { EAGAIN } from "../../native-bindings/constants.ts";
import { fillStream, type Random } from "./random.ts";
import type { AnswerKind, Fault, Talk } from "./talk.ts";
import type { Address, Network, Tcp } from "./tcp.ts";

const DRIBBLE_US = 1_250_000;
const BUFFER = new Uint8Array(100_000);

export class SocksClient {
  readonly tcp: Tcp;
  readonly talk: Talk;
  readonly #network: Network;
  readonly #random: Random;
  readonly #stream: number;
  readonly #takesOver: (tcp: Tcp, sent: number) => void;
  readonly #byte = new Uint8Array(1);
  #said = 0;
  #answered = 0;
  /** Behind the reply comes a report. */
  #reports = false;
  readonly #kept: number[] = [];
  #writeSoon = false;
  #readSoon = false;
  #stopped = false;

  /** The answer that ended it, and its code; null: there was none. */
  refusal: { readonly answer: AnswerKind; readonly code: number } | null = null;
  /** What the granting reply said that we speak from there; null: not granted. */
  granted: Address | null = null;
  /** Of the last answer. */
  heardUs = 0;
  /** When the last byte of the request was said. */
  requestedUs = Infinity;
  /** Of the stream, said before it was granted. */
  early = 0;
  /** Bytes of an answer that was not whole. */
  get pending(): number {
    return this.#kept.length;
  }
  sawEnd = false;
  endUs = Infinity;
  left = false;
  over = false;

  /** `takesOver` is called when it was granted; it reads and writes from then on. */
  constructor(
    network: Network, tcp: Tcp, talk: Talk, stream: number,
    takesOver: (tcp: Tcp, sent: number) => void,
  ) {
    this.#network = network;
    this.#random = network.random;
    this.tcp = tcp;
    this.talk = talk;
    this.#stream = stream;
    this.#takesOver = takesOver;
    tcp.onWake = () => this.#wake();
    const { fault } = talk;
    if (fault !== null && leaves(fault)) network.after(fault.afterUs, () => this.#leave());
    this.#wake();
  }

  #wake(): void {
    if (this.over) return;
    if (!this.#readSoon) {
      this.#readSoon = true;
      this.#network.after(this.#random.size(1, 50), () => this.#read());
    }
    if (!this.#writeSoon) {
      this.#writeSoon = true;
      this.#network.after(this.#random.size(1, 50), () => this.#write());
    }
  }

  /** Header and messages, to the end of the request. */
  get #requestBytes(): number {
    const { header, messages } = this.talk;
    return messages.reduce((sum, { length }) => sum + length, header.length);
  }

  /** How far it may speak now. */
  get #mayBytes(): number {
    const { header, messages, pipelined, early } = this.talk;
    if (pipelined || this.#answered >= messages.length) return this.#requestBytes + early;
    let bytes = header.length;
    for (let i = 0; i <= this.#answered; i++) bytes += messages[i]!.length;
    return bytes + (this.#answered === messages.length - 1 ? early : 0);
  }

  #write(): void {
    this.#writeSoon = false;
    const { talk, tcp } = this;
    if (this.over || this.#stopped || this.refusal !== null || this.granted !== null) return;
    if (tcp.state === "connecting") return;
    const { fault } = talk;
    const most = fault === null || fault.kind === "dribble" ? Infinity : fault.afterBytes;
    const request = this.#requestBytes;
    let length = Math.min(this.#mayBytes, most) - this.#said;
    if (length > 0) {
      length = Math.min(length, fault?.kind === "dribble" ? 1 : this.#random.between(1, talk.pieceMax));
      this.#compose(this.#said, length);
      const sent = tcp.send(BUFFER, 0, length);
      if (sent === -EAGAIN) return;
      if (sent < 0) {
        this.#stopped = true; // Reading will say why.
        return this.#wake();
      }
      this.#said += sent;
      this.early = Math.max(0, this.#said - request);
      if (this.#said >= request && this.requestedUs === Infinity) {
        this.requestedUs = this.#network.nowUs;
        const { deafUs } = talk;
        if (deafUs > 0) {
          this.#readSoon = true;
          this.#network.after(deafUs, () => this.#read());
        }
      }
    }
    if (this.#said >= most) return this.#fail();
    if (this.#said >= request + talk.early && talk.finEarly) {
      this.#stopped = true;
      tcp.shutdownWrite();
      return;
    }
    if (this.#said < this.#mayBytes) {
      const pauseUs = this.#said > request ? talk.earlyPauseUs : talk.pauseUs;
      this.#writeSoon = true;
      const us = fault?.kind === "dribble" ? DRIBBLE_US : 1 + this.#random.between(0, pauseUs);
      this.#network.after(us, () => this.#write());
    }
  }

  /** BUFFER[0, length) is what stands at `at` of all that it has to say. */
  #compose(at: number, length: number): void {
    let from = 0;
    for (const part of [this.talk.header, ...this.talk.messages]) {
      for (let i = Math.max(from, at); i < Math.min(from + part.length, at + length); i++) {
        BUFFER[i - at] = part[i - from]!;
      }
      from += part.length;
    }
    const start = Math.max(from, at);
    if (start < at + length) fillStream(this.#stream, start - from, BUFFER, start - at, at + length - start);
  }

  /** It has said what it was to say before it failed. */
  #fail(): void {
    this.#stopped = true;
    const { kind } = this.talk.fault!;
    if (kind === "half") this.tcp.shutdownWrite();
    else if (kind !== "silent") this.#leave();
  }

  #leave(): void {
    if (this.over || this.granted !== null) return;
    this.left = true;
    this.#close(this.talk.fault!.kind === "reset");
  }

  #read(): void {
    this.#readSoon = false;
    while (!this.over && this.granted === null) {
      const got = this.tcp.receive(this.#byte, 0, 1, false);
      if (got === -EAGAIN) return;
      if (got <= 0) {
        this.sawEnd = got === 0 && !this.tcp.wasReset;
        this.endUs = this.#network.nowUs;
        const { clingsUs } = this.talk;
        if (!this.sawEnd || this.refusal === null || clingsUs === 0) return this.#close(false);
        this.#readSoon = true;
        this.#network.after(clingsUs, () => this.#close(false));
        return;
      }
      if (this.refusal !== null) throw new Error(`a byte behind the refusal: ${this.#byte[0]}`);
      this.#kept.push(this.#byte[0]!);
      this.#onByte();
    }
  }

  #onByte(): void {
    const kept = this.#kept;
    const { version, answers, messages } = this.talk;
    const answer = answers[this.#answered];
    if (answer === undefined) throw new Error(`an answer to nothing: ${kept.join(" ")}`);
    const whole = answer === "reply" ? replyLength(version, kept, this.#reports) : 2;
    if (kept.length < whole) return;
    this.heardUs = this.#network.nowUs;
    const good = judgeForm(answer, version, kept);
    const code = kept[1]!;
    if (answer === "method") this.#reports = code === 0xe0 || code === 0xe2;
    if (!good) this.refusal = { answer, code };
    else if (++this.#answered === messages.length) this.#onGranted();
    else this.#wake();
    kept.length = 0;
  }

  #onGranted(): void {
    const { version } = this.talk;
    const kept = this.#kept;
    const at = 4;
    const end = version === 4 ? 8 : replyLength(version, kept, false) - 2;
    const port = version === 4 ? 2 : end;
    this.granted = {
      bytes: Uint8Array.from(kept.slice(at, end)), port: (kept[port]! << 8) | kept[port + 1]!,
    };
    this.#takesOver(this.tcp, this.early);
  }

  #close(abort: boolean): void {
    this.over = true;
    this.tcp.close(abort);
  }
}

const leaves = ({ kind }: Fault): boolean => kind === "close" || kind === "reset";

function replyLength(version: 4 | 5, kept: readonly number[], reports: boolean): number {
  if (version === 4) return 8;
  const length = kept.length < 4 ? 10 : kept[3] === 4 ? 22 : 10;
  if (!reports) return length;
  return length + 2 + (kept.length < length + 2 ? 0 : (kept[length]! << 8) | kept[length + 1]!);
}

/** True: go on. Throws if it is no answer at all. */
function judgeForm(answer: AnswerKind, version: 4 | 5, kept: readonly number[]): boolean {
  const wrong = () => new Error(`no ${answer} of SOCKS${version}: ${kept.join(" ")}`);
  switch (answer) {
    case "method":
      if (kept[0] !== 5 || ![0, 2, 0xe0, 0xe2, 255].includes(kept[1]!)) throw wrong();
      return kept[1] !== 255;
    case "login":
      if (kept[0] !== 1) throw wrong();
      return kept[1] === 0;
    case "reply":
      if (version === 4) {
        if (kept[0] !== 0 || (kept[1] !== 0x5a && kept[1] !== 0x5b)) throw wrong();
        return kept[1] === 0x5a;
      }
      if (kept[0] !== 5 || kept[2] !== 0 || kept[1]! > 8 || ![1, 4].includes(kept[3]!)) throw wrong();
      return kept[1] === 0;
  }
}
