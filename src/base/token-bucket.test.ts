import fc from 'fast-check';
import { expect, test } from 'vitest';
import { HandClock } from './hand-clock-fixture.ts';
import { TokenBucket } from './token-bucket.ts';

/** Takes items of a size whenever it may. */
function takerOf(bucket: TokenBucket, sizeBytes: number) {
  const taker = { taken: 0, run: () => {} };
  taker.run = () => {
    while (bucket.isOpen && taker.taken < 1e9) {
      bucket.spend(sizeBytes);
      taker.taken += sizeBytes;
    }
    bucket.whenOpen(taker.run);
  };
  return taker;
}

test('items of any size go through at the rate in the long run, and a tenth of a second’s worth at first', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 4096, max: 1e8 }),
      fc.integer({ min: 1000, max: 100_000 }),
      (rate, size) => {
        const hand = new HandClock();
        const bucket = new TokenBucket(hand.clock);
        bucket.limit(rate);
        const taker = takerOf(bucket, size);
        taker.run();
        expect(taker.taken).toBeLessThanOrEqual(rate / 10 + size);
        hand.go(60_000);
        // A timer of at least a millisecond costs what is there within it at most.
        expect(taker.taken).toBeGreaterThanOrEqual(Math.min(rate * 60, size) * 0.99);
        expect(taker.taken).toBeLessThanOrEqual(rate * 60.1 + size);
      },
    ),
    { numRuns: 50 },
  );
});

test('what was not used is not saved up for longer than the burst', () => {
  const hand = new HandClock();
  const bucket = new TokenBucket(hand.clock);
  bucket.limit(10_000);
  hand.go(3_600_000);
  const taker = takerOf(bucket, 100);
  taker.run();
  expect(taker.taken).toBeLessThanOrEqual(1100);
});

test('two users wait together, and both get on', () => {
  const hand = new HandClock();
  const bucket = new TokenBucket(hand.clock);
  bucket.limit(100_000);
  const [one, other] = [takerOf(bucket, 1000), takerOf(bucket, 1000)];
  one.run();
  other.run();
  hand.go(10_000);
  expect(one.taken + other.taken).toBeGreaterThan(900_000);
  expect(Math.min(one.taken, other.taken)).toBeGreaterThan(300_000);
});

test('without a limit nothing waits, and whoever waited for one goes on when it ends', () => {
  const hand = new HandClock();
  const bucket = new TokenBucket(hand.clock);
  bucket.spend(1e12);
  expect([bucket.isOpen, bucket.bytesPerSecond]).toEqual([true, null]);
  bucket.limit(4096);
  bucket.spend(1e9);
  let told = 0;
  const tell = () => {
    told += 1;
  };
  bucket.whenOpen(tell);
  bucket.whenOpen(tell);
  expect([bucket.isOpen, bucket.bytesPerSecond, told]).toEqual([false, 4096, 0]);
  bucket.limit(null);
  expect([bucket.isOpen, told, hand.waiting]).toEqual([true, 1, 0]);
  bucket.limit(4096);
  bucket.spend(1e9);
  bucket.whenOpen(tell);
  bucket.forget(tell);
  expect(hand.waiting).toBe(0);
});
