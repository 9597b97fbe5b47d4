import { join } from 'node:path';
import { messageOf } from '../base/errors.ts';
import type { BlockError } from '../block/block-error.ts';
import { disksOf, servedDisks } from '../config/spec-disks.ts';
import { type LeftWrites, leftWrites } from '../replication/left-writes.ts';
import type { FailedDisk } from '../replication/peer-messages.ts';
import { ReplicationError } from '../replication/replication-error.ts';
import {
  hasHeir,
  type LossReason,
  type ProtectionEvent,
  type ProtectionState,
} from '../shadow/protection.ts';
import type { ActingRight } from './acting-right.ts';
import { epochsName } from './inheritance.ts';
import type { KeeperOptions } from './keeper-options.ts';
import { RemoteShadow } from './remote-shadow.ts';
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
  const disks = await VmDisks.open(
    { served, recovered },
    {
      ...{ runDirectory: runDirectory.path, clock, user: spec.qemu.user },
      durableCommits: spec.shadow.commit === 'durable',
      token: () => runDirectory.token,
      left: served.length === 0 ? undefined : leftByShadow(options, origin),
    },
  );
  // Not above it: where nothing says who acted last, an image that others have written to since is still the newer one.
  runDirectory.countTokensFrom(disks.lastToken);
  return disks;
}

type Facts = Readonly<Record<string, unknown>>;

export interface WatchedVm {
  /** Undefined where no other host may act. */
  readonly right: Pick<ActingRight, 'status'> | undefined;
  readonly disks: Pick<VmDisks, 'listen'>;
  readonly shadow: Pick<ShadowLife, 'current' | 'pipeline' | 'freeze'>;
  readonly state: () => ProtectionState;
  readonly publish: (kind: string, facts?: Facts) => void;
  readonly dispatch: (event: ProtectionEvent) => void;
  readonly losePrimary: (reason: LossReason, facts: { readonly disk: FailedDisk }) => void;
  /** It cannot be written any more. */
  readonly noteFailed: (disk: FailedDisk) => void;
}

/**
 * Disks ask for cuts. A VM whose disk fails goes on where its shadow has another one. Without such a shadow none can be
 * relied on once the disk cannot be written; and what cannot be read is the guest's to deal with. So it is while nobody can
 * write down who acts: the VM would stand still until somebody can, for one place on its disk.
 */
export function watchDisks(vm: WatchedVm): void {
  const { disks, shadow, publish, dispatch } = vm;
  disks.listen({
    onCutWanted: () => shadow.pipeline?.demand(),
    onFailed: (path, failure) => {
      const disk = failedDisk(path, failure);
      vm.noteFailed(disk);
      publish('disk-failed', disk);
      if (!goesOnElsewhere(vm, disk)) dispatch({ kind: 'shadow-lost' });
    },
    onUnreadable: (path, failure) => {
      const isStoreAway = typeof vm.right?.status().storeAwayMs === 'number';
      if (!isStoreAway) goesOnElsewhere(vm, failedDisk(path, failure));
    },
  });
}

function failedDisk(path: string, { code, message: error }: BlockError): FailedDisk {
  return { path, code, error };
}

/** True when the shadow is about to act, and has disks of its own. */
function goesOnElsewhere({ shadow, state, losePrimary }: WatchedVm, disk: FailedDisk): boolean {
  const { current } = shadow;
  // On this host it would write to the same disk.
  if (!(current instanceof RemoteShadow)) return false;
  const { phase } = state();
  if (phase === 'fencing' || phase === 'promoting') return true;
  if (!hasHeir(state()) || !current.mayTakeOver) return false;
  // At once: the guest is about to learn of it, and no epoch may have that in it.
  shadow.freeze();
  losePrimary('disk-failed', { disk });
  return true;
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
