/**
 * The Dockerfile without Docker: linted, and its steps carried out one after the other, each stage in a
 * file system laid over that of this host, which stands for the base image. What comes of the last one is
 * run as its user and by variables alone. Argument: the folder with the linter.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const ROOT = new URL("../../", import.meta.url).pathname;
const [folder] = process.argv.slice(2);

interface Instruction {
  readonly word: string;
  readonly args: readonly string[];
  readonly text: string;
}

/** What is not used here is not listed. */
interface Ast {
  readonly DockerfileParser: {
    parse(text: string): { getInstructions(): { getKeyword(): string; getTextContent(): string; getExpandedArguments(): { getValue(): string }[] }[] };
  };
}
interface Linter {
  validate(text: string): readonly { readonly message: string; readonly range: { readonly start: { readonly line: number } } }[];
}

function fail(text: string): never {
  process.stderr.write(`${text}\n`);
  process.exit(1);
}

const text = readFileSync(`${ROOT}Dockerfile`, "utf8");
const { validate } = (await import(`${folder}/node_modules/dockerfile-utils/lib/main.js`)) as Linter;
for (const { message, range } of validate(text)) fail(`Dockerfile:${range.start.line + 1}: ${message}`);
if (validate("FROM x\nRNU true\n").length === 0) fail("the linter has nothing to say of a wrong instruction");

const { DockerfileParser } = ((await import(`${folder}/node_modules/dockerfile-ast/lib/main.js`)) as { default: Ast }).default;
const instructions: readonly Instruction[] = DockerfileParser.parse(text).getInstructions().map((each) => ({
  word: each.getKeyword(),
  args: each.getExpandedArguments().map((argument) => argument.getValue()),
  text: each.getTextContent().replace(/^\w+\s+/, ""),
}));

/** A shell script: what Docker does, as far as this file asks for it. The stage of the rules needs another network. */
function script(): string {
  const lines: string[] = [];
  const stages = new Map<string, string>();
  let stage = "";
  let directory = "/";
  let skipped = false;
  let count = 0;
  for (const { word, args, text: raw } of instructions) {
    if (word === "FROM") {
      stage = `stage${count++}`;
      directory = "/";
      skipped = args[2] === "firewall";
      const below = stages.get(args[0]!);
      if (args[2] !== undefined) stages.set(args[2], stage);
      if (!skipped) lines.push(`lay ${stage} ${below ?? ""}`);
    }
    if (skipped) continue;
    switch (word) {
      case "WORKDIR":
        directory = args[0]!;
        lines.push(`mkdir -p "$top/${stage}/root${directory}"`);
        break;
      case "COPY": {
        const from = /--from=(\S+)/.exec(raw)?.[1];
        const words = raw.split(/\s+/).filter((part) => !part.startsWith("--"));
        const to = words.at(-1)!;
        const target = `$top/${stage}/root${to.startsWith("/") ? to : `${directory}/${to}`}`;
        const source = from === undefined ? "$top/context/" : `$top/${stages.get(from)!}/root`;
        lines.push(`copy "${target}" ${words.slice(0, -1).map((part) => `"${source}${part}"`).join(" ")}`);
        break;
      }
      case "RUN":
        writeFileSync(join(top, `run${lines.length}`), raw);
        lines.push(`inside ${stage} ${directory} run${lines.length}`);
        break;
    }
  }
  const last = stage;
  const value = (word: string): string => instructions.findLast((each) => each.word === word)?.text ?? "";
  const user = instructions.filter(({ word, args }) => word === "USER" && args[0] !== "0:0").at(-1)!.args[0]!.split(":");
  const command = (JSON.parse(value("ENTRYPOINT")) as string[]).join(" ");
  writeFileSync(join(top, "health"), value("HEALTHCHECK").replace(/^.*?CMD /, ""));
  const as = `setpriv --reuid=${user[0]} --regid=${user[1]} --clear-groups`;
  const env = "env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TRANSPLICE_PROXY_URL=socks5://127.0.0.1:1080";
  lines.push(
    `chroot "$top/${last}/root" ${as} ${env} ${command} >"$top/log" 2>&1 &`,
    "program=$!",
    `wait_for_health() { for i in $(seq 100); do chroot "$top/${last}/root" ${as} sh -c "$(cat "$top/health")" >/dev/null 2>&1 && return; sleep 0.1; done; cat "$top/log"; exit 1; }`,
    "wait_for_health",
    `kill -${value("STOPSIGNAL").replace("SIG", "")} $program`,
    'wait $program || { cat "$top/log"; exit 1; }',
    'grep -q "transplice is ready" "$top/log"',
  );
  return lines.join("\n");
}

const PRELUDE = `
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs "$top"
cd "$top" && tar xf - && ip link set lo up
lay() { # STAGE [BELOW]: over the base image, or over another stage
  mkdir -p "$top/$1/upper" "$top/$1/work" "$top/$1/root"
  mount -t overlay overlay -o "lowerdir=\${2:+$top/$2/upper:}/,upperdir=$top/$1/upper,workdir=$top/$1/work" "$top/$1/root"
  for each in /proc /dev /sys; do mount --rbind $each "$top/$1/root$each"; done
  mount -t tmpfs tmpfs "$top/$1/root/run"
  mkdir -p "$top/$1/root/tmp"
}
copy() { # TARGET SOURCE...
  to=$1; shift
  mkdir -p "$(dirname "$to")"
  cp -a "$@" "$to"
}
inside() { # STAGE DIRECTORY SCRIPT
  chroot "$top/$1/root" sh -c "cd $2 && $(cat "$top/$3")" >"$top/out" 2>&1 || { tail -n 20 "$top/out"; echo "in vain: RUN $(cat "$top/$3")"; exit 1; }
}
`;

/** Of the whole folder, what .dockerignore lets into the context. */
const allowed = readFileSync(`${ROOT}.dockerignore`, "utf8").split("\n").filter((line) => line.startsWith("!")).map((line) => line.slice(1));
const top = mkdtempSync(`${tmpdir()}/transplice-containers-`);
try {
  spawnSync("mkdir", [`${top}/context`]);
  spawnSync("cp", ["-a", ...allowed.map((path) => ROOT + path), `${top}/context/`]);
  const steps = script();
  const files = spawnSync("tar", ["cf", "-", "-C", top, "."], { maxBuffer: 1 << 28 }).stdout;
  const root = process.getuid!() === 0;
  const flags = [...(root ? [] : ["--user", "--map-root-user"]), "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
  if (!root) {
    process.stdout.write("the Dockerfile is linted; its steps are skipped: they need root, for users of their own\n");
    process.exit(0);
  }
  const done = spawnSync("unshare", [...flags, "sh", "-c", PRELUDE + steps], {
    input: files, encoding: "utf8", timeout: 300_000, env: { ...process.env, top },
  });
  if (done.status !== 0) fail(`${done.stdout}${done.stderr}${done.error ?? ""}`);
  process.stdout.write("the Dockerfile is linted, its steps carried out, and what came of them run, found healthy and stopped\n");
} finally {
  rmSync(top, { recursive: true, force: true });
}
