import type { FastifyReply, FastifyRequest } from 'fastify';
import { InvariantViolation } from '../base/assert.ts';
import { messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { ApiError } from './api-error.ts';
import { PROBLEM_TYPE } from './openapi.ts';
import { problemOf } from './problem.ts';

/** Answers with what was thrown, told as a problem; a fault of the host is logged besides. */
export function refuse(
  thrown: unknown,
  { request, reply, log }: { request: FastifyRequest; reply: FastifyReply; log: Logger },
): void {
  const problem = problemOf(thrown);
  if (problem.status === 500) {
    const stack = thrown instanceof Error ? thrown.stack : undefined;
    const { code } = problem;
    log.error('a request failed', { requestId: request.id, code, error: messageOf(thrown), stack });
  }
  if (problem.status === 401) reply.header('www-authenticate', 'Bearer realm="understudy"');
  // Who has been wrong so often pays with a handshake for each further try.
  if (problem.status === 429) reply.header('connection', 'close');
  reply.code(problem.status).type(PROBLEM_TYPE).send(JSON.stringify(problem));
  // A broken invariant must end the host, whoever happened to ask.
  if (thrown instanceof InvariantViolation) {
    setImmediate(() => {
      throw thrown;
    });
  }
}

export function notFound(): ApiError {
  return new ApiError('API_NOT_FOUND', 'there is nothing of this name', {
    hint: '/openapi.json lists all that there is.',
  });
}

export function otherMethod(method: string, allowed: readonly string[]): ApiError {
  return new ApiError('API_METHOD_NOT_ALLOWED', `${method} means nothing here`, {
    hint: `Allowed: ${allowed.join(', ')}.`,
  });
}
