/**
 * The scoring of the Numenta Anomaly Benchmark, written anew after its description and its code (numenta/NAB, nab/sweeper.py,
 * nab/optimizer.py, nab/runner.py; Lavin and Ahmad, "Evaluating Real-time Anomaly Detection Algorithms", ICMLA 2015).
 */
import { assert } from '../src/base/assert.ts';

/** What a right, a false and a missed alarm are worth. */
export interface NabProfile {
  readonly truePositive: number;
  readonly falsePositive: number;
  readonly falseNegative: number;
}

export const NAB_PROFILES = {
  standard: { truePositive: 1, falsePositive: 0.11, falseNegative: 1 },
  lowFp: { truePositive: 1, falsePositive: 0.22, falseNegative: 1 },
  lowFn: { truePositive: 1, falsePositive: 0.11, falseNegative: 2 },
} as const satisfies Readonly<Record<string, NabProfile>>;

/** Rows from `first` to `last`, both included, in which an alarm is right. */
export interface LabelledWindow {
  readonly first: number;
  readonly last: number;
}

/** What a detector said of each row of a series, 0 … 1, and where it should have spoken. */
export interface ScoredSeries {
  readonly scores: ArrayLike<number>;
  /** Ascending, apart from each other. */
  readonly windows: readonly LabelledWindow[];
}

export interface NabPoint {
  readonly score: number;
  /** What an alarm here is worth: the weight of the profile is in it. */
  readonly worth: number;
  /** Undefined outside of all windows. */
  readonly window: LabelledWindow | undefined;
}

/** One threshold for all series: alarms are where the score is at or above it. */
export interface NabThreshold {
  readonly threshold: number;
  readonly sum: number;
}

const PROBATION_SHARE = 0.15;
/** Of longer series, the share is one of so many rows. */
const PROBATION_OF_ROWS_MAX = 5000;
/** Above every score: no alarm at all. */
const NO_ALARM = 1.1;
/** An alarm so many widths of a window behind it is as false as any. */
const FAR = 3;

/** In how many rows of the beginning neither alarms nor windows count. */
export function probationRows(rows: number, share = PROBATION_SHARE): number {
  return Math.min(Math.floor(share * rows), share * PROBATION_OF_ROWS_MAX);
}

/** Worth of an alarm at a position in units of the window's width: -1 its left edge, 0 its right one, above 0 behind it. */
export function sigmoidWorth(position: number): number {
  return position > FAR ? -1 : 2 / (1 + Math.exp(5 * position)) - 1;
}

interface PointOptions {
  readonly profile: NabProfile;
  /** Share of the rows without score; NAB's own is 0.15. */
  readonly probationShare?: number;
}

/** What an alarm at each row would be worth; without the rows of the probation. */
export function nabPoints({ scores, windows: given }: ScoredSeries, options: PointOptions): NabPoint[] {
  const { profile, probationShare = PROBATION_SHARE } = options;
  const probation = probationRows(scores.length, probationShare);
  const points: NabPoint[] = [];
  // Windows are told apart by identity, and two series may have been given the same list.
  const windows = given.map((window) => ({ ...window }));
  let next = 0;
  let before: LabelledWindow | undefined;
  for (let row = 0; row < scores.length; row += 1) {
    const candidate = windows[next];
    const window = candidate !== undefined && candidate.first <= row ? candidate : undefined;
    if (row >= probation)
      points.push({ score: scores[row] ?? 0, worth: worthAt(row, { window, before, profile }), window });
    if (window === undefined || row < window.last) continue;
    before = window;
    next += 1;
  }
  return points;
}

interface Place {
  readonly window: LabelledWindow | undefined;
  readonly before: LabelledWindow | undefined;
  readonly profile: NabProfile;
}

function worthAt(row: number, { window, before, profile }: Place): number {
  if (window !== undefined) {
    const position = -(window.last - row + 1) / (window.last - window.first + 1);
    return (profile.truePositive * sigmoidWorth(position)) / sigmoidWorth(-1);
  }
  if (before === undefined) return -profile.falsePositive;
  // A window of one row has no width to measure by: behind it is far behind it.
  const position = before.last > before.first ? (row - before.last) / (before.last - before.first) : FAR + 1;
  return profile.falsePositive * sigmoidWorth(position);
}

/**
 * The sum of all series at each threshold, from none to the lowest score. A window counts its best (so its first) alarm, or
 * what a miss costs; every alarm outside counts.
 */
export function nabSweep(points: readonly NabPoint[], profile: NabProfile): NabThreshold[] {
  const best = new Map<LabelledWindow, number>();
  let sum = 0;
  for (const { window } of points) {
    if (window === undefined || best.has(window)) continue;
    best.set(window, -profile.falseNegative);
    sum -= profile.falseNegative;
  }
  const sweep: NabThreshold[] = [];
  let threshold = NO_ALARM;
  for (const { score, worth, window } of points.toSorted((a, b) => b.score - a.score)) {
    if (score !== threshold) {
      sweep.push({ threshold, sum });
      threshold = score;
    }
    const known = window === undefined ? 0 : (best.get(window) ?? 0);
    if (window === undefined) sum += worth;
    else if (worth > known) {
      best.set(window, worth);
      sum += worth - known;
    }
  }
  sweep.push({ threshold, sum });
  return sweep;
}

/** NAB's threshold: the one that is best for all series together; the highest of equal ones. */
export function nabOptimum(sweep: readonly NabThreshold[]): NabThreshold {
  const [first] = sweep;
  assert(first !== undefined, 'a sweep has at least the threshold without alarms');
  return sweep.reduce((best, entry) => (entry.sum > best.sum ? entry : best), first);
}

/** The sum at a threshold that need not be one of the sweep. */
export function nabAt(sweep: readonly NabThreshold[], threshold: number): number {
  const entry = sweep.findLast((candidate) => candidate.threshold >= threshold);
  return (entry ?? sweep[0])?.sum ?? 0;
}

interface NormalOptions {
  readonly profile: NabProfile;
  /** All that are labelled, those within the probation too, as NAB does. */
  readonly windows: number;
  /** What a detector without alarms gets. */
  readonly nullSum: number;
}

/** 0 is a detector that never speaks, 100 a perfect one. */
export function nabNormal(sum: number, { profile, windows, nullSum }: NormalOptions): number {
  return (100 * (sum - nullSum)) / (windows * profile.truePositive - nullSum);
}

export interface NabResult {
  readonly score: number;
  readonly threshold: number;
}

/** The normalised score over all series, at the threshold that is best for them together, or at a given one. */
export function nabScore(
  series: readonly ScoredSeries[],
  { profile, threshold }: { readonly profile: NabProfile; readonly threshold?: number },
): NabResult {
  const sweep = nabSweep(
    series.flatMap((one) => nabPoints(one, { profile })),
    profile,
  );
  const nullSum = sweep[0]?.sum ?? 0;
  const windows = series.reduce((count, one) => count + one.windows.length, 0);
  const used = threshold === undefined ? nabOptimum(sweep) : { threshold, sum: nabAt(sweep, threshold) };
  return { score: nabNormal(used.sum, { profile, windows, nullSum }), threshold: used.threshold };
}
