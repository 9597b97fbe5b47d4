import { UnderstudyError } from '../base/errors.ts';

export type NetErrorCode =
  | 'NET_FRAME_INVALID'
  | 'NET_LISTEN_FAILED'
  | 'NET_NO_CONNECTION'
  | 'NET_TAP_FAILED'
  | 'NET_PASST_MISSING'
  | 'NET_PASST_FAILED'
  | 'NET_PORT_TAKEN'
  | 'NET_UPLINK_LOST';

/** What can go wrong between a guest's channels and the world. */
export class NetError extends UnderstudyError<NetErrorCode> {}
