import type { ForecastMethod } from './forecast-model.ts';
import type { ModelFault } from './guarded-model.ts';
import { MethodScratch } from './method-scratch.ts';
import { PeakForecaster } from './peak-forecaster.ts';
import { MINUTES_PLAN, SECONDS_PLAN } from './probe-plan.ts';
import { LEVELS } from './quantile-forecast.ts';
import { passageOf, type SampleTime } from './sample-clock.ts';
import { SeriesForecaster, type SeriesForecasterOptions, type UpdateOptions } from './series-forecaster.ts';
import { minutesMethods } from './shipped-methods.ts';
import { FLOOR_METHOD, secondsMethods } from './simple-methods.ts';
import { StateReader, StateWriter } from './state-bytes.ts';
import { type ClosedStep, StepAggregator, type StepSink } from './step-aggregator.ts';

const SECOND_MS = 1000;
const MINUTE_MS = 60 * SECOND_MS;
const HOUR_MS = 60 * MINUTE_MS;

export const SECONDS_STEP_MS = 5 * SECOND_MS;
export const MINUTES_STEP_MS = 5 * MINUTE_MS;
/** Up to here steps of seconds speak, beyond it steps of minutes. */
export const SECONDS_HORIZON_MS = 15 * MINUTE_MS;

/** What a whole forecast states by default, ascending: every few seconds at first, every two hours in the end. */
export const HORIZONS_MS: readonly number[] = [
  ...[5, 10, 15, 30, 45].map((seconds) => seconds * SECOND_MS),
  ...[1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 25, 30, 40, 50].map((minutes) => minutes * MINUTE_MS),
  ...[1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 22, 24].map(
    (hours) => hours * HOUR_MS,
  ),
];

export interface ForecasterOptions {
  /** Peaks are those within this time: an hour unless said. */
  readonly horizonMs?: number;
  /**
   * Where in a step it begins, 0 … 1: series whose steps end at different moments do not all cost something at the same one.
   * Whoever restores a series gives the same.
   */
  readonly phase?: number;
  /** Methods for steps of minutes besides those of the house: plug-ins of the user. */
  readonly methods?: readonly ForecastMethod[];
  readonly levels?: readonly number[];
  readonly nowMs?: () => number;
  readonly scratch?: MethodScratch;
  /** Told of each step of minutes when it is over, before the forecaster learns from it. */
  readonly onMinutesStep?: StepSink;
}

export interface HorizonForecast {
  readonly levels: readonly number[];
  /** Ascending, from the last sample on. */
  readonly horizonsMs: readonly number[];
  /** By horizon: the length of the step that the row is about. */
  readonly stepsMs: readonly number[];
  /** Row after row, as those of a {@link QuantileForecast}. */
  readonly values: Float64Array;
}

export interface ForecastWish {
  readonly horizonsMs?: readonly number[];
}

export type RestoredForecaster =
  | { readonly kind: 'restored'; readonly forecaster: Forecaster }
  | { readonly kind: 'unreadable'; readonly error: unknown };

interface Parts {
  readonly seconds: SeriesForecaster;
  readonly minutes: SeriesForecaster;
  readonly peaks: PeakForecaster;
}

/** An hour of steps of seconds. */
const SECONDS_SERIES = {
  stepMs: SECONDS_STEP_MS,
  historySteps: 720,
  plan: SECONDS_PLAN,
};
/** Two weeks of steps of minutes: two of each day of the week. */
export const MINUTES_SERIES = {
  stepMs: MINUTES_STEP_MS,
  historySteps: 4032,
  plan: MINUTES_PLAN,
  floor: FLOOR_METHOD,
};
const STATE_VERSION = 1;
/** Fewer steps of minutes than this, and those of seconds know more also about the hours to come. */
const MINUTES_STEPS_MIN = 3;

/**
 * Forecasts one metric of one VM from its samples, at any horizon from 5 s to 24 h: steps of 5 s speak about the next quarter of
 * an hour, steps of 5 minutes about the day. Of those it keeps means and peaks as two series: a machine with bursts of seconds
 * needs several times its mean, and no forecast of means can say how much. Peaks of 5 s are not kept: at one sample a second
 * they are close to the mean, and cost as much again.
 */
export class Forecaster {
  readonly #levels: readonly number[];
  readonly #parts: Parts;
  readonly #seconds: StepAggregator;
  readonly #minutes: StepAggregator;
  /** Of the newest sample, by the clocks of its host. */
  #last: SampleTime | undefined;
  /** Of the newest sample, by a clock that never jumps: what steps are cut from. Begins as Unix time. */
  #atMs = Number.NaN;
  #dropped = 0;

