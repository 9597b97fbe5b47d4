import type { ForecastMethod, SeriesContext } from './forecast-model.ts';
import { boundedValue, type PointModel, pointMethod } from './point-method.ts';
import { stepsPerDay } from './season-profile.ts';
import { FIT_VALUES_MIN, type FitRequest } from './seasonal-fit.ts';

/**
 * Has a fit made: at once, in another thread, later, or never. `done` is called at most once, with the values that follow the
 * series, or undefined where there are none. It may refuse what is too much by calling `done` with undefined.
 */
export type FitScheduler = (request: FitRequest, done: (points: Float64Array | undefined) => void) => void;

const HOUR_MS = 3_600_000;
const HISTORY_DAYS_MAX = { mstl: 15, ets: 2 } as const;
/** With shorter steps a day has too many of them to be decomposed in bearable time; a fit of ETS takes the last hours then. */
const STEPS_PER_DAY_MAX = 1440;
const ETS_STEPS_MAX = 576;
/**
 * Candidates besides the fit as it is: moved by what it is wrong by now. `share` is how fast that is learnt, `kept` how much of it
 * is left a step further ahead: one follows the last minutes and fades within the hour, one follows the last hours and stays.
 */
const CORRECTIONS = [
  { share: 0.3, kept: 0.9 },
  { share: 0.03, kept: 0.997 },
] as const;

/**
 * A method that is too slow to be fitted with each value: a fit is asked for once an hour and says what the next two days bring;
 * until there is another, forecasts are read from it, as it is or moved by what it is wrong by now.
 */
export function fittedMethod(kind: FitRequest['kind'], schedule: FitScheduler): ForecastMethod {
  return pointMethod({
    name: kind,
    stateVersion: 1,
    model: (series) => fittedModel(series, { kind, schedule }),
  });
}

function fittedModel(
  { stepMs, history }: SeriesContext,
  { kind, schedule }: { readonly kind: FitRequest['kind']; readonly schedule: FitScheduler },
): PointModel {
  const day = stepsPerDay(stepMs);
  const hour = Math.max(1, Math.round(HOUR_MS / stepMs));
  const horizon = Math.min(2 * day, 2 * STEPS_PER_DAY_MAX, 576);
  const points = new Float64Array(horizon).fill(Number.NaN);
  /** Steps since the fit, -1 where there is none; steps since one was asked for. */
  const state = Float64Array.of(-1, hour);
  /** What fits are wrong by now, by candidate; 0 for the one that is not moved. */
  const errors = new Float64Array(1 + CORRECTIONS.length);
  let isUnderWay = false;
  const ask = (): void => {
    const steps =
      kind === 'ets' ? Math.min(ETS_STEPS_MAX, HISTORY_DAYS_MAX.ets * day) : HISTORY_DAYS_MAX.mstl * day;
    const length = Math.min(history.length, steps);
    const isEnough =
      kind === 'ets' ? length >= FIT_VALUES_MIN : day <= STEPS_PER_DAY_MAX && length >= 2 * day;
    if (!isEnough) return;
    const values = Float64Array.from({ length }, (_, index) => boundedValue(history.at(length - 1 - index)));
    const askedAt = history.count;
    isUnderWay = true;
    state[1] = 0;
    schedule({ kind, values, periods: [day, 7 * day], horizon }, (fit) => {
      isUnderWay = false;
      if (fit?.length !== horizon) return;
      points.set(fit);
      state[0] = history.count - askedAt;
    });
  };
  /** Of the fit, for a step after the last value. Beyond its end the last day repeats, or the last value stays. */
  const pointAt = (lead: number): number => {
    const place = (state[0] ?? 0) + lead - 1;
    if (place < horizon) return points[place] ?? Number.NaN;
    return points[day <= horizon ? horizon - day + ((place - horizon) % day) : horizon - 1] ?? Number.NaN;
  };
  const step = (value: number): void => {
    if ((state[0] ?? -1) >= 0) {
      const error = value - pointAt(1);
      if (!Number.isNaN(error)) {
        for (const [index, { share }] of CORRECTIONS.entries()) {
          errors[index + 1] = (errors[index + 1] ?? 0) + share * (error - (errors[index + 1] ?? 0));
        }
      }
      state[0] = (state[0] ?? 0) + 1;
    }
    state[1] = (state[1] ?? 0) + 1;
    if (!isUnderWay && (state[1] ?? 0) >= hour) ask();
  };
  return {
    candidates: errors.length,
    parts: [{ values: state }, { values: errors }, { values: points, compact: true }],
    update: step,
    skip: () => step(Number.NaN),
    forecast: (candidate, leads, into) => {
      // A fit that is a day old while its series went on is no forecast any more.
      if ((state[0] ?? -1) < 0 || (state[0] ?? 0) > day + hour) return false;
      const error = errors[candidate] ?? 0;
      const kept = CORRECTIONS[candidate - 1]?.kept ?? 0;
      for (let index = 0; index < leads.length; index += 1) {
        const lead = leads[index] ?? 1;
        into[index] = pointAt(lead) + error * kept ** (lead - 1);
      }
      return true;
    },
  };
}
