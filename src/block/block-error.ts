import { UnderstudyError } from '../base/errors.ts';

export type BlockErrorCode =
  | 'BLOCK_IMAGE_MISSING'
  | 'BLOCK_IMAGE_UNFIT'
  | 'BLOCK_IMAGE_FOREIGN'
  | 'BLOCK_CREATE_FAILED'
  | 'BLOCK_TOOL_MISSING';

/** An image that a VM names as its disk cannot be used as it is, or cannot be made. Nothing was changed. */
export class BlockError extends UnderstudyError<BlockErrorCode> {}
