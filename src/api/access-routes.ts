import { z } from 'zod';
import {
  createTenantSchema,
  policyPageSchema,
  policySchema,
  setPolicySchema,
  tenantPageSchema,
  tenantSchema,
} from './access-resources.ts';
import { tenantNameSchema } from './principal.ts';
import { entityTag, limit, nothing, type Route } from './route-parts.ts';

const oneTenant = z.strictObject({ name: tenantNameSchema });
const pageByName = z.strictObject({ after: tenantNameSchema.optional(), limit });

/** To whom VMs belong, and what is allowed to them. */
export const accessRoutes = {
  listTenants: {
    method: 'GET',
    path: '/v1/tenants',
    role: 'admin',
    hostOnly: true,
    summary: 'Tenants by name.',
    query: pageByName,
    status: 200,
    answer: tenantPageSchema,
  },
  createTenant: {
    method: 'POST',
    path: '/v1/tenants',
    role: 'admin',
    hostOnly: true,
    summary: 'Make a tenant. It gets a copy of the policy `default` under its own name.',
    body: createTenantSchema,
    status: 201,
    answer: tenantSchema,
  },
  deleteTenant: {
    method: 'DELETE',
    path: '/v1/tenants/{name}',
    role: 'admin',
    hostOnly: true,
    summary: 'Forget a tenant that owns no VM, with its policy and its tokens.',
    params: oneTenant,
    status: 204,
    answer: nothing,
  },
  listPolicies: {
    method: 'GET',
    path: '/v1/policies',
    role: 'admin',
    summary: 'Policies by name. An administrator of a tenant gets that of the tenant.',
    query: pageByName,
    status: 200,
    answer: policyPageSchema,
  },
  getPolicy: {
    method: 'GET',
    path: '/v1/policies/{name}',
    role: 'admin',
    summary:
      'One policy: what specifications of a tenant say by default, and what they may not. Has an ETag.',
    params: oneTenant,
    status: 200,
    answer: policySchema,
  },
  setPolicy: {
    method: 'PUT',
    path: '/v1/policies/{name}',
    role: 'admin',
    hostOnly: true,
    summary:
      'Change a policy, whole. VMs that run are not touched; it holds when one is declared, changed or started.',
    params: oneTenant,
    headers: z.object({ 'if-match': entityTag }),
    body: setPolicySchema,
    status: 200,
    answer: policySchema,
  },
} as const satisfies Record<string, Route>;
