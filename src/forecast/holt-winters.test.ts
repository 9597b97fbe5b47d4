import { expect, it } from 'vitest';
import { HOLT_WINTERS } from './holt-winters.ts';
import { FedModel } from './model-contract-fixture.ts';

const DAY = 288;
const dayAt = (step: number) => 50 + 20 * Math.sin((2 * Math.PI * step) / DAY);

it('a day like the days before is foretold, whether or not values were missing', () => {
  const leads = [1, 48, 144, 288];
  for (const isGap of [() => false, (step: number) => step % 7 === 0]) {
    const values = Array.from({ length: 8 * DAY }, (_, step) => (isGap(step) ? Number.NaN : dayAt(step)));
    const rows = new FedModel(HOLT_WINTERS).feed(values).forecast(leads) ?? [];
    expect(rows).toHaveLength(leads.length);
    for (const [index, row] of rows.entries()) {
      const actual = dayAt(8 * DAY - 1 + (leads[index] ?? 0));
      expect(Math.abs((row[4] ?? 0) - actual)).toBeLessThan(2);
    }
  }
});

it('a trend goes on for a while and fades', () => {
  const values = Array.from({ length: 200 }, (_, step) => step);
  const rows = new FedModel(HOLT_WINTERS).feed(values).forecast([1, 600]) ?? [];
  expect(rows[0]?.[4]).toBeGreaterThan(198);
  expect(rows[1]?.[10]).toBeLessThan(400);
});
