/** The command line, in Go's forms of flags and in the usual ones. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { type Command, parseCommandLine } from "../../src/cli.ts";

const parse = (line: string): Command => parseCommandLine(line === "" ? [] : line.split(" "));

/** Which file is run or checked, and with what; or what is printed where. */
function told(command: Command): string {
  if (command.kind === "print") return `${command.stream} ${command.exitCode}: ${command.text.split("\n")[0]}`;
  if (command.kind === "passwd") return command.user === null ? "passwd" : `passwd ${command.user}`;
  if (command.kind === "migrate") return `migrate ${command.file} ${command.from}${command.ignoreUnsupported ? " ignoring" : ""}`;
  if (command.kind === "version") return "version";
  if (command.kind === "upgrade") return `upgrade ${command.file}`;
  const overrides = command.overrides.map(({ key, text, from }) => ` ${from}:${key}=${text}`).join("");
  if (command.kind === "up") return `up ${command.upstream} ${command.file}${overrides}`;
  const { as, optional, ignoreUnsupported } = command.reading;
  const reading = as === "transplice" ? "" : ` as ${as}${optional ? "?" : ""}${ignoreUnsupported ? " ignoring" : ""}`;
  const own = command.kind === "run" && command.process !== null ? ` ${JSON.stringify(command.process)}` : "";
  return `${command.kind} ${command.file}${overrides}${reading}${own}`;
}

const GOOD: readonly [string, string][] = [
  ["", "run /etc/transplice.toml"],
  ["-f x.toml", "run x.toml"],
  ["-f=x.toml", "run x.toml"],
  ["--f x.toml", "run x.toml"],
  ["--f=x.toml", "run x.toml"],
  ["--file=x.toml", "run x.toml"],
  ["-f a=b", "run a=b"],
  ["-f=a=b", "run a=b"],
  ["-f a -f b", "run b"],
  ["-f -logfile", "run -logfile"],
  ["-f --", "run --"],
  ["-logfile l -loglevel=debug --logformat json", "run /etc/transplice.toml -logfile:log.filename=l -loglevel:log.level=debug -logformat:log.format=json"],
  ["--logfile= -f x", "run x -logfile:log.filename="],
  ["upgrade", "upgrade /etc/transplice.toml"],
  ["upgrade -f x.toml", "upgrade x.toml"],
  ["check", "check /etc/transplice.toml"],
  ["check x.toml", "check x.toml"],
  ["check -f x.toml", "check x.toml"],
  ["-f x.toml check", "check x.toml"],
  ["-loglevel warn check x", "check x -loglevel:log.level=warn"],
  ["check x -loglevel warn", "check x -loglevel:log.level=warn"],
  ["check -- -x", "check -x"],
  ["-- check x", "check x"],
  ["up", "up null null"],
  ["up socks5://192.0.2.1:1080 -loglevel info", "up socks5://192.0.2.1:1080 null -loglevel:log.level=info"],
  ["up -f x.toml", "up null x.toml"],
  ["passwd", "passwd"],
  ["passwd alice", "passwd alice"],
  ["passwd a@b.c", "passwd a@b.c"],
  ["passwd -- -x", "passwd -x"],
  ["migrate x.conf", "migrate x.conf null"],
  ["migrate x.conf --from redsocks --ignore-unsupported", "migrate x.conf redsocks ignoring"],
  ["-from=usocksd migrate x", "migrate x usocksd"],
  ["as transocks -f x", "run x as transocks"],
  ["as usocksd", "run /etc/usocksd.toml as usocksd?"],
  ["as redsocks -t", "check redsocks.conf as redsocks"],
];

