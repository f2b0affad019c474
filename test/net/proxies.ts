/**
 * The proxies that people really run, from their distributions: each with a configuration made
 * for the scenario, on the proxy host. The caller ends them.
 *
 * Inside a sandbox of an ordinary user there is one user id only, so none of them can change to
 * another. Those that refuse to be root get a user namespace, in which they are somebody else.
 */
import { execFileSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, writeFileSync } from "node:fs";
import { BIN } from "../../bench/subjects.ts";
import { connect, eventually, text } from "./actors.ts";
import { DENIED, DENIED_PORT, PROXY } from "./network.ts";
import type { Process } from "./process.ts";
import { MAIN, Relay } from "./relay.ts";
import { type Host, PRIVATE, shadowAdding, unprivileged } from "./sandbox.ts";

export interface Account {
  username: string;
  password: string;
}

export interface Proxy {
  /** The scheme of its protocol, for proxy_url. */
  scheme: "socks5" | "http";
  /** The program, for messages. */
  program: string;
  /** Where the program may be, as /usr/sbin is not on everybody's path. */
  paths: readonly string[];
  start(host: Host, address: string, port: number, account: Account | null): Process;
}

let directories = 0;

/** A directory for a daemon's files. */
function directory(of: string): string {
  const path = `${PRIVATE}/${of}-${directories++}`;
  mkdirSync(path, { recursive: true });
  chmodSync(path, 0o777);
  return path;
}

export const microsocks: Proxy = {
  scheme: "socks5",
  program: "microsocks",
  paths: ["/usr/bin/microsocks"],
  start(host, address, port, account) {
    const login = account === null ? [] : ["-u", account.username, "-P", account.password];
    return host.spawn("/usr/bin/microsocks", ["-i", address, "-p", `${port}`, ...login]);
  },
};

export const dante: Proxy = {
  scheme: "socks5",
  program: "danted",
  paths: ["/usr/sbin/danted"],
  start(host, address, port, account) {
    const files = directory("dante");
    if (account !== null) {
      // Dante knows the system's accounts only.
      const hash = execFileSync("openssl", ["passwd", "-6", account.password], {
        encoding: "utf8",
      });
      const entry = `${account.username}:x:0:0::/:/bin/false`;
      shadowAdding("/etc/passwd", entry);
      shadowAdding("/etc/shadow", `${account.username}:${hash.trim()}:19000:0:99999:7:::`);
    }
    const everybody = "from: 0/0 to: 0/0";
    const everybodyIPv6 = "from: ::/0 to: ::/0";
    writeFileSync(
      `${files}/danted.conf`,
      `
      logoutput: stderr
      internal.protocol: ipv4 ipv6
      internal: ${address} port = ${port}
      external.protocol: ipv4 ipv6
      external: ${PROXY[4]}
      external: ${PROXY[6]}
      clientmethod: none
      socksmethod: ${account === null ? "none" : "username"}
      user.privileged: root
      user.unprivileged: root
      client pass { ${everybody} }
      client pass { ${everybodyIPv6} }
      socks block { from: 0/0 to: ${DENIED[4]}/32 }
      socks block { from: 0/0 to: ${DENIED[6]}/128 }
      socks pass { ${everybody} log: connect error }
      socks pass { ${everybodyIPv6} log: connect error }
    `,
    );
    return host.spawn("/usr/sbin/danted", ["-f", `${files}/danted.conf`, "-p", `${files}/pid`]);
  },
};

export const squid: Proxy = {
  scheme: "http",
  program: "squid",
  paths: ["/usr/sbin/squid"],
  start(host, address, port, account) {
    const files = directory("squid");
    let access = "http_access allow all";
    if (account !== null) {
      const hash = execFileSync("openssl", ["passwd", "-apr1", account.password], {
        encoding: "utf8",
      });
      writeFileSync(`${files}/users`, `${account.username}:${hash}`);
      access = `
auth_param basic program /usr/lib/squid/basic_ncsa_auth ${files}/users
auth_param basic children 1
acl known proxy_auth REQUIRED
http_access allow known
http_access deny all`;
    }
    writeFileSync(
      `${files}/squid.conf`,
      `
http_port ${text(address, port)}
acl denied dst ${DENIED[4]} ${DENIED[6]}
http_access deny denied
${access}
cache deny all
access_log stdio:${files}/access.log
cache_log /dev/stderr
pid_filename ${files}/squid.pid
coredump_dir ${files}
shutdown_lifetime 0 seconds
visible_hostname proxy
pinger_enable off
icp_port 0
max_filedescriptors 1024
`,
    );
    return asSomebody(host, "/usr/sbin/squid", ["-N", "-f", `${files}/squid.conf`]);
  },
};

