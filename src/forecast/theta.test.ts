import { expect, it } from 'vitest';
import { FedModel } from './model-contract-fixture.ts';
import { THETA } from './theta.ts';

it('a straight line goes on, with what its half slope leaves behind made good by what it was wrong by', () => {
  const values = Array.from({ length: 280 }, (_, step) => 3 * step);
  const rows = new FedModel(THETA).feed(values).forecast([1, 12, 48]) ?? [];
  expect(rows[0]?.[4]).toBeCloseTo(3 * 280, 0);
  expect(rows[1]?.[4]).toBeCloseTo(3 * 291, 0);
  expect(rows[2]?.[4]).toBeCloseTo(3 * 327, 0);
});

it('a drift does not go on for ever', () => {
  const values = Array.from({ length: 280 }, (_, step) => 3 * step);
  const rows = new FedModel(THETA).feed(values).forecast([288, 100_000]) ?? [];
  expect(rows[1]?.[4]).toBeLessThan((rows[0]?.[4] ?? 0) + 1000);
});
