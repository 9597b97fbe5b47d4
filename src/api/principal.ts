/** What somebody may do: look; also have VMs start, stop and change; also decide who may do what. */
export const ROLES = ['viewer', 'operator', 'admin'] as const;
export type Role = (typeof ROLES)[number];

/** Who asks, and how that is known. */
export interface Principal {
  readonly name: string;
  readonly role: Role;
  readonly via: 'socket' | 'token' | 'certificate';
  /** Of the token that was shown. */
  readonly tokenId?: string;
  /** When the certificate that was shown expires, milliseconds since 1970. */
  readonly expiresMs?: number;
}

/** Whoever may open the unix socket: its owner and group are trusted with everything. */
export const LOCAL_ADMIN: Principal = { name: 'local', role: 'admin', via: 'socket' };

export function isRole(word: string | undefined): word is Role {
  return ROLES.some((role) => role === word);
}

export function mayAct({ role }: Principal, needed: Role): boolean {
  return ROLES.indexOf(role) >= ROLES.indexOf(needed);
}

/** What a key of a caller is stored under: nobody gets an answer that was another's. */
export function keyOf({ name, via, tokenId }: Principal, key: string): string {
  // No key has a space in it.
  return via === 'socket' ? key : `${via} ${tokenId ?? name} ${key}`;
}
