import { messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import type { RunDirectory } from '../control/run-directory.ts';
import type { EpochId } from '../epoch/epoch-id.ts';
import type { ProtectionState } from '../shadow/protection.ts';
import type { Instance } from './instance.ts';
import type { ShadowSession } from './shadow-session.ts';
import type { VmDisks } from './vm-disks.ts';

interface RecordedVm {
  readonly log: Logger;
  readonly spec: VmSpec;
  readonly primary: Instance | undefined;
  /** Who acts: the primary, or a standby that is about to become it. */
  readonly acting: Instance | undefined;
  readonly shadow: ShadowSession | undefined;
  /** All of its memory is there: a next keeper can take it back. */
  readonly isWhole: boolean;
  readonly state: Pick<ProtectionState, 'phase' | 'wanted' | 'shadowBehind'>;
  readonly disks: Pick<VmDisks, 'isHeld' | 'isElsewhere'>;
  readonly token: number;
  readonly committed: EpochId;
}

/** Writes down what whoever comes after a killed keeper has to know. Never fails: a VM does not depend on it. */
export function recordVm(
  directory: RunDirectory,
  { log, spec, primary, acting, shadow, isWhole, state, disks, token, committed }: RecordedVm,
): void {
  // All output waits for the shadow. Else that is behind what the world has seen, and must not be gone on from.
  const isProtected =
    state.phase === 'protected' || (state.phase === 'saving' && state.shadowBehind) || disks.isHeld;
  // What its guest believes to be written only a shadow elsewhere has: without this keeper its QEMU is not gone on with.
  const mayGoOn = isWhole && !disks.isElsewhere;
  const all = [primary, shadow?.standby, acting].filter((instance) => instance !== undefined);
  const living = [...new Set(all)];
  try {
    directory.record({
      spec,
      processes: living.map((instance) => instance.pid),
      cgroups: living.flatMap((instance) => instance.cgroup?.directory ?? []),
      shadow: isProtected ? (shadow?.standby.number ?? null) : null,
      token,
      shadowWanted: state.wanted,
      acting: acting === undefined || !mayGoOn ? null : { instance: acting.number, pid: acting.pid },
      committed,
    });
  } catch (cause) {
    // No record is better than one that is no longer true.
    directory.forgetRecord();
    log.warn('the record of the VM cannot be written', { error: messageOf(cause) });
  }
}
