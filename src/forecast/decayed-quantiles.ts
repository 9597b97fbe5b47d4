import type { ForecastMethod, ForecastModel, SeriesContext } from './forecast-model.ts';
import { lowerBound } from './rolling-order.ts';
import { nothingToSave, windowSteps } from './step-window.ts';
import { repeatRow } from './window-quantiles.ts';

/** Quantiles of the last values, in which a value counts half as much after each half-life; forgotten after eight. */
export function decayedQuantiles(name: string, halfLifeMs: number): ForecastMethod {
  const create = (series: SeriesContext) => new DecayedQuantiles(series, halfLifeMs);
  return { name, stateVersion: 1, create, restore: create };
}

const HALF_LIVES = 8;

class DecayedQuantiles implements ForecastModel {
  readonly #series: SeriesContext;
  readonly #steps: number;
  /** What a value counts, by how many steps ago it was. */
  readonly #weights: Float64Array;
  /** Ascending; of equal ones the oldest is first. */
  readonly #values: Float32Array;
  /** The count of the history when the value beside it was the last one. */
  readonly #births: Float64Array;
  #size = 0;
  readonly save = nothingToSave;

  constructor(series: SeriesContext, halfLifeMs: number) {
    this.#series = series;
    this.#steps = windowSteps(series, HALF_LIVES * halfLifeMs);
    this.#weights = Float64Array.from(
      { length: this.#steps },
      (_, ago) => 0.5 ** ((ago * series.stepMs) / halfLifeMs),
    );
    this.#values = new Float32Array(this.#steps);
    this.#births = new Float64Array(this.#steps);
    const { history } = series;
    for (let ago = Math.min(this.#steps, history.length) - 1; ago >= 0; ago -= 1) this.#insert(ago);
  }

  update(): void {
    const leaving = this.#series.history.at(this.#steps);
    if (!Number.isNaN(leaving)) {
      const at = lowerBound(this.#values, this.#size, leaving);
      this.#values.copyWithin(at, at + 1, this.#size);
      this.#births.copyWithin(at, at + 1, this.#size);
      this.#size -= 1;
    }
    this.#insert(0);
  }

  #insert(ago: number): void {
    const { history } = this.#series;
    const value = history.at(ago);
    if (Number.isNaN(value)) return;
    let at = lowerBound(this.#values, this.#size, value);
    while (at < this.#size && this.#values[at] === value) at += 1;
    this.#values.copyWithin(at + 1, at, this.#size);
    this.#births.copyWithin(at + 1, at, this.#size);
    this.#values[at] = value;
    this.#births[at] = history.count - ago;
    this.#size += 1;
  }

  predict(leads: readonly number[], into: Float64Array): boolean {
    const { levels, history } = this.#series;
    if (this.#size === 0) return false;
    const total = this.#weightOfAll();
    let at = 0;
    let below = 0;
    let previous = this.#values[0] ?? 0;
    let previousPlace = 0;
    // A value stands at the middle of its weight, and between two of them lies a straight line.
    for (let column = 0; column < levels.length; column += 1) {
      const wanted = (levels[column] ?? 0) * total;
      for (;;) {
        if (at >= this.#size) {
          into[column] = previous;
          break;
        }
        const value = this.#values[at] ?? 0;
        const weight = this.#weights[history.count - (this.#births[at] ?? 0)] ?? 0;
        const place = below + weight / 2;
        if (wanted <= place) {
          const share = place > previousPlace ? (wanted - previousPlace) / (place - previousPlace) : 1;
          into[column] = previous + share * (value - previous);
          break;
        }
        previous = value;
        previousPlace = place;
        below += weight;
        at += 1;
      }
    }
    repeatRow(into, levels.length, leads.length);
    return true;
  }

  #weightOfAll(): number {
    const { count } = this.#series.history;
    let total = 0;
    for (let at = 0; at < this.#size; at += 1) total += this.#weights[count - (this.#births[at] ?? 0)] ?? 0;
    return total;
  }
}
