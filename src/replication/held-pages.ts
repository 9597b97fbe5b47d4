import { PAGE_BYTES } from '../base/units.ts';
import type { EpochId } from '../epoch/epoch-id.ts';
import type { Mapping } from '../linux/mapping.ts';
import type { GuestMemory } from '../memory/guest-memory.ts';
import type { PageRun } from '../memory/page-runs.ts';
import { pagesOf } from './page-sender.ts';

interface Place {
  readonly epoch: EpochId;
  readonly mapping: Mapping;
  readonly offset: number;
}

/**
 * The newest version of each page that this host holds: of an epoch that arrives or waits to be applied if it is in one,
 * else in the shadow's memory. It is what the other host packs against.
 */
export class HeldPages {
  readonly #memory: GuestMemory;
  readonly #places = new Map<number, Place>();

  constructor(memory: GuestMemory) {
    this.#memory = memory;
  }

  /** Copies the pages to `into`, one after the other. */
  read(runs: readonly PageRun[], into: Mapping): void {
    this.#memory.readRuns(runs, into);
    let offset = 0;
    for (const page of pagesOf(runs)) {
      const place = this.#places.get(page);
      if (place !== undefined) {
        const { bytes } = place.mapping;
        into.bytes.set(bytes.subarray(place.offset, place.offset + PAGE_BYTES), offset);
      }
      offset += PAGE_BYTES;
    }
  }

  /** These pages of an epoch lie in its slot. */
  note(
    epoch: EpochId,
    { runs, mapping, offset }: { runs: readonly PageRun[]; mapping: Mapping; offset: number },
  ): void {
    let at = offset;
    for (const page of pagesOf(runs)) {
      this.#places.set(page, { epoch, mapping, offset: at });
      at += PAGE_BYTES;
    }
  }

  /** All of the epoch is in the memory, and its slot may be used again. */
  forget(epoch: EpochId): void {
    for (const [page, place] of this.#places) if (place.epoch <= epoch) this.#places.delete(page);
  }
}
