import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { z } from 'zod';
import { errnoNameOf } from '../linux/linux-error.ts';
import { standingLimitsSchema } from './limits-status.ts';
import { processIdentitySchema } from './process-identity.ts';

const recordedQemuSchema = z.object({ instance: z.int().positive(), process: processIdentitySchema });

const recordSchema = z.object({
  bootId: z.string(),
  keeper: processIdentitySchema,
  /** As it was checked and completed when the keeper started. For people: nothing is decided by it. */
  spec: z.unknown(),
  /** QEMU and helper processes of the VM. */
  processes: z.array(processIdentitySchema),
  /** Directories in the cgroup file system. */
  cgroups: z.array(z.string()),
  /** The standby of a shadow that is in sync, by its number: a next keeper can go on from it. */
  shadow: z.int().positive().nullable().default(null),
  /** Of the QEMU that acts, written before it does; a next keeper goes on above it. */
  token: z.int().nonnegative().default(0),
  /** Whether a shadow is wanted for the VM, which may be another wish than its specification's; null: as that says. */
  shadowWanted: z.boolean().nullable().default(null),
  /** What the VM may use by order; null: there was none. */
  limits: standingLimitsSchema.nullable().default(null),
  /** The QEMU that acts: if its keeper is killed, the next one can take it back. */
  acting: recordedQemuSchema.nullable().default(null),
  /** The last epoch that was committed when this was written: numbers go on from it. */
  committed: z.int().nonnegative().default(0),
  /** What its guest was told which future it is in; kept as long as the VM goes on. */
  generationId: z.uuid().nullable().default(null),
  /** The VM ended by a failure, and what is left are its logs. */
  failed: z.boolean(),
});

/** One QEMU of a VM: its number, which names its files, and its process. */
export type RecordedQemu = z.infer<typeof recordedQemuSchema>;

/** `keeper.json`: what has to be cleaned up when the keeper is killed. */
export type KeeperRecord = z.infer<typeof recordSchema>;

/** `absent` when there is no record, undefined when it cannot be read. */
export function readRecord(path: string): KeeperRecord | undefined | 'absent' {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (thrown) {
    return errnoNameOf(thrown) === 'ENOENT' ? 'absent' : undefined;
  }
  try {
    return recordSchema.parse(JSON.parse(text));
  } catch {
    return undefined;
  }
}

/** Renamed into place: whoever cleans up finds the old or the new record, never half of one. */
export function writeRecord(path: string, record: KeeperRecord): void {
  writeFileSync(`${path}.new`, `${JSON.stringify(record, null, 2)}\n`, { mode: 0o600 });
  renameSync(`${path}.new`, path);
}