const BAD: readonly [string, string][] = [
  ["firewall", 'stderr 2: transplice: firewall takes print, apply, remove, release, status or check'],
  ["firewall aply", 'stderr 2: transplice: firewall takes print, apply, remove, release, status or check, not "aply"'],
  ["firewall apply --backend pf", 'stderr 2: transplice: --backend takes nft, iptables or iptables-legacy, not "pf"'],
  ["check --backend nft", "stderr 2: transplice: --backend is a flag of firewall"],
  ["upgrade x.toml", "stderr 2: transplice: upgrade takes its file as -f FILE"],
  ["upgrade -loglevel debug", "stderr 2: transplice: upgrade takes no flag but -f FILE"],
  ["up socks5://192.0.2.1:1 -f x", "stderr 2: transplice: up takes an upstream or a file, not both"],
  ["up a b", "stderr 2: transplice: up takes one upstream"],
  ["-x", 'stderr 2: transplice: "-x" is not a flag'],
  ["-loglvel debug", 'stderr 2: transplice: "-loglvel" is not a flag; did you mean -loglevel?'],
  ["--log-level=debug", 'stderr 2: transplice: "-log-level" is not a flag; did you mean -loglevel?'],
  ["--verison", 'stderr 2: transplice: "--verison" is not a flag; did you mean --version?'],
  ["---f", 'stderr 2: transplice: "---f" is not a flag'],
  ["-=x", 'stderr 2: transplice: "-=x" is not a flag'],
  ["-f", "stderr 2: transplice: -f needs a value"],
  ["-f=", "stderr 2: transplice: -f needs the name of a file"],
  ["-h=1", "stderr 2: transplice: -h takes no value"],
  ["chek x", 'stderr 2: transplice: "chek" is not a command; did you mean check?'],
  ["frobnicate", 'stderr 2: transplice: "frobnicate" is not a command; there is up, check, passwd, migrate, firewall, doctor, upgrade, tunnels, close, drain, undrain, trace, top, as'],
  ["x.toml", 'stderr 2: transplice: "x.toml" is not a command; a configuration file is given as -f x.toml'],
  ["check a b", "stderr 2: transplice: check takes one file"],
  ["check a -f b", "stderr 2: transplice: check takes one file, as -f FILE or without -f"],
  ["-", 'stderr 2: transplice: "-" is not a command; there is up, check, passwd, migrate, firewall, doctor, upgrade, tunnels, close, drain, undrain, trace, top, as'],
  ["migrate", "stderr 2: transplice: migrate needs the name of a file"],
  ["migrate x -f y", "stderr 2: transplice: migrate takes a file, --from and --ignore-unsupported"],
  ["migrate x --from dante", 'stderr 2: transplice: --from takes transocks, usocksd, redsocks or transplice, not "dante"'],
  ["--from redsocks", "stderr 2: transplice: --from is a flag of migrate"],
  ["check x --ignore-unsupported", "stderr 2: transplice: --ignore-unsupported is a flag of migrate"],
  ["as", "stderr 2: transplice: as comes first, and then the name of a program: transocks, usocksd or redsocks"],
  ["as dante", 'stderr 2: transplice: as comes first, and then the name of a program: transocks, usocksd or redsocks, not "dante"'],
  ["-f x as redsocks", 'stderr 2: transplice: as comes first, and then the name of a program: transocks, usocksd or redsocks, not "redsocks"'],
  ["pass x", 'stderr 2: transplice: "pass" is not a command; did you mean passwd?'],
  ["passwd alice S3cret", "stderr 2: transplice: passwd takes one name, and asks for the password"],
  ["passwd -f x", "stderr 2: transplice: passwd takes a name and no flags"],
  ["passwd a\tb", "stderr 2: transplice: the name holds a control character"],
  ["passwd ", "stderr 2: transplice: the name is empty"],
  [`passwd ${"u".repeat(256)}`, "stderr 2: transplice: the name has more than 255 bytes"],
];

test("command lines", () => {
  for (const [line, expected] of GOOD) assert.equal(told(parse(line)), expected, line);
});

test("misuse is told on standard error, with the usage, and exits with 2", () => {
  for (const [line, expected] of BAD) {
    assert.equal(told(parse(line)), expected, line);
    assert.match((parse(line) as { text: string }).text, /\nUsage: transplice \[-f FILE\] .*\nTry "transplice --help"\.\n$/s);
  }
});

