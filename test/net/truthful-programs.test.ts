/**
 * The differential of truthful connect(): the same program, run as it is and then behind the proxy,
 * says the same, word for word, and ends with the same status. What it connects to is refused,
 * unreachable, prohibited, filtered or there; the upstream is transplice's own egress.
 */
import { strict as assert } from "node:assert";
import { createServer, type Server, type Socket } from "node:net";
import { existsSync } from "node:fs";
import { boundSocket, eventually } from "./actors.ts";
import { type Family, FAMILIES, PROXY, SERVER } from "./network.ts";
import { Relay } from "./relay.ts";
import type { Host } from "./sandbox.ts";
import { scenario, type Stage } from "./scenario.ts";
import { applyRules, PYTHON } from "./truthful.ts";

const MARK = 0x1081;

/** Ports of the server, and what connect() says of them. */
const PORTS = { there: 80, refused: 9, host: 82, net: 83, prohibited: 84, filtered: 81 } as const;
type Kind = keyof typeof PORTS;
const KINDS = Object.keys(PORTS) as Kind[];
/** A second server of the same name, for those that try the next. */
const SECOND = { 4: "198.51.100.11", 6: "2001:db8:100::11" } as const;

const FILTER = `table inet answers {
  chain input {
    type filter hook input priority 0; policy accept;
    tcp dport ${PORTS.filtered} drop
    meta nfproto ipv4 tcp dport ${PORTS.host} reject with icmp type host-unreachable
    meta nfproto ipv4 tcp dport ${PORTS.net} reject with icmp type net-unreachable
    meta nfproto ipv4 tcp dport ${PORTS.prohibited} reject with icmp type admin-prohibited
    meta nfproto ipv6 tcp dport ${PORTS.host} reject with icmpv6 type addr-unreachable
    meta nfproto ipv6 tcp dport ${PORTS.net} reject with icmpv6 type no-route
    meta nfproto ipv6 tcp dport ${PORTS.prohibited} reject with icmpv6 type admin-prohibited
  }
}
`;

/** Says hello in three protocols' manner, whatever it is asked, and ends. */
function greeter(stage: Stage, address: string, port: number, greet: (socket: Socket) => void): void {
  const open = new Set<Socket>();
  const server: Server = createServer((socket) => {
    open.add(socket);
    socket.on("error", () => {});
    greet(socket);
  });
  server.listen({ fd: boundSocket(stage.net.internet, address, port) });
  stage.finally(() => {
    for (const socket of open) socket.destroy();
    server.close();
  });
}

const http = (socket: Socket): void => {
  socket.once("data", () => socket.end("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nhi\n"));
};
const ssh = (socket: Socket): void => void socket.end("SSH-2.0-nobody\r\n");
/** PostgreSQL's ErrorResponse: severity, code, message. */
const postgres = (socket: Socket): void => {
  socket.once("data", () => {
    const fields = Buffer.from("SFATAL\0C28000\0Mnobody is let in here\0\0");
    const header = Buffer.alloc(5);
    header.write("E");
    header.writeInt32BE(fields.length + 4, 1);
    socket.end(Buffer.concat([header, fields]));
  });
};

/** The servers, who says what, and a client that is not patient for two minutes. */
function world(stage: Stage): void {
  const { relay, proxy, internet } = stage.net;
  internet.run("nft", ["-f", "-"], FILTER);
  stage.finally(() => void internet.run("nft", ["delete", "table", "inet", "answers"]));
  for (const host of [internet, proxy, relay]) {
    host.sysctl("net.ipv4.icmp_ratelimit", 0);
    if (FAMILIES.includes(6)) host.sysctl("net.ipv6.icmp.ratelimit", 0);
  }
  relay.sysctl("net.ipv4.tcp_syn_retries", 1);
  stage.finally(() => relay.sysctl("net.ipv4.tcp_syn_retries", 6));
}

/** Transplice in front of the program, and transplice's egress as its upstream. */
async function proxied(stage: Stage): Promise<Relay> {
  const egress = Relay.spawn(stage.net.proxy, {
    workers: 1, incoming: { addresses: [PROXY[4]], metrics_port: 0 }, outgoing: { allow_private: true },
  });
  stage.keep(egress.process);
  await egress.ready();
  const settings = {
    listen: "localhost:1081", proxy_url: `socks5://${PROXY[4]}:1080`, mark: MARK, workers: 2,
    // EACCES has no code in RFC 1928; our own egress reports the errno.
    connect: { truthful: true, without: "refuse", trust: "transplice" },
  };
  applyRules(stage, settings);
  return stage.relay(settings);
}

interface Program {
  readonly name: string;
  readonly path: string;
  readonly args: (address: string, port: number, kind: Kind) => readonly string[];
  readonly kinds?: readonly Kind[];
  /** What is never the same twice is taken out of what it said. */
  readonly clean?: (said: string) => string;
  readonly families?: readonly Family[];
}

const FAILURES = KINDS.filter((kind) => kind !== "there");
const url = (address: string, port: number): string => `http://${address.includes(":") ? `[${address}]` : address}:${port}/`;
const noTimes = (said: string): string => said.replaceAll(/\d+ (ms|milliseconds)/g, "N ms");

