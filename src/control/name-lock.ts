import { closeSync, constants, fstatSync, openSync, statSync } from 'node:fs';
import type { Clock } from '../base/clock.ts';
import { tryLockExclusive } from '../linux/file.ts';
import { errnoNameOf } from '../linux/linux-error.ts';
import { KeeperError } from './keeper-error.ts';
import { readRecord } from './keeper-record.ts';
import { makeOwnDirectory, refusedDirectory } from './own-directory.ts';
import { runPaths } from './run-paths.ts';

/** `isLocked` takes a free lock for a moment; a keeper that comes just then tries again. */
const LOCK_TRIES = 10;
const LOCK_RETRY_MS = 20;

/** The right to keep the VM of a name: two locks, because two run directories may share one memory file system. */
export class NameLock implements Disposable {
  readonly #fds: readonly number[];
  #held = true;

  private constructor(fds: readonly number[]) {
    this.#fds = fds;
  }

  /**
   * Makes the two directories of a VM and locks them.
   * @throws KeeperError KEEPER_NAME_TAKEN, KEEPER_DIRECTORY_REFUSED
   */
  static async take(
    name: string,
    { clock, othersMayPass }: { clock: Clock; othersMayPass: boolean },
  ): Promise<NameLock> {
    for (let tries = 0; tries < LOCK_TRIES; tries += 1) {
      if (tries > 0) await clock.sleep(LOCK_RETRY_MS);
      const fds = lockBoth(name, othersMayPass);
      if (fds !== undefined) return new NameLock(fds);
    }
    const record = readRecord(runPaths(name).record);
    const keeperPid = record === 'absent' ? undefined : record?.keeper.pid;
    throw new KeeperError('KEEPER_NAME_TAKEN', `a VM named ${name} is running already`, {
      hint: `Choose another name, or end it with \`understudy stop ${name}\`. Run directories of other users count too.`,
      facts: { name, ...(keeperPid !== undefined && { keeperPid }) },
    });
  }

  get held(): boolean {
    return this.#held;
  }

  [Symbol.dispose](): void {
    if (!this.#held) return;
    this.#held = false;
    for (const fd of this.#fds) closeSync(fd);
  }
}

function lockBoth(name: string, othersMayPass: boolean): readonly number[] | undefined {
  const { directory, memory, lock } = runPaths(name);
  makeOwnDirectory(directory, { othersMayPass });
  const fd = lockedFile(lock, constants.O_RDWR | constants.O_CREAT);
  if (fd === undefined) return undefined;
  try {
    makeOwnDirectory(memory, { othersMayPass });
    const memoryFd = lockedFile(memory, constants.O_RDONLY | constants.O_DIRECTORY);
    if (memoryFd !== undefined) return [fd, memoryFd];
  } catch (thrown) {
    closeSync(fd);
    throw thrown;
  }
  closeSync(fd);
  return undefined;
}

/** The locked file, or undefined when another holds it or has just removed it. */
function lockedFile(path: string, flags: number): number | undefined {
  let fd: number;
  try {
    fd = openSync(path, flags | constants.O_NOFOLLOW, 0o600);
  } catch (thrown) {
    if (errnoNameOf(thrown) === 'ENOENT') return undefined;
    throw refusedDirectory(`cannot open ${path}`, { cause: thrown });
  }
  // Whoever held the lock before may have removed the file: then the next one would lock another.
  if (tryLockExclusive(fd) && statSync(path, { throwIfNoEntry: false })?.ino === fstatSync(fd).ino) return fd;
  closeSync(fd);
  return undefined;
}

/** Whether a keeper of this name lives. */
export function isLocked(name: string): boolean {
  let fd: number;
  try {
    fd = openSync(runPaths(name).lock, 'r+');
  } catch {
    return false;
  }
  try {
    return !tryLockExclusive(fd);
  } finally {
    closeSync(fd);
  }
}
