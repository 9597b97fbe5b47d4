import { z } from 'zod';
import { specDefaultsSchema } from '../config/spec-defaults.ts';
import { tenantNameSchema } from './principal.ts';

/** What the API speaks of when it is about to whom VMs belong, and what is allowed to them. */

export const tenantSchema = z
  .object({
    name: tenantNameSchema,
    id: z.uuid().meta({
      description: 'No other tenant has or had it, also of the same name. Client certificates carry it.',
    }),
    createdAt: z.iso.datetime(),
    vms: z.int().nonnegative().meta({ description: 'How many VMs it owns.' }),
    memoryBytes: z.int().nonnegative().meta({ description: 'Memory of all its VMs together.' }),
    vcpus: z.int().nonnegative().meta({ description: 'vCPUs of all its VMs together.' }),
    diskBytes: z.int().nonnegative().meta({ description: 'Sizes of all their writable disks together.' }),
  })
  .meta({ id: 'Tenant' });

export const createTenantSchema = z.strictObject({ name: tenantNameSchema }).meta({ id: 'CreateTenant' });

export const tenantPageSchema = z
  .object({ tenants: z.array(tenantSchema), next: tenantNameSchema.nullable() })
  .meta({ id: 'TenantPage' });

export const limitsSchema = z
  .strictObject({
    vmsMax: z
      .int()
      .nonnegative()
      .nullable()
      .default(null)
      .meta({ description: 'null: as many as it wants.' }),
    memoryBytesMax: z
      .int()
      .nonnegative()
      .nullable()
      .default(null)
      .meta({ description: 'Memory of all VMs together, shadows not counted; null: as much as there is.' }),
    vcpusMax: z
      .int()
      .nonnegative()
      .nullable()
      .default(null)
      .meta({ description: 'vCPUs of all VMs together, shadows not counted; null: as many as it wants.' }),
    diskBytesMax: z.int().nonnegative().nullable().default(null).meta({
      description:
        'Sizes of all writable disks together, each of which has to say its size then; null: as much as there is.',
    }),
    cpuShareMax: z
      .number()
      .min(0.1)
      .max(64)
      .nullable()
      .default(null)
      .meta({ description: 'CPUs whose time each VM may use, e.g. 1.5; null: as much as there is.' }),
    directories: z
      .array(
        z
          .string()
          .max(4096)
          .regex(/^\/[^\0]*$/, 'expected an absolute path'),
      )
      .max(100)
      .default([])
      .meta({
        description: 'Kernels, initrds and disks may lie below these only. They belong to root alone.',
      }),
    uplinks: z
      .array(z.enum(['tap', 'passt', 'none']))
      .max(3)
      .default(['passt', 'none'])
      .meta({ description: 'How nics may be connected.' }),
  })
  .meta({ id: 'Limits' });

export const policySchema = z
  .object({
    name: tenantNameSchema.meta({
      description: 'That of a tenant, or `default`, which new tenants get a copy of.',
    }),
    version: z.int().positive(),
    defaults: specDefaultsSchema,
    limits: limitsSchema,
    changedAt: z.iso.datetime(),
  })
  .meta({ id: 'Policy' });

export const setPolicySchema = z
  .strictObject({ defaults: specDefaultsSchema.default({}), limits: limitsSchema.prefault({}) })
  .meta({ id: 'SetPolicy' });

export const policyPageSchema = z
  .object({ policies: z.array(policySchema), next: tenantNameSchema.nullable() })
  .meta({ id: 'PolicyPage' });

export type Tenant = z.output<typeof tenantSchema>;
export type TenantPage = z.output<typeof tenantPageSchema>;
export type Limits = z.output<typeof limitsSchema>;
export type Policy = z.output<typeof policySchema>;
export type SetPolicy = z.output<typeof setPolicySchema>;
export type PolicyPage = z.output<typeof policyPageSchema>;
