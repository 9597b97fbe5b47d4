import { constants, existsSync, realpathSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { tryLockBytes } from '../linux/byte-lock.ts';
import { LinuxError } from '../linux/linux-error.ts';

/** What a journal needs of a file. What was written may be lost, in any part and order, until `sync` has resolved. */
export interface JournalFile {
  sizeBytes(): Promise<number>;
  /** All of `into`. Rejects where the file ends before. */
  read(offset: number, into: Uint8Array): Promise<void>;
  write(offset: number, parts: readonly Uint8Array[]): Promise<void>;
  truncate(sizeBytes: number): Promise<void>;
  sync(): Promise<void>;
  close(): Promise<void>;
}

interface LockableJournal extends JournalFile {
  /** Until it is closed no other copy is made with it. False: one is. */
  tryLock(): boolean;
}

/** writev(2) takes no more at a time. */
const PARTS_MAX = 1024;
const JOURNAL_MODE = 0o600;

/**
 * Where the journal of an image lies, by whatever name that was given; also of one that is yet to be made.
 * @throws Error of Node: there is no such folder
 */
export function journalPathOf(imagePath: string): string {
  const image = existsSync(imagePath)
    ? realpathSync(imagePath)
    : join(realpathSync(dirname(imagePath)), basename(imagePath));
  return `${image}.journal`;
}

/** Opens a journal, or makes an empty one whose name is on disk too. @throws Error of Node */
export async function openJournalFile(path: string): Promise<LockableJournal> {
  let handle: FileHandle;
  try {
    // Whoever may write to the folder must not make us write to another file.
    handle = await open(path, constants.O_RDWR | constants.O_NOFOLLOW);
  } catch (thrown) {
    if ((thrown as NodeJS.ErrnoException).code !== 'ENOENT') throw thrown;
    handle = await open(path, 'wx+', JOURNAL_MODE);
    await using folder = await open(dirname(path), 'r');
    await folder.sync();
  }
  return {
    sizeBytes: async () => (await handle.stat()).size,
    read: (offset, into) => readWhole(handle, into, { offset }),
    write: (offset, parts) => writeWhole(handle, parts, { offset }),
    truncate: (sizeBytes) => handle.truncate(sizeBytes),
    sync: () => handle.datasync(),
    close: () => handle.close(),
    tryLock: () => tryLockBytes(handle.fd, 0, { lengthBytes: 1 }),
  };
}

async function readWhole(
  handle: FileHandle,
  into: Uint8Array,
  { offset }: { offset: number },
): Promise<void> {
  for (let done = 0; done < into.length; ) {
    const { bytesRead } = await handle.read(into, done, into.length - done, offset + done);
    if (bytesRead === 0) {
      throw new LinuxError('LINUX_FILE_ENDED', `the file ends at byte ${offset + done}`, { call: 'pread' });
    }
    done += bytesRead;
  }
}

async function writeWhole(
  handle: FileHandle,
  parts: readonly Uint8Array[],
  { offset }: { offset: number },
): Promise<void> {
  let position = offset;
  const left = parts.filter((part) => part.length > 0);
  while (left.length > 0) {
    let { bytesWritten } = await handle.writev(left.slice(0, PARTS_MAX), position);
    position += bytesWritten;
    while (bytesWritten > 0 && left[0] !== undefined) {
      const part = left[0];
      if (part.length <= bytesWritten) left.shift();
      else left[0] = part.subarray(bytesWritten);
      bytesWritten -= Math.min(bytesWritten, part.length);
    }
  }
}
