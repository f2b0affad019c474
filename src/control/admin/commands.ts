/**
 * The commands that ask the running program by its admin endpoint: tunnels, close, drain, undrain and
 * trace. Each answers its exit code: 0: done; 1: not, and why is said on standard error.
 */
import type { Config } from "../../config/config.ts";
import type { AdminRequest } from "./actions.ts";
import { type AdminClient, adminClient } from "./client.ts";
import type { Tunnel, TunnelPage } from "./tunnels.ts";

export interface Streams {
  readonly out: (text: string) => void;
  readonly wrong: (text: string) => void;
}

const PAGE = 1000;

export async function adminCommand(request: AdminRequest, config: Config, streams: Streams, signal?: AbortSignal): Promise<number> {
  const client = adminClient(config);
  const wrong = "wrong" in client ? client.wrong : await play(request, client, streams, signal);
  if (wrong === null) return 0;
  streams.wrong(`transplice: ${wrong}\n`);
  return 1;
}

/** null: done; or what was wrong. */
function play({ action, operands, json }: AdminRequest, client: AdminClient, streams: Streams, signal?: AbortSignal): Promise<string | null> {
  const [subject] = operands;
  switch (action) {
    case "tunnels":
      return tunnels(client, queryOf(operands, "destination"), json, streams);
    case "close":
      return told(client, `/tunnels/${encodeURIComponent(subject!)}/close`, `closed ${subject!}\n`, streams);
    case "drain":
      return told(client, `/upstreams/${encodeURIComponent(subject!)}/drain`, `${subject!} is not dialled any more; its connections go on\n`, streams);
    case "undrain":
      return told(client, `/upstreams/${encodeURIComponent(subject!)}/undrain`, `${subject!} may be dialled again\n`, streams);
    case "trace":
      return trace(client, queryOf(operands, "to"), json, streams, signal);
  }
}

/** A word alone is the value of `usual`. */
function queryOf(operands: readonly string[], usual: string): URLSearchParams {
  const query = new URLSearchParams();
  for (const operand of operands) {
    const [, key, value] = /^([a-z]+)=(.*)$/.exec(operand) ?? [];
    query.set(key ?? usual, value ?? operand);
  }
  return query;
}

async function told(client: AdminClient, path: string, done: string, { out }: Streams): Promise<string | null> {
  const answer = await client.post(path);
  if ("wrong" in answer) return answer.wrong;
  if (answer.status !== 200) return errorOf(answer.body, answer.status);
  out(done);
  return null;
}

async function tunnels(client: AdminClient, query: URLSearchParams, json: boolean, { out }: Streams): Promise<string | null> {
  query.set("limit", `${PAGE}`);
  let count = 0;
  for (;;) {
    const answer = await client.get(`/tunnels?${query.toString()}`);
    if ("wrong" in answer) return answer.wrong;
    if (answer.status !== 200) return errorOf(answer.body, answer.status);
    const page = answer.body as TunnelPage;
    if (count === 0 && !json) out(`${HEADING}\n`);
    for (const tunnel of page.tunnels) out(json ? `${JSON.stringify(tunnel)}\n` : `${lineOf(tunnel)}\n`);
    count += page.tunnels.length;
    if (page.next === null) break;
    query.set("after", page.next);
  }
  if (!json) out(`${count} connection${count === 1 ? "" : "s"}\n`);
  return null;
}

const WIDTHS = [36, 8, 7, 7, 9, 9, 22] as const;

const row = (...cells: readonly string[]): string =>
  cells.map((cell, i) => (i >= 2 && i <= 5 ? cell.padStart(WIDTHS[i]!) : cell.padEnd(WIDTHS[i] ?? 0))).join(" ").trimEnd();

const HEADING = row("id", "state", "age", "idle", "up", "down", "client", "destination and way");

function lineOf(tunnel: Tunnel): string {
  const { id, state, client, destination, name, user, upstream, egress } = tunnel;
  const where = name === null ? (destination ?? "-") : `${name} (${destination ?? "-"})`;
  const way = upstream ?? egress;
  return row(
    id, state, timeText(tunnel.age_seconds), timeText(tunnel.idle_seconds), bytesText(tunnel.bytes_up), bytesText(tunnel.bytes_down),
    user === null ? client : `${client} (${shown(user)})`, `${shown(where)}${way === null ? "" : ` by ${way}`}`,
  );
}

/** Nobody's words may say anything to a terminal but text. */
const shown = (text: string): string => text.replace(/[\p{Cc}\u2028\u2029]/gu, "\ufffd");

function timeText(seconds: number): string {
  if (seconds < 60) return `${seconds.toFixed(1)}s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m${Math.floor(seconds % 60)}s`;
  return `${Math.floor(seconds / 3600)}h${Math.floor((seconds % 3600) / 60)}m`;
}

function bytesText(bytes: number): string {
  const unit = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let at = 0;
  while (value >= 1024 && at < unit.length - 1) {
    value /= 1024;
    at++;
  }
  return `${at === 0 ? value : value.toFixed(1)}${unit[at]}`;
}

async function trace(client: AdminClient, query: URLSearchParams, json: boolean, { out, wrong }: Streams, signal?: AbortSignal): Promise<string | null> {
  let farewell: string | null = null;
  const ended = await client.stream(`/trace?${query.toString()}`, (event, data) => {
    if (event === "step") out(json ? `${JSON.stringify(data)}\n` : `${stepText(data as Record<string, unknown>)}\n`);
    else if (event === "follows") wrong("following connections that begin from now on; Ctrl-C ends it\n");
    else if (event === "dropped") wrong(`${(data as { count: number }).count} steps are not shown: there are too many\n`);
    else if (event === "bye") farewell = (data as { reason: string }).reason;
  }, signal);
  return ended?.wrong ?? farewell;
}

/** "15:04:05.123456 ID +0.001234 dial to=203.0.113.5:1080". */
function stepText({ at, id, step, seconds, ...more }: Record<string, unknown>): string {
  const time = new Date(Math.floor(Number(at) * 1000)).toISOString().slice(11, 19);
  const micros = String(Math.floor((Number(at) % 1) * 1e6)).padStart(6, "0");
  const fields = Object.entries(more).filter(([, value]) => value !== null).map(([key, value]) => ` ${key}=${shown(String(value))}`);
  return `${time}.${micros} ${String(id)} +${Number(seconds).toFixed(6)} ${String(step)}${fields.join("")}`;
}

const errorOf = (body: unknown, status: number): string =>
  (body as { readonly error?: string } | null)?.error ?? `the admin endpoint answers ${status}`;
