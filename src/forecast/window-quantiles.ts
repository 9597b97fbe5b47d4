import type { ForecastMethod, ForecastModel, SeriesContext } from './forecast-model.ts';
import { quantileOf, RollingOrder } from './rolling-order.ts';
import { nothingToSave, windowSteps } from './step-window.ts';

/** Says that the next values are spread as those of the last while: the same for each lead. */
export function windowQuantiles(name: string, windowMs: number): ForecastMethod {
  return {
    name,
    stateVersion: 1,
    create: (series) => new WindowQuantiles(series, windowSteps(series, windowMs)),
    restore: (series) => new WindowQuantiles(series, windowSteps(series, windowMs)),
  };
}

class WindowQuantiles implements ForecastModel {
  readonly #series: SeriesContext;
  readonly #steps: number;
  readonly #window: RollingOrder;
  readonly save = nothingToSave;

  constructor(series: SeriesContext, steps: number) {
    this.#series = series;
    this.#steps = steps;
    this.#window = new RollingOrder(steps);
    for (let ago = Math.min(steps, series.history.length) - 1; ago >= 0; ago -= 1)
      this.#window.exchange(Number.NaN, series.history.at(ago));
  }

  update(): void {
    const { history } = this.#series;
    this.#window.exchange(history.at(this.#steps), history.at(0));
  }

  predict(leads: readonly number[], into: Float64Array): boolean {
    const { levels } = this.#series;
    const { values, size } = this.#window;
    if (size === 0) return false;
    for (let column = 0; column < levels.length; column += 1)
      into[column] = quantileOf(values, size, levels[column] ?? 0);
    repeatRow(into, levels.length, leads.length);
    return true;
  }
}

/** Writes the first row into all others. */
export function repeatRow(into: Float64Array, width: number, rows: number): void {
  for (let row = 1; row < rows; row += 1) into.copyWithin(row * width, 0, width);
}
