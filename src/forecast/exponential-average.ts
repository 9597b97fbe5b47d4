import type { ForecastMethod } from './forecast-model.ts';
import { type PointModel, pointMethod } from './point-method.ts';

/** How much of the difference to the newest value the level takes over; which one is decided by what they were wrong by. */
const SMOOTHINGS = [0.02, 0.06, 0.15, 0.4, 0.8] as const;

/**
 * Exponentially weighted moving average. Brown, "Statistical Forecasting for Inventory Control" (1959); the smoothing is chosen
 * while it runs.
 */
export const EXPONENTIAL_AVERAGE: ForecastMethod = pointMethod({
  name: 'ewma',
  stateVersion: 1,
  model: exponentialAverage,
});

function exponentialAverage(): PointModel {
  const levels = new Float64Array(SMOOTHINGS.length).fill(Number.NaN);
  return {
    candidates: SMOOTHINGS.length,
    parts: [{ values: levels }],
    update: (value) => {
      for (let index = 0; index < levels.length; index += 1) {
        const level = levels[index] ?? Number.NaN;
        levels[index] = Number.isNaN(level) ? value : level + (SMOOTHINGS[index] ?? 1) * (value - level);
      }
    },
    skip: () => undefined,
    forecast: (candidate, leads, into) => {
      const level = levels[candidate] ?? Number.NaN;
      into.fill(level, 0, leads.length);
      return !Number.isNaN(level);
    },
  };
}
