import { z } from 'zod';
import { PHASES } from '../shadow/protection.ts';
import { ROLES, tenantNameSchema } from './principal.ts';

/**
 * What the API of a host speaks of. These schemas are the only description of it: the server validates with them,
 * the OpenAPI document is made from them, and the client's types are theirs.
 */

export const vmNameSchema = z
  .string()
  .regex(/^[a-z0-9][a-z0-9-]{0,39}$/, 'expected 1 to 40 of a-z 0-9 -, not beginning with -')
  .meta({ description: 'Name of a VM, unique on its host.', examples: ['redis-demo'] });

/** What the VM does, as far as the host knows. */
export const observedStateSchema = z
  .enum(['absent', 'elsewhere', ...PHASES, 'lost', 'failed', 'no-answer'])
  .meta({
    description:
      'absent: nothing of it exists. elsewhere: another host acts as it. shadowing: one does, and its shadow is here. lost: its keeper was killed. failed: it ended by a fault and left its logs. ' +
      'no-answer: its keeper does not answer. All others: the phase that its keeper reports.',
  });

export const desiredStateSchema = z.enum(['running', 'stopped']);

/** Null where the state is damaged. */
export const savedStateSchema = z
  .object({
    savedAt: z.iso.datetime().nullable(),
    sizeBytes: z.int().nonnegative().nullable(),
    epoch: z.int().nonnegative().nullable(),
    problem: z.object({ code: z.string(), message: z.string() }).nullable(),
  })
  .meta({ id: 'SavedState' });

export const vmSchema = z
  .object({
    name: vmNameSchema,
    tenant: tenantNameSchema.nullable().meta({ description: "Whose it is; null: the host's own." }),
    /** Grows with every change of the specification; also the entity tag. */
    version: z.int().positive(),
    spec: z.string().meta({ description: 'The specification as it was declared, YAML.' }),
    directory: z.string().meta({ description: 'Where relative paths in the specification begin.' }),
    desired: desiredStateSchema,
    shadowWanted: z
      .boolean()
      .meta({ description: 'Whether it is to be protected by a shadow while it runs.' }),
    saved: z.object({
      suspended: savedStateSchema
        .nullable()
        .meta({ description: 'Where it goes on at its next start; used up by that.' }),
      snapshot: savedStateSchema
        .nullable()
        .meta({ description: 'Where it can be started from, again and again.' }),
    }),
    observed: z.object({
      state: observedStateSchema,
      /** Of the specification that it was started with; null while nothing of it runs. */
      version: z.int().positive().nullable(),
      keeperPid: z.int().positive().nullable(),
      actsOn: z
        .string()
        .nullable()
        // A daemon of an older version does not say.
        .default(null)
        .meta({ description: 'The host of the site that acts as it, where that is another one.' }),
      /** Why it is not as desired, where that is known. */
      problem: z.object({ code: z.string(), message: z.string(), hint: z.string().optional() }).nullable(),
    }),
    createdAt: z.iso.datetime(),
    changedAt: z.iso.datetime(),
  })
  .meta({ id: 'Vm' });

export const vmPageSchema = z
  .object({
    vms: z.array(vmSchema),
    next: z
      .string()
      .nullable()
      .meta({ description: 'To be given as `after` for the next page; null on the last.' }),
  })
  .meta({ id: 'VmPage' });

export const declareVmSchema = z
  .strictObject({
    spec: z
      .string()
      .min(1)
      .max(1024 * 1024)
      .meta({ description: 'A VM specification in YAML.' }),
    directory: z
      .string()
      .startsWith('/')
      .max(4096)
      .default('/')
      .meta({ description: 'Where relative paths in it begin.' }),
    desired: desiredStateSchema.default('running'),
    tenant: tenantNameSchema
      .nullish()
      .meta({ description: 'Whose it is to be; by default of whoever asks.' }),
  })
  .meta({ id: 'DeclareVm' });

export const changeVmSchema = declareVmSchema.omit({ desired: true, tenant: true }).meta({ id: 'ChangeVm' });

export const stopVmSchema = z
  .strictObject({
    graceful: z
      .boolean()
      .default(true)
      .meta({ description: 'Press the power button and wait, before it is killed.' }),
    termination: z
      .enum(['remove', 'suspend', 'snapshot'])
      .optional()
      .meta({
        description:
          'What becomes of its state: nothing is kept; it goes on from it at the next start; or it is powered off and ' +
          'can be started from it. By default what the specification says, if it is stopped gracefully.',
      }),
  })
  .meta({ id: 'StopVm' });

