/**
 * From numbers to pages: medians, ratios that are paired by repetition, the targets, RESULTS.md.
 * Ratios travel between machines; absolute figures belong to the machine that is named with them.
 */
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { cpus, totalmem } from "node:os";
import { MEASURES, type Measure, type MeasureName, type Numbers, OFTEN } from "./measures.ts";
import { median } from "./middle.ts";
import { BIN, DEBIAN, GO_PEERS, programPath, roleOf, ROOT, type SubjectName } from "./subjects.ts";

/** For each measure and subject the numbers of each repetition. */
export type Results = Map<MeasureName, Map<SubjectName, Numbers[]>>;

interface Ratio {
  readonly median: number;
  readonly least: number;
  readonly most: number;
}

/** Of the same number in the same repetition. Null if one of them was not measured. */
function ratio(a: Numbers[] | undefined, b: Numbers[] | undefined, key: string): Ratio | null {
  if (a === undefined || b === undefined) return null;
  return spreadOf(a.map((numbers, rep) => (numbers[key] ?? NaN) / (b[rep]?.[key] ?? NaN)));
}

/** Null if none is a number. */
function spreadOf(all: readonly number[]): Ratio | null {
  const ratios = all.filter((one) => Number.isFinite(one));
  if (ratios.length === 0) return null;
  return { median: median(ratios), least: Math.min(...ratios), most: Math.max(...ratios) };
}

const percent = (share: number): string => `${(share * 100).toFixed(1)} %`;

const fixed = (value: number, digits: number): string =>
  Number.isNaN(value) ? "-" : value.toFixed(digits);

type Cells = string[];

/**
 * The head and the rows of one measure: medians, and in brackets the ratio to the limit. Egresses
 * and chains have no limit: there it is ours to the peer's.
 */
function cells(measure: Measure, rows: Map<SubjectName, Numbers[]>): Cells[] {
  const head = ["", ...measure.columns.map(([, heading]) => heading)];
  const limit = rows.get("limit");
  const ours = rows.get("transplice-egress") ?? rows.get("transplice-chain");
  const kinds = measure.parts?.map(([part, heading]) => [`${part}.`, `, ${heading}`] as const) ?? [["", ""]];
  const body = [...rows].flatMap(([subject, reps]) => kinds.map(([part, heading]) => [
    `${subject}${heading}`,
    ...measure.columns.map(([name, , digits]) => {
      const key = `${part}${name}`;
      const value = fixed(median(reps.map((numbers) => numbers[key] ?? NaN)), digits);
      const to = reps === limit || reps === ours ? null
        : ours === undefined ? ratio(reps, limit, key) : ratio(ours, reps, key);
      if (to === null || value === "-") return value;
      const spread = reps.length > 1 ? ` ${to.least.toFixed(2)}-${to.most.toFixed(2)}` : "";
      return `${value} (${to.median.toFixed(2)}x${spread})`;
    }),
  ]));
  return [head, ...body];
}

/** For the terminal. */
export function table(
  name: MeasureName, measure: Measure, rows: Map<SubjectName, Numbers[]>,
): string {
  const all = cells(measure, rows);
  const widths = all[0]!.map((_, i) => Math.max(...all.map((row) => row[i]!.length)));
  const line = (row: Cells) => row
    .map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!)))
    .join("  ");
  return [`${name}: ${measure.title}`, ...all.map((row) => `  ${line(row)}`), ""].join("\n");
}

// ---- the targets -------------------------------------------------------------------------------

interface Target {
  readonly what: string;
  readonly found: string;
  /** What the limit in C has in our place, in the same run, where that was measured. */
  readonly limit?: string | null;
  /** Null: not measured. "by none": the limit does not hold it either. */
  readonly met: boolean | "by none" | null;
}

