import { levelAndSeason } from './level-and-season.ts';
import { lastLevel } from './residual-quantiles.ts';
import { SeriesForecaster, type UpdateOptions } from './series-forecaster.ts';
import { simpleMethods } from './simple-methods.ts';

const DAY_MS = 86_400_000;
const HISTORY_MS = 14 * DAY_MS;
const MEMORY_MS = 7 * DAY_MS;
const HALF_LIFE_MS = 3 * DAY_MS;
/** Forecasts that are held against what happened, per horizon. */
const PROBES_PER_HORIZON = 4;

export interface PeakForecasterOptions {
  readonly stepMs: number;
  /** Peaks within this time from now on. At least a step. */
  readonly horizonMs: number;
}

/**
 * Quantiles of the highest value within the next hour (or another horizon): what an allocation has to meet. It is not the
 * highest of the quantiles of that hour, as its steps go up and down together. So the series that is forecast is the highest
 * value of each horizon that ends at a step, and the forecast is that of the one which begins now.
 */
export class PeakForecaster {
  readonly #forecaster: SeriesForecaster;
  readonly #horizonSteps: number;
  /** The last values, the newest last. */
  readonly #recent: number[] = [];

  constructor({ stepMs, horizonMs }: PeakForecasterOptions) {
    this.#horizonSteps = Math.max(1, Math.round(horizonMs / stepMs));
    this.#forecaster = new SeriesForecaster({
      stepMs,
      historySteps: Math.ceil(HISTORY_MS / stepMs),
      methods: [...simpleMethods(), ...peakMethods(this.#horizonSteps)],
      buckets: [
        {
          upTo: this.#horizonSteps,
          probes: [this.#horizonSteps],
          everySteps: Math.ceil(this.#horizonSteps / PROBES_PER_HORIZON),
        },
      ],
      halfLifeMs: HALF_LIFE_MS,
    });
  }

  get levels(): readonly number[] {
    return this.#forecaster.levels;
  }

  /** The highest value of the next step, NaN where it is missing. */
  update(highest: number, startMs: number, options: UpdateOptions = {}): void {
    this.#recent.push(highest);
    if (this.#recent.length > this.#horizonSteps) this.#recent.shift();
    const known = this.#recent.filter((value) => Number.isFinite(value));
    this.#forecaster.update(known.length === 0 ? Number.NaN : Math.max(...known), startMs, options);
  }

  /** One value per level, ascending. Undefined while nothing is known. */
  predict(): Float64Array | undefined {
    return this.#forecaster.predict([this.#horizonSteps])?.values;
  }
}

function peakMethods(horizonSteps: number) {
  const common = { seasonMs: DAY_MS, memoryMs: MEMORY_MS, leads: [horizonSteps] };
  return [
    lastLevel('last-value-7d', { levelMs: 1, memoryMs: MEMORY_MS }),
    levelAndSeason('more-of-now-and-yesterday', { ...common, combine: 'max' }),
    levelAndSeason('between-now-and-yesterday', { ...common, combine: 'mean' }),
  ];
}
