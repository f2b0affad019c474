/**
 * The predecessors and we, under their names, in the same scenes: what goes over the wire, exit
 * codes, the log's fields. What differs must stand in differences.ts.
 */
import "./predecessors.ts";
import { strict as assert } from "node:assert";
import { symlinkSync, writeFileSync } from "node:fs";
import type { Predecessor } from "../../src/predecessor.ts";
import { connect, eventually, PATIENCE_MS, type Peer, sleep } from "./actors.ts";
import { DIFFERENCES } from "./differences.ts";
import { PROXY, SERVER } from "./network.ts";
import { programOf } from "./predecessors.ts";
import type { Process } from "./process.ts";
import { MAIN } from "./relay.ts";
import { type Host, PRIVATE } from "./sandbox.ts";
import { scenario, type Stage } from "./scenario.ts";

/** What was seen, by name. */
type Seen = Map<string, string>;
type Side = "theirs" | "ours";

/** One of the two programs that are compared, as a command. */
interface Subject {
  readonly name: Predecessor;
  readonly side: Side;
  readonly command: readonly string[];
}

const PORT = 1081;
const EGRESS_PORT = 1080;
/** Of the few lines that one of them never says, so long is waited to see it. */
const LOG_MS = 15_000;

let files = 0;

function file(text: string, extension: string): string {
  const path = `${PRIVATE}/differential-${files++}.${extension}`;
  writeFileSync(path, text);
  return path;
}

/** Both of them, or a skip that says what is missing. */
function subjects(stage: Stage, name: Predecessor): Subject[] {
  const program = programOf(name);
  if ("missing" in program) stage.skip(program.missing);
  // By its name, as an operator's link would have it.
  const link = `${PRIVATE}/links-${files++}-${name}`;
  stage.net.relay.run("mkdir", [link]);
  symlinkSync(MAIN, `${link}/${name}`);
  return [
    { name, side: "theirs", command: [program.path] },
    { name, side: "ours", command: [process.execPath, `${link}/${name}`] },
  ];
}

function spawn(stage: Stage, host: Host, { command, name, side }: Subject, args: readonly string[]): Process {
  const [program, ...first] = command;
  const env = { ...process.env, NODE_OPTIONS: "", CANCELLATION_DELAY_SECONDS: "0" };
  return stage.keep(host.spawn(program!, [...first, ...args], { title: `${name} (${side})`, env, cwd: PRIVATE }));
}

/** The exit code of a command line that is none to stay, and the first line that it says. */
async function exitOf(stage: Stage, subject: Subject, args: readonly string[]): Promise<{ code: string; first: string }> {
  const child = spawn(stage, stage.net.relay, subject, args);
  const late = sleep(PATIENCE_MS).then(() => null);
  const exit = await Promise.race([child.exited, late]);
  const first = child.output.split("\n")[0]!.replace(/\S*\/(?=transocks|usocksd|redsocks)/g, "");
  return { code: exit === null ? "stays" : `${exit.code ?? exit.signal}`, first };
}

/** Runs it until it listens; asking by a connection would be one more thing to be seen. */
async function running(stage: Stage, host: Host, subject: Subject, args: readonly string[], port: number): Promise<Process> {
  const listens = () => host.run("ss", ["-Hltn", `sport = :${port}`]) !== "";
  // The Go programs fork: the child of one that was killed holds the socket a moment longer.
  await eventually(`port ${port} is free`, () => !listens());
  const child = spawn(stage, host, subject, args);
  await eventually(`${child.title} listens`, () => {
    assert.equal(child.exit, null, `${child.title} has ended:\n${child.output}`);
    return listens();
  });
  return child;
}

async function termOf(child: Process): Promise<string> {
  child.signal("SIGTERM");
  const exit = await Promise.race([child.exited, sleep(PATIENCE_MS).then(() => null)]);
  return exit === null ? "stays" : `${exit.code ?? exit.signal}`;
}

