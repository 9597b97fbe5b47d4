import { widenEarly } from './cold-start.ts';
import type { ForecastMethod, SeriesContext } from './forecast-model.ts';
import { GuardedModel, type ModelFault } from './guarded-model.ts';
import { MethodScores } from './method-scores.ts';
import { MethodScratch } from './method-scratch.ts';
import { OnlineCalibration } from './online-calibration.ts';
import { PendingForecasts, type Probe } from './pending-forecasts.ts';
import { bucketOf, type LeadBucket } from './probe-plan.ts';
import { LEVELS, pinballLoss, type QuantileForecast } from './quantile-forecast.ts';
import { SeriesHistory } from './series-history.ts';
import { decodeSeriesState, encodeSeriesState, type SeriesState } from './series-state.ts';
import { weightedMedian } from './weighted-median.ts';

export interface SeriesForecasterOptions {
  readonly stepMs: number;
  /** So many values are remembered. */
  readonly historySteps: number;
  readonly methods: readonly ForecastMethod[];
  readonly buckets: readonly LeadBucket[];
  /** After which an outcome counts half. */
  readonly halfLifeMs: number;
  /** The name of the method that no forecast shall be worse than for long. */
  readonly floor?: string;
  readonly levels?: readonly number[];
  /** See {@link SeriesContext.companion}. */
  readonly companion?: SeriesHistory;
  /** For tests that show what calibration is good for. */
  readonly calibrates?: boolean;
  /** A steady clock, to notice models that take too long. Without it none does. */
  readonly nowMs?: () => number;
  /** Shared by the series of a process, to save memory. */
  readonly scratch?: MethodScratch;
}

export interface UpdateOptions {
  /** False while something unusual goes on: the value is remembered, and nothing is learnt from it. */
  readonly learn?: boolean;
}

export type RestoredSeries =
  | { readonly kind: 'restored'; readonly forecaster: SeriesForecaster }
  | { readonly kind: 'unreadable'; readonly error: unknown };

/** Larger values are cut, so that sums of them are numbers still, in single precision. */
const VALUE_MAX = 1e30;
/** The floor takes over only where enough outcomes speak for it. */
const FLOOR_OUTCOMES_MIN = 24;

/**
 * Forecasts one series of equal steps: the weighted median of what all methods say, each counted by how right it was lately at
 * that lead and level, then calibrated. Quantiles never cross, are finite, and in units of the series: who multiplies what it
 * is given by c > 0 gets c times the forecast. A series that was never negative is not forecast to be.
 */
export class SeriesForecaster {
  readonly history: SeriesHistory;
  readonly levels: readonly number[];
  readonly #options: SeriesForecasterOptions;
  readonly #models: readonly GuardedModel[];
  readonly #scores: MethodScores;
  readonly #calibration: OnlineCalibration;
  readonly #pending: PendingForecasts;
  /** By bucket: what an outcome still counts when the next one comes. */
  readonly #fading: readonly number[];
  readonly #scratch: MethodScratch;
  /** By method: whether it had something to say in the last prediction. */
  readonly #says: Uint8Array;
  readonly #floor: number;
  /** Of a round of probes: calibrated, and before that. */
  readonly #stated: Float64Array;
  readonly #plain: Float64Array;
  #known = 0;
  #least = Number.POSITIVE_INFINITY;

