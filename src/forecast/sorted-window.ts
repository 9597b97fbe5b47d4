import { assert } from '../base/assert.ts';

/** The last finite values of a series, in the order of time and sorted, for exact quantiles. Bounded work per value. */
export class SortedWindow {
  readonly #ring: Float64Array;
  readonly #sorted: Float64Array;
  #count = 0;

  constructor(capacity: number) {
    assert(capacity > 0, 'a window holds at least one value');
    this.#ring = new Float64Array(capacity);
    this.#sorted = new Float64Array(capacity);
  }

  get length(): number {
    return Math.min(this.#count, this.#ring.length);
  }

  /** The oldest value leaves when it is full. `value` is finite. */
  push(value: number): void {
    const slot = this.#count % this.#ring.length;
    const filled = this.length;
    let kept = filled;
    if (filled === this.#ring.length) {
      const leaving = this.#rank(this.#ring[slot] ?? 0, filled);
      this.#sorted.copyWithin(leaving, leaving + 1, filled);
      kept -= 1;
    }
    const at = this.#rank(value, kept);
    this.#sorted.copyWithin(at + 1, at, kept);
    this.#sorted[at] = value;
    this.#ring[slot] = value;
    this.#count += 1;
  }

  /** The value that a share of the others is below; 0 … 1. NaN in an empty window. */
  quantile(share: number): number {
    const last = this.length - 1;
    return this.#sorted[Math.min(last, Math.floor(share * this.length))] ?? Number.NaN;
  }

  /** The mean of all values. NaN in an empty window. */
  mean(): number {
    const { length } = this;
    let mean = 0;
    for (let index = 0; index < length; index += 1) mean += (this.#sorted[index] ?? 0) / length;
    return length === 0 ? Number.NaN : mean;
  }

  /** From the oldest to the newest. */
  values(): Float64Array {
    const { length } = this;
    const first = this.#count - length;
    return Float64Array.from({ length }, (_, index) => this.#ring[(first + index) % this.#ring.length] ?? 0);
  }

  /** Where a value stands among the first `length` sorted ones: how many of them are smaller. */
  #rank(value: number, length: number): number {
    let low = 0;
    let high = length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.#sorted[middle] ?? 0) < value) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
