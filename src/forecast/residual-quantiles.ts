import type { ForecastMethod, ForecastModel, SeriesContext } from './forecast-model.ts';
import { quantileOf, RollingOrder } from './rolling-order.ts';
import { meanOf, nothingToSave, windowSteps } from './step-window.ts';

interface LastLevelOptions {
  /** The mean of so long a time goes on. */
  readonly levelMs: number;
  /** Errors are remembered so long. */
  readonly memoryMs: number;
}

/** Says that the last level goes on, with errors spread as they were: those after 1, 3, 12 … steps, each for itself. */
export function lastLevel(name: string, options: LastLevelOptions): ForecastMethod {
  const create = (series: SeriesContext) => new LastLevel(series, options);
  return { name, stateVersion: 1, create, restore: create };
}

/** Leads whose errors are remembered; between them, quantiles of errors lie on straight lines. */
const KNOTS: readonly number[] = [1, 3, 12, 48, 144, 288];
/** Quantiles of fewer errors say nothing. */
const ERRORS_MIN = 8;

class LastLevel implements ForecastModel {
  readonly #series: SeriesContext;
  readonly #levelSteps: number;
  readonly #memorySteps: number;
  readonly #errors: readonly RollingOrder[];
  readonly save = nothingToSave;

  constructor(series: SeriesContext, { levelMs, memoryMs }: LastLevelOptions) {
    this.#series = series;
    this.#levelSteps = windowSteps(series, levelMs);
    const longest = (KNOTS.at(-1) ?? 0) + this.#levelSteps;
    this.#memorySteps = Math.max(
      1,
      Math.min(windowSteps(series, memoryMs), series.history.capacity - 1 - longest),
    );
    this.#errors = KNOTS.map(() => new RollingOrder(this.#memorySteps));
    for (const [index, knot] of KNOTS.entries())
      for (let ago = this.#memorySteps - 1; ago >= 0; ago -= 1)
        this.#errors[index]?.exchange(Number.NaN, this.#error(knot, ago));
  }

  update(): void {
    for (let index = 0; index < KNOTS.length; index += 1) {
      const knot = KNOTS[index] ?? 1;
      this.#errors[index]?.exchange(this.#error(knot, this.#memorySteps), this.#error(knot, 0));
    }
  }

  /** What was wrong `ago` steps ago with the level of `lead` steps before. */
  #error(lead: number, ago: number): number {
    const level = meanOf(this.#series, { steps: this.#levelSteps, ago: ago + lead });
    return Math.fround(this.#series.history.at(ago) - level);
  }

  predict(leads: readonly number[], into: Float64Array): boolean {
    const { levels } = this.#series;
    const level = meanOf(this.#series, { steps: this.#levelSteps, ago: 0 });
    if (Number.isNaN(level)) return false;
    let known = 0;
    while (known < KNOTS.length && (this.#errors[known]?.size ?? 0) >= ERRORS_MIN) known += 1;
    if (known === 0) return false;
    for (let row = 0; row < leads.length; row += 1) {
      const lead = leads[row] ?? 1;
      let upper = 0;
      while (upper < known - 1 && (KNOTS[upper] ?? 0) < lead) upper += 1;
      const lower = Math.max(0, upper - 1);
      const [from, to] = [KNOTS[lower] ?? 1, KNOTS[upper] ?? 1];
      const share = to > from ? Math.min(1, (lead - from) / (to - from)) : 1;
      for (let column = 0; column < levels.length; column += 1) {
        const wanted = levels[column] ?? 0;
        const low = this.#quantile(lower, wanted);
        const high = share === 0 ? low : this.#quantile(upper, wanted);
        into[row * levels.length + column] = level + low + share * (high - low);
      }
    }
    return true;
  }

  #quantile(index: number, wanted: number): number {
    const errors = this.#errors[index];
    return errors === undefined ? 0 : quantileOf(errors.values, errors.size, wanted);
  }
}

/** Says that the value of one season ago comes again, with errors spread as they were: the floor of all forecasts. */
export function seasonalNaive(name: string, options: SeasonalNaiveOptions): ForecastMethod {
  const create = (series: SeriesContext) => new SeasonalNaive(series, options);
  return { name, stateVersion: 1, create, restore: create };
}

interface SeasonalNaiveOptions {
  readonly seasonMs: number;
  readonly memoryMs: number;
}

class SeasonalNaive implements ForecastModel {
  readonly #series: SeriesContext;
  readonly #season: number;
  readonly #memorySteps: number;
  readonly #errors: RollingOrder;
  readonly save = nothingToSave;

  constructor(series: SeriesContext, { seasonMs, memoryMs }: SeasonalNaiveOptions) {
    this.#series = series;
    this.#season = windowSteps(series, seasonMs);
    this.#memorySteps = Math.max(
      1,
      Math.min(windowSteps(series, memoryMs), series.history.capacity - 1 - this.#season),
    );
    this.#errors = new RollingOrder(this.#memorySteps);
    for (let ago = this.#memorySteps - 1; ago >= 0; ago -= 1)
      this.#errors.exchange(Number.NaN, this.#error(ago));
  }

  update(): void {
    this.#errors.exchange(this.#error(this.#memorySteps), this.#error(0));
  }

  #error(ago: number): number {
    const { history } = this.#series;
    return Math.fround(history.at(ago) - history.at(ago + this.#season));
  }

  predict(leads: readonly number[], into: Float64Array): boolean {
    const { levels, history } = this.#series;
    const { size, values } = this.#errors;
    if (size < ERRORS_MIN) return false;
    for (let row = 0; row < leads.length; row += 1) {
      const lead = leads[row] ?? 1;
      const seasons = Math.ceil(lead / this.#season);
      const base = history.at(seasons * this.#season - lead);
      if (Number.isNaN(base)) return false;
      for (let column = 0; column < levels.length; column += 1)
        into[row * levels.length + column] = base + quantileOf(values, size, levels[column] ?? 0);
    }
    return true;
  }
}
