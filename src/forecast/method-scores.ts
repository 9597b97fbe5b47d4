/** How much better a method has to be: one that costs a tenth more than the best counts e^(-2) of it. */
const STEEPNESS = 20;
/** So many outcomes weigh as much as the belief that all methods are alike. */
const PRIOR_OUTCOMES = 6;

export interface ScoreShape {
  readonly buckets: number;
  readonly levels: number;
  readonly methods: number;
}

/**
 * What the forecasts of each method have cost lately, by lead and level, and what each is therefore worth. Old outcomes fade.
 * A method that had nothing to say is charged what all of them together cost, so that silence neither helps nor harms it.
 */
export class MethodScores {
  readonly #shape: ScoreShape;
  /** By bucket, level, method. */
  readonly #losses: Float32Array;
  /** By bucket: how many outcomes, faded as they are. */
  readonly #outcomes: Float32Array;
  readonly #weights: Float64Array;
  readonly #isStale: Uint8Array;

  constructor(shape: ScoreShape) {
    this.#shape = shape;
    const cells = shape.buckets * shape.levels * shape.methods;
    this.#losses = new Float32Array(cells);
    this.#weights = new Float64Array(cells).fill(1);
    this.#outcomes = new Float32Array(shape.buckets);
    this.#isStale = new Uint8Array(shape.buckets);
  }

  /** All that has to be kept, in this order; single precision, so that what is kept is what there is. */
  get state(): readonly Float32Array[] {
    return [this.#losses, this.#outcomes];
  }

  /** Takes what another one had as its state; `places` says where each method stood in that, -1 where it was not there. */
  restore(
    [losses, outcomes]: readonly Float32Array[],
    { places, methodsBefore: before }: { readonly places: readonly number[]; readonly methodsBefore: number },
  ): void {
    if (losses === undefined || outcomes?.length !== this.#outcomes.length) return;
    const rows = this.#shape.buckets * this.#shape.levels;
    if (losses.length !== rows * before) return;
    this.#outcomes.set(outcomes);
    for (let row = 0; row < rows; row += 1) {
      const known = losses.subarray(row * before, (row + 1) * before);
      const mean = known.reduce((sum, loss) => sum + loss, 0) / Math.max(1, before);
      for (const [index, from] of places.entries())
        this.#losses[row * this.#shape.methods + index] = from < 0 ? mean : (known[from] ?? mean);
    }
    this.#isStale.fill(1);
  }

  /** Lets older outcomes of a bucket fade before a new one is added. */
  fade(bucket: number, share: number): void {
    const { levels, methods } = this.#shape;
    const from = bucket * levels * methods;
    for (let at = from; at < from + levels * methods; at += 1)
      this.#losses[at] = (this.#losses[at] ?? 0) * share;
    this.#outcomes[bucket] = (this.#outcomes[bucket] ?? 0) * share + 1;
    this.#isStale[bucket] = 1;
  }

  /** `at` as {@link placeOf}. */
  add(at: number, loss: number): void {
    this.#losses[at] = (this.#losses[at] ?? 0) + loss;
  }

  /** Where the first method of a bucket and level stands. */
  placeOf(bucket: number, level: number): number {
    return (bucket * this.#shape.levels + level) * this.#shape.methods;
  }

  /** What a method has cost at all levels of a bucket. */
  lossOf(bucket: number, method: number): number {
    let sum = 0;
    for (let level = 0; level < this.#shape.levels; level += 1)
      sum += this.#losses[this.placeOf(bucket, level) + method] ?? 0;
    return sum;
  }

  outcomesOf(bucket: number): number {
    return this.#outcomes[bucket] ?? 0;
  }

  /** See {@link placeOf}. */
  weightsOf(bucket: number): Float64Array {
    if (this.#isStale[bucket] === 1) this.#weigh(bucket);
    return this.#weights;
  }

  #weigh(bucket: number): void {
    const { levels, methods } = this.#shape;
    const outcomes = this.#outcomes[bucket] ?? 0;
    const steepness = (STEEPNESS * outcomes) / (outcomes + PRIOR_OUTCOMES);
    for (let level = 0; level < levels; level += 1) {
      const from = this.placeOf(bucket, level);
      let least = Number.POSITIVE_INFINITY;
      let sum = 0;
      for (let at = from; at < from + methods; at += 1) {
        const loss = this.#losses[at] ?? 0;
        least = Math.min(least, loss);
        sum += loss;
      }
      // Where the best one is always right, what others cost is held against the mean.
      const unit = Math.max(least, (1e-3 * sum) / methods);
      for (let at = from; at < from + methods; at += 1)
        this.#weights[at] = unit > 0 ? Math.exp((-steepness * ((this.#losses[at] ?? 0) - least)) / unit) : 1;
    }
    this.#isStale[bucket] = 0;
  }
}
