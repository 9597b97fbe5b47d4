import { z } from 'zod';

/** What somebody may do: look; also have VMs start, stop and change; also decide who may do what. */
export const ROLES = ['viewer', 'operator', 'admin'] as const;
export type Role = (typeof ROLES)[number];

export const tenantNameSchema = z
  .string()
  .regex(/^[a-z0-9][a-z0-9-]{0,39}$/, 'expected 1 to 40 of a-z 0-9 -, not beginning with -')
  .meta({ description: 'Name of a tenant, unique on its host.', examples: ['acme'] });

/** Who asks, and how that is known. */
export interface Principal {
  readonly name: string;
  readonly role: Role;
  /** Whose VMs it may see; null: those of all, and the host itself. */
  readonly tenant: string | null;
  readonly via: 'socket' | 'token' | 'certificate';
  /** Of the token that was shown. */
  readonly tokenId?: string;
  /** Of the tenant that the certificate that was shown is for; a later one of the same name has another. */
  readonly tenantId?: string;
  /** When the certificate that was shown expires, milliseconds since 1970. */
  readonly expiresMs?: number;
}

/** Whoever may open the unix socket: its owner and group are trusted with everything. */
export const LOCAL_ADMIN: Principal = { name: 'local', role: 'admin', tenant: null, via: 'socket' };

export function isRole(word: string | undefined): word is Role {
  return ROLES.some((role) => role === word);
}

export function mayAct({ role }: Principal, needed: Role): boolean {
  return ROLES.indexOf(role) >= ROLES.indexOf(needed);
}

/** What a key of a caller is stored under: nobody gets an answer that was another's. */
export function keyOf({ name, tenant, tenantId, via, tokenId }: Principal, key: string): string {
  // No key has a space in it.
  return via === 'socket' ? key : `${via} ${tokenId ?? `${tenantId ?? tenant ?? ''}/${name}`} ${key}`;
}

/** Which part of a host somebody may know of. */
export interface Reach {
  /** Undefined: all of it. */
  readonly tenant: string | undefined;
}

export const WHOLE_REACH: Reach = { tenant: undefined };

/** Nobody has said who they are: no tenant is called so, and nothing belongs to it. */
const NO_REACH: Reach = { tenant: '' };

export function reachOf(principal: Pick<Principal, 'tenant'> | undefined): Reach {
  return principal === undefined ? NO_REACH : { tenant: principal.tenant ?? undefined };
}

/** Whether something that belongs to `owner` (null: to the host) lies within it. */
export function isWithin(owner: string | null, { tenant }: Reach): boolean {
  return tenant === undefined || owner === tenant;
}
