import { AnomalyDetector } from '../src/forecast/anomaly-detector.ts';
import { ALARM_SCORE } from '../src/forecast/anomaly-verdict.ts';
import { type AlarmFigures, alarmFigures, type TimedScores } from './alarm-figures.ts';
import { ANOMALY_BASELINES } from './anomaly-baselines.ts';
import type { Benchmark, BenchRun, FigureInfo } from './harness.ts';
import { type LabelledSeries, readLabelledSeries } from './labelled-series.ts';
import { labelledWorkloads } from './labelled-workloads.ts';
import { NAB_PROFILES, nabScore } from './nab-score.ts';

const BASELINES = {
  gaussian: "NAB's windowed Gaussian",
  entropy: "NAB's relative entropy (it is told the range of the whole series in advance)",
  sigma: 'a static threshold at so many standard deviations of the first 15 %',
  silent: 'a detector that never speaks',
} as const satisfies Readonly<Record<keyof typeof ANOMALY_BASELINES, string>>;

const SEED = 1;
/** So many updates are one sample of their time: the clock costs less than they do. */
const UPDATES_PER_SAMPLE = 200;

export const anomaly: Benchmark = {
  name: 'anomaly',
  summary: 'Anomalies found in labelled series, scored by the rules of the Numenta Anomaly Benchmark.',
  figures: figureTable(),
  run: async (run) => {
    const { traces } = run.options;
    const series = traces === undefined ? labelledWorkloads(SEED) : readLabelledSeries(traces);
    if (traces === undefined)
      run.note('no --traces: synthetic series, for NAB see docs/anomalies.md for where to get its data');
    const windows = series.reduce((count, one) => count + one.windows.length, 0);
    run.note(`${series.length} series, ${windows} windows`);
    measureOurs(run, series);
    for (const [name, meaning] of Object.entries(BASELINES)) {
      run.progress(`${name}: ${meaning}`);
      const baseline = ANOMALY_BASELINES[name as keyof typeof BASELINES];
      measureBaseline(run, { name, scored: series.map((one) => ({ ...one, scores: baseline(one) })) });
    }
  },
};

function figureTable(): Record<string, FigureInfo> {
  return {
    nabStandard: {
      meaning:
        "NAB's score, profile standard: 0 never speaks, 100 is perfect; one threshold for all series, the best one",
      target: { atLeast: 55 },
    },
    nabLowFp: { meaning: 'the same, profile reward_low_FP_rate: a false alarm costs twice' },
    nabLowFn: { meaning: 'the same, profile reward_low_FN_rate: a miss costs twice' },
    nabStandardCrossed: {
      meaning:
        'profile standard, each half of the series scored at the threshold that is best for the other half; mean',
    },
    nabStandardBuiltIn: { meaning: 'profile standard at the score from which an episode begins' },
    falseAlarmsPerDay: {
      meaning: 'alarms outside of windows a day and series, at the score from which an episode begins',
    },
    precision: { meaning: 'alarms within windows / alarms' },
    recall: { meaning: 'windows with an alarm / windows' },
    delayP50Minutes: { meaning: 'from the beginning of a window to its first alarm' },
    delayP50Share: { meaning: 'the same as a share of the window; most labels are in the middle of theirs' },
    updateP50Us: { meaning: 'a value taken, in µs', target: { atMost: 15 } },
    bytesPerSeries: { meaning: 'what a detector saves' },
    ...Object.fromEntries(
      Object.entries(BASELINES).flatMap(([name, meaning]) => [
        [`${name}NabStandard`, { meaning: `${meaning}: profile standard` }],
        [`${name}FalseAlarmsPerDay`, { meaning: 'its false alarms at that threshold' }],
        [`${name}Precision`, { meaning: 'its precision' }],
        [`${name}Recall`, { meaning: 'its recall' }],
      ]),
    ),
  };
}

