/**
 * A sandbox for tests and demonstrations: network, mount and process-id namespaces of one's own,
 * in which everything may be done and from which nothing gets out.
 *
 *     enter()   starts this same program again inside, and waits for it; inside it returns at once
 *     Host      a machine of the network inside: a network namespace with a name
 *     Wire      an Ethernet segment that hosts are plugged into
 *
 * As root the namespaces are made directly, as an ordinary user through a user namespace, or where
 * the kernel refuses that, through sudo if it asks for no password. The program outside holds the
 * other end of the inner one's standard input: however it goes, by Ctrl-C or by kill -9, the inner
 * one reads the end of it and leaves, and with the first process the kernel ends all others and
 * takes the networks and mounts away. Inside, /run is empty and private, so that locks, names and
 * process-id files are nobody else's.
 */
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { constants } from "node:os";
import koffi from "koffi";
import { Process, type SpawnOptions } from "./process.ts";

/** The files of the sandbox: gone with it. */
export const PRIVATE = "/run/sandbox";

const PLUG_MS = 60_000;
/** For a program that is to end by itself. */
const PROGRAM_MS = 120_000;
const INSIDE = "SANDBOX_INSIDE";
const CLONE_NEWNET = 0x40000000;

/** The first process inside: prepares what must be private, then starts the program. */
const FIRST_PROCESS = `
  set -e
  mount -t tmpfs -o mode=0755 tmpfs /run
  mkdir -p /run/netns /run/lock ${PRIVATE}/tmp
  chmod 1777 /run/lock ${PRIVATE}/tmp
  ip link set lo up
  status=0
  "$@" || status=$?
  exit $status
`;

/**
 * Call it first. Outside, it does not return: it ends the process with the inner one's exit
 * status, or with 1 and one clear sentence on standard error where no sandbox can be had. The
 * farewell is said when a signal ended it.
 */
export async function enter(remedy = "run it as root", farewell = ""): Promise<void> {
  if (process.env[INSIDE] !== undefined) return settleIn();
  const how = wayIn();
  if ("refusal" in how) {
    process.stderr.write(
      `No sandbox can be made here: the kernel refuses new namespaces (${how.refusal}).\n` +
        `Either ${remedy}, or allow user namespaces ` +
        "(sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, " +
        "kernel.apparmor_restrict_unprivileged_userns).\n",
    );
    process.exit(1);
  }
  const inner = spawn(
    how.command[0]!,
    [
      ...how.command.slice(1),
      "sh",
      "-c",
      FIRST_PROCESS,
      "sandbox",
      process.execPath,
      ...process.execArgv,
      ...process.argv.slice(1),
    ],
    {
      stdio: ["pipe", "inherit", "inherit"],
      env: { ...process.env, [INSIDE]: how.name, TMPDIR: `${PRIVATE}/tmp`, HOME: `${PRIVATE}/tmp` },
    },
  );
  inner.stdin.on("error", () => {});
  const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
  for (const signal of signals) {
    process.on(signal, () => {
      inner.stdin.destroy();
      // The inner program gets a moment for its last words; --kill-child ends all that is left.
      setTimeout(() => inner.kill("SIGKILL"), 3_000).unref();
      inner.once("exit", () => {
        process.stderr.write(farewell);
        process.exit(128 + constants.signals[signal]);
      });
    });
  }
  const status = await new Promise<number>((resolve) => {
    inner.once("error", () => resolve(127));
    inner.once("exit", (code, signal) => {
      // A terminal's Ctrl-C reaches both of us, in any order: let our own handler come first.
      setTimeout(resolve, 20, code ?? 128 + (signal === null ? 0 : constants.signals[signal]));
    });
  });
  process.exit(status);
}

/** True inside, when the sandbox is a user namespace's: only one user id exists then. */
export const unprivileged = (): boolean => process.env[INSIDE] === "user";

/**
 * The command that runs another in new namespaces: as root, as root of a user namespace, or by sudo,
 * where that asks for no password.
 */
