import { LEVELS, pinballLoss } from '../src/forecast/quantile-forecast.ts';

/** Levels that the weighted quantile loss is a mean of. */
const WQL_LEVELS = LEVELS.filter((level) => level <= 0.9);

/** What forecasts of one way and horizon have cost, over all leads, origins and series that it is told of. */
export class ForecastScores {
  readonly #losses = LEVELS.map(() => 0);
  readonly #within = LEVELS.map(() => 0);
  #absolute = 0;
  #medianErrors = 0;
  #count = 0;

  /** `rows[at …]` are the quantiles that were stated of `actual`. What is missing was not forecast. */
  add(actual: number, rows: ArrayLike<number>, at: number): void {
    if (Number.isNaN(actual)) return;
    this.#count += 1;
    this.#absolute += Math.abs(actual);
    for (let column = 0; column < LEVELS.length; column += 1) {
      const stated = rows[at + column] ?? 0;
      const level = LEVELS[column] ?? 0;
      this.#losses[column] = (this.#losses[column] ?? 0) + pinballLoss(level, { stated, actual });
      if (actual <= stated) this.#within[column] = (this.#within[column] ?? 0) + 1;
      if (level === 0.5) this.#medianErrors += Math.abs(actual - stated);
    }
  }

  get count(): number {
    return this.#count;
  }

  get meanError(): number {
    return this.#medianErrors / this.#count;
  }

  /** Twice the sum of pinball losses over the sum of what happened, mean over the levels 0.1 … 0.9. */
  get wql(): number {
    return WQL_LEVELS.reduce((sum, level) => sum + this.relativePinball(level), 0) / WQL_LEVELS.length;
  }

  /** The same at one level. */
  relativePinball(level: number): number {
    return (2 * (this.#losses[LEVELS.indexOf(level)] ?? 0)) / Math.max(this.#absolute, Number.MIN_VALUE);
  }

  /** Share of what happened that was at or below the quantile. */
  coverage(level: number): number {
    return (this.#within[LEVELS.indexOf(level)] ?? 0) / this.#count;
  }

  merge(other: ForecastScores): void {
    for (const [column, loss] of other.#losses.entries()) {
      this.#losses[column] = (this.#losses[column] ?? 0) + loss;
      this.#within[column] = (this.#within[column] ?? 0) + (other.#within[column] ?? 0);
    }
    this.#absolute += other.#absolute;
    this.#medianErrors += other.#medianErrors;
    this.#count += other.#count;
  }
}
