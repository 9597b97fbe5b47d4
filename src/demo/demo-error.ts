import { UnderstudyError } from '../base/errors.ts';

export type DemoErrorCode =
  | 'DEMO_REDIS_GARBLED'
  | 'DEMO_REDIS_SILENT'
  | 'DEMO_REDIS_CLOSED'
  | 'DEMO_LOAD_FAILED'
  | 'DEMO_NETWORK_FAILED'
  | 'DEMO_VM_LOST';

export class DemoError extends UnderstudyError<DemoErrorCode> {}
