/** sd_notify as a service manager hears it, and the units as systemd's own tools judge them. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { AF_UNIX, MSG_DONTWAIT, SOCK_CLOEXEC, SOCK_DGRAM } from "../../native-bindings/constants.ts";
import { linux } from "../../native-bindings/syscalls.ts";
import { readEnvironment } from "../../src/config/environment.ts";
import { ServiceManager } from "../../src/control/systemd.ts";

const ROOT = new URL("../../../", import.meta.url).pathname;
const sys = linux();

/** Hears what is sent to the path. */
function manager(path: string): { heard: () => string | null; close: () => void } {
  const fd = sys.socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  const name = new TextEncoder().encode(path.replace(/^@/, "\0"));
  const address = sys.memory(2 + name.length + (path.startsWith("@") ? 0 : 1));
  address.bytes[0] = AF_UNIX;
  address.bytes.set(name, 2);
  assert.equal(sys.bind(fd, address, 0, address.bytes.length), 0);
  const into = sys.memory(4096);
  return {
    heard: () => {
      const got = sys.recv(fd, into, 0, 4096, MSG_DONTWAIT);
      return got < 0 ? null : new TextDecoder().decode(into.bytes.subarray(0, got));
    },
    close: () => void sys.close(fd),
  };
}

for (const kind of ["a path", "the abstract namespace"]) {
  test(`a service manager on ${kind} hears of each change`, () => {
    const folder = mkdtempSync(join(tmpdir(), "transplice-"));
    const path = kind === "a path" ? join(folder, "notify") : `@transplice-test-${process.pid}`;
    const { heard, close } = manager(path);
    const environment = readEnvironment({ NOTIFY_SOCKET: path, WATCHDOG_USEC: "10000000" }, 1);
    const it = new ServiceManager(sys, environment);
    it.ready("3 workers");
    assert.equal(heard(), "READY=1\nSTATUS=3 workers");
    it.reloading(12n);
    assert.equal(heard(), "RELOADING=1\nMONOTONIC_USEC=12\nSTATUS=reading the configuration again");
    it.stopping("bye");
    assert.equal(heard(), "STOPPING=1\nSTATUS=bye");
    const signs = Array.from({ length: 20 }, (_, second) => {
      it.alive(second * 1000, "well");
      return heard() !== null;
    });
    const told = signs.flatMap((sign, second) => (sign ? [second] : []));
    assert.deepEqual(told, [0, 4, 8, 12, 16], "at least twice in ten seconds, and not each second");
    close();
    it.ready("nobody hears it"); // And nothing throws.
    rmSync(folder, { recursive: true });
  });
}

test("a successor does not inherit what its predecessor was started with", () => {
  const { handover, rest } = readEnvironment({ PATH: "/bin", TRANSPLICE_HANDOVER: "{}" }, 7);
  assert.equal(handover, "{}");
  assert.deepEqual(rest, { PATH: "/bin" });
});

test("without a service manager nothing is sent, nor for a watchdog that is another's", () => {
  const read = (env: NodeJS.ProcessEnv) => {
    const { notifySocket, watchdogMs } = readEnvironment(env, 7);
    return { notifySocket, watchdogMs };
  };
  assert.deepEqual(read({}), { notifySocket: null, watchdogMs: null });
  assert.deepEqual(read({ NOTIFY_SOCKET: "nonsense", WATCHDOG_USEC: "x" }), {
    notifySocket: null, watchdogMs: null,
  });
  const others = { NOTIFY_SOCKET: "/run/x", WATCHDOG_USEC: "2000000", WATCHDOG_PID: "8" };
  assert.deepEqual(read(others), { notifySocket: "/run/x", watchdogMs: null });
  assert.equal(readEnvironment(others, 8).watchdogMs, 2000);
  new ServiceManager(sys, { notifySocket: null, watchdogMs: null, handover: null, sockets: [], variables: [], rest: {} }).ready("nobody");
  new ServiceManager(sys, { notifySocket: `/${"x".repeat(200)}`, watchdogMs: null, handover: null, sockets: [], variables: [], rest: {} }).ready("too long");
});

for (const unit of ["transplice.service", "transplice-egress.service"]) {
  test(`systemd-analyze has nothing to say of ${unit}`, (t) => {
    if (spawnSync("systemd-analyze", ["--version"]).error) return t.skip("systemd-analyze is not installed");
    const folder = mkdtempSync(join(tmpdir(), "transplice-"));
    const file = join(folder, unit);
    // The program is where the package puts it; here it only has to be a program.
    const text = readFileSync(join(ROOT, "systemd", unit), "utf8");
    writeFileSync(file, text.replaceAll("/usr/bin/transplice", "/bin/true").replace(/^User=.*\nGroup=.*$/m, "User=root"));
    const verify = spawnSync("systemd-analyze", ["verify", "--man=no", file], { encoding: "utf8" });
    assert.equal(verify.stderr, "");
    assert.equal(verify.status, 0);
    const rated = text.replaceAll("/usr/bin/transplice", "/bin/true");
    writeFileSync(file, rated);
    // From 0 (nothing is exposed) to 100; what is not sandboxed at all has 96.
    const security = spawnSync(
      "systemd-analyze", ["security", "--offline=true", "--threshold=20", "--no-pager", file],
      { encoding: "utf8" },
    );
    assert.equal(security.status, 0, security.stdout + security.stderr);
    rmSync(folder, { recursive: true });
  });
}

for (const unit of ["transplice", "transplice-egress"]) {
  test(`systemd-analyze has nothing to say of ${unit}.socket beside its service`, (t) => {
    if (spawnSync("systemd-analyze", ["--version"]).error) return t.skip("systemd-analyze is not installed");
    const folder = mkdtempSync(join(tmpdir(), "transplice-"));
    for (const name of [`${unit}.service`, `${unit}.socket`]) {
      const text = readFileSync(join(ROOT, "systemd", name), "utf8");
      writeFileSync(join(folder, name), text.replaceAll("/usr/bin/transplice", "/bin/true").replace(/^User=.*\nGroup=.*$/m, "User=root"));
    }
    const verify = spawnSync("systemd-analyze", ["verify", "--man=no", join(folder, `${unit}.socket`)], { encoding: "utf8" });
    assert.deepEqual([verify.stderr, verify.status], ["", 0]);
    rmSync(folder, { recursive: true });
  });
}
