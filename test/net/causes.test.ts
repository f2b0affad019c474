/**
 * What the programs that people run as upstreams say of a connection that failed, and what of it is
 * believed. Each is asked directly, and then through the relay with its preset of `connect.trust`:
 * what the relay then says is what the kernel says to a direct connect(), or nothing.
 */
import { strict as assert } from "node:assert";
import { constants } from "node:os";
import { type Cause, causeOfErrno, type Preset } from "../../src/policy/cause.ts";
import { connect, PATIENCE_MS, text } from "./actors.ts";
import { dmz, NOWHERE } from "./dmz.ts";
import { DENIED, DENIED_PORT, FAMILIES, PROXY, SERVER } from "./network.ts";
import "./predecessors.ts"; // Builds usocksd.
import {
  absence, dante, listening, microsocks, ncat, type Proxy, squid, sshD, tinyproxy, transplice, usocksd,
} from "./proxies.ts";
import type { Entry } from "./relay.ts";
import { type Host, unprivileged } from "./sandbox.ts";
import { scenario } from "./scenario.ts";
import { ask, NO_REPLY } from "./socks.ts";

const PORT = 3128;
const LISTEN = "localhost:1081";
/** SYNs are sent twice: who hears nothing has given up after three seconds. */
const SYN_RETRIES = 1;

/** By what connect() says; "denied" is a rule of the proxy's own. */
type What = "ECONNREFUSED" | "EHOSTUNREACH" | "ENETUNREACH" | "EACCES" | "ETIMEDOUT" | "denied";

interface Destination {
  what: What;
  to: string;
  port: number;
}

/**
 * The proxy's host knows by itself which it cannot reach: an ICMP that comes while connect() still
 * holds the socket's lock is not heard by it (tcp_v4_err), and then it is a timeout, to anybody.
 */
const DESTINATIONS: readonly Destination[] = FAMILIES.flatMap((family): Destination[] => [
  { what: "ECONNREFUSED", to: SERVER[family], port: 81 },
  { what: "EHOSTUNREACH", to: NOWHERE.unreachable[family], port: 80 },
  { what: "ENETUNREACH", to: NOWHERE.noRoute[family], port: 80 },
  { what: "EACCES", to: NOWHERE.prohibited[family], port: 80 },
  { what: "ETIMEDOUT", to: NOWHERE.blackHole[family], port: 80 },
  { what: "denied", to: DENIED[family], port: DENIED_PORT },
]);

const truthOf = (what: What): Cause =>
  what === "denied" ? "not-allowed" : causeOfErrno(constants.errno[what]);

interface Row {
  proxy: Proxy;
  preset: Preset;
  /** The SOCKS reply; or the status, and what X-Squid-Error says. Left out: it has no such rules. */
  answers: Readonly<Partial<Record<What, string>>>;
  /** Of these the relay says nothing. */
  unknown: readonly What[];
}

const STANDARD = {
  ECONNREFUSED: "5", EHOSTUNREACH: "4", ENETUNREACH: "3", EACCES: "1", ETIMEDOUT: "6", denied: "2",
} as const;
const always = (answer: string) =>
  ({ ECONNREFUSED: answer, EHOSTUNREACH: answer, ENETUNREACH: answer, EACCES: answer, ETIMEDOUT: answer }) as const;
