import { MIB } from '../base/units.ts';
import type { JournaledImage } from '../block/journaled-image.ts';
import { TrialDisk } from '../block/trial-disk.ts';
import type { EpochId } from '../epoch/epoch-id.ts';
import { type ServedDisks, type ServeOptions, serveExports } from './served-disks.ts';

/** What the guest that is tried out may write to a disk, and what of a disk may be overwritten meanwhile. */
const TRIAL_BYTES_MAX = 64 * MIB;

/** A disk of a shadow. */
export interface TriedDisk {
  readonly name: string;
  readonly image: JournaledImage;
  /** Resolves when this epoch, which was committed, is in the image. */
  readonly written: (epoch: EpochId) => Promise<void>;
}

/** The disks of a shadow for a QEMU that is tried out: as of one epoch, and with its own writes, which vanish with this. */
export class TrialDisks implements ServedDisks, Disposable {
  readonly #tried: readonly { readonly from: TriedDisk; readonly disk: TrialDisk }[];

  constructor(disks: readonly TriedDisk[]) {
    this.#tried = disks.map((from) => ({
      from,
      disk: new TrialDisk({ image: from.image.device, writtenBytesMax: TRIAL_BYTES_MAX }),
    }));
  }

  get names(): string[] {
    return this.#tried.map(({ from }) => from.name);
  }

  async serve(options: ServeOptions): Promise<AsyncDisposable> {
    const exports = this.#tried.map(({ from, disk }) => ({ name: from.name, device: disk, readOnly: false }));
    return await serveExports(exports, options);
  }

  /** The disks are as of this epoch, the last that was committed: nothing newer has been committed to them when this is called. */
  begin(epoch: EpochId): void {
    for (const { from, disk } of this.#tried) {
      disk.begin(from.image.holdMoment(epoch, { keptBytesMax: TRIAL_BYTES_MAX }));
    }
  }

  /** Resolves when they may be read. @throws BlockError */
  async ready(epoch: EpochId): Promise<void> {
    for (const { from } of this.#tried) await from.written(epoch);
  }

  /** @throws BlockError: a disk could not be what the guest took it for */
  assertSound(): void {
    for (const { disk } of this.#tried) disk.assertSound();
  }

  /** Epochs are written as ever from now on. Whoever still reads is told that there is nothing to be seen. */
  [Symbol.dispose](): void {
    for (const { from } of this.#tried) from.image.forgetMoment();
  }
}
