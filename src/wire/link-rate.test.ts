import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { LinkRate } from './link-rate.ts';

const MBIT = 1e6 / 8;

function carry(rate: LinkRate, bytesPerSecond: number, { bytes = 100_000, count = 9 } = {}): void {
  for (let index = 0; index < count; index += 1)
    rate.note({ bytes, elapsedMs: (bytes / bytesPerSecond) * 1000, isLimited: true });
}

describe('what a link lets through', () => {
  it('is unlimited until something is known, and a few bytes say nothing', () => {
    const rate = new LinkRate();
    expect(rate.bytesPerSecond).toBe(Number.POSITIVE_INFINITY);
    rate.note({ bytes: 1000, elapsedMs: 50, isLimited: true });
    expect(rate.bytesPerSecond).toBe(Number.POSITIVE_INFINITY);
    carry(rate, 10 * MBIT, { count: 1 });
    expect(rate.bytesPerSecond).toBeCloseTo(10 * MBIT);
  });

  it('is not what a few deliveries were like that waited for something else, or were acknowledged together', () => {
    fc.assert(
      fc.property(
        fc.constantFrom(2 * MBIT, 10 * MBIT, 100 * MBIT, 1000 * MBIT),
        fc.array(fc.double({ min: 1.1, max: 1000, noNaN: true }), { maxLength: 4 }),
        fc.array(fc.double({ min: 0.001, max: 0.9, noNaN: true }), { maxLength: 2 }),
        (bytesPerSecond, slower, quicker) => {
          const rate = new LinkRate();
          carry(rate, bytesPerSecond);
          const usualMs = (100_000 / bytesPerSecond) * 1000;
          for (const times of [...slower, ...quicker])
            rate.note({ bytes: 100_000, elapsedMs: usualMs * times, isLimited: true });
          expect(rate.bytesPerSecond / bytesPerSecond).toBeCloseTo(1);
        },
      ),
    );
  });

  it('follows a link that becomes slower or quicker', () => {
    const rate = new LinkRate();
    for (const mbit of [100, 10, 100]) {
      carry(rate, mbit * MBIT);
      expect(rate.bytesPerSecond / MBIT).toBeCloseTo(mbit);
    }
  });

  it('is not less because of what did not wait for it, and forgotten when nothing has for a while', () => {
    const rate = new LinkRate();
    carry(rate, 10 * MBIT);
    for (let index = 0; index < 8; index += 1)
      rate.note({ bytes: 100_000, elapsedMs: 10_000, isLimited: false });
    // A few bytes, as of a guest that does nothing, say nothing of this either.
    for (let index = 0; index < 20; index += 1) rate.note({ bytes: 100, elapsedMs: 1, isLimited: false });
    expect(rate.bytesPerSecond).toBeCloseTo(10 * MBIT);
    rate.note({ bytes: 100_000, elapsedMs: 10_000, isLimited: false });
    expect(rate.bytesPerSecond).toBe(Number.POSITIVE_INFINITY);
    carry(rate, 10 * MBIT, { count: 1 });
    expect(rate.bytesPerSecond).toBeCloseTo(10 * MBIT);
  });

  it('is more where what did not wait for it was quicker', () => {
    const rate = new LinkRate();
    carry(rate, 10 * MBIT);
    for (let index = 0; index < 5; index += 1) rate.note({ bytes: 100_000, elapsedMs: 8, isLimited: false });
    expect(rate.bytesPerSecond).toBeCloseTo(100 * MBIT);
  });
});
