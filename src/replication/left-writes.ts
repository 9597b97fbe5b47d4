import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import type { DiskWrite } from '../block/disk-write.ts';
import { type EpochId, NO_EPOCH } from '../epoch/epoch-id.ts';
import { EpochSlot } from './epoch-slot.ts';
import type { EpochWrites } from './epoch-writes.ts';
import { SLOT_PREFIX } from './shadow-image.ts';

/** What epochs in the slots of a killed keeper wrote to disks. */
export interface LeftWrites {
  /** The last one that was committed. */
  readonly committed: EpochId;
  /** In their order, those that wrote anything. Some may be in the image of a disk already. */
  readonly epochs: readonly { readonly epoch: EpochId; readonly disks: readonly EpochWrites[] }[];
}

/** Looks at a shadow that a killed keeper left, and changes nothing. @throws ReplicationError REPLICATION_EPOCH_CORRUPT */
export function leftWrites(directory: string, { memoryBytes }: { readonly memoryBytes: number }): LeftWrites {
  const epochs = readdirSync(directory)
    .filter((name) => name.startsWith(SLOT_PREFIX))
    .flatMap((name) => committedIn(join(directory, name), memoryBytes) ?? [])
    .sort((one, other) => one.epoch - other.epoch);
  const committed = epochs.at(-1)?.epoch ?? NO_EPOCH;
  return { committed, epochs: epochs.filter(({ disks }) => disks.length > 0) };
}

function committedIn(path: string, memoryBytes: number): LeftWrites['epochs'][number] | undefined {
  const slot = EpochSlot.open(path, { memoryBytes });
  try {
    const staged = slot.read();
    if (staged === undefined) return undefined;
    const disks = staged.disks.map(({ disk, writes }) => ({ disk, writes: writes.map(copyOf) }));
    return { epoch: staged.epoch, disks };
  } finally {
    slot.leave();
  }
}

/** Its bytes are a view of the slot. */
function copyOf(write: DiskWrite): DiskWrite {
  return write.kind === 'data' ? { ...write, bytes: Uint8Array.from(write.bytes) } : write;
}
