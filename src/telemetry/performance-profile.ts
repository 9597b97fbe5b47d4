import { quantile } from '../base/sample-window.ts';
import type { MetricName } from './metric.ts';
import type { Sample } from './sample.ts';

/** What one metric was within a window; in its own unit. */
export interface ProfiledMetric {
  /** Samples that have it. */
  readonly count: number;
  readonly min: number;
  readonly mean: number;
  readonly max: number;
  readonly p50: number;
  readonly p95: number;
}

/** How a VM has been lately, as JSON for whoever decides something about it. */
export interface PerformanceProfile {
  readonly vm: string;
  /** See {@link Sample}: all samples are of this one. */
  readonly instanceId: string;
  /** Of the last sample: ISO 8601, host time. */
  readonly timestamp: string;
  /** Of the time that the samples are of. */
  readonly windowMs: number;
  readonly samples: number;
  readonly metrics: Readonly<Record<MetricName, ProfiledMetric>>;
}

/** The last samples of one VM. One of another instance begins a new window. */
export class ProfileWindow {
  readonly #samplesMax: number;
  #samples: Sample[] = [];

  constructor({ samplesMax }: { readonly samplesMax: number }) {
    this.#samplesMax = samplesMax;
  }

  add(sample: Sample): void {
    if (this.#samples.at(-1)?.instanceId !== sample.instanceId) this.#samples = [];
    this.#samples.push(sample);
    if (this.#samples.length > this.#samplesMax) this.#samples.shift();
  }

  /** Undefined while there is no sample. */
  profile(): PerformanceProfile | undefined {
    const last = this.#samples.at(-1);
    if (last === undefined) return undefined;
    const values = new Map<MetricName, number[]>();
    for (const sample of this.#samples) {
      for (const [name, value] of Object.entries(sample.values)) {
        const known = values.get(name);
        if (known === undefined) values.set(name, [value]);
        else known.push(value);
      }
    }
    return {
      ...{ vm: last.vm, instanceId: last.instanceId },
      timestamp: new Date(last.wallMs).toISOString(),
      windowMs: this.#samples.reduce((sum, { intervalMs }) => sum + intervalMs, 0),
      samples: this.#samples.length,
      metrics: Object.fromEntries([...values].map(([name, all]) => [name, profiled(all)])),
    };
  }
}

function profiled(values: readonly number[]): ProfiledMetric {
  const sorted = values.toSorted((a, b) => a - b);
  const min = sorted[0] ?? 0;
  const max = sorted.at(-1) ?? 0;
  // Divided first: a sum of large values may be more than a number can be. Rounding must not lead out of the range.
  const mean = sorted.reduce((sum, value) => sum + value / sorted.length, 0);
  return {
    ...{ count: sorted.length, min, mean: Math.min(max, Math.max(min, mean)), max },
    ...{ p50: quantile(sorted, 0.5), p95: quantile(sorted, 0.95) },
  };
}
