import { expect, it } from 'vitest';
import { seededRandom } from '../base/seeded-random.ts';
import { FedModel } from './model-contract-fixture.ts';
import { MOVING_AVERAGE } from './moving-average.ts';

it('a moving average of noise is in the middle, and its quantiles are where the values are', () => {
  const random = seededRandom(6);
  const values = Array.from({ length: 2000 }, () => 10 + 10 * random());
  const row = new FedModel(MOVING_AVERAGE).feed(values).forecast([48])?.[0] ?? [];
  expect(Math.abs((row[0] ?? 0) - 11)).toBeLessThan(1.5);
  expect(Math.abs((row[4] ?? 0) - 15)).toBeLessThan(1.5);
  expect(Math.abs((row[8] ?? 0) - 19)).toBeLessThan(1.5);
});

it('a moving average after a jump is that of the new level', () => {
  const values = Array.from({ length: 600 }, (_, step) => (step < 300 ? 10 : 50));
  const [row = []] = new FedModel(MOVING_AVERAGE).feed(values).forecast([1]) ?? [];
  expect(row[4]).toBeCloseTo(50, 6);
});

it('a moving average does not count what is missing', () => {
  const values = Array.from({ length: 400 }, (_, step) => (step % 3 === 0 ? Number.NaN : 8));
  expect(new FedModel(MOVING_AVERAGE).feed(values).forecast([1])?.[0]?.[4]).toBeCloseTo(8, 9);
});
