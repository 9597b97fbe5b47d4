import type { StatePart } from './model-state.ts';

const DAY_MS = 86_400_000;
/** The day is cut into at most so many parts: five minutes. */
const PARTS_MAX = 288;
/** The last day is summed up in so many blocks. */
const BLOCKS = 24;
/** How much of the difference a part of the day learns in a day. */
const LEARN_SHARE = 0.25;

/**
 * By how much a series is above or below its level at a time of day: the seasonal component of Winters, "Forecasting Sales by
 * Exponentially Weighted Moving Averages", Management Science 6 (1960), additive. The level is the mean of the last 24 hours: that
 * of a day that repeats itself does not move.
 */
export class SeasonProfile {
  readonly parts: readonly StatePart[];
  readonly stepsPerDay: number;
  /** Steps seen, the level, the block that is being summed up. */
  readonly #state = Float64Array.of(0, 0, -1);
  readonly #sums = new Float64Array(BLOCKS);
  readonly #counts = new Float64Array(BLOCKS);
  readonly #parts: Float64Array;
  readonly #learnShare: number;

  constructor(stepMs: number) {
    this.stepsPerDay = stepsPerDay(stepMs);
    this.#parts = new Float64Array(Math.min(PARTS_MAX, this.stepsPerDay)).fill(Number.NaN);
    const valuesPerPart = this.stepsPerDay / this.#parts.length;
    this.#learnShare = 1 - (1 - LEARN_SHARE) ** (1 / valuesPerPart);
    this.parts = [
      { values: this.#state },
      { values: this.#sums },
      { values: this.#counts, compact: true },
      { values: this.#parts, compact: true },
    ];
  }

  /** Whether it has seen a whole day, and a day has parts. */
  get isKnown(): boolean {
    return this.#parts.length > 1 && (this.#state[0] ?? 0) >= this.stepsPerDay;
  }

  /** The mean of the last 24 hours. */
  get level(): number {
    return this.#state[1] ?? 0;
  }

  update(value: number, timeMs: number): void {
    const steps = (this.#state[0] ?? 0) + 1;
    this.#state[0] = steps;
    const level = this.#levelWith(value, timeMs);
    this.#state[1] = level;
    const part = this.#partAt(timeMs);
    const known = this.#parts[part] ?? Number.NaN;
    // In the first day the level is not one of a day yet: parts are values until it has passed.
    const term = steps > this.stepsPerDay ? value - level : value;
    this.#parts[part] = Number.isNaN(known) ? term : known + this.#learnShare * (term - known);
    if (steps !== this.stepsPerDay) return;
    for (let index = 0; index < this.#parts.length; index += 1) {
      this.#parts[index] = (this.#parts[index] ?? Number.NaN) - level;
    }
  }

  /** 0 where it is not known. Neighbouring parts count a little: a single day is noisy. */
  at(timeMs: number): number {
    if (!this.isKnown) return 0;
    const part = this.#partAt(timeMs);
    const { length } = this.#parts;
    const here = this.#parts[part] ?? Number.NaN;
    if (Number.isNaN(here)) return 0;
    const before = this.#parts[(part + length - 1) % length] ?? here;
    const after = this.#parts[(part + 1) % length] ?? here;
    return (
      0.5 * here + 0.25 * (Number.isNaN(before) ? here : before) + 0.25 * (Number.isNaN(after) ? here : after)
    );
  }

  #levelWith(value: number, timeMs: number): number {
    const block = Math.floor(dayShare(timeMs) * BLOCKS);
    if (block !== this.#state[2]) {
      this.#state[2] = block;
      this.#sums[block] = 0;
      this.#counts[block] = 0;
    }
    this.#sums[block] = (this.#sums[block] ?? 0) + value;
    this.#counts[block] = (this.#counts[block] ?? 0) + 1;
    let [sum, count] = [0, 0];
    for (let index = 0; index < BLOCKS; index += 1) {
      sum += this.#sums[index] ?? 0;
      count += this.#counts[index] ?? 0;
    }
    return sum / count;
  }

  #partAt(timeMs: number): number {
    return Math.floor(dayShare(timeMs) * this.#parts.length);
  }
}

/** How much of its day is over at a time: 0 … 1, without the end. */
function dayShare(timeMs: number): number {
  return (((timeMs % DAY_MS) + DAY_MS) % DAY_MS) / DAY_MS;
}

/** At least 1. */
export function stepsPerDay(stepMs: number): number {
  return Math.max(1, Math.round(DAY_MS / stepMs));
}
