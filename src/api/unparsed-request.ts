import { randomUUID } from 'node:crypto';
import type { Server, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { KIB } from '../base/units.ts';
import { rawAnswer } from './answer.ts';
import type { AnswerLog } from './answer-log.ts';
import { ApiError, type ApiErrorCode } from './api-error.ts';
import { problemOf } from './problem.ts';
import type { Problem } from './resources.ts';

export const HEADER_BYTES_MAX = 16 * KIB;

const UNPARSED: Readonly<Record<string, readonly [ApiErrorCode, string]>> = {
  HPE_HEADER_OVERFLOW: ['API_HEADERS_TOO_LARGE', `headers have at most ${HEADER_BYTES_MAX} bytes`],
  ERR_HTTP_REQUEST_TIMEOUT: ['API_REQUEST_TIMEOUT', 'the request did not arrive in time'],
};

/** What arrives and is no HTTP. It is only answered where that cannot be taken for the answer to an earlier request. */
export class UnparsedRequests {
  readonly #log: AnswerLog;
  readonly #lastResponse = new WeakMap<Socket, ServerResponse>();

  constructor(log: AnswerLog) {
    this.#log = log;
  }

  /** What is answered on connections of this server is known from now on. */
  watch(server: Server): void {
    server.on('request', ({ socket }, response) => this.#lastResponse.set(socket, response));
  }

  refuse(error: Error & { code?: string }, socket: Socket): void {
    const last = this.#lastResponse.get(socket);
    const expectsAnswer = last === undefined || (last.writableFinished && last.shouldKeepAlive);
    if (expectsAnswer && socket.writable && error.code !== 'ECONNRESET') {
      const requestId = randomUUID();
      const problem = unparsedProblem(error);
      this.#log.refused(socket.remoteAddress, { requestId, status: problem.status, error: error.message });
      socket.write(rawAnswer(problem, requestId));
    }
    socket.destroySoon();
  }
}

/** Of a request that Node could not even parse. */
function unparsedProblem(error: { readonly code?: string }): Problem {
  const [code, message] = UNPARSED[error.code ?? ''] ?? ['API_BAD_REQUEST', 'that is no HTTP/1.1 request'];
  return problemOf(new ApiError(code, message));
}
