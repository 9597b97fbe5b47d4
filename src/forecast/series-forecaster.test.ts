import { describe, expect, it } from 'vitest';
import { MINUTES_BUCKETS } from './probe-plan.ts';
import { SeriesForecaster } from './series-forecaster.ts';
import { simpleMethods } from './simple-methods.ts';

const STEP_MS = 300_000;

function forecaster(): SeriesForecaster {
  return new SeriesForecaster({
    stepMs: STEP_MS,
    historySteps: 4032,
    methods: simpleMethods(),
    buckets: MINUTES_BUCKETS,
    halfLifeMs: 36 * 3_600_000,
  });
}

describe('a forecast of a series', () => {
  it('that is constant is that constant, at all levels and leads', () => {
    const series = forecaster();
    for (let step = 0; step < 600; step += 1) series.update(7, step * STEP_MS);
    expect([...(series.predict([1, 12, 48, 288])?.values ?? [])]).toEqual(new Array(44).fill(7));
    expect(series.faults).toEqual([]);
  });
});
