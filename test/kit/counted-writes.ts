import { systemClock as clock } from '../../src/base/clock.ts';
import type { RedisLoad } from '../../src/demo/redis-load.ts';

const POLL_MS = 2;

/** The first client's writes, one after the other: at any moment it is known how many were acknowledged, and one more was sent. */
export class CountedWrites implements Disposable {
  #acknowledged = 0;
  #failure: unknown;
  #wanted = true;

  constructor(load: RedisLoad) {
    this.#write(load).catch((thrown: unknown) => {
      this.#failure = thrown;
    });
  }

  get acknowledged(): number {
    return this.#acknowledged;
  }

  /** Some more have been acknowledged. */
  async more(count: number): Promise<void> {
    const enough = this.#acknowledged + count;
    while (this.#acknowledged < enough) {
      if (this.#failure !== undefined) throw this.#failure;
      await clock.sleep(POLL_MS);
    }
  }

  [Symbol.dispose](): void {
    this.#wanted = false;
  }

  async #write(load: RedisLoad): Promise<void> {
    while (this.#wanted) {
      await load.paced({ requests: 1, gapMs: 0 });
      this.#acknowledged += 1;
    }
  }
}
