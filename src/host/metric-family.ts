import { type Metric, Registry } from 'prom-client';
import type { Histogram } from '../base/measurement.ts';

type Labels = Readonly<Record<string, string>>;

/** One value of a family; of a histogram, one of its lines. */
interface Series {
  readonly labels: Labels;
  readonly value: number;
  /** Of a histogram: the family's name with `_bucket`, `_sum` or `_count`. */
  readonly metricName?: string;
}

/** A metric with all that it says now. The values come from keepers, so that there is nothing to keep here. */
export interface MetricFamily {
  readonly name: string;
  readonly help: string;
  readonly type: 'counter' | 'gauge' | 'histogram';
  readonly series: readonly Series[];
}

/** The lines of one histogram. `scale` turns its unit into that of the family. */
export function histogramSeries(
  { bounds, counts, sum }: Histogram,
  { name, labels, scale }: { readonly name: string; readonly labels: Labels; readonly scale: number },
): Series[] {
  let below = 0;
  const buckets = counts.map((count, index) => {
    below += count;
    const bound = bounds[index];
    // Rounded, so that 0.0015 does not become 0.0015000000000000002: it is a name.
    const le = bound === undefined ? '+Inf' : String(Number((bound * scale).toPrecision(12)));
    return { metricName: `${name}_bucket`, labels: { ...labels, le }, value: below };
  });
  return [
    ...buckets,
    { metricName: `${name}_sum`, labels, value: sum * scale },
    { metricName: `${name}_count`, labels, value: below },
  ];
}

/** The text format of Prometheus. */
export async function expositionOf(families: readonly MetricFamily[]): Promise<string> {
  const registry = new Registry();
  for (const { series, ...family } of families) {
    // All that the registry asks of a metric; the library's own ones cannot be given values that were counted elsewhere.
    const metric = { ...family, get: async () => ({ ...family, values: series }) };
    registry.registerMetric(metric as unknown as Metric);
  }
  return await registry.metrics();
}
