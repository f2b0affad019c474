/**
 * The naive baseline: the same relay as anyone would write it in an afternoon with node:net and
 * pipe(). It relays and half-closes; every byte goes through JavaScript.
 *
 *     node dist/bench/pipe-relay.js LISTEN_PORT UPSTREAM_PORT
 */
import net from "node:net";
import { SO_ORIGINAL_DST, SOCKADDR_SIZE, SOL_IP, SOL_IPV6 } from "../native-bindings/constants.ts";
import { linux } from "../native-bindings/syscalls.ts";

const [listenPort, upstreamPort] = process.argv.slice(2).map(Number);
const sys = linux();
const address = sys.memory(SOCKADDR_SIZE);

for (const host of ["127.0.0.1", "::1"]) {
  net.createServer({ allowHalfOpen: true, noDelay: true, pauseOnConnect: true }, tunnel)
    .listen({ port: listenPort!, host, backlog: 4096 });
}

function tunnel(client: net.Socket): void {
  const destination = originalDestination(client);
  if (destination === null) {
    client.resetAndDestroy();
    return;
  }
  const upstream = net.connect({
    host: "127.0.0.1", port: upstreamPort!, allowHalfOpen: true, noDelay: true,
  });
  const fail = () => {
    client.resetAndDestroy();
    upstream.resetAndDestroy();
  };
  client.on("error", fail);
  upstream.on("error", fail);
  upstream.on("connect", () => upstream.write(Uint8Array.of(5, 1, 0)));

  let received: Buffer = Buffer.alloc(0);
  let greeted = false;
  const handshake = (bytes: Buffer) => {
    received = received.length === 0 ? bytes : Buffer.concat([received, bytes]);
    if (!greeted) {
      if (received.length < 2) return;
      if (received[0] !== 5 || received[1] !== 0) return fail();
      received = received.subarray(2);
      greeted = true;
      upstream.write(destination);
    }
    if (received.length < 5) return;
    if (received[1] !== 0) return fail();
    const length = received[3] === 1 ? 10 : received[3] === 4 ? 22 : 7 + received[4]!;
    if (received.length < length) return;
    upstream.off("data", handshake);
    upstream.pause();
    if (received.length > length) upstream.unshift(received.subarray(length));
    client.pipe(upstream);
    upstream.pipe(client);
  };
  upstream.on("data", handshake);
}

/** The SOCKS5 request for where the client wanted to go, or null if the kernel does not know. */
function originalDestination(client: net.Socket): Buffer | null {
  const { fd } = (client as unknown as { _handle: { fd: number } })._handle;
  const six = client.remoteFamily === "IPv6";
  const result = sys.getsockopt(
    fd, six ? SOL_IPV6 : SOL_IP, SO_ORIGINAL_DST, address, 0, six ? SOCKADDR_SIZE : 16,
  );
  if (result < 0) return null;
  const { bytes } = address;
  return Buffer.concat([
    Uint8Array.of(5, 1, 0, six ? 4 : 1),
    six ? bytes.subarray(8, 24) : bytes.subarray(4, 8),
    bytes.subarray(2, 4),
  ]);
}
