/** A shorter wait is no news: that of a keeper that was held up for a moment. */
const TOLD_FROM_MS = 100;
/** Whoever waits longer than this does not find out by himself what for. */
const TOLD_AFTER_MS = 1000;

/**
 * Since when acknowledged output waits because the shadow may have taken over, and what is to be told of that. Pure.
 *
 * Where the way to the shadow is longer than its word is good for, there is doubt all the time, and the record says each time
 * that what waits may leave: that is told once, and not again before a word comes in time.
 */
export class OutputDoubt {
  #sinceMs: number | undefined;
  #told: 'nothing' | 'waits' | 'waited' = 'nothing';
  #isFar = false;

  /** Output has to wait. */
  begin(nowMs: number): void {
    this.#sinceMs ??= nowMs;
  }

  waitsMs(nowMs: number): number | null {
    return this.#sinceMs === undefined ? null : nowMs - this.#sinceMs;
  }

  /**
   * Whether the record is to be asked, as a word of what was sent at `sentMs` has come too late. After this host stood still such
   * words are those of before, and a better one is about to come.
   */
  mayAsk(sentMs: number): boolean {
    return this.#sinceMs !== undefined && (this.#isFar || sentMs > this.#sinceMs);
  }

  /** There is doubt still. Returns for how long, when it is time to tell that. */
  goOn(nowMs: number): number | undefined {
    const waitsMs = this.waitsMs(nowMs) ?? 0;
    if (waitsMs < TOLD_AFTER_MS || this.#told !== 'nothing') return undefined;
    this.#told = 'waits';
    return waitsMs;
  }

  /**
   * What waits leaves: by a word of the shadow, by what is on record, or as there is no such shadow any more. Returns for how
   * long it waited where that is to be told.
   */
  end(nowMs: number, by: 'word' | 'record' | 'right'): number | undefined {
    const waitedMs = this.waitsMs(nowMs) ?? 0;
    const isToldOf = this.#told === 'waits' || (by === 'word' && waitedMs >= TOLD_FROM_MS);
    this.#sinceMs = undefined;
    this.#isFar = by === 'record';
    if (!this.#isFar) this.#told = 'nothing';
    else if (this.#told === 'waits') this.#told = 'waited';
    return isToldOf ? waitedMs : undefined;
  }
}
