import type { ForecastMethod, SeriesContext } from './forecast-model.ts';
import { boundedValue, type PointModel, pointMethod } from './point-method.ts';
import { RecursiveLeastSquares } from './recursive-least-squares.ts';
import { stepsPerDay } from './season-profile.ts';

const NEAR_LAGS = [1, 2, 3, 6, 12] as const;
/** Further ahead than this nothing but the mean, or the last level, is told. */
const PATH_STEPS_MAX = 576;
/** The sum of coefficients' sizes stays at or below this when forecasting, so that no forecast leaves the range of the past. */
const GAIN_MAX = 0.98;

/**
 * Autoregression on near lags and on those of a day ago, of the series (less its mean) and of its differences: ARIMA(p, d, 0)
 * with d 0 and 1 and a season, of which the less wrong is taken. Box and Jenkins, "Time Series Analysis" (1970); coefficients by
 * recursive least squares. Forecasts follow one step after another, each from those before.
 */
export const STREAMING_ARIMA: ForecastMethod = pointMethod({
  name: 'arima',
  stateVersion: 1,
  model: streamingArima,
});

function streamingArima({ stepMs, history }: SeriesContext): PointModel {
  const day = stepsPerDay(stepMs);
  const lags: readonly number[] =
    day > 12 && history.capacity > day + 2 ? [...NEAR_LAGS, day, day + 1] : NEAR_LAGS;
  const squares = [new RecursiveLeastSquares(lags.length), new RecursiveLeastSquares(lags.length)] as const;
  /** Values seen, their mean over about a day. */
  const state = new Float64Array(2);
  const inputs = new Float64Array(lags.length);
  const phi = new Float64Array(lags.length);
  const path = new Float64Array(PATH_STEPS_MAX);
  const mean = () => state[1] ?? 0;
  /** What is regressed: 0 where it is missing, which is its mean. */
  const at = (differences: number, ago: number): number => {
    const value = boundedValue(history.at(ago));
    const term = differences === 0 ? value - mean() : value - boundedValue(history.at(ago + 1));
    return Number.isNaN(term) ? 0 : term;
  };
  const update = (value: number): void => {
    const seen = (state[0] ?? 0) + 1;
    state[0] = seen;
    if (seen > 1) {
      for (const [differences, square] of squares.entries()) {
        for (let index = 0; index < lags.length; index += 1)
          inputs[index] = at(differences, lags[index] ?? 1);
        square.update(inputs, at(differences, 0));
      }
    }
    state[1] = mean() + (value - mean()) / Math.min(seen, day);
  };
  const follow = (differences: number, steps: number): void => {
    stable(squares[differences]?.coefficients ?? phi, phi);
    for (let step = 0; step < steps; step += 1) {
      let sum = 0;
      for (let index = 0; index < lags.length; index += 1) {
        const lag = lags[index] ?? 1;
        const past = step - lag;
        sum += (phi[index] ?? 0) * (past >= 0 ? (path[past] ?? 0) : at(differences, -past - 1));
      }
      path[step] = sum;
    }
    if (differences > 0)
      for (let step = 1; step < steps; step += 1) path[step] = (path[step] ?? 0) + (path[step - 1] ?? 0);
  };
  return {
    candidates: squares.length,
    parts: [{ values: state }, ...squares.flatMap((square) => square.parts)],
    update,
    skip: () => undefined,
    forecast: (candidate, leads, into) => {
      const steps = Math.min(PATH_STEPS_MAX, leads[leads.length - 1] ?? 1);
      follow(candidate, steps);
      const base = candidate === 0 ? mean() : lastKnown(history);
      for (let index = 0; index < leads.length; index += 1) {
        const step = Math.min(steps, leads[index] ?? 1) - 1;
        into[index] = base + (path[step] ?? 0);
      }
      return (state[0] ?? 0) > 1 && !Number.isNaN(base);
    },
  };
}

/** Coefficients whose sizes add up to less than one: then each forecast is smaller than the largest of what it follows from. */
function stable(coefficients: Float64Array, into: Float64Array): void {
  let sum = 0;
  for (const coefficient of coefficients) sum += Math.abs(coefficient);
  const factor = sum > GAIN_MAX ? GAIN_MAX / sum : 1;
  for (let index = 0; index < into.length; index += 1) into[index] = factor * (coefficients[index] ?? 0);
}

function lastKnown(history: SeriesContext['history']): number {
  for (let ago = 0; ago < Math.min(history.length, 288); ago += 1) {
    const value = history.at(ago);
    if (!Number.isNaN(value)) return boundedValue(value);
  }
  return Number.NaN;
}
