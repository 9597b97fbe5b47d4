import { LEVELS } from '../src/forecast/quantile-forecast.ts';

/** Quantiles of the steps after `origin`, row after row, from the values before it only. */
export type ForecastFrom = (origin: number, leads: number) => Float64Array;

export interface SimpleForecast {
  readonly name: string;
  /** `testFrom` is the first origin: parameters are chosen from what is before it. */
  prepare(values: Float64Array, testFrom: number): ForecastFrom;
}

const DAY = 288;
const WIDTH = LEVELS.length;
/** Errors of point forecasts are those of the last day: of the lengths from a day to two weeks, the best on real traces. */
const ERROR_STEPS = DAY;
/** Up to here each lead has errors of its own, beyond it every so many; between them quantiles lie on straight lines. */
const DENSE_LEADS = 12;
const LEAD_STRIDE = 6;

/** What forecasts are held against everywhere: simple, and hard to beat. */
export const SIMPLE_FORECASTS: readonly SimpleForecast[] = [
  { name: 'naive', prepare: (values) => withErrors(values, (origin) => values[origin - 1] ?? Number.NaN) },
  {
    name: 'seasonal naive',
    prepare: (values) => withErrors(values, (origin, lead) => values[origin + lead - 1 - DAY] ?? Number.NaN),
  },
  { name: 'last 24 h', prepare: lastDay },
  { name: 'same time of 7 days', prepare: sameTimeOfDays },
  { name: 'EWMA', prepare: (values, testFrom) => exponential(values, testFrom) },
  { name: 'Holt-Winters', prepare: (values, testFrom) => holtWinters(values, testFrom) },
];

function lastDay(values: Float64Array): ForecastFrom {
  return (origin, leads) => {
    const row = quantilesOf(values.subarray(Math.max(0, origin - DAY), origin));
    const rows = new Float64Array(leads * WIDTH);
    for (let lead = 0; lead < leads; lead += 1) rows.set(row, lead * WIDTH);
    return rows;
  };
}

function sameTimeOfDays(values: Float64Array): ForecastFrom {
  return (origin, leads) => {
    const rows = new Float64Array(leads * WIDTH);
    for (let lead = 1; lead <= leads; lead += 1) {
      const days = Array.from(
        { length: 7 },
        (_, day) => values[origin + lead - 1 - (day + 1) * DAY] ?? Number.NaN,
      );
      rows.set(quantilesOf(Float64Array.from(days)), (lead - 1) * WIDTH);
    }
    return rows;
  };
}

type PointForecast = (origin: number, lead: number) => number;

/** A point forecast, and the errors that it made of each lead within the last day. */
function withErrors(values: Float64Array, point: PointForecast): ForecastFrom {
  return (origin, leads) => {
    const rows = new Float64Array(leads * WIDTH);
    const errors = new Float64Array(ERROR_STEPS);
    let before: Float64Array = new Float64Array(WIDTH);
    let beforeLead = 0;
    for (let lead = 1; lead <= leads; lead += 1) {
      if (lead > DENSE_LEADS && lead % LEAD_STRIDE !== 0 && lead !== leads) continue;
      for (let ago = 0; ago < ERROR_STEPS; ago += 1) {
        const at = origin - 1 - ago;
        errors[ago] = (values[at] ?? Number.NaN) - point(at - lead + 1, lead);
      }
      const quantiles = quantilesOf(errors);
      for (let between = beforeLead + 1; between <= lead; between += 1) {
        const share = beforeLead === 0 ? 1 : (between - beforeLead) / (lead - beforeLead);
        const base = point(origin, between);
        for (let column = 0; column < WIDTH; column += 1) {
          const from = before[column] ?? 0;
          const error = from + share * ((quantiles[column] ?? 0) - from);
          rows[(between - 1) * WIDTH + column] = base + (Number.isNaN(error) ? 0 : error);
        }
      }
      before = quantiles;
      beforeLead = lead;
    }
    return rows;
  };
}

function exponential(values: Float64Array, testFrom: number): ForecastFrom {
  const level = bestOf([0.05, 0.1, 0.2, 0.4, 0.7], (share) => smoothed(values, share), {
    values,
    testFrom,
    pointOf: (levels) => (origin) => levels[origin - 1] ?? Number.NaN,
  });
  return withErrors(values, (origin) => level[origin - 1] ?? Number.NaN);
}

function smoothed(values: Float64Array, share: number): Float64Array {
  const levels = new Float64Array(values.length);
  let level = Number.NaN;
  for (const [at, value] of values.entries()) {
    if (Number.isNaN(level)) level = value;
    else if (!Number.isNaN(value)) level += share * (value - level);
    levels[at] = level;
  }
  return levels;
}

interface Winters {
  readonly levels: Float64Array;
  readonly seasons: Float64Array;
}

/** Additive, with a season of a day and no trend, which at five minutes a step only adds noise. */
function holtWinters(values: Float64Array, testFrom: number): ForecastFrom {
  const candidates = [0.02, 0.1, 0.3].flatMap((share) =>
    [0.05, 0.2, 0.4].map((season) => ({ share, season })),
  );
  const pointOf =
    ({ levels, seasons }: Winters): PointForecast =>
    (origin, lead) =>
      (levels[origin - 1] ?? Number.NaN) + (seasons[origin + lead - 1 - DAY] ?? 0);
  const best = bestOf(candidates, (candidate) => winters(values, candidate), { values, testFrom, pointOf });
  return withErrors(values, pointOf(best));
}

function winters(values: Float64Array, { share, season }: { share: number; season: number }): Winters {
  const levels = new Float64Array(values.length);
  const seasons = new Float64Array(values.length);
  const first = values.subarray(0, DAY).filter((value) => !Number.isNaN(value));
  let level = first.reduce((sum, value) => sum + value, 0) / first.length;
  for (const [at, value] of values.entries()) {
    const before = at < DAY ? value - level : (seasons[at - DAY] ?? 0);
    seasons[at] = Number.isNaN(before) ? 0 : before;
    if (at >= DAY && !Number.isNaN(value)) {
      level += share * (value - before - level);
      seasons[at] = before + season * (value - level - before);
    }
    levels[at] = level;
  }
  return { levels, seasons };
}

interface Trial<Fit> {
  readonly values: Float64Array;
  readonly testFrom: number;
  readonly pointOf: (fit: Fit) => PointForecast;
}

/** The fit whose forecasts of an hour ahead were the best before the test. */
function bestOf<Candidate, Fit>(
  candidates: readonly Candidate[],
  fit: (candidate: Candidate) => Fit,
  { values, testFrom, pointOf }: Trial<Fit>,
): Fit {
  const fits = candidates.map(fit);
  const errors = fits.map((one) => {
    const point = pointOf(one);
    let sum = 0;
    for (let at = Math.max(DENSE_LEADS, testFrom - 7 * DAY); at < testFrom; at += 1) {
      const error = Math.abs((values[at] ?? 0) - point(at - DENSE_LEADS + 1, DENSE_LEADS));
      if (!Number.isNaN(error)) sum += error;
    }
    return sum;
  });
  return fits[errors.indexOf(Math.min(...errors))] as Fit;
}

/** Linear between the order statistics, as R's type 7. NaN are left out. */
function quantilesOf(values: Float64Array): Float64Array {
  const sorted = values.filter((value) => !Number.isNaN(value)).sort();
  return Float64Array.from(LEVELS, (level) => {
    const place = level * (sorted.length - 1);
    const below = Math.floor(place);
    const low = sorted[below] ?? 0;
    return low + (place - below) * ((sorted[below + 1] ?? low) - low);
  });
}
