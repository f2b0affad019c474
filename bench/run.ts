/**
 * The benchmark: transplice, the C limit and the peers under the same load, one after another:
 * first the relays, then the egresses, then chains of a relay and an egress.
 *
 *     node dist/bench/run.js [--quick] [--write] [--subjects a,b] [--measures a,b] [--reps N] ...
 *
 * Re-executes itself in a network, mount and process namespace of its own, as root or through a
 * user namespace: the host's firewall is not touched, and when this process ends, in whatever way,
 * the kernel ends everything in the namespace. Subjects take turns within each measure, forwards
 * and backwards (A B C, C B A), and every ratio is a ratio of neighbours in one repetition.
 */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { constants, tmpdir } from "node:os";
import { fileURLToPath } from "node:url";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import {
  FULL, MEASURES, QUICK, startTarget, warmUp, type Measure, type MeasureName, type Numbers,
} from "./measures.ts";
import { queueTargets } from "../src/control/firewall/iptables.ts";
import { wayIn } from "../test/net/sandbox.ts";
import { resultsFile, table, type Results } from "./report.ts";
import {
  BIN, DESTINATION, GO_PEERS, missing, othersBetween, portOf, queuesOf, readMachine, redirected, ROOT, SCRATCH,
  startSubject, stop, SUBJECTS, type Subject, type SubjectName,
} from "./subjects.ts";

/** What --quick is content with. */
const QUICK_SUBJECTS = "direct,limit,limit+queue,transplice,transplice+truthful,transplice+admin,transplice-egress,transplice-chain";
/** A measurement waits while others have more of the machine than this, and if they had, ... */
const OTHERS_MAX = 0.05;
/** ... is made again, so often at most. */
const ATTEMPTS = 3;
/** Waiting and repeating, all measurements together: a busy machine must not hold us for hours. */
const PATIENCE_MS = 180_000;
const QUICK_MEASURES =
  "down-4,up-4,rr,rr-1,pp-64,http,ttfb-20,fail-host,fail-refused,idle,heap,watched,egress-down-4,egress-rr,egress-idle,chain-rr";
/** Who must not lose a connection. */
const OURS = [
  "direct", "limit", "limit+queue", "transplice", "transplice+truthful", "transplice+workers",
  "transplice+truthful+workers", "transplice+admin", "transplice-egress", "transplice-chain",
] as const;