export function wayIn(): { name: "root" | "user"; command: string[] } | { refusal: string } {
  const unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
  const path = process.env["PATH"] ?? "";
  const ways = [
    ...(process.getuid?.() === 0 ? [{ name: "root" as const, command: unshare }] : []),
    { name: "user" as const, command: [...unshare, "--user", "--map-root-user"] },
    // With the PATH of the user: node may stand somewhere of his own.
    { name: "root" as const, command: ["sudo", "-n", "--preserve-env", "env", `PATH=${path}`, ...unshare] },
  ];
  let refusal = "";
  for (const { name, command } of ways) {
    const [program, ...args] = [...command, "ip", "link", "set", "lo", "up"];
    const trial = spawnSync(program!, args);
    if (trial.status === 0) return { name, command };
    refusal ||= trial.error?.message ?? String(trial.stderr).trim();
  }
  return { refusal };
}

/** Inside: leave when the program outside has gone, and give the network a hosts file. */
function settleIn(): void {
  process.stdin.on("close", () => process.exit(129));
  process.stdin.on("error", () => process.exit(129));
  process.stdin.resume();
  (process.stdin as unknown as { unref(): void }).unref();
}

// ---------------------------------------------------------------------------------------------
// Hosts and wires.

const setns = koffi.load(null).func("int setns(int, int)");
const home = openSync("/proc/thread-self/ns/net", "r");

/** A thread can be on one host at a time: the one whose system calls are being made. */
function moveTo(netns: number): void {
  if (setns(netns, CLONE_NEWNET) !== 0) throw new Error(`setns: errno ${koffi.errno()}`);
}

/** Somewhere that sockets can be made. */
export interface Place {
  readonly name: string;
  /** Does the work there: sockets opened and programs started belong to it. */
  within<T>(work: () => T): T;
  /**
   * For calls of Node's that make their socket in the next tick, as connect() to an address does:
   * ticks run in the order they were asked for, so this one is between arrival and return.
   */
  withinNextTick(call: () => void): void;
}

/** Where this process is. */
export const HERE: Place = {
  name: "here",
  within: (work) => work(),
  withinNextTick: (call) => call(),
};

/** A machine of the network inside. */
export class Host implements Place {
  readonly name: string;
  /** The file of its network namespace. */
  readonly namespace: string;
  readonly #netns: number;

  constructor(name: string) {
    this.name = name;
    execFileSync("ip", ["netns", "add", name]);
    this.namespace = `/run/netns/${name}`;
    this.#netns = openSync(this.namespace, "r");
    this.ip("link set lo up");
    // Without a link-local address no neighbour is asked for, and that one would be tentative for a second.
    if (haveIPv6()) this.sysctl("net.ipv6.conf.default.accept_dad", 0);
  }

