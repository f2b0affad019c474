/**
 * `transplice doctor` on a host that is broken on purpose, one fault at a time: it names that one, and
 * no other. On a healthy host it has nothing to say. Settings of the kernel that all networks share
 * are other files to the doctor alone, by a mount of its own.
 */
import { strict as assert } from "node:assert";
import { mkdirSync, readFileSync, utimesSync, writeFileSync } from "node:fs";
import koffi from "koffi";
import { eventually, sleep, text } from "./actors.ts";
import { DNS, Names } from "./names.ts";
import { BLACK_HOLE, PROXY, RELAY, SERVER } from "./network.ts";
import { MAIN, type Relay, type Settings, type StartOptions, toml } from "./relay.ts";
import { haveIPv6, PRIVATE, shadow, unprivileged } from "./sandbox.ts";
import { scenario, type Stage } from "./scenario.ts";
import type { Script } from "./upstream.ts";

const MARK = 0x1081;
const NOBODY = 65_534;

interface Finding {
  id: string;
  level: string;
  text: string;
  run: string;
}

/** What is wrong with the machine that the tests run on, and so with every host of theirs. */
function machine(): string[] {
  const adjtimex = koffi.load(null).func("int adjtimex(void *)");
  const TIME_ERROR = 5;
  return adjtimex(Buffer.alloc(512)) === TIME_ERROR ? ["clock"] : [];
}

interface Ward {
  readonly stage: Stage;
  readonly relay: Relay;
  /** What the doctor sees instead: by the file's path, its content, or null for an empty folder. */
  readonly masks: Map<string, string | null>;
  /** Writes another file, and leaves the program as it runs. */
  change(settings: Settings): void;
  readonly settings: Settings;
}

interface Case {
  readonly name: string;
  /** The findings; [] = none. */
  readonly ids: readonly string[];
  /** In the text of the first. */
  readonly says?: RegExp;
  /** In its command. */
  readonly runs?: RegExp;
  readonly settings?: Settings;
  readonly script?: Partial<Script>;
  readonly start?: StartOptions;
  /** Without the program running, or without rules. */
  readonly without?: readonly ("program" | "rules" | "upstream")[];
  readonly needs?: "ipv6" | "users" | "PAWSTimewait";
  /** Breaks something; or heals it again, where the name of the case says so. */
  readonly fault?: (ward: Ward) => void | Promise<void>;
}

const nft = ({ stage }: Ward, rules: string): void => {
  const host = stage.net.relay;
  host.run("nft", ["-f", "-"], rules);
  stage.finally(() => void host.run("nft", ["delete", "table", /table (\S+ \S+)/.exec(rules)![1]!]
    .flatMap((word) => word.split(" "))));
};

const sysctl = ({ stage }: Ward, name: string, value: string, before: string): void => {
  stage.net.relay.sysctl(name, value);
  stage.finally(() => stage.net.relay.sysctl(name, before));
};

/** Of one family, programs find no way out. */
const withoutRoute = ({ stage }: Ward, family: "-4" | "-6"): void => {
  const host = stage.net.relay;
  const [route = ""] = host.run("ip", [family, "route", "show", "default"]).split("\n");
  host.run("ip", [family, "route", "del", "default"]);
  stage.finally(() => void host.run("ip", [family, "route", "add", ...route.replace(/ (?:proto|metric|pref) \S+/g, "").trim().split(/\s+/)]));
};

const BY_HAND = (family: string, exempt: string): string =>
  `table ${family} byhand { chain output { type nat hook output priority -100; ${exempt} meta l4proto tcp redirect to :1081; }; }\n`;
const EXEMPT = `meta mark ${MARK} return; oifname "lo" return;`;