const ALL: readonly What[] = ["ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "EACCES", "ETIMEDOUT"];
const { denied: _, ...WITHOUT_RULES } = STANDARD;

const ROWS: readonly Row[] = [
  { proxy: dante, preset: "dante", answers: STANDARD, unknown: ["EACCES"] },
  { proxy: microsocks, preset: "microsocks", answers: WITHOUT_RULES, unknown: ["EACCES"] },
  { proxy: usocksd, preset: "usocksd", answers: { ...STANDARD, ETIMEDOUT: "1" }, unknown: ["EACCES", "ETIMEDOUT"] },
  { proxy: transplice, preset: "standard", answers: STANDARD, unknown: ["EACCES"] },
  // It hangs up instead.
  { proxy: sshD, preset: "standard", answers: always(String(NO_REPLY)), unknown: ALL },
  {
    proxy: squid,
    preset: "squid",
    answers: {
      ECONNREFUSED: "503 ERR_CONNECT_FAIL 111", EHOSTUNREACH: "503 ERR_CONNECT_FAIL 113",
      ENETUNREACH: "503 ERR_CONNECT_FAIL 101", EACCES: "503 ERR_CONNECT_FAIL 13",
      ETIMEDOUT: "503 ERR_CONNECT_FAIL 110", denied: "403 ERR_ACCESS_DENIED 0",
    },
    unknown: [],
  },
  { proxy: tinyproxy, preset: "tinyproxy", answers: { ...always("500"), denied: "403" }, unknown: ALL },
  { proxy: ncat, preset: "ncat", answers: always("504"), unknown: ALL },
];

async function answerOf(scheme: Proxy["scheme"], from: Host, to: string, port: number): Promise<string> {
  if (scheme === "socks5") {
    const { code, peer } = await ask(from, text(PROXY[4], PORT), { to, port, withinMs: PATIENCE_MS });
    peer.destroy();
    return String(code);
  }
  const peer = await connect(from, PROXY[4], PORT);
  const where = text(to, port);
  peer.write(`CONNECT ${where} HTTP/1.1\r\nHost: ${where}\r\n\r\n`);
  const header = await peer.readUntil("\r\n\r\n");
  peer.destroy();
  const [, status] = /^HTTP\/1\.\d (\d+)/.exec(header)!;
  const [, error] = /^X-Squid-Error: (.*)\r$/im.exec(header) ?? [];
  return error === undefined ? status! : `${status} ${error}`;
}

scenario("the destinations fail as they are said to, asked from the proxy's host", async (stage) => {
  const host = dmz(stage.net);
  host.sysctl("net.ipv4.tcp_syn_retries", SYN_RETRIES);
  await Promise.all(DESTINATIONS.map(async ({ what, to, port }) => {
    if (what === "denied") return;
    const code = await connect(host, to, port).then(() => "success", ({ code }: NodeJS.ErrnoException) => code);
    assert.equal(code, what, text(to, port));
  }));
});

for (const { proxy, preset, answers, unknown } of ROWS) {
  scenario(`${proxy.program} says what it says, and no more is believed (trust = "${preset}")`, async (stage) => {
    const missing = absence(proxy);
    if (missing !== null) stage.skip(missing);
    if (proxy === sshD && unprivileged())
      stage.skip("sshd separates its privileges by a second user, and there is one here only");
    const host = dmz(stage.net);
    const { relay: client } = stage.net;
    host.sysctl("net.ipv4.tcp_syn_retries", SYN_RETRIES);
    const program = stage.keep(proxy.start(host, PROXY[4], PORT, null));
    await listening(program, client, PROXY[4], PORT);
    stage.intercept({
      mode: "redirect", from: "local", port: 1081,
      destinations: DESTINATIONS.map(({ to }) => `${to}/${to.includes(":") ? 128 : 32}`),
    });
    const relay = await stage.relay({
      listen: LISTEN,
      proxy_url: `${proxy.scheme}://${PROXY[4]}:${PORT}`,
      connect: { trust: preset },
      timeouts: { handshake: "1h" },
    });
    await Promise.all(DESTINATIONS.map(async ({ what, to, port }) => {
      if (answers[what] === undefined) return;
      const where = text(to, port);
      assert.equal(await answerOf(proxy.scheme, client, to, port), answers[what], `${where}, ${what}`);
      await connect(client, to, port);
      const isTheEnd = (entry: Entry) => entry["dest_addr"] === where && entry["reason"] !== undefined;
      const { cause } = await relay.logged(`the end of ${where}`, isTheEnd);
      assert.equal(cause, unknown.includes(what) ? undefined : truthOf(what), `${where}, ${what}`);
    }));
  });
}

for (const script of [{ leaves: "fin" }, {}] as const) {
  scenario(`a status is known although its header ${"leaves" in script ? "is cut off" : "never ends"}`, async (stage) => {
    const { relay: client, proxy: host } = stage.net;
    stage.intercept({ mode: "redirect", from: "local", port: 1081 });
    stage.listen(host, PROXY[4], PORT, (peer) => {
      peer.write("HTTP/1.1 403 Forbidden\r\nServer: x\r\n");
      if ("leaves" in script) peer.finish();
    });
    const relay = await stage.relay({
      listen: LISTEN, proxy_url: `http://${PROXY[4]}:${PORT}`, timeouts: { handshake: "4s" },
    });
    await connect(client, SERVER[4], 80);
    const { reason, cause } = await relay.ended(text(SERVER[4], 80));
    assert.deepEqual([reason, cause], ["upstream-status", "not-allowed"]);
  });
}

for (const [silentAt, cause] of [["greeting", undefined], ["request", "timeout"]] as const) {
  scenario(`an upstream that is silent after the ${silentAt}: ${cause ?? "nothing is known"}`, async (stage) => {
    stage.intercept({ mode: "redirect", from: "local", port: 1081 });
    const upstream = stage.upstream({ protocol: "socks5", silentAt });
    const relay = await stage.relay({ listen: LISTEN, proxy_url: upstream.url(), timeouts: { handshake: "4s" } });
    await connect(stage.net.relay, SERVER[4], 80);
    const ended = await relay.logged("the end", (entry) => entry["reason"] === "handshake-timeout");
    assert.equal(ended["cause"], cause);
  });
}

for (const [port, cause] of [[1081, "refused"], [1082, undefined]] as const) {
  scenario(`each of [[relays]] has an upstream that is believed, or is not: port ${port}`, async (stage) => {
    const upstream = stage.upstream({ protocol: "socks5", refuse: 5 });
    stage.intercept({ mode: "redirect", from: "local", port });
    const relay = await stage.relay({
      listen: LISTEN,
      proxy_url: upstream.url(),
      relays: [{ listen: "127.0.0.1:1082", proxy_url: upstream.url(), trust: [] }],
    });
    await connect(stage.net.relay, SERVER[4], 80);
    assert.equal((await relay.ended(text(SERVER[4], 80)))["cause"], cause);
  });
}
