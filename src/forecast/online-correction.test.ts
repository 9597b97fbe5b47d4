import { describe, expect, it } from 'vitest';
import { seededRandom } from '../base/seeded-random.ts';
import { OnlineCorrection } from './online-correction.ts';
import { LEVELS } from './quantile-forecast.ts';

/** A model that always states that all is between 0 and 1, of a series that is between `from` and `from + width`. */
function corrected(from: number, { width, steps = 8000 }: { width: number; steps?: number }): Float64Array {
  const random = seededRandom(4);
  const correction = new OnlineCorrection();
  const state = (lead: number, into: Float64Array) => {
    into.set(LEVELS);
    correction.apply(lead, into);
  };
  for (let step = 0; step < steps; step += 1) {
    correction.update(from + width * random(), () => ({ zero: 0, unit: 1, rowOf: state }));
  }
  const row = new Float64Array(LEVELS.length);
  state(12, row);
  return row;
}

describe('an online correction', () => {
  it('moves quantiles to where values are', () => {
    const row = corrected(0.5, { width: 2 });
    for (const [index, level] of LEVELS.entries()) {
      expect(Math.abs((row[index] ?? 0) - (0.5 + 2 * level))).toBeLessThan(0.35);
    }
  });

  it('leaves alone what is right', () => {
    const row = corrected(0, { width: 1 });
    for (const [index, level] of LEVELS.entries())
      expect(Math.abs((row[index] ?? 0) - level)).toBeLessThan(0.2);
  });

  it('goes no further than its bound, and keeps quantiles in order, whatever comes', () => {
    for (const from of [-1e100, 1e100]) {
      const row = corrected(from, { width: 1 });
      for (const [index, value] of row.entries()) {
        expect(Math.abs(value)).toBeLessThanOrEqual(5);
        expect(value).toBeGreaterThanOrEqual(row[index - 1] ?? Number.NEGATIVE_INFINITY);
      }
    }
  });
});
