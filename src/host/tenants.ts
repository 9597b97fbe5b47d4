import { randomUUID } from 'node:crypto';
import type { SQLOutputValue } from 'node:sqlite';
import {
  type Policy,
  type PolicyPage,
  type SetPolicy,
  setPolicySchema,
  type Tenant,
  type TenantPage,
} from '../api/access-resources.ts';
import type { TenantService } from '../api/host-service.ts';
import { isWithin, type Reach, WHOLE_REACH } from '../api/principal.ts';
import type { Clock } from '../base/clock.ts';
import { HostError } from './host-error.ts';
import type { StateDatabase } from './state-database.ts';

/** Of the policy that new tenants get a copy of. */
export const DEFAULT_POLICY = 'default';

interface Page {
  readonly after: string | undefined;
  readonly limit: number;
  readonly reach?: Reach;
}

const TENANT = `
  SELECT name, id, createdMs,
    (SELECT count(*) FROM vms WHERE tenant = tenants.name) AS vms,
    (SELECT coalesce(sum(memoryBytes), 0) FROM vms WHERE tenant = tenants.name) AS memoryBytes,
    (SELECT coalesce(sum(vcpus), 0) FROM vms WHERE tenant = tenants.name) AS vcpus,
    (SELECT coalesce(sum(diskBytes), 0) FROM vms WHERE tenant = tenants.name) AS diskBytes
  FROM tenants`;

/** Those to whom VMs belong, and what their specifications say by default and may not say. */
export class Tenants implements TenantService {
  readonly #database: StateDatabase;
  readonly #clock: Clock;

  constructor(database: StateDatabase, { clock }: { clock: Clock }) {
    this.#database = database;
    this.#clock = clock;
  }

  has(name: string): boolean {
    return this.#database.statement('SELECT 1 FROM tenants WHERE name = ?').get(name) !== undefined;
  }

  idOf(name: string): string | undefined {
    const row = this.#database.statement('SELECT id FROM tenants WHERE name = ?').get(name);
    return row === undefined ? undefined : String(row.id);
  }

  page({ after = '', limit, reach = WHOLE_REACH }: Page): TenantPage {
    const rows = this.#database
      .statement(`${TENANT} WHERE name > ?1 AND (?2 IS NULL OR name = ?2) ORDER BY name LIMIT ?3`)
      .all(after, reach.tenant ?? null, limit + 1);
    const tenants = rows.slice(0, limit).map(tenantFrom);
    return { tenants, next: rows.length > limit ? (tenants.at(-1)?.name ?? null) : null };
  }

