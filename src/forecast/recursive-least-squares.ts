import type { StatePart } from './model-state.ts';

/** Per step; a value counts 1/e after a thousand. */
const FORGETTING = 0.999;
/** The first values only tell the unit of the series. */
const WARM_UP_STEPS = 16;
/** An error counts as at most so many times the usual one: a burst is no reason to unlearn. */
const ERROR_MAX = 4;
/** How uncertain coefficients are at first, and at most, in units of the series. */
const UNCERTAINTY_FIRST = 1;
const UNCERTAINTY_MAX = 100;

/**
 * Coefficients of a linear forecast, improved with each value. Recursive least squares with forgetting: Ljung, "System
 * Identification" (1999), chapter 11. Forgetting pauses where nothing new is learnt, so that the matrix stays bounded; one that
 * rounding has spoilt begins anew.
 */
export class RecursiveLeastSquares {
  readonly coefficients: Float64Array;
  readonly parts: readonly StatePart[];
  readonly #size: number;
  /** Symmetric, row after row. */
  readonly #uncertainty: Float64Array;
  /** Values seen, their mean square, mean absolute error. */
  readonly #state = new Float64Array(3);
  readonly #gain: Float64Array;

  constructor(size: number) {
    this.#size = size;
    this.coefficients = new Float64Array(size);
    this.#uncertainty = new Float64Array(size * size);
    this.#gain = new Float64Array(size);
    this.parts = [{ values: this.coefficients }, { values: this.#uncertainty }, { values: this.#state }];
  }

  /** `actual` came after `inputs`. */
  update(inputs: Float64Array, actual: number): void {
    const seen = (this.#state[0] ?? 0) + 1;
    this.#state[0] = seen;
    const share = 1 / Math.min(seen, 288);
    this.#state[1] = (this.#state[1] ?? 0) + share * (actual * actual - (this.#state[1] ?? 0));
    const square = this.#state[1] ?? 0;
    if (seen <= WARM_UP_STEPS || square <= 0) return;
    if ((this.#uncertainty[0] ?? 0) <= 0) this.#begin(UNCERTAINTY_FIRST / square);
    this.#learn(inputs, { actual, share, most: UNCERTAINTY_MAX / square });
  }

  #learn(
    inputs: Float64Array,
    { actual, share, most }: { actual: number; share: number; most: number },
  ): void {
    const size = this.#size;
    const [uncertainty, gain, coefficients] = [this.#uncertainty, this.#gain, this.coefficients];
    let [variance, told, trace] = [0, 0, 0];
    for (let row = 0; row < size; row += 1) {
      let sum = 0;
      for (let column = 0; column < size; column += 1) {
        sum += (uncertainty[row * size + column] ?? 0) * (inputs[column] ?? 0);
      }
      gain[row] = sum;
      variance += sum * (inputs[row] ?? 0);
      told += (coefficients[row] ?? 0) * (inputs[row] ?? 0);
      trace += uncertainty[row * size + row] ?? 0;
    }
    if (!(variance >= 0) || !Number.isFinite(trace)) {
      this.#begin((UNCERTAINTY_FIRST * most) / UNCERTAINTY_MAX);
      return;
    }
    const error = actual - told;
    const usual = this.#state[2] ?? 0;
    const bounded = usual > 0 ? Math.max(-ERROR_MAX * usual, Math.min(ERROR_MAX * usual, error)) : error;
    this.#state[2] =
      usual +
      share *
        (Math.min(Math.abs(error), usual > 0 ? 2 * ERROR_MAX * usual : Number.POSITIVE_INFINITY) - usual);
    const keep = trace < size * most ? FORGETTING : 1;
    const divisor = keep + variance;
    for (let row = 0; row < size; row += 1) {
      const step = (gain[row] ?? 0) / divisor;
      coefficients[row] = (coefficients[row] ?? 0) + step * bounded;
      for (let column = 0; column < size; column += 1) {
        const at = row * size + column;
        uncertainty[at] = ((uncertainty[at] ?? 0) - step * (gain[column] ?? 0)) / keep;
      }
    }
  }

  #begin(uncertainty: number): void {
    this.#uncertainty.fill(0);
    for (let row = 0; row < this.#size; row += 1) this.#uncertainty[row * this.#size + row] = uncertainty;
  }
}
