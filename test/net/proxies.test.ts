/**
 * The proxies as the scenarios start them, asked directly by curl: so that a failure behind the
 * relay is the relay's.
 */
import { strict as assert } from "node:assert";
import { FAMILIES, PROXY, SERVER } from "./network.ts";
import { absence, listening, PROXIES } from "./proxies.ts";
import { scenario } from "./scenario.ts";
import { text } from "./actors.ts";
import { curl, type Seen, webServer } from "./web.ts";

const ACCOUNT = { username: "alice", password: "s3cret" };

for (const proxy of PROXIES) {
  for (const account of [null, ACCOUNT]) {
    scenario(
      `${proxy.program}${account === null ? "" : " with a password"} serves`,
      async (stage) => {
        const missing = absence(proxy);
        if (missing !== null) stage.skip(missing);
        const { relay, internet, proxy: host } = stage.net;
        for (const family of FAMILIES) {
          const server = webServer(internet, SERVER[family], 80);
          stage.finally(() => void server.close());
        }
        const program = stage.keep(proxy.start(host, PROXY[4], 3128, account));
        await listening(program, relay, PROXY[4], 3128);
        const login =
          account === null ? [] : ["--proxy-user", `${account.username}:${account.password}`];
        for (const family of FAMILIES) {
          const { status, body, error } = await curl(
            relay,
            "--noproxy",
            "",
            "--proxytunnel",
            "--proxy",
            `${proxy.scheme}://${PROXY[4]}:3128`,
            ...login,
            `http://${text(SERVER[family], 80)}/`,
          );
          assert.equal(status, 0, error);
          assert.equal((JSON.parse(String(body)) as Seen).peer, PROXY[family]);
        }
      },
    );
  }
}