/** An upstream that grants or refuses, and remembers every byte up to the tunnel's own. */
function recorder(stage: Stage, speech: { protocol: "socks5" | "http"; login: boolean; refuses?: boolean }): { heard: string[] } {
  const heard: string[] = [];
  const serve = async (peer: Peer): Promise<void> => {
    let all = Buffer.alloc(0);
    const take = async (count: number): Promise<Buffer> => {
      const bytes = await peer.read(count);
      all = Buffer.concat([all, bytes]);
      return bytes;
    };
    if (speech.protocol === "http") {
      heard.push(await peer.readUntil("\r\n\r\n"));
      peer.write(`HTTP/1.1 ${speech.refuses === true ? "403 No" : "200 Yes"}\r\n\r\n`);
    } else {
      await take((await take(2))[1]!);
      peer.write(Uint8Array.of(5, speech.login ? 2 : 0));
      if (speech.login) {
        await take((await take(2))[1]!);
        await take((await take(1))[0]!);
        peer.write(Uint8Array.of(1, 0));
      }
      await take((await take(4))[3] === 4 ? 18 : 6);
      heard.push(all.toString("hex"));
      peer.write(Uint8Array.of(5, speech.refuses === true ? 5 : 0, 0, 1, 0, 0, 0, 0, 0, 0));
    }
    if (speech.refuses === true) return void peer.finish();
    heard.push(`tunnel ${String(await peer.read(5))}`);
    peer.finish("there!");
  };
  stage.listen(stage.net.proxy, PROXY[4], 3128, (peer) => {
    serve(peer).catch((error: Error) => heard.push(error.message));
  });
  return { heard };
}

/** A program of the host says hello to the world, and hears what comes back. */
async function hello(stage: Stage, address: string): Promise<string> {
  const peer = await connect(stage.net.relay, address, 80);
  peer.write("hello");
  const { data, end } = await peer.rest();
  // Nothing is left for TERM to wait for.
  peer.finish();
  return `${String(data)} ${end}`;
}

/** The fields of each of these lines of a JSON log, all of one connection: names, and what is not different each time. */
async function logged(child: Process, messages: readonly string[]): Promise<string> {
  await eventually("the log", () => linesOfOne(child.output, messages).size === messages.length, LOG_MS).catch(() => {});
  const seen = linesOfOne(child.output, messages);
  const fixed = ["topic", "severity", "type", "protocol", "command", "dest_addr", "dest_host", "reason"];
  return messages.map((message) => {
    const entry = seen.get(message);
    if (entry === undefined) return `${message}: never said`;
    return `${message}: ${Object.keys(entry).sort().map((key) => (fixed.includes(key) ? `${key}=${entry[key]}` : key)).join(" ")}`;
  }).join("\n");
}

/** By message: of the connection that was the first to say the first of them that was said. Ends may come in another order. */
function linesOfOne(output: string, messages: readonly string[]): ReadonlyMap<string, Readonly<Record<string, unknown>>> {
  const entries = output.split("\n").slice(0, -1).filter((line) => line.startsWith("{")).map((line) => JSON.parse(line) as Record<string, unknown>);
  const first = messages.map((message) => entries.find((entry) => entry["message"] === message)).find((entry) => entry !== undefined);
  const its = entries.filter((entry) => first !== undefined && entry["request_id"] === first["request_id"]);
  return new Map(messages.flatMap((message) => its.filter((entry) => entry["message"] === message).slice(0, 1).map((entry) => [message, entry] as const)));
}

/** What differs is in the table, and the table has no more. */
function compare(program: Predecessor, theirs: Seen, ours: Seen, met: ReadonlySet<string>): void {
  const wrong: string[] = [];
  for (const what of new Set([...theirs.keys(), ...ours.keys()])) {
    const [old, own] = [theirs.get(what) ?? "nothing", ours.get(what) ?? "nothing"];
    const row = DIFFERENCES.find((each) => each.program === program && each.what === what);
    if (old === own && row !== undefined) wrong.push(`${what}: the same, and yet in the table`);
    else if (old !== own && (row?.theirs !== old || row.ours !== own)) {
      wrong.push(`${JSON.stringify({ program, what, theirs: old, ours: own }, null, 2)}`);
    }
  }
  for (const { program: of, what } of DIFFERENCES) {
    if (of === program && met.has(what.split(":")[0]!) && !theirs.has(what)) wrong.push(`${what}: in the table, and never seen`);
  }
  assert.deepEqual(wrong, [], wrong.join("\n"));
}

