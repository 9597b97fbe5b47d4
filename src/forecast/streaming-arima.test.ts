import { expect, it } from 'vitest';
import { seededRandom } from '../base/seeded-random.ts';
import { FedModel } from './model-contract-fixture.ts';
import { STREAMING_ARIMA } from './streaming-arima.ts';

it('an autoregression is found: one that reverts to its mean does so at its own pace', () => {
  const random = seededRandom(3);
  let term = 0;
  const values = Array.from({ length: 3000 }, () => {
    term = 0.8 * term + (random() - 0.5);
    return 100 + term;
  });
  const fed = new FedModel(STREAMING_ARIMA).feed(values).feed([100 + 0.8 * term, 103]);
  const middle = fed.forecast([1, 2, 5])?.map((row) => (row[4] ?? 0) - 100) ?? [];
  expect(middle[0]).toBeGreaterThan(1.9);
  expect(middle[0]).toBeLessThan(2.8);
  expect(middle[2]).toBeGreaterThan(0.5);
  expect(middle[2]).toBeLessThan(1.5);
});

it('what alternates goes on alternating', () => {
  const values = Array.from({ length: 400 }, (_, step) => (step % 2 === 0 ? 10 : 20));
  const middle =
    new FedModel(STREAMING_ARIMA)
      .feed(values)
      .forecast([1, 2])
      ?.map((row) => row[4]) ?? [];
  expect(middle[0]).toBeCloseTo(10, 0);
  expect(middle[1]).toBeCloseTo(20, 0);
});

it('a forecast stays in the range of the past, however steep the series was', () => {
  const values = Array.from({ length: 120 }, (_, step) => 1.5 ** step);
  const most = Math.max(...values);
  const rows = new FedModel(STREAMING_ARIMA).feed(values).forecast([1, 48, 600]) ?? [];
  for (const row of rows) expect(Math.abs(row[4] ?? Number.NaN)).toBeLessThan(60 * most);
});
