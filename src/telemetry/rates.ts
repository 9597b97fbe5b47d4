import type { MetricName } from './metric.ts';
import type { Reading } from './metric-source.ts';

/** A reading, and when it was taken: milliseconds on a clock that never steps. */
export interface TimedReading {
  readonly reading: Reading;
  readonly atMs: number;
}

/**
 * Values of what was read: gauges as they are, counters as growth per second since the reading before. A counter that went
 * back, or that is of somebody else than before, began anew and says nothing yet. Never negative, never NaN.
 */
export function valuesOf(now: TimedReading, before: TimedReading | undefined): Record<MetricName, number> {
  const values: Record<MetricName, number> = {};
  for (const [name, value] of Object.entries(now.reading.gauges)) add(values, name, value);
  const seconds = before === undefined ? 0 : (now.atMs - before.atMs) / 1000;
  if (before === undefined || !(seconds > 0) || before.reading.of !== now.reading.of) return values;
  for (const [name, count] of Object.entries(now.reading.counters)) {
    const growth = count - (before.reading.counters[name] ?? Number.NaN);
    add(values, name, growth / seconds);
  }
  return values;
}

function add(values: Record<MetricName, number>, name: MetricName, value: number): void {
  if (!Number.isFinite(value) || value < 0) return;
  // Two clocks are behind a share, and they need not agree on the last microsecond.
  values[name] = name.endsWith('Share') ? Math.min(1, value) : value;
}
