import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { weightedMedian } from './weighted-median.ts';

function median(values: readonly number[], weights: readonly number[]): number {
  return weightedMedian({
    values: Float64Array.from(values),
    weights: Float64Array.from(weights),
    size: values.length,
  });
}

describe('a weighted median', () => {
  it.each([
    [[3], [0.2], 3],
    [[9, 1, 5], [1, 1, 1], 5],
    [[1, 3], [1, 1], 2],
    [[1, 3, 100], [1, 1, 0], 2],
    [[7, 2], [1, 1e-9], 7],
  ])('of %j with weights %j is %d', (values, weights, expected) => {
    expect(median(values, weights)).toBeCloseTo(expected);
  });

  it('of values without any weight is none', () => {
    expect(median([1, 2], [0, 0])).toBeNaN();
  });

  it('lies between the values, and is moved little by a little more weight', () => {
    const pairs = fc.array(
      fc.tuple(fc.double({ min: -1, max: 1, noNaN: true }), fc.double({ min: 0.01, max: 1, noNaN: true })),
      { minLength: 1, maxLength: 20 },
    );
    fc.assert(
      fc.property(pairs, (list) => {
        const values = list.map(([value]) => value);
        const weights = list.map(([, weight]) => weight);
        const before = median(values, weights);
        expect(before).toBeGreaterThanOrEqual(Math.min(...values));
        expect(before).toBeLessThanOrEqual(Math.max(...values));
        const more = weights.map((weight, index) => (index === 0 ? weight * (1 + 1e-9) : weight));
        expect(Math.abs(median(values, more) - before)).toBeLessThan(1e-5);
      }),
    );
  });
});
