import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Measurement } from './measurement.ts';

describe('a measurement', () => {
  it('counts a sample in the first bucket whose bound it does not exceed', () => {
    const measurement = new Measurement({ samples: 4, bounds: [1, 2.5, 10] });
    for (const sample of [0, 1, 1.01, 2.5, 9.99, 10, 11, 1e9]) measurement.add(sample);
    expect(measurement.histogram()).toEqual({
      bounds: [1, 2.5, 10],
      counts: [2, 2, 2, 2],
      sum: 1_000_000_035.5,
    });
    expect(measurement.count).toBe(8);
    expect(measurement.summary()).toMatchObject({ count: 8, p50: 10, max: 1e9 });
  });

  it('counts every sample once, whatever they are', () => {
    const anyBounds = fc
      .uniqueArray(fc.double({ min: 0, max: 1e6, noNaN: true }), { maxLength: 20 })
      .map((bounds) => bounds.sort((a, b) => a - b));
    fc.assert(
      fc.property(anyBounds, fc.array(fc.double({ min: 0, max: 2e6, noNaN: true })), (bounds, samples) => {
        const measurement = new Measurement({ samples: 8, bounds });
        for (const sample of samples) measurement.add(sample);
        const { counts } = measurement.histogram();
        let below = 0;
        for (const [index, bound] of bounds.entries()) {
          below += counts[index] ?? 0;
          expect(below).toBe(samples.filter((sample) => sample <= bound).length);
        }
        expect(below + (counts.at(-1) ?? 0)).toBe(samples.length);
      }),
    );
  });

  it('does not take bounds that do not grow', () => {
    expect(() => new Measurement({ samples: 4, bounds: [1, 1] })).toThrow('bounds');
  });
});
