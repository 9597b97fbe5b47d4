import type { Points } from './buckets.ts';

/** The newest samples of all series, in the order in which they came. What is here is in the log on disk as well. */
export class SeriesHead {
  readonly #series = new Map<number, { readonly times: number[]; readonly values: number[] }>();
  #count = 0;

  /** Samples of all series. */
  get count(): number {
    return this.#count;
  }

  add(series: number, timeMs: number, value: number): void {
    const points = this.#series.get(series);
    if (points === undefined) this.#series.set(series, { times: [timeMs], values: [value] });
    else {
      points.times.push(timeMs);
      points.values.push(value);
    }
    this.#count += 1;
  }

  get(series: number): Points | undefined {
    return this.#series.get(series);
  }

  remove(series: number): void {
    this.#count -= this.#series.get(series)?.times.length ?? 0;
    this.#series.delete(series);
  }

  /** The first `count` series. */
  some(count: number): [series: number, points: Points][] {
    const some: [number, Points][] = [];
    for (const entry of this.#series) {
      if (some.length === count) break;
      some.push(entry);
    }
    return some;
  }
}
