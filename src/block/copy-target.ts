import { statSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { dirname } from 'node:path';
import { copyForeign, type DiskCopyOptions } from './disk-journal.ts';
import { FileDevice } from './file-device.ts';
import { openJournalFile } from './journal-file.ts';
import { JournaledImage } from './journaled-image.ts';

export interface CopyTarget {
  readonly image: JournaledImage;
  /** Nothing but zeros is in it. */
  readonly isNew: boolean;
}

/**
 * Opens the raw image that becomes a copy of a disk, or makes it. One that is there already is taken only where its journal
 * says that it is an older copy of the same disk; its content stays, so that only what differs has to be sent.
 * @throws BlockError BLOCK_COPY_FOREIGN, BLOCK_JOURNAL_UNFIT, BLOCK_TOKEN_STALE: nothing was written; Error of Node
 */
export async function openCopyTarget(
  { imagePath, journalPath }: { readonly imagePath: string; readonly journalPath: string },
  of: Omit<DiskCopyOptions, 'isNew'>,
): Promise<CopyTarget> {
  const image = statSync(imagePath, { throwIfNoEntry: false });
  const isNew = image === undefined;
  if (!isNew && !image.isFile()) throw copyForeign(`${imagePath} is no plain file`);
  if (!isNew && statSync(journalPath, { throwIfNoEntry: false }) === undefined)
    throw copyForeign(`${imagePath} is no copy of any disk`);
  const journal = await openJournalFile(journalPath);
  try {
    const openDevice = async () => {
      await sized(imagePath, { sizeBytes: of.diskBytes, isNew });
      const device = await FileDevice.open(imagePath);
      if (device.tryLock()) return device;
      await device.close();
      throw copyForeign(`${imagePath} is used by somebody`);
    };
    return { image: await JournaledImage.openCopy({ journal, openDevice }, { ...of, isNew }), isNew };
  } catch (cause) {
    await journal.close();
    throw cause;
  }
}

async function sized(
  path: string,
  { sizeBytes, isNew }: { sizeBytes: number; isNew: boolean },
): Promise<void> {
  await using file = await open(path, isNew ? 'wx+' : 'r+', 0o600);
  if ((await file.stat()).size !== sizeBytes) await file.truncate(sizeBytes);
  await file.sync();
  if (!isNew) return;
  // The name has to be on the disk as well.
  await using folder = await open(dirname(path), 'r');
  await folder.sync();
}
