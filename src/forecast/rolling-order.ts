/**
 * The last values of a series in ascending order, kept so by moving what lies between the value that leaves and the one
 * that comes. Single precision, as all that a series remembers: half of the memory, and exactly what a saved history says.
 */
export class RollingOrder {
  readonly values: Float32Array;
  #size = 0;

  constructor(capacity: number) {
    this.values = new Float32Array(capacity);
  }

  get size(): number {
    return this.#size;
  }

  /** NaN for `leaving` where nothing leaves, for `coming` where nothing comes. What leaves came once. */
  exchange(leaving: number, coming: number): void {
    if (Number.isNaN(leaving)) {
      if (!Number.isNaN(coming)) this.#insert(coming);
      return;
    }
    const from = lowerBound(this.values, this.#size, leaving);
    if (Number.isNaN(coming)) {
      this.values.copyWithin(from, from + 1, this.#size);
      this.#size -= 1;
      return;
    }
    const to = lowerBound(this.values, this.#size, coming);
    if (to > from) {
      this.values.copyWithin(from, from + 1, to);
      this.values[to - 1] = coming;
    } else {
      this.values.copyWithin(to + 1, to, from);
      this.values[to] = coming;
    }
  }

  #insert(value: number): void {
    const at = lowerBound(this.values, this.#size, value);
    this.values.copyWithin(at + 1, at, this.#size);
    this.values[at] = value;
    this.#size += 1;
  }
}

/** The first place in the ascending `sorted[0 … size)` that holds no less than `value`. */
export function lowerBound(sorted: Float32Array, size: number, value: number): number {
  let low = 0;
  let high = size;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((sorted[middle] ?? 0) < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * The quantile of ascending values at the place `level * (size + 1)`, as Weibull counts: of few values, the outer
 * quantiles are further out than with other ways of counting, and a new value exceeds them as often as they say.
 */
export function quantileOf(sorted: ArrayLike<number>, size: number, level: number): number {
  const place = level * (size + 1) - 1;
  if (!(place > 0)) return sorted[0] ?? Number.NaN;
  if (place >= size - 1) return sorted[size - 1] ?? Number.NaN;
  const below = Math.floor(place);
  const low = sorted[below] ?? 0;
  return low + (place - below) * ((sorted[below + 1] ?? 0) - low);
}
