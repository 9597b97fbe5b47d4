import { assert } from './assert.ts';
import { type SampleSummary, SampleWindow } from './sample-window.ts';

/** Buckets since the start: `counts[i]` samples are at most `bounds[i]` and above the bound before; the last count has no bound. */
export interface Histogram {
  readonly bounds: readonly number[];
  readonly counts: readonly number[];
  readonly sum: number;
}

/**
 * One measurement in both of its forms: quantiles of the recent past, for people, and buckets since the start, from
 * which a time series database makes quantiles over any time and over many VMs. A sample costs a few comparisons.
 */
export class Measurement {
  readonly #window: SampleWindow;
  readonly #bounds: readonly number[];
  readonly #counts: Float64Array;

  /** `bounds` grow; a sample counts where it is the first that is not exceeded. */
  constructor({ samples, bounds }: { readonly samples: number; readonly bounds: readonly number[] }) {
    assert(
      bounds.every((bound, index) => index === 0 || bound > (bounds[index - 1] ?? bound)),
      'bounds of buckets grow',
    );
    this.#window = new SampleWindow(samples);
    this.#bounds = bounds;
    this.#counts = new Float64Array(bounds.length + 1);
  }

  get count(): number {
    return this.#window.count;
  }

  /** Of all samples since the start. */
  get sum(): number {
    return this.#window.sum;
  }

  add(sample: number): void {
    this.#window.add(sample);
    let bucket = 0;
    while (bucket < this.#bounds.length && sample > (this.#bounds[bucket] ?? 0)) bucket += 1;
    this.#counts[bucket] = (this.#counts[bucket] ?? 0) + 1;
  }

  /** See {@link SampleWindow.summary}. */
  summary(): SampleSummary {
    return this.#window.summary();
  }

  histogram(): Histogram {
    return { bounds: this.#bounds, counts: [...this.#counts], sum: this.#window.sum };
  }
}
