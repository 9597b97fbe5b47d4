import { UnderstudyError } from '../base/errors.ts';

export type ConfigErrorCode =
  | 'CONFIG_NOT_FOUND'
  | 'CONFIG_INVALID'
  | 'CONFIG_FILE_MISSING'
  | 'CONFIG_UNPROTECTABLE';

/** The specification of a VM cannot be used. `facts.problems` lists every problem as `file:line: field: what`. */
export class ConfigError extends UnderstudyError<ConfigErrorCode> {}
