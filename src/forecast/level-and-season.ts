import type { ForecastMethod, ForecastModel, SeriesContext } from './forecast-model.ts';
import { quantileOf, RollingOrder } from './rolling-order.ts';
import { nothingToSave, windowSteps } from './step-window.ts';

interface LevelAndSeasonOptions {
  /** What the last value and that of one season before the step in question become. */
  readonly combine: 'mean' | 'max';
  readonly seasonMs: number;
  /** Errors are remembered so long, */
  readonly memoryMs: number;
  /** of forecasts this far ahead: those of other leads take the errors of the next longer one. */
  readonly leads: readonly number[];
}

const ERRORS_MIN = 8;

/**
 * Says that it will be as now, or as yesterday at that time, whichever is more (or halfway between), with errors spread as they
 * were. Peaks that come once a day are foreseen by the one, those that go on by the other.
 */
export function levelAndSeason(name: string, options: LevelAndSeasonOptions): ForecastMethod {
  const create = (series: SeriesContext) => new LevelAndSeason(series, options);
  return { name, stateVersion: 1, create, restore: create };
}

class LevelAndSeason implements ForecastModel {
  readonly #series: SeriesContext;
  readonly #season: number;
  readonly #memorySteps: number;
  readonly #options: LevelAndSeasonOptions;
  readonly #errors: readonly RollingOrder[];
  readonly save = nothingToSave;

  constructor(series: SeriesContext, options: LevelAndSeasonOptions) {
    this.#series = series;
    this.#options = options;
    this.#season = windowSteps(series, options.seasonMs);
    const longest = Math.max(this.#season, ...options.leads);
    this.#memorySteps = Math.max(
      1,
      Math.min(windowSteps(series, options.memoryMs), series.history.capacity - 1 - longest),
    );
    this.#errors = options.leads.map(() => new RollingOrder(this.#memorySteps));
    for (const [index, lead] of options.leads.entries())
      for (let ago = this.#memorySteps - 1; ago >= 0; ago -= 1)
        this.#errors[index]?.exchange(Number.NaN, this.#error(lead, ago));
  }

  update(): void {
    for (const [index, lead] of this.#options.leads.entries())
      this.#errors[index]?.exchange(this.#error(lead, this.#memorySteps), this.#error(lead, 0));
  }

  predict(leads: readonly number[], into: Float64Array): boolean {
    const { levels } = this.#series;
    for (let row = 0; row < leads.length; row += 1) {
      const lead = leads[row] ?? 1;
      const known = this.#options.leads.findIndex((other) => other >= lead);
      const errors = this.#errors.at(known);
      const base = this.#base(lead, -lead);
      if (errors === undefined || errors.size < ERRORS_MIN || Number.isNaN(base)) return false;
      for (let column = 0; column < levels.length; column += 1)
        into[row * levels.length + column] =
          base + quantileOf(errors.values, errors.size, levels[column] ?? 0);
    }
    return true;
  }

  /** What would have been said of the step `ago` steps ago (less than zero: yet to come), `lead` steps before it. */
  #base(lead: number, ago: number): number {
    const { history } = this.#series;
    const last = history.at(ago + lead);
    const season = history.at(ago + this.#season * Math.max(1, Math.ceil(lead / this.#season)));
    return this.#options.combine === 'max' ? Math.max(last, season) : (last + season) / 2;
  }

  #error(lead: number, ago: number): number {
    return Math.fround(this.#series.history.at(ago) - this.#base(lead, ago));
  }
}