export const startVmSchema = z
  .strictObject({
    from: z.literal('snapshot').optional().meta({
      description: 'Go on from its snapshot. By default from where it was suspended, or by booting.',
    }),
    discard: z.boolean().default(false).meta({ description: 'Give the state up that it was suspended in.' }),
  })
  .meta({ id: 'StartVm' });

export const migrateVmSchema = z
  .strictObject({
    to: z
      .string()
      .min(1)
      .max(64)
      .optional()
      .meta({ description: 'A host of the site; by default where its shadow is.' }),
    wait: z
      .enum(['protected', 'moved'])
      .default('protected')
      .meta({ description: 'When to answer: it is protected there, or it acts there.' }),
    timeoutSeconds: z
      .number()
      .positive()
      .max(1800)
      .default(300)
      .meta({ description: 'For a shadow in sync there, and once more for one in the other direction.' }),
  })
  .meta({ id: 'MigrateVm' });

export const migrationSchema = z
  .object({
    name: vmNameSchema,
    from: z.string(),
    to: z.string(),
    token: z.int().nonnegative().meta({ description: 'On record, of the host that acts now.' }),
    pauseMs: z
      .number()
      .nonnegative()
      .meta({ description: 'From the last instruction here until it was heard that the guest runs there.' }),
    promoteMs: z
      .number()
      .nonnegative()
      .meta({ description: 'The part of it that the other host took to let it run.' }),
    protected: z
      .boolean()
      .meta({ description: 'Whether a shadow in the other direction is in sync by now.' }),
    shadowHost: z.string().nullable(),
  })
  .meta({ id: 'Migration' });

export const lodgerPageSchema = z
  .object({
    lodgers: z.array(
      z.object({
        name: vmNameSchema,
        state: z.enum([...PHASES, 'no-answer']),
        actsOn: z
          .string()
          .nullable()
          .meta({ description: 'Of a shadow: the host that acts. null: it acts here, or does not answer.' }),
        memoryBytes: z.int().nonnegative().nullable(),
      }),
    ),
  })
  .meta({
    id: 'LodgerPage',
    description: 'VMs on this machine that are not declared on it: it lets them be.',
  });

const tookMs = z.number().nonnegative().nullable();

export const failoverReportSchema = z
  .object({
    ok: z.boolean().meta({ description: 'A QEMU on a copy of the shadow took the state and ran on.' }),
    reason: z.object({ code: z.string(), message: z.string() }).nullable(),
    epoch: z
      .int()
      .nonnegative()
      .nullable()
      .meta({ description: 'The committed epoch that it went on from.' }),
    copyMs: tookMs,
    heldMs: tookMs.meta({ description: 'As part of copyMs: how long the real shadow did not apply epochs.' }),
    loadMs: tookMs,
    runningMs: tookMs,
    agentAnswered: z
      .boolean()
      .nullable()
      .meta({ description: 'null: the guest has never been heard on the agent channel.' }),
    memoryBytes: z.int().nonnegative().nullable(),
  })
  .meta({ id: 'FailoverReport', description: 'null for what the test did not come to.' });

export const hostEventSchema = z
  .object({
    id: z
      .int()
      .positive()
      .meta({ description: 'Counts the events of this host; `Last-Event-ID` of the stream.' }),
    time: z.iso.datetime(),
    vm: z.string().nullable(),
    tenant: tenantNameSchema.nullable().meta({ description: "Whose it is; null: the host's own." }),
    kind: z
      .string()
      .regex(/^[a-z][a-z0-9-]*$/)
      .meta({ examples: ['promoted'] }),
    token: z
      .int()
      .nonnegative()
      .nullable()
      .meta({
        description:
          'Grows each time that another QEMU of the VM begins to act, and never goes back: of two events the one with ' +
          'the lower token comes from a machine that acts no more. null for what the host did.',
      }),
    epoch: z
      .int()
      .nonnegative()
      .nullable()
      .meta({ description: 'Newest committed epoch of the VM when it happened.' }),
    facts: z.record(z.string(), z.unknown()),
  })
  .meta({ id: 'Event' });

export const eventPageSchema = z
  .object({ events: z.array(hostEventSchema), next: z.int().nullable() })
  .meta({ id: 'EventPage' });

export const healthSchema = z
  .object({ status: z.enum(['ok', 'degraded']) })
  .meta({ id: 'Health', description: 'degraded: some VM is not as it is desired to be.' });

