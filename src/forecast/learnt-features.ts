import type { SeriesContext } from './forecast-model.ts';
import type { StatePart } from './model-state.ts';
import { boundedValue } from './point-method.ts';
import { stepsPerDay } from './season-profile.ts';

/** Windows of the levels, in steps: decayed means. That of {@link DAY} is the zero of all features. */
const LEVEL_WINDOWS = [3, 12, 36, 144, 288, 2016] as const;
const DAY_INDEX = 4;
const DAY = 288;
/** Windows of spreads: decayed means of sizes of changes. */
const SPREAD_WINDOWS = [12, 36, 144] as const;
/** Quantiles of the last {@link DAY} and of the last {@link SHORT} steps, taken anew every {@link RANKS_EVERY} steps. */
const DAY_RANKS = [0.05, 0.25, 0.5, 0.75, 0.95] as const;
const SHORT_RANKS = [0.1, 0.5, 0.9] as const;
const SHORT = 36;
const RANKS_EVERY = 11;
/** A feature is at most this large: a burst must not carry the network where it has never been. */
const FEATURE_MAX = 8;
const DAY_MS = 86_400_000;

/** How many features describe the series as it is now, and how many a step to come. */
export const GLOBAL_FEATURES = 28;
export const LEAD_FEATURES = 13;

/**
 * What the learnt model sees of a series, free of its unit and level: levels and spreads of several windows, quantiles, the last
 * values, how much it repeats itself by day and week, another metric of the same machine if there is one; and of each step to
 * come its distance, its time, and what was at that time a day, two days and a week ago. All relative to the mean of about a day,
 * in units of the mean distance from that.
 */
export class LearntFeatures {
  readonly parts: readonly StatePart[];
  readonly #series: SeriesContext;
  readonly #stepsPerDay: number;
  readonly #levels = new Float64Array(LEVEL_WINDOWS.length);
  readonly #spreads = new Float64Array(SPREAD_WINDOWS.length);
  readonly #ranks = new Float64Array(DAY_RANKS.length + SHORT_RANKS.length);
  /** Values seen, mean distance from the mean of a day, from yesterday, from a week ago, the last value. */
  readonly #state = new Float64Array(5);
  /** Of the other metric: values seen, level of a few steps, level of a day, distance from that. */
  readonly #companion = new Float64Array(4);
  readonly #sorting = new Float64Array(DAY);

