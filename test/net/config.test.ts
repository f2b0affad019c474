/**
 * The command and its files, as an operator meets them: exit codes, messages, flags.
 */
import { strict as assert } from "node:assert";
import { mkdirSync, writeFileSync } from "node:fs";
import { connect, eventually } from "./actors.ts";
import { SERVER } from "./network.ts";
import type { Process } from "./process.ts";
import { MAIN } from "./relay.ts";
import { PRIVATE } from "./sandbox.ts";
import { scenario, type Stage } from "./scenario.ts";

const DIRECTORY = `${PRIVATE}/config`;

function file(name: string, content: string): string {
  mkdirSync(DIRECTORY, { recursive: true });
  writeFileSync(`${DIRECTORY}/${name}`, content);
  return `${DIRECTORY}/${name}`;
}

const transplice = (stage: Stage, ...args: string[]) =>
  stage.net.relay.attempt(process.execPath, [MAIN, ...args]);

// The predecessor's file, with and without its optional parts.
const PREDECESSORS = {
  sample: `
# listen address of the proxy
listen = "localhost:1081"    # default is "localhost:1081"
proxy_url = "socks5://10.20.30.40:1080"

[log]
filename = "/var/log/transocks.log"
level = "info"
format = "json"
`,
  "socks5 with a password": 'proxy_url = "socks5://us%40er:p%3Aw@10.20.30.40:1080"\n',
  "http with a password": 'listen = ":1081"\nproxy_url = "http://user:pass@10.20.30.40:3128"\n',
  "no final newline": 'proxy_url = "http://proxy.example:3128"\n[log]\nlevel = "crit"',
  "short level names":
    'proxy_url = "socks5://[2001:db8::1]:1080"\n[log]\nlevel = "warn"\nformat = "logfmt"\n',
};

for (const [name, content] of Object.entries(PREDECESSORS)) {
  scenario(`check accepts a file of transocks: ${name}`, async (stage) => {
    const { status, stderr } = transplice(stage, "check", file("valid.toml", content));
    assert.equal(status, 0, stderr);
  });
}

scenario("check reports all problems at once, each with its line, and exits 1", async (stage) => {
  const path = file(
    "wrong.toml",
    `listen = "localhost"
proxy_urll = "socks5://10.20.30.40:1080"
mode = "nat"
[timeouts]
idle = "for ever"
handshake = 10
[log]
levle = "info"
`,
  );
  const { status, stdout, stderr } = transplice(stage, "check", path);
  assert.equal(status, 1);
  const told = stdout + stderr;
  for (const expected of [
    /:1\b.*listen/,
    /:2\b.*proxy_urll.*proxy_url/,
    /:3\b.*mode.*redirect/,
    /:5\b.*idle/,
    /:8\b.*levle.*level/,
  ]) {
    assert.match(told, expected);
  }
});

scenario("what does not start says why, and exits as documented", async (stage) => {
  const valid = file(
    "valid.toml",
    'listen = "127.0.0.1:1081"\nproxy_url = "socks5://192.0.2.2:1080"\n',
  );
  const wrong = file("wrong.toml", 'proxy_url = "socks4a://192.0.2.2:1080"\n');
  const cases: [args: string[], status: number, says: RegExp][] = [
    [["-f", `${DIRECTORY}/missing.toml`], 1, /missing\.toml/],
    [["check", `${DIRECTORY}/missing.toml`], 1, /missing\.toml/],
    [["-f", wrong], 1, /socks4a/],
    [["check", wrong], 1, /socks4a/],
    [["check", valid], 0, /^/],
    [["--check", valid], 2, /--check/],
    [["-f"], 2, /-f/],
    [["-f", valid, "-loglevel", "loud"], 1, /loud/],
    [["-f", file("absent.toml", 'listen = "192.0.2.77:1081"\nproxy_url = "direct:"\n')], 1, /192\.0\.2\.77:1081: bind: .*this host has no such address, see: ip address/],
    [["migrate", `${DIRECTORY}/missing.conf`], 1, /missing\.conf: does not exist\n$/],
    [["migrate", DIRECTORY], 1, /is a directory, not a file\n$/],
    [["-f", valid, "-logfile", "/nowhere/x"], 1, /^-logfile: open \/nowhere\/x: no such file or directory$/m],
    [["-f", file("unlogged.toml", 'proxy_url = "direct:"\nlog.filename = "/nowhere/x"\n')], 1, /unlogged\.toml: log\.filename: open \/nowhere\/x: /],
    [["--version"], 0, /\d+\.\d+\.\d+/],
    [["--help"], 0, /-loglevel|--loglevel/],
  ];
  for (const [args, status, says] of cases) {
    const result = transplice(stage, ...args);
    assert.equal(result.status, status, `${args.join(" ")}: ${result.stderr}`);
    assert.match(result.stdout + result.stderr, says, args.join(" "));
  }
  stage.listen(stage.net.relay, "127.0.0.1", 1081);
  const taken = transplice(stage, "-f", valid);
  assert.equal(taken.status, 1, taken.stderr);
  assert.match(taken.stderr, /127\.0\.0\.1:1081/);
  const low = file("low.toml", 'listen = "127.0.0.1:80"\nproxy_url = "socks5://192.0.2.2:1080"\n');
  const powerless = stage.net.relay.attempt("setpriv", ["--bounding-set=-all", "--inh-caps=-all", process.execPath, MAIN, "-f", low]);
  assert.equal(powerless.status, 1, powerless.stderr);
  assert.match(powerless.stderr, /bind: permission denied; a port below 1024 takes CAP_NET_BIND_SERVICE, or root/);
});

