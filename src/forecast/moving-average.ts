import type { ForecastMethod, SeriesContext } from './forecast-model.ts';
import { boundedValue, type PointModel, pointMethod } from './point-method.ts';

/** Windows in steps; which one is taken is decided by what they were wrong by. */
const WINDOWS = [3, 12, 48] as const;

/** The mean of the last values, with quantiles of what that was wrong by. */
export const MOVING_AVERAGE: ForecastMethod = pointMethod({
  name: 'moving-average',
  stateVersion: 1,
  model: movingAverage,
});

function movingAverage({ history }: SeriesContext): PointModel {
  /** Kept, so that a gap longer than the window leaves what was known before. */
  const means = new Float64Array(WINDOWS.length).fill(Number.NaN);
  const meanOf = (window: number): number => {
    let [sum, count] = [0, 0];
    for (let ago = 0; ago < Math.min(window, history.length); ago += 1) {
      const value = history.at(ago);
      if (Number.isNaN(value)) continue;
      sum += boundedValue(value);
      count += 1;
    }
    return sum / count;
  };
  return {
    candidates: WINDOWS.length,
    parts: [{ values: means }],
    update: () => {
      for (let index = 0; index < means.length; index += 1) means[index] = meanOf(WINDOWS[index] ?? 1);
    },
    skip: () => undefined,
    forecast: (candidate, leads, into) => {
      const mean = means[candidate] ?? Number.NaN;
      into.fill(mean, 0, leads.length);
      return !Number.isNaN(mean);
    },
  };
}
