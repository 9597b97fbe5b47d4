import { assert } from './assert.ts';

/** The last samples of a measurement, for quantiles of the recent past, with count, sum and maximum since the start. */
export class SampleWindow {
  readonly #samples: Float64Array;
  #count = 0;
  #sum = 0;
  #max = 0;

  constructor(capacity: number) {
    assert(capacity > 0, 'a sample window holds at least one sample');
    this.#samples = new Float64Array(capacity);
  }

  get count(): number {
    return this.#count;
  }

  get sum(): number {
    return this.#sum;
  }

  add(sample: number): void {
    this.#samples[this.#count % this.#samples.length] = sample;
    this.#count += 1;
    this.#sum += sample;
    this.#max = Math.max(this.#max, sample);
  }

  /** Quantiles of the samples in the window; `max` since the start. Zeros while there is no sample. */
  summary(): SampleSummary {
    const recent = this.#samples.slice(0, Math.min(this.#count, this.#samples.length)).sort();
    return { count: this.#count, p50: quantile(recent, 0.5), p99: quantile(recent, 0.99), max: this.#max };
  }
}

export interface SampleSummary {
  readonly count: number;
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

/** The smallest sample that at least the share `q` of all samples does not exceed (nearest rank). */
export function quantile(sorted: ArrayLike<number>, q: number): number {
  if (sorted.length === 0) return 0;
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil(q * sorted.length) - 1))] ?? 0;
}
