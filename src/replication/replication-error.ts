import { UnderstudyError } from '../base/errors.ts';

export type ReplicationErrorCode =
  | 'REPLICATION_EPOCH_CORRUPT'
  | 'REPLICATION_EPOCH_TOO_LARGE'
  | 'REPLICATION_NOTHING_COMMITTED'
  | 'REPLICATION_PEER_GARBLED'
  | 'REPLICATION_STATE_DAMAGED'
  | 'REPLICATION_STATE_FOREIGN'
  | 'REPLICATION_STATE_NO_ROOM';

export class ReplicationError extends UnderstudyError<ReplicationErrorCode> {}