  /** With a copy of the policy `default`. @throws HostError HOST_TENANT_EXISTS */
  create(name: string): Tenant {
    return this.#database.transaction(() => {
      if (this.has(name) || name === DEFAULT_POLICY) {
        throw new HostError('HOST_TENANT_EXISTS', `the name ${name} is taken`, {
          hint: 'Choose another name, or use the tenant that there is.',
          facts: { tenant: name },
        });
      }
      const nowMs = this.#clock.wallMs();
      this.#database
        .statement('INSERT INTO tenants (name, id, createdMs) VALUES (?, ?, ?)')
        .run(name, randomUUID(), nowMs);
      this.#database
        .statement(
          'INSERT INTO policies (name, version, policy, changedMs) SELECT ?, ?, policy, ? FROM policies WHERE name = ?',
        )
        .run(name, this.#nextVersion(), nowMs, DEFAULT_POLICY);
      return this.#get(name);
    });
  }

  /**
   * With its policy and its tokens; what happened to it is for the host alone from now on, so that nobody hears of it to
   * whom its name is given later. @throws HostError HOST_TENANT_UNKNOWN, HOST_TENANT_OWNS_VMS
   */
  delete(name: string): void {
    this.#database.transaction(() => {
      const { vms } = this.#get(name);
      if (vms > 0) {
        throw new HostError('HOST_TENANT_OWNS_VMS', `${name} owns ${vms} VMs`, {
          hint: 'Delete them first, and wait until they are gone.',
          facts: { tenant: name, vms },
        });
      }
      this.#database.statement('UPDATE events SET tenant = NULL WHERE tenant = ?').run(name);
      this.#database.statement('DELETE FROM tenants WHERE name = ?').run(name);
      this.#database.statement('DELETE FROM policies WHERE name = ?').run(name);
    });
  }

  policies({ after = '', limit, reach = WHOLE_REACH }: Page): PolicyPage {
    const rows = this.#database
      .statement(
        'SELECT * FROM policies WHERE name > ?1 AND (?2 IS NULL OR name = ?2) ORDER BY name LIMIT ?3',
      )
      .all(after, reach.tenant ?? null, limit + 1);
    const policies = rows.slice(0, limit).map(policyFrom);
    return { policies, next: rows.length > limit ? (policies.at(-1)?.name ?? null) : null };
  }

  /** @throws HostError HOST_POLICY_UNKNOWN */
  policy(name: string, { reach = WHOLE_REACH }: Pick<Page, 'reach'> = {}): Policy {
    const row = this.#database.statement('SELECT * FROM policies WHERE name = ?').get(name);
    if (row !== undefined && isWithin(name, reach)) return policyFrom(row);
    throw new HostError('HOST_POLICY_UNKNOWN', `there is no policy ${name}`, {
      hint: 'There is one for every tenant, and `default`.',
      facts: { policy: name },
    });
  }

  /** @throws HostError HOST_POLICY_UNKNOWN, HOST_POLICY_CHANGED */
  setPolicy(name: string, policy: SetPolicy, { ifVersion }: { ifVersion: number }): Policy {
    return this.#database.transaction(() => {
      const { version } = this.policy(name);
      if (version !== ifVersion) {
        throw new HostError('HOST_POLICY_CHANGED', `${name} is at version ${version}, not ${ifVersion}`, {
          hint: 'Somebody changed it meanwhile: read it again and decide anew.',
          facts: { policy: name, version },
        });
      }
      this.#database
        .statement('UPDATE policies SET version = ?, policy = ?, changedMs = ? WHERE name = ?')
        .run(this.#nextVersion(), JSON.stringify(policy), this.#clock.wallMs(), name);
      return this.policy(name);
    });
  }

  #get(name: string): Tenant {
    const row = this.#database.statement(`${TENANT} WHERE name = ?`).get(name);
    if (row !== undefined) return tenantFrom(row);
    throw tenantUnknown(name);
  }

  /** Of the numbers that versions of specifications have too: no tag fits another policy of the same name. */
  #nextVersion(): number {
    const row = this.#database
      .statement("UPDATE counters SET value = value + 1 WHERE name = 'version' RETURNING value")
      .get();
    return Number(row?.value);
  }
}

export function tenantUnknown(name: string): HostError {
  return new HostError('HOST_TENANT_UNKNOWN', `there is no tenant ${name}`, {
    hint: '`understudy tenant ls` lists them.',
    facts: { tenant: name },
  });
}

function tenantFrom(row: Record<string, SQLOutputValue>): Tenant {
  return {
    name: String(row.name),
    id: String(row.id),
    createdAt: new Date(Number(row.createdMs)).toISOString(),
    vms: Number(row.vms),
    memoryBytes: Number(row.memoryBytes),
    vcpus: Number(row.vcpus),
    diskBytes: Number(row.diskBytes),
  };
}

/** What a policy leaves out has the default of the version that reads it. */
function policyFrom(row: Record<string, SQLOutputValue>): Policy {
  return {
    name: String(row.name),
    version: Number(row.version),
    ...setPolicySchema.parse(JSON.parse(String(row.policy))),
    changedAt: new Date(Number(row.changedMs)).toISOString(),
  };
}
