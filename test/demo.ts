/**
 * The main job, shown in a private network: real firewall rules, transplice as the transparent
 * proxy, transplice again as the SOCKS egress with several addresses to leave by, a web server on
 * an address that exists nowhere, and curl, which knows of none of this, fetching from it by IPv4
 * and IPv6. Then a bulk download. Nothing of the host is touched, and nothing is left behind.
 */
import { existsSync } from "node:fs";
import { createServer } from "node:http";
import { fileURLToPath } from "node:url";
import { text } from "./net/actors.ts";
import { type Backend, INTERNET, intercept, refusal, type Rules } from "./net/firewall.ts";
import { FAMILIES, type Family, type Network, network, PROXY, RELAY, SERVER } from "./net/network.ts";
import type { Process } from "./net/process.ts";
import { Relay } from "./net/relay.ts";
import { enter, HERE, type Host, haveIPv6 } from "./net/sandbox.ts";
import { curl, type Fetched, type Seen, webServer } from "./net/web.ts";

const PROGRAM = fileURLToPath(import.meta.url);
const LISTEN_PORT = 1081;
const EGRESS_PORT = 1080;
/** What the egress host leaves by: its "public" addresses. */
const EXITS = {
  4: ["192.0.2.21", "192.0.2.22", "192.0.2.23", "192.0.2.24"],
  6: ["2001:db8:2::21", "2001:db8:2::22"],
} as const;
const BULK_PORT = 8080;
const BULK_SECONDS = 3;

const colours = process.stdout.isTTY === true && process.env["NO_COLOR"] === undefined;
const paint =
  (code: number) =>
  (words: string): string =>
    colours ? `\x1b[${code}m${words}\x1b[0m` : words;
const bold = paint(1);
const dim = paint(2);
const red = paint(31);
const green = paint(32);
const cyan = paint(36);

// Whoever reads this may have had enough of it.
process.stdout.on("error", () => process.exit(0));
const say = (line = ""): void => void process.stdout.write(`${line}\n`);

async function demonstrate(): Promise<number> {
  for (const [program, from] of [
    ["unshare", "util-linux"],
    ["mount", "mount"],
    ["ip", "iproute2"],
  ] as const) {
    if (!installed(program)) return fail(`The demo needs ${program} (Debian package ${from}).`);
  }
  await enter("run `sudo env PATH=\"$PATH\" make demo`", "\nStopped. Nothing is left behind.\n");
  try {
    await show();
    return 0;
  } catch (error) {
    return fail((error as Error).message);
  } finally {
    // The sandbox ends with this process; so does all that runs in it.
    setTimeout(() => process.exit(), 100).unref();
  }
}

function fail(message: string): number {
  process.stderr.write(`${red("✖")} ${message}\n`);
  return 1;
}

interface Setting {
  net: Network;
  rules: Map<Family, Rules>;
  backend: Backend;
  relay: Relay;
  egress: Relay;
  server: Process;
}

async function show(): Promise<void> {
  const step = (words: string): void => say(`${green("•")} ${words}`);
  const net = network();
  step("a private network: an application's host, an egress host, and an internet of its own");

  const server = net.internet.spawn(process.execPath, [PROGRAM, "server"], {
    title: "the web server",
  });
  const exits = FAMILIES.flatMap((family) => EXITS[family]);
  for (const address of exits) {
    // Not preferred: whoever leaves by it was told to.
    const how = address.includes(":") ? "/64 dev wan nodad preferred_lft 0" : "/24 dev wan";
    net.proxy.ip(`address add ${address}${how}`);
  }
  const egress = Relay.spawn(net.proxy, {
    incoming: {
      port: EGRESS_PORT, addresses: [PROXY[4]], metrics_port: 0, allow_from: [RELAY[4]],
    },
    outgoing: { addresses: exits },
    log: { level: "info" },
  });
  await Promise.all([server.says(/listening/), egress.ready()]);
  step(
    `a web server on ${FAMILIES.map((family) => SERVER[family]).join(" and ")}: documentation addresses, nobody's`,
  );
  step(
    `transplice as egress on ${text(PROXY[4], EGRESS_PORT)}, with ${exits.length} addresses to leave by`,
  );

  const { backend, rules } = redirect(net.relay);
  step(`${backend} rules: what the application sends there is redirected to port ${LISTEN_PORT}`);

  const relay = Relay.spawn(net.relay, {
    listen: `localhost:${LISTEN_PORT}`,
    proxy_url: `socks5://${text(PROXY[4], EGRESS_PORT)}`,
    log: { level: "info" },
  });
  await relay.ready();
  step(`transplice as transparent proxy on localhost:${LISTEN_PORT}`);

  const setting = { net, rules, backend, relay, egress, server };
  for (const family of FAMILIES) await followOne(setting, family);
  if (!haveIPv6()) say(`\n${dim("IPv6 is left out: this kernel does not have it.")}`);
  await download(setting);

  await relay.stop();
  await egress.stop();
  server.kill();
  say();
  say(`${green("✔")} Done. The network was private and is gone; nothing is left behind.`);
}

/** The rules, in the first dialect that this machine speaks. */
function redirect(host: Host): { backend: Backend; rules: Map<Family, Rules> } {
  const all = { mode: "redirect", from: "local", port: LISTEN_PORT } as const;
  const backends = ["nft", "iptables-nft", "iptables-legacy"] as const;
  const refusals = backends.map((backend) => refusal(backend, all));
  const backend = backends[refusals.indexOf(null)];
  if (backend === undefined) {
    throw new Error(
      `This machine takes no rules that redirect (nft or iptables are needed):\n  ${refusals.join("\n  ")}`,
    );
  }
  const rules = FAMILIES.map((family) => {
    const destinations = [INTERNET[family === 4 ? 0 : 1]];
    return [family, intercept(host, backend, { ...all, destinations })] as const;
  });
  return { backend, rules: new Map(rules) };
}

