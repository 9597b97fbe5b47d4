import { CliError } from './cli-error.ts';

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** Ctrl-C and its kin, while a command has something to put in order before it ends. */
export class Interruption implements Disposable {
  readonly #controller = new AbortController();
  readonly #onSignal: (signal: NodeJS.Signals) => void;
  #again: () => void = () => {};

  constructor() {
    this.#onSignal = (signal) => {
      if (this.#controller.signal.aborted) this.#again();
      this.#controller.abort(
        new CliError('CLI_INTERRUPTED', `interrupted by ${signal}`, { facts: { signal } }),
      );
    };
    for (const signal of SIGNALS) process.on(signal, this.#onSignal);
  }

  /** Aborted with CLI_INTERRUPTED as its reason. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Runs `task` when the person insists. */
  onSecond(task: () => void): void {
    this.#again = task;
  }

  /** The result of `work`, or CLI_INTERRUPTED if that comes first. The work itself goes on. */
  async orInterrupted<Result>(work: Promise<Result>): Promise<Result> {
    this.signal.throwIfAborted();
    const { promise, reject } = Promise.withResolvers<never>();
    const interrupt = () => reject(this.signal.reason);
    this.signal.addEventListener('abort', interrupt);
    try {
      return await Promise.race([work, promise]);
    } finally {
      this.signal.removeEventListener('abort', interrupt);
    }
  }

  [Symbol.dispose](): void {
    for (const signal of SIGNALS) process.off(signal, this.#onSignal);
  }
}
