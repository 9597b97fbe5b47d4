import { assert } from '../base/assert.ts';
import type { EpochId } from '../epoch/epoch-id.ts';
import type { BlockDevice } from './block-device.ts';
import { BlockError } from './block-error.ts';
import { type DiskCopyOptions, DiskJournal, tokenStale } from './disk-journal.ts';
import { DiskMoment } from './disk-moment.ts';
import type { DiskWrite } from './disk-write.ts';
import type { DiskPosition, JournalEntry } from './journal-entry.ts';
import type { JournalFile } from './journal-file.ts';

/** Writes to an image at a time. */
const WRITES_AT_ONCE = 16;

interface CopyParts {
  /** Called when the journal says that the image is a copy: it may be made, or changed in size, only now. */
  readonly openDevice: () => Promise<BlockDevice>;
  readonly journal: JournalFile;
}

interface ApplyOptions {
  /** Called when the entries survive the end of this process. */
  readonly onWritten?: () => void;
  /** Called when the entries survive a loss of power, before they are in the image. False: they never happened. */
  readonly onDurable?: () => Promise<boolean> | undefined;
}

interface OpenOptions {
  readonly device: BlockDevice;
  readonly journal: JournalFile;
  /** Nothing newer than this epoch happened: where the VM goes on from that one. */
  readonly upTo?: EpochId | undefined;
}

/**
 * An image that only ever changes from one epoch to the next, whatever is lost on the way. On the primary's side it stands
 * below the disk; on the shadow's side it receives what the disk there committed.
 */
export class JournaledImage implements AsyncDisposable {
  readonly device: BlockDevice;
  readonly #journal: DiskJournal;
  #applying = false;
  #moment: DiskMoment | undefined;
  #failure: unknown;
  #closed: Promise<void> | undefined;

  private constructor(device: BlockDevice, journal: DiskJournal) {
    this.device = device;
    this.#journal = journal;
  }

  /**
   * Brings the image up to the last epoch that was committed to its journal. Both belong to the result, which closes them.
   * @throws BlockError BLOCK_JOURNAL_UNFIT, BLOCK_COPY_PARTIAL, BLOCK_ROLLBACK_TOO_LATE; what device and file throw
   */
  static async open({ upTo, ...parts }: OpenOptions): Promise<JournaledImage> {
    const { device } = parts;
    const journal = await DiskJournal.open(parts.journal, { diskBytes: device.sizeBytes });
    if (upTo !== undefined && journal.head.epoch > upTo) throw rollbackTooLate(upTo);
    for await (const { writes } of journal.recover({ upTo })) await writeAll(device, writes);
    if (journal.isPartial) throw copyPartial();
    // Also where nothing was found: the last writes to it may have been cut off before their sync.
    await device.flush();
    await journal.restart();
    return new JournaledImage(device, journal);
  }

  /**
   * Makes the image a copy in the making, to be written through `device`. The first epoch that is applied completes it;
   * until then nobody opens it for anything else.
   * @throws BlockError BLOCK_JOURNAL_UNFIT, BLOCK_COPY_FOREIGN, BLOCK_TOKEN_STALE: nothing was written
   */
  static async openCopy(
    { openDevice, journal: file }: CopyParts,
    options: DiskCopyOptions,
  ): Promise<JournaledImage> {
    const journal = await DiskJournal.openCopy(file, options);
    return new JournaledImage(await openDevice(), journal);
  }

  /** That a copy can be made at all is found out before much has been sent for it. @throws what the file throws */
  async assertWritable(): Promise<void> {
    await this.#journal.assertWritable();
  }

  /** Which disk it is: the same for all its copies. */
  get identity(): string {
    return this.#journal.identity;
  }

  /** A copy in the making, which the next epoch completes. */
  get isPartial(): boolean {
    return this.#journal.isPartial;
  }

  /** The epoch that it holds. Writes since then that were flushed by the guest may be in it too. */
  get position(): DiskPosition {
    const { epoch, token } = this.#journal.head;
    return { epoch, token };
  }

  /**
   * Epochs in their order. Resolves when they are in the image for good, with false when `onDurable` withdrew them. After a failure nothing more is taken: what of it
   * is on the disk nobody knows, but the journal does at the next start.
   * @throws BlockError BLOCK_TOKEN_STALE, BLOCK_EPOCH_ORDER: nothing was written; what device and file throw
   */
  async apply(
    entries: readonly JournalEntry[],
    { onDurable, onWritten }: ApplyOptions = {},
  ): Promise<boolean> {
    if (this.#failure !== undefined) throw this.#failure;
    assert(!this.#applying, 'one application at a time');
    this.#refuseOld(entries);
    this.#applying = true;
    try {
      // What was copied until now is in no journal.
      if (this.isPartial) await this.device.flush();
      const { head } = this.#journal;
      await this.#journal.append(entries, { onWritten });
      if ((await onDurable?.()) === false) {
        await this.#journal.withdraw(head);
        return false;
      }
      // One after the other: a block may be in more than one of them.
      for (const { epoch, writes } of entries) {
        if (this.#moment !== undefined && epoch > this.#moment.epoch) await this.#moment.keep(writes);
        await writeAll(this.device, writes);
      }
      await this.device.flush();
      await this.#journal.trim();
      return true;
    } catch (thrown) {
      this.#failure = thrown;
      throw thrown;
    } finally {
      this.#applying = false;
    }
  }

  /** From now on nobody writes to it, or copies over it, with an older token, also after a loss of power. */
  async noteToken(token: number): Promise<void> {
    assert(!this.#applying, 'a token is noted while nothing is being applied');
    if (token > this.position.token) await this.#journal.noteToken(token);
  }

  /**
   * To be waited for before the image is written without its journal: what was applied is not applied again after that, over
   * what is newer, whenever the power fails.
   */
  async settle(): Promise<void> {
    this.#moment?.lose(undefined);
    await this.#journal.settle();
  }

  /**
   * The image as of this epoch, which is the last one that was committed: it may be read there once it has been written.
   * Until `forgetMoment` newer epochs take a little longer.
   */
  holdMoment(epoch: EpochId, options: { readonly keptBytesMax: number }): DiskMoment {
    assert(this.#moment === undefined, 'an image is looked at by one at a time');
    assert(this.position.epoch <= epoch, 'nothing newer has reached the image');
    this.#moment = new DiskMoment({ device: this.device, epoch, ...options });
    return this.#moment;
  }

  forgetMoment(): void {
    this.#moment?.lose(undefined);
    this.#moment = undefined;
  }

  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    assert(!this.#applying, 'an image is closed when nothing is being applied');
    await using closing = new AsyncDisposableStack();
    closing.defer(() => this.device.close());
    closing.defer(() => this.#journal.close());
    // Whoever opens the image without us must not find something left to do that is done.
    if (this.#failure === undefined) await this.#journal.restart();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #refuseOld(entries: readonly JournalEntry[]): void {
    let last = this.position;
    for (const entry of entries) {
      if (entry.token < last.token) throw tokenStale(entry.token, last.token);
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

/** An image that has what is to be taken back. */
export function rollbackTooLate(epoch: EpochId): BlockError {
  return new BlockError('BLOCK_ROLLBACK_TOO_LATE', `writes since epoch ${epoch} are in the image already`, {
    hint: 'Use the disk of the other side, or go on with this one as after a loss of power: boot the VM anew.',
  });
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

function copyPartial(): BlockError {
  return new BlockError('BLOCK_COPY_PARTIAL', 'the image is a copy of a disk that was not finished', {
    hint: 'Use the image of the host that it was copied from. A shadow on this host finishes the copy.',
  });
}
