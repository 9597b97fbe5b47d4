import type { Effort } from './page-codec.ts';

/** What a page cost and took lately, with one effort. */
interface Experience {
  readonly packUs: number;
  readonly bytes: number;
}

type ByEffort = Readonly<Record<Effort, Experience>>;

/** Whole memory packs otherwise than pages of which a few words have changed. */
export type StreamKind = 'epochs' | 'copy';

const EFFORTS: readonly Effort[] = [0, 1, 2, 3];
/** Pages of a loaded Redis, see docs/benchmarks.md. Where nothing is known yet. */
const BEFORE_ANY: Readonly<Record<StreamKind, ByEffort>> = {
  epochs: {
    0: { packUs: 0.9, bytes: 230 },
    1: { packUs: 1.3, bytes: 131 },
    2: { packUs: 1.9, bytes: 75 },
    3: { packUs: 2.4, bytes: 72 },
  },
  copy: {
    0: { packUs: 1.1, bytes: 3400 },
    1: { packUs: 3.2, bytes: 1600 },
    2: { packUs: 9, bytes: 1170 },
    3: { packUs: 13, bytes: 1120 },
  },
};
/** Weight of a new batch; old ones fade. */
const SMOOTHING = 0.2;
/** Batches of less say more about the timer than about packing. */
const PAGES_MIN = 16;
/** Every so many batches another effort is tried, or nothing would be learnt of those that are not chosen. */
const TRY_EVERY = 32;
/** Another effort has to save so much of the time, or two that are as good would take turns. */
const GAIN_SHARE_MIN = 0.1;

export interface PackedBatch {
  readonly effort: Effort;
  readonly pages: number;
  readonly bytes: number;
  readonly elapsedMs: number;
}

/**
 * The effort with which a page is on the other side soonest, packed and sent, by what that took lately. `present` stays
 * unless another one is clearly better.
 */
export function bestEffort(
  experience: ByEffort,
  { present, linkBytesPerSecond }: { present: Effort; linkBytesPerSecond: number },
): Effort {
  const costUs = (effort: Effort) =>
    experience[effort].packUs + (experience[effort].bytes / linkBytesPerSecond) * 1e6;
  const best = EFFORTS.reduce((a, b) => (costUs(b) < costUs(a) ? b : a));
  return costUs(best) < costUs(present) * (1 - GAIN_SHARE_MIN) ? best : present;
}

/**
 * How much to pack: a quick link wants little packing, a slow one much, and a busy CPU less. Keep one for each kind of
 * stream.
 */
export class EffortChoice {
  #experience: ByEffort;
  #present: Effort | undefined;
  #choices = 0;

  constructor(kind: StreamKind = 'epochs') {
    this.#experience = BEFORE_ANY[kind];
  }

  /** `linkBytesPerSecond` as measured lately; Infinity where nothing limits it. */
  choose({ linkBytesPerSecond }: { linkBytesPerSecond: number }): Effort {
    this.#choices += 1;
    const present = bestEffort(this.#experience, { present: this.#present ?? 1, linkBytesPerSecond });
    this.#present = present;
    if (this.#choices % TRY_EVERY !== 0) return present;
    // Those beside it: what is further away does not suit this link, and may cost much.
    const step = (this.#choices / TRY_EVERY) % 2 === 0 ? 1 : -1;
    return EFFORTS[present + step] ?? EFFORTS[present - step] ?? present;
  }

  note({ effort, pages, bytes, elapsedMs }: PackedBatch): void {
    if (pages < PAGES_MIN) return;
    const known = this.#experience[effort];
    const now = {
      packUs: known.packUs + SMOOTHING * ((elapsedMs * 1000) / pages - known.packUs),
      bytes: known.bytes + SMOOTHING * (bytes / pages - known.bytes),
    };
    this.#experience = { ...this.#experience, [effort]: now };
  }
}
