/** So many values, and the series speaks for itself. */
const STEPS = 24;
/** By what share of itself a level may move that nothing is known about, as a standard deviation. */
const LEVEL_SHARE = 0.3;
/** Of the logistic distribution. */
const STANDARD_DEVIATION = Math.PI / Math.sqrt(3);

export interface EarlyRow {
  readonly levels: readonly number[];
  /** Of the stated quantiles, in units of the series. */
  readonly spread: number;
  /** Steps with a value so far. */
  readonly known: number;
}

/**
 * Moves the quantiles of one lead apart while there are few values: those few are alike more often than not, and what they
 * have not shown yet is not therefore impossible. Fades with each value and is gone after {@link STEPS} of them.
 */
export function widenEarly(rows: Float64Array, at: number, { levels, spread, known }: EarlyRow): void {
  if (known >= STEPS) return;
  const middle = rows[at + Math.floor(levels.length / 2)] ?? 0;
  const unknown = (spread + LEVEL_SHARE * Math.abs(middle)) * ((1 - known / STEPS) / (1 + known / 4));
  for (let column = 0; column < levels.length; column += 1) {
    const level = levels[column] ?? 0.5;
    rows[at + column] =
      (rows[at + column] ?? 0) + (unknown * Math.log(level / (1 - level))) / STANDARD_DEVIATION;
  }
}
