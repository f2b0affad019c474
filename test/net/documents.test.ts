/** The rules that docs/firewall.md tells operators to set, set as they stand there. */
import { strict as assert } from "node:assert";
import { readFileSync } from "node:fs";
import { refusal } from "./firewall.ts";
import { FAMILIES, LAN, PROXY, SERVER } from "./network.ts";
import { unprivileged } from "./sandbox.ts";
import { scenario, type Stage } from "./scenario.ts";
import { visit, webServer } from "./web.ts";
import { text } from "./actors.ts";

const PAGE = readFileSync(new URL("../../../docs/firewall.md", import.meta.url), "utf8");

/** The block of code behind the marker. */
function rules(marker: string): string {
  const block = new RegExp(`<!-- rules: ${marker} -->\\n\`\`\`\\n([\\s\\S]*?)\`\`\``).exec(PAGE)?.[1];
  assert.ok(block !== undefined, `docs/firewall.md has rules for ${marker}`);
  return block.replaceAll("203.0.113.5", PROXY[4]);
}

function servers(stage: Stage): void {
  for (const family of FAMILIES) {
    const server = webServer(stage.net.internet, SERVER[family], 80);
    stage.finally(() => void server.close());
  }
}

/**
 * The exempt user is this one, under which transplice runs here; the application is another.
 */
async function localPrograms(stage: Stage, marker: "nft" | "iptables"): Promise<void> {
  if (unprivileged()) stage.skip("the rules exempt a user, and in a user namespace there is only one");
  const missing = refusal(marker === "nft" ? "nft" : "iptables-nft", { mode: "redirect", from: "local", port: 1081 });
  if (missing !== null) stage.skip(missing);
  servers(stage);
  const host = stage.net.relay;
  const text4 = rules(marker).replaceAll(/transplice(?=" return| -j RETURN)/g, "root");
  if (marker === "nft") host.run("nft", ["-f", "-"], text4);
  else host.run("sh", ["-e"], text4);
  stage.finally(() => {
    if (marker === "nft") host.run("nft", ["delete", "table", "inet", "transplice"]);
    else for (const tool of ["iptables", "ip6tables"]) host.run("sh", ["-ec", `${tool} -t nat -F; ${tool} -t nat -X`]);
  });
  const upstream = stage.upstream({ protocol: "socks5", dials: true });
  const relay = await stage.relay({ proxy_url: upstream.url() });
  for (const family of FAMILIES) {
    const url = `http://${text(SERVER[family], 80)}/`;
    const { status, output } = await host.execute(
      "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
      "curl", "-sS", "--noproxy", "*", "--max-time", "60", url,
    );
    assert.equal(status, 0, output);
    assert.equal(JSON.parse(output).peer, PROXY[family], "the server sees the proxy");
    await relay.ended(text(SERVER[family], 80));
  }
  // Special ranges, and the exempt user, go their own way.
  assert.equal((await visit(host, `http://${text(SERVER[4], 80)}/`)).peer, "192.0.2.1");
}

scenario("the page's nft rules", (stage) => localPrograms(stage, "nft"));
scenario("the page's iptables rules", (stage) => localPrograms(stage, "iptables"));

scenario("the page's TPROXY rules", async (stage) => {
  const missing = refusal("nft", { mode: "tproxy", from: "routed", port: 1081 });
  if (missing !== null) stage.skip(missing);
  servers(stage);
  const host = stage.net.relay;
  host.run("sh", ["-e"], rules("tproxy").replaceAll("lan0", "inner"));
  stage.finally(() => {
    host.run("nft", ["delete", "table", "inet", "transplice"]);
    for (const family of ["-4", "-6"]) {
      host.run("ip", [family, "rule", "delete", "fwmark", "0x1", "lookup", "100"]);
      host.run("ip", [family, "route", "flush", "table", "100"]);
    }
  });
  const upstream = stage.upstream({ protocol: "socks5", dials: true });
  const relay = await stage.relay({ proxy_url: upstream.url(), mode: "tproxy", listen: ":1081" });
  for (const family of FAMILIES) {
    const seen = await visit(stage.net.lan, `http://${text(SERVER[family], 80)}/`);
    assert.equal(seen.peer, PROXY[family], "the server sees the proxy");
    const ended = await relay.ended(text(SERVER[family], 80));
    assert.ok(ended.client_addr.includes(LAN[family]), ended.client_addr);
  }
});
