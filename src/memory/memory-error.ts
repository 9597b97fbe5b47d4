import { UnderstudyError } from '../base/errors.ts';

type MemoryErrorCode =
  | 'MEMORY_NO_ROOM'
  | 'MEMORY_EXISTS'
  | 'MEMORY_MISSING'
  | 'MEMORY_COMPILER_MISSING'
  | 'MEMORY_COMPILE_FAILED'
  | 'MEMORY_LIBRARY_PATH'
  | 'MEMORY_CACHE_REFUSED'
  | 'MEMORY_NO_HANDSHAKE'
  | 'MEMORY_CHANNEL_GARBLED'
  | 'MEMORY_MAPPED_TWICE'
  | 'MEMORY_PROCESS_GONE'
  | 'MEMORY_LOG_UNAVAILABLE';

/** Guest memory cannot be held, read or watched as protection needs it. */
export class MemoryError extends UnderstudyError<MemoryErrorCode> {}
