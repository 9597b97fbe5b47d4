import fc from 'fast-check';
import { describe, expect, it, test } from 'vitest';
import {
  type LabelledWindow,
  NAB_PROFILES,
  nabAt,
  nabOptimum,
  nabPoints,
  nabScore,
  nabSweep,
  probationRows,
  type ScoredSeries,
  sigmoidWorth,
} from './nab-score.ts';

/** As NAB's own tests have it. */
const EVEN = { truePositive: 1, falsePositive: 1, falseNegative: 1 };
const standard = NAB_PROFILES.standard;

function withAlarms(
  rows: number,
  { alarms, windows }: { alarms: number[]; windows: LabelledWindow[] },
): ScoredSeries {
  return { windows, scores: Array.from({ length: rows }, (_, row) => (alarms.includes(row) ? 1 : 0)) };
}

function sumOf(series: ScoredSeries, profile = EVEN): number {
  const points = nabPoints(series, { profile, probationShare: 0 });
  return nabAt(nabSweep(points, profile), 0.5);
}

describe("the cases of NAB's own tests", () => {
  const windows = [
    { first: 20, last: 24 },
    { first: 60, last: 64 },
  ];

  it('is 0 without windows and alarms, and the weight of one false alarm with one', () => {
    expect(sumOf(withAlarms(10, { alarms: [], windows: [] }))).toBe(0);
    expect(sumOf(withAlarms(1000, { alarms: [0], windows: [] }))).toBe(-1);
    expect(sumOf(withAlarms(1000, { alarms: [0], windows: [] }), standard)).toBe(-0.11);
  });

  it('scores a right alarm, one more, a false one and a missed window as testScoringAllMetrics does', () => {
    expect(sumOf(withAlarms(100, { alarms: [20, 21, 27], windows }))).toBeCloseTo(-0.954, 4);
  });

  it('gives an alarm at the left edge its full weight, whatever the width', () => {
    for (const last of [21, 22, 60])
      expect(sumOf(withAlarms(100, { alarms: [20], windows: [{ first: 20, last }] }))).toBe(1);
  });

  it('counts only the first alarm of a window, and rather an earlier than a later one', () => {
    const [window] = windows.map((one) => [one]);
    const early = sumOf(withAlarms(100, { alarms: [21], windows: window ?? [] }));
    expect(sumOf(withAlarms(100, { alarms: [21, 23], windows: window ?? [] }))).toBe(early);
    expect(sumOf(withAlarms(100, { alarms: [22], windows: window ?? [] }))).toBeLessThan(early);
  });

  it('crosses zero at the right edge: an alarm just within and one just behind cancel each other', () => {
    const wide = [{ first: 400, last: 499 }];
    const within = sumOf(withAlarms(1000, { alarms: [499], windows: wide }));
    const behind = sumOf(withAlarms(1000, { alarms: [500], windows: wide }));
    expect(within + behind + 1).toBeCloseTo(0, 3);
  });

  it('finds a false alarm worse the further it is behind a window', () => {
    const [first = { first: 0, last: 1 }] = windows;
    const near = sumOf(withAlarms(100, { alarms: [25], windows: [first] }));
    expect(sumOf(withAlarms(100, { alarms: [26], windows: [first] }))).toBeLessThan(near);
    expect(sumOf(withAlarms(100, { alarms: [90], windows: [first] }))).toBe(-2);
  });

  it('sweeps thresholds as testCalcScoreByThresholdReturnsExpectedScores does', () => {
    const a = { first: 4, last: 5 };
    const b = { first: 6, last: 6 };
    const points = [
      { score: 0, worth: -3, window: undefined },
      { score: 0.2, worth: 20, window: a },
      { score: 0.3, worth: 10, window: a },
      { score: 0.5, worth: 5, window: b },
      { score: 0.5, worth: -3, window: undefined },
    ];
    const sweep = nabSweep(points, { truePositive: 0, falsePositive: 0, falseNegative: 5 });
    expect(sweep).toEqual([
      { threshold: 1.1, sum: -10 },
      { threshold: 0.5, sum: -3 },
      { threshold: 0.3, sum: 12 },
      { threshold: 0.2, sum: 22 },
      { threshold: 0, sum: 19 },
    ]);
    expect(nabOptimum(sweep).threshold).toBe(0.2);
    expect([nabAt(sweep, 0.25), nabAt(sweep, 0.3), nabAt(sweep, 2)]).toEqual([12, 12, -10]);
  });

  it.each([
    [100, 0, 0],
    [100, 1, 100],
    [100, 0.15, 15],
    [5000, 0.1, 500],
    [6000, 0.1, 500],
    [4032, 0.15, 604],
  ])('leaves out the beginning: of %d rows and a share of %d, %d', (rows, share, expected) => {
    expect(probationRows(rows, share)).toBe(expected);
  });

  it('has the sigmoid that its documentation tabulates', () => {
    expect(sigmoidWorth(-1)).toBeCloseTo(0.98661, 5);
    expect(sigmoidWorth(-0.5)).toBeCloseTo(0.84828, 5);
    expect(sigmoidWorth(0)).toBe(0);
    expect(sigmoidWorth(1)).toBeCloseTo(-0.98661, 5);
    expect(sigmoidWorth(3.01)).toBe(-1);
  });
});

describe('the normalised score', () => {
  const windows = [
    { first: 300, last: 399 },
    { first: 700, last: 799 },
  ];
  const silent = withAlarms(1000, { alarms: [], windows });
  const perfect = withAlarms(1000, { alarms: [300, 700], windows });

  it.each(Object.entries(NAB_PROFILES))('is 0 for silence and 100 for perfection: %s', (_, profile) => {
    expect(nabScore([silent, silent], { profile }).score).toBe(0);
    expect(nabScore([perfect, perfect], { profile }).score).toBeCloseTo(100, 10);
  });

  it('halves for half of the windows, and a false alarm costs what the profile says', () => {
    const half = withAlarms(1000, { alarms: [300], windows });
    expect(nabScore([half], { profile: standard, threshold: 1 }).score).toBe(50);
    const noisy = withAlarms(1000, { alarms: [200, 300, 700], windows });
    expect(nabScore([noisy], { profile: standard, threshold: 1 }).score).toBeCloseTo(100 - 11 / 4, 10);
    expect(nabScore([noisy], { profile: NAB_PROFILES.lowFp, threshold: 1 }).score).toBeCloseTo(94.5, 10);
  });

  it('has one threshold for all series: what helps one and hurts another more is not taken', () => {
    const shy = { windows, scores: Array.from(perfect.scores, (score) => score * 0.4) };
    const loud = { windows: [], scores: Array.from({ length: 1000 }, () => 0.5) };
    const both = nabScore([shy, loud], { profile: standard });
    expect(both).toEqual({ score: 0, threshold: 1.1 });
    expect(nabScore([shy], { profile: standard })).toMatchObject({ threshold: 0.4 });
  });
});

test('no threshold is better than the optimum, and silence is never worse than 0', () => {
  fc.assert(
    fc.property(
      fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { minLength: 60, maxLength: 200 }),
      (scores) => {
        const series = { scores, windows: [{ first: 40, last: 49 }] };
        const best = nabScore([series], { profile: standard });
        expect(best.score).toBeGreaterThanOrEqual(0);
        for (const threshold of [0, 0.3, 0.6, 0.9])
          expect(nabScore([series], { profile: standard, threshold }).score).toBeLessThanOrEqual(
            best.score + 1e-9,
          );
      },
    ),
  );
});