/** As the kernel has it: labels, and what else people put there. */
export const hostNameSchema = z
  .string()
  .regex(/^[\w.-]{1,255}$/, 'expected a host name')
  .meta({ description: 'Name of a host.', examples: ['alpha'] });

export const hostSchema = z
  .object({
    name: hostNameSchema,
    version: z.string().meta({ description: 'Of the daemon.' }),
    pid: z.int().positive(),
    startedAt: z.iso.datetime(),
    accel: z.enum(['kvm', 'tcg']).nullable().meta({
      description: 'What runs guests there, as a trial found out; null before the first VM was started.',
    }),
    maintenance: z
      .boolean()
      .default(false)
      .meta({ description: 'It takes neither VMs nor shadows for now.' }),
    cpus: z.int().positive(),
    memory: z.object({
      totalBytes: z.int().nonnegative(),
      freeBytes: z.int().nonnegative().meta({ description: 'What programs may still take.' }),
    }),
    vms: z.object({
      declared: z.int().nonnegative(),
      running: z.int().nonnegative(),
      protected: z.int().nonnegative(),
    }),
  })
  .meta({ id: 'Host' });

export const hostPageSchema = z
  .object({ hosts: z.array(hostSchema), next: hostNameSchema.nullable() })
  .meta({ id: 'HostPage' });

export const tokenIdSchema = z
  .string()
  .regex(/^[0-9a-f]{12}$/, 'expected the id of a token')
  .meta({ examples: ['0123456789ab'] });

export const tokenSchema = z
  .object({
    id: tokenIdSchema,
    name: z.string(),
    role: z.enum(ROLES),
    tenant: tenantNameSchema.nullable().meta({ description: 'Whose VMs it opens; null: the whole host.' }),
    createdAt: z.iso.datetime(),
    expiresAt: z.iso.datetime().nullable(),
  })
  .meta({ id: 'Token' });

export const tokenPageSchema = z
  .object({ tokens: z.array(tokenSchema), next: tokenIdSchema.nullable() })
  .meta({ id: 'TokenPage' });

export const createTokenSchema = z
  .strictObject({
    name: z
      .string()
      .regex(/^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$/, 'expected 1 to 64 of A-Z a-z 0-9 . _ @ -')
      .meta({ description: 'Who it is for; shown in audit events.' }),
    role: z.enum(ROLES),
    tenant: tenantNameSchema.nullish().meta({ description: 'By default that of whoever asks.' }),
    expiresInSeconds: z
      .int()
      .min(1)
      .max(10 * 366 * 24 * 3600)
      .nullable()
      .default(null)
      .meta({ description: 'null: it is valid until it is revoked.' }),
  })
  .meta({ id: 'CreateToken' });

export const newTokenSchema = tokenSchema
  .extend({ token: z.string().meta({ description: 'The secret. Keep it; it cannot be shown again.' }) })
  .meta({ id: 'NewToken' });

/** RFC 9457. */
export const problemSchema = z
  .object({
    type: z.string(),
    title: z.string(),
    status: z.int(),
    detail: z.string(),
    code: z.string().meta({ description: 'Stable; docs/errors.md lists all.' }),
    hint: z.string().optional(),
    problems: z.array(z.string()).optional(),
  })
  .meta({ id: 'Problem' });

export type Vm = z.output<typeof vmSchema>;
export type VmPage = z.output<typeof vmPageSchema>;
export type DeclareVm = z.output<typeof declareVmSchema>;
export type ChangeVm = z.output<typeof changeVmSchema>;
export type StartVm = z.output<typeof startVmSchema>;
export type StopVm = z.output<typeof stopVmSchema>;
export type MigrateVm = z.output<typeof migrateVmSchema>;
export type Migration = z.output<typeof migrationSchema>;
export type LodgerPage = z.output<typeof lodgerPageSchema>;
export type FailoverReport = z.output<typeof failoverReportSchema>;
export type HostEvent = z.output<typeof hostEventSchema>;
export type EventPage = z.output<typeof eventPageSchema>;
export type Health = z.output<typeof healthSchema>;
export type Host = z.output<typeof hostSchema>;
export type HostPage = z.output<typeof hostPageSchema>;
export type Token = z.output<typeof tokenSchema>;
export type TokenPage = z.output<typeof tokenPageSchema>;
export type CreateToken = z.output<typeof createTokenSchema>;
export type NewToken = z.output<typeof newTokenSchema>;
export type Problem = z.output<typeof problemSchema>;
