import { EXPONENTIAL_AVERAGE } from './exponential-average.ts';
import { type FitScheduler, fittedMethod } from './fitted-method.ts';
import type { ForecastMethod } from './forecast-model.ts';
import { HOLT_WINTERS } from './holt-winters.ts';
import { LEARNT } from './learnt-model.ts';
import { MOVING_AVERAGE } from './moving-average.ts';
import { simpleMethods } from './simple-methods.ts';
import { STREAMING_ARIMA } from './streaming-arima.ts';
import { THETA } from './theta.ts';

/** Those that learn with each value, in microseconds. */
export const STREAMING_METHODS: readonly ForecastMethod[] = [
  MOVING_AVERAGE,
  EXPONENTIAL_AVERAGE,
  HOLT_WINTERS,
  THETA,
  STREAMING_ARIMA,
  LEARNT,
];

/** What forecasts steps of minutes unless something else is said: the simple methods, and those that learn with each value. */
export function minutesMethods(): readonly ForecastMethod[] {
  return [...simpleMethods(), ...STREAMING_METHODS];
}

/** Those that are fitted now and then, in milliseconds: for who has the time. */
export function fittedMethods(schedule: FitScheduler): readonly ForecastMethod[] {
  return [fittedMethod('mstl', schedule), fittedMethod('ets', schedule)];
}
