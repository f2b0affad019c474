/**
 * Names for the scenarios: dnsmasq on the internet host answers what is in its hosts file, and asks
 * a scripted server behind it for *.scripted.test and *.bl.test: answers that change from one
 * question to the next, that come late or never, SERVFAIL.
 *
 * dnsmasq has no cache here, and says every question it was asked.
 */
import { createSocket, type RemoteInfo, type Socket } from "node:dgram";
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { isIPv4 } from "node:net";
import { eventually, ipv6Bytes } from "./actors.ts";
import type { Process } from "./process.ts";
import { asSomebody } from "./proxies.ts";
import { type Host, PRIVATE } from "./sandbox.ts";
import type { Stage } from "./scenario.ts";

export const DNS = { real: "198.51.100.53", scripted: "198.51.100.54" } as const;

const DNSMASQ = "/usr/sbin/dnsmasq";
const A = 1;
const AAAA = 28;
/** In the third byte of a message (RFC 1035, section 4.1.1). */
const IS_ANSWER = 0x80;
export const SERVFAIL = 2;
export const NXDOMAIN = 3;

export interface Answer {
  /** Of both families: a question gets those of its own. Left out: none, the name exists. */
  addresses?: readonly string[];
  ttlSeconds?: number;
  code?: number;
  delayMs?: number;
  /** Nothing is answered at all. */
  silent?: boolean;
}

/** What to say to the n-th question (from 1) of this type. */
export type Script = Answer | ((question: number, type: "A" | "AAAA") => Answer);

export class Names {
  readonly program: Process;
  /** Names in lower case. One without a script does not exist. */
  readonly scripts = new Map<string, Script>();
  readonly #asked = new Map<string, number>();
  #marks = 0;
  readonly #socket: Socket;
  readonly #hosts = `${PRIVATE}/dnsmasq.hosts`;

