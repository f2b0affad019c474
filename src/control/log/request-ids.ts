/**
 * What a connection is called: in the log as `request_id`, and wherever else somebody means it. It
 * says which run of the program had it, which worker, and in which of that worker's lives.
 */
import { randomBytes } from "node:crypto";

export interface RequestId {
  readonly incarnation: number;
  readonly worker: number;
  readonly id: number;
}

const hex = (value: number, digits: number): string => value.toString(16).padStart(digits, "0");

export class RequestIds {
  /** Of this process: request ids of two runs do not meet. */
  readonly #run = randomBytes(6).toString("hex");

  text(incarnation: number, worker: number, id: number): string {
    const run = this.#run;
    return `${run.slice(0, 8)}-${run.slice(8)}-${hex(incarnation & 0xffff, 4)}-${hex(worker, 4)}-${hex(id, 12)}`;
  }

  /** null: it is none, or another run's. */
  parse(text: string): RequestId | null {
    const match = /^([0-9a-f]{8})-([0-9a-f]{4})-([0-9a-f]{4})-([0-9a-f]{4})-([0-9a-f]{12})$/.exec(text);
    if (match === null || match[1]! + match[2]! !== this.#run) return null;
    const [incarnation, worker, id] = match.slice(3).map((part) => Number.parseInt(part, 16)) as [number, number, number];
    return { incarnation, worker, id };
  }
}
