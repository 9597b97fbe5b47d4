import { UnderstudyError } from '../base/errors.ts';

export type CliErrorCode =
  | 'CLI_USAGE'
  | 'CLI_NODE_TOO_OLD'
  | 'CLI_WAIT_TIMEOUT'
  | 'CLI_INTERRUPTED'
  | 'CLI_MACHINE_UNFIT'
  | 'CLI_FILE_EXISTS'
  | 'CLI_ROOT_NEEDED'
  | 'CLI_NOT_INSTALLED'
  | 'CLI_MANIFEST_UNREADABLE'
  | 'CLI_TOOL_FAILED'
  | 'CLI_VMS_RUN'
  | 'CLI_HOST_ADDRESS'
  | 'CLI_TENANT_UNKNOWN'
  | 'CLI_INTERNAL';

export class CliError extends UnderstudyError<CliErrorCode> {}
