import type { FastifyRequest } from 'fastify';
import type { Principal } from './principal.ts';
import type { RouteId } from './routes.ts';

const principals = new WeakMap<FastifyRequest, Principal>();

/** From here on everybody who handles this request can ask who sent it. */
export function rememberPrincipal(request: FastifyRequest, principal: Principal): void {
  principals.set(request, principal);
}

/** Whoever was found to have sent it; undefined where nobody was asked for. */
export function principalOf(request: FastifyRequest): Principal | undefined {
  return principals.get(request);
}

/** Undefined where no route takes it. */
export function operationOf(request: FastifyRequest): RouteId | undefined {
  return (request.routeOptions.config as { operationId?: RouteId }).operationId;
}
