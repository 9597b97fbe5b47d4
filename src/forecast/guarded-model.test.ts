import { describe, expect, it } from 'vitest';
import type { ForecastMethod, ForecastModel } from './forecast-model.ts';
import { MINUTES_SERIES } from './forecaster.ts';
import { FAULTS_MAX } from './guarded-model.ts';
import { SeriesForecaster } from './series-forecaster.ts';
import { simpleMethods } from './simple-methods.ts';

const LEADS = [1, 12, 48];

function plugIn(parts: Partial<ForecastModel>): ForecastMethod {
  const model: ForecastModel = {
    update: () => undefined,
    predict: () => false,
    save: () => new Uint8Array(),
    ...parts,
  };
  return { name: 'plug-in', stateVersion: 1, create: () => model, restore: () => model };
}

function fed(methods: readonly ForecastMethod[], nowMs = () => 0): SeriesForecaster {
  const forecaster = new SeriesForecaster({ ...MINUTES_SERIES, methods, nowMs });
  for (let step = 0; step < 400; step += 1) forecaster.update(20 + (step % 7), step * MINUTES_SERIES.stepMs);
  return forecaster;
}

describe('a plug-in', () => {
  const without = fed(simpleMethods()).predict(LEADS);

  it.each<[string, ForecastMethod, RegExp]>([
    [
      'that throws in its updates',
      plugIn({
        update: () => {
          throw new Error('no idea');
        },
      }),
      /update threw: no idea/,
    ],
    [
      'that throws in its forecasts',
      plugIn({
        predict: () => {
          throw new TypeError('not a function');
        },
      }),
      /predict threw: not a function/,
    ],
    [
      'that states NaN',
      plugIn({
        predict: (_, into) => {
          into.fill(Number.NaN);
          return true;
        },
      }),
      /stated NaN/,
    ],
    [
      'that states infinity',
      plugIn({
        predict: (_, into) => {
          into.fill(Number.POSITIVE_INFINITY);
          return true;
        },
      }),
      /stated Infinity/,
    ],
    ['that writes fewer quantiles than it says', plugIn({ predict: () => true }), /stated NaN/],
    [
      'that cannot be made',
      {
        ...plugIn({}),
        create: () => {
          throw new Error('no memory');
        },
      },
      /could not be made: no memory/,
    ],
  ])('%s is out, with the reason, and the forecast is that without it', (_, method, reason) => {
    const forecaster = fed([...simpleMethods(), method]);
    expect(forecaster.faults).toEqual([
      { method: 'plug-in', reason: expect.stringMatching(reason), times: expect.any(Number), isOut: true },
    ]);
    const values = [...(forecaster.predict(LEADS)?.values ?? [])];
    for (const [at, value] of values.entries()) expect(value).toBeCloseTo(without?.values[at] ?? 0, 5);
  });

  it('that takes too long is out', () => {
    let nowMs = 0;
    const slow = plugIn({
      predict: () => {
        nowMs += 1000;
        return false;
      },
    });
    expect(fed([...simpleMethods(), slow], () => nowMs).faults).toEqual([
      { method: 'plug-in', reason: 'predict took 1000 ms', times: FAULTS_MAX, isOut: true },
    ]);
  });

  it('whose state is none is begun anew after a restart, and the others are not', () => {
    const bad = plugIn({ save: () => 'text' as unknown as Uint8Array });
    const forecaster = fed([...simpleMethods(), bad]);
    const methods = [...simpleMethods(), bad];
    const restored = SeriesForecaster.restore({ ...MINUTES_SERIES, methods }, forecaster.save());
    expect(forecaster.faults).toMatchObject([
      { method: 'plug-in', reason: 'save gave no bytes', isOut: false },
    ]);
    if (restored.kind !== 'restored') throw restored.error;
    expect(restored.forecaster.predict(LEADS)).toEqual(forecaster.predict(LEADS));
  });

  it('that knows better is heard more than all others', () => {
    // The value in 12 steps is known to nobody else.
    const random = (step: number) => Math.abs(Math.imul(step + 1, 2_654_435_761)) % 1000;
    let count = 0;
    const oracle = plugIn({
      update: () => {
        count += 1;
      },
      predict: (leads, into) => {
        for (const [row, lead] of leads.entries())
          into.fill(random(count - 1 + lead), row * 11, (row + 1) * 11);
        return true;
      },
    });
    const forecaster = new SeriesForecaster({ ...MINUTES_SERIES, methods: [...simpleMethods(), oracle] });
    for (let step = 0; step < 400; step += 1) forecaster.update(random(step), step * MINUTES_SERIES.stepMs);
    expect(forecaster.predict([12])?.values[5]).toBeCloseTo(random(411), 0);
  });
});
