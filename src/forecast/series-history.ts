import { assert } from '../base/assert.ts';

/** The last values of a series at equal steps; older ones are forgotten. A step without a value is NaN. */
export class SeriesHistory {
  readonly stepMs: number;
  readonly #values: Float64Array;
  #count = 0;
  #lastStartMs = Number.NaN;

  constructor({ stepMs, capacity }: { readonly stepMs: number; readonly capacity: number }) {
    assert(stepMs > 0 && capacity > 0, 'a history has steps and holds at least one value');
    this.stepMs = stepMs;
    this.#values = new Float64Array(capacity);
  }

  /** How many values it holds, missing ones included. */
  get length(): number {
    return Math.min(this.#count, this.#values.length);
  }

  get capacity(): number {
    return this.#values.length;
  }

  /** How many steps it was given since the beginning. */
  get count(): number {
    return this.#count;
  }

  /** When the last step began: Unix time in ms, UTC. NaN before the first. */
  get lastStartMs(): number {
    return this.#lastStartMs;
  }

  /** Takes the value of the step after the last one. `startMs` is where that step begins. */
  push(value: number, startMs: number): void {
    this.#values[this.#count % this.#values.length] = Number.isFinite(value) ? value : Number.NaN;
    this.#count += 1;
    this.#lastStartMs = startMs;
  }

  /** Puts back what another one held: `values` are its last ones, oldest first, of `count` in all. */
  restore(values: ArrayLike<number>, { count, lastStartMs }: { count: number; lastStartMs: number }): void {
    assert(this.#count === 0, 'a history is restored before it is given values');
    assert(values.length <= count && values.length <= this.capacity, 'a history holds what is restored');
    this.#count = count - values.length;
    for (let index = 0; index < values.length; index += 1)
      this.push(values[index] ?? Number.NaN, lastStartMs);
  }

  /** The value of `stepsAgo` steps ago, 0 is the last one; NaN where it is missing or forgotten. */
  at(stepsAgo: number): number {
    if (stepsAgo < 0 || stepsAgo >= this.length) return Number.NaN;
    return this.#values[(this.#count - 1 - stepsAgo) % this.#values.length] ?? Number.NaN;
  }
}
