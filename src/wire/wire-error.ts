import { UnderstudyError } from '../base/errors.ts';

export type WireErrorCode =
  | 'WIRE_CODEC_MISSING'
  | 'WIRE_PAGES_INVALID'
  | 'WIRE_GARBLED'
  | 'WIRE_VERSION'
  | 'WIRE_LISTEN_FAILED'
  | 'WIRE_DIAL_FAILED'
  | 'WIRE_HANDSHAKE_FAILED'
  | 'WIRE_TIMEOUT'
  | 'WIRE_CERTIFICATE_UNUSABLE'
  | 'WIRE_PEER_UNTRUSTED'
  | 'WIRE_PEER_EXPIRED'
  | 'WIRE_PEER_NOT_A_HOST'
  | 'WIRE_PEER_NAME'
  | 'WIRE_REFUSED'
  | 'WIRE_CROWDED'
  | 'WIRE_OVERRUN'
  | 'WIRE_SILENT'
  | 'WIRE_LOST'
  | 'WIRE_CLOSED'
  | 'WIRE_BACKLOG';

/** What goes wrong between two hosts. */
export class WireError extends UnderstudyError<WireErrorCode> {}
