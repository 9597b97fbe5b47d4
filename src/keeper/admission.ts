import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { PAGE_BYTES } from '../base/units.ts';
import { needsEpochs } from '../config/spec-disks.ts';
import type { DiskSpec, VmSpec } from '../config/vm-spec-schema.ts';
import type { KeeperRecord } from '../control/keeper-record.ts';
import { dropAllRelics } from '../control/relic.ts';
import { RunDirectory } from '../control/run-directory.ts';
import { memoryRoot, runPaths } from '../control/run-paths.ts';
import { assertRoom } from '../memory/guest-memory.ts';
import { WRITES_BYTES_MAX } from '../replication/epoch-writes.ts';
import { HELD_BYTES_MAX } from './vm-disk.ts';

/** Staged epochs beyond those in flight: the latest one, and one that waits to be applied. */
export const SPARE_SLOTS = 2;

type NeededDisk = Pick<DiskSpec, 'readOnly' | 'unprotectedDisk' | 'size'>;

type Needs = Pick<VmSpec, 'memoryBytes'> & {
  readonly shadow: Pick<VmSpec['shadow'], 'enabled' | 'dirtyPagesMax' | 'epochsInFlightMax'>;
  readonly boot: { readonly disk?: NeededDisk | undefined };
  readonly disks: readonly NeededDisk[];
};

const diskSchema = z.object({
  ...{ readOnly: z.boolean(), unprotectedDisk: z.boolean(), size: z.number().optional() },
});
const needsSchema: z.ZodType<Needs> = z.object({
  memoryBytes: z.number(),
  shadow: z.object({ enabled: z.boolean(), dirtyPagesMax: z.number(), epochsInFlightMax: z.number() }),
  boot: z.object({ disk: diskSchema.optional() }),
  disks: z.array(diskSchema),
});

/**
 * Sees that memory is promised once: what the VM may come to need has to be free beyond what the other VMs of this user
 * were promised and have not used yet. A file system in memory that fills up kills the QEMUs on it. Of a VM that `runs`,
 * what it has in use counts as given; `besidesBytes` are wanted for something else of it.
 * @throws MemoryError MEMORY_NO_ROOM
 */
export function admit(spec: VmSpec, { runs = false, besidesBytes = 0 } = {}): void {
  const needed = runs ? unusedBytes(spec.name, spec) : roomNeededBytes(spec);
  assertRoomBesideRelics(needed + besidesBytes + promisedBytes(spec.name));
}

/** What the VMs that run here, but for this one, were promised and have not used yet. */
export function promisedBytes(exceptVm: string): number {
  return RunDirectory.list()
    .filter(({ name, keeper }) => keeper === 'alive' && name !== exceptVm)
    .map(({ name, record }) => ({ name, needs: needsOf(record) }))
    .reduce((sum, { name, needs }) => sum + (needs === undefined ? 0 : unusedBytes(name, needs)), 0);
}

/** What may be of use some day goes before what is needed. */
function assertRoomBesideRelics(neededBytes: number): void {
  try {
    assertRoom(memoryRoot(), neededBytes);
  } catch (cause) {
    if (!dropAllRelics()) throw cause;
    assertRoom(memoryRoot(), neededBytes);
  }
}

/** A shadow may have been asked for, or given up, since the VM was started. */
function needsOf(record: KeeperRecord | undefined): Needs | undefined {
  const needs = needsSchema.safeParse(record?.spec).data;
  const enabled = record?.shadowWanted ?? needs?.shadow.enabled ?? false;
  return needs && { ...needs, shadow: { ...needs.shadow, enabled } };
}

/**
 * How much memory-backed room a VM may come to need: its memory, its shadow's, and the epochs between them with what is written
 * to its disks. Any epoch may have as much of that as a disk holds before its guest waits.
 */
export function roomNeededBytes({ memoryBytes, shadow, boot, disks }: Needs): number {
  if (!shadow.enabled) return memoryBytes;
  const writesBytes = [...(boot.disk === undefined ? [] : [boot.disk]), ...disks]
    .filter(needsEpochs)
    .reduce((sum, { size = HELD_BYTES_MAX }) => sum + Math.min(size, HELD_BYTES_MAX), 0);
  const epochBytes =
    Math.min(memoryBytes, shadow.dirtyPagesMax * PAGE_BYTES) + Math.min(writesBytes, WRITES_BYTES_MAX);
  return 2 * memoryBytes + (shadow.epochsInFlightMax + SPARE_SLOTS) * epochBytes;
}

function unusedBytes(name: string, needs: Needs): number {
  return Math.max(0, roomNeededBytes(needs) - usedBytes(runPaths(name).memory));
}

function usedBytes(directory: string): number {
  try {
    return readdirSync(directory, { recursive: true, encoding: 'utf8' })
      .map((entry) => statSync(join(directory, entry)).blocks * 512)
      .reduce((sum, bytes) => sum + bytes, 0);
  } catch {
    // It ends just now.
    return 0;
  }
}
