import { randomBytes } from 'node:crypto';
import type { Clock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import { monotonicMs } from './monotonic-time.ts';
import { RedisConnection } from './redis-connection.ts';
import { RedisErrorReply, type Reply } from './resp.ts';

/** When a request was handed to the kernel and when its reply was read, on `monotonicMs`. */
export interface RequestTiming {
  readonly sentMs: number;
  readonly repliedMs: number;
}

export interface LoadReport {
  readonly ackedWrites: number;
  readonly connections: { readonly total: number; readonly survived: number };
  /** Of the newest requests since `begin`, oldest reply first. */
  readonly timings: readonly RequestTiming[];
  /** What broke connections and what Redis refused, at most 20. */
  readonly errors: readonly string[];
}

export interface Verification {
  /** Acknowledged since the start. */
  readonly ackedWrites: number;
  /** Keys that do not hold what was acknowledged last. */
  readonly lostWrites: number;
  /** At most 10 of them. */
  readonly examples: readonly { key: string; acknowledged: string; found: string | null }[];
}

export interface RedisAddress {
  readonly host: string;
  readonly port: number;
}

const TIMINGS_MAX = 100_000;
const ERRORS_MAX = 20;
const EXAMPLES_MAX = 10;
/** Every write has a key of its own until there are so many: about 40 MiB in Redis. Then keys are written again. */
const KEYS_MAX = 400_000;
const VERIFY_BATCH = 500;
const CLOCK_READINGS = 9;
const PING_DEADLINE_MS = 1000;

/** Writes to Redis over connections that are never reopened, and remembers what was acknowledged. */
export class LoadGenerator implements Disposable {
  readonly #address: RedisAddress;
  readonly #clock: Clock;
  /** Keys of another generator never look like ours. */
  readonly #id = randomBytes(4).toString('hex');
  readonly #clients: LoadClient[] = [];
  readonly #errors: string[] = [];
  #timings: RequestTiming[] = [];
  #running: { readonly stop: AbortController; readonly done: Promise<unknown> } | undefined;

  constructor(address: RedisAddress, clock: Clock) {
    this.#address = address;
    this.#clock = clock;
  }

  /** Adds clients, each with one TCP connection for its whole life. */
  async connect(clients: number): Promise<void> {
    const keysMax = Math.floor(KEYS_MAX / (this.#clients.length + clients));
    for (let count = 0; count < clients; count += 1) {
      const connection = await this.#open();
      const prefix = `${this.#id}:${this.#clients.length}`;
      this.#clients.push(
        new LoadClient(connection, { prefix, keysMax, onError: (error) => this.#noteError(error) }),
      );
    }
  }

  /** Writes by the first client, the next one `gapMs` after each reply. */
  async paced({ requests, gapMs }: { requests: number; gapMs: number }): Promise<RequestTiming[]> {
    const client = this.#clients[0];
    const timings: RequestTiming[] = [];
    for (let count = 0; client !== undefined && count < requests; count += 1) {
      const timing = await client.write();
      if (timing === undefined) throw client.connection.lost ?? new Error('Redis refused a write');
      timings.push(timing);
      await this.#clock.sleep(gapMs);
    }
    return timings;
  }

  /** All clients write back to back, or `gapMs` after each reply, until `end`. */
  begin({ gapMs = 0 }: { gapMs?: number } = {}): void {
    this.#timings = [];
    const stop = new AbortController();
    this.#running = {
      stop,
      done: Promise.all(this.#clients.map((client) => this.#drive(client, gapMs, stop.signal))),
    };
  }

  /** Requests since `begin` that were sent before `atMs` and answered after it, oldest reply first. */
  openAt(atMs: number): RequestTiming[] {
    return this.#timings.filter(({ sentMs, repliedMs }) => sentMs < atMs && repliedMs > atMs);
  }

  /** Lets the requests that are under way finish. */
  async end(): Promise<LoadReport> {
    this.#running?.stop.abort();
    await this.#running?.done;
    this.#running = undefined;
    return {
      ackedWrites: this.#ackedWrites(),
      connections: {
        total: this.#clients.length,
        survived: this.#clients.filter(({ connection }) => connection.lost === undefined).length,
      },
      timings: this.#timings,
      errors: this.#errors,
    };
  }

  /** Reads every key back. To be called after `end`. */
  async verify(): Promise<Verification> {
    using connection = await this.#open();
    let lostWrites = 0;
    const examples: Verification['examples'][number][] = [];
    for (const client of this.#clients) {
      for (const batch of client.expectations(VERIFY_BATCH)) {
        const found = await connection.call('MGET', ...batch.map(({ key }) => key));
        for (const [index, { key, acknowledged, unanswered }] of batch.entries()) {
          const value = textOf(Array.isArray(found) ? found[index] : found);
          if (value === acknowledged || (value !== null && value === unanswered)) continue;
          lostWrites += 1;
          if (examples.length < EXAMPLES_MAX) examples.push({ key, acknowledged, found: value });
        }
      }
    }
    return { ackedWrites: this.#ackedWrites(), lostWrites, examples };
  }

  /** Guest minus host, by the reading of Redis' clock that took the least time; off by at most half of that time. */
  async guestClockErrorMs(): Promise<number> {
    using connection = await this.#open();
    let best = { tookMs: Number.POSITIVE_INFINITY, errorMs: Number.NaN };
    for (let count = 0; count < CLOCK_READINGS; count += 1) {
      const sentMs = this.#clock.wallMs();
      const startMs = monotonicMs();
      const reply = await connection.call('TIME');
      const tookMs = monotonicMs() - startMs;
      const [seconds, microseconds] = Array.isArray(reply) ? reply.map(Number) : [];
      const guestMs = (seconds ?? Number.NaN) * 1000 + (microseconds ?? Number.NaN) / 1000;
      if (tookMs < best.tookMs) best = { tookMs, errorMs: guestMs - (sentMs + tookMs / 2) };
    }
    return best.errorMs;
  }

  /** Whether Redis answers. Impatient: a guest that boots may take a connection and never say a word on it. */
  async ping(): Promise<void> {
    using connection = await this.#open({
      connectDeadlineMs: PING_DEADLINE_MS,
      replyDeadlineMs: PING_DEADLINE_MS,
    });
    await connection.call('PING');
  }

  /** One command over a connection of its own. */
  async command(...words: string[]): Promise<Reply> {
    using connection = await this.#open();
    return await connection.call(...words);
  }

  [Symbol.dispose](): void {
    this.#running?.stop.abort();
    for (const { connection } of this.#clients) connection[Symbol.dispose]();
  }

  #open(deadlines: { connectDeadlineMs?: number; replyDeadlineMs?: number } = {}): Promise<RedisConnection> {
    return RedisConnection.connect({ ...this.#address, ...deadlines, clock: this.#clock });
  }

  async #drive(client: LoadClient, gapMs: number, signal: AbortSignal): Promise<void> {
    while (!signal.aborted && client.connection.lost === undefined) {
      const timing = await client.write();
      if (timing !== undefined) this.#timings.push(timing);
      // Dropping the older half now and then costs less than moving all at every request.
      if (this.#timings.length > 2 * TIMINGS_MAX) this.#timings = this.#timings.slice(-TIMINGS_MAX);
      if (gapMs > 0) await this.#clock.sleep(gapMs);
    }
  }

  #ackedWrites(): number {
    return this.#clients.reduce((sum, { ackedWrites }) => sum + ackedWrites, 0);
  }

  #noteError(error: string): void {
    if (this.#errors.length < ERRORS_MAX) this.#errors.push(error);
  }
}

interface Expectation {
  readonly key: string;
  /** The value that Redis acknowledged last for this key. */
  readonly acknowledged: string;
  /** A later value that was sent and never answered: it may be there or not. */
  readonly unanswered: string | undefined;
}

/** One connection and what was written over it, one request at a time. Writes are numbered from 0. */
class LoadClient {
  readonly connection: RedisConnection;
  readonly #prefix: string;
  readonly #onError: (error: string) => void;
  /** By key: number of the last acknowledged write, -1 for none. */
  readonly #acknowledged: Int32Array;
  #next = 0;
  #unanswered: number | undefined;
  ackedWrites = 0;

  constructor(
    connection: RedisConnection,
    { prefix, keysMax, onError }: { prefix: string; keysMax: number; onError: (error: string) => void },
  ) {
    this.connection = connection;
    this.#prefix = prefix;
    this.#onError = onError;
    this.#acknowledged = new Int32Array(keysMax).fill(-1);
  }

  /** Undefined when the write was not acknowledged. */
  async write(): Promise<RequestTiming | undefined> {
    const number = this.#next;
    this.#next += 1;
    this.#unanswered = number;
    const key = number % this.#acknowledged.length;
    const sentMs = monotonicMs();
    try {
      const reply = await this.connection.call('SET', this.#keyOf(key), this.#valueOf(number));
      const repliedMs = monotonicMs();
      this.#unanswered = undefined;
      if (reply === 'OK') {
        this.#acknowledged[key] = number;
        this.ackedWrites += 1;
        return { sentMs, repliedMs };
      }
      this.#onError(
        reply instanceof RedisErrorReply ? reply.message : `SET was answered ${JSON.stringify(reply)}`,
      );
    } catch (thrown) {
      this.#onError(messageOf(thrown));
    }
    return undefined;
  }

  *expectations(batch: number): Generator<Expectation[]> {
    const used = Math.min(this.#next, this.#acknowledged.length);
    for (let first = 0; first < used; first += batch) {
      const keys = [...this.#acknowledged.subarray(first, Math.min(first + batch, used)).entries()];
      const expected = keys.flatMap(([offset, number]) =>
        number < 0 ? [] : [this.#expect(first + offset, number)],
      );
      if (expected.length > 0) yield expected;
    }
  }

  #expect(key: number, number: number): Expectation {
    const open = this.#unanswered;
    const mayHaveOpen = open !== undefined && open % this.#acknowledged.length === key;
    return {
      key: this.#keyOf(key),
      acknowledged: this.#valueOf(number),
      unanswered: mayHaveOpen ? this.#valueOf(open) : undefined,
    };
  }

  #keyOf(key: number): string {
    return `${this.#prefix}:${key}`;
  }

  #valueOf(number: number): string {
    return `${this.#prefix}=${number}`;
  }
}

function textOf(reply: Reply | undefined): string | null {
  return typeof reply === 'string' ? reply : null;
}
