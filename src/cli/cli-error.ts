import { UnderstudyError } from '../base/errors.ts';

export type CliErrorCode =
  | 'CLI_USAGE'
  | 'CLI_NODE_TOO_OLD'
  | 'CLI_WAIT_TIMEOUT'
  | 'CLI_INTERRUPTED'
  | 'CLI_MACHINE_UNFIT'
  | 'CLI_FILE_EXISTS'
  | 'CLI_INTERNAL';

export class CliError extends UnderstudyError<CliErrorCode> {}
