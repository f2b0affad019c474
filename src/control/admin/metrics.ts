/**
 * The page of metrics, for Prometheus: whatever parts it is made of, in both of the formats that
 * scrapers ask for. Everything is read from shared memory when somebody asks; no worker notices, and
 * nothing here happens for a connection.
 *
 * Scrapes differ in their numbers alone, until a line comes or goes. So prom-client writes the page once
 * for each set of lines, and a scrape puts its numbers where they belong: main's CPU for it is a
 * small part of what writing all of it anew takes, on cores that the workers want.
 */
import type http from "node:http";
import { type Metric, type OpenMetricsContentType, Registry } from "prom-client";
import type { HistogramTotals } from "../../engine/socks-counters.ts";
import type { Answered } from "./http-server.ts";

export type Labels = Readonly<Record<string, string>>;

/** Metrics that are read together. */
export interface MetricsPart {
  /**
   * A scrape begins: what its numbers are made of is to be read now. Answers what its lines depend on:
   * while that is the same, so are they, and in the same order. null: it has none on this page.
   */
  read(): string | null;
  /** `boundText`: how this format writes a bucket's bound. */
  families(boundText: (bound: number) => string): Family[];
}

/** A line of the page, but for its number. */
interface Line {
  readonly labels: Labels;
  readonly metricName?: string;
}

/** One metric: to the registry what its own Counter, Gauge and Histogram are, but with no memory. */
export abstract class Family {
  /** The registry of OpenMetrics takes a counter's "_total" away, for there it is the samples'. */
  name: string;
  readonly type: "counter" | "gauge" | "histogram";
  readonly #help: string;

  constructor(type: "counter" | "gauge" | "histogram", name: string, help: string) {
    this.name = name;
    this.type = type;
    this.#help = help;
  }