const CASES: readonly Case[] = [
  { name: "healthy", ids: [] },
  { name: "healthy, with rules by hand", ids: [], without: ["rules"], fault: (ward) => nft(ward, BY_HAND("inet", EXEMPT)) },
  { name: "healthy, as a gateway with TPROXY", ids: [], settings: { mode: "tproxy", listen: ":1081", firewall: { interfaces: ["inner"] } } },
  { name: "healthy, with HTTP CONNECT and a password", ids: [], script: { protocol: "http", credentials: { username: "u", password: "p" } } },
  { name: "healthy, with SOCKS5 and a password", ids: [], script: { credentials: { username: "u", password: "p" } } },

  { name: "healthy, with SOCKS4, which can only be dialled", ids: [], settings: { proxy_url: `socks4://${text(PROXY[4], 1080)}` } },

  { name: "healthy, without a way to IPv6", ids: [], needs: "ipv6", fault: (ward) => withoutRoute(ward, "-6") },

  { name: "the program does not run", ids: ["not-running"], without: ["program"], runs: /transplice -f/ },
  {
    name: "another program has the port", ids: ["listener-taken"], without: ["program"], says: /ncat/, runs: /ss -tlnp/,
    fault: async ({ stage }) => {
      for (const address of ["127.0.0.1", ...(haveIPv6() ? ["::1"] : [])]) {
        stage.spawn(stage.net.relay, "ncat", "-lk", address, "1081");
      }
      await eventually("both listen", () => stage.net.relay.run("ss", ["-Htln", "sport = :1081"]).split("\n").filter(Boolean).length === (haveIPv6() ? 2 : 1));
    },
  },
  {
    name: "the file asks for more than the process may", ids: ["capabilities", "rules-differ"], says: /CAP_NET_RAW/, needs: "users",
    start: { command: ["setpriv", `--reuid=${NOBODY}`, "--clear-groups", "--inh-caps=+net_admin", "--ambient-caps=+net_admin", "--bounding-set=-all,+net_admin"] },
    fault: async (ward) => {
      ward.change({ ...ward.settings, connect: { truthful: true } });
    },
  },
  {
    name: "healthy, managing rules as a user with CAP_NET_ADMIN alone", ids: [], without: ["rules"], needs: "users", settings: { firewall: { manage: true } },
    start: { command: ["setpriv", `--reuid=${NOBODY}`, "--clear-groups", "--inh-caps=+net_admin", "--ambient-caps=+net_admin", "--bounding-set=-all,+net_admin"] },
    fault: async ({ relay }) => void (await relay.logged("engagement", ({ message }) => message === "the firewall's rules are engaged")),
  },
  { name: "a mistake in the file", ids: ["configuration"], says: /workerz/, fault: (ward) => writeFileSync(ward.relay.file, 'proxy_url = "direct:"\nworkerz = 1\n') },
  { name: "a user that is not there", ids: ["rules"], says: /nobody-such/, settings: { firewall: { users: ["nobody-such"] } }, without: ["rules"] },

  { name: "rules absent", ids: ["rules-absent"], without: ["rules"], runs: /firewall apply/ },
  {
    name: "rules differ", ids: ["rules-differ"], says: /redirect to :1081/, runs: /firewall apply/,
    fault: ({ stage }) => void stage.net.relay.run("nft", ["flush", "chain", "inet", "transplice", "output_ports"]),
  },
  {
    name: "another redirect comes first", ids: ["redirected-elsewhere"], says: /nft inet theirs, chain output: .*redirect to :9999/, needs: "users",
    fault: (ward) => {
      for (const address of ["127.0.0.1", ...(haveIPv6() ? ["::1"] : [])]) ward.stage.listen(ward.stage.net.relay, address, 9999);
      nft(ward, `table inet theirs { chain output { type nat hook output priority -150; meta mark ${MARK} return; meta l4proto tcp redirect to :9999; }; }\n`);
    },
  },
  {
    name: "a rule drops what was redirected", ids: ["not-redirected"], needs: "users",
    fault: (ward) => nft(ward, "table inet theirs { chain input { type filter hook input priority 0; tcp dport 1081 drop; }; }\n"),
  },
  { name: "no default route", ids: ["not-redirected"], says: /has no route/, runs: /^ip route add default dev /, fault: (ward) => withoutRoute(ward, "-4") },
  {
    name: "a listener on one address, programs redirected to another", ids: ["listener-address"], says: /redirected to IPv4 loopback/,
    settings: { listen: [`${RELAY[4]}:1081`, "[::1]:1081"] },
  },
  { name: "an interface that is not there", ids: ["interface-absent"], says: /none0/, settings: { listen: ":1081", firewall: { interfaces: ["none0"] } } },
  {
    name: "no forwarding of IPv4", ids: ["ip-forward"], runs: /sysctl -w net.ipv4.ip_forward=1/, settings: { listen: ":1081", firewall: { interfaces: ["inner"] } },
    fault: (ward) => sysctl(ward, "net.ipv4.ip_forward", "0", "1"),
  },
  {
    name: "no forwarding of IPv6", ids: ["ip-forward"], runs: /net.ipv6.conf.all.forwarding=1/, settings: { listen: ":1081", firewall: { interfaces: ["inner"] } }, needs: "ipv6",
    fault: (ward) => sysctl(ward, "net.ipv6.conf.all.forwarding", "0", "1"),
  },
  {
    name: "one interface forwards no IPv4", ids: ["ip-forward"], runs: /^sysctl -w net\.ipv4\.conf\.inner\.forwarding=1$/, settings: { listen: ":1081", firewall: { interfaces: ["inner"] } },
    fault: (ward) => sysctl(ward, "net.ipv4.conf.inner.forwarding", "0", "1"),
  },
  {
    name: "rp_filter", ids: ["rp-filter"], runs: /net.ipv4.conf.inner.rp_filter=2/, settings: { mode: "tproxy", listen: ":1081", firewall: { interfaces: ["inner"] } },
    fault: (ward) => sysctl(ward, "net.ipv4.conf.inner.rp_filter", "1", "0"),
  },
  {
    name: "ICMP errors are limited, where connect() tells the truth by them", ids: ["icmp-ratelimit"], runs: /icmp_ratelimit=0/,
    settings: { connect: { truthful: true, answer: "reject" } },
  },
  {
    name: "healthy, with truthful connect()", ids: [], settings: { connect: { truthful: true, answer: "reject" } },
    fault: (ward) => {
      sysctl(ward, "net.ipv4.icmp_ratelimit", "0", "1000");
      if (haveIPv6()) sysctl(ward, "net.ipv6.icmp.ratelimit", "0", "1000");
    },
  },
  {
    name: "route_localnet", ids: ["route-localnet"], runs: /route_localnet=1/, without: ["rules"],
    fault: (ward) => nft(ward, `${BY_HAND("inet", EXEMPT).replace(/\}\n$/, "")} chain prerouting { type nat hook prerouting priority -100; iifname "inner" meta l4proto tcp dnat ip to 127.0.0.1:1081; }; }\n`),
  },
  { name: "healthy, without what the file excludes", ids: [], settings: { firewall: { exclude: ["::/0", "203.0.113.0/24"] } } },
  { name: "an IPv6 hole of what the file includes", ids: ["ipv6-hole"], says: /add "::\/0"/, settings: { firewall: { include: ["0.0.0.0/0"] } }, needs: "ipv6" },
  { name: "an IPv6 hole of the file's", ids: ["ipv6-hole"], settings: { listen: "127.0.0.1:1081" }, needs: "ipv6" },
  {
    name: "an IPv6 hole of rules by hand", ids: ["ipv6-hole"], says: /by hand/, without: ["rules"], needs: "ipv6",
    fault: (ward) => nft(ward, BY_HAND("ip", EXEMPT)),
  },
  { name: "conntrack is not loaded", ids: ["conntrack-module"], runs: /modprobe nf_conntrack/, fault: ({ masks }) => void masks.set("/proc/sys/net/netfilter", null) },
  {
    name: "nft does not work", ids: ["backend"], settings: { firewall: { backend: "nft" } }, without: ["rules"],
    fault: ({ masks }) => void masks.set("/usr/sbin/nft", "#!/bin/sh\necho no nf_tables in this kernel >&2; exit 1\n"),
  },

  { name: "the upstream refuses", ids: ["upstream-unreachable"], says: /refuses/, runs: /nc -vz/, without: ["upstream"] },
  {
    name: "the upstream refuses, beside a rule for others", ids: ["upstream-unreachable"], without: ["upstream"],
    fault: (ward) => nft(ward, "table ip theirs { chain output { type nat hook output priority -150; ip daddr 198.18.0.0/15 meta l4proto tcp redirect to :9999; }; }\n"),
  },
  {
    name: "the upstream is a black hole", ids: ["upstream-unreachable"], says: /does not answer/, runs: /ip route get/,
    settings: { proxy_url: `socks5://${text(BLACK_HOLE[4], 1080)}` },
  },
  {
    name: "wrong credentials, SOCKS5", ids: ["upstream-credentials"], script: { credentials: { username: "u", password: "other" } },
    settings: { proxy_url: `socks5://u:p@${text(PROXY[4], 1080)}` },
  },
  {
    name: "wrong credentials, HTTP", ids: ["upstream-credentials"], script: { protocol: "http", credentials: { username: "u", password: "other" } },
    settings: { proxy_url: `http://u:p@${text(PROXY[4], 1080)}` },
  },
  { name: "an HTTP proxy taken for SOCKS5", ids: ["upstream-protocol"], script: { protocol: "http" }, settings: { proxy_url: `socks5://${text(PROXY[4], 1080)}` } },
  { name: "an upstream that says nothing", ids: ["upstream-protocol"], says: /says nothing/, script: { silentAt: "accept" } },
  {
    name: "the upstream's name has no address", ids: ["upstream-name"], says: /nowhere\.test/, runs: /getent/, without: ["rules"],
    fault: (ward) => ward.change({ ...ward.settings, proxy_url: "socks5://nowhere.test:1080" }),
  },
  {
    name: "the upstream is on this host", ids: ["upstream-local"], settings: { proxy_url: `socks5://${text(RELAY[4], 1080)}` },
    fault: ({ stage }) => void stage.spawn(stage.net.relay, "microsocks", "-i", RELAY[4], "-p", "1080"),
  },
  {
    name: "the way to the upstream is redirected", ids: ["upstream-redirected"], says: /port 1081 of this host/, without: ["rules"],
    runs: new RegExp(`^nft insert rule inet byhand output meta mark ${MARK} return$`),
    fault: (ward) => nft(ward, BY_HAND("inet", 'oifname "lo" return;')),
  },
  {
    name: "the way to the upstream is redirected by iptables", ids: ["upstream-redirected"], says: /port 1081 of this host/, without: ["rules"],
    runs: new RegExp(`^iptables -t nat -I THEIRS -m mark --mark ${MARK} -j RETURN$`),
    fault: ({ stage }) => {
      const host = stage.net.relay;
      const rules = [["-N", "THEIRS"], ["-A", "THEIRS", "-o", "lo", "-j", "RETURN"], ["-A", "THEIRS", "-p", "tcp", "-j", "REDIRECT", "--to-ports", "1081"], ["-A", "OUTPUT", "-j", "THEIRS"]];
      for (const [tool, table] of [["iptables-nft", "ip"], ...(haveIPv6() ? [["ip6tables-nft", "ip6"]] : [])] as [string, string][]) {
        stage.finally(() => void host.attempt("nft", ["delete", "table", table, "nat"]));
        for (const rule of rules) host.run(tool, ["-t", "nat", ...rule]);
      }
    },
  },
  {
    name: "the way to the upstream is redirected to where nobody is", ids: ["upstream-redirected"], says: /theirs, chain output: .*redirect to :9999/, runs: /nft list ruleset/,
    fault: (ward) => nft(ward, `table ip theirs { chain output { type nat hook output priority -150; ip daddr ${PROXY[4]} tcp dport 1080 redirect to :9999; }; }\n`),
  },

  {
    name: "few open files", ids: ["nofile"], says: /max_connections is 20000/, runs: /ulimit -n/,
    settings: { max_connections: 20_000 }, start: { nofile: "4096:4096" },
  },
  { name: "a short accept queue", ids: ["somaxconn"], runs: /^sysctl -w net\.core\.somaxconn=4096 && kill -HUP \d+$/, fault: (ward) => sysctl(ward, "net.core.somaxconn", "128", "4096") },
  { name: "an accept queue from when it was short", ids: ["somaxconn"], says: /at most 128 .* on \S+:1081/, runs: /^kill -HUP \d+$/, fault: beganShort },
  {
    name: "healthy, with an accept queue that has grown at HUP", ids: [],
    fault: async (ward) => {
      await beganShort(ward);
      await ward.relay.reload();
    },
  },
  { name: "few ports", ids: ["port-range"], fault: (ward) => sysctl(ward, "net.ipv4.ip_local_port_range", "40000 41000", "32768 60999") },
  { name: "most ports are reserved", ids: ["port-range"], says: /less 27233 of/, fault: (ward) => sysctl(ward, "net.ipv4.ip_local_reserved_ports", "80,32768-60000", "\n") },
  { name: "fewer ports than connections", ids: ["port-range"], says: /max_connections is 8000/, settings: { max_connections: 8000 }, fault: (ward) => sysctl(ward, "net.ipv4.ip_local_port_range", "40000 47000", "32768 60999") },
  { name: "a full conntrack table", ids: ["conntrack-table"], says: /of at most 1 entries/, fault: ({ masks }) => void masks.set("/proc/sys/net/netfilter/nf_conntrack_max", "1\n") },
  { name: "a small conntrack table", ids: ["conntrack-table"], says: /room for 9000/, fault: ({ masks }) => void masks.set("/proc/sys/net/netfilter/nf_conntrack_max", "9000\n") },
  {
    name: "few pages for pipes", ids: ["pipe-user-pages"], runs: /fs\.pipe-user-pages-soft=/, ...asNobody(),
    fault: ({ masks }) => void masks.set("/proc/sys/fs/pipe-user-pages-soft", "512\n"),
  },
  { name: "small pipes", ids: ["pipe-user-pages"], runs: /fs\.pipe-max-size=1048576/, ...asNobody(), fault: ({ masks }) => void masks.set("/proc/sys/fs/pipe-max-size", "65536\n") },
  {
    name: "a full disk for the log", ids: ["log"], runs: /df -h/,
    fault: (ward) => {
      const folder = `${PRIVATE}/small`;
      mkdirSync(folder, { recursive: true });
      ward.masks.set(`tmpfs ${folder}`, "size=1m");
      ward.change({ ...ward.settings, log: { filename: `${folder}/log` } });
    },
  },
  { name: "a clock behind the files", ids: ["clock"], says: /before a file was written/, fault: ({ relay }) => utimesSync(relay.file, new Date("2099-01-01"), new Date("2099-01-01")) },
  {
    name: "a slow clock source", ids: ["clocksource"], says: /acpi_pm/,
    fault: ({ masks }) => void masks.set("/sys/devices/system/clocksource/clocksource0/current_clocksource", "acpi_pm\n"),
  },

  // The last, for what the kernel has counted it does not forget.
  {
    name: "REDIRECT leads a connection into another's way", ids: ["timestamps"], says: /: [1-9]\d*; behind REDIRECT/, runs: /tcp_timestamps=2/, needs: "PAWSTimewait",
    fault: collide,
  },
  {
    name: "healthy, for the two have timestamps of one clock", ids: [],
    fault: async (ward) => {
      await collide(ward);
      sysctl(ward, "net.ipv4.tcp_timestamps", "2", "1");
    },
  },
];

