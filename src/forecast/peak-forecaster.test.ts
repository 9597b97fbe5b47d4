import { expect, test } from 'vitest';
import { PeakForecaster } from './peak-forecaster.ts';
import { syntheticWorkload, type WorkloadKind } from './synthetic-workload.ts';

const stepMs = 300_000;
const HOUR = 12;
const DAY = 24 * HOUR;

/** Share of the hours of the last 6 of 20 days whose peak was at or below the stated quantile. */
function coverage(kind: WorkloadKind, level: number): number {
  const { values, startMs } = syntheticWorkload({ kind, seed: 5, steps: 20 * DAY, stepMs });
  const forecaster = new PeakForecaster({ stepMs, horizonMs: HOUR * stepMs });
  const column = forecaster.levels.indexOf(level);
  let covered = 0;
  let hours = 0;
  for (const [at, value] of values.entries()) {
    if (at >= 14 * DAY && at % HOUR === 0) {
      hours += 1;
      const stated = forecaster.predict()?.[column] ?? 0;
      if (Math.max(...values.subarray(at, at + HOUR)) <= stated + 1e-9) covered += 1;
    }
    forecaster.update(value, startMs + at * stepMs);
  }
  return covered / hours;
}

test.each(['daily', 'office', 'bursts', 'mixed'] as const)(
  'of hours of %s work, about nine of ten stay below the quantile 0.9 of their peak',
  (kind) => {
    expect(coverage(kind, 0.9)).toBeGreaterThan(0.8);
    expect(coverage(kind, 0.9)).toBeLessThan(0.99);
    // The control: a lower quantile is exceeded more often.
    expect(coverage(kind, 0.5)).toBeLessThan(0.8);
  },
);

test('before the first value nothing is said', () => {
  const forecaster = new PeakForecaster({ stepMs, horizonMs: HOUR * stepMs });
  expect(forecaster.predict()).toBeUndefined();
  forecaster.update(Number.NaN, 0);
  expect(forecaster.predict()).toBeUndefined();
  for (let at = 1; at < 20; at += 1) forecaster.update(7, at * stepMs);
  expect(forecaster.predict()?.[0]).toBeCloseTo(7, 0);
});
