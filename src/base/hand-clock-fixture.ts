import type { Clock } from './clock.ts';

/** Goes on when it is told to, and calls what falls due. */
export class HandClock {
  #nowMs = 0;
  #due: { readonly atMs: number; readonly task: () => void }[] = [];

  readonly clock: Clock = {
    nowMs: () => this.#nowMs,
    wallMs: () => this.#nowMs,
    sleep: async () => {},
    after: (ms, task) => {
      const entry = { atMs: this.#nowMs + ms, task };
      this.#due.push(entry);
      return () => {
        this.#due = this.#due.filter((other) => other !== entry);
      };
    },
  };

  get waiting(): number {
    return this.#due.length;
  }

  go(ms: number): void {
    const endMs = this.#nowMs + ms;
    for (;;) {
      const next = this.#due.toSorted((a, b) => a.atMs - b.atMs)[0];
      if (next === undefined || next.atMs > endMs) break;
      this.#due = this.#due.filter((other) => other !== next);
      this.#nowMs = next.atMs;
      next.task();
    }
    this.#nowMs = endMs;
  }
}
