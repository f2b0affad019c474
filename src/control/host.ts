/**
 * This host as /proc shows it: settings of the kernel, sockets, and the programs that hold them. Reads
 * only, and answers null or nothing where this user may not look.
 */
import { readdirSync, readFileSync, readlinkSync, realpathSync } from "node:fs";
import { endianness } from "node:os";
import { resolve } from "node:path";

export function readText(path: string): string | null {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return null;
  }
}

/** sysctl(8)'s name with dots; an interface of a name with a dot has its "/" ("net.ipv4.conf.eth0/1"). */
export function sysctl(name: string): string | null {
  return readText(`/proc/sys/${name.replaceAll(/[./]/g, (c) => (c === "." ? "/" : "."))}`)?.trim() ?? null;
}

/** -1: there is no such setting. */
export const sysctlNumber = (name: string): number => Number(sysctl(name) ?? "-1");

// ---------------------------------------------------------------------------------------------
// Sockets.

export const TCP_ESTABLISHED = 1;
export const TCP_LISTEN = 10;

/** A line of /proc/net/tcp or tcp6. */
export interface SocketRow {
  /** 4 or 16 bytes; IPv4 in IPv6 clothes is IPv4. */
  readonly local: Uint8Array;
  readonly localPort: number;
  readonly remote: Uint8Array;
  readonly remotePort: number;
  readonly state: number;
  readonly uid: number;
  readonly inode: string;
}

/** Those in which `wanted` sees, on a line, what it looks for: the tables may be long. */
export function sockets(wanted: (state: number) => boolean = () => true): SocketRow[] {
  const rows: SocketRow[] = [];
  for (const file of ["/proc/net/tcp", "/proc/net/tcp6"]) {
    for (const line of (readText(file) ?? "").split("\n").slice(1)) {
      const fields = line.trim().split(/\s+/);
      const state = Number.parseInt(fields[3] ?? "", 16);
      if (fields.length < 10 || !wanted(state)) continue;
      const [local, localPort] = endOf(fields[1]!);
      const [remote, remotePort] = endOf(fields[2]!);
      rows.push({ local, localPort, remote, remotePort, state, uid: Number(fields[7]), inode: fields[9]! });
    }
  }
  return rows;
}

/** "0100007F:0439": 32-bit words in the host's order, and the port. */
function endOf(text: string): [address: Uint8Array, port: number] {
  const [hex = "", port = ""] = text.split(":");
  const bytes = Buffer.from(hex, "hex");
  if (endianness() === "LE") bytes.swap32();
  const mapped = bytes.length === 16 && bytes.subarray(0, 10).every((byte) => byte === 0) && bytes.readUInt16BE(10) === 0xffff;
  return [mapped ? bytes.subarray(12) : bytes, Number.parseInt(port, 16)];
}

export const isWild = (address: Uint8Array): boolean => address.every((byte) => byte === 0);

export const sameAddress = (one: Uint8Array, other: Uint8Array): boolean =>
  one.length === other.length && one.every((byte, i) => byte === other[i]);

// ---------------------------------------------------------------------------------------------
// Programs.

export interface Program {
  readonly pid: number;
  readonly name: string;
  /** It is transplice, of whatever version. */
  readonly ours: boolean;
  readonly uid: number;
  /** The effective ones, by their numbers' bits. */
  readonly capabilities: bigint;
  /** Soft limit of open files. */
  readonly nofile: number;
  /** null: this user may not look. */
  readonly fds: number | null;
  /** "transplice.service"; null: no unit of the system's has it. */
  readonly unit: string | null;
}

/** Who holds the sockets: by inode. A program of another user shows its own to root only. */
export function holders(inodes: ReadonlySet<string>): Map<string, number[]> {
  const found = new Map<string, number[]>();
  for (const entry of list("/proc")) {
    if (!/^[0-9]+$/.test(entry)) continue;
    for (const fd of list(`/proc/${entry}/fd`)) {
      const inode = /^socket:\[([0-9]+)\]$/.exec(link(`/proc/${entry}/fd/${fd}`) ?? "")?.[1];
      if (inode === undefined || !inodes.has(inode)) continue;
      const pids = found.get(inode) ?? [];
      if (!pids.includes(Number(entry))) pids.push(Number(entry));
      found.set(inode, pids);
    }
  }
  return found;
}

export function programOf(pid: number): Program | null {
  const status = readText(`/proc/${pid}/status`);
  if (status === null) return null;
  const field = (name: string): string => new RegExp(`^${name}:\\s*(\\S+)`, "m").exec(status)?.[1] ?? "";
  const limit = /^Max open files\s+(\S+)/m.exec(readText(`/proc/${pid}/limits`) ?? "")?.[1];
  const fds = list(`/proc/${pid}/fd`).length;
  return {
    pid,
    name: field("Name"),
    ours: isOurs(pid),
    uid: Number(field("Uid")),
    capabilities: BigInt(`0x${field("CapEff") || "0"}`),
    nofile: limit === undefined || limit === "unlimited" ? Infinity : Number(limit),
    fds: fds === 0 ? null : fds,
    unit: /([^/\n]+\.service)$/m.exec(readText(`/proc/${pid}/cgroup`) ?? "")?.[1] ?? null,
  };
}

/** By the package that the script belongs to: the program's name is node's. */
function isOurs(pid: number): boolean {
  const words = (readText(`/proc/${pid}/cmdline`) ?? "").split("\0").slice(1);
  const folder = link(`/proc/${pid}/cwd`) ?? "/";
  return words.some((word) => {
    if (word === "" || word.startsWith("-")) return false;
    try {
      const file = realpathSync(resolve(folder, word));
      const text = /\/dist\/src\/main\.js$/.test(file) ? readText(resolve(file, "../../../package.json")) : null;
      return text !== null && (JSON.parse(text) as { name?: string }).name === "transplice";
    } catch {
      return false;
    }
  });
}

function list(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return []; // Gone, or not ours to see.
  }
}

function link(path: string): string | null {
  try {
    return readlinkSync(path);
  } catch {
    return null;
  }
}
