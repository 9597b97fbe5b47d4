import { MIB, PAGE_BYTES } from '../base/units.ts';
import type { EpochId } from '../epoch/epoch-id.ts';
import { Mapping } from '../linux/mapping.ts';
import type { GuestMemory } from '../memory/guest-memory.ts';
import { countPages, mergeRuns, type PageRun, piecesOf } from '../memory/page-runs.ts';
import type { StagedEpoch } from './epoch-slot.ts';
import type { ShadowImage } from './shadow-image.ts';

const CHUNK_BYTES = MIB;
const PASSES_MAX = 6;
/** Copied while the image is held: about a millisecond. */
const REST_PAGES_MAX = 1024;

export interface ImageCopyOptions {
  readonly image: ShadowImage;
  /** Memory of the same size, for nobody else's use. */
  readonly to: GuestMemory;
  readonly signal: AbortSignal;
  readonly nowMs: () => number;
  /** The image stands still, and nothing newer than this epoch has been committed. */
  readonly onStill?: (epoch: EpochId) => void;
  /** Its last pages are about to be copied. */
  readonly onHeld: () => Promise<void> | void;
}

export interface CopiedImage {
  /** `to` is as of this epoch. */
  readonly staged: StagedEpoch;
  readonly copiedBytes: number;
  /** How long epochs were not applied meanwhile. */
  readonly heldMs: number;
}

/**
 * Copies the image of a shadow as of one committed epoch, while epochs go on being committed and applied: everything
 * once, then what was applied meanwhile, until little is left. For the rest the image is held, and the epochs that it
 * lacks then are applied to the copy from their slots.
 * @throws ReplicationError; LinuxError when there is no room; the signal's reason
 */
export async function copyImage({
  image,
  to,
  signal,
  nowMs,
  onStill,
  onHeld,
}: ImageCopyOptions): Promise<CopiedImage> {
  // The start-up of the QEMU that it is for may have left something in it.
  to.discardAll();
  using copying = new DisposableStack();
  const buffer = copying.use(Mapping.anonymous(CHUNK_BYTES));
  let copiedBytes = 0;
  const copy = async (runs: readonly PageRun[]) => {
    for (const piece of piecesOf(runs, CHUNK_BYTES / PAGE_BYTES)) {
      signal.throwIfAborted();
      copiedBytes += image.memory.readRuns([piece], buffer);
      to.writeRuns([piece], buffer);
      await new Promise<void>((resolve) => setImmediate(resolve));
    }
  };
  let applied: PageRun[] = [];
  copying.defer(
    image.onApplied((runs) => {
      applied = mergeRuns(applied, runs);
    }),
  );
  const takeApplied = () => {
    const taken = applied;
    applied = [];
    return taken;
  };
  let rest: readonly PageRun[] = image.memory.dataRuns();
  for (let pass = 1; pass <= PASSES_MAX && (pass === 1 || countPages(rest) > REST_PAGES_MAX); pass += 1) {
    await copy(rest);
    rest = takeApplied();
  }
  return await image.whileStill(async ({ staged, backlog }) => {
    onStill?.(staged.epoch);
    const heldAtMs = nowMs();
    await onHeld();
    await copy(mergeRuns(rest, takeApplied()));
    for (const { staged: epoch, mapping } of backlog) {
      let offset = epoch.pagesOffset;
      // In the order in which they were captured: of a page that stands in an epoch twice the later one counts.
      for (const piece of piecesOf(epoch.runs, CHUNK_BYTES / PAGE_BYTES)) {
        signal.throwIfAborted();
        to.writeRuns([piece], mapping, offset);
        offset += piece.pageCount * PAGE_BYTES;
      }
      copiedBytes += countPages(epoch.runs) * PAGE_BYTES;
      await new Promise<void>((resolve) => setImmediate(resolve));
    }
    signal.throwIfAborted();
    return { staged, copiedBytes, heldMs: nowMs() - heldAtMs };
  });
}
