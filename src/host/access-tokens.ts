import { isExpired, makeToken, type StoredToken } from '../api/access-token.ts';
import { isWithin, type Reach, type Role, WHOLE_REACH } from '../api/principal.ts';
import type { CreateToken, NewToken, Token, TokenPage } from '../api/resources.ts';
import type { Clock } from '../base/clock.ts';
import { HostError } from './host-error.ts';
import type { StateDatabase } from './state-database.ts';
import { tenantUnknown } from './tenants.ts';

interface Reached {
  readonly reach?: Reach | undefined;
}

/** Tokens by which others may use this host. Their secrets are not kept. */
export class AccessTokens {
  readonly #database: StateDatabase;
  readonly #clock: Clock;

  constructor(database: StateDatabase, { clock }: { clock: Clock }) {
    this.#database = database;
    this.#clock = clock;
  }

  /** @throws HostError HOST_TENANT_UNKNOWN */
  create({ name, role, tenant = null, expiresInSeconds }: CreateToken): NewToken {
    if (
      tenant !== null &&
      this.#database.statement('SELECT 1 FROM tenants WHERE name = ?').get(tenant) === undefined
    )
      throw tenantUnknown(tenant);
    const { text, id, hash } = makeToken();
    const createdMs = this.#clock.wallMs();
    const expiresMs = expiresInSeconds === null ? null : createdMs + expiresInSeconds * 1000;
    this.#database
      .statement(
        'INSERT INTO accessTokens (id, name, role, tenant, hash, createdMs, expiresMs) VALUES (?, ?, ?, ?, ?, ?, ?)',
      )
      .run(id, name, role, tenant, hash, createdMs, expiresMs);
    return { ...resourceOf({ id, name, role, tenant, hash, createdMs, expiresMs }), token: text };
  }

  /** Those that are valid, by id. */
  page({
    after = '',
    limit,
    reach = WHOLE_REACH,
  }: Reached & { after: string | undefined; limit: number }): TokenPage {
    const nowMs = this.#clock.wallMs();
    const rows = this.#database
      .statement(
        'SELECT * FROM accessTokens WHERE id > ?1 AND (expiresMs IS NULL OR expiresMs > ?2) AND (?3 IS NULL OR tenant = ?3) ORDER BY id LIMIT ?4',
      )
      .all(after, nowMs, reach.tenant ?? null, limit + 1);
    const tokens = rows.slice(0, limit).map((row) => resourceOf(tokenFrom(row)));
    return { tokens, next: rows.length > limit ? (tokens.at(-1)?.id ?? null) : null };
  }

  find(id: string): StoredToken | undefined {
    const row = this.#database.statement('SELECT * FROM accessTokens WHERE id = ?').get(id);
    return row === undefined ? undefined : tokenFrom(row);
  }

  /** @throws HostError HOST_TOKEN_UNKNOWN, also for one of somebody else */
  revoke(id: string, { reach = WHOLE_REACH }: Reached = {}): void {
    const found = this.find(id);
    const token = found !== undefined && isWithin(found.tenant, reach) ? found : undefined;
    if (token !== undefined) this.#database.statement('DELETE FROM accessTokens WHERE id = ?').run(id);
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
    tenant: row.tenant === null ? null : String(row.tenant),
    hash: row.hash as Uint8Array,
    createdMs: Number(row.createdMs),
    expiresMs: row.expiresMs === null ? null : Number(row.expiresMs),
  };
}

function resourceOf({ id, name, role, tenant, createdMs, expiresMs }: StoredToken): Token {
  const expiresAt = expiresMs === null ? null : new Date(expiresMs).toISOString();
  return { id, name, role, tenant, createdAt: new Date(createdMs).toISOString(), expiresAt };
}
