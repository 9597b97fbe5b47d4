import type { Principal } from './principal.ts';
import { type RouteId, routeOf } from './routes.ts';

/** What is written down of a request that would change something. Never what it carried. */
export interface AuditEntry {
  readonly principal: string;
  readonly via: Principal['via'];
  readonly role: Principal['role'];
  /** The operation id. */
  readonly action: RouteId;
  /** The VM or token that its path names. */
  readonly target: string | null;
  readonly status: number;
  readonly requestId: string;
}

/** Events of this kind are for admins only. */
export const AUDIT_KIND = 'audit';

export function changesSomething(id: RouteId): boolean {
  return routeOf(id).method !== 'GET' || id === 'openConsole';
}

export function auditEntry(
  { name, via, role }: Principal,
  asked: { id: RouteId; params: unknown; status: number; requestId: string },
): AuditEntry {
  const { id, params, status, requestId } = asked;
  const { name: vm, id: token } = (params ?? {}) as { name?: string; id?: string };
  return { principal: name, via, role, action: id, target: vm ?? token ?? null, status, requestId };
}

export function seesAudit(principal: Principal | undefined): boolean {
  return principal?.role === 'admin';
}
