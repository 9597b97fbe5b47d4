import { constants } from 'node:os';
import type { Vitest } from 'vitest/node';

/** For tests that run to come to their end and tidy up by themselves. */
const PATIENCE_MS = 10_000;
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** Somebody wants the suite to end: tests that run may finish for a moment, others are not begun. A second signal is not patient. */
export class Interruption {
  /** Resolves when nothing is waited for any more. */
  readonly forced: Promise<undefined>;
  readonly #force: () => void;
  #signal: NodeJS.Signals | undefined;
  #vitest: Vitest | undefined;

  constructor() {
    const { promise, resolve } = Promise.withResolvers<undefined>();
    this.forced = promise;
    this.#force = () => resolve(undefined);
    this.#listen();
  }

  /** The one that came first, if any did. */
  get signal(): NodeJS.Signals | undefined {
    return this.#signal;
  }

  /** As of a program that the signal has ended. */
  get exitCode(): number {
    return 128 + (this.#signal === undefined ? 0 : constants.signals[this.#signal]);
  }

  /** Whose tests are ended. */
  watch(vitest: Vitest): void {
    this.#vitest = vitest;
    this.#listen();
    if (this.#signal !== undefined) void vitest.cancelCurrentRun('keyboard-input');
  }

  /** Alone: vitest would end this process at once, with all that is left. */
  #listen(): void {
    for (const signal of SIGNALS) {
      process.removeAllListeners(signal);
      process.on(signal, () => this.#take(signal));
    }
  }

  #take(signal: NodeJS.Signals): void {
    if (this.#signal !== undefined) {
      this.#force();
      return;
    }
    this.#signal = signal;
    console.error(`\n${signal}: tests that run have ${PATIENCE_MS / 1000} s to end; once more ends them now`);
    void this.#vitest?.cancelCurrentRun('keyboard-input');
    setTimeout(this.#force, PATIENCE_MS);
  }
}
