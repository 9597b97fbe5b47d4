import { MIB } from '../base/units.ts';
import { appendExtent, type BlockDevice, type DiskExtent } from './block-device.ts';
import type { DiskOverlay } from './disk-overlay.ts';
import { copyAbove, extentOf } from './disk-range.ts';
import { BLOCK_BYTES } from './write-set.ts';

/** Looked at in one question about extents while there is something above the image. */
const EXTENT_SPAN_BYTES = 16 * MIB;

/** A disk as its guest sees it: the image, and the writes that lie above it. */
export class DiskView {
  readonly #overlay: DiskOverlay;
  readonly #image: Pick<BlockDevice, 'read' | 'extents'>;

  constructor(overlay: DiskOverlay, image: Pick<BlockDevice, 'read' | 'extents'>) {
    this.#overlay = overlay;
    this.#image = image;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    const waits: Promise<void>[] = [];
    let missingFrom = offset;
    const readMissing = (upTo: number) => {
      if (upTo > missingFrom) {
        waits.push(this.#image.read(missingFrom, into.subarray(missingFrom - offset, upTo - offset)));
      }
    };
    // What lies above the image is copied now: later it may be in the image, and the image is read for the rest only.
    copyAbove(this.#overlay, { offset, into }, (at, endByte) => {
      readMissing(at);
      missingFrom = endByte;
    });
    readMissing(offset + into.length);
    await Promise.all(waits);
  }

  async extents(offset: number, lengthBytes: number): Promise<DiskExtent[]> {
    if (this.#overlay.isEmpty) return await this.#image.extents(offset, lengthBytes);
    const found: DiskExtent[] = [];
    const below = await this.#image.extents(offset, Math.min(lengthBytes, EXTENT_SPAN_BYTES));
    let at = offset;
    for (const extent of below) {
      const endByte = at + extent.lengthBytes;
      while (at < endByte) {
        const block = Math.floor(at / BLOCK_BYTES);
        const next = Math.min(endByte, (block + 1) * BLOCK_BYTES);
        appendExtent(found, { ...extentOf(this.#overlay.get(block), extent), lengthBytes: next - at });
        at = next;
      }
    }
    return found;
  }
}