/** Root, in the first user namespace, may have as many pipes as it likes. */
function asNobody(): Pick<Case, "start"> {
  if (unprivileged() || process.getuid?.() !== 0) return {};
  return { start: { command: ["setpriv", `--reuid=${NOBODY}`, "--clear-groups", "--inh-caps=+net_admin", "--ambient-caps=+net_admin"] } };
}

/**
 * Programs of the relay host take one port after each other, to two destinations; connection tracking has
 * forgotten the first by then, and gives the second no other port. Timestamps of one begin where a clock
 * does, those of the other at random: the second's are older either now, or the other way round.
 */
async function collide(ward: Ward): Promise<void> {
  const { net } = ward.stage;
  sysctl(ward, "net.netfilter.nf_conntrack_tcp_timeout_time_wait", "1", "120");
  for (const port of [80, 81]) ward.stage.listen(net.internet, SERVER[4], port, (peer) => void peer.finish());
  for (const [at, settings] of [["1", "2"], ["2", "1"]].entries()) {
    for (const [i, setting] of settings.entries()) {
      if (i > 0) await sleep(1500);
      sysctl(ward, "net.ipv4.tcp_timestamps", setting, "1");
      const to = { host: SERVER[4], port: 80 + i, localPort: 45_000 + at };
      const { status, output } = await net.relay.execute(process.execPath, "-e", `require("node:net").connect(${JSON.stringify(to)}).resume()`);
      assert.equal(status, 0, output);
    }
  }
  net.relay.sysctl("net.ipv4.tcp_timestamps", "1");
}

