/** Pages from `firstPage` on. */
interface Run {
  readonly firstPage: number;
  readonly pageCount: number;
}

const SLOT_MS = 10_000;
/** With the slot that is not over yet: a page counts for 60 to 70 seconds. */
const WINDOW_SLOTS = 7;
/** Stamps 1 … 255; 0 is a page that was not written, or long ago. */
const STAMPS = 255;
/** Old stamps are taken away bit by bit, each before its number is used again. */
const SWEEP_PARTS = 200;

/**
 * Distinct pages that were written within the last minute. A byte for each page says in which tenth of a minute it was last
 * written, so that a page costs two steps whenever it is written, and the count is known at any time.
 */
export class WrittenPages {
  readonly #stamps: Uint8Array;
  /** Pages by the slot of their stamp, of the slots of the window. */
  readonly #counts = new Map<number, number>();
  #slot: number | undefined;
  #sweptTo = 0;

  constructor(pageCount: number) {
    this.#stamps = new Uint8Array(pageCount);
  }

  /** Runs may lie outside of the memory and overlap. `nowMs` never goes back. */
  note(runs: readonly Run[], nowMs: number): void {
    const slot = this.#advance(nowMs);
    const stamp = stampOf(slot);
    const stamps = this.#stamps;
    let fresh = 0;
    for (const { firstPage, pageCount } of runs) {
      const end = Math.min(stamps.length, firstPage + pageCount);
      for (let page = Math.max(0, firstPage); page < end; page += 1) {
        const before = stamps[page] ?? 0;
        if (before === stamp) continue;
        stamps[page] = stamp;
        fresh += 1;
        if (before !== 0) this.#uncount(before, slot);
      }
    }
    this.#counts.set(slot, (this.#counts.get(slot) ?? 0) + fresh);
  }

  count(nowMs: number): number {
    this.#advance(nowMs);
    let pages = 0;
    for (const count of this.#counts.values()) pages += count;
    return pages;
  }

  #uncount(stamp: number, slot: number): void {
    // Of all slots with this stamp, the last one before now.
    const age = (stampOf(slot) - stamp + STAMPS) % STAMPS;
    const counted = this.#counts.get(slot - age);
    if (counted !== undefined) this.#counts.set(slot - age, counted - 1);
  }

  #advance(nowMs: number): number {
    const now = Math.floor(nowMs / SLOT_MS);
    const last = this.#slot ?? now;
    if (now - last >= STAMPS - SWEEP_PARTS) {
      // Nobody looked for so long that what is there means nothing any more.
      this.#stamps.fill(0);
      this.#counts.clear();
    } else {
      for (let slot = last + 1; slot <= now; slot += 1) {
        this.#counts.delete(slot - WINDOW_SLOTS);
        this.#sweep(slot);
      }
    }
    this.#slot = Math.max(last, now);
    return this.#slot;
  }

  #sweep(slot: number): void {
    const part = Math.ceil(this.#stamps.length / SWEEP_PARTS);
    const end = Math.min(this.#stamps.length, this.#sweptTo + part);
    for (let page = this.#sweptTo; page < end; page += 1) {
      const stamp = this.#stamps[page] ?? 0;
      if (stamp === 0) continue;
      const age = (stampOf(slot) - stamp + STAMPS) % STAMPS;
      if (age >= WINDOW_SLOTS) this.#stamps[page] = 0;
    }
    this.#sweptTo = end === this.#stamps.length ? 0 : end;
  }
}

function stampOf(slot: number): number {
  return (slot % STAMPS) + 1;
}
