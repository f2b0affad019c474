/**
 * The picture of the status page that the README shows: five minutes of a small network's traffic,
 * seen by a real browser. `make picture` runs it.
 */
import { copyFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { text } from "./actors.ts";
import { browserOn, open } from "./browser.ts";
import { SERVER } from "./network.ts";
import { PRIVATE } from "./sandbox.ts";
import { scenario } from "./scenario.ts";
import { webServer } from "./web.ts";

const MARK = 0x1081;
const MINUTES = 5;
const PLACES = [SERVER[4], "198.51.100.23", "198.51.100.77", "198.51.100.140", "198.51.100.201"];

scenario("five minutes", async (stage) => {
  for (const address of PLACES) {
    const server = webServer(stage.net.internet, address, 80);
    stage.finally(() => {
      server.closeAllConnections();
      server.close();
    });
  }
  const upstream = stage.upstream({ protocol: "socks5", dials: true });
  await stage.relay({
    listen: "127.0.0.1:1081", proxy_url: upstream.url(), mark: MARK, workers: 2, max_connections: 2000, admin: { listen: "127.0.0.1:9181" },
  });
  stage.intercept({ mode: "redirect", from: "local", port: 1081, exceptMark: MARK });
  // Each place has its own rhythm: a wave of sizes, and pauses between.
  PLACES.forEach((address, i) => {
    const curl = `curl -s -o /dev/null --noproxy '*' -m 20`;
    const url = `http://${text(address, 80)}/bytes`;
    const waves = `awk 'BEGIN { srand(${i}); for (n = 0; n < 4000; n++) print int(60000 + 2500000 * (1 + sin(n / ${20 + 9 * i})) * rand()) }'`;
    stage.spawn(stage.net.relay, "sh", "-c", `${waves} | while read bytes; do ${curl} ${url}/$bytes; sleep 0.${2 + i}; done`);
    if (i % 2 === 1) stage.spawn(stage.net.relay, "sh", "-c", `${waves} | while read bytes; do head -c $((bytes / 10)) /dev/zero | ${curl} -T - ${url}/10; sleep 0.6; done`);
    for (let n = 0; n < 6 + i * 3; n++) stage.spawn(stage.net.relay, "sh", "-c", `sleep ${n}; ${curl.replace("20", "400")} --limit-rate 20k ${url}/90000000`);
  });
  const browser = await browserOn(stage, stage.net.relay);
  const { page } = await open(browser, "http://127.0.0.1:9181/", { width: 1180, height: 1000, scheme: "light" });
  await new Promise((resolve) => setTimeout(resolve, MINUTES * 60_000));
  await page.screenshot({ path: `${PRIVATE}/page.png` });
  copyFileSync(`${PRIVATE}/page.png`, fileURLToPath(new URL("../../../docs/page.png", import.meta.url)));
});
