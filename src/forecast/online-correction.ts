import type { StatePart } from './model-state.ts';
import { LEVELS } from './quantile-forecast.ts';

/** Leads at which forecasts are judged, and the steps between them: prime, so that all phases of an hour are met. */
const ANCHORS = [2, 12, 48, 192] as const;
const STRIDES = [5, 5, 11, 37] as const;
/** How far a quantile moves at most after one value, as a share of the width of what was stated. */
const STEP_SHARE = 0.02;
/** A correction is at most so many units. */
const CORRECTION_MAX = 4;
const WIDTH = LEVELS.length;
const MIDDLE = LEVELS.indexOf(0.5);
/** Of a forecast under way: zero, unit, quantiles. */
const PENDING_WIDTH = 2 + WIDTH;
const LOW = LEVELS.indexOf(0.1);
const HIGH = LEVELS.indexOf(0.9);

/** How to state quantiles of a lead, and in which units. */
export interface StatedRows {
  readonly zero: number;
  readonly unit: number;
  readonly rowOf: (lead: number, into: Float64Array) => void;
}

/**
 * What a model's quantiles are lacking for one series, learnt while it runs: after each forecast that came to pass each quantile
 * moves a little up or down, by the gradient of its pinball loss (Gibbs and Candès, "Adaptive Conformal Inference Under
 * Distribution Shift", NeurIPS 2021, for each level). Steps and sums are bounded, and quantiles stay in order.
 */
export class OnlineCorrection {
  readonly parts: readonly StatePart[];
  readonly #steps = new Float64Array(1);
  /** Per anchor and level, in units of the model. */
  readonly #corrections = new Float64Array(ANCHORS.length * WIDTH);
  readonly #pendings: readonly Float64Array[] = ANCHORS.map((lead, index) =>
    new Float64Array(PENDING_WIDTH * Math.ceil(lead / (STRIDES[index] ?? 1))).fill(Number.NaN),
  );

  constructor() {
    this.parts = [
      { values: this.#steps },
      { values: this.#corrections },
      ...this.#pendings.map((values) => ({ values, compact: true })),
    ];
  }

  /**
   * A step is over with `actual`, NaN where it is missing. `state` is called where a forecast that is made now will be judged;
   * undefined where there is none.
   */
  update(actual: number, state: () => StatedRows | undefined): void {
    const step = (this.#steps[0] ?? 0) + 1;
    this.#steps[0] = step;
    let stated: StatedRows | undefined;
    for (let anchor = 0; anchor < ANCHORS.length; anchor += 1) {
      const [lead, stride] = [ANCHORS[anchor] ?? 1, STRIDES[anchor] ?? 1];
      const madeAt = step - lead;
      if (madeAt > 0 && madeAt % stride === 0)
        this.#learn(anchor, this.#pendingOf(anchor, madeAt / stride), actual);
      if (step % stride !== 0) continue;
      const pending = this.#pendingOf(anchor, step / stride);
      pending.fill(Number.NaN);
      stated ??= state();
      if (stated === undefined) continue;
      pending[0] = stated.zero;
      pending[1] = stated.unit;
      stated.rowOf(lead, pending.subarray(2));
    }
  }

  /** Corrects quantiles of a lead. */
  apply(lead: number, row: Float64Array): void {
    let upper = 0;
    while (upper < ANCHORS.length - 1 && (ANCHORS[upper] ?? 0) < lead) upper += 1;
    const lower = Math.max(0, upper - 1);
    const [from, to] = [ANCHORS[lower] ?? 1, ANCHORS[upper] ?? 1];
    const share = from < to ? Math.min(1, Math.max(0, Math.log(lead / from) / Math.log(to / from))) : 1;
    for (let level = 0; level < WIDTH; level += 1) {
      const low = this.#corrections[lower * WIDTH + level] ?? 0;
      const high = this.#corrections[upper * WIDTH + level] ?? 0;
      row[level] = (row[level] ?? 0) + low + share * (high - low);
    }
    for (let level = MIDDLE + 1; level < WIDTH; level += 1) {
      row[level] = Math.max(row[level] ?? 0, row[level - 1] ?? 0);
    }
    for (let level = MIDDLE - 1; level >= 0; level -= 1) {
      row[level] = Math.min(row[level] ?? 0, row[level + 1] ?? 0);
    }
  }

  #pendingOf(anchor: number, count: number): Float64Array {
    const pendings = this.#pendings[anchor] ?? new Float64Array(PENDING_WIDTH);
    const from = (count % (pendings.length / PENDING_WIDTH)) * PENDING_WIDTH;
    return pendings.subarray(from, from + PENDING_WIDTH);
  }

  #learn(anchor: number, pending: Float64Array, actual: number): void {
    const [zero = 0, unit = 0] = pending;
    const place = (actual - zero) / unit;
    if (Number.isNaN(place)) return;
    const width = Math.max(0.01, (pending[2 + HIGH] ?? 0) - (pending[2 + LOW] ?? 0));
    for (let level = 0; level < WIDTH; level += 1) {
      const isBelow = place <= (pending[2 + level] ?? 0);
      const slope = (LEVELS[level] ?? 0) - (isBelow ? 1 : 0);
      const at = anchor * WIDTH + level;
      const next = (this.#corrections[at] ?? 0) + STEP_SHARE * width * slope;
      this.#corrections[at] = Math.min(CORRECTION_MAX, Math.max(-CORRECTION_MAX, next));
    }
  }
}
