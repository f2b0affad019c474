/** What an upstream's answer says of the destination, by a table for each upstream. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  type Cause, causeOfErrno, causeOfReply, causeOfStatus, CAUSES, errnoOf, PRESETS, type Trust, trustOnly,
} from "../../src/policy/cause.ts";

const NAMES: Readonly<Record<string, string>> = {
  "1": "EPERM", "13": "EACCES", "100": "ENETDOWN", "101": "ENETUNREACH", "104": "ECONNRESET",
  "110": "ETIMEDOUT", "111": "ECONNREFUSED", "112": "EHOSTDOWN", "113": "EHOSTUNREACH",
};

test("an errno is a cause, and back: connect() says what it would have said", () => {
  const causes = Object.fromEntries(Object.entries(NAMES).map(([errno, name]) => [name, causeOfErrno(Number(errno))]));
  assert.deepEqual(causes, {
    EPERM: "not-allowed", EACCES: "not-allowed", ENETDOWN: "net-unreachable", ENETUNREACH: "net-unreachable",
    ECONNRESET: "unknown", ETIMEDOUT: "timeout", ECONNREFUSED: "refused", EHOSTDOWN: "host-unreachable",
    EHOSTUNREACH: "host-unreachable",
  });
  for (const cause of CAUSES) assert.equal(causeOfErrno(errnoOf(cause)), cause);
});

const replies = (trust: Trust): Cause[] => [1, 2, 3, 4, 5, 6, 7, 8, 9, 255].map((code) => causeOfReply(trust, code));

test("the standard's SOCKS replies are taken at their word, and nothing else is", () => {
  assert.deepEqual(replies(PRESETS.standard), [
    "unknown", "not-allowed", "net-unreachable", "host-unreachable", "refused", "timeout",
    "unknown", "net-unreachable", "unknown", "unknown",
  ]);
  for (const cause of replies(PRESETS.nothing)) assert.equal(cause, "unknown");
});

test("a reply that a program gives for whatever went wrong is unknown", () => {
  assert.equal(causeOfReply(PRESETS["3proxy"], 5), "unknown");
  assert.equal(causeOfReply(PRESETS["3proxy"], 2), "not-allowed");
  assert.equal(causeOfReply(PRESETS.gost, 3), "unknown");
});

test("the errno beside a status counts more than the status, where it is trusted", () => {
  assert.equal(causeOfStatus(PRESETS.squid, 503, 111), "refused");
  assert.equal(causeOfStatus(PRESETS.squid, 503, 110), "timeout");
  assert.equal(causeOfStatus(PRESETS.squid, 503, 0), "unknown");
  assert.equal(causeOfStatus(PRESETS.squid, 403, 104), "not-allowed", "an errno that says nothing");
  assert.equal(causeOfStatus(PRESETS.standard, 504, 0), "timeout");
  assert.equal(causeOfStatus(PRESETS.nothing, 503, 111), "unknown");
  assert.equal(causeOfStatus(PRESETS.tinyproxy, 403, 111), "not-allowed");
});

test("with a list of causes, exactly these are ever said", () => {
  const reply = fc.integer({ min: 1, max: 255 });
  const status = fc.integer({ min: 100, max: 599 });
  fc.assert(
    fc.property(fc.subarray([...CAUSES]), reply, status, fc.nat(133), (believed, code, answer, errno) => {
      const trust = trustOnly(believed);
      for (const cause of [causeOfReply(trust, code), causeOfStatus(trust, answer, errno)]) {
        assert.ok(cause === "unknown" || believed.includes(cause), cause);
      }
      const standard = causeOfReply(PRESETS.standard, code);
      if (believed.includes(standard)) assert.equal(causeOfReply(trust, code), standard);
    }),
  );
});
