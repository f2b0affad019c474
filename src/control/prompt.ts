/**
 * A password from standard input: asked for twice without echo where a person sits there, else the
 * first line of what comes.
 */
import { USER_BYTES_MAX } from "../config/items.ts";

/** process.stdin, as far as it is needed. */
export interface Input {
  readonly isTTY?: boolean;
  setRawMode?(raw: boolean): unknown;
  on(event: "data", listener: (chunk: Uint8Array) => void): unknown;
  on(event: "end" | "error", listener: () => void): unknown;
  resume(): unknown;
  pause(): unknown;
}

/** Longer lines are no passwords. */
const LINE_BYTES_MAX = 1024;

const CTRL_C = 0x03;
const CTRL_D = 0x04;
const BACKSPACE = 0x08;
const NEWLINE = 0x0a;
const RETURN = 0x0d;
const CTRL_U = 0x15;
const DELETE = 0x7f;

/** `say` shows the prompts. */
export async function readPassword(
  input: Input, say: (text: string) => void,
): Promise<{ password: string } | { wrong: string }> {
  const lines = new Lines(input);
  const terminal = input.isTTY === true;
  if (terminal) input.setRawMode?.(true);
  try {
    if (terminal) say("Password: ");
    const first = await lines.next();
    if (terminal) say("\n");
    const wrong = typeof first === "string" ? first : fault(first);
    if (wrong !== null) return { wrong };
    if (terminal) {
      say("Again: ");
      const again = await lines.next();
      say("\n");
      if (again === "interrupted") return { wrong: "interrupted" };
      if (typeof again === "string" || !same(first as Uint8Array, again)) {
        return { wrong: "the two are not the same" };
      }
    }
    return { password: new TextDecoder().decode(first as Uint8Array) };
  } finally {
    if (terminal) input.setRawMode?.(false);
    input.pause();
  }
}

function fault(password: Uint8Array): string | null {
  if (password.length === 0) return "the password is empty";
  if (password.length > USER_BYTES_MAX) {
    return `the password has more than ${USER_BYTES_MAX} bytes, which SOCKS5 cannot carry`;
  }
  try {
    new TextDecoder("utf-8", { fatal: true }).decode(password);
    return null;
  } catch {
    return "the password is not UTF-8";
  }
}

const same = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

/** Lines as they come; on a terminal, with the keys that a terminal itself would have obeyed. */
class Lines {
  readonly #raw: boolean;
  readonly #bytes: number[] = [];
  #line: number[] = [];
  #ended = false;
  #wake: () => void = () => {};

  constructor(input: Input) {
    this.#raw = input.isTTY === true;
    input.on("data", (chunk) => {
      // What comes after this is no line, and is not kept.
      if (this.#bytes.length <= 2 * LINE_BYTES_MAX) this.#bytes.push(...chunk.subarray(0, 4096));
      this.#wake();
    });
    const end = (): void => {
      this.#ended = true;
      this.#wake();
    };
    input.on("end", end);
    input.on("error", end);
    input.resume();
  }

  /** A line without its end, or why there is none. */
  async next(): Promise<Uint8Array | string> {
    for (;;) {
      const byte = this.#bytes.shift();
      if (byte === undefined) {
        if (this.#ended) return this.#taken();
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
      } else if (byte === NEWLINE || (this.#raw && byte === RETURN)) {
        return this.#taken();
      } else if (this.#raw && byte === CTRL_C) {
        return "interrupted";
      } else if (this.#raw && byte === CTRL_D) {
        return this.#taken();
      } else if (this.#raw && byte === CTRL_U) {
        this.#line = [];
      } else if (this.#raw && (byte === BACKSPACE || byte === DELETE)) {
        // A character of UTF-8 is its first byte and all that continue it.
        while (((this.#line.pop() ?? 0) & 0xc0) === 0x80);
      } else {
        this.#line.push(byte);
        if (this.#line.length > LINE_BYTES_MAX) return "the line is too long for a password";
      }
    }
  }

  #taken(): Uint8Array {
    const line = this.#line;
    this.#line = [];
    // A file from elsewhere may end its lines with both.
    if (!this.#raw && line.at(-1) === RETURN) line.pop();
    return Uint8Array.from(line);
  }
}
