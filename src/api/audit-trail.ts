import type { FastifyRequest } from 'fastify';
import { auditEntry, changesSomething } from './audit.ts';
import type { HostService } from './host-service.ts';
import { principalOf } from './known-request.ts';
import type { RouteId } from './routes.ts';

/** Writes down who changed something, or tried to. */
export class AuditTrail {
  readonly #service: Pick<HostService, 'audit'>;

  constructor(service: Pick<HostService, 'audit'>) {
    this.#service = service;
  }

  note(id: RouteId, request: FastifyRequest, how: { status: number; made?: unknown }): void {
    const principal = principalOf(request);
    if (principal === undefined || !changesSomething(id)) return;
    const { params, id: requestId } = request;
    this.#service.audit(auditEntry(principal, { ...how, id, params, requestId }));
  }
}
