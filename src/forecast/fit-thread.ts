import { Worker } from 'node:worker_threads';
import type { FitScheduler } from './fitted-method.ts';
import type { FitRequest } from './seasonal-fit.ts';

interface Waiting {
  readonly request: FitRequest;
  readonly done: (points: Float64Array | undefined) => void;
}

/**
 * A thread that makes fits one after another, in the order in which they were asked for. What is asked for while the queue is
 * full is refused at once: a series asks again an hour later. A thread that dies refuses what it was at, and the next one goes on.
 */
export class FitThread implements AsyncDisposable {
  readonly #waiting: Waiting[] = [];
  readonly #waitingMax: number;
  #worker: Worker | undefined;
  #current: Waiting | undefined;
  #isClosed = false;

  constructor({ waitingMax = 1000 }: { readonly waitingMax?: number } = {}) {
    this.#waitingMax = waitingMax;
  }

  readonly schedule: FitScheduler = (request, done) => {
    if (this.#isClosed || this.#waiting.length >= this.#waitingMax) {
      done(undefined);
      return;
    }
    this.#waiting.push({ request, done });
    this.#next();
  };

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true;
    const refused = this.#waiting.splice(0);
    await this.#worker?.terminate();
    this.#answer(undefined);
    for (const { done } of refused) done(undefined);
  }

  #next(): void {
    if (this.#current !== undefined || this.#isClosed) return;
    this.#current = this.#waiting.shift();
    if (this.#current === undefined) return;
    this.#worker ??= this.#start();
    this.#worker.postMessage(this.#current.request);
  }

  #start(): Worker {
    const worker = new Worker(new URL('./seasonal-fit-worker.ts', import.meta.url));
    // Nobody waits for a forecast when the process has nothing else to do.
    worker.unref();
    worker.on('message', (points: Float64Array | undefined) => {
      this.#answer(points);
      this.#next();
    });
    // What it died of is told by the fit that is missing. 'exit' follows.
    worker.on('error', () => undefined);
    worker.on('exit', () => {
      this.#worker = undefined;
      this.#answer(undefined);
      this.#next();
    });
    return worker;
  }

  #answer(points: Float64Array | undefined): void {
    const answered = this.#current;
    this.#current = undefined;
    answered?.done(points);
  }
}
