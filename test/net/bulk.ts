/**
 * Much pseudo-random data over HTTP, with its digest: a program of its own, so that neither the
 * test's process nor the disk is in the way.
 *
 *     node bulk.js serve ADDRESS PORT     GET /N sends N bytes, GET /digest the digest of the last;
 *                                         PUT receives, and answers with the digest
 *     node bulk.js generate N             N bytes to standard output, the digest to standard error
 *     node bulk.js digest                 the digest of standard input
 */
import { createCipheriv, createHash } from "node:crypto";
import { createServer } from "node:http";
import { Readable, type Writable } from "node:stream";
import { pipeline } from "node:stream/promises";

const BLOCK = Buffer.alloc(1 << 18);

/** AES in counter mode over zeros: as good as random, and faster than any disk. */
function* random(bytes: number): Generator<Buffer> {
  const cipher = createCipheriv("aes-128-ctr", Buffer.alloc(16, 7), Buffer.alloc(16, 9));
  for (let left = bytes; left > 0; left -= BLOCK.length) {
    yield cipher.update(BLOCK.subarray(0, Math.min(left, BLOCK.length)));
  }
}

async function send(bytes: number, to: Writable): Promise<string> {
  const hash = createHash("sha256");
  const hashed = function* (): Generator<Buffer> {
    for (const block of random(bytes)) {
      hash.update(block);
      yield block;
    }
  };
  await pipeline(Readable.from(hashed(), { objectMode: true }), to);
  return hash.digest("hex");
}

function serve(address: string, port: number): void {
  let digest = "";
  const server = createServer((request, response) => {
    const bytes = Number(request.url!.slice(1));
    if (request.method === "PUT") {
      const hash = createHash("sha256");
      request.on("data", (chunk: Buffer) => hash.update(chunk));
      request.on("end", () => response.end(hash.digest("hex")));
    } else if (Number.isNaN(bytes)) {
      response.end(digest);
    } else {
      response.setHeader("content-length", bytes);
      send(bytes, response).then(
        (of) => (digest = of),
        () => {},
      );
    }
  });
  server.listen(port, address, () => process.stdout.write("listening\n"));
}

const [role, first, second] = process.argv.slice(2);
if (role === "serve") serve(first!, Number(second));
if (role === "digest") {
  const hash = createHash("sha256");
  for await (const chunk of process.stdin) hash.update(chunk as Buffer);
  process.stdout.write(hash.digest("hex"));
}
if (role === "generate") process.stderr.write(await send(Number(first), process.stdout));
