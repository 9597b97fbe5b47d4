import type { Clock } from '../base/clock.ts';
import { ControlClient } from '../control/control-client.ts';
import { controlSocketOf } from '../control/run-directory.ts';
import type { FedSample } from '../telemetry/sample-feed.ts';

/** A keeper that gives no samples (it keeps a shadow, is busy, or knows of none) is asked again after so long. */
const RETRY_MS = 2000;

export interface SampleWatchOptions {
  readonly vm: string;
  readonly clock: Clock;
  readonly onSample: (fed: FedSample) => void;
}

/** Takes the samples of one VM from its keeper, on a connection of their own, until it is disposed of. */
export class SampleWatch implements Disposable {
  readonly #options: SampleWatchOptions;
  readonly #abort = new AbortController();
  #client: ControlClient | undefined;

  constructor(options: SampleWatchOptions) {
    this.#options = options;
    void this.#listen();
  }

  [Symbol.dispose](): void {
    this.#abort.abort();
    this.#client?.[Symbol.dispose]();
  }

  async #listen(): Promise<void> {
    const { signal } = this.#abort;
    while (!signal.aborted) {
      await this.#follow().catch(() => {});
      await this.#options.clock.sleep(RETRY_MS, signal).catch(() => {});
    }
  }

  async #follow(): Promise<void> {
    const { vm, clock, onSample } = this.#options;
    using client = await ControlClient.connect(controlSocketOf(vm), { vm, clock });
    this.#client = client;
    if (this.#abort.signal.aborted) return;
    // A keeper speaks for its own VM only.
    for await (const fed of client.samples()) if (fed.sample.vm === vm) onSample(fed);
  }
}
