#!/usr/bin/env node
/**
 * The process: argv, signals, exit code.
 *
 * What one command alone needs is loaded when it is asked for: Node opens all modules that a module
 * imports at the same time, and the limit of open files may be 64.
 */
import { existsSync } from "node:fs";
import { basename } from "node:path";
import { linux } from "../native-bindings/syscalls.ts";
import { type Command, packageVersion, parseCommandLine } from "./cli.ts";
import { readEnvironment } from "./config/environment.ts";
import { DEFAULT_FILE, loadConfig, OWN, readText } from "./config/file.ts";
import { type Problem, problemText } from "./config/problem.ts";
import type { Loaded, ProgramName } from "./config/program.ts";
import { tomlName } from "./config/toml.ts";
import { isChain, loadUp, type UpSource } from "./config/up.ts";
import { readVariables } from "./config/variables.ts";
import { Activation } from "./control/activation.ts";
import type { Outcome } from "./control/firewall/firewall.ts";
import { accountOf, beginDaemon, daemonServes, isNew, lacking, takeOn, writePid } from "./control/identity.ts";
import type { ListeningAddress } from "./control/listeners.ts";
import { Log } from "./control/log/log.ts";
import { PidFile, RUN_DIRECTORY } from "./control/pid-file.ts";
import { ServiceManager } from "./control/systemd.ts";
import { writeTraffic } from "./control/traffic.ts";
import { inherited, upgrade } from "./control/upgrade.ts";

/** A configuration with the sockets that were passed to us in their places. */
type Fitted =
  | (Exclude<Loaded, { problems: unknown }> & { readonly listening: readonly ListeningAddress[] })
  | { readonly problems: readonly Problem[] };

async function main(command: Command): Promise<number> {
  switch (command.kind) {
    case "print":
      process[command.stream].write(command.text);
      return command.exitCode;
    case "check":
      return check(command);
    case "passwd":
      return passwd(command);
    case "migrate":
      return migrated(command);
    case "firewall":
      return firewalled(command);
    case "doctor":
      return doctored(command);
    case "admin":
      return asked(command);
    case "upgrade":
      return say(await upgrade(command.file));
    case "top":
      return topped(command);
    case "version":
      process.stdout.write(`redsocks/0.5 (transplice ${packageVersion()})\n`);
      return 0;
    case "up":
      return up(command);
    case "run":
      return run(command);
  }
}

async function migrated({ file, from, ignoreUnsupported }: Command & { kind: "migrate" }): Promise<number> {
  const { migrate } = await import("./config/migrate.ts");
  const text = await readText(file, { as: null, optional: false });
  const done = typeof text === "string" ? migrate(text, file, from, { ignoreUnsupported }) : { problems: [text!] };
  if ("problems" in done) {
    for (const problem of done.problems) process.stderr.write(`${problemText(problem)}\n`);
    return 1;
  }
  process.stdout.write(done.text);
  return 0;
}

async function firewalled(
  { action, backend, file, overrides, reading }: Command & { kind: "firewall" },
): Promise<number> {
  const { firewall, removed } = await import("./control/firewall/firewall.ts");
  if (action === "remove") return say(await removed());
  const loaded = await loadConfig(file, overrides, reading, readEnvironment().variables);
  if ("problems" in loaded) {
    for (const problem of loaded.problems) process.stderr.write(`${problemText(problem)}\n`);
    return action === "status" ? 4 : 1;
  }
  const { firewallCheck } = await import("./control/doctor/doctor.ts");
  return say(action === "check" ? await firewallCheck(file, loaded.config, backend) : await firewall(action, loaded.config, backend));
}

/** Answers the exit code. */
function say({ out, wrong, code }: Outcome): number {
  process.stdout.write(out);
  process.stderr.write(wrong);
  return code;
}

