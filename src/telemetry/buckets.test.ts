import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  bucketsOf,
  HOUR_MS,
  inOrder,
  MINUTE_MS,
  packBuckets,
  packPoints,
  unpackBuckets,
  unpackPoints,
} from './buckets.ts';
import { TelemetryError } from './telemetry-error.ts';

const START_MS = 480_000 * HOUR_MS;
const value = fc.double({ noNaN: true, noDefaultInfinity: true });
const points = fc
  .array(fc.tuple(fc.nat({ max: MINUTE_MS - 1 }), value), { maxLength: 100 })
  .map((pairs) =>
    inOrder({ times: pairs.map(([at]) => START_MS + at), values: pairs.map(([, each]) => each) }),
  );

describe('points', () => {
  it('are the same when they were packed, to the last bit', () => {
    fc.assert(
      fc.property(points, (given) => {
        expect(unpackPoints(packPoints(given, START_MS), START_MS)).toEqual(given);
      }),
    );
  });

  it('that stand still and come regularly take two bytes each', () => {
    const times = Array.from({ length: 60 }, (_, index) => START_MS + index * 1000);
    expect(packPoints({ times, values: times.map(() => Math.PI) }, START_MS).length).toBeLessThanOrEqual(
      60 * 2 + 12,
    );
  });

  it('are in order and each moment there once, the first that was given', () => {
    expect(inOrder({ times: [5, 3, 5, 1], values: [1, 2, 3, 4] })).toEqual({
      times: [1, 3, 5],
      values: [4, 2, 1],
    });
  });

  it('that are damaged are found to be, or are other points, whatever the bytes', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        for (const unpack of [
          () => unpackPoints(bytes, START_MS),
          () => unpackBuckets(bytes, { startMs: START_MS, stepMs: MINUTE_MS }),
        ])
          try {
            unpack();
          } catch (thrown) {
            expect(thrown).toBeInstanceOf(TelemetryError);
          }
      }),
    );
  });
});

describe('buckets', () => {
  it('never cross: least, median, 90 %, 99 %, largest', () => {
    fc.assert(
      fc.property(points, (given) => {
        for (const { min, p50, p90, p99, max, mean } of bucketsOf(given, 1000)) {
          expect([min, p50, p90, p99, max]).toEqual([min, p50, p90, p99, max].toSorted((a, b) => a - b));
          expect(mean).toBeGreaterThanOrEqual(min);
          expect(mean).toBeLessThanOrEqual(max);
        }
      }),
    );
  });

  it('are the same when they were packed, but for the last digits', () => {
    fc.assert(
      fc.property(points, (given) => {
        const buckets = bucketsOf(given, 1000);
        const place = { startMs: START_MS, stepMs: 1000 };
        const unpacked = unpackBuckets(packBuckets(buckets, place), place);
        expect(unpacked.map(({ startMs, count }) => [startMs, count])).toEqual(
          buckets.map(({ startMs, count }) => [startMs, count]),
        );
        for (const [index, { min, mean, max, p99 }] of buckets.entries())
          for (const [found, expected] of [
            [unpacked[index]?.min, min],
            [unpacked[index]?.mean, mean],
            [unpacked[index]?.max, max],
            [unpacked[index]?.p99, p99],
          ] as const)
            expect(Math.abs((found ?? Number.NaN) - expected)).toBeLessThanOrEqual(
              Math.abs(expected) * 1.2e-7,
            );
      }),
    );
  });
});