  constructor(series: SeriesContext) {
    this.#series = series;
    this.#stepsPerDay = stepsPerDay(series.stepMs);
    this.parts = [this.#levels, this.#spreads, this.#ranks, this.#state, this.#companion].map((values) => ({
      values,
    }));
  }

  get seen(): number {
    return this.#state[0] ?? 0;
  }

  /** What is 0 in features, in units of the series. */
  get zero(): number {
    return this.#levels[DAY_INDEX] ?? 0;
  }

  /** What is 1 in features, in units of the series. 0 while the series has never moved. */
  get unit(): number {
    return this.#state[1] ?? 0;
  }

  /** The history holds one value more, `value`, NaN where it is missing. */
  update(value: number): void {
    this.#updateCompanion();
    if (Number.isNaN(value)) return;
    const seen = this.seen + 1;
    this.#state[0] = seen;
    const change = seen > 1 ? Math.abs(value - (this.#state[4] ?? 0)) : 0;
    this.#state[4] = value;
    for (let index = 0; index < LEVEL_WINDOWS.length; index += 1) {
      const level = this.#levels[index] ?? 0;
      this.#levels[index] = level + (value - level) / Math.min(seen, LEVEL_WINDOWS[index] ?? 1);
    }
    for (let index = 0; index < SPREAD_WINDOWS.length; index += 1) {
      const spread = this.#spreads[index] ?? 0;
      this.#spreads[index] = spread + (change - spread) / Math.min(seen, SPREAD_WINDOWS[index] ?? 1);
    }
    const share = 1 / Math.min(seen, DAY);
    this.#state[1] = this.unit + share * (Math.abs(value - this.zero) - this.unit);
    this.#compareWith(2, value - this.#past(this.#stepsPerDay));
    this.#compareWith(3, value - this.#past(7 * this.#stepsPerDay));
    if (seen % RANKS_EVERY === 0 || seen < RANKS_EVERY) this.#rank();
  }

  /** The series as it is now. */
  globals(into: Float64Array): void {
    let at = 0;
    for (let ago = 0; ago < 3; ago += 1) into[at++] = this.#placed(this.#past(ago));
    for (let index = 0; index < LEVEL_WINDOWS.length; index += 1) {
      if (index !== DAY_INDEX) into[at++] = this.#placed(this.#levels[index] ?? 0);
    }
    for (const spread of this.#spreads) into[at++] = Math.log(0.01 + this.#sized(spread));
    for (const rank of this.#ranks) into[at++] = this.#placed(rank);
    into[at++] = Math.asinh(this.unit > 0 ? this.zero / this.unit : 0) / 2;
    into[at++] = Math.min(1, this.seen / DAY);
    into[at++] = Math.min(1, this.seen / (7 * DAY));
    into[at++] = this.seen > this.#stepsPerDay ? 1 - this.#sized(this.#state[2] ?? 0) / 1.5 : 0;
    into[at++] = this.seen > 7 * this.#stepsPerDay ? 1 - this.#sized(this.#state[3] ?? 0) / 1.5 : 0;
    const [seen = 0, short = 0, level = 0, distance = 0] = this.#companion;
    const isThere = seen > 12 && distance > 0;
    const last = boundedValue(this.#series.companion?.at(0) ?? Number.NaN);
    into[at++] = isThere ? 1 : 0;
    into[at++] = isThere ? bounded((short - level) / distance) : 0;
    into[at++] = isThere && !Number.isNaN(last) ? bounded((last - short) / distance) : 0;
    into[at] = this.#placed(this.#mean(this.#stepsPerDay, { reach: 6, every: 2 }));
  }

  /** A step to come. */
  lead(lead: number, into: Float64Array): void {
    const { lastStartMs } = this.#series.history;
    const day = this.#stepsPerDay;
    const days = Math.ceil(lead / day);
    const yesterday = days * day - lead;
    const narrow = this.#mean(yesterday, { reach: 1, every: 1 });
    const wide = this.#mean(yesterday, { reach: 6, every: 2 });
    const before = this.#mean(yesterday + day, { reach: 4, every: 2 });
    const week = this.#mean(7 * day * Math.ceil(lead / (7 * day)) - lead, { reach: 6, every: 3 });
    const then = this.#mean(days * day + 3, { reach: 3, every: 2 });
    const timeMs = lastStartMs + lead * this.#series.stepMs;
    const angle = (2 * Math.PI * (timeMs % DAY_MS)) / DAY_MS;
    into[0] = Math.log2(lead) / 8;
    into[1] = 1 / lead;
    into[2] = Math.min(1, lead / DAY);
    into[3] = this.#placed(narrow);
    into[4] = this.#placed(wide);
    into[5] = this.#placed(before);
    into[6] = this.#placed(week);
    into[7] = this.unit > 0 ? bounded((wide - then) / this.unit) : 0;
    into[8] = Number.isNaN(wide) ? 0 : 1;
    into[9] = Number.isNaN(week) ? 0 : 1;
    into[10] = Math.sin(angle);
    into[11] = Math.cos(angle);
    // 1970 began on a Thursday.
    into[12] = (Math.floor(timeMs / DAY_MS) + 3) % 7 >= 5 ? 1 : 0;
  }

  #updateCompanion(): void {
    const value = boundedValue(this.#series.companion?.at(0) ?? Number.NaN);
    if (Number.isNaN(value)) return;
    const [seen = 0, short = 0, level = 0, distance = 0] = this.#companion;
    const share = 1 / Math.min(seen + 1, DAY);
    const next = level + share * (value - level);
    this.#companion[0] = seen + 1;
    this.#companion[1] = short + (value - short) / Math.min(seen + 1, 6);
    this.#companion[2] = next;
    this.#companion[3] = distance + share * (Math.abs(value - next) - distance);
  }

  #compareWith(index: number, difference: number): void {
    if (Number.isNaN(difference)) return;
    const known = this.#state[index] ?? 0;
    this.#state[index] = known + (Math.abs(difference) - known) / DAY;
  }

  #rank(): void {
    const short = this.#sorted(SHORT);
    for (const [index, level] of SHORT_RANKS.entries()) {
      this.#ranks[DAY_RANKS.length + index] = short[Math.round(level * (short.length - 1))] ?? 0;
    }
    const day = this.#sorted(DAY);
    for (const [index, level] of DAY_RANKS.entries()) {
      this.#ranks[index] = day[Math.round(level * (day.length - 1))] ?? 0;
    }
  }

  #sorted(window: number): Float64Array {
    let count = 0;
    for (let ago = 0; ago < Math.min(window, this.#series.history.length); ago += 1) {
      const value = this.#past(ago);
      if (!Number.isNaN(value)) this.#sorting[count++] = value;
    }
    return this.#sorting.subarray(0, count).sort();
  }

  #past(ago: number): number {
    return boundedValue(this.#series.history.at(ago));
  }

  /** The mean of what is `reach` steps and less from `ago`; NaN where nothing is. */
  #mean(ago: number, { reach, every }: { reach: number; every: number }): number {
    let [sum, count] = [0, 0];
    for (let from = -reach; from <= reach; from += every) {
      const value = this.#series.history.at(ago + from);
      if (Number.isNaN(value)) continue;
      sum += boundedValue(value);
      count += 1;
    }
    return count > 0 ? sum / count : Number.NaN;
  }

  /** 0 for what is missing: the mean of a day is the best guess. */
  #placed(value: number): number {
    return this.unit > 0 ? bounded((value - this.zero) / this.unit) : 0;
  }

  #sized(size: number): number {
    return this.unit > 0 ? Math.min(FEATURE_MAX, size / this.unit) : 0;
  }
}

function bounded(feature: number): number {
  return feature > FEATURE_MAX ? FEATURE_MAX : feature < -FEATURE_MAX ? -FEATURE_MAX : feature || 0;
}
