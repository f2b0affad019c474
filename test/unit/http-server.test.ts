/** Servers of the control plane that leave while they are asked something. */
import assert from "node:assert/strict";
import { once } from "node:events";
import net from "node:net";
import { test } from "node:test";
import { HttpServers } from "../../src/control/admin/http-server.ts";

const REQUEST = "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";

test("who is in the middle of a request as the server leaves is answered, and nothing more", async () => {
  const servers = new HttpServers({
    purpose: "a test", log: { error: assert.fail, warning: assert.fail }, methods: ["GET"],
    answer: (_request, response) => void response.writeHead(200, { "content-length": 0 }).end(),
  });
  assert.deepEqual(await servers.move([{ text: "127.0.0.1:0", dualStack: false }]), []);
  const client = net.connect(Number(servers.listening[0]!.split(":").at(-1)), "127.0.0.1");
  client.on("error", () => {}); // It may be reset, for what it says in vain.
  let said = "";
  client.on("data", (bytes) => (said += String(bytes)));
  client.write(`${REQUEST}GET /last`);
  await once(client, "data");
  const left = servers.close();
  client.write(REQUEST.slice("GET /".length));
  await once(client, "data");
  const closed = once(client, "close");
  client.write(REQUEST);
  await Promise.all([left, closed]);
  assert.equal(said.split("HTTP/1.1 200").length - 1, 2);
});
