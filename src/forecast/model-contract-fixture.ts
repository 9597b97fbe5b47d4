import type { ForecastMethod, ForecastModel } from './forecast-model.ts';
import { LEVELS } from './quantile-forecast.ts';
import { SeriesHistory } from './series-history.ts';
import { FIVE_MINUTES_MS } from './synthetic-workload.ts';

export const LEADS: readonly number[] = [1, 2, 3, 6, 12, 24, 48, 96, 288, 600];
const MONDAY_MS = Date.UTC(2018, 0, 1);
const HISTORY_STEPS = 2100;

/** A model that is told a series step by step, as its owner does it. */
export class FedModel {
  readonly history: SeriesHistory;
  readonly #stepMs: number;
  readonly #method: ForecastMethod;
  model: ForecastModel;

  constructor(method: ForecastMethod, { stepMs = FIVE_MINUTES_MS }: { readonly stepMs?: number } = {}) {
    this.history = new SeriesHistory({ stepMs, capacity: HISTORY_STEPS });
    this.#stepMs = stepMs;
    this.#method = method;
    this.model = method.create(this.#series);
  }

  get #series() {
    return { stepMs: this.#stepMs, levels: LEVELS, history: this.history };
  }

  push(value: number): void {
    this.history.push(value, MONDAY_MS + this.history.count * this.#stepMs);
  }

  feed(values: Iterable<number>): this {
    for (const value of values) {
      this.push(value);
      this.model.update();
    }
    return this;
  }

  /** One row per lead; undefined where the model knows too little. */
  forecast(leads = LEADS): number[][] | undefined {
    const into = new Float64Array(leads.length * LEVELS.length);
    if (!this.model.predict(leads, into)) return undefined;
    return leads.map((_, row) => [...into.subarray(row * LEVELS.length, (row + 1) * LEVELS.length)]);
  }

  /** The same history with a model that was saved and restored. */
  restored(state = this.model.save()): FedModel | undefined {
    const other = new FedModel(this.#method, { stepMs: this.#stepMs });
    for (let ago = this.history.length - 1; ago >= 0; ago -= 1) other.push(this.history.at(ago));
    const model = this.#method.restore(other.#series, state);
    if (model === undefined) return undefined;
    other.model = model;
    return other;
  }
}

/** What no forecast may be after `values`: rows that are not finite or not ascending, or one that changes by being asked for. */
export function faultsOfForecast(method: ForecastMethod, values: readonly number[]): string[] {
  const fed = new FedModel(method).feed(values);
  const rows = fed.forecast();
  if (rows === undefined) return [];
  const faults = rows.flatMap((row, index) => {
    const lead = LEADS[index];
    if (!row.every(Number.isFinite)) return [`lead ${lead} is not finite`];
    return row.every((value, at) => at === 0 || value >= (row[at - 1] ?? 0)) ? [] : [`lead ${lead} crosses`];
  });
  if (JSON.stringify(fed.forecast()) !== JSON.stringify(rows))
    faults.push('asked again, it answers otherwise');
  return faults;
}

/** By how much two forecasts differ at most, as a share of the largest number in the first. */
export function differenceOf(
  first: readonly (readonly number[])[] | undefined,
  second: readonly (readonly number[])[] | undefined,
): number {
  if (first === undefined || second === undefined) return first === second ? 0 : Number.POSITIVE_INFINITY;
  const [one, other] = [first.flat(), second.flat()];
  const largest = Math.max(...one.map(Math.abs), Number.MIN_VALUE);
  return Math.max(...one.map((value, index) => Math.abs(value - (other[index] ?? Number.NaN)))) / largest;
}
