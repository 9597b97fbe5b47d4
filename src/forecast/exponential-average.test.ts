import { expect, it } from 'vitest';
import { seededRandom } from '../base/seeded-random.ts';
import { EXPONENTIAL_AVERAGE } from './exponential-average.ts';
import { FedModel } from './model-contract-fixture.ts';

const middleOf = (values: readonly number[]) =>
  new FedModel(EXPONENTIAL_AVERAGE).feed(values).forecast([1])?.[0]?.[4] ?? Number.NaN;

it('smoothing is slow where values are noise around one level', () => {
  const random = seededRandom(1);
  const noise = Array.from({ length: 1000 }, () => 50 + 20 * (random() - 0.5));
  // One more value, far away: a slow average hardly moves.
  expect(Math.abs(middleOf([...noise, 60]) - middleOf(noise))).toBeLessThan(1);
});

it('smoothing is fast where values wander', () => {
  const random = seededRandom(2);
  let level = 50;
  const walk = Array.from({ length: 1000 }, () => {
    level += random() - 0.5;
    return level;
  });
  expect(Math.abs(middleOf([...walk, level + 10]) - middleOf(walk))).toBeGreaterThan(5);
});
