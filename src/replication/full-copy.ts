import { assert } from '../base/assert.ts';
import { MIB, PAGE_BYTES } from '../base/units.ts';
import { Mapping } from '../linux/mapping.ts';
import type { DirtyLog } from '../memory/dirty-log.ts';
import { GuestMemory } from '../memory/guest-memory.ts';
import { countPages, type PageRun, piecesOf } from '../memory/page-runs.ts';

const CHUNK_BYTES = MIB;
const PASSES_MAX = 6;

/** Memory that is filled: of a standby here, or of one on another host. */
export interface CopyTarget {
  discardAll(): Promise<void> | void;
  /** The pages lie at the beginning of `source`, one after the other, until this resolves. */
  writeRuns(runs: readonly PageRun[], source: Mapping): Promise<unknown> | unknown;
}

export interface FullCopyOptions {
  readonly from: GuestMemory;
  readonly to: GuestMemory | CopyTarget;
  readonly dirtyLog: DirtyLog;
  /** What `to` lacks, where it has some of it: asked when the dirty log counts already. By default all that holds data. */
  readonly firstRuns?: () => Promise<readonly PageRun[]>;
  /** Below so many pages left over from a pass, the first cut may take the rest. */
  readonly restPagesMax: number;
  /** Pages copied so far and pages known to be needed. */
  readonly onProgress?: (copiedPages: number, totalPages: number) => void;
  readonly signal: AbortSignal;
}

/**
 * Fills a new shadow's memory while the VM runs: everything once, then what was written meanwhile, until little
 * is left. A dirty log that may be asked only while the VM stands still allows one pass. What the last pass
 * missed is still in the dirty log, so that the first epoch makes the copy exact.
 * Until that epoch is committed the copy is no state the VM ever had, and nobody may promote from it.
 */
export async function copyWhileRunning(options: FullCopyOptions): Promise<void> {
  const { from, to, dirtyLog, signal } = options;
  // The new standby's own start-up may have left something in its memory.
  await to.discardAll();
  if (!dirtyLog.atomic && !(to instanceof GuestMemory)) {
    // What such a log compares with is not here: the first epoch takes everything.
    dirtyLog.mark(from.dataRuns());
    return;
  }
  dirtyLog.collect();
  let runs: readonly PageRun[] =
    options.firstRuns === undefined ? from.dataRuns() : await options.firstRuns();
  let copied = 0;
  let total = countPages(runs);
  using buffer = Mapping.anonymous(CHUNK_BYTES);
  for (let pass = 1; ; pass += 1) {
    for (const chunk of piecesOf(runs, CHUNK_BYTES / PAGE_BYTES)) {
      signal.throwIfAborted();
      from.readRuns([chunk], buffer, 0);
      await to.writeRuns([chunk], buffer);
      copied += chunk.pageCount;
      options.onProgress?.(copied, total);
      await new Promise<void>((resolve) => setImmediate(resolve));
    }
    if (!dirtyLog.atomic) {
      assert(to instanceof GuestMemory, 'such a log was turned away above');
      dirtyLog.adopt(to);
      return;
    }
    if (pass === PASSES_MAX) return;
    const written = dirtyLog.collect();
    if (countPages(written) <= options.restPagesMax) {
      dirtyLog.mark(written);
      return;
    }
    runs = written;
    total += countPages(runs);
  }
}
