import { Worker } from 'node:worker_threads';
import type { Sample } from './sample.ts';
import { packBatch } from './sample-batch.ts';
import { type Answered, type Asked, type EngineChoice, errorFrom, type Question } from './series-messages.ts';
import type { Bucket, RangeQuery, SeriesStore, StoreUsage } from './series-store.ts';
import { TelemetryError } from './telemetry-error.ts';

/** More would mean that the thread does not keep up: memory is not where samples wait. */
const PENDING_MAX = 256;

interface Waiting {
  readonly resolve: (result: unknown) => void;
  readonly reject: (error: TelemetryError) => void;
}

/** A series store in a thread of its own. What the caller does itself is to pack samples: 3 ms for 25,000. */
export class ThreadedSeriesStore implements SeriesStore {
  readonly #worker: Worker;
  readonly #ended: Promise<void>;
  readonly #waiting = new Map<number, Waiting>();
  #nextNumber = 1;
  #end: TelemetryError | undefined;

  private constructor(choice: EngineChoice) {
    this.#worker = new Worker(new URL('series-store-worker.ts', import.meta.url), { workerData: choice });
    this.#worker.on('message', (answered: Answered) => this.#answered(answered));
    this.#worker.on('error', (cause) => this.#failAll(cause));
    this.#ended = new Promise((resolve) => {
      this.#worker.once('exit', () => {
        this.#failAll();
        resolve();
      });
    });
  }

  /** @throws TelemetryError as the kind of store does */
  static async open(choice: EngineChoice): Promise<ThreadedSeriesStore> {
    const store = new ThreadedSeriesStore(choice);
    await new Promise((resolve, reject) => store.#waiting.set(0, { resolve, reject }));
    return store;
  }

  async append(samples: readonly Sample[]): Promise<void> {
    const batch = packBatch(samples);
    await this.#ask({ kind: 'append', batch }, [batch.buffer]);
  }

  async range(query: RangeQuery): Promise<readonly Bucket[]> {
    return (await this.#ask({ kind: 'range', query })) as readonly Bucket[];
  }

  async metrics(vm: string): Promise<readonly string[]> {
    return (await this.#ask({ kind: 'metrics', vm })) as readonly string[];
  }

  async forget(vm: string): Promise<void> {
    await this.#ask({ kind: 'forget', vm });
  }

  async usage(): Promise<StoreUsage> {
    return (await this.#ask({ kind: 'usage' })) as StoreUsage;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#end === undefined) {
      const closing = this.#ask({ kind: 'close' });
      this.#end = new TelemetryError('TELEMETRY_STORE_CLOSED', 'the series store is closed');
      await closing.catch(() => {});
    }
    await this.#ended;
  }

  #ask(question: Question, transferred: ArrayBuffer[] = []): Promise<unknown> {
    if (this.#end !== undefined) return Promise.reject(this.#end);
    if (this.#waiting.size >= PENDING_MAX && question.kind !== 'close') {
      const message = `${PENDING_MAX} calls wait for the series store`;
      return Promise.reject(
        new TelemetryError('TELEMETRY_STORE_FAILED', message, { hint: 'See whether its disk is too slow.' }),
      );
    }
    const number = this.#nextNumber;
    this.#nextNumber += 1;
    return new Promise((resolve, reject) => {
      this.#waiting.set(number, { resolve, reject });
      const asked: Asked = { number, question };
      this.#worker.postMessage(asked, transferred);
    });
  }

  #answered(answered: Answered): void {
    const waiting = this.#waiting.get(answered.number);
    this.#waiting.delete(answered.number);
    if (answered.kind === 'done') waiting?.resolve(answered.result);
    else waiting?.reject(errorFrom(answered.error));
  }

  #failAll(cause?: unknown): void {
    this.#end ??= new TelemetryError('TELEMETRY_STORE_FAILED', 'the thread that keeps series has ended', {
      hint: 'Restart the daemon; its log says why, where it could.',
      cause,
    });
    for (const { reject } of this.#waiting.values()) reject(this.#end);
    this.#waiting.clear();
  }
}
