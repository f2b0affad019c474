/**
 * The running program as it stands: does it listen where the file says, may it do what the file
 * asks for, has it somewhere to write its log, and the addresses to leave by?
 */
import { existsSync, statfsSync } from "node:fs";
import { dirname } from "node:path";
import { EADDRNOTAVAIL, SOCK_CLOEXEC, SOCK_STREAM } from "../../../native-bindings/constants.ts";
import type { Syscalls } from "../../../native-bindings/syscalls.ts";
import type { Config, ListenAddress, SocketAddress } from "../../config/config.ts";
import { addressText, portOf, socketAddress } from "../../config/endpoint.ts";
import { addressOf } from "../../policy/own.ts";
import { type Setup, shellWord } from "./rules.ts";
import { type Finding, finding } from "./finding.ts";
import { holders, isWild, type Program, programOf, readText, sameAddress, type SocketRow, sockets, TCP_LISTEN } from "../host.ts";
import { capabilitiesOf, capabilityName } from "../identity.ts";
import { wantedBy } from "../listeners.ts";
import { boundingCapabilities } from "../resources.ts";

export interface ServiceExamined {
  /** null: it does not run, or not as far as this user can see. */
  readonly program: Program | null;
  readonly findings: readonly Finding[];
}

export function examineService(sys: Syscalls, setup: Setup): ServiceExamined {
  const { config } = setup;
  const found: Finding[] = [];
  const rows = sockets((state) => state === TCP_LISTEN);
  const wanted = [...wantedBy(config).map(({ address }) => address), ...(config.egress?.metrics ?? []),
    ...(config.admin?.listen ?? []).flatMap((address) => ("bytes" in address ? [address] : []))];
  const inodes = holders(new Set(rows.map(({ inode }) => inode)));
  const silent: ListenAddress[] = [];
  const foreign: { address: ListenAddress; by: Program | null; uid: number }[] = [];
  let program: Program | null = null;
  for (const address of wanted) {
    const here = rows.filter((row) => isAt(row, address));
    if (here.length === 0) {
      if (isOnHost(sys, address)) silent.push(address);
      continue;
    }
    const pids = [...new Set(here.flatMap(({ inode }) => inodes.get(inode) ?? []))];
    const programs = pids.flatMap((pid) => programOf(pid) ?? []);
    const ours = programs.find((each) => each.ours);
    program ??= ours ?? null;
    if (ours === undefined) foreign.push({ address, by: programs[0] ?? null, uid: here[0]!.uid });
  }
  found.push(...takenFindings(foreign));
  const addresses = silent.map(({ text }) => text).join(", ");
  if (silent.length > 0 && program !== null) {
    found.push(finding("broken", "not-running", `the running program does not listen on ${addresses}, as the file says; the file may have changed since`, reloadOf(program)));
  } else if (silent.length > 0) {
    found.push(finding("broken", "not-running", `nothing listens on ${addresses}`, startOf(setup)));
  }
  found.push(...capabilityFindings(setup, program), ...logFindings(config), ...egressFindings(sys, config));
  return { program, findings: found };
}

function takenFindings(foreign: readonly { address: ListenAddress; by: Program | null; uid: number }[]): Finding[] {
  const [first] = foreign;
  if (first === undefined) return [];
  const where = foreign.map(({ address }) => address.text).join(", ");
  const show = `ss -tlnp 'sport = :${portOf(first.address.bytes, 0)}'`;
  return [first.by === null
    ? finding("unknown", "listener-taken", `who listens on ${where} may only be seen by that user, ${first.uid}, and root`, `sudo ${show}`)
    : finding("broken", "listener-taken", `another program listens on ${where}: ${first.by.name}, process ${first.by.pid}`, show)];
}

function isAt(row: SocketRow, { bytes, dualStack }: ListenAddress): boolean {
  if (row.localPort !== portOf(bytes, 0)) return false;
  const address = addressOf(bytes, 0);
  if (dualStack) return true;
  return sameAddress(row.local, address) || isWild(row.local) || (isWild(address) && row.local.length === address.length);
}

