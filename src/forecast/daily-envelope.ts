const DAY_MS = 86_400_000;
const SLOTS = 24;
const DAYS = 3;
/** The first day begins somewhere in its middle: only those after it count. */
const DAYS_TO_KNOW = 4;

/**
 * The largest deviations at each hour of the last two whole days, for several quantities. What came at about the same hour on
 * both days is what that hour is like.
 */
export class DailyEnvelope {
  /** Today, yesterday, the day before; for each, quantity after quantity, hours. */
  readonly largest: Float32Array;
  day = -1;
  days = 0;
  /** The hour of the day. */
  slot = 0;
  readonly #quantities: number;

  constructor({ quantities }: { readonly quantities: number }) {
    this.#quantities = quantities;
    this.largest = new Float32Array(DAYS * quantities * SLOTS);
  }

  /** Goes to a time: Unix time in ms. UTC: hours of other zones are only numbered differently. */
  moveTo(timeMs: number): void {
    const day = Math.floor(timeMs / DAY_MS);
    this.slot = Math.floor(((timeMs - day * DAY_MS) / DAY_MS) * SLOTS);
    if (day === this.day) return;
    const size = this.#quantities * SLOTS;
    this.largest.copyWithin(size, 0, size * (DAYS - 1));
    this.largest.fill(0, 0, size);
    this.day = day;
    this.days += 1;
  }

  /** How large a deviation is nothing new at this hour. 0 as long as it does not know two days. */
  usual(quantity: number): number {
    if (this.days < DAYS_TO_KNOW) return 0;
    return Math.min(this.#around(1, quantity), this.#around(2, quantity));
  }

  add(quantity: number, deviation: number): void {
    const index = this.#index(0, quantity) + this.slot;
    if (deviation > (this.largest[index] ?? 0)) this.largest[index] = deviation;
  }

  /** What happens at five to one day and at five past the other is the same thing. */
  #around(daysAgo: number, quantity: number): number {
    const first = this.#index(daysAgo, quantity);
    let largest = 0;
    for (const slot of [this.slot + SLOTS - 1, this.slot, this.slot + 1])
      largest = Math.max(largest, this.largest[first + (slot % SLOTS)] ?? 0);
    return largest;
  }

  #index(daysAgo: number, quantity: number): number {
    return (daysAgo * this.#quantities + quantity) * SLOTS;
  }
}
