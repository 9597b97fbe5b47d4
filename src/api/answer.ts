import type { FastifyReply } from 'fastify';
import { assert } from '../base/assert.ts';
import { PROBLEM_TYPE } from './openapi.ts';
import type { Problem } from './resources.ts';

/** What a handler gives: a body that is checked before it is sent, and headers of its own. */
export interface Answer {
  readonly body: unknown;
  readonly headers?: Readonly<Record<string, string>>;
}

/** Status and headers go into `reply`; what it returns is the body, undefined for none. */
export function replyWith(
  { headers = {}, body }: Answer,
  { reply, status }: { reply: FastifyReply; status: number },
): unknown {
  reply.code(status).headers(headers);
  return body ?? undefined;
}

/** The answer as it will be sent, checked against the document like every other. */
export function jsonOf(body: unknown, { reply, status }: { reply: FastifyReply; status: number }): string {
  const serialize = reply.getSerializationFunction(String(status), 'application/json');
  assert(serialize !== undefined, 'every answer of a route is described');
  reply.type('application/json; charset=utf-8');
  return serialize(body as Record<string, unknown>);
}

/** An answer to what was no request, so that the framework does not know of it. */
export function rawAnswer(problem: Problem, requestId: string): string {
  const body = JSON.stringify(problem);
  return [
    `HTTP/1.1 ${problem.status} ${problem.title}`,
    `Content-Type: ${PROBLEM_TYPE}; charset=utf-8`,
    `Content-Length: ${Buffer.byteLength(body)}`,
    `X-Request-Id: ${requestId}`,
    'Cache-Control: no-store',
    'Connection: close',
    '',
    body,
  ].join('\r\n');
}
