import { EXPONENTIAL_AVERAGE } from './exponential-average.ts';
import { type FitScheduler, fittedMethod } from './fitted-method.ts';
import type { ForecastMethod } from './forecast-model.ts';
import { HOLT_WINTERS } from './holt-winters.ts';
import { LEARNT } from './learnt-model.ts';
import { MOVING_AVERAGE } from './moving-average.ts';
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

/** All that come with Understudy, in addition to the simple ones: those that are fitted now and then as well. */
export function shippedMethods(schedule: FitScheduler): readonly ForecastMethod[] {
  return [...STREAMING_METHODS, fittedMethod('mstl', schedule), fittedMethod('ets', schedule)];
}
