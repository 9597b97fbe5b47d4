import { UnderstudyError } from '../base/errors.ts';

export type BlockErrorCode =
  | 'BLOCK_IMAGE_MISSING'
  | 'BLOCK_IMAGE_UNFIT'
  | 'BLOCK_IMAGE_FOREIGN'
  | 'BLOCK_CREATE_FAILED'
  | 'BLOCK_TOOL_MISSING'
  | 'BLOCK_NBD_VIOLATION'
  | 'BLOCK_NBD_REFUSED'
  | 'BLOCK_NBD_LOST'
  | 'BLOCK_JOURNAL_UNFIT'
  | 'BLOCK_COPY_FOREIGN'
  | 'BLOCK_COPY_PARTIAL'
  | 'BLOCK_TOKEN_STALE'
  | 'BLOCK_EPOCH_ORDER'
  | 'BLOCK_ROLLBACK_TOO_LATE'
  | 'BLOCK_DISK_FAILED'
  | 'BLOCK_DISK_CLOSED'
  | 'BLOCK_MOMENT_LOST'
  | 'BLOCK_TRIAL_FULL';

/** A disk of a VM, its image or its journal cannot be used as it is, or somebody asked of it what it must not do. */
export class BlockError extends UnderstudyError<BlockErrorCode> {}
