import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ProfileWindow } from './performance-profile.ts';
import type { Sample } from './sample.ts';

const sample = (at: number, values: Record<string, number>, instanceId = 'one'): Sample => ({
  ...{ vm: 'a', instanceId, wallMs: at * 1000, monotonicMs: at * 1000, intervalMs: 1000, values },
});

describe('a performance profile', () => {
  it('is of the last samples, with what each metric was', () => {
    const window = new ProfileWindow({ samplesMax: 4 });
    expect(window.profile()).toBeUndefined();
    for (const [at, cores] of [9, 1, 2, 3, 6].entries())
      window.add(sample(at + 1, { 'cpu.usedCores': cores }));
    expect(window.profile()).toEqual({
      ...{ vm: 'a', instanceId: 'one', timestamp: '1970-01-01T00:00:05.000Z', windowMs: 4000, samples: 4 },
      metrics: { 'cpu.usedCores': { count: 4, min: 1, mean: 3, max: 6, p50: 2, p95: 6 } },
    });
  });

  it('counts for each metric the samples that have it', () => {
    const window = new ProfileWindow({ samplesMax: 4 });
    window.add(sample(1, { a: 5 }));
    window.add(sample(2, { b: 7 }));
    expect(window.profile()?.metrics).toMatchObject({ a: { count: 1, mean: 5 }, b: { count: 1, mean: 7 } });
  });

  it('begins anew with the instance', () => {
    const window = new ProfileWindow({ samplesMax: 4 });
    window.add(sample(1, { a: 5 }));
    window.add(sample(2, { a: 7 }, 'two'));
    expect(window.profile()).toMatchObject({ instanceId: 'two', samples: 1, metrics: { a: { min: 7 } } });
  });

  it('is ordered and finite for any values, and JSON keeps all of it', () => {
    const values = fc.array(fc.double({ min: 0, noNaN: true, noDefaultInfinity: true }), { minLength: 1 });
    fc.assert(
      fc.property(values, (all) => {
        const window = new ProfileWindow({ samplesMax: 20 });
        for (const [at, value] of all.entries()) window.add(sample(at, { a: value }));
        const profile = window.profile();
        const { min, mean, max, p50, p95 } = profile?.metrics.a ?? {
          min: 0,
          mean: 0,
          max: 0,
          p50: 0,
          p95: 0,
        };
        expect(min <= mean && mean <= max && min <= p50 && p50 <= p95 && p95 <= max).toBe(true);
        expect(JSON.parse(JSON.stringify(profile))).toEqual(profile);
      }),
    );
  });
});
