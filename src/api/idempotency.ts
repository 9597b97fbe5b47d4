import { createHash } from 'node:crypto';
import { ApiError } from './api-error.ts';
import type { HostService, StoredAnswer } from './host-service.ts';

/** A request that came with a key and is being carried out. */
export interface KeyedRequest {
  readonly key: string;
  readonly hash: string;
}

export type Admission =
  | { readonly kind: 'first'; readonly request: KeyedRequest }
  | { readonly kind: 'repeated'; readonly answer: StoredAnswer };

/**
 * Sees that a request with an Idempotency-Key is carried out once, as in draft-ietf-httpapi-idempotency-key-header.
 * Answers below 500 are remembered; after a fault the client may try again with the same key.
 */
export class Idempotency {
  readonly #service: Pick<HostService, 'recallAnswer' | 'storeAnswer'>;
  readonly #running = new Map<string, KeyedRequest>();

  constructor(service: Pick<HostService, 'recallAnswer' | 'storeAnswer'>) {
    this.#service = service;
  }

  /**
   * What is `first` has to be given to `finish`.
   * @throws ApiError API_KEY_REUSED, API_KEY_BUSY
   */
  admit(key: string, request: readonly unknown[]): Admission {
    const hash = createHash('sha256').update(JSON.stringify(request)).digest('hex');
    const answer = this.#service.recallAnswer(key);
    const earlier = answer?.request ?? this.#running.get(key)?.hash;
    if (earlier !== undefined && earlier !== hash) throw reused();
    if (answer !== undefined) return { kind: 'repeated', answer };
    if (earlier !== undefined) throw busy();
    const first: KeyedRequest = { key, hash };
    this.#running.set(key, first);
    return { kind: 'first', request: first };
  }

  finish({ key, hash }: KeyedRequest, answer: Omit<StoredAnswer, 'request'>): void {
    this.#running.delete(key);
    if (answer.status < 500) this.#service.storeAnswer(key, { request: hash, ...answer });
  }
}

function reused(): ApiError {
  return new ApiError('API_KEY_REUSED', 'another request was made with this Idempotency-Key', {
    hint: 'Take a new key for every new request, and the same one only to repeat it.',
  });
}

function busy(): ApiError {
  return new ApiError('API_KEY_BUSY', 'the request with this Idempotency-Key is still being carried out', {
    hint: 'Repeat it later, to get its answer.',
  });
}
