import { describe, expect, it } from 'vitest';
import { GLOBAL_FEATURES, LEAD_FEATURES, LearntFeatures } from './learnt-features.ts';
import { LEVELS } from './quantile-forecast.ts';
import { SeriesHistory } from './series-history.ts';
import { syntheticWorkload } from './synthetic-workload.ts';

const STEP_MS = 300_000;
const DAY = 288;
const MONDAY_MS = Date.UTC(2018, 0, 1);

function featuresOf(
  values: Iterable<number>,
  companion?: Float64Array,
): { globals: number[]; lead: number[] } {
  const history = new SeriesHistory({ stepMs: STEP_MS, capacity: 4032 });
  const other = new SeriesHistory({ stepMs: STEP_MS, capacity: 4 });
  const series = { stepMs: STEP_MS, levels: LEVELS, history };
  const features = new LearntFeatures(companion === undefined ? series : { ...series, companion: other });
  let step = 0;
  for (const value of values) {
    history.push(value, MONDAY_MS + step * STEP_MS);
    other.push(companion?.[step] ?? Number.NaN, MONDAY_MS + step * STEP_MS);
    features.update(value);
    step += 1;
  }
  const globals = new Float64Array(GLOBAL_FEATURES).fill(Number.NaN);
  const lead = new Float64Array(LEAD_FEATURES).fill(Number.NaN);
  features.globals(globals);
  features.lead(12, lead);
  return { globals: [...globals], lead: [...lead] };
}

describe('features', () => {
  const { values, companion } = syntheticWorkload({ kind: 'mixed', seed: 5, steps: 9 * DAY, gapShare: 0.02 });

  it('are all there, and finite, from the first value on', () => {
    for (const length of [1, 2, 40, 300, values.length]) {
      const { globals, lead } = featuresOf(values.subarray(0, length), companion);
      expect([...globals, ...lead].every(Number.isFinite)).toBe(true);
    }
  });

  it('do not depend on the unit of the series', () => {
    const one = featuresOf(values);
    const other = featuresOf(values.map((value) => 1024 * value));
    expect(other).toEqual(one);
  });

  it('do not move with the level, but for the one that says how high it is', () => {
    const one = featuresOf(values).globals;
    const other = featuresOf(values.map((value) => value + 100)).globals;
    const moved = one.flatMap((feature, index) =>
      Math.abs(feature - (other[index] ?? 0)) > 1e-6 ? [index] : [],
    );
    expect(moved).toHaveLength(1);
  });

  it('tell a daily series by its distance from yesterday, and what was then', () => {
    const daily = Array.from({ length: 3 * DAY }, (_, step) => Math.sin((2 * Math.PI * step) / DAY));
    const { lead } = featuresOf(daily);
    const mean = (2 / Math.PI) * 1;
    expect(lead[3]).toBeCloseTo(Math.sin((2 * Math.PI * 11) / DAY) / mean, 0);
  });

  it('have those of another metric where there is one', () => {
    const differ = (one: readonly number[], other: readonly number[]) =>
      one.flatMap((feature, index) => (feature === other[index] ? [] : [index])).length;
    expect(differ(featuresOf(values).globals, featuresOf(values, companion).globals)).toBe(3);
  });
});
