import type { Clock } from '../base/clock.ts';

/** A clock that stands still until it is told how far to go. */
export class SteppedClock implements Clock {
  #nowMs: number;
  #wallMs: number;
  readonly #due = new Set<{ readonly atMs: number; readonly task: () => void }>();

  constructor({ nowMs = 1000, wallMs = 1_700_000_000_000 } = {}) {
    this.#nowMs = nowMs;
    this.#wallMs = wallMs;
  }

  nowMs(): number {
    return this.#nowMs;
  }

  wallMs(): number {
    return this.#wallMs;
  }

  setWall(wallMs: number): void {
    this.#wallMs = wallMs;
  }

  get waiting(): number {
    return this.#due.size;
  }

  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => this.after(ms, resolve));
  }

  after(ms: number, task: () => void): () => void {
    const entry = { atMs: this.#nowMs + Math.max(0, ms), task };
    this.#due.add(entry);
    return () => this.#due.delete(entry);
  }

  /** Everything that falls due on the way happens in its order, with all that follows from it at once. */
  async go(ms: number): Promise<void> {
    const endMs = this.#nowMs + ms;
    await settle();
    for (;;) {
      const next = [...this.#due].sort((a, b) => a.atMs - b.atMs)[0];
      if (next === undefined || next.atMs > endMs) break;
      this.#due.delete(next);
      this.pass(Math.max(0, next.atMs - this.#nowMs));
      next.task();
      await settle();
    }
    this.pass(endMs - this.#nowMs);
  }

  /** Time goes by and nobody is told: somebody keeps the thread busy. */
  pass(ms: number): void {
    this.#nowMs += ms;
    this.#wallMs += ms;
  }
}

async function settle(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve));
}
