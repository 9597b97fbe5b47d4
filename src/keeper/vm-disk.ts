import { existsSync, statSync } from 'node:fs';
import { MIB } from '../base/units.ts';
import type { BlockError } from '../block/block-error.ts';
import { EpochDisk } from '../block/epoch-disk.ts';
import { journalPathOf, openJournalFile } from '../block/journal-file.ts';
import { JournaledImage } from '../block/journaled-image.ts';
import { ReadHints } from '../block/read-hints.ts';
import type { SpecDisk } from '../config/spec-disks.ts';
import type { LeftWrites } from '../replication/left-writes.ts';
import { openLower } from './lower-device.ts';
import type { QcowLayerOptions } from './qcow-layer.ts';

/** What a disk may hold in memory for its epoch: a cut is asked for when half of it is taken. */
export const HELD_BYTES_MAX = 64 * MIB;

export interface VmDiskOptions extends Omit<QcowLayerOptions, 'disk'> {
  readonly token: () => number;
  /** Where the VM goes on from the shadow of a killed keeper: nothing newer than its last epoch happened. */
  readonly left: LeftWrites | undefined;
  readonly onCutWanted: () => void;
  readonly onFailed: (path: string, failure: BlockError) => void;
  readonly onUnreadable: (path: string, failure: BlockError) => void;
}

/** A disk that commits with the epochs of its VM, and all that is below it. */
export class VmDisk implements AsyncDisposable {
  readonly disk: SpecDisk;
  readonly epochs: EpochDisk;
  readonly image: JournaledImage;
  /** What its guest reads, while there is somebody to be told of it. */
  readonly reads: ReadHints;
  readonly #owned: AsyncDisposableStack;

  /**
   * The image is as of the last epoch, or as the guest left it, and nobody else can use it, when this resolves.
   * @throws BlockError, QemuError QEMU_DISK_IN_USE, errors of Node
   */
  static async open(disk: SpecDisk, options: VmDiskOptions): Promise<VmDisk> {
    await using opening = new AsyncDisposableStack();
    const device = await openLower({ ...options, disk });
    opening.defer(() => device.close());
    const { left, token, onCutWanted } = options;
    const journal = await openJournalFile(journalPathOf(disk.disk.path));
    const image = await JournaledImage.open({ device, journal, upTo: left?.committed });
    for (const { epoch, disks } of left?.epochs ?? []) {
      const writes = disks.find((written) => written.disk === disk.id)?.writes ?? [];
      if (epoch <= image.position.epoch || writes.length === 0) continue;
      await image.apply([{ epoch, writes, token: Math.max(token(), image.position.token) }]);
    }
    // A VM that began anew counts its tokens anew as well.
    const tokenBefore = image.position.token;
    const epochs = new EpochDisk({
      image,
      mode: 'alone',
      token: () => Math.max(token(), tokenBefore),
      heldBytesMax: HELD_BYTES_MAX,
      onCutWanted,
      ...namedListener(disk, options),
    });
    opening.use(epochs);
    opening.defer(() => settled(epochs));
    return new VmDisk({ disk, epochs, image, owned: opening.move() });
  }

  /** The copy of a disk of a VM that acts elsewhere, for the time when it acts here. `image` belongs to it only then. */
  static ofCopy(
    { disk, image }: { readonly disk: SpecDisk; readonly image: JournaledImage },
    options: Pick<VmDiskOptions, 'token' | 'onCutWanted' | 'onFailed' | 'onUnreadable'>,
  ): VmDisk {
    const epochs = new EpochDisk({
      ...{ image, mode: 'alone', heldBytesMax: HELD_BYTES_MAX, onCutWanted: options.onCutWanted },
      token: () => Math.max(options.token(), image.position.token),
      ...namedListener(disk, options),
    });
    const owned = new AsyncDisposableStack();
    owned.use(epochs);
    owned.defer(() => settled(epochs));
    return new VmDisk({ disk, epochs, image, owned });
  }

  /** Brings an image that QEMU is going to open itself up to what its journal says, if there is one. @throws as `open` */
  static async recover(disk: SpecDisk, options: VmDiskOptions): Promise<void> {
    if (!existsSync(journalPathOf(disk.disk.path))) return;
    await using _recovered = await VmDisk.open(disk, options);
  }

  private constructor(parts: {
    disk: SpecDisk;
    epochs: EpochDisk;
    image: JournaledImage;
    owned: AsyncDisposableStack;
  }) {
    this.disk = parts.disk;
    this.epochs = parts.epochs;
    this.image = parts.image;
    this.#owned = parts.owned;
    const { sizeBytes: diskBytes } = parts.epochs;
    this.reads = new ReadHints({ diskBytes, nowMs: () => performance.now() });
  }

  get journalBytes(): number {
    return statSync(journalPathOf(this.disk.disk.path), { throwIfNoEntry: false })?.size ?? 0;
  }

  /** What is committed is in the image for good then; of a disk without a shadow, all. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#owned[Symbol.asyncDispose]();
  }
}

function namedListener(
  { disk: { path } }: SpecDisk,
  { onFailed, onUnreadable }: Pick<VmDiskOptions, 'onFailed' | 'onUnreadable'>,
) {
  return {
    onFailed: (failure: BlockError) => onFailed(path, failure),
    onUnreadable: (failure: BlockError) => onUnreadable(path, failure),
  };
}

/** Of one that has failed, somebody was told that already. */
async function settled(epochs: EpochDisk): Promise<void> {
  if (!epochs.hasFailed) await epochs.flush();
}
