const SAMPLES = 9;
/**
 * Of the last ones, from below. Most that goes wrong makes a link look slower than it is, such as a process that has to wait for
 * a CPU; only what comes together with the one before it looks quicker.
 */
const QUANTILE = 0.75;
/** What was carried in less says more about the way to the other side and back than about the link. */
const BYTES_MIN = 16 * 1024;

export interface Delivery {
  readonly bytes: number;
  /** That the link took for them, as far as that can be told from their acknowledgement. */
  readonly elapsedMs: number;
  /** It was the link that was waited for, and little else. If not, this says only what the link can do at least. */
  readonly isLimited: boolean;
}

/** What a link lets through, by what the other side has acknowledged. */
export class LinkRate {
  /** The last ones that were limited by it, or quicker than it was taken for. */
  #rates: number[] = [];
  #unlimitedInARow = 0;

  /** Infinity where nothing is known, or the link limits nothing any more: then nothing is spared. */
  get bytesPerSecond(): number {
    const index = Math.floor((this.#rates.length - 1) * QUANTILE);
    return this.#rates.toSorted((a, b) => a - b)[index] ?? Number.POSITIVE_INFINITY;
  }

  note({ bytes, elapsedMs, isLimited }: Delivery): void {
    if (bytes < BYTES_MIN) return;
    this.#unlimitedInARow = isLimited ? 0 : this.#unlimitedInARow + 1;
    if (this.#unlimitedInARow >= SAMPLES) this.#rates = [];
    if (elapsedMs <= 0) return;
    const rate = (bytes * 1000) / elapsedMs;
    if (!isLimited && rate <= this.bytesPerSecond) return;
    this.#rates.push(rate);
    if (this.#rates.length > SAMPLES) this.#rates.shift();
  }
}
