import { UnderstudyError } from '../base/errors.ts';

export type ReplicationErrorCode =
  | 'REPLICATION_EPOCH_CORRUPT'
  | 'REPLICATION_EPOCH_TOO_LARGE'
  | 'REPLICATION_NOTHING_COMMITTED';

export class ReplicationError extends UnderstudyError<ReplicationErrorCode> {}