/** Of the running process. */
async function asked({ file, overrides, reading, ...request }: Command & { kind: "admin" }): Promise<number> {
  const loaded = await loadConfig(file, overrides, reading, readEnvironment().variables);
  if ("problems" in loaded) {
    for (const problem of loaded.problems) process.stderr.write(`${problemText(problem)}\n`);
    return 1;
  }
  const { adminCommand } = await import("./control/admin/commands.ts");
  const over = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => over.abort());
  const out = (text: string): void => void process.stdout.write(text);
  // Whoever reads what we say may have enough of it: `transplice tunnels | head`.
  process.stdout.on("error", () => process.exit(0));
  return adminCommand(request, loaded.config, { out, wrong: (text) => void process.stderr.write(text) }, over.signal);
}

async function doctored({ file, overrides, reading, json }: Command & { kind: "doctor" }): Promise<number> {
  const loaded = await loadConfig(file, overrides, reading, readEnvironment().variables);
  const [config, problems] = "config" in loaded ? [loaded.config, []] : [null, loaded.problems];
  const { doctor } = await import("./control/doctor/doctor.ts");
  const { out, code } = await doctor(linux(), file, config, problems, json);
  process.stdout.write(out);
  return code;
}

async function topped({ file, overrides, reading }: Command & { kind: "top" }): Promise<number> {
  const loaded = await loadConfig(file, overrides, reading, readEnvironment().variables);
  if ("problems" in loaded) {
    for (const problem of loaded.problems) process.stderr.write(`${problemText(problem)}\n`);
    return 1;
  }
  const { adminClient } = await import("./control/admin/client.ts");
  const { top } = await import("./control/admin/top.ts");
  const client = adminClient(loaded.config);
  const { code, wrong } = "wrong" in client ? { code: 1, wrong: client.wrong } : await top(client, process.stdin, process.stdout);
  if (wrong !== null) process.stderr.write(`transplice: ${wrong}\n`);
  return code;
}

/** As the program would that we are called by: transocks and usocksd had a line of the log for it. */
async function tellProblems(problems: readonly Problem[], as: ProgramName): Promise<void> {
  if (as === "transplice" || as === "redsocks") {
    for (const problem of problems) process.stderr.write(`${problemText(problem)}\n`);
    return;
  }
  const log = new Log({ topic: as, level: "error", format: "plain", filename: null });
  for (const problem of problems) log.error(problemText(problem));
  await log.close();
}

async function passwd({ user }: Command & { kind: "passwd" }): Promise<number> {
  const { readPassword } = await import("./control/prompt.ts");
  const { hashPassword } = await import("./control/users.ts");
  const read = await readPassword(process.stdin, (text) => process.stderr.write(text));
  if ("wrong" in read) {
    process.stderr.write(`transplice: ${read.wrong}\n`);
    return 1;
  }
  const hash = await hashPassword(read.password);
  process.stdout.write(user === null ? `${hash}\n` : `${tomlName(user)} = "${hash}"\n`);
  return 0;
}

async function check({ file, overrides, reading }: Command & { kind: "check" }): Promise<number> {
  const loaded = await loadConfig(file, overrides, reading, readEnvironment().variables);
  if ("problems" in loaded) {
    for (const problem of loaded.problems) process.stderr.write(`${problemText(problem)}\n`);
    return 1;
  }
  for (const warning of loaded.warnings) process.stderr.write(`warning: ${problemText(warning)}\n`);
  // It may be another host's file.
  const account = accountOf(loaded.config);
  if (account !== null && "wrong" in account) process.stderr.write(`warning: ${file}: ${account.wrong}\n`);
  // redsocks -t has nothing to say of a good file.
  if (reading.as !== "redsocks") process.stdout.write(`${existsSync(file) ? file : "the environment"}: OK\n`);
  return 0;
}

/**
 * Reads the configuration, and puts the sockets that were passed to us in their places. Once now and
 * at each HUP.
 */
