const BINS = 152;
/** Of two values that differ by less than a fifth of a doubling none is rarer. */
const BINS_PER_DOUBLING = 5;
/** Smaller deviations are all alike. */
const LEAST = 1e-3;
/** A bin that holds less than this share of one value is forgotten. */
const EMPTY = 0.3;

/**
 * How rare a deviation (a number without unit, from 0 up) is among those before, which are forgotten exponentially. Counts on
 * a logarithmic scale; beyond the largest known it goes on as a power law.
 */
export class RarityHistogram {
  /** Single precision is enough for counts, and halves what a series needs. */
  readonly counts = new Float32Array(BINS);
  total = 0;
  readonly #kept: number;

  constructor({ memory }: { readonly memory: number }) {
    this.#kept = 1 - 1 / memory;
  }

  /** Minus the decimal logarithm of the share of deviations at least as large: 3 is one in a thousand. Finite, from 0 up. */
  rarity(deviation: number): number {
    const bin = binOf(deviation);
    let top = BINS - 1;
    for (let seen = this.counts[top] ?? 0; seen < EMPTY && top >= 0; seen += this.counts[top] ?? 0) top -= 1;
    let above = (this.counts[bin] ?? 0) / 2;
    for (let higher = bin + 1; higher < BINS; higher += 1) above += this.counts[higher] ?? 0;
    const beyond = Math.max(0, bin - top) / BINS_PER_DOUBLING;
    return Math.max(0, beyond - Math.log10((above + 0.5) / (this.total + 1)));
  }

  add(deviation: number): void {
    for (let bin = 0; bin < BINS; bin += 1) this.counts[bin] = (this.counts[bin] ?? 0) * this.#kept;
    const bin = binOf(deviation);
    this.counts[bin] = (this.counts[bin] ?? 0) + 1;
    this.total = this.total * this.#kept + 1;
  }

  /** The upper edge of the bin up to which at least `share` of the deviations lie. 0 when it knows none. */
  quantile(share: number): number {
    let missing = share * this.total;
    if (this.total === 0) return 0;
    let bin = 0;
    while (bin < BINS - 1) {
      missing -= this.counts[bin] ?? 0;
      if (missing <= 0) break;
      bin += 1;
    }
    return LEAST * 2 ** ((bin + 1) / BINS_PER_DOUBLING);
  }
}

function binOf(deviation: number): number {
  if (!(deviation > LEAST)) return 0;
  return Math.min(BINS - 1, Math.floor(BINS_PER_DOUBLING * Math.log2(deviation / LEAST)));
}