/** The program has begun to listen while its accept queue could only be short. */
async function beganShort(ward: Ward): Promise<void> {
  const { stage, relay, settings } = ward;
  sysctl(ward, "net.core.somaxconn", "128", "4096");
  for (const listen of ["localhost:1082", settings["listen"]!]) {
    relay.configure({ ...settings, listen });
    await relay.reload();
  }
  stage.net.relay.sysctl("net.core.somaxconn", "4096");
}

let fakes = 0;

/** The doctor's word, in JSON, and its exit code. */
async function examine(stage: Stage, file: string, masks: ReadonlyMap<string, string | null> = new Map(), as: readonly string[] = []): Promise<{ healthy: boolean; findings: Finding[]; code: number | null }> {
  let script = "set -e\n";
  for (const [path, content] of masks) {
    const fake = `${PRIVATE}/mask-${fakes++}`;
    if (path.startsWith("tmpfs ")) script += `mount -t tmpfs -o ${content} tmpfs ${path.slice(6)}\n`;
    else if (content === null) {
      mkdirSync(fake, { recursive: true });
      script += `mount --bind ${fake} ${path}\n`;
    } else {
      writeFileSync(fake, content, { mode: 0o755 });
      script += `mount --bind ${fake} ${path}\n`;
    }
  }
  const { status, output } = await stage.net.relay.execute("unshare", "--mount", "sh", "-c", `${script}exec "$@"`, "doctor", ...as, process.execPath, MAIN, "doctor", "--json", "-f", file);
  const at = output.indexOf("{");
  assert.notEqual(at, -1, output);
  return { ...(JSON.parse(output.slice(at)) as { healthy: boolean; findings: Finding[] }), code: status };
}

