import type { ConditionWaiters } from '../base/condition-waiters.ts';
import { errorFacts } from '../base/errors.ts';
import type { GuestLink } from '../net/guest-link.ts';
import type { QmpEvent } from '../qemu/qmp-events.ts';
import type { FailedDisk } from '../replication/peer-messages.ts';
import type { LossReason, ProtectionEvent, ProtectionState } from '../shadow/protection.ts';
import type { HeldEvents } from './event-journal.ts';
import type { ClaimedByLink } from './guest-links.ts';
import type { Instance, InstanceSetting } from './instance.ts';
import type { KeeperOptions } from './keeper-options.ts';
import type { MemoryArrival } from './memory-arrival.ts';
import type { RecordPatience } from './record-patience.ts';
import type { Shadow } from './shadow.ts';
import { type EpochsOf, ShadowLife } from './shadow-life.ts';
import { openLocalShadow, openRemoteShadow } from './shadow-opening.ts';
import type { TakeoverRemains } from './takeover-remains.ts';
import type { KnownVm } from './vm-description.ts';
import type { VmDisks } from './vm-disks.ts';

type Facts = Readonly<Record<string, unknown>>;

/** What a shadow needs of the keeper of its VM. */
export interface ShadowedVm {
  readonly options: KeeperOptions;
  readonly setting: InstanceSetting;
  readonly disks: VmDisks;
  readonly memory: MemoryArrival;
  /** Of the takeover before the next shadow. */
  readonly remains: TakeoverRemains;
  /** What the guest did that waits for an epoch. */
  readonly held: HeldEvents<QmpEvent>;
  readonly state: () => ProtectionState;
  readonly known: () => KnownVm;
  readonly primary: () => Instance | undefined;
  readonly links: () => readonly GuestLink[];
  /** With who waits for the record of who acts. */
  readonly patience: RecordPatience;
  /** Addresses that the guest has claimed until now. */
  readonly claimed: () => ClaimedByLink;
  readonly startStandby: (signal: AbortSignal) => Promise<Instance>;
  /** Whether the guest may run on after an epoch was cut. */
  readonly mayContinue: () => boolean;
  readonly hasPanicked: () => boolean;
  /** Nothing is decided any more. */
  readonly isFrozen: () => boolean;
  /** The guest runs again after it stood still: its clock is behind. */
  readonly onGoesOn: () => void;
  readonly notePause: (pausedMs: number) => void;
  /** Who spoke with the QEMU that acts failed. */
  readonly notePrimaryFailure: (cause: unknown) => void;
  /** It does not answer, and may do so yet. */
  readonly isSilent: () => boolean;
  readonly waiters: ConditionWaiters;
  readonly losePrimary: (reason: LossReason, facts: Facts & { readonly disk?: FailedDisk }) => void;
  readonly dispatch: (event: ProtectionEvent) => void;
  readonly publish: (kind: string, facts?: Facts) => void;
  readonly record: () => void;
}

/** The shadows of this VM, one after the other. What becomes of them is told to its keeper, which decides what follows. */
export function shadowLifeOf(vm: ShadowedVm): ShadowLife {
  // Its heartbeats, its link and its epochs may all say so.
  const lost = new WeakSet<Shadow>();
  const life: ShadowLife = new ShadowLife({
    ...vm.options,
    beforeStart: () => finishTakeover(vm),
    open: (signal, onLost) => openShadow(vm, { signal, onLost }),
    primary: vm.primary,
    beginWith: () => holdOutput(vm),
    onStarting: () => vm.dispatch({ kind: 'shadow-starting' }),
    onInSync: () => {
      vm.dispatch({ kind: 'shadow-in-sync' });
      vm.record();
      vm.disks.noteRecorded({ isProtected: vm.state().phase === 'protected' });
    },
    onStartFailed: (cause) => {
      vm.publish('shadow-failed', errorFacts(cause));
      vm.dispatch({ kind: 'shadow-lost' });
    },
    onLost: (error) => {
      if (vm.isFrozen()) return;
      // Whether one on another host goes on is for the record to say, which the handing over asks.
      if (vm.state().phase === 'fencing' && life.session === undefined) return;
      const { current } = life;
      if (current === undefined || !lost.has(current)) vm.publish('shadow-lost', { error });
      if (current !== undefined) lost.add(current);
      vm.dispatch({ kind: 'shadow-lost' });
    },
    onChange: vm.record,
  });
  return life;
}

async function openShadow(
  vm: ShadowedVm,
  { signal, onLost }: { readonly signal: AbortSignal; readonly onLost: (error: string) => void },
): Promise<Shadow> {
  await vm.memory.whole(signal);
  // Epochs stop the guest and let it go on: not before it is known how it stands.
  await vm.waiters.until(() => !vm.isSilent(), signal);
  const { remote } = vm.options;
  // As long as it has ended there is nothing that a shadow could follow.
  await remote?.right.regained(signal);
  const { disks, publish, claimed, startStandby, patience } = vm;
  const parts = { ...vm.options, ...vm.setting, disks, publish, claimed, patience, onLost };
  if (remote === undefined) return await openLocalShadow({ ...parts, startStandby }, signal);
  const shadow = await openRemoteShadow({ ...parts, remote, known: vm.known() }, signal);
  vm.publish('shadow-placed', { ...remote.places.status });
  return shadow;
}

/** Epochs begin: what the guest does and sends is for its shadow first. */
function holdOutput(vm: ShadowedVm): EpochsOf {
  vm.held.hold();
  return {
    ...{ links: vm.links(), participants: [vm.held] },
    disks: vm.disks.beginEpochs(vm.record, vm.options),
    beforeRelease: (epoch) => vm.disks.durable(epoch),
    mayContinue: vm.mayContinue,
    hasPanicked: vm.hasPanicked,
    onPause: vm.notePause,
    onPrimaryLost: vm.notePrimaryFailure,
  };
}

/** What a promotion leaves for later, once those who waited for an answer have had it. */
async function finishTakeover({ remains, options, primary, onGoesOn, record }: ShadowedVm): Promise<void> {
  if (!remains.areThere) return;
  onGoesOn();
  await remains.clear({ acting: primary(), log: options.log });
  record();
}
