import { describe, expect, it } from 'vitest';
import { LEVELS } from '../src/forecast/quantile-forecast.ts';
import { ForecastScores } from './forecast-scores.ts';
import { SIMPLE_FORECASTS } from './simple-forecasts.ts';

const DAY = 288;
const WIDTH = LEVELS.length;

function prepared(name: string, values: Float64Array) {
  const found = SIMPLE_FORECASTS.find((one) => one.name === name);
  if (found === undefined) throw new Error(`no ${name}`);
  return found.prepare(values, values.length - DAY);
}

describe('a simple forecast', () => {
  const ramp = Float64Array.from({ length: 10 * DAY }, (_, step) => step);
  const days = Float64Array.from({ length: 10 * DAY }, (_, step) => step % DAY);
  const origin = 9 * DAY;

  it.each(SIMPLE_FORECASTS)('of $name knows nothing of what is after its origin', ({ prepare }) => {
    const other = ramp.slice();
    other.fill(1e6, origin);
    expect(prepare(other, origin)(origin, DAY)).toEqual(prepare(ramp, origin)(origin, DAY));
  });

  it.each(['naive', 'seasonal naive', 'EWMA'])(
    'of %s continues a ramp, as its errors were always the same',
    (name) => {
      const rows = prepared(name, ramp)(origin, 48);
      for (const lead of [1, 12, 48]) expect(rows[(lead - 1) * WIDTH + 4]).toBeCloseTo(origin - 1 + lead, -1);
    },
  );

  it.each(['seasonal naive', 'same time of 7 days', 'Holt-Winters'])('of %s repeats a day', (name) => {
    const rows = prepared(name, days)(origin, DAY);
    for (const lead of [1, 100, 287]) expect(rows[(lead - 1) * WIDTH + 4]).toBeCloseTo(lead - 1, 0);
  });

  it('of the last 24 h has their quantiles at each lead', () => {
    const rows = prepared('last 24 h', days)(origin, 2);
    expect([...rows.subarray(0, 3)].map(Math.round)).toEqual([29, 57, 86]);
    expect(rows.subarray(0, WIDTH)).toEqual(rows.subarray(WIDTH));
  });
});

describe('scores of forecasts', () => {
  it('are twice the pinball loss over the sum of what happened, and count what is covered', () => {
    const scores = new ForecastScores();
    const stated = Float64Array.from(LEVELS, () => 10);
    scores.add(20, stated, 0);
    scores.add(10, stated, 0);
    scores.add(Number.NaN, stated, 0);
    expect(scores.count).toBe(2);
    expect(scores.relativePinball(0.9)).toBeCloseTo((2 * 9) / 30);
    expect(scores.wql).toBeCloseTo((2 * 5) / 30);
    expect(scores.coverage(0.9)).toBe(0.5);
    expect(scores.meanError).toBe(5);
  });
});
