import type { Clock } from '../base/clock.ts';
import { errorFacts } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import type { Sample } from '../telemetry/sample.ts';
import type { SeriesStore } from '../telemetry/series-store.ts';

const FLUSH_EVERY_MS = 1000;
/** Samples that wait for a store that is slow; the oldest are lost beyond that. A minute of 1,000 VMs. */
const WAITING_MAX = 60_000;
/** A store that fails goes on to: it is told this often. */
const QUIET_MS = 60_000;

export interface SeriesWriterOptions {
  readonly store: SeriesStore;
  readonly clock: Clock;
  readonly log: Logger;
}

/** Brings samples to the store, together once a second, one batch at a time. Nothing that takes samples waits for it. */
export class SeriesWriter implements AsyncDisposable {
  readonly #options: SeriesWriterOptions;
  #waiting: Sample[] = [];
  #lost = 0;
  #cancel: (() => void) | undefined;
  #writing: Promise<void> | undefined;
  #toldAtMs = Number.NEGATIVE_INFINITY;

  constructor(options: SeriesWriterOptions) {
    this.#options = options;
  }

  take(sample: Sample): void {
    this.#waiting.push(sample);
    if (this.#waiting.length > WAITING_MAX) {
      this.#waiting.shift();
      this.#lost += 1;
    }
    if (this.#writing !== undefined || this.#cancel !== undefined) return;
    this.#cancel = this.#options.clock.after(FLUSH_EVERY_MS, () => {
      this.#cancel = undefined;
      void this.#flush();
    });
  }

  /** What waits is written first. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#cancel?.();
    this.#cancel = undefined;
    await this.#writing;
    if (this.#waiting.length > 0) await this.#flush();
  }

  async #flush(): Promise<void> {
    const batch = this.#waiting;
    this.#waiting = [];
    this.#writing = this.#write(batch);
    await this.#writing;
    this.#writing = undefined;
  }

  async #write(batch: readonly Sample[]): Promise<void> {
    const { store, clock, log } = this.#options;
    try {
      await store.append(batch);
    } catch (thrown) {
      this.#lost += batch.length;
      if (clock.nowMs() - this.#toldAtMs < QUIET_MS) return;
      this.#toldAtMs = clock.nowMs();
      log.warn('samples could not be kept', { lost: this.#lost, ...errorFacts(thrown) });
    }
  }
}
