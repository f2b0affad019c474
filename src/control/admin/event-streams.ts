/**
 * Server-sent events: the same text to everybody who listens, a bounded number of listeners, and
 * none who holds up the others. Who does not take what he was sent is let go; his browser comes again.
 */
import type http from "node:http";

/** What may stand unsent for one listener. */
const UNSENT_BYTES_MAX = 1024 * 1024;
/**
 * A listener whose connection is silently gone is found out by writing to it, and one who is there
 * hears that we are: so often at least.
 */
export const ALIVE_MS = 4_000;

export class EventStreams {
  readonly #most: number;
  readonly #open = new Map<http.ServerResponse, { sentMs: number }>();

  constructor(most: number) {
    this.#most = most;
  }

  get size(): number {
    return this.#open.size;
  }

  get full(): boolean {
    return this.#open.size >= this.#most;
  }

  /** The response becomes a stream, until its client goes. `onEnd`: it has ended, in whatever way. */
  open(response: http.ServerResponse, onEnd: () => void = () => {}): void {
    response.writeHead(200, {
      "content-type": "text/event-stream; charset=utf-8",
      "x-accel-buffering": "no",
      connection: "close",
    });
    response.flushHeaders();
    this.#open.set(response, { sentMs: performance.now() });
    response.on("close", () => {
      this.#open.delete(response);
      onEnd();
    });
    response.on("error", () => {});
  }

  /** To one of them. `data` is one line, as JSON is. */
  send(response: http.ServerResponse, event: string, data: string): void {
    this.#write(response, frameOf(event, data));
  }

  sendAll(event: string, data: string): void {
    const frame = frameOf(event, data);
    for (const response of [...this.#open.keys()]) this.#write(response, frame);
  }

  /** To be called now and then: says something to who has heard nothing for long. */
  keepAlive(): void {
    for (const [response, stream] of [...this.#open]) {
      if (performance.now() - stream.sentMs < ALIVE_MS) continue;
      if (response.writableLength > 0) this.#drop(response);
      else {
        stream.sentMs = performance.now();
        response.write(":\n\n");
      }
    }
  }

  /** Everybody is told so, and let go. */
  close(reason: string): void {
    this.sendAll("bye", JSON.stringify({ reason }));
    for (const response of this.#open.keys()) response.end();
  }

  #write(response: http.ServerResponse, frame: Buffer): void {
    const stream = this.#open.get(response);
    if (stream === undefined) return;
    if (response.writableLength > UNSENT_BYTES_MAX) return this.#drop(response);
    stream.sentMs = performance.now();
    response.write(frame);
  }

  #drop(response: http.ServerResponse): void {
    this.#open.delete(response);
    response.destroy();
  }
}

const frameOf = (event: string, data: string): Buffer => Buffer.from(`event: ${event}\ndata: ${data}\n\n`);
