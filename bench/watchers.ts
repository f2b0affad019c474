/**
 * Those who look at the running program while it works: so many scrapes a second of its metrics, and
 * pages that are open. They say how much they saw, so that nobody measures watchers who see nothing.
 */
import http from "node:http";
import { setTimeout as sleep } from "node:timers/promises";

const SCRAPES_PER_SECOND = 10;
const PAGES = 3;

export class Watchers {
  readonly #port: number;
  readonly #agent = new http.Agent({ keepAlive: true });
  readonly #pages: http.ClientRequest[] = [];
  #watching = true;
  #scraping: Promise<void> = Promise.resolve();
  scrapes = 0;
  events = 0;

  private constructor(port: number) {
    this.#port = port;
  }

  /** Resolves when each of them has seen something. */
  static async begin(port: number): Promise<Watchers> {
    const watchers = new Watchers(port);
    for (let page = 0; page < PAGES; page++) watchers.#open();
    watchers.#scraping = watchers.#scrape();
    while (watchers.scrapes === 0 || watchers.events < PAGES) await sleep(20);
    return watchers;
  }

  async end(): Promise<void> {
    this.#watching = false;
    await this.#scraping;
    for (const page of this.#pages) page.destroy();
    this.#agent.destroy();
  }

  #open(): void {
    const page = http.get({ host: "127.0.0.1", port: this.#port, path: "/events", agent: false }, (response) => {
      response.on("data", (chunk: Buffer) => {
        if (chunk.includes("event: status")) this.events++;
      });
      response.on("error", () => {});
    });
    page.on("error", (error) => {
      if (this.#watching) throw error;
    });
    this.#pages.push(page);
  }

  async #scrape(): Promise<void> {
    const beginMs = performance.now();
    while (this.#watching) {
      await this.#once();
      this.scrapes++;
      await sleep(Math.max(0, beginMs + (this.scrapes * 1000) / SCRAPES_PER_SECOND - performance.now()));
    }
  }

  #once(): Promise<void> {
    return new Promise((resolve, reject) => {
      const request = http.get({ host: "127.0.0.1", port: this.#port, path: "/metrics", agent: this.#agent }, (response) => {
        if (response.statusCode !== 200) reject(new Error(`a scrape was answered ${response.statusCode}`));
        response.resume().on("end", resolve);
      });
      request.on("error", reject);
    });
  }
}