  private constructor(host: Host) {
    mkdirSync(PRIVATE, { recursive: true });
    writeFileSync(this.#hosts, "");
    writeFileSync(
      `${PRIVATE}/dnsmasq.conf`,
      [
        `listen-address=${DNS.real}`,
        "bind-interfaces",
        "no-resolv",
        "no-hosts",
        "no-poll",
        "pid-file=",
        "cache-size=0",
        "dns-forward-max=5000",
        "local-ttl=1",
        "local=/test/",
        `server=/scripted.test/${DNS.scripted}`,
        `server=/bl.test/${DNS.scripted}`,
        `addn-hosts=${this.#hosts}`,
        "log-queries",
        "log-facility=-",
      ].join("\n"),
    );
    // As somebody it has nothing to change into somebody else for, which not everybody may here.
    host.sysctl("net.ipv4.ip_unprivileged_port_start", 0);
    const args = ["--keep-in-foreground", `-C${PRIVATE}/dnsmasq.conf`];
    this.program = asSomebody(host, DNSMASQ, args);
    this.#socket = createSocket("udp4");
    this.#socket.on("message", (question, from) => this.#answer(question, from));
    this.#socket.on("error", () => {});
    const where = { address: DNS.scripted, port: 53, exclusive: true };
    host.withinNextTick(() => void this.#socket.bind(where));
  }

  /** Both servers, until the scenario's end. Skips it where there is no dnsmasq. */
  static async start(stage: Stage, hosts: { readonly [name: string]: readonly string[] } = {}) {
    if (!existsSync(DNSMASQ)) stage.skip("dnsmasq is not installed");
    const names = new Names(stage.net.internet);
    stage.keep(names.program);
    stage.finally(() => void names.#socket.close());
    // It says "started" before it reads its hosts for the first time: that is not to be taken for what set() waits for.
    await names.program.says(/started.*read \S+dnsmasq\.hosts/s);
    await names.set(hosts);
    return names;
  }

  /** What dnsmasq itself knows, from now on. */
  async set(hosts: { readonly [name: string]: readonly string[] }): Promise<void> {
    const lines = Object.entries(hosts).flatMap(([name, addresses]) =>
      addresses.map((address) => `${address} ${name}\n`),
    );
    writeFileSync(this.#hosts, lines.join(""));
    const before = this.#count(/read \S+dnsmasq\.hosts/g);
    this.program.signal("SIGHUP");
    await eventually(
      "dnsmasq reads its hosts",
      () => this.#count(/read \S+dnsmasq\.hosts/g) > before,
    );
  }

  /** How often dnsmasq was asked for addresses of a name, by what is known of it so far. */
  questions(name: string, type: "A" | "AAAA"): number {
    return this.#count(new RegExp(`query\\[${type}\\] ${name.replaceAll(".", "\\.")} `, "gi"));
  }

  /** The same, in all: it takes questions in their order, so that what has come before one of ours has been told before it. */
  async allQuestions(name: string, type: "A" | "AAAA"): Promise<number> {
    const own = `mark${++this.#marks}.test`;
    this.#socket.send(questionFor(own), 53, DNS.real);
    await eventually("dnsmasq tells of our own question", () => this.questions(own, "A") > 0);
    return this.questions(name, type);
  }

  #count(pattern: RegExp): number {
    return this.program.output.match(pattern)?.length ?? 0;
  }

  #answer(question: Buffer, from: RemoteInfo): void {
    if ((question[2]! & IS_ANSWER) !== 0) return; // To one of our own.
    let at = 12;
    const labels: string[] = [];
    while (question[at] !== 0 && at < question.length) {
      const length = question[at]!;
      labels.push(question.toString("latin1", at + 1, at + 1 + length));
      at += 1 + length;
    }
    const end = at + 5;
    const kind = question.readUInt16BE(at + 1);
    const type = kind === AAAA ? "AAAA" : "A";
    const name = labels.join(".").toLowerCase();
    const turn = (this.#asked.get(`${name} ${type}`) ?? 0) + 1;
    this.#asked.set(`${name} ${type}`, turn);
    const script = this.scripts.get(name) ?? { code: NXDOMAIN };
    const answer = typeof script === "function" ? script(turn, type) : script;
    if (answer.silent === true) return;
    const addresses = (answer.addresses ?? []).filter(
      (address) => isIPv4(address) === (type === "A"),
    );
    const records = kind === A || kind === AAAA ? addresses.map(bytesOf) : [];
    const head = Buffer.alloc(12);
    question.copy(head, 0, 0, 2);
    head.writeUInt16BE(0x8180 | (answer.code ?? 0), 2);
    head.writeUInt16BE(1, 4);
    head.writeUInt16BE(records.length, 6);
    const sections = records.map((bytes) => {
      const record = Buffer.alloc(12);
      record.writeUInt16BE(0xc00c, 0);
      record.writeUInt16BE(kind, 2);
      record.writeUInt16BE(1, 4);
      record.writeUInt32BE(answer.ttlSeconds ?? 0, 6);
      record.writeUInt16BE(bytes.length, 10);
      return Buffer.concat([record, Buffer.from(bytes)]);
    });
    const message = Buffer.concat([head, question.subarray(12, end), ...sections]);
    setTimeout(() => {
      try {
        this.#socket.send(message, from.port, from.address);
      } catch {
        // The scenario has ended meanwhile.
      }
    }, answer.delayMs ?? 0).unref();
  }
}

/** Of type A, recursion desired. */
function questionFor(name: string): Buffer {
  const labels = name.split(".").map((label) => Buffer.concat([Buffer.of(label.length), Buffer.from(label)]));
  return Buffer.concat([Buffer.of(0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0), ...labels, Buffer.of(0, 0, A, 0, 1)]);
}

const bytesOf = (address: string): number[] =>
  isIPv4(address) ? address.split(".").map(Number) : ipv6Bytes(address);
