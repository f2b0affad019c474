/**
 * Connections that are followed: what is asked for, to the workers; and their steps, as they come, to
 * whoever asked. Nobody asks, and nothing of it is there.
 */
import type http from "node:http";
import { textOf } from "../../config/endpoint.ts";
import { CLOCK_ORIGIN } from "../../engine/counters.ts";
import type { TraceQuestion, TraceStep } from "../../engine/trace.ts";
import { EventStreams } from "./event-streams.ts";
import type { WorkerView } from "../fleet.ts";
import { errnoText } from "../listeners.ts";
import type { RequestIds } from "../log/request-ids.ts";
import { nameOf, placeOf } from "./tunnels.ts";

export const TRACES_MAX = 4;

export interface TracesOptions {
  readonly ids: RequestIds;
  /** To every worker, in place of what was asked before. Resolves when they all know. */
  readonly ask: (questions: readonly TraceQuestion[]) => Promise<void>;
}

export class Traces {
  readonly #options: TracesOptions;
  readonly #streams = new EventStreams(TRACES_MAX);
  readonly #open = new Map<http.ServerResponse, TraceQuestion>();

  constructor(options: TracesOptions) {
    this.#options = options;
  }

  get full(): boolean {
    return this.#streams.full;
  }

  /** The response becomes a stream of steps: of connections that begin from now on. */
  async open(response: http.ServerResponse, asked: Omit<TraceQuestion, "bit">): Promise<void> {
    const taken = new Set([...this.#open.values()].map(({ bit }) => bit));
    let bit = 1;
    while (taken.has(bit)) bit *= 2;
    this.#open.set(response, { ...asked, bit });
    this.#streams.open(response, () => {
      this.#open.delete(response);
      void this.#ask();
    });
    await this.#ask();
    this.#streams.send(response, "follows", "{}");
  }

  /** A worker tells a step. */
  step(step: TraceStep, { number, incarnation, counters }: WorkerView): void {
    for (const [response, { bit }] of this.#open) {
      if ((step.bits & bit) === 0) continue;
      if (step.dropped > 0) this.#streams.send(response, "dropped", JSON.stringify({ count: step.dropped }));
      const shown = shownStep(step, counters[CLOCK_ORIGIN]!, this.#options.ids.text(incarnation, number, step.id));
      this.#streams.send(response, "step", JSON.stringify(shown));
    }
  }

  /** To be called now and then. */
  keepAlive(): void {
    this.#streams.keepAlive();
  }

  close(reason: string): void {
    this.#streams.close(reason);
  }

  #ask(): Promise<void> {
    return this.#options.ask([...this.#open.values()]);
  }
}

function shownStep(step: TraceStep, originMs: number, id: string): object {
  const address = step.address === null ? null : textOf(step.address, 0);
  const shown = {
    at: Math.round((originMs + step.atMs) * 1000) / 1e6,
    id,
    step: step.step,
    seconds: Math.max(0, Math.round((step.atMs - step.startedMs) * 1000) / 1e6),
  };
  const error = step.errno === 0 ? {} : { error: errnoText(step.errno) };
  switch (step.step) {
    case "accepted":
      return { ...shown, client: address };
    case "destination":
      return { ...shown, destination: address, ...(step.text === "" ? {} : { name: step.text }) };
    case "dial":
      return { ...shown, to: address };
    case "dial-failed":
      return { ...shown, ...error };
    case "granted":
      return address === null ? shown : { ...shown, source: address };
    case "reset":
      return { ...shown, by: step.text, ...error };
    case "ended":
      return { ...shown, reason: step.text, ...error, bytes_up: step.bytesUp, bytes_down: step.bytesDown };
    default:
      return shown;
  }
}

/** What is asked for, or what is wrong with it. */
export function questionOf(query: { readonly to?: string; readonly from?: string }): Omit<TraceQuestion, "bit"> | { wrong: string } {
  const { to, from, ...strangers } = query;
  const [stranger] = Object.keys(strangers);
  if (stranger !== undefined) return { wrong: `${stranger} is not asked for here; there are to and from` };
  if (to === undefined && from === undefined) return { wrong: "to or from says which connections are to be followed" };
  const client = from === undefined ? null : placeOf(from);
  if (from !== undefined && client === null) return { wrong: `from: found "${from}"; allowed: an address, a network, or ADDRESS:PORT` };
  const destination = to === undefined ? null : placeOf(to);
  const name = to === undefined || destination !== null ? null : nameOf(to);
  if (to !== undefined && destination === null && name === null) {
    return { wrong: `to: found "${to}"; allowed: an address, a network, ADDRESS:PORT, :PORT, or a name, .example.com for all below it` };
  }
  return { client, destination, name };
}