  constructor(options: SeriesForecasterOptions, saved?: SeriesState) {
    const { stepMs, historySteps, methods, buckets, halfLifeMs, levels = LEVELS } = options;
    this.#options = options;
    this.levels = levels;
    this.history = new SeriesHistory({ stepMs, capacity: historySteps });
    if (saved !== undefined) {
      this.history.restore(saved.history.subarray(-historySteps), saved);
      this.#known = saved.known;
      this.#least = saved.least;
    }
    const { companion } = options;
    const series: SeriesContext = {
      stepMs,
      levels,
      history: this.history,
      ...(companion !== undefined && { companion }),
    };
    const nowMs = options.nowMs ?? (() => 0);
    this.#models = methods.map((method) => {
      const before = saved?.methods.find(({ name }) => name === method.name);
      const state = before?.stateVersion === method.stateVersion ? before.bytes : undefined;
      return new GuardedModel(method, { series, state, nowMs });
    });
    const shape = { buckets: buckets.length, levels: levels.length, methods: methods.length };
    this.#scores = new MethodScores(shape);
    this.#calibration = new OnlineCalibration(shape.buckets, levels);
    if (saved !== undefined) {
      const places = methods.map((method) => saved.methods.findIndex(({ name }) => name === method.name));
      this.#scores.restore(saved.scores, { places, methodsBefore: saved.methods.length });
      this.#calibration.restore(saved.calibration);
    }
    this.#pending = new PendingForecasts(buckets, (methods.length + 2) * levels.length);
    this.#fading = buckets.map(
      ({ everySteps, probes }) => 0.5 ** ((everySteps * stepMs) / (halfLifeMs * probes.length)),
    );
    this.#floor = methods.findIndex(({ name }) => name === options.floor);
    this.#scratch = options.scratch ?? new MethodScratch();
    this.#says = new Uint8Array(methods.length);
    this.#stated = new Float64Array(this.#pending.probes.length * levels.length);
    this.#plain = new Float64Array(this.#stated.length);
  }

  /** What `save` wrote, with the same options. Methods and scores that are of something else begin anew. */
  static restore(options: SeriesForecasterOptions, bytes: Uint8Array): RestoredSeries {
    try {
      const saved = decodeSeriesState(bytes);
      if (saved.stepMs !== options.stepMs)
        return { kind: 'unreadable', error: new Error(`its steps are ${saved.stepMs} ms long`) };
      return { kind: 'restored', forecaster: new SeriesForecaster(options, saved) };
    } catch (error) {
      return { kind: 'unreadable', error };
    }
  }

  /** What methods did that they must not do. */
  get faults(): readonly ModelFault[] {
    return this.#models.flatMap(({ fault }) => fault ?? []);
  }

  /** Steps with a value so far. */
  get known(): number {
    return this.#known;
  }

  /** The value of the step after the last one; NaN where it is missing. `startMs` is where that step begins: Unix time in ms. */
  update(value: number, startMs: number, { learn = true }: UpdateOptions = {}): void {
    const cut = Math.fround(Math.max(-VALUE_MAX, Math.min(VALUE_MAX, value)));
    this.history.push(cut, startMs);
    if (!Number.isNaN(cut)) {
      this.#known += 1;
      this.#least = Math.min(this.#least, cut);
    }
    for (let index = 0; index < this.#models.length; index += 1) this.#models[index]?.update();
    if (!learn) return;
    this.#settle(cut);
    this.#open();
  }

  /** Quantiles of the steps `leads`, ascending; 1 is the next one. Undefined while no value is known. */
  predict(leads: readonly number[]): QuantileForecast | undefined {
    const values = new Float64Array(leads.length * this.levels.length);
    return this.predictInto(leads, values) ? { levels: this.levels, leads, values } : undefined;
  }

  /** As {@link predict}, into memory of the caller's. False while no value is known. */
  predictInto(leads: readonly number[], into: Float64Array): boolean {
    if (!this.#combine(leads, into)) return false;
    this.#finish(leads, into);
    this.#liftToFloor(leads, into);
    return true;
  }

  save(): Uint8Array {
    const { history } = this;
    const values = new Float32Array(history.length);
    for (let index = 0; index < values.length; index += 1)
      values[index] = history.at(values.length - 1 - index);
    return encodeSeriesState({
      stepMs: history.stepMs,
      count: history.count,
      lastStartMs: history.lastStartMs,
      least: this.#least,
      known: this.#known,
      history: values,
      methods: this.#models.map((model) => ({
        name: model.name,
        stateVersion: model.method.stateVersion,
        bytes: model.save(),
      })),
      scores: this.#scores.state,
      calibration: this.#calibration.state,
    });
  }

  /** The weighted medians. What each method said is in the scratch afterwards, NaN where it said nothing. */
  #combine(leads: readonly number[], into: Float64Array): boolean {
    const width = this.levels.length;
    const methods = this.#models.length;
    this.#scratch.reserve({ methods, cells: leads.length * width });
    const { rows, values, weights } = this.#scratch;
    let speaking = 0;
    for (let index = 0; index < methods; index += 1) {
      const row = rows[index];
      const says = row !== undefined && this.#models[index]?.predict(leads, row) === true;
      this.#says[index] = says ? 1 : 0;
      speaking += says ? 1 : 0;
      if (!says) row?.fill(Number.NaN, 0, leads.length * width);
    }
    if (speaking === 0) return false;
    for (let row = 0; row < leads.length; row += 1) {
      const bucket = bucketOf(this.#options.buckets, leads[row] ?? 1);
      const worth = this.#scores.weightsOf(bucket);
      for (let column = 0; column < width; column += 1) {
        const place = this.#scores.placeOf(bucket, column);
        let size = 0;
        for (let index = 0; index < methods; index += 1) {
          if (this.#says[index] === 0) continue;
          values[size] = rows[index]?.[row * width + column] ?? 0;
          // Never nothing: where those that are trusted are silent, the others are heard.
          weights[size] = (worth[place + index] ?? 0) + 1e-12;
          size += 1;
        }
        into[row * width + column] = weightedMedian({ values, weights, size });
      }
    }
    return true;
  }

  /** Calibrates, widens while little is known, and makes of the rows what a forecast has to be. */
  #finish(leads: readonly number[], into: Float64Array): void {
    const width = this.levels.length;
    const floor = this.#least >= 0 ? 0 : Number.NEGATIVE_INFINITY;
    for (let row = 0; row < leads.length; row += 1) {
      const at = row * width;
      const bucket = bucketOf(this.#options.buckets, leads[row] ?? 1);
      const spread = this.#calibration.spreadOf(into, at, bucket);
      if (this.#options.calibrates !== false) this.#calibration.adjust(into, { at, bucket, spread });
      widenEarly(into, at, { levels: this.levels, spread, known: this.#known });
      straighten(into, { at, width, floor });
    }
  }

  /** Whether the floor has cost less lately than all methods together. */
  #isFloorBetter(bucket: number): boolean {
    if (this.#floor < 0 || this.#scores.outcomesOf(bucket) < FLOOR_OUTCOMES_MIN) return false;
    return this.#scores.lossOf(bucket, this.#floor) < this.#calibration.lossOf(bucket);
  }

  /** Where the floor was better, the floor is the forecast. */
  #liftToFloor(leads: readonly number[], into: Float64Array): void {
    const width = this.levels.length;
    const floor = this.#scratch.rows[this.#floor];
    if (floor === undefined || this.#says[this.#floor] === 0) return;
    for (let row = 0; row < leads.length; row += 1) {
      if (!this.#isFloorBetter(bucketOf(this.#options.buckets, leads[row] ?? 1))) continue;
      const at = row * width;
      for (let cell = at; cell < at + width; cell += 1) into[cell] = floor[cell] ?? 0;
      straighten(into, { at, width, floor: this.#least >= 0 ? 0 : Number.NEGATIVE_INFINITY });
    }
  }

  /** Notes what all methods say now of the leads whose turn it is. */
  #open(): void {
    const { count } = this.history;
    const { probes, leads } = this.#pending.roundAt(count);
    if (probes.length === 0 || !this.#combine(leads, this.#plain)) return;
    const width = this.levels.length;
    const cells = leads.length * width;
    for (let cell = 0; cell < cells; cell += 1) this.#stated[cell] = this.#plain[cell] ?? 0;
    this.#finish(leads, this.#stated);
    const { rows } = this.#pending;
    const said = this.#scratch.rows;
    const methods = this.#models.length;
    for (let row = 0; row < probes.length; row += 1) {
      const probe = probes[row];
      if (probe === undefined) continue;
      let at = this.#pending.open(probe, count);
      for (let index = 0; index < methods + 2; index += 1) {
        const from = index < methods ? said[index] : index === methods ? this.#plain : this.#stated;
        for (let column = 0; column < width; column += 1)
          rows[at++] = from?.[row * width + column] ?? Number.NaN;
      }
    }
  }

  /** Holds against `actual` what was said of this step. */
  #settle(actual: number): void {
    if (Number.isNaN(actual)) return;
    const { probes } = this.#pending;
    for (let index = 0; index < probes.length; index += 1) {
      const probe = probes[index];
      if (probe === undefined) continue;
      const from = this.#pending.due(probe, this.history.count);
      if (from >= 0) this.#judge(probe, { from, actual });
    }
  }

  #judge({ bucket }: Probe, { from, actual }: { from: number; actual: number }): void {
    const width = this.levels.length;
    const methods = this.#models.length;
    const { rows } = this.#pending;
    const share = this.#fading[bucket] ?? 1;
    this.#scores.fade(bucket, share);
    this.#calibration.fade(bucket, share);
    for (let column = 0; column < width; column += 1) {
      const level = this.levels[column] ?? 0.5;
      const plainLoss = lossOf(level, rows[from + methods * width + column], actual);
      const place = this.#scores.placeOf(bucket, column);
      for (let index = 0; index < methods; index += 1) {
        const loss = lossOf(level, rows[from + index * width + column], actual);
        this.#scores.add(place + index, Number.isNaN(loss) ? plainLoss : loss);
      }
      const stated = rows[from + (methods + 1) * width + column] ?? Number.NaN;
      this.#calibration.learn({ bucket, column }, { stated, actual, loss: lossOf(level, stated, actual) });
    }
  }
}

function lossOf(level: number, stated: number | undefined, actual: number): number {
  return pinballLoss(level, { stated: stated ?? Number.NaN, actual });
}

/** Rows ascend, none of them below `floor`. */
function straighten(
  rows: Float64Array,
  { at, width, floor }: { readonly at: number; readonly width: number; readonly floor: number },
): void {
  let least = floor;
  for (let cell = at; cell < at + width; cell += 1) {
    least = Math.max(least, rows[cell] ?? 0);
    rows[cell] = least;
  }
}
