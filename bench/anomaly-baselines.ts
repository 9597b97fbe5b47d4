import type { LabelledSeries } from './labelled-series.ts';
import { probationRows } from './nab-score.ts';

/** Another way to score each row of a series, 0 … 1. */
export type AnomalyBaseline = (series: LabelledSeries) => number[];

export const ANOMALY_BASELINES = {
  gaussian: windowedGaussian,
  entropy: relativeEntropy,
  sigma: staticSigma,
  silent: ({ values }) => values.map(() => 0),
} as const satisfies Readonly<Record<string, AnomalyBaseline>>;

const GAUSSIAN_ROWS = 6400;
const GAUSSIAN_STRIDE = 100;

/** NAB's windowed Gaussian with its own settings: how far a value is in the tail of the values before. */
function windowedGaussian({ values }: LabelledSeries): number[] {
  let window: number[] = [];
  let waiting: number[] = [];
  let moments = { mean: 0, m2: 0, count: 0 };
  return finite(values).map((value) => {
    const deviation = Math.sqrt(moments.m2 / Math.max(1, moments.count)) || 1e-6;
    const score = moments.count === 0 ? 0 : 1 - upperTail(Math.abs(value - moments.mean) / deviation);
    if (window.length < GAUSSIAN_ROWS) {
      window.push(value);
      moments = withValue(moments, value);
      return score;
    }
    waiting.push(value);
    if (waiting.length < GAUSSIAN_STRIDE) return score;
    window = [...window.slice(GAUSSIAN_STRIDE), ...waiting];
    waiting = [];
    moments = window.reduce(withValue, { mean: 0, m2: 0, count: 0 });
    return score;
  });
}

interface Moments {
  readonly mean: number;
  /** Sum of the squared distances from the mean. */
  readonly m2: number;
  readonly count: number;
}

/** Welford, "Note on a Method for Calculating Corrected Sums of Squares and Products", Technometrics 4 (1962). */
function withValue({ mean, m2, count }: Moments, value: number): Moments {
  const next = mean + (value - mean) / (count + 1);
  return { mean: next, m2: m2 + (value - mean) * (value - next), count: count + 1 };
}

/** The share of a normal distribution above `z`; Press and others, Numerical Recipes in C, section 6.2 (relative error 1e-7). */
export function upperTail(z: number): number {
  const x = z / Math.SQRT2;
  const t = 1 / (1 + x / 2);
  const terms = [
    0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196,
    1.00002368, -1.26551223,
  ];
  return (t * Math.exp(-x * x + terms.reduce((sum, term) => sum * t + term, 0))) / 2;
}

const ENTROPY_BINS = 5;
const ENTROPY_ROWS = 52;
/** 0.99 of the chi-squared distribution with 4 degrees of freedom. */
const ENTROPY_LIMIT = 13.2767;

/**
 * NAB's relative entropy with its own settings: does the histogram of the last rows fit one that was seen before? As there, it
 * is told the range of the whole series in advance. Wang and others, "Statistical Techniques for Online Anomaly Detection in
 * Data Centers", 2011.
 */
function relativeEntropy({ values: given }: LabelledSeries): number[] {
  const values = finite(given);
  const low = values.reduce((least, value) => Math.min(least, value), Number.POSITIVE_INFINITY);
  const high = values.reduce((most, value) => Math.max(most, value), Number.NEGATIVE_INFINITY);
  const bins = values.map((value) => Math.ceil((value - low) / ((high - low) / ENTROPY_BINS)));
  const known: { readonly shares: readonly number[]; seen: number }[] = [];
  return values.map((_, row) => {
    if (high <= low || row < ENTROPY_ROWS - 1) return 0;
    const shares = sharesOf(bins.slice(row - ENTROPY_ROWS + 1, row + 1));
    const fits = known
      .map((hypothesis) => ({
        hypothesis,
        statistic: 2 * ENTROPY_ROWS * divergence(shares, hypothesis.shares),
      }))
      .filter(({ statistic }) => statistic < ENTROPY_LIMIT);
    if (fits.length === 0) {
      known.push({ shares, seen: 1 });
      return known.length === 1 ? 0 : 1;
    }
    const best = fits.reduce((least, fit) => (fit.statistic < least.statistic ? fit : least));
    best.hypothesis.seen += 1;
    return 0;
  });
}

/** The last bin holds its upper edge too, as numpy's histogram does. */
function sharesOf(bins: readonly number[]): number[] {
  const shares = new Array<number>(ENTROPY_BINS).fill(0);
  for (const bin of bins) {
    const index = Math.min(ENTROPY_BINS - 1, bin);
    shares[index] = (shares[index] ?? 0) + 1 / bins.length;
  }
  return shares;
}

function divergence(shares: readonly number[], others: readonly number[]): number {
  return shares.reduce((sum, share, index) => {
    if (share === 0) return sum;
    return sum + share * Math.log(share / (others[index] ?? 0));
  }, 0);
}

/** A fixed threshold at some standard deviations of the rows of the probation, the same number of them for all series. */
function staticSigma(series: LabelledSeries): number[] {
  const values = finite(series.values);
  const { mean, m2, count } = values
    .slice(0, Math.floor(probationRows(values.length)))
    .reduce<Moments>(withValue, { mean: 0, m2: 0, count: 0 });
  const deviation = Math.sqrt(m2 / Math.max(1, count)) || 1e-6;
  return values.map((value) => Math.abs(value - mean) / (deviation + Math.abs(value - mean)));
}

/** These know no missing values: the last one stands for them. */
function finite(values: readonly number[]): number[] {
  let last = 0;
  return values.map((value) => {
    if (Number.isFinite(value)) last = value;
    return last;
  });
}
