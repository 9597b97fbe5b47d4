import { z } from 'zod';
import { desiredStateSchema, hostSchema, observedStateSchema, vmNameSchema } from './resources.ts';

const amount = z.number().nonnegative();
const count = z.int().nonnegative();
const recentSchema = z.object({ p50: amount, p99: amount });

/** What a person watches of a VM. Times in milliseconds, memory in bytes; quantiles are of the recent epochs. */
export const figuresSchema = z
  .object({
    upMs: amount,
    memoryBytes: amount,
    /** Since its keeper started; who asks twice knows the epochs in between. */
    commits: count,
    pauseMs: recentSchema,
    pauseShare: amount,
    dirtyPages: recentSchema,
    heldItems: count,
    heldBytes: count,
    /** Since the newest committed epoch was cut; null while there is none to go on from. */
    lagMs: amount.nullable(),
    promotions: count,
    restarts: count,
    /** Guest minus host at the last reading; null before the first. */
    clockErrorMs: z.number().nullable(),
  })
  .meta({ id: 'Figures' });

export const vmStatsSchema = z
  .object({
    name: vmNameSchema,
    state: observedStateSchema,
    desired: desiredStateSchema,
    figures: figuresSchema.nullable().meta({ description: 'null while its keeper gives no answer.' }),
  })
  .meta({ id: 'VmStats' });

export const statsSchema = z
  .object({
    host: hostSchema,
    vms: z
      .array(vmStatsSchema)
      .meta({ description: 'By name: those that run or shall run. All others do nothing.' }),
  })
  .meta({ id: 'Stats' });

export type Figures = z.output<typeof figuresSchema>;
export type VmStats = z.output<typeof vmStatsSchema>;
export type Stats = z.output<typeof statsSchema>;
