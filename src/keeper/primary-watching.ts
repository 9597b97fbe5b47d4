import type { ConditionWaiters } from '../base/condition-waiters.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import type { QmpEvent } from '../qemu/qmp-events.ts';
import { hasHeir, isActing, type LossReason } from '../shadow/protection.ts';
import type { Instance } from './instance.ts';
import { PrimaryWatch } from './primary-watch.ts';
import type { ShadowLife } from './shadow-life.ts';
import type { ShadowedVm } from './shadowed-vm.ts';

/** Without a word for so long, a QEMU that nobody could go on from is taken for dead. */
const RESTART_TIMEOUT_MS = 60_000;

type Facts = Readonly<Record<string, unknown>>;

export interface WatchedVm
  extends Pick<
    ShadowedVm,
    'options' | 'state' | 'links' | 'held' | 'mayContinue' | 'onGoesOn' | 'publish' | 'dispatch'
  > {
  readonly shadow: ShadowLife;
  readonly waiters: ConditionWaiters;
  readonly losePrimary: (reason: LossReason, facts: Facts) => void;
}

/** Watches the QEMU that acts, and does what a VM needs whose QEMU was silent and speaks again. */
export function watchPrimary(vm: WatchedVm, instance: Instance): PrimaryWatch {
  const { options, state, publish, dispatch, losePrimary, waiters } = vm;
  const { hangTimeoutMs, restartTimeoutMs } = timeoutsOf(options.spec);
  return new PrimaryWatch(instance, {
    ...{ clock: options.clock, hangTimeoutMs, restartTimeoutMs },
    // Epochs speak with QEMU all the time.
    isBusy: () => vm.shadow.pipeline !== undefined,
    hasHeir: () => hasHeir(state()),
    onLost: losePrimary,
    onSilent: (facts) => {
      if (!isActing(state())) return;
      publish('primary-slow', facts);
      // It was not in sync, and its next epoch would not come. Another one is made when QEMU answers.
      if (state().phase === 'syncing') dispatch({ kind: 'shadow-lost' });
    },
    revive: ({ isRunning }) => revive(vm, { instance, isRunning }),
    onRevived: (facts) => {
      publish('primary-answers', facts);
      waiters.check();
    },
    onGuestEvent: (event: QmpEvent) => {
      vm.held.add(event);
      if (event.name === 'SHUTDOWN') vm.shadow.pipeline?.demand();
    },
  });
}

/** A cut, or a save, that was given up in the middle may have left the guest standing still, and its links as well. */
async function revive(
  { state, links, mayContinue, onGoesOn }: WatchedVm,
  { instance, isRunning }: { instance: Instance; isRunning: boolean },
): Promise<void> {
  // Who saves its state lets it go on, or does not.
  if (!isActing(state()) || state().phase === 'saving') return;
  if (!isRunning && mayContinue()) await instance.machine.cont();
  for (const link of links()) {
    link.readOn();
    link.resumeInput();
  }
  onGoesOn();
}

function timeoutsOf({ shadow: { hangTimeoutMs, restartTimeoutMs } }: VmSpec) {
  return {
    hangTimeoutMs,
    restartTimeoutMs: restartTimeoutMs ?? Math.max(RESTART_TIMEOUT_MS, hangTimeoutMs),
  };
}
