import { closeSync, openSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { messageOf, UnderstudyError } from '../base/errors.ts';
import { tryLockExclusive } from '../linux/file.ts';
import { errnoNameOf } from '../linux/linux-error.ts';
import { UNFINISHED } from './chunk-writer.ts';
import { SnapshotError } from './snapshot-error.ts';
import { SnapshotFile, type SnapshotOutline } from './snapshot-file.ts';
import { expired, type Retention } from './snapshot-timing.ts';
import { workingSetPath } from './working-set.ts';

const SUFFIX = '.usnap';
const ID = /^\d{8}T\d{9}Z$/;

export interface StoredSnapshot {
  /** When it was asked for, as 20261127T021500123Z. */
  readonly id: string;
  readonly path: string;
  /** Undefined for one that cannot be gone on from; `problem` says why. */
  readonly outline: SnapshotOutline | undefined;
  readonly problem: { readonly code: string; readonly message: string } | undefined;
}

export interface PruneOptions {
  /** So many of the newest stay. */
  readonly keep?: number | undefined;
  /** What is older goes. */
  readonly olderThanMs?: number | undefined;
  /** Also the last one that is whole. */
  readonly mayTakeLast: boolean;
  readonly wallMs: number;
  /** Reads all of a file: whether a VM could go on from it. */
  readonly isGood: (path: string) => Promise<boolean>;
}

/** The snapshots of one VM: a directory of its own. A file in it with a snapshot's name was whole when it got that. */
export class SnapshotStore {
  readonly directory: string;

  /** `root` has a directory for each VM. */
  constructor(root: string, vm: string) {
    this.directory = join(root, vm);
  }

  /** The VMs that have snapshots. */
  static vmsIn(root: string): string[] {
    return namesIn(root).sort();
  }

  /** Where a new one is to be. */
  newPath(wallMs: number): string {
    return join(this.directory, `${idOf(wallMs)}${SUFFIX}`);
  }

  /** Newest first. */
  list(): StoredSnapshot[] {
    return namesIn(this.directory)
      .filter((name) => name.endsWith(SUFFIX) && ID.test(name.slice(0, -SUFFIX.length)))
      .sort()
      .reverse()
      .map((name) => stored(name.slice(0, -SUFFIX.length), join(this.directory, name)));
  }

  /** The one with this id, or the newest that seems whole. @throws SnapshotError SNAPSHOT_MISSING */
  find(id?: string): StoredSnapshot {
    const all = this.list();
    const found = all.find((each) => (id === undefined ? each.outline !== undefined : each.id === id));
    if (found !== undefined) return found;
    const what = id === undefined ? 'no snapshot' : `no snapshot ${id}`;
    throw new SnapshotError('SNAPSHOT_MISSING', `there is ${what} in ${this.directory}`, {
      hint: '`understudy snapshot list` shows which there are.',
      facts: { directory: this.directory },
    });
  }

  /**
   * Removes what is too many or too old, and what writers have left that were killed. One that a VM could go on from
   * stays in any case, unless it is told otherwise. Returns what is removed.
   */
  async prune(options: PruneOptions): Promise<StoredSnapshot[]> {
    this.removeUnfinished();
    const all = this.list();
    const doomed = new Set(all.filter((each, index) => isDoomed(each, index, options)));
    if (!options.mayTakeLast && doomed.size > 0) {
      const spared = await firstGood([...all.filter((each) => !doomed.has(each)), ...doomed], options);
      if (spared !== undefined) doomed.delete(spared);
    }
    for (const { path } of doomed) removeSnapshot(path);
    return [...doomed];
  }

  /** Whatever it is, also the last one. @throws SnapshotError SNAPSHOT_MISSING */
  remove(id: string): void {
    removeSnapshot(this.find(id).path);
  }

  /**
   * Removes what the keeper of the VM has taken by itself and is not to be kept any longer. What somebody asked for stays,
   * and so does what cannot be read.
   */
  expire(retention: Retention): StoredSnapshot[] {
    const own = this.list().flatMap((stored) => {
      const { reason = 'manual', savedAtMs } = stored.outline?.facts ?? { savedAtMs: 0 };
      return reason === 'manual' ? [] : [{ stored, savedAtMs }];
    });
    const gone = expired(own, retention).map(({ stored }) => stored);
    for (const { path } of gone) removeSnapshot(path);
    return gone;
  }

  /** What nobody writes any more, as who writes one holds a lock on it. */
  removeUnfinished(): void {
    for (const name of namesIn(this.directory)) {
      if (!name.endsWith(UNFINISHED)) continue;
      const path = join(this.directory, name);
      const fd = openSync(path, 'r');
      try {
        if (tryLockExclusive(fd)) rmSync(path, { force: true });
      } finally {
        closeSync(fd);
      }
    }
  }
}

function removeSnapshot(path: string): void {
  rmSync(path, { force: true });
  rmSync(workingSetPath(path), { force: true });
}

function isDoomed(
  { id }: StoredSnapshot,
  index: number,
  { keep, olderThanMs, wallMs }: PruneOptions,
): boolean {
  const isTooMany = keep !== undefined && index >= keep;
  const isTooOld = olderThanMs !== undefined && id < idOf(wallMs - olderThanMs);
  return isTooMany || isTooOld;
}

async function firstGood(
  snapshots: readonly StoredSnapshot[],
  { isGood }: PruneOptions,
): Promise<StoredSnapshot | undefined> {
  for (const each of snapshots) if (each.outline !== undefined && (await isGood(each.path))) return each;
  return undefined;
}

function stored(id: string, path: string): StoredSnapshot {
  try {
    return { id, path, outline: SnapshotFile.outline(path), problem: undefined };
  } catch (thrown) {
    const code = thrown instanceof UnderstudyError ? thrown.code : 'SNAPSHOT_DAMAGED';
    return { id, path, outline: undefined, problem: { code, message: messageOf(thrown) } };
  }
}

function idOf(wallMs: number): string {
  return new Date(wallMs).toISOString().replaceAll(/[-:.]/g, '');
}

function namesIn(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch (thrown) {
    if (errnoNameOf(thrown) === 'ENOENT') return [];
    throw new SnapshotError(
      'SNAPSHOT_STORE_REFUSED',
      `snapshots in ${directory} cannot be read: ${messageOf(thrown)}`,
      { hint: 'Name the directory where they are with --store.', facts: { directory }, cause: thrown },
    );
  }
}
