import type { EpochId } from '../epoch/epoch-id.ts';
import type { BlockDevice } from './block-device.ts';
import { BlockError } from './block-error.ts';
import { copyAbove } from './disk-range.ts';
import { type DiskWrite, endOf } from './disk-write.ts';
import { BLOCK_BYTES, WriteSet } from './write-set.ts';

export interface DiskMomentOptions {
  readonly device: BlockDevice;
  readonly epoch: EpochId;
  /** What may be kept of the image before the moment is given up, about. */
  readonly keptBytesMax: number;
}

/**
 * An image as it was at an epoch, while it goes on: what newer epochs are about to overwrite is kept first. Whoever looks at
 * it never holds the image up for longer than that takes, nor for more memory than it was given.
 */
export class DiskMoment {
  readonly epoch: EpochId;
  readonly #device: BlockDevice;
  readonly #keptBytesMax: number;
  #kept = new WriteSet();
  #lost: BlockError | undefined;

  constructor({ device, epoch, keptBytesMax }: DiskMomentOptions) {
    this.epoch = epoch;
    this.#device = device;
    this.#keptBytesMax = keptBytesMax;
  }

  /** To be waited for before these are written to the image. Never rejects: it is the moment that is lost then. */
  async keep(writes: readonly DiskWrite[]): Promise<void> {
    try {
      for (const write of writes) await this.#keepRange(write.offset, endOf(write));
    } catch (cause) {
      this.lose(cause);
    }
  }

  /** The image is written by somebody else, or cannot be read: nobody knows any more how it was. */
  lose(cause: unknown): void {
    this.#lost ??= momentLost('the disk went on without it', cause);
    this.#kept = new WriteSet();
  }

  /** @throws BlockError BLOCK_MOMENT_LOST; what the device throws */
  async read(offset: number, into: Uint8Array): Promise<void> {
    if (this.#lost === undefined) await this.#device.read(offset, into);
    if (this.#lost !== undefined) throw this.#lost;
    // What was overwritten while it was read was kept before that.
    copyAbove(this.#kept, { offset, into });
  }

  async #keepRange(offset: number, endByte: number): Promise<void> {
    const endBlock = Math.ceil(endByte / BLOCK_BYTES);
    for (let block = Math.floor(offset / BLOCK_BYTES); block < endBlock && this.#lost === undefined; ) {
      let count = 0;
      while (block + count < endBlock && this.#kept.get(block + count) === undefined) count += 1;
      if (count > 0) await this.#keepBlocks(block, count);
      block += count + 1;
    }
  }

  async #keepBlocks(firstBlock: number, count: number): Promise<void> {
    if (this.#kept.heldBytes + count * BLOCK_BYTES > this.#keptBytesMax)
      throw momentLost(`more than ${this.#keptBytesMax} bytes of the disk were overwritten meanwhile`);
    const bytes = new Uint8Array(count * BLOCK_BYTES);
    const offset = firstBlock * BLOCK_BYTES;
    // The last block of a disk may be a part of one.
    await this.#device.read(
      offset,
      bytes.subarray(0, Math.min(bytes.length, this.#device.sizeBytes - offset)),
    );
    this.#kept.put(firstBlock, bytes);
  }
}

function momentLost(why: string, cause?: unknown): BlockError {
  if (cause instanceof BlockError && cause.code === 'BLOCK_MOMENT_LOST') return cause;
  return new BlockError('BLOCK_MOMENT_LOST', `the disk as it was cannot be read any more: ${why}`, {
    ...{ cause, hint: 'Try again when the guest writes less.' },
  });
}
