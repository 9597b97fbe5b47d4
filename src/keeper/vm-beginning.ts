import { traceFacts } from '../base/trace.ts';
import { servedNames } from '../config/spec-disks.ts';
import { type EpochId, epochId } from '../epoch/epoch-id.ts';
import { checkSpec } from '../qemu/protectability.ts';
import type { SavedState } from '../replication/saved-state.ts';
import { admit } from './admission.ts';
import type { InstanceSetting } from './instance.ts';
import type { KeeperOptions, PromisedShadow } from './keeper-options.ts';
import { attachLinks, promoteShadow } from './promotion.ts';
import { isShadowWanted, withShadow } from './shadow-wish.ts';
import { type RestoredVm, type Restoring, restoreSnapshot, snapshotToRestore } from './snapshot-restoring.ts';
import { restoreState, stateToBeginFrom } from './state-restoring.ts';
import { type Succession, succeed } from './succession.ts';
import type { TakeoverRemains } from './takeover-remains.ts';
import { FirstReply, type TakeoverStats } from './takeover-stats.ts';
import type { VmDisks } from './vm-disks.ts';
import { prepareImages } from './vm-images.ts';

/** What a beginning needs of the keeper. */
export interface BeginningVm extends RestoredVm {
  readonly setting: InstanceSetting;
  readonly disks: VmDisks;
  readonly remains: TakeoverRemains;
  readonly takeovers: TakeoverStats;
  /** Tells the network that the guest is here now. */
  readonly announce: () => void;
}

/** What a VM goes on from that was chosen before it began. */
export interface Origin {
  readonly state: SavedState | undefined;
  readonly restoring: Restoring | undefined;
}

/** Looks at everything that can be looked at before there is a VM. @throws what keeps it from running */
export async function prepareBeginning(options: KeeperOptions): Promise<Origin> {
  const spec = withShadow(options.spec, isShadowWanted(options));
  checkSpec(spec, servedNames(options.spec));
  // Where there is a heritage, what is needed was promised already.
  const isHeir = options.runDirectory.heritage.kind !== 'none' || options.promised !== undefined;
  if (!isHeir) admit(spec);
  if (options.promised !== undefined) return { state: undefined, restoring: undefined };
  const restoring = snapshotToRestore(options);
  const state = restoring === undefined ? await stateToBeginFrom(options) : undefined;
  const goesOn = isHeir || state !== undefined || restoring !== undefined;
  await prepareImages(options, { goesOn });
  return { state, restoring };
}

/**
 * Lets a VM run: from a snapshot, from the state that it was saved in, from where a killed keeper left it, or anew. What it sends may
 * still be held when this resolves. One that was left by a killed keeper may have powered off meanwhile.
 * @throws what keeps it from running
 */
export async function beginVm(
  vm: BeginningVm,
  { state, restoring }: Origin,
): Promise<'runs' | 'powered-off'> {
  const { promised, remote } = vm.options;
  if (state?.facts.kind !== 'suspended') remote?.right.forgetState();
  if (promised !== undefined) {
    await become(vm, promised);
    return 'runs';
  }
  if (restoring !== undefined) {
    await restoreSnapshot(vm, restoring);
    return 'runs';
  }
  if (state !== undefined) {
    await resume(vm, state);
    return 'runs';
  }
  const succession = await goOnFromBefore(vm);
  if (succession === 'anew') await boot(vm, vm.options.signal);
  return succession === 'powered-off' ? succession : 'runs';
}

/** Its guest begins anew. */
export async function boot(vm: BeginningVm, signal?: AbortSignal): Promise<void> {
  const instance = await vm.startPrimary('primary', signal);
  vm.beginToAct(instance);
  vm.makePrimary(instance);
  attachLinks(vm.links(), instance);
  await vm.options.failpoints.hit('start.before-cont');
  await instance.machine.cont();
}

/** Until now it acted on another host, and its shadow was kept here. */
async function become(
  vm: BeginningVm,
  { session, instances, from, reason, disk, trace, claimed: _, ...times }: PromisedShadow,
): Promise<void> {
  const { clock, failpoints, remote } = vm.options;
  let reply: FirstReply | undefined;
  vm.countFrom(instances);
  vm.shadow.inherit(session.image.committed);
  const onActs = () => {
    vm.beginToAct(session.standby);
    reply = new FirstReply(vm.links(), clock);
  };
  const settleDisks = (epoch: EpochId) => vm.disks.goOnFrom(epoch, { acting: session.standby.number });
  await promoteShadow(session, { ...{ links: vm.links(), failpoints, trace, onActs, settleDisks } });
  const runsAtMs = clock.nowMs();
  vm.announce();
  const taken = vm.takeovers.add({ ...times, runsAtMs });
  vm.remains.keep({ primary: undefined, session, trace });
  vm.makePrimary(session.standby);
  if (disk !== undefined) remote?.places.noteFailing(from, disk);
  vm.publish('promoted', {
    ...{ instance: session.standby.number, from, reason, ...(disk !== undefined && { disk }) },
    ...{ ...taken, ...traceFacts(trace) },
  });
  reply?.since({ runsAtMs, stats: vm.takeovers }, (replyMs) => vm.publish('replied', { ...taken, replyMs }));
}

/** Goes on where a keeper was killed, if that left something to go on from. */
async function goOnFromBefore(vm: BeginningVm): Promise<Succession['kind']> {
  const { failpoints, signal, runDirectory, unsafe } = vm.options;
  const outcome = await succeed(vm.setting, {
    ...{ runDirectory, failpoints, signal, unsafe, links: vm.links(), disks: vm.disks },
    onActs: vm.beginToAct,
  });
  const { heritage, committed } = runDirectory;
  if (heritage.kind !== 'none') vm.countFrom(heritage.instance);
  vm.shadow.inherit(outcome.kind === 'acts' ? outcome.staged.epoch : epochId(committed));
  for (const { kind, facts } of outcome.events) vm.publish(kind, facts);
  if (outcome.kind === 'acts') {
    vm.remains.keep({ primary: undefined, session: outcome.session, trace: undefined });
    vm.makePrimary(outcome.session.standby);
  }
  return outcome.kind;
}

async function resume(vm: BeginningVm, state: SavedState): Promise<void> {
  const { clock, failpoints, runDirectory, signal, remote } = vm.options;
  const { kind, savedAtMs, epoch } = state.facts;
  const startMs = clock.nowMs();
  // A keeper that was killed after it had saved this left a shadow that is older, or a QEMU that stands still.
  const { heritage } = runDirectory;
  if (heritage.kind === 'orphan') await runDirectory.endOrphan(heritage, clock);
  if (heritage.kind !== 'none') vm.countFrom(heritage.instance);
  runDirectory.forgetHeritage();
  const instance = await vm.startPrimary('standby', signal);
  vm.shadow.inherit(epochId(epoch));
  vm.beginToAct(instance);
  vm.makePrimary(instance);
  const onRuns = async () => {
    if (kind !== 'suspended') return;
    await state.remove();
    remote?.right.forgetState();
  };
  vm.disks.holdWrites();
  await restoreState(state, instance, { links: vm.links(), failpoints, onRuns });
  vm.disks.passWrites();
  vm.publish('resumed', { from: kind, savedAtMs, tookMs: clock.nowMs() - startMs });
}
