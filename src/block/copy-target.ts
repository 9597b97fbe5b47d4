import { statSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { dirname } from 'node:path';
import { errnoNameOf, LinuxError } from '../linux/linux-error.ts';
import type { BlockDevice } from './block-device.ts';
import { copyFailed } from './disk-failures.ts';
import { copyForeign, type DiskCopyOptions } from './disk-journal.ts';
import { FileDevice } from './file-device.ts';
import { openJournalFile } from './journal-file.ts';
import { JournaledImage } from './journaled-image.ts';

export interface CopyTarget {
  readonly image: JournaledImage;
  /** Nothing but zeros is in it. */
  readonly isNew: boolean;
}

export interface TargetFormat {
  /** Looks at an image that is there, which belongs to a copy. Throws where it cannot be used. */
  readonly check: () => void;
  /** Makes the image if it is new, and opens it for nobody else. */
  readonly open: (isNew: boolean) => Promise<OpenTarget>;
}

export interface OpenTarget {
  readonly device: BlockDevice;
  /** Gives the image the size of the disk, where its format allows that. Not before its journal says that it is no whole copy. */
  readonly resize: () => Promise<void>;
}

export interface TargetPlace {
  readonly imagePath: string;
  readonly journalPath: string;
  /** Undefined: raw. */
  readonly format?: TargetFormat | undefined;
}

/**
 * Opens the image that becomes a copy of a disk, or makes it. One that is there already is taken only where its journal
 * says that it is an older copy of the same disk; its content stays, so that only what differs has to be sent.
 * @throws BlockError BLOCK_COPY_FOREIGN, BLOCK_JOURNAL_UNFIT, BLOCK_TOKEN_STALE: nothing was written; BLOCK_DISK_FAILED;
 * Error of Node; what `format` throws
 */
export async function openCopyTarget(
  paths: TargetPlace,
  of: Omit<DiskCopyOptions, 'isNew'>,
): Promise<CopyTarget> {
  try {
    return await openTarget(paths, of);
  } catch (cause) {
    throw isOfStorage(cause) ? copyFailed(cause) : cause;
  }
}

async function openTarget(
  { imagePath, journalPath, ...place }: TargetPlace,
  of: Omit<DiskCopyOptions, 'isNew'>,
): Promise<CopyTarget> {
  const format = place.format ?? rawTarget(imagePath, of);
  const found = statSync(imagePath, { throwIfNoEntry: false });
  if (found !== undefined && !found.isFile()) throw copyForeign(`${imagePath} is no plain file`);
  const isNew = found === undefined;
  if (!isNew && statSync(journalPath, { throwIfNoEntry: false }) === undefined)
    throw copyForeign(`${imagePath} is no copy of any disk`);
  await using opening = new AsyncDisposableStack();
  const openImage = async () => {
    const target = await format.open(isNew);
    opening.defer(() => target.device.close());
    return target;
  };
  if (!isNew) format.check();
  // Before its journal says that it is of no use until the copy is whole: somebody may be using it.
  const present = isNew ? undefined : await openImage();
  const journal = await openJournalFile(journalPath);
  opening.defer(() => journal.close());
  if (!journal.tryLock()) throw copyForeign(`${imagePath} is being copied already`);
  const openDevice = async () => {
    const { device, resize } = present ?? (await openImage());
    await resize();
    return device;
  };
  const image = await JournaledImage.openCopy({ journal, openDevice }, { ...of, isNew });
  await image.assertWritable();
  opening.move();
  return { image, isNew };
}

/** What a disk says that is full or broken; all else is a matter of names and permissions. */
const OF_STORAGE: readonly (string | undefined)[] = [
  'EIO',
  'ENOSPC',
  'EDQUOT',
  'EROFS',
  'ENXIO',
  'EREMOTEIO',
];

function isOfStorage(cause: unknown): boolean {
  return OF_STORAGE.includes(cause instanceof LinuxError ? cause.errnoName : errnoNameOf(cause));
}

function rawTarget(path: string, { diskBytes }: Pick<DiskCopyOptions, 'diskBytes'>): TargetFormat {
  return {
    check: () => {},
    open: async (isNew) => {
      const device = await (isNew ? created(path) : FileDevice.open(path));
      if (device.tryLock()) return { device, resize: () => device.resize(diskBytes) };
      await device.close();
      throw copyForeign(`${path} is used by somebody`);
    },
  };
}

async function created(path: string): Promise<FileDevice> {
  const device = await FileDevice.create(path);
  // The name has to be on the disk as well.
  await using folder = await open(dirname(path), 'r');
  await folder.sync();
  return device;
}
