import { describe, expect, it } from 'vitest';
import { fitSeasonal } from './seasonal-fit.ts';
import { syntheticWorkload } from './synthetic-workload.ts';

const DAY = 24;
const dayAt = (step: number) => 10 + 5 * Math.sin((2 * Math.PI * step) / DAY);
const weekAt = (step: number) => dayAt(step) * (Math.floor(step / DAY) % 7 < 5 ? 1 : 0.3);

describe('a seasonal fit', () => {
  it.each([1, 1e-90, 1e90])('goes on with days and weeks, in units of %f', (unit) => {
    const values = Float64Array.from({ length: 4 * 7 * DAY }, (_, step) => unit * weekAt(step));
    const points = fitSeasonal({ kind: 'mstl', values, periods: [DAY, 7 * DAY], horizon: 7 * DAY });
    expect(points).toHaveLength(7 * DAY);
    for (const [step, point] of points?.entries() ?? [])
      expect(Math.abs(point / unit - weekAt(step))).toBeLessThan(1);
  });

  it('needs the weeks: with days alone it misses the weekend', () => {
    const values = Float64Array.from({ length: 4 * 7 * DAY + 5 * DAY }, (_, step) => weekAt(step));
    const points = fitSeasonal({ kind: 'mstl', values, periods: [DAY], horizon: DAY }) ?? [];
    const errors = Array.from(points, (point, step) =>
      Math.abs(point - weekAt(4 * 7 * DAY + 5 * DAY + step)),
    );
    expect(Math.max(...errors)).toBeGreaterThan(2);
  });

  it('bridges gaps', () => {
    const values = Float64Array.from({ length: 10 * DAY }, (_, step) =>
      step % 5 === 0 ? Number.NaN : dayAt(step),
    );
    const points = fitSeasonal({ kind: 'mstl', values, periods: [DAY], horizon: DAY });
    for (const [step, point] of points?.entries() ?? [])
      expect(Math.abs(point - dayAt(step))).toBeLessThan(0.7);
    expect(points).toHaveLength(DAY);
  });

  it('of ETS finds level and trend', () => {
    const values = Float64Array.from({ length: 200 }, (_, step) => 100 + 2 * step + Math.sin(step * step));
    const points = fitSeasonal({ kind: 'ets', values, periods: [], horizon: 10 });
    expect(points?.[9]).toBeGreaterThan(505);
    expect(points?.[9]).toBeLessThan(530);
  });

  it('of a constant is that constant, of next to nothing there is none', () => {
    const constant = new Float64Array(3 * DAY).fill(7);
    for (const kind of ['mstl', 'ets'] as const) {
      expect(fitSeasonal({ kind, values: constant, periods: [DAY], horizon: 3 })).toEqual(
        Float64Array.of(7, 7, 7),
      );
      expect(
        fitSeasonal({ kind, values: Float64Array.of(1, 2), periods: [DAY], horizon: 3 }),
      ).toBeUndefined();
      const missing = new Float64Array(100).fill(Number.NaN);
      expect(fitSeasonal({ kind, values: missing, periods: [DAY], horizon: 3 })).toBeUndefined();
    }
  });

  it('is finite for machines that do next to nothing', () => {
    for (const kind of ['sparse', 'idle', 'bursts'] as const) {
      const { values } = syntheticWorkload({ kind, seed: 3, steps: 10 * DAY, stepMs: 3_600_000 });
      for (const method of ['mstl', 'ets'] as const) {
        const points = fitSeasonal({ kind: method, values, periods: [DAY], horizon: 2 * DAY });
        expect(points?.every(Number.isFinite)).toBe(true);
      }
    }
  });
});
