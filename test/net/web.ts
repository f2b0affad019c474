/**
 * A web server whose answers say what it saw, and curl to ask it.
 */
import { strict as assert } from "node:assert";
import { createServer, type Server } from "node:http";
import { Readable } from "node:stream";
import { boundSocket, text } from "./actors.ts";
import type { Process } from "./process.ts";
import type { Host, Place } from "./sandbox.ts";

/** What the server saw of a request: the answer's body. */
export interface Seen {
  /** Who was on the other side of the connection: the proxy, if all is well. */
  peer: string;
  /** The address that the client wanted. */
  local: string;
  path: string;
  host: string;
}

/** Answers with a Seen; /bytes/N with so many bytes, /slow/N so many milliseconds later. */
export function webServer(host: Place, address: string, port: number): Server {
  const server = createServer({ keepAliveTimeout: 1_000 }, (request, response) => {
    const { socket, url = "", headers } = request;
    const [, verb, number] = url.split("/");
    const seen: Seen = {
      peer: socket.remoteAddress ?? "",
      local: text(socket.localAddress ?? "", socket.localPort ?? 0),
      path: url,
      host: headers.host ?? "",
    };
    const answer = (): void => void response.end(`${JSON.stringify(seen)}\n`);
    request.resume();
    if (verb === "bytes") {
      response.setHeader("content-length", Number(number));
      Readable.from(blocks(Number(number))).pipe(response);
    } else if (verb === "slow") setTimeout(answer, Number(number));
    else answer();
  });
  server.listen({ fd: boundSocket(host, address, port) });
  return server;
}

const BLOCK = Buffer.alloc(1 << 16, "b");

/** So many bytes, and never more memory than one block: a test that leaves a download asks for half a gigabyte. */
function* blocks(bytes: number): Generator<Buffer> {
  for (let left = bytes; left > 0; left -= BLOCK.length) yield BLOCK.subarray(0, Math.min(left, BLOCK.length));
}

export interface Fetched {
  /** curl's exit status: 0 is success. */
  status: number | null;
  body: Buffer;
  error: string;
}

/** curl on a host, without any proxy setting of its own. */
export async function curl(host: Host, ...args: string[]): Promise<Fetched> {
  const program: Process = host.spawn(
    "curl",
    ["--silent", "--show-error", "--noproxy", "*", "--max-time", "60", ...args],
    { binary: true },
  );
  const exit = await program.exited;
  return { status: exit.code, body: Buffer.concat(program.data), error: program.output.trim() };
}

/**
 * curl was reset: 56 is that in so many words; where the reset comes so soon that curl still waits
 * for connect(), it says 7, and 55 if it comes between that and the request. A clean end without an answer
 * would be 52.
 */
export function assertReset(fetched: Fetched): void {
  const words = `status ${fetched.status}: ${fetched.error}`;
  assert.ok([7, 55, 56].includes(fetched.status ?? -1), `curl was to be reset, but: ${words}`);
}

/** curl to a web server of ours: what that saw. Fails with curl's words if curl does. */
export async function visit(host: Host, url: string, ...args: string[]): Promise<Seen> {
  const { status, body, error } = await curl(host, ...args, url);
  if (status !== 0) throw new Error(`curl ${url}: status ${status}: ${error}`);
  return JSON.parse(String(body)) as Seen;
}
