import fc from 'fast-check';
import { describe, expect, it, test } from 'vitest';
import { DailyEnvelope } from './daily-envelope.ts';
import { RarityHistogram } from './rarity-histogram.ts';
import { RunLength } from './run-length.ts';
import { SortedWindow } from './sorted-window.ts';

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;

test('a sorted window has the quantiles, the mean and the order of its last values', () => {
  const numbers = fc.array(
    fc.oneof(fc.integer({ min: -5, max: 5 }), fc.double({ min: -1e6, max: 1e6, noNaN: true })),
    {
      minLength: 1,
      maxLength: 100,
    },
  );
  fc.assert(
    fc.property(numbers, fc.integer({ min: 1, max: 30 }), (values, capacity) => {
      const window = new SortedWindow(capacity);
      for (const value of values) window.push(value);
      const last = values.slice(-capacity);
      const sorted = Float64Array.from(last).sort();
      expect(window.length).toBe(last.length);
      expect([...window.values()]).toEqual(last);
      for (const share of [0, 0.25, 0.5, 0.99, 1])
        expect(window.quantile(share)).toEqual(
          sorted[Math.min(last.length - 1, Math.floor(share * last.length))],
        );
      expect(window.mean()).toBeCloseTo(
        last.reduce((sum, value) => sum + value / last.length, 0),
        4,
      );
    }),
  );
});

describe('the rarity of a deviation', () => {
  const histogram = new RarityHistogram({ memory: 1000 });
  for (let index = 0; index < 5000; index += 1) histogram.add(1 + (index % 100) / 100);

  it('is the number of digits of its share, and no less for a larger deviation', () => {
    expect(histogram.rarity(0.5)).toBeLessThan(0.01);
    expect(histogram.rarity(1.99)).toBeGreaterThan(0.7);
    expect(histogram.rarity(2.5)).toBeGreaterThan(3);
    fc.assert(
      fc.property(fc.double({ min: 0, noNaN: true }), fc.double({ min: 0, noNaN: true }), (a, b) => {
        const [small, large] = [Math.min(a, b), Math.max(a, b)];
        expect(histogram.rarity(large)).toBeGreaterThanOrEqual(histogram.rarity(small));
        expect(histogram.rarity(large)).toBeLessThan(60);
      }),
    );
  });

  it('is forgotten: what has not been for long is rare', () => {
    const other = new RarityHistogram({ memory: 100 });
    other.add(50);
    const soon = other.rarity(50);
    for (let index = 0; index < 2000; index += 1) other.add(1);
    expect(other.rarity(50)).toBeGreaterThan(soon + 3);
  });

  it('has quantiles up to the edge of a bin', () => {
    expect(histogram.quantile(0.99)).toBeGreaterThanOrEqual(1.98);
    expect(histogram.quantile(0.99)).toBeLessThan(2.4);
    expect(new RarityHistogram({ memory: 10 }).quantile(0.5)).toBe(0);
  });
});

describe('what an hour is like', () => {
  function daysWith(deviations: readonly number[]) {
    const envelope = new DailyEnvelope({ quantities: 2 });
    for (const [day, deviation] of deviations.entries()) {
      envelope.moveTo(day * DAY_MS + 6 * HOUR_MS);
      envelope.add(1, deviation);
    }
    envelope.moveTo(deviations.length * DAY_MS + 6 * HOUR_MS);
    return envelope;
  }

  it('is what came at it, or an hour next to it, on both days before', () => {
    const envelope = daysWith([0, 5, 3, 4]);
    expect([envelope.usual(0), envelope.usual(1)]).toEqual([0, 3]);
    envelope.moveTo(4 * DAY_MS + 7 * HOUR_MS);
    expect(envelope.usual(1)).toBe(3);
    envelope.moveTo(4 * DAY_MS + 8 * HOUR_MS);
    expect(envelope.usual(1)).toBe(0);
  });

  it('is unknown before the second whole day, and what came once is not usual', () => {
    expect(daysWith([5, 5]).usual(1)).toBe(0);
    expect(daysWith([5, 5, 5]).usual(1)).toBe(5);
    expect(daysWith([5, 5, 5, 0]).usual(1)).toBe(0);
  });
});

test('a run is too long from four times the longest before, and that is new once', () => {
  const length = new RunLength({ least: 3, memory: 1e9 });
  length.lengthen(2);
  length.end();
  length.lengthen(7);
  expect(length.notice()).toBe(0);
  length.lengthen();
  expect([length.notice(), length.notice()]).toEqual([6, 2.5]);
  length.end();
  length.lengthen(31);
  expect(length.notice()).toBe(0);
});
