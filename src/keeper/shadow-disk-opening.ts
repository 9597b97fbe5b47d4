import { statSync } from 'node:fs';
import { dirname } from 'node:path';
import { formatBytes } from '../base/units.ts';
import type { BlockDevice } from '../block/block-device.ts';
import type { BlockError } from '../block/block-error.ts';
import { openCopyTarget, type TargetFormat } from '../block/copy-target.ts';
import { checkDiskImage } from '../block/disk-image.ts';
import { createImage } from '../block/image-creation.ts';
import { journalPathOf } from '../block/journal-file.ts';
import { NbdClientDevice } from '../block/nbd-client-device.ts';
import { disksOf, needsEpochs, type SpecDisk } from '../config/spec-disks.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import { KeeperError } from '../control/keeper-error.ts';
import { allocatedBytesOf, freeBytesOf } from '../linux/file.ts';
import { identityOf } from '../qemu/qemu-process.ts';
import type { PeerWords } from '../replication/peer-messages.ts';
import type { ShadowDisk } from '../replication/shadow-disks.ts';
import { openLower } from './lower-device.ts';
import type { QcowLayerOptions } from './qcow-layer.ts';

type Hello = Extract<PeerWords, { kind: 'hello' }>;

/** A disk of a VM that acts elsewhere, and the image that becomes its copy. */
export interface CopyOfDisk extends ShadowDisk {
  readonly disk: SpecDisk;
  /** There was an older copy. */
  readonly isHeld: boolean;
}

export type CopiesOptions = Omit<QcowLayerOptions, 'disk'>;

/**
 * Opens, or makes, the images that become copies of the disks of a VM that acts on another host, at the paths that its
 * specification gives. They are marked as unfinished, and nothing in them has changed.
 * @throws KeeperError KEEPER_PEER_REFUSED; BlockError BLOCK_COPY_FOREIGN, BLOCK_TOKEN_STALE,
 * BLOCK_IMAGE_UNFIT, BLOCK_IMAGE_FOREIGN; QemuError QEMU_DISK_IN_USE; Error of Node
 */
export async function openCopies(
  spec: VmSpec,
  { disks }: Pick<Hello, 'disks'>,
  options: CopiesOptions,
): Promise<CopyOfDisk[]> {
  const wanted = disks.map((it) => ({ ...it, disk: copiable(spec, it.name) }));
  const names = new Set(disks.map(({ name }) => name));
  if (names.size < disks.length) throw refused('it has a disk twice', COMPARE_RELEASES);
  // The guest would go on with whatever lies here in its place.
  const lacking = disksOf(spec).find(({ id, disk }) => needsEpochs(disk) && !names.has(id));
  if (lacking !== undefined)
    throw refused(`its disk ${lacking.id} is written to and would not be copied`, COMPARE_RELEASES);
  assertDiskRoom(wanted.map(({ usedBytes, disk }) => ({ usedBytes, path: disk.disk.path })));
  await using opening = new AsyncDisposableStack();
  const copies: CopyOfDisk[] = [];
  for (const { name, identity, sizeBytes, token, disk } of wanted) {
    const { path } = disk.disk;
    const { image, isNew } = await openCopyTarget(
      {
        imagePath: path,
        journalPath: journalPathOf(path),
        format: formatOf(disk, { sizeBytes, ...options }),
      },
      { identity, token, diskBytes: sizeBytes },
    );
    opening.use(image);
    copies.push({ name, image, disk, token, isHeld: !isNew, lost: lostOf(image.device) });
  }
  opening.move();
  return copies;
}

/**
 * Whether what is copied fits, before anything is made. Holes are not counted: a guest may never fill them, and one that does
 * costs itself its shadow.
 * @throws KeeperError KEEPER_HOST_NO_ROOM; Error of Node: there is no such folder
 */
export function assertDiskRoom(
  disks: readonly { readonly path: string; readonly usedBytes: number }[],
): void {
  const needs = disks.map(({ path, usedBytes }) => ({
    folder: dirname(journalPathOf(path)),
    neededBytes: Math.max(0, usedBytes - allocatedBytesOf(path)),
  }));
  const byDevice = Map.groupBy(needs, ({ folder }) => statSync(folder).dev);
  for (const onDevice of byDevice.values()) {
    const [{ folder } = { folder: '/' }] = onDevice;
    const neededBytes = onDevice.reduce((sum, each) => sum + each.neededBytes, 0);
    const freeBytes = freeBytesOf(folder);
    if (neededBytes <= freeBytes) continue;
    throw new KeeperError(
      'KEEPER_HOST_NO_ROOM',
      `${folder} has ${formatBytes(freeBytes)} free, and the disks of the shadow need ${formatBytes(neededBytes)}`,
      {
        hint: 'Make room there, or name another host in shadow.hosts.',
        facts: { folder, freeBytes, neededBytes },
      },
    );
  }
}

function copiable(spec: VmSpec, name: string): SpecDisk {
  const found = disksOf(spec).find(({ id }) => id === name);
  if (found === undefined || found.disk.readOnly)
    throw refused(`its disk ${JSON.stringify(name)} is none that can be copied by the specification`);
  if (found.disk.backing !== undefined)
    throw refused(`its disk ${name} stands on another image, which is not copied`);
  return found;
}

/** Undefined: raw. An image that is there is never made to fit another disk than the one that it was made for. */
function formatOf(
  disk: SpecDisk,
  { sizeBytes, ...options }: CopiesOptions & { readonly sizeBytes: number },
): TargetFormat | undefined {
  if (disk.disk.format === 'raw') return undefined;
  const sized = { ...disk.disk, size: sizeBytes };
  const owner = options.user === undefined ? undefined : identityOf(options.user);
  return {
    check: () => void checkDiskImage(sized),
    open: async (isNew) => {
      if (isNew) await createImage(sized, { owner });
      // It was made in the size of the disk, or checked for that.
      return { device: await openLower({ ...options, disk }), resize: async () => {} };
    },
  };
}

function lostOf(device: BlockDevice): Promise<BlockError> | undefined {
  return device instanceof NbdClientDevice ? device.lost : undefined;
}

const CONVERT = 'Make the image one that stands alone with qemu-img convert, or make the disk readOnly.';
const COMPARE_RELEASES = 'Run the same version of understudy on both hosts.';

function refused(why: string, hint = CONVERT): KeeperError {
  return new KeeperError('KEEPER_PEER_REFUSED', `the shadow cannot be kept here: ${why}`, { hint });
}
