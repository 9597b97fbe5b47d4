import { PeakForecaster } from '../src/forecast/peak-forecaster.ts';

/** Ways to say, from the past alone, how much a VM gets for its next hour. */
export interface AllocationRule {
  readonly name: string;
  readonly meaning: string;
  /** Called with each origin in turn, ascending: what is known is `values[0]` … `values[origin - 1]`. */
  decide(origin: number): number;
}

export interface RuleInput {
  /** One value per step, NaN where it is missing. */
  readonly values: Float64Array;
  readonly stepMs: number;
}

const HOUR_MS = 3_600_000;
const DAYS = 7;
/** When a trace begins matters to nobody here but for the length of a day. */
const MONDAY_MS = Date.UTC(2018, 0, 1);

/** The highest of `values[from]` … `values[to - 1]`; zero where all are missing. */
export function highest(
  values: Float64Array,
  { from, to }: { readonly from: number; readonly to: number },
): number {
  let most = 0;
  for (let at = Math.max(0, from); at < Math.min(values.length, to); at += 1) {
    const value = values[at] ?? 0;
    if (value > most) most = value;
  }
  return most;
}

export function lastHours({ values, stepMs }: RuleInput, hours: number): AllocationRule {
  const steps = Math.round((hours * HOUR_MS) / stepMs);
  return {
    name: hours === 1 ? 'lastHour' : `last${hours}Hours`,
    meaning: `the highest value of the last ${hours === 1 ? 'hour' : `${hours} hours`}`,
    decide: (origin) => highest(values, { from: origin - steps, to: origin }),
  };
}

export function sameHour({ values, stepMs }: RuleInput): AllocationRule {
  const day = Math.round((24 * HOUR_MS) / stepMs);
  const hour = Math.round(HOUR_MS / stepMs);
  return {
    name: 'sameHour',
    meaning: `the highest value of the same hour of the last ${DAYS} days`,
    decide: (origin) => {
      let most = 0;
      for (let back = 1; back <= DAYS; back += 1) {
        const from = origin - back * day;
        most = Math.max(most, highest(values, { from, to: from + hour }));
      }
      return most;
    },
  };
}

/**
 * The 90th percentile of a histogram whose weights halve in 24 h, and 15 % more: the recommender of Kubernetes' Vertical Pod
 * Autoscaler. Its buckets grow by 5 % (pkg/recommender/model/aggregations_config.go).
 */
export function decayingHistogram({ values, stepMs }: RuleInput): AllocationRule {
  const first = 1e-3;
  const growth = 1.05;
  const weights = new Float64Array(1024);
  let seen = 0;
  let weight = 1;
  const aStep = 2 ** (stepMs / (24 * HOUR_MS));
  const bucketOf = (value: number) =>
    value < first ? 0 : Math.min(1023, 1 + Math.floor(Math.log(value / first) / Math.log(growth)));
  return {
    name: 'decayingHistogram',
    meaning: '90th percentile of a histogram that halves in 24 h, and 15 % more, as the VPA of Kubernetes',
    decide: (origin) => {
      for (; seen < origin; seen += 1) {
        const value = values[seen] ?? Number.NaN;
        weight *= aStep;
        if (Number.isNaN(value)) continue;
        const bucket = bucketOf(value);
        weights[bucket] = (weights[bucket] ?? 0) + weight;
      }
      const wanted = 0.9 * weights.reduce((sum, each) => sum + each, 0);
      let sum = 0;
      let bucket = 0;
      while (bucket < weights.length - 1 && sum + (weights[bucket] ?? 0) < wanted)
        sum += weights[bucket++] ?? 0;
      return first * growth ** bucket * 1.15;
    },
  };
}

/** Which quantile of the peak is asked for; the margin on top of it is what the benchmark sweeps. */
const PEAK_LEVEL = 0.95;

/** Ours: a forecast of the peak within the next hour. */
export function forecastPeak({ values, stepMs }: RuleInput): AllocationRule {
  const forecaster = new PeakForecaster({ stepMs, horizonMs: HOUR_MS });
  const column = forecaster.levels.indexOf(PEAK_LEVEL);
  let seen = 0;
  return {
    name: 'forecast',
    meaning: `quantile ${PEAK_LEVEL} of the highest value within the next hour`,
    decide: (origin) => {
      for (; seen < origin; seen += 1)
        forecaster.update(values[seen] ?? Number.NaN, MONDAY_MS + seen * stepMs);
      const peak = forecaster.predict()?.[column] ?? 0;
      return Number.isFinite(peak) ? peak : 0;
    },
  };
}
