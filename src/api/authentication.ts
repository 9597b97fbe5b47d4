import type { IncomingMessage, Server } from 'node:http';
import type { Socket } from 'node:net';
import { TLSSocket } from 'node:tls';
import type { Clock } from '../base/clock.ts';
import { isExpired, isTokenOf, type StoredToken, tokenIdIn } from './access-token.ts';
import { ApiError } from './api-error.ts';
import { FailureTally } from './failure-tally.ts';
import { isRole, LOCAL_ADMIN, type Principal, tenantNameSchema } from './principal.ts';
import { sourceNetwork } from './source-network.ts';

const BEARER = /^Bearer +(\S{1,200})$/i;

export interface AuthenticationOptions {
  readonly findToken: (id: string) => StoredToken | undefined;
  /** Undefined where there is no such tenant. */
  readonly tenantId: (name: string) => string | undefined;
  readonly clock: Clock;
}

/** Tells who asks. Over the unix socket that is decided by who may open it; nobody else is trusted unasked. */
export class Authentication {
  readonly #options: AuthenticationOptions;
  /** By where they come from. */
  readonly #failures: FailureTally<undefined>;
  readonly #local = new WeakSet<Socket>();

  constructor(options: AuthenticationOptions) {
    this.#options = options;
    this.#failures = new FailureTally(options);
  }

  /** Whoever can connect to this server may do everything. No other connection is local, whatever it looks like. */
  trust(server: Server): void {
    server.on('connection', (socket) => this.#local.add(socket));
  }

  /**
   * Undefined for who shows nothing. What is shown is looked at first, whatever else came from the same address: many may
   * share one, and comparing a hash costs less than anything else about a request.
   * @throws ApiError API_UNAUTHENTICATED for what is shown and no good, API_TOO_MANY_FAILURES for that again and again
   */
  identify({ socket, headers }: Pick<IncomingMessage, 'socket' | 'headers'>): Principal | undefined {
    if (this.#local.has(socket)) return LOCAL_ADMIN;
    if (!(socket instanceof TLSSocket)) return undefined;
    const { authorization } = headers;
    if (authorization === undefined) {
      const holder = certificateHolder(socket);
      // The handshake saw to that; but a connection may live on for long.
      return holder !== undefined && this.isStill(holder) ? holder : undefined;
    }
    const principal = this.#tokenHolder(BEARER.exec(authorization)?.[1]);
    if (principal !== undefined && this.isStill(principal)) return principal;
    if (this.#failures.note(sourceNetwork(socket.remoteAddress), undefined))
      throw unauthenticated('this token is unknown, revoked or expired');
    throw tooManyFailures();
  }

  /** Whether one that was identified would still be: tokens are revoked and expire, certificates expire, tenants go. */
  isStill({ via, tokenId, tenant, tenantId, expiresMs }: Principal): boolean {
    const presentId = tenant === null ? undefined : this.#options.tenantId(tenant);
    if (tenant !== null && presentId === undefined) return false;
    // Tokens go with their tenant; a certificate does not, and is for the one that it was issued for.
    if (via === 'certificate' && tenantId !== presentId) return false;
    if (expiresMs !== undefined && expiresMs <= this.#options.clock.wallMs()) return false;
    if (tokenId === undefined) return true;
    const token = this.#options.findToken(tokenId);
    return token !== undefined && !isExpired(token, this.#options.clock.wallMs());
  }

  #tokenHolder(text = ''): Principal | undefined {
    const id = tokenIdIn(text);
    const token = id === undefined ? undefined : this.#options.findToken(id);
    if (token === undefined || !isTokenOf(text, token)) return undefined;
    if (isExpired(token, this.#options.clock.wallMs())) return undefined;
    const { name, role, tenant } = token;
    return { name, role, tenant, via: 'token', tokenId: token.id };
  }
}

/**
 * The subject of a client certificate that the client CA has signed: CN is who, OU the role, O the tenant, whose id is an
 * alternative name, `URI:urn:uuid:…`. One whose O is no name of a tenant is not taken for one of the whole host, nor is one
 * that has such an id and no O.
 */
function certificateHolder(socket: TLSSocket): Principal | undefined {
  if (!socket.authorized) return undefined;
  const certificate = socket.getPeerCertificate();
  const { CN: name, OU: role, O: organization } = certificate.subject ?? {};
  if (typeof name !== 'string' || typeof role !== 'string' || !isRole(role)) return undefined;
  const expiresMs = Date.parse(certificate.valid_to);
  // Where it is given twice Node has a list, which is no name.
  const tenant = tenantNameSchema.optional().safeParse(organization);
  if (!tenant.success || Number.isNaN(expiresMs)) return undefined;
  const tenantId = tenantIdIn(certificate.subjectaltname);
  const said = { name, role, tenant: tenant.data ?? null, via: 'certificate', expiresMs } as const;
  return tenantId === undefined ? said : { ...said, tenantId };
}

/** Undefined where there is none. With more than one nobody knows which is meant: it fits no tenant. */
function tenantIdIn(alternatives = ''): string | undefined {
  const ids = alternatives.split(', ').flatMap((name) => /^URI:urn:uuid:(.+)$/i.exec(name)?.[1] ?? []);
  return ids.length === 0 ? undefined : ids.join(' ').toLowerCase();
}

export function stranger(): ApiError {
  return unauthenticated('nobody may look who does not say who they are');
}

function tooManyFailures(): ApiError {
  return new ApiError('API_TOO_MANY_FAILURES', 'too many wrong tokens came from this address', {
    hint: 'Show one that is valid: that is taken at any time.',
  });
}

function unauthenticated(detail: string): ApiError {
  return new ApiError('API_UNAUTHENTICATED', detail, {
    hint: 'Send `Authorization: Bearer TOKEN`, or connect with a client certificate. `understudy token create` makes tokens.',
  });
}
