import { HOUR_MS, STEP_MS } from '../../src/telemetry/buckets.ts';
import type { Sample } from '../../src/telemetry/sample.ts';
import type { Bucket, RangeQuery } from '../../src/telemetry/series-store.ts';

/** What a series store answers, said as plainly as it can be: all samples in a map. */
export class ReferenceSeries {
  readonly #series = new Map<string, Map<string, Map<number, number>>>();

  append(samples: readonly Sample[]): void {
    for (const { vm, wallMs, values } of samples)
      for (const [metric, value] of Object.entries(values)) {
        const ofVm = this.#series.get(vm) ?? new Map<string, Map<number, number>>();
        this.#series.set(vm, ofVm);
        const points = ofVm.get(metric) ?? new Map<number, number>();
        ofVm.set(metric, points);
        if (!points.has(wallMs)) points.set(wallMs, value);
      }
  }

  range({ vm, metric, fromMs, toMs, resolution }: RangeQuery): Bucket[] {
    const stepMs = STEP_MS[resolution];
    const values = new Map<number, number[]>();
    for (const [wallMs, value] of this.#series.get(vm)?.get(metric) ?? []) {
      const startMs = wallMs - (wallMs % stepMs);
      if (startMs >= fromMs && startMs < toMs) values.set(startMs, [...(values.get(startMs) ?? []), value]);
    }
    return [...values].sort(([a], [b]) => a - b).map(([startMs, all]) => summary(startMs, all));
  }

  metrics(vm: string): string[] {
    return [...(this.#series.get(vm)?.keys() ?? [])].sort();
  }

  forget(vm: string): void {
    this.#series.delete(vm);
  }
}

function summary(startMs: number, values: readonly number[]): Bucket {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (share: number) => {
    const rank = share * (sorted.length - 1);
    const [low = 0, high = 0] = [sorted[Math.floor(rank)], sorted[Math.ceil(rank)]];
    return low + (high - low) * (rank % 1);
  };
  const mean = sorted.reduce((sum, value) => sum + value / sorted.length, 0);
  return {
    startMs,
    count: sorted.length,
    min: at(0),
    mean,
    max: at(1),
    p50: at(0.5),
    p90: at(0.9),
    p99: at(0.99),
  };
}

/** What differs by more than a store may round: 1e-6 of the largest value; nothing in counts and moments. */
export function differences(found: readonly Bucket[], expected: readonly Bucket[]): string[] {
  const largest = Math.max(0, ...expected.flatMap(({ min, max }) => [Math.abs(min), Math.abs(max)]));
  const isClose = (a: number, b: number) => Math.abs(a - b) <= largest * 1e-6;
  const isSame = (a: Bucket | undefined, b: Bucket | undefined) =>
    a !== undefined &&
    b !== undefined &&
    a.startMs === b.startMs &&
    a.count === b.count &&
    (['min', 'mean', 'max', 'p50', 'p90', 'p99'] as const).every((key) => isClose(a[key], b[key]));
  return Array.from({ length: Math.max(found.length, expected.length) }, (_, index) => index)
    .filter((index) => !isSame(found[index], expected[index]))
    .map((index) => `${JSON.stringify(found[index])} instead of ${JSON.stringify(expected[index])}`);
}

/** The begin of an hour that ended long enough ago for buckets of it to be made. */
export function pastHourMs(wallMs: number): number {
  return Math.floor(wallMs / HOUR_MS) * HOUR_MS - 2 * HOUR_MS;
}
