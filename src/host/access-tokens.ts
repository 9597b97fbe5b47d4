import { isExpired, makeToken, type StoredToken } from '../api/access-token.ts';
import type { Role } from '../api/principal.ts';
import type { CreateToken, NewToken, Token, TokenPage } from '../api/resources.ts';
import type { Clock } from '../base/clock.ts';
import { HostError } from './host-error.ts';
import type { StateDatabase } from './state-database.ts';

/** Tokens by which others may use this host. Their secrets are not kept. */
export class AccessTokens {
  readonly #database: StateDatabase;
  readonly #clock: Clock;

  constructor(database: StateDatabase, { clock }: { clock: Clock }) {
    this.#database = database;
    this.#clock = clock;
  }

  create({ name, role, expiresInSeconds }: CreateToken): NewToken {
    const { text, id, hash } = makeToken();
    const createdMs = this.#clock.wallMs();
    const expiresMs = expiresInSeconds === null ? null : createdMs + expiresInSeconds * 1000;
    this.#database
      .statement(
        'INSERT INTO accessTokens (id, name, role, hash, createdMs, expiresMs) VALUES (?, ?, ?, ?, ?, ?)',
      )
      .run(id, name, role, hash, createdMs, expiresMs);
    return { ...resourceOf({ id, name, role, hash, createdMs, expiresMs }), token: text };
  }

  /** Those that are valid, by id. */
  page({ after = '', limit }: { after: string | undefined; limit: number }): TokenPage {
    const nowMs = this.#clock.wallMs();
    const rows = this.#database
      .statement(
        'SELECT * FROM accessTokens WHERE id > ? AND (expiresMs IS NULL OR expiresMs > ?) ORDER BY id LIMIT ?',
      )
      .all(after, nowMs, limit + 1);
    const tokens = rows.slice(0, limit).map((row) => resourceOf(tokenFrom(row)));
    return { tokens, next: rows.length > limit ? (tokens.at(-1)?.id ?? null) : null };
  }

  find(id: string): StoredToken | undefined {
    const row = this.#database.statement('SELECT * FROM accessTokens WHERE id = ?').get(id);
    return row === undefined ? undefined : tokenFrom(row);
  }

  /** @throws HostError HOST_TOKEN_UNKNOWN */
  revoke(id: string): void {
    const token = this.find(id);
    this.#database.statement('DELETE FROM accessTokens WHERE id = ?').run(id);
    if (token !== undefined && !isExpired(token, this.#clock.wallMs())) return;
    throw new HostError('HOST_TOKEN_UNKNOWN', `there is no token ${id}`, {
      hint: '`understudy token ls` lists them; one that has expired is gone.',
      facts: { token: id },
    });
  }
}

function tokenFrom(row: Record<string, unknown>): StoredToken {
  return {
    id: String(row.id),
    name: String(row.name),
    role: row.role as Role,
    hash: row.hash as Uint8Array,
    createdMs: Number(row.createdMs),
    expiresMs: row.expiresMs === null ? null : Number(row.expiresMs),
  };
}

function resourceOf({ id, name, role, createdMs, expiresMs }: StoredToken): Token {
  const expiresAt = expiresMs === null ? null : new Date(expiresMs).toISOString();
  return { id, name, role, createdAt: new Date(createdMs).toISOString(), expiresAt };
}
