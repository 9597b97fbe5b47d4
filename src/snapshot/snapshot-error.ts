import { UnderstudyError } from '../base/errors.ts';

type SnapshotErrorCode =
  | 'SNAPSHOT_DAMAGED'
  | 'SNAPSHOT_FOREIGN'
  | 'SNAPSHOT_MISSING'
  | 'SNAPSHOT_NO_ROOM'
  | 'SNAPSHOT_STORE_REFUSED'
  | 'SNAPSHOT_KEY_REFUSED'
  | 'SNAPSHOT_KEY_WRONG'
  | 'SNAPSHOT_FILL_FAILED'
  | 'SNAPSHOT_FILL_REFUSED';

/** A snapshot cannot be written, read or gone on from. */
export class SnapshotError extends UnderstudyError<SnapshotErrorCode> {}

export function damaged(path: string, what: string, cause?: unknown): SnapshotError {
  return new SnapshotError('SNAPSHOT_DAMAGED', `the snapshot ${path} is damaged: ${what}`, {
    hint: 'Go on from another one, `understudy snapshot list` shows which there are; and check the disk.',
    facts: { path },
    cause,
  });
}
