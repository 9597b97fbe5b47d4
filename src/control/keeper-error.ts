import { UnderstudyError } from '../base/errors.ts';

export type KeeperErrorCode =
  | 'KEEPER_NAME_TAKEN'
  | 'KEEPER_NOT_RUNNING'
  | 'KEEPER_NOT_PROTECTED'
  | 'KEEPER_PROMOTE_FAILED'
  | 'KEEPER_REQUEST_INVALID'
  | 'KEEPER_NO_CONSOLE'
  | 'KEEPER_START_FAILED'
  | 'KEEPER_STOPPING'
  | 'KEEPER_LOST'
  | 'KEEPER_NO_ANSWER'
  | 'KEEPER_INTERNAL'
  | 'KEEPER_DIRECTORY_REFUSED';

export class KeeperError extends UnderstudyError<KeeperErrorCode> {}
