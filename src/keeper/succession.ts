import { errorFacts } from '../base/errors.ts';
import type { Failpoints } from '../base/failpoint.ts';
import type { RecordedQemu } from '../control/keeper-record.ts';
import type { RunDirectory } from '../control/run-directory.ts';
import type { GuestLink } from '../net/guest-link.ts';
import type { StagedEpoch } from '../replication/epoch-slot.ts';
import { inheritShadow } from './inheritance.ts';
import type { Instance, InstanceSetting } from './instance.ts';
import type { UnsafeKeeper } from './keeper-options.ts';
import { endOrphan } from './orphan.ts';
import type { ShadowSession } from './shadow-session.ts';
import type { VmDisks } from './vm-disks.ts';

interface SuccessionOptions {
  readonly runDirectory: RunDirectory;
  readonly disks: VmDisks;
  readonly links: readonly GuestLink[];
  readonly failpoints: Failpoints;
  readonly signal: AbortSignal | undefined;
  readonly unsafe: UnsafeKeeper | undefined;
  /** This QEMU is about to run. */
  readonly onActs: (instance: Instance) => void;
}

export type Succession = (
  | { readonly kind: 'acts'; readonly session: ShadowSession; readonly staged: StagedEpoch }
  /** While no keeper looked, the guest has ended by itself. */
  | { readonly kind: 'powered-off' }
  /** There is nothing to go on from; whatever was left is cleared away. */
  | { readonly kind: 'anew' }
) & { readonly events: readonly Told[] };

/** What there is to tell of it, as events of the VM. */
interface Told {
  readonly kind: string;
  readonly facts: Readonly<Record<string, unknown>>;
}

/**
 * Goes on from what the keeper before this one left when it was killed: from its shadow if all output had waited for
 * that, else from the QEMU that acted.
 * @throws what keeps a QEMU from starting here now; all that was left is still there then
 */
export async function succeed(setting: InstanceSetting, options: SuccessionOptions): Promise<Succession> {
  const { heritage } = options.runDirectory;
  switch (heritage.kind) {
    case 'none':
      return { kind: 'anew', events: [] };
    case 'shadow':
      return await goOn(setting, options, { number: heritage.instance, as: 'inherited' });
    case 'orphan':
      return await takeBack(setting, options, heritage);
  }
}

async function takeBack(
  setting: InstanceSetting,
  options: SuccessionOptions,
  { instance, process }: RecordedQemu,
): Promise<Succession> {
  const { runDirectory, unsafe } = options;
  const orphan = { instance, process };
  if (unsafe?.forgetOrphan) {
    await runDirectory.endOrphan(orphan, setting.clock);
    runDirectory.forgetHeritage();
    return { kind: 'anew', events: [] };
  }
  const startMs = setting.clock.nowMs();
  const end = await endOrphan(setting, { ...options, orphan });
  switch (end.kind) {
    case 'powered-off':
      return { kind: 'powered-off', events: [{ kind: 'guest-powered-off', facts: {} }] };
    case 'left-state':
      return await goOn(setting, options, { number: instance, as: 'taken-back', startMs });
    case 'spoilt':
      runDirectory.forgetHeritage();
      return { kind: 'anew', events: [{ kind: 'take-back-failed', facts: errorFacts(end.cause) }] };
  }
}

interface GoOn {
  readonly number: number;
  readonly as: 'inherited' | 'taken-back';
  readonly startMs?: number;
}

async function goOn(
  setting: InstanceSetting,
  options: SuccessionOptions,
  { number, as, startMs = setting.clock.nowMs() }: GoOn,
): Promise<Succession> {
  const onSpoilt = () => options.runDirectory.forgetHeritage();
  const outcome = await inheritShadow(setting, { ...options, number, onSpoilt });
  if (outcome.kind === 'spoilt') {
    const kind = as === 'inherited' ? 'inherit-failed' : 'take-back-failed';
    return { kind: 'anew', events: [{ kind, facts: errorFacts(outcome.cause) }] };
  }
  const facts = { instance: number, tookMs: setting.clock.nowMs() - startMs };
  return { ...outcome, events: [{ kind: as, facts }] };
}
