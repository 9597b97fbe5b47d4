import { KIB } from '../base/units.ts';
import { ApiError, type ApiErrorCode } from './api-error.ts';
import { problemOf } from './problem.ts';
import type { Problem } from './resources.ts';

export const HEADER_BYTES_MAX = 16 * KIB;

const UNPARSED: Readonly<Record<string, readonly [ApiErrorCode, string]>> = {
  HPE_HEADER_OVERFLOW: ['API_HEADERS_TOO_LARGE', `headers have at most ${HEADER_BYTES_MAX} bytes`],
  ERR_HTTP_REQUEST_TIMEOUT: ['API_REQUEST_TIMEOUT', 'the request did not arrive in time'],
};

/** Of a request that Node could not even parse. */
export function unparsedProblem(error: { readonly code?: string }): Problem {
  const [code, message] = UNPARSED[error.code ?? ''] ?? ['API_BAD_REQUEST', 'that is no HTTP/1.1 request'];
  return problemOf(new ApiError(code, message));
}
