import { createHash } from 'node:crypto';
import type { BlockDevice } from './block-device.ts';
import { REGION_BYTES } from './dirty-regions.ts';

/** Copies of a disk are compared by regions. */
export const HASH_BYTES = 16;
export const HASH_KEY_BYTES = 32;

type Readable = Pick<BlockDevice, 'sizeBytes' | 'read' | 'extents'>;

/**
 * What `count` regions of a disk hold, from the region `first` on: 128 bits for each, which fit those of another copy only
 * where the content does. The key is a secret of the two that compare: a guest that knew it could look for contents that
 * are told apart by nobody.
 */
export async function hashRegions(
  device: Readable,
  { first, count, key }: { first: number; count: number; key: Uint8Array },
): Promise<Buffer> {
  const hashes = Buffer.alloc(count * HASH_BYTES);
  const region = Buffer.alloc(REGION_BYTES);
  const ofZeros = new Map<number, Buffer>();
  const zeros = await zeroRegions(device, { first, count });
  for (let index = 0; index < count; index += 1) {
    const offset = (first + index) * REGION_BYTES;
    const bytes = region.subarray(0, Math.min(REGION_BYTES, device.sizeBytes - offset));
    let hash = zeros.has(index) ? ofZeros.get(bytes.length) : undefined;
    if (hash === undefined) {
      if (zeros.has(index)) bytes.fill(0);
      else await device.read(offset, bytes);
      hash = createHash('sha256').update(key).update(bytes).digest();
      if (zeros.has(index)) ofZeros.set(bytes.length, hash);
      // What was cached was read in no time, and others want their turn.
      await new Promise((resolve) => setImmediate(resolve));
    }
    hash.copy(hashes, index * HASH_BYTES, 0, HASH_BYTES);
  }
  return hashes;
}

/** Those that need not be read. */
async function zeroRegions(
  device: Readable,
  { first, count }: { first: number; count: number },
): Promise<Set<number>> {
  const start = first * REGION_BYTES;
  const end = Math.min(device.sizeBytes, start + count * REGION_BYTES);
  const found = new Set<number>();
  for (let at = start; at < end; ) {
    for (const { lengthBytes, zero } of await device.extents(at, end - at)) {
      const firstWhole = Math.ceil((at - start) / REGION_BYTES);
      at += lengthBytes;
      const isToEnd = at === device.sizeBytes;
      const endWhole = isToEnd ? count : Math.floor((at - start) / REGION_BYTES);
      if (zero) for (let index = firstWhole; index < endWhole; index += 1) found.add(index);
    }
  }
  return found;
}
