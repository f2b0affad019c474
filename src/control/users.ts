/**
 * Who may use the egress: names and passwords, judged on the main thread.
 *
 * How long an answer takes says nothing of who exists: an unknown user, and one whose password
 * stands in clear text, cost the same scrypt as the others. That scrypt is 16 MiB and some 40 ms,
 * so few run at once, few wait, and what was found is remembered: a client that opens a thousand
 * connections costs one.
 */
import { createHmac, randomBytes, scrypt, timingSafeEqual } from "node:crypto";
import { parseSecret, type Secret } from "../config/secret.ts";
import { Places } from "./places.ts";

export { parseSecret, type Secret };

type Hash = Secret & { kind: "scrypt" };

const COST = { N: 16_384, r: 8, p: 1 } as const;
const SALT_BYTES = 16;
const HASH_BYTES = 32;

/** Of the four threads of libuv's pool, which files and getaddrinfo need as well. */
const RUNNING_MAX = 2;
const WAITING_MAX = 256;
const REMEMBERED_MAX = 4096;
/** A client with a wrong password tries again at once; an operator who mends a file does not wait. */
const WRONG_MS = 5000;

/** What a user's line of the file says after the equals sign: "scrypt:N:r:p:SALT:HASH". */
export async function hashPassword(password: string): Promise<string> {
  const salt = new Uint8Array(randomBytes(SALT_BYTES));
  const empty: Hash = { kind: "scrypt", ...COST, salt, hash: new Uint8Array(HASH_BYTES) };
  const hash = await derived(new TextEncoder().encode(password), empty);
  const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString("base64");
  return `scrypt:${COST.N}:${COST.r}:${COST.p}:${base64(salt)}:${base64(hash)}`;
}

/** For tests. */
interface Seams {
  readonly now?: () => number;
  readonly derive?: (password: Uint8Array, hash: Hash) => Promise<Uint8Array>;
}

export class Users {
  readonly #secrets = new Map<string, Secret>();
  /** What the unknown are compared with; null where nobody has a hash. */
  readonly #dummy: Hash | null;
  /** What is remembered is of no use to whoever reads this memory later, without this. */
  readonly #key = randomBytes(32);
  readonly #right = new Map<string, true>();
  /** Until when each is not looked at again, oldest first. */
  readonly #wrong = new Map<string, number>();
  readonly #judging = new Map<string, Promise<boolean>>();
  readonly #waiting: (() => void)[] = [];
  readonly #places = new Places(RUNNING_MAX + WAITING_MAX);
  #running = 0;
  readonly #now: () => number;
  readonly #derive: (password: Uint8Array, hash: Hash) => Promise<Uint8Array>;

  constructor(users: ReadonlyMap<string, Secret>, seams: Seams = {}) {
    let dearest: Hash | null = null;
    for (const [name, secret] of users) {
      this.#secrets.set(Buffer.from(name).toString("latin1"), secret);
      if (secret.kind === "scrypt" && (dearest === null || work(secret) > work(dearest))) {
        dearest = secret;
      }
    }
    this.#dummy = dearest && { ...dearest, hash: new Uint8Array(randomBytes(dearest.hash.length)) };
    this.#now = seams.now ?? (() => performance.now());
    this.#derive = seams.derive ?? derived;
  }

  /**
   * Never rejects. `password` is the caller's again when this returns: to be wiped. A SOCKS4 user
   * has an empty one. False also where too many others are waiting, or too many of this client's.
   */
  verify(user: Uint8Array, password: Uint8Array, client: number): Promise<boolean> {
    const name = Buffer.from(user).toString("latin1");
    const mark = this.#mark(name, password);
    if (this.#right.delete(mark)) {
      this.#right.set(mark, true);
      return Promise.resolve(true);
    }
    const until = this.#wrong.get(mark);
    if (until !== undefined && this.#now() < until) return Promise.resolve(false);
    const same = this.#judging.get(mark);
    if (same !== undefined) return same;
    if (!this.#places.enter(client)) return Promise.resolve(false);
    const copy = new Uint8Array(password);
    const judging = this.#judge(this.#secrets.get(name), copy)
      .then(
        (right) => {
          if (right) remember(this.#right, mark, true);
          else remember(this.#wrong, mark, this.#now() + WRONG_MS);
          return right;
        },
        // OpenSSL had no memory. That says nothing of the password, and is not remembered.
        () => false,
      )
      .finally(() => {
        copy.fill(0);
        this.#judging.delete(mark);
        this.#places.leave(client);
      });
    this.#judging.set(mark, judging);
    return judging;
  }

  async #judge(secret: Secret | undefined, password: Uint8Array): Promise<boolean> {
    const clear = secret?.kind === "clear" ? secret.password : this.#key;
    const isClear = timingSafeEqual(this.#digest(password), this.#digest(clear));
    const hash = secret?.kind === "scrypt" ? secret : this.#dummy;
    if (hash === null) return secret !== undefined && isClear;
    if (this.#running >= RUNNING_MAX) {
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    } else {
      this.#running++;
    }
    try {
      const isHash = timingSafeEqual(await this.#derive(password, hash), hash.hash);
      return secret?.kind === "scrypt" ? isHash : secret !== undefined && isClear;
    } finally {
      // The turn is handed on, or given back.
      const next = this.#waiting.shift();
      if (next === undefined) this.#running--;
      else next();
    }
  }

  /** What a pair is remembered by. Two pairs never have the same bytes: the length comes first. */
  #mark(name: string, password: Uint8Array): string {
    return createHmac("sha256", this.#key)
      .update(`${name.length}:`)
      .update(name, "latin1")
      .update(password)
      .digest("base64");
  }

  /** Of one length, whatever the password's is. */
  #digest(password: Uint8Array): Uint8Array {
    return createHmac("sha256", this.#key).update(password).digest();
  }
}

function remember<T>(memory: Map<string, T>, mark: string, value: T): void {
  memory.delete(mark);
  memory.set(mark, value);
  if (memory.size <= REMEMBERED_MAX) return;
  for (const [oldest] of memory) {
    memory.delete(oldest);
    return;
  }
}

const work = ({ N, r, p }: Hash): number => N * r * p;

function derived(password: Uint8Array, { N, r, p, salt, hash }: Hash): Promise<Uint8Array> {
  return new Promise((resolve, reject) => {
    // OpenSSL counts some more than 128 * N * r.
    const maxmem = 128 * r * (N + p + 2) + 2 ** 20;
    scrypt(password, salt, hash.length, { N, r, p, maxmem }, (error, key) => {
      if (error === null) resolve(new Uint8Array(key));
      else reject(error);
    });
  });
}
