import { ForecastError } from './forecast-error.ts';
import type { ModelFault } from './guarded-model.ts';
import { levelAndSeason } from './level-and-season.ts';
import type { MethodScratch } from './method-scratch.ts';
import { ProbePlan } from './probe-plan.ts';
import { lastLevel } from './residual-quantiles.ts';
import { SeriesForecaster, type SeriesForecasterOptions, type UpdateOptions } from './series-forecaster.ts';
import { simpleMethods } from './simple-methods.ts';
import { StateReader, StateWriter } from './state-bytes.ts';

const DAY_MS = 86_400_000;
const HISTORY_MS = 14 * DAY_MS;
const MEMORY_MS = 7 * DAY_MS;
const HALF_LIFE_MS = 3 * DAY_MS;
/** Forecasts that are held against what happened, per horizon. */
const PROBES_PER_HORIZON = 4;
const STATE_VERSION = 1;

export interface PeakForecasterOptions {
  readonly stepMs: number;
  /** Peaks within this time from now on. At least a step. */
  readonly horizonMs: number;
  readonly levels?: readonly number[];
  readonly nowMs?: () => number;
  readonly scratch?: MethodScratch;
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

  constructor(options: PeakForecasterOptions, forecaster = new SeriesForecaster(seriesOptions(options))) {
    this.#horizonSteps = stepsOf(options);
    this.#forecaster = forecaster;
  }

  /** What `save` wrote. Undefined where it is of something else: begin anew. */
  static restore(options: PeakForecasterOptions, bytes: Uint8Array): PeakForecaster | undefined {
    try {
      const reader = new StateReader(bytes, STATE_VERSION);
      if (reader.uint32() !== stepsOf(options)) return undefined;
      const recent = reader.float32s();
      const series = SeriesForecaster.restore(seriesOptions(options), reader.bytes());
      if (series.kind === 'unreadable') return undefined;
      const restored = new PeakForecaster(options, series.forecaster);
      restored.#recent.push(...recent);
      return restored;
    } catch (thrown) {
      if (thrown instanceof ForecastError) return undefined;
      throw thrown;
    }
  }

  get levels(): readonly number[] {
    return this.#forecaster.levels;
  }

  /** What methods did that they must not do. */
  get faults(): readonly ModelFault[] {
    return this.#forecaster.faults;
  }

  /** The highest value of the next step, NaN where it is missing. */
  update(highest: number, startMs: number, options: UpdateOptions = {}): void {
    this.#recent.push(Math.fround(highest));
    if (this.#recent.length > this.#horizonSteps) this.#recent.shift();
    const known = this.#recent.filter((value) => Number.isFinite(value));
    this.#forecaster.update(known.length === 0 ? Number.NaN : Math.max(...known), startMs, options);
  }

  /** All that it has learnt. */
  save(): Uint8Array {
    const writer = new StateWriter(STATE_VERSION);
    writer.uint32(this.#horizonSteps);
    writer.float32s(Float32Array.from(this.#recent));
    writer.bytes(this.#forecaster.save());
    return writer.finish();
  }

  /** One value per level, ascending. Undefined while nothing is known. */
  predict(): Float64Array | undefined {
    return this.#forecaster.predict([this.#horizonSteps])?.values;
  }
}

function stepsOf({ stepMs, horizonMs }: PeakForecasterOptions): number {
  return Math.max(1, Math.round(horizonMs / stepMs));
}

function seriesOptions(options: PeakForecasterOptions): SeriesForecasterOptions {
  const { horizonMs: _, ...common } = options;
  const { stepMs } = options;
  const steps = stepsOf(options);
  return {
    ...common,
    historySteps: Math.ceil(HISTORY_MS / stepMs),
    methods: [...simpleMethods(), ...peakMethods(steps)],
    plan: new ProbePlan([
      {
        ...{ upTo: steps, probes: [steps], everySteps: Math.ceil(steps / PROBES_PER_HORIZON) },
        halfLifeSteps: Math.round(HALF_LIFE_MS / stepMs),
      },
    ]),
  };
}

function peakMethods(horizonSteps: number) {
  const common = { seasonMs: DAY_MS, memoryMs: MEMORY_MS, leads: [horizonSteps] };
  return [
    lastLevel('last-value-7d', { levelMs: 1, memoryMs: MEMORY_MS }),
    levelAndSeason('more-of-now-and-yesterday', { ...common, combine: 'max' }),
    levelAndSeason('between-now-and-yesterday', { ...common, combine: 'mean' }),
  ];
}
