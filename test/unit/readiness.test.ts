/** Whether the process is of use: what dials have shown, and what was asked where there were none. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Readiness, type UpstreamView } from "../../src/control/admin/readiness.ts";
import { socketAddress } from "../../src/config/endpoint.ts";

const upstream = (host: string): UpstreamView => ({ text: `socks5://${host}:1080`, addresses: [socketAddress(host, 1080)!] });

class World {
  upstreams = [upstream("192.0.2.2")];
  answering = false;
  readonly asked: string[] = [];
  why: string | Error | null = "ECONNREFUSED";
  readonly readiness = new Readiness({
    stopping: () => false, workers: () => [{ state: "running" } as never], upstreams: () => this.upstreams, isFailing: () => false,
    isAnswering: () => this.answering, noExit: () => false,
    probe: ({ text }) => {
      this.asked.push(text);
      return this.why instanceof Error ? Promise.reject(this.why) : Promise.resolve(this.why);
    },
  });
}

test("that an upstream did not answer who asked is known, until a dial shows another thing", async () => {
  const world = new World();
  assert.deepEqual(world.readiness.problems, [], "nobody has asked");
  const problems = ["socks5://192.0.2.2:1080 does not answer: ECONNREFUSED"];
  assert.deepEqual(await world.readiness.check(), problems);
  assert.deepEqual(world.readiness.problems, problems);
  world.answering = true;
  assert.deepEqual(world.readiness.problems, []);
  assert.deepEqual(await world.readiness.check(), []);
});

test("who asks at once is one question to each upstream", async () => {
  const world = new World();
  world.upstreams = [upstream("192.0.2.2"), upstream("192.0.2.3")];
  world.why = null;
  await Promise.all([world.readiness.check(), world.readiness.check()]);
  await world.readiness.check();
  assert.deepEqual(world.asked, ["socks5://192.0.2.2:1080", "socks5://192.0.2.3:1080"]);
  assert.deepEqual(world.readiness.problems, []);
});

test("of a probe that could not be made, who asked hears, and nobody else", async () => {
  const world = new World();
  world.why = new Error("no file descriptor is left");
  await assert.rejects(world.readiness.check(), world.why);
  assert.deepEqual(world.readiness.problems, []);
});
