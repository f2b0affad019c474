/**
 * What the tests of truthful connect() share: the rules that `transplice firewall` makes, and a
 * program that connects and tells what connect() said to it.
 */
import { strict as assert } from "node:assert";
import { writeFileSync } from "node:fs";
import { PATIENCE_MS } from "./actors.ts";
import { MAIN, type Settings, toml } from "./relay.ts";
import { type Host, PRIVATE } from "./sandbox.ts";
import type { Stage } from "./scenario.ts";

export type RulesBackend = "nft" | "iptables" | "iptables-legacy";

/** The host's own, and not whatever stands first in somebody's PATH. */
export const PYTHON = "/usr/bin/python3";

let files = 0;

/** Sets the rules that the settings ask for, or skips the scenario where this machine cannot have them. */
export function applyRules(stage: Stage, settings: Settings, backend: RulesBackend = "iptables"): void {
  const file = `${PRIVATE}/truthful-${files++}.toml`;
  writeFileSync(file, toml(settings));
  const run = (...args: string[]) => stage.net.relay.attempt(process.execPath, [MAIN, "firewall", ...args, "-f", file]);
  stage.finally(() => void run("remove"));
  const { status, stderr } = run("apply", "--backend", backend);
  if (status !== 0 && /not installed|incompatible|not supported|does not exist|can't initialize|No such file/.test(stderr)) stage.skip(stderr);
  assert.equal(status, 0, stderr);
  assert.equal(run("status").stdout, `engaged (${backend})\n`);
}

/** One line for each attempt: the errno's name, or "ok" and what the server said; and milliseconds. */
const CLIENT = `
import errno, socket, sys, time
host, port, count, how, wait = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], float(sys.argv[5])
family = socket.AF_INET6 if ":" in host else socket.AF_INET
for i in range(count):
    s = socket.socket(family, socket.SOCK_STREAM)
    said = "ok"
    t = time.monotonic()
    if how == "blocking":
        s.settimeout(None)
        error = s.connect_ex((host, port))
    else:
        import select
        s.setblocking(False)
        error = s.connect_ex((host, port))
        if error == errno.EINPROGRESS:
            p = select.poll()
            p.register(s, select.POLLOUT)
            error = errno.EALREADY if not p.poll(wait * 1000) else s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    ms = (time.monotonic() - t) * 1000
    print(errno.errorcode.get(error, "ok"), "%.3f" % ms, flush=True)
    s.close()
`;

export interface Attempt {
  readonly said: string;
  readonly ms: number;
}

export interface How {
  readonly count?: number;
  readonly blocking?: boolean;
  /** Non-blocking: so long, and then it says EALREADY. */
  readonly waitMs?: number;
}

/** What connect() says there, so many times on end. */
export async function attempts(
  host: Host, address: string, port: number, { count = 1, blocking = true, waitMs = PATIENCE_MS }: How = {},
): Promise<Attempt[]> {
  const how = blocking ? "blocking" : "non-blocking";
  const { output } = await host.execute(PYTHON, "-c", CLIENT, address, `${port}`, `${count}`, how, `${waitMs / 1000}`);
  const lines = output.trim().split("\n").map((line) => line.split(" "));
  return lines.map(([said, ms]) => ({ said: said!, ms: Number(ms) }));
}

/** How often a SYN of the host's was sent again, so far. */
export const synsAgain = (host: Host): number => host.tcpExt("TCPSynRetrans");

const ROUNDS = 4;

/**
 * As attempts(), of which none has sent its SYN again, as it does after a second without an answer. An
 * answer that is lost costs that second each time; a machine that stood still for one does so once, and
 * then it is tried again. All that was seen is the answer.
 */
export async function attemptsAtOnce(host: Host, address: string, port: number, how: How = {}): Promise<Attempt[]> {
  const seen: Attempt[] = [];
  const again: number[] = [];
  while (again.at(-1) !== 0) {
    assert.ok(again.length < ROUNDS, `SYNs were sent again in each round: ${again.join(" ")} of ${how.count ?? 1}`);
    const before = synsAgain(host);
    seen.push(...(await attempts(host, address, port, how)));
    again.push(synsAgain(host) - before);
  }
  return seen;
}
