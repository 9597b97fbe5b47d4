import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { quantileOf, RollingOrder } from './rolling-order.ts';

describe('the order of the last values', () => {
  it('is that of sorting them, whatever comes, leaves and is missing', () => {
    const value = fc.oneof(fc.integer({ min: -5, max: 5 }), fc.constant(Number.NaN));
    fc.assert(
      fc.property(fc.array(value, { maxLength: 80 }), fc.integer({ min: 1, max: 9 }), (values, length) => {
        const order = new RollingOrder(length);
        for (const [at, coming] of values.entries()) {
          order.exchange(values[at - length] ?? Number.NaN, coming);
          const window = values
            .slice(Math.max(0, at - length + 1), at + 1)
            .filter((one) => !Number.isNaN(one));
          expect([...order.values.subarray(0, order.size)]).toEqual([...Float32Array.from(window).sort()]);
        }
      }),
    );
  });
});

describe('a quantile of few values', () => {
  it.each([
    [[4], 0.1, 4],
    [[4], 0.99, 4],
    [[1, 2, 3], 0.5, 2],
    [[1, 2, 3], 0.9, 3],
    [[0, 10, 20, 30], 0.3, 5],
  ])('%j at %d is %d', (values, level, expected) => {
    expect(quantileOf(values, values.length, level)).toBeCloseTo(expected);
  });
});
