/** How far one outcome moves a quantile, in standard deviations of "was exceeded or not", as a share of the spread. */
const RATE = 0.01;
/** In spreads: what is off by more is no matter of calibration. */
const OFFSET_MAX = 4;

/**
 * Moves stated quantiles until they are exceeded as often as they say: each time that the quantile of level q is exceeded it
 * goes up by q, each time that it is not, down by 1 - q. This covers what it claims in the long run whatever the series does.
 * Gibbs and Candès, "Adaptive Conformal Inference Under Distribution Shift", 2021; Angelopoulos, Candès and Tibshirani,
 * "Conformal PID Control for Time Series Prediction", 2023.
 */
export class OnlineCalibration {
  readonly #levels: readonly number[];
  readonly #rates: readonly number[];
  readonly #outer: readonly [number, number];
  readonly #middle: number;
  /** By bucket and level, in spreads. */
  readonly #offsets: Float32Array;
  /** By bucket: faded sums of how far the median was off, what the forecast has cost, and how many outcomes. */
  readonly #errors: Float32Array;
  readonly #losses: Float32Array;
  readonly #outcomes: Float32Array;

  constructor(buckets: number, levels: readonly number[]) {
    this.#levels = levels;
    this.#rates = levels.map((level) => RATE / Math.sqrt(level * (1 - level)));
    this.#outer = [nearest(levels, 0.1), nearest(levels, 0.9)];
    this.#middle = nearest(levels, 0.5);
    this.#offsets = new Float32Array(buckets * levels.length);
    this.#errors = new Float32Array(buckets);
    this.#losses = new Float32Array(buckets);
    this.#outcomes = new Float32Array(buckets);
  }

  /** All that has to be kept, in this order; single precision, so that what is kept is what there is. */
  get state(): readonly Float32Array[] {
    return [this.#offsets, this.#errors, this.#losses, this.#outcomes];
  }

  /** Takes what another one had as its state. */
  restore(state: readonly Float32Array[]): void {
    for (const [index, array] of this.state.entries())
      if (state[index]?.length === array.length) array.set(state[index]);
  }

  /** What the forecast of a bucket has cost, at all levels, faded. */
  lossOf(bucket: number): number {
    return this.#losses[bucket] ?? 0;
  }

  /** Moves the quantiles of one lead, which begin at `at`. They may cross then. */
  adjust(
    rows: Float64Array,
    { at, bucket, spread }: { readonly at: number; readonly bucket: number; readonly spread: number },
  ): void {
    const from = bucket * this.#levels.length;
    for (let column = 0; column < this.#levels.length; column += 1)
      rows[at + column] = (rows[at + column] ?? 0) + spread * (this.#offsets[from + column] ?? 0);
  }

  /** Half of what lies between the outer quantiles, or how far the median is off by experience, in equal parts. */
  spreadOf(rows: Float64Array, at: number, bucket: number): number {
    const [low, high] = this.#outer;
    const stated = (rows[at + high] ?? 0) - (rows[at + low] ?? 0);
    const outcomes = this.#outcomes[bucket] ?? 0;
    return outcomes > 0 ? (stated + (this.#errors[bucket] ?? 0) / outcomes) / 2 : stated / 2;
  }

  /** Before an outcome is added. */
  fade(bucket: number, share: number): void {
    this.#errors[bucket] = (this.#errors[bucket] ?? 0) * share;
    this.#losses[bucket] = (this.#losses[bucket] ?? 0) * share;
    this.#outcomes[bucket] = (this.#outcomes[bucket] ?? 0) * share + 1;
  }

  /** `stated` is the adjusted quantile, `loss` what it has cost. */
  learn(
    { bucket, column }: { readonly bucket: number; readonly column: number },
    { stated, actual, loss }: { readonly stated: number; readonly actual: number; readonly loss: number },
  ): void {
    const level = this.#levels[column] ?? 0.5;
    const at = bucket * this.#levels.length + column;
    this.#losses[bucket] = (this.#losses[bucket] ?? 0) + loss;
    if (column === this.#middle)
      this.#errors[bucket] = (this.#errors[bucket] ?? 0) + Math.abs(actual - stated);
    // What is hit exactly, as in a series that stands still, says nothing about how often it is exceeded.
    if (actual === stated) return;
    const step = (this.#rates[column] ?? 0) * (actual > stated ? level : level - 1);
    const offset = (this.#offsets[at] ?? 0) + step;
    this.#offsets[at] = Math.max(-OFFSET_MAX, Math.min(OFFSET_MAX, offset));
  }
}

function nearest(levels: readonly number[], wanted: number): number {
  let best = 0;
  for (let index = 1; index < levels.length; index += 1)
    if (Math.abs((levels[index] ?? 0) - wanted) < Math.abs((levels[best] ?? 0) - wanted)) best = index;
  return best;
}
