import { randomUUID } from 'node:crypto';
import { limitsSchema, type Policy, type SetPolicy, type Tenant } from './access-resources.ts';
import { ApiError, type ApiErrorCode } from './api-error.ts';
import type { TenantService } from './host-service.ts';
import { isWithin, WHOLE_REACH } from './principal.ts';

const TIME = '2026-01-01T00:00:00.000Z';

type Page = Parameters<TenantService['page']>[0];

interface MemoryTenantsOptions {
  readonly owns: (tenant: string) => boolean;
  readonly onDelete: (tenant: string) => void;
}

/** Tenants and policies in memory, for the tests of this room. */
export class MemoryTenants implements TenantService {
  readonly #tenants = new Map<string, Tenant>();
  readonly #policies = new Map<string, Policy>([['default', policy('default')]]);
  readonly #options: MemoryTenantsOptions;

  constructor(options: MemoryTenantsOptions) {
    this.#options = options;
  }

  idOf(name: string): string | undefined {
    return this.#tenants.get(name)?.id;
  }

  has(name: string): boolean {
    return this.#tenants.has(name);
  }

  page({ limit, reach = WHOLE_REACH }: Page) {
    const tenants = [...this.#tenants.values()].filter(({ name }) => isWithin(name, reach));
    return { tenants: tenants.slice(0, limit), next: null };
  }

  /** With an id that is made up, unless it has to be the one of before. */
  create(name: string, { id = randomUUID() }: { id?: string } = {}): Tenant {
    if (this.#tenants.has(name)) throw hostError('HOST_TENANT_EXISTS');
    const tenant = {
      name,
      id,
      createdAt: TIME,
      vms: 0,
      memoryBytes: 0,
      vcpus: 0,
      diskBytes: 0,
    };
    this.#tenants.set(name, tenant);
    this.#policies.set(name, policy(name));
    return tenant;
  }

  delete(name: string): void {
    if (!this.#tenants.has(name)) throw hostError('HOST_TENANT_UNKNOWN');
    if (this.#options.owns(name)) throw hostError('HOST_TENANT_OWNS_VMS');
    this.#tenants.delete(name);
    this.#policies.delete(name);
    this.#options.onDelete(name);
  }

  policies({ limit, reach = WHOLE_REACH }: Page) {
    const policies = [...this.#policies.values()].filter(({ name }) => isWithin(name, reach));
    return { policies: policies.slice(0, limit), next: null };
  }

  policy(name: string, { reach = WHOLE_REACH }: Pick<Page, 'reach'> = {}): Policy {
    const found = this.#policies.get(name);
    if (found === undefined || !isWithin(name, reach)) throw hostError('HOST_POLICY_UNKNOWN');
    return found;
  }

  setPolicy(name: string, { defaults, limits }: SetPolicy, { ifVersion }: { ifVersion: number }): Policy {
    const { version } = this.policy(name);
    if (version !== ifVersion) throw hostError('HOST_POLICY_CHANGED');
    const changed = { ...policy(name), version: version + 1, defaults, limits };
    this.#policies.set(name, changed);
    return changed;
  }

  /** Everything that a request could have changed. */
  state(): unknown {
    return [[...this.#tenants], [...this.#policies]];
  }
}

function policy(name: string): Policy {
  return { name, version: 1, defaults: {}, limits: limitsSchema.parse({}), changedAt: TIME };
}

/** As the client does it: the code is one of another module. */
function hostError(code: string): ApiError {
  return new ApiError(code as ApiErrorCode, code);
}
