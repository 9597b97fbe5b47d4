import type { FastifyRequest } from 'fastify';
import { ApiError } from './api-error.ts';
import { type Authentication, stranger } from './authentication.ts';
import { operationOf, rememberPrincipal } from './known-request.ts';
import type { Newcomers } from './newcomers.ts';
import { mayAct, type Principal, type Role } from './principal.ts';
import { routeOf } from './routes.ts';

interface AdmissionOptions {
  readonly authentication: Authentication;
  readonly newcomers: Newcomers;
}

/** Who asks, and whether they may: of every request, before anything else of it is looked at. */
export class Admission {
  readonly #options: AdmissionOptions;

  constructor(options: AdmissionOptions) {
    this.#options = options;
  }

  /** @throws ApiError API_UNAUTHENTICATED, API_FORBIDDEN, API_TOO_MANY_FAILURES */
  admit(request: FastifyRequest): void {
    const id = operationOf(request);
    const needed = id === undefined ? 'viewer' : routeOf(id).role;
    if (needed === 'anyone') return;
    const principal = this.#options.authentication.identify(request.raw);
    if (principal === undefined) throw stranger();
    this.#options.newcomers.known(request.raw.socket);
    rememberPrincipal(request, principal);
    const isApart = id !== undefined && routeOf(id).hostOnly === true && principal.tenant !== null;
    if (mayAct(principal, needed) && !isApart) return;
    throw isApart ? forHostOnly(principal) : forbidden(principal, needed);
  }

  /** Why nothing is to be said to who sent this; undefined where that is known and may look. */
  strangerIn({ raw }: FastifyRequest): unknown {
    try {
      return this.#options.authentication.identify(raw) === undefined ? stranger() : undefined;
    } catch (thrown) {
      return thrown;
    }
  }
}

function forbidden({ name, role }: Principal, needed: Role): ApiError {
  return new ApiError('API_FORBIDDEN', `this takes the role ${needed}, and ${name} is ${role}`, {
    hint: 'Ask an admin of this host for a token of that role.',
  });
}

function forHostOnly({ name }: Principal): ApiError {
  return new ApiError(
    'API_FORBIDDEN',
    `this concerns the whole host, and ${name} belongs to a tenant of it`,
    {
      hint: 'Ask an admin of this host for it.',
    },
  );
}
