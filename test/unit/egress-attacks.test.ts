/**
 * What attackers of the egress have tried, where no network is needed: addresses that are another's
 * clothes for forbidden ones, rates that round up, clients that fail on purpose.
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { AF_INET6, EAFNOSUPPORT } from "../../native-bindings/constants.ts";
import { linux, type Syscalls } from "../../native-bindings/syscalls.ts";
import { addressBytes } from "../../src/config/endpoint.ts";
import { parseConfig } from "../../src/config/parse.ts";
import { EgressControl } from "../../src/control/egress.ts";
import { Listeners } from "../../src/control/listeners.ts";
import type { Log } from "../../src/control/log/log.ts";
import { EgressCounters, egressCountersBytes, EgressReader } from "../../src/engine/egress-counters.ts";
import { Quotas, QUOTA_BYTES, TOO_FAST } from "../../src/engine/quota.ts";
import { Access, type AccessSettings } from "../../src/policy/access.ts";

const OPEN: AccessSettings = {
  allowFrom: [], allowSites: [], denySites: [], allowPorts: [], denyPorts: [], allowNetworks: [],
  denyNetworks: [], allowPrivate: true, rules: [],
};
const CLIENT = { bytes: Uint8Array.of(10, 0, 0, 1), at: 0, length: 4, user: null } as const;

const decides = (access: Access, address: string): string => {
  const bytes = addressBytes(address) ?? assert.fail(address);
  return access.judge(CLIENT, "", 80, bytes, 0, bytes.length as 4 | 16).rule;
};

describe("special addresses", () => {
  const access = new Access(OPEN, []);
  for (const [address, what] of [
    ["64:ff9b::a9fe:a9fe", "link-local"],
    // 169.254.169.254 behind the local-use NAT64 prefix, and as an IPv4-translated address.
    ["64:ff9b:1::a9fe:a9fe", "special"],
    ["64:ff9b:1:a9fe:a9:fe00::", "special"],
    ["::ffff:0:a9fe:a9fe", "special"],
    ["2002:a9fe:a9fe::1", "link-local"],
    ["192.0.0.192", "special"],
    ["64:ff9b::808:808", "default"],
    ["192.0.1.1", "default"],
  ]) {
    it(`${address}: ${what}`, () => assert.equal(decides(access, address!), what));
  }

  it("a network that is routed to this host is this host", () => {
    const bytes = addressBytes("2001:db8:2::") ?? assert.fail();
    const own = new Access(OPEN, [{ bytes, prefix: 64 }]);
    assert.equal(decides(own, "2001:db8:2::22"), "own-address");
    assert.equal(decides(own, "2001:db8:3::22"), "default");
  });
});

describe("a rate is no more than was written", () => {
  const within = (perSecond: number, ms: number): number => {
    const quotas = new Quotas(new SharedArrayBuffer(QUOTA_BYTES));
    const quota = { most: null, perSecond };
    let served = 0;
    for (let at = 0; at < ms; at += ms / 7200) {
      const entry = quotas.enter(4711, quota, 1_764_000_000_000 + at);
      if (entry !== TOO_FAST) served++;
      quotas.leave(entry);
    }
    return served;
  };
  const HOUR_MS = 3_600_000;
  for (const [text, perSecond, hours, most] of [
    ["61/m", 61 / 60, 1, 3660],
    ["90/m", 1.5, 1, 5400],
    ["1/h", 1 / 3600, 1, 1],
    ["90/h", 90 / 3600, 1, 90],
    ["30/m", 0.5, 1, 1800],
    ["1/s", 1, 1, 3600],
  ] as const) {
    it(text, () => assert.equal(within(perSecond, hours * HOUR_MS), most));
  }
});

describe("the health of addresses", () => {
  const WINDOW = 30;

  /** Two addresses, of which the first gets no answers; and what the log says. */
  class Pool {
    readonly said: string[] = [];
    readonly #control: EgressControl;
    readonly #worker: EgressCounters;
    readonly #slots: readonly number[];

    constructor() {
      const say = (message: string, fields?: object): void => void this.said.push(`${message} ${JSON.stringify(fields)}`);
      const log = { debug: say, info: say, warning: say, error: say, critical: say } as unknown as Log;
      const shared = new SharedArrayBuffer(egressCountersBytes(1));
      const counters = new EgressReader(shared);
      this.#worker = new EgressCounters(shared, 0);
      this.#control = new EgressControl({ sys: linux(), log, counters, onChange: () => {} });
      const parsed = parseConfig('[incoming]\n[outgoing]\naddresses = ["127.0.0.1", "127.0.0.2"]\n', "f");
      assert.ok("config" in parsed);
      this.#control.configure(parsed.config);
      this.#slots = counters.addressSlots(["127.0.0.1", "127.0.0.2"]);
    }

    /** `failed` dials by the first address, of these clients in turn, and others as they are named. */
    dial({ clients = [1, 2, 3, 4], failed = 60, answered = 0, others = 60, othersFailed = 0 } = {}): void {
      const [bad, good] = this.#slots;
      for (let i = 0; i < failed; i++) this.#worker.failed(bad!, clients[i % clients.length]);
      for (let i = 0; i < answered; i++) this.#worker.answered(bad!);
      for (let i = 0; i < others; i++) this.#worker.answered(good!);
      for (let i = 0; i < othersFailed; i++) this.#worker.failed(good!, 9);
    }

    pass(seconds: number): void {
      for (let i = 0; i < seconds; i++) this.#control.tick(false);
    }

    get usable(): boolean {
      return this.#control.health("127.0.0.1")!.usable;
    }
  }

  /** After one window of such dials. */
  const usable = (dials: Parameters<Pool["dial"]>[0]): boolean => {
    const pool = new Pool();
    pool.dial(dials);
    pool.pass(WINDOW);
    return pool.usable;
  };

  it("one that gets no answers is out", () => assert.equal(usable({}), false));
  it("one client that asks for what is nowhere takes no address from the others", () => {
    assert.equal(usable({ clients: [7] }), true);
    assert.equal(usable({ clients: [7, 8] }), true);
  });
  it("nor do thirty, from an address that works for anybody", () => {
    const clients = Array.from({ length: 30 }, (_, i) => i);
    assert.equal(usable({ clients, failed: 3000, answered: 1 }), true);
  });
  it("few dials say nothing, nor do many when the others get no more answers", () => {
    assert.equal(usable({ failed: 29 }), true);
    assert.equal(usable({ others: 29 }), true);
    assert.equal(usable({ others: 60, othersFailed: 61 }), true);
  });
  it("is tried again after a minute, after two, after four; and when it has worked, after one", () => {
    const pool = new Pool();
    for (const seconds of [60, 120, 240]) {
      pool.dial();
      pool.pass(WINDOW);
      assert.match(pool.said.at(-1)!, new RegExp(`gets no answers.*"seconds":${seconds}`));
      pool.pass(seconds - 1);
      assert.equal(pool.usable, false);
      pool.pass(1);
      assert.equal(pool.usable, true);
      assert.match(pool.said.at(-1)!, /tried again/);
    }
    pool.dial({ failed: 5, answered: 5 });
    pool.pass(WINDOW);
    pool.dial();
    pool.pass(WINDOW);
    assert.match(pool.said.at(-1)!, /"seconds":60/);
  });
  it("is never out for longer than 64 minutes", () => {
    const pool = new Pool();
    for (let i = 0; i < 9; i++) {
      pool.dial();
      pool.pass(WINDOW);
      assert.equal(pool.usable, false);
      pool.pass(3840);
      assert.equal(pool.usable, true);
    }
    assert.match(pool.said.at(-2)!, /"seconds":3840/);
  });
});

describe("a kernel without IPv6", () => {
  it("listens on all addresses of IPv4 where all are wanted", () => {
    const real = linux();
    const sys: Syscalls = {
      ...real,
      socket: (family, type, protocol) =>
        family === AF_INET6 ? -EAFNOSUPPORT : real.socket(family, type, protocol),
    };
    const parsed = parseConfig("[incoming]\nport = 28139\nmetrics_port = 0\n[outgoing]\n", "f");
    assert.ok("config" in parsed);
    const listeners = new Listeners(sys);
    const outcome = listeners.openNew(parsed.config, 1);
    assert.deepEqual("wrong" in outcome ? outcome.wrong : outcome.missing, []);
    for (const each of listeners.open) listeners.close(each);
  });
});