function targets(results: Results): { relay: Target[]; egress: Target[] } {
  const relay: Target[] = [];
  const egress: Target[] = [];
  const of = (measure: MeasureName, subject: SubjectName) => results.get(measure)?.get(subject);
  const compare = (
    measure: MeasureName, key: string, against: SubjectName, relation: Relation, bound: number,
    what: string,
  ) => {
    const role = roleOf(against);
    const ours = role === "relay" ? "transplice" : `transplice-${role}` as const;
    const found = ratio(of(measure, ours), of(measure, against), key);
    const limit = against === "limit" ? null : limitAgainst(measure, key, against);
    const isHeld = (it: Ratio) => holds(it.median, relation, bound);
    (role === "relay" ? relay : egress).push({
      what: `${what} against ${against} ${relation} ${bound.toFixed(2)}`,
      found: found === null ? "not measured" : withSpread(found),
      limit: limit && withSpread(limit),
      met: found === null ? null : isHeld(found) || (limit === null || isHeld(limit) ? false : "by none"),
    });
  };
  /** Of a chain it is two of them, one behind the other: each byte goes through both. */
  const limitAgainst = (measure: MeasureName, key: string, against: SubjectName): Ratio | null => {
    const role = roleOf(against);
    if (role === "relay") return ratio(of(measure, "limit"), of(measure, against), key);
    const one = measure === "chain-down-4" ? "down-4" : measure === "chain-up-4" ? "up-4" : null;
    const it = one && ratio(of(one, "limit"), of(measure, against), key);
    return it && { median: 2 * it.median, least: 2 * it.least, most: 2 * it.most };
  };
  compare("down-4", "cpuPerGb", "limit", "<=", 1.1, "bulk down: CPU per GB");
  compare("up-4", "cpuPerGb", "limit", "<=", 1.1, "bulk up: CPU per GB");
  compare("rr", "cpuUs", "limit", "<=", 1.15, "CPU per connection");
  compare("rr", "perSecond", "limit", ">=", 0.95, "connections per second");
  compare("pp-64", "cpuUs", "limit", "<=", 1.1, "CPU per round trip");
  compare("pp-64", "p99", "limit", "<=", 1.2, "p99 of a round trip");
  for (const peer of ["redsocks", "transocks"] as const) {
    compare("down-4", "cpuPerGb", peer, "<=", 0.6, "bulk down: CPU per GB");
    compare("up-4", "cpuPerGb", peer, "<=", 0.6, "bulk up: CPU per GB");
    compare("rr", "cpuUs", peer, "<", 1, "CPU per connection");
    compare("pp-64", "cpuUs", peer, "<=", 1, "CPU per round trip");
    compare("rr", "perSecond", peer, ">=", 1.4, "connections per second");
  }
  const absolute = (measure: MeasureName, key: string, bound: number, what: string) => {
    const reps = of(measure, "transplice");
    const found = reps ? median(reps.map((numbers) => numbers[key] ?? NaN)) : NaN;
    relay.push({
      what: `${what} <= ${bound}`,
      found: Number.isNaN(found) ? "not measured" : found.toFixed(2),
      met: Number.isNaN(found) ? null : found <= bound,
    });
  };
  truthful(relay, of);
  watched(relay, of("watched", "transplice+admin"));
  absolute("idle", "bytesFew", 1024, "user memory per idle tunnel, few: bytes");
  absolute("idle", "bytesMany", 1024, "user memory per idle tunnel, many: bytes");
  absolute("idle", "fds", 2, "fds per idle tunnel");
  for (const peer of ["usocksd", "dante", "microsocks"] as const) {
    compare("egress-down-4", "cpuPerGb", peer, "<", 1, "bulk down: CPU per GB");
    compare("egress-up-4", "cpuPerGb", peer, "<", 1, "bulk up: CPU per GB");
    compare("egress-rr", "cpuUs", peer, "<", 1, "CPU per connection");
    compare("egress-idle", "bytesFew", peer, "<", 1, "user memory per idle tunnel, few");
    compare("egress-idle", "bytesMany", peer, "<", 1, "user memory per idle tunnel, many");
  }
  const predecessors = "transocks+usocksd";
  compare("chain-down-4", "cpuPerGb", predecessors, "<=", 0.6, "chain, bulk down: CPU per GB");
  compare("chain-up-4", "cpuPerGb", predecessors, "<=", 0.6, "chain, bulk up: CPU per GB");
  compare("chain-rr", "cpuUs", predecessors, "<", 1, "chain, CPU per connection");
  return { relay, egress };
}

