import { UnderstudyError } from '../base/errors.ts';

export type ApiErrorCode =
  | 'API_BAD_REQUEST'
  | 'API_NOT_FOUND'
  | 'API_METHOD_NOT_ALLOWED'
  | 'API_REQUEST_TIMEOUT'
  | 'API_KEY_BUSY'
  | 'API_BODY_TOO_LARGE'
  | 'API_MEDIA_TYPE'
  | 'API_KEY_REUSED'
  | 'API_PRECONDITION_REQUIRED'
  | 'API_HEADERS_TOO_LARGE'
  | 'API_INTERNAL'
  | 'API_STREAMS_MAX'
  | 'API_UNAUTHENTICATED'
  | 'API_FORBIDDEN'
  | 'API_TOO_MANY_FAILURES'
  | 'API_TLS_UNUSABLE'
  | 'API_UPGRADE_REQUIRED'
  | 'API_ORIGIN_REFUSED'
  | 'API_CONSOLES_MAX'
  | 'API_CONSOLE_CLOSED'
  | 'API_LISTEN_FAILED'
  | 'API_SOCKET_TAKEN'
  | 'API_UNREACHABLE'
  | 'API_NO_ANSWER';

/** The API of a host, on either side of its socket. At the client it also carries codes of other modules. */
export class ApiError extends UnderstudyError<ApiErrorCode> {}
