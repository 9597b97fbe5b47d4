import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import type { Role } from './principal.ts';

const ID_BYTES = 6;
const SECRET_BYTES = 32;
const FORM = /^us_([0-9a-f]{12})_([0-9A-Za-z_-]{43})$/;

/** What a host knows of a token: not the token itself. */
export interface StoredToken {
  readonly id: string;
  readonly name: string;
  readonly role: Role;
  /** Whose VMs it opens; null: the whole host. */
  readonly tenant: string | null;
  /** SHA-256 of the secret part. It has 256 random bits, so that no salt and no slow hash could add anything. */
  readonly hash: Uint8Array;
  readonly createdMs: number;
  readonly expiresMs: number | null;
}

/** A new token: what is shown once to who asked for it, and what is kept of it. */
export function makeToken(): { readonly text: string; readonly id: string; readonly hash: Uint8Array } {
  const id = randomBytes(ID_BYTES).toString('hex');
  const secret = randomBytes(SECRET_BYTES).toString('base64url');
  return { text: `us_${id}_${secret}`, id, hash: hashOf(secret) };
}

/** The id in a token's text; undefined for what is no token. */
export function tokenIdIn(text: string): string | undefined {
  return FORM.exec(text)?.[1];
}

/** Compared in constant time. */
export function isTokenOf(text: string, { id, hash }: Pick<StoredToken, 'id' | 'hash'>): boolean {
  const [, shownId, secret] = FORM.exec(text) ?? [];
  return shownId === id && secret !== undefined && timingSafeEqual(hashOf(secret), hash);
}

export function isExpired({ expiresMs }: Pick<StoredToken, 'expiresMs'>, wallMs: number): boolean {
  return expiresMs !== null && expiresMs <= wallMs;
}

function hashOf(secret: string): Uint8Array {
  return createHash('sha256').update(secret).digest();
}
