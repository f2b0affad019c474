/**
 * Those who look at the running program while it works: so many scrapes a second of its metrics, and
 * pages that are open. They say how much they saw, so that nobody measures watchers who see nothing.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { writeFileSync } from "node:fs";
import net from "node:net";
import { createInterface } from "node:readline";
import { BIN, listening, SCRATCH } from "./subjects.ts";

const SCRAPES_PER_SECOND = 10;
const PAGES = 3;

/** What they have seen up to now. */
export interface Seen {
  readonly scrapes: number;
  readonly events: number;
}

export class Watchers {
  readonly #process: ChildProcess;
  readonly #lines: AsyncIterator<string>;

  private constructor(port: number, scrapes: number) {
    this.#process = spawn(`${BIN}watch`, [`${port}`, `${scrapes}`, `${PAGES}`], { stdio: ["pipe", "pipe", "inherit"] });
    this.#lines = createInterface({ input: this.#process.stdout! })[Symbol.asyncIterator]();
  }

  /** Resolves when each of them has seen something. */
  static async begin(port: number, scrapes = SCRAPES_PER_SECOND): Promise<Watchers> {
    const watchers = new Watchers(port, scrapes);
    await watchers.#told();
    return watchers;
  }

  async seen(): Promise<Seen> {
    this.#process.stdin!.write("\n");
    return this.#told();
  }

  async end(): Promise<void> {
    const gone = new Promise((resolve) => this.#process.once("exit", resolve));
    this.#process.stdin!.end();
    await gone;
  }

  async #told(): Promise<Seen> {
    const line = await this.#lines.next();
    if (line.done === true) throw new Error("the watchers ended early");
    return JSON.parse(line.value) as Seen;
  }
}

const FLOOR_OFFSET = 100;
const ANSWER_MS = 5000;

/** Somebody who answers watchers what the program has answered once, for as little as that takes. */
export class Floor {
  readonly port: number;
  readonly #process: ChildProcess;

  private constructor(port: number, process: ChildProcess) {
    this.port = port;
    this.#process = process;
  }

  /** `admin`: the port of the program, which is asked for its answers. */
  static async begin(admin: number): Promise<Floor> {
    const [page, stream] = [`${SCRATCH}floor.page`, `${SCRATCH}floor.stream`];
    writeFileSync(page, await answerTo(admin, "/metrics", (text) => {
      const head = text.indexOf("\r\n\r\n");
      return head >= 0 && text.length >= head + 4 + Number(/^content-length: (\d+)/m.exec(text)![1]);
    }));
    writeFileSync(stream, await answerTo(admin, "/events", (text) => /^event: status\n.*\n\n/m.test(text)));
    const port = admin + FLOOR_OFFSET;
    const child = spawn(`${BIN}answer`, [`${port}`, page, stream], { stdio: ["ignore", "inherit", "inherit"] });
    await listening(port, child, "answer");
    return new Floor(port, child);
  }

  end(): void {
    this.#process.kill();
  }
}

/** All that has come when it is enough, as bytes. */
function answerTo(port: number, path: string, isWhole: (text: string) => boolean): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const socket = net.connect(port, "127.0.0.1");
    const pieces: Buffer[] = [];
    socket.setTimeout(ANSWER_MS, () => socket.destroy(new Error(`${path} is not answered`)));
    socket.on("error", reject);
    socket.on("end", () => reject(new Error(`the answer to ${path} ended early`)));
    socket.on("data", (piece) => {
      pieces.push(piece);
      const all = Buffer.concat(pieces);
      if (!isWhole(all.toString("latin1"))) return;
      socket.destroy();
      resolve(all);
    });
    socket.write(`GET ${path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n`);
  });
}
