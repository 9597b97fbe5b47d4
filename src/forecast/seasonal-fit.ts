import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { AutoETS, initSync as initEts } from '@bsull/augurs/ets';
import { initSync as initMstl, MSTL } from '@bsull/augurs/mstl';

/** What is to be fitted. It can be sent to another thread. */
export interface FitRequest {
  readonly kind: 'mstl' | 'ets';
  /** At equal steps, the newest last; NaN where missing. */
  readonly values: Float64Array;
  /** Of seasons, in steps, ascending; for `mstl` only. Those of which there are less than two are left out. */
  readonly periods: readonly number[];
  /** How many steps after the last value are wanted. */
  readonly horizon: number;
}

/** A factor beyond which a forecast of a fit is taken for a failure: so many times the largest value. */
const GROWTH_MAX = 100;
/** With fewer values there is no fit. */
export const FIT_VALUES_MIN = 24;

let isLoaded = false;

/**
 * The next values after a series. `mstl`: Bandara, Hyndman and Bergmeir, "MSTL: A Seasonal-Trend Decomposition Algorithm for
 * Time Series with Multiple Seasonal Patterns" (2021), with AutoETS for the trend. `ets`: the best of the exponential smoothing
 * models without season, chosen by information criterion: Hyndman et al., International Journal of Forecasting 18 (2002).
 * Undefined where there are too few values or the library finds no model. Takes 20 ms to a second.
 */
export function fitSeasonal({ kind, values, periods, horizon }: FitRequest): Float64Array | undefined {
  const series = filled(values);
  const largest = series.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  if (series.length < FIT_VALUES_MIN) return undefined;
  const [first = 0] = series;
  // A series that never moves needs no model, and the searches for one end in strange places.
  if (series.every((value) => value === first)) return new Float64Array(horizon).fill(first);
  const scaled = series.map((value) => value / largest);
  const seasons = periods.filter((period) => series.length >= 2 * period);
  if (kind === 'mstl' && seasons.length === 0) return undefined;
  load();
  const points = kind === 'mstl' ? mstl(scaled, { seasons, horizon }) : ets(scaled, horizon);
  const isUsable = points?.length === horizon && points.every((point) => Math.abs(point) <= GROWTH_MAX);
  return isUsable ? Float64Array.from(points, (point) => point * largest) : undefined;
}

function mstl(
  values: Float64Array,
  { seasons, horizon }: { readonly seasons: readonly number[]; readonly horizon: number },
): readonly number[] | undefined {
  using model = MSTL.ets(Uint32Array.from(seasons));
  try {
    model.fit(values);
    return model.predict(horizon).point;
  } catch {
    return undefined;
  }
}

function ets(values: Float64Array, horizon: number): readonly number[] | undefined {
  using model = new AutoETS(1, 'ZZN');
  try {
    model.fit(values);
    return model.predict(horizon).point;
  } catch {
    return undefined;
  }
}

/** Without what is missing at the beginning; other gaps are bridged by straight lines, the last one by its last value. */
function filled(values: Float64Array): Float64Array {
  const begin = values.findIndex((value) => !Number.isNaN(value));
  if (begin < 0) return new Float64Array(0);
  const series = values.slice(begin);
  let known = 0;
  for (let step = 1; step < series.length; step += 1) {
    const value = series[step] ?? Number.NaN;
    if (Number.isNaN(value)) continue;
    const from = series[known] ?? value;
    for (let gap = known + 1; gap < step; gap += 1) {
      const share = (gap - known) / (step - known);
      series[gap] = from * (1 - share) + value * share;
    }
    known = step;
  }
  return series.fill(series[known] ?? 0, known + 1);
}

/** The library's WebAssembly, which it would fetch by itself only in a browser. */
function load(): void {
  if (isLoaded) return;
  const { resolve } = createRequire(import.meta.url);
  const bytesOf = (entry: string) => readFileSync(resolve(entry).replace(/\.js$/, '_bg.wasm'));
  initMstl({ module: bytesOf('@bsull/augurs/mstl') });
  initEts({ module: bytesOf('@bsull/augurs/ets') });
  isLoaded = true;
}
