import { prepareDisks } from '../block/image-creation.ts';
import { disksOf } from '../config/spec-disks.ts';
import { identityOf } from '../qemu/qemu-process.ts';
import type { KeeperOptions } from './keeper-options.ts';
import { ensureFilesWithin } from './refusals.ts';

/**
 * Sees that the images of a VM's disks are as its specification says, and makes those that are missing and may be made.
 * A VM that goes on, from what a keeper left or from a saved state, has used its disks: one that is gone then is a
 * loss, not an occasion.
 * @throws KeeperError KEEPER_FILES_REFUSED; BlockError; QemuError QEMU_USER_UNKNOWN; the signal's reason
 */
export async function prepareImages(
  { spec, directories, log, signal }: KeeperOptions,
  { goesOn }: { goesOn: boolean },
): Promise<void> {
  // Before anything of them is read, and before what stands still is woken.
  ensureFilesWithin(spec, directories);
  const disks = disksOf(spec).map(({ disk }) => disk);
  if (disks.length === 0) return;
  const owner = spec.qemu.user === undefined ? undefined : identityOf(spec.qemu.user);
  for (const path of await prepareDisks(disks, { mayCreate: !goesOn, owner, signal }))
    log.info('disk image made', { path });
}
