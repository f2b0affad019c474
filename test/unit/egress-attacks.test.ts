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
import type { Log } from "../../src/control/log.ts";
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
  const silent = { debug() {}, info() {}, warning() {}, error() {}, critical() {} };
  /** Of two addresses, whose worse one has failed for these clients and served none. */
  const usable = (clients: readonly number[]): boolean => {
    const shared = new SharedArrayBuffer(egressCountersBytes(1));
    const counters = new EgressReader(shared);
    const worker = new EgressCounters(shared, 0);
    const control = new EgressControl({
      sys: linux(), log: silent as unknown as Log, counters, onChange: () => {},
    });
    const parsed = parseConfig('[incoming]\n[outgoing]\naddresses = ["127.0.0.1", "127.0.0.2"]\n', "f");
    assert.ok("config" in parsed);
    control.configure(parsed.config);
    const [bad, good] = counters.addressSlots(["127.0.0.1", "127.0.0.2"]);
    for (let i = 0; i < 60; i++) {
      worker.opened(bad!);
      worker.failed(bad!, clients[i % clients.length]);
      worker.opened(good!);
    }
    for (let tick = 0; tick < 30; tick++) control.tick(false);
    control.close();
    return control.health("127.0.0.1")!.usable;
  };

  it("one client that asks for what is nowhere takes no address from the others", () => {
    assert.equal(usable([7]), true);
    assert.equal(usable([7, 8]), true);
  });
  it("an address that works for nobody is taken out", () => assert.equal(usable([7, 8, 9]), false));
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