  get(): Promise<object> {
    const { name, type } = this;
    return Promise.resolve({ name, type, help: this.#help, values: this.lines().map((line) => ({ ...line, value: PLACE })) });
  }

  abstract lines(): Line[];
  /** Appends a number for each of the lines. */
  abstract put(numbers: number[]): void;
}

/** A line for each of these; `of` is asked once in each scrape. */
export class Each<T> extends Family {
  readonly #of: () => readonly T[];
  readonly #labels: (one: T) => Labels;
  readonly #value: (one: T) => number;

  constructor(
    type: "counter" | "gauge", name: string, help: string,
    of: () => readonly T[], labels: (one: T) => Labels, value: (one: T) => number,
  ) {
    super(type, name, help);
    this.#of = of;
    this.#labels = labels;
    this.#value = value;
  }

  lines(): Line[] {
    return this.#of().map((one) => ({ labels: this.#labels(one) }));
  }

  put(numbers: number[]): void {
    for (const one of this.#of()) numbers.push(this.#value(one));
  }
}

/** A single line, without labels. */
export class One extends Each<null> {
  constructor(type: "counter" | "gauge", name: string, help: string, value: () => number) {
    super(type, name, help, () => NOTHING, () => ({}), value);
  }
}

const NOTHING = [null] as const;

/** A histogram for each of these. Bounds are always the same. */
export class Histogram<T = null> extends Family {
  readonly #of: () => readonly T[];
  readonly #labels: (one: T) => Labels;
  readonly #totals: (one: T) => HistogramTotals;
  readonly #boundText: (bound: number) => string;

  constructor(
    name: string, help: string, boundText: (bound: number) => string,
    of: () => readonly T[], labels: (one: T) => Labels, totals: (one: T) => HistogramTotals,
  ) {
    super("histogram", name, help);
    this.#boundText = boundText;
    this.#of = of;
    this.#labels = labels;
    this.#totals = totals;
  }

  lines(): Line[] {
    return this.#of().flatMap((one) => {
      const labels = this.#labels(one);
      const bounds = [...this.#totals(one).bounds.map(this.#boundText), "+Inf"];
      return [
        ...bounds.map((le) => ({ labels: { ...labels, le }, metricName: `${this.name}_bucket` })),
        { labels, metricName: `${this.name}_sum` },
        { labels, metricName: `${this.name}_count` },
      ];
    });
  }

  put(numbers: number[]): void {
    for (const one of this.#of()) {
      const { counts, sum } = this.#totals(one);
      let count = 0;
      for (let bucket = 0; bucket < counts.length; bucket++) {
        count += counts[bucket]!;
        numbers.push(count);
      }
      numbers.push(sum, count);
    }
  }
}

/** A histogram without labels. */
export function oneHistogram(
  name: string, help: string, boundText: (bound: number) => string, totals: () => HistogramTotals,
): Family {
  return new Histogram(name, help, boundText, () => NOTHING, () => ({}), totals);
}

export class MetricsPage {
  readonly #parts: readonly MetricsPart[];
  readonly #plain: Format;
  readonly #open: Format;
  readonly #makeWay: () => void;

  /** `makeWay`: called between the steps of an answer, for those who wait for this CPU to go first. */
  constructor(parts: readonly MetricsPart[], makeWay: () => void = () => {}) {
    this.#parts = parts;
    this.#makeWay = makeWay;
    const plain = new Registry();
    const open = new Registry<OpenMetricsContentType>();
    open.setContentType(Registry.OPENMETRICS_CONTENT_TYPE);
    this.#plain = new Format(plain.contentType, plain, parts.map((part) => part.families(String)));
    this.#open = new Format(open.contentType, open, parts.map((part) => part.families(floatText)));
  }

  /**
   * In OpenMetrics if it is asked for, as usocksd did and Prometheus does. `headers`: of the answer, names
   * and values in turn. At once, but for a page that is to be written anew.
   */
  answer(request: http.IncomingMessage, response: http.ServerResponse, headers: readonly string[] = []): Answered {
    this.#makeWay();
    const accept = request.headers.accept ?? "";
    const format = accept.includes("application/openmetrics-text") ? this.#open : this.#plain;
    const send = (text: string): void => {
      this.#makeWay();
      const length = Buffer.byteLength(text);
      response.writeHead(200, [...headers, "content-type", format.contentType, "content-length", `${length}`]);
      response.end(text, length === text.length ? "latin1" : "utf8"); // Of what is ASCII, that is a copy.
      this.#makeWay();
    };
    const shapes = this.#parts.map((part) => part.read());
    this.#makeWay();
    const text = format.text(shapes);
    return typeof text === "string" ? send(text) : text.then(send);
  }
}

/** OpenMetrics writes bounds as floating-point numbers. */
const floatText = (value: number): string => (Number.isInteger(value) ? `${value}.0` : `${value}`);

/** Stands for a number to come. As a number it is none of ours, and no text of ours ends in it. */
const PLACE = -8_675_309;
const PLACES = new RegExp(`(?<= )${PLACE}$`, "m");

/** What of a registry is used. */
type Lines = Pick<Registry, "clear" | "registerMetric" | "metrics">;

/** The page in one format. */
class Format {
  readonly contentType: string;
  readonly #registry: Lines;
  /** Of each part. */
  readonly #families: readonly (readonly Family[])[];
  /** What the lines depend on that #page was written for. */
  #shape: string | null = null;
  /** What stands between numbers, and numbers, in turn. */
  #page: string[] = [];
  /** Those that stand in it. */
  #numbers: readonly number[] = [];

  constructor(contentType: string, registry: Lines, families: readonly (readonly Family[])[]) {
    this.contentType = contentType;
    this.#registry = registry;
    this.#families = families;
  }

  /** Of what has just been read: what its parts' lines depend on. */
  text(shapes: readonly (string | null)[]): string | Promise<string> {
    const families = this.#families.filter((_, part) => shapes[part] !== null).flat();
    const shape = JSON.stringify(shapes);
    const numbers: number[] = [];
    for (const family of families) family.put(numbers);
    if (shape === this.#shape) return this.#with(numbers);
    this.#registry.clear();
    // What the types do not say: a registry wants no more of a metric than its name and get().
    for (const family of families) this.#registry.registerMetric(family as unknown as Metric);
    // Every family is asked for its lines before the first await in metrics(): they are those of now.
    return this.#registry.metrics().then((text) => {
      this.#take(shape, text);
      return this.#with(numbers);
    });
  }

  #with(numbers: readonly number[]): string {
    const page = this.#page;
    if (page.length !== 2 * numbers.length + 1) throw new Error(`${numbers.length} numbers for ${(page.length - 1) / 2} lines`);
    // Most are what they were: zeros, limits, the buckets that nothing falls into.
    for (let i = 0; i < numbers.length; i++) if (numbers[i] !== this.#numbers[i]) page[2 * i + 1] = `${numbers[i]!}`;
    this.#numbers = numbers;
    return page.join("");
  }

  #take(shape: string, text: string): void {
    this.#shape = shape;
    this.#page = text.split(PLACES).flatMap((piece, i) => (i === 0 ? [piece] : ["", piece]));
    this.#numbers = [];
  }
}