const PROGRAMS: readonly Program[] = [
  ...(["blocking", "non-blocking"] as const).map((how): Program => ({
    name: `python, ${how}`, path: PYTHON, families: FAMILIES,
    args: (address, port) => ["-c", `
import errno, os, select, socket, sys
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
if sys.argv[3] == "non-blocking":
    s.setblocking(False)
error = s.connect_ex((sys.argv[1], int(sys.argv[2])))
if error == errno.EINPROGRESS:
    p = select.poll()
    p.register(s, select.POLLOUT)
    p.poll()
    error = s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
print(errno.errorcode.get(error, error))
`, address, `${port}`, how],
  })),
  {
    name: "curl", path: "/usr/bin/curl", clean: noTimes,
    args: (address, port, kind) => ["-sS", "--noproxy", "*", ...(kind === "filtered" ? ["--connect-timeout", "1"] : []), url(address, port)],
  },
  {
    name: "curl -v tells the errno", path: "/usr/bin/curl", kinds: ["refused", "host", "net", "prohibited"],
    clean: (said) => said.split("\n").filter((line) => /failed|connect to/i.test(line)).map(noTimes).join("\n"),
    args: (address, port) => ["-sv", "--noproxy", "*", url(address, port)],
  },
  { name: "nc -z", path: "/usr/bin/nc", args: (address, port) => ["-z", "-v", "-w", "30", address, `${port}`], kinds: FAILURES, clean: (said) => said.replaceAll(/[\d.]+ seconds/g, "N seconds") },
  {
    name: "ssh", path: "/usr/bin/ssh", kinds: FAILURES,
    args: (address, port) => ["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "ConnectionAttempts=1", "-p", `${port}`, `nobody@${address}`],
  },
  {
    name: "wget, which tries again", path: "/usr/bin/wget", kinds: ["there", "refused", "host", "net"],
    args: (address, port) => ["--no-proxy", "-nv", "--tries=2", "--waitretry=0", "--retry-connrefused", "-O", "-", url(address, port)],
    clean: (said) => said.replaceAll(/^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d /gm, ""),
  },
  {
    name: "psql, two hosts", path: "/usr/bin/psql", kinds: FAILURES.filter((kind) => kind !== "filtered"),
    args: (address, port) => [`host=${address},${SECOND[4]} port=${port},5432 sslmode=disable gssencmode=disable user=nobody dbname=x`],
  },
  {
    name: "node", path: process.execPath,
    args: (address, port) => ["-e", `
const socket = require("node:net").connect({ host: process.argv[1], port: Number(process.argv[2]) });
socket.on("connect", () => { console.log("connected"); socket.destroy(); });
socket.on("error", (error) => console.log(error.code, error.message));
`, address, `${port}`],
  },
  {
    name: "node, autoSelectFamily", path: process.execPath, kinds: ["refused"],
    args: (address, port) => ["-e", `
const lookup = (name, options, done) => done(null, [{ address: process.argv[1], family: 4 }, { address: "${SECOND[4]}", family: 4 }]);
const socket = require("node:net").connect({ host: "two.example", port: Number(process.argv[2]), lookup, autoSelectFamily: true });
socket.on("connect", () => { console.log("connected", socket.remoteAddress); socket.destroy(); });
socket.on("error", (error) => console.log(error.code, (error.errors ?? []).map((each) => each.message)));
`, address, `${port}`],
  },
  {
    name: "asyncio, happy eyeballs", path: PYTHON, kinds: ["refused", "host", "net"], families: [FAMILIES.at(-1)!],
    args: (address, port) => ["-c", `
import asyncio, socket, sys
async def main():
    loop = asyncio.get_running_loop()
    async def answers(host, port, **rest):
        return [(socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, p)) for a, p in ((sys.argv[1], int(sys.argv[2])), ("${SECOND[4]}", 80))]
    loop.getaddrinfo = answers
    reader, writer = await asyncio.open_connection("two.example", 1, happy_eyeballs_delay=30)
    print("connected", writer.get_extra_info("peername")[0])
    writer.close()
asyncio.run(main())
`, address, `${port}`],
  },
];

async function saidBy(host: Host, { path, args, clean = (said) => said }: Program, address: string, kind: Kind): Promise<string> {
  const { status, output } = await host.execute(path, ...args(address, PORTS[kind], kind));
  return `${clean(output).trim()}\nstatus ${status}`;
}

for (const program of PROGRAMS) {
  scenario(`${program.name} says the same behind the proxy as without one`, async (stage) => {
    if (!existsSync(program.path)) stage.skip(`there is no ${program.path} here`);
    world(stage);
    for (const family of FAMILIES) greeter(stage, SERVER[family], PORTS.there, http);
    greeter(stage, SECOND[4], 80, http);
    greeter(stage, SECOND[4], 5432, postgres);
    greeter(stage, SERVER[4], 22, ssh);
    const { relay: client } = stage.net;
    const direct = new Map<string, string>();
    const all = (program.families ?? [4]).flatMap((family) => (program.kinds ?? KINDS).map((kind) => ({ family, kind })));
    for (const { family, kind } of all) direct.set(`IPv${family}, ${kind}`, await saidBy(client, program, SERVER[family], kind));
    const relay = await proxied(stage);
    for (const { family, kind } of all) {
      const said = await saidBy(client, program, SERVER[family], kind);
      assert.equal(said, direct.get(`IPv${family}, ${kind}`), `IPv${family}, ${kind}`);
    }
    // Of one that nobody answers the end is still to come.
    const due = all.filter(({ kind }) => kind !== "filtered").length;
    await eventually("they came through the proxy", () => relay.ends().length >= due);
  });
}
