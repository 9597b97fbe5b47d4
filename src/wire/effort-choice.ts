import type { Effort } from './page-codec.ts';

/** What a page cost and took lately, with one effort. */
interface Experience {
  packUs: number;
  bytes: number;
}

const EFFORTS: readonly Effort[] = [0, 1, 2];
/** Pages of a loaded Redis against their bases, see docs/benchmarks.md. Where nothing is known yet. */
const BEFORE_ANY: Readonly<Record<Effort, Experience>> = {
  0: { packUs: 0.9, bytes: 230 },
  1: { packUs: 1.3, bytes: 131 },
  2: { packUs: 1.9, bytes: 128 },
};
/** Weight of a new batch; old ones fade. */
const SMOOTHING = 0.2;
/** Batches of less say more about the timer than about packing. */
const PAGES_MIN = 16;
/** Every so many batches another effort is tried, or nothing would be learnt of those that are not chosen. */
const TRY_EVERY = 32;

export interface PackedBatch {
  readonly effort: Effort;
  readonly pages: number;
  readonly bytes: number;
  readonly elapsedMs: number;
}

/**
 * How much to pack: so that a page is on the other side as soon as possible, packed and sent. A quick link wants little
 * packing, a slow one much, and a busy CPU less. Keep one for each kind of stream: whole memory packs otherwise than epochs.
 */
export class EffortChoice {
  readonly #experience = new Map<Effort, Experience>(
    EFFORTS.map((effort) => [effort, { ...BEFORE_ANY[effort] }]),
  );
  #choices = 0;

  /** `linkBytesPerSecond` as measured lately; Infinity where nothing limits it. */
  choose({ linkBytesPerSecond }: { linkBytesPerSecond: number }): Effort {
    this.#choices += 1;
    const best = EFFORTS.toSorted(
      (a, b) => this.#costUs(a, linkBytesPerSecond) - this.#costUs(b, linkBytesPerSecond),
    );
    const isTry = this.#choices % TRY_EVERY === 0;
    const chosen = isTry ? best[1 + ((this.#choices / TRY_EVERY) % 2)] : best[0];
    return chosen ?? 1;
  }

  note({ effort, pages, bytes, elapsedMs }: PackedBatch): void {
    const known = this.#experience.get(effort);
    if (known === undefined || pages < PAGES_MIN) return;
    known.packUs += SMOOTHING * ((elapsedMs * 1000) / pages - known.packUs);
    known.bytes += SMOOTHING * (bytes / pages - known.bytes);
  }

  #costUs(effort: Effort, linkBytesPerSecond: number): number {
    const { packUs, bytes } = this.#experience.get(effort) ?? BEFORE_ANY[effort];
    return packUs + (bytes / linkBytesPerSecond) * 1e6;
  }
}