/** Plays a scene with both. `scene` begins the observations' names. */
function differential(program: Predecessor, scene: string, play: (stage: Stage, subject: Subject, seen: (what: string, value: string) => void) => Promise<void>): void {
  scenario(`${program} and we: ${scene}`, async (stage) => {
    const sides = { theirs: new Map<string, string>(), ours: new Map<string, string>() };
    for (const subject of subjects(stage, program)) {
      await play(stage, subject, (what, value) => sides[subject.side].set(`${scene}: ${what}`, value));
    }
    compare(program, sides.theirs, sides.ours, new Set([scene]));
  });
}

const transocksFile = (url: string): string =>
  file(`listen = "127.0.0.1:${PORT}"\nproxy_url = "${url}"\n[log]\nformat = "json"\n`, "toml");

const redsocksFile = (type: string, login = ""): string =>
  file(`base { log_info = on; redirector = iptables; }
redsocks { local_ip = 127.0.0.1; local_port = ${PORT}; ip = ${PROXY[4]}; port = 3128; type = ${type}; ${login} }
`, "conf");

const LOGIN = "us%40er:p%3Aw";

differential("transocks", "command line", async (stage, subject, seen) => {
  const lines: [string, string[]][] = [
    ["-h", ["-h"]],
    ["unknown flag", ["-frobnicate"]],
    ["flag without its value", ["-f"]],
    ["no such file", ["-f", "/nonexistent"]],
    ["unknown key", ["-f", file('proxy_url = "socks5://192.0.2.2:1"\nfoo = 1\n', "toml")]],
    ["no upstream", ["-f", file('listen = ":1081"\n', "toml")]],
    ["upstream of an unknown scheme", ["-f", transocksFile("https://192.0.2.2:1")]],
    ["unknown level", ["-f", transocksFile("socks5://192.0.2.2:1"), "-loglevel", "verbose"]],
    ["an address that is not here", ["-f", file('listen = "203.0.113.77:1081"\nproxy_url = "socks5://192.0.2.2:1"\n', "toml")]],
  ];
  for (const [what, args] of lines) {
    const { code, first } = await exitOf(stage, subject, args);
    seen(`${what}, exit code`, code);
    if (what === "-h" || /flag/.test(what)) seen(`${what}, first line`, first);
  }
});

differential("transocks", "SOCKS5", async (stage, subject, seen) => {
  for (const [what, login, userinfo] of [["no login", false, ""], ["login", true, `${LOGIN}@`]] as const) {
    const upstream = recorder(stage, { protocol: "socks5", login });
    const child = await running(stage, stage.net.relay, subject, ["-f", transocksFile(`socks5://${userinfo}${PROXY[4]}:3128`)], PORT);
    stage.intercept({ mode: "redirect", from: "local", port: PORT });
    seen(`${what}, the client hears`, await hello(stage, SERVER[4]));
    seen(`${what}, the upstream hears`, upstream.heard.join(" | "));
    if (!login) seen("log", await logged(child, ["proxy starts", "proxy ends"]));
    seen(`${what}, exit code after TERM`, await termOf(child));
    await stage.end();
  }
});

differential("transocks", "HTTP", async (stage, subject, seen) => {
  const upstream = recorder(stage, { protocol: "http", login: true });
  await running(stage, stage.net.relay, subject, ["-f", transocksFile(`http://${LOGIN}@${PROXY[4]}:3128`)], PORT);
  stage.intercept({ mode: "redirect", from: "local", port: PORT });
  seen("the client hears", await hello(stage, SERVER[4]));
  seen("the upstream hears", upstream.heard.join(" | "));
  await stage.end();
});

