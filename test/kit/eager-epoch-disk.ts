import { MIB } from '../../src/base/units.ts';
import { EpochDisk } from '../../src/block/epoch-disk.ts';
import { FileDevice } from '../../src/block/file-device.ts';
import { openJournalFile } from '../../src/block/journal-file.ts';
import { JournaledImage } from '../../src/block/journaled-image.ts';
import { epochId } from '../../src/epoch/epoch-id.ts';

/**
 * A disk in sync whose epochs are cut and committed whenever it asks for that: with so little room, every few writes. For tools
 * that know nothing of epochs.
 */
export class EagerEpochDisk implements AsyncDisposable {
  readonly disk: EpochDisk;
  /** Epochs that were committed. */
  #epochs = 0;
  #isCutting = false;

  private constructor(image: JournaledImage, onFailed: (failure: unknown) => void) {
    this.disk = new EpochDisk({
      image,
      mode: 'in-sync',
      token: () => 1,
      heldBytesMax: 4 * MIB,
      onFailed,
      // Not within the call, as no VM is: whoever is let through by it may ask for the next one.
      onCutWanted: () => {
        if (!this.#isCutting) setImmediate(() => this.#cut());
        this.#isCutting = true;
      },
    });
  }

  static async open(path: string, onFailed: (failure: unknown) => void): Promise<EagerEpochDisk> {
    const image = await JournaledImage.open({
      device: await FileDevice.open(path),
      journal: await openJournalFile(`${path}.journal`),
    });
    return new EagerEpochDisk(image, onFailed);
  }

  get epochs(): number {
    return this.#epochs;
  }

  /** What was written so far is an epoch, and committed. */
  commit(): void {
    const epoch = epochId(++this.#epochs);
    this.disk.seal(epoch);
    this.disk.commit(epoch);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.disk.close();
  }

  #cut(): void {
    this.#isCutting = false;
    this.disk.letThrough();
    this.commit();
  }
}
