import { createHash } from 'node:crypto';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import type { GuestLink } from '../net/guest-link.ts';
import { withFirmware } from '../qemu/firmware.ts';
import { ReplicationError } from '../replication/replication-error.ts';
import { SavedState, type SavedStateFacts } from '../replication/saved-state.ts';
import type { Instance } from './instance.ts';
import type { KeeperOptions } from './keeper-options.ts';
import { attachLinks } from './promotion.ts';
import { isSuspended, noSnapshot, stateOutlived } from './refusals.ts';

const NOT_BY_THIS =
  'Start it with the daemon that has its state: `understudy start`. To give that up: `understudy run SPEC --anew`.';

/**
 * The state that a VM goes on from instead of booting; undefined when it boots. It is whole, and of this machine.
 * @throws ReplicationError REPLICATION_STATE_DAMAGED, REPLICATION_STATE_FOREIGN; KeeperError KEEPER_SUSPENDED,
 * KEEPER_NO_SNAPSHOT, KEEPER_STATE_OUTLIVED
 */
export async function stateToBeginFrom(options: KeeperOptions): Promise<SavedState | undefined> {
  const { savedIn, startFrom, spec, remote } = options;
  if (savedIn === undefined) {
    // Which cannot be seen from here.
    if (remote?.right.suspended !== undefined) throw isSuspended(spec.name, NOT_BY_THIS);
    return undefined;
  }
  const suspended = SavedState.find(savedIn.suspended);
  if (startFrom === 'snapshot' && suspended !== undefined) throw isSuspended(spec.name);
  const state = startFrom === 'snapshot' ? SavedState.find(savedIn.snapshot) : suspended;
  if (startFrom === 'snapshot' && state === undefined) throw noSnapshot(spec.name);
  if (state !== undefined && isOutlived(state, options)) throw stateOutlived(spec.name, state.directory);
  if (state !== undefined) await checkState(state, options);
  return state;
}

/** Of several hosts: nobody has acted since it was suspended, as far as is on record. */
function isOutlived({ facts: { kind, rightToken } }: SavedState, { remote }: KeeperOptions): boolean {
  if (remote === undefined || kind !== 'suspended') return false;
  // One that was saved before the VM had several hosts is good for its first start with them.
  return rightToken === undefined ? remote.right.token > 1 : remote.right.suspended !== rightToken;
}

/** Facts that a state has to have in common with the VM that is to go on from it. */
export function stateFacts({
  spec,
  qemu,
  accel,
}: Pick<KeeperOptions, 'spec' | 'qemu' | 'accel'>): Omit<
  SavedStateFacts,
  'kind' | 'savedAtMs' | 'epoch' | 'rightToken'
> {
  const { name: vm, memoryBytes } = spec;
  return { vm, memoryBytes, qemuVersion: qemu.version, accel, machineHash: machineHash(spec) };
}

/** What QEMU builds the machine from; who protects it, and where its frames go, does not matter to its state. */
function machineHash(spec: VmSpec): string {
  const { vcpus, memoryBytes, machine, boot, disks, console, agent, generationId, qemu } = spec;
  const macs = spec.nics.map(({ mac }) => mac);
  const parts: unknown[] = [vcpus, memoryBytes, machine, boot, disks, macs, console, agent, qemu.extraArgs];
  // States that were saved before there was such a device fit a machine without one.
  if (generationId) parts.push('vmgenid');
  return createHash('sha256').update(JSON.stringify(parts)).digest('hex');
}

async function checkState(state: SavedState, options: KeeperOptions): Promise<void> {
  const present = stateFacts(options);
  const { directory, facts } = state;
  const fields = Object.keys(present) as (keyof typeof present)[];
  const differing = fields.filter((field) => facts[field] !== present[field]);
  if (differing.length > 0) {
    const message = `the state in ${directory} was saved from another machine: ${differing.join(', ')}`;
    throw new ReplicationError('REPLICATION_STATE_FOREIGN', message, {
      hint: `Give the VM the specification and the QEMU back that it was saved with; or give the state up: \`understudy start ${facts.vm} --discard\`.`,
      facts: { directory, differing },
    });
  }
  await state.verify();
}

interface RestoreOptions {
  readonly links: readonly GuestLink[];
  readonly failpoints: KeeperOptions['failpoints'];
  /** The VM runs in a QEMU again, and nothing that it sends has left yet. */
  readonly onRuns: () => Promise<unknown>;
}

/**
 * A QEMU that waits for device state goes on from a saved one. Its output is held until `onRuns` has resolved; to let
 * it pass is up to the caller.
 * @throws ReplicationError, QemuError; the state is still there
 */
export async function restoreState(
  state: SavedState,
  instance: Instance,
  { links, failpoints, onRuns }: RestoreOptions,
): Promise<void> {
  instance.memory.discardAll();
  await failpoints.hit('restore.before-memory');
  await state.loadMemory(instance.memory);
  for (const link of links) {
    link.pauseInput();
    link.holdOutput();
  }
  await instance.machine.loadDeviceState(withFirmware(state.deviceState, state.firmware));
  await failpoints.hit('restore.after-load');
  attachLinks(links, instance);
  await instance.machine.cont();
  for (const link of links) link.resumeInput();
  await failpoints.hit('restore.before-consume');
  await onRuns();
  await failpoints.hit('restore.after-consume');
}