function measureOurs(run: BenchRun, series: readonly LabelledSeries[]): void {
  let bytes = 0;
  const scored = series.map((one) => {
    run.progress(`our detector: ${one.name}`);
    const detector = new AnomalyDetector({ stepMs: one.stepMs });
    const scores = scoreSeries(run, { detector, series: one });
    bytes = Math.max(bytes, detector.save().length);
    return { ...one, scores };
  });
  const profile = NAB_PROFILES.standard;
  run.figure('nabStandard', nabScore(scored, { profile }).score);
  run.figure('nabLowFp', nabScore(scored, { profile: NAB_PROFILES.lowFp }).score);
  run.figure('nabLowFn', nabScore(scored, { profile: NAB_PROFILES.lowFn }).score);
  const halves = [0, 1].map((half) => scored.filter((_, index) => index % 2 === half));
  if (halves.every((half) => half.some(({ windows }) => windows.length > 0)))
    run.figure('nabStandardCrossed', crossedScore(halves));
  else run.missing('nabStandardCrossed', 'one half of the series has no windows');
  run.figure('nabStandardBuiltIn', nabScore(scored, { profile, threshold: ALARM_SCORE }).score);
  const alarms = alarmFigures(scored, ALARM_SCORE);
  setAlarmFigures(run, alarms);
  run.figure('updateP50Us', run.p50('updateUs'));
  run.figure('bytesPerSeries', bytes);
}

function setAlarmFigures(
  run: BenchRun,
  { precision, recall, falseAlarmsPerDay, delays }: AlarmFigures,
): void {
  run.figure('falseAlarmsPerDay', falseAlarmsPerDay);
  run.figure('precision', precision);
  run.figure('recall', recall);
  run.sample('delayMinutes', ...delays.map(({ minutes }) => minutes));
  run.sample('delayShare', ...delays.map(({ share }) => share));
  for (const [figure, samples] of [
    ['delayP50Minutes', 'delayMinutes'],
    ['delayP50Share', 'delayShare'],
  ] as const) {
    if (run.hasSamples(samples)) run.figure(figure, run.p50(samples));
    else run.missing(figure, 'no window was found');
  }
}

interface Scoring {
  readonly detector: AnomalyDetector;
  readonly series: LabelledSeries;
}

function scoreSeries(run: BenchRun, { detector, series: { values, startsMs } }: Scoring): number[] {
  const { clock } = run.options;
  const scores: number[] = [];
  for (let first = 0; first < values.length; first += UPDATES_PER_SAMPLE) {
    const end = Math.min(values.length, first + UPDATES_PER_SAMPLE);
    const beganMs = clock.nowMs();
    for (let row = first; row < end; row += 1)
      scores.push(detector.push(values[row] ?? Number.NaN, startsMs[row] ?? 0).score);
    run.sample('updateUs', ((clock.nowMs() - beganMs) * 1000) / (end - first));
  }
  return scores;
}

/** Every other series decides on the threshold for the rest, and the other way round. */
function crossedScore(halves: readonly (readonly TimedScores[])[]): number {
  const profile = NAB_PROFILES.standard;
  const scores = halves.map((half, index) => {
    const { threshold } = nabScore(halves[1 - index] ?? [], { profile });
    return nabScore(half, { profile, threshold }).score;
  });
  return scores.reduce((sum, score) => sum + score / scores.length, 0);
}

interface BaselineScores {
  readonly name: string;
  readonly scored: readonly TimedScores[];
}

function measureBaseline(run: BenchRun, { name, scored }: BaselineScores): void {
  const { score, threshold } = nabScore(scored, { profile: NAB_PROFILES.standard });
  const alarms = alarmFigures(scored, threshold);
  run.figure(`${name}NabStandard`, score);
  run.figure(`${name}FalseAlarmsPerDay`, alarms.falseAlarmsPerDay);
  run.figure(`${name}Precision`, alarms.precision);
  run.figure(`${name}Recall`, alarms.recall);
}
