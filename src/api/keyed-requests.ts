import type { FastifyReply, FastifyRequest } from 'fastify';
import { assert } from '../base/assert.ts';
import type { HostService } from './host-service.ts';
import { Idempotency, type KeyedRequest } from './idempotency.ts';
import { operationOf, principalOf } from './known-request.ts';
import { keyOf } from './principal.ts';
import { takesKey } from './routes.ts';

const STORED_HEADERS = ['content-type', 'etag', 'location'];

/** Requests that came with an Idempotency-Key: what is answered to them is stored, and answered again. */
export class KeyedRequests {
  readonly #idempotency: Idempotency;
  /** Those that are being carried out. */
  readonly #running = new WeakMap<FastifyRequest, KeyedRequest>();

  constructor(service: Pick<HostService, 'recallAnswer' | 'storeAnswer'>) {
    this.#idempotency = new Idempotency(service);
  }

  /** Whether its answer is still to be stored. */
  has(request: FastifyRequest): boolean {
    return this.#running.has(request);
  }

  /** Answers what was answered before; undefined where it is to be carried out. @throws ApiError API_KEY_REUSED, API_KEY_BUSY */
  replay(request: FastifyRequest, reply: FastifyReply): FastifyReply | undefined {
    const operation = operationOf(request);
    const key = request.headers['idempotency-key'];
    if (typeof key !== 'string' || operation === undefined || !takesKey(operation)) return undefined;
    const principal = principalOf(request);
    assert(principal !== undefined, 'who carries a key was admitted');
    const admission = this.#idempotency.admit(keyOf(principal, key), [
      operation,
      request.params,
      request.body,
    ]);
    if (admission.kind === 'first') {
      this.#running.set(request, admission.request);
      return undefined;
    }
    const { status, headers, body } = admission.answer;
    return reply.code(status).headers(headers).header('idempotency-replayed', 'true').send(body);
  }

  /** The answer is stored before it is sent: who has seen it gets the same again. Does nothing for other requests. */
  remember(request: FastifyRequest, reply: FastifyReply, text: string): void {
    const keyed = this.#running.get(request);
    if (keyed === undefined) return;
    const stored = STORED_HEADERS.filter((name) => reply.hasHeader(name));
    this.#idempotency.finish(keyed, {
      status: reply.statusCode,
      headers: Object.fromEntries(stored.map((name) => [name, String(reply.getHeader(name))])),
      body: text,
    });
    this.#running.delete(request);
  }
}
