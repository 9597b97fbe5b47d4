import { assert } from '../base/assert.ts';
import { errorFacts } from '../base/errors.ts';
import { type Trace, traceFacts } from '../base/trace.ts';
import type { EpochId } from '../epoch/epoch-id.ts';
import type { GuestLink } from '../net/guest-link.ts';
import type { FailedDisk } from '../replication/peer-messages.ts';
import type { LossReason, ProtectionEvent } from '../shadow/protection.ts';
import type { Instance } from './instance.ts';
import type { KeeperOptions } from './keeper-options.ts';
import { promoteShadow } from './promotion.ts';
import { RemoteShadow } from './remote-shadow.ts';
import type { ShadowLife } from './shadow-life.ts';
import type { ShadowSession } from './shadow-session.ts';
import type { TakeoverRemains } from './takeover-remains.ts';
import { FirstReply, type TakeoverStats } from './takeover-stats.ts';
import type { VmDisks } from './vm-disks.ts';

/** What a takeover needs of the keeper. */
export interface TakenOverVm {
  readonly options: KeeperOptions;
  readonly shadow: ShadowLife;
  readonly remains: TakeoverRemains;
  readonly takeovers: TakeoverStats;
  readonly disks: VmDisks;
  readonly links: () => readonly GuestLink[];
  /** The QEMU that was lost, dead by now. */
  readonly primary: () => Instance | undefined;
  /** When and why it was lost, when that was noticed, and the request that asked for it, if any did. */
  readonly loss: () => {
    atMs: number;
    noticedAtMs: number;
    reason: LossReason | undefined;
    /** Of this host, if it was given up for that. */
    disk: FailedDisk | undefined;
    trace: Trace | undefined;
  };
  readonly forgetHeldEvents: () => void;
  readonly beginToAct: (instance: Instance) => void;
  readonly makePrimary: (instance: Instance) => void;
  readonly removeOldPrimary: () => Promise<void>;
  readonly publish: (kind: string, facts?: Readonly<Record<string, unknown>>) => void;
  readonly dispatch: (event: ProtectionEvent) => void;
}

/** The old primary is dead: its shadow goes on, here or on another host. What came of it is reported as an event. */
export async function takeOver(vm: TakenOverVm): Promise<void> {
  const { current, session } = vm.shadow;
  vm.forgetHeldEvents();
  if (current instanceof RemoteShadow) return await handOver(vm, current, vm.loss());
  const { clock, failpoints } = vm.options;
  const fencedAtMs = clock.nowMs();
  const { trace } = vm.loss();
  let reply: FirstReply | undefined;
  try {
    assert(session !== undefined, 'there is a shadow to promote');
    const onActs = () => {
      vm.beginToAct(session.standby);
      reply = new FirstReply(vm.links(), clock);
    };
    const acting = session.standby.number;
    const settleDisks = (epoch: EpochId) => vm.disks.goOnFrom(epoch, { acting });
    await promoteShadow(session, { ...{ links: vm.links(), failpoints, trace, onActs, settleDisks } });
  } catch (cause) {
    vm.publish('promote-failed', { ...errorFacts(cause), ...traceFacts(trace) });
    for (const link of vm.links()) link.detach();
    await vm.removeOldPrimary();
    vm.dispatch({ kind: 'promote-failed' });
    return;
  }
  // It acts: nothing from here on may be taken for a failed promotion.
  finish(vm, vm.shadow.handOver(), { fencedAtMs, reply });
}

function finish(
  vm: TakenOverVm,
  session: ShadowSession,
  { fencedAtMs, reply }: { fencedAtMs: number; reply: FirstReply | undefined },
): void {
  const { atMs: lastSignMs, noticedAtMs, trace } = vm.loss();
  const runsAtMs = vm.options.clock.nowMs();
  const taken = vm.takeovers.add({ lastSignMs, noticedAtMs, fencedAtMs, runsAtMs });
  vm.remains.keep({ primary: vm.primary(), session, trace });
  vm.makePrimary(session.standby);
  vm.publish('promoted', { instance: session.standby.number, ...taken, ...traceFacts(trace) });
  reply?.since({ runsAtMs, stats: vm.takeovers }, (replyMs) => vm.publish('replied', { ...taken, replyMs }));
  vm.dispatch({ kind: 'promoted' });
}

interface LeftVm {
  /** Of this host. */
  readonly disk: FailedDisk | undefined;
  /** Why not all that was written is in the images of this host. */
  readonly cause: unknown;
}

/**
 * The VM ends, its QEMU is dead, and a disk of this host does not take what its guest was told is written: it goes on where
 * all of that is.
 * @throws the cause where that is nowhere
 */
export async function leaveToShadow(
  vm: Pick<TakenOverVm, 'options' | 'shadow' | 'loss' | 'publish' | 'dispatch' | 'removeOldPrimary'>,
  { disk, cause }: LeftVm,
): Promise<void> {
  const { current } = vm.shadow;
  if (disk === undefined || !(current instanceof RemoteShadow) || !current.isOnRecord) throw cause;
  vm.publish('primary-lost', { reason: 'disk-failed', disk });
  const atMs = vm.options.clock.nowMs();
  await handOver(vm, current, { ...vm.loss(), reason: 'disk-failed', atMs, disk });
}

/** The VM goes on elsewhere, or here anew if its shadow cannot take over. */
async function handOver(
  vm: Pick<TakenOverVm, 'options' | 'publish' | 'dispatch' | 'removeOldPrimary'>,
  shadow: RemoteShadow,
  { atMs, reason, disk, trace }: Omit<ReturnType<TakenOverVm['loss']>, 'noticedAtMs'>,
): Promise<void> {
  const outcome = await shadow.handOver({ reason: reason ?? 'planned', disk, trace });
  switch (outcome.kind) {
    case 'acts':
      vm.publish('moved', {
        ...{ host: shadow.describe().host, reason, promoteMs: outcome.tookMs, token: outcome.token },
        // With the way of the answer: a little more than what the guest's clients saw.
        ...{ pauseMs: vm.options.clock.nowMs() - atMs, ...traceFacts(trace) },
      });
      return vm.dispatch({ kind: 'moved' });
    case 'superseded':
      vm.publish('hand-over-unanswered', { host: shadow.describe().host, error: outcome.error });
      return vm.dispatch({ kind: 'superseded' });
    // Not to be begun anew here.
    case 'left':
      vm.publish('hand-over-unanswered', { host: shadow.describe().host, error: outcome.error });
      return vm.dispatch({ kind: 'promote-failed' });
    // It is being stopped, and that comes next.
    case 'unknown':
      return vm.publish('promote-failed', { error: outcome.error, ...traceFacts(trace) });
    case 'free':
      vm.publish('promote-failed', { error: outcome.error, ...traceFacts(trace) });
      await vm.removeOldPrimary();
      return vm.dispatch({ kind: 'promote-failed' });
  }
}