/** Truthful connect() against the same program without it, and that nobody waits for a second SYN. */
function truthful(into: Target[], of: (measure: MeasureName, subject: SubjectName) => Numbers[] | undefined): void {
  const isHeld = (it: Ratio) => holds(it.median, ">=", 0.85);
  const rate = (what: string, found: Ratio | null, limit: Ratio | null): void => void into.push({
    what: `truthful${what}: connections per second against plain >= 0.85`,
    found: found === null ? "not measured" : withSpread(found),
    limit: limit && withSpread(limit),
    met: found === null ? null : isHeld(found) || (limit === null || isHeld(limit) ? false : "by none"),
  });
  const perSecond = (one: SubjectName, other: SubjectName) => ratio(of("rr", one), of("rr", other), "perSecond");
  rate(", a worker for each CPU", perSecond("transplice+truthful+workers", "transplice+workers"), null);
  rate(", one worker", perSecond("transplice+truthful", "transplice"), perSecond("limit+queue", "limit"));
  const plain = of("rr-1", "transplice");
  const more = of("rr-1", "transplice+truthful")?.map(({ p50 = NaN }, rep) => p50 - (plain?.[rep]?.["p50"] ?? NaN));
  const found = median(more ?? []);
  into.push({
    what: "truthful: a connection's time more than plain, one at a time, p50: µs <= 60",
    found: Number.isNaN(found) ? "not measured" : found.toFixed(0),
    met: Number.isNaN(found) ? null : found <= 60,
  });
  for (const kind of ["prohibited", "net", "host", "refused"] as const) {
    const reps = of(`fail-${kind}`, "transplice+truthful");
    const sum = (key: string): number => (reps ?? []).reduce((all, numbers) => all + (numbers[key] ?? 0), 0);
    into.push({
      what: `truthful: failures that take a second, ${kind} <= 0`,
      found: reps === undefined ? "not measured" : `${sum("stalled")} of ${sum("done")}`,
      met: reps === undefined ? null : sum("stalled") === 0,
    });
  }
}

/** To be looked at costs the data plane nothing that could be told from no change at all. */
function watched(into: Target[], reps: Numbers[] | undefined): void {
  const compared = (key: string, relation: Relation, bound: number, what: string): void => {
    const of = (part: string): Ratio | null => spreadOf((reps ?? []).map((numbers) => numbers[`${part}.${key}`] ?? NaN));
    const [found, floor, nothing] = [of("watched"), of("floor"), of("null")];
    const isHeld = (it: Ratio): boolean => holds(it.median, relation, bound);
    into.push({
      what: `watched by 10 scrapes a second and 3 pages, with 9,000 tunnels: ${what} against unwatched ${relation} ${bound.toFixed(2)}`,
      found: found === null ? "not measured" : `${withSpread(found)}; unwatched against itself ${withSpread(nothing!)}`,
      limit: floor && withSpread(floor),
      met: found === null ? null : isHeld(found) || (isHeld(floor!) ? false : "by none"),
    });
  };
  compared("trips", ">=", 0.97, "round trips per second");
  compared("tripsP99", "<=", 1.1, "their p99");
  compared("shorts", ">=", 0.97, "connections per second");
}

type Relation = "<=" | ">=" | "<";

function holds(value: number, relation: Relation, bound: number): boolean {
  const rounded = Math.round(value * 100) / 100; // As it is printed.
  if (relation === "<") return rounded < bound;
  return relation === "<=" ? rounded <= bound : rounded >= bound;
}

const withSpread = ({ median: middle, least, most }: Ratio) =>
  `${middle.toFixed(2)} (${least.toFixed(2)}-${most.toFixed(2)})`;

function verdict(met: Target["met"]): string {
  if (met === null) return "-";
  if (met === "by none") return "MISSED, by the limit too";
  return met ? "met" : "MISSED";
}

// ---- the page ----------------------------------------------------------------------------------

export interface Run {
  readonly results: Results;
  readonly reps: number;
  readonly seconds: number;
  /** Subjects that could not run here, each with the reason. */
  readonly leftOut: readonly string[];
  /** The share of the machine that others had, for each measurement. */
  readonly others: readonly number[];
  readonly node: string;
  readonly command: string;
}