/** A bind tells: half of "localhost" may be missing. */
function isOnHost(sys: Syscalls, { bytes }: SocketAddress): boolean {
  const fd = sys.socket(bytes[0]!, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return false;
  const memory = sys.memory(bytes.length);
  memory.bytes.set(bytes);
  memory.view.setUint16(2, 0);
  const result = sys.bind(fd, memory, 0, bytes.length);
  sys.close(fd);
  return result !== -EADDRNOTAVAIL;
}

const UNITS = ["/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

function startOf({ config, file }: Setup): string {
  const names = config.upstream === null ? ["transplice-egress.service", "transplice.service"] : ["transplice.service"];
  const unit = existsSync("/run/systemd/system") ? names.find((name) => UNITS.some((folder) => existsSync(`${folder}/${name}`))) : undefined;
  return unit === undefined ? `transplice -f ${shellWord(file)} &` : `systemctl start ${unit}`;
}

export const reloadOf = ({ pid, unit }: Program): string => (unit === null ? `kill -HUP ${pid}` : `systemctl reload ${unit}`);

/** A start with a setting of the unit that it does not have now; or without systemd, of the shell. */
export function restartWith({ file }: Setup, program: Program | null, setting: string, shell: string): string {
  const again = `${shell}transplice -f ${shellWord(file)} &`;
  if (program === null) return again;
  if (program.unit === null) return `kill ${program.pid}; ${again}`;
  const folder = `/etc/systemd/system/${program.unit}.d`;
  return `mkdir -p ${folder} && printf '[Service]\\n${setting}\\n' > ${folder}/doctor.conf && systemctl daemon-reload && systemctl restart ${program.unit}`;
}

function capabilityFindings(setup: Setup, program: Program | null): Finding[] {
  const needed = capabilitiesOf(setup.config);
  const held = program?.capabilities ?? boundingCapabilities();
  const lacking = needed.filter((capability) => ((held >> BigInt(capability)) & 1n) === 0n).map(capabilityName);
  if (lacking.length === 0) return [];
  const names = lacking.join(" ");
  if (program === null) {
    return [finding("broken", "capabilities", `the configuration needs ${names}, which no program here can have (a container?)`,
      `docker run ${lacking.map((name) => `--cap-add ${name.replace("CAP_", "")}`).join(" ")} ...`)];
  }
  return [finding("broken", "capabilities", `process ${program.pid} has not ${names}, which the configuration needs; it may have changed since the start`,
    restartWith(setup, program, `AmbientCapabilities=${names}\\nCapabilityBoundingSet=${names}`, "sudo "))];
}

const LOG_BYTES_MIN = 64 << 20;

function logFindings({ log: { filename } }: Config): Finding[] {
  if (filename === null) return [];
  const folder = dirname(filename);
  const show = `df -h ${shellWord(folder)}`;
  if (!existsSync(folder)) return [finding("broken", "log", `there is no directory ${folder} for the log`, `install -d -o transplice ${shellWord(folder)}`)];
  const { bavail, bsize } = statfsSync(folder);
  const left = bavail * bsize;
  return left >= LOG_BYTES_MIN ? [] : [finding("risk", "log", `the disk of the log, ${folder}, has ${Math.floor(left / (1 << 20))} MiB left; what cannot be written is lost`, show)];
}

function egressFindings(sys: Syscalls, { egress }: Config): Finding[] {
  const found: Finding[] = [];
  const all = egress?.addresses ?? [];
  const absent = all.filter(({ bytes, prefix }) => prefix === bytes.length * 8 && !isOnHost(sys, socketAddress(addressText(bytes), 0)!));
  for (const { bytes, prefix } of absent) {
    const text = addressText(bytes);
    // With another one left, the service goes on.
    found.push(finding(absent.length === all.length ? "broken" : "risk", "egress-address", `${text} of outgoing.addresses is not on this host, and is not used`,
      `ip address add ${text}/${prefix} dev $(ip -o route show default | sed 's/.* dev \\([^ ]*\\).*/\\1/;q')`));
  }
  const iface = egress?.iface ?? null;
  if (iface !== null && readText(`/proc/sys/net/ipv4/conf/${iface}/forwarding`) === null) {
    found.push(finding("broken", "interface-absent", `there is no interface ${iface} (outgoing.iface)`, "ip link"));
  }
  return found;
}

