import { type AnomalyKind, type AnomalyVerdict, inWords } from './anomaly-verdict.ts';
import { DailyEnvelope } from './daily-envelope.ts';
import { RarityHistogram } from './rarity-histogram.ts';
import { RunLength } from './run-length.ts';
import { SortedWindow } from './sorted-window.ts';

/** A day of steps of 5 min: what is usual is the median and the spread of these. */
export const WINDOW_STEPS = 288;
/** What the last values are, together: an hour, and four, of steps of 5 min. */
const FEW_STEPS = 12;
const SOME_STEPS = 48;
/** With fewer values there is no telling what is usual. */
const LEAST_VALUES = 50;
/** Deviations are forgotten over a week, the range over a month, of steps of 5 min. */
const MEMORY_STEPS = 2000;
const RANGE_MEMORY_STEPS = 10_000;
/** Below this share of the largest value, all spreads are alike: else the noise of an idle machine would set the scale. */
const SCALE_SHARE = 0.1;
/** A value a tenth of the range beyond all others is about one in a thousand: 4 log10(1 + 50 × 0.1) = 3.1. */
const RECORD_WEIGHT = 4;
const RECORD_SLOPE = 50;
/** A flat line of fewer steps is none, and so is a gap. */
const STUCK_STEPS = 36;
const MISSING_STEPS = 12;
/** As many changes make a series of which it is news that it does not change. */
const CHANGES = 36;
/** Quartiles of a normal distribution are so many standard deviations apart. */
const QUARTILES_PER_SIGMA = 1.35;
/** What is called usual. */
const USUAL_SHARE = 0.99;
/** Beyond these, sums and differences would overflow, or a scale be zero. */
const LARGEST = 1e300;
const SMALLEST = 1e-300;

/** What is measured in units of the usual spread, with a sign, and compared to the same hour of other days. */
const QUANTITIES = ['level', 'jump', 'shift', 'shift'] as const satisfies readonly AnomalyKind[];
const LEVEL = 0;
const JUMP = 1;
const SHIFT_OF_FEW = 2;

/** What a series is like, and by what signs its last value is not like that. Numbers in, rarities out. */
export class AnomalySigns {
  /** Of each kind: minus the decimal logarithm of how rare the last step is, 0 where it is not. */
  readonly rarities: Record<AnomalyKind, number> = noRarities();
  readonly window = new SortedWindow(WINDOW_STEPS);
  readonly #few = new SortedWindow(FEW_STEPS);
  readonly #some = new SortedWindow(SOME_STEPS);
  readonly histograms = [...QUANTITIES, 'spread'].map(() => new RarityHistogram({ memory: MEMORY_STEPS }));
  /** Upwards and downwards of each quantity. */
  readonly envelope = new DailyEnvelope({ quantities: 2 * QUANTITIES.length });
  readonly same = new RunLength({ least: STUCK_STEPS, memory: MEMORY_STEPS });
  readonly missing = new RunLength({ least: MISSING_STEPS, memory: MEMORY_STEPS });
  /** All else that it keeps. */
  readonly kept = { last: 0, largest: 0, high: 0, low: 0, changes: 0, median: 0, scale: SMALLEST };
  // What belongs to the last step only.
  #before = 0;
  #shift = SHIFT_OF_FEW;
  #recordReason = '';
  #missingReason = '';

  /** A step that has a value. `value` is finite. */
  takeValue(given: number, timeMs: number): void {
    const value = Math.max(-LARGEST, Math.min(LARGEST, given));
    const { kept, window } = this;
    const isFirst = window.length === 0;
    this.#clear();
    this.#noticeGap();
    if (this.missing.run > 0) this.missing.end();
    this.#followRun(isFirst ? undefined : kept.last, value);
    kept.largest = Math.max(kept.largest * (1 - 1 / MEMORY_STEPS), Math.abs(value));
    this.#few.push(value);
    this.#some.push(value);
    this.envelope.moveTo(timeMs);
    if (window.length >= LEAST_VALUES) this.#compare(value);
    this.#before = isFirst ? value : kept.last;
    kept.high = isFirst ? value : Math.max(kept.high, value);
    kept.low = isFirst ? value : Math.min(kept.low, value);
    kept.last = value;
    window.push(value);
  }

  /** A step that has none. */
  takeNothing(): void {
    this.#clear();
    this.missing.lengthen();
    this.#noticeGap();
  }

  /** Steps of which it was not told, before the one that it is told next. */
  skip(steps: number): void {
    this.missing.lengthen(steps);
  }

  /** Where the next values are expected; undefined as long as it knows too little. See {@link AnomalyVerdict.expected}. */
  expected(): AnomalyVerdict['expected'] {
    if (this.window.length < LEAST_VALUES) return undefined;
    const { window, envelope } = this;
    const low = Math.min(
      window.quantile(1 - USUAL_SHARE),
      this.kept.median - this.kept.scale * envelope.usual(2 * LEVEL + 1),
    );
    const high = Math.max(
      window.quantile(USUAL_SHARE),
      this.kept.median + this.kept.scale * envelope.usual(2 * LEVEL),
    );
    // What was never negative is not expected to be.
    return { low: this.kept.low >= 0 ? Math.max(0, low) : low, high };
  }

