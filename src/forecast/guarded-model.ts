import { messageOf } from '../base/errors.ts';
import type { ForecastMethod, ForecastModel, SeriesContext } from './forecast-model.ts';

/** What a model did that it must not do. */
export interface ModelFault {
  readonly method: string;
  readonly reason: string;
  /** So often since the beginning, of whatever reason. */
  readonly times: number;
  /** Whether it is asked no more. */
  readonly isOut: boolean;
}

/** A model that has failed so often is not asked any more. */
export const FAULTS_MAX = 5;
/** Slower than this and it would hold up all other series. */
export const PREDICT_MS_MAX = 50;

/**
 * A model behind a wall: what it throws or states that cannot be is its fault, noted with the reason, and nothing of it gets
 * through. After {@link FAULTS_MAX} faults it is out.
 */
export class GuardedModel {
  readonly name: string;
  readonly method: ForecastMethod;
  readonly #width: number;
  readonly #nowMs: () => number;
  #model: ForecastModel | undefined;
  #times = 0;
  #reason = '';

  constructor(
    method: ForecastMethod,
    { series, state, nowMs }: { series: SeriesContext; state?: Uint8Array | undefined; nowMs: () => number },
  ) {
    this.method = method;
    this.name = method.name;
    this.#width = series.levels.length;
    this.#nowMs = nowMs;
    this.#attempt(() => {
      const restored = state === undefined ? undefined : method.restore(series, state);
      this.#model = restored ?? method.create(series);
    });
  }

  get fault(): ModelFault | undefined {
    if (this.#times === 0) return undefined;
    return { method: this.name, reason: this.#reason, times: this.#times, isOut: this.#isOut };
  }

  get #isOut(): boolean {
    return this.#model === undefined || this.#times >= FAULTS_MAX;
  }

  update(): void {
    if (this.#isOut) return;
    try {
      this.#model?.update();
    } catch (thrown) {
      this.#note(`update threw: ${messageOf(thrown)}`);
    }
  }

  /** As {@link ForecastModel.predict}, but that what it has written, if it returns true, are finite rows that ascend. */
  predict(leads: readonly number[], into: Float64Array): boolean {
    if (this.#isOut) return false;
    const cells = leads.length * this.#width;
    const rows = into.length === cells ? into : into.subarray(0, cells);
    // What it does not write must not be what another forecast has left there.
    rows.fill(Number.NaN);
    const beganMs = this.#nowMs();
    let says = false;
    try {
      says = this.#model?.predict(leads, rows) === true;
    } catch (thrown) {
      this.#note(`predict threw: ${messageOf(thrown)}`);
    }
    const tookMs = this.#nowMs() - beganMs;
    if (tookMs > PREDICT_MS_MAX) this.#note(`predict took ${Math.round(tookMs)} ms`);
    return says && this.#straighten(rows, leads.length);
  }

  /** Undefined where it cannot say: the model begins anew the next time. */
  save(): Uint8Array | undefined {
    if (this.#isOut) return undefined;
    try {
      const state: unknown = this.#model?.save();
      if (state instanceof Uint8Array) return state;
      this.#note('save gave no bytes');
    } catch (thrown) {
      this.#note(`save threw: ${messageOf(thrown)}`);
    }
    return undefined;
  }

  #straighten(into: Float64Array, rows: number): boolean {
    for (let row = 0; row < rows; row += 1) {
      let least = Number.NEGATIVE_INFINITY;
      for (let at = row * this.#width; at < (row + 1) * this.#width; at += 1) {
        const value = into[at] ?? Number.NaN;
        if (!Number.isFinite(value)) {
          this.#note(`stated ${value}`);
          return false;
        }
        // Quantiles of a learnt model may cross by a little; those of the whole forecast never do.
        if (value < least) into[at] = least;
        else least = value;
      }
    }
    return true;
  }

  #attempt(step: () => void): void {
    try {
      step();
    } catch (thrown) {
      this.#note(`could not be made: ${messageOf(thrown)}`);
    }
  }

  #note(reason: string): void {
    this.#times += 1;
    this.#reason = reason;
  }
}