  constructor(options: ForecasterOptions = {}, restored?: Parts) {
    this.#levels = options.levels ?? LEVELS;
    const wishes = wishesOf(options);
    this.#parts = restored ?? {
      seconds: new SeriesForecaster(wishes.seconds),
      minutes: new SeriesForecaster(wishes.minutes),
      peaks: new PeakForecaster(wishes.peaks),
    };
    const { seconds, minutes, peaks } = this.#parts;
    const { phase = 0 } = options;
    this.#seconds = new StepAggregator(
      { stepMs: SECONDS_STEP_MS, phase, gapStepsMax: seconds.history.capacity },
      ({ mean, startMs, learn }) => seconds.update(mean, startMs, { learn }),
    );
    this.#minutes = new StepAggregator(
      { stepMs: MINUTES_STEP_MS, phase, gapStepsMax: minutes.history.capacity },
      (step: ClosedStep) => {
        options.onMinutesStep?.(step);
        const { mean, max, startMs, learn } = step;
        minutes.update(mean, startMs, { learn });
        peaks.update(max, startMs, { learn });
      },
    );
  }

  /** When the newest sample was, by a clock that never jumps and began as Unix time: ms. NaN before the first. */
  get atMs(): number {
    return this.#atMs;
  }

  /** Means of the last steps of minutes that are over, the oldest first; NaN where one is missing. */
  history(steps: number): { readonly startMs: number; readonly values: Float64Array } {
    const { history } = this.#parts.minutes;
    const count = Math.min(steps, history.length);
    const values = Float64Array.from({ length: count }, (_, index) => history.at(count - 1 - index));
    return { startMs: history.lastStartMs - (count - 1) * MINUTES_STEP_MS, values };
  }

  /** Quantiles of the highest sample within the horizon. Undefined while nothing is known. */
  get peak(): { readonly levels: readonly number[]; readonly values: Float64Array } | undefined {
    const values = this.#parts.peaks.predict();
    return values && { levels: this.#levels, values };
  }

  /** Samples that were doubled, too late, or no number. */
  get dropped(): number {
    return this.#dropped;
  }

  get faults(): readonly ModelFault[] {
    return Object.values(this.#parts).flatMap(({ faults }) => faults);
  }

  /** Takes a sample: at whatever intervals, also late or twice. Microseconds, but for the one sample that ends a step. */
  add(value: number, time: SampleTime, { learn = true }: UpdateOptions = {}): void {
    if (!Number.isFinite(value) || !Number.isFinite(time.wallMs) || !Number.isFinite(time.monotonicMs)) {
      this.#dropped += 1;
      return;
    }
    const passage = this.#last === undefined ? undefined : passageOf(this.#last, time);
    if (passage?.kind === 'duplicate') {
      this.#dropped += 1;
      return;
    }
    const isLate = passage?.kind === 'late';
    if (passage === undefined) this.#atMs = time.wallMs;
    else if (!isLate) this.#atMs += passage.ms;
    const atMs = isLate ? this.#atMs - passage.ms : this.#atMs;
    if (!isLate) this.#last = { wallMs: time.wallMs, monotonicMs: time.monotonicMs };
    const inSeconds = this.#seconds.add(value, atMs, learn);
    const inMinutes = this.#minutes.add(value, atMs, learn);
    if (!inSeconds && !inMinutes) this.#dropped += 1;
  }

  /** Quantiles at the horizons, ascending, 5 s … 24 h. Undefined in the first seconds of a series. */
  forecast({ horizonsMs = HORIZONS_MS }: ForecastWish = {}): HorizonForecast | undefined {
    const slow: Part = {
      series: this.#parts.minutes,
      steps: this.#minutes,
    };
    const fast: Part = { series: this.#parts.seconds, steps: this.#seconds };
    const beyond = horizonsMs.findIndex((horizonMs) => horizonMs > SECONDS_HORIZON_MS);
    const fastCount = beyond < 0 ? horizonsMs.length : beyond;
    const [near, far] = [horizonsMs.slice(0, fastCount), horizonsMs.slice(fastCount)];
    const knowsSlow = slow.series.known >= MINUTES_STEPS_MIN;
    const rows = [
      ...(this.#rows(near, [fast, slow]) ?? []),
      ...(this.#rows(far, knowsSlow ? [slow, fast] : [fast, slow]) ?? []),
    ];
    if (rows.length === 0 || rows.reduce((count, { horizons }) => count + horizons, 0) < horizonsMs.length)
      return undefined;
    const values = new Float64Array(horizonsMs.length * this.#levels.length);
    let at = 0;
    for (const part of rows) {
      values.set(part.values, at);
      at += part.values.length;
    }
    const stepsMs = rows.flatMap(({ horizons, stepMs }) => new Array<number>(horizons).fill(stepMs));
    return { levels: this.#levels, horizonsMs, stepsMs, values };
  }

  /** What the first of `parts` that knows something says of the horizons. */
  #rows(horizonsMs: readonly number[], parts: readonly Part[]): Rows[] | undefined {
    if (horizonsMs.length === 0) return undefined;
    for (const { series, steps } of parts) {
      const { stepMs, open } = steps;
      const leads = horizonsMs.map((horizonMs) =>
        Math.max(1, Math.ceil((this.#atMs + horizonMs - open.startMs) / stepMs)),
      );
      const values = new Float64Array(leads.length * this.#levels.length);
      if (series.predictInto(leads, values)) return [{ values, horizons: leads.length, stepMs }];
    }
    return undefined;
  }

  /** All that it has learnt, with a checksum. Who writes it to a disk does so to a new file, and renames that. */
  save(): Uint8Array {
    const writer = new StateWriter(STATE_VERSION);
    const { wallMs, monotonicMs } = this.#last ?? { wallMs: Number.NaN, monotonicMs: Number.NaN };
    for (const value of [wallMs, monotonicMs, this.#atMs]) writer.float64(value);
    for (const { open } of [this.#seconds, this.#minutes])
      for (const value of [open.startMs, open.sum, open.max, open.count, open.learn]) writer.float64(value);
    const { seconds, minutes, peaks } = this.#parts;
    for (const part of [seconds, minutes, peaks]) writer.bytes(part.save());
    return writer.finish();
  }

  /** What `save` wrote. Time goes on from the last sample, whatever the clocks say after a reboot. */
  static restore(bytes: Uint8Array, options: ForecasterOptions = {}): RestoredForecaster {
    try {
      const reader = new StateReader(bytes, STATE_VERSION);
      const [wallMs, monotonicMs, atMs] = [reader.float64(), reader.float64(), reader.float64()];
      const open = [0, 1].map(() => ({
        startMs: reader.float64(),
        sum: reader.float64(),
        max: reader.float64(),
        count: reader.float64(),
        learn: reader.float64(),
      }));
      const wishes = wishesOf(options);
      const seriesOf = (wish: SeriesForecasterOptions) => {
        const restored = SeriesForecaster.restore(wish, reader.bytes());
        if (restored.kind === 'unreadable') throw restored.error;
        return restored.forecaster;
      };
      const [seconds, minutes] = [seriesOf(wishes.seconds), seriesOf(wishes.minutes)];
      // Of another horizon, or of an older release: it begins anew, and the rest goes on.
      const peaks = PeakForecaster.restore(wishes.peaks, reader.bytes()) ?? new PeakForecaster(wishes.peaks);
      const forecaster = new Forecaster(options, { seconds, minutes, peaks });
      if (!Number.isNaN(atMs)) forecaster.#last = { wallMs, monotonicMs };
      forecaster.#atMs = atMs;
      Object.assign(forecaster.#seconds.open, open[0]);
      Object.assign(forecaster.#minutes.open, open[1]);
      return { kind: 'restored', forecaster };
    } catch (error) {
      return { kind: 'unreadable', error };
    }
  }
}

interface Part {
  readonly series: SeriesForecaster;
  readonly steps: StepAggregator;
}

interface Rows {
  readonly values: Float64Array;
  readonly horizons: number;
  readonly stepMs: number;
}

function wishesOf(options: ForecasterOptions) {
  const scratch = options.scratch ?? new MethodScratch();
  const shared = {
    scratch,
    ...(options.levels !== undefined && { levels: options.levels }),
    ...(options.nowMs !== undefined && { nowMs: options.nowMs }),
  };
  const methods = [...minutesMethods(), ...(options.methods ?? [])];
  const { horizonMs = HOUR_MS } = options;
  return {
    seconds: { ...shared, ...SECONDS_SERIES, methods: secondsMethods() },
    minutes: { ...shared, ...MINUTES_SERIES, methods },
    peaks: { ...shared, stepMs: MINUTES_STEP_MS, horizonMs },
  };
}
