import type { ForecastMethod, ForecastModel, SeriesContext } from './forecast-model.ts';
import { quantileOf } from './rolling-order.ts';
import { meanOf, nothingToSave, windowSteps } from './step-window.ts';

export const HOUR_MS = 3_600_000;
export const DAY_MS = 24 * HOUR_MS;

interface SameTimeOptions {
  readonly days: number;
  /** Moves the quantiles by how far the last hour is from the same hour of those days. */
  readonly shifted?: boolean;
}

/** Quantiles of the values at the same time of the last days. */
export function sameTime(name: string, options: SameTimeOptions): ForecastMethod {
  const create = (series: SeriesContext) => new SameTime(series, options);
  return { name, stateVersion: 1, create, restore: create };
}

class SameTime implements ForecastModel {
  readonly #series: SeriesContext;
  readonly #season: number;
  readonly #hour: number;
  readonly #options: SameTimeOptions;
  readonly #values: Float64Array;
  readonly save = nothingToSave;

  constructor(series: SeriesContext, options: SameTimeOptions) {
    this.#series = series;
    this.#season = windowSteps(series, DAY_MS);
    this.#hour = windowSteps(series, HOUR_MS);
    this.#options = options;
    this.#values = new Float64Array(options.days);
  }

  update(): void {
    // All that it knows is the history.
  }

  predict(leads: readonly number[], into: Float64Array): boolean {
    const { levels, history } = this.#series;
    const shift = this.#options.shifted === true ? this.#shift() : 0;
    if (Number.isNaN(shift)) return false;
    for (let row = 0; row < leads.length; row += 1) {
      let size = 0;
      const lead = leads[row] ?? 1;
      const first = Math.ceil(lead / this.#season);
      for (let day = first; day < first + this.#options.days; day += 1) {
        const value = history.at(day * this.#season - lead);
        if (Number.isNaN(value)) continue;
        insertAscending(this.#values, size, value);
        size += 1;
      }
      if (size === 0) return false;
      for (let column = 0; column < levels.length; column += 1)
        into[row * levels.length + column] = quantileOf(this.#values, size, levels[column] ?? 0) + shift;
    }
    return true;
  }

  #shift(): number {
    let sum = 0;
    let count = 0;
    for (let day = 1; day <= this.#options.days; day += 1) {
      const then = meanOf(this.#series, { steps: this.#hour, ago: day * this.#season });
      if (Number.isNaN(then)) continue;
      sum += then;
      count += 1;
    }
    if (count === 0) return Number.NaN;
    return meanOf(this.#series, { steps: this.#hour, ago: 0 }) - sum / count;
  }
}

function insertAscending(values: Float64Array, size: number, value: number): void {
  let at = size;
  while (at > 0 && (values[at - 1] ?? 0) > value) {
    values[at] = values[at - 1] ?? 0;
    at -= 1;
  }
  values[at] = value;
}

interface AroundTimeOptions {
  readonly days: number;
  /** How far from the same time, before and after. */
  readonly aroundMs: number;
}

/**
 * Quantiles of all values around the same time of the last days. They are found for whole hours since the first value and
 * kept until those are over; between two of them they lie on straight lines.
 */
export function aroundTime(name: string, options: AroundTimeOptions): ForecastMethod {
  const create = (series: SeriesContext) => new AroundTime(series, options);
  return { name, stateVersion: 1, create, restore: create };
}

class AroundTime implements ForecastModel {
  readonly #series: SeriesContext;
  readonly #season: number;
  /** Between two marks, at which quantiles are found. */
  readonly #hour: number;
  readonly #around: number;
  readonly #days: number;
  readonly #values: Float64Array;
  /** Row after row, that of mark m at the row of m modulo their number. */
  readonly #rows: Float64Array;
  /** Which mark a row is of, once all values that belong to it have happened; else -1. */
  readonly #marks: Float64Array;
  readonly save = nothingToSave;

  constructor(series: SeriesContext, { days, aroundMs }: AroundTimeOptions) {
    this.#series = series;
    this.#season = windowSteps(series, DAY_MS);
    this.#hour = windowSteps(series, HOUR_MS);
    this.#around = windowSteps(series, aroundMs);
    this.#days = days;
    this.#values = new Float64Array(days * (2 * this.#around + 1));
    const marks = Math.ceil(this.#season / this.#hour) + 3;
    this.#rows = new Float64Array(marks * series.levels.length);
    this.#marks = new Float64Array(marks).fill(-1);
  }

  update(): void {
    // All that it knows is the history.
  }

  predict(leads: readonly number[], into: Float64Array): boolean {
    const { levels, history } = this.#series;
    const width = levels.length;
    for (let row = 0; row < leads.length; row += 1) {
      const lead = leads[row] ?? 1;
      const target = history.count + ((lead - 1) % this.#season);
      const mark = Math.floor(target / this.#hour);
      const share = target / this.#hour - mark;
      const low = this.#rowOf(mark);
      const high = this.#rowOf(mark + 1);
      if (low < 0 || high < 0) return false;
      for (let column = 0; column < width; column += 1) {
        const from = this.#rows[low + column] ?? 0;
        into[row * width + column] = from + share * ((this.#rows[high + column] ?? 0) - from);
      }
    }
    return true;
  }

  /** Where the quantiles of a mark begin; -1 where nothing is known around it. */
  #rowOf(mark: number): number {
    const { levels, history } = this.#series;
    const index = mark % this.#marks.length;
    const place = index * levels.length;
    if (this.#marks[index] === mark) return place;
    const ago = history.count - 1 - mark * this.#hour;
    let size = 0;
    for (let day = 1; day <= this.#days; day += 1)
      for (let offset = -this.#around; offset <= this.#around; offset += 1) {
        const value = history.at(ago + day * this.#season + offset);
        if (!Number.isNaN(value)) this.#values[size++] = value;
      }
    if (size === 0) return -1;
    const sorted = this.#values.subarray(0, size).sort();
    for (let column = 0; column < levels.length; column += 1)
      this.#rows[place + column] = quantileOf(sorted, size, levels[column] ?? 0);
    const isComplete = ago + this.#season - this.#around >= 0;
    this.#marks[index] = isComplete ? mark : -1;
    return place;
  }
}