for (const { name, ids, says, runs, settings = {}, script = {}, start = {}, without = [], needs, fault } of CASES) {
  scenario(`doctor: ${name}`, async (stage) => {
    if (needs === "users" && unprivileged()) stage.skip("in a user namespace there is only one user");
    if (needs === "PAWSTimewait" && !readFileSync("/proc/net/netstat", "utf8").includes(needs)) stage.skip("this kernel does not count it apart");
    if (needs === "ipv6" && !haveIPv6()) stage.skip("this kernel has no IPv6");
    // Counted since the network was made, by whatever case: one without it is on a host that has seen to it.
    if (needs !== "PAWSTimewait") {
      stage.net.relay.sysctl("net.ipv4.tcp_timestamps", 2);
      stage.finally(() => stage.net.relay.sysctl("net.ipv4.tcp_timestamps", 1));
    }
    const complete: Script = { protocol: "socks5", dials: true, ...script };
    const userinfo = complete.credentials === undefined ? "" : `${complete.credentials.username}:${complete.credentials.password}@`;
    const upstream = stage.upstream(complete);
    const all: Settings = { listen: "localhost:1081", proxy_url: upstream.url(userinfo), mark: MARK, workers: 1, ...settings };
    if (without.includes("upstream")) upstream.close();
    const relay = without.includes("program") ? stopped(all) : await stage.relay(all, start);
    if (!without.includes("rules")) {
      // Not every kernel can queue from nft.
      const args = ["-f", relay.file, ...("connect" in all ? [] : ["--backend", "nft"])];
      const applied = stage.net.relay.attempt(process.execPath, [MAIN, "firewall", "apply", ...args]);
      assert.equal(applied.status, 0, applied.stderr);
      // The file may be another by then.
      const valid = `${PRIVATE}/doctor-remove.toml`;
      writeFileSync(valid, 'proxy_url = "direct:"\n');
      stage.finally(() => void stage.net.relay.run(process.execPath, [MAIN, "firewall", "remove", "-f", valid]));
    }
    const masks = new Map<string, string | null>();
    const change = (changed: Settings): void => writeFileSync(relay.file, toml(changed));
    await fault?.({ stage, relay, masks, change, settings: all });
    const { healthy, findings, code } = await examine(stage, relay.file, masks);
    const others = ids.includes("configuration") ? [] : machine().filter((id) => !ids.includes(id));
    assert.deepEqual(findings.map(({ id }) => id).sort(), [...ids, ...others].sort(), JSON.stringify(findings, null, 1));
    for (const { id, text: words, run } of findings) assert.ok(words.length > 10 && run.length > 3 && !words.endsWith("."), id);
    const first = findings.find(({ id }) => id === ids[0]);
    if (says !== undefined) assert.match(first?.text ?? "", says);
    if (runs !== undefined) assert.match(first?.run ?? "", runs);
    const worst = (level: string): boolean => findings.some((each) => each.level === level);
    assert.equal(code, worst("broken") ? 1 : worst("risk") ? 3 : 0);
    assert.equal(healthy, code === 0);
  });
}

