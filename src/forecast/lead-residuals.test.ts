import { describe, expect, it } from 'vitest';
import { seededRandom } from '../base/seeded-random.ts';
import { LeadResiduals } from './lead-residuals.ts';
import { readState, writeState } from './model-state.ts';
import { LEVELS } from './quantile-forecast.ts';

/** Residuals of a forecast of 0 in the middle of -1 … 1, evenly spread, or of `values`. */
function fed(steps: number, valueAt: (step: number) => number): LeadResiduals {
  const residuals = new LeadResiduals();
  for (let step = 0; step < steps; step += 1) {
    residuals.update(valueAt(step), (leads, into) => {
      into.fill(0, 0, leads.length);
      return true;
    });
  }
  return residuals;
}

const random = seededRandom(8);
const even = Array.from({ length: 5000 }, () => 2 * random() - 1);
const quantiles = (residuals: LeadResiduals, leads: readonly number[]) => {
  const into = new Float64Array(leads.length * LEVELS.length);
  const known = residuals.spread(new Float64Array(leads.length), { leads, levels: LEVELS, into });
  return known
    ? leads.map((_, row) => [...into.subarray(row * LEVELS.length, (row + 1) * LEVELS.length)])
    : [];
};

describe('residuals by lead', () => {
  it('tell the quantiles of what a forecast was wrong by, at each lead', () => {
    for (const row of quantiles(
      fed(5000, (step) => even[step] ?? 0),
      [1, 2, 12, 48, 100, 288, 1000],
    )) {
      for (const [index, level] of LEVELS.entries()) {
        expect(Math.abs((row[index] ?? 0) - (2 * level - 1))).toBeLessThan(0.3);
      }
    }
  });

  it('say nothing before there are some, and less than twice as much ahead of what they have seen', () => {
    expect(
      quantiles(
        fed(4, () => 1),
        [1],
      ),
    ).toEqual([]);
    const [near = [], far = []] = quantiles(
      fed(30, (step) => even[step] ?? 0),
      [12, 288],
    );
    expect(near.length).toBe(LEVELS.length);
    for (const [index, value] of far.entries())
      expect(Math.abs(value)).toBeLessThanOrEqual(2 * Math.abs(near[index] ?? 0));
  });

  it('forget: after two days of another spread only that one counts', () => {
    const [row = []] = quantiles(
      fed(3000, (step) => (step < 2000 ? 100 : 1) * (even[step] ?? 0)),
      [12],
    );
    expect(Math.max(...row.map(Math.abs))).toBeLessThan(1.1);
  });

  it('are restored from what they saved', () => {
    const before = fed(1000, (step) => even[step] ?? 0);
    const after = new LeadResiduals();
    expect(readState(writeState(before.parts), after.parts)).toBe(true);
    after.restored();
    const [first = [], second = []] = [
      quantiles(before, [1, 30, 288]).flat(),
      quantiles(after, [1, 30, 288]).flat(),
    ];
    for (const [index, value] of first.entries()) expect(second[index]).toBeCloseTo(value, 6);
    expect(writeState(before.parts).length).toBeLessThan(2000);
  });

  it('of values that are missing are not counted', () => {
    expect(
      quantiles(
        fed(1000, () => Number.NaN),
        [1],
      ),
    ).toEqual([]);
  });
});
