/** The table of SYNs against a list, with attempts that are alike in all but one thing. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { type Attempt, GRANTED, HELD, heldIn, SynTable, synTableBytes } from "../../src/engine/syn-table.ts";

const SLOTS = 8;

/** Few values of each part, so that many attempts share some. */
const anyAttempt: fc.Arbitrary<Attempt> = fc.record({
  family: fc.constantFrom(4 as const, 6 as const),
  source: fc.constantFrom(1, 2).map(bytes),
  destination: fc.constantFrom(1, 2).map(bytes),
  sourcePort: fc.constantFrom(1, 65_535),
  destinationPort: fc.constantFrom(80, 65_535),
  sequence: fc.constantFrom(0, 1, 0x7fff_ffff, -1),
});

function bytes(last: number): Uint8Array {
  return Uint8Array.from({ length: 16 }, (_, i) => (i % 4 === 3 ? last : 200 + i));
}

type Step =
  | { do: "add"; attempt: Attempt }
  | { do: "grant" | "remove"; which: number }
  | { do: "look"; attempt: Attempt };

const anyStep: fc.Arbitrary<Step> = fc.oneof(
  fc.record({ do: fc.constant("add" as const), attempt: anyAttempt }),
  fc.record({ do: fc.constantFrom("grant" as const, "remove" as const), which: fc.nat(SLOTS) }),
  fc.record({ do: fc.constant("look" as const), attempt: anyAttempt }),
);

const address = ({ family }: Attempt, of: Uint8Array): string => of.subarray(0, family === 4 ? 4 : 16).join(".");
const tuple = (it: Attempt): string => [it.family, address(it, it.source), it.sourcePort, address(it, it.destination), it.destinationPort].join();
const accepted = (it: Attempt): string => [it.family, address(it, it.source), address(it, it.destination), it.destinationPort, it.sequence].join();

test("a SYN is found by its tuple, and by its sequence number once its port may have changed", () => {
  fc.assert(
    fc.property(fc.array(anyStep, { maxLength: 60 }), fc.integer(), (steps, seed) => {
      const memory = new SharedArrayBuffer(synTableBytes(SLOTS));
      const table = new SynTable(memory, seed);
      const model = new Map<number, { attempt: Attempt; state: number; id: number }>();
      let id = 0xffff_fff0;
      for (const step of steps) {
        if (step.do === "add") {
          const { attempt } = step;
          const known = [...model.values()].some((each) => tuple(each.attempt) === tuple(attempt));
          assert.equal(table.full, model.size === SLOTS);
          if (known || table.full) continue;
          const slot = table.add(attempt, 3, id, 0xdead_beef, 96 * id);
          assert.ok(!model.has(slot));
          model.set(slot, { attempt, state: HELD, id: id++ });
        } else if (step.do !== "look") {
          const slot = [...model.keys()][step.which];
          if (slot === undefined) continue;
          if (step.do === "grant") {
            table.grant(slot);
            model.get(slot)!.state = GRANTED;
          } else {
            table.remove(slot);
            model.delete(slot);
          }
        } else {
          const slot = table.find(step.attempt);
          const same = [...model].find(([, { attempt }]) => tuple(attempt) === tuple(step.attempt));
          assert.equal(slot, same?.[0] ?? -1);
          const found = table.findAccepted(step.attempt);
          const like = [...model].filter(([, { attempt }]) => accepted(attempt) === accepted(step.attempt)).map(([each]) => each);
          assert.ok(like.length === 0 ? found === -1 : like.includes(found));
        }
        assert.equal(table.size, model.size);
      }
      for (const [slot, { attempt, state, id: number }] of model) {
        const read: Attempt = { family: 4, source: new Uint8Array(16), destination: new Uint8Array(16), sourcePort: 0, destinationPort: 0, sequence: 0 };
        table.read(slot, read);
        assert.equal(tuple(read), tuple(attempt));
        assert.equal(read.sequence, attempt.sequence);
        assert.deepEqual([table.state(slot), table.id(slot), table.lane(slot), table.mark(slot)], [state, number, 3, 0xdead_beef]);
        assert.ok(table.isSequence(slot, attempt.sequence >>> 0));
      }
      const held = [...model.values()].map((each) => each.id).sort();
      assert.deepEqual([...heldIn(memory)].map((each) => each.id).sort(), held, "what a dead worker held, or was letting go");
      assert.deepEqual([...heldIn(memory)], [], "once");
    }),
    { numRuns: 300 },
  );
});