function loader(
  file: string, read: () => Promise<Loaded>, activation: ReturnType<typeof Activation.of>,
): () => Promise<Fitted> {
  const wrong = (messages: readonly string[]): Fitted => ({
    problems: messages.map((message) => ({ place: file, line: null, column: null, key: null, message })),
  });
  return async () => {
    if ("wrong" in activation) return wrong(activation.wrong);
    const loaded = await read();
    if ("problems" in loaded) return loaded;
    if (loaded.daemon && activation.sockets.length > 0) {
      return wrong(["daemon = on: the service manager's sockets are for the process that it started; set daemon = off"]);
    }
    const fitted = activation.fit(loaded.config);
    return "wrong" in fitted ? wrong(fitted.wrong) : { ...loaded, ...fitted };
  };
}

/** As `run`, with rules that come and go with it, and with lines of traffic. */
async function up(command: Command & { kind: "up" }): Promise<number> {
  const { capable } = await import("./control/firewall/tools.ts");
  const refusal = capable();
  if (refusal !== null) {
    process.stderr.write(`transplice up: ${refusal.message}; run: sudo transplice up\n`);
    return 1;
  }
  const { file, overrides } = command;
  return run({ kind: "run", file: file ?? DEFAULT_FILE, overrides, reading: OWN, process: null }, command);
}