for (const [dashes, format] of [
  ["-", "plain"],
  ["--", "logfmt"],
  ["-", "json"],
] as const) {
  scenario(
    `${dashes}logfile, ${dashes}loglevel and ${dashes}logformat ${format} override the file`,
    async (stage) => {
      stage.intercept({ mode: "redirect", from: "local", port: 1081 });
      const upstream = stage.upstream({ protocol: "socks5" });
      const log = `${DIRECTORY}/${format}.log`;
      const path = file(
        "flags.toml",
        `proxy_url = "${upstream.url()}"\n[log]\nlevel = "critical"\nformat = "plain"\n`,
      );
      const program = stage.spawn(
        stage.net.relay,
        process.execPath,
        MAIN,
        "-f",
        path,
        `${dashes}logfile`,
        log,
        `${dashes}loglevel=info`,
        `${dashes}logformat`,
        format,
      );
      const read = (): string => stage.net.relay.attempt("cat", [log]).stdout;
      await eventually("it is ready", () => read().includes("ready"));
      const client = await connect(stage.net.relay, SERVER[4], 80);
      const { peer } = await upstream.accept();
      client.finish("words");
      await peer.rest();
      peer.finish();
      await eventually("the end is logged", () => read().includes("proxy ends"));
      const lines = read()
        .split("\n")
        .filter((line) => line.includes("proxy starts"));
      assert.equal(lines.length, 1, read());
      const line = lines[0]!;
      if (format === "plain") {
        assert.match(
          line,
          /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z \S+ \S+ info: "proxy starts" .*dest_addr="198\.51\.100\.10:80"/,
        );
      } else if (format === "logfmt") {
        assert.match(line, /topic=\S+ /);
        assert.match(line, /message="proxy starts"/);
        assert.match(line, /dest_addr="198\.51\.100\.10:80"/);
      } else {
        const entry = JSON.parse(line) as Record<string, unknown>;
        assert.equal(entry["message"], "proxy starts");
        assert.equal(entry["dest_addr"], "198.51.100.10:80");
        for (const field of [
          "topic",
          "logged_at",
          "severity",
          "utsname",
          "client_addr",
          "request_id",
          "pid",
        ]) {
          assert.ok(field in entry, `${field} in ${line}`);
        }
        assert.equal(entry["type"], "access");
      }
      assert.equal((await program.stop()).code, 0);
    },
  );
}

scenario("without a file, by variables alone: it serves, a flag wins, and a wrong name is said", async (stage) => {
  const upstream = stage.upstream({ protocol: "socks5", echoes: true });
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const env = {
    TRANSPLICE_PROXY_URL: upstream.url(), TRANSPLICE_LOG_FORMAT: "json", TRANSPLICE_LOG_LEVEL: "error",
    TRANSPLICE_LISTEN: "127.0.0.1:1081,[::1]:1081", TRANSPLICE_WORKERS: "1",
  };
  const start = (more: NodeJS.ProcessEnv, ...args: string[]): Process =>
    stage.keep(stage.net.relay.spawn(process.execPath, [MAIN, ...args], { env: { PATH: process.env["PATH"], ...env, ...more } }));
  const relay = start({}, "-loglevel", "info");
  await relay.says(/"transplice is ready"/);
  const client = await connect(stage.net.relay, SERVER[4], 80);
  client.write("ping");
  assert.equal(String(await client.read(4)), "ping");
  const wrong = start({ TRANSPLICE_LISTNE: "x" });
  assert.equal((await wrong.exited).code, 1);
  assert.equal(wrong.output, "TRANSPLICE_LISTNE: is not a setting; did you mean TRANSPLICE_LISTEN?\n");
  const check = start({}, "check");
  assert.equal((await check.exited).code, 0);
  assert.equal(check.output, "the environment: OK\n");
});
