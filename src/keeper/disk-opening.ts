import { join } from 'node:path';
import { errorFacts, messageOf } from '../base/errors.ts';
import { disksOf, servedDisks } from '../config/spec-disks.ts';
import { type LeftWrites, leftWrites } from '../replication/left-writes.ts';
import { ReplicationError } from '../replication/replication-error.ts';
import type { ProtectionEvent } from '../shadow/protection.ts';
import { epochsName } from './inheritance.ts';
import type { KeeperOptions } from './keeper-options.ts';
import type { ShadowLife } from './shadow-life.ts';
import type { Origin } from './vm-beginning.ts';
import { VmDisks } from './vm-disks.ts';

/**
 * Opens the disks that commit with epochs, as of where the VM goes on from. Nothing of what a killed keeper left is changed
 * but the images, which may be brought to that point again.
 * @throws BlockError, QemuError QEMU_DISK_IN_USE, errors of Node
 */
export async function openDisks(options: KeeperOptions, origin: Origin): Promise<VmDisks> {
  const { spec, runDirectory, clock } = options;
  const served = servedDisks(spec);
  const recovered = disksOf(spec).filter(
    ({ id, disk }) => !disk.readOnly && !served.some((it) => it.id === id),
  );
  return await VmDisks.open(
    { served, recovered },
    {
      ...{ runDirectory: runDirectory.path, clock, user: spec.qemu.user },
      durableCommits: spec.shadow.commit === 'durable',
      token: () => runDirectory.token,
      left: served.length === 0 ? undefined : leftByShadow(options, origin),
    },
  );
}

interface WatchedVm {
  readonly disks: VmDisks;
  readonly shadow: ShadowLife;
  readonly publish: (kind: string, facts?: Readonly<Record<string, unknown>>) => void;
  readonly dispatch: (event: ProtectionEvent) => void;
}

/** Disks ask for cuts; and a VM whose disk cannot be written any more has no shadow that could be relied on. */
export function watchDisks({ disks, shadow, publish, dispatch }: WatchedVm): void {
  disks.listen({
    onCutWanted: () => shadow.pipeline?.demand(),
    onFailed: (path, failure) => {
      publish('disk-failed', { path, ...errorFacts(failure) });
      dispatch({ kind: 'shadow-lost' });
    },
  });
}

/** Undefined where the VM goes on from anything but the shadow of a killed keeper. */
function leftByShadow(
  { runDirectory, spec, log }: KeeperOptions,
  { state, restoring }: Origin,
): LeftWrites | undefined {
  const { heritage, memoryPath } = runDirectory;
  if (state !== undefined || restoring !== undefined || heritage.kind !== 'shadow') return undefined;
  try {
    return leftWrites(join(memoryPath, epochsName(heritage.instance)), spec);
  } catch (thrown) {
    if (!(thrown instanceof ReplicationError)) throw thrown;
    // The VM begins anew then: with all that was ever on its way to its disks.
    log.warn('the epochs of a killed keeper cannot be read', { error: messageOf(thrown) });
    return undefined;
  }
}
