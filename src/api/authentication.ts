import type { IncomingMessage } from 'node:http';
import { TLSSocket } from 'node:tls';
import type { Clock } from '../base/clock.ts';
import { isExpired, isTokenOf, type StoredToken, tokenIdIn } from './access-token.ts';
import { ApiError } from './api-error.ts';
import { FailureBudget } from './failure-budget.ts';
import { isRole, LOCAL_ADMIN, type Principal } from './principal.ts';

const BEARER = /^Bearer +(\S{1,200})$/i;

export interface AuthenticationOptions {
  readonly findToken: (id: string) => StoredToken | undefined;
  readonly clock: Clock;
}

/** Tells who asks. Over the unix socket that is decided by who may open it; over TLS nobody is trusted unasked. */
export class Authentication {
  readonly #options: AuthenticationOptions;
  readonly #failures: FailureBudget;

  constructor(options: AuthenticationOptions) {
    this.#options = options;
    this.#failures = new FailureBudget(options.clock);
  }

  /**
   * Undefined for who shows nothing.
   * @throws ApiError API_UNAUTHENTICATED for what is shown and no good, API_TOO_MANY_FAILURES
   */
  identify({ socket, headers }: Pick<IncomingMessage, 'socket' | 'headers'>): Principal | undefined {
    if (!(socket instanceof TLSSocket)) return LOCAL_ADMIN;
    const { remoteAddress = '' } = socket;
    this.#failures.assertLeft(remoteAddress);
    const { authorization } = headers;
    if (authorization === undefined) return certificateHolder(socket);
    const principal = this.#tokenHolder(BEARER.exec(authorization)?.[1]);
    if (principal !== undefined) return principal;
    this.#failures.note(remoteAddress);
    throw unauthenticated('this token is unknown, revoked or expired');
  }

  /** Whether one that was identified would still be: a token may have been revoked, or have expired. */
  isStill({ tokenId }: Principal): boolean {
    if (tokenId === undefined) return true;
    const token = this.#options.findToken(tokenId);
    return token !== undefined && !isExpired(token, this.#options.clock.wallMs());
  }

  #tokenHolder(text = ''): Principal | undefined {
    const id = tokenIdIn(text);
    const token = id === undefined ? undefined : this.#options.findToken(id);
    if (token === undefined || !isTokenOf(text, token)) return undefined;
    if (isExpired(token, this.#options.clock.wallMs())) return undefined;
    return { name: token.name, role: token.role, via: 'token', tokenId: token.id };
  }
}

/** The subject of a client certificate that the client CA has signed: CN is who, OU the role. */
function certificateHolder(socket: TLSSocket): Principal | undefined {
  if (!socket.authorized) return undefined;
  const { CN: name, OU: role } = socket.getPeerCertificate().subject ?? {};
  if (typeof name !== 'string' || typeof role !== 'string' || !isRole(role)) return undefined;
  return { name, role, via: 'certificate' };
}

export function unauthenticated(detail: string): ApiError {
  return new ApiError('API_UNAUTHENTICATED', detail, {
    hint: 'Send `Authorization: Bearer TOKEN`, or connect with a client certificate. `understudy token create` makes tokens.',
  });
}
