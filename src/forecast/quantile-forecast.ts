/** The levels that a forecast states by default: where it is 0.9, nine of ten values shall be at or below. */
export const LEVELS: readonly number[] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99];

/** Quantiles of one series for some of its next steps. */
export interface QuantileForecast {
  readonly levels: readonly number[];
  /** Ascending; 1 is the step after the last value that the model was given. */
  readonly leads: readonly number[];
  /** Row after row: that of `leads[row]` begins at `row * levels.length`. Rows ascend. In units of the series. */
  readonly values: Float64Array;
}

/**
 * What a stated quantile costs when `actual` happens; least on average where it is the true quantile.
 * Koenker and Bassett, "Regression Quantiles", Econometrica 46 (1978).
 */
export function pinballLoss(level: number, { stated, actual }: { stated: number; actual: number }): number {
  const difference = actual - stated;
  return difference >= 0 ? level * difference : (level - 1) * difference;
}
