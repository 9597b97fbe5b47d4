import type { ForecastMethod, SeriesContext } from './forecast-model.ts';
import { GuardedModel, type ModelFault } from './guarded-model.ts';
import { MethodScores } from './method-scores.ts';
import { PendingForecasts } from './pending-forecasts.ts';
import { bucketOf, type LeadBucket } from './probe-plan.ts';
import { LEVELS, pinballLoss, type QuantileForecast } from './quantile-forecast.ts';
import { SeriesHistory } from './series-history.ts';
import { weightedMedian } from './weighted-median.ts';

export interface SeriesForecasterOptions {
  readonly stepMs: number;
  readonly historySteps: number;
  readonly methods: readonly ForecastMethod[];
  readonly buckets: readonly LeadBucket[];
  /** After which an outcome counts half. */
  readonly halfLifeMs: number;
  readonly levels?: readonly number[];
  /** A steady clock, to notice models that take too long. Without it none does. */
  readonly nowMs?: () => number;
}

export interface UpdateOptions {
  /** False while something unusual goes on: the value is remembered, and nothing is learnt from it. */
  readonly learn?: boolean;
}

/** Forecasts one series of equal steps: all methods together, each as much as it was right lately. */
export class SeriesForecaster {
  readonly history: SeriesHistory;
  readonly levels: readonly number[];
  readonly #options: SeriesForecasterOptions;
  readonly #models: readonly GuardedModel[];
  readonly #scores: MethodScores;
  readonly #pending: PendingForecasts;
  readonly #fading: readonly number[];
  #scratch: Float64Array[] = [];
  readonly #values: Float64Array;
  readonly #weights: Float64Array;

  constructor(options: SeriesForecasterOptions) {
    const { stepMs, historySteps, methods, buckets, halfLifeMs, levels = LEVELS } = options;
    this.#options = options;
    this.levels = levels;
    this.history = new SeriesHistory({ stepMs, capacity: historySteps });
    const series: SeriesContext = { stepMs, levels, history: this.history };
    const nowMs = options.nowMs ?? (() => 0);
    this.#models = methods.map((method) => new GuardedModel(method, { series, nowMs }));
    const shape = { buckets: buckets.length, levels: levels.length, methods: methods.length };
    this.#scores = new MethodScores(shape);
    this.#pending = new PendingForecasts(buckets, (methods.length + 1) * levels.length);
    this.#fading = buckets.map(
      ({ everySteps, probes }) => 0.5 ** ((everySteps * stepMs) / (halfLifeMs * probes.length)),
    );
    this.#values = new Float64Array(methods.length);
    this.#weights = new Float64Array(methods.length);
  }

  get faults(): readonly ModelFault[] {
    return this.#models.flatMap(({ fault }) => fault ?? []);
  }

  update(value: number, startMs: number, { learn = true }: UpdateOptions = {}): void {
    this.history.push(Math.fround(value), startMs);
    for (const model of this.#models) model.update();
    if (!learn) return;
    this.#settle(this.history.at(0));
    this.#open();
  }

  predict(leads: readonly number[]): QuantileForecast {
    const values = new Float64Array(leads.length * this.levels.length);
    this.#predictInto(leads, values);
    return { levels: this.levels, leads, values };
  }

  #predictInto(leads: readonly number[], into: Float64Array): void {
    const width = this.levels.length;
    this.#reserve(leads.length * width);
    const says = this.#models.map((model, index) => model.predict(leads, this.#scratch[index] ?? into));
    for (let row = 0; row < leads.length; row += 1) {
      const bucket = bucketOf(this.#options.buckets, leads[row] ?? 1);
      const weights = this.#scores.weightsOf(bucket);
      let least = Number.NEGATIVE_INFINITY;
      for (let column = 0; column < width; column += 1) {
        const place = this.#scores.placeOf(bucket, column);
        let size = 0;
        for (let index = 0; index < says.length; index += 1) {
          if (says[index] !== true) continue;
          this.#values[size] = this.#scratch[index]?.[row * width + column] ?? 0;
          this.#weights[size] = weights[place + index] ?? 0;
          size += 1;
        }
        const median = weightedMedian(this.#values, this.#weights, size);
        least = Math.max(least, median);
        into[row * width + column] = least;
      }
    }
    for (const [index, said] of says.entries()) if (!said) this.#scratch[index]?.fill(Number.NaN);
  }

  #reserve(cells: number): void {
    if ((this.#scratch[0]?.length ?? 0) >= cells) return;
    this.#scratch = this.#models.map(() => new Float64Array(cells));
  }

  #open(): void {
    const { count } = this.history;
    const due = this.#pending.probes.filter(({ everySteps }) => count % everySteps === 0);
    if (due.length === 0) return;
    const width = this.levels.length;
    const leads = due.map(({ lead }) => lead);
    const combined = this.predict(leads).values;
    const { rows } = this.#pending;
    for (const [row, probe] of due.entries()) {
      let at = this.#pending.open(probe, count);
      for (const scratch of this.#scratch)
        for (let column = 0; column < width; column += 1)
          rows[at++] = scratch[row * width + column] ?? Number.NaN;
      for (let column = 0; column < width; column += 1)
        rows[at++] = combined[row * width + column] ?? Number.NaN;
    }
  }

  #settle(actual: number): void {
    if (Number.isNaN(actual)) return;
    const width = this.levels.length;
    const { rows, probes } = this.#pending;
    const methods = this.#models.length;
    for (const probe of probes) {
      const from = this.#pending.due(probe, this.history.count);
      if (from < 0) continue;
      this.#scores.fade(probe.bucket, this.#fading[probe.bucket] ?? 1);
      for (let column = 0; column < width; column += 1) {
        const level = this.levels[column] ?? 0;
        const all = rows[from + methods * width + column] ?? Number.NaN;
        if (Number.isNaN(all)) continue;
        const place = this.#scores.placeOf(probe.bucket, column);
        for (let index = 0; index < methods; index += 1) {
          const stated = rows[from + index * width + column] ?? Number.NaN;
          this.#scores.add(
            place + index,
            pinballLoss(level, { stated: Number.isNaN(stated) ? all : stated, actual }),
          );
        }
      }
    }
  }
}