  /** Why the last step has a rarity of this kind. */
  reason(kind: AnomalyKind): string {
    const { last } = this.kept;
    const { low = last, high = last } = this.expected() ?? {};
    const reasons: Record<AnomalyKind, () => string> = {
      level: () => `${inWords(last)}; usual is ${inWords(low)} to ${inWords(high)}`,
      jump: () => this.#jumpReason(),
      shift: () => this.#shiftReason(),
      spread: () =>
        `half of the last ${SOME_STEPS} values lie within ${inWords(quartiles(this.#some))}; usual is ${inWords(quartiles(this.window))}`,
      record: () => this.#recordReason,
      stuck: () =>
        `${inWords(last)} for ${this.same.run} steps; the longest time with one value was ${inWords(this.same.longest)} steps`,
      missing: () => this.#missingReason,
    };
    return reasons[kind]();
  }

  /** The short windows are the end of the long one. */
  restoreWindows(values: Float64Array): void {
    for (const value of values) this.window.push(value);
    for (const value of values.slice(-FEW_STEPS)) this.#few.push(value);
    for (const value of values.slice(-SOME_STEPS)) this.#some.push(value);
  }

  #compare(value: number): void {
    const { window, rarities, kept } = this;
    this.kept.median = window.quantile(0.5);
    const floor = Math.max(SCALE_SHARE * kept.largest, SMALLEST);
    const tails = (window.quantile(0.95) - window.quantile(0.05)) / 4;
    this.kept.scale = Math.max(quartiles(window), tails, floor) / QUARTILES_PER_SIGMA;
    const measured = [
      value - this.kept.median,
      value - kept.last,
      this.#few.quantile(0.5) - this.kept.median,
      this.#some.mean() - this.kept.median,
    ];
    for (const [quantity, kind] of QUANTITIES.entries()) {
      const deviation = this.#beyondUsual(quantity, (measured[quantity] ?? 0) / this.kept.scale);
      const rarity = this.#rarity(quantity, deviation);
      if (rarity <= rarities[kind]) continue;
      rarities[kind] = rarity;
      if (kind === 'shift') this.#shift = quantity;
    }
    const ratio = Math.log((quartiles(this.#some) + floor) / (quartiles(window) + floor));
    rarities.spread = this.#rarity(QUANTITIES.length, Math.abs(ratio));
    rarities.record = this.#recordRarity(value, floor);
  }

  /** Downwards and upwards, in units of the series. */
  #usualDeviations(quantity: number): [number, number] {
    const usual = this.histograms[quantity]?.quantile(USUAL_SHARE) ?? 0;
    const { envelope } = this;
    return [
      this.kept.scale * (usual + envelope.usual(2 * quantity + 1)),
      this.kept.scale * (usual + envelope.usual(2 * quantity)),
    ];
  }

  #jumpReason(): string {
    const { last } = this.kept;
    const [down, up] = this.#usualDeviations(JUMP);
    const usual = inWords(last < this.#before ? down : up);
    return `from ${inWords(this.#before)} to ${inWords(last)} in one step; usual are steps of up to ${usual}`;
  }

  #shiftReason(): string {
    const isFew = this.#shift === SHIFT_OF_FEW;
    const [down, up] = this.#usualDeviations(this.#shift);
    const usual = `${inWords(this.kept.median - down)} to ${inWords(this.kept.median + up)}`;
    return isFew
      ? `the median of the last ${FEW_STEPS} values is ${inWords(this.#few.quantile(0.5))}; usual is ${usual}`
      : `the mean of the last ${SOME_STEPS} values is ${inWords(this.#some.mean())}; usual is ${usual}`;
  }

  /** What of a deviation is more than both days before had at this hour, in the same direction. */
  #beyondUsual(quantity: number, deviation: number): number {
    const index = 2 * quantity + (deviation > 0 ? 0 : 1);
    const size = Math.abs(deviation);
    const usual = this.envelope.usual(index);
    this.envelope.add(index, size);
    return Math.max(0, size - usual);
  }

  #rarity(index: number, deviation: number): number {
    const histogram = this.histograms[index];
    const rarity = histogram?.rarity(deviation) ?? 0;
    histogram?.add(deviation);
    return rarity;
  }

  #recordRarity(value: number, floor: number): number {
    const { kept } = this;
    const beyond = Math.max(0, value - kept.high, kept.low - value) / Math.max(kept.high - kept.low, floor);
    if (beyond > 0)
      this.#recordReason = `${inWords(value)}; all values before were ${inWords(kept.low)} to ${inWords(kept.high)}`;
    // The range shrinks towards the median, so that a record of long ago is one again.
    const forgotten = 1 / RANGE_MEMORY_STEPS;
    kept.high -= (kept.high - this.kept.median) * forgotten;
    kept.low += (this.kept.median - kept.low) * forgotten;
    return RECORD_WEIGHT * Math.log10(1 + RECORD_SLOPE * beyond);
  }

  #followRun(last: number | undefined, value: number): void {
    if (last === value) {
      this.same.lengthen();
      if (this.kept.changes >= CHANGES) this.rarities.stuck = this.same.notice();
      return;
    }
    this.same.end();
    this.kept.changes = Math.min(CHANGES, this.kept.changes + 1);
  }

  #noticeGap(): void {
    const { missing, window, rarities } = this;
    if (window.length < LEAST_VALUES || missing.run === 0) return;
    rarities.missing = missing.notice();
    if (rarities.missing > 0)
      this.#missingReason = `no value for ${missing.run} steps; the longest gap before was ${inWords(missing.longest)}`;
  }

  #clear(): void {
    Object.assign(this.rarities, noRarities());
  }
}

function quartiles(window: SortedWindow): number {
  return window.quantile(0.75) - window.quantile(0.25);
}

function noRarities(): Record<AnomalyKind, number> {
  return { level: 0, jump: 0, shift: 0, spread: 0, record: 0, stuck: 0, missing: 0 };
}
