import {
  closeSync,
  constants,
  fchmodSync,
  fstatSync,
  openSync,
  readdirSync,
  rmdirSync,
  rmSync,
} from 'node:fs';
import { join } from 'node:path';
import { makeDirectory } from '../base/make-directory.ts';
import { errnoNameOf } from '../linux/linux-error.ts';
import { KeeperError } from './keeper-error.ts';

/** In a place that all may write to, such as /dev/shm, a directory of this name may be somebody else's. */
export function makeOwnDirectory(path: string, { othersMayPass }: { othersMayPass: boolean }): void {
  try {
    makeDirectory(path, { mode: 0o700 });
    claim(path, othersMayPass);
  } catch (thrown) {
    if (thrown instanceof KeeperError) throw thrown;
    throw refusedDirectory(`cannot make ${path}`, { cause: thrown });
  }
}

/** What is asked and what is changed is one and the same directory, and never what a link points to. */
function claim(path: string, othersMayPass: boolean): void {
  const fd = openSync(path, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
  try {
    const { uid, mode } = fstatSync(fd);
    if (uid !== process.geteuid?.()) throw refusedDirectory(`${path} belongs to another user`);
    if ((mode & 0o022) !== 0) throw refusedDirectory(`${path} can be written by others`);
    if (othersMayPass) fchmodSync(fd, (mode & 0o7777) | 0o011);
  } finally {
    closeSync(fd);
  }
}

export function refusedDirectory(
  message: string,
  details: { hint?: string; cause?: unknown } = {},
): KeeperError {
  const errno = errnoNameOf(details.cause);
  return new KeeperError('KEEPER_DIRECTORY_REFUSED', errno === undefined ? message : `${message}: ${errno}`, {
    hint: 'Set UNDERSTUDY_RUN_DIR and UNDERSTUDY_MEMORY_DIR to directories that are yours alone.',
    ...details,
  });
}

/** Names of the directories in `path`; none if it is not there. */
export function directoriesIn(path: string): string[] {
  try {
    return readdirSync(path, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => entry.name);
  } catch (thrown) {
    if (errnoNameOf(thrown) === 'ENOENT') return [];
    throw refusedDirectory(`cannot read ${path}`, { cause: thrown });
  }
}

export function entriesOf(path: string): string[] {
  try {
    return readdirSync(path);
  } catch (thrown) {
    if (errnoNameOf(thrown) === 'ENOENT') return [];
    throw thrown;
  }
}

/** Removes all but the entries named. */
export function emptyDirectory(path: string, keep: readonly string[]): void {
  for (const entry of entriesOf(path)) {
    if (!keep.includes(entry)) rmSync(join(path, entry), { recursive: true, force: true });
  }
}

export function removeIfEmpty(path: string): void {
  try {
    rmdirSync(path);
  } catch (thrown) {
    const errno = errnoNameOf(thrown);
    if (errno === undefined || !['ENOENT', 'ENOTEMPTY', 'EBUSY'].includes(errno)) throw thrown;
  }
}
