import { aroundTime, DAY_MS, HOUR_MS, sameTime } from './day-quantiles.ts';
import { decayedQuantiles } from './decayed-quantiles.ts';
import type { ForecastMethod } from './forecast-model.ts';
import { lastLevel, seasonalNaive } from './residual-quantiles.ts';
import { windowQuantiles } from './window-quantiles.ts';

const SECOND_MS = 1000;
const MINUTE_MS = 60 * SECOND_MS;

/** What no forecast shall be worse than for long. */
export const FLOOR_METHOD = 'seasonal-naive';

/**
 * For steps of minutes. Each is simple and right about some machine at some time; together, weighted by how right they were
 * lately, they are better than any of them.
 */
export function simpleMethods(): ForecastMethod[] {
  return [
    windowQuantiles('window-15m', 15 * MINUTE_MS),
    windowQuantiles('window-1h', HOUR_MS),
    windowQuantiles('window-3h', 3 * HOUR_MS),
    windowQuantiles('window-6h', 6 * HOUR_MS),
    windowQuantiles('window-12h', 12 * HOUR_MS),
    windowQuantiles('window-24h', DAY_MS),
    windowQuantiles('window-3d', 3 * DAY_MS),
    windowQuantiles('window-7d', 7 * DAY_MS),
    decayedQuantiles('decayed-3h', 3 * HOUR_MS),
    lastLevel('last-value', { levelMs: 1, memoryMs: DAY_MS }),
    lastLevel('last-hour', { levelMs: HOUR_MS, memoryMs: DAY_MS }),
    sameTime('same-time', { days: 7 }),
    sameTime('same-time-shifted', { days: 7, shifted: true }),
    aroundTime('around-time-2d', { days: 2, aroundMs: HOUR_MS }),
    aroundTime('around-time-7d', { days: 7, aroundMs: HOUR_MS }),
    aroundTime('around-time-14d', { days: 13, aroundMs: HOUR_MS }),
    seasonalNaive('last-week', { seasonMs: 7 * DAY_MS, memoryMs: 3 * DAY_MS }),
    seasonalNaive(FLOOR_METHOD, { seasonMs: DAY_MS, memoryMs: 7 * DAY_MS }),
  ];
}

/** For steps of seconds: no day is in sight, so that only the last minutes speak. */
export function secondsMethods(): ForecastMethod[] {
  return [
    windowQuantiles('window-15s', 15 * SECOND_MS),
    windowQuantiles('window-1m', MINUTE_MS),
    windowQuantiles('window-3m', 3 * MINUTE_MS),
    windowQuantiles('window-10m', 10 * MINUTE_MS),
    windowQuantiles('window-30m', 30 * MINUTE_MS),
    windowQuantiles('window-1h', HOUR_MS),
    decayedQuantiles('decayed-5m', 5 * MINUTE_MS),
    lastLevel('last-value', { levelMs: 1, memoryMs: HOUR_MS / 2 }),
    lastLevel('last-minute', { levelMs: MINUTE_MS, memoryMs: HOUR_MS / 2 }),
  ];
}
