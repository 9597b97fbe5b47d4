import { describe, expect, it } from 'vitest';
import { syntheticWorkload, syntheticWorkloads, WORKLOAD_KINDS } from './synthetic-workload.ts';

const DAY = 288;
const mean = (values: Iterable<number>) => {
  const list = [...values];
  return list.reduce((sum, value) => sum + value, 0) / list.length;
};
const correlation = (a: readonly number[], b: readonly number[]) => {
  const [ma, mb] = [mean(a), mean(b)];
  const covariance = mean(a.map((value, index) => (value - ma) * ((b[index] ?? 0) - mb)));
  const [va, vb] = [mean(a.map((value) => (value - ma) ** 2)), mean(b.map((value) => (value - mb) ** 2))];
  return covariance / Math.sqrt(va * vb);
};

describe.each(WORKLOAD_KINDS)('a synthetic workload of kind %s', (kind) => {
  it('is the same for a seed, another for another, finite, and nowhere negative', () => {
    const [first, second] = [1, 1].map((seed) => syntheticWorkload({ kind, seed, steps: 5 * DAY }));
    expect(first).toEqual(second);
    expect(syntheticWorkload({ kind, seed: 2, steps: 5 * DAY }).values).not.toEqual(first?.values);
    for (let seed = 0; seed < 20; seed += 1) {
      const { values, companion } = syntheticWorkload({ kind, seed, steps: 2 * DAY });
      expect([...values, ...companion].every((value) => Number.isFinite(value) && value >= 0)).toBe(true);
    }
  });
});

describe('synthetic workloads', () => {
  const many = (kind: (typeof WORKLOAD_KINDS)[number], steps: number) =>
    Array.from({ length: 20 }, (_, seed) => syntheticWorkload({ kind, seed, steps }));
  const dayToDay = (kind: (typeof WORKLOAD_KINDS)[number]) =>
    mean(
      many(kind, 10 * DAY).map(({ values }) =>
        correlation([...values.slice(DAY)], [...values.slice(0, -DAY)]),
      ),
    );

  it('of people repeat every day; idle ones and sparse ones do not', () => {
    expect(dayToDay('daily')).toBeGreaterThan(0.6);
    expect(Math.abs(dayToDay('idle'))).toBeLessThan(0.1);
    expect(Math.abs(dayToDay('sparse'))).toBeLessThan(0.1);
  });

  it('of offices rest at the weekend', () => {
    for (const { values } of many('office', 7 * DAY)) {
      // In any zone, Saturday in UTC is free for at least the half of it.
      expect(mean(values.slice(5 * DAY, 7 * DAY))).toBeLessThan(mean(values.slice(0, 5 * DAY)));
    }
  });

  it('that want more than there is stay at the most that there is', () => {
    const flat = many('saturation', 3 * DAY).filter(({ values }) => {
      const most = Math.max(...values);
      return values.filter((value) => value > 0.999 * most).length > 20;
    });
    expect(flat.length).toBeGreaterThan(5);
  });

  it('are noisier where they are higher', () => {
    const spreads = many('daily', 14 * DAY).map(({ values }) => {
      const changes = [...values.slice(1)].map((value, index) => Math.abs(value - (values[index] ?? 0)));
      return correlation(changes, [...values.slice(1)]);
    });
    expect(mean(spreads)).toBeGreaterThan(0.1);
  });

  it('have a companion that moves ahead of them', () => {
    const { values, companion } = syntheticWorkload({ kind: 'bursts', seed: 5, steps: 20 * DAY });
    const later = correlation([...values.slice(2)], [...companion.slice(0, -2)]);
    expect(later).toBeGreaterThan(correlation([...values], [...companion]));
  });

  it('have about as many gaps as were asked for', () => {
    const { values } = syntheticWorkload({ kind: 'mixed', seed: 5, steps: 100 * DAY, gapShare: 0.1 });
    const share = values.filter(Number.isNaN).length / values.length;
    expect(share).toBeGreaterThan(0.06);
    expect(share).toBeLessThan(0.14);
  });

  it('come in all kinds, at any length of a step', () => {
    const all = syntheticWorkloads({ count: WORKLOAD_KINDS.length, seed: 1, steps: 500, stepMs: 10_000 });
    expect(all.map(({ kind }) => kind)).toEqual([...WORKLOAD_KINDS]);
    expect(all.every(({ values }) => values.every(Number.isFinite))).toBe(true);
  });
});