const { values: flags } = parseArgs({
  options: {
    quick: { type: "boolean", default: false },
    write: { type: "boolean", default: false },
    ipv6: { type: "boolean", default: false },
    subjects: { type: "string" },
    measures: { type: "string" },
    reps: { type: "string" },
    seconds: { type: "string" },
    node: { type: "string", default: process.execPath },
    "node-flags": { type: "string", default: "" },
    inside: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

// ---- outside: what must be there, and the namespaces -------------------------------------------

function build(): void {
  mkdirSync(BIN, { recursive: true });
  for (const program of ["limit", "load", "watch", "answer"]) {
    const [source, binary] = [`${ROOT}bench/${program}.c`, `${BIN}${program}`];
    if (existsSync(binary) && statSync(binary).mtimeMs > statSync(source).mtimeMs) continue;
    const gcc = spawnSync("gcc", ["-O2", "-Wall", "-o", binary, source], { stdio: "inherit" });
    if (gcc.status !== 0) throw new Error(`gcc could not build bench/${program}.c`);
  }
  for (const [peer, versions] of Object.entries(GO_PEERS)) {
    const wanted = flags.subjects?.includes(peer) ?? !flags.quick;
    if (wanted && !existsSync(`${BIN}${peer}`)) buildPeer(peer, versions);
  }
}

/** From the Go module proxy. Its tags are asked for by name where "latest" is not answered. */
function buildPeer(peer: string, versions: readonly string[]): void {
  const go = (args: string[], cwd: string) =>
    spawnSync("go", args, { cwd, stdio: "ignore", env: { ...process.env, GOBIN: BIN } });
  const module = `github.com/cybozu-go/${peer}`;
  console.log(`building ${peer} with go ...`);
  const scratch = mkdtempSync(`${tmpdir()}/transplice-bench-`);
  try {
    if (go(["install", `${module}/cmd/${peer}@latest`], scratch).status === 0) return;
    go(["mod", "init", "peer"], scratch);
    for (const version of versions) {
      go(["mod", "edit", `-require=${module}@${version}`], scratch);
      const { status } = go(
        ["build", "-mod=mod", "-o", `${BIN}${peer}`, `${module}/cmd/${peer}`], scratch,
      );
      if (status === 0) return;
    }
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

async function insideNamespaces(): Promise<never> {
  const how = wayIn();
  if ("refusal" in how) throw new Error(`the kernel refuses new namespaces (${how.refusal}): run it as root`);
  const [command, ...args] = how.command;
  const child = spawn(command!, [
    ...args, "--",
    process.execPath, fileURLToPath(import.meta.url), "--inside", ...process.argv.slice(2),
  ], { stdio: "inherit" });
  // unshare takes the namespace with it: --kill-child.
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    process.on(signal, () => child.kill("SIGKILL"));
  }
  const [code, signal] = await new Promise<[number | null, NodeJS.Signals | null]>((resolve) => {
    child.once("exit", (...end) => resolve(end));
  });
  process.exit(code ?? 128 + constants.signals[signal!]);
}

// ---- inside ------------------------------------------------------------------------------------

function run(command: string, ...args: string[]): void {
  const { status, stderr, error } = spawnSync(command, args, { encoding: "utf8" });
  if (error) throw error;
  if (status !== 0) throw new Error(`${command} ${args.join(" ")}: ${stderr.trim()}`);
}

/** Settings that an ordinary user may not have in a namespace: the benchmark lives without. */
function sysctl(name: string, value: string): void {
  try {
    writeFileSync(`/proc/sys/${name.replaceAll(".", "/")}`, value);
  } catch {
    console.log(`(${name} stays as it is)`);
  }
}

function prepareNetwork(subjects: readonly SubjectName[]): void {
  run("mount", "-t", "tmpfs", "tmpfs", SCRATCH);
  process.env["XTABLES_LOCKFILE"] = `${SCRATCH}xtables.lock`;
  run("ip", "link", "set", "lo", "up");
  // Something for connections to come from, and for those of egresses to go to.
  run("ip", "address", "add", `${DESTINATION}/32`, "dev", "lo");
  run("ip", "route", "add", "default", "dev", "lo");
  run("ip", "-6", "route", "add", "default", "dev", "lo");
  // Ports of our own stay below; a connection that has ended must not stand in the way of others.
  sysctl("net.ipv4.ip_local_port_range", "10000 65000");
  sysctl("net.ipv4.tcp_tw_reuse", "1");
  sysctl("net.netfilter.nf_conntrack_tcp_timeout_time_wait", "1");
  for (const subject of subjects) {
    for (const [tool, match] of redirected(subject)) {
      const port = `${portOf(subject)}`;
      run(tool, "-t", "nat", "-A", "OUTPUT", "-p", "tcp", ...match, "-j", "REDIRECT", "--to-ports", port);
      const queues = queuesOf(subject);
      if (queues === null) continue;
      for (const target of queueTargets(queues, tool === "iptables" ? 4 : 6)) {
        const words = target.match(/"[^"]*"|\S+/g)!.map((word) => word.replaceAll('"', ""));
        run(tool, "-t", "raw", "-A", "OUTPUT", "-p", "tcp", "--syn", ...match, ...words);
      }
    }
  }
}

/** The subjects that are running, started and warmed up when they are first needed. */
class Stage {
  readonly #running = new Map<SubjectName, Subject>();
  #target: ChildProcess | null = null;
  #targetMs = 0;
  #patienceMs = PATIENCE_MS;
  readonly #options = { node: flags.node, nodeFlags: flags["node-flags"].split(" ").filter(Boolean), ipv6: flags.ipv6 };
  readonly scale = {
    ...(flags.quick ? QUICK : FULL),
    ...(flags.seconds === undefined ? {} : { seconds: Number(flags.seconds) }),
  };

  /** The share of the machine that others had meanwhile, for each measurement that counts. */
  readonly others: number[] = [];

  /**
   * One measurement; while others work on the machine, it is made again, and the one counts that
   * they disturbed least.
   */
  async run(measure: Measure, name: SubjectName): Promise<Numbers> {
    let [best, leastOthers] = [{} as Numbers, Infinity];
    // A profile is of one process, whoever else is there.
    const once = flags.quick || flags["node-flags"] !== "" || measure.kind === "alone";
    const attempts = once ? 1 : ATTEMPTS;
    for (let attempt = 0; attempt < attempts && leastOthers > OTHERS_MAX; attempt++) {
      if (attempt > 0 && this.#patienceMs <= 0) break;
      const startMs = performance.now();
      await this.#upstream(measure.upstreamMs ?? 0);
      if (measure.kind === "shared") await this.#subject(name);
      if (attempts > 1) await this.#quiet();
      const before = readMachine();
      const numbers = await this.#once(measure, name);
      const others = othersBetween(before, readMachine());
      if (others < leastOthers) [best, leastOthers] = [numbers, others];
      if (attempt > 0) this.#patienceMs -= performance.now() - startMs;
    }
    this.others.push(leastOthers);
    return best;
  }

  /** Waits until others leave the machine to us. */
  async #quiet(): Promise<void> {
    for (const step = 250; this.#patienceMs > 0; this.#patienceMs -= step) {
      const before = readMachine();
      await sleep(step);
      if (othersBetween(before, readMachine()) <= OTHERS_MAX) return;
    }
  }

  async #once(measure: Measure, name: SubjectName): Promise<Numbers> {
    if (measure.kind === "shared") return measure.run(await this.#subject(name), this.scale);
    await this.#retire(name);
    return measure.run(name, this.scale, this.#options);
  }

  async end(): Promise<void> {
    for (const name of [...this.#running.keys()]) await this.#retire(name);
    if (this.#target) await stop(this.#target);
  }

  async #subject(name: SubjectName): Promise<Subject> {
    const running = this.#running.get(name);
    if (running) return running;
    const delayMs = this.#targetMs;
    await this.#upstream(0);
    const subject = await startSubject(name, this.#options);
    this.#running.set(name, subject);
    await warmUp(subject, this.scale);
    await this.#upstream(delayMs);
    return subject;
  }

  async #retire(name: SubjectName): Promise<void> {
    const running = this.#running.get(name);
    this.#running.delete(name);
    // A node that writes a profile does so at its end, and takes seconds.
    if (running) await stop(running.process, flags["node-flags"] === "" ? 500 : 30_000);
  }

  async #upstream(delayMs: number): Promise<void> {
    if (this.#target !== null && this.#targetMs === delayMs) return;
    if (this.#target !== null) await stop(this.#target);
    this.#target = await startTarget(delayMs);
    this.#targetMs = delayMs;
  }
}

async function measureAll(): Promise<void> {
  // Process 1 of a namespace dies of no signal that it does not ask for.
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => process.exit(130));
  const leftOut: string[] = [];
  const subjects = choice(
    "subjects", flags.subjects ?? (flags.quick ? QUICK_SUBJECTS : undefined), SUBJECTS,
  ).filter((name) => {
    const why = missing(name);
    if (why !== null) leftOut.push(`${name} (${why})`);
    return why === null;
  });
  for (const one of leftOut) console.log(`left out: ${one}`);
  const names = choice(
    "measures", flags.measures ?? (flags.quick ? QUICK_MEASURES : undefined),
    Object.keys(MEASURES) as MeasureName[],
  );
  const reps = Number(flags.reps ?? (flags.quick ? 1 : 5));
  prepareNetwork(subjects);

  const stage = new Stage();
  const results: Results = new Map();
  for (const name of names) {
    const measure: Measure = MEASURES[name];
    const those = subjects.filter((subject) => measure.subjects(subject));
    const rows = new Map(those.map((subject) => [subject, [] as Numbers[]]));
    results.set(name, rows);
    const turns = measure.kind === "alone" ? Math.ceil(reps / measure.oneIn) : reps * (measure.often ?? 1);
    for (let rep = 0; rep < turns; rep++) {
      for (const subject of rep % 2 === 0 ? those : those.toReversed()) {
        if (process.stdout.isTTY) process.stdout.write(`\r\x1b[K${name} ${rep + 1}: ${subject}`);
        rows.get(subject)!.push(await stage.run(measure, subject));
      }
    }
    if (process.stdout.isTTY) process.stdout.write("\r\x1b[K");
    console.log(table(name, measure, rows));
  }
  await stage.end();
  const report = resultsFile({
    results, reps, leftOut, others: stage.others, seconds: stage.scale.seconds, node: flags.node,
    command: ["node dist/bench/run.js", ...process.argv.slice(2)]
      .filter((word) => word !== "--inside").join(" "),
  });
  console.log(report.targets);
  if (flags.write) {
    writeFileSync(`${ROOT}bench/RESULTS.md`, report.markdown);
    console.log("written: bench/RESULTS.md");
  }
  // Slow is a result; a lost connection is a fault.
  const faults = lost(results);
  if (faults !== "") console.error(`connections failed: ${faults}`);
  process.exit(faults === "" ? 0 : 1);
}

/** Where one of our own lost connections: "rr through transplice: 3". */
function lost(results: Results): string {
  const found: string[] = [];
  for (const [measure, rows] of results) {
    for (const subject of OURS) {
      const counts = (rows.get(subject) ?? []).map((numbers) => numbers["failed"] ?? 0);
      const failed = counts.reduce((sum, one) => sum + one, 0);
      if (failed > 0) found.push(`${measure} through ${subject}: ${failed}`);
    }
  }
  return found.join(", ");
}

function choice<T extends string>(what: string, text: string | undefined, all: readonly T[]): T[] {
  if (text === undefined) return [...all];
  const chosen = text.split(",");
  const unknown = chosen.filter((name) => !(all as readonly string[]).includes(name));
  if (unknown.length > 0) {
    throw new Error(`--${what}: ${unknown.join(", ")}: not one of ${all.join(", ")}`);
  }
  return all.filter((name) => chosen.includes(name));
}

// ---- and so (below the classes, which do not exist before their lines have run) -----------------

if (flags.help) {
  console.log(`usage: node dist/bench/run.js [options]
  --subjects a,b   of ${SUBJECTS.join(", ")}
  --measures a,b   of ${Object.keys(MEASURES).join(", ")}
  --reps N         repetitions of each measure (5; of some more, of idle and heap fewer)
  --seconds S      of each measurement (${FULL.seconds})
  --quick          seconds rather than minutes: shows that everything works, not how fast
  --ipv6           the clients of the relays come by IPv6
  --node PATH      the node that runs transplice and node-pipe
  --write          writes bench/RESULTS.md`);
} else if (flags.inside) {
  await measureAll();
} else {
  build();
  await insideNamespaces();
}