export function resultsFile(run: Run): { markdown: string; targets: string } {
  const aims = targets(run.results);
  const sections = (heading: string, list: Target[], wanted: (name: MeasureName) => boolean) => [
    `${heading} To reach, and reached`,
    "",
    ...rowsToMarkdown([
      ["target", "measured", "the limit", ""],
      ...list.map((aim) => [aim.what, aim.found, aim.limit ?? "-", verdict(aim.met)]),
    ]),
    ...[...run.results].filter(([name]) => wanted(name)).flatMap(([name, rows]) => {
      const measure: Measure = MEASURES[name];
      return ["", `${heading} ${name}: ${measure.title}`, "", ...rowsToMarkdown(cells(measure, rows))];
    }),
    "",
  ];
  const ofRelays = (name: MeasureName) => !/^(egress|chain)-/.test(name);
  const markdown = [
    "# How fast",
    "",
    "Written by `make bench`; see `bench/run.ts` for how it is measured. Medians of " +
      `${run.reps} repetitions of ${run.seconds} s each, of ${OFTEN} times as many where a target is near; in brackets the ratio to the limit, ` +
      "paired by repetition: median, least-most. CPU is the relay's own, all its threads; with both " +
      "ends' it is of the relay, the client and the destination. The " +
      "limit is `bench/limit.c`: the same algorithm in C with nothing around it. transplice has " +
      "one worker, with +workers one for each CPU, as without a setting; redsocks and the limit have one " +
      "thread; transocks takes all CPUs.",
    "",
    "The column \"the limit\" below says what the limit has in our place, against the same peer in " +
      "the same run (of a chain: two limits, one behind the other). What it misses, too, is out of " +
      "reach for whoever moves bytes by splice(2): transocks and usocksd, built by a Go of today, " +
      "do so as well, through pipes of 1 MiB (maxSpliceSize in Go's internal/poll). Of truthful: what " +
      "the limit has against itself when it lets every SYN go by a queue, without having looked at it. Of being " +
      "watched: what the same watchers cost a relay that they do not look at, while `bench/answer.c` answers them " +
      "the same bytes out of memory on the same cores. \"Unwatched against itself\" is the same ratio where nobody " +
      "looked in either round: what lies within its spread is not to be told from nothing.",
    "",
    ...machine(run).map(([key, value]) => `- ${key}: ${value}`),
    "",
    ...sections("##", aims.relay, ofRelays),
    "## The egress",
    "",
    "SOCKS5 servers, and chains of a transparent relay and a SOCKS5 server, by the same load. It " +
      "asks an egress itself, by address and one message at a time; a chain it knows nothing of. " +
      "In brackets transplice's figure divided by this one: below 1 it has the lower. CPU and " +
      "memory are of the whole process tree, both processes of a chain together. transplice has " +
      "one worker in each role; usocksd and transocks take all CPUs, Dante has processes, " +
      "microsocks a thread for each connection.",
    "",
    ...sections("###", aims.egress, (name) => !ofRelays(name)),
  ].join("\n");
  const all = [...aims.relay, ...aims.egress].filter((aim) => aim.met !== null);
  const width = Math.max(...all.map((aim) => aim.what.length));
  const lines = all.map((aim) =>
    `  ${aim.what.padEnd(width)}  ${aim.found}  ${verdict(aim.met)}${aim.limit ? `  (the limit: ${aim.limit})` : ""}`);
  lines.push(`  (others had ${percent(median(run.others))} of the machine, ` +
    `${percent(Math.max(...run.others))} at worst)`);
  return { markdown, targets: lines.join("\n") };
}

function rowsToMarkdown([head, ...body]: Cells[]): string[] {
  const line = (row: Cells) => `| ${row.join(" | ")} |`;
  return [line(head!), line(head!.map((_, i) => (i === 0 ? "---" : "---:"))), ...body.map(line)];
}

function machine(run: Run): [string, string][] {
  const said = (command: string, ...args: string[]) => {
    const { stdout, stderr } = spawnSync(command, args, { cwd: ROOT, encoding: "utf8" });
    return (stdout || stderr || "").trim().split("\n")[0] ?? "";
  };
  const koffi = JSON.parse(
    readFileSync(`${ROOT}node_modules/koffi/package.json`, "utf8"),
  ) as { version: string };
  const dirty = said("git", "status", "--porcelain", "src", "native-bindings") !== "";
  const commit = `${said("git", "rev-parse", "--short", "HEAD")}${dirty ? " with changes" : ""}`;
  const processor = cpus();
  const versions = [
    `node ${said(run.node, "--version")}`, `koffi ${koffi.version}`, said("gcc", "--version"),
  ];
  for (const peer of Object.keys(GO_PEERS)) {
    const built = new RegExp(`^\\s+(?:mod|dep)\\s+\\S+/${peer}\\s+(v\\S+)`, "m").exec(
      spawnSync("go", ["version", "-m", `${BIN}${peer}`], { encoding: "utf8" }).stdout ?? "",
    );
    if (built) versions.push(`${peer} ${built[1]}`);
  }
  for (const [program, { package: name }] of DEBIAN) {
    if (programPath(program) !== null) versions.push(said("dpkg-query", "-W", name).replace("\t", " "));
  }
  return [
    ["date", new Date().toISOString().slice(0, 10)],
    ["machine", `${processor.length} x ${processor[0]?.model.trim()}, ` +
      `${Math.round(totalmem() / 2 ** 30)} GiB`],
    ["kernel", `Linux ${said("uname", "-r")} ${said("uname", "-m")}`],
    ["versions", versions.join("; ")],
    ["left out", run.leftOut.join("; ") || "nobody"],
    ["load of others", `${percent(median(run.others))} of the machine in the median measurement, ` +
      `${percent(Math.max(...run.others))} in the worst`],
    ["commit", commit],
    ["command", `\`${run.command}\``],
  ];
}
