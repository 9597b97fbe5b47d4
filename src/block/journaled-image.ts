import { assert } from '../base/assert.ts';
import type { BlockDevice } from './block-device.ts';
import { BlockError } from './block-error.ts';
import { DiskJournal } from './disk-journal.ts';
import type { DiskWrite } from './disk-write.ts';
import type { DiskPosition, JournalEntry } from './journal-entry.ts';
import type { JournalFile } from './journal-file.ts';

/** Writes to an image at a time. */
const WRITES_AT_ONCE = 16;

interface ApplyOptions {
  /** Called when the entries survive a loss of power, before they are in the image. */
  readonly onDurable?: () => void;
}

/**
 * An image that only ever changes from one epoch to the next, whatever is lost on the way. On the primary's side it stands
 * below the disk; on the shadow's side it receives what the disk there committed.
 */
export class JournaledImage implements AsyncDisposable {
  readonly device: BlockDevice;
  readonly #journal: DiskJournal;
  #applying = false;
  #failure: unknown;

  private constructor(device: BlockDevice, journal: DiskJournal) {
    this.device = device;
    this.#journal = journal;
  }

  /**
   * Brings the image up to the last epoch that was committed to its journal. Both belong to the result, which closes them.
   * @throws BlockError BLOCK_JOURNAL_UNFIT; what device and file throw
   */
  static async open(parts: {
    readonly device: BlockDevice;
    readonly journal: JournalFile;
  }): Promise<JournaledImage> {
    const { device } = parts;
    const journal = await DiskJournal.open(parts.journal, { diskBytes: device.sizeBytes });
    for await (const { writes } of journal.recover()) await writeAll(device, writes);
    // Also where nothing was found: the last writes to it may have been cut off before their sync.
    await device.flush();
    await journal.restart();
    return new JournaledImage(device, journal);
  }

  /** The epoch that it holds. Writes since then that were flushed by the guest may be in it too. */
  get position(): DiskPosition {
    const { epoch, token } = this.#journal.head;
    return { epoch, token };
  }

  /**
   * Epochs in their order. Resolves when they are in the image for good. After a failure nothing more is taken: what of it
   * is on the disk nobody knows, but the journal does at the next start.
   * @throws BlockError BLOCK_TOKEN_STALE, BLOCK_EPOCH_ORDER: nothing was written; what device and file throw
   */
  async apply(entries: readonly JournalEntry[], { onDurable }: ApplyOptions = {}): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure;
    assert(!this.#applying, 'one application at a time');
    this.#refuseOld(entries);
    this.#applying = true;
    try {
      await this.#journal.append(entries);
      onDurable?.();
      // One after the other: a block may be in more than one of them.
      for (const { writes } of entries) await writeAll(this.device, writes);
      await this.device.flush();
      await this.#journal.trim();
    } catch (thrown) {
      this.#failure = thrown;
      throw thrown;
    } finally {
      this.#applying = false;
    }
  }

  async close(): Promise<void> {
    assert(!this.#applying, 'an image is closed when nothing is being applied');
    // Whoever opens the image without us must not find something left to do that is done.
    if (this.#failure === undefined) await this.#journal.restart();
    await this.#journal.close();
    await this.device.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #refuseOld(entries: readonly JournalEntry[]): void {
    let last = this.position;
    for (const entry of entries) {
      if (entry.token < last.token) {
        throw new BlockError('BLOCK_TOKEN_STALE', `token ${entry.token} is older than ${last.token}`, {
          hint: 'Another side has taken over since. Nothing was written.',
          facts: { token: entry.token, known: last.token },
        });
      }
      if (entry.epoch < last.epoch) {
        throw new BlockError('BLOCK_EPOCH_ORDER', `epoch ${entry.epoch} is older than ${last.epoch}`, {
          hint: 'Nothing was written. The disk has to be synchronised anew.',
          facts: { epoch: entry.epoch, known: last.epoch },
        });
      }
      last = entry;
    }
  }
}

/** Writes of one epoch do not overlap, so that their order does not matter. */
async function writeAll(device: BlockDevice, writes: readonly DiskWrite[]): Promise<void> {
  const left = writes.values();
  const work = async () => {
    for (const write of left) {
      if (write.kind === 'data') await device.write(write.offset, write.bytes);
      else await device.zero(write.offset, write.lengthBytes, { mayPunch: write.mayPunch });
    }
  };
  const workers = Array.from({ length: Math.min(WRITES_AT_ONCE, writes.length) }, work);
  // After a failure too, nothing is left running that could reach a descriptor which has another meaning by then.
  const failed = (await Promise.allSettled(workers)).find(({ status }) => status === 'rejected');
  if (failed?.status === 'rejected') throw failed.reason;
}
