import { expect, test } from 'vitest';
import { decayingHistogram, forecastPeak, lastHours, sameHour } from './allocation-rules.ts';

const stepMs = 300_000;
const HOUR = 12;
const DAY = 24 * HOUR;

test('rules know only what was before', () => {
  const quiet = new Float64Array(10 * DAY).map((_, at) => 10 + (at % 7));
  const origin = 9 * DAY;
  const loud = quiet.map((value, at) => (at < origin ? value : 1000));
  for (const ruleOf of [decayingHistogram, sameHour, forecastPeak, (input: never) => lastHours(input, 24)]) {
    const [quietly, loudly] = [quiet, loud].map((values) => ruleOf({ values, stepMs } as never));
    expect(loudly?.decide(origin)).toBe(quietly?.decide(origin));
    // The control: an hour later it is known.
    if (ruleOf !== sameHour)
      expect(loudly?.decide(origin + DAY / 2)).not.toBe(quietly?.decide(origin + DAY / 2));
  }
});

test('the same hour of other days is that hour', () => {
  const values = new Float64Array(8 * DAY).map((_, at) => (at % DAY === 100 ? 50 : 1));
  const rule = sameHour({ values, stepMs });
  expect(rule.decide(7 * DAY + 96)).toBe(50);
  expect(rule.decide(7 * DAY + 84)).toBe(1);
});

test('the decaying histogram is within a bucket of its quantile, and 15 % above', () => {
  const values = new Float64Array(DAY).map((_, at) => (at % 10 === 0 ? 80 : 20));
  expect(decayingHistogram({ values, stepMs }).decide(DAY) / 1.15).toBeCloseTo(20, -0.5);
  const halves = values.map((_, at) => (at < DAY / 2 ? 20 : 80));
  expect(decayingHistogram({ values: halves, stepMs }).decide(DAY) / 1.15).toBeGreaterThan(75);
});

test('the forecast of the peak knows of a peak that comes every day at one time', () => {
  const values = new Float64Array(12 * DAY).map((_, at) =>
    at % DAY >= 120 && at % DAY < 126 ? 80 : 10 + (at % 3),
  );
  const rule = forecastPeak({ values, stepMs });
  expect(rule.decide(11 * DAY + 60)).toBeLessThan(40);
  expect(rule.decide(11 * DAY + 118)).toBeGreaterThan(60);
});