async function run(command: Command & { kind: "run" }, temporary: UpSource | null = null): Promise<number> {
  const { file, overrides, reading } = command;
  // Whoever signals a process that is starting does not mean to end it, or to open node's debugger.
  let early = false;
  const remember = (): void => {
    early = true;
  };
  const ignore = (): void => {};
  process.on("SIGHUP", remember).on("SIGUSR1", ignore).on("SIGUSR2", ignore);
  await import("./control/admin/observatory.ts"); // A part of what comes next, so that it is less at once.
  const { Service } = await import("./control/service.ts");
  const environment = readEnvironment();
  const sys = linux();
  const heir = inherited(environment.handover);
  const activation = Activation.of(sys, heir?.passed ?? environment.sockets);
  const { variables } = environment;
  const read = (): Promise<Loaded> =>
    temporary === null ? loadConfig(file, overrides, reading, variables) : loadUp(temporary, variables);
  const load = loader(file, read, activation);
  const loaded = await load();
  if ("problems" in loaded || "wrong" in activation) {
    const problems = "problems" in loaded ? loaded.problems : [];
    heir?.failed(problems.map(problemText));
    await tellProblems(problems, reading.as);
    return 1;
  }
  if (loaded.daemon && command.process?.foreground === false) return beginDaemon("--foreground");
  let { config } = loaded;
  const { filename } = config.log;
  const own = filename !== null && isNew(filename) ? [{ path: filename, must: true }] : [];
  const log = new Log({ topic: reading.as, ...config.log, defaults: { pid: process.pid } });
  if (log.fault !== null) {
    heir?.failed([`log.filename: ${log.fault}`]);
    const said = [...readVariables(variables).overrides, ...overrides].findLast(({ key }) => key === "log.filename");
    process.stderr.write(`${said?.from ?? `${file}: log.filename`}: ${log.fault}\n`);
    return 1;
  }
  const cannotStart = async (wrong: readonly string[]): Promise<void> => {
    heir?.failed(wrong);
    for (const text of wrong) {
      if (temporary === null) log.critical("cannot start", { error: text });
      else process.stderr.write(`transplice up: ${text}\n`);
    }
    await log.close();
  };
  for (const warning of loaded.warnings) log.warning(problemText(warning));
  const pidFile = new PidFile(file);
  // Who leaves a host as it was leaves no directory either.
  if (temporary === null && pidFile.prepare()) own.push({ path: RUN_DIRECTORY, must: false });
  const serves = (): void => {
    if (temporary !== null) return;
    const unwritten = pidFile.write();
    if (unwritten !== null) log.info("without a pid file; transplice upgrade will not find this process", { error: unwritten });
    daemonServes();
  };
  const pidfile = command.process?.pidfile ?? null;
  const unwritten = pidfile === null ? null : writePid(pidfile);
  // A successor is the user already who may no longer write there.
  if (unwritten !== null && heir !== null) log.warning(unwritten);
  const taken = unwritten !== null && heir === null ? { wrong: unwritten } : takeOn(sys, config, own);
  if ("wrong" in taken) {
    await cannotStart([taken.wrong]);
    return 1;
  }
  for (const text of taken.warnings) log.warning(text);
  const manager = new ServiceManager(sys, environment);
  const service = new Service(sys, log, config, manager, activation, {
    program: reading.as, version: packageVersion(),
  });

  /** Signals are dealt with one after the other, but a second TERM cuts in. */
  let work: Promise<unknown> = Promise.resolve();
  let stopping = false;
  /** A successor has taken over, and nobody has told this process yet to end. */
  let draining = false;
  const stop = (signal: NodeJS.Signals): void => {
    log.warning("got signal", { signal });
    if (draining) {
      draining = false;
      return service.limitDrain();
    }
    if (stopping) return service.cut();
    stopping = true;
    work = work.then(async () => {
      await service.stop();
      pidFile.remove();
      await log.close();
      // Whatever else keeps the event loop alive has no say any more.
      process.exit(0);
    });
  };
  const reload = async (): Promise<void> => {
    manager.reloading(process.hrtime.bigint() / 1000n);
    log.warning("got signal", { signal: "SIGHUP" });
    const again = await load();
    let wrong = "problems" in again ? again.problems.map(problemText) : [];
    if ("config" in again) {
      for (const warning of again.warnings) log.warning(problemText(warning));
      const before = config.log;
      const fault = log.reconfigure(again.config.log);
      wrong = fault === null ? lacking(again.config, taken.kept) : [fault];
      if (wrong.length === 0) wrong = await service.reload(again.config);
      if (again.config.user !== config.user || again.config.group !== config.group) {
        log.warning("user and group stay as they are until a restart");
      }
      if (wrong.length === 0) config = again.config;
      else log.reconfigure(before);
    }
    for (const text of wrong) log.error("the configuration is not taken on", { error: text });
    if (wrong.length > 0) log.error("going on with the configuration as it was");
    else log.info("the configuration is taken on", { file });
    manager.ready(service.status);
  };
  const handOver = async (): Promise<void> => {
    log.warning("got signal", { signal: "SIGUSR2" });
    const outcome = await service.handOver(environment.rest);
    pidFile.tell(outcome);
    if ("wrong" in outcome) return log.error("the new process does not serve; going on", { error: outcome.wrong });
    stopping = draining = true;
    await service.stop(true);
    await log.close();
    process.exit(0);
  };
  process.on("SIGUSR2", () => {
    if (!stopping) work = work.then(handOver);
  });
  process.on("SIGTERM", stop);
  process.on("SIGINT", stop);
  const again = (): void => {
    if (!stopping) work = work.then(reload);
  };
  process.on("SIGHUP", again);
  process.off("SIGHUP", remember);
  process.on("SIGUSR1", () => {
    // What goes wrong it tells itself, and goes on with the old file.
    if (log.reopen() === null) log.info("the log file is open again");
    if (reading.as === "redsocks") void service.logTunnels();
  });
  // From the first moment in which somebody may see it listen, a signal finds who deals with it.
  work = service.start(heir, loaded.listening, serves).then(async (wrong) => {
    if (wrong.length === 0) {
      if (temporary !== null) writeTraffic(() => service.traffic(isChain(config)), () => service.waiting);
      return;
    }
    await cannotStart(wrong);
    process.exit(1);
  });
  if (early) again();
  await work;
  await new Promise(() => {}); // From here on only a signal ends the process.
  return 0;
}

process.exitCode = await main(parseCommandLine(process.argv.slice(2), basename(process.argv[1] ?? "")));
