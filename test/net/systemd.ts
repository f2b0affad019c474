/**
 * A real systemd on the relay host: the first process of a process-id namespace of its own, with a
 * cgroup, a /run and an overlay of /etc of its own. transplice is there at /usr/bin, where the units
 * of the package expect it.
 */
import { strict as assert } from "node:assert";
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, rmdirSync } from "node:fs";
import { relative } from "node:path";
import { fileURLToPath } from "node:url";
import { eventually } from "./actors.ts";
import { MAIN } from "./relay.ts";
import { type Host, unprivileged } from "./sandbox.ts";
import type { Stage } from "./scenario.ts";

const SYSTEMD = "/lib/systemd/systemd";
const ROOT = fileURLToPath(new URL("../../../", import.meta.url));
/** What our units want of others. */
const TARGETS = "sysinit basic sockets shutdown multi-user network-online nss-lookup test";

/** Arguments: the cgroup, the script of the first process, and that one's own arguments. */
const OUTSIDE = `
  set -e
  mkdir "$1"
  echo 0 >"$1/cgroup.procs"
  shift
  exec unshare --mount --pid --fork --kill-child --mount-proc --cgroup --uts --ipc sh -c "$@"
`;

/** Arguments: the project, Node. The units hide /home, /root and /tmp, where both may be. */
const FIRST_PROCESS = `
  set -e
  mount --make-rprivate /
  mount -t tmpfs -o mode=0755 tmpfs /run
  while umount -l /sys/fs/cgroup 2>/dev/null; do :; done
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
  mkdir -p /run/units /run/bin /run/etc /run/work /run/project
  mount --bind "$1" /run/project
  ln -s "/run/project/${relative(ROOT, MAIN)}" /run/bin/transplice
  [ -x /usr/bin/node ] || cp "$2" /run/bin/node
  mount -t overlay overlay -o lowerdir=/run/bin:/usr/bin /usr/bin
  mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/work /etc
  mount -t tmpfs tmpfs /var/log
  systemd-sysusers /run/project/systemd/transplice.conf
  for target in ${TARGETS}; do printf '[Unit]\\nDefaultDependencies=no\\n' >/run/units/$target.target; done
  cp /run/project/systemd/*.service /run/project/systemd/*.socket /run/units/
  exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin container=transplice \\
    SYSTEMD_UNIT_PATH=/run/units ${SYSTEMD} --system --unit=test.target --log-target=console --show-status=no
`;

export class Systemd {
  readonly #host: Host;
  readonly #pid: number;

  private constructor(host: Host, pid: number) {
    this.#host = host;
    this.#pid = pid;
  }

  /** Started, and ended with the scenario; which is skipped, with the reason, where there can be none. */
  static async on(stage: Stage, host: Host): Promise<Systemd> {
    if (unprivileged()) stage.skip("systemd needs more than one user id, which an ordinary user's namespace lacks");
    if (!existsSync(SYSTEMD) || spawnSync("systemd-sysusers", ["--version"]).error) stage.skip("systemd is not installed");
    const cgroups = spawnSync("findmnt", ["-n", "-t", "cgroup2", "-o", "TARGET"], { encoding: "utf8" });
    const mounted = cgroups.stdout?.split("\n")[0]?.trim();
    if (!mounted) stage.skip("no cgroup2 file system is mounted");
    const own = /^0::(.*)$/m.exec(readFileSync("/proc/self/cgroup", "utf8"))?.[1] ?? "/";
    const cgroup = `${mounted}${own === "/" ? "" : own}/transplice-test-${process.ppid}-${process.pid}`;
    stage.finally(() => removed(cgroup));
    const outer = stage.spawn(
      host, "sh", "-c", OUTSIDE, "outside", cgroup, FIRST_PROCESS, "first", ROOT, process.execPath,
    );
    let first = 0;
    await eventually("systemd is there", () => {
      assert.equal(outer.exit, null, outer.output);
      first = Number(childOf(outer.pid));
      return first > 0 && /systemd/.test(commandOf(first));
    });
    // The namespaces end with their first process.
    stage.finally(() => {
      if (existsSync(`/proc/${first}`)) process.kill(first, "SIGKILL");
    });
    const it = new Systemd(host, first);
    await eventually("systemd answers", async () => (await it.try("systemctl", "is-system-running")).output.trim() === "running");
    return it;
  }

  /** Runs a program beside it. */
  try(...command: string[]): Promise<{ status: number | null; output: string }> {
    return this.#host.execute("nsenter", "-t", `${this.#pid}`, "--mount", "--pid", "--cgroup", "--ipc", "--uts", ...command);
  }

  async run(...command: string[]): Promise<string> {
    const { status, output } = await this.try(...command);
    assert.equal(status, 0, `${command.join(" ")}: ${output}`);
    return output.trim();
  }

  write(path: string, text: string): Promise<string> {
    return this.run("sh", "-c", 'mkdir -p "$(dirname "$1")" && printf %s "$2" >"$1"', "write", path, text);
  }

  property(unit: string, name: string): Promise<string> {
    return this.run("systemctl", "show", "--property", name, "--value", unit);
  }
}

function childOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim();
  } catch {
    return "";
  }
}

function commandOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/comm`, "utf8");
  } catch {
    return "";
  }
}

/** With those that systemd has made in it. Whoever was in them may take a moment to be gone. */
async function removed(cgroup: string): Promise<void> {
  const remove = (path: string): void => {
    for (const entry of readdirSync(path, { withFileTypes: true })) if (entry.isDirectory()) remove(`${path}/${entry.name}`);
    rmdirSync(path);
  };
  await eventually("the cgroup is empty", () => {
    if (!existsSync(cgroup)) return true;
    try {
      remove(cgroup);
      return true;
    } catch {
      return false;
    }
  });
}