/** One fetch, and what was seen of it at each hop. */
async function followOne(setting: Setting, family: Family): Promise<void> {
  const { net, relay, egress, rules, backend } = setting;
  const destination = text(SERVER[family], 80);
  const url = `http://${destination}/hello`;
  const before = rules.get(family)!.packets();
  const fetched = await fetchFrom(net.relay, url);
  if (fetched.status !== 0)
    throw new Error(`the client failed: ${fetched.error}\n${relay.process.output}`);
  const seen = JSON.parse(String(fetched.body)) as Seen;
  const ended = await relay.ended(destination);
  const packets = rules.get(family)!.packets() - before;
  const left = await egress.ended(destination);
  const exit = String(left["src_addr"]);

  const hops: [who: string, what: string][] = [
    [client(), `connected to ${bold(destination)} and was answered from there: ${url}`],
    [
      backend,
      `counted ${packets} new ${packets === 1 ? "connection" : "connections"} and sent it to port ${LISTEN_PORT}`,
    ],
    [
      "transplice",
      `client ${ended.client_addr} wanted ${bold(String(ended["dest_addr"]))}: ${ended.tx_bytes} bytes there, ` +
        `${ended.rx_bytes} back, ${(ended.elapsed * 1000).toFixed(0)} ms, ${ended.reason}`,
    ],
    [
      "the egress",
      `client ${left.client_addr} asked for ${bold(destination)} and leaves by ${bold(exit)}, as always`,
    ],
    ["web server", `saw a connection from ${bold(seen.peer)} to ${seen.local}`],
  ];
  say();
  say(bold(`IPv${family}`));
  for (const [i, [who, what]] of hops.entries()) {
    if (i > 0) say(cyan("  │"));
    say(
      `${cyan(i === 0 ? "  ┌" : i === hops.length - 1 ? "  └" : "  ├")}${cyan("─")} ${bold(who.padEnd(16))} ${what}`,
    );
  }
}

async function download({ net, relay, egress }: Setting): Promise<void> {
  say();
  say(`${green("•")} a bulk download for ${BULK_SECONDS} seconds …`);
  const cpuSeconds = () => relay.process.cpuSeconds() + egress.process.cpuSeconds();
  const cpu = cpuSeconds();
  const url = `http://${text(SERVER[4], BULK_PORT)}/`;
  const fetched = await fetchFrom(
    net.relay,
    url,
    "--output",
    "/dev/null",
    "--max-time",
    `${BULK_SECONDS}`,
    "--write-out",
    "%{size_download} %{time_total}",
  );
  const [bytes, seconds] = String(fetched.body).trim().split(" ").map(Number) as [number, number];
  if (!(bytes > 0))
    throw new Error(`the download failed: ${fetched.error}\n${relay.process.output}`);
  const spent = cpuSeconds() - cpu;
  const gigabytes = bytes / 1e9;
  say(
    `  ${bold(`${gigabytes.toFixed(2)} GB`)} in ${seconds.toFixed(1)} s: ` +
      `${bold(`${((bytes * 8) / seconds / 1e9).toFixed(1)} Gbit/s`)} through four programs on this machine; ` +
      `both transplices together took ${(spent / gigabytes).toFixed(2)} s of CPU for each GB`,
  );
}

// ---------------------------------------------------------------------------------------------
// The client: curl, or where it is missing, node.

const client = (): string => (installed("curl") ? "curl" : "node");

const installed = (program: string): boolean =>
  [...(process.env["PATH"] ?? "").split(":"), "/usr/sbin", "/sbin"].some((directory) =>
    existsSync(`${directory}/${program}`),
  );

async function fetchFrom(host: Host, url: string, ...args: string[]): Promise<Fetched> {
  if (installed("curl")) return curl(host, ...args, url);
  const program = host.spawn(process.execPath, [PROGRAM, "fetch", url], { binary: true });
  const exit = await program.exited;
  return { status: exit.code, body: Buffer.concat(program.data), error: program.output.trim() };
}

/** Prints what came; of a bulk download, as curl is asked to, how much in what time. */
async function runFetch(url: string): Promise<void> {
  const began = performance.now();
  let bytes = 0;
  const bulk = new URL(url).port === `${BULK_PORT}`;
  const response = await fetch(url);
  for await (const chunk of response.body!) {
    bytes += (chunk as Uint8Array).length;
    if (!bulk) process.stdout.write(chunk as Uint8Array);
    else if (performance.now() - began > BULK_SECONDS * 1000) break;
  }
  if (bulk) process.stdout.write(`${bytes} ${(performance.now() - began) / 1000}`);
  process.exit(0);
}

// ---------------------------------------------------------------------------------------------
// The far side: each a process of its own, as in life.

function runServer(): void {
  for (const family of FAMILIES) webServer(HERE, SERVER[family], 80);
  const block = Buffer.alloc(1 << 20, "transplice ");
  const bulk = createServer((_request, response) => {
    const pour = (): void => {
      while (response.write(block));
    };
    response.on("drain", pour);
    pour();
  });
  bulk.listen(BULK_PORT, SERVER[4], () => process.stdout.write("listening\n"));
}

const [role, url] = process.argv.slice(2);
if (role === "server") runServer();
else if (role === "fetch") await runFetch(url!);
else process.exitCode = await demonstrate();
