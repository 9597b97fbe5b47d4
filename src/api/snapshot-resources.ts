import { z } from 'zod';

/** Names of snapshot files: when each was asked for. */
export const snapshotIdSchema = z
  .string()
  .regex(/^\d{8}T\d{9}Z$/, 'expected an id such as 20261127T021500123Z')
  .meta({ examples: ['20261127T021500123Z'] });

const problem = z.object({ code: z.string(), message: z.string() }).nullable();

export const snapshotSchema = z
  .object({
    id: snapshotIdSchema,
    savedAt: z.iso.datetime().nullable(),
    epoch: z.int().nonnegative().nullable(),
    sizeBytes: z.int().nonnegative().nullable(),
    reason: z
      .enum(['manual', 'schedule', 'shutdown'])
      .nullable()
      .meta({ description: 'Somebody asked for it, or the keeper took it by itself.' }),
    isEncrypted: z.boolean().nullable(),
    problem: problem.meta({
      description: 'Why it cannot be gone on from, as far as its beginning and end tell.',
    }),
  })
  .meta({ id: 'Snapshot', description: 'null for what cannot be read.' });

export const snapshotListSchema = z
  .object({ snapshots: z.array(snapshotSchema) })
  .meta({ id: 'SnapshotList', description: 'Newest first.' });

export const takeSnapshotSchema = z
  .strictObject({
    pause: z
      .boolean()
      .default(false)
      .meta({ description: 'A VM without a shadow in sync stands still while it is written.' }),
  })
  .meta({ id: 'TakeSnapshot' });

export const verdictSchema = z
  .object({ id: snapshotIdSchema, ok: z.boolean(), problem })
  .meta({ id: 'SnapshotVerdict' });

export const pruneSnapshotsSchema = z
  .strictObject({
    keep: z.int().min(1).optional().meta({ description: 'So many of the newest stay.' }),
    olderThanSeconds: z.int().min(0).optional().meta({ description: 'What is older goes.' }),
  })
  .refine(({ keep, olderThanSeconds }) => keep !== undefined || olderThanSeconds !== undefined, {
    message: 'expected keep or olderThanSeconds',
  })
  .meta({ id: 'PruneSnapshots' });

export const prunedSchema = z.object({ removed: z.array(snapshotIdSchema) }).meta({ id: 'PrunedSnapshots' });

export type Snapshot = z.output<typeof snapshotSchema>;
export type SnapshotList = z.output<typeof snapshotListSchema>;
export type SnapshotVerdict = z.output<typeof verdictSchema>;
export type TakeSnapshot = z.output<typeof takeSnapshotSchema>;
export type PruneSnapshots = z.output<typeof pruneSnapshotsSchema>;
export type PrunedSnapshots = z.output<typeof prunedSchema>;

/** What the API needs of the snapshot files of a host's VMs. */
export interface SnapshotService {
  /** @throws HostError HOST_VM_UNKNOWN */
  list(vm: string): SnapshotList;
  /** Resolves when it is on disk. @throws HostError HOST_VM_UNKNOWN; KeeperError; SnapshotError */
  take(vm: string, request: TakeSnapshot): Promise<Snapshot>;
  /** Reads all of it. @throws HostError HOST_VM_UNKNOWN; SnapshotError SNAPSHOT_MISSING */
  verify(vm: string, id: string): Promise<SnapshotVerdict>;
  /** @throws HostError HOST_VM_UNKNOWN; SnapshotError SNAPSHOT_MISSING */
  remove(vm: string, id: string): void;
  /** Spares the last one that the VM could go on from. @throws HostError HOST_VM_UNKNOWN */
  prune(vm: string, request: PruneSnapshots): Promise<PrunedSnapshots>;
}
