/**
 * `transplice top` in a real terminal, by script(1): it draws as wide and high as that is, follows
 * when that changes, says when the process has gone and comes back, and gives the terminal back as it
 * was. And without a terminal.
 */
import { strict as assert } from "node:assert";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { stripVTControlCharacters } from "node:util";
import { eventually } from "./actors.ts";
import type { Process } from "./process.ts";
import { MAIN } from "./relay.ts";
import { PRIVATE } from "./sandbox.ts";
import { scenario, type Stage } from "./scenario.ts";

const ADMIN = { listen: "127.0.0.1:9181" };
const settings = { listen: "127.0.0.1:1081", proxy_url: "socks5://192.0.2.2:1080", workers: 1, admin: ADMIN };

interface Terminal {
  readonly program: Process;
  /** The last whole frame, as text. */
  frame(): string[];
  resize(columns: number, rows: number): void;
  press(key: string): void;
  /** The program has ended: script may. */
  leave(): void;
}

function terminal(stage: Stage, file: string): Terminal {
  const tty = `${PRIVATE}/top.tty`;
  const keys = `${PRIVATE}/top.keys`;
  writeFileSync(tty, "");
  stage.net.relay.run("sh", ["-c", `rm -f ${keys}; mkfifo ${keys}`]);
  // The fifo is held open, or script would take its end for that of the terminal. Behind the program the shell
  // stays: of a terminal that nobody is in any more, script reads for 10 ms what it has left.
  const inside = `tty > ${tty}; stty cols 100 rows 30; ${process.execPath} ${MAIN} top -f ${file}; ended=$?; while [ -e ${tty} ]; do sleep 0.1; done; exit $ended`;
  const program = stage.spawn(stage.net.relay, "sh", "-c", `exec script -qfe -c '${inside}' /dev/null 0<>${keys}`);
  const name = (): string => readFileSync(tty, "utf8").trim();
  return {
    program,
    frame: () => {
      const frames = program.output.split("\u001b[H");
      // The last one may be half there.
      const whole = frames.findLast((frame) => frame.endsWith("\u001b[J")) ?? "";
      return stripVTControlCharacters(whole).split(/\r*\n/);
    },
    resize: (columns, rows) => void stage.net.relay.run("stty", ["-F", name(), "cols", `${columns}`, "rows", `${rows}`]),
    press: (key) => writeFileSync(keys, key),
    leave: () => rmSync(tty),
  };
}

scenario("top in a terminal: it draws, follows the size, the process, and a key", async (stage) => {
  if (stage.net.relay.attempt("script", ["--version"]).status !== 0) stage.skip("script is not installed (Debian: bsdutils)");
  const relay = await stage.relay(settings);
  const top = terminal(stage, relay.file);
  await eventually("it is live", () => /transplice .* live [0-9:]{8}Z/.test(top.frame()[0] ?? ""));
  assert.equal(top.frame()[0]!.length, 100, "as wide as the terminal");
  assert.ok(top.frame().length <= 30);
  assert.match(top.frame().join("\n"), /All is well[\s\S]*down 0 B\/s[\s\S]*WORKER/);
  top.resize(60, 12);
  await eventually("it is as narrow", () => top.frame()[0]!.length === 60 && top.frame().length <= 12);
  await relay.stop();
  await eventually("it says that nothing comes", () => /not live: /.test(top.frame()[0]!));
  await stage.relay(settings);
  await eventually("it is live again", () => /live [0-9:]{8}Z/.test(top.frame()[0]!) && !/not live/.test(top.frame()[0]!));
  top.press("q");
  const at = (code: string): number => top.program.output.lastIndexOf(`\u001b[?${code}`);
  await eventually("the terminal has its screen back, and its cursor", () => at("1049l") > at("1049h") && at("25h") > at("25l"));
  assert.ok(at("1049h") >= 0);
  top.leave();
  assert.equal((await top.program.exited).code, 0);
});

scenario("top without a terminal: a line each second, until nobody reads", async (stage) => {
  const relay = await stage.relay(settings);
  const { status, stdout, stderr } = stage.net.relay.attempt("sh", ["-c", `${process.execPath} ${MAIN} top -f ${relay.file} | head -n 2`]);
  assert.equal(status, 0, stderr);
  assert.match(stdout, /^(\d{4}-\d\d-\d\dT[0-9:.]+Z down=0B\/s up=0B\/s open=0\/\d+ new=0\/s failed=0\/s well\n){2}$/);
});

scenario("top says what is wrong: no endpoint, nobody there", async (stage) => {
  const file = `${PRIVATE}/top.toml`;
  const said = (text: string): string => {
    writeFileSync(file, text);
    const { status, stderr } = stage.net.relay.attempt(process.execPath, [MAIN, "top", "-f", file]);
    assert.equal(status, 1);
    return stderr;
  };
  assert.match(said('proxy_url = "direct:"\n'), /\[admin\]/);
  assert.match(said('proxy_url = "direct:"\n[admin]\nlisten = "127.0.0.1:9181"\n'), /127\.0\.0\.1:9181/);
});
