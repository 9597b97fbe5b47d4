import { assert } from '../base/assert.ts';
import type { Failpoints } from '../base/failpoint.ts';
import type { Trace } from '../base/trace.ts';
import type { EpochId } from '../epoch/epoch-id.ts';
import type { GuestLink } from '../net/guest-link.ts';
import { withFirmware } from '../qemu/firmware.ts';
import type { StagedEpoch } from '../replication/epoch-slot.ts';
import type { Instance } from './instance.ts';
import type { ShadowSession } from './shadow-session.ts';

/** From now on the guest's output and input go through this QEMU. */
export function attachLinks(links: readonly GuestLink[], instance: Instance): void {
  for (const link of links) {
    const port = instance.ports.get(link.name);
    assert(port !== undefined, `instance ${instance.number} has a port for ${link.name}`);
    link.attach(port);
  }
}

interface PromoteOptions {
  readonly links: readonly GuestLink[];
  readonly failpoints: Failpoints;
  /**
   * Right before the guest runs. Until then all of this can be repeated from what is staged: loading device state
   * leaves guest memory alone. From then on the memory changes, and this QEMU's own state is the only one there is.
   */
  readonly onActs: () => void;
  /** Brings the disks to the epoch that is gone on from, while device state is loaded. */
  readonly settleDisks?: ((epoch: EpochId) => Promise<void>) | undefined;
  /** The request that asked for it, if any did. */
  readonly trace?: Trace | undefined;
}

/**
 * The shadow goes on from the last committed epoch. The old primary is fenced and the pipeline halted.
 *
 * Output of that epoch leaves before the shadow runs: whatever the shadow sends comes after it. Input waits
 * until the shadow runs: a frame that QEMU reads while its VM stands still is in no device state.
 * Resolves with the epoch that it went on from.
 * @throws ReplicationError, QemuError: the shadow cannot take over; it may not be used any more
 */
export async function promoteShadow(
  session: ShadowSession,
  { links, failpoints, onActs, settleDisks, trace }: PromoteOptions,
): Promise<StagedEpoch> {
  await failpoints.hit('promote.before');
  const { standby } = session;
  standby.limitCpu(null);
  const staged = await session.settle();
  for (const link of links) {
    link.pauseInput();
    link.rollBack(staged.epoch, staged.outputs.find((output) => output.link === link.name)?.items ?? []);
  }
  await failpoints.hit('promote.before-load');
  const both = await Promise.allSettled([
    settleDisks?.(staged.epoch),
    standby.machine.loadDeviceState(withFirmware(staged.deviceState, session.firmware), { trace }),
  ]);
  for (const step of both) if (step.status === 'rejected') throw step.reason;
  await failpoints.hit('promote.after-load');
  attachLinks(links, standby);
  onActs();
  await failpoints.hit('promote.before-cont');
  await standby.machine.cont({ trace });
  for (const link of links) link.resumeInput();
  await failpoints.hit('promote.after');
  return staged;
}