export const tinyproxy: Proxy = {
  scheme: "http",
  program: "tinyproxy",
  paths: ["/usr/bin/tinyproxy"],
  start(host, address, port, account) {
    const files = directory("tinyproxy");
    writeFileSync(`${files}/filter`, `^${DENIED[4].replaceAll(".", "\\.")}\n^\\[?${DENIED[6]}\n`);
    writeFileSync(
      `${files}/tinyproxy.conf`,
      `
Filter "${files}/filter"
FilterExtended Yes
Port ${port}
Listen ${address}
Timeout 600
MaxClients 200
LogLevel Info
${account === null ? "" : `BasicAuth ${account.username} ${account.password}`}
`,
    );
    return host.spawn("/usr/bin/tinyproxy", ["-d", "-c", `${files}/tinyproxy.conf`]);
  },
};

/** Without a password, and without rules. */
export const ncat: Proxy = {
  scheme: "http",
  program: "ncat",
  paths: ["/usr/bin/ncat"],
  start: (host, address, port) =>
    host.spawn("/usr/bin/ncat", ["--listen", "--keep-open", "--proxy-type", "http", address, `${port}`]),
};

/** `ssh -D`, to an sshd on the same host. */
export const sshD: Proxy = {
  scheme: "socks5",
  program: "ssh",
  paths: ["/usr/sbin/sshd"],
  start(host, address, port) {
    const files = directory("ssh");
    chmodSync(files, 0o700);
    mkdirSync("/run/sshd", { recursive: true, mode: 0o755 });
    for (const key of ["host", "user"])
      execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", `${files}/${key}`]);
    const server = [
      "UsePAM=no", "StrictModes=no", "PermitRootLogin=yes", `AuthorizedKeysFile=${files}/user.pub`,
      `PidFile=${files}/pid`, `HostKey=${files}/host`, "ListenAddress=127.0.0.1:22",
    ];
    const client = ["StrictHostKeyChecking=no", `UserKnownHostsFile=${files}/known`, "BatchMode=yes"];
    const options = (all: readonly string[]): string => all.map((option) => `-o ${option}`).join(" ");
    const dynamic = `-N -D ${text(address, port)} root@127.0.0.1`;
    return host.spawn("sh", [
      "-c",
      `/usr/sbin/sshd -D -e -f /dev/null ${options(server)} &
      until ssh -F none -i ${files}/user ${options(client)} ${dynamic}; do sleep 0.1; done`,
    ], { title: "ssh" });
  },
};

export const usocksd: Proxy = {
  scheme: "socks5",
  program: "usocksd",
  paths: [`${BIN}usocksd`],
  start(host, address, port) {
    const files = directory("usocksd");
    writeFileSync(
      `${files}/usocksd.toml`,
      `
[incoming]
port = ${port}
addresses = ["${address}"]
[outgoing]
deny_ports = [${DENIED_PORT}]
`,
    );
    return host.spawn(`${BIN}usocksd`, ["-f", `${files}/usocksd.toml`]);
  },
};

/** Our own egress. */
export const transplice: Proxy = {
  scheme: "socks5",
  program: "transplice",
  paths: [MAIN],
  start(host, address, port) {
    const settings = {
      incoming: { port, addresses: [address], metrics_port: 0 },
      outgoing: { deny_networks: [DENIED[4], DENIED[6]], allow_private: true },
      timeouts: { dial: "20s" },
    };
    return Relay.spawn(host, settings).process;
  },
};

export const PROXIES = [microsocks, dante, squid, tinyproxy] as const;

/** Why the proxy cannot be had here; null if it can. */
export const absence = (proxy: Proxy): string | null =>
  proxy.paths.some(existsSync) ? null : `${proxy.program} is not installed`;

/** Waits until something listens there. */
export async function listening(
  program: Process,
  from: Host,
  address: string,
  port: number,
): Promise<void> {
  await eventually(`${program.title} listens on ${text(address, port)}`, async () => {
    if (program.exit !== null) throw new Error(`${program.title} ended before it listened`);
    const peer = await connect(from, address, port).catch(() => null);
    peer?.destroy();
    return peer !== null;
  });
}

/** For programs that will not run as root: as nobody, or as the only user there is, renamed. */
export function asSomebody(host: Host, command: string, args: readonly string[]): Process {
  const title = { title: command.replace(/.*\//, "") };
  const rename = ["unshare", "--user", "--map-user=65534", "--map-group=65534"];
  const change = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
  const [become, ...rest] = [...(unprivileged() ? rename : change), command, ...args];
  return host.spawn(become!, rest, title);
}
