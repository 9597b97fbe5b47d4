import { errorFacts } from '../base/errors.ts';
import { emptyDirectory } from '../control/own-directory.ts';
import { epochId } from '../epoch/epoch-id.ts';
import type { GuestLink } from '../net/guest-link.ts';
import type { SavedState } from '../replication/saved-state.ts';
import { inheritShadow } from './inheritance.ts';
import type { Instance, InstanceSetting } from './instance.ts';
import type { KeeperOptions } from './keeper-options.ts';
import { attachLinks } from './promotion.ts';
import type { ShadowLife } from './shadow-life.ts';
import { restoreState } from './state-restoring.ts';
import type { TakeoverRemains } from './takeover-remains.ts';

/** What a beginning needs of the keeper. */
export interface BeginningVm {
  readonly options: KeeperOptions;
  readonly setting: InstanceSetting;
  readonly shadow: ShadowLife;
  readonly remains: TakeoverRemains;
  readonly links: () => readonly GuestLink[];
  readonly startPrimary: (role: 'primary' | 'standby', signal: AbortSignal | undefined) => Promise<Instance>;
  /** Numbers of instances go on after this one. */
  readonly countFrom: (instance: number) => void;
  /** Another QEMU is about to act: to be called before it does anything. */
  readonly beginToAct: () => void;
  readonly makePrimary: (instance: Instance) => void;
  readonly publish: (kind: string, facts?: Readonly<Record<string, unknown>>) => void;
}

/**
 * Lets a VM run: from the state that it was saved in, from where a killed keeper left it, or anew. What it sends may
 * still be held when this resolves.
 * @throws what keeps it from running
 */
export async function beginVm(vm: BeginningVm, state: SavedState | undefined): Promise<void> {
  const { heritage } = vm.options.runDirectory;
  if (state !== undefined) await resume(vm, state);
  else if (heritage === undefined || !(await inherit(vm, heritage))) await boot(vm, vm.options.signal);
}

/** Its guest begins anew. */
export async function boot(vm: BeginningVm, signal?: AbortSignal): Promise<void> {
  const instance = await vm.startPrimary('primary', signal);
  vm.beginToAct();
  vm.makePrimary(instance);
  attachLinks(vm.links(), instance);
  await instance.machine.cont();
}

/** Goes on where a keeper was killed. False when what it left is of no use. */
async function inherit(vm: BeginningVm, number: number): Promise<boolean> {
  const { clock, failpoints, signal } = vm.options;
  const startMs = clock.nowMs();
  vm.countFrom(number);
  const outcome = await inheritShadow(vm.setting, {
    ...{ number, signal, links: vm.links(), failpoints },
    onCommitted: vm.beginToAct,
  });
  if (outcome.kind === 'spoilt') {
    vm.publish('inherit-failed', errorFacts(outcome.cause));
    return false;
  }
  const { session, staged } = outcome;
  vm.shadow.inherit(staged.epoch);
  vm.remains.keep({ primary: undefined, session, trace: undefined });
  vm.makePrimary(session.standby);
  vm.publish('inherited', { instance: number, tookMs: clock.nowMs() - startMs });
  return true;
}

async function resume(vm: BeginningVm, state: SavedState): Promise<void> {
  const { clock, failpoints, runDirectory, signal } = vm.options;
  const { kind, savedAtMs, epoch } = state.facts;
  const startMs = clock.nowMs();
  // A keeper that was killed after it had saved this left a shadow that is older.
  emptyDirectory(runDirectory.memoryPath, []);
  const instance = await vm.startPrimary('standby', signal);
  vm.shadow.inherit(epochId(epoch));
  vm.beginToAct();
  vm.makePrimary(instance);
  const onRuns = async () => kind === 'suspended' && (await state.remove());
  await restoreState(state, instance, { links: vm.links(), failpoints, onRuns });
  vm.publish('resumed', { from: kind, savedAtMs, tookMs: clock.nowMs() - startMs });
}
