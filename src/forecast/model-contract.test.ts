import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { ForecastMethod, ForecastModel } from './forecast-model.ts';
import { differenceOf, FedModel, faultsOfForecast } from './model-contract-fixture.ts';
import { LEVELS } from './quantile-forecast.ts';
import { STREAMING_METHODS } from './shipped-methods.ts';
import { syntheticWorkload, WORKLOAD_KINDS } from './synthetic-workload.ts';

const DAY = 288;
const NUMBER = fc.oneof(
  fc.double({ noNaN: true, noDefaultInfinity: true }),
  fc.double({ min: 0, max: 100, noNaN: true }),
  fc.constantFrom(0, 5, Number.NaN, Number.MAX_VALUE, -Number.MAX_VALUE, Number.MIN_VALUE),
);
const workload = (
  kind: (typeof WORKLOAD_KINDS)[number],
  { steps = 3 * DAY, seed = 4, gapShare = 0 } = {},
) => [...syntheticWorkload({ kind, seed, steps, gapShare }).values];

describe.each(STREAMING_METHODS.map((method) => [method.name, method] as const))(
  'the method %s',
  (_, method) => {
    it('is silent before the first value, and speaks within the first quarter of an hour or two of an hour', () => {
      const fed = new FedModel(method);
      expect(fed.forecast()).toBeUndefined();
      fed.feed(workload('daily', { steps: 24 }));
      expect(fed.forecast()).toBeDefined();
    });

    it('states finite quantiles in order after any finite values and gaps', () => {
      const series = fc.array(NUMBER, { minLength: 1, maxLength: 120 });
      const repeats = fc.integer({ min: 1, max: 6 });
      fc.assert(
        fc.property(series, repeats, (values, times) => {
          const repeated = Array.from({ length: times }, () => values).flat();
          expect(faultsOfForecast(method, repeated)).toEqual([]);
        }),
        { numRuns: 60 },
      );
    });

    it.each(WORKLOAD_KINDS)(
      'states finite quantiles in order for a workload of kind %s with gaps',
      (kind) => {
        expect(faultsOfForecast(method, workload(kind, { gapShare: 0.1 }))).toEqual([]);
      },
    );

    it('foretells a constant as what it is, also after a day without values', () => {
      const gap = Array<number>(DAY).fill(Number.NaN);
      const fed = new FedModel(method).feed(Array<number>(400).fill(7));
      for (const rows of [fed.forecast(), fed.feed(gap).forecast(), fed.feed([7, 7]).forecast()]) {
        expect(rows).toBeDefined();
        for (const value of rows?.flat() ?? []) expect(value).toBeCloseTo(7, 6);
      }
    });

    it.each([1 / 1024, 1e-9, 3e7])(
      'states %f times as much for a series that is so many times as high',
      (factor) => {
        const values = workload('mixed', { steps: 3 * DAY, gapShare: 0.02 });
        const rows = new FedModel(method).feed(values).forecast();
        const scaled = new FedModel(method).feed(values.map((value) => factor * value)).forecast();
        expect(
          differenceOf(
            rows?.map((row) => row.map((value) => factor * value)),
            scaled,
          ),
        ).toBeLessThan(1e-5);
      },
    );

    it('goes on after it was saved and restored as if nothing had been', () => {
      const values = workload('deployments', { steps: 3 * DAY + 7 });
      const fed = new FedModel(method).feed(values.slice(0, 2 * DAY + 5));
      const restored = fed.restored();
      expect(differenceOf(fed.forecast(), restored?.forecast())).toBeLessThan(1e-5);
      const later = values.slice(2 * DAY + 5);
      expect(differenceOf(fed.feed(later).forecast(), restored?.feed(later).forecast())).toBeLessThan(0.05);
    });

    it('takes no state that is cut short or holds what is no number', () => {
      const fed = new FedModel(method).feed(workload('daily', { steps: 100 }));
      const state = fed.model.save();
      expect(fed.restored(state)).toBeDefined();
      expect(fed.restored(state.subarray(0, state.length - 1))).toBeUndefined();
      const infinite = Uint8Array.from(state);
      new DataView(infinite.buffer).setFloat64(0, Number.POSITIVE_INFINITY, true);
      expect(fed.restored(infinite)).toBeUndefined();
    });

    it('covers about what it claims an hour ahead', () => {
      const [below, all] = coverage(method, { level: 0.9, lead: 12 });
      expect(below / all).toBeGreaterThan(0.8);
      expect(below / all).toBeLessThan(0.97);
    });

    it('works with steps of ten seconds', () => {
      const { values } = syntheticWorkload({ kind: 'bursts', seed: 1, steps: 2000, stepMs: 10_000 });
      const fed = new FedModel(method, { stepMs: 10_000 }).feed(values);
      expect(fed.forecast()?.flat().every(Number.isFinite)).toBe(true);
    });
  },
);

/** How many values of several workloads were at or below the stated quantile, of how many. */
function coverage(
  method: ForecastMethod,
  { level, lead }: { level: number; lead: number },
): [number, number] {
  let [below, all] = [0, 0];
  for (const kind of ['daily', 'batch', 'bursts', 'deployments'] as const) {
    const values = workload(kind, { steps: 6 * DAY });
    const fed = new FedModel(method).feed(values.slice(0, 2 * DAY));
    for (let step = 2 * DAY; step + lead < values.length; step += 1) {
      if (step % 6 === 0) {
        const stated = fed.forecast([lead])?.[0]?.[LEVELS.indexOf(level)] ?? Number.NaN;
        all += 1;
        if ((values[step + lead - 1] ?? 0) <= stated) below += 1;
      }
      fed.feed([values[step] ?? 0]);
    }
  }
  return [below, all];
}

describe('what is asked of methods', () => {
  const planted = (predict: (into: Float64Array, calls: number) => void): ForecastMethod => {
    const create = (): ForecastModel => {
      let calls = 0;
      return {
        update: () => undefined,
        predict: (_, into) => {
          calls += 1;
          into.forEach((_value, index) => {
            into[index] = index;
          });
          predict(into, calls);
          return true;
        },
        save: () => new Uint8Array(0),
      };
    };
    return { name: 'planted', stateVersion: 1, create, restore: create };
  };

  it('is kept by a method that states one ladder', () => {
    expect(
      faultsOfForecast(
        planted(() => undefined),
        [1],
      ),
    ).toEqual([]);
  });

  it.each<[string, string, (into: Float64Array, calls: number) => void]>([
    ['what is not finite', 'lead 1 is not finite', (into) => into.fill(Number.NaN, 3, 4)],
    ['quantiles that cross', 'lead 2 crosses', (into) => into.fill(0, 12, 13)],
    [
      'another answer each time',
      'asked again, it answers otherwise',
      (into, calls) => into.fill(calls - 1e6, 0, 1),
    ],
  ])('is broken by %s', (_, fault, predict) => {
    expect(faultsOfForecast(planted(predict), [1])).toEqual([fault]);
  });
});
