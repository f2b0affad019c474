/**
 * SOCKS clients that others have written for Node, as programs of their own, so that they run on
 * any host of the sandbox:
 *
 *     node strangers.js socks PROXY-HOST PROXY-PORT 4|5 HOST PORT [USER PASSWORD]
 *     node strangers.js undici PROXY-HOST PROXY-PORT URL [USER PASSWORD]
 *
 * Prints what the web server said; ends with 1 and the error otherwise.
 */
import { isIPv6 } from "node:net";
import { SocksClient } from "socks";
import { request, Socks5ProxyAgent } from "undici";

const [client, proxyHost = "", proxyPort = "", ...rest] = process.argv.slice(2);

async function bySocks(version: string, host: string, port: string, user?: string, pass?: string) {
  const { socket } = await SocksClient.createConnection({
    proxy: {
      host: proxyHost,
      port: Number(proxyPort),
      type: version === "4" ? 4 : 5,
      ...(user === undefined ? {} : { userId: user }),
      ...(pass === undefined ? {} : { password: pass }),
    },
    command: "connect",
    destination: { host, port: Number(port) },
    timeout: 60_000,
  });
  const name = isIPv6(host) ? `[${host}]` : host;
  socket.write(`GET / HTTP/1.1\r\nHost: ${name}\r\nConnection: close\r\n\r\n`);
  socket.resume();
  let answer = "";
  for await (const chunk of socket) answer += String(chunk);
  return answer.slice(answer.indexOf("{"), answer.lastIndexOf("}") + 1);
}

async function byUndici(url: string, username?: string, password?: string) {
  const host = isIPv6(proxyHost) ? `[${proxyHost}]` : proxyHost;
  const dispatcher = new Socks5ProxyAgent(`socks5://${host}:${proxyPort}`, {
    ...(username === undefined ? {} : { username }),
    ...(password === undefined ? {} : { password }),
  });
  const { body } = await request(url, { dispatcher });
  const answer = await body.text();
  await dispatcher.close();
  return answer.trim();
}

try {
  const [first = "", second = "", third = "", ...login] = rest;
  const answer =
    client === "socks"
      ? await bySocks(first, second, third, ...login)
      : await byUndici(first, ...(second === "" ? [] : [second, third]));
  process.stdout.write(`${answer}\n`);
  process.exit(0);
} catch (error) {
  process.stderr.write(`${(error as Error).message}\n`);
  process.exit(1);
}
