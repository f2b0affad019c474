/**
 * The page of metrics, for Prometheus: whatever parts it is made of, in both of the formats that
 * scrapers ask for. Everything is read from shared memory when somebody asks; no worker notices, and
 * nothing here happens for a connection.
 */
import type http from "node:http";
import { type Metric, type OpenMetricsContentType, Registry } from "prom-client";
import type { HistogramTotals } from "../engine/socks-counters.ts";

export interface Sample {
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
  readonly metricName?: string;
}

/** Metrics that are read together. */
export interface MetricsPart {
  /** A scrape begins: what its samples are made of is to be read now. */
  read(): void;
  /** `boundText`: how this format writes a bucket's bound. */
  families(boundText: (bound: number) => string): Family[];
}

/** One metric: to the registry what its own Counter, Gauge and Histogram are, but with no memory. */
export class Family {
  /** The registry of OpenMetrics takes a counter's "_total" away, for there it is the samples'. */
  name: string;
  readonly type: "counter" | "gauge" | "histogram";
  readonly #help: string;
  readonly #samples: () => Sample[];

  constructor(
    type: "counter" | "gauge" | "histogram", name: string, help: string, samples: () => Sample[],
  ) {
    this.name = name;
    this.type = type;
    this.#help = help;
    this.#samples = samples;
  }

  get(): Promise<object> {
    const { name, type } = this;
    return Promise.resolve({ name, type, help: this.#help, values: this.#samples() });
  }
}

export class MetricsPage {
  readonly #parts: readonly MetricsPart[];
  readonly #plain = new Registry();
  readonly #open = new Registry<OpenMetricsContentType>();

  constructor(parts: readonly MetricsPart[]) {
    this.#parts = parts;
    this.#open.setContentType(Registry.OPENMETRICS_CONTENT_TYPE);
    for (const part of parts) {
      for (const family of part.families(String)) register(this.#plain, family);
      for (const family of part.families(floatText)) register(this.#open, family);
    }
  }

  /** In OpenMetrics if it is asked for, as usocksd did and Prometheus does. */
  async answer(request: http.IncomingMessage, response: http.ServerResponse): Promise<void> {
    const accept = request.headers.accept ?? "";
    // Every family is asked before the first await in metrics(), so all see the same numbers.
    for (const part of this.#parts) part.read();
    const registry = accept.includes("application/openmetrics-text") ? this.#open : this.#plain;
    const bytes = Buffer.from(await registry.metrics());
    response.writeHead(200, { "content-type": registry.contentType, "content-length": bytes.length }).end(bytes);
  }
}

/** What the types do not say: a registry wants no more of a metric than its name and get(). */
function register(registry: Pick<Registry, "registerMetric">, family: Family): void {
  registry.registerMetric(family as unknown as Metric);
}

/** OpenMetrics writes bounds as floating-point numbers. */
const floatText = (value: number): string => (Number.isInteger(value) ? `${value}.0` : `${value}`);

export const one = (value: number): Sample[] => [{ labels: {}, value }];

export function histogramSamples(
  name: string, labels: Readonly<Record<string, string>>, { bounds, counts, sum }: HistogramTotals,
  boundText: (bound: number) => string,
): Sample[] {
  let count = 0;
  const samples: Sample[] = [...bounds.map(boundText), "+Inf"].map((le, bucket) => {
    count += counts[bucket]!;
    return { labels: { ...labels, le }, value: count, metricName: `${name}_bucket` };
  });
  samples.push({ labels, value: sum, metricName: `${name}_sum` });
  samples.push({ labels, value: count, metricName: `${name}_count` });
  return samples;
}
