import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { MINUTES_SERIES } from './forecaster.ts';
import { LEVELS } from './quantile-forecast.ts';
import { SeriesForecaster } from './series-forecaster.ts';
import { decodeSeriesState } from './series-state.ts';
import { simpleMethods } from './simple-methods.ts';

const STEP_MS = MINUTES_SERIES.stepMs;
const DAY = 288;
const OPTIONS = { ...MINUTES_SERIES, methods: simpleMethods() };
const LEADS = [1, 2, 6, 12, 30, 48, 100, 288];

function fed(values: Iterable<number>, options = OPTIONS): SeriesForecaster {
  const series = new SeriesForecaster(options);
  let step = 0;
  for (const value of values) series.update(value, step++ * STEP_MS);
  return series;
}

function series(steps: number, valueAt: (step: number) => number): number[] {
  return Array.from({ length: steps }, (_, step) => valueAt(step));
}

function quantile(forecaster: SeriesForecaster, { lead, level }: { lead: number; level: number }): number {
  return forecaster.predict([lead])?.values[LEVELS.indexOf(level)] ?? Number.NaN;
}

/** A generator of numbers of its own: the same for each run. */
function randomFrom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

function normal(random: () => number): number {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}

function expectForecast(values: ArrayLike<number> | undefined): void {
  expect(values?.length).toBe(LEADS.length * LEVELS.length);
  for (const [at, value] of Array.from(values ?? []).entries()) {
    expect(Number.isFinite(value)).toBe(true);
    if (at % LEVELS.length > 0) expect(value).toBeGreaterThanOrEqual(values?.[at - 1] ?? Number.NaN);
  }
}

describe('a forecast of a series that is known', () => {
  it('is that constant where it is one, at all levels and leads', () => {
    const values = fed(series(2 * DAY, () => 7)).predict(LEADS)?.values;
    expect([...(values ?? [])]).toEqual(new Array(LEADS.length * LEVELS.length).fill(7));
  });

  it('goes on as a ramp where it is one', () => {
    const ramp = fed(series(4 * DAY, (step) => step));
    for (const lead of [1, 12, 48]) {
      const error = quantile(ramp, { lead, level: 0.5 }) - (4 * DAY - 1 + lead);
      expect(Math.abs(error)).toBeLessThan(2 + lead / 4);
    }
  });

  it('follows the day where each is the same', () => {
    const day = (step: number) => 50 + 40 * Math.sin((2 * Math.PI * step) / DAY);
    const forecaster = fed(series(8 * DAY, day));
    for (const lead of [1, 12, 48, 144, 288])
      expect(quantile(forecaster, { lead, level: 0.5 })).toBeCloseTo(day(8 * DAY - 1 + lead), -0.5);
  });

  it('knows that the weekend is quiet once it has seen two', () => {
    const week = (step: number) => (Math.floor(step / DAY) % 7 < 5 ? 50 + (step % 3) : 5 + (step % 3));
    // It ends on a Friday at midnight.
    const forecaster = fed(series(19 * DAY, week));
    expect(quantile(forecaster, { lead: 144, level: 0.5 })).toBeLessThan(60);
    expect(quantile(forecaster, { lead: 288, level: 0.1 })).toBeLessThan(51);
  });
});

describe('any forecast', () => {
  const value = fc.oneof(
    fc.double({ noNaN: true, noDefaultInfinity: true }),
    fc.integer({ min: -100, max: 100 }),
    fc.constant(Number.NaN),
    fc.constantFrom(0, 1e308, -1e308, 5e-324),
  );
  /** A few values, each repeated, so that series are long and shrink well. */
  const values = fc.array(fc.tuple(value, fc.integer({ min: 1, max: 200 })), { minLength: 1, maxLength: 12 });
  const spread = (list: readonly (readonly [number, number])[]) =>
    list.flatMap(([one, times]) => new Array<number>(times).fill(one));

  it('is finite and never crosses, whatever numbers and gaps it was given', () => {
    fc.assert(
      fc.property(values, (list) => {
        const forecaster = fed(spread(list));
        const forecast = forecaster.predict(LEADS);
        if (list.every(([one]) => Number.isNaN(one))) expect(forecast).toBeUndefined();
        else expectForecast(forecast?.values);
        expect(forecaster.faults).toEqual([]);
      }),
      { numRuns: 60 },
    );
  });

  it('is not negative where the series never was', () => {
    fc.assert(
      fc.property(values, (list) => {
        const forecast = fed(spread(list).map(Math.abs)).predict(LEADS);
        for (const one of forecast?.values ?? []) expect(one).toBeGreaterThanOrEqual(0);
      }),
      { numRuns: 40 },
    );
  });

  it.each([1e-9, 2 ** -20, 1000, 1e12])('of %d times the series is so many times the forecast', (factor) => {
    const random = randomFrom(5);
    const bursty = series(3 * DAY, (step) => (step % 50 < 5 ? 90 : 10) + 5 * normal(random));
    const plain = fed(bursty).predict(LEADS)?.values ?? [];
    const scaled = fed(bursty.map((one) => one * factor)).predict(LEADS)?.values ?? [];
    for (const [at, one] of plain.entries()) expect((scaled[at] ?? 0) / factor).toBeCloseTo(one, 2);
  });

  it('is there from the first value on, and less sure than later', () => {
    const early = fed([10]);
    expectForecast(early.predict(LEADS)?.values);
    const width = (one: SeriesForecaster) =>
      quantile(one, { lead: 6, level: 0.9 }) - quantile(one, { lead: 6, level: 0.1 });
    const random = randomFrom(1);
    const noisy = () => 10 + 0.1 * normal(random);
    expect(width(early)).toBeGreaterThan(2);
    expect(width(fed(series(30, noisy)))).toBeLessThan(width(early) / 2);
  });

  it('of a series that is seldom something has that in its outer quantiles only', () => {
    const forecaster = fed(series(7 * DAY, (step) => (step % 40 === 7 ? 100 : 0)));
    expect(quantile(forecaster, { lead: 30, level: 0.9 })).toBeLessThan(1);
    expect(quantile(forecaster, { lead: 30, level: 0.99 })).toBeGreaterThan(10);
  });
});

