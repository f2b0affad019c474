/**
 * A flame graph of the data plane under load: profile/flame.svg, and the .cpuprofile files beside
 * it, which Chrome's developer tools and speedscope open.
 *
 *     node dist/bench/profile.js [--measures rr,pp-64,down-4] [--seconds 4]
 *
 * Made with node's own profiler (--cpu-prof). Clinic's flame does not do here: it stands on 0x,
 * which reads the log of the main thread's isolate (--prof), and the data plane is worker threads,
 * each an isolate of its own. --cpu-prof samples every thread, by the clock: so epoll_wait, in which
 * a worker mostly sleeps, is left out of the graph, and its share is told. A system call shows as time in the
 * function of native-bindings/syscalls.ts that made it; the kernel's own time inside is perf's to
 * show: `perf record -g -p PID`, with --perf-basic-prof in NODE_OPTIONS.
 */
import { spawnSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const FOLDER = `${ROOT}profile/`;

/** What --cpu-prof writes, as far as it is needed: the format of Chrome's developer tools. */
interface Profile {
  nodes: { id: number; callFrame: { functionName: string; url: string; lineNumber: number }; children?: number[] }[];
  samples: number[];
  timeDeltas: number[];
}

interface Frame {
  readonly name: string;
  micros: number;
  readonly children: Map<string, Frame>;
}

const frame = (name: string): Frame => ({ name, micros: 0, children: new Map() });

/**
 * One tree for all samples but those in epoll_wait; frames of the same function under the same
 * parent are one.
 */
function tree(profile: Profile): { root: Frame; asleepMicros: number } {
  const byId = new Map(profile.nodes.map((node) => [node.id, node]));
  const parent = new Map<number, number>();
  for (const node of profile.nodes) for (const child of node.children ?? []) parent.set(child, node.id);
  const nameOf = (id: number): string => {
    const { functionName, url, lineNumber } = byId.get(id)!.callFrame;
    const file = url.replace(/^.*\/dist\//, "").replace(/^.*\//, (path) => (path.includes("node_modules") ? "" : path));
    return `${functionName || "(anonymous)"}${file === "" ? "" : ` ${file}:${lineNumber + 1}`}`;
  };
  const root = frame("all");
  let asleepMicros = 0;
  profile.samples.forEach((sample, i) => {
    const path: string[] = [];
    for (let id: number | undefined = sample; id !== undefined; id = parent.get(id)) path.push(nameOf(id));
    const micros = Math.max(0, profile.timeDeltas[i] ?? 0);
    if (byId.get(sample)!.callFrame.functionName === "epoll_wait") {
      asleepMicros += micros;
      return;
    }
    root.micros += micros;
    let at = root;
    for (const name of path.reverse().slice(1)) {
      let next = at.children.get(name);
      if (next === undefined) {
        next = frame(name);
        at.children.set(name, next);
      }
      next.micros += micros;
      at = next;
    }
  });
  return { root, asleepMicros };
}

const WIDTH = 1400;
const ROW = 18;

function svg(root: Frame, title: string): string {
  const boxes: string[] = [];
  let depth = 0;
  const escaped = (text: string) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
  const draw = (at: Frame, x: number, row: number): void => {
    const width = (at.micros / root.micros) * WIDTH;
    if (width < 0.5) return;
    depth = Math.max(depth, row);
    const share = `${((at.micros / root.micros) * 100).toFixed(1)} %`;
    const hue = /syscalls/.test(at.name) ? 200 : /\(idle\)|\(program\)|garbage/.test(at.name) ? 0 : 30 + (at.name.length % 5) * 6;
    const label = width > 40 ? `<text x="${(x + 3).toFixed(1)}" y="${row * ROW + 43}">${escaped(at.name.slice(0, width / 7))}</text>` : "";
    boxes.push(
      `<g><title>${escaped(at.name)}: ${share}</title><rect x="${x.toFixed(1)}" y="${row * ROW + 30}" width="${width.toFixed(1)}" height="${ROW - 1}" fill="hsl(${hue} 80% 70%)"/>${label}</g>`,
    );
    let left = x;
    for (const child of [...at.children.values()].sort((a, b) => b.micros - a.micros)) {
      draw(child, left, row + 1);
      left += (child.micros / root.micros) * WIDTH;
    }
  };
  draw(root, 0, 0);
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${(depth + 1) * ROW + 40}" font-family="monospace" font-size="11">
<rect width="100%" height="100%" fill="#fff"/><text x="4" y="18" font-size="14">${escaped(title)}</text>
${boxes.join("\n")}
</svg>
`;
}

const { values } = parseArgs({
  options: {
    measures: { type: "string", default: "rr,pp-64,down-4" },
    seconds: { type: "string", default: "4" },
  },
});
rmSync(FOLDER, { recursive: true, force: true });
mkdirSync(FOLDER);
const { status } = spawnSync(process.execPath, [
  fileURLToPath(new URL("run.js", import.meta.url)), "--subjects", "transplice", "--reps", "1",
  "--measures", values.measures, "--seconds", values.seconds,
  `--node-flags=--cpu-prof --cpu-prof-dir=${FOLDER}`,
], { stdio: "inherit" });
if (status !== 0) process.exit(status ?? 1);

const profiles = readdirSync(FOLDER)
  .filter((name) => name.endsWith(".cpuprofile"))
  .map((name) => JSON.parse(readFileSync(FOLDER + name, "utf8")) as Profile)
  .filter(({ nodes }) => nodes.some(({ callFrame }) => callFrame.url.endsWith("/engine/loop.js")));
if (profiles.length === 0) throw new Error(`no worker's profile was written to ${FOLDER}`);
const largest = profiles.sort((a, b) => b.samples.length - a.samples.length)[0]!;
const { root, asleepMicros } = tree(largest);
const asleep = `${((asleepMicros / (root.micros + asleepMicros)) * 100).toFixed(0)} %`;
const title = `one worker under ${values.measures}: ${largest.samples.length} samples; not shown: epoll_wait, ${asleep} of the time`;
writeFileSync(`${FOLDER}flame.svg`, svg(root, title));
console.log("written: profile/flame.svg");