function stopped(settings: Settings): Relay {
  const file = `${PRIVATE}/doctor-stopped.toml`;
  writeFileSync(file, toml(settings));
  return { file } as Relay;
}

scenario("doctor: the egress alone, healthy; without a name server, without an address", async (stage) => {
  await Names.start(stage);
  shadow("/etc/resolv.conf", `nameserver ${DNS.real}\n`);
  stage.finally(() => shadow("/etc/resolv.conf", "nameserver 127.0.0.1\n"));
  const settings = { incoming: { port: 1080, addresses: [RELAY[4]], allow_from: ["10.0.0.0/8"] }, outgoing: { addresses: [RELAY[4]] }, workers: 1 };
  const relay = await stage.relay(settings);
  assert.deepEqual((await examine(stage, relay.file)).findings.map(({ id }) => id), machine());
  shadow("/etc/resolv.conf", `nameserver ${DNS.real}\nnameserver 127.0.0.1\n`);
  const one = (await examine(stage, relay.file)).findings.find(({ id }) => id === "dns");
  assert.equal(one?.level, "risk");
  shadow("/etc/resolv.conf", "nameserver 127.0.0.1\n");
  const none = (await examine(stage, relay.file)).findings.find(({ id }) => id === "dns");
  assert.equal(none?.level, "broken");
  shadow("/etc/resolv.conf", `nameserver ${DNS.real}\n`);
  writeFileSync(relay.file, toml({ ...settings, outgoing: { addresses: [RELAY[4], "192.0.2.200"] } }));
  const { findings } = await examine(stage, relay.file);
  assert.deepEqual(findings.map(({ id }) => id).sort(), ["egress-address", ...machine()].sort());
  assert.match(findings[0]!.run, /^ip address add 192\.0\.2\.200\/32 dev /);
  assert.equal(findings[0]!.level, "risk");
  writeFileSync(relay.file, toml({ ...settings, outgoing: { addresses: ["192.0.2.200"] } }));
  assert.equal((await examine(stage, relay.file)).findings.find(({ id }) => id === "egress-address")?.level, "broken", "none is left");
});