describe('quantiles of a series that wanders', () => {
  function coverage(calibrates: boolean): Map<number, number> {
    const random = randomFrom(11);
    const forecaster = new SeriesForecaster({ ...OPTIONS, calibrates });
    const within = new Map(LEVELS.map((level) => [level, 0]));
    const stated = new Map<number, Float64Array | undefined>();
    let level = 1000;
    let judged = 0;
    for (let step = 0; step < 40 * DAY; step += 1) {
      level += normal(random) + 0.01 * (1000 - level);
      const rows = stated.get(step);
      if (rows !== undefined && step > 10 * DAY) {
        judged += 1;
        for (const [at, one] of LEVELS.entries())
          if (level <= (rows[at] ?? 0)) within.set(one, (within.get(one) ?? 0) + 1);
      }
      forecaster.update(level, step * STEP_MS);
      if (step % 6 === 0) stated.set(step + 48, forecaster.predict([48])?.values);
    }
    return new Map([...within].map(([one, count]) => [one, count / judged]));
  }

  it('cover what they claim, and would not without calibration (control)', () => {
    const [calibrated, plain] = [coverage(true), coverage(false)];
    for (const level of [0.9, 0.95, 0.99]) {
      expect(Math.abs((calibrated.get(level) ?? 0) - level)).toBeLessThan(0.02);
      expect(Math.abs((plain.get(level) ?? 0) - level)).toBeGreaterThan(0.02);
    }
  });
});

describe('while nothing shall be learnt', () => {
  it('values are remembered, and neither weights nor calibration change', () => {
    const random = randomFrom(3);
    const forecaster = fed(series(3 * DAY, () => 10 + normal(random)));
    const before = decodeSeriesState(forecaster.save());
    for (let step = 0; step < DAY; step += 1)
      forecaster.update(500, (3 * DAY + step) * STEP_MS, { learn: false });
    const after = decodeSeriesState(forecaster.save());
    expect(after.scores).toEqual(before.scores);
    expect(after.calibration).toEqual(before.calibration);
    expect(forecaster.history.at(0)).toBe(500);
    // The control: they do change when it is learnt from.
    for (let step = 0; step < DAY; step += 1) forecaster.update(500, (4 * DAY + step) * STEP_MS);
    expect(decodeSeriesState(forecaster.save()).scores).not.toEqual(before.scores);
  });
});

describe('what a forecaster has saved', () => {
  const random = randomFrom(9);
  const values = series(6 * DAY, (step) =>
    step % 97 < 4 ? Number.NaN : 20 + 10 * Math.sin((2 * Math.PI * step) / DAY) + normal(random),
  );

  it.each([1, 17, 300, 6 * DAY])('after %d steps makes another one that says the same', (steps) => {
    const forecaster = fed(values.slice(0, steps));
    const restored = SeriesForecaster.restore(OPTIONS, forecaster.save());
    if (restored.kind !== 'restored') throw restored.error;
    expect(restored.forecaster.predict(LEADS)).toEqual(forecaster.predict(LEADS));
    for (const one of [forecaster, restored.forecaster]) one.update(21, steps * STEP_MS);
    expect(restored.forecaster.predict([1])?.values[5]).toBeCloseTo(
      forecaster.predict([1])?.values[5] ?? 0,
      0,
    );
  });

  it('and was damaged is a fresh beginning, with the reason', () => {
    const bytes = fed(values).save();
    bytes[bytes.length >> 1] = (bytes[bytes.length >> 1] ?? 0) ^ 1;
    expect(SeriesForecaster.restore(OPTIONS, bytes)).toMatchObject({
      kind: 'unreadable',
      error: { code: 'FORECAST_STATE_INVALID' },
    });
  });

  it('serves also when there is a method more', () => {
    const bytes = fed(values).save();
    const methods = simpleMethods().filter(({ name }) => name !== 'window-6h');
    const fewer = fed(values, { ...OPTIONS, methods });
    for (const [options, state] of [
      [{ ...OPTIONS, methods }, bytes],
      [OPTIONS, fewer.save()],
    ] as const) {
      const restored = SeriesForecaster.restore(options, state);
      if (restored.kind !== 'restored') throw restored.error;
      expectForecast(restored.forecaster.predict(LEADS)?.values);
    }
  });
});
