import type { Principal } from './principal.ts';
import { type RouteId, routeOf } from './routes.ts';

/** What is written down of a request that would change something. Never what it carried. */
export interface AuditEntry {
  readonly principal: string;
  /** Of the principal: whose administrators are told. */
  readonly tenant: string | null;
  readonly via: Principal['via'];
  readonly role: Principal['role'];
  /** The operation id. */
  readonly action: RouteId;
  /** The VM, tenant or token that its path names, or that was made. Null where what the path names has not the form of one. */
  readonly target: string | null;
  readonly status: number;
  readonly requestId: string;
  /** This one stands for so many of the same principal that failed, and is the last of them. */
  readonly failures?: number;
}

/** Status of what was begun, while nobody knows how it ends. 202 Accepted of HTTP. */
export const BEGUN = 202;

/** Events of this kind are for admins only. */
export const AUDIT_KIND = 'audit';

export function changesSomething(id: RouteId): boolean {
  return routeOf(id).method !== 'GET' || id === 'openConsole';
}

export function auditEntry(
  { name, tenant, via, role }: Principal,
  asked: { id: RouteId; params: unknown; made?: unknown; status: number; requestId: string },
): AuditEntry {
  const { id, params, made, status, requestId } = asked;
  // What has not the form of a name may be anything, a secret in the wrong place too.
  const named = routeOf(id).params?.safeParse(params).data ?? {};
  const { name: vm, id: token } = named as { name?: string; id?: string };
  const target = vm ?? token ?? nameOf(made);
  return { principal: name, tenant, via, role, action: id, target, status, requestId };
}

/** A VM that was declared has its name for an id, a token that was made has one besides its name. */
function nameOf(made: unknown): string | null {
  const { id, name } = (made ?? {}) as { id?: string; name?: string };
  return id ?? name ?? null;
}

export function seesAudit(principal: Principal | undefined): boolean {
  return principal?.role === 'admin';
}
