import type { ForecastMethod, SeriesContext } from './forecast-model.ts';
import { type PointModel, pointMethod } from './point-method.ts';
import { SeasonProfile } from './season-profile.ts';

/** Smoothings of level and trend, each with and without the season; the least wrong is taken. */
const SMOOTHINGS = [
  { level: 0.06, trend: 0.005 },
  { level: 0.2, trend: 0.02 },
  { level: 0.6, trend: 0.1 },
] as const;
/** Of the trend, from one step to the next. */
const DAMPING = 0.9;
/** Per candidate: level and trend. */
const WIDTH = 2;

/**
 * Holt and Winters, additive, with a season of a day. Winters, Management Science 6 (1960); the trend is damped after Gardner
 * and McKenzie, "Forecasting Trends in Time Series", Management Science 31 (1985). All candidates share one season, which is
 * taken relative to the level of a day; a whole day has to pass before it counts.
 */
export const HOLT_WINTERS: ForecastMethod = pointMethod({
  name: 'holt-winters',
  stateVersion: 1,
  model: holtWinters,
});

function holtWinters({ stepMs, history }: SeriesContext): PointModel {
  const season = new SeasonProfile(stepMs);
  const candidates = 2 * SMOOTHINGS.length;
  const state = new Float64Array(WIDTH * candidates).fill(Number.NaN);
  const isSeasonal = (candidate: number) => candidate >= SMOOTHINGS.length;
  const smooth = (candidate: number, value: number): void => {
    const { level: levelShare, trend: trendShare } =
      SMOOTHINGS[candidate % SMOOTHINGS.length] ?? SMOOTHINGS[0];
    const level = state[WIDTH * candidate] ?? Number.NaN;
    const trend = state[WIDTH * candidate + 1] ?? 0;
    if (Number.isNaN(level)) {
      state[WIDTH * candidate] = value;
      state[WIDTH * candidate + 1] = 0;
      return;
    }
    const told = level + DAMPING * trend;
    const next = told + levelShare * (value - told);
    state[WIDTH * candidate] = next;
    state[WIDTH * candidate + 1] = DAMPING * trend + trendShare * (next - level - DAMPING * trend);
  };
  return {
    candidates,
    parts: [{ values: state }, ...season.parts],
    update: (value) => {
      const adjustment = season.at(history.lastStartMs);
      for (let candidate = 0; candidate < candidates; candidate += 1) {
        smooth(candidate, isSeasonal(candidate) ? value - adjustment : value);
      }
      season.update(value, history.lastStartMs);
    },
    skip: () => undefined,
    forecast: (candidate, leads, into) => {
      const level = state[WIDTH * candidate] ?? Number.NaN;
      const trend = state[WIDTH * candidate + 1] ?? 0;
      for (let index = 0; index < leads.length; index += 1) {
        const lead = leads[index] ?? 1;
        const trends = (DAMPING * (1 - DAMPING ** lead)) / (1 - DAMPING);
        const adjustment = isSeasonal(candidate) ? season.at(history.lastStartMs + lead * stepMs) : 0;
        into[index] = level + trends * trend + adjustment;
      }
      return !Number.isNaN(level);
    },
  };
}
