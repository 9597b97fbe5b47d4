import type { Sample } from './sample.ts';

/** A sample, and how many before it the subscriber has lost because it was too slow. */
export interface FedSample {
  readonly sample: Sample;
  readonly lost: number;
}

export interface SubscribeOptions {
  /** So many wait for the subscriber; then the oldest are lost. */
  readonly samplesMax: number;
  /** There is something to take. */
  readonly onSample: () => void;
}

/** Samples as they are taken, told to those who want them: nobody asks again and again. */
export class SampleFeed {
  readonly #subscribers = new Set<SampleSubscription>();
  #last: Sample | undefined;

  get last(): Sample | undefined {
    return this.#last;
  }

  get subscribers(): number {
    return this.#subscribers.size;
  }

  publish(sample: Sample): void {
    this.#last = sample;
    for (const subscriber of [...this.#subscribers]) subscriber.offer(sample);
  }

  /** From the next sample on, until it is disposed of. */
  subscribe(options: SubscribeOptions): SampleSubscription {
    const subscription: SampleSubscription = new SampleSubscription(options, () =>
      this.#subscribers.delete(subscription),
    );
    this.#subscribers.add(subscription);
    return subscription;
  }
}

/** What waits for one subscriber. */
export class SampleSubscription implements Disposable {
  readonly #options: SubscribeOptions;
  readonly #leave: () => void;
  readonly #waiting: Sample[] = [];
  #lost = 0;

  constructor(options: SubscribeOptions, leave: () => void) {
    this.#options = options;
    this.#leave = leave;
  }

  offer(sample: Sample): void {
    this.#waiting.push(sample);
    if (this.#waiting.length > this.#options.samplesMax) {
      this.#waiting.shift();
      this.#lost += 1;
    }
    this.#options.onSample();
  }

  /** The oldest one that waits. */
  take(): FedSample | undefined {
    const sample = this.#waiting.shift();
    if (sample === undefined) return undefined;
    const lost = this.#lost;
    this.#lost = 0;
    return { sample, lost };
  }

  [Symbol.dispose](): void {
    this.#leave();
    this.#waiting.length = 0;
  }
}
