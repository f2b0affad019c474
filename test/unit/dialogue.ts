/**
 * Plays dialogues with a protocol machine the way a hostile caller might: the input moves between
 * calls, poison stands on both sides of it, and the peer's bytes come in whatever cuts.
 *
 * A dialogue is played whole, byte by byte, and with the tunnel's first bytes glued to the last
 * answer: a pure machine may not care how bytes were cut.
 */
import assert from "node:assert/strict";
import {
  type Failure,
  type Handshake,
  OUTPUT_BYTES_MAX,
  type Step,
} from "../../src/protocol/handshake.ts";

export type Bytes = string | readonly number[] | Uint8Array;

/** One turn of a dialogue: what we send, or what the peer then answers. */
export type Line = { readonly sends: Bytes } | { readonly gets: Bytes };

export type Outcome =
  | { readonly do: "read" }
  | { readonly do: "finish"; readonly consumed: number }
  | { readonly do: "fail"; readonly failure: Failure };

export function bytesOf(from: Bytes): Uint8Array {
  return typeof from === "string" ? new TextEncoder().encode(from) : Uint8Array.from(from);
}

/** Plays `lines` with a fresh machine in every way that we know; each must come to `outcome`. */
export function dialogue(
  make: () => Handshake,
  lines: readonly Line[],
  outcome: { readonly do: "finish" } | { readonly do: "read" } | { readonly failure: Failure },
): void {
  const tunnel = bytesOf("SSH-2.0-glued\r\n\r\n\n");
  for (const way of ["whole", "byte by byte", "glued"] as const) {
    const player = new Player(make());
    let sent = 0;
    let answered = 0;
    lines.forEach((line, index) => {
      if ("sends" in line) {
        const expected = bytesOf(line.sends);
        const found = player.sent.slice(sent, sent + expected.length);
        assert.deepEqual(found, [...expected], `${way}: what line ${index} sends`);
        sent += expected.length;
        return;
      }
      assert.equal(player.sent.length, sent, `${way}: more was sent before line ${index}`);
      const bytes = bytesOf(line.gets);
      answered += bytes.length;
      if (way === "byte by byte") for (const byte of bytes) player.feed([byte]);
      else if (way === "whole" || index < lines.length - 1) player.feed(bytes);
      else player.feed([...bytes, ...tunnel]);
    });
    assert.equal(player.sent.length, sent, `${way}: more was sent at the end`);
    if ("failure" in outcome) {
      assert.deepEqual(player.outcome, { do: "fail", failure: outcome.failure }, way);
    } else if (outcome.do === "read") {
      if (way !== "glued") assert.deepEqual(player.outcome, { do: "read" }, way);
    } else {
      assert.deepEqual(player.outcome, { do: "finish", consumed: answered }, way);
    }
  }
}

/** A caller of a machine: keeps what was not consumed, and checks the contract at each step. */
export class Player {
  readonly sent: number[] = [];
  readonly #machine: Handshake;
  readonly #output = new Uint8Array(OUTPUT_BYTES_MAX);
  #kept = new Uint8Array(0);
  #consumed = 0;
  #moves = 0;
  outcome: Outcome = { do: "read" };

  constructor(machine: Handshake) {
    this.#machine = machine;
    this.#run();
  }

  /** What comes after the end is the tunnel's, and ignored here. */
  feed(bytes: ArrayLike<number>): void {
    if (this.outcome.do !== "read") return;
    const kept = new Uint8Array(this.#kept.length + bytes.length);
    kept.set(this.#kept);
    kept.set(bytes, this.#kept.length);
    this.#kept = kept;
    this.#run();
  }

  #run(): void {
    // A dialogue has at most three messages of ours; a machine that wants more will not end.
    for (let calls = 0; calls < 5; calls++) {
      const step = this.#advance();
      if (step.do === "read") {
        assert(this.#kept.length < this.#machine.inputBytesMax, "asks for more than its bound");
        return;
      }
      if (step.do === "fail") {
        this.outcome = step;
        return;
      }
      const there = step.consumed >= 0 && step.consumed <= this.#kept.length;
      assert(there, "consumed what is not there");
      this.#consumed += step.consumed;
      this.#kept = this.#kept.slice(step.consumed);
      if (step.do === "finish") {
        this.outcome = { do: "finish", consumed: this.#consumed };
        return;
      }
      assert(step.length > 0 && step.length <= OUTPUT_BYTES_MAX, "a write of no or too many bytes");
      this.sent.push(...this.#output.subarray(0, step.length));
    }
    assert.fail("the machine does not come to an end");
  }

  #advance(): Step {
    const start = (this.#moves++ * 7) % 11;
    const end = start + this.#kept.length;
    // Poison that would end an HTTP header or pass for a SOCKS version.
    const input = new Uint8Array(end + 3).fill(this.#moves % 2 === 0 ? 0x0a : 0x05);
    input.set(this.#kept, start);
    this.#output.fill(0xee);
    return this.#machine.advance(input, start, end, this.#output);
  }
}

/** Feeds the chunks to a fresh machine; all that a caller can see of it. */
export function play(make: () => Handshake, chunks: readonly ArrayLike<number>[]): unknown {
  const player = new Player(make());
  for (const chunk of chunks) player.feed(chunk);
  return { outcome: player.outcome, sent: player.sent };
}

/** Cuts `bytes` at the given places, counted round and round; equal places give empty pieces. */
export function cut(bytes: Uint8Array, places: readonly number[]): Uint8Array[] {
  const sorted = places.map((place) => place % (bytes.length + 1)).sort((a, b) => a - b);
  const ends = [...sorted, bytes.length];
  return ends.map((end, i) => bytes.subarray(i === 0 ? 0 : ends[i - 1], end));
}
