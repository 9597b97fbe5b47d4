export interface WeightedValues {
  readonly values: Float64Array;
  readonly weights: Float64Array;
  /** So many of both count. */
  readonly size: number;
}

/**
 * The median of weighted values, each of which stands at the middle of its weight, on a straight line between the two that
 * lie around the half: it moves smoothly as weights do. Both arrays are sorted in place. NaN where nothing has a weight.
 */
export function weightedMedian({ values, weights, size }: WeightedValues): number {
  let total = 0;
  for (let index = 0; index < size; index += 1) {
    const value = values[index] ?? 0;
    const weight = weights[index] ?? 0;
    total += weight;
    let at = index;
    while (at > 0 && (values[at - 1] ?? 0) > value) {
      values[at] = values[at - 1] ?? 0;
      weights[at] = weights[at - 1] ?? 0;
      at -= 1;
    }
    values[at] = value;
    weights[at] = weight;
  }
  if (!(total > 0)) return Number.NaN;
  const half = total / 2;
  let below = 0;
  let previous = Number.NaN;
  let previousPlace = 0;
  for (let index = 0; index < size; index += 1) {
    const weight = weights[index] ?? 0;
    if (weight === 0) continue;
    const value = values[index] ?? 0;
    const place = below + weight / 2;
    if (place >= half) {
      if (Number.isNaN(previous)) return value;
      return previous + ((half - previousPlace) / (place - previousPlace)) * (value - previous);
    }
    previous = value;
    previousPlace = place;
    below += weight;
  }
  return previous;
}
