import { PAGE_BYTES } from '../base/units.ts';
import { Mapping } from '../linux/mapping.ts';
import type { GuestMemory } from '../memory/guest-memory.ts';
import type { SnapshotFile } from './snapshot-file.ts';
import { CHUNK_BYTES, locationOf } from './snapshot-format.ts';

/**
 * Fills memory, all holes before, from a snapshot, where it cannot be done while the guest runs.
 * @throws SnapshotError SNAPSHOT_DAMAGED; the signal's reason
 */
export async function restoreAll(
  file: SnapshotFile,
  { memory, signal }: { memory: GuestMemory; signal: AbortSignal | undefined },
): Promise<void> {
  using buffer = Mapping.anonymous(CHUNK_BYTES);
  const pagesOf = Map.groupBy(file.index.places.keys(), (page) => {
    const place = file.index.places[page] ?? 0;
    return place === 0 ? undefined : locationOf(place).chunk;
  });
  for (const [chunk, pages] of pagesOf) {
    if (chunk === undefined) continue;
    signal?.throwIfAborted();
    buffer.bytes.set(file.chunk(chunk));
    for (const firstPage of pages) {
      const { slot } = locationOf(file.index.places[firstPage] ?? 0);
      memory.writeRuns([{ firstPage, pageCount: 1 }], buffer, slot * PAGE_BYTES);
    }
    await new Promise<void>((resolve) => setImmediate(resolve));
  }
}
