import type { Clock } from './clock.ts';

/** Sleeping shorter than that costs more than it spares. */
const REST_MS_MIN = 2;

/** Keeps work that is done in pieces to a share of this thread's time: what else waits for it gets the rest. */
export class WorkPace {
  readonly #clock: Clock;
  readonly #share: number;
  #owedMs = 0;

  constructor(clock: Clock, { share }: { share: number }) {
    this.#clock = clock;
    this.#share = share;
  }

  /** Does a piece, which must not wait for anything, and then gives way for as long as it has to. */
  async work<Result>(piece: () => Result): Promise<Result> {
    const startMs = this.#clock.nowMs();
    const result = piece();
    this.#owedMs += ((this.#clock.nowMs() - startMs) * (1 - this.#share)) / this.#share;
    if (this.#owedMs >= REST_MS_MIN) {
      await this.#clock.sleep(this.#owedMs);
      this.#owedMs = 0;
    } else await new Promise<void>((resolve) => setImmediate(resolve));
    return result;
  }
}