  within<T>(work: () => T): T {
    moveTo(this.#netns);
    try {
      return work();
    } finally {
      moveTo(home);
    }
  }

  withinNextTick(call: () => void): void {
    process.nextTick(moveTo, this.#netns);
    call();
    process.nextTick(moveTo, home);
  }

  /** Runs a program to its end. Answers its output; throws, with what it said, if it fails. */
  run(command: string, args: readonly string[] = [], input?: string): string {
    const result = this.attempt(command, args, input);
    if (result.status === 0) return result.stdout;
    throw new Error(`${this.name}: ${command} ${args.join(" ")}: ${result.stderr.trim()}`);
  }

  attempt(
    command: string,
    args: readonly string[] = [],
    input?: string,
  ): { status: number | null; stdout: string; stderr: string } {
    const options = { encoding: "utf8", timeout: PROGRAM_MS, maxBuffer: 1 << 28 } as const;
    const result = this.within(() =>
      spawnSync(command, args, input === undefined ? options : { ...options, input }),
    );
    const stderr = result.error === undefined ? result.stderr : result.error.message;
    return { status: result.status, stdout: result.stdout ?? "", stderr };
  }

  /** As attempt(), but the actors of this process go on meanwhile. */
  async execute(
    command: string,
    ...args: string[]
  ): Promise<{ status: number | null; output: string }> {
    const program = this.spawn(command, args);
    const timer = setTimeout(() => program.kill(), PROGRAM_MS);
    const { code } = await program.exited;
    clearTimeout(timer);
    return { status: code, output: program.output };
  }

  /** Starts a program that goes on. The caller ends it. */
  spawn(command: string, args: readonly string[] = [], options: SpawnOptions = {}): Process {
    return this.within(() => new Process(this.name, command, args, options));
  }

  /** Commands to ip(8), one a line. */
  ip(...commands: string[]): void {
    this.run("ip", ["-batch", "-"], `${commands.join("\n")}\n`);
  }

  /** sysctl of this network, such as "net.ipv4.ip_forward". */
  sysctl(name: string, value: string | number): void {
    this.within(() => writeFileSync(`/proc/sys/${name.replaceAll(".", "/")}`, String(value)));
  }

  /** One of the counters that nstat(8) calls TcpExt*, of this network. */
  tcpExt(name: string): number {
    const text = this.within(() => readFileSync("/proc/thread-self/net/netstat", "utf8"));
    const [names, values] = text.split("\n").filter((line) => line.startsWith("TcpExt:")).map((line) => line.split(" "));
    const value = values![names!.indexOf(name)];
    if (value === undefined) throw new Error(`this kernel does not count TcpExt${name}`);
    return Number(value);
  }

  /** Addresses of this host that are on no wire: others reach them by a route. */
  owns(...addresses: string[]): void {
    this.ip(...addresses.filter(usable).map((address) => `address add ${address} dev lo${atOnce(address)}`));
  }

  route(to: string, via: string): void {
    const family = via.includes(":") ? "-6" : "-4";
    if (usable(via)) this.run("ip", [family, "route", "add", to, "via", via]);
  }

  remove(): void {
    closeSync(this.#netns);
    execFileSync("ip", ["netns", "delete", this.name]);
  }
}

export class Wire {
  readonly name: string;
  #plugs = 0;

  constructor(name: string) {
    this.name = name;
    home_ip(`link add name ${name} type bridge stp_state 0 forward_delay 0`, `link set ${name} up`);
  }

  /** Gives the host an interface of this wire's name, with the addresses ("192.0.2.1/24"). */
  plug(host: Host, ...addresses: string[]): void {
    const plug = `${this.name}${this.#plugs++}`;
    home_ip(
      `link add name ${plug} type veth peer name ${this.name} netns ${host.name}`,
      `link set ${plug} master ${this.name} up`,
    );
    host.ip(
      `link set ${this.name} up`,
      ...addresses.filter(usable).map((address) => {
        return `address add ${address} dev ${this.name}${atOnce(address)}`;
      }),
    );
    settle(plug);
  }
}

/**
 * Without duplicate address detection, which takes a second. Also on lo, where there is none: it is a
 * worker of the kernel's that finds that out, and until then nobody can bind to the address.
 */
const atOnce = (address: string): string => (address.includes(":") ? " nodad" : "");

/**
 * Waits until the plug forwards. The kernel hears of a link that has come up at most once a second
 * (linkwatch); until then the bridge drops what it carries, and the first SYN is sent again a second later.
 */
function settle(plug: string): void {
  const deadline = Date.now() + PLUG_MS;
  while (!execFileSync("ip", ["-details", "link", "show", plug], { encoding: "utf8" }).includes("state forwarding")) {
    if (Date.now() > deadline) throw new Error(`${plug} does not forward in ${PLUG_MS} ms`);
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10);
  }
}

function home_ip(...commands: string[]): void {
  execFileSync("ip", ["-batch", "-"], { input: `${commands.join("\n")}\n` });
}

/** The kernel has IPv6: without it addresses, routes and rules of that family are left out. */
export const haveIPv6 = (): boolean => existsSync("/proc/sys/net/ipv6");

const usable = (address: string): boolean => haveIPv6() || !address.includes(":");

/** Replaces a file of the system by one of our own, for everybody inside. */
export function shadow(path: string, content: string): void {
  const own = `${PRIVATE}/${path.replaceAll("/", "_")}`;
  mkdirSync(PRIVATE, { recursive: true });
  const mounted = existsSync(own);
  writeFileSync(own, content);
  if (!mounted) execFileSync("mount", ["--bind", own, path]);
}

const originals = new Map<string, string>();

/** What the system's file says, if we may read it, with these lines of our own in front. */
export function shadowAdding(path: string, lines: string): void {
  if (!originals.has(path)) {
    let original = "";
    try {
      original = readFileSync(path, "utf8");
    } catch {
      // /etc/shadow, to an ordinary user: then there is nothing in it but our own.
    }
    originals.set(path, original);
  }
  shadow(path, `${lines}\n${originals.get(path)}`);
}