scenario("doctor: for an upstream that /etc/hosts knows no name server is needed", async (stage) => {
  shadow("/etc/hosts", `127.0.0.1 localhost\n${PROXY[4]} Upstream.inside.example\n`);
  shadow("/etc/resolv.conf", "nameserver 127.0.0.1\n");
  stage.finally(() => shadow("/etc/hosts", "127.0.0.1 localhost\n"));
  stage.upstream({ protocol: "socks5", dials: true });
  const relay = await stage.relay({ proxy_url: "socks5://upstream.inside.example:1080", workers: 1 });
  const { findings } = await examine(stage, relay.file);
  assert.deepEqual(findings.map(({ id }) => id).filter((id) => /^(dns|upstream)/.test(id)), []);
});

scenario("doctor: what a user may not see is said to be unknown, with what root would run", async (stage) => {
  if (unprivileged()) stage.skip("in a user namespace there is only one user");
  const upstream = stage.upstream({ protocol: "socks5", dials: true });
  const relay = await stage.relay({ proxy_url: upstream.url(), mark: MARK, workers: 1 });
  const { findings, code } = await examine(stage, relay.file, new Map(), ["setpriv", `--reuid=${NOBODY}`, "--clear-groups"]);
  const unknown = findings.filter(({ level }) => level === "unknown");
  assert.deepEqual(unknown.map(({ id }) => id).sort(), ["backend", "listener-taken", "upstream-unreachable"]);
  for (const { id, run } of unknown) assert.match(run, id === "listener-taken" ? /^sudo ss / : /^sudo transplice doctor -f \/\S+$/);
  assert.equal(code, machine().length > 0 ? 3 : 4);
});

scenario("doctor: a person reads the same", async (stage) => {
  const { file } = stopped({ proxy_url: `socks5://${text(PROXY[4], 1080)}`, mark: MARK });
  const { status, output } = await stage.net.relay.execute(process.execPath, MAIN, "doctor", "-f", file);
  assert.equal(status, 1);
  assert.match(output, /^broken {3}not-running\n {2}nothing listens on 127\.0\.0\.1:1081.*\n {2}run: transplice -f .* &\n/m);
  assert.match(output, /\n\d broken.* \(\d+ things looked at\)\n$/);
});
