/**
 * A worker that throws is replaced, and costs no more than its own connections; a worker that
 * hangs is noticed. The faults come from outside: see fault.ts.
 */
import { strict as assert } from "node:assert";
import { readdirSync, readFileSync } from "node:fs";
import { SCHED_BATCH, SCHED_OTHER } from "../../native-bindings/constants.ts";
import { connect, eventually, PATIENCE_MS, type Peer, sleep } from "./actors.ts";
import { SERVER } from "./network.ts";
import { statField } from "./process.ts";
import { Faults, type Relay } from "./relay.ts";
import { scenario, type Stage } from "./scenario.ts";

const LISTEN = "localhost:1081";

async function setting(stage: Stage, workers: number): Promise<{ relay: Relay; faults: Faults }> {
  stage.intercept({ mode: "redirect", from: "local", port: 1081 });
  const upstream = stage.upstream({ protocol: "socks5", echoes: true });
  const faults = new Faults();
  const relay = await stage.relay(
    { listen: LISTEN, proxy_url: upstream.url(), workers },
    faults.start,
  );
  return { relay, faults };
}

const newClient = (stage: Stage): Promise<Peer> => connect(stage.net.relay, SERVER[4], 80);

/** Who is lost has an end; who hears nothing at all is given up. */
async function answers(client: Peer, withinMs = PATIENCE_MS): Promise<boolean> {
  client.write("ping");
  return client.read(4, withinMs).then(
    (bytes) => String(bytes) === "ping",
    () => false,
  );
}

async function tunnels(stage: Stage, count: number): Promise<Peer[]> {
  const clients = await Promise.all(Array.from({ length: count }, () => newClient(stage)));
  for (const client of clients) assert.ok(await answers(client));
  return clients;
}

/** Connections, one after the other, until a worker has answered the request. */
async function provoke(stage: Stage, done: () => boolean): Promise<Peer[]> {
  const clients: Peer[] = [];
  await eventually("a worker answers the request", async () => {
    if (!done()) clients.push(await newClient(stage));
    await sleep(5);
    return done();
  });
  return clients;
}

for (const workers of [1, 3]) {
  scenario(
    `one of ${workers} workers throws: it is replaced, the others go on, nothing leaks`,
    async (stage) => {
      const { relay, faults } = await setting(stage, workers);
      const idleFds = relay.process.fds();
      for (let round = 1; round <= 3; round++) {
        const standing = await tunnels(stage, 60);
        faults.request("throw");
        const provoking = await provoke(stage, () => !faults.files().includes("throw"));
        // From the first moment on, nobody is refused, and all are served.
        const fresh = await Promise.all(Array.from({ length: 100 }, () => newClient(stage)));
        const served = await Promise.all(fresh.map((client) => answers(client)));
        const lost = served.filter((each) => !each).length;
        // Those that the kernel had given to the one that died, a third: more than 60 once in 10^8 times.
        assert.ok(lost <= (workers === 1 ? 100 : 60), `${lost} of 100 new connections are lost`);
        const later = await Promise.all(Array.from({ length: 20 }, () => newClient(stage)));
        assert.deepEqual(
          await Promise.all(later.map((client) => answers(client))),
          later.map(() => true),
        );

        const alive = await Promise.all(standing.map((client) => answers(client)));
        const survivors = alive.filter((each) => each).length;
        if (workers === 1) assert.equal(survivors, 0);
        else assert.ok(survivors >= 15 && survivors < 60, `${survivors} of 60 have survived`);
        for (const [i, client] of standing.entries()) {
          if (!alive[i]) assert.equal(client.end, "reset", "who is lost is told by a reset");
        }
        await relay.logged(
          `replacement ${round}`,
          () =>
            relay
              .log()
              .filter(
                (entry) =>
                  /worker/i.test(entry.message) &&
                  /a fault was asked for/.test(JSON.stringify(entry)),
              ).length >= round,
        );
        for (const client of [...standing, ...provoking, ...fresh, ...later]) client.destroy();
        await eventually("all is given back", () => relay.process.fds() <= idleFds);
      }
      assert.equal((await relay.stop()).code, 0);
    },
  );
}

scenario("main makes way for the workers, and for one that takes another's place", async (stage) => {
  const { relay, faults } = await setting(stage, 2);
  const { pid } = relay.process;
  const main = (): number => policyOf(pid, `${pid}`);
  assert.equal(main(), SCHED_BATCH);
  const before = workersOf(pid);
  assert.deepEqual([...before.values()], [SCHED_OTHER, SCHED_OTHER]);
  faults.request("throw");
  const clients = await provoke(stage, () => !faults.files().includes("throw"));
  await eventually("the other thread has its name", () => {
    const now = workersOf(pid);
    return now.size === 2 && [...now.keys()].some((tid) => !before.has(tid));
  });
  await eventually("and serves", async () => answers(await newClient(stage)));
  assert.deepEqual([...workersOf(pid).values()], [SCHED_OTHER, SCHED_OTHER]);
  assert.equal(main(), SCHED_BATCH);
  for (const client of clients) client.destroy();
});

const POLICY = 41;
const policyOf = (pid: number, tid: string): number => statField(`${pid}/task/${tid}`, POLICY);

/** The policies of the threads of the data plane. */
function workersOf(pid: number): Map<string, number> {
  const isWorker = (tid: string): boolean => {
    return readFileSync(`/proc/${pid}/task/${tid}/comm`, "utf8").startsWith("transplice-");
  };
  return new Map(readdirSync(`/proc/${pid}/task`).flatMap((tid): [string, number][] => {
    try {
      return isWorker(tid) ? [[tid, policyOf(pid, tid)]] : [];
    } catch {
      return []; // It has ended.
    }
  }));
}

scenario(
  "a worker that hangs is noticed in the log, and the others go on",
  async (stage) => {
    const { relay, faults } = await setting(stage, 2);
    const standing = await tunnels(stage, 60);
    faults.request("hang");
    await provoke(stage, () => faults.files().includes("hanging"));
    await relay.logged(
      "the hanging worker",
      (entry) =>
        /worker/i.test(entry.message) &&
        /hang|stuck|not (turned|answer|respond|moved)|stall|no sign/i.test(JSON.stringify(entry)),
    );
    const alive = await Promise.all(standing.map((client) => answers(client, 15_000)));
    const survivors = alive.filter((each) => each).length;
    // The other one's, a half: fewer than 8 once in 10^9 times.
    assert.ok(survivors >= 8, `${survivors} of 60 have survived`);
    if (faults.files().includes("hanging")) faults.take("hanging");
    await eventually("service goes on", async () => {
      const client = await newClient(stage);
      const well = await answers(client, 5_000);
      client.destroy();
      return well;
    });
  },
);