test("help and version go to standard output and exit with 0", () => {
  for (const line of ["-h", "-help", "--help", "-f x --help"]) {
    const command = parse(line);
    assert.ok(command.kind === "print");
    assert.equal(command.stream, "stdout");
    assert.equal(command.exitCode, 0);
    for (const word of ["Usage: transplice", "--file <FILE>", "check [FILE]", "passwd [NAME]", "Examples:", "HUP", "transocks.toml", "usocksd.toml"]) {
      assert.ok(command.text.includes(word), word);
    }
    assert.match(command.text, /[^\n]\n$/);
  }
  for (const line of ["check --help", "check -h", "-h check"]) {
    const command = parse(line);
    assert.match(told(command), /^stdout 0: Usage: transplice check \[FILE\]$/, line);
  }
  for (const line of ["-version", "--version", "-V"]) {
    assert.match((parse(line) as { text: string }).text, /^transplice \d+\.\d+\.\d+\n$/);
  }
});

test("called by a predecessor's name, its command line is that program's", () => {
  const cases: readonly [string, string, string][] = [
    ["transocks", "", "run /etc/transocks.toml as transocks"],
    ["transocks", "-f=x --loglevel debug", "run x -loglevel:log.level=debug as transocks"],
    ["transocks", "-f x check -x", "run x as transocks"],
    ["transocks", "-f x -- -x", "run x as transocks"],
    ["transocks", "-version", "stderr 2: flag provided but not defined: -version"],
    ["transocks", "-f", "stderr 2: flag needs an argument: -f"],
    ["transocks", "---f", "stderr 2: bad flag syntax: ---f"],
    ["transocks", "-h", "stderr 0: Usage of transocks:"],
    ["usocksd", "-help", "stderr 0: Usage of usocksd:"],
    ["usocksd", "", "run /etc/usocksd.toml as usocksd?"],
    ["usocksd", "-f /etc/usocksd.toml", "run /etc/usocksd.toml as usocksd"],
    ["redsocks", "", 'run redsocks.conf as redsocks {"pidfile":null,"foreground":false}'],
    ["redsocks", "-c x -p y", 'run x as redsocks {"pidfile":"y","foreground":false}'],
    ["redsocks", "-cx -py --foreground", 'run x as redsocks {"pidfile":"y","foreground":true}'],
    ["redsocks", "-tc x --ignore-unsupported", "check x as redsocks ignoring"],
    ["redsocks", "-t -v", "version"],
    ["redsocks", "-?", "stdout 0: Usage: redsocks [-?hvt] [-c config] [-p pidfile]"],
    ["redsocks", "-x", "stderr 1: redsocks: invalid option -- 'x'"],
    ["redsocks", "-c", "stderr 1: redsocks: option requires an argument -- 'c'"],
    ["redsocks", "x", "stderr 1: redsocks: x is not expected"],
    ["main.js", "check x", "check x"],
  ];
  for (const [name, line, expected] of cases) {
    assert.equal(told(parseCommandLine(line === "" ? [] : line.split(" "), name)), expected, `${name} ${line}`);
  }
});

test("a command is frozen", () => {
  for (const line of ["-loglevel x", "check", "passwd a", "-h", "-x"]) assert.ok(Object.isFrozen(parse(line)), line);
  const command = parse("-loglevel x");
  assert.ok(command.kind === "run" && Object.isFrozen(command.overrides) && Object.isFrozen(command.overrides[0]));
});

test("whatever words come, there is one answer", () => {
  const word = fc.oneof(
    fc.constantFrom("-f", "--f", "-f=x", "check", "passwd", "as", "redsocks", "migrate", "--from", "--", "-", "-h", "-logfile", "--loglevel=", "-V", "--no-file", "--file", "constructor"),
    fc.string({ unit: "binary", maxLength: 12 }),
  );
  fc.assert(
    fc.property(fc.array(word, { maxLength: 6 }), fc.constantFrom("transplice", "transocks", "usocksd", "redsocks"), (words, called) => {
      const command = parseCommandLine(words, called);
      assert.ok(["run", "check", "passwd", "migrate", "version", "print"].includes(command.kind));
      // Nobody's words may say anything to his terminal but text.
      if (command.kind === "print" && command.exitCode === 2) assert.match(command.text.split("\n")[0]!, called === "transplice" ? /^transplice: [^\p{Cc}]*$/u : /^[^\p{Cc}]*$/u);
    }),
    { numRuns: 3000 },
  );
});
