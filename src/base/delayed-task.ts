import type { Clock } from './clock.ts';

/** At most one task that begins after a while and can be called off at any time. */
export class DelayedTask {
  readonly #clock: Clock;
  #cancelTimer: () => void = () => {};
  #running: { readonly abort: AbortController; readonly done: Promise<void> } | undefined;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** The task takes care of its own errors, and ends soon after its signal is aborted. */
  schedule(afterMs: number, task: (signal: AbortSignal) => Promise<void>): void {
    this.#cancelTimer();
    this.#cancelTimer = this.#clock.after(afterMs, () => {
      const abort = new AbortController();
      this.#running = { abort, done: task(abort.signal) };
    });
  }

  /** Resolves when the task has ended or will never begin. */
  async cancel(): Promise<void> {
    this.#cancelTimer();
    const running = this.#running;
    this.#running = undefined;
    running?.abort.abort();
    await running?.done;
  }
}
