import type { StatePart } from './model-state.ts';

/** Leads at which residuals are kept. Between them quantiles are interpolated over the logarithm of the lead. */
const ANCHORS = [1, 4, 12, 48, 288] as const;
/**
 * How many steps lie between forecasts that are judged, per anchor: neighbours tell nearly the same. Prime numbers, so that what
 * happens every hour or every other step is met at all its phases.
 */
const STRIDES = [5, 5, 5, 7, 23] as const;
/** While there are fewer residuals than this at the first anchor, each step is judged there: a new series has only these. */
const YOUNG = 16;
/** Residuals per anchor. With the strides, about the last day; five days for a lead of a day at steps of five minutes. */
const KEPT = 64;
/** With fewer of them an anchor says nothing. */
const RESIDUALS_MIN = 4;
/** A young series knows no residuals at long leads: those of the longest known one grow as those of a random walk, up to this. */
const GROWTH_MAX = 2;

/** One forecast value for each lead. False where it cannot be told. */
export type PointForecast = (leads: readonly number[], into: Float64Array) => boolean;

/**
 * What a point forecast was wrong by, lately and at several leads, and so what quantiles belong to it. The memory is bounded:
 * the last {@link KEPT} residuals per anchor.
 */
export class LeadResiduals {
  readonly parts: readonly StatePart[];
  readonly #anchors: readonly Anchor[] = ANCHORS.map((lead, index) => new Anchor(lead, STRIDES[index] ?? 1));
  /** Steps so far. */
  readonly #steps = new Float64Array(1);

  constructor() {
    this.parts = [{ values: this.#steps }, ...this.#anchors.flatMap((anchor) => anchor.parts)];
  }

  /** After `readState`: what follows from it. */
  restored(): void {
    for (const anchor of this.#anchors) anchor.restored();
  }

  /** A step is over with `actual`, NaN where it is missing; `forecast` is told after it. */
  update(actual: number, forecast: PointForecast): void {
    const step = (this.#steps[0] ?? 0) + 1;
    this.#steps[0] = step;
    for (const anchor of this.#anchors) anchor.update({ step, actual, forecast });
  }

  /** Adds quantiles of residuals to `points`, row after row, into `into`. False while there are too few of them. */
  spread(
    points: Float64Array,
    { leads, levels, into }: { leads: readonly number[]; levels: readonly number[]; into: Float64Array },
  ): boolean {
    const known = this.#anchors.filter(({ count }) => count >= RESIDUALS_MIN);
    const tables = known.map((anchor) => anchor.quantiles(levels));
    const last = known.length - 1;
    if (last < 0) return false;
    let upper = 0;
    for (let row = 0; row < leads.length; row += 1) {
      const lead = leads[row] ?? 1;
      while (upper < last && (known[upper]?.lead ?? 0) < lead) upper += 1;
      const [from, to] = [known[Math.max(0, upper - 1)]?.lead ?? 1, known[upper]?.lead ?? 1];
      const share = from < to ? Math.min(1, Math.max(0, Math.log(lead / from) / Math.log(to / from))) : 1;
      const young = last < ANCHORS.length - 1 && lead > to;
      const growth = young ? Math.min(GROWTH_MAX, Math.sqrt(lead / to)) : 1;
      const [low, high] = [tables[Math.max(0, upper - 1)], tables[upper]];
      if (low === undefined || high === undefined) return false;
      const point = points[row] ?? 0;
      for (let index = 0; index < levels.length; index += 1) {
        const residual = (1 - share) * (low[index] ?? 0) + share * (high[index] ?? 0);
        into[row * levels.length + index] = point + growth * residual;
      }
    }
    return true;
  }
}

class Anchor {
  readonly lead: number;
  readonly parts: readonly StatePart[];
  readonly #stride: number;
  readonly #leads: readonly number[];
  readonly #told = new Float64Array(1);
  /** Forecasts whose step is still to come, by the step at which they were made. */
  readonly #pending: Float64Array;
  /** Residuals in the order of their steps, around; NaN where there is none yet. */
  readonly #ring = new Float64Array(KEPT).fill(Number.NaN);
  /** How many residuals there were, ever. */
  readonly #seen = new Float64Array(1);
  /** The residuals that are kept, ascending. */
  readonly #sorted = new Float64Array(KEPT);

  constructor(lead: number, stride: number) {
    this.lead = lead;
    this.#stride = stride;
    this.#leads = [lead];
    this.#pending = new Float64Array(Math.ceil(lead / stride)).fill(Number.NaN);
    this.parts = [
      { values: this.#seen },
      { values: this.#pending, compact: true },
      { values: this.#ring, compact: true },
    ];
  }

  get count(): number {
    return Math.min(this.#seen[0] ?? 0, KEPT);
  }

  restored(): void {
    const kept = this.#ring.slice(0, this.count).sort();
    this.#sorted.set(kept);
  }

  update({ step, actual, forecast }: { step: number; actual: number; forecast: PointForecast }): void {
    const madeAt = step - this.lead;
    if (madeAt >= 0 && (madeAt % this.#stride === 0 || this.lead === 1)) {
      const slot = this.#slotOf(madeAt);
      const residual = actual - (this.#pending[slot] ?? Number.NaN);
      if (Number.isFinite(residual)) this.#keep(residual);
      this.#pending[slot] = Number.NaN;
    }
    if (step % this.#stride !== 0 && (this.lead > 1 || this.count >= YOUNG)) return;
    const isTold = forecast(this.#leads, this.#told);
    this.#pending[this.#slotOf(step)] = isTold ? (this.#told[0] ?? Number.NaN) : Number.NaN;
  }

  quantiles(levels: readonly number[]): Float64Array {
    const { count } = this;
    return Float64Array.from(levels, (level) => {
      // Weibull's positions: the least of n residuals stands for the level 1/(n+1).
      const position = Math.min(count - 1, Math.max(0, level * (count + 1) - 1));
      const below = Math.floor(position);
      const low = this.#sorted[below] ?? 0;
      const high = this.#sorted[Math.min(count - 1, below + 1)] ?? low;
      return low + (position - below) * (high - low);
    });
  }

  #slotOf(step: number): number {
    return Math.floor(step / this.#stride) % this.#pending.length;
  }

  #keep(residual: number): void {
    const seen = this.#seen[0] ?? 0;
    const slot = seen % KEPT;
    let count = this.count;
    if (count === KEPT) {
      const gone = this.#placeOf(this.#ring[slot] ?? 0, count);
      this.#sorted.copyWithin(gone, gone + 1, count);
      count -= 1;
    }
    const place = this.#placeOf(residual, count);
    this.#sorted.copyWithin(place + 1, place, count);
    this.#sorted[place] = residual;
    this.#ring[slot] = residual;
    this.#seen[0] = seen + 1;
  }

  /** Of the first kept residual that is not less. */
  #placeOf(residual: number, count: number): number {
    let [low, high] = [0, count];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#sorted[middle] ?? 0) < residual) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
