import { assert } from '../base/assert.ts';
import type { DiskExtent } from './block-device.ts';
import { BLOCK_BYTES, type BlockContent, ZERO_STEP_BLOCKS } from './write-set.ts';

export interface Aligned {
  readonly firstBlock: number;
  readonly count: number;
  /** What is no whole block: at the beginning, at the end, or both. */
  readonly edges: readonly { readonly at: number; readonly lengthBytes: number }[];
}

/** Whole blocks and the rest. The last block of a disk is whole only where the disk is a multiple of blocks. */
export function aligned(offset: number, lengthBytes: number, { diskBytes }: { diskBytes: number }): Aligned {
  const endByte = offset + lengthBytes;
  assert(offset >= 0 && endByte <= diskBytes, `${lengthBytes} bytes at ${offset} lie outside of the disk`);
  const firstBlock = Math.ceil(offset / BLOCK_BYTES);
  const endBlock = Math.floor(endByte / BLOCK_BYTES);
  if (endBlock < firstBlock) return { firstBlock, count: 0, edges: [{ at: offset, lengthBytes }] };
  const edges = [
    { at: offset, lengthBytes: firstBlock * BLOCK_BYTES - offset },
    { at: endBlock * BLOCK_BYTES, lengthBytes: endByte - endBlock * BLOCK_BYTES },
  ];
  return { firstBlock, count: endBlock - firstBlock, edges: edges.filter((edge) => edge.lengthBytes > 0) };
}

/** Bytes that keep no more memory than they count for: a small write may be a view of all that came with it. */
export function ownMemory(bytes: Uint8Array): Uint8Array {
  return bytes.buffer.byteLength > 2 * bytes.length ? new Uint8Array(bytes) : bytes;
}

function copyContent(content: BlockContent, into: Uint8Array, from: number): void {
  if (content.kind === 'zero') into.fill(0);
  else into.set(content.bytes.subarray(from, from + into.length));
}

/**
 * Copies what lies above an image into what is read of a range. `onCopied` is told of each part before it is copied, in the
 * order of the disk.
 */
export function copyAbove(
  above: { readonly isEmpty: boolean; readonly get: (block: number) => BlockContent | undefined },
  { offset, into }: { readonly offset: number; readonly into: Uint8Array },
  onCopied: (at: number, endByte: number) => void = () => {},
): void {
  const endByte = offset + into.length;
  for (let at = offset; at < endByte && !above.isEmpty; ) {
    const block = Math.floor(at / BLOCK_BYTES);
    const next = Math.min(endByte, (block + 1) * BLOCK_BYTES);
    const content = above.get(block);
    if (content !== undefined) {
      onCopied(at, next);
      copyContent(content, into.subarray(at - offset, next - offset), at - block * BLOCK_BYTES);
    }
    at = next;
  }
}

/** So many zeros at a time that others have their turn in between. */
export async function inZeroSteps(
  { firstBlock, count }: Pick<Aligned, 'firstBlock' | 'count'>,
  put: (block: number, count: number) => Promise<void> | void,
): Promise<void> {
  const endBlock = firstBlock + count;
  for (let block = firstBlock; block < endBlock; block += ZERO_STEP_BLOCKS) {
    await put(block, Math.min(ZERO_STEP_BLOCKS, endBlock - block));
    if (block + ZERO_STEP_BLOCKS < endBlock) await new Promise((resolve) => setImmediate(resolve));
  }
}

export function extentOf(
  content: BlockContent | undefined,
  below: DiskExtent,
): Omit<DiskExtent, 'lengthBytes'> {
  if (content === undefined) return below;
  if (content.kind === 'data') return { hole: false, zero: false };
  return { hole: content.mayPunch, zero: true };
}
