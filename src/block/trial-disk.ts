import type { BlockDevice, DiskExtent, ZeroOptions } from './block-device.ts';
import { BlockError } from './block-error.ts';
import type { DiskMoment } from './disk-moment.ts';
import { DiskOverlay } from './disk-overlay.ts';
import { type Aligned, aligned, inZeroSteps, ownMemory } from './disk-range.ts';
import { DiskView } from './disk-view.ts';
import { BLOCK_BYTES, BLOCK_COST_BYTES } from './write-set.ts';

export interface TrialDiskOptions {
  readonly image: Pick<BlockDevice, 'sizeBytes' | 'read'>;
  /** What may be written to it, about. */
  readonly writtenBytesMax: number;
}

/**
 * A disk for a QEMU that is only tried out: it sees the image as of one moment and its own writes, which nobody else ever
 * sees. Until there is a moment it sees the image as it happens to be.
 */
export class TrialDisk implements BlockDevice {
  readonly fastZero = true;
  readonly #options: TrialDiskOptions;
  readonly #overlay = new DiskOverlay();
  readonly #view: DiskView;
  #moment: DiskMoment | undefined;
  #patching: Promise<void> = Promise.resolve();
  #failure: unknown;

  constructor(options: TrialDiskOptions) {
    this.#options = options;
    const read = (offset: number, into: Uint8Array) => (this.#moment ?? options.image).read(offset, into);
    const extents = async (_: number, lengthBytes: number) => [{ lengthBytes, hole: false, zero: false }];
    this.#view = new DiskView(this.#overlay, { read, extents });
  }

  get sizeBytes(): number {
    return this.#options.image.sizeBytes;
  }

  begin(moment: DiskMoment): void {
    this.#moment = moment;
  }

  /** @throws what a request has failed with: what was seen of the guest since then proves nothing */
  assertSound(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    await this.#try(() => this.#view.read(offset, into));
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    await this.#try(async () => {
      this.#assertRoom(bytes.length);
      const parts = aligned(offset, bytes.length, { diskBytes: this.sizeBytes });
      const start = parts.firstBlock * BLOCK_BYTES - offset;
      if (parts.count > 0)
        this.#overlay.open.put(
          parts.firstBlock,
          ownMemory(bytes.subarray(start, start + parts.count * BLOCK_BYTES)),
        );
      await this.#patch(parts, ({ at, lengthBytes }) =>
        bytes.subarray(at - offset, at - offset + lengthBytes),
      );
    });
  }

  async zero(offset: number, lengthBytes: number, { mayPunch }: ZeroOptions): Promise<void> {
    await this.#try(async () => {
      const parts = aligned(offset, lengthBytes, { diskBytes: this.sizeBytes });
      await inZeroSteps(parts, (block, count) => {
        this.#assertRoom(count * BLOCK_COST_BYTES);
        this.#overlay.open.putZeros(block, count, { mayPunch });
      });
      await this.#patch(parts, (edge) => new Uint8Array(edge.lengthBytes));
    });
  }

  /** The content does not matter: it stays. */
  async trim(): Promise<void> {}

  /** Nothing of it survives the trial. */
  async flush(): Promise<void> {}

  extents(offset: number, lengthBytes: number): Promise<DiskExtent[]> {
    return this.#view.extents(offset, lengthBytes);
  }

  async close(): Promise<void> {}

  /** What is no whole block, one after the other: two may be of the same block. */
  async #patch({ edges }: Aligned, bytesOf: (edge: Aligned['edges'][number]) => Uint8Array): Promise<void> {
    if (edges.length === 0) return;
    const patching = this.#patching.then(async () => {
      for (const edge of edges) {
        const block = Math.floor(edge.at / BLOCK_BYTES);
        const start = block * BLOCK_BYTES;
        const whole = new Uint8Array(BLOCK_BYTES);
        await this.#view.read(start, whole.subarray(0, Math.min(BLOCK_BYTES, this.sizeBytes - start)));
        whole.set(bytesOf(edge), edge.at - start);
        this.#overlay.open.put(block, whole);
      }
    });
    this.#patching = patching.catch(() => {});
    await patching;
  }

  #assertRoom(bytes: number): void {
    const { writtenBytesMax } = this.#options;
    if (this.#overlay.heldBytes + bytes <= writtenBytesMax) return;
    throw new BlockError('BLOCK_TRIAL_FULL', `the trial has written more than ${writtenBytesMax} bytes`, {
      hint: 'Try the failover when the guest writes less.',
    });
  }

  async #try<Result>(work: () => Promise<Result>): Promise<Result> {
    try {
      return await work();
    } catch (thrown) {
      this.#failure ??= thrown;
      throw thrown;
    }
  }
}