differential("transocks", "log formats", async (stage, subject, seen) => {
  for (const format of ["plain", "logfmt"]) {
    recorder(stage, { protocol: "socks5", login: false });
    const args = ["-f", transocksFile(`socks5://${PROXY[4]}:3128`), "-logformat", format];
    const child = await running(stage, stage.net.relay, subject, args, PORT);
    stage.intercept({ mode: "redirect", from: "local", port: PORT });
    await hello(stage, SERVER[4]);
    await eventually("the log", () => child.output.includes("proxy starts"), LOG_MS).catch(() => {});
    const line = child.output.split("\n").find((each) => each.includes("proxy starts")) ?? "never said";
    assert.notEqual(line, "never said");
    const shape = line
      .replace(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z/, "TIME")
      .replace(/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}/, "ID")
      .replace(/(?<=client_addr="[0-9.]+:)\d+/, "PORT").replace(/(?<=pid=)\d+/, "PID");
    // logfmt's fields are in no order, there.
    seen(format, shape.split(" ").sort().join(" "));
    await stage.end();
  }
});

differential("transocks", "a refusal", async (stage, subject, seen) => {
  recorder(stage, { protocol: "socks5", login: false, refuses: true });
  const child = await running(stage, stage.net.relay, subject, ["-f", transocksFile(`socks5://${PROXY[4]}:3128`)], PORT);
  stage.intercept({ mode: "redirect", from: "local", port: PORT });
  const peer = await connect(stage.net.relay, SERVER[4], 80);
  seen("a silent client hears", (await peer.rest()).end);
  seen("log", await logged(child, ["failed to connect to proxy server", "proxy ends"]));
  await stage.end();
});

differential("redsocks", "command line", async (stage, subject, seen) => {
  const good = redsocksFile("socks5");
  const lines: [string, string[]][] = [
    ["-h", ["-h"]],
    ["-v", ["-v"]],
    ["unknown option", ["-x"]],
    ["-t of a good file", ["-t", "-c", good]],
    ["-t of no file", ["-t", "-c", "/nonexistent"]],
    ["-t of an unknown key", ["-t", "-c", file("base { redirector = iptables; foo = 1; }\n", "conf")]],
    ["-t of a wrong value", ["-t", "-c", file("base { redirector = iptables; daemon = 1; }\n", "conf")]],
    ["-t without redirector", ["-t", "-c", file("base { log_info = on; }\n", "conf")]],
    ["-t without a type", ["-t", "-c", file("base { redirector = iptables; }\nredsocks { local_port = 1; ip = 192.0.2.2; port = 1; }\n", "conf")]],
    ["-t of redudp", ["-t", "-c", file("base { redirector = iptables; }\nredudp { local_port = 1; ip = 192.0.2.2; port = 1; dest_ip = 192.0.2.3; dest_port = 53; }\n", "conf")]],
  ];
  for (const [what, args] of lines) {
    const { code, first } = await exitOf(stage, subject, args);
    seen(`${what}, exit code`, code);
    if (/^-[hv]|good/.test(what)) seen(`${what}, first line`, first);
  }
});

differential("redsocks", "upstreams", async (stage, subject, seen) => {
  const login = 'login = "us@er"; password = "p:w";';
  for (const [what, protocol, type, own] of [
    ["SOCKS5", "socks5", "socks5", ""],
    ["SOCKS5 with a login", "socks5", "socks5", login],
    ["HTTP", "http", "http-connect", ""],
  ] as const) {
    const upstream = recorder(stage, { protocol, login: own !== "" });
    const child = await running(stage, stage.net.relay, subject, ["-c", redsocksFile(type, own)], PORT);
    stage.intercept({ mode: "redirect", from: "local", port: PORT, destinations: ["198.51.100.0/24"] });
    seen(`${what}, the client hears`, await hello(stage, SERVER[4]));
    seen(`${what}, the upstream hears`, upstream.heard.join(" | "));
    seen(`${what}, exit code after TERM`, await termOf(child));
    await stage.end();
  }
});

differential("redsocks", "a refusal", async (stage, subject, seen) => {
  recorder(stage, { protocol: "socks5", login: false, refuses: true });
  await running(stage, stage.net.relay, subject, ["-c", redsocksFile("socks5")], PORT);
  stage.intercept({ mode: "redirect", from: "local", port: PORT, destinations: ["198.51.100.0/24"] });
  const peer = await connect(stage.net.relay, SERVER[4], 80);
  seen("a silent client hears", (await peer.rest()).end);
  await stage.end();
});

differential("usocksd", "command line", async (stage, subject, seen) => {
  const lines: [string, string[]][] = [
    ["-h", ["-h"]],
    ["unknown flag", ["-frobnicate"]],
    ["no such file", ["-f", "/nonexistent"]],
    ["unknown key", ["-f", file("[incoming]\nfoo = 1\n", "toml")]],
    ["allow_from that is no array", ["-f", file('[incoming]\nallow_from = "10.0.0.0/8"\n', "toml")]],
    ["a name to listen on", ["-f", file('[incoming]\naddresses = ["localhost"]\n', "toml")]],
  ];
  for (const [what, args] of lines) {
    const { code, first } = await exitOf(stage, subject, args);
    seen(`${what}, exit code`, code);
    if (what === "-h" || /flag/.test(what)) seen(`${what}, first line`, first);
  }
  const child = await running(stage, stage.net.proxy, subject, [], EGRESS_PORT);
  seen("without any file, it listens on", stage.net.proxy.run("ss", ["-Hltn", `sport = :${EGRESS_PORT}`]).trim().split(/\s+/)[3]!);
  seen("without any file, exit code after TERM", await termOf(child));
});

differential("usocksd", "dialogues", async (stage, subject, seen) => {
  const child = await running(
    stage, stage.net.proxy, subject,
    ["-f", file(`[log]\nformat = "json"\n[incoming]\naddresses = ["${PROXY[4]}"]\n[outgoing]\ndeny_ports = [25]\ndeny_sites = ["bad.example"]\n`, "toml")],
    EGRESS_PORT,
  );
  stage.listen(stage.net.internet, SERVER[4], 80, (peer) => void peer.read(5).then(() => peer.finish("there!"), () => {}));
  const address = "c633640a";
  const bad = `0b${Buffer.from("bad.example").toString("hex")}`;
  for (const [what, ...says] of [
    ["SOCKS5 CONNECT", "050100", `05010001${address}0050`],
    ["SOCKS5 all at once", `05010005010001${address}0050`],
    ["SOCKS5 of a port that is denied", "050100", `05010001${address}0019`],
    ["SOCKS5 of a site that is denied", "050100", `05010003${bad}0050`],
    ["SOCKS5 of a port where nobody is", "050100", `05010001${address}0051`],
    ["SOCKS5 BIND", "050100", `05020001${address}0050`],
    ["SOCKS5 UDP ASSOCIATE", "050100", `05030001${address}0050`],
    ["SOCKS5 of an unknown address type", "050100", `05010002${address}0050`],
    ["SOCKS5 with a password that nobody asked for", "050102", "0101610162", `05010001${address}0050`],
    ["SOCKS5 with both methods offered", "05020002", "0101610162", `05010001${address}0050`],
    ["SOCKS5 with GSSAPI alone", "050101"],
    ["SOCKS4 CONNECT", `04010050${address}6100`],
    ["SOCKS4 of a port that is denied", `04010019${address}00`],
    ["SOCKS4 BIND", `04020050${address}00`],
    ["no SOCKS", "474554202f"],
  ] as const) {
    const peer = await connect(stage.net.relay, PROXY[4], EGRESS_PORT);
    const heard: string[] = [];
    for (const bytes of says) {
      const before = peer.total;
      peer.write(Buffer.from(bytes, "hex"));
      // Until the answer has come, which is one segment, or the end.
      await peer.until("an answer", () => peer.total > before || peer.end !== null).catch(() => heard.push("nothing"));
      if (peer.end !== null) break;
    }
    const granted = /CONNECT|once|password|methods/.test(what);
    if (granted) peer.write("hello");
    const { data, end } = await peer.rest().catch(() => ({ data: Buffer.alloc(0), end: "stays" }));
    const hex = data.toString("hex").replace(Buffer.from("there!").toString("hex"), " there!")
      // The port by which the connection has left.
      .replace(/(?<=05000001c0000202)[0-9a-f]{4}/, "port").replace(/(?<=^005a)[0-9a-f]{4}(?=c0000202)/, "port");
    seen(what, [...heard, `${hex} ${end}`].join(" "));
    peer.destroy();
  }
  seen("log", await logged(child, ["proxy starts", "proxy ends"]));
  await stage.end();
});
